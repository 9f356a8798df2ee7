"""The version matrix: the doors' tests against the oldest and newest frameworks, with one of them, and with none.

Each row is a virtual environment in .matrix/, made once and kept; run with row names to run only those. A row
passes if its tests pass and none of the doors that it must open was skipped. LangChain 0.3 and 1.x cannot be
installed side by side, which is why this is not a pytest parameter.

    python tests/matrix.py [--fresh] [row ...]
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".matrix" / f"python{sys.version_info.major}.{sys.version_info.minor}"
TOOLS = ("pytest>=8.3", "pytest-asyncio>=1.0", "pytest-timeout>=2.3")


@dataclass(frozen=True)
class Row:
    """One environment: what is installed, and the test files that must really run in it."""

    name: str
    packages: tuple[str, ...]
    doors: tuple[str, ...]


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
)


def make(row: Row, fresh: bool) -> Path:
    """Return the Python of the row's environment, made if it is not there."""
    home = HOME / row.name
    if fresh and home.exists():
        shutil.rmtree(home)
    python = home / "bin" / "python"
    if not (home / ".ready").exists():
        HOME.mkdir(parents=True, exist_ok=True)
        (HOME.parent / ".gitignore").write_text("*\n")
        venv.create(home, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*install, "-e", str(ROOT), *TOOLS, *row.packages], check=True)
        (home / ".ready").touch()
    return python


def run(row: Row, fresh: bool) -> tuple[bool, str]:
    """Run the row's tests, file by file; a file in which nothing passed is a door that did not open."""
    python = make(row, fresh)
    # Old frameworks warn about themselves and their own dependencies; here only failures count.
    options = ["-q", "-o", "filterwarnings=default", "--disable-warnings", "-p", "no:cacheprovider"]
    told, passed = [], True
    for door in row.doors:
        command = [str(python), "-m", "pytest", *options, f"tests/adapters/test_{door}.py"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        last = (done.stdout.strip().splitlines() or ["(no output)"])[-1].strip("= ")
        if done.returncode or "passed" not in last:
            passed = False
            print(done.stdout[-6000:], done.stderr[-2000:], sep="\n")
        told.append(f"{door}: {last}")
    return passed, "; ".join(told)


def main() -> int:
    """Run the rows and print the table; the exit code is the number of rows that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="row", help=", ".join(row.name for row in ROWS))
    parser.add_argument("--fresh", action="store_true", help="make the environments anew")
    given = parser.parse_args()
    if unknown := set(given.rows) - {row.name for row in ROWS}:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    failed = 0
    for row in ROWS:
        if given.rows and row.name not in given.rows:
            continue
        start = time.perf_counter()
        passed, line = run(row, given.fresh)
        failed += not passed
        print(f"{'ok  ' if passed else 'FAIL'} {row.name:20} {time.perf_counter() - start:6.0f} s  {line}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
