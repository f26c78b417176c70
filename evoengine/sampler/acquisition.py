"""How promising a config is: the logarithm of the expected improvement over the best (Jones et al. 1998)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_ERFCX = (-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807, -1.13520398, 1.48851587,
          -0.82215223, 0.17087277)  # fmt: skip


def log_improvement(mean: Floats, variance: Floats, best: float) -> Floats:
    """log E[max(best - f, 0)] for f normal with `mean` and `variance`, finite far from the best as well.

    The plain form underflows to zero 38 standard deviations away, and then every config looks the same.
    """
    sd = np.sqrt(np.maximum(variance, 1e-12))
    u = (best - mean) / sd
    density = -0.5 * u * u - 0.5 * np.log(2.0 * np.pi)
    # h(u) = phi(u) + u Phi(u); with Mills' ratio m(u) = Phi(u) / phi(u) it is phi (1 + u m) below zero ...
    low = np.minimum(u, 0.0)
    shape = np.where(
        low < -30.0, 1.0 / (low * low + 3.0), 1.0 + low * np.sqrt(np.pi / 2.0) * _erfcx(-low / np.sqrt(2.0))
    )
    below = density + np.log(np.maximum(shape, 1e-300))
    # ... and u + h(-u) above it.
    up = np.maximum(u, 0.0)
    mirrored = (
        np.exp(-0.5 * up * up) / np.sqrt(2 * np.pi) * (1.0 - up * np.sqrt(np.pi / 2.0) * _erfcx(up / np.sqrt(2.0)))
    )
    above = np.log(np.maximum(up + mirrored, 1e-300))
    return np.asarray(np.where(u > 0.0, above, below) + np.log(sd))


def _erfcx(z: Floats) -> Floats:
    """exp(z^2) erfc(z) for z >= 0, relative error below 1.2e-7 (Press et al., Numerical Recipes, erfcc)."""
    t = 1.0 / (1.0 + 0.5 * z)
    return np.asarray(t * np.exp(np.polynomial.polynomial.polyval(t, _ERFCX)))
