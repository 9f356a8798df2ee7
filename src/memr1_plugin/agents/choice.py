"""Which engine serves where nobody named one: what is installed decides, and a log line and `memr1 doctor` say so.

Nothing is timed: a bank must answer the same on two days. What was timed once is in docs/engines.md: the
transformers engine reads prompts faster on a GPU and on a CPU (there its 4-bit weights are computed unpacked,
by OpenVINO if that is installed), and prompts are long here and completions short. llama.cpp serves where only the
extra `cpu` is installed.
"""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from memr1_plugin.agents import llamacpp, local
from memr1_plugin.agents.engine import Engine
from memr1_plugin.logs import fields

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """An engine, and the reason why it was taken."""

    engine: Literal["transformers", "llama.cpp"]
    why: str


def choose(model: str | Path | None = None) -> Choice:
    """Return which engine serves `model` (as `models.resolve` names it). Imports neither torch nor llama.cpp."""
    if all(find_spec(module) is not None for module in local.NEEDED):
        return Choice("transformers", "the extra `local` is installed; it reads prompts fastest, on a GPU or a CPU")
    if llamacpp.serves(model):
        return Choice("llama.cpp", "the extra `cpu` is installed and `local` is not")
    return Choice("transformers", "neither the extra `local` nor `cpu` with a GGUF file of the model is there")


_open: dict[tuple[object, ...], llamacpp.LlamaCppEngine] = {}
_lock = threading.Lock()


def shared_engine(model: str | Path | None = None, loras: str | Path | None = None) -> Engine:
    """Return the one engine of this process for these arguments; all memories share its model.

    Raises:
        MissingExtraError: no engine's extra is installed.
        WeightsNotFoundError: the model's weights are not on this machine.
        LoraMismatchError: a LoRA was trained on another base or prompt.
    """
    choice = choose(model)
    if choice.engine == "transformers":
        return local.shared_engine(model, loras)
    key = (os.getpid(), model and str(model), loras and str(loras), os.environ.get("MEMR1_HOME"))
    with _lock:
        if key not in _open or _open[key].closed:
            log.info("llama.cpp was chosen: %s", choice.why, extra=fields("engine_chosen", engine="llama.cpp"))
            _open[key] = llamacpp.open_engine(model, loras)
        return _open[key]
