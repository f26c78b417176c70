"""Bugs planted in the attention template one at a time, to see which gate catches each."""

from benchmarks.trust.planted.conduct import CONDUCT
from benchmarks.trust.planted.indices import INDICES
from benchmarks.trust.planted.mutant import TEMPLATE, Mutant
from benchmarks.trust.planted.numbers import NUMBERS
from benchmarks.trust.planted.synchronisation import SYNCHRONISATION
from benchmarks.trust.planted.warpgroups import WARPGROUPS

MUTANTS = (*NUMBERS, *INDICES, *SYNCHRONISATION, *CONDUCT, *WARPGROUPS)

__all__ = ["MUTANTS", "TEMPLATE", "Mutant"]
