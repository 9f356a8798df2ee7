"""The guard: in which form something may enter the journal, and what nobody is shown.

First redaction (what must not be kept is taken out before anything is written), then screening (what talks to a model
is recorded, and held in quarantine). It stands in front of every write: turns, corrections, imports, stores. It keeps
nothing itself; the patterns are `screening`'s, the libraries `redaction`'s, the quarantine the bank's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from memr1_plugin.errors import InputError
from memr1_plugin.screening import RuleScreener, Screener
from memr1_plugin.settings import REDACTIONS, Settings
from memr1_plugin.types import Fact, Scope, Turn

J = TypeVar("J")
_NAMES = frozenset(
    (
        "id",
        "at",
        "created_at",
        "updated_at",
        "expires_at",
        "asked_at",
        "turn_id",
        "turn_ids",
        "scope",
        "kind",
        "type",
        "role",
        "session",
        "source",
        "door",
    )
)
"""Fields that name and date things: they are not what anybody said."""
_NOTHING: dict[str, Any] = {"type": "bank", "format": 1}
"""Stands in for a row that is not imported, so that errors still name rows by their number."""


class Redactor(Protocol):
    """Anything that takes out of a text what must not be kept. Redacting twice must be redacting once."""

    def redact(self, text: str) -> str:
        """Return `text` without it."""


class Guard:
    """Decides for one memory. Thread-safe if its parts are."""

    def __init__(
        self, settings: Settings, *, screener: Screener | None = None, redactor: Redactor | None = None
    ) -> None:
        self._settings = settings
        self._screener = (screener or RuleScreener()) if settings.screen else None
        self._given = redactor
        self._made: dict[str, Redactor] = {}
        if not callable(settings.redact):
            self._redactor(Scope())  # a missing library is told when the memory is opened

    # -- redaction

    def clean(self, turn: Turn) -> Turn:
        """Return `turn` as it may be journalled; the same object if nothing is taken out."""
        redactor = self._redactor(turn.scope)
        if redactor is None:
            return turn
        text, metadata = redactor.redact(turn.text), _leaves(dict(turn.metadata), redactor)
        return turn if (text, metadata) == (turn.text, turn.metadata) else replace(turn, text=text, metadata=metadata)

    def clean_value(self, value: J, scope: Scope) -> J:
        """Return a JSON value with every text in it redacted."""
        redactor = self._redactor(scope)
        return value if redactor is None else _leaves(value, redactor)

    def _redactor(self, scope: Scope) -> Redactor | None:
        what = self._settings.redact
        chosen = what(scope) if callable(what) else what
        if chosen is None:
            return self._given
        if chosen not in REDACTIONS:
            raise InputError(f"settings.redact says {chosen!r} for {scope.key}; expected one of {REDACTIONS}.")
        if chosen == "off" or self._given is not None:
            return None if chosen == "off" else self._given
        if chosen not in self._made:
            from memr1_plugin.redaction import LibraryRedactor

            self._made[chosen] = LibraryRedactor(chosen)
        return self._made[chosen]

    # -- screening

    def caught(self, turn: Turn) -> tuple[str, ...]:
        """Return the rules that keep a turn from every model; () for roles that are never learned from."""
        if turn.role not in self._settings.remember_roles:
            return ()
        return self.rules([turn.text, turn.speaker])

    def rules(self, texts: Iterable[str]) -> tuple[str, ...]:
        """Return the rules that any of `texts` matches."""
        if self._screener is None:
            return ()
        return tuple(dict.fromkeys(f.rule for text in texts for f in self._screener.screen(text)))

    def of_facts(self, facts: Sequence[Fact]) -> tuple[str, ...]:
        """Return the rules that extracted facts match: a model that extracts may undo what hid them."""
        return self.rules(fact.text for fact in facts)

    def previous(self, turn: Turn | None) -> Turn | None:
        """Return the turn before, unless its words (a tool's, say) must not get into the fact after it."""
        return None if turn is None or self.rules([turn.text, turn.speaker]) else turn

    # -- imports

    def rows(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """Yield exported rows as an untrusted file may bring them: redacted, and what is caught held.

        A caught turn comes in quarantined; so does the text of a caught memory, as a turn; changes and feedback that
        show caught text stay out.
        """
        for row in rows:
            yield self._row(row) if isinstance(row, Mapping) else row

    def _row(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        kind = row.get("type")
        if kind not in ("turn", "item", "change", "feedback"):
            return row
        row = self.clean_value(dict(row), _scope_of(row))
        if kind == "turn":
            rules = self.rules(_texts_of(row))
            return {**row, "caught": list(rules)} if rules else row
        if kind == "item":
            return self._item(row)
        return _NOTHING if self.rules(_strings(row)) else row

    def _item(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        if rules := self.rules([*_texts_of(row), *_strings(row.get("metadata"))]):
            kept = {name: row[name] for name in ("text", "speaker", "scope", "at", "metadata") if name in row}
            said = json.dumps([row.get("scope"), row.get("text"), row.get("speaker")], sort_keys=True, default=str)
            turn_id = f"import-{hashlib.sha256(said.encode()).hexdigest()[:32]}"
            return {"type": "turn", **kept, "id": turn_id, "managed": True, "caught": list(rules)}
        return {**row, "context": ""} if self.rules(_strings(row.get("context"))) else row


def _scope_of(row: Mapping[str, Any]) -> Scope:
    scope = row.get("scope")
    known = ("user", "agent", "session")
    if isinstance(scope, Mapping) and all(isinstance(scope.get(name, ""), str) for name in known):
        return Scope(**{name: scope.get(name, "") for name in known})
    return Scope()


def _texts_of(row: Mapping[str, Any]) -> list[str]:
    return [value for name in ("text", "speaker") if isinstance(value := row.get(name), str)]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _strings(one)


def texts_in(value: Any) -> list[str]:
    """Return every text inside a JSON value."""
    return list(_strings(value))


def _leaves(value: Any, redactor: Redactor) -> Any:
    if isinstance(value, str):
        return redactor.redact(value)
    if isinstance(value, Mapping):
        return {key: one if key in _NAMES else _leaves(one, redactor) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_leaves(one, redactor) for one in value]
    return value
