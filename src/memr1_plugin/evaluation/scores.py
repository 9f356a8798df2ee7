"""What a reply is worth: every score of one answer, computed from the data at the moment of asking.

Nothing here is stored by a run: answers are, so that corrected gold answers, a new metric or a judge need no model to
answer again. The scores themselves are `metrics`; their means and intervals are `report`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from memr1_plugin.evaluation import metrics
from memr1_plugin.evaluation.datasets import Conversation, Question
from memr1_plugin.evaluation.replies import Reply

RECALL_AT = (5, 10, 20, 30, 60)


@dataclass(frozen=True)
class Row:
    """One answer of one system, scored."""

    system: str
    conversation: str
    question: str
    category: str
    asked: str
    gold: str
    text: str
    f1: float
    bleu1: float
    em: float
    """Exact match after SQuAD normalisation; ``em_raw`` is mem0's, where a full stop is enough to fail."""
    em_raw: float
    locomo_f1: float
    """F1 as LoCoMo's own authors compute it, by their rules for categories 1 and 3."""
    recall: float | None
    """Share of the evidence turns among the memories shown; None where there is no evidence, or nothing is shown."""
    recall_at: Mapping[int, float] | None
    """The same among the first k memories of the ranking."""
    named_recall: float | None
    """Share of the evidence turns among the memories named; None as for ``recall``, and for who names nothing."""
    named_precision: float | None
    """Share of the memories named that hold an evidence turn; None where none is named."""
    abstained: bool
    unanswerable: bool
    prompt_tokens: int
    output_tokens: int
    seconds: float
    cpu_seconds: float


def score_all(replies: Iterable[Reply], conversations: Sequence[Conversation]) -> list[Row]:
    """Score the replies to the questions of `conversations`; those to others are left out."""
    known = {(c.id, q.id): q for c in conversations for q in c.questions}
    return [score(r, known[key]) for r in replies if (key := (r.conversation, r.question)) in known]


def score(reply: Reply, question: Question) -> Row:
    """Score one reply. A right abstention scores 1, a wrong one 0, whatever the words."""
    text = "" if reply.abstained else reply.text
    gold = "" if question.unanswerable else question.answer
    right = 1.0 if question.unanswerable and reply.abstained else None
    locomo = int(question.category) if question.category in ("1", "3") else None
    evidence, named = question.evidence, reply.named
    return Row(
        system=reply.system,
        conversation=reply.conversation,
        question=reply.question,
        category=question.category,
        asked=question.text,
        gold=question.answer,
        text=reply.text,
        f1=metrics.f1(text, gold) if right is None else right,
        bleu1=metrics.bleu1(text, gold) if right is None else right,
        em=metrics.exact_match(text, gold) if right is None else right,
        em_raw=float(bool(text and gold) and metrics.exact_match_raw(text, gold)) if right is None else right,
        locomo_f1=metrics.locomo_f1(text, gold, locomo) if right is None else right,
        recall=_recall(reply.shown, evidence) if reply.shown or reply.ranked is not None else None,
        recall_at=_recall_at(reply.ranked, evidence),
        named_recall=_recall(named, evidence) if named is not None else None,
        named_precision=_precision(named, evidence) if named and evidence else None,
        abstained=reply.abstained,
        unanswerable=question.unanswerable,
        prompt_tokens=reply.prompt_tokens,
        output_tokens=reply.output_tokens,
        seconds=reply.seconds,
        cpu_seconds=reply.cpu_seconds,
    )


def _recall(memories: Iterable[Iterable[str]], evidence: Sequence[str]) -> float | None:
    return metrics.evidence_recall({t for ids in memories for t in ids}, evidence) if evidence else None


def _precision(memories: Sequence[Iterable[str]], evidence: Sequence[str]) -> float:
    return sum(bool(set(ids) & set(evidence)) for ids in memories) / len(memories)


def _recall_at(ranked: Sequence[Iterable[str]] | None, evidence: Sequence[str]) -> dict[int, float] | None:
    if ranked is None or not evidence:
        return None
    return {k: _recall(ranked[:k], evidence) or 0.0 for k in RECALL_AT}
