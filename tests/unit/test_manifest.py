"""What ``manifest.json`` holds, byte for byte.

The files in ``data/manifests`` are what users' scripts were written against. One that no longer matches means that the
format changed: then say so in the changelog, and raise ``schema`` if an old reader would be misled.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from builders import GIB, NOON_US, SECOND_US, Story, make_demand, make_facts, make_intake
from solvisor import machine, manifest, schemas
from solvisor.events import Accept
from solvisor.manifest import Manifest, rfc3339
from solvisor.model import Cause, Check, FileFact, Job, Report, Retry, Settings, Source, Verdict

GOLDEN = Path(__file__).parents[1] / "data" / "manifests"

SETTINGS = Settings(
    kind="command",
    table={"command": ["ccx", "-i", "{stem}"]},
    version="2.20",
    timeout_seconds=7200.0,
    cpus=2,
    memory_bytes=2 * GIB,
    licenses={"orcaflex": 1},
    retry=Retry(1, (Cause.EXIT,), 0.0),
)
SHA = "3a" * 32


def succeeded() -> Story:
    story = Story()
    story.accept(
        "beam-fine-c9f3k",
        name="beam, fine mesh",
        inputs=(FileFact("input/beam.inp", 5120, SHA), FileFact("input/mesh.inc", 99, SHA)),
        user="1000",
        project="riser-2026",
        params={"load": 3.5, "cases": ["a", "b"], "note": "größer \\xff"},
        key="run-17",
        priority=10,
    )
    story.now_us += 3 * SECOND_US
    story.start("beam-fine-c9f3k", SETTINGS)
    story.now_us += 61 * SECOND_US + 250_000
    story.exited("beam-fine-c9f3k", make_facts(at_us=story.now_us))
    story.now_us += SECOND_US // 2
    checks = (
        Check("exit", "0", "0", True),
        Check("outputs beam.frd", "exists, not empty", "40,231 bytes", True),
    )
    outputs = (
        FileFact("output/beam.frd", 40_231, SHA),
        FileFact("output/latest", 0, "", link="beam.frd"),
        FileFact("stderr.log", 0, "e3" * 32),
        FileFact("stdout.log", 812, SHA),
    )
    story.judged("beam-fine-c9f3k", Verdict(None, checks=checks, outputs=outputs, log_tail="Job finished\n"))
    return story


def failed() -> Story:
    """Interrupted once, tried twice."""
    story = Story()
    story.accept("beam-bad-c9f3m")
    story.start("beam-bad-c9f3m", SETTINGS)
    story.lost("beam-bad-c9f3m")
    verdict = Verdict(
        Cause.EXIT,
        "exit_201",
        "*ERROR in gen3delem: no elastic constants were assigned to any material",
        (Check("exit", "0", "201", False), Check("outputs beam.frd", "exists, not empty", "6 bytes", True)),
        (FileFact("output/beam.frd", 6, SHA), FileFact("stderr.log", 0, SHA), FileFact("stdout.log", 420, SHA)),
        log_tail=" *ERROR in gen3delem\n",
        log_truncated=True,
    )
    for _ in range(2):
        story.now_us += SECOND_US
        story.start("beam-bad-c9f3m", SETTINGS)
        story.now_us += 2 * SECOND_US
        story.exited("beam-bad-c9f3m", make_facts(201, at_us=story.now_us))
        story.judged("beam-bad-c9f3m", verdict)
    return story


def rejected() -> Story:
    story = Story()
    refusal = ("ambiguous", "fits ccx and abaqus; drop it in inbox/ccx or inbox/abaqus")
    intake = make_intake("plate-c9f3n", refusal, name="plate", solver="", source=Source("inbox", "plate.inp"))
    machine.apply(story.world, Accept("plate-c9f3n", intake, make_demand(""), frozenset(), None, story.now_us))
    return story


def skipped() -> Story:
    story = Story()
    story.accept("mesh-c9f3p")
    story.accept("solve-c9f3q", after=["mesh-c9f3p"], retry=Retry(2, (Cause.SIGNAL, Cause.TIMEOUT)))
    story.now_us += SECOND_US
    story.cancel("mesh-c9f3p")
    return story


def cancelled() -> Story:
    story = Story()
    story.accept("long-c9f3r")
    story.start("long-c9f3r", SETTINGS)
    story.cancel("long-c9f3r")
    story.now_us += SECOND_US
    story.exited("long-c9f3r", make_facts(stopped=True, at_us=story.now_us))
    outputs = (FileFact("stderr.log", 0, SHA), FileFact("stdout.log", 12, SHA))
    story.judged("long-c9f3r", Verdict(Cause.SIGNAL, "sigterm", outputs=outputs, log_tail="increment 3\n"))
    return story


STORIES: dict[str, Callable[[], Story]] = {
    "succeeded": succeeded,
    "failed": failed,
    "rejected": rejected,
    "skipped": skipped,
    "cancelled": cancelled,
}


def ended(story: Story, state: str) -> Job:
    return next(job for job in story.world.jobs.values() if job.state.value == state)


def built(job: Job) -> dict[str, Any]:
    """The manifest of a terminal job as a reader sees it; it fits the schema that is shipped."""
    assert job.manifest is not None
    value = json.loads(job.manifest)
    shipped = json.loads(schemas.path("manifest").read_text(encoding="utf-8"))
    assert complaints(shipped, shipped, value, "manifest") == []
    return dict(value)


def complaints(root: dict[str, Any], schema: dict[str, Any], value: Any, where: str) -> list[str]:
    """What of ``value`` the schema does not allow: the part of JSON Schema that the manifest's needs, and no more."""
    if "type" in schema and not is_of_type(value, schema["type"]):
        return [f"{where} is no {schema['type']}"]
    found: list[str] = []
    for word, rule in schema.items():
        match word:
            case "$ref":
                found += complaints(root, root["$defs"][rule.removeprefix("#/$defs/")], value, where)
            case "anyOf":
                if all(complaints(root, choice, value, where) for choice in rule):
                    found.append(f"{where} fits no choice")
            case "enum":
                found += [] if value in rule else [f"{where} is {value!r}"]
            case "required":
                found += [f"{where}.{name} is missing" for name in rule if name not in value]
            case "properties":
                known = [name for name in rule if name in value]
                found += [c for name in known for c in complaints(root, rule[name], value[name], f"{where}.{name}")]
            case "additionalProperties":
                others = value.keys() - schema.get("properties", {}).keys()
                if rule is False:
                    found += [f"{where}.{name} is not known" for name in others]
                else:
                    found += [c for name in others for c in complaints(root, rule, value[name], f"{where}.{name}")]
            case "items":
                found += [c for n, item in enumerate(value) for c in complaints(root, rule, item, f"{where}[{n}]")]
            case "$schema" | "$defs" | "type" | "title" | "description" | "default":
                pass
            case _:
                raise AssertionError(f"this test does not know {word!r}")
    return found


def is_of_type(value: Any, name: str) -> bool:
    if isinstance(value, bool) or value is None:
        return name == {True: "boolean", False: "boolean", None: "null"}[value]
    types: dict[str, Any] = {"string": str, "integer": int, "number": (int, float), "array": list, "object": dict}
    return isinstance(value, types.get(name, ()))


@pytest.mark.parametrize("state", STORIES)
def test_the_exact_bytes(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "__version__", "0.1.0")
    job = ended(STORIES[state](), state)
    assert job.manifest == (GOLDEN / f"{state}.json").read_bytes()
    built(job)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.name)
def test_every_manifest_ever_written_can_be_read(path: Path) -> None:
    read = msgspec.json.decode(path.read_bytes(), type=Manifest)
    assert msgspec.json.format(msgspec.json.encode(read), indent=2) + b"\n" == path.read_bytes()


def test_the_check_against_the_schema_can_fail() -> None:
    schema = manifest.json_schema()
    value = json.loads((GOLDEN / "failed.json").read_bytes())
    del value["id"]
    value["state"] = "running"
    value["attempts"][0]["pid"] = "4242"
    value["retry"]["surprise"] = 1
    assert complaints(schema, schema, value, "manifest") == [
        "manifest.state is 'running'",
        "manifest.attempts[0].pid fits no choice",
        "manifest.retry fits no choice",
        "manifest.id is missing",
    ]


@pytest.mark.parametrize("name", schemas.SCHEMAS)
def test_the_shipped_schemas_are_up_to_date(name: str) -> None:
    assert schemas.path(name).read_text(encoding="utf-8") == schemas.text(name), "run: make schemas"


def test_fault_48_times_never_run_backwards_though_the_clock_was_set_back() -> None:
    story = Story()
    story.accept("job")
    story.now_us -= 3600 * SECOND_US
    story.start("job")
    story.exited("job", make_facts(at_us=story.now_us - SECOND_US))
    story.now_us -= SECOND_US
    story.judged("job")
    value = built(story.job("job"))
    assert (value["queue_seconds"], value["run_seconds"]) == (0, 0)
    times = {value["submitted"], value["started"], value["finished"], value["attempts"][0]["finished"]}
    assert times == {"2026-01-31T12:00:00.000000Z"}


def test_fault_48_a_run_took_what_it_took_though_the_clock_was_set() -> None:
    story = Story()
    story.accept("job")
    story.start("job")
    facts = make_facts(at_us=story.now_us + 7205 * SECOND_US)
    story.exited("job", replace(facts, seconds=5.25))
    story.now_us += 7206 * SECOND_US
    story.judged("job")
    value = built(story.job("job"))
    assert (value["run_seconds"], value["finished"]) == (5.25, "2026-01-31T14:00:06.000000Z")


def test_seconds_are_those_of_the_first_wait_and_the_last_run() -> None:
    value = built(ended(failed(), "failed"))
    assert (value["queue_seconds"], value["run_seconds"]) == (0, 2)
    assert [attempt["cause"] for attempt in value["attempts"]] == ["lost", "exit", "exit"]


def test_what_never_ran_has_no_seconds_and_no_solver_but_its_name() -> None:
    value = built(ended(skipped(), "skipped"))
    assert (value["started"], value["queue_seconds"], value["run_seconds"]) == (None, None, None)
    assert value["solver"] == {"name": "ccx", "kind": None, "version": None, "command": []}
    assert value["retry"] == {"max": 2, "on": ["signal", "timeout"], "delay_seconds": 1.0}


@pytest.mark.parametrize(("told", "version"), [("sha256:3a", "sha256:3a"), (None, "2.20")])
def test_the_version_is_that_of_what_carried_the_job_out(told: str | None, version: str) -> None:
    story = Story()
    story.accept("job")
    story.start("job", SETTINGS)
    story.exited("job", replace(make_facts(at_us=story.now_us), report=Report(result=7, version=told)))
    story.judged("job")
    value = built(story.job("job"))
    assert (value["solver"]["version"], value["result"]) == (version, 7)


def test_more_than_a_thousand_outputs_are_listed_in_a_file_that_the_manifest_vouches_for() -> None:
    outputs = tuple(FileFact(f"output/step-{n:04}.vtk", n, SHA) for n in range(1000))
    more = FileFact("outputs.jsonl", 123_456, SHA)
    story = Story()
    story.accept("job")
    story.run("job", Verdict(None, outputs=outputs, more_outputs=more))
    value = built(story.job("job"))
    assert len(value["outputs"]) == 1000
    assert value["outputs"][-1]["path"] == "output/step-0999.vtk"
    assert value["more_outputs"] == {"path": "outputs.jsonl", "size": 123_456, "sha256": SHA, "link": None}


def test_a_start_that_failed_says_why() -> None:
    story = Story()
    story.accept("job")
    story.dispatch("job")
    story.spawn_failed("job")
    value = built(story.job("job"))
    assert (value["state"], value["cause"], value["code"]) == ("failed", "spawn", "no_program")
    assert value["message"] == "ccx is not installed"
    assert (value["attempts"][0]["pid"], value["attempts"][0]["finished"]) == (None, None)


@pytest.mark.parametrize(
    ("time_us", "text"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (NOON_US, "2026-01-31T12:00:00.000000Z"),
        (NOON_US + 1, "2026-01-31T12:00:00.000001Z"),
        (NOON_US - 1, "2026-01-31T11:59:59.999999Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
    ],
)
def test_times_are_rfc_3339_to_the_microsecond(time_us: int, text: str) -> None:
    assert rfc3339(time_us) == text
