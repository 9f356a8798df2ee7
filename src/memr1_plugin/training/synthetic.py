"""Synthetic conversations: two people over months, what each turn should do to memory, and questions.

A small world (who lives where, owns what, plans what) is told turn by turn among small talk: facts are added,
replaced, withdrawn, repeated and mentioned in passing, with relative dates. The words are `training.topics`; what is
trained on them is `training.episodes`. The same seed gives the same conversations. Its shape follows LoCoMo (Maharana
et al., ACL 2024), none of whose text is used.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from memr1_plugin.dates import MONTHS, WEEKDAYS, day_text, resolve
from memr1_plugin.errors import InputError, MissingExtraError
from memr1_plugin.evaluation.datasets import Conversation, Question
from memr1_plugin.training.topics import Ask, Topic, fill, lexicon, slots, smalltalk, topics
from memr1_plugin.types import OperationKind, Scope, Turn

try:
    from faker import Faker
except ImportError as error:
    raise MissingExtraError.of("faker", "train") from error

PRONOUNS = {
    "f": {"he": "she", "He": "She", "his": "her", "him": "her", "himself": "herself"},
    "m": {"he": "he", "He": "He", "his": "his", "him": "him", "himself": "himself"},
}
PAST = [
    *["yesterday"] * 6,
    *["last week"] * 5,
    *["last weekend"] * 4,
    *["last month"] * 3,
    *[f"last {day}" for day in WEEKDAYS],
    *["two days ago", "three days ago", "two weeks ago", "a few days ago", "last night", "today", "this week"],
    *["a couple of weeks ago", "two weekends ago", "last year", "three weeks ago", "the day before yesterday"],
    *["last Tues", "last Fri", "this past weekend", "two months ago", "a few weeks ago", "this morning", "recently"],
]
FUTURE = [
    *["next month"] * 5,
    *["tomorrow"] * 3,
    *["next week"] * 3,
    *["this weekend", "next weekend", "next year", "next Friday", "next Saturday", "later this month", "this month"],
    *["in two weeks", "this summer", "the day after tomorrow", "next spring", "in three days"],
]


@dataclass(frozen=True)
class Person:
    """One of the two who talk."""

    name: str
    sex: str


@dataclass(frozen=True)
class Gold:
    """What the Memory Manager should do with one turn's facts."""

    kind: OperationKind
    target: str | None = None
    """Id of the turn whose memory is replaced (UPDATE), is no longer true (DELETE), or already says it (NOOP)."""


@dataclass(frozen=True)
class Synthetic:
    """A conversation with its questions, and the gold operation of every turn, by turn id."""

    conversation: Conversation
    gold: dict[str, Gold]


@dataclass
class Telling:
    """A topic as one person told it: the values of its slots and the turn that said it."""

    topic: Topic
    who: Person
    other: Person
    values: dict[str, str]
    golds: dict[str, str]
    shown: set[str]
    turn_id: str
    mark: str = ""
    """"" told first, "u" told as a replacement, "x" withdrawn."""
    replied: str = ""
    stale: bool = False
    """True when a later turn replaced or withdrew it."""


@dataclass
class _World:
    """What is being built: the turns so far and who told what."""

    rng: random.Random
    people: tuple[Person, Person]
    names: list[str]
    scope: Scope
    turns: list[Turn] = field(default_factory=list)
    gold: dict[str, Gold] = field(default_factory=dict)
    told: list[Telling] = field(default_factory=list)
    used: set[tuple[str, str]] = field(default_factory=set)
    """Values already used in the conversation, by slot, so that a question points at one telling."""
    session: int = 0
    changing: float = 0.22
    talking: int = 3
    at: datetime = datetime(2023, 1, 1, tzinfo=timezone.utc)


def conversations(
    seed: int, count: int, *, sessions: tuple[int, int] = (5, 10), changing: float = 0.22, talking: int = 3
) -> Iterator[Synthetic]:
    """Yield `count` conversations; conversation n of a seed is the same whatever `count` is.

    Args:
        changing: the share of tellings that replace or withdraw an earlier one, where there is one to change.
        talking: tellings of the kind "talk" (reasons, opinions, advice) to four of states and four of events.
    """
    if count < 0:
        raise InputError(f"count is {count}; expected 0 or more conversations.")
    for n in range(count):
        yield conversation(seed * 100_003 + n, sessions=sessions, changing=changing, talking=talking)


def conversation(
    seed: int, *, sessions: tuple[int, int] = (5, 10), changing: float = 0.22, talking: int = 3
) -> Synthetic:
    """Build one conversation, with between `sessions` sessions, from its seed alone."""
    world = _new_world(seed)
    world.changing, world.talking = changing, talking
    for _ in range(world.rng.randint(*sessions)):
        _session(world)
    asked = world.at + timedelta(days=world.rng.randint(1, 20))
    questions = tuple(_questions(world, asked, f"s{seed}"))
    speakers = (world.people[0].name, world.people[1].name)
    return Synthetic(Conversation(f"synthetic-{seed}", speakers, tuple(world.turns), questions), world.gold)


def names(seed: int, count: int) -> Iterator[Person]:
    """Yield `count` invented people."""
    faker, rng = Faker("en_US"), random.Random(seed)
    faker.seed_instance(seed)
    for _ in range(count):
        sex = rng.choice("fm")
        yield Person(faker.first_name_female() if sex == "f" else faker.first_name_male(), sex)


def _new_world(seed: int) -> _World:
    rng = random.Random(seed)
    faker = Faker("en_US")
    faker.seed_instance(seed)
    names: list[tuple[str, str]] = []
    while len(names) < 60:
        sex = rng.choice("fm")
        name = faker.first_name_female() if sex == "f" else faker.first_name_male()
        if name not in (n for n, _ in names):
            names.append((name, sex))
    people = (Person(*names[0]), Person(*names[1]))
    start = datetime(rng.randint(2019, 2025), rng.randint(1, 12), rng.randint(1, 28), 9, tzinfo=timezone.utc)
    return _World(rng, people, [n for n, _ in names[2:]], Scope(user=f"synthetic-{seed}"), at=start)


# ── telling ──────────────────────────────────────────────────────────────────────────────────────────────────


def _session(world: _World) -> None:
    """One meeting: hello, some topics between small talk, goodbye."""
    rng = world.rng
    world.session += 1
    world.at += timedelta(days=rng.choice([2, 3, 5, 7, 9, 12, 15, 20, 28]), minutes=rng.randint(-200, 500))
    first = rng.randrange(2)
    _small(world, "hello", first)
    _small(world, rng.choice(["react", "filler"]), 1 - first)
    for n in range(rng.randint(3, 6)):
        who = (first + n + (rng.random() < 0.3)) % 2
        _block(world, who)
        if rng.random() < 0.25:
            _small(world, "filler", 1 - who)
    _small(world, "bye", first)
    if rng.random() < 0.7:
        _small(world, "bye", 1 - first)


def _say(world: _World, who: int, text: str, gold: Gold) -> str:
    """Record a turn and its gold operation; returns its id."""
    number = sum(t.session == str(world.session) for t in world.turns) + 1
    turn_id = f"D{world.session}:{number}"
    world.at += timedelta(minutes=world.rng.randint(0, 2))
    person = world.people[who]
    world.turns.append(Turn(text, person.name, world.scope, world.at, turn_id, session=str(world.session)))
    world.gold[turn_id] = gold
    return turn_id


def _small(world: _World, kind: str, who: int) -> None:
    template = world.rng.choice(smalltalk()[kind])
    _say(world, who, fill(template, _values(world, who), world.rng), Gold(OperationKind.NOOP))


def _block(world: _World, who: int) -> None:
    """One topic: perhaps a question, the telling, a reaction. Sometimes an old one is replaced or repeated."""
    rng, person = world.rng, world.people[who]
    mine = [t for t in world.told if t.who == person and not t.stale and t.mark != "x"]
    changing = [t for t in mine if t.topic.said["U"] or t.topic.said["X"]]
    if changing and rng.random() < world.changing:
        return _change(world, who, rng.choice(changing))
    if mine and rng.random() < 0.06:
        return _repeat(world, who, rng.choice(mine))
    taken = {t.topic.name for t in world.told if t.who == person}
    once = {t.topic.name for t in world.told if t.topic.kind == "talk"}
    kind = rng.choices(["states", "events", "talk"], [4, 4, world.talking if world.changing < 0.4 else 1])[0]
    free = [
        t
        for t in topics()
        if t.kind == kind and t.name not in once and (t.name not in taken or (t.key and not t.exclusive))
    ]
    again = [t for t in free if t.name in taken]
    topic = rng.choice(again) if again and rng.random() < 0.35 else rng.choice(free)
    _tell(world, who, topic)


def _tell(world: _World, who: int, topic: Topic, values: dict[str, str] | None = None) -> None:
    rng = world.rng
    values = values or _values(world, who, distinct=True)
    template = rng.choice(topic.said["S"])
    if topic.said["O"] and rng.random() < 0.5:
        _say(world, 1 - who, fill(rng.choice(topic.said["O"]), values, rng), Gold(OperationKind.NOOP))
    reply_first = bool(topic.said["R"]) and template == topic.said["S"][0] and _reply_first(topic)
    reply = fill(rng.choice(topic.said["R"]), values, rng) if topic.said["R"] else ""
    replied = _say(world, 1 - who, reply, Gold(OperationKind.ADD)) if reply_first else ""
    turn_id = _say(world, who, _spoken(template, values, rng), Gold(OperationKind.ADD))
    if reply and not reply_first:
        replied = _say(world, 1 - who, reply, Gold(OperationKind.ADD))
    elif not reply and rng.random() < 0.8:
        _small(world, "react", 1 - who)
    people = (world.people[who], world.people[1 - who])
    shown = slots(template) | (slots(topic.said["R"][0]) if replied else set())
    world.told.append(Telling(topic, *people, values, _golds(values, world.at), shown, turn_id, "", replied))
    world.used |= {(k, v) for k, v in values.items() if k in shown}


def _reply_first(topic: Topic) -> bool:
    """True when the other person's line is a question or remark that the telling replies to."""
    return topic.reply_first or topic.said["R"][0].endswith("?")


def _change(world: _World, who: int, old: Telling) -> None:
    """Replace or withdraw what was told before."""
    rng = world.rng
    mark = "U" if old.topic.said["U"] and (not old.topic.said["X"] or rng.random() < 0.6) else "X"
    fresh = _values(world, who, distinct=True) | ({"name3": old.values["name3"]} if old.topic.name == "partner" else {})
    template = rng.choice(old.topic.said[mark])
    keep = {**old.values, **{k: fresh[k] for k in ("past", "fut", "obstacle", "month", "now")}}
    values = fresh if mark == "U" else keep
    kind = OperationKind.UPDATE if mark == "U" else OperationKind.DELETE
    turn_id = _say(world, who, _spoken(template, values, rng), Gold(kind, old.turn_id))
    if rng.random() < 0.8:
        _small(world, "react", 1 - who)
    old.stale = True
    people = (world.people[who], world.people[1 - who])
    golds = _golds(values, world.at)
    world.told.append(Telling(old.topic, *people, values, golds, slots(template), turn_id, mark.lower()))


def _repeat(world: _World, who: int, old: Telling) -> None:
    """Say an old thing again; memory should stay as it is."""
    tellings = [
        s for s in old.topic.said["S"] if not slots(s) & {"past", "fut", "month", "now"} and slots(s) <= old.shown
    ]
    if not tellings or old.mark or old.topic.kind == "talk":
        return _small(world, "filler", who)
    text = _spoken(world.rng.choice(tellings), old.values, world.rng)
    lead = world.rng.choice(["As I said, ", "Like I told you, ", "Did I mention? ", "You know, "])
    _say(world, who, lead + text, Gold(OperationKind.NOOP, old.turn_id))


def _spoken(template: str, values: dict[str, str], rng: random.Random) -> str:
    """The telling as it is said, often with small talk around it: facts are mentioned in passing."""
    text = fill(template, values, rng)
    if rng.random() < 0.45:
        text = f"{fill(rng.choice(smalltalk()['lead']), values, rng)} {text}"
    if rng.random() < 0.5:
        text += " " + fill(rng.choice(smalltalk()["tail"]), values, rng)
    return text


# ── values ───────────────────────────────────────────────────────────────────────────────────────────────────


def _values(world: _World, who: int, *, distinct: bool = False) -> dict[str, str]:
    """Draw a value for every slot; distinct from those used before in this conversation where there are enough."""
    rng = world.rng
    person, other = world.people[who], world.people[1 - who]
    found = {}
    for name, options in lexicon().items():
        fresh = [o for o in options if (name, o) not in world.used] if distinct else options
        picked = rng.sample(fresh, 2) if len(fresh) > 1 else rng.sample(options, 2)
        found[name], found[name + "2"] = picked
    found |= {"S": person.name, "O": other.name, "name3": rng.choice(world.names)}
    found |= {**PRONOUNS[person.sex], "his2": PRONOUNS[other.sex]["his"], "him2": PRONOUNS[other.sex]["him"]}
    found |= {"past": rng.choice(PAST), "fut": rng.choice(FUTURE), "now": "today", "month": "recently"}
    found["fut_g"] = _gold_date(found["fut"], world.at).lower()
    year = world.at.year
    found |= {"year": str(rng.randint(year - 15, year - 2)), "pastyear": rng.choice(["last year", str(year - 3)])}
    found |= {"him_pet": rng.choice(["him", "her"]), "livelier": rng.choice(["livelier", "warmer", "less empty"])}
    found["companion"] = found["relative"]
    found["friendrel_my"] = f"my {found['friendrel']}"
    found["pron_t"] = rng.choice(["She", "He"])
    article = (
        "" if found["injury"].startswith(("back", "stitches")) else "an " if found["injury"][0] in "aeiou" else "a "
    )
    found["an_injury"] = article + found["injury"]
    return found


def _golds(values: dict[str, str], said: datetime) -> dict[str, str]:
    """The values as answers give them: dates absolute."""
    dated = {k: _gold_date(values[k], said) for k in ("past", "fut", "pastyear")}
    return {**values, **dated, "now": day_text(said.date()), "month": f"{MONTHS[said.month - 1]} {said.year}"}


def _gold_date(phrase: str, said: datetime) -> str:
    """What the bracket says after `phrase`; the month for what has no day."""
    found = re.search(r"\[(?:about )?([^\],]+)", resolve(phrase, said))
    if found is None:
        return phrase if phrase.isdigit() else f"{MONTHS[said.month - 1]} {said.year}"
    return found[1][:1].upper() + found[1][1:]


# ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────


def _questions(world: _World, asked: datetime, prefix: str) -> Iterator[Question]:
    found: list[Question] = []
    for told in world.told:
        found += _about_one(world, told)
    found += _about_all(world)
    found += _unanswerable(world)
    seen: set[str] = set()
    for n, question in enumerate(found):
        if question.text in seen:
            continue
        seen.add(question.text)
        yield Question(
            f"{prefix}_q{n}",
            question.text,
            question.answer,
            question.category,
            question.evidence,
            asked,
            question.unanswerable,
        )


def _about_one(world: _World, told: Telling) -> list[Question]:
    """Questions that one telling answers: those whose slots it said, and that no other telling answers too."""
    same = [t for t in world.told if t.topic is told.topic and t.who == told.who and t.mark != "x"]
    found = []
    for ask in told.topic.asks:
        if ask.kind not in "?I" or not _fits(ask, told):
            continue
        if told.stale and not _is_when(ask):
            continue
        options = [q for q in ask.questions if len(same) < 2 or told.topic.exclusive or slots(q) - _PEOPLE]
        if not options:
            continue
        gold = world.rng.choice(ask.golds)
        if not (slots(gold) - _PEOPLE) <= told.shown | _ALWAYS:
            continue
        text = fill(world.rng.choice(options), told.golds, world.rng)
        category = "3" if ask.kind == "I" else "2" if _is_when(ask) else "4"
        evidence: tuple[str, ...] = (told.turn_id,) if not _is_reply(ask, told) else (told.replied,)
        if "both" in text and told.replied:
            evidence = (told.turn_id, told.replied)
        found.append(Question("", text, fill(gold, told.golds, world.rng), category, evidence))
    return found


_PEOPLE = {"s", "o", "he", "his", "him", "himself", "his2", "him2"}
_ALWAYS = {"now", "month", "he", "his", "s", "o", "companion"}


def _is_when(ask: Ask) -> bool:
    return bool(slots(ask.golds[0]) & {"past", "fut", "now", "month", "year", "pastyear"})


def _is_reply(ask: Ask, told: Telling) -> bool:
    """True when the answer is in what the other person said."""
    return bool(told.replied) and bool(re.search(r"\b(?:did|does|do|is|to|was|will) \{O\}", ask.questions[0]))


def _fits(ask: Ask, told: Telling) -> bool:
    """True when the question belongs to this telling and the telling said all that it and its answer name."""
    if ask.of != told.mark and not (ask.of == "" and told.mark == "u"):
        return False
    if told.topic.said["R"] and "{O}" in ask.questions[0] and not told.replied:
        return False
    needed = set().union(*(slots(g) for g in ask.golds), *(slots(q) for q in ask.questions)) - _PEOPLE - _ALWAYS
    return needed <= told.shown | {"companion"} and ("companion" not in needed_names(ask) or "relative" in told.shown)


def needed_names(ask: Ask) -> set[str]:
    """Slots that a question line names."""
    return set().union(*(slots(g) for g in (*ask.golds, *ask.questions)))


def _about_all(world: _World) -> list[Question]:
    """Questions over all of a person's tellings: lists and counts."""
    found = []
    for person in world.people:
        for topic in topics():
            told = [t for t in world.told if t.topic is topic and t.who == person and t.mark != "x" and not t.stale]
            for ask in topic.asks:
                if told and ask.kind in "LC":
                    found += _collected(world, ask, topic, told)
    return found


def _collected(world: _World, ask: Ask, topic: Topic, told: Sequence[Telling]) -> list[Question]:
    text = fill(world.rng.choice(ask.questions), told[0].golds, world.rng)
    if ask.kind == "C":
        ids = tuple(t.turn_id for t in told)
        return [Question("", text, str(len(told)), "1", ids)] if 1 < len(told) <= 6 else []
    gold = ask.golds[0]
    holding = [t for t in told if slots(gold) <= t.shown]
    values = list(dict.fromkeys(fill(gold, t.golds, world.rng) for t in holding))
    if not values or (len(values) == 1 and world.rng.random() < 0.5):
        return []
    return [Question("", text, ", ".join(values), "1", tuple(t.turn_id for t in holding))]


def _unanswerable(world: _World) -> list[Question]:
    """Questions about the person who did not tell it, or about a thing that nobody told."""
    found = []
    for told in world.told:
        asks = [a for a in told.topic.asks if a.kind == "?" and _fits(a, told) and not slots(a.questions[0]) & {"o"}]
        others = [t for t in world.told if t.topic is told.topic and t.who == told.other]
        if not asks or others or told.mark or world.rng.random() > 0.3:
            continue
        ask = world.rng.choice(asks)
        swapped = {**told.golds, "S": told.other.name, "O": told.who.name, **PRONOUNS[told.other.sex]}
        found.append(Question("", fill(ask.questions[0], swapped, world.rng), "", "5", (), None, True))
    return found
