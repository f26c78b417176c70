"""The worker's bench: proves kernels right on the card, then times them beside the control."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from evoengine.devices.cuda import cold, timer
from evoengine.devices.cuda.baselines import deviation
from evoengine.devices.cuda.card import Card, identify
from evoengine.devices.cuda.control import Control
from evoengine.devices.cuda.driver import CudaError, Kernel
from evoengine.devices.cuda.memory import check_not_taken, room_for_a_context
from evoengine.devices.cuda.messages import (
    SDPA,
    Dropped,
    Hello,
    Judge,
    Judged,
    Lap,
    Open,
    Opened,
    Raced,
    Ready,
    RunFinals,
    SetUp,
    Subject,
    Working,
    make_problem,
)
from evoengine.devices.cuda.prove import Proof, Prover
from evoengine.devices.cuda.results import BaselineTiming
from evoengine.devices.cuda.serve import Tainted, Tell
from evoengine.devices.cuda.windows import Windows
from evoengine.errors import TemplateError, UserError
from evoengine.template import load_template
from evoengine.verdict import Gate, Measurement, Rejection

QUICK_REPEATS = 50
"""Bit-equal repeats for every candidate; a missing barrier of an earlier kernel failed 19-21 launches of 100."""
FINAL_REPEATS = 250
"""For finalists: as often as FlashAttention's race test repeats the forward pass (tests/test_flash_attn.py)."""
FLOOR = "empty kernel"
FINAL_WARM_UP = 50
"""Launches of each finalist before its first window."""


class GpuBench:
    """Answers requests on one card. Any damage to its memory or context is reported; the parent then replaces it."""

    def __init__(self, ordinal: int, tell: Tell) -> None:
        self._ordinal = ordinal
        self._tell = tell

    def hello(self) -> Hello:
        return Hello(*identify(self._ordinal))

    def open(self, request: Open) -> Opened:
        self._template = load_template(Path(request.template))
        self._problem = make_problem(self._template.module.PROBLEM, request.problem)
        with room_for_a_context():
            self._card = Card(self._ordinal)
        self._room_bytes = self._card.free_bytes()
        self._windows = Windows(self._card, self._tell)
        with self._faults():
            self._prover = Prover(
                self._template, self._problem, request.seed, Path(request.scratch), self._card, self._tell,
            )  # fmt: skip
        return Opened(self._card.environment())

    def set_up(self, request: SetUp) -> Ready:
        with self._faults():
            proof = self._prove_control(request.control, QUICK_REPEATS)
            self._tell(Working("time"))
            window = self._windows.of(proof.launch)
            self._windows.warm_up(window)
            self._control = Control(proof, window, self._card, request.reference_us)
            timings: list[BaselineTiming] = []
            unavailable: dict[str, str] = {}
            if request.baselines:
                timings, unavailable = self._time_baselines()
            return Ready(self._control.reference_us, tuple(timings), unavailable, self._control.noise)

    def judge(self, request: Judge) -> Judged:
        with self._faults():
            image = _image(request.subject)
            before = self._card.clocks()
            try:
                kernel = self._card.load(image, self._template.module.ENTRY)
            except CudaError as error:
                return Judged(self._refused(error))
            try:
                judged = self._judge(kernel, request, before)
            except CudaError as error:
                judged = Judged(self._refused(error))
            kernel.unload()
            return judged

    def _judge(self, kernel: Kernel, request: Judge, before: Mapping[str, Any]) -> Judged:
        proof = self._prover.prove(kernel, request.subject.values, QUICK_REPEATS)
        if proof.rejection is not None:
            if not proof.stray and self._prover.recheck(self._control.proof):
                raise Tainted(f"the default config's output changed when {request.subject.name} was judged")
            return Judged(proof.rejection, proof.stray)
        self._tell(Working("time"))
        estimate = self._windows.estimate(proof.launch)
        window = self._windows.of(proof.launch, estimate)
        timed = self._control.time(window, estimate, request.best_us)
        window.destroy()
        if wrong := self._prover.recheck(proof):
            rejection = Rejection(Gate.CORRECTNESS, f"after timing: {wrong}", {}, proof.checks)
            return Judged(rejection, stray=True)
        measurement = Measurement(
            windows_us=tuple(timed.pairs.windows_us),
            control_us=tuple(timed.pairs.control_us),
            control_reference_us=self._control.reference_us,
            launches_per_window=window.launches,
            mode="warm",
            stopped=timed.pairs.stopped,
            clocks={"before": before, "after": timed.clocks},
            checks=proof.checks,
            flags=timed.flags,
            evidence=timed.evidence,
        )
        return Judged(measurement)

    def run_finals(self, request: RunFinals) -> Raced | Dropped:
        with self._faults():
            before = self._card.clocks()
            proofs = {request.control.name: self._prove_control(request.control, FINAL_REPEATS, full=True)}
            for subject in request.finalists:
                try:
                    kernel = self._card.load(_image(subject), self._template.module.ENTRY)
                    proof = self._prover.prove(kernel, subject.values, FINAL_REPEATS, subject.name, full=True)
                except CudaError as error:
                    return Dropped(subject.name, self._refused(error))
                if proof.rejection is not None:
                    return Dropped(subject.name, proof.rejection)
                proofs[subject.name] = proof
            windows: dict[str, timer.Window] = {}
            for name, proof in proofs.items():
                self._tell(Working("check", name))  # still alone on the card: a fault has a name
                windows[name] = self._windows.of(proof.launch)
                for _ in range(-(-FINAL_WARM_UP // windows[name].launches)):
                    windows[name].replay()
                self._card.synchronize()
            contenders, unavailable = self._windows.line_up(request.competitors, self._problem, self._inputs())
            windows |= {name: one.window for name, one in contenders.items()}
            self._tell(Working("time"))
            windows[FLOOR] = self._windows.of(self._card.empty())
            self._windows.warm_up(windows[request.control.name])
            seen: list[dict[str, Any]] = []

            def watch() -> None:
                self._tell(Working("time"))
                seen.append(self._card.clocks())

            times = timer.rounds(
                windows,
                self._card.events,
                self._windows.rounds(windows),
                random.Random(request.seed),
                watch,
            )
            try:
                cold_times, copies = self._time_cold(request, list(contenders), windows)
            except (CudaError, torch.OutOfMemoryError):  # too little memory for the copies and their graphs
                cold_times, copies = {}, 0
            timed, output = self._prover.timed, self._prover.buffers.outputs[0]
            errors = {}
            for name, proof in reversed(proofs.items()):  # the control last: a finalist may be what spoilt it
                wrong = self._prover.recheck(proof)
                if wrong and name == request.control.name:
                    raise TemplateError(f"the default config is wrong after timing: {wrong}")
                if wrong:
                    return Dropped(name, Rejection(Gate.CORRECTNESS, f"after timing: {wrong}", {}, proof.checks))
                errors[name] = deviation(output.values(), timed)
            errors |= {name: deviation(one.call(), timed) for name, one in contenders.items()}

            def lap(name: str) -> Lap:
                checks = proofs[name].checks if name in proofs else ()
                about = contenders[name].about if name in contenders else ""
                cold_us = tuple(cold_times.get(name, ()))
                return Lap(name, tuple(times[name]), windows[name].launches, checks, errors.get(name), about, cold_us)

            finalists = tuple(lap(subject.name) for subject in request.finalists)
            clocks = {"before": before, "after": self._card.clocks(), "during": _worst(seen)}
            laps = tuple(lap(name) for name in contenders)
            return Raced(lap(request.control.name), finalists, laps, lap(FLOOR), unavailable, clocks, copies)

    def _time_cold(
        self, request: RunFinals, contenders: Sequence[str], warm: Mapping[str, timer.Window]
    ) -> tuple[dict[str, list[float]], int]:
        """Cold windows of control, finalists and PyTorch's own backends in rounds, and the number of copies.

        Other competitors are set up for one set of tensors, some for a minute, and get no cold time.
        """
        copies = cold.make_copies(self._prover.buffers, self._card.limits.l2_bytes)
        if not copies:
            return {}, 0
        windows: dict[str, timer.Window] = {}
        for subject in (request.control, *request.finalists):
            self._tell(Working("check", subject.name))
            kernel = self._card.load(_image(subject), self._template.module.ENTRY)
            starts = [self._prover.bind(kernel, subject.values, self._problem, copy) for copy in copies]
            starts[0]()  # a kernel is loaded at its first launch, which a capture might refuse
            self._card.synchronize()
            launches = cold.launches(warm[subject.name].launches, len(copies))
            windows[subject.name] = self._card.graph(cold.InTurn(starts), launches)
        windows |= self._windows.cold(self._problem, [name for name in contenders if name in SDPA], copies, warm)
        self._tell(Working("time"))
        self._card.reset_persisting()
        order = random.Random(request.seed)
        times = timer.rounds(windows, self._card.events, cold.ROUNDS, order, lambda: self._tell(Working("time")))
        for window in windows.values():
            window.destroy()
        return times, len(copies)

    def _prove_control(self, control: Subject, repeats: int, *, full: bool = False) -> Proof:
        try:
            kernel = self._card.load(_image(control), self._template.module.ENTRY)
            proof = self._prover.prove(kernel, control.values, repeats, full=full)
        except CudaError as error:
            raise TemplateError(f"the default config does not start: {error}") from error
        if proof.rejection is not None:
            raise TemplateError(f"the default config is wrong: {proof.rejection.reason}")
        return proof

    def _time_baselines(self) -> tuple[list[BaselineTiming], dict[str, str]]:
        self._prover.buffers.restore()
        contenders, unavailable = self._windows.line_up(SDPA, self._problem, self._inputs())
        timings = []
        for name, one in contenders.items():
            self._tell(Working("time", name))
            pairs = timer.compare(one.window, self._control.window, self._card.events, beaten=False)
            error = deviation(one.call(), self._prover.timed)
            timings.append(
                BaselineTiming(
                    name,
                    tuple(pairs.windows_us),
                    tuple(pairs.control_us),
                    one.window.launches,
                    error.max_abs,
                    error.rel_fro,
                    error.nonfinite,
                )
            )
            one.window.destroy()
        return timings, unavailable

    def _inputs(self) -> list[torch.Tensor]:
        return [buffer.values() for buffer in self._prover.buffers.inputs]

    def _refused(self, error: CudaError) -> Rejection:
        """The verdict on what the driver refuses, unless another process is to blame."""
        free_bytes = self._card.free_bytes()
        check_not_taken(error, self._card.name, free_bytes, self._room_bytes)
        return Rejection(Gate.RUNTIME, str(error), {"error": error.name, "free_bytes": free_bytes})

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Torch reports a kernel's fault as a RuntimeError of some later call; the driver knows its name."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            free = self._card.free_bytes() / 2**30
            raise UserError(
                f"{self._problem.label} does not fit into the {free:.1f} GiB that are free on {self._card.name}: "
                "choose a smaller shape, or end what else uses the card"
            ) from error
        except RuntimeError:
            self._card.synchronize()
            raise


def _image(subject: Subject) -> bytes:
    """The cubin's bytes, proven to be those that were built.

    Raises:
        UserError: the file changed since, or is gone.
    """
    path = Path(subject.cubin)
    try:
        image = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read any more ({error.strerror}): search again, which builds it") from error
    digest = hashlib.sha256(image).hexdigest()
    if digest != subject.cubin_sha256:
        raise UserError(
            f"{path} is not the cubin that was built (sha256 {digest[:12]}, expected {subject.cubin_sha256[:12]}): "
            "delete its folder and search again"
        )
    return image


def _worst(seen: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the clocks after each round: the lowest, and whatever held them down at any time."""
    clocks = [one["sm_clock_mhz"] for one in seen if one.get("sm_clock_mhz") is not None]
    reasons = {reason for one in seen for reason in one.get("slowed_by", ())}
    return {"lowest_sm_clock_mhz": min(clocks, default=None), "slowed_by": sorted(reasons)}
