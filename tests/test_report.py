"""Reports: the numbers of `show`, every plot valid and drawn in a browser, nothing that a study holds ever runs."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import reported
from reported import STATES, facts_of, measured_study, state

from evoengine.errors import UserError
from evoengine.hardware import card
from evoengine.report import device_plots, knob_plots, search_plots, tables
from evoengine.report.facts import Facts
from evoengine.report.markdown import render_markdown
from evoengine.report.page import render_page
from evoengine.report.paper import draw_figure
from evoengine.report.roofline import roofline
from evoengine.report.style import Plot, apart, log_ticks
from evoengine.space import Axis
from evoengine.verdict import Gate, Rejection

PLOTS: tuple[Callable[[Facts], Plot], ...] = (
    device_plots.finalists,
    search_plots.curve,
    search_plots.funnel,
    knob_plots.weights,
    knob_plots.slices,
    knob_plots.coordinates,
    device_plots.resources,
    roofline,
)
NOTHING = "window.Plotly = { react() {} }"
"""Stands for plotly.js where a test is not about drawing."""
MISSING = "not installed: pip install -c constraints.txt -e '.[report]'"
MALICE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">`|\n$x$ **b** @p0"


class Reader(HTMLParser):
    """The tags and attributes of a page as a browser meets them, and the text of every table cell and script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.cells: list[str] = []
        self.scripts: dict[str | None, str] = {}
        self._inside: list[str] = []
        self._script: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self._script = dict(attrs).get("id") if tag == "script" else None
        self._inside.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._inside and self._inside[-1] == "td":
            self.cells[-1] += data
        elif self._inside and self._inside[-1] == "script":
            self.scripts[self._script] = data


@pytest.fixture(scope="module")
def thousand() -> Facts:
    return facts_of(measured_study(1000))


@pytest.fixture(scope="module")
def plotly() -> str:
    return str(pytest.importorskip("plotly.offline", reason=MISSING).get_plotlyjs())


class TestPage:
    def test_holds_the_document_that_show_prints_and_its_numbers_in_tables(self, thousand: Facts) -> None:
        read = Reader(render_page(thousand, NOTHING))
        (first, *_) = thousand.summary["elites"]
        shown = (f"{first['median_us']:.3f}", f"{1 / first['ratio_to_default']:.2f}x", f"{first['ratio_to_sdpa']:.2f}x")

        assert json.loads(json.dumps(thousand.summary)) == json.loads(read.scripts["summary"])
        assert set() == {str(first["trial"]), str(first["registers"]), *shown} - set(read.cells)
        assert "does not run here: no kernel here" in read.cells

    def test_of_a_thousand_trials_is_under_6_mb(self, thousand: Facts, plotly: str) -> None:
        assert len(render_page(thousand, plotly).encode()) < 6e6

    def test_takes_time_in_proportion_to_the_trials(self, thousand: Facts) -> None:
        def seconds(facts: Facts) -> float:
            spent = []
            for _ in range(3):
                started = time.process_time()
                render_page(replace(facts), NOTHING)
                spent.append(time.process_time() - started)
            return min(spent)

        assert seconds(thousand) < 10 * seconds(facts_of(measured_study(200)))

    def test_asks_the_network_for_nothing(self, thousand: Facts) -> None:
        page = render_page(thousand, NOTHING)

        assert set() == {"src", "href", "action", "data", "poster"} & Reader(page).attributes
        assert [] == re.findall(r"url\(|@import|https?://", page)
        assert "default-src 'none'" in page

    def test_says_of_estimates_that_they_are_estimates(self) -> None:
        page = render_page(state("estimated"), NOTHING)

        assert '<html lang="en" class="estimated">' in page
        assert "<strong>ESTIMATED.</strong> Nothing here was timed." in page
        assert "Nothing was measured, and an estimate reaches no rate." in page

    def test_a_text_of_the_study_is_shown_and_not_obeyed(self) -> None:
        read = Reader(render_page(malicious(), NOTHING))

        assert ["script"] * 4 == [tag for tag in read.tags if tag in ("script", "img", "iframe", "b")]
        assert {"lang", "charset", "http-equiv", "content", "name", "class", "id", "style", "type"} == read.attributes
        assert MALICE in read.cells


class TestFunnel:
    def test_counts_what_met_each_gate_and_what_it_refused(self) -> None:
        assert [
            ("static", 7, 1),
            ("compile", 6, 4),
            ("resources", 2, 1),
            ("twin", 1, 0),
            ("correctness", 1, 0),
            ("runtime", 1, 0),
            ("timeout", 1, 1),
            ("passed", 0, 0),
        ] == state("all refused").funnel()

    def test_leaves_out_what_is_in_flight(self) -> None:
        assert ("static", 2, 0) == state("interrupted").funnel()[0]

    @pytest.mark.parametrize(
        ("name", "end"),
        [
            ("estimated", ("estimated", 30, 0)),
            ("estimated and measured", ("passed", 3, 0)),
            ("twins", ("measured", 2, 0)),
        ],
    )
    def test_ends_in_what_was_measured_or_estimated(self, name: str, end: tuple[str, int, int]) -> None:
        assert end == state(name).funnel()[-1]


def test_best_so_far_counts_what_worth_counts(thousand: Facts) -> None:
    places, times = thousand.best_so_far()
    worth = thousand.summary["worth"]

    assert (worth["best_us"], worth["evaluations"]) == (times[-1], places[-1])
    assert sorted(times, reverse=True) == times
    assert worth["evaluations_to_1_percent"] in places


def test_random_searchs_curve_ends_at_its_expectation(thousand: Facts) -> None:
    random = thousand.summary["worth"]["random"]
    counts = [count for count, _ in random["curve"]]
    times = [us for _, us in random["curve"]]

    assert (1, random["evaluations"], random["best_us"]) == (counts[0], counts[-1], times[-1])
    assert sorted(times, reverse=True) == times
    assert len(set(counts)) == len(counts) < 60


def test_knobs_come_the_heaviest_first(thousand: Facts) -> None:
    weights = {one["knob"]: one["weight"] for one in thousand.summary["worth"]["knobs"]["importance"]}
    ranked = [weights[axis.name] for axis in thousand.knobs]

    assert sorted(ranked, reverse=True) == ranked
    assert 101 > len(thousand.fast) > 90


def test_limits_are_those_that_the_gates_keep(thousand: Facts) -> None:
    plot = device_plots.resources(replace(thousand, limits=card("l4")))
    assert plot.figure is not None

    assert {"limit 255", "limit 99"} <= {one["text"] for one in plot.figure["layout"]["annotations"]}
    assert plot.caption.startswith("Limits of NVIDIA L4")


def test_the_roofline_says_what_no_kernel_can_beat(thousand: Facts) -> None:
    best = thousand.best
    assert best is not None
    rate = reported.PROBLEM.flops / best["median_us"] / 1e6 / 989

    assert (
        f"The best takes {best['median_us']:.3f} µs, {rate:.0%} of the tensor cores' rate."
        in roofline(thousand).caption
    )
    assert "Not drawn: the rates of NVIDIA H200 are not known." == roofline(replace(thousand, device=None)).caption


def test_a_line_is_seen_where_a_grid_line_is(thousand: Facts) -> None:
    """The default config is at 1.0, where the grid has a line too."""
    plot = device_plots.finalists(thousand)
    assert plot.figure is not None
    lines = plot.figure["layout"]["shapes"]

    assert ["above"] == [one["layer"] for one in lines if one["x0"] == 1.0]


def test_intervals_are_those_of_the_final_run(thousand: Facts) -> None:
    plot = device_plots.finalists(thousand)
    (low, high) = thousand.summary["elites"][0]["ratio_to_default_95"]
    assert plot.figure is not None
    points = plot.figure["data"][0]

    assert 1 / high == pytest.approx(points["x"][0] - points["error_x"]["arrayminus"][0])
    assert 1 / low == pytest.approx(points["x"][0] + points["error_x"]["array"][0])


class TestEveryState:
    @pytest.mark.parametrize("name", STATES)
    def test_is_drawn_with_valid_figures_or_a_reason(self, name: str) -> None:
        known = pytest.importorskip("plotly.graph_objects", reason=MISSING)
        for draw in PLOTS:
            plot = draw(state(name))
            assert plot.caption
            assert plot.figure is None or known.Figure(plot.figure).data

    @pytest.mark.parametrize("name", STATES)
    def test_is_a_page_and_tables(self, name: str) -> None:
        assert "</html>" in render_page(state(name), NOTHING)
        assert render_markdown(state(name)).startswith("## mission\n")

    @pytest.mark.parametrize("name", STATES)
    def test_is_a_figure_for_a_paper(self, name: str) -> None:
        pytest.importorskip("matplotlib", reason=MISSING)

        assert draw_figure(state(name)).startswith(b"\x89PNG")

    @pytest.mark.parametrize(
        ("name", "answer"),
        [
            ("nothing judged", "No config was judged yet."),
            ("one config", "Trial 0 takes 5.000 µs a launch, 1.67 times as fast as the default config"),
            ("all refused", "No config passed every gate."),
            ("no finalists", "no final run has confirmed it."),
            ("no significant winner", "No finalist is significantly faster than the default config: keep the default."),
            ("estimated", "Nothing was measured. Trial 0 has the lowest estimate, 10.00 µs"),
        ],
    )
    def test_has_its_answer(self, name: str, answer: str) -> None:
        assert answer in render_page(state(name), NOTHING)
        assert answer in render_markdown(state(name))


class TestMarkdown:
    def test_tables_keep_their_columns_and_texts_are_literal(self) -> None:
        text = render_markdown(malicious())
        sizes = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("| compile")}

        assert {5} == sizes
        prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))  # the rest is code
        assert "<script" not in prose
        assert "&lt;img src=x onerror=" in prose
        assert "@p0" not in prose

    def test_holds_the_finalists(self, thousand: Facts) -> None:
        first = thousand.summary["elites"][0]

        assert f"| {first['trial']} | {first['median_us']:.3f} | 1.2% |" in render_markdown(thousand)

    def test_rejections_are_cut_with_a_word_on_the_rest(self) -> None:
        refused = [Rejection(Gate.COMPILE, f"reason {'x' * at}") for at in range(tables.REASONS + 3)]
        table = tables.rejections(facts_of(reported.PaperStudy(reported.spec(), reported.rows(*refused))))

        assert (tables.REASONS, "3 more for 3 other reasons.") == (len(table.rows), table.note)


class TestCards:
    ENVIRONMENT: Mapping[str, Any] = {
        "gpu": "NVIDIA H200",
        "cards": {
            "GPU-1": {"control_us": 8.0, "noise": 0.004, "baselines_us": {"sdpa": 9.0}, "differs": {}},
            "GPU-2 <b>": {
                "control_us": 8.25,
                "noise": 0.011,
                "baselines_us": {},
                "differs": {"clocks": {"power_w": 3}},
            },
        },
    }

    def facts(self, environment: Mapping[str, Any]) -> Facts:
        study = measured_study(12)
        uuids = ["GPU-1", "GPU-2 <b>", "GPU-1"]
        known = [
            replace(
                one,
                environment=environment,
                verdict=one.verdict and replace(one.verdict, evidence={"card": uuids[one.number % 3]}),
            )
            for one in study.known
        ]
        return facts_of(replace(study, known=known))

    def test_of_a_search_on_several_have_a_row_each(self) -> None:
        facts = self.facts(self.ENVIRONMENT)
        rows = tables.cards(facts).rows

        assert [["GPU-1", "8", "8.000", "0.4%"], ["GPU-2 <b>", "4", "8.250", "1.1%"]] == [
            [row[0], row[1], *row[3:]] for row in rows
        ]
        assert "| GPU-2 &lt;b&gt; | 4 |" in render_markdown(facts)
        assert "<td>GPU-2 &lt;b&gt;</td>" in render_page(facts, NOTHING)
        assert [{}, {"clocks": {"power_w": 3}}] == [row["differs"] for row in facts.summary["cards"]]

    def test_of_a_search_on_one_have_none(self) -> None:
        assert [] == tables.cards(facts_of(measured_study(3))).rows

    @pytest.mark.parametrize(
        "cards",
        [7, ["GPU-1"], {"GPU-1": 8.0}, {"GPU-1": {}}, {"GPU-1": {**ENVIRONMENT["cards"]["GPU-1"], "noise": "x"}}],
    )
    def test_of_a_damaged_study_are_refused_in_one_line(self, cards: Any) -> None:
        with pytest.raises(UserError, match=r"^study mission is damaged \(.*\): start a new search$"):
            self.facts({"cards": cards})


class TestBrowser:
    def test_draws_every_plot_without_an_error(self, thousand: Facts, plotly: str, tmp_path: Path) -> None:
        dom, errors = browse(render_page(thousand, plotly), tmp_path)
        plots = re.findall(r'<div class="plot js-plotly-plot" id="(\w+)"', dom)

        assert [] == errors
        assert sorted(draw(thousand).id for draw in PLOTS) == sorted(plots)
        assert dom.count('class="main-svg"') >= 2 * len(plots)
        assert dom.count("<canvas") >= 3  # parallel coordinates: context, focus and pick layer
        assert "WebGL is not supported" not in re.sub(r"<script>.*?</script>", "", dom, flags=re.DOTALL)

    def test_runs_nothing_that_a_study_holds_nor_what_slipped_through(self, plotly: str, tmp_path: Path) -> None:
        page = render_page(malicious(), plotly)
        dom, errors = browse(page.replace("<h2>Search</h2>", MALICE, 1), tmp_path)

        assert "<title>owned</title>" not in dom
        assert {"Content Security Policy"} == {re.findall("Content Security Policy|$", error)[0] for error in errors}
        assert '<div class="plot js-plotly-plot" id="slices"' in dom


class TestStyle:
    @pytest.mark.parametrize(
        ("low", "high", "ticks"),
        [
            (4.0, 33.0, [5, 7, 10, 15, 20, 30]),
            (11.2, 17.0, [12, 13, 14, 15, 16, 17]),
            (11.2, 11.25, [11.2, 11.21, 11.22, 11.23, 11.24, 11.25]),
            (1.0, 1000.0, [1, 3, 10, 30, 100, 300, 1000]),
        ],
    )
    def test_ticks_are_round_and_few(self, low: float, high: float, ticks: list[float]) -> None:
        assert ticks == log_ticks(low, high)

    def test_labels_keep_apart_and_in_order(self) -> None:
        places = apart({"a": 1.0, "b": 1.1, "c": 1.05, "d": 9.0}, 1.0)
        moved = sorted(places.values())

        assert ["a", "c", "b", "d"] == sorted(places, key=lambda name: places[name])
        assert all(after - before > 0.99 for before, after in itertools.pairwise(moved))
        assert 9.0 == places["d"]


def malicious() -> Facts:
    """A study whose every text is an attack: its name, reasons, knobs, command, toolchain."""
    study = measured_study(60, name=MALICE, toolchain=MALICE, command=MALICE, problem_label=MALICE)
    axes = tuple(replace(axis, names=tuple(f"{MALICE}{choice}" for choice in axis.choices)) for axis in study.spec.axes)
    study.spec = replace(study.spec, axes=axes)
    study.known = [*study.known, replace(reported.rows(Rejection(Gate.COMPILE, MALICE))[0], number=60)]
    study.competitors = [*study.competitors, replace(study.competitors[0], name=MALICE)]
    return facts_of(study)


def browse(page: str, folder: Path) -> tuple[str, list[str]]:
    """The document after its scripts have run, and what the console complained of. Skips without a browser."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on PATH: apt install chromium")
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    quiet = ["quic", "background-networking", "component-update", "sync", "default-apps", "extensions"]
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader", "--no-first-run",
        *(f"--disable-{what}" for what in quiet), f"--user-data-dir={folder / 'profile'}", "--window-size=1280,4000",
        "--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run([browser, *options], capture_output=True, text=True, timeout=180, check=False)
    assert 0 == done.returncode, done.stderr[-2000:]
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "GL Driver Message" not in line]
    return done.stdout, said


def test_a_default_axis_is_shown_by_name() -> None:
    axis = Axis("LAYOUT", (0, 2), "l", ordered=False, names=("plain", "xor"))
    row: dict[str, Any] = {"config": {"LAYOUT": 2}}
    facts = replace(state("one config"), axes=(axis,), default={"LAYOUT": 0})

    assert {"LAYOUT": "xor"} == facts.changed(row)


def test_what_is_wider_than_a_phone_scrolls_by_itself(plotly: str) -> None:
    page = render_page(facts_of(measured_study(40)), plotly)
    drawn = re.findall(r'class="plot" id="(\w+)"', page)

    assert 8 == len(drawn)
    assert drawn == re.findall(r'<div class="scroll"><div class="plot" id="(\w+)"', page)
    for table in ("elites", "measured", "shortlist", "profiles"):
        wide = rf"#table-{table} td:last-child[^{{}}]*{{ min-width: 38ch; }}"
        assert re.search(wide, page), "its sentences would be a word wide"
