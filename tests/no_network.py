"""A child of tests/test_no_network.py: a process that cannot go to the network, and says who tried.

Python's own attempts are written down with where they came from (an audit hook); an internet socket of native code
ends the process with SIGSYS (seccomp, on Linux). What a bot prints is its file's business.

    python tests/no_network.py FILE [argument ...]
"""

from __future__ import annotations

import ctypes
import os
import platform
import runpy
import socket
import struct
import sys
import traceback
from typing import Any

ATTEMPTED = 97
"""Exit code if Python code touched the network."""
_EVENTS = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr",
           "socket.sendto", "socket.sendmsg", "urllib.Request", "http.client.connect", "smtplib.connect")  # fmt: skip
_attempts: list[str] = []


def watch(event: str, args: tuple[Any, ...]) -> None:
    """Write an attempt down. A socket pair of this machine (asyncio has one to wake itself) is none."""
    if event == "socket.__new__" and args[1] not in (socket.AF_INET, socket.AF_INET6):
        return
    if event == "socket.__new__" or event in _EVENTS:
        _attempts.append(f"{event}{args[1:]!r}\n{''.join(traceback.format_stack(limit=8))}")


def forbid_internet_sockets() -> bool:
    """Let the kernel kill this process at ``socket(AF_INET, ...)``; False where it cannot be asked to.

    The filter is classic BPF (linux/filter.h) on `struct seccomp_data`: number of the call, architecture, arguments.
    """
    known = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
    if sys.platform != "linux" or platform.machine() not in known:
        return False
    architecture, number = known[platform.machine()]
    load, jump_eq, ret, allow, kill = 0x20, 0x15, 0x06, 0x7FFF0000, 0x80000000
    steps = [
        (load, 0, 0, 4),  # architecture
        (jump_eq, 0, 5, architecture),
        (load, 0, 0, 0),  # number of the call
        (jump_eq, 0, 3, number),
        (load, 0, 0, 16),  # its first argument, the family
        (jump_eq, 2, 0, int(socket.AF_INET)),
        (jump_eq, 1, 0, int(socket.AF_INET6)),
        (ret, 0, 0, allow),
        (ret, 0, 0, kill),
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    header = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_seccomp, filter_mode = 38, 22, 2
    return not (libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(set_seccomp, filter_mode, header, 0, 0))


def main(file: str, *arguments: str) -> None:
    """Run `file` as a program; exit with `ATTEMPTED` if it went to the network."""
    socket.has_ipv6 = False  # urllib3 would look for it when it is imported, by a socket that goes nowhere
    sys.addaudithook(watch)
    if os.environ.get("MEMR1_NO_SECCOMP") != "1":
        print("kernel:", forbid_internet_sockets(), file=sys.stderr)
    sys.argv = [file, *arguments]
    runpy.run_path(file, run_name="__main__")
    if _attempts:
        print(*_attempts, sep="\n", file=sys.stderr)
        sys.stderr.flush()
        os._exit(ATTEMPTED)


if __name__ == "__main__":
    main(*sys.argv[1:])
