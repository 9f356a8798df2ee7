"""Facts are the speaker's own words: small talk out, dates resolved, nothing of substance lost."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memr1_plugin.dates import original
from memr1_plugin.errors import InputError, ModelError
from memr1_plugin.evaluation import datasets
from memr1_plugin.extraction import (
    CONTEXT_CHARS,
    LONG_CHARS,
    MAX_LLM_FACTS,
    LLMExtractor,
    VerbatimExtractor,
    as_extractor,
    sentences,
)
from memr1_plugin.testing import ScriptedModel
from memr1_plugin.types import Turn

MONDAY = datetime(2023, 5, 8, 13, 56, tzinfo=timezone.utc)


def said(text: str, speaker: str = "Ana", **fields: Any) -> Turn:
    return Turn(text=text, speaker=speaker, at=MONDAY, **fields)


def facts(text: str, before: str = "", **fields: Any) -> list[str]:
    previous = said(before, "Melanie") if before else None
    return [fact.text for fact in VerbatimExtractor().extract(said(text, **fields), previous)]


def test_a_turn_is_one_fact_with_its_date_resolved() -> None:
    """The words stay, the date is added, and the fact knows who said it, when, and in which turn."""
    turn = said("I moved to Berlin last month.", id="t7", metadata={"room": "kitchen"})
    [fact] = VerbatimExtractor().extract(turn, said("What's new?", "Bob"))
    assert fact.text == "I moved to Berlin last month [April 2023]."
    assert (fact.speaker, fact.at, fact.turn_id) == ("Ana", MONDAY, "t7")
    assert fact.context == "Bob: What's new?" and fact.metadata == {"room": "kitchen"}


@pytest.mark.parametrize(
    "text",
    [
        "Wow, that's great!",
        "Hey Mel! Good to see you! How have you been?",
        "Thanks, Melanie! That's really sweet. Is this your own painting?",
        "Hello Bob!",
        "Yeah!",
        "What is the capital of France?",
        "Did you see it? 😀",
        "👍👍",
        "Bye, take care!",
        "\u4f60\u597d\u5417\uff1f",  # "How are you?" in Chinese
    ],
)
def test_small_talk_and_questions_are_no_facts(text: str) -> None:
    """Greetings, thanks, praise, acknowledgements and questions leave no memory."""
    assert facts(text, before="I have a dog.") == []


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("Thanks, Mel! I got a dog. How are you?", "I got a dog."),
        ("I got a dog! It's great! His name is Rex.", "I got a dog! It's great! His name is Rex."),
        ("I'm visiting my sister in Rome, any ideas?", "I'm visiting my sister in Rome, any ideas?"),
        ("Ich wohne in Köln.", "Ich wohne in Köln."),
        ("Look! [shares a photo: a red kayak]", "Look! [shares a photo: a red kayak]"),
        ("Dr. Smith called.", "Dr. Smith called."),
    ],
)  # fmt: skip
def test_substance_is_kept_and_its_frame_left_out(text: str, fact: str) -> None:
    """What frames a statement goes, what stands inside it stays; a photo keeps the words it came with."""
    assert facts(text) == [fact]


def test_a_short_reply_takes_the_question_along() -> None:
    """ "Luna and Oliver!" means nothing without "What are their names?"."""
    assert facts("Luna and Oliver!", "Ah, cute! What are their names?") == [
        'Luna and Oliver! (asked: "What are their names?")'
    ]
    assert facts("Yes, I do!", "Do you have a dog?") == ['Yes, I do! (asked: "Do you have a dog?")']
    assert facts("Great!", "How are you?") == []
    assert facts("Luna and Oliver!", "I like cats.") == ["Luna and Oliver!"]
    assert facts("My cat is called Rex.", "How can I help you?") == ["My cat is called Rex."]


def test_a_long_turn_becomes_a_few_facts_that_lose_no_word() -> None:
    """Facts end where sentences end, none is too long, and each later one has the one before as context."""
    text = " ".join(f"On trip {n} I saw the harbour of town number {n} and ate fish." for n in range(20))
    found = VerbatimExtractor().extract(said(text), said("Tell me!", "Bob"))
    assert 3 <= len(found) <= 6 and all(len(f.text) <= LONG_CHARS and f.text.endswith(".") for f in found)
    assert " ".join(f.text for f in found) == text
    assert found[0].context == "Bob: Tell me!" and found[1].context.endswith("and ate fish.")


def test_a_context_is_the_end_of_a_long_turn() -> None:
    """The question that a turn answers stands at the end of the turn before."""
    [fact] = VerbatimExtractor().extract(said("I saw two whales."), said("blah " * 500 + "What did you see?", "Bob"))
    assert fact.context.endswith("What did you see?") and len(fact.context) <= CONTEXT_CHARS + len("Bob: ")


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=2000))
def test_no_text_breaks_it_and_no_fact_invents_words(text: str) -> None:
    """Any turn extracts, and every fact's words are the turn's own, in order."""
    if text.strip():
        for fact in VerbatimExtractor().extract(said(text), None):
            assert "".join(original(fact.text).split()) in "".join(original(text).split())
            assert fact.text.strip()


def test_sentences_join_to_the_text() -> None:
    """Splitting keeps every character but the white space between sentences."""
    text = "Dr. No came. He left!  Did J. R. stay? Yes…\nOK"
    assert sentences(text) == ["Dr. No came.", "He left!", "Did J. R. stay?", "Yes…", "OK"]


def test_a_turn_without_spaces_or_sentences_is_cut_all_the_same() -> None:
    """A 100,000-character word is many facts, not one that no prompt holds."""
    found = facts("x" * 100_000)
    assert max(map(len, found)) <= LONG_CHARS and sum(map(len, found)) == 100_000


def test_nearly_all_evidence_of_real_dialogues_survives(data_dir: Path) -> None:
    """Of the turns that LoCoMo's questions rest on, fewer than 2 in 100 yield no fact; of all turns, 7 in 100."""
    kept = evidence = facts_of_all = turns = 0
    for conversation in datasets.load(data_dir / "locomo" / "locomo_dev.json"):
        wanted = {e for q in conversation.questions if not q.unanswerable for e in q.evidence}
        previous: Turn | None = None
        for turn in conversation.turns:
            same = previous if previous and previous.session == turn.session else None
            found = bool(VerbatimExtractor().extract(turn, same))
            turns, facts_of_all, previous = turns + 1, facts_of_all + found, turn
            evidence, kept = evidence + (turn.id in wanted), kept + (turn.id in wanted and found)
    assert kept / evidence > 0.98
    assert facts_of_all / turns < 0.94


def test_an_engine_extracts_line_by_line() -> None:
    """Bullets, numbers, repeats and "none" are read leniently; dates are resolved in what the model wrote."""
    model = ScriptedModel(["- Ana moved yesterday.\n2. Ana has a cat.\n\n- Ana has a cat.\nnone\n- Where is Ana?"])
    found = LLMExtractor(model).extract(said("I moved yesterday with my cat."), said("News?", "Bob"))
    assert [f.text for f in found] == ["Ana moved yesterday [7 May 2023].", "Ana has a cat."]
    assert "Bob: News?\nAna: I moved yesterday with my cat." in model.prompts[0].body


def test_small_talk_costs_no_model_call() -> None:
    """An LLM is not asked about "Thanks!"."""
    model = ScriptedModel([])
    assert LLMExtractor(model).extract(said("Thanks, that's great!"), None) == []
    assert model.calls == []


@pytest.mark.parametrize(
    "llm",
    [
        SimpleNamespace(invoke=lambda prompt: SimpleNamespace(content="Ana has a cat.")),
        SimpleNamespace(invoke=lambda prompt: SimpleNamespace(content=[{"type": "text", "text": "Ana has a cat."}])),
        SimpleNamespace(invoke=lambda prompt: "Ana has a cat."),
        SimpleNamespace(complete=lambda prompt: SimpleNamespace(text="Ana has a cat.")),
    ],
)
def test_what_any_framework_returns_is_read(llm: object) -> None:
    """A message, a message of blocks, a string and a completion response all have a text."""
    assert [f.text for f in LLMExtractor(llm).extract(said("I have a cat."), None)] == ["Ana has a cat."]


def test_real_framework_models_extract() -> None:
    """LangChain's and LlamaIndex's own classes are accepted as they are."""
    fake = pytest.importorskip("langchain_core.language_models.fake_chat_models")
    mock = pytest.importorskip("llama_index.core.llms.mock")
    langchain = LLMExtractor(fake.FakeListChatModel(responses=["- Ana has a cat."]))
    assert [f.text for f in langchain.extract(said("I have a cat."), None)] == ["Ana has a cat."]
    assert LLMExtractor(mock.MockLLM(max_tokens=5)).extract(said("I have a cat."), None)


def test_a_failing_model_raises() -> None:
    """A model that fails never becomes "no facts": the turn must stay pending."""

    def fail(prompt: str) -> str:
        raise TimeoutError("no answer after 30 s")

    with pytest.raises(ModelError, match=r"TimeoutError: no answer after 30 s.*stays pending"):
        LLMExtractor(SimpleNamespace(invoke=fail)).extract(said("I have a cat."), None)
    with pytest.raises(ModelError, match="replied with int"):
        LLMExtractor(SimpleNamespace(invoke=lambda prompt: 7)).extract(said("I have a cat."), None)


def test_a_model_that_babbles_is_cut() -> None:
    """More lines than a turn can hold facts are not read."""
    model = ScriptedModel([" \n".join(f"fact number {n}" for n in range(100))])
    assert len(LLMExtractor(model).extract(said("I have a cat."), None)) == MAX_LLM_FACTS


def test_an_extractor_is_chosen_by_name_or_object() -> None:
    """ "verbatim", "llm", an extractor, a model; anything else is refused with what was expected."""
    engine, verbatim = ScriptedModel([]), VerbatimExtractor()
    assert isinstance(as_extractor(None), VerbatimExtractor)
    assert isinstance(as_extractor("llm", engine), LLMExtractor)
    assert as_extractor(verbatim) is verbatim
    assert isinstance(as_extractor(engine), LLMExtractor)
    for wrong in ("llm", "magic", 7):
        with pytest.raises(InputError, match="expected"):
            as_extractor(wrong)
