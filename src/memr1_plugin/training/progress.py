"""A progress bar with the time left and the two or three numbers that matter, for any Hugging Face trainer.

Everything else that is logged is in metrics.jsonl; transformers' own bar prints all of it at every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memr1_plugin.errors import MissingExtraError

try:
    from transformers import PrinterCallback, ProgressCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise MissingExtraError.of("transformers", "train") from error

SHOWN = {"loss": "loss", "reward": "reward", "eval_reward": "validation"}


class ShortProgress(ProgressCallback):
    """Steps done and to do, time gone and left, and the latest of `SHOWN`."""

    def __init__(self) -> None:
        super().__init__()
        self._latest: dict[str, str] = {}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Show the numbers behind the bar instead of printing them above it."""
        found = {
            SHOWN[key]: f"{value:.3g}" for key, value in (logs or {}).items() if key in SHOWN and value is not None
        }
        self._latest |= found
        if found and state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.set_postfix(self._latest)


def shorten(trainer: Any) -> None:
    """Give `trainer` this bar instead of its own; with ``disable_tqdm`` none at all."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(ShortProgress())
