"""How good the default sampler is at an equal budget, beside Optuna's samplers and Kernel Tuner's strategies.

    python -m venv bench && bench/bin/pip install -r benchmarks/requirements-search.txt
    PYTHONPATH=. bench/bin/python benchmarks/search_efficiency.py SPACE_OR_FOLDER... \\
        --runs runs.jsonl --output studies/search_efficiency.json

Every method searches every recorded space (T4, Kernel Tuner cachefile, our own recording) with every seed; the JSON and
a plot of the same name (.png) are written at the end, the tables printed. Finished runs are kept in the file given as
--runs: cut off, the same command goes on; a space or a method that has changed is run again. --report makes the result
of what is there. `Optuna gp` comes last, for it takes up to a minute a run, the others a second or a few. The runs
behind the committed figures are in studies/search_efficiency_runs.jsonl.gz: unpacked, they are a file to go on with.

The rules, the same for all; in doubt they favour the peers:

- Every recorded config is feasible. One that has not been evaluated costs one evaluation, whether it works or fails;
  infeasible proposals and repeats are free. The budget is in such evaluations.
- A run that ends before its budget, by a strategy's own rule, keeps its best to the end.
- Peers run at their defaults, Optuna's samplers with feasible starts, the nearest feasible config in place of an
  infeasible one and logarithms of times besides (efficiency/optuna_peer.py): without these they fare worse.
- Ours begins at the space's default config, as do Optuna's samplers; few of Kernel Tuner's strategies can be told one.
- `evolution` knows no more of a space than the others do; `evolution, with the estimate` is what a real search is, and
  possible where a recording names its template and card.
- `evoengine --sampler X` is Optuna's sampler X as evoengine ships it, `random` draws feasible configs without repeats.
- Equal seeds give equal runs. Errors are standard errors over seeds of the mean over spaces.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from pathlib import Path

from benchmarks.efficiency import plot, report, runs
from benchmarks.efficiency.methods import METHODS, REQUIREMENTS, missing, version
from benchmarks.efficiency.runs import Key, Run
from evoengine.errors import UserError
from evoengine.recorded.load import load
from evoengine.recorded.recording import FORMAT
from evoengine.recorded.space import RecordedSpace

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""One thread a process, or --jobs would not bound what runs; and sums in one order."""

Task = tuple[Path, Key]


def files(given: Iterable[Path]) -> list[Path]:
    """`given`, with the .gz, .json and .jsonl files in it for a folder.

    Raises:
        UserError: a folder holds none.
    """
    found: list[Path] = []
    for path in given:
        inside = (
            sorted(one for one in path.iterdir() if one.suffix in (".gz", ".json", ".jsonl"))
            if path.is_dir()
            else [path]
        )
        if not inside:
            raise UserError(f"{path} holds no .gz, .json or .jsonl file")
        found += inside
    return found


def tasks(
    spaces: Mapping[Path, RecordedSpace], methods: Sequence[str], seeds: int, budget: int, done: Mapping[Key, Run]
) -> list[Task]:
    """What is left to run: a whole method on all spaces, seed by seed, before the next method."""
    digests = {path: runs.digest(space) for path, space in spaces.items()}
    return [
        (path, key)
        for method in methods
        for seed in range(seeds)
        for path, space in spaces.items()
        if not METHODS[method].own or space.source == FORMAT
        if (key := Key(space.name, digests[path], method, version(method), seed, budget)) not in done
    ]


@lru_cache(maxsize=1)
def _space(path: Path) -> RecordedSpace:
    return load(path)


def run(task: Task) -> Run:
    path, key = task
    space = _space(path)
    start = time.perf_counter()
    rows = METHODS[key.method].search(space, key.seed, key.budget)
    return Run(rows, round(time.perf_counter() - start, 3))


def run_all(left: Sequence[Task], jobs: int) -> Iterator[tuple[Key, Run | BaseException]]:
    """Runs as they finish, or what broke one; in other processes, for Kernel Tuner seeds what a process shares."""
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        key_of = {pool.submit(run, task): task[1] for task in left}
        for future in as_completed(key_of):
            yield key_of[future], future.exception() or future.result()


def arguments_of(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spaces", nargs="+", type=Path, metavar="SPACE_OR_FOLDER")
    parser.add_argument("--runs", type=Path, required=True, metavar="FILE", help="JSON lines of finished runs, kept")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--budget", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--method", action="append", choices=METHODS, metavar="NAME", help="only these (repeatable)")
    parser.add_argument("--report", action="store_true", help="run nothing, report what is there")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = arguments_of(argv)
    methods = arguments.method or list(METHODS)
    lacking = missing([] if arguments.report else methods)
    if lacking:
        raise UserError(
            f"no module {', '.join(lacking)}: pip install -r {REQUIREMENTS}, or choose others with --method"
        )
    spaces = {path: load(path) for path in files(arguments.spaces)}
    if len({space.name for space in spaces.values()}) < len(spaces):
        raise UserError("two of the spaces have the same name: rename a file")
    done = runs.read(arguments.runs)
    left = [] if arguments.report else tasks(spaces, methods, arguments.seeds, arguments.budget, done)
    broken = []
    for number, (key, found) in enumerate(run_all(left, arguments.jobs), 1):
        named = f"{number}/{len(left)} {key.method}, seed {key.seed}, {key.space}"
        if isinstance(found, Run):
            runs.append(arguments.runs, key, found)
            done[key] = found
            print(f"{named}: {found.seconds} s", file=sys.stderr)
        else:
            broken.append(f"{named}: {found!r}")
            print(f"{broken[-1]} (broken)", file=sys.stderr)
    judged = [report.judged(space, done, arguments.budget) for space in spaces.values()]
    if not any(one.figures for one in judged):
        raise UserError(f"{arguments.runs} holds no run of these methods, spaces and budget as they are now")
    command = "python benchmarks/search_efficiency.py SPACES --runs runs.jsonl --output search_efficiency.json"
    document = report.document(judged, arguments.budget, command)
    arguments.output.write_text(report.text(document), encoding="utf-8")
    print(report.table(document))
    plot.draw(judged, arguments.budget, arguments.output.with_suffix(".png"))
    if broken:
        raise UserError(f"{len(broken)} runs broke and are missing; the first: {broken[0]}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"search_efficiency: {error}")
