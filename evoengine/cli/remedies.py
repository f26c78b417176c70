"""What an error tells its reader to give: options of the command line, or what stands for them where there is none."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Remedies:
    """How to name a template, a search space and a study database; `or_force` where what is refused can be forced."""

    template: str
    space: str
    storage: str
    or_force: str

    @property
    def begin(self) -> str:
        """Where there is no study database."""
        return f"start one with `evoengine search`, or name another with {self.storage}"


OPTIONS = Remedies("--template DIR", "--space FILE", "--storage", ", or give --force")
