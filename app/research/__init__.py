"""Measurements: quality on labelled photos, parity with the authors' code. The service imports nothing of it.

Start at `evaluation.py`. Each protocol is a module: `one_shot`, `joint`, `prototype`, `interference`.
"""
