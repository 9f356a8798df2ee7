"""Relative dates made absolute: "yesterday" becomes "yesterday [7 May 2023]".

Not a date parser: expressions that carry their own date ("3 May", "2022-11-05") are left alone, and so is everything
that only looks like one ("may", "sun", "sat"). The idea is LoCoMo's questions (Maharana et al., ACL 2024), whose gold
answers say what the brackets say: "The week before 9 June 2023", "June 2023", "2022".

Vague words stay vague ("a few days before 9 June 2023"); where people answer one thing in two ways, the bracket has
both ("the Friday before 15 July 2023, 14 July"). Seasons are those of the northern half of the world.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, timedelta

from dateutil.relativedelta import relativedelta

_MONTHS = "January February March April May June July August September October November December"
_WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
_TO_TWELVE = "zero one two three four five six seven eight nine ten eleven twelve"
MONTHS = tuple(_MONTHS.split())
WEEKDAYS = tuple(_WEEKDAYS.split())
_SEASONS = {"spring": 3, "summer": 6, "autumn": 9, "fall": 9, "winter": 12}
_NUMBERS = {word: n for n, word in enumerate(_TO_TWELVE.split())}
_NUMBERS |= {"a": 1, "an": 1, "fifteen": 15, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50}

# "sun", "sat" and "wed" are words, and "may" and "march" too: those need their capital.
_DAY = r"(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day|(?-i:[Mm]on|[Tt]ues?|Wed|[Tt]hurs?|[Ff]ri|Sat|Sun)\b)"
_MONTH = rf"(?-i:{'|'.join(MONTHS)})"
_NUMBER = rf"(?:(?:a\s+)?couple(?:\s+of)?|(?:a\s+)?few|several|{'|'.join(_NUMBERS)}|\d{{1,3}})"
_ROUGHLY = r"(?:(?:about|around|almost|nearly|over|more\s+than)\s+)?"
_UNITS = r"(?:day|night|week|weekend|month|year)s?"
_SPAN = r"(?:week|weekend|month|year)"
_PART = r"(?:\s+(?:morning|afternoon|evening|night))?"
_SEASON = r"(?:spring|summer|autumn|fall|winter)(?:\s+(?:break|vacation|holidays?))?"
_END = rf"(?![\w'\u2019/-]|(?:\s+\w+)?\s*\[|,?\s*\(?(?:\d{{1,2}}(?:st|nd|rd|th)?\s+{_MONTH}|{_MONTH}\s+\d|\d{{4}}\b))"

_RELATIVE = re.compile(
    rf"""(?<![\w"\u201c'\u2018\u2019/-])(?<!\blike\s)(?<!\blike\sjust\s)(?<!\blike\sit\swas\s)(?:
      (?P<day>(?:yesterday|tomorrow){_PART}|today|tonight|last\s+(?:night|evening)|this\s+(?:morning|afternoon|evening)
        |(?:the\s+)?day\s+(?:before\s+yesterday|after\s+tomorrow))
    | (?P<beyond>the\s+(?:{_SPAN}|{_DAY})\s+(?:before\s+last|after\s+next))
    | (?P<in_week>{_DAY}\s+(?:of\s+)?(?:last|next)\s+week)
    | (?P<since>(?:for\s+)?(?:the\s+)?(?:past|last)\s+{_NUMBER}\s+(?:month|year)s?|{_NUMBER}\s+(?:month|year)s?\s+now)
    | (?P<ago>{_ROUGHLY}{_NUMBER}\s+(?:{_UNITS}|{_DAY}s)\s+(?:ago|from\s+now|back(?=\s*(?:[.,!?;)]|$))))
    | (?<!\bthe\s)(?P<edge>(?:last|next|this(?:\s+(?:past|coming))?)\s+(?:{_SPAN}|{_DAY}{_PART}|{_MONTH}|{_SEASON}))
        (?!\s+of\b)
    )(?:['\u2019]s)?{_END}""",
    re.IGNORECASE | re.VERBOSE,
)
_IN_CLAUSE = re.compile(
    rf"""\b(?:
      (?:have|has|['\u2019]ve|['\u2019]s)\s+(?:\w+\s+)?(?:been|known|had|lived|worked|played|owned|wanted|loved|done|danced)\b
        [^.!?,;\[\]]{{0,60}}?\b(?P<since>for\s+{_ROUGHLY}{_NUMBER}\s+(?:month|year)s?)
    | (?:will|going\s+to|gonna|leaving|starting|coming\s+up|happening|due|['\u2019]ll)\b
        [^.!?,;\[\]]{{0,60}}?\b(?P<ago>in\s+{_ROUGHLY}{_NUMBER}\s+{_UNITS})(?=\s*(?:[.!?,;)]|$))
    ){_END}""",
    re.IGNORECASE | re.VERBOSE,
)
_AGO = re.compile(rf"(in )?({_ROUGHLY})({_NUMBER}) (\w+)", re.IGNORECASE)
_HINT = re.compile(r"day|night|ago\b|last|next|this|now\b|tomorrow|morning|back|\bfor\b|\bin\b", re.IGNORECASE)

_EARLY = re.compile(r"(?:^|\w )\d{1,3}$")  # a year before 1000: "900 years ago", said long ago
_DATE = rf"(?:\d{{1,2}}-)?(?:\d{{1,2}} )?(?:{'|'.join(MONTHS)})(?: \d{{4}})?"
_SPOKEN = (
    rf"(?:(?:{'|'.join(WEEKDAYS)}|spring|summer|autumn|fall|winter) )?(?:{_DATE}(?:-{_DATE})?|\d{{4}}(?:-\d{{4}})?)"
)
_BRACKET = re.compile(rf" \[(?:about |since |[\w ]+ (?:before|after|of) )?{_SPOKEN}(?:, (?:about )?{_SPOKEN})?\]")


def resolve(text: str, said: datetime) -> str:
    """Return `text` with the absolute date after each relative one, in brackets.

    ``resolve("I moved last month.", datetime(2023, 5, 8))`` is ``"I moved last month [April 2023]."``
    Text that was resolved before is returned as it is.
    """
    if not _HINT.search(text):
        return text

    def annotate(match: re.Match[str]) -> str:
        kind = match.lastgroup or ""
        words = " ".join(match[kind].lower().split())
        try:
            found = _RESOLVERS[kind](words, said.date())
        except (OverflowError, ValueError):  # before year 1 or after 9999: nothing absolute to say
            found = None
        return f"{match[0]} [{found}]" if found and not _EARLY.search(found) else match[0]

    return _RELATIVE.sub(annotate, _IN_CLAUSE.sub(annotate, text))


def original(text: str) -> str:
    """Return the words as they were said: `resolve` undone."""
    return _BRACKET.sub("", text)


def day_text(day: date, near: date | None = None) -> str:
    """Return "7 May 2023", or "7 May" when the year is that of `near`."""
    return f"{day.day} {MONTHS[day.month - 1]}" + ("" if near and near.year == day.year else f" {day.year}")


def _month_text(day: date) -> str:
    return f"{MONTHS[day.month - 1]} {day.year}"


def _weekend_text(saturday: date, near: date) -> str:
    sunday = saturday + timedelta(days=1)
    if sunday.month == saturday.month:
        return f"{saturday.day}-{day_text(sunday, near)}"
    return f"{day_text(saturday, near)}-{day_text(sunday, near)}"


def _weekday(word: str) -> int:
    """Return 0 for "monday", "mon" and "mondays"; -1 for any other word, "months" among them."""
    names = enumerate(name.lower() for name in WEEKDAYS)
    return next((n for n, name in names if name.startswith(word) or word == f"{name}s"), -1)


def _back(said: date, weekday: int, weeks: int = 1) -> date:
    """The `weeks`-th such weekday before `said`."""
    return said - timedelta(days=(said.weekday() - weekday - 1) % 7 + 1 + 7 * (weeks - 1))


def _day(words: str, said: date) -> str:
    if words.endswith("before yesterday"):
        return day_text(said - timedelta(days=2))
    if words.endswith("after tomorrow"):
        return day_text(said + timedelta(days=2))
    shift = {"yesterday": -1, "last": -1, "tomorrow": 1}.get(words.split()[0], 0)
    return day_text(said + timedelta(days=shift))


def _beyond(words: str, said: date) -> str | None:
    """Read "the week before last" and "the Friday after next"."""
    _, what, way, _ = words.split()
    sign = -1 if way == "before" else 1
    if what == "month":
        return _month_text(_shift(said, "month", 2 * sign))
    if what == "year":
        return str(_shift(said, "year", 2 * sign).year)
    if what == "weekend" and sign < 0:
        return f"two weekends before {day_text(said)}, {_weekend_text(_last_saturday(said, 2), said)}"
    if what in ("week", "weekend"):
        return f"two {what}s {way} {day_text(said)}"
    return day_text(_back(said, _weekday(what), 2)) if sign < 0 else None


def _in_week(words: str, said: date) -> str:
    """Read "Tuesday last week": weeks begin on Monday."""
    day, *_, way, _ = words.split()
    monday = said - timedelta(days=said.weekday() + (7 if way == "last" else -7))
    return day_text(monday + timedelta(days=_weekday(day)))


def _amount(words: str) -> tuple[int | None, str]:
    """Split off the number: (3, "weeks") of "about three weeks"; None for "a few" and "several"."""
    found = re.search(rf"\b({_NUMBER}) (\w+)", words)
    if found is None or "few" in found[1] or found[1] == "several":
        return None, words.split()[-1]
    number = 2 if "couple" in found[1] else _NUMBERS.get(found[1]) or int(found[1])
    return number, found[2]


def _ago(words: str, said: date) -> str | None:
    """Read "two weeks ago", "a few months back", "three days from now", "in a year"."""
    found = _AGO.match(words)
    if found is None:
        return None
    forward, about = bool(found[1]) or words.endswith("now"), "about " if found[2] or "couple" in found[3] else ""
    number, unit = _amount(found[0])
    sign, way, noun = (1, "after", found[4]) if forward else (-1, "before", found[4])
    phrase = f"{found[3]} {noun.capitalize() if _weekday(noun) >= 0 else noun} {way}"
    unit = unit.rstrip("s")
    if number is None:
        return f"{phrase} {_coarse(unit, said)}"
    if unit in ("day", "night"):
        return about + day_text(said + timedelta(days=sign * number))
    if unit in ("month", "year"):
        return about + _coarse(unit, _shift(said, unit, sign * number))
    return f"{phrase} {day_text(said)}" + _second_reading(unit, number, sign, said)


def _shift(day: date, unit: str, number: int) -> date:
    """`day` some months or years away; the 31st becomes the month's last day."""
    return day + relativedelta(months=number * (12 if unit == "year" else 1))


def _coarse(unit: str, day: date) -> str:
    """`day` as finely as `unit` speaks: a year, a month, or the day itself."""
    return str(day.year) if unit == "year" else _month_text(day) if unit == "month" else day_text(day)


def _second_reading(unit: str, number: int, sign: int, said: date) -> str:
    """The day that "two weeks", "two weekends" or "two Fridays" before or after `said` comes to."""
    if unit == "week":
        return f", about {day_text(said + timedelta(weeks=sign * number), said)}"
    if sign > 0:
        return ""
    if unit == "weekend":
        return f", {_weekend_text(_last_saturday(said, number), said)}"
    return f", {day_text(_back(said, _weekday(unit), number), said)}"


def _last_saturday(said: date, weekends: int = 1) -> date:
    """The Saturday of the `weekends`-th weekend that is over on `said`."""
    friday_after = said if said.weekday() < 5 else said - timedelta(days=said.weekday() - 4)
    return _back(friday_after, 5, weekends)


def _since(words: str, said: date) -> str | None:
    """Read "for three years now" as the year it began; vague numbers have no beginning."""
    number, unit = _amount(re.sub(r"^(?:for )?(?:the )?(?:past |last )?", "", words))
    if number is None:
        return None
    unit = unit.rstrip("s")
    return f"since {_coarse(unit, _shift(said, unit, -number))}"


def _edge(words: str, said: date) -> str | None:
    """Read "last week", "this past Friday", "next June", "last summer"."""
    way, noun, *rest = words.split()
    sign = {"last": -1, "next": 1, "this": 0}[way]
    if noun in ("past", "coming"):
        sign, noun = (-1 if noun == "past" else 1), rest[0]
        if noun in ("month", "year"):  # the twelve months up to now, not the year before
            return None
    if noun in ("month", "year"):
        return _coarse(noun, _shift(said, noun, sign))
    if noun.capitalize() in MONTHS:
        return _named_month(MONTHS.index(noun.capitalize()) + 1, sign, said)
    if noun in _SEASONS:
        return _season(noun, sign, said)
    if noun in ("week", "weekend"):
        return _week(noun, sign, said)
    return _named_day(_weekday(noun), sign, said)


def _named_month(month: int, sign: int, said: date) -> str:
    earlier = -1 if month >= said.month else 0
    later = 1 if month <= said.month else 0
    return f"{MONTHS[month - 1]} {said.year + (earlier if sign < 0 else later if sign > 0 else 0)}"


def _season(name: str, sign: int, said: date) -> str:
    """Last summer is the newest one that is over; next summer the first that has not begun."""
    year = said.year
    first = date(year, _SEASONS[name], 1)
    if sign < 0:
        year -= 0 if _shift(first, "month", 3) <= said else 1
    if sign > 0:
        year += 0 if first > said else 1
    if name == "winter":
        year -= 1 if sign == 0 and said.month <= 3 else 0
        return f"winter {year}-{year + 1}"
    return f"{name} {year}"


def _week(noun: str, sign: int, said: date) -> str:
    if sign == 0 and noun == "weekend":
        saturday = said - timedelta(days=1) if said.weekday() == 6 else said + timedelta(days=5 - said.weekday())
        return _weekend_text(saturday, date.min)
    if sign == 0:
        return f"the week of {day_text(said)}"
    way = "before" if sign < 0 else "after"
    exact = f", {_weekend_text(_last_saturday(said), said)}" if noun == "weekend" and sign < 0 else ""
    return f"the {noun} {way} {day_text(said)}{exact}"


def _named_day(weekday: int, sign: int, said: date) -> str:
    """ "Next Friday" is either of two Fridays, so only the past and "this Friday" get a day."""
    if sign > 0:
        return f"the {WEEKDAYS[weekday]} after {day_text(said)}"
    if sign < 0:
        return f"the {WEEKDAYS[weekday]} before {day_text(said)}, {day_text(_back(said, weekday), said)}"
    return f"{WEEKDAYS[weekday]} {day_text(said + timedelta(days=(weekday - said.weekday()) % 7))}"


_RESOLVERS: dict[str, Callable[[str, date], str | None]] = {
    "day": _day,
    "beyond": _beyond,
    "in_week": _in_week,
    "ago": _ago,
    "since": _since,
    "edge": _edge,
}
