"""Compiler logs: what a kernel costs, and why there is none."""

from __future__ import annotations

import pytest

from evoengine.build.log import failure, out_of_memory, resource_usage
from evoengine.errors import TemplateError, UserError
from evoengine.verdict import Gate, ResourceUsage

HEAD = "ptxas info    : 0 bytes gmem\nptxas info    : Compiling entry function 'evo_x' for 'sm_89'\n"
USED = (
    "ptxas info    : Used 96 registers, used 3 barriers, 944 bytes cumulative stack size, 512 bytes smem, "
    "392 bytes cmem[0]\n"
)
FRAMES = {
    "nvrtc": "ptxas         .     944 bytes stack frame, 1488 bytes spill stores, 1500 bytes spill loads\n",
    "nvcc": "    944 bytes stack frame, 1488 bytes spill stores, 1500 bytes spill loads\n",
}


@pytest.mark.parametrize("compiler", FRAMES)
def test_both_spellings_of_ptxas_are_read(compiler: str) -> None:
    log = HEAD + "ptxas info    : Function properties for evo_x\n" + FRAMES[compiler] + USED

    assert ResourceUsage(
        registers=96,
        spill_store_bytes=1488,
        spill_load_bytes=1500,
        stack_bytes=944,
        static_smem_bytes=512,
        smem_bytes=65536,
        barriers=3,
    ) == resource_usage(log, "evo_x", 65536)


def test_what_ptxas_leaves_out_is_zero() -> None:
    usage = resource_usage(HEAD + "ptxas info    : Used 10 registers, 360 bytes cmem[0]\n", "evo_x", 0)

    assert ResourceUsage(10, 0, 0, 0, 0, 0, 0) == usage


def test_spills_of_functions_that_were_not_inlined_count() -> None:
    helper = "    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n"
    usage = resource_usage(HEAD + helper + FRAMES["nvcc"] + USED, "evo_x", 0)

    assert (960, 1496, 1504) == (usage.stack_bytes, usage.spill_store_bytes, usage.spill_load_bytes)


@pytest.mark.parametrize(
    ("log", "found"),
    [
        ("", "none"),
        (HEAD.replace("evo_x", "evo_y") + USED, "evo_y"),
        (HEAD + USED + HEAD.replace("evo_x", "evo_y") + USED, "evo_x, evo_y"),
    ],
)
def test_a_log_of_other_kernels_is_refused(log: str, found: str) -> None:
    with pytest.raises(TemplateError, match=f"evo_x; it defines {found}$"):
        resource_usage(log, "evo_x", 0)


@pytest.mark.parametrize(
    ("log", "reason", "lasting"),
    [
        (
            'src/a.cuh(9): error: static assertion failed with "EVO rule whole_warps: 33 is odd"\n'
            'src/a.cuh(12): error: identifier "nope" is undefined\n',
            "rule whole_warps: 33 is odd",
            True,
        ),
        (
            'kernel.cu(1): warning #177-D: "x" declared\nkernel.cu(3): error: identifier "nope" is undefined\n  code\n',
            'kernel.cu(3): error: identifier "nope" is undefined',
            True,
        ),
        (
            "ptxas error   : Entry function 'f' uses too much shared data (0x20000 bytes, 0xc000 max)\n",
            "ptxas error   : Entry function 'f' uses too much shared data (0x20000 bytes, 0xc000 max)",
            True,
        ),
        (
            "nvcc error   : 'cicc' died due to signal 11 (Invalid memory reference)\n",
            "compiler killed by signal 11",
            False,
        ),
        ("\nnvrtc returned NVRTC_ERROR_OUT_OF_MEMORY\n", "compiler failed: NVRTC_ERROR_OUT_OF_MEMORY", False),
        ("", "compiler failed and gave no reason", False),
        (
            'kernel.cu(2): catastrophic error: cannot open source file "cuda_fp16.h"\n',
            'kernel.cu(2): catastrophic error: cannot open source file "cuda_fp16.h": NVRTC has no headers of CUDA or '
            "C++, do without or compile with --compiler nvcc",
            True,
        ),
    ],
)
def test_a_failure_says_why_and_whether_it_would_last(log: str, reason: str, lasting: bool) -> None:
    rejection, stays = failure(log, "NVRTC 13.0.88", "sm_89")

    assert (Gate.COMPILE, reason, lasting) == (rejection.gate, rejection.reason, stays)
    assert log == rejection.evidence["log_tail"]


@pytest.mark.parametrize(
    ("log", "starved"),
    [
        ("kernel.cu(2): catastrophic error: out of memory\n", True),
        ("LLVM ERROR: out of memory\nnvcc error   : 'cicc' died due to signal 6\n", True),
        ("\nnvrtc returned NVRTC_ERROR_OUT_OF_MEMORY\n", True),
        ("ptxas fatal   : Memory allocation failure\n", True),
        ("terminate called after throwing an instance of 'std::bad_alloc'\n", True),
        ('kernel.cu(2): error: static assertion failed with "EVO rule ring: out of memory for 4 stages"\n', False),
        ('kernel.cu(3): error: identifier "nope" is undefined\n', False),
    ],
)
def test_a_compiler_that_got_no_more_memory_is_told_by_its_words(log: str, starved: bool) -> None:
    assert starved == out_of_memory(log)


def test_a_rule_caught_late_is_named_in_the_evidence() -> None:
    log = 'kernel.cu(2): error: static assertion failed with "EVO rule smem_model: sizes differ"\n'
    rejection, _ = failure(log, "nvcc 13.0.88", "sm_89")

    assert ("smem_model", True) == (rejection.evidence["rule"], rejection.evidence["late_rule"])


@pytest.mark.parametrize(
    ("log", "kind", "names"),
    [
        ('kernel.cu(2): catastrophic error: #error directive: "EVO missing EVO_STAGES"', TemplateError, "EVO_STAGES"),
        ('kernel.cu:2:2: error: #error "EVO missing EVO_STAGES"', TemplateError, "EVO_STAGES"),
        ("nvrtc: error: invalid value for --gpu-architecture (-arch)", UserError, "sm_89"),
        ("nvcc fatal   : Unsupported gpu architecture 'sm_89'", UserError, "sm_89"),
        ("nvcc fatal   : Cannot find compiler 'gcc'", UserError, "gcc"),
        ("kernel.cu: fatal error: error writing to k.ii: No space left on device", UserError, "EVOENGINE_HOME"),
    ],
)
def test_what_no_config_can_help_is_raised(log: str, kind: type[Exception], names: str) -> None:
    with pytest.raises(kind, match=names):
        failure(log, "the compiler", "sm_89")
