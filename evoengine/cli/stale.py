"""What is no longer what it was: elites, before `resume` goes on with them and before `export`; headers, before they
are taken for kernels of a template that has changed since."""

from __future__ import annotations

from collections.abc import Mapping

from evoengine.archive.study import Study
from evoengine.build import Builder, BuildRequest
from evoengine.cli.headers import Header
from evoengine.devices.interpreter.faults import Unsupported
from evoengine.devices.interpreter.trial import Prover
from evoengine.errors import EvoengineError, UserError
from evoengine.export.chosen import kernel_facts
from evoengine.question import Question
from evoengine.verdict import Rejection
from evoengine.verification import compiler_of, recorded_trial, stale


def check_elites(study: Study, question: Question, builder: Builder) -> None:
    """Rebuild every elite of a study.

    Raises:
        UserError: one is stale.
    """
    _check(study, question, builder, {elite.number for elite in study.elites()})


def check_trial(study: Study, question: Question, number: int) -> None:
    """The same for one trial, elite or not, with the compiler that built it.

    Raises:
        UserError: it is stale, or that compiler is not here.
    """
    try:
        builder = Builder(question.template, study.spec.arch, compiler=compiler_of(study.spec.toolchain))
    except UserError as error:
        raise UserError(
            f"trial {number} of study {study.name} cannot be rebuilt here ({error}); or give --force"
        ) from error
    with builder:
        _check(study, question, builder, {number})


def _check(study: Study, question: Question, builder: Builder, numbers: set[int]) -> None:
    elites = {elite.number: elite for elite in study.elites()}
    records = [record for record in study.records() if record.number in numbers]
    builds = builder.build([question.build_request(record.config.values) for record in records])
    for record, built in zip(records, builds, strict=True):
        elite = elites.get(record.number)
        why = stale(recorded_trial(study.spec, record, elite), question, built, elite)
        if why:
            raise UserError(
                f"trial {record.number} of study {study.name} is stale, {why}: search again, or give --force"
            )


def moved_on(header: Header) -> str:
    """Why a header is not of a kernel of its template, whose digest is another now; empty where it is all the same.

    The digest is of host code too, most of which decides nothing of a kernel. What it decides of macros and launch is
    compared with the header. The compiler that the header names has to make the same cubin. Tensors and arguments no
    header has: so the cubin's PTX is launched in the interpreter as the template now launches it, on the inputs and
    against the reference that it now has, which takes some seconds.
    """
    facts, template, values = header.facts, header.template, header.values
    try:
        problem = header.problem
        now = kernel_facts(template.module, problem, values)
        for name, value in now.items():
            if value != (then := getattr(facts, name)):
                return f"its {name} with it ({_difference(then, value)})"
        with Builder(template, facts.arch, compiler=compiler_of(facts.compiler), jobs=1) as builder:
            [built] = builder.build([BuildRequest(now["defines"], now["smem_bytes"])])
        if isinstance(built, Rejection):
            return f"it does not build any more ({built.reason})"
        if built.cubin_sha256 != facts.cubin_sha256:
            return f"{built.compiler} makes another cubin of it than {facts.compiler} then"
        proof = Prover(template, problem).prove(values, built.ptx.read_text())
    except (EvoengineError, Unsupported) as error:
        return f"it cannot be proven again here ({error})"
    except Exception as error:  # of template.py, which may not know this config any more
        return f"it cannot be proven again here ({type(error).__name__}: {error})"
    return f"it is refused at the gate {proof.gate} ({proof.reason})" if isinstance(proof, Rejection) else ""


def _difference(then: object, now: object) -> str:
    """The first that differs, of macros by name."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        name = next(name for name in (*then, *now) if then.get(name) != now.get(name))
        return f"{name}={then.get(name)}, now {now.get(name)}"
    return f"{then}, now {now}"
