"""Headers of a template that has changed since: taken where the kernel is still the same, refused where it is not."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from command_line import SCALE

from evoengine.build import Builder, BuildRequest
from evoengine.cli.sources import MOVED, from_header
from evoengine.errors import UserError
from evoengine.export.chosen import kernel_facts
from evoengine.export.header import HeaderFacts, parse_header, render_header
from evoengine.problem import problem_fields
from evoengine.template import load_template
from evoengine.verdict import Artifact

SPACE = """
from evoengine.space import Axis, SearchSpace

AXES = (Axis("THREADS", (32, 64), "t"), Axis("ITEMS", (1, 2), "i"))
SPACE = SearchSpace("scale", AXES, (), {"THREADS": 64, "ITEMS": 2})
"""
VALUES = {"THREADS": 32, "ITEMS": 2}


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    folder = tmp_path / "scale"
    shutil.copytree(SCALE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "space.py").write_text(SPACE)
    return folder


@pytest.fixture
def header(mine: Path) -> Path:
    """Exported from the template as it is."""
    template = load_template(mine)
    problem = template.module.PROBLEM()
    now = kernel_facts(template.module, problem, VALUES)
    with Builder(template, "sm_89", jobs=1) as builder:
        [built] = builder.build([BuildRequest(now["defines"], now["smem_bytes"])])
    assert isinstance(built, Artifact)
    facts = HeaderFacts(
        template="scale", template_digest=template.digest, space="scale", space_digest="0" * 12, config="t_32.i_2",
        shape=problem.label, problem=problem_fields(problem), study="first", trial=3, device="NVIDIA L4", arch="sm_89",
        driver="580.65", compiler=built.compiler, cubin_sha256=built.cubin_sha256, registers=16, spill_bytes=0,
        method="windows", median_us=5.0, noise=0.01, speedup_over_sdpa=None, speedup_over_default=None,
        evoengine_version="0.1.0", date="2026-01-02", command="search", **now,
    )  # fmt: skip
    path = mine.parent / "best.h"
    path.write_text(render_header(facts))
    return path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("template.py", "def work(", "# Read by the latency estimate alone.\n\n\ndef work("),
        ("template.py", "[ScaleProblem(n=problem.n + 1)]", "[ScaleProblem(n=problem.n + 1), ScaleProblem(n=7)]"),
        ("kernel.cu", "// y = alpha * x", "// y = a * x"),
    ],
    ids=["a remark", "more checks", "a remark in the kernel"],
)
def test_a_header_whose_kernel_is_still_the_same_is_taken(
    mine: Path, header: Path, file: str, old: str, new: str
) -> None:
    was = parse_header(header.read_text())
    edit(mine / file, old, new)
    chosen = from_header(header, str(mine))

    assert dataclasses.replace(was, template_digest=load_template(mine).digest) == chosen.facts != was
    assert MOVED == chosen.note


def test_an_axis_younger_than_the_header_is_at_its_default(mine: Path, header: Path) -> None:
    assert "EVO_UNROLL" not in header.read_text()
    edit(
        mine / "template.py",
        '"EVO_ITEMS": values["ITEMS"]',
        '"EVO_ITEMS": values["ITEMS"], "EVO_UNROLL": values["UNROLL"]',
    )
    edit(mine / "space.py", 'Axis("ITEMS", (1, 2), "i"))', 'Axis("ITEMS", (1, 2), "i"), Axis("UNROLL", (0, 1), "u"))')
    edit(mine / "space.py", '"ITEMS": 2}', '"ITEMS": 2, "UNROLL": 1}')
    chosen = from_header(header, str(mine))

    assert {**VALUES, "UNROLL": 1} == chosen.values
    assert (1, MOVED) == (chosen.facts.defines["EVO_UNROLL"], chosen.note)


@pytest.mark.parametrize(
    ("file", "old", "new", "why"),
    [
        (
            "kernel.cu",
            "alpha * staged",
            "2.0f * alpha * staged",
            "NVRTC .* makes another cubin of it than NVRTC .* then",
        ),
        ("kernel.cu", "staged[threadIdx.x] = i", "staged[threadIdx.x] = ;", "it does not build any more"),
        ("template.py", '"EVO_ITEMS": values["ITEMS"]', '"EVO_ITEMS": 1', "its defines with it .EVO_ITEMS=2, now 1"),
        ("template.py", 'values["THREADS"], 0)', 'values["THREADS"], 16)', "its smem_bytes with it .0, now 16"),
        (
            "template.py",
            "return Launch((-(-",
            "return Launch((1 -(-",
            "its grid_ctas with it ..16, 1, 1., now .17, 1, 1",
        ),
        ("template.py", '"float32", ALPHA', '"float32", 2 * ALPHA', "it is refused at the gate correctness"),
        (
            "template.py",
            "n: int = 1000",
            "m: int = 1000",
            "it cannot be proven again here .problem has an unknown field 'n'",
        ),
        (
            "template.py",
            "[ScaleProblem(n=100)]",
            "[]",
            "it cannot be proven again here .scale/template.py: small_problems",
        ),
        (
            "template.py",
            "[ScaleProblem(n=100)]",
            "[1 / 0]",
            r"it cannot be proven again here .scale/template.py:\d+: small_problems fails: ZeroDivisionError",
        ),
    ],
)
def test_a_header_whose_kernel_has_changed_is_refused(
    mine: Path, header: Path, file: str, old: str, new: str, why: str
) -> None:
    edit(mine / file, old, new)

    with pytest.raises(UserError, match=rf"best\.h has changed since \(.{{16}}, now .{{16}}\), and {why}"):
        from_header(header, str(mine))
    assert "" == from_header(header, str(mine), stale=True).note


def test_a_header_that_another_compiler_built_is_refused(mine: Path, header: Path) -> None:
    facts = parse_header(header.read_text())
    header.write_text(render_header(dataclasses.replace(facts, compiler="NVRTC 12.0.1", cubin_sha256="ab" * 32)))
    edit(mine / "template.py", "def work(", "\n\ndef work(")

    with pytest.raises(UserError, match=r"makes another cubin of it than NVRTC 12\.0\.1 then: search again"):
        from_header(header, str(mine))


def test_a_header_of_these_very_sources_needs_no_proof(mine: Path, header: Path) -> None:
    chosen = from_header(header, str(mine))

    assert (parse_header(header.read_text()), "") == (chosen.facts, chosen.note)
