"""Plain statements to a bot, with gold for both agents: "I live in Lisbon.", "I moved to Berlin.", "Where do I live?"

`synthetic` writes how friends chat over months; people talk to a bot in short sentences about themselves, and a
Manager that has only seen the first takes the second for small talk. Each example is one fact beside up to five
memories of the same speaker; the values are made up, and no conversation is simulated here.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from memr1_plugin.agents import manager
from memr1_plugin.evaluation.datasets import Conversation, Question
from memr1_plugin.operations import render_operations
from memr1_plugin.training.sft import Example
from memr1_plugin.types import Fact, MemoryItem, Operation, OperationKind, Scope, Turn


@dataclass(frozen=True)
class Attribute:
    """One thing that people say of themselves, how it changes, how it ends, how it is said again."""

    values: str
    """Comma-separated."""
    told: tuple[str, ...]
    changed: tuple[str, ...] = ()
    """Replaces what was told; empty: a new value stands beside the old one."""
    ended: tuple[str, ...] = ()
    """Says that the old value is no longer true, and nothing new. {old} is the old value."""
    again: tuple[str, ...] = ()
    """Says nothing new."""
    asks: tuple[str, ...] = ()
    """Questions that the value answers; {do}, {am}, {have}, {I} and {my} stand for the form of the person."""


_CITIES = "Lisbon,Berlin,Porto,Oslo,Madrid,Leeds,Denver,Austin,Kyoto,Lyon,Ghent,Turin,Boston,Cork,Perth,Quito"
_NAMES = "Rex,Luna,Milo,Bella,Otto,Nala,Coco,Simba,Daisy,Bruno,Kiwi,Pepper"
PEOPLE = "Rosa,Tom,Mia,Paul,Ines,Carl,Nora,Hugo,Lena,Omar,Ruth,Ivan"
_JOBS = "nurse,teacher,chef,plumber,lawyer,baker,pilot,dentist,carpenter,librarian,translator,florist"

ATTRIBUTES = (
    Attribute(
        _CITIES,
        ("I live in {v}.", "My home is in {v}.", "I'm based in {v}.", "I live in {v} with my family."),
        (
            "I moved to {v}.",
            "I live in {v} now.",
            "I moved to {v} last week, I don't live in {old} any more.",
            "I don't live in {old} any more, I moved to {v} yesterday.",
            "I left {old} and live in {v} now.",
            "I moved from {old} to {v}.",
            "We moved to {v} in spring; {old} was too expensive.",
        ),
        (),
        ("I live in {v}, as I said.", "You know, I live in {v}."),
        ("Where {do} {I} live?", "Which city {do} {I} live in?", "Where {am} {I} based?", "What is {my} home town?"),
    ),
    Attribute(
        _JOBS,
        ("I work as a {v}.", "I'm a {v}.", "My job: I am a {v}."),
        (
            "I got a new job as a {v}!",
            "I changed jobs, I'm a {v} now.",
            "I stopped being a {old}; I work as a {v} now.",
            "I work as a {v} now, not as a {old} any more.",
            "I was a {old} for years, now I'm a {v}.",
        ),
        ("I lost my job as a {old}.", "I quit, I am not a {old} any more."),
        ("I'm a {v}, you know.", "As a {v} I work a lot."),
        ("What {do} {I} do for a living?", "What is {my} job?", "What {do} {I} work as?", "What is {my} profession?"),
    ),
    Attribute(
        _NAMES,
        ("I have a dog called {v}.", "My dog is called {v}.", "We got a dog, {v}."),
        (),
        ("I no longer have a dog, {old} died.", "We gave {old} the dog away."),
        ("My dog is called {v}.", "{v} is my dog."),
        ("What is {my} dog called?", "What is the name of {my} dog?", "What is {my} dog's name?"),
    ),
    Attribute(
        _NAMES,
        ("I have a cat called {v}.", "My cat's name is {v}."),
        (),
        ("{old} the cat ran away for good.", "My cat {old} died."),
        ("{v} is my cat.", "My cat is called {v}."),
        ("What is {my} cat called?", "What is the name of {my} cat?"),
    ),
    Attribute(
        PEOPLE,
        ("My sister {v} is a doctor.", "My sister is called {v}.", "{v} is my sister."),
        asks=("What is {my} sister called?", "What is {my} sister's name?", "Who is {my} sister?"),
    ),
    Attribute(
        PEOPLE,
        ("My brother {v} lives abroad.", "My brother is called {v}.", "My brother {v} is a farmer."),
        asks=("What is {my} brother called?", "Who is {my} brother?"),
    ),
    Attribute(
        "tea,coffee,matcha,cocoa,lemonade,mint tea",
        ("My favourite drink is {v}.", "I like {v} best."),
        (
            "My favourite drink is {v} now, not {old}.",
            "I switched from {old} to {v}.",
            "I don't drink {old} any more, these days it's {v}.",
        ),
        ("I don't drink {old} any more.",),
        ("{v} is my favourite drink.",),
        ("What is {my} favourite drink?", "What {do} {I} like to drink?", "Which drink {do} {I} like best?"),
    ),
    Attribute(
        "peanuts,gluten,milk,shellfish,cats,pollen",
        ("I'm allergic to {v}.", "I have an allergy: {v}."),
        (),
        ("My allergy to {old} is gone.", "I'm not allergic to {old} any more."),
        ("I can't stand {v}, I'm allergic to it.", "Remember, I'm allergic to {v}."),
        ("What {am} {I} allergic to?", "Which allergy {do} {I} have?"),
    ),
    Attribute(
        "the violin,the piano,chess,golf,tennis,the drums,badminton",
        ("I play {v}.", "I started to play {v}.", "On Sundays I play {v}."),
        (),
        ("I gave up {old}.", "I don't play {old} any more."),
        ("I play {v}, you know.",),
        ("What {do} {I} play?", "What {do} {I} play in {my} free time?"),
    ),
    Attribute(
        "red,blue,green,black,yellow,white",
        ("I bought a {v} bike.", "My bike is {v}."),
        ("I painted my bike {v}.", "My new bike is {v}, the {old} one is sold."),
        ("My {old} bike was stolen.",),
        ("My bike is {v}.",),
        ("What colour is {my} bike?", "Which colour {do} {I} have on {my} bike?"),
    ),
    Attribute(
        "3 March,14 June,9 May,27 July,1 October,30 August,12 December",
        ("My birthday is on {v}.", "I was born on {v}."),
        ("I told you wrong, my birthday is on {v}.",),
        (),
        ("My birthday: {v}.",),
        ("When is {my} birthday?", "When {was} {I} born?"),
    ),
    Attribute(
        "Rome,Japan,Iceland,Peru,Kenya,Malta,Norway",
        ("I went to {v} for a holiday.", "I visited {v} in spring."),
        asks=("Where did {I} go on holiday?", "Which place did {I} visit?"),
    ),
    Attribute(
        "Dune,Emma,Ulysses,Hamlet,Dracula,Momo",
        ("I'm reading {v}.", "I finished the book {v}."),
        asks=("Which book {am} {I} reading?", "What did {I} read?"),
    ),
    Attribute(
        "a Golf,a Tesla,a Fiat,a Volvo,a van",
        ("I drive {v}.", "My car is {v}."),
        (
            "I sold my car and bought {v}.",
            "I drive {v} now instead of {old}.",
            "I don't have {old} any more, I drive {v} now.",
        ),
        ("I sold {old}, I have no car now.",),
        ("I drive {v}.",),
        ("What {do} {I} drive?", "What car {do} {I} have?", "Which car {do} {I} drive?"),
    ),
    Attribute(
        "a marathon,a talk,an exam,a concert,a wedding",
        ("Next month I have {v}.", "I'm preparing for {v}."),
        asks=("What {do} {I} have next month?", "What {am} {I} preparing for?"),
    ),
    Attribute(
        "Spanish,Dutch,Greek,Korean,Arabic",
        ("I'm learning {v}.", "I take {v} lessons."),
        asks=("Which language {am} {I} learning?", "What {do} {I} take lessons in?"),
    ),
    Attribute(
        _JOBS,
        ("My mother works as a {v}.", "My mother is a {v}."),
        ("My mother is a {v} now, she gave up being a {old}.", "My mother isn't a {old} any more, she works as a {v}."),
        asks=("What does {my} mother do?", "What is {my} mother's job?", "What does {my} mother do for a living?"),
    ),
    Attribute(
        _CITIES,
        ("My son lives in {v}.", "My son's flat is in {v}."),
        ("My son moved from {old} to {v}.", "My son doesn't live in {old} any more, he is in {v} now."),
        asks=("Where does {my} son live?", "Which city does {my} son live in?"),
    ),
    Attribute(
        PEOPLE,
        ("My best friend is {v}.", "{v} has been my best friend since school."),
        asks=("Who is {my} best friend?", "What is {my} best friend called?"),
    ),
    Attribute(
        "green,purple,orange,turquoise,pink,silver",
        ("My favourite colour is {v}.", "I love the colour {v}."),
        ("My favourite colour isn't {old} any more, it's {v}.", "I prefer {v} to {old} now, it's my favourite colour."),
        asks=("What is {my} favourite colour?", "Which colour {do} {I} like best?"),
    ),
    Attribute(
        "pizza,ramen,curry,tacos,risotto,dumplings",
        ("My favourite food is {v}.", "I could eat {v} every day, it's my favourite food."),
        ("I'm tired of {old}, my favourite food is {v} now.",),
        asks=("What is {my} favourite food?", "Which food {do} {I} like best?"),
    ),
    Attribute(
        "Monday,Tuesday,Wednesday,Thursday,Friday",
        ("My yoga class is on {v}.", "I have yoga on {v}."),
        ("My yoga class moved from {old} to {v}.", "Yoga is on {v} now, not on {old}."),
        asks=("When is {my} yoga class?", "Which day {do} {I} have yoga?"),
    ),
    Attribute(
        "Siemens,Bosch,Airbus,Nokia,Lego,Philips",
        ("I work at {v}.", "My employer is {v}."),
        (
            "I quit my job at {old}, I work at {v} now.",
            "I left {old}, {v} hired me.",
            "I work at {v} now, not at {old}.",
        ),
        ("I was laid off at {old}.", "I don't work at {old} any more."),
        ("I work at {v}, as you know.",),
        ("Where {do} {I} work?", "Which company {do} {I} work for?", "Who is {my} employer?"),
    ),
)
_SPEAKERS = ("user", "user", *PEOPLE.split(","), "Ana", "Ben", "Kim", "Sam")


def examples(seed: int, count: int) -> Iterator[Example]:
    """Yield `count` seeded examples: 45 % ADD, 25 % UPDATE, 15 % DELETE, 15 % NOOP (of a repetition)."""
    rng = random.Random(seed)
    made = 0
    while made < count:
        kind = rng.choices(list(OperationKind), (45, 25, 15, 15))[0]
        example = _example(rng, kind)
        if example is not None:
            made += 1
            yield example


def _example(rng: random.Random, kind: OperationKind) -> Example | None:
    speaker, at = rng.choice(_SPEAKERS), datetime(rng.randint(2019, 2026), rng.randint(1, 12), 1, tzinfo=timezone.utc)
    topic = rng.choice([attribute for attribute in ATTRIBUTES if _forms(attribute, kind)])
    known = rng.sample([attribute for attribute in ATTRIBUTES if attribute is not topic], rng.randint(1, 4))
    if kind is not OperationKind.ADD:  # memories come most related first: the topic's is, most of the time
        known.insert(0 if rng.random() < _FIRST else rng.randint(0, len(known)), topic)
    old, memories = "", []
    for n, attribute in enumerate(known, 1):
        at += timedelta(days=rng.randint(-20, 25))
        value = rng.choice(attribute.values.split(","))
        old = value if attribute is topic else old
        memories.append(MemoryItem(n, Scope(), rng.choice(attribute.told).format(v=value), speaker, at, at, at))
    new = old if kind is OperationKind.NOOP else rng.choice([v for v in topic.values.split(",") if v != old])
    text = rng.choice(_forms(topic, kind)).format(v=new, old=old)
    if any(text == memory.text for memory in memories):
        return None  # an exact repetition never reaches the model
    at = max(memory.at for memory in memories)
    fact = Fact(text, speaker, at + timedelta(days=rng.randint(0, 40)))
    target = known.index(topic) + 1 if kind in (OperationKind.UPDATE, OperationKind.DELETE) else None
    gold = render_operations([Operation(kind, fact, target)], [fact], memories)
    return Example(manager.prompt([fact], memories, trained=True), gold)


_FIRST = 0.8
"""How often what a statement is about is the most related memory."""
_YOU = {"do": "do", "am": "am", "have": "have", "was": "was", "I": "I", "my": "my"}


def conversations(seed: int, count: int) -> Iterator[Conversation]:
    """Yield `count` seeded conversations of one speaker and what a bot is asked about them, for the Answer Agent.

    What was replaced, and what replaced it, may both have been told (a Manager is not always right): the newest is the
    answer. One conversation in six or so is asked about something that nobody said.
    """
    rng = random.Random(seed)
    for n in range(count):
        yield _conversation(f"statements-{seed}-{n}", rng)


def _conversation(name: str, rng: random.Random) -> Conversation:
    speaker, at = rng.choice(_SPEAKERS), datetime(rng.randint(2019, 2026), rng.randint(1, 12), 1, tzinfo=timezone.utc)
    known = rng.sample(ATTRIBUTES, rng.randint(3, 8))
    values: dict[int, str] = {}
    said: list[tuple[int, str]] = []
    for n, attribute in enumerate(known):
        values[n] = rng.choice([v for v in attribute.values.split(",") if v not in values.values()])
        said.append((n, rng.choice(attribute.told).format(v=values[n])))
    rng.shuffle(said)
    for n in [n for n, attribute in enumerate(known) if attribute.changed and rng.random() < 0.4]:
        old, values[n] = values[n], rng.choice([v for v in known[n].values.split(",") if v != values[n]])
        text = rng.choice(known[n].changed).format(v=values[n], old=old)
        if rng.random() < 0.5:
            said = [(m, t) for m, t in said if m != n]  # the Manager has replaced it
        said.append((n, text))
    turns = []
    for place, (_, text) in enumerate(said):
        at += timedelta(days=rng.randint(0, 9), minutes=1)
        turns.append(Turn(text, speaker, Scope(user=name), at, f"t{place}", session=f"s{place}"))
    last = {n: f"t{place}" for place, (n, _) in enumerate(said)}
    asked: list[tuple[Attribute, str, tuple[str, ...]]]
    asked = [(known[n], values[n], (last[n],)) for n in rng.sample(sorted(last), min(5, len(last)))]
    absent = [a for a in ATTRIBUTES if a not in known]
    asked += [(a, "", ()) for a in absent if rng.random() < 1 / len(absent)]
    form = _YOU if speaker == "user" else _form_of(speaker)
    when = at + timedelta(days=rng.randint(0, 30))
    questions = [
        Question(
            f"{name}/q{n}",
            rng.choice(attribute.asks).format(**form),
            answer,
            evidence=evidence,
            asked_at=when,
            unanswerable=not answer,
        )
        for n, (attribute, answer, evidence) in enumerate(asked)
    ]
    return Conversation(name, (speaker,), tuple(turns), tuple(questions))


def _form_of(name: str) -> dict[str, str]:
    return {"do": "does", "am": "is", "have": "has", "was": "was", "I": name, "my": f"{name}'s"}


def _forms(attribute: Attribute, kind: OperationKind) -> tuple[str, ...]:
    """The ways to say something of this attribute that calls for `kind`."""
    return {"ADD": attribute.told, "UPDATE": attribute.changed, "DELETE": attribute.ended}.get(
        kind.value, attribute.again
    )
