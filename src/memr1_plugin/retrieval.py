"""From a question to the memories that bear on it, best first, always inside one scope.

The bank finds (`bank.search_vectors`, `bank.search_text`), `ranking` says what comes first; which of them matter for
the answer is the Answer Agent's decision.
"""

from __future__ import annotations

import math
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import chain, islice

from memr1_plugin.agents.belief import in_question
from memr1_plugin.bank.bank import Bank
from memr1_plugin.bank.embedded import Embedded, embed
from memr1_plugin.bank.text_index import View, terms
from memr1_plugin.embedding import Embedder, Recent, Vectors
from memr1_plugin.errors import InputError
from memr1_plugin.ranking import (
    Candidates,
    Ranked,
    Ranking,
    best,
    named_in,
    near_best,
    ordered,
    relevance,
    share,
    without_names,
)
from memr1_plugin.settings import Settings
from memr1_plugin.types import Fact, MemoryItem, Scope, aware, clean_text

VIEWS: tuple[View, View] = ("text", "context")
DEPTH = 60
"""How deep each ranking is read, beside twice the number of memories asked for."""
FLOOR_ONE, FLOOR_GROWTH = 0.17, 0.042
"""With n candidates the best of them must reach FLOOR_ONE + FLOOR_GROWTH * ln(n), or nothing was found: the best of
many unrelated memories looks more related than the best of few. Calibrated with MiniLM between two kinds of question:
of LoCoMo's 582, 0.7 % find nothing by it, of unrelated ones ("What is the capital of France?") 96 %. Another embedder
with other cosines wants `settings.floor`."""
WEIGHED = 20
"""How many of the first candidates are weighed against that floor."""
CACHED_QUESTIONS = 512


class Retriever:
    """Ranks a bank's memories. Thread-safe; keeps the embeddings of the newest questions and nothing else."""

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
        ranked = self.ranked(query, scope, k, speaker=speaker, per_speaker=per_speaker, as_of=as_of, floor=floor)
        return [item for item, _ in ranked]

    def candidates(self, question: str, scope: Scope, k: int) -> list[MemoryItem]:
        """Return what the Answer Agent is shown: at most `k` memories, none far behind the best (`Settings.margin`).

        The fewer they are, the surer the ranking is of the first: that is what a small model cannot see for itself.
        """
        settings = self._settings
        ranked = self.ranked(question, scope, k, per_speaker=settings.per_speaker, floor=settings.floor)
        return near_best(question, ranked, settings.margin, k)

    def ranked(
        self,
        query: str,
        scope: Scope,
        k: int,
        *,
        speaker: str | None = None,
        per_speaker: int | None = None,
        as_of: datetime | None = None,
        floor: float | None = None,
        told: bool = False,
    ) -> list[Ranked]:
        """Return what `search` returns, each memory with the score by which it was ranked.

        Args:
            told: `query` is no question but something said, to be compared with what was said before.
        """
        if k < 1:
            raise InputError(f"k is {k}; expected at least 1.")
        if not re.search(r"\w", clean_text(query, "the query")):
            return []
        depth = DEPTH + 2 * k
        while True:
            found = self._as_of(query, scope, as_of) if as_of else self._find(query, scope, depth, told)
            wanted = set(terms(query))
            scored = ((item.with_score(relevance(wanted, item, found)), s) for item, s in ordered(found, query))
            weighed = list(islice(scored, WEIGHED))
            if floor is None and not _reaches_floor(weighed, len(found.items)):
                return []
            chosen = _choose(chain(weighed, scored), k, speaker, per_speaker, floor or 0.0)
            if len(chosen) == k or found.complete or (speaker is None and per_speaker is None):
                return chosen
            depth *= 4  # the quota or the speaker ate the candidates

    def look_ahead(self, facts: Sequence[Fact]) -> None:
        """Embed in one go what managing `facts` will ask for: each as a query, and as the memory it may become.

        Short texts in one batch cost one reading of the weights. Nothing is done for an embedder that keeps no vectors
        (`Recent`), and a query that turns out to name somebody else is embedded when it does.
        """
        if facts and isinstance(getattr(self._embedder, "recent", None), Recent):
            queries = [without_names(_as_query(fact), frozenset({fact.speaker})) for fact in facts]
            embed(self._embedder, [*queries, *(text for fact in facts for text in Embedded.texts_of(fact))])

    def related(self, fact: Fact, scope: Scope) -> list[MemoryItem]:
        """Return the memories that the Manager is shown beside `fact`, best first; in serving and in training.

        Those that it could not change are left out (`belief.in_question`), unless `Settings.certain` is off.
        """
        settings = self._settings
        ranked = self.ranked(_as_query(fact), scope, settings.related, floor=settings.related_floor, told=True)
        found = [item for item, _ in ranked]
        return in_question(fact, found, settings) if settings.certain else found

    def _find(self, query: str, scope: Scope, depth: int, told: bool) -> Candidates:
        """Search a scope as it is now."""
        first = self._bank.search_text(scope, query, depth, view="text")
        items = self._fetch(scope, (item_id for item_id, _ in first))
        named = named_in(query, {item.speaker for item in items.values()})
        asked = without_names(query, named)
        by_text = [
            first if view == "text" and asked == query else self._bank.search_text(scope, asked, depth, view=view)
            for view in VIEWS
        ]
        vector = embed(self._embedder, [asked])[0] if told else self._question(asked)
        by_vector = [self._bank.search_vectors(scope, vector, depth, view=view) for view in VIEWS]
        ids = dict.fromkeys(item_id for ranking in (*by_vector, *by_text) for item_id, _ in ranking)
        items |= self._fetch(scope, (i for i in ids if i not in items))
        items = {i: items[i] for i in ids if i in items}
        cosines = best(by_vector)
        return Candidates(items, [*by_vector, *by_text], cosines, named, complete=len(by_vector[0]) < depth)

    def _as_of(self, query: str, scope: Scope, at: datetime) -> Candidates:
        """Rank a scope as it was: the indexes know the present only, so the past is compared one by one."""
        items = {item.id: item for item in self._bank.items(scope, as_of=aware(at))}
        named = named_in(query, {item.speaker for item in items.values()})
        asked = without_names(query, named)
        vector = self._question(asked)
        by_vector: list[Ranking] = []
        for view in VIEWS:
            known = dict(self._bank.search_vectors(scope, vector, max(len(items), 1) * 2, view=view))
            by_vector.append(self._past_cosines(items, known, vector, scope, view))
        wanted = set(terms(asked))
        shares = [(i, share(wanted, item)) for i, item in items.items()]
        by_text = sorted((pair for pair in shares if pair[1] > 0), key=lambda pair: -pair[1])
        return Candidates(items, [*by_vector, by_text], best(by_vector), named, complete=True)

    def _past_cosines(
        self, items: dict[int, MemoryItem], known: dict[int, float], vector: Vectors, scope: Scope, view: View
    ) -> Ranking:
        """Take the cosine of every item that is unchanged since, and embed the others."""
        now = {item.id: item for item in self._bank.items(scope, ids=list(items))}
        same = {i for i, item in items.items() if i in known and _shown(item) == _shown(now.get(i))}
        others = [item for i, item in items.items() if i not in same]
        texts = [Embedded.texts_of(item)[0 if view == "text" else -1] for item in others]
        vectors = embed(self._embedder, texts) if texts else ()
        cosines = {i: known[i] for i in same}
        cosines |= {item.id: float(v @ vector) for item, v in zip(others, vectors, strict=True)}
        return sorted(cosines.items(), key=lambda pair: -pair[1])

    def _fetch(self, scope: Scope, ids: Iterable[int]) -> dict[int, MemoryItem]:
        wanted = list(ids)
        return {item.id: item for item in self._bank.items(scope, ids=wanted)} if wanted else {}

    def _question(self, query: str) -> Vectors:
        with self._lock:
            if query in self._cache:
                self._cache.move_to_end(query)
                return self._cache[query]
        vector: Vectors = embed(self._embedder, [query], questions=True)[0]
        with self._lock:
            self._cache[query] = vector
            while len(self._cache) > CACHED_QUESTIONS:
                self._cache.popitem(last=False)
        return vector


def _as_query(fact: Fact) -> str:
    return f"{fact.speaker}: {fact.text}"


def _shown(item: MemoryItem | None) -> tuple[str, str, str] | None:
    return None if item is None else (item.speaker, item.text, item.context)


def _reaches_floor(weighed: Sequence[Ranked], n: int) -> bool:
    best = max((item.score or 0.0 for item, _ in weighed), default=0.0)
    return n > 0 and best >= FLOOR_ONE + FLOOR_GROWTH * math.log(n)


_FILLERS = {"a", "an", "the", "so", "really", "very", "just", "also", "too"}


def _same_words(item: MemoryItem) -> tuple[str, ...]:
    """The key under which near-duplicates collapse. Numbers, dates and "not" tell memories apart."""
    said = re.findall(r"\w+(?:['\u2019]\w+)?", item.text.casefold())
    return (item.speaker.casefold(), *(w for w in said if w not in _FILLERS))


def _choose(
    ranked: Iterable[Ranked], k: int, speaker: str | None, per_speaker: int | None, floor: float
) -> list[Ranked]:
    """Take the first `k` that the filters let through; of near-duplicates the newest, in the place of the first."""
    chosen: dict[tuple[str, ...], Ranked] = {}
    said: Counter[str] = Counter()
    for item, score in ranked:
        key = _same_words(item)
        if (item.score or 0.0) < floor or (speaker is not None and item.speaker.casefold() != speaker.casefold()):
            continue
        if key in chosen:
            first, place = chosen[key]
            chosen[key] = max(first, item, key=lambda one: (one.at, one.id)), place
        elif per_speaker is None or said[item.speaker] < per_speaker:
            if len(chosen) == k:
                break
            chosen[key] = item, score
            said[item.speaker] += 1
    return list(chosen.values())
