"""What needs no model, and what of a model's decision is followed: both by what the memories themselves say.

A small model is asked only where its answer could matter. An exact duplicate is a NOOP; a fact that bears on no memory,
or by the look of it changes none (`in_question`), is an ADD: whatever else a model said of it would not be followed, or
would be wrong. And what it does decide is believed as far as the memories bear it out: no fact is dropped, and no
memory taken away, by a decision that nothing supports (`believed`). `benchmarks/certain.py` counts what these rules
save and what they miss.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from memr1_plugin.bank.text_index import terms
from memr1_plugin.operations import one_line
from memr1_plugin.settings import Settings
from memr1_plugin.types import Fact, MemoryItem, Operation, OperationKind

SHORT = 3
"""Words (stems, stop words out) of a fact in which one new word is likely all that it says."""

_OVER = re.compile(
    r"\b(?:no longer|any ?more|stopp?ed|quit|cancel(?:l?ed)?|called off|(?:is|are|was) off|g[ai]ven? up|pulled out"
    r"|dropped out|sold|got rid of|broke up|split up|died|passed away|never mind|forget (?:that|it|what))\b",
    re.IGNORECASE,
)
"""How people say that something is over: English, as the LoRAs that ship. Elsewhere only what is close is deleted."""

_CHANGE = re.compile(
    r"\b(?:now|no longer|any ?more|instead|actually|chang\w*|mov(?:ed|ing)|new|switch\w*|quit|stopp?ed|sold|lost|broke"
    r"|correct\w*|wrong|used to|not|finally|already|just|since|these days|currently|updat\w*|increas\w*|recently|latest"
    r"|again|upgrad\w*|replac\w*|cancel\w*|postpon\w*|reschedul\w*|g[ai]ven? (?:\w+ )?(?:up|away)"
    r"|turns out|after all)\b|n't\b",
    re.IGNORECASE,
)
"""How people mark that something is otherwise than it was, or is said again."""
BEARING = 0.95
"""A model is asked from here on: relevance + `COMMON` x the share of common words + `CHANGE` + `NUMBERS` + `ONESELF`.

The weights are those of a logistic regression, rounded: pairs of a fact and a memory from synthetic conversations,
plain statements and half of LongMemEval's knowledge updates, against pairs from real small talk, in which nobody takes
anything back. `benchmarks/certain.py` counts what it saves and what it misses.
"""
COMMON = 0.5
"""For all words (stems, stop words out) in both."""
CHANGE = 0.2
"""For a word that marks a change, and again for one that says that something is over."""
NUMBERS = 0.1
"""For numbers in both: counts grow, dates move."""
ONESELF = 0.3
"""For two who both speak of themselves."""

_ONESELF = re.compile(r"\b(?:i|we|my|our|me|us|mine|ours|myself|ourselves)\b", re.IGNORECASE)
_ENGLISH = re.compile(
    r"\b(?:the|is|an?|and|to|of|you|it|that|was|are|in|for|on|with|your|this|he|she|they|have|has|be|at|so"
    r"|what|how|when|who|can|from|by|some|those|let|more|all|out|keep|here|never|always|very|really|great|glad|love)\b",
    re.IGNORECASE,
)
_NAME = re.compile(r"(?<!^)(?<![.!?]\s)\b[A-Z]\w+")
"""A capital inside a sentence."""
_ASIDE = re.compile(
    r"\[[^\]]*\]|,\s+\w+(?=[!?,.])|\b(?:(?:mon|tues|wednes|thurs|fri|satur|sun)(?:days?)?|january|february|march"
    r"|april|may|june|july|august|september|october|november|december)\b",
    re.IGNORECASE,
)
"""Capitals that do not say what came after: whoever is spoken to, days and months, dates that were worked out."""
_AFTER = re.compile(r"\b(?:moved (?:in|to)|switched to|took up|started|became|instead|now)\b", re.IGNORECASE)
"""How people say what took something's place."""


def certain(fact: Fact, memories: Sequence[MemoryItem]) -> Operation | None:
    """Return the operation that needs no model, or None if this fact needs one.

    Args:
        memories: those that the Manager would be shown beside the fact (`Retriever.related`).
    """
    if not memories:
        return Operation(OperationKind.ADD, fact)
    if any(_same(fact, item) for item in memories):
        return Operation(OperationKind.NOOP, fact)
    return None


def _same(fact: Fact, item: MemoryItem) -> bool:
    return (one_line(fact.text).casefold(), fact.speaker.casefold()) == (
        one_line(item.text).casefold(),
        item.speaker.casefold(),
    )


def in_question(fact: Fact, related: Sequence[MemoryItem], settings: Settings) -> list[MemoryItem]:
    """Return the memories that a model is asked about: those that the fact bears on, where any looks like a change.

    None, and the fact is an ADD, where none does. All of them where one does: shown only that one, the Manager wrote
    over it what another had said.
    """
    found = [item for item in related if bears_on(fact, item, settings)]
    return found if any(_looks_like_a_change(fact, item) for item in found) else []


def bears_on(fact: Fact, item: MemoryItem, settings: Settings) -> bool:
    """Return whether a fact could replace, end or repeat what a related memory says.

    It must be of the same speaker, and both must speak of whoever says them ("Great job!" and "You will love it" do
    not) or share a word besides. Where one of them is about something else, they must share a name, or nearly all. Text
    that is not English needs a word in common.
    """
    if not _one_voice(item.speaker, fact.speaker):
        return False
    shared = _shares_a_word(fact, item)
    if not (_silent_on_oneself(fact.text) or _silent_on_oneself(item.text)):
        return shared or bool(_ONESELF.search(fact.text) and _ONESELF.search(item.text))
    voices = set(re.findall(r"\w+", f"{fact.speaker} {item.speaker}"))
    if shared and set(_NAME.findall(fact.text)) & set(_NAME.findall(item.text)) - voices:
        return True
    return (item.score is None or item.score >= settings.believed_floor) and _repeats(fact, item)


def _looks_like_a_change(fact: Fact, item: MemoryItem) -> bool:
    """True from `BEARING` on; of memories without a score, and of text that is not English, always."""
    if item.score is None or not (_is_english(fact.text) and _is_english(item.text)):
        return True
    ours, theirs = set(terms(fact.text)), set(terms(item.text))
    marks = CHANGE * (bool(_CHANGE.search(fact.text)) + bool(_OVER.search(fact.text)))
    marks += NUMBERS * all(re.search(r"\d", text) for text in (fact.text, item.text))
    marks += ONESELF * all(_ONESELF.search(text) for text in (fact.text, item.text))
    common = len(ours & theirs) / max(1, len(ours | theirs))
    return item.score + COMMON * common + marks >= BEARING


def believed(operation: Operation, related: Sequence[MemoryItem], settings: Settings) -> bool:
    """Return whether the memories bear out what the model decided.

    A NOOP drops the fact, so the speaker must have said it before: much the same thing, half of it in the same words,
    and all of it where it is `SHORT` ("I live in Berlin" repeats half of "I live in Paris", and is news).
    A DELETE takes a memory away and adds nothing, so the fact must speak of that very memory: be close to it, or say
    that something is over that the memory names ("I stopped kickboxing"). And nobody's word ends
    or replaces what somebody else said. An UPDATE keeps the fact and, in the history, what it replaced, so it is
    believed of what the speakers said about themselves; what they said of others ("My sister is a nurse") is not
    replaced by a fact that shares no word with it ("I work at Bosch now"). An ADD loses nothing.

    Args:
        operation: on one fact.
        related: what was retrieved for that fact, with each memory's relevance to it (None counts as relevant).
        settings: the relevance that is asked for.
    """
    fact = operation.fact
    if operation.kind is OperationKind.ADD or fact is None:
        return True
    own = [item for item in related if _one_voice(item.speaker, fact.speaker)]
    close = {item.id for item in own if item.score is None or item.score >= settings.believed_floor}
    if operation.kind is OperationKind.NOOP:
        return any(_repeats(fact, item) for item in own if item.id in close)
    target = next((item for item in own if item.id == operation.target), None)
    if target is None or target.id in close:
        return target is not None
    if operation.kind is OperationKind.DELETE:
        return _OVER.search(fact.text) is not None and _shares_a_word(fact, target)
    return _of_oneself(target) or _shares_a_word(fact, target)


def _keeping_what_came_after(operation: Operation, related: Sequence[MemoryItem]) -> Operation:
    target = next((item for item in related if item.id == operation.target), None)
    if operation.kind is not OperationKind.DELETE or operation.fact is None or target is None:
        return operation
    after = _says_what_came_after(operation.fact, target)
    return replace(operation, kind=OperationKind.UPDATE) if after else operation


def _says_what_came_after(fact: Fact, item: MemoryItem) -> bool:
    """True if a fact names somebody or something that a memory lacks, or has words for what took its place."""
    text = _ASIDE.sub("", fact.text)
    known = set(re.findall(r"\w+", f"{item.text} {fact.speaker} {item.speaker}"))
    return bool(_AFTER.search(text) or set(_NAME.findall(text)) - known)


def _one_voice(*speakers: str) -> bool:
    """True unless the speakers are two people; "user" is a bot's user where nobody gave a name."""
    return len({speaker.casefold() for speaker in speakers} - {"user"}) <= 1


def _of_oneself(item: MemoryItem) -> bool:
    """True if its speaker is a subject of what it says."""
    return re.search(r"\b(?:i|we)\b", item.text, re.IGNORECASE) is not None


def _is_english(text: str) -> bool:
    """True if it speaks of its speaker in English, or shows two of English's small words."""
    return _ONESELF.search(text) is not None or len({word.lower() for word in _ENGLISH.findall(text)}) > 1


def _silent_on_oneself(text: str) -> bool:
    """True of an English text that says nothing of its speaker."""
    return _ONESELF.search(text) is None and _is_english(text)


def _shares_a_word(fact: Fact, item: MemoryItem) -> bool:
    return bool(set(terms(fact.text)) & set(terms(item.text)))


def _repeats(fact: Fact, item: MemoryItem) -> bool:
    """True if a memory has half of the fact's words (stems, stop words out), or all of a short fact's."""
    wanted = set(terms(fact.text))
    needed = len(wanted) if len(wanted) <= SHORT else len(wanted) / 2
    return len(wanted & set(terms(item.text))) >= needed


def restrain(
    operations: Sequence[Operation], related: Sequence[MemoryItem], settings: Settings
) -> tuple[list[Operation], list[Operation]]:
    """Return a fact's operations as they are followed, and those that are not; where no other is left, it is added.

    A DELETE alone that would take what came after away with what was before ("I moved to Berlin, I don't live in
    Lisbon any more") is followed as an UPDATE: the memory is as gone, and the fact is there.
    """
    followed = [_keeping_what_came_after(op, related) for op in operations] if len(operations) == 1 else operations
    kept = [op for op in followed if believed(op, related, settings)]
    refused = [op for op in operations if op not in kept]
    if refused and not any(op.kind in (OperationKind.ADD, OperationKind.UPDATE) for op in kept):
        kept.append(Operation(OperationKind.ADD, refused[0].fact))
    return kept, refused
