"""The Memory Manager asks the model only what is not certain, and believes only what parses."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

import pytest

from memr1_plugin.agents.belief import bears_on, in_question
from memr1_plugin.agents.engine import Prompt, Role
from memr1_plugin.agents.manager import Manager, prompt
from memr1_plugin.errors import ModelError
from memr1_plugin.settings import Settings
from memr1_plugin.testing import ScriptedModel
from memr1_plugin.types import Fact, MemoryItem, Scope

AT = datetime(2023, 5, 8, tzinfo=timezone.utc)


def fact(text: str) -> Fact:
    return Fact(text, "Ana", AT)


def item(id: int, text: str, days: int = 0, speaker: str = "Ana", score: float | None = None) -> MemoryItem:
    at = AT.replace(day=8 + days)
    return MemoryItem(id, Scope(), text, speaker, at, at, at, score=score)


def followed(
    completion: str, text: str, *related: MemoryItem, settings: Settings | None = None
) -> list[tuple[str, int | None, str]]:
    """What becomes of a completion on one fact of Ana's: (kind, target, who decided)."""
    decision = Manager(ScriptedModel([completion]), settings).decide([fact(text)], [related])
    return [(o.kind.value, o.target, s) for o, s in zip(decision.operations, decision.sources, strict=True)]


def test_a_fact_with_nothing_related_is_added_without_the_model() -> None:
    """The first fact of a bank costs no token."""
    engine = ScriptedModel(["never asked"])
    decision = Manager(engine).decide([fact("I live in Rome.")], [[]])
    assert [op.kind.value for op in decision.operations] == ["ADD"]
    assert decision.sources == ("rule",)
    assert decision.completion is None and engine.prompts == []


def test_an_exact_duplicate_is_a_noop_without_the_model() -> None:
    """Saying the same again, whatever the case and spacing, stores nothing twice and costs no token."""
    engine = ScriptedModel(["never asked"])
    decision = Manager(engine).decide([fact("i live  in rome.")], [[item(1, "I live in Rome.")]])
    assert [op.kind.value for op in decision.operations] == ["NOOP"]
    assert engine.prompts == []


def test_the_cheap_path_can_be_switched_off() -> None:
    """With Settings(certain=False) the model is asked of what is certain, too."""
    engine = ScriptedModel(["ADD"])
    decision = Manager(engine, Settings(certain=False)).decide([fact("I live in Rome.")], [[]])
    assert [op.kind.value for op in decision.operations] == ["ADD"]
    assert decision.sources == ("manager",) and len(engine.prompts) == 1


def test_all_open_facts_of_a_turn_are_one_call_over_the_union_of_what_is_related() -> None:
    """Two facts that share a related memory see it once, under one number; what is most related comes first."""
    engine = ScriptedModel(["UPDATE 1\nADD"])
    rome, cat = item(7, "I live in Rome."), item(9, "My cat is Rex.", days=1)
    decision = Manager(engine).decide(
        [fact("I moved to Berlin."), fact("New thing."), fact("Rex is grey.")], [[rome, cat], [], [cat]]
    )
    [asked] = engine.prompts
    assert asked.body.count("Rex.") == 1 and asked.body.index("1. ") < asked.body.index("I live in Rome")
    assert "New thing" not in asked.body
    assert [(op.kind.value, op.target) for op in decision.operations] == [("ADD", None), ("UPDATE", 7), ("ADD", None)]
    assert decision.sources == ("rule", "manager", "manager")


def test_braces_in_a_memory_are_text_and_never_placeholders() -> None:
    """A memory that says {facts} stays as it is: prompts are filled in one pass."""
    built = prompt([fact("{memories}")], [item(1, "{facts} {0}")], trained=True)
    assert built.body == "1. {facts} {0}\n- {memories}\n=>"


def test_the_trained_prompt_names_only_who_else_speaks() -> None:
    """No dates, no headings, no name of the facts' own speaker; another's name, and one line for each item."""
    shown = [item(1, "I live in Rome."), item(2, "I like\ntea.", speaker="Ben\n- Eve")]
    built = prompt([fact("I moved to Berlin."), fact("I have\na cat.")], shown, trained=True)
    assert (
        built.body == ("1. I live in Rome.\n2. Ben - Eve: I like tea.\n- I moved to Berlin.\n- I have a cat.\n=>")
        and not built.fixed
    )
    zero_shot = prompt([fact("I moved to Berlin.")], shown, trained=False)
    assert "1. [8 May 2023] Ana: I live in Rome." in zero_shot.body


def test_a_very_long_memory_is_cut_in_the_prompt_only() -> None:
    """One long memory cannot cost a thousand tokens at every turn."""
    long = item(1, "word " * 1000)
    assert len(prompt([fact("x")], [long], trained=True).body) < 500
    assert len(long.text) == 5000


def test_a_model_that_fails_raises_and_is_never_a_noop() -> None:
    """A dying engine is an error for the caller to hold the turn; it decides nothing."""

    def fails(asked: Prompt, role: Role) -> str:
        raise ModelError("out of memory")

    with pytest.raises(ModelError, match="out of memory"):
        Manager(ScriptedModel(fails)).decide([fact("a")], [[item(1, "b")]])


def test_a_noop_does_not_drop_the_one_new_word_of_a_short_fact() -> None:
    """ "I live in Berlin now" shares half of its words with "I live in Paris", and was dropped as said before."""
    known = item(1, "I live in Paris.", score=0.9)
    assert followed("NOOP", "I live in Berlin now.", known) == [("ADD", None, "rule")]
    assert followed("NOOP", "I do live in Paris.", known) == [("NOOP", None, "manager")]


def test_a_noop_is_believed_only_where_the_speaker_said_as_much_before() -> None:
    """A Manager LoRA said NOOP to half of a real dialogue, and with that a quarter of the evidence was gone."""
    said, added = [("NOOP", None, "manager")], [("ADD", None, "rule")]
    repeated = "You know, Rex is my dog's name."
    assert followed("NOOP", repeated, item(1, "My dog is called Rex.", score=0.85)) == said
    assert followed("NOOP", repeated, item(1, "My dog is called Rex.", score=0.6)) == added
    assert followed("NOOP", repeated, item(1, "Ana, I see!", score=0.85)) == added
    assert followed("NOOP", repeated, item(1, "My dog is called Rex.", score=0.85, speaker="Bob")) == added
    assert followed("NOOP", repeated, item(1, "My dog is called Rex.", score=0.85, speaker="user")) == said
    trusting = Settings(believed_floor=0.0)
    assert followed("NOOP", repeated, item(1, "My dog is called Rex.", score=0.1), settings=trusting) == said


def test_nobody_ends_or_replaces_what_another_said() -> None:
    """Gina lost her job too, and Jon's memory of losing his was deleted."""
    mine, his = item(1, "I lost my job as a banker.", score=0.8), item(2, "I lost my job.", score=0.9, speaker="Jon")
    assert followed("DELETE 2", "I lost my job at a shop, too.", mine, his) == [("ADD", None, "rule")]
    assert followed("UPDATE 2", "I lost my job at a shop, too.", mine, his) == [("ADD", None, "rule")]
    assert followed("UPDATE 1", "I lost my job at a shop, too.", mine, his) == [("UPDATE", 1, "manager")]


def test_a_delete_must_be_about_its_memory_and_an_update_need_not_be() -> None:
    """An UPDATE keeps the fact, and the history what it replaced; a DELETE on a whim would lose both."""
    job = item(1, "I found losing my job hard.", score=0.65)
    assert followed("DELETE 1", "I had to close my bank account.", job) == [("ADD", None, "rule")]
    assert followed("UPDATE 1", "I had to close my bank account.", job) == [("UPDATE", 1, "manager")]
    sure = item(1, "I work at a bank.", score=0.75)
    assert followed("DELETE 1", "I no longer work at a bank.", sure) == [("DELETE", 1, "manager")]
    assert followed("DELETE 1; DELETE 2", "No longer.", sure, item(2, "x", score=0.5)) == [
        ("DELETE", 1, "manager"),
        ("ADD", None, "rule"),
    ]


def test_a_delete_is_believed_of_what_is_said_to_be_over() -> None:
    """On invented talk the Manager said all six right DELETEs, and none was followed: nothing said was close enough."""
    sport = item(1, "I switched from my old workout to kickboxing. I go every other week.", score=0.6)
    assert followed("DELETE 1", "I stopped doing kickboxing, my knees couldn't take it.", sport) == [
        ("DELETE", 1, "manager")
    ]
    assert followed("DELETE 1", "I stopped eating meat.", sport) == [("ADD", None, "rule")]  # over, but not this
    assert followed("DELETE 1", "Kickboxing was fun today.", sport) == [("ADD", None, "rule")]  # this, but not over


@pytest.mark.parametrize(
    ("said", "known", "kind"),
    [
        ("I moved to Berlin last week, I don't live in Lisbon any more.", "I live in Lisbon.", "UPDATE"),
        ("I don't live in Lisbon any more, I moved to my parents' house.", "I live in Lisbon.", "UPDATE"),
        ("I stopped working at Bosch, Siemens has taken me.", "I work at Bosch.", "UPDATE"),
        ("I don't live in Lisbon any more.", "I live in Lisbon.", "DELETE"),
        ("I quit mosaic, I sold my tools last Wednesday [the Wednesday before 17 May].", "I like mosaic.", "DELETE"),
        ("Great question, Hannah! I don't do kickboxing any more.", "I do kickboxing.", "DELETE"),
        ("Kickboxing with Ana is over, I gave it up.", "I do kickboxing.", "DELETE"),  # Ana is who speaks
    ],
)
def test_a_withdrawal_does_not_take_what_came_after_away(said: str, known: str, kind: str) -> None:
    """The first one was a bot's: its Manager deleted Lisbon, and Berlin was nowhere."""
    assert followed("DELETE 1", said, item(1, known, score=0.9)) == [
        (kind, 1, "manager" if kind == "DELETE" else "rule")
    ]
    assert followed("DELETE 1; ADD", said, item(1, known, score=0.9)) == [
        ("DELETE", 1, "manager"),
        ("ADD", None, "manager"),
    ]


@pytest.mark.parametrize(
    ("said", "known", "speaker", "bears"),
    [
        ("I moved to Berlin.", "I live in Lisbon.", "Ana", True),  # no word in common, and yet
        ("I moved to Berlin.", "I live in Lisbon.", "Bob", False),
        ("I moved to Berlin.", "I live in Lisbon.", "user", True),
        ("That is such good news for you!", "I got good news today.", "Ana", False),
        ("You are the best, and that is the truth.", "You have the best studio of the town.", "Ana", False),
        ("The trip to Rosa is off.", "We had a great trip to the lake with Rosa.", "Ana", True),
        ("Ich wohne jetzt in Berlin.", "Ich wohne in Lissabon.", "Ana", True),
        ("Mein Hund heißt Rex.", "Ich wohne in Lissabon.", "Ana", False),
    ],
)
def test_the_model_is_asked_about_what_a_fact_could_change(said: str, known: str, speaker: str, bears: bool) -> None:
    """In a long dialogue something is related to every turn: 99 of 100 asked the model, most of them for nothing."""
    assert bears_on(fact(said), item(1, known, speaker=speaker, score=0.5), Settings()) is bears


@pytest.mark.parametrize(
    ("said", "known", "asked"),
    [
        ("I love to dance with my friends.", "I was so happy when we won the cup.", False),  # nothing is otherwise
        ("I have 3 cats now.", "I have 2 cats.", True),
        ("I won't go to the gym any more.", "I love my gym.", True),
        ("The trip to Rosa is off.", "We had a great trip to the lake with Rosa.", True),
        ("Ich wohne in Berlin.", "Ich wohne in Lissabon.", True),  # how a change looks is known of English only
    ],
)
def test_the_model_is_asked_where_something_looks_like_a_change(said: str, known: str, asked: bool) -> None:
    """Of a real dialogue's turns 72 in 100 could bear on a memory, and nobody takes anything back in it."""
    assert bool(in_question(fact(said), [item(1, known, score=0.5)], Settings())) is asked


def test_where_one_memory_looks_changed_all_that_could_be_are_shown() -> None:
    """Shown only the one that looked changed, the Manager wrote a new plan over it: the old plan shared no word."""
    plan, now = item(1, "Some day I will climb a volcano.", score=0.4), item(2, "I paint now.", score=0.7)
    said = fact("I've changed my mind. Now I want to open a studio instead.")
    assert in_question(said, [plan], Settings()) == []
    assert in_question(said, [now, plan], Settings()) == [now, plan]
    assert in_question(said, [replace(plan, score=None)], Settings()) == [replace(plan, score=None)]


def test_an_update_does_not_replace_somebody_else_s_life() -> None:
    """ "My sister Rosa is a nurse" was written over by the speaker's own new job: retrieval had put them together."""
    rosa, home = item(1, "My sister Rosa is a nurse.", score=0.53), item(2, "I live in Lisbon.", score=0.5)
    assert followed("UPDATE 1", "I quit my job at Siemens, I work at Bosch now.", rosa) == [("ADD", None, "rule")]
    assert followed("UPDATE 1", "Rosa is a doctor now.", rosa) == [("UPDATE", 1, "manager")]
    assert followed("UPDATE 1", "She became a doctor.", item(1, "My sister is a nurse.", score=0.8)) == [
        ("UPDATE", 1, "manager")
    ]
    assert followed("UPDATE 1", "I moved to Berlin.", home) == [("UPDATE", 2, "manager")]


def test_what_is_not_followed_is_reported_with_its_line() -> None:
    """Statistics show how often the model was overruled."""
    decision = Manager(ScriptedModel(["DELETE 1"])).decide([fact("I swim.")], [[item(4, "I sing.", score=0.5)]])
    [rejection] = decision.rejections
    assert (rejection.reason, rejection.line, rejection.fact) == ("unsupported", "DELETE 1", fact("I swim."))
