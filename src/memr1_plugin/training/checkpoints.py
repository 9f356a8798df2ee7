"""Checkpoints of a run: which one is whole, which one validated best, and going on from the newest.

For SFT, GRPO and PPO alike. What is in a checkpoint is the trainers' matter.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PREFIX = "checkpoint"
STATE = "trainer_state.json"


def last_checkpoint(folder: str | Path) -> Path | None:
    """Return the newest whole checkpoint in `folder`: one that a kill cut short is passed over."""
    found = sorted(Path(folder).glob(f"{PREFIX}-*"), key=lambda p: int(p.name.rsplit("-", 1)[1]))
    return next((path for path in reversed(found) if state_of(path) is not None), None)


def state_of(checkpoint: Path) -> dict[str, Any] | None:
    """What the trainer wrote last into `checkpoint`; None if it did not come that far."""
    try:
        state: dict[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return state


def best_checkpoint(folder: str | Path) -> Path | None:
    """Return the checkpoint in `folder` that validated best; without validation the last one."""
    last = last_checkpoint(folder)
    best = (state_of(last) or {}).get("best_model_checkpoint") if last else None
    return Path(folder) / Path(best).name if best else last


def train(trainer: Any, *, resume: bool) -> None:
    """Train; with `resume`, go on from the last whole checkpoint of ``output_dir``, if there is one.

    A run that is finished is loaded as it is: transformers would train it one step further, each time.
    """
    last = last_checkpoint(trainer.args.output_dir) if resume else None
    state = state_of(last) if last else None
    if last is None or state is None:
        trainer.train()
        return
    wanted = trainer.args.max_steps if trainer.args.max_steps > 0 else state["max_steps"]
    if state["global_step"] < wanted:
        trainer.train(resume_from_checkpoint=str(last))
        return
    trainer._load_from_checkpoint(str(last))
    trainer.state = type(trainer.state).load_from_json(str(last / STATE))
