"""``solvisor service`` under a real systemd, booted for these tests: from the installation to nothing left."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.systemd_lab import Lab, Unavailable, booted

pytestmark = pytest.mark.slow

CONFIG = """\
[daemon]
stop_timeout = "0.2s"
[api]
group = "solvisor"
[inbox]
settle = "0.05s"
rescan = "0.2s"
[solver.copy]
accept = ["*.txt"]
command = ["cp", "{input}", "result"]
success.outputs = ["result"]
[solver.gate]  # until the file named by its input is there
accept = ["*.gate"]
stop_grace = "0.2s"
command = ["sh", "-c", 'echo $$ >pid; until test -e "$(cat "$1")"; do sleep .1; done; cp "$1" result', "sh", "{input}"]
success.outputs = ["result"]
[solver.deaf]
accept = ["*.deaf"]
stop_grace = "0.2s"
command = ["sh", "-c", "trap '' TERM; setsid sleep 1000 & while :; do sleep 1; done"]
"""


class Service:
    """One home in the lab, and its unit."""

    def __init__(self, lab: Lab, name: str, home: str) -> None:
        self.lab = lab
        self.name = name
        self.home = home
        self.config = f"/etc/solvisor/{name}.toml"
        lab.write(self.config, CONFIG)

    def install(self, *more: str, check: bool = True) -> Any:
        where = ("--system", "--name", self.name, "--home", self.home, "--config", self.config)
        return self.lab.solvisor("service", "install", *where, *more, check=check)

    def uninstall(self) -> Any:
        return self.lab.solvisor("service", "uninstall", "--system", "--name", self.name)

    def status(self) -> tuple[int, dict[str, Any]]:
        done = self.lab.solvisor("service", "status", "--system", "--name", self.name, "--json", check=False)
        return done.returncode, json.loads(done.stdout)

    @property
    def pid(self) -> int:
        return self.lab.main_pid(self.name)

    def show(self, *properties: str) -> list[str]:
        found = self.lab.show(self.name, *properties)
        return [found[name] for name in properties]

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        return self.lab.wait(condition, what, self.name)

    def drop(self, name: str, content: str) -> None:
        """By rename, as a careful user would, here as the owner of the home."""
        script = 'cat > "$1.part" && mv "$1.part" "$1"'
        self.lab.run("sh", "-c", script, "sh", f"{self.home}/inbox/{name}", user="solvisor", stdin=content)

    def manifests(self) -> list[dict[str, Any]]:
        home = self.lab.path(self.home)
        places = (home / folder for folder in ("done", "failed", "rejected"))  # on its way there it is in work/
        return [json.loads(path.read_bytes()) for place in places for path in place.glob("*/manifest.json")]

    def wait_manifest(self) -> dict[str, Any]:
        (manifest,) = self.wait(self.manifests, "a manifest")
        return dict(manifest)

    def wait_pid(self) -> int:
        """The solver's process, once it runs, as it is numbered in the lab."""

        def written() -> int:
            texts = [path.read_text() for path in self.lab.path(f"{self.home}/work").glob("*/output/pid")]
            return int(texts[0]) if texts and texts[0].endswith("\n") else 0

        return int(self.wait(written, "the solver runs"))

    def wait_cgroup(self, pid: int, name: str) -> None:
        """Until the process is in a cgroup of this service that is called so; it is moved right after its start."""
        cgroup, service = self.lab.path(f"/proc/{pid}/cgroup"), re.escape(f"/system.slice/{self.name}.service/")
        pattern = rf"^0::.*{service}solvisor-[0-9a-f]+/{name}"
        self.wait(lambda: re.search(pattern, cgroup.read_text(), re.MULTILINE), f"{pid} is in a cgroup {name}...")

    def left(self) -> list[str]:
        """Processes of this home: the daemon, and what carries its token."""
        found = []
        for pid, line in self.lab.processes().items():
            environ = self.lab.path(f"/proc/{pid}/environ")
            identity = self.lab.path(f"{self.home}/state/home-id")
            token = re.search(r'^id = "(.*)"', identity.read_text(), re.MULTILINE) if identity.exists() else None
            ours = token is not None and f"SOLVISOR_ATTEMPT={token[1]}/".encode() in _read(environ)
            if ours or f"--home {self.home} " in line:
                found.append(line)
        return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    try:
        with booted(tmp_path_factory.mktemp("systemd")) as lab:
            for user in ("member", "outsider"):
                lab.run("useradd", "--create-home", user)
            yield lab
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def service(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Service]:
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_"))[:40].strip("-")
    service = Service(lab, name, f"/srv/{name}")
    yield service
    if lab.path(f"/etc/systemd/system/{name}.service").exists():
        service.uninstall()
    assert service.left() == []


def test_from_install_to_uninstall(service: Service) -> None:
    lab, name, home = service.lab, service.name, service.home
    code, status = service.status()
    assert (code, status["installed"], status["pid"], status["answers"]) == (3, False, None, False)

    done = service.install("--now")
    assert f"wrote /etc/systemd/system/{name}.service" in done.stdout
    assert f"started {name}: it is ready" in done.stdout
    assert f"journalctl -u {name} -f" in done.stdout
    assert lab.run("stat", "-c", "%a %U %G", home, f"{home}/inbox").stdout == (
        "750 solvisor solvisor\n3770 solvisor solvisor\n"
    )
    service.drop("hello.txt", "hello\n")
    manifest = service.wait_manifest()
    assert (manifest["state"], manifest["user"]) == ("succeeded", "solvisor")
    code, status = service.status()
    assert (code, status["installed"], status["enabled"], status["active"]) == (0, True, True, "active (running)")
    assert (status["pid"], status["home"], status["restarts"]) == (service.pid, home, 0)

    before = service.pid
    again = service.install("--now", "--json")
    assert json.loads(again.stdout)["did"] == ["everything was there already"]
    assert service.pid == before

    gone = service.uninstall()
    assert f"left the home {home} with all its results as it is" in gone.stdout
    assert not lab.path(f"/etc/systemd/system/{name}.service").exists()
    assert service.left() == []
    assert service.manifests() == [manifest]
    assert "nothing to remove" in service.uninstall().stdout
    assert service.status()[0] == 3


def test_fault_63_kill_9_of_the_daemon_while_a_job_runs(service: Service) -> None:
    service.install("--now")
    go = f"/run/{service.name}.go"
    service.drop("a.gate", go)
    solver, daemon = service.wait_pid(), service.pid
    service.wait_cgroup(daemon, "daemon-")
    service.wait_cgroup(solver, "t-")
    service.lab.run("kill", "-9", str(daemon))
    service.wait(lambda: service.pid not in (0, daemon), "systemd starts it again")
    assert solver not in service.lab.processes()
    assert service.show("NRestarts") == ["1"]
    service.lab.write(go, "")
    manifest = service.wait_manifest()
    assert (manifest["state"], [attempt["cause"] for attempt in manifest["attempts"]]) == ("succeeded", ["lost", None])
    service.drop("after.txt", "x")
    service.wait(lambda: len(service.manifests()) == 2, "the next job is done")
    assert [m["name"] for m in service.manifests()].count(manifest["name"]) == 1


def test_fault_87_systemctl_reload_reads_the_configuration_again(service: Service) -> None:
    service.install("--now")
    daemon = service.pid
    service.lab.write(service.config, CONFIG + '[solver.other]\naccept = ["*.other"]\ncommand = ["true"]\n')
    service.lab.run("systemctl", "reload", service.name)
    service.drop("a.other", "x")
    assert service.wait_manifest()["solver"]["name"] == "other"
    assert service.pid == daemon


def test_fault_64_a_daemon_that_hangs_is_started_again(service: Service) -> None:
    service.lab.write(f"/etc/systemd/system/{service.name}.service.d/quick.conf", "[Service]\nWatchdogSec=1s\n")
    service.install("--now")
    daemon = service.pid
    service.lab.run("kill", "-STOP", str(daemon))
    service.wait(lambda: service.show("NRestarts", "ActiveState") == ["1", "active"], "systemd starts it again")
    assert service.pid != daemon
    assert "Watchdog timeout" in service.lab.run("journalctl", "--no-pager", "-u", service.name).stdout
    service.drop("after.txt", "x")
    assert service.wait_manifest()["state"] == "succeeded"


def test_a_faulty_configuration_is_no_reason_to_start_again(service: Service) -> None:
    service.install()
    assert service.pid == 0, "nobody asked for a start"
    service.lab.write(service.config, "[demon]\n")
    assert service.lab.run("systemctl", "start", service.name, check=False).returncode == 1
    assert service.show("ActiveState", "SubState", "ExecMainStatus", "NRestarts") == ["failed", "failed", "2", "0"]
    code, status = service.status()
    assert (code, status["active"], status["last_exit"]) == (
        3,
        "failed (failed)",
        "exit status 2: the configuration or the home cannot be used",
    )

    refused = service.install(check=False)
    assert refused.returncode == 2
    assert 'line 1: demon: no such key; did you mean "daemon"?' in refused.stderr


def test_a_home_that_is_held_is_no_reason_to_start_again(service: Service) -> None:
    service.install("--now")
    other = Service(service.lab, f"{service.name}-2", service.home)
    started = other.install("--now", check=False)
    assert started.returncode == 1
    assert f"journalctl -u {other.name} -n 20" in started.stderr
    assert other.show("ExecMainStatus", "NRestarts", "ActiveState") == ["100", "0", "failed"]
    other.uninstall()
    assert service.status()[0] == 0


def test_stop_leaves_nothing(service: Service) -> None:
    service.install("--now")
    service.drop("a.deaf", "x")
    service.wait(lambda: [line for line in service.left() if line.startswith("sleep 1000")], "the solver runs")
    service.lab.run("systemctl", "stop", service.name)
    assert service.left() == []
    assert not service.lab.path(f"/sys/fs/cgroup/system.slice/{service.name}.service").exists()
    assert service.show("ActiveState", "Result") == ["inactive", "success"]


def test_a_stop_lasts_as_long_as_the_daemon_lets_jobs_run(service: Service) -> None:
    patient = CONFIG.replace('stop_timeout = "0.2s"', 'stop_timeout = "1m"')
    service.lab.write(service.config, patient)
    service.lab.write(f"/etc/systemd/system/{service.name}.service.d/quick.conf", "[Service]\nTimeoutStopSec=1s\n")
    service.install("--now")
    go = f"/run/{service.name}.go"
    service.drop("a.gate", go)
    service.wait_pid()
    service.lab.run("systemctl", "stop", "--no-block", service.name)
    service.wait(lambda: service.show("SubState") == ["stop-sigterm"], "it stops")
    over = time.monotonic() + 2.5
    service.wait(lambda: time.monotonic() > over, "the time of the unit itself is over")
    service.lab.write(go, "")
    service.wait(lambda: service.show("ActiveState", "Result") == ["inactive", "success"], "it stopped")
    manifest = service.wait_manifest()
    assert (manifest["state"], len(manifest["attempts"])) == ("succeeded", 1)


def test_members_of_the_group_may_drop_and_others_may_not(service: Service) -> None:
    service.install("--now")
    lab, inbox = service.lab, f"{service.home}/inbox"
    lab.run("usermod", "-aG", "solvisor", "member")
    # As carelessly as can be: a umask that lets nobody else in, and a folder.
    made = 'umask 077; echo hi > "$1/file.txt"; mkdir "$1/case"; echo hi > "$1/case/in.txt"; echo x > "$1/case/mesh"'
    lab.run("sh", "-c", made, "sh", inbox, user="member")
    manifests = service.wait(lambda: len(service.manifests()) == 2 and service.manifests(), "both are done")
    assert [(m["state"], m["user"]) for m in manifests] == [("succeeded", "member")] * 2
    assert lab.run("ls", f"{service.home}/done", user="member").stdout.count("\n") == 2
    service.wait(lambda: lab.run("ls", inbox).stdout.split() == ["copy", "deaf", "gate"], "the inbox is empty")
    for refused in (["ls", service.home], ["sh", "-c", 'echo hi > "$1/file.txt"', "sh", inbox]):
        assert "Permission denied" in lab.run(*refused, user="outsider", check=False).stderr


def test_fault_79_members_of_the_group_may_ask_and_others_may_not(service: Service) -> None:
    service.install("--now")
    service.lab.run("usermod", "-aG", "solvisor", "member")
    assert service.status()[1]["answers"] is True
    assert service.lab.solvisor("status", "--home", service.home, user="member").returncode == 0
    refused = service.lab.solvisor("status", "--home", service.home, user="outsider", check=False)
    assert refused.returncode == 77, refused.stderr


@pytest.mark.parametrize("folder", ['50% of "x" $HOME', "it's; #1 ä"])
def test_an_odd_home(lab: Lab, folder: str) -> None:
    service = Service(lab, "odd", f"/srv/{folder}")
    service.install("--now")
    service.drop("a.txt", "x")
    assert service.wait_manifest()["state"] == "succeeded"
    assert service.status()[1]["home"] == service.home
    service.uninstall()


def test_a_named_account(service: Service) -> None:
    lab = service.lab
    lab.run("mkdir", service.home)
    lab.run("touch", f"{service.home}/something")
    refused = service.install("--as", "member", check=False)
    assert refused.returncode == 1
    assert f"the home {service.home} belongs to root, not to member; run: chown -R member:" in refused.stderr
    lab.run("chown", "member", service.home)
    installed = service.install("--as", "member", "--now")
    assert f'[api] group = "member" in {service.config}   lets them ask the daemon' in installed.stdout
    assert lab.run("ps", "-o", "user=", "-p", str(service.pid)).stdout.strip() == "member"
    assert lab.run("stat", "-c", "%a", service.home).stdout == "755\n", "what was there keeps its mode"
    root = Service(lab, f"{service.name}-2", "/srv/roots").install("--as", "root", check=False)
    assert "solvers must not run as root" in root.stderr


def test_what_cannot_be_installed(service: Service) -> None:
    lab, unit = service.lab, f"/etc/systemd/system/{service.name}.service"
    lab.run("chmod", "600", service.config)
    unreadable = service.install(check=False)
    assert unreadable.returncode == 1
    assert "solvisor cannot use this configuration or program" in unreadable.stderr
    assert "it cannot be read: Permission denied" in unreadable.stderr
    lab.run("chmod", "644", service.config)
    assert not lab.path(unit).exists()

    # The same interpreter by a way that is barred to all but root, as a program below /root is.
    lab.run("sh", "-c", 'mkdir -m 700 /srv/barred && ln -s "$1" /srv/barred/python', "sh", sys.executable)
    with_modules = f"PYTHONPATH={':'.join(filter(None, sys.path))}"
    barred = ("env", with_modules, "/srv/barred/python", "-P", "-m", "solvisor_service.cli", "service", "install")
    unreachable = lab.run(*barred, "--name", service.name, "--config", service.config, check=False)
    assert "solvisor cannot run" in unreachable.stderr
    assert "install Solvisor where that account may read it" in unreachable.stderr

    lab.write(unit, "[Service]\nExecStart=/bin/true\n")
    for refused in (
        service.install(check=False),
        service.lab.solvisor("service", "uninstall", "--system", "--name", service.name, check=False),
    ):
        assert 'was not written by "solvisor service install"' in refused.stderr
    assert lab.path(unit).read_text() == "[Service]\nExecStart=/bin/true\n"
    lab.run("rm", unit)

    service.install()
    elsewhere = Service(lab, service.name, "/srv/elsewhere").install(check=False)
    assert f"{unit} serves the home {service.home}; choose another name with --name" in elsewhere.stderr

    by_member = lab.solvisor("service", "install", "--system", "--config", service.config, user="member", check=False)
    assert (by_member.returncode, "only root may install" in by_member.stderr) == (77, True)
    gone = lab.solvisor("service", "uninstall", "--name", service.name, user="member", check=False)
    assert (gone.returncode, "only root may uninstall" in gone.stderr) == (77, True)


def test_a_program_that_the_daemon_would_not_find_is_warned_of(service: Service) -> None:
    service.lab.write(service.config, '[solver.x]\ncommand = ["no-such-program"]\n')
    done = service.install()
    assert 'warning: the program "no-such-program" of solver x is not on the PATH' in done.stderr


def test_where_systemd_does_not_run(lab: Lab) -> None:
    for action in ("install", "status", "uninstall"):
        cli = f"{sys.executable} -P -m solvisor_service.cli service {action}"
        done = lab.run("unshare", "--mount", "sh", "-c", f"mount -t tmpfs tmpfs /run && {cli}", check=False)
        assert done.returncode == 1
        assert "systemd does not run this machine" in done.stderr


def test_a_service_of_ones_own(lab: Lab) -> None:
    home, name = "/home/member/two words", "own"
    lab.run("mkdir", "-p", "/run/user/member")
    lab.run("chown", "member", "/run/user/member")
    lab.run(
        *("systemd-run", "--unit=manager-of-member", "--uid=member", "-pType=notify", "-pDelegate=yes"),
        *("--setenv=XDG_RUNTIME_DIR=/run/user/member", "--setenv=HOME=/home/member", "/lib/systemd/systemd", "--user"),
    )
    lab.run("mkdir", home, user="member")
    lab.write(f"{home}/solvisor.toml", CONFIG)

    def own(*arguments: str, check: bool = True) -> Any:
        return lab.solvisor("service", *arguments, "--name", name, user="member", check=check)

    done = own("install", "--home", home, "--now")
    assert "loginctl enable-linger member" in done.stdout
    text = lab.path(f"/home/member/.config/systemd/user/{name}.service").read_text()
    assert 'serve --home "%h/two words" --config "%h/two words/solvisor.toml"' in text
    lab.run("sh", "-c", 'echo x > "$1"', "sh", f"{home}/inbox/a.txt", user="member")
    manifests = lab.path(home)
    lab.wait(lambda: list(manifests.glob("done/*/manifest.json")), "a manifest", "manager-of-member")
    status = json.loads(own("status", "--json").stdout)
    assert (status["active"], status["enabled"], status["home"]) == ("active (running)", True, home)
    own("uninstall")
    assert not [line for line in lab.processes().values() if home in line]
    assert own("status", check=False).returncode == 3
    lab.run("systemctl", "stop", "manager-of-member")
    unreachable = own("install", "--home", home, check=False)
    assert unreachable.returncode == 1
    assert "systemctl --user" in unreachable.stderr
