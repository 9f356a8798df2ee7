"""Questions that people asked each other, and what was replied: real small talk, turned to the third person.

"What classes are you taking next?" -- "I will take CS236 this summer" becomes "What classes is Ana taking next?" with
the answer "CS236 this summer". Here the question is a person's own, and the reply often means nothing without it
("Flute!", "It was Matt"), as in any real dialogue; questions made of statements (`cloze`) have neither. A reply that no
rule can cut an answer from is left alone: most are.
"""

from __future__ import annotations

import re

from memr1_plugin.extraction import has_substance, is_question, sentences
from memr1_plugin.training.cloze import LEAD, TOLD, Asked, object_of, told
from memr1_plugin.training.synthetic import Person

_OPENING = re.compile(
    r"^(?:(?:so|and|but|well|oh|ok|okay|cool|nice|wow|awesome|great|hmm|haha|lol|then|really|interesting|anyway|also)"
    r"[,.! ]+)+",
    re.IGNORECASE,
)
_ASKS = re.compile(r"(?:what|where|who|why|which|how (?:long|many|much|old|often|far))\b", re.IGNORECASE)
_NOTHING = re.compile(
    r"(?:about|with) (?:you|urself|yourself)\b|what(?:'s| is| are) (?:up|you up)|what do you (?:mean|think|say)\b"
    r"|do you want to talk|\b(?:on here|this chat|guys|imply|implying|referring|rn)\b|what about\b"
    r"|\b(?:me|my|i|we|us|our|it|that|this|they|them|there|those|these|one|then|else|again|same)\b",
    re.IGNORECASE,
)
"""Greetings, questions about the talk itself, and those that rest on what was said before."""
_TURNED = (
    (r"\bdo you\b", "does {N}"),
    (r"\bdid you\b", "did {N}"),
    (r"\bare you\b", "is {N}"),
    (r"\bwere you\b", "was {N}"),
    (r"\bhave you\b", "has {N}"),
    (r"\b(would|will|can|could|should) you\b", r"\1 {N}"),
)
_ADVERBS = (
    r"(?:(?:really|also|just|actually|always|usually|still|mostly|definitely|probably|currently|mainly|guess|think|"
    r"kinda|kind of|been|be|going to|gonna|like to|love to|want to|have to say) )*"
)
_HEAD = re.compile(
    rf"(?:i|we)(?:'m|'ve|'d|'ll| am| was| have| would| will)? {_ADVERBS}(?P<verb>[a-z']+) (?P<rest>.+)", re.IGNORECASE
)
"""The subject and the verb of a reply, which its answer leaves out."""
_IS = re.compile(
    r"(?:(?:it|they|he|she)(?:'s|'re| is| are| was| were| would be)|my (?:\w+ ){1,4}(?:is|are|was|would be|would have "
    r"to be)|(?:it )?(?:would|will|might) (?:probably |definitely )?be) "
    r"(?:(?:probably|definitely|called|named|just|mostly) )*(?P<rest>.+)",
    re.IGNORECASE,
)
_FILLER = re.compile(r"^(?:(?:probably|definitely|honestly|just|mostly|maybe|um+|uh+),? )+", re.IGNORECASE)
_LIKING = frozenset(["lov", "lik", "enjoy", "prefer", "ador", "into"])
_LIKED = _LIKING | {"favorit", "favourit"}
_SAYS_NOTHING = re.compile(
    r"\b(?:i|we|you|that|this|there|know|think|say|said|yes|no|nope|sure|sorry|thanks|thank|hello|hi|hey|idk|nothing|"
    r"not|maybe|depends?|(?:ha)+h?|lol|true|dang|uh+|um+|hm+|ooh|meh|brb|xd|rip|man|dude|questions?|hard|difficult|wow|"
    r"yay|gosh|goodness|what|same|right|too|changed|kidding|joking|(?:going|doing) (?:well|good|great))\b",
    re.IGNORECASE,
)
_REACTION = re.compile(
    r"(?:(?:so|really|very|pretty|super|quite|kind of|an?|the|just) )*(?:fun(?:ny)?|dope|awesome|cool|great|good|nice|"
    r"okay|ok|fine|exhausting|real|boring|interesting|crazy|weird|hard|amazing|tough|exciting|sad|sweet|perfect|"
    r"best|neat|rad|legit|hilarious|beautiful|cute|lovely|wonderful|fantastic|bad|terrible|rough)(?: \w+)?",
    re.IGNORECASE,
)
"""What people say about what was just said; it answers no question but by chance."""
_FRAGMENT_WORDS = 8
_FINITE = re.compile(r"\b(?:is|are|was|were|am|have|has|had|do|does|did|can|could|would|will|he|she|it|they)\b|'", re.I)
_AMOUNT = re.compile(
    r"\b(?:(?:over|almost|at least) )?(?:\d[\d,.]*|an?|one|two|three|four|five|six|seven|eight|nine|"
    r"ten|a few|a couple(?: of)?|several|every)(?: (?:or|to|-) (?:\d+|\w+))?(?: and a half)? ?"
    r"(?:second|minute|hour|day|week|month|semester|year|mile|time|dollar|people|kid|sibling|brother|sister|class)\w*"
    r"(?: (?:a|per|each|every) \w+)?",
    re.IGNORECASE,
)


def turned(question: str) -> str | None:
    """Turn a question to "you" to one about {N}; None if it is none, or rests on what was said before.

    >>> turned("So what classes are you taking next semester?")
    'What classes is {N} taking next semester?'
    """
    text = _OPENING.sub("", question.strip())
    if not _ASKS.match(text) or not 4 <= len(text.split()) <= 16 or _NOTHING.search(text):
        return None
    for pattern, replacement in _TURNED:
        text, changed = re.subn(pattern, replacement, text, count=1, flags=re.IGNORECASE)
        if changed:
            break
    else:
        text, changed = re.subn(r"\byour\b", "{N}'s", text, count=1, flags=re.IGNORECASE)
        if not changed:
            return None
    text = re.sub(r"\byourself\b", "{himself}", text, flags=re.IGNORECASE)
    text = re.sub(r"\byours?\b", "{his}", text, flags=re.IGNORECASE)
    text = re.sub(r"^(what|where|who|how)'?s\b", r"\1 is", text, flags=re.IGNORECASE)
    if re.search(r"\b(?:you|u|ur)\b", text, re.IGNORECASE):
        return None
    text = text.split("?")[0].rstrip(" .!,")
    return f"{text[0].upper()}{text[1:]}?"


def asked_in(before: str, reply: str, person: Person) -> list[Asked]:
    """Return the question that ends the turn `before`, if `person`'s `reply` says its answer in a way that is seen.

    >>> asked_in("Cool! What instrument do you play?", "Flute. I sat down for hours.", Person("Ana", "f"))[0].answer
    'Flute'
    """
    asked = [s for s in sentences(before)[-2:] if is_question(s)]
    question = turned(asked[-1]) if asked else None
    if question is None:
        return []
    for sentence in sentences(reply)[:3]:
        if is_question(sentence) or not has_substance(sentence):
            continue
        answer = _cut(question, sentence)
        if answer and not _SAYS_NOTHING.search(answer) and not _REACTION.fullmatch(answer):
            made = told(Asked(question, answer, question), person)
            return [made] if made else []
    return []


def _cut(question: str, sentence: str) -> str | None:
    """Cut the answer to `question` from one sentence of the reply; None where no rule sees it."""
    text = re.sub(r"\bi ?m\b", "I'm", re.sub(r"\s*[:;]-?[)(DP]+", "", sentence), flags=re.IGNORECASE)
    text = _FILLER.sub("", LEAD.sub("", text.strip())).rstrip(" .!")
    asks = question.lower()
    if asks.startswith("why"):
        match = re.search(r"\b(?:because|cause|so that|in order)\b,? ([^,.;!]+)", text, re.IGNORECASE)
        # Any other "I" stays, and `told` refuses it: the verb behind it would not agree ("she like to argue").
        return re.sub(r"\bi(?:'m| am)\b", "{he} is", match[1], flags=re.IGNORECASE) if match else None
    if asks.startswith("how") and (amount := _AMOUNT.search(text)):
        return amount[0]
    stems = {_stem(word) for word in re.findall(r"[a-z']+", asks)}
    if match := _IS.match(text):
        return _whole(match["rest"])
    if match := _HEAD.match(text):
        verb = _stem(TOLD.get(match["verb"].lower(), match["verb"]))
        meant = verb in stems or (verb in _LIKING and stems & _LIKED)
        return _whole(re.sub(r"^(?:to|in|at|for|as|from|on) (?=\w)", "", match["rest"])) if meant else None
    return text if len(text.split()) <= _FRAGMENT_WORDS and not _FINITE.search(text) else None


def _stem(word: str) -> str:
    return re.sub(r"(?:ing|ed|s|e)$", "", word.lower())


_SEVERAL = re.compile(r"(?:[\w'&-]+(?: [\w'&-]+){0,2}, )+(?:(?:and|or) )?[\w'&-]+(?: [\w'&-]+){0,2}(?=$|[.!;(])")
"""Things named with commas between them, an "and" or none."""


def _whole(text: str) -> str:
    several = _SEVERAL.match(text)
    return several[0] if several and not _FINITE.search(several[0]) else object_of(text)
