"""Validation: held-out episodes completed greedily, as serving completes them, between the steps of any trainer.

Generation decides which checkpoint is served, never a loss. The measure is the environment's reward; for a Manager that
learns from gold operations alone it is how often it decides as the gold does (`GoldOperations`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from memr1_plugin.agents import answerer, manager
from memr1_plugin.agents.engine import Engine, Role
from memr1_plugin.errors import DataError, MissingExtraError
from memr1_plugin.evaluation.metrics import exact_match, f1
from memr1_plugin.operations import parse
from memr1_plugin.settings import Settings
from memr1_plugin.training import rewards
from memr1_plugin.training.environment import Outcome, digest, overruled

if TYPE_CHECKING:
    from memr1_plugin.training.episodes import ManagerEpisode

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise MissingExtraError.of("transformers", "train") from error


class Validation(Protocol):
    """What a trainer validates on: an `environment.Environment`, or `GoldOperations`."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the reward's parts."""

    def rollout_greedily(self) -> list[Outcome]:
        """Let the engine complete every episode greedily, and judge it."""


def scores(validation: Validation, prefix: str = "eval") -> dict[str, float]:
    """Complete every episode greedily; return the mean reward and each part's mean."""
    outcomes = validation.rollout_greedily()
    found = {f"{prefix}_reward": statistics.fmean(o.breakdown.total for o in outcomes)}
    for name in validation.parts:
        found[f"{prefix}_rewards/{name}"] = statistics.fmean(o.breakdown.parts[name] for o in outcomes)
    return found


class ValidateFirst(TrainerCallback):
    """Validates before the first step: what training is worth is the difference to it.

    transformers' own ``eval_on_start`` does so again whenever a run is resumed, at a step that was validated already.
    """

    def __init__(self, evaluate: Callable[[], Any]) -> None:
        self.evaluate = evaluate

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Validate a run that begins; not one that goes on."""
        if state.global_step == 0:
            self.evaluate()


class GoldOperations:
    """Turns with gold operations, decided by the Manager as it serves: right where every operation and target is.

    As in serving, what the memories do not bear out is not followed.
    """

    parts = ("right", "format_validity")
    weights: Mapping[str, float] = {"right": 1.0}

    def __init__(self, episodes: Sequence[ManagerEpisode], engine: Engine, settings: Settings | None = None) -> None:
        self.episodes, self.engine = [e for e in episodes if e.gold is not None], engine
        self.settings = settings or Settings()
        if not self.episodes:
            raise DataError("none of the validation turns has gold operations; take them from synthetic conversations.")

    def rollout_greedily(self) -> list[Outcome]:
        """Decide every turn, and compare with the gold operations."""
        done = self.engine.complete([e.prompt() for e in self.episodes], Role.MANAGER)
        return [self._outcome(e, completion.text) for e, completion in zip(self.episodes, done, strict=True)]

    def _outcome(self, episode: ManagerEpisode, text: str) -> Outcome:
        parsed = parse(text, episode.facts, episode.memories)
        asked = list(zip(episode.facts, episode.related, strict=True))
        followed, unsupported = manager.followed(parsed, asked, episode.memories, self.settings)
        decided = [(op.kind, op.target) for op in followed]
        gold = [(op.kind, op.target) for op in episode.gold or ()]
        parts = {
            "right": float(decided == gold),
            "format_validity": rewards.manager_format(parsed, len(episode.facts), overruled(unsupported)),
        }
        choices = tuple(kind.value for kind, _ in decided)
        return Outcome(rewards.combine(parts, self.weights), digest(episode.memories), choices, {"id": episode.id})


def score_answers(engine: Engine, asked: Sequence[Any]) -> dict[str, float]:
    """Mean F1, exact match, share of gold memories named, and share of abstentions, over answer episodes."""
    if not asked:
        raise DataError("no validation question has an answer; name a file with answered questions.")
    totals = dict.fromkeys(("f1", "em", "selected", "abstained"), 0.0)
    for episode, done in zip(asked, engine.complete([e.prompt() for e in asked], Role.ANSWER), strict=True):
        used, text = answerer.parse(done.text, episode.items)
        gold = {episode.items[n - 1].id for n in episode.places()}
        totals["f1"] += f1(text, episode.question.answer)
        totals["em"] += exact_match(text, episode.question.answer)
        totals["selected"] += len(gold & set(used)) / len(gold) if gold else 0.0
        totals["abstained"] += not text
    return {name: round(total / len(asked), 4) for name, total in totals.items()}
