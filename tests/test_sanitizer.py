"""compute-sanitizer without a GPU: its reports are read, its findings judged, and no run of it is waited for long."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fake_sanitizer
import numpy as np
import pytest
from fake_card import FakeKernel
from test_cuda_protocol import ARTIFACT, candidate, judge, make, own_temporary_folder, started

from evoengine import doctor
from evoengine.build import Builder, BuildRequest
from evoengine.cli import early, judges, main
from evoengine.cli.resolve import Target
from evoengine.devices import Work
from evoengine.devices.cuda import CudaDevice
from evoengine.devices.cuda.bare import Job, Launched, Placed, launch_all, read_launches
from evoengine.devices.cuda.results import Finals, Setup, make_final
from evoengine.devices.cuda.sanitizer import TOOLS, Report, Sanitizer, Tool, doubt
from evoengine.devices.cuda.sanitizer_log import Finding, parse, relation
from evoengine.devices.cuda.watched import find_tool, watch
from evoengine.hardware import card
from evoengine.problem import AttentionProblem
from evoengine.space import load_space
from evoengine.template import Launch, load_template, shipped
from evoengine.verdict import Artifact, Candidate, Gate, Measurement, Rejection, Verdict

__all__ = ["make", "own_temporary_folder"]  # fixtures

HERE = Path(__file__).resolve().parent
AXPB = load_template(HERE / "templates" / "axpb")
UNSEEN = load_template(HERE / "templates" / "unseen")
LAUNCHED = [Launched("R4096", tuple(Placed(**tensor) for tensor in fake_sanitizer.TENSORS))]  # type: ignore[arg-type]


class TestLog:
    def test_an_access_out_of_bounds_names_the_tensor(self) -> None:
        log = parse(fake_sanitizer.BANNER + fake_sanitizer.OUT_OF_BOUNDS, LAUNCHED)

        assert 2 == log.total
        assert 1 == len(log.findings), "threads of one instruction are one finding"
        expected = Finding(
            "error",
            "Invalid __global__ write of size 4 bytes",
            "evo_axpb+0x1d0",
            "thread (255,0,0) in block (511,0,0)",
            "address 0x7f2410080004 is out of bounds, 4 B past the end of y of R4096 (524,288 B)",
        )
        assert expected == log.findings[0]
        assert (
            "Invalid __global__ write of size 4 bytes at evo_axpb+0x1d0, address 0x7f2410080004 is out of bounds, "
            "4 B past the end of y of R4096 (524,288 B)"
        ) == log.findings[0].line

    @pytest.mark.parametrize(
        ("text", "line"),
        [
            (
                fake_sanitizer.MISALIGNED,
                "Invalid __global__ write of size 8 bytes at evo_axpb+0x60, address 0x7f2410000004 is misaligned, byte "
                "4 of y of R4096 (524,288 B)",
            ),
            (
                fake_sanitizer.RACE,
                "Race reported between Write access at evo_unseen+0x90 and Read access at evo_unseen+0x100 "
                "[508 hazards]",
            ),
            (
                fake_sanitizer.UNINITIALISED,
                "Uninitialized __global__ memory read of size 4 bytes at evo_unseen+0x70, address 0x7f24100000fc, byte "
                "252 of y of R4096 (524,288 B)",
            ),
            (fake_sanitizer.DIVERGENT, "Barrier error detected. Divergent thread(s) in block at evo_unseen+0x2c8"),
        ],
    )
    def test_every_tool(self, text: str, line: str) -> None:
        log = parse(fake_sanitizer.BANNER + text, LAUNCHED)

        assert ["error"] == [finding.severity for finding in log.findings]
        assert line == log.findings[0].line
        assert "" == log.trouble

    def test_a_warning_is_told_from_an_error(self) -> None:
        log = parse(fake_sanitizer.RACE_WARNING + fake_sanitizer.RACE)

        assert ["warning", "error"] == [finding.severity for finding in log.findings]

    @pytest.mark.parametrize("text", [fake_sanitizer.CLEAN, fake_sanitizer.NO_RACE])
    def test_nothing_found(self, text: str) -> None:
        log = parse(fake_sanitizer.BANNER + text)

        assert ((), 0, "") == (log.findings, log.total, log.trouble)

    @pytest.mark.parametrize(
        ("text", "trouble"),
        [
            (fake_sanitizer.INTERNAL, "Internal Sanitizer Error"),
            (fake_sanitizer.OVERFLOW, "overflow of tracked cuda::barrier structures"),
            ("========= Error: No attachable process found. compute-sanitizer timed-out.\n", "No attachable process"),
        ],
    )
    def test_trouble_of_its_own_is_no_finding(self, text: str, trouble: str) -> None:
        log = parse(fake_sanitizer.BANNER + text)

        assert () == log.findings
        assert trouble in log.trouble

    def test_what_was_not_printed_is_not_the_total(self) -> None:
        rest = "========= ERROR SUMMARY: 124 errors were not printed. Use --print-limit option to adjust the number\n"
        log = parse(fake_sanitizer.OUT_OF_BOUNDS.replace("2 errors", "224 errors") + rest)

        assert 224 == log.total

    def test_a_log_that_was_cut_off_has_no_total(self) -> None:
        log = parse(fake_sanitizer.BANNER + fake_sanitizer.OUT_OF_BOUNDS.partition("========= ERROR")[0])

        assert (1, None) == (len(log.findings), log.total)

    @pytest.mark.parametrize(
        ("address", "place"),
        [
            (0x7F2410000000, "byte 0 of y of R4096 (524,288 B)"),
            (0x7F2410080000, "0 B past the end of y of R4096 (524,288 B)"),
            (0x7F2410200000 - 16, "16 B before x of R4096 (524,288 B)"),
            (0x10, ""),
            (2**63, ""),
        ],
    )
    def test_where_an_address_is(self, address: int, place: str) -> None:
        assert place == relation(address, LAUNCHED)
        assert "" == relation(address, [])


class TestDoubt:
    """Which findings prove something is read off the PTX."""

    @pytest.fixture
    def ptx(self) -> Callable[..., str]:
        template = load_template(shipped("kernel_templates") / "attention")
        space, problem = load_space(shipped("search_spaces") / "attention.py"), AttentionProblem(head_dim=32)

        def compiled(**changes: int) -> str:
            values = {**space.default, "BLOCK_N": 16, "WARPS_M": 1, **changes}
            with Builder(template, "sm_89") as builder:
                defines = template.module.defines(values, problem)
                (built,) = builder.build([BuildRequest(defines, template.module.launch(values, problem).smem_bytes)])
            assert isinstance(built, Artifact), built
            return built.ptx.read_text()

        return compiled

    @pytest.mark.parametrize(
        ("changes", "doubted"),
        [
            ({}, set()),
            ({"PRODUCER_WARPS": 1}, {"synccheck"}),
            ({"PRODUCER_WARPS": 1, "MBARRIER": 1}, {"racecheck", "synccheck"}),
        ],
    )
    def test_attention(self, ptx: Callable[..., str], changes: dict[str, int], doubted: set[str]) -> None:
        text = ptx(**changes)

        assert doubted == {tool for tool in TOOLS if doubt(tool, text)}

    def test_a_barrier_of_all_threads_is_none(self) -> None:
        assert "" == doubt("synccheck", "bar.sync \t0;\nbar.warp.sync \t-1;")
        assert "" != doubt("synccheck", "bar.sync 1, 256;")
        assert "" != doubt("synccheck", "barrier.cta.arrive.aligned 2, 64;")


def report(tool: Tool, text: str, doubted: str = "", unfinished: str = "") -> Report:
    log = parse(text)
    return Report(tool, log.findings, log.total or 0, unfinished, doubted, ("N1000",), 1.0)


class TestReport:
    @pytest.mark.parametrize(
        ("tool", "text", "gate"),
        [
            ("memcheck", fake_sanitizer.OUT_OF_BOUNDS, Gate.RUNTIME),
            ("initcheck", fake_sanitizer.UNINITIALISED, Gate.CORRECTNESS),
            ("racecheck", fake_sanitizer.RACE, Gate.CORRECTNESS),
            ("synccheck", fake_sanitizer.DIVERGENT, Gate.CORRECTNESS),
        ],
    )
    def test_a_finding_rejects(self, tool: Tool, text: str, gate: Gate) -> None:
        rejection = report(tool, text).rejection()

        assert rejection is not None
        assert gate == rejection.gate
        assert rejection.reason.startswith(f"{tool}: ")
        assert "\n" not in rejection.reason
        json.dumps(rejection.evidence)

    def test_what_is_doubted_or_a_warning_or_clean_does_not(self) -> None:
        assert None is report("racecheck", fake_sanitizer.RACE, "mbarriers").rejection()
        assert None is report("racecheck", fake_sanitizer.RACE_WARNING).rejection()
        assert None is report("racecheck", fake_sanitizer.NO_RACE).rejection()
        assert None is report("memcheck", "", unfinished="no end in 1 s").rejection()

    def test_the_evidence_says_why_it_is_only_noted(self) -> None:
        evidence = report("racecheck", fake_sanitizer.RACE, "mbarriers").evidence

        assert ("mbarriers", False, 1) == (evidence["doubt"], evidence["clean"], len(evidence["findings"]))
        assert "doubt" not in report("racecheck", fake_sanitizer.NO_RACE, "mbarriers").evidence
        assert "no end in 1 s" == report("memcheck", "", unfinished="no end in 1 s").evidence["unfinished"]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in as the only tool on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(folder))
    return fake_sanitizer.install(folder)


def asked(folder: Path) -> list[dict[str, Any]]:
    path = folder / "asked"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class TestRun:
    def check(self, executable: Path, folder: Path, tool: Tool, **values: int) -> Report:
        (folder / "kernel.cubin").touch()
        problems = [AXPB.module.PROBLEM(rows=33), AXPB.module.PROBLEM(rows=7)]  # type: ignore[call-arg]
        sanitizer = Sanitizer(executable, AXPB, ordinal=0, seed=1)
        return sanitizer.check(tool, folder / "kernel.cubin", {"BUG": 0, "WORK": 1, **values}, problems, seconds=20.0)

    @pytest.mark.parametrize("tool", TOOLS)
    def test_a_finding_comes_back(self, installed: Path, tmp_path: Path, tool: Tool) -> None:
        found = self.check(installed, tmp_path, tool, SAYS=TOOLS.index(tool))
        clean = self.check(installed, tmp_path, tool, SAYS=-1)

        assert found.rejection() is not None
        assert ("", ("P0", "P1")) == (found.unfinished, found.problems)
        assert clean.clean
        assert f"{tool}: clean" == clean.line
        first, _ = asked(tmp_path)
        assert [{"rows": 33}, {"rows": 7}] == first["problems"]
        assert ("--padding" in first["options"]) == (tool == "memcheck"), "the others do not know the option"

    def test_addresses_are_placed(self, installed: Path, tmp_path: Path) -> None:
        found = self.check(installed, tmp_path, "memcheck", SAYS=0)

        assert "4 B past the end of y of P0 (524,288 B)" in found.line
        assert "(2 in all)" in found.line

    def test_a_hang_is_killed_with_all_it_started(self, installed: Path, tmp_path: Path) -> None:
        (tmp_path / "kernel.cubin").touch()
        problems = [AXPB.module.PROBLEM()]
        started_at = time.monotonic()
        sanitizer = Sanitizer(installed, AXPB, ordinal=0, seed=1)
        found = sanitizer.check("memcheck", tmp_path / "kernel.cubin", {"HANGS": 1}, problems, seconds=1.5)

        assert "no end in 1.5 s" == found.unfinished
        assert None is found.rejection()
        assert time.monotonic() - started_at < 20

    def test_nobody_is_left_behind(self, tmp_path: Path) -> None:
        note = tmp_path / "pid"
        watched = watch(("sh", "-c", f"sleep 600 & echo $! > {note}; wait", "sh"), job(tmp_path), 1.0)

        assert None is watched.code
        deadline = time.monotonic() + 10
        while alive(int(note.read_text())) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not alive(int(note.read_text()))

    def test_a_launch_that_fails_is_no_finding(self, tmp_path: Path) -> None:
        watched = watch(("env",), job(tmp_path), 60.0)  # no cubin, and on most machines no driver either

        assert (1, False, ()) == (watched.code, watched.finished, watched.launched)
        assert "Error" in watched.words


def job(folder: Path, launches: int = 1) -> Job:
    values = {"BUG": 0, "WORK": 1}
    return Job(str(AXPB.folder), str(folder / "kernel.cubin"), values, [{"rows": 33}, {"rows": 5}], 0, 3, launches)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class HostGpu:
    """A card whose memory is the host's and whose kernel is axpb in Python."""

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.launches = 0

    def upload(self, data: bytes) -> int:
        address = self.allocate(len(data))
        ctypes.memmove(address, data, len(data))
        return address

    def allocate(self, size: int) -> int:
        buffer = ctypes.create_string_buffer(
            b"\xff" * size, size + 4
        )  # FakeKernel looks at one word behind its tensors
        self.memory[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def load(self, image: bytes, entry: str) -> FakeKernel:
        assert "evo_axpb" == entry
        return FakeKernel(**json.loads(image))

    def launch(self, kernel: FakeKernel, launch: Launch, arguments: Sequence[tuple[str, int | float]]) -> None:
        self.launches += 1
        kernel.run(arguments)


class TestBare:
    def test_every_problem_is_launched_on_tensors_of_its_own(self, tmp_path: Path) -> None:
        (tmp_path / "kernel.cubin").write_text(json.dumps({"bug": "none", "launch_us": 1.0}))
        gpu, told = HostGpu(), []
        launch_all(job(tmp_path, launches=3), gpu, told.append)

        assert 6 == gpu.launches
        assert ["R33", "R5"] == [one["problem"] for one in told[:-1]]
        assert {"done": True} == told[-1]
        assert 4 == len(gpu.memory)
        for one, rows in zip(told, (33, 5), strict=False):
            x, y = ((ctypes.c_float * (32 * rows)).from_address(tensor["address"]) for tensor in one["tensors"])
            assert [32 * rows * 4] * 2 == [tensor["bytes"] for tensor in one["tensors"]]
            inputs = AXPB.module.inputs(AXPB.module.PROBLEM(rows=rows), 3)["x"].reshape(-1)  # type: ignore[call-arg]
            assert (inputs == np.asarray(x)).all()
            assert np.allclose(1.5 * inputs + 0.25, np.asarray(y))

    def test_counters_are_zero_and_other_scratch_is_as_it_was(self, tmp_path: Path) -> None:
        merge = load_template(HERE / "templates" / "merge")
        problem = merge.module.PROBLEM()
        roles = {tensor.name: (tensor.role, tensor.dtype) for tensor in merge.module.tensors(problem)}
        seen: dict[str, set[int]] = {}

        class Looking(HostGpu):
            def load(self, image: bytes, entry: str) -> Any:
                return None

            def launch(self, kernel: Any, launch: Launch, arguments: Sequence[tuple[str, int | float]]) -> None:
                pass

        gpu, told = Looking(), []
        (tmp_path / "kernel.cubin").touch()
        values = {"BUG": 0}
        launch_all(Job(str(merge.folder), str(tmp_path / "kernel.cubin"), values, [{}], 0, 3), gpu, told.append)
        for tensor in told[0]["tensors"]:
            seen[tensor["name"]] = set(ctypes.string_at(tensor["address"], tensor["bytes"]))

        assert {("scratch", "int32")} <= set(roles.values())
        for name, (role, dtype) in roles.items():
            if role == "input":
                assert 2 < len(seen[name])
            else:
                assert {0 if dtype == "int32" else 0xFF} == seen[name]

    def test_a_job_and_what_was_launched_survive_their_files(self, tmp_path: Path) -> None:
        one = job(tmp_path, launches=2)
        one.write(tmp_path)

        assert one == Job.read(tmp_path)
        assert ([], False) == read_launches(tmp_path)
        lines = [dataclasses.asdict(LAUNCHED[0]), {"done": True}]
        (tmp_path / "launches.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert (LAUNCHED, True) == read_launches(tmp_path)


class TestFaults:
    """After the first fault of a name the candidate runs again under memcheck, for the reason."""

    @pytest.fixture
    def artifact(self, tmp_path: Path) -> Artifact:
        folder = tmp_path / "built"
        folder.mkdir()
        (folder / "kernel.cubin").touch()
        return dataclasses.replace(ARTIFACT, folder=folder)

    def test_the_reason_becomes_evidence_once(
        self, installed: Path, make: Callable[[], CudaDevice], artifact: Artifact
    ) -> None:
        device = started(make)
        work = [(candidate(number, fault), artifact) for number, fault in enumerate(("sticky", "right", "sticky"), 1)]
        first, right, second = [verdict for _, verdict in device.judge(work)]

        assert isinstance(first, Rejection)
        assert isinstance(second, Rejection)
        assert isinstance(right, Measurement)
        assert ("CUDA_ERROR_ILLEGAL_ADDRESS from cuCtxSynchronize", Gate.RUNTIME) == (first.reason, first.gate)
        found = first.evidence["memcheck"]["findings"][0]
        assert ("evo_axpb+0x1d0", "Invalid __global__ write of size 4 bytes") == (found["where"], found["title"])
        assert "4 B past the end of y of P0" in found["address"]
        assert "memcheck" not in second.evidence, "another of the same name costs nothing more"
        (once,) = asked(artifact.folder)
        assert [{"rows": 4096}, {"rows": 33}] == once["problems"], "the timed problem, then the gate's others"

    def test_other_failures_are_not_run_again(
        self, installed: Path, make: Callable[[], CudaDevice], artifact: Artifact
    ) -> None:
        device = started(make)
        list(device.judge([(candidate(1, fault), artifact) for fault in ("dies", "wrong", "stray")]))

        assert [] == asked(artifact.folder)

    def test_without_memcheck_nothing_changes(
        self, make: Callable[[], CudaDevice], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CUDA_HOME", raising=False)
        (verdict,) = judge(started(make), "sticky")

        assert isinstance(verdict, Rejection)
        assert {"error", "phase"} == set(verdict.evidence)


class MeasuringCard:
    """A card on which every launch takes 5 us."""

    name = "NVIDIA L4"

    def __init__(self, *_: Any, **__: Any) -> None:
        self.measured = Measurement((5.0,) * 3, (5.0,) * 3, 5.0, 10, "warm", "converged")

    def start(self, values: Any, artifact: Artifact) -> Setup:
        return Setup(self.measured, (), {}, {})

    def judge(self, work: Work) -> Iterator[tuple[Candidate, Verdict]]:
        yield from ((one, self.measured) for one, _ in work)

    def finals(self, work: Work, seed: int) -> Finals:
        control = make_final("default", [5.0] * 5, [5.0] * 5, 10, seed)
        return Finals(control, tuple((one, control) for one, _ in work), (), {}, seed)

    def close(self) -> None:
        """Holds nothing."""


class TestCommand:
    def test_sanitize_without_the_tool_or_a_gpu_stops_before_anything_is_spent(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = ["search", "--template", "mine", "--shape", "1000", "--device", "none", "--sanitize"]
        monkeypatch.delenv("CUDA_HOME", raising=False)
        monkeypatch.setenv("PATH", str(folder))
        missing, said = main(command), capsys.readouterr()
        fake_sanitizer.install(folder)
        no_gpu, said_then = main(command), capsys.readouterr()

        assert (2, 2) == (missing, no_gpu)
        assert said.err == (
            "evoengine: --sanitize needs compute-sanitizer, which is neither in $CUDA_HOME/bin nor on PATH: install "
            "the CUDA toolkit and put its bin folder on PATH\n"
        )
        assert said_then.err == (
            "evoengine: --sanitize launches finalists on a GPU, and there is none to use: leave it out\n"
        )
        assert 0 == main(["studies", "--json"])
        assert "[]\n" == capsys.readouterr().out

    def test_a_search_rejects_what_the_tool_finds(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The whole way but for the card: NVRTC's cubins, the database, and a stand-in that finds something in all."""
        fake_sanitizer.install(folder)
        monkeypatch.setenv("PATH", str(folder))
        monkeypatch.delenv("CUDA_HOME", raising=False)
        limits = card("l4")
        monkeypatch.setattr(early, "find_target", lambda *_: Target(limits, limits, 0))
        monkeypatch.setattr(judges, "CudaDevice", MeasuringCard)
        options = ["--template", "mine", "--shape", "1000", "--jobs", "2", "--budget", "3", "--sampler", "random"]
        code = main(["search", *options, "--sanitize", "--json"])
        out, err = capsys.readouterr()
        assert out, err
        document = json.loads(out)

        assert 1 == code
        assert ([], []) == (document["elites"], document["measured"])
        (row,) = [row for row in document["rejections"] if row["gate"] == "runtime"]
        assert row["example"].startswith("memcheck: Invalid __global__ write of size 4 bytes at evo_axpb+0x1d0")
        assert f"trial {row['trial']}: memcheck: Invalid __global__ write" in err
        assert "at the gate runtime: memcheck: " in err

    def test_the_toolkit_of_cuda_home_comes_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("home/bin", "bin"):
            (tmp_path / name).mkdir(parents=True)
            fake_sanitizer.install(tmp_path / name)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))

        assert tmp_path / "home/bin/compute-sanitizer" == find_tool("compute-sanitizer")
        monkeypatch.delenv("CUDA_HOME")
        assert tmp_path / "bin/compute-sanitizer" == find_tool("compute-sanitizer")
        assert None is find_tool("surely-not-installed")

    def test_doctor_finds_it_with_its_version(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CUDA_HOME", raising=False)
        tool = tmp_path / "compute-sanitizer"
        tool.write_text("#!/bin/sh\necho 'NVIDIA (R) Compute Sanitizer'\necho 'Version 2025.3.1'\n")
        tool.chmod(0o755)
        found = doctor._tool("compute-sanitizer", "checks")
        tool.write_text("#!/bin/sh\nexit 3\n")

        assert ("ok", f"{tool}, 2025.3.1") == (found.state, found.detail)
        assert "warn" == doctor._tool("compute-sanitizer", "checks").state


def test_the_template_of_unseen_bugs_compiles(tmp_path: Path) -> None:
    bugs: tuple[str, ...] = UNSEEN.module.BUGS  # type: ignore[attr-defined]
    with Builder(UNSEEN, "sm_89") as builder:
        built = builder.build([BuildRequest({"EVO_BUG": bug}, 0) for bug in range(len(bugs))])

    cubins = [one.cubin_sha256 for one in built if isinstance(one, Artifact)]
    assert len(bugs) == len(cubins) == len(set(cubins))
