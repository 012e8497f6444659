"""Files that arrive in every way a program may write them: each becomes one intake, none is taken half-written."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from inbox_kit import a_config, running
from waiting import eventually

# Writes 40 files in each of six ways, all at once, in pieces, with pauses longer than the settle time of the inbox.
WRITER = """
import json, mmap, os, random, subprocess, sys, time
inbox, aside, each, pause = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
PIECES = 4
os.makedirs(aside)
rng = random.Random(1)
bodies = {f"{way}-{n}.inp": [rng.randbytes(rng.randint(1, 9000)) for _ in range(PIECES)]
          for way in ("slow", "rename", "copy", "link", "mmap", "rsync") for n in range(each)}

def at(folder, name):
    return os.path.join(folder, name)

def hidden(name):
    return at(inbox, f".{name}.a1B2c3")

slow = {name: open(at(inbox, name), "wb", buffering=0) for name in bodies if name.startswith("slow")}
maps = {}
for name, pieces in bodies.items():
    if name.startswith("mmap"):
        fd = os.open(at(inbox, name), os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, sum(map(len, pieces)))
        maps[name] = mmap.mmap(fd, 0)
        os.close(fd)
    elif name.startswith("rsync"):
        open(hidden(name), "wb").close()
    elif not name.startswith("slow"):
        with open(at(aside, name), "wb") as file:
            file.write(b"".join(pieces))
for piece in range(PIECES):
    for name, pieces in bodies.items():
        way, n = name[:-4].split("-")
        if way == "slow":
            slow[name].write(pieces[piece])
        elif way == "mmap":
            maps[name].write(pieces[piece])
        elif way == "rsync":
            with open(hidden(name), "ab") as file:
                file.write(pieces[piece])
            if piece == PIECES - 1:
                os.utime(hidden(name), (1e9, 1e9))
                os.rename(hidden(name), at(inbox, name))
        elif int(n) % PIECES != piece:
            continue
        elif way == "rename":
            os.rename(at(aside, name), at(inbox, name))
        elif way == "copy":
            subprocess.run(["cp", at(aside, name), at(inbox, name)], check=True)
        elif way == "link":
            os.link(at(aside, name), at(inbox, name))
    time.sleep(pause)
for file in (*slow.values(), *maps.values()):
    file.close()
for name in bodies:
    if name.startswith("link"):
        os.unlink(at(aside, name))
import hashlib
json.dump({name: hashlib.sha256(b"".join(pieces)).hexdigest() for name, pieces in bodies.items()}, sys.stdout)
"""


async def test_fault_41_240_files_in_six_ways_are_240_intakes_none_half_written(tmp_path: Path) -> None:
    async with running(tmp_path, a_config(settle="50ms", rescan="200ms")) as run:
        argv = [sys.executable, "-c", WRITER, str(run.folder), str(run.home.root / "aside"), "40", "0.3"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as writer:  # noqa: ASYNC220  waited for below
            await eventually(lambda: writer.poll() is not None, "the writer is done", 60.0)
            assert writer.stdout is not None
            written = json.load(writer.stdout)
        assert len(written) == 240
        await run.wait_intakes(240, 60.0)
        await run.wait_scans()
        taken = {intake.spec.primary: intake for intake in run.jobs}
        assert len(run.intakes) == 240
        assert taken.keys() == written.keys()
        for name, intake in taken.items():
            assert hashlib.sha256(run.claimed(intake, name)).hexdigest() == written[name], name
            assert intake.spec.inputs[0].sha256 == written[name], name
        assert not [entry for entry in run.folder.iterdir() if entry.is_file()]


async def test_fault_38_a_burst_of_3000_renames_is_taken_once_each_in_big_rounds(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        aside = run.home.root / "aside"
        aside.mkdir()
        for n in range(3000):
            (aside / f"{n}.inp").touch()
        for n in range(3000):
            (aside / f"{n}.inp").rename(run.folder / f"{n}.inp")
        await run.wait_intakes(3000, 120.0)
        await run.wait_scans()
        assert sorted(intake.spec.primary for intake in run.jobs) == sorted(f"{n}.inp" for n in range(3000))
        assert len({intake.id for intake in run.intakes}) == 3000
        assert max(run.rounds) <= 512
        assert len(run.rounds) < 300


async def test_fault_36_a_writer_that_pauses_is_waited_for_however_long(tmp_path: Path) -> None:
    async with running(tmp_path, a_config(settle="10ms", rescan="50ms")) as run:
        with (run.folder / "a.inp").open("wb", buffering=0) as file:
            for _ in range(3):
                file.write(b"piece\n")
                await eventually(lambda: [w.why for _, w in run.inbox.waiting] == ["claim"], "a claim is put off")
            assert not run.intakes
            (_, wait), *_ = run.inbox.waiting
            assert "a.inp open for writing" in wait.on
        intake = await run.wait_job()
        assert run.claimed(intake, "a.inp") == b"piece\n" * 3


async def test_fault_72_a_second_name_is_waited_for_then_rejected(tmp_path: Path) -> None:
    async with running(tmp_path, a_config(orphan_after="2s")) as run:
        other = run.home.root / "other"
        other.write_text("x")
        (run.folder / "a.inp").hardlink_to(other)
        await eventually(lambda: [w.why for _, w in run.inbox.waiting] == ["second_name"], "it waits visibly")
        assert not run.intakes
        assert (await run.wait_refusal())[0] == "hard_link"
        assert other.read_text() == "x"
