"""Relative dates become absolute, nothing else is touched, and no text breaks it."""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memr1_plugin.dates import original, resolve

RESOLVED = [
    # what was said, when, what the bracket says
    ("I went there yesterday.", "2023-05-08", "7 May 2023"),
    ("yesterday morning", "2023-05-08", "7 May 2023"),
    ("last night", "2023-01-01", "31 December 2022"),
    ("today", "2023-05-08", "8 May 2023"),
    ("this morning", "2023-05-08", "8 May 2023"),
    ("tomorrow night", "2023-05-08", "9 May 2023"),
    ("the day before yesterday", "2023-05-01", "29 April 2023"),
    ("the day after tomorrow", "2023-05-08", "10 May 2023"),
    ("two days ago", "2023-07-12", "10 July 2023"),
    ("a couple of days ago", "2023-07-12", "about 10 July 2023"),
    ("a few days ago", "2023-06-09", "a few days before 9 June 2023"),
    ("last week", "2023-06-09", "the week before 9 June 2023"),
    ("this week", "2023-08-23", "the week of 23 August 2023"),
    ("next week", "2023-08-23", "the week after 23 August 2023"),
    ("two weeks ago", "2023-05-08", "two weeks before 8 May 2023, about 24 April"),
    ("two weeks from now", "2023-05-08", "two weeks after 8 May 2023, about 22 May"),
    ("the week before last", "2023-05-08", "two weeks before 8 May 2023"),
    ("Tuesday last week", "2023-05-08", "2 May 2023"),
    ("last weekend", "2023-07-17", "the weekend before 17 July 2023, 15-16 July"),
    ("last weekend", "2023-07-15", "the weekend before 15 July 2023, 8-9 July"),  # a Saturday: this one is not over
    ("this past weekend", "2023-10-20", "the weekend before 20 October 2023, 14-15 October"),
    ("last weekend", "2023-10-02", "the weekend before 2 October 2023, 30 September-1 October"),
    ("two weekends ago", "2023-07-17", "two weekends before 17 July 2023, 8-9 July"),
    ("this weekend", "2023-05-08", "13-14 May 2023"),
    ("last Friday", "2023-07-15", "the Friday before 15 July 2023, 14 July"),
    ("last Friday", "2023-07-14", "the Friday before 14 July 2023, 7 July"),  # a Friday: not today
    ("last Tues.", "2023-07-20", "the Tuesday before 20 July 2023, 18 July"),
    ("last Friday", "2024-01-03", "the Friday before 3 January 2024, 29 December 2023"),
    ("three Fridays ago", "2023-05-08", "three Fridays before 8 May 2023, 21 April"),
    ("this Friday", "2023-05-08", "Friday 12 May 2023"),
    ("next Friday", "2023-05-08", "the Friday after 8 May 2023"),
    ("last month", "2023-01-31", "December 2022"),
    ("this month", "2023-01-31", "January 2023"),
    ("next month", "2023-01-31", "February 2023"),
    ("two months ago", "2023-05-08", "March 2023"),
    ("a few months ago", "2023-05-08", "a few months before May 2023"),
    ("last year", "2023-05-08", "2022"),
    ("next year's", "2023-05-08", "2024"),
    ("ten years ago", "2023-05-08", "2013"),
    ("about five years ago", "2023-05-08", "about 2018"),
    ("a few years ago", "2023-05-08", "a few years before 2023"),
    ("the year before last", "2023-05-08", "2021"),
    ("last summer", "2023-05-08", "summer 2022"),
    ("last summer", "2023-10-08", "summer 2023"),
    ("this winter", "2023-01-08", "winter 2022-2023"),
    ("last August", "2023-05-08", "August 2022"),
    ("next June", "2023-05-08", "June 2023"),
    ("Seven years now", "2023-09-13", "since 2016"),
    ("for the past three months", "2023-05-08", "since February 2023"),
    ("I've known these friends for 4 years", "2023-06-09", "since 2019"),
    ("We are leaving in three days", "2023-05-08", "11 May 2023"),
]

UNTOUCHED = [
    "This may be good, and the sun sat low.",
    "You may march next to the last sun rays.",
    "last week of May",
    "The last Friday was long ago.",
    "last Friday, 14 July",
    "last year 2022",
    "I read it three days back to back.",
    "I lost 5 kg in two weeks.",
    "in a year",
    "It feels like just yesterday!",
    '"Yesterday" is a song by the Beatles.',
    "for the past few months",
    "the next few days",
    "a lasting day-to-day job",
]


def on(day: str) -> datetime:
    return datetime.fromisoformat(day).replace(tzinfo=timezone.utc)


@pytest.mark.parametrize(("words", "day", "bracket"), RESOLVED)
def test_the_bracket_says_what_people_answer(words: str, day: str, bracket: str) -> None:
    """A relative date keeps its words, and the absolute date follows in brackets."""
    resolved = resolve(f"Well, {words}", on(day))
    assert re.findall(r"\[(.*?)\]", resolved) == [bracket]
    assert original(resolved) == f"Well, {words}"


@pytest.mark.parametrize("text", UNTOUCHED)
def test_what_only_looks_relative_is_left_alone(text: str, monday: datetime) -> None:
    """Words that only look like dates, and dates that are absolute already, get no bracket."""
    assert resolve(text, monday) == text


def test_every_date_of_a_text_is_resolved(monday: datetime) -> None:
    """One text may hold several relative dates, possessives among them."""
    text = "Last week's show was fun; yesterday I slept, and I'll call tomorrow and leave in two weeks."
    assert resolve(text, monday) == (
        "Last week's [the week before 8 May 2023] show was fun; yesterday [7 May 2023] I slept, and I'll call tomorrow "
        "[9 May 2023] and leave in two weeks [two weeks after 8 May 2023, about 22 May]."
    )


def test_the_day_is_that_of_the_speakers_own_clock() -> None:
    """Just after midnight in Tokyo it is still yesterday in London: the turn's own zone counts."""
    tokyo = timezone(timedelta(hours=9))
    assert resolve("yesterday", datetime(2023, 5, 8, 0, 30, tzinfo=tokyo)) == "yesterday [7 May 2023]"


def test_years_that_no_calendar_has_are_left_alone() -> None:
    """Before year 1000 and after 9999 there is nothing to say."""
    assert resolve("999 years ago", on("1500-01-01")) == "999 years ago"
    assert resolve("999 years from now", on("9998-01-01")) == "999 years from now"


PHRASES = st.sampled_from([words for words, _, _ in RESOLVED] + UNTOUCHED)
TEXTS = st.lists(st.one_of(PHRASES, st.text(max_size=20)), max_size=6).map(" ".join)
TIMES = st.datetimes(datetime(1000, 1, 1), datetime(9998, 12, 31))


@given(TEXTS, TIMES)
def test_no_text_breaks_it_and_the_words_can_be_had_back(text: str, at: datetime) -> None:
    """Any text at any time resolves; resolving twice is resolving once; `original` undoes it."""
    resolved = resolve(text, at)
    assert resolve(resolved, at) == resolved
    assert original(resolved) == original(text)
    if "[" not in text:
        assert original(resolved) == text


@pytest.mark.parametrize("piece", ["will ", "have been ", "9 ", "last ", "in a few ", " ", "a", "the day "])
def test_a_long_text_takes_time_in_proportion(piece: str, monday: datetime) -> None:
    """Eight times the text is not the sixty-four times the work that a pattern which starts over would make of it."""

    def work(characters: int) -> float:
        text, took = (piece * characters)[:characters] + " last week", []
        for _ in range(3):
            begun = time.process_time()
            resolve(text, monday)
            took.append(time.process_time() - begun)
        return min(took)

    assert work(96_000) < 32 * max(work(12_000), 1e-4)
