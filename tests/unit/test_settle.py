"""The rules of settling and of what belongs together, with numbers for time."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solvisor.inbox.settle import Memory, Seen, Sight, due, quiet, settled
from solvisor.inbox.sorting import Earlier, Kind, Pick, Plan, Rules, Thing, kind_of, sort_folder

RULES = Rules(settle=0.5, orphan_after=600.0, with_job_file=frozenset({"careful"}))


def a_sight(name: str = "a", ino: int = 1, mark: object = 0, single: bool = True) -> Sight:
    return Sight(name, (1, ino), mark, single)


def look(memory: Memory, now: float, *sights: Sight, whole: tuple[str, ...] = ()) -> Seen:
    return memory.look("", sights, whole, now)[sights[0].name]


class TestSettling:
    def test_unchanged_for_the_settle_time(self) -> None:
        memory = Memory()
        assert not settled(look(memory, 10.0, a_sight()), 0.5, 10.0)
        assert not settled(look(memory, 10.4, a_sight()), 0.5, 10.4)
        assert settled(look(memory, 10.5, a_sight()), 0.5, 10.5)

    def test_a_change_starts_it_anew(self) -> None:
        memory = Memory()
        look(memory, 10.0, a_sight(mark=0))
        seen = look(memory, 10.4, a_sight(mark=1))
        assert due(seen, 0.5) == 10.9
        assert seen.appeared == 10.0

    def test_renamed_into_place_is_settled_at_once(self) -> None:
        assert settled(look(Memory(), 10.0, a_sight(), whole=("a",)), 0.5, 10.0)

    def test_the_rename_may_be_told_after_the_first_scan(self) -> None:
        memory = Memory()
        look(memory, 10.0, a_sight())
        assert settled(look(memory, 10.01, a_sight(), whole=("a",)), 0.5, 10.01)

    def test_a_rename_followed_by_writing_counts_no_more(self) -> None:
        memory = Memory()
        look(memory, 10.0, a_sight(mark=0), whole=("a",))
        assert not settled(look(memory, 10.1, a_sight(mark=1)), 0.5, 10.1)

    def test_another_file_of_the_same_name_inherits_nothing(self) -> None:
        memory = Memory()
        look(memory, 10.0, a_sight(ino=1), whole=("a",))
        seen = look(memory, 20.0, a_sight(ino=2))
        assert not settled(seen, 0.5, 20.0)
        assert seen.appeared == 20.0

    def test_a_file_that_was_away_for_a_scan_inherits_nothing(self) -> None:
        memory = Memory()
        look(memory, 10.0, a_sight())
        memory.look("", [], (), 15.0)
        assert not settled(look(memory, 20.0, a_sight()), 0.5, 20.0)

    def test_a_second_name_is_never_settled(self) -> None:
        seen = look(Memory(), 10.0, a_sight(single=False), whole=("a",))
        assert due(seen, 0.5) == math.inf

    def test_a_failed_claim_puts_off_even_a_rename_until_the_writer_closed_it(self) -> None:
        memory = Memory()
        seen = look(memory, 10.0, a_sight(), whole=("a",))
        memory.put_off("", ["a"], 12.0, "open")
        assert not settled(seen, 0.5, 11.0)
        memory.closed("", "a")
        assert settled(seen, 0.5, 11.0)

    def test_quiet_takes_two_scans_and_five_seconds(self) -> None:
        memory = Memory()
        assert not quiet(look(memory, 10.0, a_sight()), 30.0)
        assert not quiet(look(memory, 14.9, a_sight()), 14.9)
        assert quiet(look(memory, 15.0, a_sight()), 15.0)

    @given(
        st.lists(st.tuples(st.sampled_from(["tick", "write", "replace", "rename_in", "gone"]), st.floats(0.01, 1.0))),
    )
    def test_whatever_happens_nothing_settles_early_and_all_settles_in_the_end(
        self, steps: list[tuple[str, float]]
    ) -> None:
        """Beside a model: the instant of the last change, and whether it was a rename into place."""
        memory, now, ino, mark, there = Memory(), 0.0, 1, 0, False
        changed, whole = 0.0, False
        for action, pause in steps:
            now += pause
            told: tuple[str, ...] = ()
            if action == "tick" and not there:
                continue
            if action in ("write", "replace", "rename_in"):
                mark += 1
                changed, whole = now, action == "rename_in"
                ino += action != "write" or not there
                there = True
                told = ("a",) if whole else ()
            elif action == "gone":
                there = False
            seen = memory.look("", [a_sight(ino=ino, mark=mark)] if there else [], told, now).get("a")
            if seen is not None:
                assert settled(seen, 0.5, now) == (whole or now >= changed + 0.5)
        if there:
            assert settled(look(memory, now + 0.5, a_sight(ino=ino, mark=mark)), 0.5, now + 0.5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("beam.inp", Kind.INPUT),
        ("beam.inp.part", Kind.TEMPORARY),
        ("BEAM.TMP", Kind.TEMPORARY),
        ("~$beam.docx", Kind.TEMPORARY),
        (".beam.inp.Xy12Zz", Kind.TEMPORARY),
        (".beam.inp", Kind.IGNORED),
        (".nfs000000012", Kind.IGNORED),
        ("Thumbs.db", Kind.IGNORED),
        ("beam.job.toml", Kind.JOB_FILE),
        ("Beam.Job.TOML", Kind.JOB_FILE),
        (".job.toml", Kind.IGNORED),
        ("job.toml", Kind.INPUT),
        ("beam.ready", Kind.MARKER),
        ("alone.ready", Kind.INPUT),
    ],
)
def test_names_are_sorted_by_what_they_are(name: str, kind: Kind) -> None:
    assert kind_of(name, regular=True, directory=False, names={"beam", name}) is kind


def test_what_is_no_file_is_sorted_by_what_it_is() -> None:
    assert kind_of("case", regular=False, directory=True) is Kind.FOLDER
    assert kind_of("case.part", regular=False, directory=True) is Kind.TEMPORARY
    assert kind_of("pipe", regular=False, directory=False) is Kind.OTHER


def seen(since: float = 0.0, *, appeared: float | None = None, whole: bool = False, single: bool = True) -> Seen:
    return Seen((1, 1), 0, single, since if appeared is None else appeared, since, whole=whole)


def an_input(name: str, since: float = 0.0, fits: tuple[str, ...] = ("ccx",), *, single: bool = True) -> Thing:
    return Thing(name, Kind.INPUT, seen(since, single=single), fits=fits)


def a_job_file(name: str, *wants: str, since: float = 0.0, appeared: float | None = None) -> Thing:
    return Thing(name, Kind.JOB_FILE, seen(since, appeared=appeared), wants=wants)


def a_folder(
    name: str, since: float = 0.0, *, complete: bool = True, unfinished: bool = False, whole: bool = False
) -> Thing:
    return Thing(name, Kind.FOLDER, seen(since, whole=whole), complete=complete, unfinished=unfinished)


def plan(now: float, *things: Thing, taken: dict[str, Earlier] | None = None, rules: Rules = RULES) -> Plan:
    return sort_folder(things, rules, (taken or {}).get, now)


def picked(result: Plan) -> list[tuple[str, ...]]:
    return [pick.names for pick in result.picks]


def only(result: Plan) -> Pick:
    (pick,) = result.picks
    return pick


class TestJobFiles:
    def test_takes_what_it_names_once_all_is_settled(self) -> None:
        things = a_job_file("j.job.toml", "b.inp", "a.inc"), an_input("a.inc", 0.0, ()), an_input("b.inp", 0.3)
        waiting = plan(0.6, *things)
        assert not waiting.picks
        assert waiting.due == 0.8
        assert picked(plan(0.8, *things)) == [("j.job.toml", "b.inp", "a.inc")]

    def test_unreadable_is_taken_alone_at_once(self) -> None:
        bad = Thing("j.job.toml", Kind.JOB_FILE, seen(), wants=None)
        assert picked(plan(0.5, bad)) == [("j.job.toml",)]

    def test_waits_for_what_is_missing_then_takes_along_what_is_there(self) -> None:
        things = a_job_file("j.job.toml", "a.inp", "b.inc"), an_input("a.inp", 5.0)
        waiting = plan(599.0, *things)
        assert not waiting.picks
        assert [(w.name, w.why, w.on, w.until) for w in waiting.waits] == [
            ("j.job.toml", "companion", "b.inc", 605.0),
        ]
        pick = only(plan(605.0, *things))
        assert pick.names == ("j.job.toml", "a.inp")
        assert dict(pick.lost) == {"b.inc": "no such file came within 600 s"}

    @pytest.mark.parametrize(
        ("earlier", "appeared", "late"),
        [
            (Earlier("job-1", 100.0, bare=True), 100.5, True),
            (Earlier("job-1", 100.0, bare=True), 160.0, True),
            (Earlier("job-1", 100.0, bare=True), 160.1, False),
            (Earlier("job-1", 100.0, bare=False), 99.0, True),
            (Earlier("job-1", 100.0, bare=False), 100.1, False),
        ],
    )
    def test_is_late_only_for_the_very_file_it_was_meant_for(
        self, earlier: Earlier, appeared: float, late: bool
    ) -> None:
        result = plan(200.0, a_job_file("j.job.toml", "a.inp", since=appeared), taken={"a.inp": earlier})
        assert bool(result.picks) is late
        if late:
            assert dict(only(result).lost) == {"a.inp": "job job-1 took it"}

    def test_a_late_one_waits_until_what_goes_along_has_settled(self) -> None:
        things = a_job_file("j.job.toml", "a.inp", "b.inc"), an_input("b.inc", 0.4)
        taken = {"a.inp": Earlier("job-1", 0.0, bare=True)}
        assert not plan(0.8, *things, taken=taken).picks
        assert picked(plan(0.9, *things, taken=taken)) == [("j.job.toml", "b.inc")]

    def test_of_two_that_name_one_file_the_first_takes_it(self) -> None:
        things = a_job_file("b.job.toml", "m.inc"), a_job_file("a.job.toml", "m.inc"), an_input("m.inc", 0.0, ())
        assert picked(plan(1.0, *things)) == [("a.job.toml", "m.inc")]

    def test_one_that_is_complete_does_not_wait_for_one_that_is_not(self) -> None:
        things = a_job_file("a.job.toml", "m.inc", "x"), a_job_file("b.job.toml", "m.inc"), an_input("m.inc", 0.0, ())
        assert picked(plan(1.0, *things)) == [("b.job.toml", "m.inc")]

    def test_folders_links_and_job_files_are_no_inputs(self) -> None:
        things = (
            a_job_file("j.job.toml", "case", "pipe", "k.job.toml"),
            a_folder("case", complete=False),
            Thing("pipe", Kind.OTHER, seen(0.3)),
            a_job_file("k.job.toml", "never"),
        )
        pick = plan(0.6, *things).picks[0]
        assert pick.names == ("j.job.toml",)
        assert set(dict(pick.lost)) == {"case", "pipe", "k.job.toml"}

    def test_a_companion_with_a_second_name_is_waited_for(self) -> None:
        things = a_job_file("j.job.toml", "a.inp"), an_input("a.inp", single=False)
        assert not plan(599.0, *things).picks
        assert dict(plan(600.0, *things).picks[0].lost) == {"a.inp": "that file has a second name (a hard link)"}


class TestBareInputs:
    def test_one_solver_makes_it_a_job(self) -> None:
        assert picked(plan(0.5, an_input("a.inp"))) == [("a.inp",)]

    def test_several_solvers_reject_it_at_once(self) -> None:
        assert picked(plan(0.5, an_input("a.inp", fits=("ccx", "abaqus")))) == [("a.inp",)]

    @pytest.mark.parametrize("fits", [(), ("careful",)])
    def test_without_a_taker_it_waits_for_its_job_file(self, fits: tuple[str, ...]) -> None:
        waiting = plan(599.9, an_input("a.inp", fits=fits))
        assert [(w.why, w.until) for w in waiting.waits] == [("job_file", 600.0)]
        assert picked(plan(600.0, an_input("a.inp", fits=fits))) == [("a.inp",)]

    @pytest.mark.parametrize(
        "holder",
        [
            Thing("j.job.toml", Kind.JOB_FILE, seen(9.8)),
            Thing("j.job.toml.part", Kind.TEMPORARY, seen(9.8)),
            Thing("a.msh.part", Kind.TEMPORARY, seen(9.8)),
            Thing(".a.job.toml.a1B2c3", Kind.TEMPORARY, seen(9.8)),
        ],
        ids=["unsettled", "unfinished", "same stem", "rsync"],
    )
    def test_waits_while_something_may_name_it(self, holder: Thing) -> None:
        result = plan(10.0, an_input("a.inp"), holder)
        assert not result.picks
        assert ("a.inp", "held", holder.name) in [(w.name, w.why, w.on) for w in result.waits]

    @pytest.mark.parametrize(
        "other",
        [
            a_job_file("j.job.toml", "not-there"),
            Thing("b.inp.part", Kind.TEMPORARY, seen(9.8)),
            Thing(".ab.inp.a1B2c3", Kind.TEMPORARY, seen(9.8)),
        ],
        ids=["a job file that waits for others", "another upload", "another stem"],
    )
    def test_what_cannot_name_it_does_not_hold_it_back(self, other: Thing) -> None:
        assert picked(plan(10.0, an_input("a.inp"), other)) == [("a.inp",)]

    def test_an_unreadable_job_file_takes_its_namesakes_along(self) -> None:
        broken = Thing("a.job.toml", Kind.JOB_FILE, seen(0.0), wants=None)
        result = plan(10.0, broken, an_input("a.inp"), an_input("b.inp"))
        assert sorted(picked(result)) == [("a.job.toml", "a.inp"), ("b.inp",)]

    @pytest.mark.parametrize("kind", [Kind.IGNORED, Kind.MARKER, Kind.FOLDER, Kind.INPUT])
    def test_other_names_hold_nothing_back(self, kind: Kind) -> None:
        assert ("a.inp",) in picked(plan(0.5, an_input("a.inp"), Thing("x", kind, seen(0.4))))

    def test_a_temporary_name_that_nobody_touches_holds_nothing_back(self) -> None:
        left_over = Thing("a.inp.part", Kind.TEMPORARY, seen(0.0))
        assert picked(plan(600.0, an_input("a.inp", 599.0), left_over)) == [("a.inp",)]

    def test_nothing_is_held_back_for_longer_than_orphan_after(self) -> None:
        busy = Thing("a.inp.part", Kind.TEMPORARY, seen(599.9))
        assert plan(599.9, an_input("a.inp"), busy).due == 600.0
        assert picked(plan(600.0, an_input("a.inp"), busy)) == [("a.inp",)]

    def test_what_a_job_file_names_is_never_taken_bare(self) -> None:
        names_it = a_job_file("j.job.toml", "a.inp", "missing", since=500.0)
        assert not plan(1000.0, an_input("a.inp", 0.0), names_it).picks

    def test_a_second_name_waits_then_is_taken_to_be_rejected(self) -> None:
        linked = an_input("a.inp", single=False)
        assert plan(1.0, linked).waits[0].why == "second_name"
        assert only(plan(600.0, linked)).force


class TestFolders:
    def test_a_job_is_taken_when_it_is_settled(self) -> None:
        assert plan(0.4, a_folder("case")).due == 0.5
        assert picked(plan(0.5, a_folder("case"))) == [("case",)]

    def test_one_that_is_no_job_yet_may_still_be_growing(self) -> None:
        growing = a_folder("case", complete=False)
        assert plan(1.0, growing).waits[0].why == "folder"
        assert picked(plan(600.0, growing)) == [("case",)]

    def test_one_that_was_renamed_into_place_grows_no_more(self) -> None:
        assert picked(plan(0.0, a_folder("case", complete=False, whole=True))) == [("case",)]

    def test_temporary_names_in_it_mean_that_it_is_not_finished(self) -> None:
        assert plan(1.0, a_folder("case", unfinished=True)).due == 600.0
        assert picked(plan(600.0, a_folder("case", unfinished=True))) == [("case",)]
        assert picked(plan(0.0, a_folder("case", unfinished=True, whole=True))) == [("case",)]


_NAMES = ["a.inp", "b.inp", "c.inc"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*_NAMES, "x.job.toml", "y.job.toml", "t.part", "case"]),
            st.floats(0.0, 700.0),
            st.lists(st.sampled_from([*_NAMES, "gone"]), unique=True, max_size=3),
            st.booleans(),
        ),
        unique_by=lambda item: item[0],
    ),
    st.floats(0.0, 2000.0),
)
def test_any_folder_is_sorted_once_and_for_all(items: list[tuple[str, float, list[str], bool]], later: float) -> None:
    """No name is taken twice, none that waits is forgotten, and in the end everything that is a drop is taken."""
    now = 700.0 + later
    things = []
    for name, since, wants, single in items:
        kind = kind_of(name, regular=name != "case", directory=name == "case")
        things.append(Thing(name, kind, seen(since, single=single), tuple(wants), fits=("ccx",) * name.endswith("inp")))
    result = plan(now, *things)
    names = [name for pick in result.picks for name in pick.names]
    assert len(names) == len(set(names))
    waiting = {wait.name for wait in result.waits} | {wait.on for wait in result.waits}
    named = {name for thing in things if thing.name in waiting for name in thing.wants or ()}
    for thing in things:
        if thing.kind is not Kind.TEMPORARY:
            assert (thing.name in names) or (thing.name in waiting | named)
    assert all(wait.until >= now for wait in result.waits)
    if later > 600.0:
        assert not [wait for wait in result.waits if wait.until > now]
