"""The archive's contract, the same for SQLite and PostgreSQL."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from archive_databases import dead_owner
from optuna.trial import TrialState
from sqlalchemy import exc

from evoengine.archive import lease, sessions
from evoengine.archive.archive import Archive, StudyExists
from evoengine.archive.codec import read_verdict, verdict_columns
from evoengine.archive.lease import Owner
from evoengine.archive.records import Baseline, Elite, StudySpec
from evoengine.archive.study import Study
from evoengine.errors import UserError
from evoengine.sampler import Proposal
from evoengine.sampler.proposer import Proposer
from evoengine.space import Axis, FeasibleSet, Point
from evoengine.verdict import (
    Artifact,
    Check,
    Estimate,
    Gate,
    Measurement,
    Rejection,
    ResourceUsage,
    Verdict,
)

AXES = (
    Axis("TILE", (16, 32, 64, 128), "t"),
    Axis("LAYOUT", (0, 1, 2), "l", ordered=False, names=("none", "padded", "xor")),
    Axis("FIXED", (7,), "f"),
    Axis("WARPS", (1, 2, 4, 8), "w"),
)
SPEC = StudySpec(
    name="attention-l4",
    template="attention",
    template_digest="ab12",
    template_folder="kernel_templates/attention",
    space="attention",
    space_digest="cd34",
    space_path="search_spaces/attention.py",
    axes=AXES,
    default={"TILE": 64, "LAYOUT": 0, "FIXED": 7, "WARPS": 4},
    problem={"batch": 1, "seq_q": 512, "dtype": "fp16", "causal": False, "scale": 0.125},
    problem_label="B1_S512",
    problem_digest="ef56",
    device="NVIDIA L4",
    limits={"smem_per_block": 101376, "compute_capability": [8, 9]},
    arch="sm_89",
    toolchain="nvrtc 13.0",
    sampler="evolution",
    seed=7,
    budget=200,
    seconds=None,
    ceilings={"max_registers": None, "max_smem_bytes": 65536},
    command="evoengine search",
    measures=True,
    created_at="2026-01-02T03:04:05+00:00",
)
CHECK = Check(
    input_set="ragged", shape="B1_S509", seed=3, max_abs=2.4e-4, baseline_max_abs=3.1e-4, rel_fro=1.1e-4,
    baseline_rel_fro=1.3e-4, worst_row=math.inf, poison_left=0, guard_hits=0, nonfinite=2, inputs_changed=False,
    repeats=3, repeat_mismatches=0, seconds=0.02, reason="row 3 is not finite",
)  # fmt: skip
REJECTION = Rejection(
    Gate.CORRECTNESS, "row 3: error inf, allowed 1.2e-3", {"worst": math.nan, "rows": [3, 4], "note": "ü"}, (CHECK,)
)
MEASUREMENT = Measurement(
    windows_us=(10.1, 10.2, 10.30000000000001),
    control_us=(20.0, 20.4, 20.1),
    control_reference_us=20.2,
    launches_per_window=100,
    mode="warm",
    stopped="converged",
    clocks={"sm_mhz": [1980, 1965], "throttled": False},
    checks=(CHECK,),
    flags=("rechecked",),
    evidence={"half_width": 0.004, "doubted": "10.2 us is under 0.9 times the best so far, 12.000 us"},
)
ESTIMATE = Estimate(33.25, {"bound_by": "tensor"}, (CHECK,))
ARTIFACT = Artifact(
    "d" * 16, Path("cache/d"), "c" * 64, ResourceUsage(128, 8, 12, 16, 0, 49152, 2), 0.75, "nvrtc", "sm_89"
)


def proposals(count: int, first: int = 0) -> list[Proposal]:
    """Distinct configs by number."""
    points: list[Point] = [(t, layout, 0, w) for t in range(4) for layout in range(3) for w in range(4)]
    return [Proposal(point, "spread") for point in points[first : first + count]]


def forked(work: Callable[[int], None]) -> tuple[int, int]:
    """`work` in a child process, with the writing end of a pipe: the child's pid and the reading end."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(read)
            work(write)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    return pid, read


def finished(pid: int, read: int) -> tuple[int, list[int]]:
    """The child's exit status, negative for a signal, and the numbers it wrote."""
    with os.fdopen(read) as pipe:
        numbers = [int(word) for word in pipe.read().split()]
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), numbers


@pytest.fixture
def reopen(url: str) -> Iterator[Callable[[], Archive]]:
    """The same database as another process would open it."""
    with contextlib.ExitStack() as stack:

        def opened() -> Archive:
            archive = Archive.open(url)
            stack.callback(archive.close)
            return archive

        yield opened


@pytest.fixture
def archive(reopen: Callable[[], Archive]) -> Archive:
    return reopen()


@contextlib.contextmanager
def through_optuna(url: str) -> Iterator[optuna.Study]:
    storage = optuna.storages.RDBStorage(url)
    yield optuna.load_study(study_name=SPEC.name, storage=storage)
    storage.engine.dispose()


@pytest.fixture
def study(archive: Archive) -> Study:
    made = archive.create_study(SPEC)
    made.acquire(Owner.current())
    return made


class TestContract:
    def test_spec_survives(self, archive: Archive, reopen: Callable[[], Archive]) -> None:
        made = archive.create_study(SPEC)
        found = reopen().open_study(SPEC.name)

        assert SPEC == made.spec
        assert SPEC == found.spec
        assert SPEC.frozen_space.product == found.spec.frozen_space.product

    @pytest.mark.parametrize("verdict", [REJECTION, MEASUREMENT, ESTIMATE], ids=lambda v: type(v).__name__)
    def test_verdict_survives_reopening(self, study: Study, reopen: Callable[[], Archive], verdict: Verdict) -> None:
        study.set_environment({"driver": "580.1", "gpu": "L4"})
        proposal = Proposal((1, 2, 0, 3), "crossover", 4, (0, 2), {"NSGAIISampler:generation": 4}, 0.0123)
        [candidate] = study.claim([proposal])
        study.commit(candidate, verdict, ARTIFACT, twin_of=5)

        [record] = reopen().open_study(None).records()

        assert json.dumps(dataclasses.asdict(verdict), default=str) == json.dumps(
            dataclasses.asdict(record.verdict), default=str
        )
        assert {"TILE": 32, "LAYOUT": 2, "FIXED": 7, "WARPS": 8} == record.config.values
        assert "t_32.l_xor.f_7.w_8" == record.config.label
        origin = (record.operator, record.generation, record.parents, record.system_attrs, record.expected_gain)
        assert (0, proposal) == (record.number, Proposal(record.point, *origin))
        assert record.build is not None
        assert (ARTIFACT.resources, ARTIFACT.cubin_sha256, 0.75) == (
            record.build.resources,
            record.build.cubin_sha256,
            record.build.build_seconds,
        )
        assert (5, {"driver": "580.1", "gpu": "L4"}) == (record.twin_of, record.environment)
        assert ("waiting" if isinstance(verdict, Estimate) else "done") == record.state

    def test_a_candidate_that_failed_to_compile_has_no_build(self, study: Study) -> None:
        [candidate] = study.claim(proposals(1))
        study.commit(candidate, Rejection(Gate.COMPILE, "static_assert"), None)

        assert study.records()[0].build is None

    def test_optuna_reads_the_same_database(self, study: Study, url: str) -> None:
        for candidate, verdict in zip(study.claim(proposals(4)), [MEASUREMENT, REJECTION, ESTIMATE], strict=False):
            study.commit(candidate, verdict, ARTIFACT)

        states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.WAITING, TrialState.RUNNING]

        with through_optuna(url) as loaded:
            assert states == [trial.state for trial in loaded.trials]
            assert MEASUREMENT.median_us == loaded.best_value
            assert ["median_us"] == loaded.metric_names
            assert {"TILE": 0, "LAYOUT": "none", "WARPS": 0} == loaded.trials[0].params
            assert "t_16.l_none.f_7.w_1" == loaded.trials[0].user_attrs["evoengine"]["config"]
            assert "correctness: " + REJECTION.reason == loaded.trials[1].user_attrs["rejected"]

    def test_an_estimate_never_becomes_an_objective(self, study: Study, url: str) -> None:
        [candidate] = study.claim(proposals(1))
        study.commit(candidate, ESTIMATE, ARTIFACT)
        with through_optuna(url) as loaded:
            [trial] = loaded.trials

        assert (TrialState.WAITING, None, {}) == (trial.state, trial.values, trial.intermediate_values)
        assert "33.25" not in repr(trial)
        assert [] == study.best(5)
        assert [0] == [one.number for one in study.shortlist(5)]

    def test_measuring_an_estimated_candidate_keeps_the_estimate_beside(self, study: Study) -> None:
        for candidate, value in zip(study.claim(proposals(3)), (30.0, 10.0, 20.0), strict=True):
            study.commit(candidate, Estimate(value), ARTIFACT)

        new = study.claim(proposals(1, first=3))
        study.release()
        study.acquire(Owner.current())
        assert new == study.claim_waiting(9, estimated=False)
        claimed = study.claim_waiting(2, estimated=True)
        assert [1, 2] == [candidate.number for candidate in claimed]
        study.commit(claimed[0], MEASUREMENT, ARTIFACT)
        by_number = {one.number: one for one in study.records()}

        assert MEASUREMENT == replace(by_number[1].verdict, checks=MEASUREMENT.checks)  # type: ignore[type-var]
        assert Estimate(10.0) == by_number[1].estimate
        assert ["waiting", "done", "running", "running"] == [one.state for one in by_number.values()]
        assert [1] == [one.number for one in study.best(5)]

    def test_seen_does_not_mix_estimates_and_measurements(self, study: Study) -> None:
        verdicts = (MEASUREMENT, ESTIMATE, REJECTION)
        for candidate, verdict in zip(study.claim(proposals(4)), verdicts, strict=False):
            study.commit(candidate, verdict, ARTIFACT)
        records = study.records()
        measured = [(one.seen(measures=True).state, one.seen(measures=True).value) for one in records]
        estimated = [(one.seen(measures=False).state, one.seen(measures=False).value) for one in records]

        first = ("done", MEASUREMENT.median_us)
        assert [first, ("running", None), ("done", None), ("running", None)] == measured
        assert [first, ("done", 33.25), ("done", None), ("running", None)] == estimated

    def test_a_config_is_claimed_once(self, study: Study) -> None:
        first = study.claim(proposals(3))
        again = study.claim([*proposals(3), *proposals(1, first=5)])

        assert [0, 1, 2] == [candidate.number for candidate in first]
        assert [3] == [candidate.number for candidate in again]

    def test_two_processes_never_claim_one_config(self, archive: Archive, url: str) -> None:
        archive.create_study(SPEC)
        archive.close()

        def work(write: int) -> None:
            mine = Archive.open(url).open_study(SPEC.name)
            mine.acquire(Owner.current(), shared=True)
            for proposal in proposals(20):
                for candidate in mine.claim([proposal]):
                    os.write(write, f"{candidate.number} ".encode())

        children = [forked(work) for _ in range(2)]
        outcomes = [finished(*child) for child in children]

        assert [0, 0] == [status for status, _ in outcomes]
        assert list(range(20)) == sorted(outcomes[0][1] + outcomes[1][1])
        assert 20 == len({one.config.digest for one in archive.open_study(SPEC.name).records()})

    def test_kill_9_between_any_two_commits_loses_and_doubles_nothing(self, archive: Archive, url: str) -> None:
        """Children work on one study and kill themselves before their n-th commit, n growing from child to child."""
        archive.create_study(SPEC)
        archive.close()
        verdicts = (MEASUREMENT, REJECTION)
        told: list[int] = []
        for kill_at in range(1, 40):
            status, numbers = finished(*forked(lambda write, n=kill_at: search_and_die(url, n, write)))  # type: ignore[misc]
            told += numbers
            if status == 0:
                break
            assert -signal.SIGKILL == status
        records = archive.open_study(SPEC.name).records()
        with through_optuna(url) as loaded:
            trials = loaded.trials

        assert status == 0
        assert list(range(16)) == [one.number for one in records]
        assert 16 == len({one.config.digest for one in records})
        assert {"done"} == {one.state for one in records}
        assert len(told) == len(set(told)) <= 16
        assert [type(verdicts[one.point[3] % 2]) for one in records] == [type(one.verdict) for one in records]
        expected = [TrialState.COMPLETE if one.point[3] % 2 == 0 else TrialState.PRUNED for one in records]
        assert expected == [trial.state for trial in trials]

    def test_recover_puts_back_what_was_in_flight_under_its_number(self, archive: Archive) -> None:
        first = archive.create_study(SPEC)
        first.acquire(dead_owner())
        claimed = first.claim(proposals(3))
        first.commit(claimed[1], MEASUREMENT, ARTIFACT)
        second = archive.open_study(SPEC.name)
        second.acquire(Owner.current())

        assert [0, 2] == second.recover()
        assert [claimed[0], claimed[2]] == second.claim_waiting(9, estimated=False)
        assert [] == second.recover()

    def test_a_verdict_of_a_process_that_was_taken_over_is_refused(self, archive: Archive) -> None:
        first = archive.create_study(SPEC)
        first.acquire(dead_owner())
        [candidate] = first.claim(proposals(1))
        second = archive.open_study(SPEC.name)
        second.acquire(Owner.current())
        second.recover()
        [again] = second.claim_waiting(1, estimated=False)
        second.commit(again, MEASUREMENT, ARTIFACT)

        with pytest.raises(UserError, match="taken over by another process"):
            first.commit(candidate, REJECTION, None)
        with pytest.raises(UserError, match="taken over by another process"):
            first.renew()
        assert isinstance(second.records()[0].verdict, Measurement)

    def test_recover_leaves_the_candidates_of_living_processes(self, archive: Archive) -> None:
        other = archive.create_study(SPEC)
        other.acquire(Owner("elsewhere", 1, "then"), shared=True)
        other.claim(proposals(2))
        mine = archive.open_study(SPEC.name)
        mine.acquire(Owner.current(), shared=True)

        assert [] == mine.recover()
        assert [] == mine.claim_waiting(9, estimated=False)

    def test_two_processes_never_claim_one_waiting_candidate(self, archive: Archive, url: str) -> None:
        study = archive.create_study(SPEC)
        study.acquire(Owner.current(), shared=True)
        for candidate in study.claim(proposals(20)):
            study.commit(candidate, ESTIMATE, ARTIFACT)
        archive.close()

        def work(write: int) -> None:
            with contextlib.closing(Archive.open(url)) as opened:
                mine = opened.open_study(SPEC.name)
                mine.acquire(Owner.current(), shared=True)
                for candidate in mine.claim_waiting(12, estimated=True):
                    os.write(write, f"{candidate.number} ".encode())

        children = [forked(work) for _ in range(2)]
        outcomes = [finished(*child) for child in children]

        assert [0, 0] == [status for status, _ in outcomes]
        assert list(range(20)) == sorted(outcomes[0][1] + outcomes[1][1])

    def test_recover_completes_an_estimate_whose_trial_was_not_told(
        self, archive: Archive, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        killed = archive.create_study(SPEC)
        killed.acquire(dead_owner())
        [candidate] = killed.claim(proposals(1))
        monkeypatch.setattr(killed._ledger, "set_state", lambda *arguments: None)
        killed.commit(candidate, ESTIMATE, ARTIFACT)
        mine = archive.open_study(SPEC.name)
        mine.acquire(Owner.current())

        assert [] == mine.recover()
        with through_optuna(url) as loaded:
            assert [TrialState.WAITING] == [trial.state for trial in loaded.trials]

    def test_recover_closes_a_trial_written_twice_and_leaves_other_programs_alone(self, study: Study, url: str) -> None:
        """A connection that breaks on the commit of a new trial leaves it behind when the write is repeated."""
        study.claim(proposals(1))
        with through_optuna(url) as loaded:
            loaded.add_trial(twin_trial(loaded.trials[0]))
            loaded.ask()
            study.recover()
            states = [TrialState.RUNNING, TrialState.FAIL, TrialState.RUNNING]

            assert states == [trial.state for trial in loaded.trials]
        assert [0] == [record.number for record in study.records()]

    def test_a_sampler_rebuilt_from_the_archive_goes_on_identically(
        self, study: Study, reopen: Callable[[], Archive]
    ) -> None:
        space = SPEC.frozen_space
        feasible = FeasibleSet([one.point for one in proposals(48)], {}, 48)
        whole = Proposer(space, feasible, sampler="evolution", seed=3)
        for _ in range(4):
            for candidate in study.claim(whole.propose(8)):
                slow = replace(MEASUREMENT, control_reference_us=10.0 + 7 * candidate.number % 11)
                study.commit(candidate, REJECTION if candidate.number % 5 == 4 else slow, ARTIFACT)
            whole.observe(record.seen(measures=True) for record in study.records())
        resumed = Proposer(space, feasible, sampler="evolution", seed=3)
        resumed.observe(record.seen(measures=True) for record in reopen().open_study(SPEC.name).records())
        expected = whole.propose(6)

        assert expected == resumed.propose(6)
        assert 6 == len(expected)
        assert {"default", "start", "spread"}.isdisjoint(proposal.operator for proposal in expected)

    def test_release_hands_unfinished_candidates_on(self, study: Study, archive: Archive) -> None:
        candidates = study.claim(proposals(3))
        study.commit(candidates[0], REJECTION, None)
        study.release()
        after = archive.open_study(SPEC.name)
        after.acquire(Owner.current())

        assert candidates[1:] == after.claim_waiting(9, estimated=False)

    def test_a_live_owner_is_named_and_refused(self, study: Study, archive: Archive) -> None:
        with pytest.raises(UserError, match=f"being searched by pid {os.getpid()} on .* since "):
            archive.open_study(SPEC.name).acquire(Owner.current())
        assert str(Owner.current()) == archive.studies()[0].searched_by

    def test_sharing_takes_both_sides(self, archive: Archive) -> None:
        archive.create_study(SPEC).acquire(Owner.current(), shared=True)
        archive.open_study(SPEC.name).acquire(Owner.current(), shared=True)
        archive.create_study(replace(SPEC, name="alone")).acquire(Owner.current())

        with pytest.raises(UserError, match="being searched"):
            archive.open_study(SPEC.name).acquire(Owner.current())
        with pytest.raises(UserError, match="being searched"):
            archive.open_study("alone").acquire(Owner.current(), shared=True)

    def test_a_dead_owner_is_taken_over(self, archive: Archive) -> None:
        made = archive.create_study(SPEC)
        here = Owner.current()
        earlier = replace(here, started=here.started.rpartition(":")[0] + ":1")
        for owner in (dead_owner(), earlier):
            made.acquire(owner)
            assert "" == archive.studies()[0].searched_by
        made.acquire(Owner.current())

        assert str(Owner.current()) == archive.studies()[0].searched_by

    def test_another_host_is_believed_until_its_lease_ends(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        archive.create_study(SPEC).acquire(Owner("elsewhere", 1, "then"))
        mine = archive.open_study(SPEC.name)
        with pytest.raises(UserError, match="pid 1 on elsewhere"):
            mine.acquire(Owner.current())
        monkeypatch.setattr(sessions, "clock", lambda connection: time.time() + lease.LEASE_SECONDS + 1)

        mine.acquire(Owner.current())

        assert str(Owner.current()) == archive.studies()[0].searched_by

    def test_baselines_and_elites_survive(self, study: Study, reopen: Callable[[], Archive]) -> None:
        absent = Rejection(Gate.RUNTIME, "flash: no kernel for bf16", {"backend": "flash"})
        elite = Elite(
            4, 9.5, 0.004, 0.81, {"sdpa": 0.55, "triton": 0.9}, "FASTER than the default", b"\x7fELF\x00\xff" * 9,
            "e" * 64, "ab12", {"driver": "580.1"}, {"windows_us": [9.4, 9.6]}, "2026-01-02T03:04:05+00:00",
        )  # fmt: skip
        study.add_baseline(Baseline("sdpa", MEASUREMENT, {"torch": "2.13"}, "2026-01-01"))
        study.add_baseline(Baseline("sdpa-flash", absent, {}, "2026-01-01"))
        study.replace_elites([replace(elite, number=9, median_us=10.0), elite])
        found = reopen().open_study(SPEC.name)

        assert [elite, replace(elite, number=9, median_us=10.0)] == found.elites()
        first, second = found.baselines()
        assert ("sdpa", {"torch": "2.13"}) == (first.name, first.environment)
        assert MEASUREMENT.windows_us == first.verdict.windows_us  # type: ignore[union-attr]
        assert absent == second.verdict

    def test_elites_are_those_of_one_final_run(self, study: Study, reopen: Callable[[], Archive]) -> None:
        elite = Elite(4, 9.5, 0.004, 0.81, {}, "FASTER", b"\x7fELF", "e" * 64, "ab12", {}, {}, "2026-01-02T03:04:05")
        before = [elite, replace(elite, number=9, median_us=10.0)]
        study.replace_elites(before)
        with pytest.raises(exc.IntegrityError):  # the same trial twice: nothing of it may stay
            study.replace_elites([replace(elite, number=7), replace(elite, number=7)])
        kept = reopen().open_study(SPEC.name).elites()
        again = replace(elite, median_us=11.0)
        study.replace_elites([replace(elite, number=5), again])

        assert before == kept
        assert [replace(elite, number=5), again] == reopen().open_study(SPEC.name).elites()
        study.replace_elites([])
        assert [] == study.elites()

    def test_what_is_noted_of_an_elite_is_added_to_its_evidence(
        self, study: Study, reopen: Callable[[], Archive]
    ) -> None:
        elite = Elite(
            4, 9.5, 0.004, 0.81, {}, "FASTER", b"\x7fELF", "e" * 64, "ab12", {}, {"seed": 3}, "2026-01-02T03:04:05"
        )
        study.replace_elites([elite, replace(elite, number=5, median_us=10.0)])

        assert study.note_elite(4, {"profile": {"waves": 0.5}})
        assert study.note_elite(4, {"profile": {"waves": 0.6}})
        assert not study.note_elite(7, {"profile": {}})
        expected = [{"seed": 3, "profile": {"waves": 0.6}}, {"seed": 3}]
        assert expected == [one.evidence for one in reopen().open_study(SPEC.name).elites()]

    def test_a_later_gate_overrules_a_measurement_and_its_twins(
        self, study: Study, reopen: Callable[[], Archive], url: str
    ) -> None:
        first, second, twin = study.claim(proposals(3))
        study.commit(first, MEASUREMENT, ARTIFACT)
        study.commit(second, MEASUREMENT, ARTIFACT)
        study.commit(twin, MEASUREMENT, ARTIFACT, twin_of=first.number)
        overruling = replace(REJECTION, evidence={"sanitizer": {"clean": False}})
        study.overrule(first.number, overruling)
        found = reopen().open_study(SPEC.name)
        records = found.records()

        assert [overruling, MEASUREMENT, overruling] == [record.verdict for record in records]
        assert [None, None, first.number] == [record.twin_of for record in records]
        assert [second.number] == [record.number for record in found.best(3)]
        assert {"done"} == {record.state for record in records}
        with through_optuna(url) as loaded:
            assert {TrialState.COMPLETE} == {trial.state for trial in loaded.trials}, "a finished trial cannot change"

    def test_a_raised_budget_is_kept(self, study: Study, reopen: Callable[[], Archive]) -> None:
        study.set_budget(300)
        found = reopen().open_study(SPEC.name)

        assert replace(SPEC, budget=300) == study.spec == found.spec

    def test_of_two_who_raise_the_budget_the_higher_counts(self, study: Study, reopen: Callable[[], Archive]) -> None:
        other = reopen().open_study(SPEC.name)
        study.set_budget(300)
        other.set_budget(200)

        assert [300] * 3 == [one.spec.budget for one in (study, other, reopen().open_study(SPEC.name))]

    def test_counts_add_up(self, study: Study) -> None:
        study.claim(proposals(1), {"static:smem": 3, "repeat": 1})
        study.claim([], {"static:smem": 4})

        assert {"repeat": 1, "static:smem": 7} == study.counts()

    def test_summary(self, study: Study, archive: Archive) -> None:
        verdicts = [MEASUREMENT, REJECTION, REJECTION, ESTIMATE]
        for candidate, verdict in zip(study.claim(proposals(5)), verdicts, strict=False):
            study.commit(candidate, verdict, ARTIFACT)
        study.set_status("interrupted")
        elite = Elite(0, 10.4, 0.004, 0.81, {}, "FASTER", b"", "e" * 64, "ab12", {})
        study.replace_elites([elite, replace(elite, number=1, median_us=10.9)])
        archive.create_study(replace(SPEC, name="later"))
        later, one = archive.studies()

        assert ("later", 0, None, None) == (
            later.spec.name, later.candidates, later.best_us, later.best_unconfirmed_us,
        )  # fmt: skip
        assert (5, 2, 1, 2, 2) == (one.candidates, one.rejected, one.measured, one.waiting, one.elites)
        assert (10.4, MEASUREMENT.median_us, 33.25) == (one.best_us, one.best_unconfirmed_us, one.best_estimated_us)
        assert "interrupted" == one.status

    def test_a_measurement_of_the_first_studies_has_no_evidence(self) -> None:
        old = read_verdict({**verdict_columns(MEASUREMENT), "evidence": None})

        assert replace(MEASUREMENT, evidence={}) == old

    def test_best_leaves_twins_out(self, study: Study) -> None:
        fast = replace(MEASUREMENT, control_reference_us=10.0)
        for candidate, verdict, twin in zip(
            study.claim(proposals(3)), (MEASUREMENT, fast, fast), (None, None, 1), strict=True
        ):
            study.commit(candidate, verdict, ARTIFACT, twin)

        assert [1, 0] == [one.number for one in study.best(9)]

    def test_the_last_study_used_is_the_default(self, archive: Archive) -> None:
        archive.create_study(SPEC)
        archive.create_study(replace(SPEC, name="second"))
        assert "second" == archive.open_study(None).name
        archive.open_study(SPEC.name).acquire(Owner.current())
        assert SPEC.name == archive.open_study(None).name

    def test_names(self, archive: Archive) -> None:
        with pytest.raises(UserError, match="holds no study yet"):
            archive.open_study(None)
        archive.create_study(SPEC)
        with pytest.raises(StudyExists, match=f"study {SPEC.name} exists: give another --study"):
            archive.create_study(SPEC)
        with pytest.raises(UserError, match=f"did you mean {SPEC.name}"):
            archive.open_study("atention-l4")

    @pytest.mark.parametrize("name", ["", "two\nlines", "\x1b[2J", "x" * 513])
    def test_a_name_that_no_line_can_show_is_refused(self, archive: Archive, name: str) -> None:
        with pytest.raises(UserError, match="give one of 1 to 512 printable characters with --study"):
            archive.create_study(replace(SPEC, name=name))
        assert [] == archive.studies()

    def test_a_batch_cut_off_while_its_trials_are_born_is_complete_after_recovery(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        killed = archive.create_study(SPEC)
        killed.acquire(dead_owner())
        wanted = [replace(one, operator="mutation", generation=2, parents=(0,)) for one in proposals(4)]
        monkeypatch.setattr(killed._ledger, "bear", kill)
        with pytest.raises(Killed):
            killed.claim(wanted)
        mine = archive.open_study(SPEC.name)
        mine.acquire(Owner.current())

        assert [0, 1, 2, 3] == mine.recover()
        assert wanted == [
            Proposal(one.point, one.operator, one.generation, one.parents, one.system_attrs, one.expected_gain)
            for one in mine.records()
        ]
        assert [0, 1, 2, 3] == [one.number for one in mine.claim_waiting(9, estimated=False)]

    def test_another_programs_study_is_left_alone(self, archive: Archive, url: str) -> None:
        storage = optuna.storages.RDBStorage(url)
        theirs = optuna.create_study(study_name="theirs", storage=storage)
        theirs.tell(theirs.ask(), 1.0)
        storage.engine.dispose()

        with pytest.raises(UserError, match="another program's"):
            archive.create_study(replace(SPEC, name="theirs"))
        assert [] == archive.studies()

    def test_a_study_whose_creation_was_killed_can_be_created(self, archive: Archive, url: str) -> None:
        storage = optuna.storages.RDBStorage(url)
        optuna.create_study(study_name=SPEC.name, storage=storage)
        storage.engine.dispose()

        assert SPEC == archive.create_study(SPEC).spec

    def test_a_newer_schema_is_refused(self, archive: Archive, url: str) -> None:
        engine = sqlalchemy.create_engine(url)
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("UPDATE evo_schema SET version = 99"))
        engine.dispose()

        with pytest.raises(UserError, match="schema 99, this evoengine knows 4: upgrade evoengine"):
            Archive.open(url)


class Killed(BaseException):
    """Stands for kill -9: nothing that handles errors handles it."""


def kill(*arguments: object) -> None:
    raise Killed


def twin_trial(trial: optuna.trial.FrozenTrial) -> optuna.trial.FrozenTrial:
    return optuna.trial.create_trial(
        state=trial.state, params=trial.params, distributions=trial.distributions, user_attrs=trial.user_attrs
    )


def search_and_die(url: str, kill_at: int, write: int) -> None:
    """Evaluate 16 configs in batches of 3, killing this process before commit number `kill_at`.

    The numbers of committed trials go down the pipe.
    """
    study = Archive.open(url).open_study(SPEC.name)
    commits = 0

    def count(connection: sqlalchemy.Connection) -> None:
        nonlocal commits
        commits += 1
        if commits == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sqlalchemy.event.listen(sqlalchemy.Engine, "commit", count)
    study.acquire(Owner.current())
    study.recover()
    while True:
        batch = study.claim_waiting(3, estimated=False)
        known = {one.point for one in study.records()}
        fresh = [proposal for proposal in proposals(16) if proposal.point not in known]
        batch += study.claim(fresh[: 3 - len(batch)])
        if not batch:
            return
        for candidate in batch:
            verdict = (MEASUREMENT, REJECTION)[SPEC.frozen_space.point(candidate.config.values)[3] % 2]
            study.commit(candidate, verdict, ARTIFACT)
            os.write(write, f"{candidate.number} ".encode())
