"""Short ways to say something in a bank, and to find it again."""

from __future__ import annotations

from datetime import datetime, timezone

from memr1_plugin.bank.bank import Bank
from memr1_plugin.types import Change, Fact, Operation, OperationKind, Scope

ANA = Scope(user="ana")
BOB = Scope(user="bob")
MAY = datetime(2023, 5, 8, 13, 56, tzinfo=timezone.utc)


def fact(text: str, speaker: str = "Ana", at: datetime = MAY, turn_id: str = "", context: str = "") -> Fact:
    """A fact as extraction makes it."""
    return Fact(text, speaker, at, turn_id, context)


def adding(text: str, **about: object) -> Operation:
    """An ADD of one fact."""
    return Operation(OperationKind.ADD, fact(text, **about))  # type: ignore[arg-type]


def updating(target: int, text: str) -> Operation:
    """A user's correction."""
    return Operation(OperationKind.UPDATE, None, target, text)


def deleting(target: int) -> Operation:
    """A DELETE without a fact."""
    return Operation(OperationKind.DELETE, None, target)


def add(bank: Bank, text: str, scope: Scope = ANA, **about: object) -> int:
    """Add one item and return its id."""
    [change] = bank.apply(scope, [adding(text, **about)])
    assert change.item_id is not None
    return change.item_id


def found(bank: Bank, query: str, scope: Scope = ANA, k: int = 10, view: str = "text") -> list[int]:
    """Ids found by words."""
    return [item_id for item_id, _ in bank.search_text(scope, query, k, view=view)]  # type: ignore[arg-type]


def near(bank: Bank, query: str, scope: Scope = ANA, k: int = 10, view: str = "text") -> list[int]:
    """Ids found by vector."""
    vector = bank.embedder.embed([query])[0]
    return [item_id for item_id, _ in bank.search_vectors(scope, vector, k, view=view)]  # type: ignore[arg-type]


def undo_all(changes: list[Change], bank: Bank) -> None:
    """Undo changes from the last to the first."""
    for change in reversed(changes):
        bank.undo(change.scope, change.id)
