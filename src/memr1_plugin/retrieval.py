"""From a question to the memories that bear on it, best first, always inside one scope.

The bank finds (`bank.search_vectors`, `bank.search_text`), this file ranks; which of them matter for the answer is the
Answer Agent's decision. Four rankings (embeddings and BM25, each over what was said and over that with the turn before
it) are fused by reciprocal rank (Cormack et al., SIGIR 2009), then three cheap things that a dialogue offers are added:
who is asked about, what else was said in the same sitting, and the month that the question names.

The constants were chosen on LoCoMo's conv-26 and conv-30 (231 questions) with all-MiniLM-L6-v2; each is at a broad
optimum, and `benchmarks/retrieval.py` measures them and every part alone.
"""

from __future__ import annotations

import math
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain, islice

from memr1_plugin.agents.belief import bears_on
from memr1_plugin.bank.bank import Bank
from memr1_plugin.bank.embedded import embed
from memr1_plugin.bank.text_index import View, stem, terms, words
from memr1_plugin.dates import MONTHS
from memr1_plugin.embedding import Embedder, Vectors
from memr1_plugin.errors import InputError
from memr1_plugin.settings import Settings
from memr1_plugin.types import Fact, MemoryItem, Scope, aware, clean_text

VIEWS: tuple[View, View] = ("text", "context")
RANK_K = 5
"""Reciprocal rank fusion adds K / (K + rank): a small K trusts the first places."""
DEPTH = 60
"""How deep each ranking is read, beside twice the number of memories asked for."""
SPEAKER_BONUS = 0.3
"""For what was said by the one speaker whom the question names; fused scores are in [0, 1]."""
SITTING_BONUS = 0.5
"""Times the mean of the best three scores of the same sitting: evidence comes in clusters."""
SITTING_GAP = timedelta(hours=3)
"""A longer silence begins another sitting."""
DATE_BONUS = 0.1
"""For what was said in, or speaks of, the month that the question names; twice that for the day."""
FLOOR_ONE, FLOOR_GROWTH = 0.18, 0.042
"""With n candidates the best of them must reach FLOOR_ONE + FLOOR_GROWTH * ln(n), or nothing was found: the best of
many unrelated memories looks more related than the best of few. Calibrated with MiniLM between two kinds of question:
of LoCoMo's 582, 0.3 % find nothing by it, of unrelated ones ("What is the capital of France?") 94 %. Another embedder
with other cosines wants `settings.floor`."""
WEIGHED = 20
"""How many of the first candidates are weighed against that floor."""
CACHED_QUERIES = 512

Ranking = list[tuple[int, float]]
"""(item id, score), best first."""


@dataclass(frozen=True)
class _Found:
    """What the searches came back with: candidates, their rankings, and whom the query names."""

    items: dict[int, MemoryItem]
    rankings: list[Ranking]
    cosines: dict[int, float]
    """The better cosine of the two views."""
    named: frozenset[str]
    complete: bool
    """False when reading deeper could find more."""


class Retriever:
    """Ranks a bank's memories. Thread-safe; keeps the embeddings of the newest queries and nothing else."""

    def __init__(self, bank: Bank, embedder: Embedder, settings: Settings) -> None:
        self._bank = bank
        self._embedder = embedder
        self._settings = settings
        self._cache: OrderedDict[str, Vectors] = OrderedDict()
        self._lock = threading.Lock()

    def search(
        self,
        query: str,
        scope: Scope,
        k: int,
        *,
        speaker: str | None = None,
        per_speaker: int | None = None,
        as_of: datetime | None = None,
        floor: float | None = None,
    ) -> list[MemoryItem]:
        """Return at most `k` memories of `scope`, best first; none if nothing in it has to do with `query`.

        The order is that of the fused rankings; ``score`` is the relevance in [0, 1] of each by itself, so it need not
        fall from one to the next.

        Args:
            speaker: only what this speaker said.
            per_speaker: at most so many of one speaker (the paper: 30 of each of two).
            as_of: the memories as they stood after all that had been said by then.
            floor: only memories of at least this relevance. None: the calibrated rule, which asks it of the best
                one only, because evidence often shares no word with its question.
        """
        if k < 1:
            raise InputError(f"k is {k}; expected at least 1.")
        if not re.search(r"\w", clean_text(query, "the query")):
            return []
        depth = DEPTH + 2 * k
        while True:
            found = self._as_of(query, scope, as_of) if as_of else self._find(query, scope, depth)
            ranked = _order(found, query)
            wanted = set(terms(query))
            scored = (item.with_score(_relevance(wanted, item, found)) for item in ranked)
            weighed = list(islice(scored, WEIGHED))
            if floor is None and not _reaches_floor(weighed, len(found.items)):
                return []
            chosen = _choose(chain(weighed, scored), k, speaker, per_speaker, floor or 0.0)
            if len(chosen) == k or found.complete or (speaker is None and per_speaker is None):
                return chosen
            depth *= 4  # the quota or the speaker ate the candidates

    def related(self, fact: Fact, scope: Scope) -> list[MemoryItem]:
        """Return the memories that the Manager is shown beside `fact`, best first; in serving and in training.

        Those that it could not change are left out (`belief.bears_on`), unless `Settings.certain` is off.
        """
        settings = self._settings
        found = self.search(f"{fact.speaker}: {fact.text}", scope, settings.related, floor=settings.related_floor)
        return [item for item in found if bears_on(fact, item, settings)] if settings.certain else found

    def _find(self, query: str, scope: Scope, depth: int) -> _Found:
        """Search a scope as it is now."""
        first = self._bank.search_text(scope, query, depth, view="text")
        items = self._fetch(scope, (item_id for item_id, _ in first))
        named = _named(query, {item.speaker for item in items.values()})
        asked = _without(query, named)
        by_text = [
            first if view == "text" and asked == query else self._bank.search_text(scope, asked, depth, view=view)
            for view in VIEWS
        ]
        vector = self._embed(asked)
        by_vector = [self._bank.search_vectors(scope, vector, depth, view=view) for view in VIEWS]
        ids = dict.fromkeys(item_id for ranking in (*by_vector, *by_text) for item_id, _ in ranking)
        items |= self._fetch(scope, (i for i in ids if i not in items))
        items = {i: items[i] for i in ids if i in items}
        cosines = _best(by_vector)
        return _Found(items, [*by_vector, *by_text], cosines, named, complete=len(by_vector[0]) < depth)

    def _as_of(self, query: str, scope: Scope, at: datetime) -> _Found:
        """Rank a scope as it was: the indexes know the present only, so the past is compared one by one."""
        items = {item.id: item for item in self._bank.items(scope, as_of=aware(at))}
        named = _named(query, {item.speaker for item in items.values()})
        asked = _without(query, named)
        vector = self._embed(asked)
        by_vector: list[Ranking] = []
        for view in VIEWS:
            known = dict(self._bank.search_vectors(scope, vector, max(len(items), 1) * 2, view=view))
            by_vector.append(self._past_cosines(items, known, vector, scope, view))
        wanted = set(terms(asked))
        shares = [(i, _share(wanted, item)) for i, item in items.items()]
        by_text = sorted((pair for pair in shares if pair[1] > 0), key=lambda pair: -pair[1])
        return _Found(items, [*by_vector, by_text], _best(by_vector), named, complete=True)

    def _past_cosines(
        self, items: dict[int, MemoryItem], known: dict[int, float], vector: Vectors, scope: Scope, view: View
    ) -> Ranking:
        """Take the cosine of every item that is unchanged since, and embed the others."""
        now = {item.id: item for item in self._bank.items(scope, ids=list(items))}
        same = {i for i, item in items.items() if i in known and _shown(item) == _shown(now.get(i))}
        others = [item for i, item in items.items() if i not in same]
        vectors = embed(self._embedder, [_view(item, view) for item in others]) if others else ()
        cosines = {i: known[i] for i in same}
        cosines |= {item.id: float(v @ vector) for item, v in zip(others, vectors, strict=True)}
        return sorted(cosines.items(), key=lambda pair: -pair[1])

    def _fetch(self, scope: Scope, ids: Iterable[int]) -> dict[int, MemoryItem]:
        wanted = list(ids)
        return {item.id: item for item in self._bank.items(scope, ids=wanted)} if wanted else {}

    def _embed(self, query: str) -> Vectors:
        with self._lock:
            if query in self._cache:
                self._cache.move_to_end(query)
                return self._cache[query]
        vector: Vectors = embed(self._embedder, [query])[0]
        with self._lock:
            self._cache[query] = vector
            while len(self._cache) > CACHED_QUERIES:
                self._cache.popitem(last=False)
        return vector


def _view(item: MemoryItem, view: View) -> str:
    said = f"{item.speaker}: {item.text}"
    return f"{item.context} {said}".strip() if view == "context" else said


def _shown(item: MemoryItem | None) -> tuple[str, str, str] | None:
    return None if item is None else (item.speaker, item.text, item.context)


def _best(rankings: Sequence[Ranking]) -> dict[int, float]:
    """Return the best score of each id over all rankings."""
    best: dict[int, float] = {}
    for ranking in rankings:
        for item_id, score in ranking:
            best[item_id] = max(score, best.get(item_id, -1.0))
    return best


def _named(query: str, speakers: Iterable[str]) -> frozenset[str]:
    """Return the speakers whom a query names, by any word of their name.

    "Will" and "Mark" are words too: in a query that has capitals, a name must have its own.
    """
    lower = query == query.lower()
    asked = {w.lower() for w in re.findall(r"\w+", query) if lower or w[0].isupper()}
    return frozenset(s for s in speakers if asked & set(re.findall(r"\w+", s.lower())))


def _without(query: str, named: frozenset[str]) -> str:
    """Take the speakers' names out of a query, unless nothing is left.

    A name at the head of every second memory says who spoke, not what about: an embedding that holds it finds
    speakers. Taking it out lifts recall at 10 of the embedding alone from 0.50 to 0.68.
    """
    names = {word for name in named for word in re.findall(r"\w+", name)}
    if not names:
        return query
    pattern = rf"\b(?:{'|'.join(map(re.escape, names))})\b(?:['\u2019]s)?"
    rest = " ".join(re.sub(pattern, "", query, flags=re.IGNORECASE).split())
    return rest if re.search(r"\w", rest) else query


def _order(found: _Found, query: str) -> list[MemoryItem]:
    """Sort the candidates by fused rank and bonuses; of equals, the newest first."""
    scores = dict.fromkeys(found.items, 0.0)
    for ranking in found.rankings:
        for item_id, rank in _ranks(ranking):
            if item_id in scores:
                scores[item_id] += RANK_K / (RANK_K + rank) / len(found.rankings)
    if len(found.named) == 1:
        for item_id, item in found.items.items():
            scores[item_id] += SPEAKER_BONUS * (item.speaker in found.named)
    bonuses = _sitting_bonuses(found.items.values(), scores)
    asked = _dates(query)
    for item_id, item in found.items.items():
        scores[item_id] += bonuses[item_id] + DATE_BONUS * _matches(item, asked)
    newest = sorted(found.items.values(), key=lambda item: (item.at, item.id), reverse=True)
    return sorted(newest, key=lambda item: round(scores[item.id], 6), reverse=True)


def _ranks(ranking: Ranking) -> Iterator[tuple[int, int]]:
    """Yield (item id, rank) from rank 0; equal scores share a rank, so that recency can decide between them."""
    rank, last = 0, math.inf
    for place, (item_id, score) in enumerate(ranking):
        if last - score > 1e-5:
            rank, last = place, score
        yield item_id, rank


def _sitting_bonuses(items: Iterable[MemoryItem], scores: dict[int, float]) -> dict[int, float]:
    """Return for each item what its sitting adds."""
    sittings: list[list[MemoryItem]] = []
    for item in sorted(items, key=lambda item: item.at):
        if sittings and item.at - sittings[-1][-1].at <= SITTING_GAP:
            sittings[-1].append(item)
        else:
            sittings.append([item])
    bonuses: dict[int, float] = {}
    for sitting in sittings:
        best = sorted((scores[item.id] for item in sitting), reverse=True)[:3]
        bonuses |= dict.fromkeys((item.id for item in sitting), SITTING_BONUS * sum(best) / 3)
    return bonuses


_MONTH = rf"(?P<month>{'|'.join(MONTHS)})"
_DATE = re.compile(
    rf"\b(?:(?P<day>\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?)?{_MONTH}"
    r"(?:\s+(?P<day_after>\d{1,2})(?:st|nd|rd|th)?\b)?(?:,?\s+(?P<year>\d{4}))?"
)


def _dates(query: str) -> list[tuple[int, int | None, int | None]]:
    """Return (month, day, year) of each date that a query names; months need their capital ("may", "march")."""
    return [
        (MONTHS.index(m["month"]) + 1, int(day) if (day := m["day"] or m["day_after"]) else None,
         int(m["year"]) if m["year"] else None)
        for m in _DATE.finditer(query)
    ]  # fmt: skip


def _matches(item: MemoryItem, asked: Sequence[tuple[int, int | None, int | None]]) -> int:
    """Return 2 when an item was said on a day asked for or speaks of it, 1 for the month, 0 otherwise."""
    best = 0
    for month, day, year in asked:
        if year is None or year == item.at.year:
            month_fits = item.at.month == month or MONTHS[month - 1] in item.text
            day_fits = day is not None and ((item.at.month, item.at.day) == (month, day)
                                            or f"{day} {MONTHS[month - 1]}" in item.text)  # fmt: skip
            best = max(best, month_fits + (month_fits and day_fits))
    return best


def _share(wanted: set[str], item: MemoryItem) -> float:
    """Return the share of the wanted stems that an item, or the turn before it, has."""
    return len(wanted & {stem(w) for w in words(_view(item, "context"))}) / len(wanted) if wanted else 0.0


def _relevance(wanted: set[str], item: MemoryItem, found: _Found) -> float:
    """Return 1 - (1 - cosine) * (1 - share / 2), in [0, 1]: either can speak for an item, both do so louder."""
    cosine = found.cosines.get(item.id, 0.0)
    share = _share(wanted, item)
    return min(1.0, max(0.0, 1 - (1 - max(cosine, 0.0)) * (1 - share / 2)))


def _reaches_floor(weighed: Sequence[MemoryItem], n: int) -> bool:
    best = max((item.score or 0.0 for item in weighed), default=0.0)
    return n > 0 and best >= FLOOR_ONE + FLOOR_GROWTH * math.log(n)


_FILLERS = {"a", "an", "the", "so", "really", "very", "just", "also", "too"}


def _same_words(item: MemoryItem) -> tuple[str, ...]:
    """The key under which near-duplicates collapse. Numbers, dates and "not" tell memories apart."""
    said = re.findall(r"\w+(?:['\u2019]\w+)?", item.text.casefold())
    return (item.speaker.casefold(), *(w for w in said if w not in _FILLERS))


def _choose(
    ranked: Iterable[MemoryItem], k: int, speaker: str | None, per_speaker: int | None, floor: float
) -> list[MemoryItem]:
    """Take the first `k` that the filters let through; of near-duplicates the newest, in the place of the first."""
    chosen: dict[tuple[str, ...], MemoryItem] = {}
    said: Counter[str] = Counter()
    for item in ranked:
        key = _same_words(item)
        if (item.score or 0.0) < floor or (speaker is not None and item.speaker.casefold() != speaker.casefold()):
            continue
        if key in chosen:
            chosen[key] = max(chosen[key], item, key=lambda one: (one.at, one.id))
        elif per_speaker is None or said[item.speaker] < per_speaker:
            if len(chosen) == k:
                break
            chosen[key] = item
            said[item.speaker] += 1
    return list(chosen.values())
