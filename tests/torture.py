"""The long forms of the tests of survival, with a table of what was tried and measured: `make torture`.

Each part is a module of tests/survival, which `make test` runs in a short form. The exit code is the number of parts
in which a promise was broken. A run is repeated with the seed that it prints (times aside).

    python tests/torture.py [part ...] [--kills 500] [--seed N] [--out table.md]
"""

from __future__ import annotations

import argparse
import platform
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent / "survival"))

import crash
import crowd
import full_disk
import fuzz
import tenants
from report import Report


def _crashes(given: argparse.Namespace, folder: Path) -> Iterator[Report]:
    yield crash.run(given.kills, given.seed, folder)


def _disks(given: argparse.Namespace, folder: Path) -> Iterator[Report]:
    if not full_disk.mountable():
        yield Report("full disk", "not tried: no file system can be mounted here", ())
        return
    for size in ("2m", "3m", "5m"):
        for write in ("sync", "background"):
            (place := folder / f"{size}-{write}").mkdir()
            yield full_disk.run(place, write, size)


def _crowds(given: argparse.Namespace, folder: Path) -> Iterator[Report]:
    yield crowd.run(folder, processes=given.processes, tasks=given.tasks, calls=given.calls, seed=given.seed)


def _loop(given: argparse.Namespace, folder: Path) -> Iterator[Report]:
    yield crowd.stalls(folder, tasks=64, calls=24)
    if given.real:
        (place := folder / "real").mkdir()
        yield crowd.stalls(place, tasks=4, calls=3, real=True)


def _tenants(given: argparse.Namespace, folder: Path) -> Iterator[Report]:
    yield tenants.interleave(given.interleavings, given.seed)
    yield tenants.erase(given.erasures, given.seed, folder)


def _neighbours(given: argparse.Namespace, folder: Path) -> Iterator[Report]:
    yield tenants.neighbours(folder, given.neighbours, given.seed)


def _models(given: argparse.Namespace, folder: Path) -> Iterator[Report]:
    yield fuzz.run(given.completions, given.seed)


PARTS: dict[str, Callable[[argparse.Namespace, Path], Iterator[Report]]] = {
    "loop": _loop,  # first: it also measures the loading of FAISS, which happens once a process
    "crashes": _crashes,
    "disks": _disks,
    "crowds": _crowds,
    "tenants": _tenants,
    "neighbours": _neighbours,
    "models": _models,
}


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="memr1-torture-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def run(names: list[str], given: argparse.Namespace, console: Console) -> list[tuple[Report, float, float]]:
    """Run parts; return each report with its wall seconds and this process's CPU seconds."""
    rows = []
    for name in names:
        with _folder() as folder:
            wall, cpu = time.perf_counter(), time.process_time()
            for report in PARTS[name](given, folder):
                rows.append((report, time.perf_counter() - wall, time.process_time() - cpu))
                wall, cpu = time.perf_counter(), time.process_time()
                sign = "[green]held[/]" if report.passed else "[red]BROKEN[/]"
                console.print(f"{sign} {report.part}: {report.checked} ({rows[-1][1]:.0f} s)")
                for failure in report.failures[:20]:
                    console.print(f"   {failure}", markup=False)
    return rows


def _cells(report: Report, wall: float, cpu: float) -> tuple[str, ...]:
    numbers = "; ".join(f"{name}: {value}" for name, value in report.numbers)
    broken = f"**{len(report.failures)}**" if report.failures else "0"
    seed = "" if report.seed is None else str(report.seed)
    return report.part, report.checked, broken, numbers, seed, f"{wall:.0f} / {cpu:.0f}"


HEADS = ("part", "what was tried", "broken promises", "numbers", "seed", "wall / CPU s")


def markdown(rows: list[tuple[Report, float, float]]) -> str:
    """Return the table of docs/guarantees.md."""
    lines = [f"{date.today():%d %B %Y}, Python {platform.python_version()}, {platform.system()}:", ""]
    lines += [f"| {' | '.join(HEADS)} |", f"|{'---|' * len(HEADS)}"]
    lines += [f"| {' | '.join(_cells(*row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the parts, print and write the table; the exit code is the number of reports with a broken promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    parser.add_argument("--kills", type=int, default=500, help="writers killed")
    parser.add_argument("--completions", type=int, default=100_000, help="fuzzed completions")
    parser.add_argument("--processes", type=int, default=8, help="processes of the crowd")
    parser.add_argument("--tasks", type=int, default=64, help="async tasks in each of them")
    parser.add_argument("--calls", type=int, default=6, help="calls that each task makes")
    parser.add_argument("--interleavings", type=int, default=500, help="examples of interleaved scopes")
    parser.add_argument(
        "--erasures", type=int, default=60, help="memories and scopes erased, files searched after each"
    )
    parser.add_argument("--neighbours", type=int, default=1_000_000, help="nearer vectors of others")
    parser.add_argument("--real", action="store_true", help="measure the event loop with the default model too")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31), help="repeats a run")
    parser.add_argument("--out", type=Path, help="write the table there, as Markdown")
    given = parser.parse_args()
    if unknown := set(given.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    console = Console()
    console.print(f"seed {given.seed}")
    rows = run(given.parts or list(PARTS), given, console)
    table = Table(*HEADS)
    for row in rows:
        table.add_row(*_cells(*row))
    console.print(table)
    if given.out:
        given.out.write_text(markdown(rows), encoding="utf-8")
    return sum(not report.passed for report, _, _ in rows)


if __name__ == "__main__":
    sys.exit(main())
