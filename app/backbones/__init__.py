"""One vision-language model family per file; a family is known as soon as its file is here.

Each module has `load(source, *, device, dtype) -> Backbone`, where `source` is what follows the colon in
`family:source`.
"""

import importlib
import pkgutil

from app.errors import InvalidInputError
from app.method.backbone import Backbone

from .family import Family

# Modules that several families share; they load nothing themselves.
_SHARED = {"adapted", "blip_text", "clip_pixels", "decoder", "efficientnet", "family", "pretrained"}


def families() -> list[str]:
    """Names of the families that can be loaded."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _SHARED)


def about(family: str) -> Family:
    """What a family's file says of it."""
    described: Family = importlib.import_module(f"{__name__}.{family}").FAMILY
    return described


def load(spec: str, *, device: str, dtype: str) -> Backbone:
    """Load a backbone.

    Args:
        spec: `family`, or `family:source` with a transformers id or a local folder.
        device: A torch device.
        dtype: `float32` or `bfloat16`.

    Raises:
        InvalidInputError: If the family is unknown, or its weights can't be found or read.
    """
    family, _, source = spec.partition(":")
    if family not in families():
        raise InvalidInputError(
            f"There is no backbone family {family!r}: set EXEMPLAR_BACKBONE to one of {', '.join(families())}."
        )
    backbone: Backbone = importlib.import_module(f"{__name__}.{family}").load(source, device=device, dtype=dtype)
    return backbone
