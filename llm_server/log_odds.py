"""Log-odds of probabilities that may be 0 or 1.

Invariant: finite for every probability; NaN stays NaN.
"""

import numpy as np

EDGE = 1e-6
"""Probabilities nearer to 0 or 1 have no finite log-odds to speak of."""


def log_odds(probabilities: np.ndarray | float) -> np.ndarray:
    """log(p / (1 - p)) as f64 in the shape of `probabilities`, within +-13.8."""
    p = np.clip(np.asarray(probabilities, np.float64), EDGE, 1.0 - EDGE)
    return np.log(p) - np.log1p(-p)
