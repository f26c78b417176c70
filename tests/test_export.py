"""The exported header: it compiles with the template, wins or fails loudly, and reads back as the same facts."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoengine.errors import TemplateError, UserError
from evoengine.export.header import GridDim, HeaderFacts, parse_header, render_header
from evoengine.problem import AttentionProblem, problem_fields
from evoengine.space import load_space
from evoengine.template import load_template, shipped

PROBLEM = AttentionProblem(batch=2, heads=8, seq_q=500, head_dim=64)
FACTS = HeaderFacts(
    template="attention",
    template_digest="0123456789abcdef",
    space="attention",
    space_digest="0123456789ab",
    entry="evo_attention",
    config="wm_2.bn_64",
    shape=PROBLEM.label,
    problem=problem_fields(PROBLEM),
    study="attention-L4",
    trial=17,
    device="NVIDIA L4",
    arch="sm_89",
    driver="580.65",
    compiler="NVRTC 13.0",
    cubin_sha256="ab" * 32,
    registers=146,
    spill_bytes=0,
    method="warm L2, windows of 40 launches",
    median_us=5.7712345678901,
    noise=0.004,
    speedup_over_sdpa=1.7,
    speedup_over_default=1.2,
    evoengine_version="0.1.0",
    date="2026-01-02T03:04:05+00:00",
    command="evoengine search --shape '1,8,512,64'",
    defines={"EVO_WARPS_M": 2, "EVO_BLOCK_N": 64, "EVO_OFFSET": -3, "EVO_SMEM_BYTES": 71680},
    grid_ctas=(16, 8, 2),
    block_threads=256,
    smem_bytes=71680,
    grid=(GridDim("seq_q", 32), GridDim("heads", 1), GridDim("batch", 1)),
)

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on PATH")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")


def compile_source(folder: Path, source: str, *command: str) -> subprocess.CompletedProcess[str]:
    (folder / "best.h").write_text(render_header(FACTS))
    (folder / "use.cpp").write_text(source)
    return subprocess.run(
        [*command, "-o", os.devnull, "use.cpp"], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_header_reads_back_as_the_facts_it_was_written_from() -> None:
    assert FACTS == parse_header(render_header(FACTS))


def test_line_ends_of_another_system_are_read() -> None:
    assert FACTS == parse_header(render_header(FACTS).replace("\n", "\r\n"))


def test_an_estimate_is_never_taken_for_a_measurement() -> None:
    facts = dataclasses.replace(
        FACTS, median_us=None, noise=None, speedup_over_sdpa=None, speedup_over_default=None, estimated_us=6.5
    )
    text = render_header(facts)

    assert "NOT MEASURED" in text
    assert "median_us: none" in text
    assert facts == parse_header(text)
    assert "NOT MEASURED" not in render_header(FACTS)


@needs_compiler
@pytest.mark.parametrize("language", ["c", "c++"])
def test_the_header_is_c_and_cpp_without_a_warning(tmp_path: Path, language: str) -> None:
    standard = "c99" if language == "c" else "c++11"
    source = """
        #include "best.h"
        #include "best.h"
        #if EVO_WARPS_M != 2 || EVO_OFFSET + 3 != 0 || EVO_ATTENTION_SMEM_BYTES != EVO_SMEM_BYTES
        #error "macros do not carry the config"
        #endif
        #if EVO_ATTENTION_GRID_X(512) != 16 || EVO_ATTENTION_GRID_X(513) != 17 || EVO_ATTENTION_GRID_Y(8) != 8
        #error "grid formula is wrong"
        #endif
        int grid(int seq) { return EVO_ATTENTION_GRID_X(seq + 1); }
    """
    done = compile_source(
        tmp_path, source, "g++", "-x", language, f"-std={standard}", "-Wall", "-Wextra", "-pedantic", "-Werror", "-c"
    )

    assert (0, "") == (done.returncode, done.stderr)


@needs_compiler
@pytest.mark.parametrize(("defined", "compiles"), [("2", True), ("4", False), ("", False)])
def test_a_macro_defined_otherwise_is_an_error_and_not_an_override(
    tmp_path: Path, defined: str, compiles: bool
) -> None:
    done = compile_source(tmp_path, '#include "best.h"\n', "g++", "-c", f"-DEVO_WARPS_M={defined}")

    assert compiles == (done.returncode == 0)
    assert compiles or "EVO_WARPS_M" in done.stderr


@needs_compiler
@pytest.mark.parametrize(("arch", "compiles"), [(750, False), (800, True), (890, True), (900, True), (1200, True)])
def test_an_architecture_that_is_too_old_is_an_error(tmp_path: Path, arch: int, compiles: bool) -> None:
    done = compile_source(tmp_path, '#include "best.h"\n', "g++", "-c", f"-D__CUDA_ARCH__={arch}")

    assert compiles == (done.returncode == 0)
    assert compiles or "needs sm_80" in done.stderr


@needs_compiler
@pytest.mark.parametrize(
    ("arch", "largest"),
    [(800, 163 * 1024), (860, 99 * 1024), (890, 99 * 1024), (900, 227 * 1024), (1000, 227 * 1024), (1200, 99 * 1024)],
)
def test_shared_memory_beyond_the_architecture_is_an_error(tmp_path: Path, arch: int, largest: int) -> None:
    def compiles(smem_bytes: int) -> bool:
        facts = dataclasses.replace(FACTS, smem_bytes=smem_bytes)
        (tmp_path / "best.h").write_text(render_header(facts))
        command = ["g++", "-fsyntax-only", "-x", "c++", f"-D__CUDA_ARCH__={arch}", "best.h"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0

    assert compiles(largest)
    assert not compiles(largest + 1)


@needs_nvcc
@pytest.mark.parametrize("arch", ["sm_89", "sm_90"])
def test_the_shipped_kernel_builds_from_the_header_alone(tmp_path: Path, arch: str) -> None:
    template = load_template(shipped("kernel_templates") / "attention")
    values = load_space(shipped("search_spaces") / "attention.py").default
    launch = template.module.launch(values, PROBLEM)
    facts = dataclasses.replace(
        FACTS,
        defines=template.module.defines(values, PROBLEM),
        grid_ctas=launch.grid,
        block_threads=launch.block,
        smem_bytes=launch.smem_bytes,
        grid=(),
    )
    (tmp_path / "best.h").write_text(render_header(facts))
    (tmp_path / "use.cu").write_text(f'#include "best.h"\n#include "{template.kernel}"\n')
    command = ["nvcc", "-cubin", f"-arch={arch}", "-std=c++20", "-Werror", "all-warnings", "-o", "kernel.cubin"]
    done = subprocess.run([*command, "use.cu"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)

    assert (0, "") == (done.returncode, done.stderr)
    assert b"evo_attention" in (tmp_path / "kernel.cubin").read_bytes()


@needs_nvcc
def test_the_grid_helper_agrees_with_the_macros(tmp_path: Path) -> None:
    source = """
        #include "best.h"
        #include <cstdio>
        int main() {
            const dim3 grid = evo_attention_grid(2, 8, 500);
            std::printf("%u %u %u", grid.x, grid.y, grid.z);
        }
    """
    (tmp_path / "best.h").write_text(render_header(FACTS))
    (tmp_path / "use.cu").write_text(source)
    subprocess.run(["nvcc", "-arch=sm_89", "-o", "use", "use.cu"], cwd=tmp_path, check=True, timeout=120)
    printed = subprocess.run(["./use"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert "16 8 2" == printed


def test_nvrtc_takes_the_header_too() -> None:
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc")
    source = render_header(FACTS) + 'extern "C" __global__ void evo_attention(int* x) { *x = EVO_BLOCK_N; }'
    _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"use.cu", 0, None, None)
    (status,) = nvrtc.nvrtcCompileProgram(program, 1, [b"--gpu-architecture=sm_89"])
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = bytes(size)  # the binding writes into it; never b" " * size, which for size 1 is the one b" " of the process
    nvrtc.nvrtcGetProgramLog(program, log)

    assert ("NVRTC_SUCCESS", b"") == (status.name, log.strip(b"\0\n "))


SPLIT = dataclasses.replace(
    FACTS,
    grid_ctas=(64, 8, 2),
    grid=(GridDim("seq_q", 32, 4), GridDim("heads", 1), GridDim("batch", 1)),
    scratch={"partials": 17_301_504, "arrivals": 1024},
)


def test_a_grid_that_shares_a_tile_among_ctas_and_its_scratch_are_written_and_read_back() -> None:
    text = render_header(SPLIT)

    assert parse_header(text) == SPLIT
    assert "#define EVO_ATTENTION_GRID_X(seq_q) (((seq_q) + 31) / 32 * 4)\n" in text
    assert "#define EVO_ATTENTION_TUNED_PARTIALS_BYTES 17301504\n" in text
    assert "#define EVO_ATTENTION_TUNED_ARRIVALS_BYTES 1024\n" in text
    assert "Counters are 0 before the first launch" in text
    assert "cratch" not in render_header(FACTS)  # headers of before scratch read back as they were written


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("seq_q/32*4", "seq_q/32*0"), ("seq_q/32*4", "seq_q/32*3"), ('"arrivals": 1024', '"arrivals": -1')],
)
def test_a_split_edited_by_hand_is_refused(right: str, wrong: str) -> None:
    with pytest.raises(UserError, match="export it again"):
        parse_header(render_header(SPLIT).replace(right, wrong))


def test_dimensions_that_the_formula_leaves_out_are_one() -> None:
    rows = dataclasses.replace(FACTS, grid_ctas=(16, 1, 1), grid=(GridDim("seq_q", 32),))
    text = render_header(rows)

    assert rows == parse_header(text)
    assert "return dim3(EVO_ATTENTION_GRID_X(seq_q));" in text


def test_a_header_without_a_grid_says_none() -> None:
    facts = dataclasses.replace(FACTS, grid=())
    text = render_header(facts)

    assert "//   grid: none\n" in text
    assert facts == parse_header(text)
    with pytest.raises(UserError, match="export it again"):
        parse_header(render_header(FACTS).replace("//   grid: seq_q/32 heads/1 batch/1", "//   grid:"))


def test_a_grid_formula_that_contradicts_the_launch_is_refused() -> None:
    wrong = dataclasses.replace(FACTS, grid=(GridDim("seq_q", 64), GridDim("heads", 1), GridDim("batch", 1)))

    with pytest.raises(TemplateError, match=r"gives \[8, 8, 2\], the launch is \(16, 8, 2\)"):
        render_header(wrong)


@pytest.mark.parametrize("name", ["EVO-X", "1X", "X 1\n#error", "", "X" * 65])
def test_a_macro_that_is_no_identifier_is_refused(name: str) -> None:
    with pytest.raises(TemplateError, match="not a C identifier"):
        render_header(dataclasses.replace(FACTS, defines={name: 1}))


HOSTILE = [
    "two\nlines\n#error smuggled",
    "ends the comment */ #error smuggled",
    "splices the next line \\",
    "trigraph ??/",
    "separators \u2028#error \x0b#error \x85#error \x00",
    "  study: other",
]


@needs_compiler
@pytest.mark.parametrize("text", HOSTILE)
def test_no_name_can_leave_its_comment(tmp_path: Path, text: str) -> None:
    facts = dataclasses.replace(FACTS, study=text, problem={**FACTS.problem, "dtype": text})
    rendered = render_header(facts)
    (tmp_path / "best.h").write_text(rendered)
    command = ["g++", "-E", "-trigraphs", "-P", "-x", "c++", "best.h"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert (0, "") == (printed.returncode, printed.stdout.strip())
    assert render_header(parse_header(rendered)) == rendered


@given(st.text(max_size=60), st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**31), 2**31))
def test_what_is_written_reads_back_whatever_the_names(text: str, number: float, value: int) -> None:
    facts = dataclasses.replace(FACTS, device=text, noise=number, defines={"EVO_X": value})
    rendered = render_header(facts)
    read = parse_header(rendered)

    assert rendered.isascii()
    assert number == read.noise
    assert {"EVO_X": value} == read.defines
    assert rendered == render_header(read)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("#define EVO_WARPS_M 2", "#define EVO_WARPS_M 4", "changed after it was exported, line"),
        ("median_us: 5.77", "median_us: 4.77", "changed after it was exported, line"),
        ("noise: 0.004", "noise: nan", "damaged"),
        ("trial: 17", "trial: 17\n//   trial: 18", "given twice"),
        ("trial: 17", "luck: 17", "unknown fact luck"),
        ("//   trial: 17\n", "", "damaged"),
        ("#define EVO_ATTENTION_BLOCK_THREADS 256", "#define EVO_ATTENTION_BLOCK_THREADS many", "is missing"),
        ("#pragma once", "#pragma once\nint surprise;", "changed after it was exported, line"),
        ("format 1", "format 2", "not a header this evoengine reads"),
        ("seq_q/32", "seq_q/0", "damaged"),
        ('"batch": 2', '"batch": [2]', "damaged"),
    ],
)
def test_a_header_changed_by_hand_is_told_apart(old: str, new: str, says: str) -> None:
    text = render_header(FACTS)
    changed = text.replace(old, new, 1)

    assert changed != text
    with pytest.raises(UserError, match=says):
        parse_header(changed)


@pytest.mark.parametrize("text", ["", "#pragma once\n", "\x00" * 100, "x" * 300_000])
def test_what_is_no_header_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_header(text)
