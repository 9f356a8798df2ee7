"""Supervised examples of the Answer Agent: each question beside what serving retrieves for it, and the gold completion.

Made of the episodes that RL takes (`episodes.AnswerEpisode`), so that both trainings show the agent what serving shows
it, in the same order. The rest is what keeps it from believing the first line blindly: evidence that was not retrieved,
and, in invented talk, ranks as real talk has them.
"""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from memr1_plugin.agents.engine import Prompt
from memr1_plugin.errors import DataError
from memr1_plugin.training.episodes import AnswerEpisode
from memr1_plugin.training.sft import Example

SURENESS = 0.115
"""Of n memories shown for a question about real small talk the first is the evidence exp(-SURENESS * (n - 1)) times:
the longer the list, the less sure is its order (`ranking.near_best`)."""
LATER = (0.19, 0.08, 0.04, 0.03, 0.02, 0.02, 0.01, 0.01, 0.01)
"""Weights of the places from the second on, for the rest."""
HIDDEN = 16
"""One question in so many is asked again beside memories that do not answer it."""
UNANSWERABLE = 20
"""For one question in so many, one that nothing answers."""


def of_answers(
    episodes: Sequence[AnswerEpisode],
    rng: random.Random,
    *,
    invented: bool = False,
    most: int = 0,
    unanswerable: int = UNANSWERABLE,
) -> list[Example]:
    """Make the examples of `mixed` episodes; `invented` talk is first ranked `as_in_real_talk`."""
    ranked = as_in_real_talk(episodes, rng) if invented else episodes
    kept = mixed(ranked, rng, most=most, unanswerable=unanswerable)
    return [example for e in kept if (example := e.example()) is not None]


def mixed(
    episodes: Sequence[AnswerEpisode],
    rng: random.Random,
    *,
    most: int = 0,
    hidden: int = HIDDEN,
    unanswerable: int = UNANSWERABLE,
) -> list[AnswerEpisode]:
    """Return, in a random order, the episodes to learn from: those with a gold completion, and some to abstain from.

    Args:
        episodes: with their candidates in the order of relevance.
        most: at most so many answered questions, those with several memories of evidence first, which are rare; 0: all.
        hidden: of so many answered ones, one that is asked again beside memories that do not answer it.
        unanswerable: for so many answered ones, one that nothing answers, as far as there are any.
    """
    shown = [e for e in episodes if e.items]
    rng.shuffle(shown)
    answered = [e for e in shown if e.question.answer and e.places() and e.completion() is not None]
    if most:
        answered = sorted(answered, key=lambda e: len(e.question.evidence) < 2)[:most]
    without = [e for answer in answered[::hidden] if (e := without_evidence(answer)).items]
    nothing = [e for e in shown if not e.question.answer][: -(-len(answered) // unanswerable)]
    kept = [*answered, *without, *nothing]
    rng.shuffle(kept)
    return kept


def as_in_real_talk(episodes: Sequence[AnswerEpisode], rng: random.Random) -> list[AnswerEpisode]:
    """Move the evidence of invented talk down to where retrieval finds that of real talk (`SURENESS`, `LATER`).

    Invented talk is asked in its own words, and the first memory is nearly always the one. An agent that learned so
    from long lists would be wrong every second time.
    """
    firsts: defaultdict[int, list[bool]] = defaultdict(list)
    for episode in episodes:
        if (place := _place(episode)) is not None:
            firsts[len(episode.items)].append(place == 0)
    kept = {n: math.exp(-SURENESS * (n - 1)) * len(found) / max(1, sum(found)) for n, found in firsts.items()}
    return [_moved_down(e, rng, kept.get(len(e.items), 1.0)) for e in episodes]


def without_evidence(episode: AnswerEpisode) -> AnswerEpisode:
    """The same question beside memories that do not answer it: what is right is to say so."""
    return replace(episode, items=episode.others, question=replace(episode.question, answer="", evidence=()))


def _place(episode: AnswerEpisode) -> int | None:
    """Rank of the evidence, from 0, where it is one memory; else None."""
    evidence = set(episode.question.evidence)
    found = [n for n, item in enumerate(episode.items) if evidence & set(item.turn_ids)]
    return found[0] if len(found) == 1 else None


def _moved_down(episode: AnswerEpisode, rng: random.Random, kept: float) -> AnswerEpisode:
    """With evidence ranked first moved down, but for a share `kept`."""
    if _place(episode) != 0 or len(episode.items) < 2 or rng.random() < kept:
        return episode
    items = list(episode.items)
    [to] = rng.choices(range(1, len(items)), [*LATER, *LATER[-1:] * len(items)][: len(items) - 1])
    items.insert(to, items.pop(0))
    return replace(episode, items=tuple(items))


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────


def save(examples: Iterable[Example], path: str | Path) -> int:
    """Write examples as JSONL (the cache of a recipe's data step); returns how many."""
    rows = [[e.prompt.fixed, e.prompt.body, e.prompt.max_tokens, e.completion] for e in examples]
    Path(path).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return len(rows)


def load(path: str | Path) -> list[Example]:
    """Read what `save` wrote.

    Raises:
        DataError: a line holds no example.
    """
    examples = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            fixed, body, max_tokens, completion = json.loads(line)
            examples.append(Example(Prompt(fixed, body, max_tokens=max_tokens), completion))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}: line {number} holds no example: {error}. Build the data again.") from error
    return examples
