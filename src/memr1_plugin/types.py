"""The nouns of the library: Scope, Turn, Fact, MemoryItem, Operation, Change, Answer.

Frozen values that cross every border (bank, agents, doors, training, files). They hold no behaviour
beyond checking themselves and going to JSON and back. Storage is `bank`, decisions are `agents`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timezone
from enum import Enum
from typing import Any, TypeVar

from memr1_plugin.errors import InputError

MAX_TURN_CHARS = 100_000
"""Longest text of one turn. A megabyte in one message is a file, not something said."""

T = TypeVar("T", bound="_Json")


def clean_text(text: object, what: str, max_chars: int = MAX_TURN_CHARS) -> str:
    """Return `text` if a bank can hold it as it is, or raise `InputError` saying why not."""
    if not isinstance(text, str):
        raise InputError(f"{what} is {type(text).__name__}; expected str. Decode bytes before giving them.")
    if len(text) > max_chars:
        raise InputError(f"{what} has {len(text):,} characters; at most {max_chars:,} fit. Split or summarise it.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} holds the lone surrogate {text[error.start]!r} at character {error.start}, which no UTF-8 "
            "file can store. Decode the source with errors='replace'."
        ) from error
    if "\x00" in text:
        raise InputError(f"{what} holds a NUL at character {text.index(chr(0))}: it looks like binary. Give text.")
    return text


def storable(text: str) -> str:
    """Return what a model wrote as text that a bank can hold: lone surrogates and NULs become U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").replace("\x00", "\ufffd")


def aware(at: datetime | None) -> datetime:
    """Return `at` with a time zone: now in local time if None, UTC if it has no zone of its own."""
    if at is None:
        return datetime.now().astimezone()
    if not isinstance(at, datetime):
        raise InputError(f"the time is {type(at).__name__}; expected datetime.datetime.")
    if not 1000 <= at.year <= 9998:
        raise InputError(f"the time {at.isoformat()} is out of range; expected a year between 1000 and 9998.")
    return at if at.tzinfo else at.replace(tzinfo=timezone.utc)


def new_id() -> str:
    """Return a fresh random id (32 hex digits)."""
    return uuid.uuid4().hex


class _Json:
    """JSON in and out for frozen dataclasses whose fields are JSON, datetimes, enums and scopes."""

    def to_json(self) -> dict[str, Any]:
        """Return a dict that `json.dumps` takes and `from_json` turns back into an equal value."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_json(cls: type[T], data: Mapping[str, Any]) -> T:
        """Build from `to_json`'s output; unknown keys are an `InputError` that names them."""
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        if extra := set(data) - known:
            raise InputError(f"{cls.__name__} has no field {sorted(extra)}; expected some of {sorted(known)}.")
        return cls(**{k: _rich(k, v) for k, v in data.items()})


_TIMES = {"at", "created_at", "updated_at", "expires_at", "asked_at", "valid_until"}
_TUPLES = {"turn_ids", "used", "evidence"}


def _plain(value: Any) -> Any:
    if isinstance(value, _Json):
        return value.to_json()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value


def _rich(key: str, value: Any) -> Any:
    if value is None:
        return None
    if key in _TIMES:
        return datetime.fromisoformat(value)
    if key == "scope":
        return Scope.from_json(value)
    if key == "kind":
        return OperationKind(value)
    if key in _TUPLES:
        return tuple(value)
    if key == "items":
        return tuple(MemoryItem.from_json(v) for v in value)
    if key in ("before", "after"):
        return MemoryItem.from_json(value)
    return value


@dataclass(frozen=True)
class Scope(_Json):
    """Whose memories: an exact (user, agent, session) triple, and a wall between triples.

    ``Scope(user="ana")`` and ``Scope(user="ana", session="s1")`` are two scopes, and neither sees the
    other. Any string is a name ("a" and "A" differ, "../" and "%" mean nothing).
    """

    user: str = ""
    agent: str = ""
    session: str = ""

    def __post_init__(self) -> None:
        for name in ("user", "agent", "session"):
            clean_text(getattr(self, name), f"scope.{name}", max_chars=1_000)

    @property
    def key(self) -> str:
        """The canonical string of this scope; different scopes have different keys."""
        return json.dumps([self.user, self.agent, self.session], ensure_ascii=False)


@dataclass(frozen=True)
class Turn(_Json):
    """One message of a dialogue, as it was said. The journal's row.

    ``session`` names the dialogue inside the scope: it orders recent turns and neighbours, and walls
    nothing off. ``id`` makes recording idempotent: the same id delivered twice is one turn.
    """

    text: str
    speaker: str = "user"
    scope: Scope = field(default_factory=Scope)
    at: datetime = field(default_factory=lambda: aware(None))
    id: str = field(default_factory=new_id)
    role: str = "user"
    """"user", "assistant", "system" or "tool". Only "user" turns become memories by default."""
    session: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Goes along into the memories made of the turn, but for keys that begin with "_": those stay in the journal."""

    def __post_init__(self) -> None:
        clean_text(self.text, "the turn's text")
        if not self.text.strip():
            raise InputError("the turn's text is empty; expected something said. Skip empty messages.")
        clean_text(self.speaker, "the turn's speaker", max_chars=200)
        clean_text(self.id, "the turn's id", max_chars=200)
        clean_text(self.role, "the turn's role", max_chars=200)
        clean_text(self.session, "the turn's session", max_chars=2_000)
        if not isinstance(self.metadata, Mapping):
            raise InputError(f"the turn's metadata is {type(self.metadata).__name__}; expected a dict.")
        object.__setattr__(self, "at", aware(self.at))


@dataclass(frozen=True)
class Fact(_Json):
    """Something worth remembering, taken from one turn: self-contained text, who, when."""

    text: str
    """The original words, relative dates resolved in brackets: "I moved last week [9-15 Nov 2026]"."""
    speaker: str
    at: datetime
    turn_id: str = ""
    context: str = ""
    """The turn before, as "speaker: text"; indexed beside the fact so that answers find their questions."""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MemoryItem(_Json):
    """One row of the memory bank. ``id`` is unique in the bank and never reused."""

    id: int
    scope: Scope
    text: str
    speaker: str
    at: datetime
    """When it was said (of an updated item: when the newest text was said)."""
    created_at: datetime
    updated_at: datetime
    turn_ids: tuple[str, ...] = ()
    """The turns it comes from, oldest first."""
    context: str = ""
    expires_at: datetime | None = None
    deleted: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)
    score: float | None = None
    """Relevance in [0, 1] to the query that retrieved it; None when it was not retrieved."""

    def with_score(self, score: float) -> MemoryItem:
        """Return a copy that carries its relevance."""
        return replace(self, score=score)


class OperationKind(str, Enum):
    """What the Memory Manager can do (paper section 3.1)."""

    ADD = "ADD"
    UPDATE = "UPDATE"
    DELETE = "DELETE"
    NOOP = "NOOP"


@dataclass(frozen=True)
class Operation(_Json):
    """One decision of the Memory Manager about one fact, with real item ids.

    ADD: ``text`` (None: the fact's own text). UPDATE: ``target`` gets ``text`` (None: the fact's).
    DELETE: ``target`` becomes a tombstone. NOOP: nothing.
    """

    kind: OperationKind
    fact: Fact | None = None
    target: int | None = None
    text: str | None = None

    @property
    def new_text(self) -> str:
        """The text that ADD or UPDATE writes."""
        if self.text is not None:
            return self.text
        if self.fact is None:
            raise InputError(f"{self.kind.value} needs a text or a fact; this operation has neither.")
        return self.fact.text


@dataclass(frozen=True)
class Change(_Json):
    """What an operation did to the bank: the item before and after. Every change can be undone."""

    id: int
    kind: OperationKind
    scope: Scope
    item_id: int | None
    """None for NOOP."""
    before: MemoryItem | None
    after: MemoryItem | None
    at: datetime
    turn_id: str = ""
    source: str = "manager"
    """Who decided: "manager" (the model), "rule" (the certain case, no model call), "user" or "undo"."""
    undone: bool = False


@dataclass(frozen=True)
class Answer(_Json):
    """The Answer Agent's reply: the text, and the memories that it rests on."""

    text: str
    used: tuple[int, ...] = ()
    """Ids of the memory items it selected (the paper's memory distillation)."""
    abstained: bool = False
    """True when no memory covers the question; ``text`` then says so in words."""
    question: str = ""
    items: tuple[MemoryItem, ...] = ()
    """All candidates that it was shown, in the order of relevance."""
    scope: Scope = field(default_factory=Scope)
    asked_at: datetime = field(default_factory=lambda: aware(None))
    id: str = field(default_factory=new_id)
    """Give this answer to ``memory.feedback`` to make it a training record."""

    @property
    def selected(self) -> tuple[MemoryItem, ...]:
        """The items behind ``used``, in the order of ``used``."""
        by_id = {item.id: item for item in self.items}
        return tuple(by_id[i] for i in self.used if i in by_id)
