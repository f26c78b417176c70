"""Several real cards as one judge; all but the first test need two of one model."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evoengine.build import Builder, BuildRequest
from evoengine.cli import main
from evoengine.cli.cards import models
from evoengine.devices.cuda import CudaDevice, Gpu, find_gpu, find_gpus
from evoengine.devices.fleet import Fleet
from evoengine.devices.pool import Card
from evoengine.errors import EvoengineError
from evoengine.space import Config
from evoengine.template import load_template
from evoengine.verdict import Artifact, Candidate, Measurement, Rejection

pytestmark = pytest.mark.gpu

AXPB = Path(__file__).resolve().parent.parent / "templates" / "axpb"
NOWHERE = "GPU-00000000-0000-0000-0000-000000000000"

Job = tuple[Candidate, Artifact]


@pytest.fixture(scope="module")
def pair() -> list[Gpu]:
    """Two cards of one model."""
    group = max(models(find_gpus()), key=len)
    if len(group) < 2:
        pytest.skip("needs two GPUs of one model")
    return group[:2]


@pytest.fixture(scope="module")
def job() -> Iterator[Callable[..., Job]]:
    """Makes built candidates by bug and dependent multiply-adds a thread."""
    template = load_template(AXPB)
    found = find_gpu()
    assert found is not None, "marked gpu: skipped where there is none"
    problem, module = template.module.PROBLEM(), template.module
    with Builder(template, found.arch) as builder:

        def make(number: int, work: int = 4000, bug: str = "none") -> Job:
            bugs: tuple[str, ...] = module.BUGS  # type: ignore[attr-defined]
            config = Config((("BUG", bugs.index(bug)), ("WORK", work)), f"bug_{bug}.work_{work}")
            defines = module.defines(config.values, problem)
            (built,) = builder.build([BuildRequest(defines, module.launch(config.values, problem).smem_bytes)])
            assert isinstance(built, Artifact), built
            return Candidate(number, config, "random"), built

        yield make


def device(gpu: Gpu, scratch: Path, uuid: str | None = None) -> CudaDevice:
    template = load_template(AXPB)
    return CudaDevice(
        template, template.module.PROBLEM(), gpu.limits, uuid=uuid or gpu.uuid, scratch=scratch, seed=3, force=True
    )


class Bench:
    def __init__(self, pair: list[Gpu], scratch: Path, job: Callable[..., Job]) -> None:
        self.notes: list[str] = []
        self.devices = [device(gpu, scratch) for gpu in pair]
        cards = [Card(gpu.uuid, one) for gpu, one in zip(pair, self.devices, strict=True)]
        self.fleet = Fleet(pair[0].limits.name, cards, self.notes.append)
        default, artifact = job(0)
        self.setup = self.fleet.start(default.config.values, artifact)


@pytest.fixture
def bench(pair: list[Gpu], tmp_path: Path, job: Callable[..., Job]) -> Iterator[Bench]:
    made = Bench(pair, tmp_path, job)
    yield made
    made.fleet.close()


def test_every_card_is_found_by_cudas_number_and_its_own_name(tmp_path: Path, job: Callable[..., Job]) -> None:
    found = find_gpus()

    assert list(range(len(found))) == [gpu.ordinal for gpu in found]
    assert len(found) == len({gpu.uuid for gpu in found})
    assert [find_gpu(gpu.ordinal) for gpu in found] == [gpu.limits for gpu in found]
    default, artifact = job(0)
    with device(found[-1], tmp_path) as made:
        assert found[-1].uuid == made.start(default.config.values, artifact).environment["uuid"]
    with device(found[-1], tmp_path, NOWHERE) as made, pytest.raises(EvoengineError, match=f"{NOWHERE} is not here"):
        made.start(default.config.values, artifact)


def test_two_cards_agree_and_share_the_work(bench: Bench, pair: list[Gpu], job: Callable[..., Job]) -> None:
    times = {2 * n + k: 4000 + 400 * n for n in range(12) for k in (0, 1)}
    work = [job(number, work) for number, work in times.items()]
    judged = {one.number: verdict for one, verdict in bench.fleet.judge([*work, job(99, bug="writes nothing")])}

    assert isinstance(judged.pop(99), Rejection)
    assert {gpu.uuid for gpu in pair} == {verdict.evidence["card"] for verdict in judged.values()}
    level = bench.setup.control_us
    for number, verdict in judged.items():
        assert isinstance(verdict, Measurement)
        assert level == verdict.control_reference_us
        # a fixed part and one that grows with the work, on whichever card
        assert times[number] / 4000 == pytest.approx(verdict.ratio, rel=0.25)
    same = [(judged[n], judged[n + 1]) for n in times if n % 2 == 0]
    gaps = [a.median_us / b.median_us - 1 for a, b in same if isinstance(a, Measurement) and isinstance(b, Measurement)]
    assert abs(statistics.median(gaps)) < 0.01
    assert [] == bench.notes


def test_two_cards_judge_nearly_twice_as_fast(
    bench: Bench, pair: list[Gpu], tmp_path: Path, job: Callable[..., Job]
) -> None:
    work = [job(n, 4000 + 10 * n) for n in range(60)]  # none so fast that it is doubted
    default, artifact = job(0)
    with device(pair[0], tmp_path) as alone:
        bench.fleet.close()
        alone.start(default.config.values, artifact)
        one = _seconds(lambda: list(alone.judge(work)))
    bench.fleet.start(default.config.values, artifact)
    two = _seconds(lambda: list(bench.fleet.judge(work)))

    assert one / two >= 1.8


def test_a_card_that_goes_costs_nothing_but_time(bench: Bench, pair: list[Gpu], job: Callable[..., Job]) -> None:
    """Its worker ends, and no other finds it: as when it falls off the bus."""
    gone = bench.devices[1]._session
    gone.stop()
    gone.workers.command = (*gone.workers.command[:-1], NOWHERE)
    work = [job(n, 4000 + 100 * n) for n in range(12)]
    judged = {one.number: verdict.evidence["card"] for one, verdict in bench.fleet.judge(work)}

    assert dict.fromkeys(range(12), pair[0].uuid) == judged
    assert [f"card {pair[1].uuid} is lost, going on with 1 card and what it had in flight"] == [
        note.partition(": ")[0] for note in bench.notes
    ]


def test_a_search_on_all_cards(
    pair: list[Gpu], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    devices = ",".join(gpu.uuid for gpu in pair)
    code = main(["search", "--budget", "24", "--devices", devices, "--json", "--quiet", "--force"])
    document = json.loads(capsys.readouterr().out)

    assert 0 == code
    assert [gpu.uuid for gpu in pair] == [row["card"] for row in document["cards"]]
    assert all(row["judged"] for row in document["cards"])
    assert document["elites"]


def _seconds(do: Callable[[], object]) -> float:
    started = time.monotonic()
    do()
    return time.monotonic() - started
