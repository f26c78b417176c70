"""What goes wrong outside a candidate.

A candidate that fails is a `Rejection`, never an exception. The exceptions here mean that the user asked for something
impossible (`UserError`, exit code 2) or that a template is broken for every config (`TemplateError`, exit code 1).

    EvoengineError
    ├── UserError         bad input: the message names the value and the remedy
    │   ├── SeeStudies    more is to be seen in the database
    │   │   └── UnknownStudy  which has no study of that name
    │   └── Unavailable   it may be otherwise in a while: the database is away, another process has the study
    └── TemplateError     the template, its default config or its reference is broken
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Self


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean X? `, where one of those `known` is near to what was written; else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}? " if near else ""


class EvoengineError(Exception):
    """Base of every error evoengine raises on purpose; its message is one line and meant for the user."""

    exit_code = 1

    def saying(self, message: str) -> Self:
        """The same error with another message: of its type, and with all that it carries, whatever it is made from."""
        other = type(self).__new__(type(self), message)
        other.__dict__.update(self.__dict__)
        return other


class UserError(EvoengineError):
    """Input that cannot be used. The message names the value and says what to do instead."""

    exit_code = 2


class SeeStudies(UserError):
    """What is wrong with a study of a database, and the `commands` that show what there is in it."""

    def __init__(self, what: str, *commands: str) -> None:
        super().__init__(what)
        self._commands = commands

    def __str__(self) -> str:
        return self.told("")

    def told(self, storage: str) -> str:
        """The message with the commands as they must be given: behind each the option `storage`."""
        if not self._commands:
            return str(self.args[0])
        return f"{self.args[0]}see {' and '.join(f'`{command}{storage}`' for command in self._commands)}"

    def saying(self, message: str) -> Self:
        other = super().saying(message)
        other._commands = ()  # the message names them, or something else
        return other


class UnknownStudy(SeeStudies):
    """No study has that name; `hint` is the nearest of those that are `known`."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.hint = did_you_mean(name, known)
        super().__init__(f"unknown study {name!r}: {self.hint}", "evoengine studies")


class Unavailable(UserError):
    """What may pass by itself: the database does not answer, or another process has the study or the trial."""


class TemplateError(EvoengineError):
    """The template itself is broken (missing macro, default config rejected), so no search can run on it."""


def in_one_line(error: Exception) -> str:
    """Type and message; numpy's have several lines."""
    return " ".join(f"{type(error).__name__}: {error}".split())
