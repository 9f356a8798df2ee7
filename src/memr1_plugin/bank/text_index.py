"""Full text of one scope: which words a text counts as, and BM25 from FTS5's posting lists.

FTS5 holds the words, each with its scope's number in front ("42zberlin"), so a term's posting list is that of one
scope by itself: the filter is inside the query, and document frequencies, lengths and ranks never hear of another
tenant. FTS5's own bm25() would weigh words by everybody's texts. Stemming is FTS5's porter tokenizer, on both sides.
"""

from __future__ import annotations

import re
import sqlite3
import threading
import unicodedata
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

View = Literal["text", "context"]

K1 = 1.2
B = 0.75
"""Robertson and Zaragoza's usual BM25 parameters, and FTS5's."""

WORDS_VERSION = "1"
"""Stored in the bank: with other stop words or another `words`, its full text is built anew at the next open."""

_STOP_WORDS = """
a about after again all also am an and any are as at be because been before being but by can could d did do does
doing don down during each few for from further had has have having he her here hers him his how i if in into is it its
itself just ll m me more most my myself no nor not now of off on once only or other our ours out over own re s same she
should so some such t than that the their theirs them then there these they this those through to too under until up
ve very was we were what when where which while who whom why will with would you your yours
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
"""English words that say nothing about what a text is about; neither indexed nor searched for."""

MAX_WORD_CHARS = 40

_ASCII_WORD = re.compile(r"[a-z0-9]+")
_WORD = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+)|[^\W_]+")


def words(text: str) -> list[str]:
    """Return the words of a text that are indexed: lower case, no accents, no stop words, CJK runs as bigrams."""
    if text.isascii():
        return [word[:MAX_WORD_CHARS] for word in _ASCII_WORD.findall(text.lower()) if word not in STOP_WORDS]
    split = unicodedata.normalize("NFKD", text.casefold())
    folded = "".join(c for c in split if not unicodedata.combining(c))
    found: list[str] = []
    for match in _WORD.finditer(folded):
        word = match[0]
        if match[1] and len(word) > 1:
            found += [word[i : i + 2] for i in range(len(word) - 1)]
        elif word not in STOP_WORDS:
            found.append(word[:MAX_WORD_CHARS])
    return found


def entry(scope_id: int, found: list[str]) -> str:
    """Return what FTS5 is given for these words: each behind the number of its scope."""
    return " ".join(f"{scope_id}z{word}" for word in found)


class _Stemmer:
    """FTS5's porter tokenizer as a function: a table of one row, read back as terms."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._db.execute("CREATE VIRTUAL TABLE w USING fts5 (word, content='', tokenize='porter unicode61')")
        self._db.execute("CREATE VIRTUAL TABLE terms USING fts5vocab (w, 'instance')")

    def stem(self, word: str) -> str:
        with self._lock:
            self._db.execute("INSERT INTO w (rowid, word) VALUES (1, ?)", (f"0z{word}",))
            row = self._db.execute("SELECT term FROM terms WHERE offset = 0").fetchone()
            self._db.execute("INSERT INTO w (w) VALUES ('delete-all')")
        return str(row[0])[2:] if row else word


_stemmer: _Stemmer | None = None
_stemmer_guard = threading.Lock()


@lru_cache(maxsize=65_536)
def stem(word: str) -> str:
    """Return the word as FTS5's porter tokenizer writes it ("moving" -> "move")."""
    global _stemmer
    with _stemmer_guard:
        _stemmer = _stemmer or _Stemmer()
    return _stemmer.stem(word)


def terms(query: str) -> list[str]:
    """Return the distinct stems that a query looks for, in its order. Nothing in a query is syntax."""
    return list(dict.fromkeys(stem(word) for word in words(query)))


def add(connection: sqlite3.Connection, scope_id: int, item_id: int, context: list[str], text: list[str]) -> None:
    """Index an item's words (inside a write transaction)."""
    connection.execute(
        "INSERT INTO items_fts (rowid, context, text) VALUES (?, ?, ?)",
        (item_id, entry(scope_id, context), entry(scope_id, text)),
    )


def remove(connection: sqlite3.Connection, scope_id: int, item_id: int, context: list[str], text: list[str]) -> None:
    """Take an item's words out; they must be those that were added (inside a write transaction)."""
    connection.execute(
        "INSERT INTO items_fts (items_fts, rowid, context, text) VALUES ('delete', ?, ?, ?)",
        (item_id, entry(scope_id, context), entry(scope_id, text)),
    )


def postings(
    connection: sqlite3.Connection, scope_id: int, term: str, view: View
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the (n,) item ids that hold a stem in this scope, ascending, and how often each does."""
    # One long string a term: a fifth of the time that fetching a row per posting takes.
    only = "AND col = 'text'" if view == "text" else ""
    found = connection.execute(
        f"SELECT group_concat(doc) FROM items_words WHERE term = ? {only}", (f"{scope_id}z{term}",)
    ).fetchone()[0]
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    docs = np.fromstring(found, dtype=np.int64, sep=",")
    # FTS5 lists a term's texts in order: each starts where the number changes, which spares sorting them.
    starts = np.flatnonzero(np.concatenate(([True], docs[1:] != docs[:-1])))
    return docs[starts], np.diff(starts, append=len(docs)).astype(np.float32)


def bm25(
    connection: sqlite3.Connection,
    scope_id: int,
    query: str,
    view: View,
    ids: NDArray[np.int64],
    lengths: NDArray[np.float32],
    live: NDArray[np.bool_],
) -> NDArray[np.float32]:
    """Return (n,) scores of the scope's items for a query; 0 where no word of it occurs.

    Args:
        ids: (n,) the scope's item ids, ascending.
        lengths: (n,) words of each item in this view.
        live: (n,) whether each item is visible now; only these count in the statistics.
    """
    scores = np.zeros(len(ids), np.float32)
    n = int(np.count_nonzero(live))
    if n == 0:
        return scores
    norm = K1 * (1 - B + B * lengths / max(float(lengths[live].mean()), 1e-6))
    for term in terms(query):
        docs, tf = postings(connection, scope_id, term, view)
        at = np.searchsorted(ids, docs)
        at[at == len(ids)] = 0
        known = (ids[at] == docs) & live[at]
        at, tf = at[known], tf[known]
        if len(at):
            idf = np.log1p((n - len(at) + 0.5) / (len(at) + 0.5))
            scores[at] += idf * tf * (K1 + 1) / (tf + norm[at])
    return scores
