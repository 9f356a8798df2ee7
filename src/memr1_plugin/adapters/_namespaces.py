"""LangGraph's namespaces and the bank's scopes: one is the other, both ways.

A template says which namespaces are users' memories; every other namespace is a scope that no other door
uses. Nothing here knows what lies in a scope.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from memr1_plugin.errors import InputError
from memr1_plugin.types import Scope

_OWN = "langgraph"
"""The agent of scopes that are namespaces and nothing else."""
_PLACES = {"{user_id}": "user", "{agent_id}": "agent", "{session_id}": "session"}


@dataclass(frozen=True)
class Namespaces:
    """The mapping. ``template`` is e.g. ("memories", "{user_id}")."""

    template: tuple[str, ...]

    def __post_init__(self) -> None:
        named = [part for part in self.template if part in _PLACES]
        if not named or len(set(named)) < len(named):
            raise InputError(
                f"user_namespace is {self.template}; expected labels of which at least one, and each only once, is "
                f"{', '.join(_PLACES)}."
            )

    @staticmethod
    def label(name: str) -> str:
        """Return `name` as a label: no period in it, and a name again by `name`."""
        return name.replace("%", "%25").replace(".", "%2E")

    @staticmethod
    def name(label: str) -> str:
        """Return the name that `label` stands for."""
        return label.replace("%2E", ".").replace("%25", "%")

    def scope(self, namespace: tuple[str, ...]) -> Scope:
        """Return the scope that `namespace` is."""
        if len(namespace) == len(self.template):
            pairs = list(zip(self.template, namespace, strict=True))
            if all(part in _PLACES or part == label for part, label in pairs):
                return Scope(**{_PLACES[part]: self.name(label) for part, label in pairs if part in _PLACES})
        return Scope(agent=_OWN, session=json.dumps(namespace))

    def of(self, scope: Scope) -> tuple[str, ...] | None:
        """Return the namespace that `scope` is; None if it belongs to other doors alone."""
        if scope.agent == _OWN and not scope.user and scope.session.startswith("["):
            return tuple(json.loads(scope.session))
        used = {_PLACES[part] for part in self.template if part in _PLACES}
        if any(bool(getattr(scope, name)) != (name in used) for name in ("user", "agent", "session")):
            return None
        return tuple(self.label(getattr(scope, _PLACES[part])) if part in _PLACES else part for part in self.template)
