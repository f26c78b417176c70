"""What a new search begins with and takes seconds to list, from a process of its own while this one imports the
database: the feasible set, and the estimate of a sample of it."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from array import array
from base64 import b64decode, b64encode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from evoengine.archive.documents import typed
from evoengine.cli.resolve import Target, find_question
from evoengine.devices.cuda.process import child_environment
from evoengine.feasible import Combinations, Group
from evoengine.forecast import forecast
from evoengine.hardware import DeviceLimits
from evoengine.question import Question
from evoengine.sampler import INFORMED
from evoengine.sampler.source import Source
from evoengine.space import FeasibleSet

ASKED = ("template", "space", "max_registers", "max_smem", "max_spill_bytes", "shape", "sampler", "seed")
"""The options that decide it, beside the target."""


@dataclass(frozen=True)
class Listed:
    """`estimate` is None where the sampler is told of none."""

    feasible: FeasibleSet
    estimate: Source | None


class Ahead:
    """A process that lists as soon as it is told what, until `close`."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "evoengine.cli.ahead"]
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        self._child = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=null, env=child_environment(), text=True
        )

    def tell(self, arguments: argparse.Namespace, target: Target) -> None:
        """What to list."""
        assert self._child.stdin is not None, "it is a pipe"
        with suppress(BrokenPipeError), self._child.stdin as told:
            options = {name: getattr(arguments, name) for name in ASKED}
            json.dump({"options": options, "device": target.device.as_json(), "limits": target.limits.as_json()}, told)

    def listed(self, question: Question) -> Listed | None:
        """Wait for it; None where the process failed, as it does on every mistake of the user's, or code has changed
        meanwhile: then nothing is known."""
        assert self._child.stdout is not None, "it is a pipe"
        with self._child.stdout as said:
            content = said.read()
        if self._child.wait() != 0:
            return None
        document = json.loads(content)
        return _read(document) if document["digests"] == _digests(question) else None

    def close(self) -> None:
        """End it."""
        self._child.kill()
        with self._child:  # closes the pipes
            self._child.wait()


def _digests(question: Question) -> list[str]:
    return [question.template.digest, question.space.digest]


def _written(question: Question, estimate: Source | None) -> dict[str, Any]:
    """What `_read` reads, with the digests of what it was listed for."""
    listed = {"feasible": feasible_document(question.feasible), "digests": _digests(question)}
    return listed | {"estimate": estimate and asdict(estimate)}


def _read(document: Mapping[str, Any]) -> Listed:
    known = document["estimate"]
    return Listed(as_feasible(document["feasible"]), None if known is None else typed(Source, known))


def feasible_document(feasible: FeasibleSet) -> dict[str, Any]:
    """What `as_feasible` reads, ready for JSON."""
    assert isinstance(feasible.points, Combinations), "a space lists its groups"
    groups = [[group.axes, group.sizes, b64encode(group.codes).decode()] for group in feasible.points.groups]
    return {"groups": groups, "rejected": feasible.rejected, "product": feasible.product}


def as_feasible(document: Mapping[str, Any]) -> FeasibleSet:
    """The set of a `feasible_document`."""
    groups = [
        Group(tuple(axes), tuple(sizes), array("Q", b64decode(codes))) for axes, sizes, codes in document["groups"]
    ]
    return FeasibleSet(Combinations(groups), document["rejected"], document["product"])


def main() -> None:
    """List what is read from standard input, and write it to standard output, which a template may print to."""
    answer = os.dup(1)
    os.dup2(2, 1)
    told = json.load(sys.stdin)
    arguments = argparse.Namespace(**told["options"])
    device, limits = typed(DeviceLimits, told["device"]), typed(DeviceLimits, told["limits"])
    question, _ = find_question(arguments, Target(device, limits, None), *(arguments.shape or ()))
    informed = arguments.sampler in INFORMED and question.feasible.points
    estimate = forecast(question, device).source(arguments.seed) if informed else None
    with open(answer, "w") as out:
        json.dump(_written(question, estimate), out)


if __name__ == "__main__":
    main()
