"""The wheel's build step: the LoRA weights of `adapters/` travel inside the package.

Not part of the package, and not used by an editable install, which reads `adapters/` where it stands.
Mapped by a hook, not by `force-include`, because that would also copy the weights of an editable install.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROLES = ("manager", "answer", "question")
"""Folders that ship; others beside them ("answer-sft") are what training goes on from."""


class LorasIntoWheel(BuildHookInterface):  # type: ignore[type-arg]
    """Map every file of adapters/<base>/<role>/ to memr1_plugin/_loras/<base>/<role>/."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the mapping, for a standard wheel only."""
        if version != "standard":
            return
        loras = Path(self.root, "adapters")
        for file in sorted(loras.glob("*/*/*")):
            if file.is_file() and file.parent.name in ROLES:
                build_data["force_include"][str(file)] = f"memr1_plugin/_loras/{file.relative_to(loras).as_posix()}"
