"""evoengine: an evolutionary autotuner for templated CUDA kernels.

The package is imported for its nouns (`space`, `problem`, `verdict`, `hardware`, `template`); those need only the
standard library. Everything that touches a GPU, a compiler or a database lives in a room of its own and is imported
when it is used, so that `import evoengine` and `evoengine --help` stay quick on a machine that has none of them.

`load` gives what was tuned as a function of torch tensors.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evoengine.loading import load

__all__ = ["__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load` is imported when it is asked for: it needs torch."""
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from evoengine.loading import load

    return load
