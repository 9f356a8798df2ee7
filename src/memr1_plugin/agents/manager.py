"""The Memory Manager: a turn's facts and the related memories in, operations out (paper section 3.1).

It builds the prompt, asks the engine, and hands the completion to `operations.parse`; it reads and
writes no bank. The certain cases never reach the model: an exact duplicate is a NOOP, a fact with
nothing related is an ADD. And what a small model decides is believed as far as the memories bear it out: no fact
is dropped, and no memory taken away, by a decision that nothing supports (`believed`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from memr1_plugin import prompts
from memr1_plugin.agents.engine import Completion, Engine, Prompt, Role, ask
from memr1_plugin.bank.text_index import terms
from memr1_plugin.operations import (
    Parsed,
    Rejection,
    grammar,
    one_line,
    parse,
    render_facts,
    render_memories,
    render_operations,
)
from memr1_plugin.settings import Settings
from memr1_plugin.types import Fact, MemoryItem, Operation, OperationKind

TRAINED = "manager"
ZERO_SHOT = "manager_zero_shot"
TOKENS_PER_FACT = 24
"""Output budget: "UPDATE 12" is 4 tokens; the rest is room for a merged text."""
LINE_CHARS = 280
"""A memory or fact longer than this is cut in the Manager's view (never in the bank)."""


SHORT = 3
"""Words (stems, stop words out) of a fact in which one new word is likely all that it says."""


_OVER = re.compile(
    r"\b(?:no longer|any ?more|stopp?ed|quit|cancel(?:l?ed)?|called off|(?:is|are|was) off|g[ai]ven? up|pulled out"
    r"|dropped out|sold|got rid of|broke up|split up|died|passed away|never mind|forget (?:that|it|what))\b",
    re.IGNORECASE,
)
"""How people say that something is over: English, as the LoRAs that ship. Elsewhere only what is close is deleted."""


@dataclass(frozen=True)
class Decision:
    """What to do with a turn's facts, who decided it, and what it cost."""

    operations: tuple[Operation, ...]
    sources: tuple[str, ...]
    """"rule" or "manager", one per operation."""
    rejections: tuple[Rejection, ...] = ()
    completion: Completion | None = None
    """None when every fact was certain: no model call."""


def prompt(facts: Sequence[Fact], memories: Sequence[MemoryItem], *, trained: bool) -> Prompt:
    """Build the Manager's prompt; the short one if its LoRA was trained on it."""
    template = prompts.load(TRAINED if trained else ZERO_SHOT)
    shown = [replace(m, text=_cut(m.text)) for m in memories]
    body = template.fill(
        memories=render_memories(shown), facts=render_facts([replace(f, text=_cut(f.text)) for f in facts])
    )
    return Prompt(
        fixed=template.fixed,
        body=body,
        grammar=grammar(len(facts), len(memories)),
        max_tokens=TOKENS_PER_FACT * len(facts),
        chat=not trained,
    )


def _cut(text: str) -> str:
    text = one_line(text)
    return text if len(text) <= LINE_CHARS else text[: LINE_CHARS - 3] + "..."


def _same(fact: Fact, item: MemoryItem) -> bool:
    return (one_line(fact.text).casefold(), fact.speaker.casefold()) == (
        one_line(item.text).casefold(),
        item.speaker.casefold(),
    )


def certain(fact: Fact, memories: Sequence[MemoryItem]) -> Operation | None:
    """Return the operation that needs no model, or None if this fact needs one."""
    if not memories:
        return Operation(OperationKind.ADD, fact)
    if any(_same(fact, item) for item in memories):
        return Operation(OperationKind.NOOP, fact)
    return None


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


def _one_voice(*speakers: str) -> bool:
    """True unless the speakers are two people; "user" is a bot's user where nobody gave a name."""
    return len({speaker.casefold() for speaker in speakers} - {"user"}) <= 1


def _of_oneself(item: MemoryItem) -> bool:
    """True if its speaker is a subject of what it says."""
    return re.search(r"\b(?:i|we)\b", item.text, re.IGNORECASE) is not None


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
    """Return a fact's operations as they are followed, and those that are not; where no other is left, it is added."""
    kept = [op for op in operations if believed(op, related, settings)]
    refused = [op for op in operations if op not in kept]
    if refused and not any(op.kind in (OperationKind.ADD, OperationKind.UPDATE) for op in kept):
        kept.append(Operation(OperationKind.ADD, refused[0].fact))
    return kept, refused


def followed(
    parsed: Parsed, asked: Sequence[tuple[Fact, Sequence[MemoryItem]]], shown: Sequence[MemoryItem], settings: Settings
) -> tuple[list[Operation], list[Rejection]]:
    """Return the operations of a completion as they are followed, and the lines that are not (`believed`).

    Args:
        parsed: the completion, read.
        asked: the facts that it decides on, each with the memories related to it.
        shown: the memories as the prompt numbers them.
    """
    decided: list[Operation] = []
    rejections: list[Rejection] = []
    for fact, near in asked:
        kept, refused = restrain([op for op in parsed.operations if op.fact is fact], near, settings)
        decided += kept
        rejections += [Rejection("unsupported", render_operations([op], [fact], shown), fact) for op in refused]
    return decided, rejections


class Manager:
    """Decides operations with an engine. Holds no state: one instance serves all scopes and threads."""

    def __init__(self, engine: Engine, settings: Settings | None = None) -> None:
        self.engine = engine
        self.settings = settings or Settings()

    def decide(self, facts: Sequence[Fact], related: Sequence[Sequence[MemoryItem]]) -> Decision:
        """Decide one turn's facts in at most one model call.

        Args:
            facts: the turn's facts, in order.
            related: for each fact the memories related to it, most related first; the prompt shows their
                union, most related first.

        Raises:
            ModelError: the engine failed. A completion that makes no sense is not an error but a `Rejection`.
        """
        by_rule = [certain(f, r) if self.settings.certain else None for f, r in zip(facts, related, strict=True)]
        asked = [(f, r) for f, r, op in zip(facts, related, by_rule, strict=True) if op is None]
        open_facts, shown = [fact for fact, _ in asked], union([near for _, near in asked])
        ruled = tuple(op for op in by_rule if op is not None)
        if not open_facts:
            return Decision(ruled, ("rule",) * len(ruled))
        trained = self.engine.lora(Role.MANAGER) is not None
        [completion] = ask(self.engine, [prompt(open_facts, shown, trained=trained)], Role.MANAGER)
        parsed = parse(completion.text, open_facts, shown)
        decided, refused = followed(parsed, asked, shown, self.settings)
        rejections = [*parsed.rejections, *refused]
        sources = [*["rule"] * len(ruled), *("manager" if op in parsed.operations else "rule" for op in decided)]
        return Decision((*ruled, *decided), tuple(sources), tuple(rejections), completion)


def union(groups: Sequence[Sequence[MemoryItem]]) -> list[MemoryItem]:
    """Return the distinct items of all groups, each group's most related first, as the prompt lists them.

    A small model finds what a fact replaces far more surely when that is usually memory 1 (training/LOG.md).
    """
    longest = max(map(len, groups), default=0)
    ranked = [item for rank in range(longest) for group in groups for item in group[rank : rank + 1]]
    return list({item.id: item for item in ranked}.values())
