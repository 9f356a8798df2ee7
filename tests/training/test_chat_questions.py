"""What real people said becomes questions by rules, and only where the rules are sure."""

from __future__ import annotations

import pytest

pytest.importorskip("trl", reason="needs the extra train")
pytest.importorskip("chitchat_dataset", reason="needs the package chitchat-dataset")

from memr1_plugin.training import chat_questions
from memr1_plugin.training.synthetic import Person

ANA, BEN = Person("Ana", "f"), Person("Ben", "m")


@pytest.mark.parametrize(
    ("said", "question", "answer"),
    [
        ("I bought a kayak for my brother.", "What did Ana buy for her brother?", "a kayak"),
        ("Haha yeah, I really love the mountains too!", "What does Ana love?", "the mountains"),
        ("I'm majoring in computer science, how about you", "What is Ana studying?", "computer science"),
        ("My favorite food is ramen noodles.", "What is Ana's favorite food?", "ramen noodles"),
        ("I have 5 brothers and a dog", "How many brothers does Ana have?", "5"),
        ("i went to Cafe Rio because it was late", "Where did Ana go?", "Cafe Rio"),
        ("I used to play the drums, but it has been a long time", "What did Ana use to do?", "play the drums"),
        ("My sister loves horses.", "What does Ana's sister love?", "horses"),
        ("I want to get a tattoo.", "What does Ana want to do?", "get a tattoo"),
        ("I like pizza, sushi and old movies.", "What does Ana like?", "pizza, sushi and old movies"),
        ("I took a trip to the sea to clear my mind.", "Why did Ana take a trip to the sea?", "to clear her mind"),
        ("I bought a kayak at the old market.", "Where did Ana buy a kayak?", "the old market"),
        ("I went to the concert with my sister.", "Who did Ana go to the concert with?", "her sister"),
        ("I run by counting my steps.", "How does Ana run?", "by counting her steps"),
        ("I'm so excited about the dance class.", "How does Ana feel about the dance class?", "excited"),
        ("I was nervous because I had never been on stage.", "Why is Ana nervous?", "she had never been on stage"),
        ("The view was calm and beautiful.", "How does Ana describe the view?", "calm and beautiful"),
        (
            "My mom is one of the best cooks in town.",
            "What does Ana say about her mom?",
            "one of the best cooks in town",
        ),
        ("I adopted a miniature dachshund.", "What kind of dachshund did Ana adopt?", "miniature dachshund"),
    ],
)
def test_a_statement_becomes_a_question_that_it_answers(said: str, question: str, answer: str) -> None:
    """The words of the answer are the speaker's; only pronouns are turned."""
    assert (question, answer) in {(a.question, a.answer) for a in chat_questions.asked_of(said, ANA)}


@pytest.mark.parametrize(
    "said",
    [
        "I love it!",  # nobody can say what "it" was
        "I have no idea.",
        "I have been learning a lot.",
        "I went back.",
        "I don't like coffee.",  # "No" alone would teach a small model to say it always
        "Do you like coffee?",
        "I got to my second class.",
        "We used to use it.",
    ],
)
def test_a_statement_that_says_nothing_by_itself_is_left_alone(said: str) -> None:
    """An answer that points elsewhere, begins in the middle or is an auxiliary's is no answer."""
    assert chat_questions.asked_of(said, BEN) == []


@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")  # the package's file
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_conversations_are_real_words_with_evidence_for_every_question() -> None:
    """Each answer stands in the turns that its question rests on, and the same seed tells the same."""
    made = list(chat_questions.conversations(11, 3))
    assert made == list(chat_questions.conversations(11, 3))
    asked = [(q, {t.id: t.text for t in c.turns}) for c in made for q in c.questions]
    assert len(asked) > 8
    for question, texts in asked:
        said = " ".join(texts[turn_id] for turn_id in question.evidence).lower()
        words = [
            w for w in question.answer.lower().replace(",", "").split() if w not in ("his", "her", "himself", "herself")
        ]
        assert all(word.strip("'\".") in said for word in words), question
