"""evoengine: an evolutionary autotuner for templated CUDA kernels.

The package is imported for its nouns (`space`, `problem`, `verdict`, `hardware`, `template`); those need only the
standard library. Everything that touches a GPU, a compiler or a database lives in a room of its own and is imported
when it is used, so that `import evoengine` and `evoengine --help` stay quick on a machine that has none of them.
"""

__version__ = "0.1.0"
