"""Proofs that the gates and the timer can be trusted: `python -m benchmarks.trust.SECTION --output FILE`, one a module."""
