"""Properties that hold for any operations by any scopes, with any names and texts."""

from __future__ import annotations

import json

from bank_help import MAY, adding, deleting, found, near, updating
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memr1_plugin.bank.bank import Bank
from memr1_plugin.errors import InputError
from memr1_plugin.testing import HashEmbedder
from memr1_plugin.types import Change, MemoryItem, Scope

NAMES = [
    "",
    "ana",
    "Ana",
    "a%",
    "_",
    "*",
    "'; DROP TABLE items; --",
    '"',
    "../..",
    "1",
    "42",
    "ana\n",
    "ä",
    "[]",
    '","',
]
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=40).filter(
    str.strip
)
SCOPE = st.builds(
    Scope, user=st.sampled_from(NAMES), agent=st.sampled_from(NAMES[:3]), session=st.sampled_from(NAMES[:3])
)
STEP = st.tuples(
    st.sampled_from(["add", "update", "delete", "undo", "forget"]), st.integers(0, 4), st.integers(0, 30), TEXT
)

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def act(bank: Bank, scope: Scope, kind: str, n: int, text: str) -> None:
    """Do one step to one scope, aimed at whatever it holds."""
    items = bank.items(scope)
    changes = bank.history(scope)
    if kind == "add" or not items:
        bank.apply(scope, [adding(text, speaker=scope.user or "nobody")])
    elif kind == "update":
        bank.apply(scope, [updating(items[n % len(items)].id, text)])
    elif kind == "delete":
        bank.apply(scope, [deleting(items[n % len(items)].id)])
    elif kind == "forget":
        bank.forget(scope, items[n % len(items)].id)
    else:
        try:
            bank.undo(scope, changes[n % len(changes)].id)
        except InputError:
            return


def seen(bank: Bank, scope: Scope, query: str) -> tuple[object, ...]:
    """All that a scope can see."""
    return (
        bank.items(scope, include_deleted=True),
        bank.history(scope),
        bank.search_text(scope, query, 50, view="context"),
        bank.search_vectors(scope, bank.embedder.embed([query])[0], 50, view="text"),
        [row for row in bank.export(scope)],
        bank.items(scope, as_of=MAY),
    )


@quick
@given(st.lists(SCOPE, min_size=2, max_size=5, unique=True), st.lists(STEP, max_size=25), TEXT)
def test_scopes_never_see_each_other(scopes: list[Scope], steps: list[tuple[str, int, int, str]], query: str) -> None:
    """Whatever others do, a scope sees exactly what it would see if it were alone in the bank."""
    with Bank.open(":memory:", HashEmbedder()) as crowded:
        for kind, who, n, text in steps:
            scope = scopes[who % len(scopes)]
            others = [other for other in scopes if other != scope]
            before = [seen(crowded, other, query) for other in others]
            act(crowded, scope, kind, n, text)
            assert [seen(crowded, other, query) for other in others] == before
        for scope in scopes:
            ids = {item.id for item in crowded.items(scope)}
            assert set(near(crowded, query, scope, k=99)) == (
                ids if crowded.embedder.embed([query])[0].any() else set()
            )
            assert set(found(crowded, query, scope, k=99)) <= ids
        assert crowded.check() == []


@quick
@given(st.lists(STEP, max_size=25), TEXT)
def test_an_index_equals_its_rebuild(steps: list[tuple[str, int, int, str]], query: str) -> None:
    """The caches in memory after any steps say what caches built from SQLite say."""
    scope = Scope(user="ana")
    with Bank.open(":memory:", HashEmbedder()) as bank:
        near(bank, query, scope)
        for kind, _, n, text in steps:
            act(bank, scope, kind, n, text)
            near(bank, query, scope)
        warm = [
            dict(bank.search_vectors(scope, bank.embedder.embed([query])[0], 99, view=v)) for v in ("text", "context")
        ]
        words = bank.search_text(scope, query, 99, view="context")
        bank._indexes.drop()
        cold = [
            dict(bank.search_vectors(scope, bank.embedder.embed([query])[0], 99, view=v)) for v in ("text", "context")
        ]
        assert [{i: round(c, 5) for i, c in d.items()} for d in warm] == [
            {i: round(c, 5) for i, c in d.items()} for d in cold
        ]
        assert bank.search_text(scope, query, 99, view="context") == words


@quick
@given(st.lists(STEP, min_size=1, max_size=15))
def test_undo_is_the_inverse(steps: list[tuple[str, int, int, str]]) -> None:
    """Undoing all changes of the steps, last first, restores the items as they were before them."""
    scope = Scope(user="ana")
    with Bank.open(":memory:", HashEmbedder()) as bank:
        bank.apply(scope, [adding("I live in Rome."), adding("I like tea.")])
        before, first = bank.items(scope), len(bank.history(scope))
        for kind, _, n, text in steps:
            if kind not in ("undo", "forget"):
                act(bank, scope, kind, n, text)
        for change in reversed(bank.history(scope)[first:]):
            bank.undo(scope, change.id)
        assert bank.items(scope) == before and bank.check() == []


@quick
@given(SCOPE, st.lists(STEP, max_size=15))
def test_rows_survive_json(scope: Scope, steps: list[tuple[str, int, int, str]]) -> None:
    """Items, changes and whole exports go through JSON and come back equal."""
    with Bank.open(":memory:", HashEmbedder()) as bank, Bank.open(":memory:", HashEmbedder()) as other:
        for kind, _, n, text in steps:
            act(bank, scope, kind, n, text)
        for change in bank.history(scope):
            assert Change.from_json(json.loads(json.dumps(change.to_json()))) == change
        for item in bank.items(scope, include_deleted=True):
            assert MemoryItem.from_json(json.loads(json.dumps(item.to_json()))) == item
        rows = [json.loads(json.dumps(row)) for row in bank.export()]
        other.import_(rows)
        assert [i.text for i in other.items(scope)] == [i.text for i in bank.items(scope)] and other.check() == []
