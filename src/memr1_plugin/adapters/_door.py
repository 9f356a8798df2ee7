"""A door: one bot's way into a `Memory`, the same behind LangChain, LangGraph, LlamaIndex and plain clients.

It recalls, reads and rewrites the dialogue, and records; it holds no store and imports no framework. Every
rule that all doors share stands here (and in `_said`, `_source`) once: scopes, recalled text as data, never
learning from our own words, one turn once, and a failing memory that does not break the chat.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from memr1_plugin.adapters._listener import RECALL, RECORD, Listener
from memr1_plugin.adapters._said import Address, Said, digest, sayable, strip_recalled
from memr1_plugin.adapters._source import Source, source_of
from memr1_plugin.errors import InputError
from memr1_plugin.logs import fields, told
from memr1_plugin.types import MemoryItem, Turn, new_id

if TYPE_CHECKING:
    from memr1_plugin.memory import Memory

T = TypeVar("T")
Recall = Literal["agent", "retrieval"]
"""Who chooses the memories: the Answer Agent ("agent"), or retrieval alone, with no model call ("retrieval")."""
OnError = Literal["log", "raise"]
Write = Literal["sync", "background"]

logger = logging.getLogger("memr1_plugin.adapters")

_failures: Counter[str] = Counter()
_failures_lock = threading.Lock()


def failures() -> dict[str, int]:
    """How often the doors of this process failed softly, by door and act: ``{"langchain.memory recall": 2}``."""
    with _failures_lock:
        return dict(_failures)


@dataclass(frozen=True)
class Call:
    """One call on `Memory`, made by the sync shell or awaited by the async one."""

    name: str
    args: tuple[Any, ...]
    options: Mapping[str, Any]


Flow = Generator[Call, Any, T]
"""One pipeline for both worlds: it yields calls on `Memory` and is sent their results."""

Selections = OrderedDict[tuple[str, str], tuple[list[tuple[int, str]], list[MemoryItem]]]
"""What the Answer Agent selected for a query, beside the candidates it chose from (ids and times)."""
_SELECTIONS = 8

_DIALOGUE = "\x1fdialogue"
"""Suffix of the session that holds the marks left by `clear` and `rewrite`."""


def call(name: str, *args: Any, **options: Any) -> Call:
    """Return a call on `Memory`, to be yielded by a flow."""
    return Call(name, args, options)


@dataclass(frozen=True)
class Dialogue:
    """The turns of one session that a bot still has before it."""

    turns: list[Turn] = field(default_factory=list)
    tail: str = ""
    """Id of the session's newest turn, whether the dialogue was begun anew since or not; "" if there is none."""


@dataclass(frozen=True)
class Door:
    """A memory seen from one framework: recall, read the dialogue, record, clear; each with an async twin."""

    memory: Memory
    source: Source
    address: Address
    name: str
    recall_by: Recall = "agent"
    k: int | None = None
    on_error: OnError = "log"
    listener: Listener | None = None
    """Told what was recalled and recorded, in the framework's way."""

    @classmethod
    def open(
        cls,
        name: str,
        address: Address,
        *,
        memory: Memory | None = None,
        path: Any = "memory.db",
        recall: Recall = "agent",
        k: int | None = None,
        on_error: OnError = "log",
        listener: Listener | None = None,
        **options: Any,
    ) -> Door:
        """Open the door called `name`; without `memory`, on the process's shared memory for `path`."""
        for what, value, known in (
            ("recall", recall, ("agent", "retrieval")),
            ("on_error", on_error, ("log", "raise")),
        ):
            if value not in known:
                raise InputError(f"{what} is {value!r}; expected one of {', '.join(map(repr, known))}.")
        source = source_of(memory, path, options)
        return cls(
            memory if memory is not None else source.open(), source, address, name, recall, k, on_error, listener
        )

    def at(self, address: Address) -> Door:
        """Return this door for somebody else; memory and policy stay."""
        return self if address == self.address else replace(self, address=address)

    def considering(self, k: int | None) -> Door:
        """Return this door with `k` candidates; itself if `k` is None."""
        return self if k is None else replace(self, k=k)

    def __deepcopy__(self, memo: Any) -> Door:
        return self  # frozen; a copy of a door leads into the same house

    def __reduce__(self) -> Any:
        return _reopen, (
            self.source, self.address, self.name, self.recall_by, self.k, self.on_error, self.listener
        )  # fmt: skip

    # -- shells

    @contextmanager
    def guarded(self, act: str) -> Iterator[None]:
        """Attribute a failure of the memory to this door: counted and logged, or raised if asked to.

        The one place that lets a failure pass, whatever raised it (engines and embedders are the
        caller's): a bot without its memory is better than no bot.
        """
        try:
            yield
        except Exception as error:
            if self.on_error == "raise":
                raise
            with _failures_lock:
                _failures[f"{self.name} {act}"] += 1
            self.memory.meter.add(f"failed:{self.name} {act}")
            logger.error(
                "%s: %s failed (%s); the chat goes on without it",
                self.name,
                act,
                told(error),
                extra=fields("door_failed", door=self.name, act=act, error=type(error).__name__),
            )

    def run(self, act: str, flow: Flow[T], otherwise: T) -> T:
        """Drive `flow` with plain calls; `otherwise` is the result of a failure that may pass."""
        with self.guarded(act):
            return self._drive(flow)
        return otherwise

    async def arun(self, act: str, flow: Flow[T], otherwise: T) -> T:
        """Drive `flow` with the async twins, which never block the event loop."""
        with self.guarded(act):
            return await self._adrive(flow)
        return otherwise

    def _drive(self, flow: Flow[T]) -> T:
        step: Callable[[], Call] = partial(next, flow)
        while True:
            try:
                call = step()
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
            try:
                step = partial(flow.send, getattr(self.memory, call.name)(*call.args, **call.options))
            except Exception as error:  # noqa: BLE001 - the flow decides; what it does not catch comes out of it
                step = partial(flow.throw, error)

    async def _adrive(self, flow: Flow[T]) -> T:
        step: Callable[[], Call] = partial(next, flow)
        while True:
            try:
                call = step()
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
            try:
                step = partial(flow.send, await getattr(self.memory, f"a{call.name}")(*call.args, **call.options))
            except Exception as error:  # noqa: BLE001 - as above
                step = partial(flow.throw, error)

    # -- recalling

    def recall(self, query: str, shown: Iterable[Turn] = (), selections: Selections | None = None) -> list[MemoryItem]:
        """Return the memories for `query`, without those that only repeat turns already `shown`.

        With `selections`, the Answer Agent is asked once per query, until the memories for it change.
        """
        items = self.run("recall", self.recalling(query, shown, selections), [])
        if self.listener is not None:
            self.listener.told(RECALL, _recalled(self, items))
        return items

    async def arecall(
        self, query: str, shown: Iterable[Turn] = (), selections: Selections | None = None
    ) -> list[MemoryItem]:
        """Async twin of `recall`."""
        items = await self.arun("recall", self.recalling(query, shown, selections), [])
        if self.listener is not None:
            await self.listener.atold(RECALL, _recalled(self, items))
        return items

    def recalling(
        self, query: str, shown: Iterable[Turn] = (), selections: Selections | None = None
    ) -> Flow[list[MemoryItem]]:
        """The flow behind `recall`, for flows that go on from there."""
        query = sayable(strip_recalled(query)).strip()
        if not query:
            return []
        options: dict[str, Any] = {"scope": self.address.scope, **({} if self.k is None else {"k": self.k})}
        if self.recall_by == "retrieval":
            items: list[MemoryItem] = yield call("search", query, **options)
        elif selections is None:
            items = yield call("select", query, **options)
        else:
            items = yield from self._selecting(query, options, selections)
        known = {turn.id for turn in shown}
        return [item for item in items if not item.turn_ids or not known.issuperset(item.turn_ids)]

    def _selecting(self, query: str, options: Mapping[str, Any], selections: Selections) -> Flow[list[MemoryItem]]:
        """Select, or give the last selection for `query` again if retrieval still finds the same memories."""
        k = self.k or self.memory.settings.candidates
        found: list[MemoryItem] = yield call("search", query, **{**options, "k": k})
        state = [(item.id, item.updated_at.isoformat()) for item in found]
        key = (self.address.scope.key, query)
        if (last := selections.get(key)) is not None and last[0] == state:
            return last[1]
        items: list[MemoryItem] = yield call("select", query, **options)
        selections[key] = (state, items)
        while len(selections) > _SELECTIONS:
            selections.popitem(last=False)
        return items

    # -- the dialogue

    def dialogue(self, limit: int | None = None) -> Dialogue:
        """Return the newest `limit` turns of this session, oldest first, since the last `clear`."""
        return self.run("read", self._dialogue(limit), Dialogue())

    async def adialogue(self, limit: int | None = None) -> Dialogue:
        """Async twin of `dialogue`."""
        return await self.arun("read", self._dialogue(limit), Dialogue())

    def _dialogue(self, limit: int | None) -> Flow[Dialogue]:
        where = {"scope": self.address.scope, "session": self.address.session}
        marks = yield call("turns", scope=where["scope"], session=self.address.session + _DIALOGUE, limit=1)
        turns: list[Turn] = yield call("turns", **where, limit=None if limit is None else max(limit, 1))
        tail = turns[-1].id if turns else ""
        if marks:
            new, kept = _after(turns, marks[0].metadata["after"]), list(marks[0].metadata["kept"])
            if kept and limit is not None and len(new) < limit:
                turns = yield call("turns", **where, limit=None)
            by_id = {turn.id: turn for turn in turns}
            turns = [by_id[i] for i in kept if i in by_id] + new
        return Dialogue(turns if limit is None else turns[max(0, len(turns) - limit) :], tail)

    def clear(self) -> None:
        """Begin the dialogue anew. Nothing is erased: memories stay, and the journal too (`Memory.forget` erases)."""
        self.run("clear", self._mark([]), None)

    async def aclear(self) -> None:
        """Async twin of `clear`."""
        await self.arun("clear", self._mark([]), None)

    def _mark(self, kept: Sequence[str]) -> Flow[None]:
        scope, session = self.address.scope, self.address.session
        newest = yield call("turns", scope=scope, session=session, limit=1)
        if newest:
            mark = {"after": newest[0].id, "kept": list(kept)}
            turn = Turn(
                "(the dialogue begins anew)", "memr1", scope, role="system", session=session + _DIALOGUE, metadata=mark
            )
            yield call("observe_many", [turn])

    def rewrite(self, said: Sequence[Said]) -> None:
        """Make `said` the dialogue. Messages that the session already holds are recognised, not learned again."""
        self.run("rewrite", self._rewrite(said), None)

    async def arewrite(self, said: Sequence[Said]) -> None:
        """Async twin of `rewrite`."""
        await self.arun("rewrite", self._rewrite(said), None)

    def _rewrite(self, said: Sequence[Said]) -> Flow[None]:
        where: dict[str, Any] = {"scope": self.address.scope, "session": self.address.session}
        known = yield call("turns", **where, limit=None, quarantined="shown")  # to know them again, never to show them
        free: dict[tuple[str, str], list[str]] = {}
        for turn in known:
            free.setdefault((turn.role, turn.text), []).append(turn.id)
        wanted: list[Turn] = []
        for place, turn in enumerate(self.turns(said)):
            ids = free.get((turn.role, turn.text))
            wanted.append(
                replace(turn, id=ids.pop(0) if ids else digest(self._here, "set", place, turn.role, turn.text))
            )
        dialogue = yield from self._dialogue(None)
        if [turn.id for turn in wanted] == [turn.id for turn in dialogue.turns]:
            return
        held = {turn.id for turn in known}
        if new := [turn for turn in wanted if turn.id not in held]:
            yield call("observe_many", new)
        yield from self._mark([turn.id for turn in wanted])

    # -- recording

    @property
    def _here(self) -> tuple[str, str]:
        return self.address.scope.key, self.address.session

    def turns(self, said: Sequence[Said]) -> list[Turn]:
        """Return the turns that a journal takes: our own words out, names and ids in."""
        return [turn for turn in map(self._turn, said) if turn is not None]

    def _turn(self, said: Said) -> Turn | None:
        clean = self.memory.guard.clean_value
        text: str = clean(sayable(strip_recalled(said.text)).strip(), self.address.scope)
        if not text and not said.payload:
            return None
        # A message without words (an image, a tool call) belongs to the dialogue but teaches nothing.
        role = said.role if text or said.role != "user" else "system"
        names = {"user": self.address.user_name, "assistant": self.address.agent_name}
        return Turn(
            text or "(no text)",
            (said.name or names.get(said.role, said.role))[:200],
            self.address.scope,
            id=digest(self._here, said.key, said.role, text) if said.key else new_id(),
            role=role,
            session=self.address.session,
            metadata={"door": self.name, **clean(dict(said.payload), self.address.scope)},
        )

    def record(self, said: Sequence[Said]) -> list[Turn]:
        """Record messages, each once; returns their turns ([] after a failure that may pass)."""
        turns = self.run("record", self._record(said), [])
        if self.listener is not None and turns:
            self.listener.told(RECORD, _recorded(self, turns))
        return turns

    async def arecord(self, said: Sequence[Said]) -> list[Turn]:
        """Async twin of `record`."""
        return await self._atold_record(await self.arun("record", self._record(said), []))

    async def _atold_record(self, turns: list[Turn]) -> list[Turn]:
        if self.listener is not None and turns:
            await self.listener.atold(RECORD, _recorded(self, turns))
        return turns

    def _record(self, said: Sequence[Said]) -> Flow[list[Turn]]:
        turns = self.turns(said)
        if turns:
            yield call("observe_many", turns)
        return turns

    async def afollow(self, said: Sequence[Said]) -> None:
        """Record what of `said`, a window onto a dialogue that somebody else keeps, is new at its end."""
        await self._atold_record(await self.arun("record", self._follow(said), []))

    def _follow(self, said: Sequence[Said]) -> Flow[list[Turn]]:
        turns = self.turns(said)
        scope, session = self.address.scope, self.address.session
        known: list[Turn] = yield call(
            "turns", scope=scope, session=session, limit=len(turns) + _LOOK_BACK, quarantined="shown"
        )
        if new := turns[_overlap([_what(t) for t in known], [_what(t) for t in turns]) :]:
            yield call("observe_many", new)
        return new


_LOOK_BACK = 50
"""How many recorded turns a window may lag behind."""


def _recalled(door: Door, items: Sequence[MemoryItem]) -> dict[str, Any]:
    return {"door": door.name, "items": len(items), "ids": [item.id for item in items]}


def _recorded(door: Door, turns: Sequence[Turn]) -> dict[str, Any]:
    return {"door": door.name, "turns": len(turns)}


def _what(turn: Turn) -> tuple[str, str]:
    return turn.role, turn.text


def _overlap(known: Sequence[tuple[str, str]], window: Sequence[tuple[str, str]]) -> int:
    """Return how many of the window's first entries are known: all if it lies inside, else what overlaps the end.

    >>> _overlap("abcd", "cde"), _overlap("abcd", "bc"), _overlap("abcd", "xy")
    (2, 2, 0)
    """
    n = len(window)
    if any(list(known[at : at + n]) == list(window) for at in range(len(known) - n + 1)):
        return n
    sizes = range(min(n, len(known)), 0, -1)
    return next((size for size in sizes if list(known[-size:]) == list(window[:size])), 0)


def _after(turns: list[Turn], turn_id: str) -> list[Turn]:
    """Return the turns that follow the one with `turn_id`; all, if it is older than them all."""
    places = [n for n, turn in enumerate(turns) if turn.id == turn_id]
    return turns[places[0] + 1 :] if places else turns


def _reopen(source: Source, *policy: Any) -> Door:
    return Door(source.open(), source, *policy)
