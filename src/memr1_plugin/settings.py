"""The few knobs of a memory, with defaults for a laptop.

Frozen: a memory's settings do not change while it is open. What a model needs (device, dtype, batch) is
the engine's; what training needs is a recipe's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from memr1_plugin.errors import InputError
from memr1_plugin.types import Scope

REDACTIONS = ("off", "secrets", "personal", "all")


@dataclass(frozen=True)
class Settings:
    """How much a memory shows to its agents, and what it remembers."""

    candidates: int = 10
    """Memories shown to the Answer Agent, at most. The paper shows 60; a small model reads 10 better and faster."""
    margin: float | None = 1.25
    """Of those, the ones whose score is further below the best one's are not shown, unless they are all that there is;
    None: all are shown. Where the ranking is sure, a small model that reads ten memories picks a wrong one more often
    than it corrects the order (docs/results.md). Twice as far where a question asks for several things."""
    per_speaker: int | None = None
    """At most this many candidates of one speaker (the paper: 30); None: no quota."""
    related: int = 2
    """Memories shown to the Manager per fact. With 2 the memory to change is among them as often as with 5, for less
    than half of the memories (`benchmarks/certain.py --related`, docs/benchmarks.md)."""
    related_floor: float = 0.4
    """Relevance below which a memory is unrelated to a fact. At 0.4 two thirds of the facts of a synthetic dialogue
    need no model, and 4 of 66 changes are missed (0.35: half, 2 of 66; 0.45: three quarters, 8 of 66;
    `benchmarks/certain.py`)."""
    believed_floor: float = 0.7
    """Relevance of a memory from which the Manager's NOOP (it says this already) and DELETE of it are believed; below
    it the fact is added. Plain repetitions and withdrawals reach it 19 times in 20, other memories never (0.58)."""
    floor: float | None = None
    """Relevance below which a question retrieves nothing; None: the retriever's calibrated value."""
    certain: bool = True
    """Decide exact duplicates (NOOP) and facts that bear on no related memory (ADD) without the model, and show it
    only those memories that a fact bears on (`agents.belief`)."""
    remember_roles: tuple[str, ...] = ("user",)
    """Roles whose turns become memories; every turn is journaled whatever its role."""
    recent_turns: int = 6
    """Turns of the dialogue that doors show beside the memories."""
    max_waiting: int = 1_000
    """With `write="background"`, turns that may wait for the Manager before `observe` waits too, until some are
    managed: whoever writes faster than the model reads would else be remembered hours late. A failing model holds
    nobody back."""
    retry_s: float = 5.0
    """Seconds until the background worker tries a turn again after its model failed; doubles up to 60."""
    screen: bool = True
    """Keep texts that talk to a model (injections, hidden and encoded text, links that carry data out) in quarantine:
    journalled, visible, releasable, shown to no model. Ordinary conversations raise no alarm; what it
    catches is in docs/security.md."""
    redact: str | Callable[[Scope], str] | None = None
    """What is taken out of texts before they are journalled: "off", "secrets" (keys, tokens), "personal" (e-mail
    addresses, phone, card and account numbers) or "all"; or a function that says it for each scope. None: nothing, or
    what the redactor takes out that `Memory.open` was given. Needs the extra `redact`."""

    def __post_init__(self) -> None:
        for name in ("candidates", "related", "max_waiting"):
            if getattr(self, name) < 1:
                raise InputError(f"settings.{name} is {getattr(self, name)}; expected at least 1.")
        if self.margin is not None and not self.margin >= 0:
            raise InputError(f"settings.margin is {self.margin}; expected None or a number from 0 up.")
        if isinstance(self.redact, str) and self.redact not in REDACTIONS:
            raise InputError(
                f"settings.redact is {self.redact!r}; expected one of {REDACTIONS} or a function of a scope."
            )
        if isinstance(self.remember_roles, str):
            raise InputError(
                f'settings.remember_roles is the string {self.remember_roles!r}; expected a tuple, e.g. ("user",).'
            )
