"""The Memory Manager: a turn's facts and the related memories in, operations out (paper section 3.1).

It builds the prompt, asks the engine, and hands the completion to `operations.parse`; it reads and
writes no bank. What needs no model, and what of a model's decision is followed, is `belief`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from memr1_plugin import prompts
from memr1_plugin.agents.belief import certain, restrain
from memr1_plugin.agents.engine import Completion, Engine, Prompt, Role, ask
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
from memr1_plugin.types import Fact, MemoryItem, Operation

TRAINED = "manager"
ZERO_SHOT = "manager_zero_shot"
TOKENS_PER_FACT = 24
"""Output budget: "UPDATE 12" is 4 tokens; the rest is room for a merged text."""
LINE_CHARS = 240
"""A memory or fact longer than this is cut in the Manager's view (never in the bank)."""


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
    """Build the Manager's prompt; the short one if its LoRA was trained on it.

    The short one is the lists alone, without dates (a fact's own are in its text), and with the name only of who is
    not the facts' speaker: a third fewer tokens, which are what a call costs.
    """
    template = prompts.load(TRAINED if trained else ZERO_SHOT)
    told, shown = [replace(f, text=_cut(f.text)) for f in facts], [replace(m, text=_cut(m.text)) for m in memories]
    if trained:
        body = template.fill(**_bare(told, shown))
    else:
        body = template.fill(memories=render_memories(shown), facts=render_facts(told))
    return Prompt(
        fixed=template.fixed,
        body=body,
        grammar=grammar(len(facts), len(memories)),
        max_tokens=TOKENS_PER_FACT * len(facts),
        chat=not trained,
    )


def _bare(facts: Sequence[Fact], memories: Sequence[MemoryItem]) -> dict[str, str]:
    """Render both lists with nothing but what was said."""

    def said(by: str, text: str) -> str:
        return text if by == facts[0].speaker else f"{one_line(by)}: {text}"

    listed = "\n".join(f"{n}. {said(m.speaker, m.text)}" for n, m in enumerate(memories, 1))
    return {"memories": listed or "(none)", "facts": "\n".join(f"- {said(f.speaker, f.text)}" for f in facts)}


def _cut(text: str) -> str:
    text = one_line(text)
    return text if len(text) <= LINE_CHARS else text[: LINE_CHARS - 3] + "..."


def followed(
    parsed: Parsed, asked: Sequence[tuple[Fact, Sequence[MemoryItem]]], shown: Sequence[MemoryItem], settings: Settings
) -> tuple[list[Operation], list[Rejection]]:
    """Return the operations of a completion as they are followed, and the lines that are not (`belief.believed`).

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
