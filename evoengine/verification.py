"""Whether a config is still what it was when it was confirmed or exported: what was recorded against what is here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from evoengine.archive.records import Elite, Record, StudySpec
from evoengine.build.toolchain import Compiler
from evoengine.devices.cuda.results import Final
from evoengine.export.header import HeaderFacts
from evoengine.question import Question
from evoengine.verdict import Artifact, Measurement, Rejection

MARGIN = 0.01
"""How far the ratio to the default config may move from process to process beyond what its windows show: the 1 %
that a confirmed gain has to exceed."""

TimingVerdict = Literal["FASTER", "SAME", "SLOWER"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A config as it was confirmed, measured or exported.

    `ratio` is its time over the default config's, in one run; `low` and `high` bound it where a final run did. None
    where nothing was measured. `driver` is empty where there was no card.
    """

    template: str
    compiler: str
    arch: str
    cubin_sha256: str
    card: str
    driver: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None


def recorded_trial(spec: StudySpec, record: Record, elite: Elite | None) -> Recorded:
    """A trial of a study; of an elite, the final run's numbers."""
    assert record.build is not None, "a config that passed every gate was built"
    bounds = elite.evidence if elite else {}
    measured = record.verdict.ratio if isinstance(record.verdict, Measurement) else None
    return Recorded(
        template=elite.source_digest if elite else spec.template_digest,
        compiler=record.build.compiler,
        arch=record.build.arch,
        cubin_sha256=elite.cubin_sha256 if elite else record.build.cubin_sha256,
        card=spec.device,
        driver=str((elite or record).environment.get("driver", "")),
        ratio=elite.control_ratio if elite else measured,
        low=bounds.get("control_ratio_low"),
        high=bounds.get("control_ratio_high"),
    )


def recorded_header(facts: HeaderFacts) -> Recorded:
    """A config from its exported header."""
    return Recorded(
        template=facts.template_digest,
        compiler=facts.compiler,
        arch=facts.arch,
        cubin_sha256=facts.cubin_sha256,
        card=facts.device,
        driver="" if facts.driver == "none" else facts.driver,
        ratio=1.0 / facts.speedup_over_default if facts.speedup_over_default else None,
    )


def compiler_of(version: str) -> Compiler:
    """Which compiler calls itself that."""
    return "nvcc" if version.startswith("nvcc") else "nvrtc"


def differences(then: Recorded, now: Mapping[str, str]) -> list[dict[str, str]]:
    """What of `now` (fields of a Recorded) is not as it was; a field that either side lacks cannot be compared."""
    pairs = [(name, str(getattr(then, name)), value) for name, value in now.items()]
    return [{"what": name, "then": was, "now": value} for name, was, value in pairs if was and value and was != value]


def not_reproduced(then: Recorded, question: Question, built: Artifact | Rejection) -> str:
    """Why today's build contradicts the recorded one; empty where another compiler or template may be the cause."""
    if isinstance(built, Rejection):
        return f"does not build any more: {built.reason}"
    same = (then.template, then.compiler, then.arch) == (question.template.digest, built.compiler, built.arch)
    if same and built.cubin_sha256 != then.cubin_sha256:
        return (
            f"{built.compiler} makes another cubin of the same sources (sha256 {built.cubin_sha256[:12]}, "
            f"recorded {then.cubin_sha256[:12]})"
        )
    return ""


def stale(then: Recorded, question: Question, built: Artifact | Rejection, elite: Elite | None = None) -> str:
    """Why a recorded config must not be taken for what is here; empty where it may."""
    if then.template != question.template.digest:
        return f"it was confirmed with other sources (digest {then.template}, now {question.template.digest})"
    if elite is not None and hashlib.sha256(elite.cubin).hexdigest() != elite.cubin_sha256:
        return "its cubin in the database is damaged"
    return not_reproduced(then, question, built)


def against_recorded(now: Final, then: Recorded) -> TimingVerdict | None:
    """Today's ratio to the default config against the recorded one; None where none was recorded.

    FASTER and SLOWER where the two 95 % intervals lie further apart than MARGIN.
    """
    if then.ratio is None:
        return None
    low, high = then.low or then.ratio, then.high or then.ratio
    if now.ratio_high < low * (1 - MARGIN):
        return "FASTER"
    return "SLOWER" if now.ratio_low > high * (1 + MARGIN) else "SAME"
