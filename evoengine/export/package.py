"""What `evoengine.load` needs elsewhere: wisdom, the cubins that were confirmed, and the template's sources.

attention.wisdom     what is known of which problem on which card, with provenance
SHA256.cubin         the kernels of the final runs, by the `cubin_sha256` of their rows
attention/           the template, to build for other architectures; its template.py knows the launch
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from evoengine.export.chosen import Chosen
from evoengine.export.gather import wisdom_of
from evoengine.export.wisdom import render_wisdom


def package_files(chosen: Sequence[Chosen]) -> dict[str, bytes]:
    """Every file's content by its name. A config without a final run has no cubin: it is built where it is loaded.

    Raises:
        UserError: a config was never measured, or they are of several templates.
    """
    wisdom, template = wisdom_of(chosen), chosen[0].template
    files = {f"{template.name}.wisdom": render_wisdom(wisdom).encode()}
    files |= {f"{template.name}/{name}": content for name, content in template.sources.items()}
    wanted = {row.provenance["cubin_sha256"] for row in wisdom.rows}
    for one in chosen:
        if one.cubin is not None and (digest := hashlib.sha256(one.cubin).hexdigest()) in wanted:
            files[f"{digest}.cubin"] = one.cubin
    return files
