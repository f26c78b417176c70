"""What goes wrong outside a candidate.

A candidate that fails is a `Rejection`, never an exception. The exceptions here mean that the user asked for something
impossible (`UserError`, exit code 2) or that a template is broken for every config (`TemplateError`, exit code 1).

    EvoengineError
    ├── UserError         bad input: the message names the value and the remedy
    │   ├── UnknownStudy  the database has no study of that name
    │   └── Unavailable   it may be otherwise in a while: the database is away, another process has the study
    └── TemplateError     the template, its default config or its reference is broken
"""

from __future__ import annotations

from typing import Self


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


class UnknownStudy(UserError):
    """No study has that name; `hint` says what to do instead."""

    def __init__(self, name: str, hint: str) -> None:
        super().__init__(f"unknown study {name!r}: {hint}")
        self.hint = hint


class Unavailable(UserError):
    """What may pass by itself: the database does not answer, or another process has the study or the trial."""


class TemplateError(EvoengineError):
    """The template itself is broken (missing macro, default config rejected), so no search can run on it."""
