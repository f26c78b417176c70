"""What template.py declares and gives, held against what it may: its mistakes are told as such, in one line."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

from evoengine.errors import EvoengineError, TemplateError, in_one_line
from evoengine.problem import Problem
from evoengine.template import Argument, Template, TemplateModule, Tensor

DTYPES = {
    "input": ("fp16", "bf16", "fp32"),
    "output": ("fp16", "bf16", "fp32"),
    "scratch": ("fp16", "bf16", "fp32", "int32"),
}
"""Of a tensor, by its role; int32 is for counters alone."""
KINDS: tuple[str, ...] = get_args(get_type_hints(Argument)["kind"])
_MEMBERS = {name for name in vars(TemplateModule) if not name.startswith("_")} | {"full_checks"}


@contextmanager
def template_code(template: Template, what: str) -> Iterator[None]:
    """The template's own Python: what fails there is the template's fault, told with its line."""
    try:
        yield
    except EvoengineError:
        raise
    except Exception as error:
        place, name = f"{template.name}/template.py", what
        ours = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename).is_relative_to(template.folder)
        ]
        if ours:  # else it is called with what it does not take, or gave what nobody can use
            inner = ours[-1]
            place = f"{template.name}/{Path(inner.filename).relative_to(template.folder)}:{inner.lineno}"
            name = ours[0].name if ours[0].name in _MEMBERS else what
        raise TemplateError(f"{place}: {name} fails: {in_one_line(error)}") from error


def guarded(template: Template) -> Template:
    """The same template, whose functions raise nothing but evoengine's errors and give what they should.

    Everything that is called through it may raise TemplateError.
    """
    return dataclasses.replace(template, module=cast(TemplateModule, _Guarded(template)))


class _Guarded:
    """A template's module, each of whose functions is called under `template_code` and its result checked."""

    def __init__(self, template: Template) -> None:
        self._template = template

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._template.module, name)
        return partial(self._call, name, member) if name in _MEMBERS else member

    def _call(self, name: str, member: Callable[..., Any], *arguments: Any) -> Any:
        with template_code(self._template, name):
            given = member(*arguments)
            match name:
                case "tensors":
                    check_tensors(self._template, given)
                case "arguments":
                    check_arguments(self._template, given, self._tensors(arguments[1]))
                case "inputs" | "reference" | "baseline":
                    role = "input" if name == "inputs" else "output"
                    wanted = [tensor for tensor in self._tensors(arguments[0]) if tensor.role == role]
                    check_arrays(self._template, name, given, wanted)
        return given

    def _tensors(self, problem: Problem) -> Sequence[Tensor]:
        return cast(Sequence[Tensor], self.tensors(problem))


def check_tensors(template: Template, tensors: Sequence[Tensor]) -> None:
    """
    Raises:
        TemplateError: one has a role or a dtype that does not exist.
    """
    for tensor in tensors:
        if tensor.role not in DTYPES:
            raise _wrong(template, "tensors", f"{tensor.name} has the role {tensor.role!r}", tuple(DTYPES))
        if tensor.dtype not in DTYPES[tensor.role]:
            what = f"{tensor.role} {tensor.name} has the dtype {tensor.dtype!r}"
            raise _wrong(template, "tensors", what, DTYPES[tensor.role])


def check_arguments(template: Template, arguments: Sequence[Argument], tensors: Sequence[Tensor]) -> None:
    """
    Raises:
        TemplateError: one is of a kind that does not exist, or names no tensor.
    """
    names = tuple(tensor.name for tensor in tensors)
    for number, argument in enumerate(arguments, 1):
        if argument.kind not in KINDS:
            what = f"argument {number}, {argument.value!r}, is of kind {argument.kind!r}"
            raise _wrong(template, "arguments", what, KINDS)
        if argument.kind == "tensor" and argument.value not in names:
            raise _wrong(template, "arguments", f"argument {number} is the tensor {argument.value!r}", names)


def check_count(template: Template, arguments: Sequence[Argument], parameters: int) -> None:
    """
    Raises:
        TemplateError: the kernel has more or fewer `parameters`.
    """
    if len(arguments) != parameters:
        raise TemplateError(
            f"{template.name}/template.py: arguments gives {len(arguments)}, but {template.module.ENTRY} in kernel.cu "
            f"has {parameters} parameters"
        )


def check_arrays(template: Template, who: str, arrays: Mapping[str, Any], tensors: Sequence[Tensor]) -> None:
    """That what `who` of template.py gives is an array of each tensor's shape; of the reference, also in float64.

    Raises:
        TemplateError: it is not.
    """
    where = f"{template.name}/template.py: {who}"
    for tensor in tensors:
        if tensor.name not in arrays:
            raise TemplateError(f"{where} does not give the {tensor.role} {tensor.name}")
        array = arrays[tensor.name]
        dtype, shape = getattr(array, "dtype", type(array).__name__), tuple(getattr(array, "shape", ()))
        if who == "reference" and dtype != "float64":
            raise TemplateError(f"{where} gives {tensor.name} in {dtype}: must be float64, which is the truth here")
        if shape != tuple(tensor.shape):
            raise TemplateError(f"{where} gives {tensor.name} of shape {shape}: its tensor has {tuple(tensor.shape)}")


def _wrong(template: Template, who: str, what: str, valid: Sequence[str]) -> TemplateError:
    return TemplateError(f"{template.name}/template.py: {who}: {what}: must be one of {', '.join(valid)}")
