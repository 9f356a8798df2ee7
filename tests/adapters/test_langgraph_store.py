"""`MemoryR1Store` beside LangGraph's SQLite store, and what only a store on a memory can do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

pytest.importorskip("langgraph.store.base")
from langgraph.store.base import (
    BaseStore,
    GetOp,
    InvalidNamespaceError,
    Item,
    ListNamespacesOp,
    MatchCondition,
    PutOp,
    SearchOp,
)

from memr1_plugin import Memory, Scope
from memr1_plugin.adapters.langgraph import MemoryR1Store

ANA = ("memories", "ana")


@pytest.fixture
def store(memory: Memory) -> MemoryR1Store:
    return MemoryR1Store(memory=memory)


@pytest.fixture
def stores(store: MemoryR1Store) -> Iterator[list[BaseStore]]:
    """Ours and LangGraph's own, to be asked the same."""
    sqlite = pytest.importorskip("langgraph.store.sqlite").SqliteStore
    with sqlite.from_conn_string(":memory:") as theirs:
        theirs.setup()
        yield [store, theirs]


def same(stores: list[BaseStore], ask: Callable[[BaseStore], Any]) -> Any:
    """Ask both stores; they must agree, in errors too."""
    answers = []
    for each in stores:
        try:
            answers.append(ask(each))
        except (ValueError, TypeError) as error:
            answers.append(type(error))
    assert answers[0] == answers[1]
    return answers[0]


def plain(items: Any) -> Any:
    """Drop what two stores cannot share: times and scores."""
    return sorted((item.namespace, item.key, str(item.value)) for item in items)


PUTS: list[tuple[tuple[str, ...], str, dict[str, Any]]] = [
    (("docs",), "a", {"text": "about tea", "n": 1, "ok": True, "tags": ["x"]}),
    (("docs",), "b", {"text": "about coffee", "n": 2.5, "ok": False, "none": None}),
    (("docs", "old"), "a", {"text": "about milk", "n": "3", "deep": {"er": {"n": 7}}}),
    (("docs", "old", "x"), "c", {"text": "about rum", "n": 10}),
    (("Docs",), "a", {"text": "capital"}),
    (("docs2",), "a", {"text": "another"}),
    (("a%", "b_"), "%", {"text": "wild"}),
    (("a%", "bx"), "_", {"text": "wilder"}),
    (("aX", "b_"), "'; DROP TABLE items; --", {"text": "hostile"}),
    (ANA, "tea", {"text": "Ana likes tea"}),
    (("memories", "ben"), "tea", {"text": "Ben likes tea"}),
]


@pytest.fixture
def filled(stores: list[BaseStore]) -> list[BaseStore]:
    for each in stores:
        for namespace, key, value in PUTS:
            each.put(namespace, key, value)
    return stores


def test_put_get_overwrite_delete(stores: list[BaseStore]) -> None:
    """A value comes back equal, the last put wins, a deleted key is gone, an unknown one is None."""
    value = {"a": 1, "b": [1, {"c": None}], "ü": "ß", "f": 1.5}
    for ask in (
        lambda s: s.put(("x",), "k", value),
        lambda s: s.get(("x",), "k").value,
        lambda s: s.put(("x",), "k", {"b": 2}),
        lambda s: s.get(("x",), "k").value,
        lambda s: s.get(("x",), "other"),
        lambda s: s.get(("y",), "k"),
        lambda s: s.delete(("x",), "k"),
        lambda s: s.get(("x",), "k"),
        lambda s: s.delete(("x",), "k"),
        lambda s: s.search(("x",)),
        lambda s: s.put(("x",), "k", {}),
        lambda s: s.get(("x",), "k").value,
    ):
        same(stores, ask)


@pytest.mark.parametrize(
    "wanted",
    [
        {"n": 1}, {"n": 1.0}, {"n": "3"}, {"ok": True}, {"ok": False}, {"none": None}, {"missing": None},
        {"text": "wild"},
        {"n": {"$gt": 1}}, {"n": {"$gte": 2.5}}, {"n": {"$lt": 3}}, {"n": {"$lte": 10}}, {"n": {"$gt": 1, "$lt": 10}},
        {"n": {"$ne": 1}}, {"n": {"$eq": 10}}, {"text": {"$gt": "about m"}}, {"ok": {"$eq": True}},
        {"ok": {"$ne": True}},
        {"none": {"$eq": None}}, {"none": {"$ne": None}}, {"text": {"$ne": "wild"}}, {"deep.er.n": 7},
        {"deep.er.n": {"$lt": 8}},
        {"n": 1, "ok": True}, {"n": 1, "ok": False}, {"tags": ["x"]}, {"n": {"$in": [1]}}, {"x'); --": 1}, {}, None,
    ],
)  # fmt: skip
def test_filters_mean_what_they_mean_there(filled: list[BaseStore], wanted: Any) -> None:
    """Equality, order, absence, paths, unknown operators and hostile names: as LangGraph's SQLite store has it."""
    same(filled, lambda s: plain(s.search((), filter=wanted, limit=100)))


@pytest.mark.parametrize(
    "prefix", [(), ("docs",), ("docs", "old"), ("Docs",), ("a%",), ("a_",), ("*",), ("memories",), ANA]
)
def test_a_prefix_is_whole_labels_taken_literally(filled: list[BaseStore], prefix: tuple[str, ...]) -> None:
    """("docs",) finds its descendants, not "docs2" nor "Docs"; %, _ and * are letters like others."""
    same(filled, lambda s: plain(s.search(prefix, limit=100)))


@pytest.mark.parametrize(
    "options",
    [
        {}, {"prefix": ("docs",)}, {"suffix": ("old",)}, {"prefix": ("docs", "*")}, {"suffix": ("*", "x")},
        {"max_depth": 1},
        {"max_depth": 2}, {"limit": 3}, {"limit": 3, "offset": 2}, {"prefix": ("a%",)}, {"prefix": ("a_",)},
        {"prefix": ("*", "b_")}, {"suffix": ("b_",)}, {"prefix": ("docs",), "suffix": ("x",)}, {"prefix": ("nope",)},
        {"prefix": ("docs",), "max_depth": 2}, {"prefix": ()}, {"prefix": ("memories", "*")},
    ],
)  # fmt: skip
def test_namespaces_are_listed_alike(filled: list[BaseStore], options: Any) -> None:
    """Prefix, suffix, one-label wildcards, depth, limit and offset."""
    same(filled, lambda s: s.list_namespaces(**options))


def test_an_emptied_namespace_is_not_listed(stores: list[BaseStore]) -> None:
    """What holds nothing is not there."""
    same(stores, lambda s: s.put(("x",), "k", {"a": 1}))
    same(stores, lambda s: s.delete(("x",), "k"))
    assert same(stores, lambda s: s.list_namespaces()) == []


def test_a_batch_reads_first_and_the_last_write_wins(filled: list[BaseStore]) -> None:
    """Results come in the order of operations; reads see the state before the batch."""
    ops = [
        PutOp(("docs",), "a", {"text": "first"}),
        GetOp(("docs",), "a"),
        PutOp(("docs",), "a", {"text": "second"}),
        SearchOp(("docs", "old")),
        ListNamespacesOp((MatchCondition("prefix", ("docs", "*")),)),
        GetOp(("docs",), "zzz"),
        PutOp(("docs",), "b", None),
    ]

    def ask(store: BaseStore) -> Any:
        results = store.batch(list(ops))
        found = [r.value if isinstance(r, Item) else plain(r) if n == 3 else r for n, r in enumerate(results)]
        return found, store.get(("docs",), "a").value, store.get(("docs",), "b")  # type: ignore[union-attr]

    assert same(filled, ask)[1] == {"text": "second"}


@pytest.mark.parametrize("name", [(), ("",), ("a.b",), ("langgraph", "x"), ("a\x00",), (1,)])
def test_the_same_labels_are_refused(stores: list[BaseStore], name: Any) -> None:
    """Empty, dotted, reserved and non-text labels are InvalidNamespaceError, through batch as well."""
    assert same(stores, lambda s: s.put(name, "k", {"a": 1})) is InvalidNamespaceError
    if name not in ((), ("langgraph", "x")):
        assert same(stores, lambda s: s.batch([GetOp(name, "k")])) is InvalidNamespaceError


def test_pages_follow_the_newest_first(store: MemoryR1Store) -> None:
    """Without a query, search orders by the last update, and limit and offset cut pages from it."""
    for n in range(5):
        store.put(("x",), str(n), {"n": n})
    store.put(("x",), "1", {"n": 11})
    keys = [item.key for item in store.search(("x",), limit=10)]
    assert keys == ["1", "4", "3", "2", "0"]
    assert [item.key for item in store.search(("x",), limit=2, offset=1)] == ["4", "3"]


def test_times(store: MemoryR1Store) -> None:
    """Items know when they were made and changed, with a time zone."""
    store.put(("x",), "k", {"n": 1})
    first = store.get(("x",), "k")
    time.sleep(0.01)
    store.put(("x",), "k", {"n": 2})
    second = store.get(("x",), "k")
    assert first and second and second.created_at == first.created_at and second.updated_at > first.updated_at
    assert abs(datetime.now(timezone.utc) - second.updated_at) < timedelta(seconds=5)


def test_a_query_ranks_by_meaning(store: MemoryR1Store) -> None:
    """Relevance, best first with scores; filters and pages hold; what is not indexed is not found by query."""
    store.put(ANA, "tea", {"text": "Ana drinks green tea every morning", "kind": "drink"})
    store.put(ANA, "dog", {"text": "Ana has a dog called Rex", "kind": "pet"})
    store.put(ANA, "hidden", {"text": "green tea is stored here"}, index=False)
    store.put(ANA, "byfield", {"title": "green tea", "text": "nothing"}, index=["text"])
    found = store.search(("memories",), query="green tea", limit=10)
    assert found[0].key == "tea" and found[0].score and "hidden" not in [item.key for item in found]
    assert [i.score for i in found] == sorted((i.score or 0 for i in found), reverse=True)
    assert [i.key for i in store.search(ANA, query="green tea", filter={"kind": "pet"})] in (["dog"], [])
    assert store.get(ANA, "hidden") is not None
    assert len(store.search(ANA, query="green tea", limit=1)) == 1


def test_fields_say_what_is_searched(memory: Memory) -> None:
    """With fields given, only they are searched; without, a value's text field, or all of it."""
    store = MemoryR1Store(memory=memory, fields=["about.title"])
    store.put(("x",), "k", {"about": {"title": "green tea"}, "text": "a dog"})
    [item] = memory.bank.items(Scope(agent="langgraph", session='["x"]'))
    assert item.text == "green tea"
    MemoryR1Store(memory=memory).put(("y",), "k", {"name": "Rex"})
    [item] = memory.bank.items(Scope(agent="langgraph", session='["y"]'))
    assert item.text == '{"name": "Rex"}'


def test_time_to_live(memory: Memory) -> None:
    """What has expired is gone from every read at once; reading may refresh; sweeping makes it a deletion."""
    store = MemoryR1Store(memory=memory, ttl={"refresh_on_read": True, "default_ttl": 60})
    store.put(("x",), "short", {"n": 1}, ttl=0.004)
    store.put(("x",), "refreshed", {"n": 2}, ttl=0.02)
    store.put(("x",), "default", {"n": 3})
    store.put(("x",), "forever", {"n": 4}, ttl=None)
    time.sleep(0.3)
    assert {item.key for item in store.search(("x",), refresh_ttl=False)} == {"refreshed", "default", "forever"}
    store.get(("x",), "refreshed")
    time.sleep(1.0)
    assert store.get(("x",), "refreshed") is not None and store.get(("x",), "short") is None
    time.sleep(1.3)
    assert store.get(("x",), "refreshed") is None
    assert store.sweep_ttl() == 2 and store.sweep_ttl() == 0


def test_a_fact_told_in_a_chat_is_found_in_the_store(store: MemoryR1Store, memory: Memory) -> None:
    """Users' namespaces are their memory: chat facts have keys, can be read, replaced and deleted."""
    memory.observe("I live in Graz.", speaker="Ana", scope=Scope(user="ana"))
    [item] = store.search(ANA, query="Where does Ana live?")
    assert item.value["text"] == "I live in Graz." and item.value["speaker"] == "Ana"
    assert store.get(ANA, item.key) == store.search(ANA)[0] or store.get(ANA, item.key).value == item.value  # type: ignore[union-attr]
    store.put(ANA, item.key, {"text": "Ana lives in Porto."})
    assert [i.text for i in memory.bank.items(Scope(user="ana"))] == ["Ana lives in Porto."]
    store.delete(ANA, item.key)
    assert memory.search("Where does Ana live?", scope=Scope(user="ana")) == []


def test_a_fact_put_into_the_store_is_known_in_a_chat(store: MemoryR1Store, memory: Memory) -> None:
    """What an agent puts is retrieved like anything said; a correction elsewhere shows in the value here."""
    store.put(ANA, "home", {"text": "Ana lives in Graz.", "sure": True})
    [item] = memory.search("Where does Ana live?", scope=Scope(user="ana"))
    memory.correct(item.id, "Ana lives in Porto.", scope=Scope(user="ana"))
    assert store.get(ANA, "home").value == {"text": "Ana lives in Porto.", "sure": True}  # type: ignore[union-attr]
    memory.forget(scope=Scope(user="ana"))
    assert store.get(ANA, "home") is None and store.list_namespaces() == []


def test_any_user_id_has_a_label(store: MemoryR1Store, memory: Memory) -> None:
    """A label cannot hold a period; `label` writes any user id as one, and the scope is that user's."""
    for user in ("ana@example.org", "50%2E", "a.b%25", "ü"):
        memory.observe("I live in Graz.", scope=Scope(user=user))
        name = ("memories", MemoryR1Store.label(user))
        assert store.search(name, query="Where?")[0].value["text"] == "I live in Graz."
        assert name in store.list_namespaces()
    memory.observe("Alone.", scope=Scope(session="anonymous"))
    assert len(store.list_namespaces()) == 4


def test_another_template(memory: Memory) -> None:
    """Agents and sessions can be labels; a template without a place is refused."""
    store = MemoryR1Store(memory=memory, user_namespace=("{agent_id}", "facts", "{user_id}"))
    store.put(("cook", "facts", "ana"), "k", {"text": "likes salt"})
    assert memory.bank.items(Scope(user="ana", agent="cook"))[0].text == "likes salt"
    with pytest.raises(ValueError, match="user_namespace"):
        MemoryR1Store(memory=memory, user_namespace=("memories",))


def test_a_small_namespace_behind_a_large_one_finds_its_own(store: MemoryR1Store) -> None:
    """Hundreds of nearer entries elsewhere hide nothing."""
    store.batch([PutOp(("memories", "big"), str(n), {"text": f"green tea number {n}"}) for n in range(300)])
    store.put(("memories", "small"), "k", {"text": "some tea"})
    assert [item.key for item in store.search(("memories", "small"), query="green tea", limit=1)] == ["k"]


async def test_async_twins_and_twenty_tasks(store: MemoryR1Store) -> None:
    """Every method has its async form; twenty tasks at once lose nothing."""
    await asyncio.gather(*(store.aput(("x", str(n)), "k", {"n": n}) for n in range(20)))
    values = await asyncio.gather(*(store.aget(("x", str(n)), "k") for n in range(20)))
    assert [item.value["n"] for item in values if item] == list(range(20))
    assert len(await store.asearch(("x",), limit=50)) == 20
    await store.adelete(("x", "3"), "k")
    assert len(await store.alist_namespaces(prefix=("x",))) == 19
    await asyncio.gather(*(store.aput(("same",), "k", {"n": n}) for n in range(20)))
    assert len(await store.asearch(("same",))) == 1


def test_it_survives_a_restart(open_memory: Callable[..., Memory]) -> None:
    """What was put in one process is there in the next."""
    first = open_memory()
    MemoryR1Store(memory=first).put(("x",), "k", {"n": 1})
    first.close()
    assert MemoryR1Store(memory=open_memory()).get(("x",), "k").value == {"n": 1}  # type: ignore[union-attr]


def test_an_agent_uses_it_as_its_store(memory: Memory) -> None:
    """create_agent hands it to the tools of a run."""
    agents = pytest.importorskip("langchain.agents")
    from bots import ToolModel
    from langchain_core.tools import tool
    from langgraph.config import get_store

    @tool
    def note(text: str) -> str:
        """Note something."""
        get_store().put(ANA, "note", {"text": text})
        return "noted"

    bot = agents.create_agent(
        ToolModel(tool="note", arguments={"text": "Ana sings."}), [note], store=MemoryR1Store(memory=memory)
    )
    bot.invoke({"messages": [("user", "Please note it.")]})
    assert memory.search("Who sings?", scope=Scope(user="ana"))[0].text == "Ana sings."
