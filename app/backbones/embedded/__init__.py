"""The model that ships with the service: EfficientNet-Lite2 image tokens under a BLIP-style text tower (MiniLM-L6).

`model` is the backbone, `efficientnet` its image tower, `mask_decoder` the network that turns its class scores into
masks at twice the resolution, with `self_support` and `example_memory` as its parts.
"""

from .model import DEFAULT_LAYERS, FAMILY, VOCABULARY, WEIGHTS, Embedded, load

__all__ = ["DEFAULT_LAYERS", "FAMILY", "VOCABULARY", "WEIGHTS", "Embedded", "load"]
