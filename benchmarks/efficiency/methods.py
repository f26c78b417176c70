"""Every way to search that is compared, by name: ours as it ships, Optuna's samplers, Kernel Tuner's strategies."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import evoengine
from benchmarks.efficiency import kernel_tuner_peer, optuna_peer
from evoengine.cli.replay import estimated, forecast_of
from evoengine.errors import UserError
from evoengine.recorded.replay import replay
from evoengine.recorded.space import RecordedSpace

Search = Callable[[RecordedSpace, int, int], tuple[int, ...]]
"""Space, seed and budget to the rows evaluated, in order."""

REQUIREMENTS = "benchmarks/requirements-search.txt"
OURS, OPTUNA, KERNEL_TUNER = "evoengine", "Optuna", "Kernel Tuner"


@dataclass(frozen=True, slots=True)
class Method:
    """`needs` are modules beyond evoengine's own dependencies; `files` and `package` say which version ran. One that
    asks for the latency estimate is for `own` recordings, which name their template and card.
    """

    family: str
    search: Search
    package: str
    files: tuple[Path, ...]
    needs: tuple[str, ...] = ()
    own: bool = False


def _shipped(sampler: str, batch: int = 1) -> Search:
    return lambda space, seed, budget: replay(space, sampler=sampler, seed=seed, budget=budget, batch=batch).rows


def _informed(space: RecordedSpace, seed: int, budget: int) -> tuple[int, ...]:
    sources = estimated(forecast_of(space), seed)
    return replay(space, sampler="evolution", seed=seed, budget=budget, sources=sources).rows


def _methods() -> dict[str, Method]:
    package = Path(evoengine.__file__).parent
    shipped = (*sorted((package / "sampler").glob("*.py")), package / "recorded" / "replay.py")
    stock = tuple(
        path for path in shipped if path.stem in ("proposer", "stock", "starts", "valid", "encoding", "replay")
    )
    estimate = (package / "forecast.py", package / "devices" / "estimate.py", package / "cli" / "replay.py")
    here = Path(__file__).parent
    found = {
        "evolution": Method(OURS, _shipped("evolution"), "optuna", shipped),
        "evolution, batches of 16": Method(OURS, _shipped("evolution", 16), "optuna", shipped),
        "evolution, with the estimate": Method(OURS, _informed, "optuna", (*shipped, *estimate), own=True),
        "random": Method(OURS, _shipped("random"), "optuna", stock),
    }
    for name in ("tpe", "nsga2", "cmaes"):
        found[f"evoengine --sampler {name}"] = Method(OPTUNA, _shipped(name), "optuna", stock)
    for name in kernel_tuner_peer.STRATEGIES:
        search = partial(_kernel_tuner, name)
        files = (here / "kernel_tuner_peer.py",)
        found[f"Kernel Tuner {name}"] = Method(KERNEL_TUNER, search, "kernel_tuner", files, ("kernel_tuner",))
    for name in optuna_peer.PEERS:  # its Gaussian process last: it takes longer than all others together
        needs = ("torch", "scipy") if name == "gp" else ()
        found[f"Optuna {name}"] = Method(OPTUNA, partial(_optuna, name), "optuna", (here / "optuna_peer.py",), needs)
    return found


def _optuna(name: str, space: RecordedSpace, seed: int, budget: int) -> tuple[int, ...]:
    return optuna_peer.search(space, optuna_peer.PEERS[name], seed, budget)


def _kernel_tuner(name: str, space: RecordedSpace, seed: int, budget: int) -> tuple[int, ...]:
    return kernel_tuner_peer.search(space, name, seed, budget)


METHODS = _methods()


def missing(methods: Iterable[str]) -> list[str]:
    """Modules that are not installed, of those that `methods` and the plot need."""
    needed = {"matplotlib"}.union(*(METHODS[name].needs for name in methods))
    return sorted(module for module in needed if importlib.util.find_spec(module) is None)


@cache
def version(name: str) -> str:
    """What runs: the package's version and 12 hex digits over our own source files that decide the outcome.

    Raises:
        UserError: the package is not installed.
    """
    method = METHODS[name]
    try:
        of_package = importlib.metadata.version(method.package)
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"{name} needs {method.package}: pip install -r {REQUIREMENTS}") from error
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in method.files)).hexdigest()[:12]
    return f"{method.package} {of_package}, {digest}"
