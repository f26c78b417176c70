"""`evoengine.load`: what was tuned, as a function of torch tensors."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evoengine.cli.arguments import STORAGE
from evoengine.cli.go_on import storage_option
from evoengine.cli.output import LISTING, MAX_LISTING_BYTES
from evoengine.cli.remedies import Remedies
from evoengine.cli.resolve import named_template
from evoengine.errors import SeeStudies, UserError
from evoengine.export.wisdom import MAX_BYTES, PACKAGE, Wisdom, merge, parse_wisdom, valid
from evoengine.problem import AttentionProblem
from evoengine.reading import read_bytes, read_text
from evoengine.template import Template, load_template

if TYPE_CHECKING:
    from evoengine.devices.cuda.attention import Attention


_ARGUMENTS = Remedies("template=FOLDER", "--space FILE to `evoengine export`", "storage=", or_force="")


@dataclass(frozen=True)
class _Source:
    """One source: what is known, the template it is of, and the cubins that came with it by their SHA-256."""

    wisdom: Wisdom
    template: Template
    cubins: dict[str, bytes]


def load(
    *sources: str | Path, storage: str = STORAGE, template: str | Path | None = None, nearest: bool = False
) -> Attention:
    """Tuned kernels as one function with the signature of `torch.nn.functional.scaled_dot_product_attention`.

    Each source is a folder of `evoengine export --format torch`, a wisdom file, an exported header, or the name of a
    study in `storage`; without any it is the last study. A folder's template.py is code: load only what you trust. A
    header whose template has changed since takes seconds: its kernel must be the same, and is rebuilt and proven again.

    Args:
        storage: study database, a file or an SQLAlchemy URL.
        template: folder of the template of wisdom or headers, where it is not a shipped one.
        nearest: use the kernel tuned for the nearest size where there is none for a shape. It is right for every
            length, and may be slower than PyTorch's.

    Raises:
        UserError: a source does not exist, was never measured, or is of a kernel that has changed since or that is
            not attention; or sources are of different templates.
    """
    folder = None if template is None else str(template)
    try:
        found = [_find(source, storage, folder) for source in sources or (None,)]
    except SeeStudies as error:
        raise error.saying(error.told(storage_option(storage))) from error
    first = found[0]
    _check_attention(first.template)
    wisdom = first.wisdom
    for other in found[1:]:
        if other.template.digest != first.template.digest:
            raise UserError(
                f"sources are of different versions of template {first.template.name}: load them one by one"
            )
        wisdom = merge(wisdom, other.wisdom)
    whole = valid(wisdom, first.template.digest)
    if not whole:
        raise UserError(
            f"template {first.template.name} has changed since these configs were tuned (it is {first.template.digest} "
            "now): search again, or load an export of then"
        )
    if all(row.problem.get("lse") for row in whole):
        raise UserError("these kernels return the log-sum-exp too, which PyTorch's function does not: tune without lse")
    from evoengine.devices.cuda.attention import Attention

    return Attention(
        wisdom, first.template, {name: cubin for one in found for name, cubin in one.cubins.items()}, sizes=nearest
    )


def _find(source: str | Path | None, storage: str, template: str | None) -> _Source:
    path = None if source is None else Path(source)
    if path is not None and path.is_dir():
        return _package(path)
    if path is not None and path.is_file():
        text = read_text(path, MAX_BYTES, "give wisdom or a header that `evoengine export` wrote")
        if text.startswith("{"):
            wisdom = _parsed(path, text)
            return _Source(wisdom, named_template(wisdom.template, str(path), template, _ARGUMENTS), {})
    elif path is not None and (path.suffix in (".h", ".wisdom") or len(path.parts) > 1):
        raise UserError(f"{path} does not exist: give a folder, wisdom, a header or the name of a study")
    from evoengine.cli.sources import find_chosen
    from evoengine.export.gather import wisdom_of

    chosen = find_chosen(None if source is None else str(source), storage, template=template, remedies=_ARGUMENTS)
    _check_attention(chosen[0].template)  # before it is told to measure what can never be loaded
    cubins = {_sha256(one.cubin): one.cubin for one in chosen if one.cubin is not None}
    return _Source(wisdom_of(chosen), chosen[0].template, cubins)


def _check_attention(template: Template) -> None:
    """Refuse what the function cannot call.

    Raises:
        UserError: the template is of another operation.
    """
    if template.module.PROBLEM is not AttentionProblem:
        raise UserError(f"template {template.name} is not attention, all that evoengine.load can call")


def _package(folder: Path) -> _Source:
    """A folder that `export --format torch` wrote; files that are not as they were written are refused."""
    remedy = f"give a folder that `evoengine export --format torch` wrote, or export it again ({folder})"
    try:
        listing = json.loads(read_text(folder / LISTING, MAX_LISTING_BYTES, remedy))
        if listing["format"] != f"evoengine {PACKAGE}":
            raise ValueError(f"it is {listing['format']!r}")
        files = {name: read_bytes(folder / name, MAX_BYTES, remedy) for name in listing["files"]}
        changed = [name for name, digest in listing["files"].items() if _sha256(files[name]) != digest]
        if changed:
            raise ValueError(f"{changed[0]} was changed since it was exported")
        [name] = [name for name in files if name.endswith(".wisdom")]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"no {PACKAGE} ({type(error).__name__}: {error}): {remedy}") from error
    wisdom = _parsed(folder / name, files[name].decode("utf-8", "replace"))
    cubins = {Path(file).stem: content for file, content in files.items() if file.endswith(".cubin")}
    return _Source(wisdom, load_template(folder / Path(name).stem), cubins)


def _parsed(path: Path, text: str) -> Wisdom:
    try:
        return parse_wisdom(text)
    except UserError as error:
        raise UserError(f"{path} {error}") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
