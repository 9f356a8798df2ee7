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
from memr1_plugin.agents.answerer import Answerer
from memr1_plugin.agents.engine import Completion, Engine, Prompt, Role, ask
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
    """The memories that its answer rests on, as serving reports them; None for a system that chooses none."""
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
            items = tuple(kept.candidates(question.text, self._candidates))
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
    ordered = sorted(asked, key=lambda one: -len(_prompt(system, one, engine).body))
    if sent := [one for one in ordered if one.items or system.answers == "base"]:
        warm = replace(_prompt(system, sent[-1], engine), max_tokens=1)
        ask(engine, [warm], Role.ANSWER if system.answers == "agent" else Role.BASE)
    answer = _plainly if system.answers == "base" else _by_agent if system.selects else _unselecting
    for start in range(0, len(ordered), batch):
        part = ordered[start : start + batch]
        began, worked = time.perf_counter(), time.process_time()
        replies = answer(system, part, engine)
        seconds, cpu = (time.perf_counter() - began) / len(part), (time.process_time() - worked) / len(part)
        yield [
            replace(r, seconds=one.seconds + seconds, cpu_seconds=one.cpu_seconds + cpu, batch=len(part))
            for r, one in zip(replies, part, strict=True)
        ]


def _by_agent(system: System, part: Sequence[Asked], engine: Engine) -> list[Reply]:
    """The Answer Agent as it serves."""
    done = Answerer(engine).answer_many([(one.question.text, one.items, one.at) for one in part])
    return [
        _reply(system, one, made, "" if answer.abstained else answer.text, answer.abstained, turn_ids(answer.selected))
        for one, (answer, made) in zip(part, done, strict=True)
    ]


def _unselecting(system: System, part: Sequence[Asked], engine: Engine) -> list[Reply]:
    """The Answer Agent, for whom the memories are named already; without any, it abstains as ever."""
    full = [one for one in part if one.items]
    made = ask(engine, [_prompt(system, one, engine) for one in full], Role.ANSWER) if full else []
    done = {id(one): completion for one, completion in zip(full, made, strict=True)}
    words = [answerer.parse(done[id(one)].text if id(one) in done else "none", one.items)[1] for one in part]
    return [_reply(system, one, done.get(id(one)), said, not said) for one, said in zip(part, words, strict=True)]


def _plainly(system: System, part: Sequence[Asked], engine: Engine) -> list[Reply]:
    """The base model."""
    made = ask(engine, [_prompt(system, one, engine) for one in part], Role.BASE)
    return [_reply(system, one, done, done.text.strip()) for one, done in zip(part, made, strict=True)]


def _prompt(system: System, asked: Asked, engine: Engine) -> Prompt:
    if system.answers == "base":
        return _plain(system, asked)
    trained = engine.lora(Role.ANSWER) is not None
    prompt = answerer.prompt(asked.question.text, asked.items, asked.at, trained=trained)
    return prompt if system.selects or not asked.items else replace(prompt, grammar=unselected(asked.items))


def unselected(items: Sequence[MemoryItem]) -> str:
    """Return the grammar of an answer for which nobody selects: the best-ranked memories are named already.

    The paper's ablation without memory distillation lets the agent answer from everything retrieved. Ours cannot leave
    the numbers out, for no LoRA of ours was trained on such a completion; so retrieval's own choice stands there, as
    many as a completion may name, and the model writes the answer alone. It cannot abstain either.
    """
    named = " ".join(str(n) for n, _ in enumerate(items[: answerer.MAX_USED], 1))
    return f'root ::= " {named} ->" text\n' + r'text ::= " " [^\n\r\x00-\x1f]+'


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
    return "Memories:\n" + render_memories(asked.items)


def _reply(
    system: System,
    asked: Asked,
    done: Completion | None,
    text: str,
    abstained: bool = False,
    named: TurnIds | None = None,
) -> Reply:
    return Reply(
        system=system.name,
        conversation=asked.conversation.id,
        question=asked.question.id,
        asked=asked.question.text,
        text=text,
        abstained=abstained,
        named=named,
        shown=turn_ids(asked.items),
        ranked=asked.ranked,
        prompt_tokens=done.prompt_tokens if done is not None else 0,
        output_tokens=done.output_tokens if done is not None else 0,
    )
