"""Start the program ARGV in FOLDER without standard files (``closed``), or where the kernel refuses clone3 (a number).

Prints how it ended, and whether the compiled starter was there before and still is, to the file ``told``.
"""

import ctypes
import os
import struct
import sys
from pathlib import Path

import msgspec

from process_kit import Attempts
from solvisor import processors
from solvisor.process import spawn as spawning
from solvisor.process.native import Starter

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_CLONE3, _ERRNO, _ALLOW = 435, 0x00050000, 0x7FFF0000


def forbid_clone3(error: int) -> None:
    """A filter as a container's (seccomp(2)): that one system call fails."""
    rules = [(_LOAD, 0, 0, 0), (_JUMP_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | error), (_RETURN, 0, 0, _ALLOW)]
    packed = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
    program = struct.pack("HxxxxxxP", len(rules), ctypes.addressof(packed))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    buffer = ctypes.create_string_buffer(program)
    assert libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(buffer), 0, 0) == 0, ctypes.get_errno()


def main(folder: str, how: str, *argv: str) -> None:
    spec = Attempts(Path(folder))(*argv).spec
    starter = Starter()
    before = starter.works
    processors.gather_threads()
    ours = os.sched_getaffinity(0)
    told: list[set[int]] = []
    vars(spawning)["spread_thread"] = lambda: told.append(os.sched_getaffinity(0))
    if how == "closed":
        os.closerange(0, 3)
    else:
        forbid_clone3(int(how))
    leader = spawning.spawn(spec, starter)
    assert told == [ours] * (how != "closed")  # as the starter leaves the thread
    status = os.waitstatus_to_exitcode(os.waitpid(leader.pid, 0)[1])
    (Path(folder) / "told").write_bytes(msgspec.json.encode([status, before, starter.works]))


main(*sys.argv[1:])
