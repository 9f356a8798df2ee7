"""Not a test: the command line that `test_cli_training` starts, which kills itself at the end of its fifth step."""

from __future__ import annotations

import os
import signal
import sys

import memr1_plugin.embedding
from memr1_plugin.cli import main
from memr1_plugin.testing import HashEmbedder
from memr1_plugin.training import run_log


class Killing(run_log.RunLog):
    """SIGKILL, as the kernel does it when memory runs out: no handler, no flush."""

    def on_step_end(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    memr1_plugin.embedding.as_embedder = lambda given: HashEmbedder(64)
    run_log.RunLog = Killing  # type: ignore[misc]  (before the trainers import it)
    main(sys.argv[1:])
