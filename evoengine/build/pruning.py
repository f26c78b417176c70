"""What the cache can do without: builds by name or by age, and what killed processes left behind."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from evoengine.build.cache import CacheLock, unusable

DAY_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True)
class Pruned:
    """Builds removed and kept, in numbers and bytes, and work folders of killed processes removed."""

    removed: int
    removed_bytes: int
    kept: int
    kept_bytes: int
    abandoned: int


def prune(home: Path, wanted: Callable[[], set[str]], older_than_days: float | None, *, dry_run: bool) -> Pruned:
    """Remove the builds whose digests are not `wanted`; by age alone, wanted or not, with `older_than_days`.

    Nobody builds from when `wanted` is asked to the end, so every work folder is one that a killed process has left,
    and goes too.

    Raises:
        UserError: another evoengine uses the cache, or what is to go cannot be removed.
    """
    if not home.is_dir():
        return Pruned(0, 0, 0, 0, 0)
    lock = CacheLock(home)
    with closing(lock):
        lock.take()
        removes = _others(wanted()) if older_than_days is None else _older(older_than_days)
        numbers, sizes = {True: 0, False: 0}, {True: 0, False: 0}
        for build in list(_builds(home)):
            goes = removes(build)
            numbers[goes] += 1
            sizes[goes] += sum(file.stat().st_size for file in build.iterdir())
            if goes and not dry_run:
                _remove(home, build)
        left = list((home / "work").iterdir()) if (home / "work").is_dir() else []
        if not dry_run:
            for folder in left:
                _remove(home, folder)
    return Pruned(numbers[True], sizes[True], numbers[False], sizes[False], len(left))


def _others(wanted: set[str]) -> Callable[[Path], bool]:
    return lambda build: build.name not in wanted


def _older(days: float) -> Callable[[Path], bool]:
    since = time.time() - days * DAY_SECONDS
    return lambda build: build.stat().st_mtime < since


def _builds(home: Path) -> Iterator[Path]:
    """Folders with the name of a build, in their place; what else somebody keeps in the cache is left alone."""
    for build in sorted((home / "builds").glob("??/*")):
        if re.fullmatch("[0-9a-f]{32}", build.name) and build.parent.name == build.name[:2] and build.is_dir():
            yield build


def _remove(home: Path, folder: Path) -> None:
    """A kill in the middle leaves an entry with files missing, which is built again when it is wanted."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise unusable(home, error) from error
