"""PTX text to instructions: the subset of the PTX ISA 9.0 grammar that NVVM writes and inline assembly uses.

Only the named entry is read. Debug directives, pragmas and most performance directives carry no meaning here and are
skipped; registers declared inside a nested `{ }` (inline assembly does that) get a name of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import prod

from evoengine.devices.interpreter.faults import Unsupported

_WIDTHS = {"pred": 0, "8": 1, "16": 2, "32": 4, "64": 8}
_REGISTER = re.compile(r"(%?[\w$]+)(?:<(\d+)>)?$")
_VARIABLE = re.compile(
    r"\.(shared|local)\s+(?:\.align\s+(\d+)\s+)?\.(?:[busf])(\d+)\s+([\w$]+)((?:\[\d*\])*)\s*(?:=.*)?$", re.S
)
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+\d+\s+)?\.[busf](\d+)\s+(?:\.ptr\s*[^,]*?\s)?([\w$]+)(\[\d+\])?$", re.S
)
_TABLE = re.compile(r"\.global\s+(?:\.align\s+\d+\s+)?\.b8\s+(__cudart_\w+)\[\d+\]\s*=\s*\{([^}]*)\}")
_BOUND = re.compile(r"\.(maxntid|minnctapersm|maxnreg)\s+(\d+(?:\s*,\s*\d+)*)")
_LABEL = re.compile(r"([\w$]+)\s*:(?!:)")
_NAME = re.compile(r"%?[A-Za-z_$][\w$]*")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: `opcode` without its dots, operands as written, `guard` the predicate of `@p` or `@!p`."""

    opcode: tuple[str, ...]
    operands: tuple[str, ...]
    guard: str = ""
    negated: bool = False

    @property
    def text(self) -> str:
        guard = f"@{'!' if self.negated else ''}{self.guard} " if self.guard else ""
        return f"{guard}{'.'.join(self.opcode)} {', '.join(self.operands)}".strip()


@dataclass(frozen=True, slots=True)
class Variable:
    """A .shared or .local array. `bytes` is 0 for the extern array that takes the launch's dynamic shared memory."""

    name: str
    align: int
    bytes: int


@dataclass(slots=True)
class Entry:
    """One kernel: parameter names with their widths, registers with their widths (0 for predicates), code, labels.

    `tables` are the bytes of the compiler's own tables, which sinf and cosf read of large arguments. A __device__
    variable of the user's is none: it would keep what a launch writes, which is lost here. `bounds` are threads a CTA
    (maxntid), CTAs an SM (minnctapersm) and registers a thread (maxnreg), where they are given.
    """

    name: str
    parameters: dict[str, int] = field(default_factory=dict)
    registers: dict[str, int] = field(default_factory=dict)
    shared: list[Variable] = field(default_factory=list)
    local: list[Variable] = field(default_factory=list)
    tables: dict[str, bytes] = field(default_factory=dict)
    bounds: dict[str, int] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


def parse(ptx: str, name: str) -> Entry:
    """The entry `name` of a PTX module.

    Raises:
        Unsupported: the module has no such entry, or a declaration cannot be read.
    """
    text = re.sub(r"/\*.*?\*/", " ", re.sub(r"//[^\n]*", "", ptx), flags=re.S)
    text = re.sub(r"^\s*\.(?:loc|file)\b[^\n]*$", "", text, flags=re.M)
    head = re.search(rf"\.entry\s+{re.escape(name)}\s*\(([^)]*)\)([^{{;]*)\{{", text)
    if head is None:
        raise Unsupported(f"the PTX has no entry named {name}")
    entry = Entry(name)
    entry.bounds = {match[1]: prod(map(int, match[2].split(","))) for match in _BOUND.finditer(head[2])}
    for declaration in filter(None, (part.strip() for part in head[1].split(","))):
        parameter = _PARAMETER.match(declaration)
        if parameter is None or parameter[3]:
            raise Unsupported(f"parameter {declaration!r}: only scalars and pointers are passed")
        entry.parameters[parameter[2]] = int(parameter[1]) // 8
    module = text[: head.start()] + text[_closing(text, head.end()) :]
    for match in re.finditer(r"(?:\.extern|\.weak|\.visible)?\s*(\.shared[^;]*);", module):
        entry.shared.append(_variable(match[1]))
    entry.tables = {match[1]: bytes(map(int, match[2].split(","))) for match in _TABLE.finditer(module)}
    _Body(entry).read(text[head.end() : _closing(text, head.end()) - 1])
    return entry


def split_operands(text: str) -> tuple[str, ...]:
    """Operands between top-level commas, blanks removed; `{...}` and `[...]` stay whole."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        if char in "{[":
            depth += 1
        elif char in "}]":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return tuple(re.sub(r"\s", "", part) for part in (*parts, text[start:]) if part.strip())


def _closing(text: str, start: int) -> int:
    """The index after the brace that closes the one before `start`."""
    depth = 1
    for match in re.finditer(r"[{}]", text[start:]):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return start + match.end()
    raise Unsupported("the PTX ends inside an entry")


def _variable(declaration: str) -> Variable:
    match = _VARIABLE.match(declaration.strip())
    if match is None:
        raise Unsupported(f"declaration {declaration.strip()!r}")
    size = int(match[3]) // 8
    for extent in re.findall(r"\[(\d*)\]", match[5]):
        size *= int(extent or 0)
    return Variable(match[4], int(match[2] or 1), size)


class _Body:
    """Reads statements of one entry; knows of each open scope its names, its number and where its code begins."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.scopes: list[dict[str, str]] = [{}]
        self.begins = [(0, 0)]
        self.opened = 0

    def read(self, body: str) -> None:
        for statement in self._statements(body):
            if statement == "{":
                self.opened += 1
                self.scopes.append({})
                self.begins.append((self.opened, len(self.entry.instructions)))
            elif statement == "}":
                self._close()
            elif statement.endswith(":"):
                self.entry.labels[self._own(statement[:-1])] = len(self.entry.instructions)
            elif statement.startswith("."):
                self._declare(statement)
            else:
                self.entry.instructions.append(self._instruction(statement))

    def _statements(self, body: str) -> Iterator[str]:
        at = 0
        while True:
            while at < len(body) and (body[at].isspace() or body[at] == ";"):
                at += 1
            if at == len(body):
                return
            label = _LABEL.match(body, at)
            if body[at] in "{}":
                end, statement = at + 1, body[at]
            elif label is not None:
                end, statement = label.end(), label[1] + ":"
            else:
                end = body.index(";", at) + 1
                statement = body[at : end - 1].strip()
            yield statement
            at = end

    def _declare(self, statement: str) -> None:
        kind = statement.split(None, 1)[0]
        if kind == ".shared":
            self.entry.shared.append(_variable(statement))
        elif kind == ".local":
            self.entry.local.append(_variable(statement))
        elif kind == ".reg":
            _, type_, names = statement.split(None, 2)
            width = _WIDTHS["pred" if type_ == ".pred" else type_[2:]]
            for name in names.split(","):
                self._register(name.strip(), width)
        elif kind != ".pragma":
            raise Unsupported(f"directive {statement!r}")

    def _register(self, declared: str, width: int) -> None:
        match = _REGISTER.match(declared)
        if match is None:
            raise Unsupported(f"register declaration {declared!r}")
        numbered = [f"{match[1]}{i}" for i in range(int(match[2]))] if match[2] else [match[1]]
        for name in numbered:
            self.entry.registers[self._own(name)] = width

    def _own(self, name: str) -> str:
        """A name that the innermost scope declares, told apart from the same name in others."""
        own = name if len(self.scopes) == 1 else f"{name}@{self.begins[-1][0]}"
        self.scopes[-1][name] = own
        return own

    def _close(self) -> None:
        """End a scope; branches in it, some ahead of the label they name, go to its own labels."""
        declared, code = self.scopes.pop(), self.entry.instructions
        for i in range(self.begins.pop()[1], len(code)):
            if code[i].opcode[0] == "bra" and code[i].operands[0] in declared:
                code[i] = replace(code[i], operands=(declared[code[i].operands[0]],))

    def _instruction(self, statement: str) -> Instruction:
        guard, negated = "", False
        match = re.match(r"@(!?)\s*([%\w$]+)\s+", statement)
        if match is not None:
            guard, negated, statement = self._resolve(match[2]), bool(match[1]), statement[match.end() :]
        opcode, _, rest = statement.replace("\t", " ").replace("\n", " ").partition(" ")
        operands = tuple(_NAME.sub(lambda name: self._resolve(name[0]), part) for part in split_operands(rest))
        return Instruction(tuple(filter(None, opcode.split("."))), operands, guard, negated)

    def _resolve(self, name: str) -> str:
        """The register that `name` means here; anything else is returned as written."""
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return name
