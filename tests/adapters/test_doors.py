"""Whom the doors let in when the machine itself is in trouble: it is told, and the daemon runs all the same."""

from __future__ import annotations

import errno
import grp
import os
import stat
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

from solvisor.config import Api
from solvisor_service.api import doors as module
from solvisor_service.api import listening, modes
from solvisor_service.api.doors import GROUP_TROUBLE, Doors
from waiting import eventually

OWN = grp.getgrgid(os.getegid())


@pytest.fixture
def doors(tmp_path: Path) -> Doors:
    tmp_path.chmod(0o755)
    (tmp_path / "run").mkdir()
    return Doors(tmp_path / "run" / "s.sock", tmp_path / "token", Api(group=OWN.gr_name), {})


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def nothing(*_: Any) -> None:
    """An application that nobody asks."""


async def test_a_directory_server_that_hangs_holds_up_no_start(
    doors: Doors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is meant is let in once it is known; until then nobody is."""
    answers, look_up, name_of = threading.Event(), modes.group_id, listening.name_of
    asked: list[str] = []

    def slowly(name: str) -> int | None:
        asked.append(name)
        assert answers.wait(30)
        return look_up(name)

    def name_slowly(uid: int) -> str | None:
        assert answers.wait(30)
        return name_of(uid)

    monkeypatch.setattr(module, "LOOK_UP_SECONDS", 0.1)
    monkeypatch.setattr(modes, "group_id", slowly)
    monkeypatch.setattr(module, "name_of", name_slowly)
    try:
        with anyio.fail_after(5):
            await doors.prepare()
        assert (doors.policy.owner_name, doors.policy.gid) == (str(os.geteuid()), None)
        assert f"who is in the group {OWN.gr_name} was not said" in doors._trouble[GROUP_TROUBLE]
        reviews: list[None] = []
        with doors.opened() as sock:
            assert mode(tmp_path / "run" / "s.sock") == 0o600
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(doors.serve, nothing, sock, lambda: reviews.append(None))
                await eventually(lambda: len(asked) == 2, "it is asked again")
                assert not reviews
                answers.set()
                await eventually(lambda: reviews, "it is known")
                assert doors.policy.gid == OWN.gr_gid
                assert mode(tmp_path / "run" / "s.sock") == 0o660
                assert "was not said" not in doors._trouble.get(GROUP_TROUBLE, "")
                tasks.cancel_scope.cancel()
    finally:
        answers.set()


async def test_a_folder_above_that_cannot_be_looked_at_is_told(
    doors: Doors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(self: Path, **options: bool) -> os.stat_result:
        if self == tmp_path:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self))
        return os.stat(self, **options)

    monkeypatch.setattr(Path, "stat", stale)
    await doors.prepare()
    assert doors._trouble[GROUP_TROUBLE] == (
        f"[api] group: whether members of {OWN.gr_name} can reach {tmp_path}/run/s.sock is not known: "
        f"{tmp_path}: {os.strerror(errno.ESTALE)}; mend that, then reload"
    )
    assert doors.policy.gid == OWN.gr_gid
