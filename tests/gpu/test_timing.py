"""The timer on a real card: equal kernels stay equal, a clock written apart from it agrees, cold L2 shows."""

from __future__ import annotations

import statistics
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.trust.timing import AXPB, Built, Stand, _axpb_config, _faster_by, judged
from evoengine.confirm import MARGIN, compare, confidence
from evoengine.devices.cuda import Final, Finals, find_gpu
from evoengine.devices.cuda.results import ratio_interval
from evoengine.hardware import DeviceLimits
from evoengine.template import load_template

pytestmark = pytest.mark.gpu

WORK = 4000


@pytest.fixture(scope="module")
def limits() -> DeviceLimits:
    found = find_gpu()
    assert found is not None, "marked gpu: skipped where there is none"
    return found


@pytest.fixture(autouse=True)
def own_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Other modules' fixtures may hold the card's lock still."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture
def stand(limits: DeviceLimits) -> Stand:
    template = load_template(AXPB)
    return Stand(template, template.module.PROBLEM(), limits)


def finals_of(stand: Stand, control: Built, *others: Built) -> Finals:
    with closing(stand.device()) as device:
        device.start(*control.control)
        return device.finals([one.work(number) for number, one in enumerate(others, 1)], 7)


def test_a_config_is_not_faster_than_itself(stand: Stand) -> None:
    (built,) = stand.build([_axpb_config(WORK)])
    with closing(stand.device()) as device:
        device.start(*built.control)
        single = [judged(device, built, number) for number in range(1, 21)]
        finals = device.finals([built.work(number) for number in range(1, 9)], 7)
    raced = [final for _, final in finals.finalists]

    assert sum(_faster_by(one, MARGIN) for one in single) <= 1
    assert all(0.98 < one.ratio < 1.02 for one in single)
    assert all(one.evidence["half_width"] < 0.01 for one in single)
    for final in raced:
        assert isinstance(final, Final)
        low, _, high = ratio_interval(final.windows_us, finals.control.windows_us, 7, confidence(8))
        assert "SAME" == compare(low, high)


def test_a_time_too_good_is_confirmed_by_a_fresh_process(stand: Stand) -> None:
    default, half = stand.build([_axpb_config(WORK), _axpb_config(WORK // 2)])
    with closing(stand.device()) as device:
        device.start(*default.control)
        first, second = judged(device, half, 1), judged(device, half, 2)

    assert "rechecked" in first.flags
    assert "rechecked" not in second.flags, "as good as the best is no wonder any more"
    assert first.evidence["doubted_median_us"] == pytest.approx(first.evidence["confirmed_median_us"], rel=0.02)


def test_a_clock_written_apart_agrees(stand: Stand) -> None:
    works = {"10 us": WORK, "100 us": 8 * WORK}
    built = dict(zip(works, stand.build([_axpb_config(work) for work in works.values()]), strict=True))
    with closing(stand.device()) as device:
        setup = device.start(*built["10 us"].control)
        long = judged(device, built["100 us"], 1)
    clock = {name: statistics.median(times) for name, times in stand.clock(built, 40).items()}

    assert clock["10 us"] == pytest.approx(setup.control_us, rel=0.02)
    assert clock["100 us"] == pytest.approx(long.median_us, rel=0.02)


def test_what_waits_for_memory_is_slower_with_cold_l2(limits: DeviceLimits) -> None:
    """A quarter of L2 read and written a launch stays there while launches repeat; long computing hides the wait."""
    template = load_template(AXPB)
    rows = limits.l2_bytes // 1024  # of 256 bytes, half read and half written
    stand = Stand(template, template.module.PROBLEM(rows=rows), limits)  # type: ignore[call-arg]
    copying, computing = stand.build([_axpb_config(1), _axpb_config(WORK)])
    finals = finals_of(stand, copying, copying, computing)
    (_, one), (_, busy) = finals.finalists

    assert isinstance(one, Final)
    assert isinstance(busy, Final)
    assert one.cold_median_us is not None
    assert busy.cold_median_us is not None
    assert finals.cold_copies in (21, 22)
    assert 30 == len(one.cold_us) == len(busy.cold_us)
    assert one.cold_median_us > 1.03 * one.median_us
    assert busy.cold_median_us == pytest.approx(busy.median_us, rel=0.1)


def test_the_record_holds_the_cards_state(stand: Stand) -> None:
    (built,) = stand.build([_axpb_config(WORK)])
    with closing(stand.device()) as device:
        setup = device.start(*built.control)

    assert 0 <= setup.environment["other_load_percent"] <= 100
    if setup.environment["nvml"]:
        assert setup.environment["power_limit_w"] > 0
        for moment in ("before", "after"):
            clocks = setup.control.clocks[moment]
            assert clocks["sm_clock_mhz"] > 0
            assert clocks["temperature_c"] > 0
            assert clocks["clocks_set_by_user"] in (True, False)
            assert isinstance(clocks["slowed_by"], list)
