"""What a completion leads to: operations on a copy of the bank, a frozen Answer Agent's answers, a reward.

Two environments, one per agent, over episodes that the serving code built. They train nothing (`grpo`, `ppo`) and price
nothing (`rewards`). Rewarding the Manager through a frozen Answer Agent is the paper's idea (its Eq. 4); judging all
completions of a group on copies of one and the same bank is Memory-R2's lesson.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from memr1_plugin.agents import answerer, manager
from memr1_plugin.agents.answerer import Answerer
from memr1_plugin.agents.engine import Engine, Prompt, Role
from memr1_plugin.embedding import Embedder
from memr1_plugin.errors import DataError
from memr1_plugin.operations import Parsed, Rejection, parse
from memr1_plugin.retrieval import Retriever
from memr1_plugin.settings import Settings
from memr1_plugin.training import rewards
from memr1_plugin.training.histogram import Histogram
from memr1_plugin.training.rewards import RewardBreakdown
from memr1_plugin.types import Answer, Fact, MemoryItem, Operation, OperationKind, Scope

if TYPE_CHECKING:
    from memr1_plugin.bank.bank import Bank


class LinkedQuestion(Protocol):
    """A question that rewards an episode."""

    @property
    def question(self) -> str:
        """What is asked."""

    @property
    def answer(self) -> str:
        """The gold answer; "" when no memory answers the question."""

    @property
    def evidence(self) -> tuple[str, ...]:
        """Ids of the turns that the answer rests on."""

    @property
    def asked_at(self) -> datetime:
        """When it is asked."""


class ManagerEpisode(Protocol):
    """One turn for the Manager: the bank at that moment, the facts that need a decision, the questions."""

    @property
    def id(self) -> str:
        """Names the episode in errors and transcripts."""

    @property
    def scope(self) -> Scope:
        """Whose bank it is."""

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The turn's facts that the model decides on."""

    @property
    def memories(self) -> tuple[MemoryItem, ...]:
        """The memories that the Manager is shown, most related first."""

    @property
    def related(self) -> Sequence[Sequence[MemoryItem]]:
        """For each fact the memories that were retrieved for it."""

    @property
    def ruled(self) -> tuple[Operation, ...]:
        """The operations on the turn's other facts, which were certain."""

    @property
    def questions(self) -> Sequence[LinkedQuestion]:
        """Questions whose evidence is complete at this turn."""

    @property
    def gold(self) -> Sequence[Operation] | None:
        """What is right, where it is known (synthetic conversations)."""

    def open_bank(self) -> Bank:
        """Return the bank as it was before the turn; the caller closes it."""


class AnswerEpisode(Protocol):
    """One question for the Answer Agent, and the memories that were retrieved for it."""

    @property
    def id(self) -> str:
        """Names the episode in errors and transcripts."""

    @property
    def question(self) -> LinkedQuestion:
        """What is asked, the gold answer and its evidence."""

    @property
    def items(self) -> tuple[MemoryItem, ...]:
        """The candidates, in the order of relevance."""


@dataclass(frozen=True)
class Outcome:
    """What one completion led to, and what that is worth."""

    breakdown: RewardBreakdown
    state: str
    """Digest of what the completion was judged on: the bank before it, and the questions. One per group."""
    choices: tuple[str, ...]
    """What it decided, for the histogram: operation kinds, or "answered" / "abstained"; "refused" lines too."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """For transcripts: answers beside gold answers, rejected lines."""

    def to_json(self) -> dict[str, Any]:
        """Return a row for a transcript."""
        return {
            "reward": self.breakdown.total,
            "parts": dict(self.breakdown.parts),
            "choices": [*self.choices],
            **self.detail,
        }


class Environment(Protocol):
    """What a trainer needs: prompts by episode number, and outcomes of completions."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the reward's parts."""

    @property
    def weights(self) -> Mapping[str, float]:
        """How the parts are weighed."""

    def __len__(self) -> int:
        """How many episodes there are."""

    def prompt(self, number: int) -> Prompt:
        """The prompt of an episode, as serving builds it."""

    def score(self, number: int, completions: Sequence[str]) -> list[Outcome]:
        """Judge completions to one episode, each on a copy of the same state."""

    def rollout_greedily(self) -> list[Outcome]:
        """Let the engine complete every episode greedily, as serving does, and judge it."""

    def observe(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        """Count what was decided; return the shares, and warn of a collapse."""


class ManagerEnvironment:
    """Rewards operations by how well the frozen Answer Agent answers afterwards.

    Args:
        episodes: turns with their banks and questions.
        engine: serves the frozen Answer Agent and, for `rollout_greedily`, the Manager as it stands.
        embedder: the one the banks were made with.
        settings: how many candidates the Answer Agent is shown; the same as in serving.
        weights: of the reward's parts.
    """

    role = Role.MANAGER
    parts: tuple[str, ...] = (
        "exact_match",
        "token_f1",
        "evidence_coverage",
        "format_validity",
        "compression",
        "freshness",
    )

    def __init__(
        self,
        episodes: Sequence[ManagerEpisode],
        engine: Engine,
        embedder: Embedder,
        *,
        settings: Settings | None = None,
        weights: Mapping[str, float] = rewards.MANAGER_WEIGHTS,
    ) -> None:
        self.episodes, self.engine, self.embedder = episodes, engine, embedder
        self.settings = settings or Settings()
        if silent := [e.id for e in episodes if not e.questions]:
            raise DataError(
                f"{len(silent)} episodes have no questions ({silent[0]!r} is the first), so nothing rewards what is "
                "done there. Leave them out, or learn them by SFT."
            )
        lacking = {
            "evidence_coverage": [e.id for e in episodes if not any(q.evidence for q in e.questions)],
            "freshness": [e.id for e in episodes if e.gold is None],
        }
        self.parts = _parts(self.parts, weights, lacking)
        self.weights = {name: weights.get(name, 0.0) for name in self.parts}
        self.answerer = Answerer(engine)
        self.histogram = Histogram([*(k.value for k in OperationKind), "refused"])
        self._answers: dict[tuple[str, str, datetime], Answer] = {}
        self._outcomes: dict[tuple[int, str], Outcome] = {}
        self.asked = 0
        """Questions put to the Answer Agent so far; the others were found in the cache."""

    def __len__(self) -> int:
        return len(self.episodes)

    def prompt(self, number: int) -> Prompt:
        """The Manager's prompt, as serving builds it."""
        episode = self.episodes[number]
        return manager.prompt(episode.facts, episode.memories, trained=True)

    def observe(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        """Shares of ADD, UPDATE, DELETE, NOOP and refused lines; warns of a collapse."""
        return self.histogram.observe([choice for outcome in outcomes for choice in outcome.choices])

    def rollout_greedily(self) -> list[Outcome]:
        """Let the Manager decide every episode, as serving does."""
        prompts = [self.prompt(n) for n in range(len(self))]
        done = self.engine.complete(prompts, self.role)
        return [self.score(n, [completion.text])[0] for n, completion in enumerate(done)]

    def score(self, number: int, completions: Sequence[str]) -> list[Outcome]:
        """Apply each completion to its own copy of the episode's bank, and ask the questions of each copy.

        The other agent is frozen, so what a completion led to once, it leads to always: nothing is done twice.
        """
        new = list(dict.fromkeys(text for text in completions if (number, text) not in self._outcomes))
        self._outcomes |= {(number, t): o for t, o in zip(new, self._try(number, new) if new else [], strict=True)}
        return [self._outcomes[number, text] for text in completions]

    def _try(self, number: int, completions: Sequence[str]) -> list[Outcome]:
        episode = self.episodes[number]
        bank = episode.open_bank()
        try:
            before = bank.items(episode.scope)
            state = digest(before, [q.question for q in episode.questions])
            parsed = [parse(text, episode.facts, episode.memories) for text in completions]
            after = [self._apply(bank, episode, p) for p in parsed]
        finally:
            bank.close()
        self._answer([asked for done in after for asked in done.missing])
        return [self._outcome(episode, state, before, p, done) for p, done in zip(parsed, after, strict=True)]

    def _apply(self, bank: Bank, episode: ManagerEpisode, parsed: Parsed) -> _Applied:
        copy = bank.snapshot(episode.scope)
        try:
            asked = list(zip(episode.facts, episode.related, strict=True))
            decided, unsupported = manager.followed(parsed, asked, episode.memories, self.settings)  # as serving would
            copy.apply(episode.scope, [*episode.ruled, *decided])
            items = copy.items(episode.scope)
            state = digest(items)
            missing = [q for q in episode.questions if (state, q.question, q.asked_at) not in self._answers]
            shown, k = Retriever(copy, self.embedder, self.settings).candidates, self.settings.candidates
            found = [(state, q, shown(q.question, episode.scope, k)) for q in missing]
            return _Applied(items, unsupported, found)
        finally:
            copy.close()

    def _answer(self, asked: Sequence[_Asked]) -> None:
        once = {(state, q.question, q.asked_at): (q.question, found, q.asked_at) for state, q, found in asked}
        self.asked += len(once)
        answers = self.answerer.answer_many(list(once.values()))
        self._answers |= {key: answer for key, (answer, _) in zip(once, answers, strict=True)}

    def _outcome(
        self,
        episode: ManagerEpisode,
        state: str,
        before: Sequence[MemoryItem],
        parsed: Parsed,
        done: _Applied,
    ) -> Outcome:
        form, after = rewards.manager_format(parsed, len(episode.facts)), done.items
        answers = [self._answers[digest(after), q.question, q.asked_at] for q in episode.questions]
        given = ["" if a.abstained else a.text for a in answers]
        pairs = [(text, q.answer) for text, q in zip(given, episode.questions, strict=True)]
        parts = {
            "exact_match": statistics.fmean(rewards.exact_match(*pair) for pair in pairs),
            "token_f1": statistics.fmean(rewards.token_f1(*pair) for pair in pairs),
            "format_validity": rewards.manager_format(parsed, len(episode.facts), overruled(done.unsupported)),
            "compression": rewards.compression(_words(before), _words(after), max(1, _words(episode.facts))),
        }
        if "evidence_coverage" in self.parts:
            said = [(t, item.text) for item in before for t in item.turn_ids] + [
                (f.turn_id, f.text) for f in episode.facts
            ]
            held = rewards.held_turns(said, after)
            with_evidence = [q.evidence for q in episode.questions if q.evidence]
            parts["evidence_coverage"] = statistics.fmean(rewards.evidence_coverage(e, held) for e in with_evidence)
        if "freshness" in self.parts:
            targets = {op.target for op in episode.gold or () if op.kind is not OperationKind.ADD}
            outdated = {item.id: item.text for item in before if item.id in targets}
            parts["freshness"] = rewards.freshness(outdated, after)
        refused = [{"line": r.line, "reason": r.reason} for r in (*parsed.rejections, *done.unsupported)]
        return Outcome(
            rewards.combine(parts, self.weights) if form else rewards.floor(self.parts, self.weights),
            state,
            (*(op.kind.value for op in parsed.operations), *("refused" for _ in parsed.rejections)),
            {"id": episode.id, "refused": refused, "answers": [{"got": got, "gold": gold} for got, gold in pairs]},
        )


_Asked = tuple[str, LinkedQuestion, list[MemoryItem]]


def overruled(unsupported: Sequence[Rejection]) -> int:
    """Count the UPDATEs and DELETEs among the lines that serving does not follow."""
    return sum(not r.line.startswith(OperationKind.NOOP.value) for r in unsupported)


class _Applied(NamedTuple):
    """What a completion made of the bank."""

    items: list[MemoryItem]
    unsupported: list[Rejection]
    """Decisions that serving does not follow, for nothing bears them out."""
    missing: list[_Asked]
    """The questions that were never asked of that state, with what is retrieved for them there."""


class AnswerEnvironment:
    """Rewards the Answer Agent's selection and answer against the gold evidence and answer."""

    role = Role.ANSWER
    parts: tuple[str, ...] = ("exact_match", "token_f1", "evidence_coverage", "format_validity", "brevity")

    def __init__(
        self,
        episodes: Sequence[AnswerEpisode],
        engine: Engine,
        *,
        weights: Mapping[str, float] = rewards.ANSWER_WEIGHTS,
    ) -> None:
        self.episodes, self.engine = episodes, engine
        lacking = [e.id for e in episodes if e.question.answer.strip() and not e.question.evidence]
        self.parts = _parts(self.parts, weights, {"evidence_coverage": lacking})
        self.weights = {name: weights.get(name, 0.0) for name in self.parts}
        self.histogram = Histogram(["answered", "abstained", "refused"])

    def __len__(self) -> int:
        return len(self.episodes)

    def prompt(self, number: int) -> Prompt:
        """The Answer Agent's prompt, as serving builds it."""
        episode = self.episodes[number]
        return answerer.prompt(episode.question.question, episode.items, episode.question.asked_at, trained=True)

    def observe(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        """Shares of answers, abstentions and completions outside the language; warns of a collapse."""
        return self.histogram.observe([choice for outcome in outcomes for choice in outcome.choices])

    def rollout_greedily(self) -> list[Outcome]:
        """Let the Answer Agent answer every episode, as serving does."""
        done = self.engine.complete([self.prompt(n) for n in range(len(self))], self.role)
        return [self.score(n, [completion.text])[0] for n, completion in enumerate(done)]

    def score(self, number: int, completions: Sequence[str]) -> list[Outcome]:
        """Judge each completion against the gold answer and evidence."""
        episode = self.episodes[number]
        state = digest(episode.items, [episode.question.question])
        return [self._outcome(episode, state, text) for text in completions]

    def _outcome(self, episode: AnswerEpisode, state: str, text: str) -> Outcome:
        gold, form = episode.question, rewards.answer_format(text, episode.items)
        used, words = answerer.parse(text, episode.items)
        turns = {item.id: item.turn_ids for item in episode.items}
        parts = {
            "exact_match": rewards.exact_match(words, gold.answer),
            "token_f1": rewards.token_f1(words, gold.answer),
            "format_validity": form,
            "brevity": rewards.brevity(words),
        }
        if "evidence_coverage" in self.parts:
            parts["evidence_coverage"] = rewards.evidence_f1(gold.evidence, [turns[i] for i in used])
        return Outcome(
            rewards.combine(parts, self.weights) if form else rewards.floor(self.parts, self.weights),
            state,
            ("answered" if words else "abstained",) if form else ("refused",),
            {"id": episode.id, "answers": [{"got": words, "gold": gold.answer}]},
        )


_LACKS = {
    "evidence_coverage": "no evidence turns; link their questions",
    "freshness": "no gold operations; train on synthetic conversations",
}
"""For each part that not every episode allows: what they have not, and what to do."""


def _parts(names: tuple[str, ...], weights: Mapping[str, float], lacking: Mapping[str, list[str]]) -> tuple[str, ...]:
    """Return the parts that these episodes allow; a weighted part that they do not allow is an error."""
    rewards.check_weights(weights, names)
    for name, ids in lacking.items():
        if ids and weights.get(name):
            raise DataError(
                f"{name} cannot be computed for {len(ids)} episodes ({ids[0]!r} is the first): they have "
                f"{_LACKS[name]}, leave them out, or give that part no weight."
            )
    return tuple(name for name in names if not lacking.get(name))


def _words(things: Sequence[MemoryItem] | Sequence[Fact]) -> int:
    return sum(len(thing.text.split()) for thing in things)


def digest(items: Sequence[MemoryItem], questions: Sequence[str] = ()) -> str:
    """Return 16 hex digits that are equal for equal memories (id, text, speaker, date) and questions."""
    rows = [[item.id, item.text, item.speaker, item.at.isoformat()] for item in sorted(items, key=lambda i: i.id)]
    return hashlib.sha256(json.dumps([rows, list(questions)]).encode()).hexdigest()[:16]
