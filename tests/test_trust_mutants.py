"""The scripts that judge mutants and random configs on a card, with a card that says what it is told to say."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from benchmarks.trust import false_rejections, mutants
from benchmarks.trust.planted.building import Built
from benchmarks.trust.planted.mutant import CAUSAL, FULL, GROUPS, PLAIN, Mutant
from evoengine.devices.cuda.sanitizer import Report, Tool
from evoengine.devices.cuda.sanitizer_log import Finding
from evoengine.errors import TemplateError
from evoengine.hardware import card
from evoengine.problem import AttentionProblem
from evoengine.space import Values
from evoengine.verdict import Artifact, Candidate, Check, Estimate, Gate, Measurement, Rejection, ResourceUsage

Work = Sequence[tuple[Candidate, Artifact]]
CHECK = Check("check", "S37", 1, math.inf, 1.0, math.inf, 1.0, math.inf, 0, 0, 3, False, 5, 0, 0.1, "3 values are NaN")
WRONG = Rejection(Gate.CORRECTNESS, "check S37: 3 values are NaN", {"seed": 1}, (CHECK,))
CRASH = Rejection(Gate.RUNTIME, "CUDA_ERROR_MISALIGNED_ADDRESS", {})
RIGHT = Measurement((1.0,) * 3, (1.0,) * 3, 1.0, 10, "warm", "converged")


def artifact(name: str) -> Artifact:
    return Artifact(name, Path("none"), name, ResourceUsage(40, 0, 0, 0, 0, 0), 0.1, "fake 1", "sm_90a")


class ToldDevice:
    """A card whose verdicts are looked up by the cubin's name; whatever has none is right."""

    quick: dict[str, Rejection] = {}  # noqa: RUF012
    full: dict[str, Rejection] = {}  # noqa: RUF012
    broken: set[str] = set()  # noqa: RUF012
    """These take the whole run down."""
    asked: list[str] = []  # noqa: RUF012

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def start(self, *_: Any) -> SimpleNamespace:
        return SimpleNamespace(environment={"gpu": card("h200").name})

    def judge(self, work: Work) -> Iterator[tuple[Candidate, Measurement | Rejection]]:
        for candidate, built in work:
            if built.cubin_sha256 in self.broken:
                raise TemplateError("the card fails")
            self.asked.append(built.cubin_sha256)
            yield candidate, self.quick.get(built.cubin_sha256, RIGHT)

    def compare(self, control: Any, work: Work, *_: Any) -> SimpleNamespace:
        return SimpleNamespace(finalists=[(c, self.full.get(built.cubin_sha256, "final")) for c, built in work])


def planted(name: str, **changes: Any) -> Mutant:
    return replace(Mutant(name, "a bug", (), PLAIN), **changes)


MUTANTS = (
    planted("seen"),
    planted("crashes", values=GROUPS),
    planted("late"),
    planted("shy", hidden="of nothing", unseen="too small"),
    planted("causal", problem=CAUSAL),
)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> type[ToldDevice]:
    monkeypatch.setattr(ToldDevice, "quick", {"seen": WRONG, "crashes": CRASH, "causal": WRONG})
    monkeypatch.setattr(ToldDevice, "full", {"late": WRONG})
    monkeypatch.setattr(ToldDevice, "broken", set())
    monkeypatch.setattr(ToldDevice, "asked", [])
    for module in (mutants, false_rejections):
        monkeypatch.setattr(module, "CudaDevice", ToldDevice)
        monkeypatch.setattr(module, "find_gpu", lambda: card("h200"))
    monkeypatch.setattr(mutants, "MUTANTS", MUTANTS)
    monkeypatch.setattr(mutants, "find_tool", lambda program: None)
    monkeypatch.setattr(mutants, "control", lambda problem, arch: (PLAIN, artifact("default")))
    monkeypatch.setattr(mutants, "build", lambda listed, arch: [_built(mutant) for mutant in listed])
    monkeypatch.setattr(
        mutants, "interpret", lambda cases: [Estimate(1.0) if built.digest == "shy" else WRONG for *_, built in cases]
    )
    return ToldDevice


def _built(mutant: Mutant) -> Built:
    return Built(mutant, artifact(original(mutant.values, mutant.problem)), artifact(mutant.name))


def original(values: Values, problem: AttentionProblem) -> str:
    return f"{sorted(values.items())} at {problem.label}"


def run_mutants(path: Path) -> tuple[int, dict[str, Any]]:
    code = mutants.run(["--output", str(path)])
    return code, json.loads(path.read_text())["mutants"]


def test_the_section_says_who_caught_each_mutant_and_at_which_level(told: type[ToldDevice], tmp_path: Path) -> None:
    code, section = run_mutants(tmp_path / "trust.json")
    rows = {row["name"]: row for row in section["mutants"]}

    assert 0 == code
    assert {"seen", "crashes", "late", "shy", "causal"} == set(rows)
    assert ("quick", "correctness", "S37") == tuple(rows["seen"]["gpu"][key] for key in ("level", "gate", "shape"))
    assert ("quick", "runtime") == (rows["crashes"]["gpu"]["level"], rows["crashes"]["gpu"]["gate"])
    assert ("full", True) == (rows["late"]["gpu"]["level"], rows["late"]["gpu"]["caught"])
    assert {"caught": False, "why": "too small"} == rows["shy"]["interpreter"]
    assert ([], ["shy"]) == (section["missed_by_gpu"], section["hidden_from_gpu"])
    assert (3, 1, 4) == tuple(section[f"caught_by_{who}"] for who in ("gpu_quick", "gpu_full", "interpreter"))
    assert (3, 1) == (section["originals_accepted"], section["originals_accepted_after_a_fault"])
    assert card("h200").name == section["environment"]["gpu"]
    # after the mutant that took the worker down, its original
    assert told.asked[told.asked.index("crashes") + 1] == original(GROUPS, FULL)


def test_a_mutant_that_the_card_accepts_is_a_failure_and_judged_again(
    told: type[ToldDevice], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told.full.clear()
    code, section = run_mutants(tmp_path / "trust.json")

    assert 1 == code
    assert ["late"] == section["missed_by_gpu"]
    told.full = {"late": WRONG}
    told.asked.clear()
    interpreted: list[int] = []
    monkeypatch.setattr(mutants, "interpret", lambda cases: interpreted.append(len(cases)) or [])
    code, section = run_mutants(tmp_path / "trust.json")

    assert (0, []) == (code, section["missed_by_gpu"])
    assert [original(PLAIN, FULL), "late"] == told.asked, "all else is known"
    assert [0] == interpreted
    assert 4 == section["caught_by_interpreter"]


@pytest.mark.parametrize(
    ("of_original", "of_mutant", "caught"),
    [("clean", "hazard", True), ("hazard", "hazard", False), ("clean", "clean", False)],
)
def test_racecheck_judges_what_the_gate_accepts_if_it_finds_nothing_in_the_original(
    of_original: str,
    of_mutant: str,
    caught: bool,
    told: type[ToldDevice],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    findings = {"clean": (), "hazard": (Finding("error", "Race reported", "evo_attention"),)}

    class ToldSanitizer:
        def __init__(self, executable: Path, *_: Any) -> None:
            assert Path("/compute-sanitizer") == executable

        def check(self, tool: Tool, cubin: Path, values: Values, problems: Any, ptx: str) -> Report:
            found = findings[of_mutant if cubin.parent.name == "late" else of_original]
            return Report(tool, found, len(found), "", "", ("small",), 1.0)

    told.full.clear()
    monkeypatch.setattr(mutants, "find_tool", lambda program: Path("/") / program)
    monkeypatch.setattr(mutants, "Sanitizer", ToldSanitizer)
    monkeypatch.setattr(mutants, "MUTANTS", [planted("late")])
    monkeypatch.setattr(mutants, "build", lambda listed, arch: [_on_disk(one, tmp_path) for one in listed])
    code, section = run_mutants(tmp_path / "trust.json")
    (row,) = section["mutants"]

    assert ("sanitizer", caught) == (row["gpu"]["level"], row["gpu"]["caught"])
    assert [of_original == "clean", of_mutant == "clean"] == [
        row["gpu"]["racecheck"][which].endswith("clean") for which in ("original", "mutant")
    ]
    assert int(caught) == section["caught_by_sanitizer"]
    assert (int(not caught), [] if caught else ["late"]) == (code, section["missed_by_gpu"])


def _on_disk(mutant: Mutant, folder: Path) -> Built:
    """With an original and a mutant whose PTX can be read."""
    both = []
    for name in ("original", mutant.name):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "kernel.ptx").write_text("bar.sync 0;")
        both.append(replace(artifact(name), folder=folder / name))
    return Built(mutant, *both)


def test_what_was_judged_before_a_run_broke_off_is_kept(told: type[ToldDevice], tmp_path: Path) -> None:
    told.quick[original(PLAIN, CAUSAL)] = WRONG
    path = tmp_path / "trust.json"
    with pytest.raises(TemplateError, match=r"the original \S+ is refused: correctness"):
        mutants.run(["--output", str(path)])
    section = json.loads(path.read_text())["mutants"]

    assert (5, 4) == (section["planted"], section["judged_on_the_gpu"])
    assert {"skipped": "not reached"} == next(row["gpu"] for row in section["mutants"] if row["name"] == "causal")
    told.quick = {"causal": WRONG}
    told.asked.clear()
    code, section = run_mutants(path)
    assert (0, 5, 3) == (code, section["judged_on_the_gpu"], section["originals_accepted"])
    assert [original(PLAIN, CAUSAL), "causal"] == told.asked


def test_random_configs_are_counted_and_a_rejection_is_kept_in_full(
    told: type[ToldDevice], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(false_rejections, "SHAPES", ("1,2,64,64", "1,2,64,64,causal"))
    monkeypatch.setattr(false_rejections, "Builder", ToldBuilder)
    told.quick["cubin 2"] = WRONG
    path = tmp_path / "trust.json"
    code = false_rejections.run(["--output", str(path), "--configs", "4"])
    section = json.loads(path.read_text())["false_rejections"]

    assert 1 == code
    assert (8, 8, 2) == tuple(section[key] for key in ("wanted", "judged", "rejected"))
    (rejection,) = section["shapes"][0]["rejected"]
    assert ("correctness", "inf", 3) == (
        rejection["gate"],
        rejection["checks"][0]["max_abs"],
        rejection["checks"][0]["nonfinite"],
    )
    assert ["compile", "compile"] == [shape["refused_before_the_card"][0]["gate"] for shape in section["shapes"]]
    assert 1 == false_rejections.run(["--output", str(path), "--configs", "4"]), "a rejection stays one"
    told.quick.clear()
    assert 0 == false_rejections.run(["--output", str(tmp_path / "other.json"), "--configs", "4"])


def test_random_configs_that_were_judged_before_a_run_broke_off_are_kept(
    told: type[ToldDevice], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(false_rejections, "SHAPES", ("1,2,64,64", "1,2,64,64,causal"))
    monkeypatch.setattr(false_rejections, "Builder", ToldBuilder)
    monkeypatch.setattr(false_rejections, "WRITE_EVERY", 2)
    path = tmp_path / "trust.json"
    run = ["--output", str(path), "--configs", "5"]

    def judged() -> list[int]:
        return [shape["judged"] for shape in json.loads(path.read_text())["false_rejections"]["shapes"]]

    told.broken = {"cubin 6"}  # the fifth of the first shape
    with pytest.raises(TemplateError):
        false_rejections.run(run)
    assert [4] == judged()
    told.broken = set()
    told.asked.clear()
    assert 1 == false_rejections.run([*run, "--seconds", "0"]), "not all were judged"
    assert [5] == judged()
    assert ["cubin 6"] == told.asked
    assert 0 == false_rejections.run(run)
    assert [5, 5] == judged()
    assert 6 == len(told.asked), "the first shape is not judged again"
    monkeypatch.setattr(false_rejections, "judge_digest", lambda: "changed")
    assert 0 == false_rejections.run(run)
    assert 16 == len(told.asked)


class ToldBuilder:
    """Numbers its cubins; the control is number 0, and the next does not compile."""

    def __init__(self, *_: Any) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def build(self, requests: Sequence[Any]) -> list[Artifact | Rejection]:
        built = [artifact(f"cubin {number}") for number in range(len(requests))]
        return [built[0], Rejection(Gate.COMPILE, "no such instruction", {}), *built[2:]]
