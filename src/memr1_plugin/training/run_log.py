"""What a run leaves behind while it runs: metrics.jsonl, transcripts.jsonl, curves.png.

A callback for any Hugging Face trainer. Lines are written as they come, so that a killed run keeps them; a resumed run
first cuts what came after the checkpoint it resumes from, so that its files equal an uninterrupted run's. It sums up
nothing: TensorBoard, W&B and trackio are the trainer's own ``report_to``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from memr1_plugin.errors import DataError, MissingExtraError

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise MissingExtraError.of("transformers", "train") from error

METRICS = "metrics.jsonl"
TRANSCRIPTS = "transcripts.jsonl"
CURVES = "curves.png"


class RunLog(TrainerCallback):
    """Writes a run's files into `folder`; rank 0 only. Curves are drawn at each save and at the end."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._drawn = -1

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Make the folder, and cut lines of steps that will be done again."""
        if state.is_world_process_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in (METRICS, TRANSCRIPTS):
                keep_until(self.folder / name, state.global_step or -1)  # from the start: not even step 0 was done

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Append one line of numbers."""
        if state.is_world_process_zero and logs:
            append(self.folder / METRICS, [{"step": state.global_step, **logs}])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Draw the curves so far."""
        if state.is_world_process_zero and state.global_step != self._drawn:
            draw_curves(self.folder)
            self._drawn = state.global_step

    on_train_end = on_save

    def transcripts(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append sample completions with what they led to."""
        append(self.folder / TRANSCRIPTS, ({"step": step, **row} for row in rows))


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append `rows` to a JSONL file."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file that `append` wrote; a last line cut off by a kill is left out.

    Raises:
        DataError: another line is not JSON: the file was changed by something else.
    """
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            rows += [json.loads(line)] if line else []
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise DataError(f"{path}, line {number} is not JSON: {error}. Move the file away to go on.") from error
    return rows


def keep_until(path: Path, step: int) -> None:
    """Cut from a JSONL file the rows of steps after `step`."""
    if path.exists():
        rows = [row for row in read(path) if row["step"] <= step]
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def draw_curves(folder: Path) -> Path | None:
    """Draw reward, its parts, the operations and the losses of ``metrics.jsonl``; None if there is nothing yet."""
    from matplotlib.figure import Figure

    panels = _panels(read(folder / METRICS))
    if not panels:
        return None
    figure = Figure(figsize=(6, 2.6 * len(panels)), layout="constrained")
    for axes, (title, series) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True):
        for name, points in series.items():
            axes.plot([x for x, _ in points], [y for _, y in points], label=name, linewidth=1)
        axes.set(title=title, xlabel="step")
        axes.legend(fontsize="x-small")
    path = folder / CURVES
    figure.savefig(path, dpi=100)
    return path


Series = dict[str, list[tuple[int, float]]]


def _panels(rows: list[dict[str, Any]]) -> dict[str, Series]:
    panels: dict[str, Series] = {}
    for row in rows:
        for key, value in row.items():
            if isinstance(value, (int, float)) and (title := _panel_of(key)):
                panels.setdefault(title, {}).setdefault(key, []).append((row["step"], value))
    return panels


def _panel_of(key: str) -> str | None:
    if key in ("reward", "eval_reward"):
        return "reward"
    if key.startswith("rewards/") and key.endswith("/mean"):
        return "reward, part by part"
    if key.startswith("operations/"):
        return "operations (share)"
    if key in ("loss", "eval_loss", "value/loss"):
        return "loss"
    if key in ("kl", "entropy", "value/explained_variance"):
        return "policy"
    return None
