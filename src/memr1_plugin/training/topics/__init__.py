"""Topics: what invented people talk about, written as text files, and how one telling of a topic is rendered.

A topic holds several ways to say one thing, the questions that it answers, and how it is later replaced or
withdrawn; words in {braces} are drawn from `lexicon.txt`. Who says what when is `training.synthetic`.
The grammar of the files is our own; the idea of compositional templates is bAbI's (Weston et al., 2015).

    == name !        a topic; "!" marks a fact that has one value at a time, "<" one where R comes before S
    O: a question that the other person may ask first       R: the other person's reply
    S: the telling    U: the telling that replaces an earlier one    X: the telling that withdraws it
    ? question | same question = answer || other form       (a|b) is a choice, (a|) is optional
    L, L2: a question over all tellings    C: how many tellings    I: an inference    d: when, from the date alone
    a leading u or x: the question belongs to the U or X telling
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources

FILES = ("states", "events", "talk", "talk_life", "talk_leisure", "talk_people", "talk_work")
"""A file's name up to the underscore is the kind of its topics."""
_CHOICE = re.compile(r"\(([^()|]*\|[^()]*)\)")
_SLOT = re.compile(r"\{(\w+)(?::([^{}]*(?:\{[^{}]*\}[^{}]*)*))?\}")
_ASK = re.compile(r"(u|x)?(d)?(\?|L2?|C|I|d\?):? (.+)")


@dataclass(frozen=True)
class Ask:
    """A question line of a topic."""

    kind: str
    """"?" one telling, "L" all tellings, "C" their number, "I" an inference."""
    of: str
    """Which telling it belongs to: "" (S and U), "u" (U only), "x" (X)."""
    questions: tuple[str, ...]
    golds: tuple[str, ...]


@dataclass
class Topic:
    """One thing people talk about."""

    name: str
    kind: str
    exclusive: bool
    reply_first: bool = False
    """True when the telling answers what the other person says; a reply that is a question always comes first."""
    said: dict[str, list[str]] = field(default_factory=lambda: {k: [] for k in "SORUX"})
    asks: list[Ask] = field(default_factory=list)

    @property
    def key(self) -> str | None:
        """The slot whose values tell two tellings apart: the one that the list question collects."""
        for ask in self.asks:
            if ask.kind == "L" and (found := _SLOT.search(ask.golds[0])):
                return found[1]
        return None


def slots(template: str) -> set[str]:
    """Names of the slots in `template`, without their forms ("past_c" is "past")."""
    return {re.sub(r"_(c|n|g|b)$", "", match[1].lower()) for match in _SLOT.finditer(template)}


def choose(template: str, rng: random.Random) -> str:
    """Resolve every (a|b) of `template`, innermost first."""
    while match := _CHOICE.search(template):
        picked = rng.choice(match[1].split("|"))
        template = template[: match.start()] + picked + template[match.end() :]
    return template


def fill(template: str, values: dict[str, str], rng: random.Random) -> str:
    """Resolve choices, then replace each slot by its value in the form that the slot asks for."""

    def one(match: re.Match[str]) -> str:
        name, form = match[1], match[2]
        if name == "caption":
            return f"[shares a photo: {_SLOT.sub(one, form)}]"
        if form == "his" or form == "S":
            return re.sub(r"\b(my|our)\b", values["his"], values[name]) if form == "his" else values[name]
        if name == "his" or name == "his2":
            return values[name]
        return _shape(name, values)

    text = re.sub(r"\s+", " ", _SLOT.sub(one, choose(template, rng))).strip()
    text = re.sub(r"\b([Aa]) (?=[aeio]|8|11\b)", r"\1n ", text)  # "a architect"
    return re.sub(r"(?<=[.!?] )[a-z]", lambda m: m[0].upper(), text)


def _shape(name: str, values: dict[str, str]) -> str:
    """The value of a slot as its ending asks: _c capital, _n without article, _b a verb's plain form."""
    if name in values:
        return values[name]
    base, _, form = name.rpartition("_")
    if name[0].isupper():
        return _capital(values[name.lower()])
    if form == "c":
        return _capital(values[base])
    if form == "n":
        return re.sub(r"^(an?|the|some) ", "", values[base])
    if form == "b":
        verb, _, rest = values[base].partition(" ")
        return f"{_PLAIN[verb]} {rest}"
    raise KeyError(f"the slot {name!r} has no value")


_PLAIN = {"went": "go", "built": "build", "made": "make", "flew": "fly", "visited": "visit", "planted": "plant"}
_PLAIN |= {"played": "play", "painted": "paint", "had": "have", "baked": "bake"}


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _read(name: str) -> list[str]:
    text = (resources.files(__package__) / f"{name}.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("# ")]


@lru_cache
def lexicon(file: str = "lexicon") -> dict[str, list[str]]:
    """Slot name to its values."""
    pairs = (line.split(": ", 1) for line in _read(file))
    return {name: [v.strip() for v in values.split(";") if v.strip()] for name, values in pairs}


@lru_cache(maxsize=1)
def smalltalk() -> dict[str, list[str]]:
    """Kind of small talk ("hello", "react", ...) to its templates."""
    found: dict[str, list[str]] = {}
    for line in _read("smalltalk"):
        if line.startswith("> "):
            lines = found.setdefault(line[2:].strip(), [])
        else:
            lines.append(line)
    return found


@lru_cache
def topics(*files: str) -> tuple[Topic, ...]:
    """All topics of `files` (none: `FILES`), in their order."""
    found: list[Topic] = []
    for file in files or FILES:
        for line in _read(file):
            if line.startswith("== "):
                name, _, mark = line[3:].partition(" ")
                found.append(Topic(name, file.partition("_")[0], mark.strip() == "!", mark.strip() == "<"))
            elif line[:3] in ("S: ", "O: ", "R: ", "U: ", "X: "):
                found[-1].said[line[0]].append(line[3:])
            else:
                found[-1].asks.append(_ask(line))
    return tuple(found)


def _ask(line: str) -> Ask:
    match = _ASK.fullmatch(line)
    if match is None:
        raise ValueError(f"topics: the line {line!r} is no topic, telling or question.")
    question, _, gold = match[4].partition(" = ")
    kind = match[3].rstrip("2").replace("d?", "?")
    return Ask(kind, match[1] or "", tuple(question.split(" | ")), tuple(gold.split(" || ")) if gold else ("",))
