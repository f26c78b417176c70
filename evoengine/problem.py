"""What is computed: the problem a kernel is tuned for, and how a user writes it on the command line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from evoengine.errors import UserError, did_you_mean

DTYPE_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
HEAD_DIMS = (32, 64, 96, 128, 256)


class Problem(Protocol):
    """What every problem can say of itself. A template's problem is a frozen dataclass with these members."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    POSITIONAL: ClassVar[tuple[str, ...]]
    """Field names that plain numbers in `--shape` fill, in order."""

    @property
    def label(self) -> str:
        """Short and readable, such as `B1_H8_S512_D64_fp16`."""
        ...

    @property
    def flops(self) -> int:
        """Floating-point operations that the answer needs (a multiply-add is two)."""
        ...

    @property
    def bytes_moved(self) -> int:
        """Bytes of every input read once and every output written once."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionProblem:
    """O = softmax(scale * Q K^T) V over contiguous tensors of shape (batch, heads, seq, head_dim).

    Query head h reads key/value head h // (heads // kv_heads) (grouped-query attention, GQA). With `causal`, query row
    i sees key j iff j <= i + diagonal: 0 is PyTorch SDPA's top-left mask, seq_k - seq_q FlashAttention's bottom-right
    one. A row that sees no key is zero. Left at 0, `kv_heads` is heads, `seq_k` is seq_q and `scale` 1/sqrt(head_dim).
    With `lse`, the natural logarithm of each row's sum of exp(scale * score) is another output, fp32 of shape
    (batch, heads, seq_q); -inf where a row sees no key.

    Raises:
        UserError: a field is out of range.
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("batch", "heads", "seq_q", "head_dim")

    batch: int = 1
    heads: int = 8
    kv_heads: int = 0
    seq_q: int = 512
    seq_k: int = 0
    head_dim: int = 64
    dtype: str = "fp16"
    causal: bool = False
    diagonal: int = 0
    scale: float = 0.0
    lse: bool = dataclasses.field(default=False, metadata={"newer": True})

    def __post_init__(self) -> None:
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        object.__setattr__(self, "seq_k", self.seq_k or self.seq_q)
        for name in ("batch", "heads", "kv_heads", "seq_q", "seq_k"):
            if not 1 <= getattr(self, name) <= 2**24:
                raise UserError(f"{name}={getattr(self, name)}: must be from 1 to {2**24}")
        if self.head_dim not in HEAD_DIMS:
            raise UserError(f"head_dim={self.head_dim}: the attention template has {', '.join(map(str, HEAD_DIMS))}")
        object.__setattr__(self, "scale", self.scale or self.head_dim**-0.5)
        if self.batch > 65535 or self.heads > 65535:
            raise UserError(f"batch={self.batch}, heads={self.heads}: a CUDA grid takes at most 65535 of each")
        if self.heads % self.kv_heads:
            raise UserError(f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")
        if self.dtype not in ("fp16", "bf16"):
            raise UserError(f"dtype={self.dtype!r}: attention knows fp16 and bf16")
        if not 0.0 < self.scale < float("inf"):
            raise UserError(f"scale={self.scale}: must be positive and finite")
        if abs(self.diagonal) > 2**24:  # the kernel adds it to a row in 32 bits
            raise UserError(f"diagonal={self.diagonal}: must be from {-(2**24)} to {2**24}")
        if self.diagonal and not self.causal:
            raise UserError(f"diagonal={self.diagonal} means nothing without causal: add causal to the shape")

    @property
    def label(self) -> str:
        parts = [f"B{self.batch}", f"H{self.heads}"]
        if self.kv_heads != self.heads:
            parts.append(f"KV{self.kv_heads}")
        parts.append(f"S{self.seq_q}")
        if self.seq_k != self.seq_q:
            parts.append(f"K{self.seq_k}")
        parts += [f"D{self.head_dim}", self.dtype]
        if self.causal:
            parts.append("causal" if not self.diagonal else f"causal{self.diagonal:+d}")
        if self.scale != self.head_dim**-0.5:
            parts.append(f"scale{self.scale:g}")
        if self.lse:
            parts.append("lse")
        return "_".join(parts)

    @property
    def visible_pairs(self) -> int:
        """(query row, key) pairs that the mask lets through, per head."""
        if not self.causal:
            return self.seq_q * self.seq_k
        first = max(-self.diagonal, 0)  # first row that sees a key
        full = max(min(self.seq_k - self.diagonal - 1, self.seq_q), first)  # first row that sees every key
        growing = (full - first) * (first + full - 1 + 2 * (self.diagonal + 1)) // 2
        return growing + max(self.seq_q - full, 0) * self.seq_k

    @property
    def flops(self) -> int:
        return 4 * self.batch * self.heads * self.visible_pairs * self.head_dim

    @property
    def bytes_moved(self) -> int:
        rows = self.batch * (2 * self.heads * self.seq_q + 2 * self.kv_heads * self.seq_k)
        lse = self.batch * self.heads * self.seq_q * DTYPE_BYTES["fp32"] if self.lse else 0
        return rows * self.head_dim * DTYPE_BYTES[self.dtype] + lse


@dataclass(frozen=True, slots=True)
class Member:
    """One problem of a set; `weight` is its share of the objective, beside the other members' weights."""

    problem: Problem
    weight: float = 1.0


@dataclass(frozen=True)
class ProblemSet:
    """Problems that one config shall serve. Its times are weighted geometric means over the members.

    Operations and bytes are means of the same kind, so that rates made of them are the means of the members' rates.

    Raises:
        UserError: there are fewer than two, one is there twice, or a weight is not positive and finite.
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ()

    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        labels = [member.problem.label for member in self.members]
        if len(labels) < 2:
            raise UserError(f"a set of shapes has two or more, this one has {len(labels)}")
        twice = next((label for at, label in enumerate(labels) if label in labels[:at]), None)
        if twice is not None:
            raise UserError(f"shape {twice} is given twice: give it once, with a weight")
        for member in self.members:
            if not 0.0 < member.weight < math.inf:
                raise UserError(f"{member.problem.label}: weight={member.weight:g} must be positive and finite")

    @property
    def label(self) -> str:
        """The first member's, and how many more there are: a set may be long, and the digest tells sets apart."""
        return f"{self.members[0].problem.label}_and_{len(self.members) - 1}_more"

    @property
    def flops(self) -> int:
        return self._mean([member.problem.flops for member in self.members])

    @property
    def bytes_moved(self) -> int:
        return self._mean([member.problem.bytes_moved for member in self.members])

    def _mean(self, counts: Sequence[int]) -> int:
        return round(weighted_mean(counts, [member.weight for member in self.members])) if all(counts) else 0


def members_of(problem: Problem) -> tuple[Member, ...]:
    """The members of a set; a problem by itself is its only one."""
    return problem.members if isinstance(problem, ProblemSet) else (Member(problem),)


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """The weighted geometric mean of positive values."""
    return math.exp(statistics.fmean(map(math.log, values), weights))


def problem_fields(problem: Problem) -> dict[str, int | float | str | bool]:
    """The problem as JSON-ready fields, in declaration order; of a set those in which all members agree."""
    first, *others = [member.problem for member in members_of(problem)]
    fields = {field.name: getattr(first, field.name) for field in dataclasses.fields(first)}
    return {name: value for name, value in fields.items() if all(getattr(one, name) == value for one in others)}


def problem_digest(problem: Problem) -> str:
    """12 hex digits over type and fields.

    A field whose metadata say `newer` counts where it is not at its default: problems of before keep their digests. Of
    a set over the members' digests and shares, in any order.
    """
    if isinstance(problem, ProblemSet):
        total = sum(member.weight for member in problem.members)
        shares = [(problem_digest(member.problem), f"{member.weight / total:.9f}") for member in problem.members]
        return hashlib.sha256(json.dumps(["ProblemSet", sorted(shares)]).encode()).hexdigest()[:12]
    newer = {field.name: field.default for field in dataclasses.fields(problem) if field.metadata.get("newer")}
    fields = {k: v for k, v in problem_fields(problem).items() if k not in newer or v != newer[k]}
    text = json.dumps([type(problem).__name__, fields], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


P = TypeVar("P")
_KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}


def _kinds(problem_type: type) -> dict[str, str]:
    """The type of each field by its name, whether annotations are evaluated in the template's file or not."""
    return {
        field.name: field.type.__name__ if isinstance(field.type, type) else str(field.type)
        for field in dataclasses.fields(problem_type)
    }


def make_problem(problem_type: type[P], fields: Mapping[str, object]) -> P:
    """The problem with these `fields`, as a file or a database holds them.

    Raises:
        UserError: an unknown field, one of the wrong type or out of range, or one that has no default is missing.
    """
    kinds = _kinds(problem_type)
    for name, value in fields.items():
        if name not in kinds:
            raise UserError(f"problem has an unknown field {name!r:.80}; known are {', '.join(kinds)}")
        if kinds[name] in _KINDS and type(value) not in _KINDS[kinds[name]]:
            raise UserError(f"problem has {name}={value!r:.80}, which is not a {kinds[name]}")
    try:
        return problem_type(**fields)
    except TypeError as error:
        raise UserError(f"problem cannot be made of its fields ({error}): it lacks one") from error


def parse_shapes(problem_type: type[P], texts: Sequence[str]) -> P | ProblemSet:
    """The problem of one shape, or the set of several, each with ` weight=W` after it where it counts more or less.

    Raises:
        UserError: a shape cannot be read, is given twice, or has a weight that is not positive.
    """
    if len(texts) == 1:
        return parse_shape(problem_type, texts[0])
    members = []
    for text in texts:
        shape, weight = _split_weight(text)
        members.append(Member(parse_shape(problem_type, shape), weight))  # type: ignore[arg-type]
    return ProblemSet(tuple(members))


_WEIGHT = re.compile(r"(.*?)\s+weight\s*=\s*(\S*)\s*", re.DOTALL)


def _split_weight(text: str) -> tuple[str, float]:
    found = _WEIGHT.fullmatch(text)
    if found is None:
        return text, 1.0
    try:
        weight = float(found[2])
    except ValueError:
        weight = math.nan
    if not 0.0 < weight < math.inf:
        raise UserError(f"shape {text!r}: weight={found[2]!r} must be a positive number")
    return found[1], weight


def parse_shape(problem_type: type[P], text: str) -> P:
    """A problem from `1,8,512,64,causal,dtype=bf16`: leading numbers fill `POSITIONAL`, the rest are name=value.

    A bare name sets a flag. Without numbers every field that is not named is the template's own.

    Raises:
        UserError: an unknown field, a value of the wrong type, too many or too few numbers, or a field out of range.
    """
    if _WEIGHT.fullmatch(text):
        raise UserError(f"shape {text!r}: a weight is for one study over several shapes, leave it out")
    fields = _kinds(problem_type)
    names: Sequence[str] = problem_type.POSITIONAL  # type: ignore[attr-defined]
    positional = list(names)
    values: dict[str, int | float | str | bool] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, raw = (part.strip() for part in item.partition("="))
        if not equals and item.lstrip("-").isdigit():
            if not positional:
                raise UserError(f"shape {text!r}: {item} is one number too many; name it, as in seq_k={item}")
            name, raw = positional.pop(0), item
        elif not equals and fields.get(item) == "bool":
            raw = "1"
        if name not in fields:
            near = did_you_mean(name, fields)
            raise UserError(f"shape {text!r}: unknown field {name!r}: {near}known are {', '.join(fields)}")
        if name in values:
            raise UserError(f"shape {text!r}: {name} is given twice")
        values[name] = _parse_field(text, name, fields[name], raw)
    # Whoever leaves one of four numbers out has mostly forgotten it.
    if len(positional) < len(names) and (missing := [name for name in positional if name not in values]):
        own = {field.name: field.default for field in dataclasses.fields(problem_type)} | values  # type: ignore[arg-type]
        whole = ",".join(str(own[name]) for name in names)
        raise UserError(f"shape {text!r} lacks {', '.join(missing)}: its numbers are {','.join(names)}, as in {whole}")
    return problem_type(**values)


def _parse_field(text: str, name: str, kind: str, raw: str) -> int | float | str | bool:
    try:
        if kind == "bool":
            return {"0": False, "1": True, "false": False, "true": True}[raw.lower()]
        if kind in ("int", "float"):
            return int(raw) if kind == "int" else float(raw)
    except (KeyError, ValueError):
        raise UserError(f"shape {text!r}: {name}={raw!r} is not a {kind}") from None
    return raw
