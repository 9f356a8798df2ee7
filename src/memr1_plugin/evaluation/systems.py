"""The systems that an evaluation compares: what each remembers of a conversation, and who answers.

Baselines (no memory, full context, RAG over raw turns) and this pipeline with any LoRAs, all on one base
model, one retrieval and one machine. Scores are `metrics`, tables are `report`. The set follows the
paper's section 4.1, with RAG done properly: the same retrieval as the pipeline's own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from memr1_plugin import prompts
from memr1_plugin.agents.answerer import by_date
from memr1_plugin.agents.engine import Engine, Prompt, Role
from memr1_plugin.embedding import Embedder
from memr1_plugin.errors import InputError
from memr1_plugin.evaluation.datasets import Conversation, Question
from memr1_plugin.memory import Memory
from memr1_plugin.operations import one_line, render_date, render_memories, render_said
from memr1_plugin.settings import Settings
from memr1_plugin.types import MemoryItem, Operation, OperationKind, Turn

Reads = Literal["nothing", "everything", "raw", "managed"]
BATCH = 8


@dataclass(frozen=True)
class System:
    """One row of the table."""

    name: str
    reads: Reads
    """"nothing", "everything" (the whole dialogue in the prompt), "raw" (retrieval over unmanaged turns) or
    "managed" (retrieval over the bank that the Memory Manager keeps)."""
    answers: Literal["base", "agent"] = "agent"
    """"base": the base model with a plain question prompt; "agent": the Answer Agent."""
    loras: str | Path | None = None
    """Folder with ``manager/`` and/or ``answer/``; None: no LoRA, so the pipeline runs zero-shot."""


BASELINES = {
    "no-memory": System("no-memory", "nothing", "base"),
    "full-context": System("full-context", "everything", "base"),
    "rag": System("rag", "raw", "base"),
    "untrained": System("untrained", "managed"),
    "untrained-raw": System("untrained-raw", "raw"),
}


def parse_system(text: str) -> System:
    """Read a command-line word: a baseline's name, "NAME=FOLDER" of LoRAs, or "NAME=FOLDER:raw" (no Manager)."""
    if text in BASELINES:
        return BASELINES[text]
    match = re.fullmatch(r"([\w.+-]+)=(.+?)(:raw)?", text)
    if match is None:
        raise InputError(f"{text!r} is no system; expected one of {', '.join(BASELINES)}, or NAME=FOLDER[:raw].")
    return System(match[1], "raw" if match[3] else "managed", loras=match[2])


@dataclass(frozen=True)
class Reply:
    """One system's answer to one question, and what it cost."""

    text: str
    abstained: bool = False
    used: tuple[str, ...] = ()
    """Turn ids behind the memories that it named."""
    shown: tuple[str, ...] = ()
    """Turn ids behind the memories in its prompt, most relevant first."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    """Wall-clock seconds, retrieval included; a batch's time is shared equally by its questions."""


Progress = Callable[[str, int, int], None]
"""Called with (what, done, of)."""


def build(
    system: System,
    conversation: Conversation,
    path: str | Path,
    engine: Engine,
    embedder: Embedder,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Memory:
    """Open the bank of one conversation for `system`, filling it from where an earlier run stopped."""
    memory = Memory.open(path, engine=engine, embedder=embedder, settings=settings)
    scope = conversation.scope
    known = {turn.id for turn in memory.turns(scope=scope, limit=None)}
    known -= {turn.id for turn in memory.bank.pending(scope)}
    todo = [turn for turn in conversation.turns if turn.id not in known]
    for n, turn in enumerate(todo, 1):
        if system.reads == "managed":
            memory.observe(turn)
        else:
            add_raw(memory, turn)
        if progress is not None:
            progress(f"{system.name}: {conversation.id} turns", n, len(todo))
    return memory


def add_raw(memory: Memory, turn: Turn) -> None:
    """Remember a turn as it stands, with no Manager: always ADD."""
    memory.bank.record([turn])
    facts = memory.extractor.extract(turn, memory.bank.previous_turn(turn))
    operations = [Operation(OperationKind.ADD, fact) for fact in facts]
    memory.bank.apply(turn.scope, operations, turns=[turn], source="rule")


def reply_all(
    system: System,
    conversation: Conversation,
    questions: Sequence[Question],
    memory: Memory | None,
    engine: Engine,
    k: int,
) -> Iterator[tuple[Question, Reply]]:
    """Answer `questions` in batches, yielding each as soon as its batch is done.

    Args:
        memory: the bank that `build` made; None for systems that read "nothing" or "everything".
        k: memories shown per question.
    """
    for start in range(0, len(questions), BATCH):
        batch = questions[start : start + BATCH]
        began = time.perf_counter()
        shown = [_retrieve(memory, conversation, question, k) for question in batch]
        asked = list(zip(batch, shown, (_asked_at(conversation, q) for q in batch), strict=True))
        replies = _by_agent(asked, memory) if system.answers == "agent" and memory else _by_base(
            system, conversation, asked, engine
        )  # fmt: skip
        seconds = (time.perf_counter() - began) / len(batch)
        for question, reply in zip(batch, replies, strict=True):
            yield question, replace(reply, seconds=seconds)


_Asked = tuple[Question, list[MemoryItem], datetime]


def _retrieve(memory: Memory | None, conversation: Conversation, question: Question, k: int) -> list[MemoryItem]:
    return [] if memory is None else memory.search(question.text, scope=conversation.scope, k=k)


def _asked_at(conversation: Conversation, question: Question) -> datetime:
    return question.asked_at or conversation.turns[-1].at


def _by_agent(asked: Sequence[_Asked], memory: Memory) -> list[Reply]:
    answers = memory.answerer.answer_many([(question.text, items, at) for question, items, at in asked])
    return [
        Reply(
            "" if answer.abstained else answer.text,
            answer.abstained,
            used=tuple(t for item in answer.selected for t in item.turn_ids),
            shown=tuple(t for item in answer.items for t in item.turn_ids),
            prompt_tokens=done.prompt_tokens if done else 0,
            output_tokens=done.output_tokens if done else 0,
        )
        for answer, done in answers
    ]


def _by_base(system: System, conversation: Conversation, asked: Sequence[_Asked], engine: Engine) -> list[Reply]:
    template = prompts.load("baseline")
    calls = [
        Prompt(
            template.fixed,
            template.fill(
                context=_context(system, conversation, items), asked=render_date(at), question=one_line(question.text)
            ),
            grammar=r"root ::= [^\n\r]{1,200}",
            max_tokens=32,
            chat=True,
        )
        for question, items, at in asked
    ]
    return [
        Reply(
            done.text.strip(),
            shown=tuple(t for item in items for t in item.turn_ids),
            prompt_tokens=done.prompt_tokens,
            output_tokens=done.output_tokens,
        )
        for done, (_, items, _) in zip(engine.complete(calls, Role.BASE), asked, strict=True)
    ]


def _context(system: System, conversation: Conversation, items: Sequence[MemoryItem]) -> str:
    if system.reads == "nothing":
        return ""
    if system.reads == "everything":
        return "\n".join(render_said(turn.at, turn.speaker, turn.text) for turn in conversation.turns)
    return "Memories:\n" + render_memories(by_date(items))
