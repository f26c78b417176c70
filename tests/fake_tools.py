"""Executables that stand in for tools of the CUDA toolkit: each is a module of this folder with a `main`."""

from __future__ import annotations

import sys
from pathlib import Path


def install(folder: Path, name: str, module: str) -> Path:
    """`folder/name`, which calls `module.main(options, folder)`: its own options, and where the program's job is."""
    path = folder / name
    here = Path(__file__).resolve().parent
    path.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path[:0] = [{str(here)!r}, {str(here.parent)!r}]\n"
        f"from pathlib import Path\nfrom {module} import main\n"
        "program = sys.argv.index(sys.executable)\n"
        "sys.exit(main(sys.argv[1:program], Path(sys.argv[-1])))\n"
    )
    path.chmod(0o755)
    return path
