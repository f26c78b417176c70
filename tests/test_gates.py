"""The static and the resource gate, each limit at its boundary: exactly there passes, one more is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from evoengine.gates import Ceilings, hardware_rules, resource_gate, static_gate
from evoengine.hardware import DeviceLimits, card
from evoengine.problem import AttentionProblem, Problem
from evoengine.space import Axis, Rule, SearchSpace, Values
from evoengine.template import Launch, Template, TemplateModule
from evoengine.verdict import Gate, Rejection, ResourceUsage

L4 = card("l4")
H200 = card("h200")
PROBLEM = AttentionProblem()


def uneven(values: Values, problem: Problem, limits: DeviceLimits) -> str | None:
    return "ODD is 1" if values["ODD"] else None


SPACE = SearchSpace("toy", (Axis("ODD", (0, 1), "o"),), (Rule("uneven", ("ODD",), uneven),), {"ODD": 0})


def static(launch: Launch, limits: DeviceLimits = L4, ceilings: Ceilings | None = None, odd: int = 0) -> str:
    """The static gate's reason for a template that launches like this; empty where it passes."""
    module = cast(TemplateModule, SimpleNamespace(launch=lambda values, problem: launch))
    rules = hardware_rules(Template(Path("toy"), module), ("ODD",), ceilings or Ceilings())
    rejection = static_gate(SPACE, rules, {"ODD": odd}, PROBLEM, limits)
    if rejection is None:
        return ""
    assert Gate.STATIC == rejection.gate
    assert rejection.reason.startswith(f"{rejection.evidence['rule']}: ")
    return rejection.reason


def launch(block: int = 128, smem_bytes: int = 0, min_ctas: int = 1, grid: tuple[int, int, int] = (1, 1, 1)) -> Launch:
    return Launch(grid, block, smem_bytes, min_ctas)


@pytest.mark.parametrize(
    ("passes", "refused", "rule", "numbers"),
    [
        (launch(block=1024), launch(block=1025), "threads_per_cta", ("1025 threads", "1024")),
        (launch(smem_bytes=101376), launch(smem_bytes=101377), "smem_per_cta", ("101377 B", "101376 B")),
        # two CTAs of 50176 B and 1 KB reserved fill an L4's 100 KB; one byte more takes another 128
        (
            launch(smem_bytes=50176, min_ctas=2),
            launch(smem_bytes=50177, min_ctas=2),
            "min_ctas_reachable",
            ("promises 2 CTAs", "smem", "hold 1"),
        ),
        # 1536 threads are 6 CTAs of 256
        (
            launch(block=256, min_ctas=6),
            launch(block=256, min_ctas=7),
            "min_ctas_reachable",
            ("promises 7 CTAs", "threads", "hold 6"),
        ),
        (
            launch(block=32, min_ctas=24),
            launch(block=32, min_ctas=25),
            "min_ctas_reachable",
            ("promises 25 CTAs", "ctas", "hold 24"),
        ),
        (launch(grid=(2**31 - 1, 1, 1)), launch(grid=(2**31, 1, 1)), "grid", ("2147483648", "2147483647")),
        (launch(grid=(1, 65535, 1)), launch(grid=(1, 65536, 1)), "grid", ("65536", "65535")),
        (launch(grid=(1, 1, 65535)), launch(grid=(1, 1, 65536)), "grid", ("65536", "65535")),
    ],
)
def test_what_a_launch_asks_of_the_device(passes: Launch, refused: Launch, rule: str, numbers: tuple[str, ...]) -> None:
    reason = static(refused)

    assert "" == static(passes)
    assert rule == reason.partition(":")[0]
    for number in numbers:
        assert number in reason


def test_shared_memory_of_the_named_card_counts_not_that_of_a_larger_one() -> None:
    assert "" == static(launch(smem_bytes=101377), H200)
    assert "NVIDIA L4" in static(launch(smem_bytes=101377), L4)


def test_the_users_ceiling_on_shared_memory_holds_before_a_build() -> None:
    ceilings = Ceilings(max_smem_bytes=49152)

    assert "" == static(launch(smem_bytes=49152), ceilings=ceilings)
    assert "smem_per_cta: 49153 B of shared memory a CTA, allowed are 49152 B (NVIDIA L4)" == static(
        launch(smem_bytes=49153), ceilings=ceilings
    )


def test_the_users_ceiling_cannot_lift_the_devices() -> None:
    assert "allowed are 101376 B" in static(launch(smem_bytes=101377), ceilings=Ceilings(max_smem_bytes=200000))


def test_the_spaces_own_rule_is_named_first() -> None:
    assert "uneven: ODD is 1" == static(launch(block=1025), odd=1)


def test_a_config_is_launched_once_for_all_rules_and_anew_when_it_changes() -> None:
    """Listing attention's space asks for 74,000 launches otherwise, a quarter of its time."""
    asked: list[int] = []

    def launch(values: Values, problem: Problem) -> Launch:
        asked.append(values["ODD"])
        return Launch((1, 1, 1), 2048 if values["ODD"] else 32, 0)

    rules = hardware_rules(
        Template(Path("toy"), cast(TemplateModule, SimpleNamespace(launch=launch))), ("ODD",), Ceilings()
    )
    values = {"ODD": 0}
    refused = []
    for values["ODD"], problem in ((0, PROBLEM), (1, PROBLEM), (0, PROBLEM), (0, AttentionProblem(seq_q=7))):
        refused.append(sum(rule.check(values, problem, L4) is not None for rule in rules))

    assert [0, 1, 0, 0] == [bool(count) for count in refused]
    assert [0, 1, 0, 0] == asked


def test_hardware_rules_prune_an_enumeration_and_are_counted() -> None:
    module = cast(
        TemplateModule, SimpleNamespace(launch=lambda values, problem: launch(block=1024 if values["ODD"] else 2048))
    )
    rules = hardware_rules(Template(Path("toy"), module), ("ODD",), Ceilings())
    feasible = SPACE.feasible(PROBLEM, L4, rules)

    assert 0 == len(feasible.points)
    assert {"uneven": 1, "threads_per_cta": 1, "smem_per_cta": 0, "min_ctas_reachable": 0, "grid": 0} == (
        feasible.rejected
    )


def usage(
    registers: int = 128, smem_bytes: int = 0, static_smem_bytes: int = 0, stores: int = 0, loads: int = 0
) -> ResourceUsage:
    return ResourceUsage(registers, stores, loads, 0, static_smem_bytes, smem_bytes)


def resources(
    used: ResourceUsage, ceilings: Ceilings | None = None, block: int = 128, limits: DeviceLimits = L4
) -> Rejection | None:
    return resource_gate(used, launch(block=block), limits, ceilings or Ceilings())


@pytest.mark.parametrize(
    ("passes", "refused", "ceilings", "reason"),
    [
        (
            usage(smem_bytes=101376),
            usage(smem_bytes=101377),
            Ceilings(),
            "101377 B of shared memory, allowed are 101376 B",
        ),
        # what the kernel declares statically comes on top of what its launch asks for
        (
            usage(smem_bytes=101248, static_smem_bytes=128),
            usage(smem_bytes=101248, static_smem_bytes=129),
            Ceilings(),
            "101377 B of shared memory, allowed are 101376 B",
        ),
        (
            usage(smem_bytes=4096),
            usage(smem_bytes=4097),
            Ceilings(max_smem_bytes=4096),
            "4097 B of shared memory, allowed are 4096 B",
        ),
        (usage(registers=255), usage(registers=256), Ceilings(), "256 registers a thread, allowed are 255"),
        (
            usage(registers=168),
            usage(registers=169),
            Ceilings(max_registers=168),
            "169 registers a thread, allowed are 168",
        ),
        (
            usage(stores=60, loads=40),
            usage(stores=60, loads=41),
            Ceilings(max_spill_bytes=100),
            "101 B of register spills a thread, allowed are 100",
        ),
        (
            usage(),
            usage(stores=1),
            Ceilings(max_spill_bytes=0),
            "1 B of register spills a thread, allowed are 0",
        ),
    ],
)
def test_what_the_compiler_reported(
    passes: ResourceUsage, refused: ResourceUsage, ceilings: Ceilings, reason: str
) -> None:
    rejection = resources(refused, ceilings)

    assert resources(passes, ceilings) is None
    assert rejection is not None
    assert (Gate.RESOURCES, reason) == (rejection.gate, rejection.reason)


@pytest.mark.parametrize(
    ("used", "ceilings"),
    [
        (usage(registers=256), Ceilings(max_registers=300)),
        (usage(smem_bytes=101377), Ceilings(max_smem_bytes=200000)),
    ],
)
def test_a_ceiling_above_the_devices_lifts_nothing(used: ResourceUsage, ceilings: Ceilings) -> None:
    assert resources(used, ceilings) is not None


def test_spills_are_recorded_and_not_refused_unless_asked() -> None:
    spilling = usage(registers=255, stores=4000, loads=4000)
    refused = resources(spilling, Ceilings(max_spill_bytes=0))

    assert resources(spilling) is None
    assert refused is not None
    assert 8000 == refused.evidence["spill_bytes"]


def test_a_kernel_of_which_not_one_cta_fits_is_refused() -> None:
    # 65536 registers: 32 warps of 64 fit, of 65 only 28
    rejection = resources(usage(registers=65), block=1024)

    assert resources(usage(registers=64), block=1024) is None
    assert rejection is not None
    assert "not one CTA fits on an SM of NVIDIA L4 (bound by registers)" == rejection.reason


def test_the_evidence_lets_a_reader_check_the_verdict() -> None:
    rejection = resources(usage(registers=156, smem_bytes=24448, static_smem_bytes=128), Ceilings(max_registers=128))

    assert rejection is not None
    assert {
        "registers": 156,
        "spill_bytes": 0,
        "smem_bytes": 24576,
        "ctas_per_sm": 3,
        "bound_by": "registers",
        "limits": "NVIDIA L4",
    } == rejection.evidence
