"""The front door: what is exported, what an import costs, what the wheel holds."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import memr1_plugin

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {
    "torch", "transformers", "peft", "bitsandbytes", "accelerate", "sentence_transformers", "trl", "datasets",
    "faiss", "xgrammar", "langchain", "langchain_core", "langchain_classic", "langgraph", "llama_index", "pandas",
    "opentelemetry",
}  # fmt: skip


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after running `code`."""
    script = f"{code}\nimport sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import memr1_plugin",
        "from memr1_plugin import *",
        "import memr1_plugin.testing",
        "import memr1_plugin.cli",
        "import memr1_plugin.adapters",
        "import memr1_plugin.conversations",
    ],
)
def test_nothing_heavy_is_loaded_at_import(code: str) -> None:
    """No model, index or framework is loaded before it is used."""
    assert not HEAVY & modules_after(code)


def test_the_package_itself_loads_almost_nothing() -> None:
    """`import memr1_plugin` needs the standard library only: numpy comes with the first name that is used."""
    assert not {"numpy", "rich", "typer"} & modules_after("import memr1_plugin")


def test_exports_are_sorted_and_there() -> None:
    """Every exported name exists, and the list is in order."""
    assert memr1_plugin.__all__ == sorted(memr1_plugin.__all__)
    assert set(memr1_plugin.__all__) <= set(dir(memr1_plugin))
    for name in memr1_plugin.__all__:
        assert getattr(memr1_plugin, name).__name__ == name


def test_an_unknown_name_lists_the_known_ones() -> None:
    """A misspelt import says what there is."""
    with pytest.raises(AttributeError, match="Memory, MemoryItem"):
        memr1_plugin.Memry  # noqa: B018


def test_the_version_is_that_of_the_project_file() -> None:
    """`memr1_plugin.__version__` and pyproject.toml agree."""
    assert f'version = "{memr1_plugin.__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_torch_is_pinned_to_the_version_that_is_installed_first() -> None:
    """The Makefile's torch and the constraints' torch are one version."""
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    [torch] = [line for line in constraints if line.startswith("torch==")]
    assert f" {torch}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_wheel_holds_the_package_its_prompts_and_its_loras(tmp_path: Path) -> None:
    """A wheel has every module, prompt and LoRA file of the repository, and nothing of the tests."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        capture_output=True, check=True,
    )  # fmt: skip
    [wheel] = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = ROOT / "src" / "memr1_plugin"
    expected = {
        f"memr1_plugin/{path.relative_to(package).as_posix()}"
        for path in package.rglob("*")
        if path.is_file() and path.suffix in (".py", ".txt", ".typed", ".json")
    }
    loras = ROOT / "adapters"
    expected |= {
        f"memr1_plugin/_loras/{path.relative_to(loras).as_posix()}"
        for role in ("manager", "answer", "question")
        for path in loras.glob(f"*/{role}/*")
    }
    assert expected <= names
    assert all(name.startswith("memr1_plugin/") for name in names)
