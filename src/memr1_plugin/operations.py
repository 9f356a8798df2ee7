"""The operation language: what the Memory Manager reads and writes.

One line per fact, in the facts' order. Memories are named by their place in the prompt's list (1, 2, ...),
never by their bank id, so that a small model cannot invent one (peers' "hallucinated ids").

    line ::= ("DELETE" n ";"){0,2} op
    op   ::= "ADD" | "UPDATE" n | "UPDATE" n ":" text | "DELETE" n | "NOOP"

"ADD" keeps the fact as it stands; "UPDATE 2" lets the fact replace memory 2; "UPDATE 2: text" writes the
merged text. This file renders the lists, writes the grammar (GBNF, which xgrammar and llama.cpp both
read), and parses. It is used by serving and by training alike, and holds no prompt and no model.

Departures from the paper's mem0-style JSON (its Figures 9-10), all to spend fewer tokens:
1. lines instead of JSON; 2. unchanged memories are not repeated; 3. an ADD does not copy the fact.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from memr1_plugin.types import Fact, MemoryItem, Operation, OperationKind

MAX_TEXT_CHARS = 300
"""Longest merged text that one UPDATE may write."""

MAX_DESTRUCTIVE = 3
"""UPDATEs and DELETEs that one turn may make; a model that wants more is malfunctioning."""

MAX_EXTRA = 20
"""Rejections that lines beyond the last fact may cause; the last stands for all that are left."""


@dataclass(frozen=True)
class Rejection:
    """A line of a completion that was not followed, and why. Data, not an error."""

    reason: str
    """One of "missing", "unparseable", "unknown_id", "repeated_id", "too_many", "extra": nothing was changed.
    Or "unsupported": the memories do not bear the decision out, and the fact was added instead."""
    line: str
    fact: Fact | None = None


@dataclass(frozen=True)
class Parsed:
    """What a completion means: the operations to apply, and the lines that were refused."""

    operations: tuple[Operation, ...]
    rejections: tuple[Rejection, ...] = ()


def one_line(text: str) -> str:
    """Fold white space, line and paragraph separators included, so that a text is one line of a list."""
    return " ".join(text.split())


def render_date(at: datetime) -> str:
    """Render as "8 May 2023", the form that people answer with."""
    return f"{at.day} {at:%B} {at.year}"


def render_said(date: datetime, speaker: str, text: str) -> str:
    """Render one said thing as "[8 May 2023] Ana: text", on one line."""
    return f"[{render_date(date)}] {one_line(speaker)}: {one_line(text)}"


def render_memories(memories: Sequence[MemoryItem]) -> str:
    """Render memories as a list numbered from 1, one a line; "(none)" if there are none."""
    lines = [f"{n}. {render_said(m.at, m.speaker, m.text)}" for n, m in enumerate(memories, 1)]
    return "\n".join(lines) or "(none)"


def render_facts(facts: Sequence[Fact]) -> str:
    """Render facts as a dashed list, one a line."""
    return "\n".join(f"- {render_said(f.at, f.speaker, f.text)}" for f in facts)


def render_operations(operations: Sequence[Operation], facts: Sequence[Fact], memories: Sequence[MemoryItem]) -> str:
    """Render operations as the completion that `parse` reads back: the gold of a training example."""
    place = {m.id: n for n, m in enumerate(memories, 1)}
    return "\n".join("; ".join(_render(op, place) for op in operations if op.fact == fact) or "NOOP" for fact in facts)


def _render(op: Operation, place: dict[int, int]) -> str:
    if op.target is None:
        return op.kind.value
    own = op.text is None or (op.fact is not None and op.text == op.fact.text)
    text = "" if op.kind is OperationKind.DELETE or own else f": {one_line(op.text or '')}"
    return f"{op.kind.value} {place[op.target]}{text}"


def grammar(n_facts: int, n_memories: int) -> str:
    """Return the GBNF of a completion for `n_facts` facts beside `n_memories` memories (ids that exist only)."""
    rules = [f"root ::= {' nl '.join(['line'] * n_facts)}", r'nl ::= "\n"']
    if n_memories == 0:
        return "\n".join([*rules, 'line ::= "ADD" | "NOOP"'])
    return "\n".join(
        [
            *rules,
            'line ::= (delete "; "){0,2} op',
            'op ::= "ADD" | "NOOP" | update | update ": " text | delete',
            'update ::= "UPDATE " id',
            'delete ::= "DELETE " id',
            f"id ::= {' | '.join(chr(34) + str(n) + chr(34) for n in range(1, n_memories + 1))}",
            # Not {1,300}: a counted repetition is 300 states, seconds to compile. `max_tokens` bounds it.
            r"text ::= [^\n\r\x00-\x1f]+",
        ]
    )


# As strict as the grammar, for engines that decode without it: "DELETE \u0661" is not "DELETE 1", and no line carries
# control characters or lone surrogates into the bank, which would refuse the whole turn.
_N = "(0|[1-9][0-9]{0,3})"
_DELETE = re.compile(rf"DELETE {_N}; ")
_OP = re.compile(rf"(?:(ADD|NOOP)|(DELETE) {_N}|(UPDATE) {_N}(?:: ([^\x00-\x1f\ud800-\udfff]+))?)")


def parse(text: str, facts: Sequence[Fact], memories: Sequence[MemoryItem]) -> Parsed:
    """Read a completion. Total: any string gives a result, and a line that is not valid changes nothing."""
    lines = [line.strip() for line in text.strip().split("\n")] if text.strip() else []
    operations: list[Operation] = []
    rejections = _extra(lines[len(facts) :])
    touched: set[int] = set()
    for n, fact in enumerate(facts):
        if n >= len(lines):
            rejections.append(Rejection("missing", "", fact))
            continue
        found = _parse_line(lines[n], fact, memories, touched)
        if isinstance(found, Rejection):
            rejections.append(found)
            continue
        targets = [op.target for op in found if op.target is not None]
        if len(touched) + len(targets) > MAX_DESTRUCTIVE:
            rejections.append(Rejection("too_many", lines[n], fact))
            continue
        touched.update(targets)
        operations += found
    return Parsed(tuple(operations), tuple(rejections))


def _extra(lines: Sequence[str]) -> list[Rejection]:
    """Refuse lines that answer no fact; an engine without end would fill the bank with them one by one."""
    if len(lines) <= MAX_EXTRA:
        return [Rejection("extra", line) for line in lines]
    rest = f"... and {len(lines) - MAX_EXTRA + 1:,} lines more"
    return [*(Rejection("extra", line) for line in lines[: MAX_EXTRA - 1]), Rejection("extra", rest)]


def _parse_line(
    line: str, fact: Fact, memories: Sequence[MemoryItem], touched: set[int]
) -> list[Operation] | Rejection:
    rest = line
    deletes: list[str] = []
    while len(deletes) < 2 and (match := _DELETE.match(rest)):
        deletes.append(match[1])
        rest = rest[match.end() :]
    last = _OP.fullmatch(rest)
    if last is None or len(last[6] or "") > MAX_TEXT_CHARS:
        return Rejection("unparseable", line, fact)
    named = [*deletes, *([last[3] or last[5]] if last[3] or last[5] else [])]
    if any(not 1 <= int(n) <= len(memories) for n in named):
        return Rejection("unknown_id", line, fact)
    ids = [memories[int(n) - 1].id for n in named]
    if len(set(ids)) < len(ids) or touched & set(ids):
        return Rejection("repeated_id", line, fact)
    found = [Operation(OperationKind.DELETE, fact, target) for target in ids[: len(deletes)]]
    kind = OperationKind(last[1] or last[2] or last[4])
    return [*found, Operation(kind, fact, ids[-1] if last[1] is None else None, last[6])]
