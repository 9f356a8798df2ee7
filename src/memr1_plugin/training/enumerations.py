"""Talk in which somebody names two to four things in one breath, and is asked for all of them.

Small talk has few such sentences (245 in the dialogues of chitchat-dataset that are used), and a LoRA trained on it
gave the first of several: "It stands for love, faith and strength" was answered with "love" (training/LOG.md). Topics
and words are this project's own (`topics/lists.txt`); real small talk stands between the tellings.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from functools import lru_cache

from memr1_plugin.evaluation.datasets import Conversation, Question
from memr1_plugin.training.statements import PEOPLE
from memr1_plugin.training.synthetic import PAST, PRONOUNS, Person, names
from memr1_plugin.training.topics import fill, lexicon, smalltalk, topics
from memr1_plugin.types import Scope, Turn

TOLD = (8, 12)
"""Topics of a conversation."""
SITTING = 4
"""Topics of one sitting."""


def conversations(seed: int, count: int, lines: Sequence[str]) -> Iterator[Conversation]:
    """Yield `count` seeded conversations, with `lines` of small talk between what is told.

    Raises:
        IndexError: `lines` is empty.
    """
    rng, people = random.Random(seed), names(seed, 2 * count)
    for n in range(count):
        yield _conversation(f"lists-{seed}-{n}", (next(people), next(people)), lines, rng)


def _conversation(name: str, people: tuple[Person, Person], lines: Sequence[str], rng: random.Random) -> Conversation:
    at = datetime(rng.randint(2019, 2025), rng.randint(1, 12), rng.randint(1, 28), 9, tzinfo=timezone.utc)
    turns: list[Turn] = []
    asked: list[tuple[str, str, str]] = []
    told = rng.sample(topics("lists"), rng.randint(*TOLD))
    for place, topic in enumerate(told):
        at += timedelta(days=rng.randint(2, 25)) if place % SITTING == 0 else timedelta(minutes=2)
        who, other = rng.sample(people, 2)
        values = _values(who, other, rng)
        text = fill(rng.choice(topic.said["S"]), values, rng)
        if rng.random() < 0.4:
            text = f"{fill(rng.choice(smalltalk()['lead']), values, rng)} {text}"
        for speaker, said in ((other, rng.choice(lines)), (who, text), (other, rng.choice(lines))):
            turns.append(
                Turn(said, speaker.name, Scope(user=name), at, f"t{len(turns)}", session=str(place // SITTING))
            )
        asked += [
            (fill(rng.choice(ask.questions), values, rng), fill(ask.golds[0], values, rng), turns[-2].id)
            for ask in topic.asks
        ]
    when = at + timedelta(days=rng.randint(1, 20))
    questions = tuple(
        Question(f"{name}/q{n}", text, answer, "4", (evidence,), when)
        for n, (text, answer, evidence) in enumerate(asked)
    )
    return Conversation(name, tuple(p.name for p in people), tuple(turns), questions)


def _values(who: Person, other: Person, rng: random.Random) -> dict[str, str]:
    """Different words for {x}, {x2} and {x3}."""
    values: dict[str, str] = {}
    for slot, options in words().items():
        picked = rng.sample(options, min(3, len(options)))
        values |= {slot + number: word for number, word in zip(("", "2", "3"), picked, strict=False)}
    values["name3"], values["name4"] = rng.sample(PEOPLE.split(","), 2)
    return {**values, "S": who.name, "O": other.name, **PRONOUNS[who.sex], "past": rng.choice(PAST)}


@lru_cache(maxsize=1)
def words() -> dict[str, list[str]]:
    """Slot name to its words: those of all topics, and of these."""
    return {**lexicon(), **lexicon("lists_lexicon")}
