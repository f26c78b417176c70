"""Whole studies in public formats: every trial, under its schema, readable by others and by ourselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import empty_database
from measured_study import BEST, GATES, spec_of, verdicts, write_guessed, write_study

from evoengine.archive.archive import Archive
from evoengine.cli import main
from evoengine.recorded.load import load
from evoengine.verdict import Measurement

ERRORS = {
    "static": "InvalidConfig",
    "compile": "CompilationFailedConfig",
    "resources": "InvalidConfig",
    "correctness": "RuntimeFailedConfig",
    "runtime": "RuntimeFailedConfig",
    "timeout": "RuntimeFailedConfig",
}
INVALIDITY = {**{gate: gate for gate in ERRORS}, "static": "constraints", "resources": "constraints"}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the study `measured` and, used before it, `guessed`, which has only estimates."""
    path = empty_database(tmp_path_factory.mktemp("database") / "studies.db")
    archive = Archive.open(str(path))
    write_guessed(archive)
    write_study(archive, spec_of())
    archive.close()
    return path


def export(database: Path, output: Path, form: str, *options: str) -> int:
    return main(["export", "--storage", str(database), "--format", form, "-o", str(output), *options])


@pytest.fixture(scope="module")
def written(database: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The study `measured` in each format."""
    folder = tmp_path_factory.mktemp("written")
    files = {form: folder / f"{form}.json" for form in ("t4", "cachefile", "json")}
    assert [0, 0, 0] == [export(database, path, form, "measured") for form, path in files.items()]
    return files


@pytest.mark.parametrize("form", ["t4", "cachefile", "json"])
def test_what_was_written_is_said(
    database: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The study above all, where none was named: that is the last one."""
    path, trials = tmp_path / "out", len(verdicts())

    assert 0 == export(database, path, form)
    assert f"{path}: {trials} trials of measured\n" == capsys.readouterr().out
    assert 0 == export(database, path, form, "--force", "--json")
    document = json.loads(capsys.readouterr().out)
    assert {"output": str(path), "format": form, "study": "measured", "trials": trials} == document


def best_ms() -> float:
    return min(verdict.median_us for _, verdict in verdicts() if isinstance(verdict, Measurement)) * 1e-3


# *** T4 ***


def t4_faults(document: Any) -> list[str]:
    """What T4's results schema 1.0.0 (AutoTuningAssociation/autotuning_schemas) would refuse, by result."""
    numbers = ("compilation_time", "framework", "search_algorithm", "validation")

    def faults(result: Any) -> Any:
        for name, kind in (
            ("configuration", dict),
            ("times", dict),
            ("invalidity", str),
            ("correctness", (int, float)),
        ):
            if not isinstance(result.get(name), kind):
                yield f"{name} is required"
        if result["invalidity"] not in ("timeout", "compile", "runtime", "correctness", "constraints", "correct"):
            yield "invalidity"
        times = result["times"]
        if not all(isinstance(times[name], int | float) for name in numbers if name in times):
            yield "times"
        if not isinstance(times.get("runtimes", []), list) or not isinstance(result.get("objectives", []), list):
            yield "runtimes or objectives"
        if not isinstance(result.get("timestamp", ""), str):
            yield "timestamp"
        for one in result.get("measurements", []):
            if not (isinstance(one["name"], str) and isinstance(one["unit"], str)):
                yield "a measurement's name or unit"
            if not isinstance(one["value"], int | float | str | list):
                yield "a measurement's value"

    return [f"{number}: {fault}" for number, result in enumerate(document["results"]) for fault in faults(result)]


def test_t4_keeps_the_schema_and_the_check_of_it_can_fail(written: dict[str, Path]) -> None:
    document = json.loads(written["t4"].read_text())
    wrong = json.loads(written["t4"].read_text())
    wrong["results"][0]["invalidity"] = "resources"
    wrong["results"][1]["times"]["validation"] = "0.5"
    wrong["results"][2]["correctness"] = None

    assert "1.0.0" == document["schema_version"]
    assert [] == t4_faults(document)
    assert 3 == len(t4_faults(wrong))


def test_t4_has_every_trial_with_what_became_of_it(written: dict[str, Path]) -> None:
    results = json.loads(written["t4"].read_text())["results"]
    told = [(one["invalidity"], one["correctness"]) for one in results]
    best = min(
        (one for one in results if one["invalidity"] == "correct"),
        key=lambda one: {m["name"]: m["value"] for m in one["measurements"]}["time"],
    )
    figures = {one["name"]: (one["value"], one["unit"]) for one in best["measurements"]}

    assert [("correct", 1)] * 9 + [(INVALIDITY[gate], 0) for gate in GATES] == told
    assert BEST == {name: best["configuration"][name] for name in BEST}
    assert (pytest.approx(best_ms()), "ms") == figures["time"]
    assert (pytest.approx(1.01 * best_ms()), "ms") == figures["time_confirmed"]
    assert pytest.approx([0.99 * 4e-3, 4e-3, 4e-3, 1.02 * 4e-3]) == best["times"]["runtimes"]
    assert (500.0, 250.0) == (best["times"]["compilation_time"], best["times"]["validation"])
    assert "compile: refused by compile" in [one["value"] for one in results[10]["measurements"]]


# *** cachefile ***


def cachefile_faults(document: Any) -> list[str]:
    """What Kernel Tuner's cache schema 1.1.0 would refuse."""
    kinds = {"device_name": str, "kernel_name": str, "tune_params_keys": list, "tune_params": dict, "objective": str}
    found = [name for name, kind in kinds.items() if not isinstance(document.get(name), kind)]
    found += ["schema_version"] * (document.get("schema_version") != "1.1.0")
    found += ["problem_size"] * (not all(isinstance(one, int) for one in document["problem_size"]))
    spent = ("compile_time", "verification_time", "benchmark_time", "strategy_time", "framework_time")
    for key, entry in document["cache"].items():
        fits = isinstance(entry["time"], int | float) or entry["time"] in set(ERRORS.values())
        fits = fits and all(isinstance(entry[name], int | float) for name in spent)
        fits = fits and isinstance(entry["timestamp"], str) and isinstance(entry.get("times", []), list)
        found += [] if fits else [key]
    return found


def test_a_cachefile_keeps_the_schema_and_the_check_of_it_can_fail(written: dict[str, Path]) -> None:
    document = json.loads(written["cachefile"].read_text())
    wrong = json.loads(written["cachefile"].read_text())
    next(iter(wrong["cache"].values()))["time"] = "TimeoutConfig"
    del wrong["device_name"]

    assert [] == cachefile_faults(document)
    assert 2 == len(cachefile_faults(wrong))


def test_a_cachefile_has_every_trial_under_its_key_with_its_error_class(written: dict[str, Path]) -> None:
    document = json.loads(written["cachefile"].read_text())
    keys = document["tune_params_keys"]

    assert list(document["cache"]) == [",".join(str(one[key]) for key in keys) for one in document["cache"].values()]
    assert [None] * 9 + [ERRORS[gate] for gate in GATES] == [one.get("__error__") for one in document["cache"].values()]
    assert [1, 2, 4, 8] == document["tune_params"]["WARPS_M"]
    assert [2] == document["tune_params"]["STAGES"]
    assert [1, 8, 512, 64] == document["problem_size"]
    assert ("evo_attention", "NVIDIA L4") == (document["kernel_name"], document["device_name"])
    first = next(iter(document["cache"].values()))
    assert 4 * (first["times"][1] + 10e-3) * 40 == pytest.approx(first["benchmark_time"], rel=0.01)


# Kernel Tuner brings 22 packages of 300 MB (pymoo, scikit-learn, matplotlib): too many for the test extra.
NO_KERNEL_TUNER = "kernel_tuner is not installed: pip install -c constraints.txt -e '.[interop]'"


@pytest.mark.filterwarnings("ignore:None of the tunable parameters specify thread block dimensions")
def test_kernel_tuner_simulates_a_search_on_a_cachefile(written: dict[str, Path], tmp_path: Path) -> None:
    interface = pytest.importorskip("kernel_tuner.interface", reason=NO_KERNEL_TUNER)
    cache = tmp_path / "cache.json"
    cache.write_text(written["cachefile"].read_text())
    results, environment = interface.tune_cache(str(cache), strategy="brute_force", quiet=True)
    best = min(results, key=lambda one: one["time"])

    assert 9 == len(results)
    assert BEST == {name: best[name] for name in BEST}
    assert best_ms() == pytest.approx(best["time"])
    assert environment["simulation"]
    assert cache.read_text() == written["cachefile"].read_text()  # simulation leaves it closed


def test_kernel_tuners_own_schemas_take_the_t4_file(written: dict[str, Path]) -> None:
    file_utils = pytest.importorskip("kernel_tuner.file_utils", reason=NO_KERNEL_TUNER)
    jsonschema = pytest.importorskip("jsonschema", reason=NO_KERNEL_TUNER)
    document = json.loads(written["t4"].read_text())

    for name in ("results", "metadata"):
        version, schema = file_utils.output_file_schema(name)
        assert version == document["schema_version"]
        jsonschema.validate(document, schema)


# *** our own reader ***


@pytest.mark.parametrize("form", ["t4", "cachefile"])
def test_replay_reads_back_what_was_exported(written: dict[str, Path], form: str) -> None:
    space = load(written[form])
    best = next(row for row, cost in enumerate(space.costs) if cost == space.optimum)

    assert 15 == len(space)
    assert 6 == sum(space.failures.values())
    assert best_ms() * 1e3 == pytest.approx(space.optimum)
    assert {name: str(value) for name, value in BEST.items()} == space.label(best)


def test_replay_searches_it(written: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == main(["replay", str(written["t4"]), "--budget", "15", "--json"])
    [run] = json.loads(capsys.readouterr().out)["runs"]
    assert {name: str(value) for name, value in BEST.items()} == run["best_config"]


# *** JSON ***


def test_the_document_is_what_show_says_and_every_trial(
    database: Path, written: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert 0 == main(["show", "measured", "--json", "--top", "24", "--storage", str(database)])
    shown = json.loads(capsys.readouterr().out)
    document = json.loads(written["json"].read_text(), parse_constant=lambda word: pytest.fail(word))

    assert shown == {name: document[name] for name in shown}
    assert ("evoengine study", 1) == (document["format"], document["version"])
    assert ["measurement"] * 9 + ["rejection"] * 6 == [one["verdict"]["kind"] for one in document["trials"]]
    assert list(GATES) == [one["verdict"]["gate"] for one in document["trials"][9:]]
    assert pytest.approx(best_ms() * 1e3) == min(one["verdict"]["median_us"] for one in document["trials"][:9])
    assert "580.65" == document["environments"][document["trials"][0]["environment"]]["driver"]
    assert 3 == len(document["final"])
    assert document["trials"][0]["verdict"]["checks"][0]["worst_row"] is None


def test_a_study_of_estimates_calls_them_so(database: Path, tmp_path: Path) -> None:
    assert 0 == export(database, tmp_path / "x.json", "json", "guessed")
    document = json.loads((tmp_path / "x.json").read_text())

    assert ["estimate", "estimate"] == [one["verdict"]["kind"] for one in document["trials"]]
    assert [8.0, 5.0] == [one["estimated_us"] for one in document["trials"]]
    assert [] == document["measured"]


# *** refusals ***


@pytest.mark.parametrize("form", ["t4", "cachefile"])
def test_what_is_for_measured_times_refuses_estimates(
    database: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 2 == export(database, tmp_path / "x.json", form, "guessed")
    assert "guessed holds no measured time" in capsys.readouterr().err
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["t4", "cachefile", "json"])
def test_a_file_is_not_overwritten_unasked(
    database: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.json"
    path.write_text("precious")

    assert 2 == export(database, path, form, "measured")
    assert f"{path} exists: give --force" in capsys.readouterr().err
    assert "precious" == path.read_text()
    assert 0 == export(database, path, form, "measured", "--force")
    assert [path] == list(tmp_path.iterdir())
    assert "measured" in path.read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("measured", "guessed"), "one study"),
        (("measured", "--trial", "1"), "without --trial"),
        (("measurd",), "did you mean measured?"),
    ],
)
def test_a_mistake_is_one_line(
    database: Path, tmp_path: Path, options: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 2 == export(database, tmp_path / "x.json", "t4", *options)
    err = capsys.readouterr().err
    assert words in err
    assert 1 == err.count("\n")
