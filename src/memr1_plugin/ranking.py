"""Which of the memories that a search found come first.

Four rankings (embeddings and BM25, each over what was said and over that with the turn before it) are fused by
reciprocal rank (Cormack et al., SIGIR 2009). Ranks forget by how much one is better than the next, so the cosine itself
and the share of the question's words that a memory has, rare words more, are added. Then four cheap things that a
dialogue offers: who is asked about, what else was said in the same sitting, the month that the question names, and
whether a "when" meets a time and a "how many" a number.

The constants were chosen on LoCoMo's conv-26 and conv-30 (231 questions) with all-MiniLM-L6-v2: fitted to either by
gradient they come out alike, and each is at a broad optimum. `benchmarks/retrieval.py` measures them and every part
alone.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from memr1_plugin.bank.embedded import Embedded
from memr1_plugin.bank.text_index import stem, terms, words
from memr1_plugin.dates import MONTHS, WEEKDAYS
from memr1_plugin.types import MemoryItem

RANK_K = 5
"""Reciprocal rank fusion adds K / (K + rank): a small K trusts the first places. The sum is in [0, 1]."""
COSINE_WEIGHT = 2.0
"""Times the better cosine of the two views."""
COVERAGE_BONUS = 1.0
"""For a memory that has, with the turn before it, every word of the question; rare words count more."""
SPEAKER_BONUS = 1.0
"""For what was said by the one speaker whom the question names."""
SITTING_BONUS = 0.75
"""Times the mean of the best three scores of the same sitting: evidence comes in clusters."""
SITTING_GAP = timedelta(hours=3)
"""A longer silence begins another sitting."""
DATE_BONUS = 0.5
"""For what was said in, or speaks of, the month that the question names; twice that for the day."""
KIND_BONUS = 0.5
"""For a time where the question is "when", for a number where it is "how many"."""

SEVERAL_MARGIN = 2.0
"""Times the margin, where the question asks for several things: their memories lie further apart."""

Ranking = list[tuple[int, float]]
"""(item id, score), best first."""
Ranked = tuple[MemoryItem, float]
"""A memory, and the score by which it was ranked: comparable within a question only."""


@dataclass(frozen=True)
class Candidates:
    """What the searches came back with: memories, their rankings, and whom the query names."""

    items: dict[int, MemoryItem]
    rankings: list[Ranking]
    cosines: dict[int, float]
    """The better cosine of the two views."""
    named: frozenset[str]
    complete: bool
    """False when reading deeper could find more."""


def ordered(found: Candidates, query: str) -> list[Ranked]:
    """Sort the candidates, best first, each with its score; of equals, the newest first."""
    scores = _fused(found)
    covered = _coverage(found.items.values(), terms(without_names(query, found.named)))
    unseen = min(found.cosines.values(), default=0.0)  # found by its words alone: no nearer than the last one
    for item_id, item in found.items.items():
        scores[item_id] += COSINE_WEIGHT * found.cosines.get(item_id, unseen) + COVERAGE_BONUS * covered[item_id]
        scores[item_id] += SPEAKER_BONUS * (len(found.named) == 1 and item.speaker in found.named)
    sittings = _sitting_bonuses(found.items.values(), scores)
    dates, given = _dates(query), [gives for asks, gives in _KINDS if asks.search(query)]
    for item_id, item in found.items.items():
        scores[item_id] += sittings[item_id] + DATE_BONUS * _matches(item, dates)
        scores[item_id] += KIND_BONUS * any(gives.search(item.text) for gives in given)
    newest = sorted(found.items.values(), key=lambda item: (item.at, item.id), reverse=True)
    best_first = sorted(newest, key=lambda item: round(scores[item.id], 6), reverse=True)
    return [(item, scores[item.id]) for item in best_first]


def near_best(question: str, ranked: Sequence[Ranked], margin: float | None, k: int) -> list[MemoryItem]:
    """Return the first memories, down to `margin` below the score of the best; further where several are asked for.

    All of them if the margin is None, or if they are fewer than the `k` that were looked for: a bank that small is read
    whole, and its scores say little.
    """
    if margin is None or len(ranked) < k:
        return [item for item, _ in ranked]
    reach = margin * (SEVERAL_MARGIN if asks_for_several(question) else 1.0)
    return [item for item, score in ranked if ranked[0][1] - score <= reach]


def asks_for_several(question: str) -> bool:
    """Whether an English question is likely answered by several memories: "Which books ...", "What has she ...".

    Of 385 such questions among 1,559 written for this project it knows 227, and takes 24 others for one.
    """
    return any(form.search(question) for form in (_PERFECT, _PLURAL, _BOTH))


_PERFECT = re.compile(
    r"^(?:(?:in|for|with) )?(?:what|which|where|who|whom|whose|how)\b(?!.*\b(?:do|does|did)\b)"
    r".*?\b(?:has|have) (?!to )",
    re.I,
)
"""The perfect looks back over all that was said."""
_PLURAL = re.compile(
    r"^(?:(?:in|at|on) )?(?:what|which|whose|how many)(?: [\w'-]+){0,3}? (?:[\w'-]*[^s'\W]s|people|children|men|women)"
    r"(?: of(?: [\w'-]+){1,3}?)? (?:do|does|did|have|had|are|were|can|could|would|will|might)\b",
    re.I,
)
_BOTH = re.compile(r"\bboth\b|\bin common\b|^how many (?:times|different)\b", re.I)


def relevance(wanted: set[str], item: MemoryItem, found: Candidates) -> float:
    """Return 1 - (1 - cosine) * (1 - share / 2), in [0, 1]: either can speak for an item, both do so louder."""
    cosine = found.cosines.get(item.id, 0.0)
    return min(1.0, max(0.0, 1 - (1 - max(cosine, 0.0)) * (1 - share(wanted, item) / 2)))


def share(wanted: set[str], item: MemoryItem) -> float:
    """Return the share of the wanted stems that an item, or the turn before it, has."""
    return len(wanted & _stems(item)) / len(wanted) if wanted else 0.0


def best(rankings: Sequence[Ranking]) -> dict[int, float]:
    """Return the best score of each id over all rankings."""
    best: dict[int, float] = {}
    for ranking in rankings:
        for item_id, score in ranking:
            best[item_id] = max(score, best.get(item_id, -1.0))
    return best


def named_in(query: str, speakers: Iterable[str]) -> frozenset[str]:
    """Return the speakers whom a query names, by any word of their name.

    "Will" and "Mark" are words too: in a query that has capitals, a name must have its own.
    """
    lower = query == query.lower()
    asked = {w.lower() for w in re.findall(r"\w+", query) if lower or w[0].isupper()}
    return frozenset(s for s in speakers if asked & set(re.findall(r"\w+", s.lower())))


def without_names(query: str, named: frozenset[str]) -> str:
    """Take the speakers' names out of a query, unless nothing is left.

    A name at the head of every second memory says who spoke, not what about: an embedding that holds it finds
    speakers. Taking it out lifts recall at 10 of the embedding alone from 0.50 to 0.68.
    """
    names = {word for name in named for word in re.findall(r"\w+", name)}
    if not names:
        return query
    pattern = rf"\b(?:{'|'.join(map(re.escape, names))})\b(?:['\u2019]s)?"
    rest = " ".join(re.sub(pattern, "", query, flags=re.I).split())
    return rest if re.search(r"\w", rest) else query


def _fused(found: Candidates) -> dict[int, float]:
    scores = dict.fromkeys(found.items, 0.0)
    for ranking in found.rankings:
        for item_id, rank in _ranks(ranking):
            if item_id in scores:
                scores[item_id] += RANK_K / (RANK_K + rank) / len(found.rankings)
    return scores


def _stems(item: MemoryItem) -> set[str]:
    return {stem(word) for word in set(words(Embedded.texts_of(item)[-1]))}


def _coverage(items: Iterable[MemoryItem], wanted: Sequence[str]) -> dict[int, float]:
    """Return the share of the wanted stems that each item has, each stem weighed by how few of the items have it."""
    has = {item.id: _stems(item).intersection(wanted) for item in items}
    frequency = Counter(word for found in has.values() for word in found)
    weights = {word: math.log((len(has) + 1) / (frequency[word] + 0.5)) for word in wanted}
    total = sum(weights.values())
    return {item_id: sum(weights[word] for word in found) / total if total else 0.0 for item_id, found in has.items()}


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


_TIMES = rf"""\b(?:today|tonight|yesterday|tomorrow|last|next|ago|recently|weeks?|weekend|months?|years?|\d{{4}}
    |{"|".join((*MONTHS, *WEEKDAYS))})\b"""
_NUMBERS = r"\b(?:\d+|two|three|four|five|six|seven|eight|nine|ten|once|twice|couple|several|few|many)\b"
_KINDS = (
    (re.compile(r"^\W*when\b|\bwhat\s+(?:date|day|month|year)\b", re.I), re.compile(_TIMES, re.I | re.X)),
    (re.compile(r"\bhow\s+(?:many|much|often|long)\b", re.I), re.compile(_NUMBERS, re.I)),
)
"""What a question asks for, and what gives it."""

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
