"""Erasing for good: the rows of an item or a scope, whatever quotes them, and the bytes they leave in the files.

The one thing in the bank that destroys. Not here: tombstones (`applying`). SQLite keeps deleted bytes in free pages
and FTS5 keeps words in old segments, so after the rows are gone the segments are merged and the file is written anew.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from memr1_plugin.bank import text_index
from memr1_plugin.bank.index_files import forget_mark
from memr1_plugin.bank.rows import marks
from memr1_plugin.bank.store import Store
from memr1_plugin.errors import UnknownItemError
from memr1_plugin.types import Scope

_QUOTE_CHARS = 4
"""Shortest text that is searched for inside other rows; "ok" stands in everything."""


@dataclass(frozen=True)
class Forgotten:
    """How much was erased."""

    items: int = 0
    changes: int = 0
    turns: int = 0
    feedback: int = 0


def forget_scope(connection: sqlite3.Connection, scope_id: int | None) -> Forgotten:
    """Delete all rows of a scope, its name too."""
    if scope_id is None:
        return Forgotten()
    for row in connection.execute(
        "SELECT id, speaker, text, context FROM items WHERE scope_id = ? AND deleted = 0", (scope_id,)
    ).fetchall():
        _remove_words(connection, scope_id, *row)
    gone = {}
    for table in ("changes", "rejections", "feedback", "quarantine", "turns", "items"):
        gone[table] = connection.execute(f"DELETE FROM {table} WHERE scope_id = ?", (scope_id,)).rowcount
    connection.execute("DELETE FROM scopes WHERE id = ?", (scope_id,))
    forget_mark(connection, scope_id)
    leave_note(connection)
    return Forgotten(gone["items"], gone["changes"], gone["turns"], gone["feedback"])


def forget_item(connection: sqlite3.Connection, scope: Scope, scope_id: int | None, item_id: int) -> Forgotten:
    """Delete an item's rows, the turns it came from, and what quotes either."""
    row = connection.execute(
        "SELECT speaker, text, context, deleted, turn_ids FROM items WHERE scope_id = ? AND id = ?", (scope_id, item_id)
    ).fetchone()
    if row is None or scope_id is None:
        raise UnknownItemError(f"the scope {scope.key} holds no memory item {item_id}. `items` lists what it holds.")
    speaker, text, context, deleted, own_turns = row
    if not deleted:
        _remove_words(connection, scope_id, item_id, speaker, text, context)
    images = _images(connection, scope_id, item_id)
    turn_ids = {*json.loads(own_turns), *(turn for image in images for turn in image["turn_ids"])}
    turn_ids |= _turns_of_changes(connection, scope_id, item_id)
    changes = connection.execute("DELETE FROM changes WHERE scope_id = ? AND item_id = ?", (scope_id, item_id)).rowcount
    connection.execute("DELETE FROM items WHERE id = ?", (item_id,))
    turn_ids |= _quoting_turns(connection, scope_id, {text, *(image["text"] for image in images)}, turn_ids)
    said, followers = _erase_turns(connection, scope_id, turn_ids)
    texts = {t for t in (text, *said, *(image["text"] for image in images)) if len(t) >= _QUOTE_CHARS}
    connection.execute("UPDATE scopes SET version = version + 1, epoch = epoch + 1 WHERE id = ?", (scope_id,))
    _scrub_contexts(connection, scope_id, texts, followers)
    _scrub_rejections(connection, scope_id, texts, turn_ids)
    feedback = _scrub_feedback(connection, scope_id, texts, item_id)
    leave_note(connection)
    return Forgotten(1, changes, len(said), feedback)


def _remove_words(
    connection: sqlite3.Connection, scope_id: int, item_id: int, speaker: str, text: str, context: str
) -> None:
    own = text_index.words(f"{speaker}: {text}")
    text_index.remove(connection, scope_id, item_id, text_index.words(context), own)


def _images(connection: sqlite3.Connection, scope_id: int, item_id: int) -> list[dict[str, Any]]:
    rows = connection.execute(
        "SELECT before, after FROM changes WHERE scope_id = ? AND item_id = ?", (scope_id, item_id)
    )
    return [json.loads(image) for row in rows for image in row if image]


def _turns_of_changes(connection: sqlite3.Connection, scope_id: int, item_id: int) -> set[str]:
    rows = connection.execute(
        "SELECT turn_id FROM changes WHERE scope_id = ? AND item_id = ? AND turn_id != ''", (scope_id, item_id)
    )
    return {turn_id for (turn_id,) in rows}


def _quoting_turns(connection: sqlite3.Connection, scope_id: int, texts: set[str], own: set[str]) -> set[str]:
    """Return the ids of other turns that say an erased text: told twice (which made no second item), or said back.

    A turn that another memory comes from stays: forgetting one memory forgets no other, and that one says it too.
    """
    said = [
        folded
        for text in (*texts, *_texts_of_turns(connection, scope_id, own))
        if len(folded := _folded(text)) >= _QUOTE_CHARS
    ]
    sources = {
        turn_id
        for (ids,) in connection.execute("SELECT turn_ids FROM items WHERE scope_id = ?", (scope_id,))
        for turn_id in json.loads(ids)
    }
    rows = connection.execute("SELECT id, text FROM turns WHERE scope_id = ?", (scope_id,))
    return {turn_id for turn_id, text in rows if turn_id not in sources and any(one in _folded(text) for one in said)}


def _texts_of_turns(connection: sqlite3.Connection, scope_id: int, turn_ids: Iterable[str]) -> list[str]:
    query = "SELECT text FROM turns WHERE scope_id = ? AND id = ?"
    rows = [connection.execute(query, (scope_id, turn_id)).fetchone() for turn_id in turn_ids]
    return [row[0] for row in rows if row]


def _folded(text: str) -> str:
    """A text as the Manager compares duplicates: white space and case do not count."""
    return " ".join(text.split()).casefold()


def _erase_turns(connection: sqlite3.Connection, scope_id: int, turn_ids: Iterable[str]) -> tuple[list[str], set[str]]:
    """Delete turns; return their texts, and the ids of the turns after them, whose context quotes them."""
    said, followers = [], set()
    for turn_id in turn_ids:
        row = connection.execute(
            "SELECT seq, session, text FROM turns WHERE scope_id = ? AND id = ?", (scope_id, turn_id)
        ).fetchone()
        if row is None:
            continue
        after = connection.execute(
            "SELECT id FROM turns WHERE scope_id = ? AND session = ? AND seq > ? ORDER BY seq LIMIT 1",
            (scope_id, row[1], row[0]),
        ).fetchone()
        said.append(row[2])
        followers |= {after[0]} if after else set()
    for turn_id in turn_ids:
        connection.execute("DELETE FROM turns WHERE scope_id = ? AND id = ?", (scope_id, turn_id))
        connection.execute("DELETE FROM quarantine WHERE scope_id = ? AND turn_id = ?", (scope_id, turn_id))
    return said, followers


def _quotes(context: str, turn_ids: Iterable[str], texts: set[str], followers: set[str]) -> bool:
    return bool(context) and (not followers.isdisjoint(turn_ids) or any(text in context for text in texts))


def _scrub_contexts(connection: sqlite3.Connection, scope_id: int, texts: set[str], followers: set[str]) -> None:
    """Take the erased turns out of the contexts of the items that followed them, and of those items' history."""
    rows = connection.execute(
        "SELECT id, speaker, text, context, deleted, turn_ids FROM items WHERE scope_id = ? AND context != ''",
        (scope_id,),
    ).fetchall()
    for item_id, speaker, text, context, deleted, turn_ids in rows:
        if not _quotes(context, json.loads(turn_ids), texts, followers):
            continue
        if not deleted:
            _remove_words(connection, scope_id, item_id, speaker, text, context)
            text_index.add(connection, scope_id, item_id, [], text_index.words(f"{speaker}: {text}"))
        connection.execute("UPDATE items SET context = '', n_context = 0 WHERE id = ?", (item_id,))
        connection.execute("UPDATE item_vectors SET context = NULL WHERE item_id = ?", (item_id,))
    images = connection.execute("SELECT id, before, after FROM changes WHERE scope_id = ?", (scope_id,)).fetchall()
    for change_id, *pair in images:
        scrubbed = [_scrub_image(image, texts, followers) for image in pair]
        if scrubbed != pair:
            connection.execute("UPDATE changes SET before = ?, after = ? WHERE id = ?", (*scrubbed, change_id))


def _scrub_image(image: str | None, texts: set[str], followers: set[str]) -> str | None:
    data = json.loads(image) if image else {}
    if not _quotes(data.get("context", ""), data.get("turn_ids", ()), texts, followers):
        return image
    return json.dumps({**data, "context": ""}, ensure_ascii=False)


def _scrub_rejections(connection: sqlite3.Connection, scope_id: int, texts: set[str], turn_ids: set[str]) -> None:
    """Blank the lines that a model wrote about the erased; that they were rejected stays counted."""
    rows = connection.execute("SELECT id, turn_id, line FROM rejections WHERE scope_id = ?", (scope_id,)).fetchall()
    about = [row_id for row_id, turn_id, line in rows if turn_id in turn_ids or any(text in line for text in texts)]
    for start in range(0, len(about), 500):
        part = about[start : start + 500]
        connection.execute(f"UPDATE rejections SET line = '' WHERE id IN ({marks(part)})", part)


def _scrub_feedback(connection: sqlite3.Connection, scope_id: int, texts: set[str], item_id: int) -> int:
    rows = connection.execute("SELECT id, answer, correct FROM feedback WHERE scope_id = ?", (scope_id,)).fetchall()
    gone = 0
    for row_id, answer, correct in rows:
        data = json.loads(answer)
        shown = item_id in {item["id"] for item in data["items"]}
        said = f"{correct}\n{data['question']}\n{data['text']}\n" + "\n".join(i["context"] for i in data["items"])
        if shown or any(text in said for text in texts):
            gone += connection.execute("DELETE FROM feedback WHERE id = ?", (row_id,)).rowcount
    return gone


def leave_note(connection: sqlite3.Connection) -> None:
    """Say in the file that its bytes are to be wiped, should this process not live to do it."""
    connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('wipe', 'pending')")


def wipe_pending(store: Store) -> bool:
    """True if a process erased rows and did not live to clean the files."""
    with store.reading() as connection:
        return connection.execute("SELECT 1 FROM meta WHERE key = 'wipe'").fetchone() is not None


def wipe(store: Store) -> None:
    """Leave no byte of deleted rows in the file, its write-ahead log or the full-text segments."""
    with store.writing() as connection:
        connection.execute("INSERT INTO items_fts (items_fts) VALUES ('optimize')")
    with store.outside_transaction() as connection:
        connection.execute("VACUUM")
    store.truncate_wal()
    with store.writing() as connection:
        connection.execute("DELETE FROM meta WHERE key = 'wipe'")
