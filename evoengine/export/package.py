"""What `evoengine.load` needs elsewhere: of each config the header and the cubin, and the template's sources."""

from __future__ import annotations

from collections.abc import Sequence

from evoengine.export.chosen import Chosen
from evoengine.export.header import render_header
from evoengine.export.targets import one_kernel, shape_macro, target_macro


def package_files(chosen: Sequence[Chosen]) -> dict[str, bytes]:
    """Every file's content by its name: the template's folder, and `CARD-SHAPE.h` with `CARD-SHAPE.cubin` beside it.

    A config without a final run has no cubin; it is built where it is loaded, as all are for another architecture.

    Raises:
        UserError: the configs are of several templates.
    """
    one_kernel(chosen)
    template = chosen[0].template
    files = {f"{template.name}/{path.name}": path.read_bytes() for path in template.sources}
    for one in chosen:
        name = f"{target_macro(one).removeprefix('TARGET_')}-{shape_macro(one).removeprefix('SHAPE_')}"
        files[f"{name}.h"] = render_header(one.facts).encode()
        if one.cubin is not None:
            files[f"{name}.cubin"] = one.cubin
    return files
