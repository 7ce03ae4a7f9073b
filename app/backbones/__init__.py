"""Model families, one module each; `families` finds every module in this package.

Each module defines `FAMILY` and `load(source, *, device, dtype) -> Backbone`; `source` is the part after the colon of
`family:source`.
"""

import importlib
import pkgutil

import torch

from app.errors import InvalidInputError
from app.method.backbone import Backbone

from .shared.family import Family

# Package of the code that several families share.
_SHARED = "shared"


def families() -> list[str]:
    """Names of all families."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != _SHARED)


def about(family: str) -> Family:
    """Description of a family, without loading a model; its module imports its classes of transformers.

    Args:
        family: One of `families`.
    """
    described: Family = importlib.import_module(f"{__name__}.{family}").FAMILY
    return described


def load(spec: str, *, device: str, dtype: str) -> Backbone:
    """Load a backbone.

    Args:
        spec: `family`, or `family:source` with a transformers id or a local folder.
        device: A torch device.
        dtype: `float32` or `bfloat16`.

    Raises:
        InvalidInputError: If the family is unknown, or its weights are missing, unreadable, or of no such model.
        RuntimeError: If the device fails, such as for want of memory.
    """
    family, _, source = spec.partition(":")
    if family not in families():
        raise InvalidInputError(
            f"There is no backbone family {family!r}: set EXEMPLAR_BACKBONE to one of {', '.join(families())}."
        )
    try:
        backbone: Backbone = importlib.import_module(f"{__name__}.{family}").load(source, device=device, dtype=dtype)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except (RuntimeError, ValueError, LookupError) as error:  # shapes, settings or names that are no such model's
        raise InvalidInputError(
            f"No {about(family).models} model could be made of {source!r}: give one such as {about(family).setting} "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]})."
        ) from error
    return backbone
