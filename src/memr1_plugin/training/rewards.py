"""Rewards: plain functions from what a completion led to, to a number in [0, 1], and their weighted sum.

Each gives its formula, an example that runs, and its source. They read no bank and ask no model: the `environment`
finds out what a completion led to, this file says what that is worth. A reward that cannot be computed raises
`InputError`; a bad *completion* is worth the floor (every part 0), which is not the same thing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from memr1_plugin.agents import answerer
from memr1_plugin.errors import InputError
from memr1_plugin.evaluation import metrics
from memr1_plugin.operations import Parsed, one_line
from memr1_plugin.types import MemoryItem

PARTS = ("exact_match", "token_f1", "format_validity", "evidence_coverage", "brevity", "compression", "freshness")
"""Every part there is. The Manager has no ``brevity``, the Answer Agent no ``compression`` and no ``freshness``."""

PAPER_WEIGHTS: Mapping[str, float] = {"exact_match": 1.0}
"""The paper's reward for both agents: "exact match (EM)" of the answer, and nothing else (its Eq. 4)."""

MANAGER_WEIGHTS: Mapping[str, float] = {
    "token_f1": 1.0,
    "evidence_coverage": 0.5,
    "format_validity": 0.2,
    "compression": 0.1,
}
"""Our default for the Manager: answers first, then evidence that is still there, then form and size."""

ANSWER_WEIGHTS: Mapping[str, float] = {
    "token_f1": 1.0,
    "evidence_coverage": 0.3,
    "format_validity": 0.2,
    "brevity": 0.1,
}
"""Our default for the Answer Agent."""


def exact_match(prediction: str, gold: str) -> float:
    """Is the answer the gold answer?

    Formula: 1 if ``normalise(prediction) == normalise(gold)``, else 0; lower case, punctuation and articles aside.
    An empty ``gold`` marks a question that no memory answers, an empty ``prediction`` an abstention.

    >>> exact_match("The 7 May 2023.", "7 May 2023")
    1.0
    >>> exact_match("", ""), exact_match("Paris", "")
    (1.0, 0.0)

    Source: the paper's Eq. 4, ``R = EM(y_pred, y_gold)``; it does not say how it normalises, and without any,
    one full stop makes a right answer worth nothing.
    """
    return _abstention(prediction, gold) if not gold.strip() else metrics.exact_match(prediction, gold)


def token_f1(prediction: str, gold: str) -> float:
    """How much of the answer is the gold answer's words?

    Formula: ``2 P R / (P + R)`` over sets of words, the F1 of the paper's tables (`metrics.f1`).

    >>> token_f1("in May", "May")
    0.6666666666666666

    Source: every follow-up of the paper uses it (Memory-R2, Mem-T, SUMER): EM is out of reach for the fifth of
    the gold answers that are longer than six words, and a group that all scores 0 teaches nothing.
    """
    return _abstention(prediction, gold) if not gold.strip() else metrics.f1(prediction, gold)


def _abstention(prediction: str, gold: str) -> float:
    return float(not prediction.strip() and not gold.strip())


def manager_format(parsed: Parsed, n_facts: int, unsupported: int = 0) -> float:
    """How much of a Manager completion is in the operation language, and followed?

    Formula: valid lines / max(facts, lines written); a line that is missing, unparseable, names an unknown memory
    or comes on top is not valid, and neither is one of the `unsupported`, an UPDATE or DELETE that serving does not
    follow because no memory bears it out (`agents.manager.followed`): taking aim at the wrong memory would otherwise
    cost nothing. A NOOP that is overruled is no fault: small talk is kept to be safe, not because it is worth it.

    >>> from memr1_plugin.operations import parse
    >>> from memr1_plugin.types import Fact, aware
    >>> facts = [Fact("I moved.", "Ana", aware(None)), Fact("I sing.", "Ana", aware(None))]
    >>> manager_format(parse("ADD\\nUPDATE 7", facts, []), 2)
    0.5

    Source: Mem-alpha's and Structured-Memory-R1's format terms; the paper has none, and its independent
    re-implementation needed one.
    """
    if n_facts < 1:
        raise InputError("there are no facts, so a completion has no lines to be valid. Skip turns without facts.")
    refused = sum(r.reason != "extra" for r in parsed.rejections)
    extra = len(parsed.rejections) - refused
    return max(0, n_facts - refused - unsupported) / (n_facts + extra)


def answer_format(completion: str, items: Sequence[MemoryItem]) -> float:
    """Is an Answer Agent completion in its language, naming memories that exist, each once?

    Formula: 1 for ``" none"`` or ``" 2 5 -> text"``, 0.5 if a number is repeated or unknown or the text is
    empty, 0 for anything else.

    >>> answer_format(" none", []), answer_format("I think it was May", [])
    (1.0, 0.0)

    Source: as `manager_format`; the middle step lets a half-right completion be told from noise.
    """
    words = one_line(completion)
    if words == "none":
        return 1.0
    match = answerer.COMPLETION.match(completion)
    if match is None:
        return 0.0
    places = [int(n) for n in match[1].split()]
    clean = len(set(places)) == len(places) <= answerer.MAX_USED and all(1 <= n <= len(items) for n in places)
    return 1.0 if clean and one_line(match[2]) else 0.5


def evidence_coverage(evidence: Collection[str], held: Collection[str]) -> float:
    """Is what the answer rests on still in the bank? (Manager)

    Formula: ``|evidence & held| / |evidence|`` over turn ids; `held_turns` says which turns the bank still holds.

    >>> evidence_coverage({"t1", "t9"}, {"t1", "t2"})
    0.5

    Source: JAM's evidence-recall reward; within a group it differs from the Delta(coverage) of KCL's reproduction
    by a constant, which a group's baseline takes away.
    """
    return metrics.evidence_recall(held, evidence)


def evidence_f1(evidence: Collection[str], used: Sequence[Collection[str]]) -> float:
    """Does the Answer Agent name the memories that the answer rests on, and only those?

    Formula: ``2 P R / (P + R)``; P is the share of the used memories that come from an evidence turn, R the share
    of the evidence turns that they come from. Recall alone would be highest for naming every memory. Without
    evidence (a question that no memory answers): 1 if it used none, else 0. `used` holds each memory's turn ids.

    >>> evidence_f1({"t1"}, [["t1"], ["t2", "t3"], ["t4"]])
    0.5

    Source: ours; the paper's memory distillation has no reward of its own.
    """
    if not evidence:
        return float(not used)
    right = sum(any(turn in evidence for turn in turns) for turns in used)
    found = len({turn for turns in used for turn in turns if turn in evidence})
    if not right:
        return 0.0
    precision, recall = right / len(used), found / len(set(evidence))
    return 2 * precision * recall / (precision + recall)


def held_turns(said: Sequence[tuple[str, str]], items: Sequence[MemoryItem], *, share: float = 0.5) -> set[str]:
    """Return the turns that some item both comes from and still says; `said` holds (turn id, what it said).

    An UPDATE keeps the ids of the turns it merged, so ids alone would call evidence kept that was written over:
    an item must hold at least `share` of the words too.
    """
    words_of = [(turn, metrics.word_set(text)) for turn, text in said]
    held = set()
    for item in items:
        words = metrics.word_set(item.text)
        held |= {t for t, w in words_of if w and t in item.turn_ids and len(w & words) >= share * len(w)}
    return held


def freshness(outdated: Mapping[int, str], items: Sequence[MemoryItem]) -> float:
    """Is what the turn made untrue gone from the bank? (Manager)

    Formula: the share of the `outdated` memories (id and text, before the turn) that no item says any more; 1 where
    nothing became untrue. It needs gold operations, so it is for synthetic conversations.

    >>> freshness({}, []), freshness({7: "I live in Paris."}, [])
    (1.0, 1.0)

    Source: ours. Answers alone do not ask for it: an Answer Agent that is shown an old and a new address with their
    dates names the new one, so adding costs nothing, and GRPO learned to add (training/LOG.md, 2026-11-28).
    """
    if not outdated:
        return 1.0
    said = {(item.id, item.text) for item in items}
    return sum((number, text) not in said for number, text in outdated.items()) / len(outdated)


def brevity(answer: str, *, budget: int = 6) -> float:
    """Is the answer as short as people answer?

    Formula: 1 up to `budget` words, then linearly down to 0 at twice as many.

    >>> brevity("7 May 2023"), brevity("a b c d e f g h i"), brevity("word " * 12)
    (1.0, 0.5, 0.0)

    Source: the paper's answer prompt asks for "less than 5-6 words"; rewarding a lenient judge instead made its
    answers long and its F1 fall (its Table 2).
    """
    if budget < 1:
        raise InputError(f"the budget is {budget} words; expected at least 1.")
    return min(1.0, max(0.0, 2.0 - len(answer.split()) / budget))


def compression(words_before: int, words_after: int, words_said: int, *, target: float = 0.7) -> float:
    """Did the bank grow by less than was said?

    Formula: ``1 - max(0, grown - target * said) / said``, at least 0, where ``grown = after - before``.

    >>> compression(100, 120, 10), compression(100, 110, 10), compression(100, 100, 10)
    (0.0, 0.7, 1.0)

    Source: Memory-R2's size penalty, ``max(0, mem - 0.7 session) / session``, here per turn.
    """
    if words_said < 1:
        raise InputError(f"{words_said} words were said; expected at least 1. Skip turns without facts.")
    return min(1.0, max(0.0, 1.0 - max(0.0, words_after - words_before - target * words_said) / words_said))


@dataclass(frozen=True)
class RewardBreakdown:
    """What one completion is worth, part by part. Each part is logged, also those of weight 0."""

    parts: Mapping[str, float]
    weights: Mapping[str, float]

    @property
    def total(self) -> float:
        """The weighted sum that the trainer sees."""
        return math.fsum(self.weights.get(name, 0.0) * value for name, value in self.parts.items())


def combine(parts: Mapping[str, float], weights: Mapping[str, float]) -> RewardBreakdown:
    """Weigh `parts`, or say why that cannot be done.

    >>> combine({"token_f1": 0.5, "brevity": 1.0}, {"token_f1": 1.0, "brevity": 0.1}).total
    0.6

    Raises:
        InputError: a weight is for a part that was not computed, a part is not in [0, 1], or nothing has a weight.
    """
    check_weights(weights, parts)
    for name, value in parts.items():
        if not 0.0 <= value <= 1.0:  # NaN fails this too
            raise InputError(f"reward {name} is {value}; expected a number in [0, 1]. This is a bug in that reward.")
    return RewardBreakdown(dict(parts), dict(weights))


def floor(names: Collection[str], weights: Mapping[str, float]) -> RewardBreakdown:
    """Return what a completion is worth of which nothing could be read: every part 0."""
    return combine(dict.fromkeys(names, 0.0), weights)


def check_weights(weights: Mapping[str, float], known: Collection[str]) -> None:
    """Raise `InputError` if `weights` names a part that is not among `known`, or weighs nothing."""
    if unknown := sorted(set(weights) - set(known)):
        raise InputError(f"the weights name {unknown}, which are not computed here; expected some of {sorted(known)}.")
    if not any(weights.values()) or not all(math.isfinite(w) for w in weights.values()):
        raise InputError(f"the weights are {dict(weights)}; expected finite numbers, one at least not 0.")
