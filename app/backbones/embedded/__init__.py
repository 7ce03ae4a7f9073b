"""The model that ships with the service: EfficientNet-Lite2 image tokens under a BLIP-style text tower (MiniLM-L6).

`model` is the backbone and `efficientnet` its image tower. `mask_decoder` turns class scores into masks at twice the
resolution; `self_support` and `example_memory` are its parts.
"""

from .model import DEFAULT_LAYERS, FAMILY, VOCABULARY, WEIGHTS, Embedded, load

__all__ = ["DEFAULT_LAYERS", "FAMILY", "VOCABULARY", "WEIGHTS", "Embedded", "load"]
