"""The unit file, as far as it can be judged without booting: its text, what systemd says of it, what it is told."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from solvisor_service import notify, unit
from solvisor_service.unit import Scope, Unit, UnitUnusable

SHIPPED = Path(__file__).parents[2] / "systemd" / "solvisor.service"

SYSTEM = Unit(
    scope=Scope.SYSTEM,
    name="solvisor",
    program=("/bin/true",),
    home=Path("/srv/solvisor"),
    config=Path("/etc/solvisor/solvisor.toml"),
    account="root",
)
USER = replace(
    SYSTEM,
    scope=Scope.USER,
    home=Path("/home/ann/fem"),
    config=Path("/home/ann/fem/solvisor.toml"),
    user_home=Path("/home/ann"),
)


def exec_start(text: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    return line.removeprefix("ExecStart=")


def test_the_shipped_unit_is_what_the_template_gives() -> None:
    assert SHIPPED.read_text() == unit.shipped(), (
        "write it anew: python -c 'from solvisor_service import unit; print(unit.shipped(), end=\"\")' > systemd/..."
    )


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize(
    ("made", "manager"),
    [
        pytest.param(SYSTEM, "--system", id="system"),
        pytest.param(USER, "--user", id="user"),
        pytest.param(replace(SYSTEM, home=Path('/srv/50% of "x" $HOME; it\'s')), "--system", id="odd"),
    ],
)
def test_systemd_finds_nothing_wrong_with_the_unit(
    made: Unit, manager: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = tmp_path / "solvisor.service"
    path.write_text(made.text())
    verified = subprocess.run(["systemd-analyze", manager, "verify", path], capture_output=True, text=True, check=False)
    # It exits 0 on unknown keys: what counts is that it has nothing to say.
    assert (verified.returncode, verified.stderr) == (0, "")


def test_the_two_kinds_of_unit() -> None:
    system, user = SYSTEM.text(), USER.text()
    assert "\nUser=root\n" in system
    assert "\nWantedBy=multi-user.target\n" in system
    assert "\nProtectSystem=full\n" in system
    assert "\nWantedBy=default.target\n" in user
    assert not any(line.startswith(("User=", "Protect", "After=")) for line in user.splitlines())
    for text in (system, user):
        assert not any(mark in text for mark in ("system:", "user:", "@")), text
        for line in (
            *("Type=notify", "KillMode=mixed", "Delegate=yes", "WatchdogSec=30s"),
            *("Restart=on-failure", "RestartPreventExitStatus=2 100"),
        ):
            assert f"\n{line}\n" in text


@pytest.mark.parametrize(
    ("home", "word"),
    [
        ("/srv/plain", "/srv/plain"),
        ("/srv/two words", '"/srv/two words"'),
        ("/srv/50%", '"/srv/50%%"'),
        ("/srv/$HOME", '"/srv/$$HOME"'),
        ('/srv/a"b', '"/srv/a\\"b"'),
        ("/srv/it's;#", '"/srv/it\'s;#"'),
        ("/srv/%h", '"/srv/%%h"'),
        ("/srv/Träger", '"/srv/Träger"'),
    ],
)
def test_paths_are_quoted(home: str, word: str) -> None:
    text = replace(SYSTEM, home=Path(home)).text()
    assert exec_start(text) == f"/bin/true serve --home {word} --config /etc/solvisor/solvisor.toml"
    assert unit.home_in(text) == Path(home)


def test_what_lies_in_the_users_folder_moves_with_it() -> None:
    assert exec_start(USER.text()) == "/bin/true serve --home %h/fem --config %h/fem/solvisor.toml"
    spaced = replace(USER, home=Path("/home/ann/two 50%"), config=Path("/etc/solvisor.toml"))
    assert exec_start(spaced.text()) == '/bin/true serve --home "%h/two 50%%" --config /etc/solvisor.toml'
    assert exec_start(replace(USER, home=Path("/home/anne")).text()).startswith("/bin/true serve --home /home/anne ")


@pytest.mark.parametrize("home", ["/srv/a\nExecStartPre=/bin/x", "/srv/a\\", "/srv/\udcff", "/srv/\x1b[31m"])
def test_a_path_that_no_unit_can_name_is_refused(home: str) -> None:
    with pytest.raises(UnitUnusable, match="cannot stand in a unit") as caught:
        replace(SYSTEM, home=Path(home)).text()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["", ".x", "a/b", "x.service", "a b", "@", "a%i", "x" * 65])
def test_a_name_that_is_none_for_a_service_is_refused(name: str) -> None:
    with pytest.raises(UnitUnusable, match="cannot name a service"):
        replace(SYSTEM, name=name).text()


@pytest.mark.parametrize("account", ["", "-x", "a b", "a\nRoot", "\x1b[31m", "%u"])
def test_an_account_that_no_unit_can_name_is_refused(account: str) -> None:
    with pytest.raises(UnitUnusable, match="cannot be the account of a unit"):
        replace(SYSTEM, account=account).text()


def test_a_unit_of_somebody_else_is_told_from_ours() -> None:
    assert unit.home_in(SYSTEM.text()) == SYSTEM.home
    for text in ("", "[Service]\nExecStart=/bin/true\n", "[X-Solvisor]\nHome=/srv\n", "[X-Solvisor]\nHome=3\n"):
        assert unit.home_in(text) is None


def test_the_program_is_this_installation() -> None:
    called = subprocess.run(
        [*unit.own_program(), "--version"], capture_output=True, text=True, cwd="/", check=False, env={}
    )
    if called.returncode and "No module named" in called.stderr:
        pytest.skip("this checkout is on PYTHONPATH but not installed")
    assert called.stdout.startswith("solvisor "), called.stderr
    assert Path(unit.own_program()[0]).parent == Path(sys.executable).parent


@pytest.mark.skipif(sys.platform == "win32", reason="systemd's socket is a Unix socket")
async def test_systemd_is_kept_waiting_for_a_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(os.fspath(tmp_path / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", os.fspath(tmp_path / "notify"))
        monkeypatch.setattr(notify, "EXTEND_SECONDS", 0.3)
        with anyio.fail_after(20):
            await notify.extend_timeout(0.5)  # it ends by itself
        heard = []
        with contextlib.suppress(BlockingIOError):
            while True:
                heard.append(systemd.recv(4096).decode())
    assert len(heard) >= 2
    assert all(word.startswith("EXTEND_TIMEOUT_USEC=") for word in heard)
    assert heard[0] == "EXTEND_TIMEOUT_USEC=300000"
    assert int(heard[-1].partition("=")[2]) <= 300_000


def test_the_command_line_reads_back() -> None:
    """For a path without what only systemd treats specially its quoting is that of a shell."""
    text = replace(SYSTEM, program=("/opt/a b/python", "-P", "-m", "x"), home=Path("/srv/two words")).text()
    assert shlex.split(exec_start(text)) == [
        *("/opt/a b/python", "-P", "-m", "x", "serve", "--home", "/srv/two words"),
        *("--config", "/etc/solvisor/solvisor.toml"),
    ]
