"""Conversations of real people with questions about what they said: chitchat-dataset's dialogues (MIT).

Nothing is invented but the names and the dates: the words, the slips and everything said around them are people's own,
which `synthetic` cannot give. The questions are made of statements (`cloze`) and of what people asked each other
(`replies`).
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from itertools import pairwise

from memr1_plugin.errors import MissingExtraError
from memr1_plugin.evaluation.datasets import Conversation, Question
from memr1_plugin.extraction import sentences
from memr1_plugin.training.cloze import Asked, asked_of
from memr1_plugin.training.replies import asked_in
from memr1_plugin.training.synthetic import Person, names
from memr1_plugin.types import Scope, Turn

SESSIONS = (2, 4)
"""Real dialogues that are told as one person's sessions with another."""
LENGTH = (14, 44)
"""Messages of a dialogue that is used: shorter ones say little, longer ones are games."""
SHORTEST = 6
"""Messages of a dialogue in which somebody was asked something; of long ones pieces are told."""
_SYNONYMS = {
    "love": ("enjoy", "like"), "like": ("enjoy", "love"), "enjoy": ("like", "love"), "buy": ("get", "purchase"),
    "hate": ("dislike",), "want": ("wish for",), "own": ("have",), "see": ("watch",), "make": ("create",),
    "receive": ("get",), "start": ("begin",), "learn": ("find out",),
}  # fmt: skip


def conversations(seed: int, count: int, *, most: int = 40, replied: bool = False) -> Iterator[Conversation]:
    """Yield `count` conversations of several real dialogues, told by two people with invented names over months.

    Args:
        most: questions of one conversation at most; the rest is left out at random.
        replied: take dialogues in which somebody was asked something and replied, and ask that first. Of a mix with
            four in ten such questions an agent learned to answer with a memory's first words (training/LOG.md).
    """
    rng = random.Random(seed)
    dialogues = [p for d in _dialogues(SHORTEST) for p in _pieces(d)] if replied else _dialogues(*LENGTH)
    rng.shuffle(dialogues)
    people = names(seed, 2 * count)
    for n in range(count):
        take = rng.randint(*SESSIONS)
        chosen = [dialogues[(n * SESSIONS[1] + i) % len(dialogues)] for i in range(take)]
        first, second = next(people), next(people)
        if first.name == second.name:
            continue
        yield _conversation(f"chat-{seed}-{n}", (first, second), chosen, rng, most, replied)


def _dialogues(shortest: int, longest: float = math.inf) -> list[list[tuple[str, str]]]:
    """All real dialogues of so many messages, as (sender, text) in order."""
    try:
        from chitchat_dataset import Dataset
    except ImportError as error:
        raise MissingExtraError.of("chitchat-dataset", "train") from error
    found = []
    for dialogue in Dataset().values():
        said = [(m[0]["sender"], _joined([part["text"] for part in m])) for m in dialogue["messages"]]
        if shortest <= len(said) <= longest and len({sender for sender, _ in said}) == 2:
            found.append(
                [(sender, text) for sender, text in said if 0 < len(text.split()) <= 90 and "http" not in text]
            )
    return found


def _pieces(dialogue: list[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Cut a dialogue into pieces of usual length; those in which somebody was asked something and replied."""
    anyone = Person("Anyone", "f")
    for start in range(0, len(dialogue), LENGTH[1]):
        piece = dialogue[start : start + LENGTH[1]]
        if len({sender for sender, _ in piece}) == 2 and any(
            asked_in(before, text, anyone) for (_, before), (_, text) in pairwise(piece)
        ):
            yield piece


def _joined(parts: Sequence[str]) -> str:
    """Several messages sent in a row as one turn."""
    ended = [p if re.search(r"[.!?]$", p) else f"{p}." for p in (re.sub(r"\s+", " ", p).strip() for p in parts) if p]
    return " ".join(ended)


def _conversation(
    name: str,
    people: tuple[Person, Person],
    dialogues: Sequence[Sequence[tuple[str, str]]],
    rng: random.Random,
    most: int,
    replies: bool,
) -> Conversation:
    at = datetime(rng.randint(2019, 2025), rng.randint(1, 12), rng.randint(1, 28), 9, tzinfo=timezone.utc)
    turns: list[Turn] = []
    replied: list[tuple[Asked, str]] = []
    stated: list[tuple[Asked, str]] = []
    for session, dialogue in enumerate(dialogues):
        at += timedelta(days=rng.randint(1, 40))
        order = list(dict.fromkeys(sender for sender, _ in dialogue))
        rng.shuffle(order)
        before = ""
        for sender, text in dialogue:
            who = people[order.index(sender)]
            turn = Turn(text, who.name, Scope(user=name), at + timedelta(minutes=len(turns)), f"t{len(turns)}",
                        session=str(session))  # fmt: skip
            turns.append(turn)
            if replies:
                replied += [(one, turn.id) for one in asked_in(before, text, who)]
            stated += [(one, turn.id) for sentence in sentences(text) for one in asked_of(sentence, who)]
            before = text
    asked_at = at + timedelta(days=rng.randint(1, 20))
    first = _questions(replied, f"{name}_replied", asked_at, rng)
    rest = _questions(stated, name, asked_at, rng)
    rng.shuffle(first)
    rng.shuffle(rest)
    return Conversation(name, tuple(p.name for p in people), tuple(turns), tuple([*first, *rest][:most]))


def _questions(asked: Sequence[tuple[Asked, str]], name: str, asked_at: datetime, rng: random.Random) -> list[Question]:
    """One question for each thing that is asked: details tell tellings apart; without them their answers are joined."""
    by_question: dict[str, list[tuple[Asked, str]]] = {}
    for one, turn_id in asked:
        by_question.setdefault(one.question, []).append((one, turn_id))
    of_key = Counter(one.key for tellings in by_question.values() for one, _ in tellings)
    found: list[Question] = []
    for question, tellings in by_question.items():
        key = tellings[0][0].key
        if of_key[key] > len(tellings) and question.count(" ") < 5:
            continue  # another telling, with details, would answer it as well
        answers = list(dict.fromkeys(one.answer for one, _ in tellings))
        if len(answers) > 4:
            continue
        evidence = tuple(dict.fromkeys(turn_id for _, turn_id in tellings))
        text = _reworded(question, rng) if rng.random() < 0.4 else question
        found.append(
            Question(
                f"{name}_q{len(found)}", text, ", ".join(answers), "1" if len(answers) > 1 else "4", evidence, asked_at
            )
        )
    return found


def _reworded(question: str, rng: random.Random) -> str:
    """The question with another verb that means nearly the same, where there is one."""
    match = re.match(r"(What (?:does|did) \S+ )(\w+)\b(.*)", question)
    if match is None or match[2] not in _SYNONYMS or " to do" in question:
        return question
    return f"{match[1]}{rng.choice(_SYNONYMS[match[2]])}{match[3]}"
