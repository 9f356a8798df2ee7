"""The version matrix: the doors' tests against the oldest and newest frameworks, with one of them, and with none.

Each row is a virtual environment in .matrix/, made once and kept; run with row names to run only those. A row
passes if its tests pass and none of the files that it must run was skipped whole. LangChain 0.3 and 1.x cannot be
installed side by side, which is why this is not a pytest parameter.

The row "light" is the library without torch, beside the newest frameworks: all tests but training's and those of the
real model. It is run on each Python of `PYTHONS` that is found; one that is not is named as skipped. The other rows
run on the Python that runs this file.

    python tests/matrix.py [--fresh] [--python 3.12] [row ...]
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".matrix"
OWN = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
TOOLS = ("pytest>=8.3", "pytest-asyncio>=1.0", "pytest-timeout>=2.3")


@dataclass(frozen=True)
class Row:
    """One environment: what is installed, and the test files that must really run in it."""

    name: str
    packages: tuple[str, ...]
    doors: tuple[str, ...] = ()
    """Names of tests/adapters/test_<door>.py."""
    tests: tuple[str, ...] = ()
    """Other arguments of pytest, in one run."""
    every_python: bool = False

    def runs(self) -> list[tuple[str, tuple[str, ...]]]:
        """Return (name, pytest's arguments) of each run."""
        doors = [(door, (f"tests/adapters/test_{door}.py",)) for door in self.doors]
        return [*doors, *([("tests", self.tests)] if self.tests else [])]


_CLASSIC = ("langchain_memory", "langchain_history")
_ALL_LANGCHAIN = (*_CLASSIC, "langchain_middleware", "langgraph_store")
_LLAMA = ("llama_index_memory", "llama_index_block")

ROWS = (
    Row("none", (), ("extras",)),
    Row("langchain-0.3", ("langchain>=0.3,<1",), _CLASSIC),
    Row(
        "langchain-1.0",
        (
            "langchain==1.0.*",
            "langchain-core==1.0.*",
            "langchain-classic==1.0.0",
            "langgraph==1.0.3",
            "langgraph-prebuilt==1.0.2",
            "langgraph-checkpoint==3.0.0",
        ),
        _ALL_LANGCHAIN,
    ),
    Row("langchain-newest", ("langchain>=1", "langchain-classic>=1", "langgraph-checkpoint-sqlite"), _ALL_LANGCHAIN),
    Row("llama-index-0.13", ("llama-index-core==0.13.0",), _LLAMA),
    Row("llama-index-newest", ("llama-index-core<0.15",), _LLAMA),
    Row("openai-only", ("openai", "httpx2"), ("wrap",)),
    Row(
        "light",
        ("langchain>=1", "langchain-classic>=1", "langchain-tests>=1.0", "langgraph>=1", "langgraph-checkpoint-sqlite",
         "llama-index-core<0.15", "pydantic<2.14", "openai", "httpx", "hypothesis>=6.100"),
        tests=("tests", "--ignore=tests/training", "-m", "not real"),
        every_python=True,
    ),
)  # fmt: skip


def make(row: Row, version: str, fresh: bool) -> Path:
    """Return the Python of the row's environment, made if it is not there."""
    home = HOME / f"python{version}" / row.name
    if fresh and home.exists():
        shutil.rmtree(home)
    python = home / "bin" / "python"
    if not (home / ".ready").exists():
        HOME.mkdir(parents=True, exist_ok=True)
        (HOME / ".gitignore").write_text("*\n")
        subprocess.run([interpreter(version), "-m", "venv", "--clear", str(home)], check=True)
        install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*install, "-e", str(ROOT), *TOOLS, *row.packages], check=True)
        (home / ".ready").touch()
    return python


def interpreter(version: str) -> str | None:
    """Return the path of a Python that really starts and can make environments; None if there is none."""
    path = sys.executable if version == OWN else shutil.which(f"python{version}")
    if path is None:
        return None
    check = "import ensurepip, sqlite3, sys; print(sys._base_executable)"
    done = subprocess.run([path, "-c", check], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None if done.returncode == 0 else None


def run(row: Row, version: str, fresh: bool) -> tuple[bool, str]:
    """Run the row's tests, file by file; a file in which nothing passed is a door that did not open."""
    python = make(row, version, fresh)
    # Old frameworks warn about themselves and their own dependencies; here only failures count.
    options = ["-q", "-o", "filterwarnings=default", "--disable-warnings", "-p", "no:cacheprovider"]
    told, passed = [], True
    for name, tests in row.runs():
        done = subprocess.run(
            [str(python), "-m", "pytest", *options, *tests], cwd=ROOT, capture_output=True, text=True, check=False
        )
        last = (done.stdout.strip().splitlines() or ["(no output)"])[-1].strip("= ")
        if done.returncode or "passed" not in last:
            passed = False
            print(done.stdout[-6000:], done.stderr[-2000:], sep="\n")
        told.append(f"{name}: {last}")
    return passed, "; ".join(told)


def main() -> int:
    """Run the rows and print the table; the exit code is the number of rows that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="row", help=", ".join(row.name for row in ROWS))
    parser.add_argument("--fresh", action="store_true", help="make the environments anew")
    parser.add_argument("--python", choices=PYTHONS, help="of the row that runs on every Python, only this one")
    given = parser.parse_args()
    if unknown := set(given.rows) - {row.name for row in ROWS}:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    failed = 0
    for row in ROWS:
        if given.rows and row.name not in given.rows:
            continue
        every = (given.python,) if given.python else PYTHONS
        for version in every if row.every_python else (OWN,):
            name, start = f"{row.name}, {version}", time.perf_counter()
            if interpreter(version) is None:
                print(f"skip {name:26} no python{version} with venv and sqlite3 on the path", flush=True)
                continue
            passed, line = run(row, version, given.fresh)
            failed += not passed
            print(f"{'ok  ' if passed else 'FAIL'} {name:26} {time.perf_counter() - start:6.0f} s  {line}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
