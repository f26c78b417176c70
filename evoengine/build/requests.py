"""What is asked of the builder: a candidate for one problem, or for every problem of a set."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from evoengine.verdict import Artifact, Rejection, together


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """One candidate to compile: its macros without `-D`, and the dynamic shared memory of its launch in bytes.

    For several problems `members` has what each asks, by its label, and the rest is the first one's. Those with the
    same macros are one build.
    """

    defines: Mapping[str, int]
    smem_bytes: int
    members: Mapping[str, BuildRequest] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[BuildRequest, ...]:
        """What is compiled."""
        return tuple(self.members.values()) or (self,)


def gathered(
    requests: Sequence[BuildRequest], results: Iterable[tuple[int, Artifact | Rejection]]
) -> Iterator[tuple[int, Artifact | Rejection]]:
    """The result of each request from those of its `parts`, numbered through; a set's first rejection is the set's."""
    places = [(index, at) for index, request in enumerate(requests) for at, _ in enumerate(request.parts)]
    built: dict[int, dict[int, Artifact]] = {}
    refused: set[int] = set()
    for place, result in results:
        index, at = places[place]
        request = requests[index]
        if not request.members:
            yield index, result
        elif isinstance(result, Artifact):
            members = built.setdefault(index, {})
            members[at] = result
            if len(members) == len(request.members):
                yield index, together([members[each] for each in sorted(members)])
        elif index not in refused:
            refused.add(index)
            label = list(request.members)[at]
            yield index, dataclasses.replace(result, reason=f"{label}: {result.reason}")
