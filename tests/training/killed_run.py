"""Not a test: the run that `test_grpo` starts, which kills itself in the middle of its seventh or eighth step."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import toy_task
from test_grpo import make
from transformers import TrainerCallback


class Kill(TrainerCallback):
    """SIGKILL, as the kernel does it when memory runs out: no handler, no flush."""

    def on_substep_end(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        if state.global_step == 7:
            os.kill(os.getpid(), signal.SIGKILL)

    on_pre_optimizer_step = on_substep_end


if __name__ == "__main__":
    kind, model, run = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    toy_task._WARM[0] = model
    trainer = make(kind, run.parent, run)
    trainer.add_callback(Kill())
    trainer.fit()
