"""Exemplar: learn to segment a category from one example."""

import os

__version__ = "0.1.0"

# Number of spins of a waiting OpenMP thread before it sleeps; read when torch is loaded. The default of 300,000 keeps
# other processes off the core: beside one busy process a photo took fifteen times as long (training/NOTEBOOK.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
