"""Candidates become cubins: a ninja graph over NVRTC or nvcc in killable processes, with a cache of the results."""

from evoengine.build.builder import Builder
from evoengine.build.cache import cache_home
from evoengine.build.requests import BuildRequest
from evoengine.build.toolchain import Toolchain, find_toolchain

__all__ = ["BuildRequest", "Builder", "Toolchain", "cache_home", "find_toolchain"]
