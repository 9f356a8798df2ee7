"""What a system is called on the command line, and which engine serves it."""

from __future__ import annotations

from pathlib import Path

import pytest

from memr1_plugin.agents.engine import Role
from memr1_plugin.errors import InputError, WeightsNotFoundError
from memr1_plugin.evaluation.systems import BASELINES, OPTIONS, System, parse_system


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    """A folder with a LoRA for each role, as training exports them."""
    for role in ("manager", "answer"):
        (tmp_path / role).mkdir()
        (tmp_path / role / "adapter_model.safetensors").write_text(role)
    return tmp_path


def test_baselines_have_names(loras: Path) -> None:
    """A baseline is its name; one with agents takes options."""
    assert all(parse_system(name, {}) == system for name, system in BASELINES.items())
    assert parse_system("untrained:gold", {}) == System("untrained:gold", "evidence")
    with pytest.raises(InputError, match="rag has no agents"):
        parse_system("rag:gold", {})


def test_loras_come_from_a_folder_or_one_for_each_role(loras: Path) -> None:
    """NAME=FOLDER takes both roles, answer: and manager: one each; none is zero-shot, shipped is what ships."""
    both = System("sft", "managed", manager=loras / "manager", answer=loras / "answer")
    assert parse_system(f"sft={loras}", {}) == both
    assert parse_system(f"sft=answer:{loras},manager:{loras / 'manager'}", {}) == both
    assert parse_system(f"sft=answer:{loras},manager:none", {}) == System("sft", "managed", answer=loras / "answer")
    assert parse_system(f"sft={loras}:raw", {}) == System("sft", "raw", manager=both.manager, answer=both.answer)
    shipped = {Role.MANAGER: loras / "manager", Role.ANSWER: loras / "answer"}
    assert parse_system("mine=manager:shipped", shipped) == System("mine", "managed", manager=loras / "manager")
    assert parse_system("shipped", shipped) == System("shipped", "managed", manager=both.manager, answer=both.answer)
    assert parse_system("shipped:raw:unselected", shipped).name == "shipped:raw:unselected"
    assert not parse_system("shipped:raw:unselected", shipped).selects


def test_only_what_an_answer_depends_on_makes_a_system(loras: Path) -> None:
    """Without a Manager, its LoRA is not part of the system: the engine need not load it."""
    raw = parse_system(f"sft={loras}:raw", {})
    assert raw.loras == {Role.ANSWER: loras / "answer"} and raw.bank == "raw"
    adding = parse_system(f"sft={loras}:always-add", {})
    assert adding.loras == {Role.ANSWER: loras / "answer"} and adding.bank == "always-add"


@pytest.mark.parametrize("word", ["magic", "=x", "a b=x", "sft=", *(f":{name}" for name in OPTIONS)])
def test_what_is_no_system_is_refused(word: str) -> None:
    """The message says what a system may be called."""
    with pytest.raises(InputError, match=r"is no system; expected one of no-memory, .*manager:FOLDER"):
        parse_system(word, {})


def test_a_folder_without_loras_is_refused(tmp_path: Path) -> None:
    """Before an hour of evaluation, not after it."""
    with pytest.raises(WeightsNotFoundError, match="holds no LoRA"):
        parse_system(f"sft={tmp_path}", {})
    with pytest.raises(WeightsNotFoundError, match="holds no LoRA"):
        parse_system(f"sft=answer:{tmp_path}", {})
    with pytest.raises(WeightsNotFoundError, match="manager ships"):
        parse_system("sft=manager:shipped", {})
