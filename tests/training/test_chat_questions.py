"""What real people said becomes questions by rules, and only where the rules are sure."""

from __future__ import annotations

import pytest

pytest.importorskip("trl", reason="needs the extra train")
pytest.importorskip("chitchat_dataset", reason="needs the package chitchat-dataset")

from memr1_plugin.training import chat_questions, cloze, replies
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
    assert (question, answer) in {(a.question, a.answer) for a in cloze.asked_of(said, ANA)}


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
    assert cloze.asked_of(said, BEN) == []


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


@pytest.mark.parametrize(
    ("before", "reply", "question", "answer"),
    [
        (
            "Cool! What instrument do you play?",
            "Flute. I sat down for hours.",
            "What instrument does Ana play?",
            "Flute",
        ),
        ("So what's your favorite song?", "It's probably Angel.", "What is Ana's favorite song?", "Angel"),
        ("Where did you go on your mission?", "I went to Hawaii!", "Where did Ana go on her mission?", "Hawaii"),
        (
            "What sports do you like?",
            "Um I like golf, art, climbing.",
            "What sports does Ana like?",
            "golf, art, climbing",
        ),
        ("How long have you been dancing?", "for about 12 years", "How long has Ana been dancing?", "12 years"),
        ("Why did you pick law?", "because my dad did.", "Why did Ana pick law?", "her dad did"),
    ],
)
def test_a_question_and_its_reply_become_one_about_the_speaker(
    before: str, reply: str, question: str, answer: str
) -> None:
    """The question is a person's own, in the third person; the answer is cut from the reply."""
    assert [(a.question, a.answer) for a in replies.asked_in(before, reply, ANA)] == [(question, answer)]


@pytest.mark.parametrize(
    ("before", "reply"),
    [
        ("How are you?", "Tired."),
        ("I like rain. What about you?", "Snow."),
        ("What do you think of it?", "A masterpiece."),  # rests on what was said before
        ("What is your favorite song?", "That's a good question!"),
        ("What is your favorite song?", "Awesome man"),
        ("What classes are you taking?", "I use a spotted pen."),  # says something else
        ("What is your favorite song?", "What is yours?"),
    ],
)
def test_a_reply_that_no_rule_understands_is_left_alone(before: str, reply: str) -> None:
    """Greetings, reactions and replies about something else teach nothing."""
    assert replies.asked_in(before, reply, ANA) == []


@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")  # the package's file
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_what_people_asked_each_other_comes_first() -> None:
    """With few questions a conversation, those that were asked and replied to are the ones that are kept."""
    made = list(chat_questions.conversations(12, 4, most=3, replied=True))
    assert all("_replied_" in c.questions[0].id for c in made if c.questions)
    assert sum("_replied_" in q.id for c in made for q in c.questions) >= 8
