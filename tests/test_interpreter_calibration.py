"""The interpreter against a card: recorded outputs of single instructions and of attention kernels, bit by bit.

The recording is made by benchmarks/calibrate_interpreter.py; the bounds and their reasons are in
benchmarks/calibration/compare.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_card import FakeCard
from interpreted import ONE_MODE, Array, compile_ptx

from benchmarks import calibrate_interpreter
from benchmarks.calibration import probes
from benchmarks.calibration.cases import (
    CONFIGS,
    NEWER_CONFIGS,
    SHAPES,
    Case,
    attention_cases,
    decode,
    make_record,
    probe_cases,
)
from benchmarks.calibration.compare import difference, disagreement, interpret, magnitudes
from evoengine.build import cache_home
from evoengine.devices.cuda import buffers as cuda_buffers
from evoengine.devices.interpreter import Program, execute
from evoengine.devices.interpreter.parser import parse
from evoengine.dtypes import BITS, Arrays, from_bits
from evoengine.gates import Ceilings, hardware_rules
from evoengine.hardware import card
from evoengine.space import load_space
from evoengine.template import Launch, load_template, shipped

RECORDING = Path(__file__).parent / "data" / "interpreter_calibration.json"
CASES = {case.name: case for case in (*probe_cases(), *attention_cases())}
PROBE_NAMES = [name for name, case in CASES.items() if case.is_probe]
ATTENTION_NAMES = [name for name, case in CASES.items() if not case.is_probe]
ONE_ATTENTION = ATTENTION_NAMES[0]
TO_BE_RECORDED: tuple[str, ...] = ()
"""Cases that the recording lacks, by how they begin. The next one has them, and fails below until none is left here."""


@pytest.fixture(scope="module")
def recording() -> dict[str, Any]:
    if not RECORDING.is_file():
        remedy = f"python benchmarks/calibrate_interpreter.py --output tests/data/{RECORDING.name}"
        pytest.skip(f"no {RECORDING.name}: record it on a machine with a GPU, {remedy}")
    recorded: dict[str, Any] = json.loads(RECORDING.read_text())
    return recorded


@cache
def ptx(defines: tuple[tuple[str, int], ...]) -> str:
    """Compiled for sm_89, the target card, but for wgmma, whatever the recording's: all give the same instructions."""
    case = next(case for case in CASES.values() if macros(case) == defines)
    return compile_ptx(case.template, case.values, case.problem)


def macros(case: Case) -> tuple[tuple[str, int], ...]:
    return tuple(case.request.defines.items())


@cache
def interpreted(name: str) -> Array:
    return interpret(CASES[name], ptx(macros(CASES[name])))


def recorded(names: Sequence[str]) -> list[str]:
    return [name for name in names if not name.startswith(TO_BE_RECORDED)]


def verdict(name: str, record: dict[str, Any]) -> str:
    """Why the interpreter disagrees with a record; empty where it does not."""
    case = CASES[name]
    return disagreement(case, difference(case, decode(case, record), case.sample(interpreted(name))))


# --- the card's recording --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recorded(PROBE_NAMES))
def test_an_instruction_does_what_it_does_on_the_card(name: str, recording: dict[str, Any]) -> None:
    assert "" == verdict(name, recording["cases"][name])


@pytest.mark.parametrize("name", recorded(ATTENTION_NAMES))
def test_attention_gives_what_it_gives_on_the_card(name: str, recording: dict[str, Any]) -> None:
    assert "" == verdict(name, recording["cases"][name])


def test_the_recording_is_of_these_cases_on_a_card(recording: dict[str, Any]) -> None:
    template = CASES[PROBE_NAMES[0]].template

    assert recorded(list(CASES)) == list(recording["cases"])
    assert recording["environment"]["gpu"].startswith("NVIDIA")
    assert (recording["digests"][template.name] == template.device_digest) is not bool(TO_BE_RECORDED)


# --- what the recording covers ---------------------------------------------------------------------------------------


def test_the_configs_cover_every_choice_of_every_axis_and_every_kind_of_problem() -> None:
    template = load_template(shipped("kernel_templates") / "attention")
    space = load_space(shipped("search_spaces") / "attention.py")
    hardware = hardware_rules(template, tuple(axis.name for axis in space), Ceilings())
    cases = [case for case in CASES.values() if not case.is_probe]
    problems = {(case.problem.dtype, case.problem.head_dim, case.problem.causal) for case in cases}  # type: ignore[attr-defined]

    assert len(CONFIGS) + len(NEWER_CONFIGS) == len({macros(case) for case in cases})
    assert 8 == len(SHAPES) == len(problems)
    for axis in space:
        assert set(axis.choices) == {case.values[axis.name] for case in cases}, f"{axis.name}: add it, record again"
    for case in cases:
        broken = space.broken(case.values, case.problem, card("h200"), hardware)
        assert broken is None or broken.rule == "split_needed", broken  # the small problems do need the split


MMA = "mma.sync.aligned.m16n8k16.row.col.f32"
INSTRUCTIONS = {
    "mma_f16": f"{MMA}.f16.f16.f32",
    "mma_bf16": f"{MMA}.bf16.bf16.f32",
    "mma_chain_f16": f"{MMA}.f16.f16.f32 " * 8,
    "mma_chain_bf16": f"{MMA}.bf16.bf16.f32 " * 8,
    "ldmatrix_x4": "ldmatrix.sync.aligned.m8n8.x4.shared.b16",
    "ldmatrix_x4_trans": "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16",
    "shfl_bfly": "shfl.sync.bfly.b32",
    "shfl_idx": "shfl.sync.idx.b32",
    "shfl_up": "shfl.sync.up.b32",
    "shfl_down": "shfl.sync.down.b32",
    "cp_async_16": "cp.async.cg.shared.global",
    "cvt_rn_f16x2": "cvt.rn.f16x2.f32",
    "cvt_rn_bf16x2": "cvt.rn.bf16x2.f32",
    "ex2_approx_ftz": "ex2.approx.ftz.f32",
    "max_f32": "max.f32",
    "fma_add_mul_rcp_div": "fma.rn.f32 add.f32 mul.f32 rcp.rn.f32 div.rn.f32",
    "vote_any_all_ballot": "vote.sync.any.pred vote.sync.all.pred vote.sync.ballot.b32",
    "mma_half_f16": "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16",
    "ex2_approx_f16x2": "ex2.approx.f16x2",
    "mbarrier_ring": "mbarrier.init.shared.b64 mbarrier.init.shared.b64 mbarrier.test_wait.parity.shared.b64 "
    "mbarrier.arrive.shared.b64 mbarrier.test_wait.parity.shared.b64 cp.async.cg.shared.global "
    "cp.async.mbarrier.arrive.noinc.shared.b64",
    "last_cta": "atom.add.acq_rel.gpu.global.u32",
}


def calibrated(name: str) -> list[str]:
    """Instructions of a case's PTX that round, choose between numbers or exchange them between lanes, in order."""
    case = CASES[name]
    instructions = parse(ptx(macros(case)), case.template.module.ENTRY).instructions
    opcodes = [".".join(instruction.opcode) for instruction in instructions]
    exact = ("mov.", "ld.", "st.", "setp.", "selp.", "neg.", "cp.async.commit_group", "cp.async.wait_group")
    arithmetic = [opcode for opcode in opcodes if not opcode.startswith(exact)]
    waits = ("ldmatrix", "shfl", "vote", "cp", "mbarrier", "atom")
    return [code for code in arithmetic if code.endswith(("f32", "f16", "f16x2")) or code.startswith(waits)]


@pytest.mark.parametrize("name", PROBE_NAMES)
def test_a_probe_holds_its_instruction_and_no_other_that_counts(name: str) -> None:
    assert INSTRUCTIONS[name].split() == calibrated(name)


def test_every_such_instruction_of_the_attention_kernels_has_a_probe() -> None:
    builds = {macros(CASES[name]): name for name in ATTENTION_NAMES}
    # sm_90's try_wait asks for a phase as test_wait does
    used = {code.replace(".try_wait.", ".test_wait.") for name in builds.values() for code in calibrated(name)}

    # what a split's counter does shows in the outputs of the configs that split, not in a probe; and what wgmma adds up
    # in those of the configs that have it
    wgmma = "wgmma.mma_async.sync.aligned.m64n64k16.f32"
    probed = set(" ".join(INSTRUCTIONS.values()).split())
    assert {"atom.global.inc.u32", f"{wgmma}.f16.f16", f"{wgmma}.bf16.bf16"} == used - probed


# --- the comparison and the way of a recording, proven with the interpreter as the card ------------------------------


def tampered(name: str, change: Callable[[Array], Array]) -> dict[str, Any]:
    """A record of the interpreter's own output after a change."""
    return make_record(CASES[name], change(interpreted(name).copy()))


@pytest.mark.parametrize("name", [*PROBE_NAMES, ONE_ATTENTION])
def test_the_interpreter_agrees_with_itself(name: str) -> None:
    assert "" == verdict(name, tampered(name, lambda words: words))


EXACT = [name for name in PROBE_NAMES if not name.startswith(("mma", "ex2"))]


@pytest.mark.parametrize("name", EXACT)
def test_one_bit_is_enough_where_an_instruction_is_exact(name: str) -> None:
    result = CASES[name].result

    def flip(words: Array) -> Array:
        bits = words if result == "words" else words.view(BITS[result])
        numbers = np.ones(len(bits)) if result == "words" else from_bits(bits, result)
        bits[np.flatnonzero(np.isfinite(numbers))[-1]] ^= bits.dtype.type(1)
        return words

    assert verdict(name, tampered(name, flip)).startswith("1 of ")


@pytest.mark.parametrize("name", [*(name for name in PROBE_NAMES if name not in EXACT), ONE_ATTENTION])
def test_elements_one_place_off_are_beyond_every_bound(name: str) -> None:
    assert verdict(name, tampered(name, lambda words: np.roll(words, 1)))


@pytest.mark.parametrize("name", ["mma_f16", "ex2_approx_ftz"])
def test_an_infinity_for_a_number_is_beyond_every_bound(name: str) -> None:
    def overflow(words: Array) -> Array:
        words[0] = np.float32(np.inf).view(np.uint32)
        return words

    assert "1 of " in verdict(name, tampered(name, overflow))


def test_nan_payloads_are_counted_and_not_held_against_it() -> None:
    def other_nan(words: Array) -> Array:
        words[np.isnan(words.view(np.float32))] = 0x7FFFFFFF
        return words

    case = CASES["max_f32"]
    record = tampered("max_f32", other_nan)
    seen = difference(case, decode(case, record), interpreted("max_f32"))

    assert "" == disagreement(case, seen)
    assert (0, True) == (seen.unequal, seen.nan_payloads > 0)


@pytest.mark.parametrize("name", [name for name in PROBE_NAMES if name.startswith("mma")])
def test_the_scale_of_an_mma_error_is_what_positive_operands_add_up_to(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = probes.inputs

    def positive(problem: probes.ProbeProblem, seed: int) -> Arrays:
        words, half = given(problem, seed)["x"].view(np.uint32), problem.probe.result == "fp16"
        words[:, :, :4] &= 0x7FFF7FFF if half else 0x7FFFFFFF
        words[:, :, 4:] &= 0x7FFF7FFF
        return {"x": words.view(np.float32)}

    monkeypatch.setattr(probes, "inputs", positive)
    result = CASES[name].result
    sums = from_bits(interpret(CASES[name], ptx(macros(CASES[name]))).view(BITS[result]), result)
    scale = magnitudes(CASES[name])
    normal = np.isfinite(sums) & (sums >= (2.0**-14 if result == "fp16" else 2.0**-126))

    assert normal.mean() > 0.7
    assert np.abs(sums[normal] / scale[normal] - 1).max() < (2.0**-11 if result == "fp16" else 1e-6)


def test_a_recording_of_other_inputs_is_refused() -> None:
    record = make_record(CASES["max_f32"], interpreted("max_f32"))
    with pytest.raises(ValueError, match="max_f32: recorded with other inputs"):
        decode(CASES["max_f32"], record | {"inputs": "0" * 16})


class InterpretingCard(FakeCard):
    """A card whose kernels run in the interpreter, on the buffers that were allocated last."""

    limits = card("l4")
    latest: cuda_buffers.ProblemBuffers

    def load(self, image: bytes, entry: str) -> Any:
        """The PTX that the build room left beside the cubin."""
        cubins = cache_home().rglob("kernel.cubin")
        text = next(path for path in cubins if path.read_bytes() == image).with_name("kernel.ptx").read_text()
        return SimpleNamespace(program=Program(text, entry), unload=lambda: None)

    def bind(self, kernel: Any, launch: Launch, arguments: Sequence[tuple[str, int | float]]) -> Callable[[], None]:
        buffers = {buffer.address: buffer for buffer in self.latest._buffers.values()}
        names = {address: buffer.tensor.name for address, buffer in buffers.items()}
        passed = [names[int(value)] if kind == "pointer" else value for kind, value in arguments]

        def start() -> None:
            initial = {names[address]: buffer.words.numpy().copy() for address, buffer in buffers.items()}
            (left,) = execute(kernel.program, launch, passed, initial, modes=ONE_MODE).buffers
            for buffer in buffers.values():
                buffer.words.copy_(torch.from_numpy(left[buffer.tensor.name].view(np.int16).copy()))

        return start


def test_a_recording_goes_through_build_room_buffers_and_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Seen(cuda_buffers.ProblemBuffers):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            InterpretingCard.latest = self

    monkeypatch.setattr(cuda_buffers, "ProblemBuffers", Seen)
    names = ["mma_bf16", "shfl_down", "cvt_rn_f16x2", "last_cta", ONE_ATTENTION]
    groups = [[CASES[name] for name in names[:-1]], [CASES[ONE_ATTENTION]]]
    made = calibrate_interpreter.record(InterpretingCard(0), groups)  # type: ignore[arg-type]
    file = tmp_path / "made.json"
    file.write_text(json.dumps(made))
    read = json.loads(file.read_text())

    assert names == list(read["cases"])
    assert ("Fake GPU", "sm_89") == (read["environment"]["gpu"], read["arch"])
    assert ["" for _ in names] == [verdict(name, read["cases"][name]) for name in names]
    assert 0 < read["cases"][ONE_ATTENTION]["rel_fro"] < 1e-3
    assert calibrate_interpreter.compare(read, groups)

    swapped = read["cases"] | {"shfl_down": read["cases"]["shfl_down"] | {"words": tampered_words("shfl_down")}}
    assert not calibrate_interpreter.compare(read | {"cases": swapped}, groups)
    assert 1 == capsys.readouterr().out.count("differ in an exact instruction")


def tampered_words(name: str) -> str:
    text: str = tampered(name, lambda words: np.roll(words, 1))["words"]
    return text
