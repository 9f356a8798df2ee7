"""How a system answers questions: the prompts it sends, in what order, and what each reply cost.

Questions are answered longest prompt first, in batches of similar length, whatever conversation they are about: padding
is what batches waste. Retrieval is asked once for all systems that read the same bank. What a reply is worth is
`scores`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from memr1_plugin import prompts
from memr1_plugin.agents import answerer
from memr1_plugin.agents.engine import Completion, Engine, Prompt, Role
from memr1_plugin.errors import DataError
from memr1_plugin.evaluation.banks import Kept
from memr1_plugin.evaluation.datasets import Conversation, Question
from memr1_plugin.evaluation.systems import System
from memr1_plugin.operations import one_line, render_date, render_memories, render_said
from memr1_plugin.types import MemoryItem

DEPTH = 60
"""Memories ranked for recall at k: the paper shows so many."""

TurnIds = tuple[tuple[str, ...], ...]
"""Of each memory the turns that it comes from."""


@dataclass(frozen=True)
class Reply:
    """One system's answer to one question, and what it cost: a line of ``answers.jsonl``."""

    system: str
    conversation: str
    question: str
    """The question's id."""
    asked: str
    """Its words, for whoever reads the file; scores take everything from the data."""
    text: str
    abstained: bool = False
    named: TurnIds | None = None
    """The memories that it chose to answer from; None for a system that chooses none."""
    shown: TurnIds = ()
    """The memories in its prompt, most relevant first."""
    ranked: TurnIds | None = None
    """The first `DEPTH` memories that retrieval found; None for a system that retrieves nothing."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    """Wall-clock seconds: those of its retrieval, and an equal share of those of its batch."""
    cpu_seconds: float = 0.0
    """The same in seconds of processor time of this process, which a busy machine does not stretch."""
    batch: int = 1
    """Questions computed together."""

    def to_json(self) -> dict[str, Any]:
        """Return a dict for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Reply:
        """Build from a line of ``answers.jsonl``; `DataError` for one of another version."""
        nested = {n: tuple(map(tuple, row[n])) for n in ("named", "shown", "ranked") if row.get(n) is not None}
        try:
            return cls(**{**row, **nested})
        except TypeError as error:
            raise DataError(f"an answer of another version ({error}). Give the run another folder.") from error


@dataclass(frozen=True)
class Asked:
    """A question with what a system sees of its conversation."""

    conversation: Conversation
    question: Question
    items: tuple[MemoryItem, ...] = ()
    """Most relevant first."""
    ranked: TurnIds | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def at(self) -> datetime:
        """When the question is asked: at the end of the conversation, if nobody says otherwise."""
        return self.question.asked_at or self.conversation.turns[-1].at


class Finder:
    """Finds the memories that a system is shown; what one system found in a bank, the next need not look for."""

    def __init__(self, candidates: int) -> None:
        self._candidates = candidates
        self._found: dict[tuple[str | None, str, str], Asked] = {}

    def ask(
        self, system: System, questions: Sequence[tuple[Conversation, Question]], kept: Mapping[str, Kept]
    ) -> list[Asked]:
        """Return the questions with the memories that `system` is shown for each."""
        if not system.retrieves:
            return [self._without_ranking(system, c, q, kept) for c, q in questions]
        return [self._ranked(system, c, q, kept[c.id]) for c, q in questions]

    def _ranked(self, system: System, conversation: Conversation, question: Question, kept: Kept) -> Asked:
        key = (system.bank, conversation.id, question.id)
        if key not in self._found:
            began, worked = time.perf_counter(), time.process_time()
            items = tuple(kept.search(question.text, self._candidates))
            seconds, cpu = time.perf_counter() - began, time.process_time() - worked
            deep = turn_ids(kept.search(question.text, DEPTH))
            self._found[key] = Asked(conversation, question, items, deep, seconds, cpu)
        return self._found[key]

    def _without_ranking(
        self, system: System, conversation: Conversation, question: Question, kept: Mapping[str, Kept]
    ) -> Asked:
        if system.reads != "evidence":
            return Asked(conversation, question)
        return Asked(conversation, question, tuple(kept[conversation.id].of_turns(question.evidence)))


def turn_ids(items: Sequence[MemoryItem]) -> TurnIds:
    """Return the turns of each memory."""
    return tuple(item.turn_ids for item in items)


def reply_all(system: System, asked: Sequence[Asked], engine: Engine, batch: int) -> Iterator[list[Reply]]:
    """Answer `asked`, longest prompts first, yielding the replies of a batch as soon as it is done.

    One prompt is sent before, untimed, so that a model that loads when it is first asked has loaded.
    """
    calls = [(one, _prompt(system, one, engine)) for one in asked]
    if silent := [_reply(system, one, None, 1) for one, prompt in calls if prompt is None]:
        yield silent
    open_calls = sorted(
        ((one, prompt) for one, prompt in calls if prompt is not None), key=lambda call: -len(call[1].body)
    )
    role = Role.ANSWER if system.answers == "agent" else Role.BASE
    if open_calls:  # loading the model is no question's cost
        engine.complete([replace(open_calls[-1][1], max_tokens=1)], role)
    for start in range(0, len(open_calls), batch):
        part = open_calls[start : start + batch]
        began, worked = time.perf_counter(), time.process_time()
        done = engine.complete([prompt for _, prompt in part], role)
        seconds, cpu = (time.perf_counter() - began) / len(part), (time.process_time() - worked) / len(part)
        replies = [_reply(system, one, made, len(part)) for (one, _), made in zip(part, done, strict=True)]
        yield [replace(r, seconds=r.seconds + seconds, cpu_seconds=r.cpu_seconds + cpu) for r in replies]


def _prompt(system: System, asked: Asked, engine: Engine) -> Prompt | None:
    """The prompt for one question; None where the Answer Agent has no memory, and abstains without being asked."""
    if system.answers == "base":
        return _plain(system, asked)
    if not asked.items:
        return None
    trained = engine.lora(Role.ANSWER) is not None
    prompt = answerer.prompt(asked.question.text, asked.items, asked.at, trained=trained)
    return prompt if system.selects else replace(prompt, grammar=unselected(asked.items))


def unselected(items: Sequence[MemoryItem]) -> str:
    """Return the grammar of an answer for which nobody selects: the best-ranked memories are named already.

    The paper's ablation without memory distillation lets the agent answer from everything retrieved. Ours cannot leave
    the numbers out, for no LoRA of ours was trained on such a completion; so retrieval's own choice stands there, as
    many as a completion may name, and the model writes the answer alone. It cannot abstain either.
    """
    places = {item.id: n for n, item in enumerate(answerer.by_date(items), 1)}
    named = sorted(places[item.id] for item in items[: answerer.MAX_USED])
    return f'root ::= " {" ".join(map(str, named))} ->" text\n' + r'text ::= " " [^\n\r\x00-\x1f]+'


def _plain(system: System, asked: Asked) -> Prompt:
    template = prompts.load("baseline")
    body = template.fill(
        context=_context(system, asked), asked=render_date(asked.at), question=one_line(asked.question.text)
    )
    return Prompt(template.fixed, body, grammar=r"root ::= [^\n\r]{1,200}", max_tokens=32, chat=True)


def _context(system: System, asked: Asked) -> str:
    if system.reads == "nothing":
        return ""
    if system.reads == "everything":
        return "\n".join(render_said(turn.at, turn.speaker, turn.text) for turn in asked.conversation.turns)
    return "Memories:\n" + render_memories(answerer.by_date(asked.items))


def _reply(system: System, asked: Asked, done: Completion | None, batch: int) -> Reply:
    named: tuple[int, ...] = ()
    words = done.text.strip() if done is not None else ""
    if system.answers == "agent":
        named, words = answerer.parse(done.text if done is not None else "none", asked.items)
    by_id = {item.id: item for item in asked.items}
    return Reply(
        system=system.name,
        conversation=asked.conversation.id,
        question=asked.question.id,
        asked=asked.question.text,
        text=words,
        abstained=system.answers == "agent" and not words,
        named=turn_ids([by_id[i] for i in named]) if system.answers == "agent" and system.selects else None,
        shown=turn_ids(asked.items),
        ranked=asked.ranked,
        prompt_tokens=done.prompt_tokens if done is not None else 0,
        output_tokens=done.output_tokens if done is not None else 0,
        seconds=asked.seconds,
        cpu_seconds=asked.cpu_seconds,
        batch=batch,
    )
