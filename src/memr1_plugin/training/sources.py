"""What the project trains on beside one's own files: synthetic talk, real small talk, LongMemEval evidence, statements.

Each source yields the Answer Agent's episodes, a list for each conversation (`examples` makes supervised ones of them),
or the Manager's examples. The mix and its size are a recipe's (`recipe`); prompts and retrieval are the serving code's.
Licences: synthetic text is this project's, LongMemEval (Wu et al., ICLR 2025) and chitchat-dataset are MIT.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from memr1_plugin.embedding import Embedder
from memr1_plugin.errors import DataError, MissingExtraError
from memr1_plugin.evaluation.datasets import Conversation, Question, load
from memr1_plugin.training import chat_questions, enumerations, statements, synthetic
from memr1_plugin.training.episodes import AnswerEpisode, answer_episodes, manager_episodes, manager_examples
from memr1_plugin.training.sft import Example
from memr1_plugin.training.synthetic import Gold
from memr1_plugin.types import OperationKind, Turn

CHATTER_WORDS = (12, 45)
"""Length of the chatter turns that are mixed in: shorter ones say nothing, longer ones are pasted."""
MAX_ANSWER_WORDS = 10
COVERED = 0.6
"""Share of an answer's words that its evidence must hold: a small model learns to read, not to reckon."""
_RECKONING = re.compile(
    r"how many (?:days|weeks|months|years) (?:ago|passed|between|before|after|had|have|did)|total|average|percent"
    r"|how much more|older",
    re.IGNORECASE,
)
_VERBS = {"do": "does", "have": "has", "am": "is"}


@dataclass(frozen=True)
class Amount:
    """How much of a source to take."""

    seed: int
    conversations: int


def chatter(limit: int = 6_000, seed: int = 0) -> list[str]:
    """Real small talk from the package chitchat-dataset: lines of `CHATTER_WORDS` words, no addresses."""
    try:
        from chitchat_dataset import Dataset
    except ImportError as error:
        raise MissingExtraError(
            "chitchat-dataset is not installed, and this recipe mixes it in. Run: pip install chitchat-dataset"
        ) from error
    lines = (" ".join(part["text"] for part in m) for c in Dataset().values() for m in c["messages"])
    low, high = CHATTER_WORDS
    kept = [s for s in lines if low <= len(s.split()) <= high and re.fullmatch(r"[ -?A-~]+", s) and "http" not in s]
    random.Random(seed).shuffle(kept)
    return kept[:limit]


def interrupted(conversation: Conversation, lines: Sequence[str], rng: random.Random, count: int) -> Conversation:
    """Put `count` lines of chatter between the turns of `conversation`."""
    turns = list(conversation.turns)
    for n in range(count):
        at = rng.randrange(len(turns))
        near = turns[at]
        speaker = rng.choice(conversation.speakers)
        turns.insert(at + 1, Turn(rng.choice(lines), speaker, near.scope, near.at, f"chat{n}", session=near.session))
    return replace(conversation, turns=tuple(turns))


def synthetic_episodes(
    amount: Amount, embedder: Embedder, lines: Sequence[str] = (), *, talking: int = 3
) -> Iterator[list[AnswerEpisode]]:
    """Answer episodes of synthetic conversations, each question beside what serving retrieves for it."""
    rng = random.Random(amount.seed)
    for one in synthetic.conversations(amount.seed, amount.conversations, talking=talking):
        yield answer_episodes(_told(one.conversation, lines, rng), embedder)


def statement_episodes(amount: Amount, embedder: Embedder) -> Iterator[list[AnswerEpisode]]:
    """Answer episodes about plain statements to a bot."""
    for conversation in statements.conversations(amount.seed, amount.conversations):
        yield answer_episodes(conversation, embedder)


def list_episodes(amount: Amount, embedder: Embedder, lines: Sequence[str]) -> Iterator[list[AnswerEpisode]]:
    """Answer episodes about several things that were named in one breath (`enumerations`), among small talk."""
    for conversation in enumerations.conversations(amount.seed, amount.conversations, lines):
        yield answer_episodes(conversation, embedder)


def chat_episodes(
    amount: Amount, embedder: Embedder, *, most: int = 40, replied: bool = False
) -> Iterator[list[AnswerEpisode]]:
    """Answer episodes about what real people said (`chat_questions`): their own words, and their own distractors."""
    rng = random.Random(amount.seed)
    for conversation in chat_questions.conversations(amount.seed, amount.conversations, most=most, replied=replied):
        told = as_user(conversation) if rng.random() < 0.15 else conversation
        if told.questions:
            yield answer_episodes(told, embedder)


def _told(conversation: Conversation, lines: Sequence[str], rng: random.Random) -> Conversation:
    """One in four told by "user", six in ten interrupted by chatter."""
    told = as_user(conversation) if rng.random() < 0.25 else conversation
    if lines and rng.random() < 0.6:
        told = interrupted(told, lines, rng, len(told.turns) // 8)
    return told


KEPT = {OperationKind.ADD: 0.3}
"""Share of the synthetic ADDs that is kept: what is rare is to be learned too. NOOPs are rare since certain cases are
decided by rule: with a tenth of them the Manager unlearned to see a repetition (training/LOG.md)."""


def operation_examples(
    amount: Amount, embedder: Embedder, *, longmemeval: str | Path = "", plain: int = 0
) -> list[Example]:
    """Manager examples: synthetic conversations full of changes, `plain` statements to a bot, LongMemEval's evidence.

    What real users say of themselves (LongMemEval) is to be added, and next to nothing of it replaces anything: a
    Manager that has only seen invented talk finds contradictions where there are none.
    """
    rng = random.Random(amount.seed)
    told = synthetic.conversations(amount.seed, amount.conversations, sessions=(5, 8), changing=0.45)
    found = manager_examples(told, embedder)
    kept = [example for kind, example in found if rng.random() < KEPT.get(kind, 1.0)]
    kept += statements.examples(amount.seed, plain)
    kept += list(longmemeval_additions(longmemeval, embedder, amount.seed)) if longmemeval else []
    rng.shuffle(kept)
    return kept


def longmemeval_additions(path: str | Path, embedder: Embedder, seed: int = 0, *, words: int = 60) -> Iterator[Example]:
    """Manager examples from LongMemEval: evidence turns of up to `words` words, three users' worth told as one.

    Questions about updated knowledge are left out: there a later turn does replace an earlier one.
    """
    rng = random.Random(seed)
    plain = [c for c in load(path) if c.questions[0].category != "knowledge-update" and not c.questions[0].unanswerable]
    names = synthetic.names(seed, 2 * len(plain))
    for start in range(0, len(plain), 3):
        told = _merged(plain[start : start + 3], next(names), next(names), rng, ())
        evidence = {turn_id for question in told.questions for turn_id in question.evidence}
        short = [t for t in told.turns if t.id in evidence and len(t.text.split()) <= words]
        gold = {t.id: Gold(OperationKind.ADD) for t in short}
        said = replace(told, turns=tuple(short), questions=())
        for episode in manager_episodes(said, embedder, gold=gold, window=None) if short else ():
            if (example := episode.example()) is not None:
                yield example


def as_user(conversation: Conversation) -> Conversation:
    """Let the first speaker be "user", as a bot's memory knows them, who asks about themselves: "Where do I live?"

    Questions that cannot be put in the first person word by word are left out.
    """
    name = conversation.speakers[0]
    turns = tuple(replace(t, speaker="user" if t.speaker == name else t.speaker) for t in conversation.turns)
    asked = [(q, in_first_person(q.text, name)) for q in conversation.questions]
    questions = tuple(replace(q, text=text, answer=_to_you(q.answer)) for q, text in asked if text)
    return replace(conversation, speakers=("user", *conversation.speakers[1:]), turns=turns, questions=questions)


_FIRST = {"does": "do", "is": "am", "has": "have"}


def in_first_person(question: str, name: str) -> str:
    """Ask as `name` would: "Where did Ana park her car?" becomes "Where did I park my car?"; "" where that fails.

    A question that does not name them, is about somebody else, or would keep a verb of the third person, fails.
    """
    text = re.sub(r"\b(?:he|she)\b", name, question)
    helping = r"\b(does|did|is|has|was|will|would|should|can|could|had|might) "
    text = re.sub(rf"{helping}{name}\b(?!')", lambda m: f"{_FIRST.get(m[1].lower(), m[1].lower())} I", text, flags=re.I)
    text = re.sub(rf"\b{name}'s\b", "my", text)
    text = re.sub(rf"\b(to|for|with|about|from|of|by) {name}\b", r"\1 me", text)
    text = re.sub(r"\bhimself\b|\bherself\b", "myself", text)
    text = re.sub(r"\b(?:his|her)\b(?= \w)", "my", text)
    text = re.sub(r"\b(?:him|her)\b", "me", text)
    if text == question or name in text or not re.search(r"\b(?:I|my|me)\b", text):
        return ""
    return text[:1].upper() + text[1:]


def _to_you(answer: str) -> str:
    """The answer to one who asks about themselves."""
    return re.sub(r"\b(?:his|her)\b(?= \w)", "your", answer)


# ── LongMemEval ──────────────────────────────────────────────────────────────────────────────────────────────


def longmemeval_episodes(
    path: str | Path, embedder: Embedder, lines: Sequence[str], *, rounds: int = 2, seed: int = 0
) -> Iterator[list[AnswerEpisode]]:
    """Answer episodes from LongMemEval's evidence: three users' worth told as one, among chatter.

    Questions in the first person are put in the third ("Where did Ana redeem ..."), except one group in four.
    """
    rng = random.Random(seed)
    readable = [c for c in load(path) if _is_readable(c)]
    if not readable:
        raise DataError(f"{path} has no question that a reader can answer from its evidence; is it LongMemEval?")
    names = synthetic.names(seed, 2 * rounds * len(readable))
    for _ in range(rounds):
        rng.shuffle(readable)
        for start in range(0, len(readable), 3):
            person, other = next(names), next(names)
            told = _merged(readable[start : start + 3], person, other, rng, lines)
            asked = answer_episodes(told, embedder)
            yield [e for e in asked if not e.question.answer or (e.places() and _says(e))]


def longmemeval_conversations(
    path: str | Path, lines: Sequence[str] = (), *, seed: int = 0, words: int = 60
) -> Iterator[Conversation]:
    """What LongMemEval's users said, three of them told as one, with their questions: real updates for the Manager.

    Where knowledge was updated, the answer rests on the latest telling alone: an earlier one may be replaced. Turns of
    more than `words` words, which are pasted rather than said, are left out with what is asked about them.
    """
    rng = random.Random(seed)
    readable = [c for c in load(path) if _is_readable(c) and not c.questions[0].unanswerable]
    rng.shuffle(readable)
    names = synthetic.names(seed, 2 * len(readable))
    for start in range(0, len(readable), 3):
        told = _merged(readable[start : start + 3], next(names), next(names), rng, lines)
        turns = tuple(t for t in told.turns if len(t.text.split()) <= words)
        said = {t.id: n for n, t in enumerate(turns)}
        asked = []
        for question in told.questions:
            evidence = sorted((e for e in question.evidence if e in said), key=lambda e: said[e])
            if len(evidence) == len(question.evidence):
                kept = evidence[-1:] if question.category == "knowledge-update" else evidence
                asked.append(replace(question, evidence=tuple(kept)))
        yield replace(told, turns=turns, questions=tuple(asked))


def _is_readable(conversation: Conversation) -> bool:
    """True if the question asks for something the user said, in few words, and not for a sum."""
    [question] = conversation.questions
    if question.category in ("single-session-preference", "single-session-assistant"):
        return False
    if question.unanswerable:
        return True
    said = " ".join(t.text for t in conversation.turns if t.id in question.evidence and t.role == "user")
    answer = short(question.answer)
    return len(answer.split()) <= MAX_ANSWER_WORDS and _covers(said, answer) and not _RECKONING.search(question.text)


def short(answer: str) -> str:
    """The first sentence of an answer: "14 days. 15 days (...) is also acceptable." is "14 days"."""
    return re.split(r"\. (?=\d|[A-Z])", answer.strip())[0].rstrip(".")


def _covers(text: str, answer: str) -> bool:
    words = re.findall(r"\w+", answer.lower())
    return bool(words) and sum(w in text.lower() for w in words) >= COVERED * len(words)


def _merged(
    conversations: Sequence[Conversation],
    person: synthetic.Person,
    other: synthetic.Person,
    rng: random.Random,
    lines: Sequence[str],
) -> Conversation:
    """Several users' evidence as one person's dialogue, with chatter in between."""
    first_person = rng.random() < 0.25
    speaker = "user" if first_person else person.name
    turns: list[Turn] = []
    questions: list[Question] = []
    scope = conversations[0].scope
    for n, conversation in enumerate(conversations):
        [question] = conversation.questions
        kept = [t for t in conversation.turns if t.role == "user"]
        turns += [replace(t, speaker=speaker, scope=scope, id=f"{n}/{t.id}", session=f"{n}/{t.session}") for t in kept]
        text = question.text if first_person else in_third_person(question.text, person)
        evidence = tuple(f"{n}/{e}" for e in question.evidence if e in {t.id for t in kept})
        answer = "" if question.unanswerable else short(question.answer)
        questions.append(replace(question, text=text, answer=answer, evidence=evidence))
    for n in range(rng.randint(1, 4) if lines and turns else 0):
        at = rng.choice(turns).at + timedelta(days=rng.randint(-9, 9))
        who = rng.choice([speaker, other.name])
        turns.append(Turn(rng.choice(lines), who, scope, at, f"chat{n}", session=f"chat{n}"))
    turns.sort(key=lambda turn: turn.at)
    return Conversation(conversations[0].id, (speaker, other.name), tuple(turns), tuple(questions))


def in_third_person(question: str, person: synthetic.Person) -> str:
    """Ask about `person` instead of "I": "Where did I park my car?" becomes "Where did Ana park her car?"."""
    said = synthetic.PRONOUNS[person.sex]
    verb = r"\b(do|did|have|am|was|will|would|should|can|could|had) I\b"
    text = re.sub(verb, lambda m: f"{_VERBS.get(m[1].lower(), m[1].lower())} {person.name}", question, flags=re.I)
    for mine, theirs in (("I'm", "is"), ("I am", "is"), ("I've", "has"), ("I have", "has")):
        text = re.sub(rf"\b{mine}\b", f"{person.name} {theirs}", text)
    text = re.sub(r"\bI\b", person.name, text)
    if person.name not in text:
        text = re.sub(r"\bmy\b", f"{person.name}'s", text, count=1)
    for mine, theirs in (("my", said["his"]), ("me", said["him"]), ("mine", said["his"])):
        text = re.sub(rf"\b{mine}\b", theirs, text)
    return text[:1].upper() + text[1:]


def _says(episode: AnswerEpisode) -> bool:
    """True when the memories that would be named hold the answer: a long turn is split, and a piece may lack it."""
    return _covers(" ".join(episode.items[n - 1].text for n in episode.places()), episode.question.answer)
