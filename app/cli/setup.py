"""Commands for setting a service up: API keys and models."""

from __future__ import annotations

import hashlib
import secrets
from typing import Annotated

import typer

from app.cli.terminal import console, progress_bar, settings_with
from app.settings import Scope


def make_key(
    scope: Annotated[
        Scope, typer.Argument(help="read: read and segment; teach: also teach; admin: everything.")
    ] = "teach",
) -> None:
    """Make an API key: one line for the caller, one for EXEMPLAR_API_KEYS of the service."""
    key = secrets.token_urlsafe(32)
    print(f"key      {key}")
    print(f"setting  {scope}:{hashlib.sha256(key.encode()).hexdigest()}")


def list_backbones(
    loaded: Annotated[bool, typer.Option(help="Also load the models of EXEMPLAR_BACKBONE and show their size.")] = True,
    backbone: Annotated[str | None, typer.Option(help="As EXEMPLAR_BACKBONE.")] = None,
) -> None:
    """List the model families and their properties, and the models of EXEMPLAR_BACKBONE with their size."""
    from app.research.report import as_backbone_table, as_family_table
    from app.wiring import backbone_loaders, family_list

    console.print(as_family_table(family_list()))
    if loaded:
        with progress_bar(console) as bar:
            task = bar.add_task("loading", total=None)
            models = [load() for load in bar.track(backbone_loaders(settings_with(backbone=backbone)), task_id=task)]
        console.print(as_backbone_table(models))
