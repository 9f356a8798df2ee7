"""Fuzzed completions: what a broken model may write, and a second reader that says what of it is valid.

The reader here is written by hand from the language in `operations`' docstring and shares no code with the parser, so
that the two check each other. Completions are real ones mutated (cut, doubled, other scripts' digits, control
characters, lone surrogates), random Unicode, huge, and nested JSON.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from report import Report

from memr1_plugin.agents import answerer
from memr1_plugin.bank.bank import Bank
from memr1_plugin.operations import MAX_DESTRUCTIVE, MAX_TEXT_CHARS, Parsed, parse
from memr1_plugin.testing import HashEmbedder
from memr1_plugin.types import Answer, Fact, MemoryItem, Operation, OperationKind, Scope

REASONS = {"missing", "unparseable", "unknown_id", "repeated_id", "too_many", "extra"}
SCOPE, OTHER = Scope(user="ana"), Scope(user="bob")
MAY = datetime(2023, 5, 8, 12, tzinfo=timezone.utc)
FRESH_EVERY = 400
"""Completions that one bank takes before another is made; it grows with every ADD."""

_REAL = (
    "ADD", "NOOP", "UPDATE 1", "DELETE 2", "UPDATE 3: I live in Berlin, near Ben.", "DELETE 1; ADD",
    "DELETE 1; DELETE 2; UPDATE 3: merged; with marks", "DELETE 4; NOOP",
)  # fmt: skip
_ANSWERS = (" 1 -> Berlin", " 2 3 -> On 8 May 2023", " none", " 1 2 3 4 5 6 7 8 -> all of them", "none.", " 1 ->")
_ODD = (
    "\x00", "\ud800", "\udfff", "\u2028", "\x85", "\r", "\x0b", "\u200b", "\ufeff", "\u0661", "\uff11", "\u00b2",
    "\u0660", "\U0001f600", "\u202e", "\x1b[2J", "%s", "{0}", "'; DROP TABLE items; --", '"', "\\", "\\n", "\t",
    "#" * 400,
)  # fmt: skip
_WRAPPERS: tuple[Callable[[str], str], ...] = (
    lambda s: f"```\n{s}\n```",
    lambda s: json.dumps({"memory": [{"id": "0", "text": s, "event": "DELETE"}]}),
    lambda s: '{"memory":' * 200 + s + "}" * 200,
    lambda s: f"Sure! Here are the operations:\n{s}",
    lambda s: s.lower(),
    lambda s: f"{s}\n" * 50,
    lambda s: s.replace("\n", "\r\n"),
    lambda s: s.replace("\n", "; "),
    lambda s: s * 300,
)


def completion(rng: random.Random, real: Sequence[str]) -> str:
    """Return one bad, or by chance good, completion."""
    kind = rng.random()
    if kind < 0.08:
        return "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(200)))
    if kind < 0.082:
        return rng.choice(real) * rng.randrange(20_000, 60_000)
    text = "\n".join(rng.choice(real) for _ in range(rng.randrange(5)))
    if kind < 0.25:
        return text
    for _ in range(rng.randrange(1, 4)):
        text = _mutated(rng, text)
    return text


def _mutated(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text) + 1)
    end = rng.randrange(at, len(text) + 1)
    kind = rng.randrange(8)
    if kind == 0:
        return text[:at]
    if kind == 1:
        return text[:at] + text[end:]
    if kind == 2:
        return text[:end] + text[at:]
    if kind == 3:
        return text[:at] + rng.choice(_ODD) + text[at:]
    if kind == 4:
        return text[:at] + chr(rng.randrange(0x110000)) + text[at + 1 :]
    if kind == 5:
        digits = rng.choice(("0123456789", "\u0660\u0661\u0662\u0663\u0664", "\uff10\uff11\uff12\uff13", "00", "99"))
        return "".join(rng.choice(digits) if c.isdigit() else c for c in text)
    if kind == 6:
        return rng.choice(_WRAPPERS)(text)
    return text[:at] + rng.choice(("; ", ": ", "\n", " ", "DELETE 1; ", "UPDATE 1: ", "ADD", "0", "-1")) + text[at:]


Wanted = list[tuple[str, int | None, str | None]]
"""(kind, place of the target from 1, text) of each operation of a line."""


def read_line(line: str, n_memories: int) -> Wanted | None:
    """Read one line by the language's definition; None if it is not in it, or names no memory that was shown."""
    found: Wanted = []
    rest = line
    while len(found) < 2 and rest.startswith("DELETE ") and "; " in rest:
        number, _, after = rest[7:].partition("; ")
        if (place := _place(number, n_memories)) is None:
            break
        found.append(("DELETE", place, None))
        rest = after
    last = _read_last(rest, n_memories)
    if last is None:
        return None
    found.append(last)
    places = [place for _, place, _ in found if place is not None]
    return found if len(places) == len(set(places)) else None


def _read_last(text: str, n_memories: int) -> tuple[str, int | None, str | None] | None:
    if text in ("ADD", "NOOP"):
        return text, None, None
    kind, _, rest = text.partition(" ")
    if kind not in ("DELETE", "UPDATE"):
        return None
    number, colon, new = rest.partition(": ") if kind == "UPDATE" else (rest, "", "")
    place = _place(number, n_memories)
    if place is None or (colon and not _storable(new)):
        return None
    return kind, place, new if colon else None


def _place(number: str, n_memories: int) -> int | None:
    known = [str(n) for n in range(1, n_memories + 1)]
    return known.index(number) + 1 if number in known else None


def _storable(text: str) -> bool:
    if not 1 <= len(text) <= MAX_TEXT_CHARS:
        return False
    return not any(c < " " or "\ud800" <= c <= "\udfff" for c in text)


def read(text: str, n_facts: int, n_memories: int) -> list[Wanted | None]:
    """Read a completion: for each fact what is to be done, or None where its line is not valid."""
    lines = [line.strip() for line in text.strip().split("\n")] if text.strip() else []
    used: set[int] = set()
    found: list[Wanted | None] = []
    for line in (lines + [""] * n_facts)[:n_facts]:
        wanted = read_line(line, n_memories)
        places = {place for _, place, _ in wanted or () if place is not None}
        if wanted is not None and (places & used or len(used | places) > MAX_DESTRUCTIVE):
            wanted = None
        used |= places if wanted is not None else set()
        found.append(wanted)
    return found


@dataclass
class Fuzz:
    """A bank that takes fuzzed completions, one after the other, and what was seen."""

    seed: int
    failures: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    applied: Counter[str] = field(default_factory=Counter)

    def run(self, n: int) -> None:
        """Put `n` completions through parser and bank."""
        rng = random.Random(self.seed)
        for start in range(0, n, FRESH_EVERY):
            with Bank.open(":memory:", HashEmbedder()) as bank:
                self._fill(bank)
                for at in range(start, min(start + FRESH_EVERY, n)):
                    text = completion(rng, _REAL)
                    try:
                        self._one(bank, text, rng.randrange(4), rng.randrange(6))
                        self._answer(bank, completion(rng, _ANSWERS if rng.random() < 0.8 else _REAL))
                    except Exception as error:  # noqa: BLE001 - what is looked for: reported with its number
                        self._broken(at, text, f"{type(error).__name__}: {error}")

    def _fill(self, bank: Bank) -> None:
        for scope, n in ((SCOPE, 6), (OTHER, 2)):
            facts = [Fact(f"I have {k} cats in town {k}.", "Ana", MAY + timedelta(days=k)) for k in range(n)]
            bank.apply(scope, [Operation(OperationKind.ADD, fact) for fact in facts])

    def _one(self, bank: Bank, text: str, n_facts: int, n_memories: int) -> None:
        shown = bank.items(SCOPE)[-n_memories:] if n_memories else []
        facts = [Fact(f"fact {n}", "Ana", MAY, turn_id=f"t{n}") for n in range(n_facts)]
        parsed = parse(text, facts, shown)
        wanted = read(text, n_facts, len(shown))
        if problem := _differs(parsed, wanted, facts, shown):
            self._broken(None, text, problem)
        before, others = {i.id: i for i in bank.items(SCOPE)}, bank.items(OTHER)
        counted = Counter(bank.stats(SCOPE).rejections)
        changes = bank.apply(SCOPE, parsed.operations, rejections=parsed.rejections)
        after = {i.id: i for i in bank.items(SCOPE)}
        told = Counter(r.reason for r in parsed.rejections)
        self.reasons += told
        self.applied.update(change.kind.value for change in changes)
        allowed = {op.target for op in parsed.operations if op.target is not None}
        if any(after.get(i) != item for i, item in before.items() if i not in allowed):
            self._broken(None, text, "a memory changed that no valid line names")
        if Counter(bank.stats(SCOPE).rejections) - counted != told or not set(told) <= REASONS:
            self._broken(None, text, f"rejections counted {bank.stats(SCOPE).rejections}, told {dict(told)}")
        if [c.kind for c in changes] != [op.kind for op in parsed.operations] or bank.items(OTHER) != others:
            self._broken(None, text, "the changes are not the operations, or another scope changed")

    def _answer(self, bank: Bank, text: str) -> None:
        shown = bank.items(SCOPE)[-5:]
        used, words = answerer.parse(text, shown)
        if not set(used) <= {item.id for item in shown} or len(set(used)) != len(used):
            self._broken(None, text, f"an answer rests on {used}, which was not shown")
        answer = Answer(words, used, question="?", items=tuple(shown), scope=SCOPE)
        bank.add_feedback(answer, "Berlin")  # an answer is kept, sent and printed: it must be storable text

    def _broken(self, at: int | None, text: str, why: str) -> None:
        where = "" if at is None else f"completion {at}: "
        self.failures.append(f"{where}{why} {text[:120]!r}")


def _differs(
    parsed: Parsed, wanted: Sequence[Wanted | None], facts: Sequence[Fact], shown: Sequence[MemoryItem]
) -> str | None:
    """Say where the parser and the reader disagree."""
    place = {item.id: n for n, item in enumerate(shown, 1)}
    for fact, want in zip(facts, wanted, strict=True):
        found = [
            (op.kind.value, None if op.target is None else place.get(op.target, -1), op.text)
            for op in parsed.operations
            if op.fact is fact
        ]
        refused = [r for r in parsed.rejections if r.fact is fact]
        if found != (want or []) or len(refused) != (want is None):
            return f"{fact.text}: the parser says {found} and {[r.reason for r in refused]}, the reader {want}:"
    return None


def run(n: int, seed: int) -> Report:
    """Fuzz with `n` completions and report."""
    fuzz = Fuzz(seed)
    fuzz.run(n)
    numbers = tuple((f"rejected: {reason}", f"{k:,}") for reason, k in fuzz.reasons.most_common())
    numbers += tuple((f"applied: {kind}", f"{k:,}") for kind, k in sorted(fuzz.applied.items()))
    checked = f"{n:,} completions of the Manager, {n:,} of the Answer Agent"
    return Report("bad models", checked, tuple(fuzz.failures), numbers, seed)
