"""One study over several shapes: the set, its question, its builds, its verdicts, and the commands that use it."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import statistics
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shape_sets
from command_line import JOBS
from measured_study import SPACE, TEMPLATE, check, spec_of

from benchmarks import record_space
from evoengine import confirm
from evoengine.archive.archive import Archive
from evoengine.archive.lease import Owner
from evoengine.archive.records import MemberSpec
from evoengine.archive.study import Study
from evoengine.build import Builder, BuildRequest
from evoengine.cli import early, judges, main, running, search
from evoengine.cli.entries import entries
from evoengine.cli.resolve import Target, reopen
from evoengine.cli.sources import find_chosen
from evoengine.cli.warm_start import find_sources
from evoengine.devices.combine import Judged, coupled, estimated, measured, refused
from evoengine.devices.cuda.combined import one_race
from evoengine.devices.cuda.results import Finals, make_final, mean_interval, ratio_interval
from evoengine.devices.cuda.sanitizer import Report
from evoengine.errors import UserError
from evoengine.export.chosen import choose
from evoengine.gates import Ceilings
from evoengine.hardware import card
from evoengine.loading import _find
from evoengine.problem import (
    AttentionProblem,
    Member,
    ProblemSet,
    members_of,
    parse_shapes,
    problem_digest,
    problem_fields,
    weighted_mean,
)
from evoengine.question import Question, make_question
from evoengine.sampler import Proposal
from evoengine.screening import Screening
from evoengine.template import load_template
from evoengine.verdict import Artifact, Candidate, Estimate, Gate, Measurement, Rejection, ResourceUsage, together

SHAPES = ("1000", "16000")
USAGE = ResourceUsage(32, 0, 0, 0, 0, 1024)
ARTIFACT = Artifact("d" * 32, Path("nowhere"), "0" * 64, USAGE, 0.1, "nvrtc", "sm_89")


def a_set(*weights: float) -> ProblemSet:
    """Attention at 256, 512... keys, with these weights."""
    return ProblemSet(tuple(Member(AttentionProblem(seq_q=256 << at), weight) for at, weight in enumerate(weights)))


class TestProblem:
    def test_shapes_with_weights_are_a_set(self) -> None:
        found = parse_shapes(AttentionProblem, ["1,8,256,64 weight=3", "1,8,512,64", " 1,8,1024,64  weight = 0.5 "])

        assert a_set(3.0, 1.0, 0.5) == found
        assert "B1_H8_S256_D64_fp16_and_2_more" == found.label

    def test_one_shape_is_a_problem_by_itself(self) -> None:
        assert AttentionProblem(seq_q=256) == parse_shapes(AttentionProblem, ["1,8,256,64"])
        assert (Member(AttentionProblem()),) == members_of(AttentionProblem())

    @pytest.mark.parametrize(
        ("texts", "said"),
        [
            (["1,8,256,64 weight=3"], "a weight is for one study over several shapes"),
            (["1,8,256,64", "1,8,512,64 weight=0"], "weight='0' must be a positive number"),
            (["1,8,256,64", "1,8,512,64 weight=-1"], "weight='-1' must be"),
            (["1,8,256,64", "1,8,512,64 weight=inf"], "weight='inf' must be"),
            (["1,8,256,64", "1,8,512,64 weight=nan"], "weight='nan' must be"),
            (["1,8,256,64", "1,8,512,64 weight="], "weight='' must be"),
            (["1,8,256,64", "1,8,256,64 weight=2"], "B1_H8_S256_D64_fp16 is given twice"),
            (["1,8,256,64", "1,8,many,64"], "unknown field 'many'"),
        ],
    )
    def test_a_mistake_is_named(self, texts: list[str], said: str) -> None:
        with pytest.raises(UserError, match=said) as error:
            parse_shapes(AttentionProblem, texts)
        assert "\n" not in str(error.value)

    def test_the_digest_is_of_members_and_shares_in_any_order(self) -> None:
        one = a_set(1.0, 2.0)
        turned = ProblemSet(one.members[::-1])
        doubled = a_set(2.0, 4.0)

        assert problem_digest(one) == problem_digest(turned) == problem_digest(doubled)
        assert 4 == len({problem_digest(p) for p in (one, a_set(1.0, 1.0), a_set(1.0, 2.0, 1.0), AttentionProblem())})

    def test_operations_are_means_and_fields_what_all_share(self) -> None:
        both = a_set(1.0, 3.0)
        small, large = (member.problem for member in both.members)

        assert round((small.flops * large.flops**3) ** 0.25) == both.flops
        assert round((small.bytes_moved * large.bytes_moved**3) ** 0.25) == both.bytes_moved
        assert {"seq_q", "seq_k"} == problem_fields(small).keys() - problem_fields(both).keys()


@pytest.fixture(scope="module")
def pair() -> Question:
    problems = ProblemSet((Member(AttentionProblem(seq_q=64)), Member(AttentionProblem(seq_q=512, head_dim=128))))
    return make_question(TEMPLATE, SPACE, problems, card("l4"), Ceilings())


class TestQuestion:
    def test_a_config_is_feasible_where_every_member_takes_it(self, pair: Question) -> None:
        alone = [set(one.feasible.points) for one in pair.members]

        assert set(pair.feasible.points) == alone[0] & alone[1]
        assert 0 < len(pair.feasible.points) < min(map(len, alone))
        assert pair.feasible.product == len(pair.feasible.points) + sum(pair.feasible.rejected.values())

    def test_the_static_gate_says_at_which_shape(self, pair: Question) -> None:
        small, large = pair.members
        only_small = sorted(set(small.feasible.points) - set(large.feasible.points))
        values = pair.space.config_at(only_small[0]).values
        refusal, own = pair.static_gate(values), large.static_gate(values)

        assert refusal is not None
        assert own is not None
        assert own.evidence["rule"] == refusal.evidence["rule"]
        assert "B1_H8_S512_D128_fp16: " in refusal.reason
        assert pair.static_gate(pair.default.values) is None

    def test_the_resource_gate_is_every_members(self, pair: Question) -> None:
        greedy = dataclasses.replace(ARTIFACT, resources=dataclasses.replace(USAGE, registers=300))
        values = pair.default.values
        refusal = pair.resource_gate(values, together([ARTIFACT, greedy]))

        assert pair.resource_gate(values, together([ARTIFACT, ARTIFACT])) is None
        assert refusal is not None
        assert (Gate.RESOURCES, True) == (
            refusal.gate,
            refusal.reason.startswith("B1_H8_S512_D128_fp16: 300 registers"),
        )

    def test_twins_agree_at_every_shape(self, pair: Question) -> None:
        default = pair.default.values
        small, large = pair.members

        assert pair.identity(default, "c") == f"{small.identity(default, 'c')} {large.identity(default, 'c')}"
        assert 2 == len({one.identity(default, "c") for one in pair.members})


class TestBuild:
    def both(self, first: dict[str, int], second: dict[str, int]) -> BuildRequest:
        requests = {name: BuildRequest(macros, 0) for name, macros in (("N1", first), ("N2", second))}
        return BuildRequest(first, 0, requests)

    def test_members_are_built_together_and_the_same_macros_once(self, tmp_path: Path) -> None:
        template = load_template(shape_sets.fakes.TEMPLATES / "scale")
        one, other = ({"EVO_THREADS": 32, "EVO_ITEMS": items} for items in (1, 2))
        with Builder(template, "sm_89", jobs=1, home=tmp_path) as builder:
            alone, same, two, broken = builder.build(
                [
                    BuildRequest(one, 0),
                    self.both(one, one),
                    self.both(one, other),
                    self.both(one, one | {"EVO_THREADS": 48}),
                ]
            )
        cached = [path.name for path in tmp_path.rglob("kernel.cubin")]

        assert isinstance(alone, Artifact)
        assert isinstance(same, Artifact)
        assert isinstance(two, Artifact)
        assert 2 == len(cached)
        assert (alone.digest, alone.cubin_sha256, alone.image) == (same.digest, same.cubin_sha256, same.image)
        assert two.members[0].image + two.members[1].image == two.image
        assert alone.cubin_sha256 == two.members[0].cubin_sha256 != two.cubin_sha256
        assert isinstance(broken, Rejection)
        assert broken.reason.startswith("N2: ")


def measurement(us: float, control_us: float, spread: float = 0.0, count: int = 5) -> Measurement:
    windows = tuple(us * (1 + spread * (at - count // 2)) for at in range(count))
    return Measurement(
        windows, (control_us,) * count, control_us, 10, "warm", "converged", evidence={"half_width": 0.01}
    )


class TestVerdicts:
    def judged(self, *verdicts: Any, weights: tuple[float, ...] = (3.0, 1.0)) -> list[Any]:
        members = a_set(*weights).members
        return [Judged(member, ARTIFACT, one) for member, one in zip(members, verdicts, strict=True)]

    def test_a_measurement_is_the_weighted_geometric_mean(self) -> None:
        found = measured(self.judged(measurement(5.0, 10.0, 0.01), measurement(40.0, 20.0, 0.02, count=8)))
        ratios = [
            statistics.median((5.0,)) / 10.0,
            statistics.median(measurement(40.0, 20.0, 0.02, 8).windows_us) / 20.0,
        ]

        assert pytest.approx(weighted_mean(ratios, (3, 1)), rel=1e-12) == found.ratio
        assert pytest.approx(10.0**0.75 * 20.0**0.25) == found.control_reference_us
        assert pytest.approx(found.ratio * found.control_reference_us) == found.median_us
        assert pytest.approx(math.hypot(0.75 * 0.01, 0.25 * 0.01)) == found.evidence["half_width"]
        assert [ratios[0], ratios[1]] == [pytest.approx(row["ratio_to_default"]) for row in found.evidence["shapes"]]
        assert [3.0, 1.0] == [row["weight"] for row in found.evidence["shapes"]]

    def test_its_noise_is_the_mean_of_theirs(self) -> None:
        one, other = measurement(5.0, 10.0, 0.01, 9), measurement(5.0, 10.0, 0.03, 9)
        found = measured(self.judged(one, other, weights=(1.0, 1.0)))

        assert pytest.approx((one.noise + other.noise) / 2, rel=0.01) == found.noise

    @pytest.mark.parametrize("counts", [(1, 1), (1, 4), (5, 8), (24, 3)])
    def test_the_median_of_joined_windows_is_the_mean_of_medians(self, counts: tuple[int, int]) -> None:
        draw = np.random.default_rng(1)
        series = [list(draw.lognormal(at, 0.1, count)) for at, count in enumerate(counts)]
        joined = coupled(series, (2.0, 1.0))
        medians = [statistics.median(one) for one in series]

        assert pytest.approx(weighted_mean(medians, (2, 1)), rel=1e-12) == statistics.median(joined)
        assert list(joined) == sorted(joined)
        assert 1 == len(joined) % 2

    def test_an_estimate_is_a_mean_too_and_a_rejection_names_its_shape(self) -> None:
        found = estimated(self.judged(Estimate(4.0), Estimate(8.0)))
        refusal = refused(a_set(1.0, 1.0).members[1], Rejection(Gate.CORRECTNESS, "max error", {"seed": 1}))

        assert pytest.approx(4.0**0.75 * 8.0**0.25) == found.estimated_us
        assert "B1_H8_S512_D64_fp16: max error" == refusal.reason
        assert {"seed": 1, "refused_at": "B1_H8_S512_D64_fp16"} == refusal.evidence


class TestInterval:
    def test_one_member_is_what_it_was(self) -> None:
        windows, control = [5.0 + 0.1 * at for at in range(20)], [10.0] * 20

        assert ratio_interval(windows, control, 3) == mean_interval([(windows, control)], [7.0], 3, 0.95)

    def test_two_noisy_members_tell_a_mean_better_than_one(self) -> None:
        draw = np.random.default_rng(5)
        pairs = [(list(5.0 * draw.lognormal(0.0, 0.05, 100)), [10.0] * 100) for _ in range(2)]
        low, middle, high = mean_interval(pairs, [1.0, 1.0], 3, 0.95)
        alone = [ratio_interval(*pair, 3) for pair in pairs]

        assert pytest.approx(math.sqrt(alone[0][1] * alone[1][1])) == middle
        assert low < middle < high
        assert math.log(high / low) < 0.85 * statistics.mean(math.log(one[2] / one[0]) for one in alone)

    def test_it_covers_the_truth_as_often_as_it_says(self) -> None:
        draw = np.random.default_rng(11)
        hits = 0
        for seed in range(200):
            pairs = [
                (list(ratio * draw.lognormal(0.0, sigma, 31)), [1.0] * 31)
                for ratio, sigma in ((0.5, 0.01), (2.0, 0.05))
            ]
            low, _, high = mean_interval(pairs, [3.0, 1.0], seed, 0.95)
            hits += low <= 0.5**0.75 * 2.0**0.25 <= high

        assert 180 <= hits <= 199


class Bench:
    """Runs `search` in this process, over the real device for a set with a fake card for each shape."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd
        self.said: list[str] = []
        self.fate: shape_sets.Fate = lambda *_: None
        self.err = ""

    def device_for(self, question: Question, *_: Any, **__: Any) -> tuple[Any, Any]:
        device = shape_sets.device_of(question, self.said, self.fate)
        device.in_hand = list  # type: ignore[attr-defined]
        return device, device

    def run(self, *arguments: str, code: int = 0) -> str:
        found = main([*arguments])
        out, self.err = self._capfd.readouterr()
        assert code == found, self.err
        return out

    def search(self, *weights: str, code: int = 0) -> dict[str, Any]:
        shapes = [f"{shape}{weight}" for shape, weight in zip(SHAPES, weights or ("", ""), strict=True)]
        options = [word for shape in shapes for word in ("--shape", shape)]
        out = self.run("search", "--template", "mine", "--budget", "40", *options, *JOBS, "--json", code=code)
        document: dict[str, Any] = json.loads(out) if out else {}
        return document


@pytest.fixture
def bench(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Bench:
    made, here = Bench(capfd), card("l4")
    monkeypatch.setattr(running, "device_for", made.device_for)
    monkeypatch.setattr(early, "find_target", lambda *_: Target(here, here, 0))
    monkeypatch.setattr(search, "resume_target", lambda *_: (Target(here, here, 0), ""))
    return made


def last_study() -> Study:
    return Archive.open("sqlite:///studies/evoengine.db").open_study()


class TestSearch:
    def test_weights_are_stored_and_decide_the_winner(self, bench: Bench) -> None:
        tiles = []
        for weights in ((" weight=50", ""), ("", " weight=50")):
            best = bench.search(*weights)["elites"][0]["config"]
            tiles.append(best["THREADS"] * best["ITEMS"])

        assert [1.0, 50.0] == [member.weight for member in last_study().spec.members]
        assert tiles[0] < 1000 < tiles[1]

    def test_mean_and_worst_stand_side_by_side(self, bench: Bench) -> None:
        result = bench.search(" weight=3", "")
        for row in (*result["elites"], *result["measured"]):
            ratios = [one["ratio_to_default"] for one in row["shapes"]]
            assert pytest.approx(weighted_mean(ratios, (3, 1))) == row["ratio_to_default"]
            assert max(ratios) == row["worst_ratio_to_default"]
            assert row["worst_shape"] == row["shapes"][ratios.index(max(ratios))]["shape"]
        best = result["elites"][0]
        times = [one["median_us"] for one in best["shapes"]]

        assert ["N1000", "N16000"] == [one["shape"] for one in result["shapes"]]
        assert pytest.approx(weighted_mean(times, (3, 1))) == best["median_us"]
        assert [pytest.approx(30.0 / us) for us in times] == [one["ratio_to_sdpa"] for one in best["shapes"]]
        assert all(one["verdict"] in ("FASTER", "SAME", "SLOWER") for one in best["shapes"])
        assert best["verdict_confidence"] < best["shapes"][0]["verdict_confidence"]

    def test_the_text_and_the_reports_say_the_worst_too(self, bench: Bench) -> None:
        best = bench.search()["elites"][0]
        shown = bench.run("show")
        said = (
            f"{1 / best['ratio_to_default']:.2f}x in the geometric mean, {1 / best['worst_ratio_to_default']:.2f}x at"
        )
        bench.run("report", "-o", "r.md")
        bench.run("report", "-o", "r.html")
        markdown, page = Path("r.md").read_text(), Path("r.html").read_text()

        assert f"{said} worst ({best['worst_shape']})" in shown
        assert "at worst" in shown
        assert all("N16000" in text and "at worst" in text for text in (shown, markdown, page))
        assert f"trial {best['trial']} at every shape" in shown

    def test_the_card_is_opened_once_for_all_and_raced_alone(self, bench: Bench) -> None:
        bench.search()
        said = bench.said
        first_judge, finals = said.index("N1000 judge"), next(i for i, one in enumerate(said) if "finals" in one)

        assert ["N1000 spawn", "N16000 spawn", "N1000 open", "N16000 open"] == said[:4]
        assert ["N1000 start, opened by N1000", "N16000 start, opened by N1000"] == said[4:first_judge]
        assert ["N1000 stop", "N16000 stop", "N16000 spawn"] == said[finals - 3 : finals], "the next race's process"
        assert ["N1000 close", "N16000 close"] == said[-2:]

    def test_what_one_shape_refuses_is_refused_and_spares_the_others(self, bench: Bench) -> None:
        bench.fate = lambda question, values: (
            "max error" if question.problem.label == "N1000" and values["ITEMS"] % 2 else None
        )
        result = bench.search()
        own = [one.verdict for one in last_study().records() if one.twin_of is None]
        verdicts = [one for one in own if isinstance(one, Rejection)]
        wrong = [one for one in verdicts if one.gate is Gate.CORRECTNESS]

        assert {"N1000: max error"} == {one.reason for one in wrong}
        assert 0 < len(wrong) == bench.said.count("N1000 judge") - bench.said.count("N16000 judge")
        assert all(row["config"]["ITEMS"] % 2 == 0 for row in result["elites"])

    def test_a_finalist_that_one_race_refuses_is_no_elite(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        raced = shape_sets.Card.finals
        refused = []

        def refuse_the_first(card: shape_sets.Card, work: Any, seed: int) -> Any:
            finals = raced(card, work, seed)
            if card._label != "N1000":
                return finals
            (first, _), *rest = finals.finalists
            refused.append(first.number)
            wrong = Rejection(Gate.CORRECTNESS, "wrong on new inputs", {})
            return dataclasses.replace(finals, finalists=((first, wrong), *rest))

        monkeypatch.setattr(shape_sets.Card, "finals", refuse_the_first)
        result = bench.search()
        told = [row["trial"] for row in (*result["elites"], *result["measured"])]

        assert 1 == len(refused)
        assert refused[0] not in told
        assert ["N1000 finals of 8", "N16000 finals of 7"] == [one for one in bench.said if "finals" in one]

    def test_resume_goes_on_with_the_same_set(self, bench: Bench) -> None:
        first = bench.search(" weight=3", "")
        again = json.loads(bench.run("resume", "--budget", "44", *JOBS, "--json"))

        assert (first["study"], 44) == (again["study"], again["spent"])
        assert first["shapes"] == again["shapes"]
        assert {row["trial"]: row for row in first["measured"]}.keys() <= {one.number for one in last_study().records()}

    def test_a_resumed_card_keeps_scale_and_best_of_every_shape(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench.search()
        made: list[dict[str, Any]] = []

        class Spy:
            name = "NVIDIA L4"

            def __init__(self, template: Any, problem: Any, limits: Any, **options: Any) -> None:
                made.append({"problem": problem.label, **options})

        study = last_study()
        question = reopen(study.spec)
        monkeypatch.setattr(judges, "CudaDevice", Spy)
        judges.device_for(question, Target(card("l4"), card("l4"), 0), study, 1, force=False, note=print)
        measured_ones = [one.verdict for one in study.records() if isinstance(one.verdict, Measurement)]
        rows = [[one.evidence["shapes"][at] for one in measured_ones] for at in (0, 1)]

        assert ["N1000", "N16000"] == [one["problem"] for one in made]
        assert made[0]["lock"] is made[1]["lock"]
        assert [rows[at][0]["control_reference_us"] for at in (0, 1)] == [one["reference_us"] for one in made]
        assert [min(row["median_us"] for row in rows[at]) for at in (0, 1)] == [one["best_us"] for one in made]

    def test_another_search_begins_with_what_the_set_measured(self, bench: Bench) -> None:
        study = bench.search()["study"]
        told = bench.run("search", "--template", "mine", "--shape", "1000", "--dry-run", "--json")
        assert 192 == json.loads(told)["feasible"]
        with closing(Archive.open("studies/evoengine.db")) as archive:
            question = reopen(archive.open_study(study).spec).members[0]
            here = card("l4")
            [source] = find_sources(["auto"], archive, question, Target(here, here, 0))

        assert study == source.name
        assert 0 < source.known


class TestExport:
    def test_a_header_has_a_block_for_every_shape(self, bench: Bench) -> None:
        best = bench.search()["elites"][0]
        said = bench.run("export", "-o", "mine.h")
        header = Path("mine.h").read_text()

        assert all(f"defined(SHAPE_{label})" in header for label in ("N1000", "N16000"))
        assert 2 <= header.count(f"//   trial: {best['trial']}\n")
        assert [f"{one['median_us']:.3f} us" in said for one in best["shapes"]] == [True, True]

    def test_wisdom_has_a_row_for_every_shape_with_its_own_time(self, bench: Bench) -> None:
        best = bench.search()["elites"][0]
        bench.run("export", "--format", "wisdom", "-o", "mine.wisdom")
        _, *rows = map(json.loads, Path("mine.wisdom").read_text().splitlines())

        assert [[1000], [16000]] == [row["problem_size"] for row in rows]
        assert [one["median_us"] for one in best["shapes"]] == [pytest.approx(row["time"] * 1e3) for row in rows]

    def test_after_no_winner_the_default_leaves_with_its_time_at_each_shape(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench.search()
        study = last_study()
        elites = [dataclasses.replace(one, verdict="SAME") for one in study.elites()]
        monkeypatch.setattr(Study, "elites", lambda _: elites)
        document = json.loads(bench.run("export", "--json", "-o", "mine.h"))
        default_us = [row["default_us"] for row in elites[0].evidence["shapes"]]

        assert [study.spec.default] * 2 == [one["config"] for one in document["configs"]]
        assert default_us == [one["median_us"] for one in document["configs"]]

    @pytest.mark.parametrize(("form", "remedy"), [("bundle", "--format header"), ("cachefile", "--format t4")])
    def test_what_is_of_one_shape_says_what_to_give(self, bench: Bench, form: str, remedy: str) -> None:
        bench.search()
        bench.run("export", "--format", form, "-o", "out", code=2)
        [line] = bench.err.splitlines()

        assert "is of 2 shapes" in line
        assert remedy in line

    def test_t4_and_json_say_which_shapes(self, bench: Bench) -> None:
        bench.search(" weight=3", "")
        bench.run("export", "--format", "t4", "-o", "mine.T4")
        bench.run("export", "--format", "json", "-o", "mine.json")
        t4, document = (json.loads(Path(name).read_text()) for name in ("mine.T4", "mine.json"))

        assert [3.0, 1.0] == [one["weight"] for one in t4["metadata"]["evoengine"]["shapes"]]
        assert [3.0, 1.0] == [one["weight"] for one in document["shapes"]]


class TestWithoutAGpu:
    def test_search_resume_show_and_verify(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        def run(*arguments: str) -> dict[str, Any]:
            assert 0 == main([*arguments, "--json"]), capfd.readouterr().err
            document: dict[str, Any] = json.loads(capfd.readouterr().out)
            return document

        Path("shapes.txt").write_text("1000 weight=3  # the one that matters\n16000\n")
        options = ("--template", "mine", "--device", "none", "--shapes", "shapes.txt", "--budget", "4", *JOBS)
        first = run("search", *options)
        again = run("resume", "--device", "none", "--budget", "6", *JOBS)
        found = run("verify", first["study"], "--device", "none")

        assert (4, 6) == (first["spent"], again["spent"])
        assert [3.0, 1.0] == [one["weight"] for one in again["shapes"]]
        for row in again["shortlist"]:
            estimates = [one["estimated_us"] for one in row["shapes"]]
            assert pytest.approx(weighted_mean(estimates, (3, 1))) == row["estimated_us"]
        assert "N1000_and_1_more" == found["shape"]
        assert found["passed"]

    def test_the_space_of_a_set_is_one(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        options = ("--template", "mine", "--device", "none", "--shape", "1000", "--shape", "16000", "--dry-run")
        assert 0 == main(["search", *options, "--json"])
        described = json.loads(capfd.readouterr().out)

        assert (192, ["N1000", "N16000"]) == (described["feasible"], [one["shape"] for one in described["shapes"]])

    def test_a_study_of_one_shape_is_stored_as_it_was_before_there_were_sets(
        self, folder: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert 0 == main(["search", "--template", "mine", "--device", "none", "--budget", "2", "--json", *JOBS])
        summary = json.loads(capfd.readouterr().out)

        assert "members" not in last_study().spec.as_json()
        assert "shapes" not in summary
        assert all("shapes" not in row for row in summary["shortlist"])

    def test_a_damaged_weight_is_named(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        import sqlite3

        options = ("--template", "mine", "--device", "none", "--shape", "1000", "--shape", "16000", "--budget", "2")
        assert 0 == main(["search", *options, *JOBS, "-q"])
        with closing(sqlite3.connect("studies/evoengine.db")) as connection:
            [(spec,)] = connection.execute("select spec from evo_study").fetchall()
            document = json.loads(spec)
            document["members"][0]["weight"] = -1.0
            connection.execute("update evo_study set spec = ?", (json.dumps(document),))
            connection.commit()
        capfd.readouterr()

        assert 2 == main(["show"])
        assert "-1.0 is no time" in capfd.readouterr().err


class TestLoad:
    """Of a study whose shapes have different cubins, each shape gets its own."""

    @pytest.fixture
    def study(self, tmp_path: Path) -> Study:
        return write_set(tmp_path)

    def test_the_kernels_come_apart_again(self, study: Study, tmp_path: Path) -> None:
        chosen = find_chosen(study.name, str(tmp_path / "studies.db"))

        assert [64, 128] == [one.facts.defines["EVO_HEAD_DIM"] for one in chosen]
        assert [b"cubin of 64", b"another cubin, of 128"] == [one.cubin for one in chosen]
        assert [4.0, 8.0] == [pytest.approx(one.facts.median_us) for one in chosen]
        assert [10.0 / 4.0, 20.0 / 8.0] == [pytest.approx(one.facts.speedup_over_default) for one in chosen]

    def test_a_trial_without_the_studys_shapes_is_damaged(self, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
        [record] = study.records()
        assert isinstance(record.verdict, Measurement)
        bare = dataclasses.replace(record, verdict=dataclasses.replace(record.verdict, evidence={}))
        monkeypatch.setattr(Study, "records", lambda _: [bare])
        monkeypatch.setattr(Study, "elites", lambda _: [])

        with pytest.raises(UserError, match="trial 0 is damaged"):
            choose(study, reopen(study.spec))

    def test_load_dispatches_over_the_shapes(self, study: Study, tmp_path: Path) -> None:
        source = _find(study.name, str(tmp_path / "studies.db"), None)
        sizes = {row.size: row.provenance["cubin_sha256"] for row in source.wisdom.rows}

        assert {(1, 8, 512, 64), (1, 8, 512, 128)} == sizes.keys()
        assert source.cubins[sizes[1, 8, 512, 64]] == b"cubin of 64"
        assert source.cubins[sizes[1, 8, 512, 128]] == b"another cubin, of 128"


class TestSanitizer:
    """Every different cubin of a finalist meets the tools, on the small problems of the shapes that it is for."""

    @pytest.mark.parametrize("dirty", [None, "other"])
    def test_every_cubin_is_run_on_its_own_small_problems(
        self, pair: Question, tmp_path: Path, dirty: str | None
    ) -> None:
        ran: list[tuple[str, list[int]]] = []

        class Tool:
            def check(self, tool: str, cubin: Path, values: Any, problems: Any, ptx: str) -> Report:
                assert ptx == cubin.parent.name
                ran.append((ptx, sorted({one.head_dim for one in problems})))
                unfinished = "hangs" if ptx == dirty else ""
                return Report("memcheck", (), 0, unfinished, "", (), 0.1)

        parts = []
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "kernel.ptx").write_text(name)
            (tmp_path / name / "kernel.cubin").write_text(name)
            parts.append(dataclasses.replace(ARTIFACT, folder=tmp_path / name, cubin_sha256=name))
        candidate = Candidate(1, pair.default, "random")
        report = Screening(pair, Tool())._check("memcheck", candidate, together(parts))  # type: ignore[arg-type]

        assert [("one", [64]), ("other", [128])] == ran
        assert (dirty is None) == report.clean


class TestDatabase:
    def test_the_builds_of_every_shape_are_referred_to(self, tmp_path: Path) -> None:
        study = write_set(tmp_path)
        with closing(Archive.open(str(tmp_path / "studies.db"))) as archive:
            builds = archive.builds()
            rows = study.records()[0].verdict.evidence["shapes"]  # type: ignore[union-attr]

            assert {row["build"] for row in rows} < builds
            assert 3 == len(builds)

    def test_a_copy_has_the_same_set(self, tmp_path: Path) -> None:
        study = write_set(tmp_path)
        with closing(Archive.open(str(tmp_path / "studies.db"))) as archive:
            archive.copy_study(study.name, archive, "copied")

            assert study.spec.members == archive.open_study("copied").spec.members

    def test_profile_says_that_it_is_of_one_shape(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        study = write_set(tmp_path)
        monkeypatch.setattr("evoengine.cli.profile.require_tool", lambda *_: Path("ncu"))

        assert 2 == main(["profile", study.name, "--storage", str(tmp_path / "studies.db")])
        [line] = capfd.readouterr().err.splitlines()
        assert "study two is of 2 shapes" in line
        assert "--warm-start" in line

    def test_compare_takes_every_shape_of_it(self, tmp_path: Path) -> None:
        study = write_set(tmp_path)
        here = card("l4")
        options = dict(what=[study.name], shape=None, shapes=None, storage=str(tmp_path / "studies.db"), limits=None)
        arguments = argparse.Namespace(template=None, space=None, **options)
        found = entries(arguments, Target(here, here, None))

        assert [64, 128] == [one.question.problem.head_dim for one in found]  # type: ignore[attr-defined]
        assert [SPACE.default] * 2 == [one.config.values for one in found]


def write_set(folder: Path) -> Study:
    """A study of two head dimensions that was measured and confirmed."""
    members = tuple(Member(AttentionProblem(head_dim=size), 1.0) for size in (64, 128))
    problem = ProblemSet(members)
    spec = dataclasses.replace(
        spec_of(), name="two", problem=problem_fields(problem), problem_label=problem.label,
        problem_digest=problem_digest(problem),
        members=tuple(MemberSpec(m.problem.label, problem_fields(m.problem), m.weight) for m in members),
    )  # fmt: skip
    parts = []
    for member, content in zip(members, (b"cubin of 64", b"another cubin, of 128"), strict=True):
        place = folder / member.problem.label
        place.mkdir()
        (place / "kernel.cubin").write_bytes(content)
        sha = hashlib.sha256(content).hexdigest()
        parts.append(dataclasses.replace(ARTIFACT, digest=sha[:32], folder=place, cubin_sha256=sha))
    artifact = together(parts)
    study = Archive.open(str(folder / "studies.db")).create_study(spec)
    study.acquire(Owner.current())
    [candidate] = study.claim([Proposal(SPACE.point(SPACE.default), "random")])
    judged = [
        Judged(member, part, dataclasses.replace(measurement(us, control), checks=(check(),)))
        for member, part, us, control in zip(members, parts, (4.0, 8.0), (10.0, 20.0), strict=True)
    ]
    study.commit(candidate, measured(judged), artifact)

    def race(us: float, control_us: float) -> Finals:
        control = make_final("default", [control_us] * 9, [control_us] * 9, 10, 1)
        final = make_final("c", [us] * 9, [control_us] * 9, 10, 1)
        return Finals(control, ((Candidate(0, candidate.config, "random"), final),), (), {"driver": "1"}, 1)

    finals = one_race(members, [(candidate, artifact)], [race(4.0, 10.0), race(8.0, 20.0)], {}, 1)
    study.replace_elites(confirm.elites(finals, {0: artifact}, spec.template_digest))
    study.release()
    return study


def test_no_recorded_space_is_made_of_several_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = tmp_path / "studies.db"
    words = ["record_space.py", "--storage", str(storage), "--output", str(tmp_path / "space.jsonl.gz")]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(UserError, match="no study database at"):
        record_space.main()
    assert not storage.exists()
    members = tuple(MemberSpec(label, spec_of().problem, 1.0) for label in ("a", "b"))
    with closing(Archive.open(str(storage))) as archive:
        archive.create_study(dataclasses.replace(spec_of(), members=members))

    with pytest.raises(UserError, match="study measured is of 2 shapes, a recorded space of one"):
        record_space.main()
