"""Exemplar: learn to segment a category from one example."""

import os

__version__ = "0.1.0"

# How long a thread of OpenMP's team turns in a circle before it sleeps, in turns; read when torch is loaded. The usual
# 300,000 keep a core from whoever else wants it: beside one busy process a photo then took fifteen times as long
# (docs/performance.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
