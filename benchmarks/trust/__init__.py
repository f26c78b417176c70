"""Proofs that gates and timer can be trusted: `python -m benchmarks.trust.SECTION --output FILE`, one a module."""
