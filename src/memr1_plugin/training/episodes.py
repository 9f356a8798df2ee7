"""Episodes: what one agent sees at one moment, and what would have been right. Built by the code that serves.

A conversation is replayed into a bank by the serving extraction, retrieval and (if given) Manager; at each turn with
something to decide there is a Manager episode, for each question an Answer episode. Prompts and completions are the
agents' own. Nothing is trained here (`sft`, `grpo`, `ppo`). The window of turns is the paper's (Algorithm 1: 50).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np

from memr1_plugin.agents import answerer
from memr1_plugin.agents import manager as managing
from memr1_plugin.agents.belief import certain
from memr1_plugin.agents.engine import Prompt
from memr1_plugin.agents.manager import Manager
from memr1_plugin.bank.bank import Bank
from memr1_plugin.bank.embedded import Embedded
from memr1_plugin.embedding import Embedder, Vectors, embed_questions
from memr1_plugin.errors import DataError, InputError
from memr1_plugin.evaluation.datasets import Conversation
from memr1_plugin.extraction import Extractor, VerbatimExtractor
from memr1_plugin.operations import render_operations
from memr1_plugin.ranking import Ranked, near_best
from memr1_plugin.retrieval import Retriever
from memr1_plugin.settings import Settings
from memr1_plugin.training.sft import Example
from memr1_plugin.training.synthetic import Gold, Synthetic
from memr1_plugin.types import Fact, MemoryItem, Operation, OperationKind, Scope, Turn

WINDOW = 50
"""Turns that the Manager's bank is replayed over (paper, Algorithm 1)."""
EARLIER = 2
"""Earlier questions that are asked again when a memory that they rest on may be replaced (training/LOG.md: without
them the Manager learns that UPDATE costs nothing)."""
LINKED = 2
"""Turns that a question without evidence is linked to: the best retrieved ones."""


@dataclass(frozen=True)
class Linked:
    """A question with its gold answer, linked to the turns that the answer rests on."""

    id: str
    question: str
    answer: str
    """"" when no memory answers it."""
    evidence: tuple[str, ...]
    asked_at: datetime
    category: str = ""
    by_retrieval: bool = False
    """True when the file named no evidence, and the link is a guess by retrieval."""


@dataclass(frozen=True)
class AnswerEpisode:
    """One question for the Answer Agent, and the memories that were retrieved for it."""

    id: str
    question: Linked
    items: tuple[MemoryItem, ...]
    """The candidates, in the order of relevance."""
    others: tuple[MemoryItem, ...] = ()
    """What would be shown if the evidence were not in the bank."""

    def prompt(self) -> Prompt:
        """The prompt that serving sends."""
        return answerer.prompt(self.question.question, self.items, self.question.asked_at, trained=True)

    def places(self) -> list[int]:
        """Places of the gold memories in the prompt's list: of a turn's several facts, the one that says the answer."""
        found = []
        for turn_id in self.question.evidence:
            options = [n for n, item in enumerate(self.items, 1) if turn_id in item.turn_ids]
            if options:
                found.append(max(options, key=lambda n: _overlap(self.question.answer, self.items[n - 1].text)))
        return sorted(set(found))

    def completion(self) -> str | None:
        """The gold completion; None when the memories hold a part of the evidence that no part of the answer fits."""
        places = self.places()
        if not self.question.answer or not places:
            return answerer.completion([], "")
        seen = {turn_id for item in self.items for turn_id in item.turn_ids}
        missing = [turn_id for turn_id in self.question.evidence if turn_id not in seen]
        if not missing:
            return answerer.completion(places, self.question.answer) if len(places) <= answerer.MAX_USED else None
        parts = self.question.answer.split(", ")
        if len(parts) != len(self.question.evidence):
            return None
        kept = [p for p, turn_id in zip(parts, self.question.evidence, strict=True) if turn_id not in missing]
        return answerer.completion(places, ", ".join(kept))

    def example(self) -> Example | None:
        """The supervised example; None where `completion` is."""
        completion = self.completion()
        return None if completion is None else Example(self.prompt(), completion)


def _overlap(answer: str, text: str) -> int:
    return len(set(answer.lower().split()) & set(text.lower().replace(",", " ").replace(".", " ").split()))


@dataclass(frozen=True)
class ManagerEpisode:
    """One turn for the Manager: the facts to decide on, the related memories, and the bank at that moment."""

    id: str
    scope: Scope
    facts: tuple[Fact, ...]
    memories: tuple[MemoryItem, ...]
    """Most related first, as the prompt lists them."""
    related: tuple[tuple[MemoryItem, ...], ...]
    """For each fact those that were retrieved for it: what its decision is believed by."""
    ruled: tuple[Operation, ...]
    """Operations on the turn's other facts, which were certain."""
    questions: tuple[Linked, ...]
    """Questions whose evidence is complete at this turn."""
    gold: tuple[Operation, ...] | None = None
    """What is right, where it is known (synthetic conversations)."""
    bank: Callable[[], Bank] | None = field(default=None, compare=False)

    def open_bank(self) -> Bank:
        """Return the bank as it was before the turn; the caller closes it."""
        if self.bank is None:
            raise InputError(f"episode {self.id} was built without its bank; build it with keep_banks=True.")
        return self.bank()

    def prompt(self) -> Prompt:
        """The prompt that serving sends."""
        return managing.prompt(self.facts, self.memories, trained=True)

    def example(self) -> Example | None:
        """The supervised example; None when the gold operations are not known."""
        if self.gold is None:
            return None
        return Example(self.prompt(), render_operations(self.gold, self.facts, self.memories))


class CachedEmbedder:
    """An `Embedder` that embeds each text once: replaying a conversation embeds the same texts again and again."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._known: dict[str, Vectors] = {}

    @property
    def id(self) -> str:
        """The id of the embedder behind it: the vectors are the same."""
        return self.embedder.id

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.embedder.dim

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return unit vectors, computing only those not computed before, in one batch."""
        new = [t for t in dict.fromkeys(texts) if t not in self._known]
        if new:
            self._known.update(zip(new, self.embedder.embed(new), strict=True))
        return np.stack([self._known[t] for t in texts]) if texts else np.zeros((0, self.dim), dtype=np.float32)

    def embed_questions(self, texts: Sequence[str]) -> Vectors:
        """Compute them: each is asked once."""
        return embed_questions(self.embedder, texts)


def prepared(conversation: Conversation, embedder: Embedder, extractor: Extractor | None = None) -> CachedEmbedder:
    """An embedder that has seen the conversation: batches of similar lengths cost a fraction of one text at a time."""
    cached, extract = CachedEmbedder(embedder), (extractor or VerbatimExtractor()).extract
    before: dict[str, Turn] = {}
    texts: list[str] = []
    for turn in conversation.turns:
        for fact in extract(turn, before.get(turn.session)):
            texts += Embedded.texts_of(fact)
        before[turn.session] = turn
    cached.embed(sorted(texts, key=len))
    return cached


class Replay:
    """A bank that a conversation is told to, turn by turn, as serving would."""

    def __init__(
        self,
        embedder: Embedder,
        *,
        manager: Manager | None = None,
        settings: Settings | None = None,
        extractor: Extractor | None = None,
    ) -> None:
        """Open an empty bank. Without a `manager` every fact is added (or goes as its gold operation says)."""
        self.settings = settings or Settings()
        self.bank = Bank.open(":memory:", embedder)
        self.retriever = Retriever(self.bank, embedder, self.settings)
        self.manager, self.extractor = manager, extractor or VerbatimExtractor()

    def facts(self, turn: Turn) -> list[Fact]:
        """Journal `turn` and extract its facts; a bot's own turns have none, as in serving."""
        self.bank.record([turn])
        if turn.role not in self.settings.remember_roles:
            return []
        return self.extractor.extract(turn, self.bank.previous_turn(turn))

    def tell(self, turn: Turn) -> None:
        """Take one turn in."""
        facts = self.facts(turn)
        if self.manager is None:
            operations: Sequence[Operation] = [Operation(OperationKind.ADD, fact) for fact in facts]
        else:
            operations = self.manager.decide(facts, [self.retriever.related(f, turn.scope) for f in facts]).operations
        self.bank.apply(turn.scope, operations, turns=[turn])

    def search(self, question: str, scope: Scope, k: int) -> list[Ranked]:
        """The memories that serving finds for a question, as ranked."""
        settings = self.settings
        return self.retriever.ranked(question, scope, k, per_speaker=settings.per_speaker, floor=settings.floor)

    def ask(self, question: Linked, scope: Scope) -> AnswerEpisode:
        """The episode of a question, with the memories that serving shows the Answer Agent."""
        evidence, margin, k = set(question.evidence), self.settings.margin, self.settings.candidates
        ranked = self.search(question.question, scope, k)
        others = [(item, score) for item, score in ranked if not evidence & set(item.turn_ids)]
        return AnswerEpisode(
            question.id,
            question,
            tuple(near_best(question.question, ranked, margin, k)),
            tuple(near_best(question.question, others, margin, k - len(ranked) + len(others))),
        )


def linked(conversation: Conversation, replay: Replay) -> list[Linked]:
    """The conversation's questions, each linked to turns: as the file says, or to the best retrieved ones."""
    if not conversation.questions:
        return []
    last = conversation.turns[-1].at
    found = []
    for q in conversation.questions:
        guess = not q.evidence and not q.unanswerable
        evidence = q.evidence
        if guess:
            hits = replay.search(q.text, conversation.scope, LINKED)
            evidence = tuple(dict.fromkeys(t for item, _ in hits for t in item.turn_ids))
        answer = "" if q.unanswerable else q.answer
        found.append(Linked(q.id, q.text, answer, evidence, q.asked_at or last, q.category, guess))
    return found


def answer_episodes(
    conversation: Conversation,
    embedder: Embedder,
    *,
    manager: Manager | None = None,
    settings: Settings | None = None,
) -> list[AnswerEpisode]:
    """Tell the whole conversation to a bank, then retrieve for each question."""
    if not conversation.turns:
        raise DataError(f"conversation {conversation.id!r} has no turns; there is nothing to answer from.")
    replay = Replay(prepared(conversation, embedder), manager=manager, settings=settings)
    with replay.bank:
        for turn in conversation.turns:
            replay.tell(turn)
        return [replay.ask(question, conversation.scope) for question in linked(conversation, replay)]


def manager_episodes(
    conversation: Conversation,
    embedder: Embedder,
    *,
    gold: Mapping[str, Gold] | None = None,
    manager: Manager | None = None,
    settings: Settings | None = None,
    window: int | None = WINDOW,
    earlier: int = EARLIER,
    keep_banks: bool = False,
) -> Iterator[ManagerEpisode]:
    """Replay the conversation and yield a Manager episode for each turn whose facts are not all certain.

    Args:
        gold: what each turn should do, by turn id (`Synthetic.gold`); the bank then follows it. Without it the bank
            follows `manager`, or adds everything.
        window: turns before the one in question that the bank holds; None: all of them.
        earlier: how many questions that were complete before, and rest on a memory that the Manager is shown, are asked
            too: they are what a wrong UPDATE or DELETE costs.
        keep_banks: let the episodes open their banks (RL needs them; each is copied when its turn comes).
    """
    cached = prepared(conversation, embedder)
    replay = Replay(cached, manager=manager, settings=settings)
    with replay.bank:
        order = {turn.id: n for n, turn in enumerate(conversation.turns)}
        complete: dict[int, list[Linked]] = {}
        for question in _linked_to_turns(conversation, cached, replay.settings):
            complete.setdefault(max(order[t] for t in question.evidence), []).append(question)
        for n, turn in enumerate(conversation.turns):
            oldest = conversation.turns[max(0, n - window)].at if window else None
            facts = replay.facts(turn)
            found = [replay.retriever.related(fact, turn.scope) for fact in facts]
            related = [[m for m in items if oldest is None or m.at >= oldest] for items in found]
            episode = _manager_episode(conversation, turn, facts, related, gold, tuple(complete.get(n, ())))
            if episode is not None:
                at_stake = _at_stake(episode.memories, [q for at in range(n) for q in complete.get(at, ())])
                episode = replace(episode, questions=episode.questions + at_stake[:earlier])
                yield replace(episode, bank=_bank_before(replay, conversation.scope) if keep_banks else None)
            replay.bank.apply(turn.scope, _decided(replay, turn, facts, related, gold), turns=[turn])


def _linked_to_turns(conversation: Conversation, embedder: Embedder, settings: Settings) -> list[Linked]:
    """The questions that some turn completes; to link those without evidence, all is told to a bank first."""
    told = Replay(embedder, settings=settings)
    with told.bank:
        if any(not q.evidence and not q.unanswerable for q in conversation.questions):
            for turn in conversation.turns:
                told.tell(turn)
        return [q for q in linked(conversation, told) if q.evidence]


def _at_stake(memories: Sequence[MemoryItem], asked: Sequence[Linked]) -> tuple[Linked, ...]:
    """The questions that rest on one of `memories`, those on the most related memory first."""
    found = [q for item in memories for q in asked if q.answer and set(q.evidence) & set(item.turn_ids)]
    return tuple(dict.fromkeys(found))


def _bank_before(replay: Replay, scope: Scope) -> Callable[[], Bank]:
    snapshot = replay.bank.snapshot(scope)
    return lambda: snapshot.snapshot(scope)


def _decided(
    replay: Replay,
    turn: Turn,
    facts: Sequence[Fact],
    related: Sequence[Sequence[MemoryItem]],
    gold: Mapping[str, Gold] | None,
) -> Sequence[Operation]:
    """The operations that the replayed bank follows."""
    if gold is not None:
        return gold_operations(gold[turn.id], facts, replay.bank.items(turn.scope)) if turn.id in gold else ()
    if replay.manager is not None:
        return replay.manager.decide(facts, related).operations
    return [Operation(OperationKind.ADD, fact) for fact in facts]


def _manager_episode(
    conversation: Conversation,
    turn: Turn,
    facts: Sequence[Fact],
    related: Sequence[Sequence[MemoryItem]],
    gold: Mapping[str, Gold] | None,
    questions: tuple[Linked, ...],
) -> ManagerEpisode | None:
    ruled = [certain(f, r) for f, r in zip(facts, related, strict=True)]
    open_facts = tuple(f for f, op in zip(facts, ruled, strict=True) if op is None)
    if not open_facts:
        return None
    shown = managing.union([r for r, op in zip(related, ruled, strict=True) if op is None])
    known = gold[turn.id] if gold is not None and turn.id in gold else None
    return ManagerEpisode(
        f"{conversation.id}/{turn.id}",
        conversation.scope,
        open_facts,
        tuple(shown),
        tuple(tuple(r) for r, op in zip(related, ruled, strict=True) if op is None),
        tuple(op for op in ruled if op is not None),
        questions,
        None if known is None else tuple(gold_operations(known, open_facts, shown)),
    )


def gold_operations(gold: Gold, facts: Sequence[Fact], memories: Sequence[MemoryItem]) -> list[Operation]:
    """What `gold` means for a turn's facts beside `memories`: a target that is not among them cannot be named."""
    target = next((m.id for m in memories if gold.target in m.turn_ids), None) if gold.target else None
    kind = gold.kind
    if kind in (OperationKind.UPDATE, OperationKind.DELETE) and target is None:
        kind = OperationKind.ADD
    if kind is OperationKind.NOOP and gold.target and target is None:
        kind = OperationKind.ADD
    first = [Operation(kind, fact, target if kind is not OperationKind.NOOP else None) for fact in facts[:1]]
    rest = OperationKind.NOOP if kind is OperationKind.NOOP else OperationKind.ADD
    return first + [Operation(rest, fact) for fact in facts[1:]]


# ── supervised examples of the Manager ───────────────────────────────────────────────────────────────────────


def manager_examples(
    synthetic: Iterable[Synthetic], embedder: Embedder, *, settings: Settings | None = None
) -> Iterator[tuple[OperationKind, Example]]:
    """Yield (first gold operation's kind, example) for every turn of synthetic conversations that needs the model."""
    for one in synthetic:
        for episode in manager_episodes(one.conversation, embedder, gold=one.gold, settings=settings, window=None):
            example = episode.example()
            if example is not None and episode.gold:
                yield episode.gold[0].kind, example
