"""Exemplar: learn to segment a category from one example."""

__version__ = "0.1.0"
