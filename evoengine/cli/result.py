"""How a study's result looks: the table of configs, the baselines, the verdicts by gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.text import Text

from evoengine.archive.records import Record
from evoengine.archive.study import Study
from evoengine.cli.tables import Label, console, labelled, say, table
from evoengine.cli.toolkit import show_profiles, show_sanitized
from evoengine.cli.worth import show_worth
from evoengine.confirm import MARGIN
from evoengine.question import Question
from evoengine.summary import summarise
from evoengine.verdict import Gate
from evoengine.worth import per_elite, worth

REASONS = 8
"""Rows of the table of rejections; `--json` has them all."""


class Hindsight:
    """What the search of a study was `worth`: reckoned once, anew only where a verdict has changed since."""

    def __init__(self, question: Question, study: Study) -> None:
        self._question = question
        self._study = study
        self._records: Sequence[Record] | None = None
        self._found: dict[str, Any] | None = None

    def begin(self) -> None:
        """Reckon, of what the database holds by now: 2.6 s on a slow core of a machine with scikit-learn, which Optuna
        imports with its evaluators of importance."""
        self.of(self._study.records(), 0)

    def of(self, records: Sequence[Record], elites: int) -> dict[str, Any] | None:
        if records != self._records:
            question, spec = self._question, self._study.spec
            fresh = question.space.digest == spec.space_digest and question.template.digest == spec.template_digest
            searched = (lambda: (question.space, question.feasible)) if fresh else None
            self._found, self._records = worth(records, elites, spec.axes, searched, spec.seed), records
        return self._found and {**self._found, **per_elite(self._found["evaluations"], elites)}


def summary_of(
    question: Question, study: Study, records: Sequence[Record], top: int, hindsight: Hindsight | None = None
) -> dict[str, Any]:
    """The study and its `records` as one JSON document, with what its search was `worth`.

    Of a converged study that takes over a second: `summarise` alone will do where nobody asks for the worth.
    """
    found = (hindsight or Hindsight(question, study)).of(records, len(study.elites()))
    return {**summarise(study, records, question.launches(records), question.limits, top), "worth": found}


def show_result(summary: dict[str, Any]) -> None:
    out = console()
    out.print(f"\n{summary['study']}  ({summary['stopped']})" if "stopped" in summary else f"\n{summary['study']}")
    out.print(f"{summary['template']} {summary['shape']} on {summary['device']}, limits of {summary['limits']}")
    for one in summary.get("shapes", ()):
        out.print(f"shape {one['shape']}, weight {one['weight']:g}")
    out.print(f"{summary['spent']} of {summary['budget']} candidates: {_counts(summary['verdicts'])}")
    for source in summary["sources"]:
        where = f"{source['problem']} on {source['device']}"
        out.print(f"known beforehand: {source['name']}, {where}, {source['known']} configs")
    if summary["free"]:
        out.print(f"free of charge: {_counts(summary['free'])}")
    if summary["rejections"]:
        _rejections(summary["rejections"])
    if summary["elites"]:
        _configs("confirmed in the final run", summary["elites"], "median_us")
        out.print(Text(f"winner: {summary['winner']}", "bold"))
        _explain(summary)
        _on_shapes(summary["elites"])
        show_sanitized(summary["elites"])
        show_profiles(summary["elites"])
    elif summary["measured"]:
        _configs("measured in the search, not confirmed by a final run", summary["measured"], "median_us")
        _on_shapes(summary["measured"])
    if summary["shortlist"]:
        _configs("shortlist: ESTIMATED, not measured", summary["shortlist"], "estimated_us")
        out.print(
            Text(
                "Nothing here was timed. These configs compile, fit and compute the right answer in the PTX "
                "interpreter; the order is a model's guess.\nResume the study on a machine with the card to measure "
                "them.",
                "magenta",
            )
        )
    if summary["baselines"]:
        _baselines(summary["baselines"])
    if summary.get("cards"):  # a document of before there were any has none
        _cards(summary["cards"])
    if summary["worth"]:
        show_worth(summary["worth"])
    if "rejudged" in summary:
        _rejudged(summary["rejudged"])


def _explain(summary: dict[str, Any]) -> None:
    """What the verdicts rest on, and the default config's own time in the run that they come from."""
    level, default = summary["elites"][0]["verdict_confidence"], summary["default"]["median_us"]
    if level is None or default is None:
        return
    cold = summary["default"]["cold_median_us"]
    also = "" if cold is None else f", {cold:.3f} us with cold L2"
    say(console(), f"default config in the same run: {default:.3f} us{also}")
    say(
        console(),
        f"FASTER, SLOWER: by more than {MARGIN:.0%} over the whole {level:.2%} interval of the ratio, which makes 95 % "
        "for all finalists together",
    )


def show_seconds(seconds: dict[str, float]) -> None:
    """Where the wall time of a run went, the most first."""
    drawn, whole = table("\nwhere the time went", "", ">s", ">share"), sum(seconds.values())
    for activity, spent in sorted(seconds.items(), key=lambda one: -one[1]):
        drawn.add_row(activity, f"{spent:.1f}", f"{spent / whole:.0%}")
    drawn.add_row("all", f"{whole:.1f}", "")
    console().print(drawn)


def _on_shapes(rows: list[dict[str, Any]]) -> None:
    """The winner, or else the first config, at every shape of several: what its means are made of."""
    best = next((row for row in rows if row.get("verdict") == "FASTER"), rows[0])
    if "shapes" not in best:
        return
    columns = [(head, cell) for head, cell in _SHAPE_COLUMNS if any(cell(one) != "-" for one in best["shapes"])]
    drawn = table(f"\ntrial {best['trial']} at every shape", *(head for head, _ in columns))
    for one in best["shapes"]:
        drawn.add_row(*(cell(one) for _, cell in columns))
    console().print(drawn)
    say(
        console(),
        f"over the default config: {1 / best['ratio_to_default']:.2f}x in the geometric mean, "
        f"{1 / best['worst_ratio_to_default']:.2f}x at worst ({best['worst_shape']})",
    )


def nothing_passed(summary: dict[str, Any]) -> str:
    """One line for a study in which no config passed every gate; empty where one did."""
    if summary["elites"] or summary["measured"] or summary["shortlist"]:
        return ""
    if not summary["rejections"]:
        return "no config was judged: raise --budget or --seconds"
    worst = summary["rejections"][0]
    remedy = "relax that limit" if worst["gate"] == Gate.RESOURCES else "search on with `resume --budget N`"
    return (
        f"no config passed every gate; the commonest reason, {worst['count']} times, is at the gate {worst['gate']}: "
        f"{worst['example']}: {remedy}, or choose another shape"
    )


def _cards(rows: list[dict[str, Any]]) -> None:
    drawn = table("\ncards, each with its own control", "card", ">judged", ">measured", ">default us", ">noise")
    for row in rows:
        counts = (str(row["judged"]), str(row["measured"]))
        drawn.add_row(row["card"], *counts, f"{row['control_us']:.3f}", f"{row['noise']:.1%}")
    console().print(drawn)


def _rejections(rows: list[dict[str, Any]]) -> None:
    drawn = table("\nrejected", "gate", ">configs", "why (an example)", ">trial")
    for row in rows[:REASONS]:
        why = f"{row['example']}; memcheck: {row['memcheck']}" if "memcheck" in row else row["example"]
        drawn.add_row(row["gate"], str(row["count"]), why, str(row["trial"]))
    console().print(drawn)


def _rejudged(found: dict[str, Any]) -> None:
    out, whole, row = console(), found["factors"]["whole"], found["factors"]["row"]
    refused, open_again, old = found["refused"], found["open_again"], found["without_ratios"]
    say(
        out,
        f"\n{found['judged']} configs judged again at {whole:g}x the baseline's error ({row:g}x for a row): "
        f"{len(refused)} would now be refused, {len(open_again)} refused ones would pass, {old} cannot be judged again",
    )
    rows = [("refused", refused), ("open again", open_again)]
    if any(changed for _, changed in rows):
        drawn = table("", ">trial", "config", "", "why")
        for outcome, changed in rows:
            for one in changed[:REASONS]:
                drawn.add_row(str(one["trial"]), Label(one["label"]), outcome, one["reason"])
        out.print(drawn)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def _configs(title: str, rows: list[dict[str, Any]], time: str) -> None:
    """Each config's figures and its label; on a narrow terminal only the columns that decide."""
    out = console()
    several = any("worst_shape" in row for row in rows)
    left_out = set() if out.width >= WIDE else {*_ONLY_WIDE, ">noise"} if several else _ONLY_WIDE
    columns = [column for column in _COLUMNS if column[0] not in left_out and (several or column[0] != ">at worst")]
    if time == "estimated_us":
        columns = [(">estimated us" if head == ">us" else head, cell) for head, cell in columns if head not in _TIMED]
    cells = [[cell(row) for _, cell in columns] for row in rows]
    out.print(labelled(f"\n{title}", [head for head, _ in columns], cells, [row["label"] for row in rows], out.width))


def _figure(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: str(row.get(name, "-"))


WIDE = 120
"""Width of a terminal in characters from which on every figure fits on a line."""
_COLUMNS: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
    (">#", _figure("trial")),
    (">us", lambda row: f"{row.get('median_us', row.get('estimated_us')):.3f}"),
    (">cold us", lambda row: f"{row['cold_median_us']:.3f}" if row.get("cold_median_us") else "-"),
    (">noise", lambda row: f"{row['noise']:.1%}"),
    (">vs default", lambda row: f"{1 / row['ratio_to_default']:.2f}x"),
    (">at worst", lambda row: f"{1 / row['worst_ratio_to_default']:.2f}x" if "worst_shape" in row else "-"),
    (">vs SDPA", lambda row: f"{row['ratio_to_sdpa']:.2f}x" if row.get("ratio_to_sdpa") else "-"),
    ("verdict", _figure("verdict")),
    (">regs", _figure("registers")),
    (">spill B", _figure("spill_bytes")),
    (">smem B", _figure("smem_bytes")),
    (">CTAs/SM", _figure("ctas_per_sm")),
    (">error", lambda row: "-" if row["error"] is None else f"{row['error']:.1e}"),
]
_ONLY_WIDE = {">cold us", ">spill B", ">error"}
_TIMED = {">cold us", ">noise", ">vs default", ">at worst", ">vs SDPA", "verdict"}
_SHAPE_COLUMNS: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
    ("shape", _figure("shape")),
    (">weight", lambda row: f"{row['weight']:g}"),
    *(column for column in _COLUMNS if column[0] in {">us", *_TIMED} - {">at worst"}),
]


def _baselines(rows: list[dict[str, Any]]) -> None:
    drawn = table("\nbaselines, timed in the same run", "baseline", ">us", ">cold us", ">noise", ">error", "")
    for row in rows:
        if "unavailable" in row:
            drawn.add_row(row["name"], *["-"] * 4, f"does not run here: {row['unavailable']}")
        else:
            error = "-" if row["error"] is None else f"{row['error']:.1e}"
            cold = f"{row['cold_median_us']:.3f}" if row["cold_median_us"] else "-"
            drawn.add_row(row["name"], f"{row['median_us']:.3f}", cold, f"{row['noise']:.1%}", error, "")
    console().print(drawn)
