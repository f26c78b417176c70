"""One header for several cards and shapes: the preprocessor finds the right block, or stops."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from measured_study import PROBLEM, make_chosen

from evoengine.cli import main
from evoengine.errors import UserError
from evoengine.export.chosen import Chosen
from evoengine.export.header import render_header
from evoengine.export.targets import render_targets
from evoengine.problem import AttentionProblem

LONG = AttentionProblem(seq_q=1024)
LONGER = AttentionProblem(seq_q=2048)
CAUSAL = AttentionProblem(causal=True)
SAME_KERNEL = [
    make_chosen(PROBLEM, "l4", STAGES=1),
    make_chosen(LONG, "l4", STAGES=3),
    make_chosen(LONGER, "l4", STAGES=3, us=20.0),
    make_chosen(PROBLEM, "h200", STAGES=4, us=3.0),
]
TWO_KERNELS = [make_chosen(PROBLEM, "l4", STAGES=1), make_chosen(CAUSAL, "l4", STAGES=3)]

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on PATH")


def preprocess(folder: Path, chosen: list[Chosen], *defined: str) -> tuple[str, str]:
    """Stages and causal flag that a C++ compiler sees; what it says where it stops."""
    (folder / "best.h").write_text(render_targets(chosen))
    (folder / "use.cpp").write_text('#include "best.h"\nSTAGES EVO_STAGES CAUSAL EVO_CAUSAL\n')
    command = ["g++", "-E", "-P", *(f"-D{macro}" for macro in defined), "use.cpp"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip().splitlines()[-1] if done.returncode == 0 else "", done.stderr


@needs_compiler
@pytest.mark.parametrize(
    ("defined", "stages"),
    [
        (("TARGET_NVIDIA_L4", "SHAPE_B1_H8_S512_D64_fp16"), 1),
        (("TARGET_NVIDIA_L4", "SHAPE_B1_H8_S1024_D64_fp16"), 3),
        (("TARGET_NVIDIA_H200", "SHAPE_B1_H8_S512_D64_fp16"), 4),
        (("TARGET_NVIDIA_H200", "SHAPE_B1_H8_S1024_D64_fp16"), 3),  # another card's, and the right shape
        (("SHAPE_B1_H8_S512_D64_fp16",), 4),  # the faster of two cards'
        (("TARGET_NVIDIA_L4",), 3),  # best at two of its three shapes
        (("TARGET_NVIDIA_H200",), 4),
        ((), 3),  # best at two of four
        (("TARGET_NVIDIA_A10G",), 3),
    ],
)
def test_the_block_of_card_and_shape_is_taken_and_else_the_nearest(
    tmp_path: Path, defined: tuple[str, ...], stages: int
) -> None:
    assert (f"STAGES {stages} CAUSAL 0", "") == preprocess(tmp_path, SAME_KERNEL, *defined)


@needs_compiler
def test_while_kernel_tuner_tunes_the_header_defines_nothing(tmp_path: Path) -> None:
    seen, _ = preprocess(tmp_path, SAME_KERNEL, "kernel_tuner", "TARGET_NVIDIA_L4")

    assert "STAGES EVO_STAGES CAUSAL EVO_CAUSAL" == seen


@needs_compiler
@pytest.mark.parametrize(
    ("defined", "seen"),
    [
        (("TARGET_NVIDIA_L4", "SHAPE_B1_H8_S512_D64_fp16"), "STAGES 1 CAUSAL 0"),
        (("SHAPE_B1_H8_S512_D64_fp16_causal",), "STAGES 3 CAUSAL 1"),
        (("TARGET_NVIDIA_L4",), ""),
        ((), ""),
    ],
)
def test_between_different_kernels_nothing_is_guessed(tmp_path: Path, defined: tuple[str, ...], seen: str) -> None:
    found, said = preprocess(tmp_path, TWO_KERNELS, *defined)

    assert seen == found
    assert ("define one of SHAPE_B1_H8_S512_D64_fp16 SHAPE_B1_H8_S512_D64_fp16_causal" in said) == (seen == "")


@needs_compiler
def test_a_macro_that_is_defined_otherwise_still_stops_the_build(tmp_path: Path) -> None:
    found, said = preprocess(tmp_path, SAME_KERNEL, "EVO_HEAD_DIM=128")

    assert "" == found
    assert "EVO_HEAD_DIM is already defined" in said


def test_of_two_configs_for_one_question_the_faster_measured_one_stays() -> None:
    slow, fast = make_chosen(us=6.0, STAGES=1), make_chosen(us=5.0, STAGES=3)
    guess = make_chosen(us=None, STAGES=4)

    assert render_targets([fast]) == render_targets([slow, fast]) == render_targets([fast, guess])


def test_every_block_says_where_it_is_from() -> None:
    text = render_targets([*SAME_KERNEL, make_chosen(CAUSAL, us=None)])

    for line in (
        "//   device: NVIDIA H200",
        "//   median_us: 20.0",
        "// NOT MEASURED",
        "// Without these macros the last block counts, the default configuration",
        "//   study: of B1_H8_S1024_D64_fp16",
    ):
        assert line in text
    assert text.isascii()


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (make_chosen(LONG, digest="f" * 16), "one file is for one version of one template"),
        (make_chosen(AttentionProblem(causal=True, diagonal=-3)), "would both be SHAPE_B1_H8_S512_D64_fp16_causal_3"),
    ],
)
def test_what_cannot_be_one_header_is_refused(other: Chosen, says: str) -> None:
    with pytest.raises(UserError, match=says):
        render_targets([make_chosen(AttentionProblem(causal=True, diagonal=3)), other])


@pytest.mark.parametrize("form", ["header", "wisdom", "torch"])
def test_what_is_said_to_be_written_is_what_was(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    """Of two configs for one shape and card one is in the file."""
    for name, us in (("slow", 6.0), ("fast", 5.0)):
        made = make_chosen(us=us, STAGES=int(us) - 3)
        facts = dataclasses.replace(made.facts, trial=int(us))
        (tmp_path / f"{name}.h").write_text(render_header(facts))
    export = ["export", str(tmp_path / "slow.h"), str(tmp_path / "fast.h"), "--format", form, "-o"]

    assert 0 == main([*export, str(tmp_path / "out")])
    said = capsys.readouterr().out.splitlines()
    assert 0 == main([*export, str(tmp_path / "again"), "--json"])
    assert [5] == [row["trial"] for row in json.loads(capsys.readouterr().out)["configs"]]
    assert [True, False] == ["trial 5 of" in line and "fast.h" in line for line in said]
    assert said[1].startswith("left out: trial 6 of ")
    assert said[1].endswith(f"{PROBLEM.label} on NVIDIA L4 has a better one")


def test_several_headers_become_one_by_the_command_line(tmp_path: Path) -> None:
    for number, one in enumerate(SAME_KERNEL):
        (tmp_path / f"{number}.h").write_text(render_header(one.facts))
    headers = [str(tmp_path / f"{number}.h") for number in range(4)]

    assert 0 == main(["export", *headers, "-o", str(tmp_path / "all.h")])
    assert render_targets(SAME_KERNEL) == (tmp_path / "all.h").read_text()
    assert 0 == main(["export", headers[0], "-o", str(tmp_path / "one.h")])
    assert (tmp_path / "0.h").read_text() == (tmp_path / "one.h").read_text()
