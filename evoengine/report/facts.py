"""What a report is made of: the documents that `show` prints, the trials, and what the card allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evoengine.gates import Ceilings
from evoengine.hardware import DeviceLimits
from evoengine.problem import Problem
from evoengine.space import Axis, Values
from evoengine.summary import SDPA
from evoengine.verdict import Gate, quantile

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Facts:
    """One study. `summary` is `show --json`'s document, `trials` is `summary.trials` of the same records.

    `limits` is what a candidate must keep, beside the user's `ceilings`; `device` is the card that measures, None where
    its rates are not known.
    """

    summary: Row
    trials: Sequence[Row]
    axes: tuple[Axis, ...]
    default: Values
    problem: Problem
    limits: DeviceLimits
    ceilings: Ceilings
    device: DeviceLimits | None
    version: str
    made_at: str

    @property
    def measured(self) -> bool:
        """Whether times are measurements; estimates otherwise, to be named and coloured so."""
        return bool(self.summary["worth"] and self.summary["worth"]["measured"])

    @property
    def estimated(self) -> bool:
        """Whether estimates are all there is."""
        return bool(self.summary["worth"]) and not self.measured

    @property
    def time_name(self) -> str:
        return "time" if self.measured else "estimated time"

    @cached_property
    def timed(self) -> list[Row]:
        """Trials that have a time, the slowest first, so that plots draw the fastest on top."""
        return sorted(
            (row for row in self.trials if row["time_us"] is not None), key=lambda row: -float(row["time_us"])
        )

    @cached_property
    def fast(self) -> set[int]:
        """Trials among the fastest share that the weights of knobs are about."""
        knobs = (self.summary["worth"] or {"knobs": {}})["knobs"]
        count = max(1, round(knobs.get("top_share", 0.1) * len(self.timed)))
        return {row["trial"] for row in self.timed[-count:]}

    @cached_property
    def knobs(self) -> list[Axis]:
        """Axes that take two values or more among the timed trials, the heaviest first where weights are known."""
        varying = [axis for axis in self.axes if len({row["config"][axis.name] for row in self.timed}) > 1]
        found = self.summary["worth"]["knobs"]["importance"] if self.summary["worth"] else []
        place = {one["knob"]: at for at, one in enumerate(found)}
        return sorted(varying, key=lambda axis: place.get(axis.name, len(place)))

    @property
    def typical_us(self) -> float:
        """Where nine tenths of the timed configs are faster: an axis up to the slowest would hide the others."""
        return quantile([float(row["time_us"]) for row in reversed(self.timed)], 0.9)

    @property
    def best(self) -> Row | None:
        """The row that answers the study: the winner, else the fastest confirmed, measured or estimated config."""
        elites: Sequence[Row] = self.summary["elites"]
        faster = [row for row in elites if row["verdict"] == "FASTER"]
        for rows in (faster, elites, self.summary["measured"], self.summary["shortlist"]):
            if rows:
                return rows[0]
        return None

    @property
    def default_us(self) -> float | None:
        """Time of the default config, in the run that `best` was timed in."""
        best = self.best
        if best is None or not best.get("ratio_to_default"):
            return None
        return float(best["median_us"] / best["ratio_to_default"])

    @property
    def baselines(self) -> dict[str, float]:
        """Microseconds of every baseline that ran."""
        return {row["name"]: row["median_us"] for row in self.summary["baselines"] if "median_us" in row}

    @property
    def sdpa_us(self) -> float | None:
        return self.baselines.get(SDPA)

    def best_so_far(self) -> tuple[list[int], list[float]]:
        """(evaluation, best time up to it) at every improvement and at the last evaluation."""
        places: list[int] = []
        times: list[float] = []
        last = 0
        for row in self.trials:
            if row["evaluation"] is None:
                continue
            last = row["evaluation"]
            if row["time_us"] is not None and (not times or row["time_us"] < times[-1]):
                places.append(last)
                times.append(row["time_us"])
        if times and places[-1] < last:
            places.append(last)
            times.append(times[-1])
        return places, times

    def funnel(self) -> list[tuple[str, int, int]]:
        """(gate, trials that met it, trials it refused) in the order in which a candidate meets them.

        Trials in flight are left out. Twins leave after the resource gate, where their cubin is known.
        """
        counts = self.summary["verdicts"]
        left = sum(counts.values()) - counts.get("in flight", 0)
        steps: list[tuple[str, int, int]] = []
        for gate in (Gate.STATIC, Gate.COMPILE, Gate.RESOURCES, "twin", Gate.CORRECTNESS, Gate.RUNTIME, Gate.TIMEOUT):
            refused = counts.get(str(gate), 0)
            steps.append((str(gate), left, refused))
            left -= refused
        ends = [word for word in ("measured", "estimated") if counts.get(word)]
        return [*steps, (ends[0] if len(ends) == 1 else "passed", left, 0)]

    def changed(self, row: Row) -> dict[str, str]:
        """The knobs in which a config differs from the default, as tables name their values."""
        return {
            axis.name: axis.show(row["config"][axis.name])
            for axis in self.axes
            if row["config"][axis.name] != self.default.get(axis.name)
        }
