"""`--devices` and `--per-device`: which cards are meant, and whole searches over a stand-in worker for each."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from command_line import empty_database
from test_cuda_protocol import ARTIFACT, candidate, wait_for

from evoengine.archive.archive import Archive
from evoengine.archive.records import Record
from evoengine.archive.study import Study
from evoengine.cli import cards, judges, main, new_study
from evoengine.cli.apart import ProposerProcess
from evoengine.cli.cards import chosen_cards, models, one_model
from evoengine.devices.cuda import CudaDevice, Gpu
from evoengine.errors import EvoengineError, UserError
from evoengine.hardware import card
from evoengine.template import load_template
from evoengine.verdict import Candidate, Measurement, on_shapes

HERE = Path(__file__).resolve().parent
GIB = 1 << 30

pytestmark = pytest.mark.usefixtures("no_orphans")


def gpu(ordinal: int, model: str = "l4", memory_bytes: int = 24 * GIB, **limits: Any) -> Gpu:
    """A card whose UUID no other test locks."""
    uuid = f"GPU-{ordinal}a{os.getpid()}"
    return Gpu(ordinal, uuid, memory_bytes, dataclasses.replace(card(model), **limits))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Gpu]]:
    """Says which cards the machine has."""

    def set_cards(*found: Gpu) -> list[Gpu]:
        monkeypatch.setattr(cards, "find_gpus", lambda: list(found))
        return list(found)

    return set_cards


class TestChosen:
    @pytest.mark.parametrize(
        ("text", "ordinals"),
        [("all", [0, 1, 2]), ("0", [0]), ("2,0", [2, 0]), ("GPU-1a", [1]), (" 1 , GPU-0a", [1, 0]), ("MIG-2a", [2])],
    )
    def test_by_ordinal_or_the_beginning_of_a_uuid_in_the_order_given(
        self, here: Callable[..., list[Gpu]], text: str, ordinals: list[int]
    ) -> None:
        here(gpu(0), gpu(1), gpu(2))

        assert ordinals == [one.ordinal for one in chosen_cards(text)]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("3", "no card '3': give all, or some of 0 (GPU-0a"),
            ("", "no card ''"),
            ("0,", "no card ''"),
            ("0-1", "no card '0-1'"),
            ("-1", "no card '-1'"),
            ("GPU-", "no card 'GPU-'"),
            ("GPU-9", "no card 'GPU-9'"),
            ("0a", "no card '0a'"),
            ("0,0", "GPU 0 (GPU-0a"),
            ("0,GPU-0", "is named twice"),
        ],
    )
    def test_else_it_is_said_what_there_is(self, here: Callable[..., list[Gpu]], text: str, words: str) -> None:
        here(gpu(0), gpu(1))

        with pytest.raises(UserError) as raised:
            chosen_cards(text)
        assert f"--devices {text}: " in str(raised.value)
        assert words in str(raised.value)

    def test_a_beginning_of_two_uuids_names_none(self, here: Callable[..., list[Gpu]]) -> None:
        here(gpu(1), gpu(1))

        with pytest.raises(UserError, match="several cards begin with 'GPU-1'"):
            chosen_cards("GPU-1")

    def test_without_a_gpu_it_says_so(self, here: Callable[..., list[Gpu]]) -> None:
        here()

        with pytest.raises(UserError, match="--devices all: no GPU here; `evoengine doctor`"):
            chosen_cards("all")


class TestModels:
    def test_are_told_apart_by_name_size_architecture_and_memory(self) -> None:
        every = [gpu(0), gpu(1, "h200"), gpu(2), gpu(3, memory_bytes=48 * GIB), gpu(4, sms=30), gpu(5, name="L4 MIG")]

        assert [[0, 2], [1], [3], [4], [5]] == [[one.ordinal for one in group] for group in models(every)]

    def test_what_the_driver_sets_aside_makes_no_other_model(self) -> None:
        assert 1 == len(models([gpu(0), gpu(1, memory_bytes=24 * GIB - 200_000_000)]))

    def test_unlike_ones_are_refused_in_one_line_with_the_remedy(self, here: Callable[..., list[Gpu]]) -> None:
        here(gpu(0), gpu(1, "h200", 140 * GIB))

        with pytest.raises(UserError) as raised:
            one_model("all")
        assert (
            "--devices all: GPU 0 is NVIDIA L4 (58 SMs, sm_89, 24 GiB), GPU 1 is NVIDIA H200 (132 SMs, sm_90a, 140 GiB)"
            ": a study is of one model; name cards of one, or add --per-device for a study of each"
        ) == str(raised.value)


Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def run(
    tmp_path: Path,
    here: Callable[..., list[Gpu]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Run:
    """Runs the command line on stand-in workers, one a card: exit code, its document, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(judges, "WORKER", worker(tmp_path))
    (tmp_path / "studies").mkdir()
    empty_database(tmp_path / "studies" / "evoengine.db")
    shutil.copytree(HERE / "templates" / "axpb", tmp_path / "mine", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "mine" / "space.py").write_text(
        "from evoengine.space import Axis, SearchSpace\n"
        f"AXES = (Axis('BUG', (0,), 'b'), Axis('WORK', {tuple(range(10, 40))}, 'w'))\n"
        "SPACE = SearchSpace('many', AXES, (), {'BUG': 0, 'WORK': 10})\n"
    )

    def command(*arguments: str) -> tuple[int, dict[str, Any], str]:
        code = main([*arguments, "--json", "--jobs", "2"])
        said = capfd.readouterr()
        return code, json.loads(said.out or "{}"), said.err

    return command


def worker(folder: Path) -> Sequence[str]:
    return sys.executable, str(HERE / "fake_cuda_worker.py"), str(folder), "unused"


SEARCH = ("search", "--template", "mine", "--shape", "64", "--study", "first", "--sampler", "random", "--budget", "20")


def told(folder: Path, one: Gpu, **what: object) -> None:
    """What the stand-in for a card is told."""
    (folder / one.uuid).mkdir(exist_ok=True)
    for name, value in what.items():
        (folder / one.uuid / name).write_text(str(value))


def records(study: str = "first") -> list[Record]:
    with closing(Archive.open("studies/evoengine.db")) as archive:
        return archive.open_study(study).records()


def levels(found: list[Record]) -> set[float]:
    """The scales of a study's values: there must be one."""
    return {one.verdict.control_reference_us for one in found if isinstance(one.verdict, Measurement)}


def test_cards_of_one_model_share_a_study(run: Run, here: Callable[..., list[Gpu]], tmp_path: Path) -> None:
    every = here(gpu(0), gpu(1))
    told(tmp_path, every[0], level=10.0, pause=0.3)
    told(tmp_path, every[1], level=12.5, pause=0.3)
    code, document, err = run(*SEARCH, "--devices", "all", "--verbose")
    found = records()

    assert 0 == code
    assert "budget spent" == document["stopped"]
    assert {10.0} == levels(found)
    own = [one.verdict for one in found if one.twin_of is None and one.verdict is not None]
    by_card = {uuid: sum(one.evidence["card"] == uuid for one in own) for uuid in (every[0].uuid, every[1].uuid)}
    assert by_card == {row["card"]: row["judged"] for row in document["cards"]}
    assert all(by_card.values()), "each had its share"
    assert [10.0, 12.5] == [row["control_us"] for row in document["cards"]]
    for one in found:
        if isinstance(one.verdict, Measurement):  # its WORK over the default's, whoever timed it
            assert one.verdict.median_us == pytest.approx(one.config.values["WORK"], rel=0.01)
    assert set(by_card) == set(found[0].environment["cards"])
    assert f"card {every[1].uuid}: default config 12.50 us" in err
    assert f", on {every[1].uuid}" in err


def test_proposals_from_a_process_of_their_own_are_the_same(
    run: Run, here: Callable[..., list[Gpu]], monkeypatch: pytest.MonkeyPatch
) -> None:
    here(gpu(0), gpu(1))
    search = [*SEARCH, "--devices", "all", "--sampler", "evolution"]
    assert 0 == run(*search)[0]
    answers: list[bool] = []
    answer = ProposerProcess.answer

    def counted(proposer: ProposerProcess, *, wait: bool) -> Any:
        found = answer(proposer, wait=wait)
        answers.append(found is not None)
        return found

    monkeypatch.setattr(ProposerProcess, "answer", counted)
    monkeypatch.setattr(new_study, "CORES", 2)
    assert 0 == run(*search, "--study", "second")[0]

    assert [one.config for one in records()] == [one.config for one in records("second")]
    assert any(answers)


def test_a_proposing_process_that_is_killed_stops_a_search_that_can_go_on(
    run: Run, here: Callable[..., list[Gpu]], monkeypatch: pytest.MonkeyPatch
) -> None:
    here(gpu(0))
    monkeypatch.setattr(new_study, "CORES", 2)
    ask = ProposerProcess.ask

    def killed(proposer: ProposerProcess, seen: Any, n: int) -> None:
        known = list(seen)
        ask(proposer, known, n)
        if len(known) >= 16:
            assert proposer._process is not None
            proposer._process._child.kill()

    with monkeypatch.context() as patched:
        patched.setattr(ProposerProcess, "ask", killed)
        code, _, err = run(*SEARCH, "--devices", "0", "--sampler", "evolution", "--batch", "8")
    before = len(records())
    resumed, document, _ = run("resume", "first", "--devices", "0")

    assert (1, 0) == (code, resumed)
    assert "the process that proposes configs ended with code -9; then go on with: evoengine resume first" in err
    assert before < 20 == document["spent"]


def test_a_card_by_itself_goes_on_while_a_verdict_is_stored(
    run: Run, here: Callable[..., list[Gpu]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(gpu(0))
    commit, went_on = Study.commit, []

    def stored(study: Study, candidate: Candidate, *rest: Any, **options: Any) -> None:
        """Waits for the card to begin another job than those stored and the control's."""
        end, went = time.monotonic() + 2.0, False
        while not went and time.monotonic() < end:
            went = len((tmp_path / "best").read_text().splitlines()) > len(went_on) + 2
            time.sleep(0.02)
        went_on.append(went)
        commit(study, candidate, *rest, **options)

    monkeypatch.setattr(Study, "commit", stored)
    code, document, _ = run(*SEARCH, "--devices", "0", "--budget", "8")

    assert 0 == code
    assert 8 == document["verdicts"]["measured"] == len(went_on)
    assert any(went_on)


@pytest.mark.parametrize("shapes", [(), ("--shape", "128")])
def test_a_card_by_itself_is_not_spoken_of_as_one_of_several(
    run: Run, here: Callable[..., list[Gpu]], shapes: tuple[str, ...]
) -> None:
    here(gpu(0))
    code, document, err = run(*SEARCH, *shapes, "--devices", "all", "--verbose")
    found = records()

    assert 0 == code
    assert [] == document["cards"]
    assert not any("cards" in one.environment for one in found)
    assert not any("card" in one.verdict.evidence for one in found if one.verdict is not None)
    assert "GPU-" not in err
    assert 1 == len(levels(found))


def test_cards_share_a_study_of_several_shapes(run: Run, here: Callable[..., list[Gpu]], tmp_path: Path) -> None:
    every = here(gpu(0), gpu(1))
    told(tmp_path, every[0], level=10.0, pause=0.1)
    told(tmp_path, every[1], level=12.5, pause=0.1)
    code, document, _ = run(*SEARCH, "--shape", "128", "--devices", "all")
    found = records()

    assert 0 == code
    assert all(row["judged"] for row in document["cards"])
    assert {10.0} == {round(level, 9) for level in levels(found)}
    for one in found:
        if isinstance(one.verdict, Measurement):
            rows = on_shapes(one.verdict.evidence)
            assert 2 == len(rows)
            assert {10.0} == {row["control_reference_us"] for row in rows}, "on whichever card"
            assert all(row["median_us"] == pytest.approx(one.config.values["WORK"], rel=0.01) for row in rows)


def test_show_has_a_row_for_every_card(
    run: Run, here: Callable[..., list[Gpu]], capfd: pytest.CaptureFixture[str]
) -> None:
    every = here(gpu(0), gpu(1))
    run(*SEARCH, "--devices", "1,0", "--quiet")
    assert 0 == main(["show", "first"])
    out = capfd.readouterr().out

    assert "cards, each with its own control" in out
    assert [one.uuid for one in reversed(every)] == [word for word in out.split() if word.startswith("GPU-")]


def test_a_card_lost_in_a_search_costs_it_nothing(run: Run, here: Callable[..., list[Gpu]], tmp_path: Path) -> None:
    every = here(gpu(0), gpu(1), gpu(2))
    told(tmp_path, every[0], pause=0.5)
    told(tmp_path, every[1], lost_after=3)
    told(tmp_path, every[2], pause=0.5)
    code, document, err = run(*SEARCH, "--devices", "all")

    assert 0 == code
    assert "budget spent" == document["stopped"]
    assert 20 == document["spent"] == document["verdicts"]["measured"]
    assert f"card {every[1].uuid} is lost, going on with 2 cards" in err
    assert 2 == next(row["judged"] for row in document["cards"] if row["card"] == every[1].uuid), "one was the control"


def test_the_last_card_lost_stops_a_search_that_goes_on_with_those_that_are_left(
    run: Run, here: Callable[..., list[Gpu]], tmp_path: Path
) -> None:
    every = here(gpu(0), gpu(1))
    for one, level in zip(every, (10.0, 12.5), strict=True):
        told(tmp_path, one, level=level, lost_after=4)
    code, _, err = run(*SEARCH, "--devices", "all", "--quiet")
    before = [one for one in records() if one.verdict is not None]
    (tmp_path / every[1].uuid / "repaired").touch()
    (tmp_path / every[1].uuid / "lost_after").unlink()
    resumed, document, _ = run("resume", "first", "--devices", "1")

    assert (2, 0) == (code, resumed)
    assert "no card is left; the last was GPU-" in err
    assert "then go on with: evoengine resume first" in err
    assert 6 == len(before), "three jobs a card after the control's"
    assert 20 == document["spent"]
    assert {10.0} == levels(records()), "the scale of the study stays, on whichever card"


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("times", [1, 2])
def test_a_stopped_search_ends_soon_and_goes_on(
    run: Run, here: Callable[..., list[Gpu]], tmp_path: Path, times: int, count: int
) -> None:
    """After one Ctrl-C a verdict in flight is still committed; after two nothing is waited for."""
    every = here(*map(gpu, range(count)))
    pauses = [tmp_path / one.uuid / "pause" for one in every] if count > 1 else [tmp_path / "pause"]
    for pause in pauses:
        pause.parent.mkdir(exist_ok=True)
        pause.write_text("0.3" if times == 1 else "5.0")

    def stop() -> None:
        best = pauses[0].with_name("best")
        wait_for(lambda: best.exists() and len(best.read_text().splitlines()) > 1, "a candidate to be in flight")
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    stopper = threading.Thread(target=stop)
    stopper.start()
    code, _, err = run(*SEARCH, "--devices", "all")
    stopper.join()
    before = [one for one in records() if one.verdict is not None]
    for pause in pauses:
        pause.write_text("0")
    resumed, document, _ = run("resume", "first", "--devices", "all")

    assert (130, 0) == (code, resumed)
    assert "go on with: evoengine resume first" in err
    assert (1 if times == 1 else 0) <= len(before) < 20
    assert 20 == document["spent"] == len({one.config.digest for one in records() if one.twin_of is None})


def test_a_card_that_is_unfit_at_the_start_is_named(run: Run, here: Callable[..., list[Gpu]], tmp_path: Path) -> None:
    every = here(gpu(0), gpu(1))
    told(tmp_path, every[1], card=json.dumps([0.004, 40, 1]))
    code, _, err = run(*SEARCH, "--devices", "all", "--quiet")

    assert 2 == code
    assert f"card {every[1].uuid}: the card was 40 % busy before evoengine began" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--devices", "all"), "a study is of one model"),
        (("--devices", "0", "--device", "none"), "--device none --devices 0: give one of them"),
        (("--per-device",), "--per-device: say which cards with --devices"),
        (("--per-device", "--devices", "all", "--device", "cuda"), "give one of them"),
        (("--per-device", "--devices", "all", "--per-shape"), "--per-device --per-shape: give one of them"),
        (("--per-device", "--devices", "0,1,2"), "2 unlike models are called 'NVIDIA L4'"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_is_made(
    run: Run, here: Callable[..., list[Gpu]], options: tuple[str, ...], words: str
) -> None:
    here(gpu(0), gpu(1, "l40s"), gpu(2, memory_bytes=48 * GIB))
    code, _, err = run(*SEARCH, *options)

    assert 2 == code
    assert words in err
    assert 1 == len(err.splitlines())
    with closing(Archive.open("studies/evoengine.db")) as archive:
        assert [] == archive.studies()


def test_resume_refuses_cards_of_another_model(run: Run, here: Callable[..., list[Gpu]]) -> None:
    here(gpu(0), gpu(1), gpu(2, "l40s"))
    run(*SEARCH, "--devices", "0,1", "--quiet")
    code, _, err = run("resume", "first", "--devices", "2")

    assert 2 == code
    assert "study first is for NVIDIA L4, here is NVIDIA L40S" in err


class TestPerDevice:
    COMMAND = (*SEARCH, "--devices", "all", "--per-device")

    def test_every_model_has_a_study_of_its_own(self, run: Run, here: Callable[..., list[Gpu]]) -> None:
        every = here(gpu(0), gpu(1, "l40s"), gpu(2))
        code, document, err = run(*self.COMMAND)
        rows = document["devices"]

        assert 0 == code
        assert ["NVIDIA L4", "NVIDIA L40S"] == [row["device"] for row in rows]
        assert [[every[0].uuid, every[2].uuid], [every[1].uuid]] == [row["cards"] for row in rows]
        assert ["first-NVIDIA_L4", "first-NVIDIA_L40S"] == [row["study"] for row in rows]
        assert all(row["median_us"] and row["speedup_over_default"] for row in rows)
        assert ["device 1 of 2: NVIDIA L4", "device 2 of 2: NVIDIA L40S"] == [
            line for line in err.splitlines() if line.startswith("device ")
        ]

    def test_the_same_command_keeps_what_is_finished(
        self, run: Run, here: Callable[..., list[Gpu]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        here(gpu(0), gpu(1, "l40s"))
        run(*self.COMMAND)
        starts = [len(path.read_text().splitlines()) for path in tmp_path.glob("GPU-*/starts")]
        _, document, _ = run(*self.COMMAND)

        assert ["kept: budget spent"] * 2 == [row["state"] for row in document["devices"]]
        assert starts == [len(path.read_text().splitlines()) for path in tmp_path.glob("GPU-*/starts")]
        assert 0 == main([*self.COMMAND, "--jobs", "2", "--quiet"])
        out = capfd.readouterr().out
        assert all(word in out for word in ("a config for every model", "NVIDIA L4 ", "NVIDIA L40S", "kept"))


class TestInterrupt:
    @pytest.fixture
    def device(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CudaDevice:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        template = load_template(HERE / "templates" / "axpb")
        made = CudaDevice(
            template, template.module.PROBLEM(), card("l4"), uuid=gpu(0).uuid, seed=1, worker=worker(tmp_path)
        )
        made.start(candidate(0).config.values, ARTIFACT)
        return made

    def test_a_job_in_flight_ends_at_once_and_none_comes_after_it(self, device: CudaDevice, tmp_path: Path) -> None:
        ended: list[Exception] = []

        def judge() -> None:
            try:
                list(device.judge([(candidate(n, "hangs"), ARTIFACT) for n in (1, 2, 3)]))
            except EvoengineError as error:
                ended.append(error)

        thread = threading.Thread(target=judge)
        thread.start()
        best = tmp_path / gpu(0).uuid / "best"
        wait_for(lambda: len(best.read_text().splitlines()) == 2, "the worker to be in its first job")
        started = time.monotonic()
        device.interrupt()
        thread.join(30)
        took = time.monotonic() - started
        device.close()

        assert [True] == ["interrupted" in str(error) for error in ended]
        assert took < 10.0, "the job's own deadline is 10 s, its sleep 600"
        assert 1 == len((tmp_path / gpu(0).uuid / "starts").read_text().splitlines())


def test_a_worker_joins_with_all_its_cards(run: Run, here: Callable[..., list[Gpu]], tmp_path: Path) -> None:
    every = here(gpu(0), gpu(1))
    for one in every:
        told(tmp_path, one, pause=0.2)
    run(*SEARCH, "--devices", "0", "--seconds", "0.1", "--quiet")
    code, document, _ = run("worker", "--study", "first", "--devices", "all", "--until-done")
    found = records()

    assert 0 == code
    assert ["first"] == [visit["study"] for visit in document["studies"]]
    judged = {one.verdict.evidence.get("card") for one in found if one.verdict is not None}
    assert {one.uuid for one in every} <= judged
    assert 2 == run("worker", "--no-gpu", "--devices", "all")[0]
