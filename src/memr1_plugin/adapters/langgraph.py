"""`MemoryR1Store`: the bank as a LangGraph store, with LangGraph's rules.

A namespace is a scope: ``("memories", "<user id>")`` is that user's memory, which all doors share, and what was
learned in a chat is found here too; any other namespace is a scope of its own. Values lie in items' metadata,
so that undo, history and forget hold for them. The interface is LangGraph's `BaseStore`; where its own
SQLite store defines a behaviour, this is it (what has expired is omitted at once, though).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from memr1_plugin.adapters import _store_filter as filters
from memr1_plugin.adapters._namespaces import Namespaces
from memr1_plugin.adapters._said import digest, plain_json, sayable
from memr1_plugin.adapters._source import source_of
from memr1_plugin.errors import MissingExtraError
from memr1_plugin.guard import texts_in
from memr1_plugin.types import Fact, MemoryItem, Operation, OperationKind, Scope, Turn

try:
    from langgraph.store.base import (
        BaseStore,
        GetOp,
        InvalidNamespaceError,
        Item,
        ListNamespacesOp,
        Op,
        PutOp,
        Result,
        SearchItem,
        SearchOp,
        TTLConfig,
        get_text_at_path,
    )
except ImportError as error:
    raise MissingExtraError.of("langgraph", "langgraph") from error

if TYPE_CHECKING:
    from memr1_plugin.bank.bank import Bank
    from memr1_plugin.memory import Memory

_KEY = "memory-"
"""Key of an item that another door wrote: this and its id."""
_TEXTS = ("text", "content", "memory")
"""Fields of a value that are its text where they are there, in this order."""

_writing: WeakKeyDictionary[Bank, threading.RLock] = WeakKeyDictionary()
_writing_guard = threading.Lock()


@dataclass(frozen=True)
class _Entry:
    """One value of the store, and the item that holds it."""

    namespace: tuple[str, ...]
    key: str
    value: dict[str, Any]
    item: MemoryItem
    indexed: bool = True
    ttl: float | None = None


class MemoryR1Store(BaseStore):
    """``create_agent(..., store=MemoryR1Store(path="bot.db"))``, or a graph's ``compile(store=...)``.

    User ids may hold anything; a namespace's label may hold no period: `label` writes one as the other.
    """

    supports_ttl = True

    def __init__(
        self,
        *,
        memory: Memory | None = None,
        path: str | Path = "memory.db",
        model: str | None = None,
        loras: str | Path | None = None,
        user_namespace: Sequence[str] = ("memories", "{user_id}"),
        fields: Sequence[str] | None = None,
        ttl: TTLConfig | None = None,
    ) -> None:
        """Open the memory: `memory` if given, the process's one memory of `path` otherwise.

        Args:
            user_namespace: the namespaces that are users' memories, with {user_id}, {agent_id} and
                {session_id} as whole labels.
            fields: paths of a value that are searched; None: its text field, or all of it.
            ttl: as LangGraph defines it; minutes.
        """
        super().__init__()
        self._memory = memory if memory is not None else source_of(None, path, {"model": model, "loras": loras}).open()
        self._namespaces = Namespaces(tuple(user_namespace))
        self._fields = None if fields is None else tuple(fields)
        self.ttl_config = ttl
        with _writing_guard:
            self._writing = _writing.setdefault(self._memory.bank, threading.RLock())

    @staticmethod
    def label(user_id: str) -> str:
        """Return `user_id` as a namespace label: "ana@example.org" becomes "ana@example%2Eorg"."""
        return Namespaces.label(user_id)

    # -- the two methods that a store is

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Execute operations: reads first, on the state before, then writes, the last of a key winning."""
        ops = list(ops)
        for op in ops:
            _check(op)
        results: list[Result] = [self._read(op) for op in ops]
        puts = {(op.namespace, op.key): op for op in ops if isinstance(op, PutOp)}
        if puts:
            self._write(list(puts.values()))
        return results

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Async twin of `batch`, on a thread: the event loop never waits for the disk."""
        return await asyncio.to_thread(self.batch, list(ops))

    def _read(self, op: Op) -> Result:
        if isinstance(op, GetOp):
            return self._get(op)
        if isinstance(op, SearchOp):
            return self._search(op)
        return self._list(op) if isinstance(op, ListNamespacesOp) else None

    # -- reading

    def _get(self, op: GetOp) -> Item | None:
        entry = self._entries(op.namespace).get(op.key)
        if entry is None:
            return None
        self._refresh([entry], op.refresh_ttl)
        return Item(**_fields_of(entry))

    def _search(self, op: SearchOp) -> list[SearchItem]:
        found = [
            (entry, score)
            for scope in self._scopes()
            if _under(self._namespaces.of(scope), op.namespace_prefix)
            for entry, score in self._in_scope(scope, op.query)
            if filters.matches(entry.value, op.filter)
        ]
        if op.query:
            found.sort(key=lambda pair: (-(pair[1] or 0.0), -pair[0].item.id))
        else:
            found.sort(key=lambda pair: (pair[0].item.updated_at, pair[0].item.id), reverse=True)
        page = found[op.offset : op.offset + op.limit]
        self._refresh([entry for entry, _ in page], op.refresh_ttl)
        return [SearchItem(**_fields_of(entry), score=score) for entry, score in page]

    def _in_scope(self, scope: Scope, query: str | None) -> list[tuple[_Entry, float | None]]:
        """Return a scope's entries; with a query, those that are indexed, each with its relevance."""
        entries = list(self._of_scope(scope).values())
        if not query:
            return [(entry, None) for entry in entries]
        by_id = {entry.item.id: entry for entry in entries if entry.indexed}
        found = self._memory.retriever.search(sayable(query), scope, max(1, len(entries)), floor=0.0)
        return [(by_id[item.id], item.score) for item in found if item.id in by_id]

    def _list(self, op: ListNamespacesOp) -> list[tuple[str, ...]]:
        names = {entry.namespace for scope in self._scopes() for entry in self._of_scope(scope).values()}
        for condition in op.match_conditions or ():
            names = {name for name in names if _matches(name, tuple(condition.path), condition.match_type)}
        if op.max_depth is not None:
            names = {name[: op.max_depth] for name in names}
        return sorted(names, key=".".join)[op.offset : op.offset + op.limit]

    def _scopes(self) -> list[Scope]:
        return [scope for scope in self._memory.bank.scopes() if self._namespaces.of(scope) is not None]

    def _entries(self, namespace: tuple[str, ...]) -> dict[str, _Entry]:
        entries = self._of_scope(self._namespaces.scope(namespace))
        return {key: entry for (name, key), entry in entries.items() if name == namespace}

    def _of_scope(self, scope: Scope) -> dict[tuple[tuple[str, ...], str], _Entry]:
        """Return a scope's live entries by namespace and key; of two with one key, the newer."""
        namespace = self._namespaces.of(scope) or ()
        entries = (_entry(item, namespace) for item in self._memory.bank.items(scope))
        return {(e.namespace, e.key): e for e in sorted(entries, key=lambda e: (e.item.updated_at, e.item.id))}

    # -- writing

    def _write(self, puts: Sequence[PutOp]) -> None:
        by_scope: dict[Scope, list[PutOp]] = {}
        for op in puts:
            by_scope.setdefault(self._namespaces.scope(op.namespace), []).append(op)
        with self._writing:
            for scope, ops in by_scope.items():
                self._write_scope(scope, ops)

    def _write_scope(self, scope: Scope, ops: Sequence[PutOp]) -> None:
        held = self._of_scope(scope)
        by_ttl: dict[float | None, list[Operation]] = {}
        for op in ops:
            operation = self._operation(scope, op, held.get((op.namespace, op.key)))
            if operation is not None:
                by_ttl.setdefault(op.ttl, []).append(operation)
        for ttl, operations in by_ttl.items():
            changes = self._memory.bank.apply(scope, operations, source="user", expires_at=_in(ttl))
            for change in changes:  # an ADD has its time already, in one transaction
                if change.kind is OperationKind.UPDATE and change.after is not None:
                    self._expire_in(scope, change.after, ttl)

    def _operation(self, scope: Scope, op: PutOp, old: _Entry | None) -> Operation | None:
        if op.value is None:
            return None if old is None else Operation(OperationKind.DELETE, target=old.item.id)
        value = self._memory.guard.clean_value(plain_json(dict(op.value)), scope)
        text, indexed = self._text(value, op.index), op.index is not False
        kept = {"namespace": list(op.namespace), "key": op.key, "value": value, "ttl": op.ttl, "index": indexed}
        fact = Fact(text, "user", datetime.now(timezone.utc), metadata={"langgraph": {**kept, "text": text}})
        if self._held(scope, fact, texts_in([value, op.key])):
            return None
        if old is None:
            return Operation(OperationKind.ADD, fact)
        return Operation(OperationKind.UPDATE, fact, old.item.id)

    def _held(self, scope: Scope, fact: Fact, texts: Sequence[str]) -> bool:
        """Put a value that screening catches into quarantine instead of the store; a release puts it under its key."""
        rules = self._memory.guard.rules(texts)
        if not rules:
            return False
        turn = Turn(
            fact.text, fact.speaker, scope, id=digest("store", scope.key, fact.metadata), metadata=fact.metadata
        )
        self._memory.bank.record([turn], caught=[rules])
        return not self._memory.bank.quarantine.was_released(scope, turn.id)

    def _text(self, value: dict[str, Any], index: Any) -> str:
        """Return what of a value is searched, as text."""
        paths = list(index) if isinstance(index, (list, tuple)) else self._fields
        if paths is None:
            named = [value[name] for name in _TEXTS if isinstance(value.get(name), str)]
            paths = () if named else ("$",)
            texts = named[:1] or get_text_at_path(value, "$")
        else:
            texts = [text for path in paths for text in get_text_at_path(value, path)]
        return sayable("\n".join(texts)).strip() or "(no text)"

    # -- time to live

    def _expire_in(self, scope: Scope, item: MemoryItem, minutes: float | None) -> None:
        if minutes is not None or item.expires_at is not None:
            self._memory.bank.set_expiry(scope, item.id, _in(minutes))

    def _refresh(self, entries: Sequence[_Entry], refresh: bool) -> None:
        if refresh and self.ttl_config and self.ttl_config.get("refresh_on_read", False):
            for entry in entries:
                if entry.ttl is not None:
                    self._expire_in(entry.item.scope, entry.item, entry.ttl)

    def sweep_ttl(self) -> int:
        """Delete what has expired (reads leave it out already); returns how many."""
        return self._memory.bank.expire(datetime.now(timezone.utc))


def _entry(item: MemoryItem, namespace: tuple[str, ...]) -> _Entry:
    kept = item.metadata.get("langgraph")
    if kept is None:  # learned by another door
        value = {"text": item.text, "speaker": item.speaker, "at": item.at.isoformat()}
        return _Entry(namespace, f"{_KEY}{item.id}", value, item)
    value = dict(kept["value"])
    if item.text != kept["text"]:  # corrected or updated by another door
        value[next((name for name in _TEXTS if isinstance(value.get(name), str)), "text")] = item.text
    return _Entry(tuple(kept["namespace"]), kept["key"], value, item, kept["index"], kept["ttl"])


def _fields_of(entry: _Entry) -> dict[str, Any]:
    return {
        "value": entry.value, "key": entry.key, "namespace": entry.namespace,
        "created_at": entry.item.created_at, "updated_at": entry.item.updated_at,
    }  # fmt: skip


def _in(minutes: float | None) -> datetime | None:
    return None if minutes is None else datetime.now(timezone.utc) + timedelta(minutes=minutes)


def _check(op: Op) -> None:
    """Refuse labels that LangGraph refuses: operations given to `batch` have not been looked at yet."""
    names: list[Sequence[str]]
    if isinstance(op, ListNamespacesOp):
        names = [condition.path for condition in op.match_conditions or ()]
    else:
        names = [op.namespace_prefix if isinstance(op, SearchOp) else op.namespace]
    for name in names:
        for label in name:
            if not isinstance(label, str) or not label or "." in label or "\x00" in label:
                raise InvalidNamespaceError(
                    f"{label!r} in {tuple(name)} is no label; expected text without '.' or NUL."
                )


def _under(namespace: tuple[str, ...] | None, prefix: tuple[str, ...]) -> bool:
    return namespace is not None and namespace[: len(prefix)] == tuple(prefix)


def _matches(name: tuple[str, ...], path: tuple[str, ...], match_type: str) -> bool:
    """Tell whether a namespace begins or ends with `path`; "*" is any one label, everything else is itself."""
    if len(path) > len(name):
        return False
    part = name[: len(path)] if match_type == "prefix" else name[len(name) - len(path) :]
    return all(want in ("*", label) for label, want in zip(part, path, strict=True))
