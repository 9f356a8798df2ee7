"""A disk that is really full: a bank on a small tmpfs of its own, filled until nothing goes any more, then given room.

Run as a program inside the mount namespace that `run` makes; it prints what it saw as JSON. What must hold: a write
that does not fit is a `BankError` that says so, what was acknowledged stays, and all goes on when there is room.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from crash_writer import opened
from report import Report

from memr1_plugin.errors import BankError, MemoryR1Error
from memr1_plugin.types import Scope, Turn

ANA = Scope(user="ana")
HERE = Path(__file__).resolve().parent
SECRET = "xylophonequartz"


def mountable() -> bool:
    """True if a file system can be mounted in a namespace of its own: as root, or where user namespaces are allowed."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(_unshared("mount -t tmpfs tmpfs /tmp"), capture_output=True).returncode == 0


def _unshared(script: str, *arguments: str) -> list[str]:
    """A command that runs `script` where mounts are its own and vanish with it."""
    return ["unshare", "--map-root-user", "--mount", "sh", "-ec", script, "sh", *arguments]


def run(folder: Path, write: str, size: str = "2m") -> Report:
    """Fill a disk of `size` by a memory that writes "sync" or "background", and report."""
    script = f'mount -t tmpfs -o size={size} tmpfs "$1"; exec "$2" "$3" "$1" "$4"'
    command = _unshared(script, str(folder), sys.executable, str(HERE / "full_disk.py"), write)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        return Report("full disk", f"tmpfs of {size}, {write}", (done.stderr.strip()[-2000:],))
    seen = json.loads(done.stdout)
    numbers = (("writes acknowledged", str(seen["kept"])), ("writes refused in words", str(seen["refused"])))
    return Report("full disk", f"tmpfs of {size}, {write}", tuple(seen["failures"]), numbers)


def read_only(folder: Path) -> subprocess.CompletedProcess[str]:
    """Mount `folder`, which holds bank.db, read-only, open the bank there, and print the error."""
    script = 'mount --bind "$1" "$1"; mount -o remount,ro,bind "$1"; exec "$2" "$3" "$1" read-only'
    command = _unshared(script, str(folder), sys.executable, str(HERE / "full_disk.py"))
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


class Filling:
    """The bank on the full disk, and what was seen."""

    def __init__(self, folder: Path, write: str) -> None:
        self.folder, self.path = folder, str(folder / "bank.db")
        self.memory = opened(self.path, write=write)
        self.kept: dict[str, str] = {}
        self.refused: list[str] = []
        self.failures: list[str] = []

    def say(self, n: int, chars: int) -> bool:
        """Observe one turn; True if it was acknowledged or is at least in the journal."""
        turn = Turn(f"add {SECRET if n == 0 else 'word'}{n} " + "x" * chars, "Ana", ANA, id=f"t{n}", session="s")
        try:
            self.memory.observe(turn)
        except MemoryR1Error as error:
            self._refuse(error)
            return False
        self.kept[turn.id] = turn.text
        return True

    def _refuse(self, error: MemoryR1Error) -> None:
        self.refused.append(str(error))
        if "disk space" not in str(error) or not isinstance(error, BankError):
            self.failures.append(f"a full disk is told as {type(error).__name__}: {error}")

    def fill(self) -> None:
        """Write until nothing goes, large turns first, then small ones; then try to forget."""
        for chars in (8_000, 1_000, 10):
            n = len(self.kept) + len(self.refused)
            while n < 2_000 and self.say(n, chars):
                n += 1
        if not self.refused:
            self.failures.append("the disk never got full")
        for n in range(10):
            self.say(3_000 + n, 3_000)
        try:
            self.memory.search("add word", scope=ANA)
            self.memory.forget(scope=Scope(user="nobody"))
        except BankError as error:
            self._refuse(error)

    def give_room(self) -> None:
        """Let the disk grow, and go on with the same open memory."""
        subprocess.run(["mount", "-o", "remount,size=64m", str(self.folder)], check=True)
        self.memory.flush()
        self.look("after there is room again")
        first = self.memory.bank.items(ANA)[0]
        if SECRET not in first.text:
            self.failures.append(f"the first item is {first.text[:40]!r}")
        self.memory.forget(first.id, scope=ANA)
        self.kept.pop("t0")
        if SECRET.encode() in b"".join(file.read_bytes() for file in self.folder.rglob("*") if file.is_file()):
            self.failures.append("a forgotten text is in the files")
        self.memory.close()
        self.memory = opened(self.path)
        self.look("after reopening")
        self.memory.close()

    def look(self, when: str) -> None:
        """Compare the bank with what was acknowledged."""
        bank = self.memory.bank
        turns = {turn.id: turn.text for turn in bank.turns(ANA)}
        lost = [turn_id for turn_id, text in self.kept.items() if turns.get(turn_id) != text]
        self.failures += [f"{when}: {line}" for line in bank.check()]
        if lost or bank.waiting() or len(bank.items(ANA)) != len(turns):
            self.failures.append(
                f"{when}: {lost[:3]} lost, {bank.waiting()} pending, {len(bank.items(ANA))} items of {len(turns)}"
            )


def main(folder: Path, write: str) -> dict[str, Any]:
    """Fill, give room, and return what was seen."""
    filling = Filling(folder, write)
    filling.fill()
    filling.give_room()
    return {"kept": len(filling.kept), "refused": len(filling.refused), "failures": filling.failures}


if __name__ == "__main__":
    if sys.argv[2] == "read-only":
        try:
            opened(str(Path(sys.argv[1]) / "bank.db"))
        except BankError as error:
            print(error)
    else:
        print(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))
