"""A folder that builds and tests one config with CMake alone: launcher and test, the kernel's sources, the header."""

from __future__ import annotations

from collections.abc import Iterator

from evoengine.errors import UserError
from evoengine.export.chosen import Chosen
from evoengine.export.header import HeaderFacts, render_header

FOLDER = "bundle"
"""Folder in a template with what only the template knows: a launcher, a test against a reference, CMakeLists.txt."""


def bundle_files(chosen: Chosen) -> dict[str, bytes]:
    """Every file's content by its name.

    Raises:
        UserError: the template has no bundle.
    """
    own = chosen.template.folder / FOLDER
    if not (own / "CMakeLists.txt").is_file():
        raise UserError(
            f"template {chosen.template.name} has no {FOLDER}/CMakeLists.txt with a launcher and a test beside it, as "
            "kernel_templates/attention has: export --format header instead"
        )
    files = {path.name: path.read_bytes() for path in sorted(own.iterdir()) if path.is_file()}
    files |= {f"kernel/{name}": content for name, content in chosen.template.device_sources.items()}
    files["config.h"] = render_header(chosen.facts).encode()
    files["tuned_shape.h"] = "".join(f"{line}\n" for line in _shape(chosen.facts)).encode()
    return files


def _shape(facts: HeaderFacts) -> Iterator[str]:
    yield f"// The shape that config.h was tuned for: {facts.shape}"
    yield "#pragma once"
    for name, value in facts.problem.items():
        if not isinstance(value, str):
            yield f"#define TUNED_{name.upper()} {int(value) if isinstance(value, bool) else repr(value)}"
