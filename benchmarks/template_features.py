"""What is known of a recorded config besides its knobs: before it is compiled, and after."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from evoengine.cli.replay import forecast_of
from evoengine.devices.estimate import expected_resources
from evoengine.hardware import occupancy
from evoengine.recorded.document import read_document
from evoengine.recorded.space import RecordedSpace
from evoengine.sampler.surrogate import Floats
from evoengine.template import Launch
from evoengine.verdict import ResourceUsage


def static_features(path: Path, space: RecordedSpace) -> Floats:
    """Of every config: threads, shared memory, CTAs, CTAs on an SM by the registers expected, waves. Each in 0..1."""
    forecast = forecast_of(space)
    assert forecast is not None, f"{path} names a template and a card"
    rows = []
    for values, launch, _ in _configs(path, space):
        used = expected_resources(launch, forecast.module.work(values, forecast.problem), forecast.card)
        fitting = max(occupancy(forecast.card, launch.block, used.registers, launch.smem_bytes).ctas_per_sm, 1)
        waves = -(-launch.ctas // (fitting * forecast.card.sms))
        logs = np.log2([launch.block, launch.ctas, fitting, waves])
        rows.append([*logs, launch.smem_bytes])
    return _scaled(rows)


def compiled_features(path: Path, space: RecordedSpace) -> Floats:
    """Of every config what the compiler reports: registers, spills, CTAs on an SM. Each in 0..1."""
    forecast = forecast_of(space)
    assert forecast is not None, f"{path} names a template and a card"
    rows = []
    for _, launch, used in _configs(path, space):
        smem_bytes = used.static_smem_bytes + launch.smem_bytes
        fitting = occupancy(forecast.card, launch.block, used.registers, smem_bytes, used.barriers).ctas_per_sm
        rows.append([used.registers, np.log1p(used.spill_bytes), np.log2(max(fitting, 1))])
    return _scaled(rows)


def _configs(path: Path, space: RecordedSpace) -> Iterator[tuple[dict[str, int], Launch, ResourceUsage]]:
    """Values, launch and resources of every config that was timed, in the order of the space's points."""
    forecast = forecast_of(space)
    assert forecast is not None, f"{path} names a template and a card"
    found = {}
    for row in read_document(path).entries:
        values = {**forecast.fixed, **row["values"]}
        found[space.search_space.point({axis.name: values[axis.name] for axis in space.axes})] = (values, row)
    for point in space.points:
        values, row = found[point]
        yield values, forecast.module.launch(values, forecast.problem), ResourceUsage(**row["resources"])


def _scaled(rows: list[list[float]]) -> Floats:
    table = np.array(rows, dtype=np.float64)
    return np.asarray((table - table.min(axis=0)) / np.maximum(np.ptp(table, axis=0), 1e-9))
