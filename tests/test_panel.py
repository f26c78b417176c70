"""What a running search shows, at the widths of real terminals."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from fakes import FakeGpu
from reported import measured, rows
from rich.console import Console
from rich.text import Text

from evoengine.cli.display import Display
from evoengine.cli.panel import Best, Rate, State, Workers, panel, plain, progress, sparkline, workers
from evoengine.progress import Budget
from evoengine.space import Config
from evoengine.verdict import Candidate, Estimate, Gate, Measurement, Rejection, Verdict

LABEL = "wm_2.rt_1.bn_512.wkv_2.st_1.pw_4.mb_0.un_0.ll_0.qr_1.ov_0.lr_0.sm_1.ms_1.ot_1.hf_0.sp_1.mc_1"


def state() -> State:
    made = State(Budget(200), measures=True, started=100.0, phase="judging on NVIDIA L4")
    made.spent, made.workers = 63, Workers(12, 2, [[64, 65]])
    made.gates.update({"measured": 60, "resources": 2, "correctness": 1})
    made.best, made.trail = Best(57, 4.151, 0.001, LABEL), [8.3, 6.1, 4.151]
    made.sdpa_us = 9.09
    made.clocks = {"sm_clock_mhz": 1980, "temperature_c": 39, "power_w": 71.6, "slowed_by": ["power cap"]}
    for second in range(11):
        made.built.add(110.0 + second)
    return made


def drawn(made: State, width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(panel(made, 121.0))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("width", [76, 80, 160])
def test_the_panel_fits_and_hides_nothing(width: int) -> None:
    text = drawn(state(), width)
    flat = "".join(text.split())

    assert max(len(line) for line in text.splitlines()) <= width
    assert "63/200  21 s, about 46 s left" in text
    assert "4.151 us ±0.1%  2.19x SDPA  #57" in text
    assert "█▅▁  8.30 → 4.15 us" in text
    assert "60 measured  2 resources  1 correctness" in text
    assert LABEL in flat
    assert [] == [token for token in LABEL.split(".") if token not in text]
    assert "2 of 2 compilers busy, 10 wait; card on #64+#65" in text
    assert "judgingonNVIDIAL4,1.0/sbuilt,0.0/sjudged,1980MHz39°C72W,slowedbypowercap" in flat


def test_the_wish_to_stop_stays_on_the_panel() -> None:
    console = Console(width=80, file=io.StringIO(), force_terminal=True)
    with Display(console, Budget(200), measures=True, quiet=False, verbose=False) as display:
        display.note_from_signal("stopping after the verdict in flight")
        display.phase("judging on NVIDIA L4")
        text = drawn(display._state, 80)

    assert "stopping after the verdict in flight" in text
    assert "judging" not in text


def test_an_estimate_is_called_one() -> None:
    made = state()
    made.measures, made.sdpa_us = False, None

    assert "4.15 us estimated, nothing measured  #57" in drawn(made, 80)
    assert "estimated, nothing measured" in plain(made, 121.0)
    assert "SDPA" not in plain(made, 121.0)


def test_before_anything_is_known_there_is_nothing_to_promise() -> None:
    text = drawn(State(Budget(200), measures=True, started=100.0), 80)

    assert "none yet" in text
    assert "left" not in text
    assert "workers" not in text


def test_a_count_stays_with_its_gate() -> None:
    made = state()
    made.gates.update({"measured": 480, "compile": 3, "resources": 40, "correctness": 2, "runtime": 1, "timeout": 1})
    lines = drawn(made, 80).splitlines()

    assert max(map(len, lines)) <= 80
    assert [] == [key for key, count in made.gates.items() if not any(f"{count} {key}" in line for line in lines)]


@pytest.mark.parametrize(
    ("budget", "spent", "now", "line"),
    [
        (Budget(200), 63, 121.0, "63/200  21 s, about 46 s left"),
        (Budget(200, 30.0), 63, 121.0, "63/200  21 s, about 9 s left"),
        (Budget(200, 3600.0), 2, 121.0, "2/200  21 s, at most 60 min left"),
        (Budget(200, None, True), 63, 121.0, "63/200  21 s, at most 46 s left"),
        (Budget(2000), 1000, 7300.0, "1000/2000  2.0 h, about 2.0 h left"),
        (Budget(200), 220, 121.0, "220/200  21 s, about 0 s left"),
    ],
)
def test_what_is_left_heeds_candidates_time_and_convergence(budget: Budget, spent: int, now: float, line: str) -> None:
    made = state()
    made.budget, made.spent = budget, spent

    assert line == progress(made, now)


@pytest.mark.parametrize(
    ("at", "measures", "line"),
    [
        (Workers(), True, ""),
        (Workers(1, 4, [[]]), True, "1 of 4 compilers busy"),
        (Workers(0, 2, [[7], [], [8, 9]]), True, "cards on #7 - #8+#9"),
        (Workers(2, 2, [[7]]), False, "2 of 2 compilers busy; interpreter on #7"),
    ],
)
def test_every_worker_says_what_it_is_at(at: Workers, measures: bool, line: str) -> None:
    made = state()
    made.workers, made.measures = at, measures

    assert line == workers(made)


def test_the_panels_clock_goes_on_by_itself() -> None:
    """While the default config is proven, or a compile hangs, nothing else calls."""
    console = Console(width=80, file=io.StringIO(), force_terminal=True)
    with Display(console, Budget(200), measures=True, quiet=False, verbose=False) as display:
        display._state.started -= 5.0
        display.phase("proving the default config")
        assert display._live is not None
        display._live.refresh()
    text = console.file.getvalue()  # type: ignore[attr-defined]

    assert "0/200  5 s" in text
    assert 78 >= max(len(line) for line in Text.from_ansi(text).plain.splitlines()), "^C must not begin a new line"


def test_a_resumed_study_is_shown_whole() -> None:
    beaten = Measurement((2.0,), (8.0,), 8.0, 10, "warm", "beaten")
    known = rows(measured(9.0), Rejection(Gate.RESOURCES, "spills"), measured(5.0), beaten, Estimate(1.0), None)
    twin = replace(known[2], number=6, twin_of=2)
    display = Display(Console(file=io.StringIO()), Budget(60), measures=True, quiet=False, verbose=False)
    display.continues([*known, twin])
    made = display._state

    assert (5, 5) == (made.spent, made.spent_before)
    assert {"measured": 4, "resources": 1} == dict(made.gates)
    assert made.best is not None
    assert (2, 5.0, [9.0, 5.0, 5.0]) == (made.best.number, made.best.us, made.trail)
    assert 0 == display.verdicts
    assert "5/60  0 s" == progress(made, made.started)

    display.judged(Candidate(7, Config((("A", 1),), "a_1"), "model"), measured(4.0), None, 6)
    assert (6, 1, 4.0) == (made.spent, display.verdicts, made.best.us)
    assert 5 == made.gates["measured"]


@pytest.mark.parametrize(
    ("values", "line"),
    [([], ""), ([5.0], "▁"), ([4.0, 4.0], "▁▁"), ([8.0, 4.0, 2.0, 1.0], "█▆▃▁"), ([9, 8, 1, 1], "█▁")],
)
def test_a_sparkline_ends_with_the_last_value(values: list[float], line: str) -> None:
    assert line == sparkline(values, 2 if len(line) == 2 else 8)


def test_a_rate_forgets_what_is_long_ago() -> None:
    rate = Rate()
    assert 0.0 == rate.per_second(5.0)
    rate.add(0.0)
    assert 1.0 == rate.per_second(1e-6)  # not a million a second
    for second in range(100):
        rate.add(float(second))

    assert 1.0 == pytest.approx(rate.per_second(99.0), rel=0.06)
    assert 0.0 == rate.per_second(200.0)


def play(verbose: bool, quiet: bool) -> str:
    console = Console(width=100, file=io.StringIO(), markup=False)
    verdicts: list[Verdict] = [
        Measurement((4.0,) * 3, (8.0,) * 3, 8.0, 10, "warm", "converged"),
        Measurement((2.0,), (8.0,), 8.0, 10, "warm", "beaten"),
        Rejection(Gate.CORRECTNESS, "error too large"),
        Estimate(3.0),
    ]
    with Display(console, Budget(4), measures=True, quiet=quiet, verbose=verbose) as display:
        display.set_up(FakeGpu().start({"TILE": 64, "UNROLL": 4, "GRID": 1}, None))  # type: ignore[arg-type]
        display.phase("judging")
        for number, verdict in enumerate(verdicts):
            display.judged(Candidate(number, Config((("A", 1),), "a_1"), "model"), verdict, None, number + 1)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_plain_lines_are_few_and_verbose_has_one_for_every_verdict() -> None:
    assert 1 == play(verbose=False, quiet=False).count("/4")
    assert ["#0 a_1 [model] 4.000 us, noise 0.0%, converged", "#2 a_1 [model] correctness: error too large"] == [
        line for line in play(verbose=True, quiet=False).splitlines() if line.startswith(("#0", "#2"))
    ]
    assert "" == play(verbose=False, quiet=True)
