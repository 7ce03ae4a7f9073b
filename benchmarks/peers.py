"""Benchmark against peers: models that find "more of this", or a part of one, on the same photo and threads.

They are built from their published sizes with random weights: only time is compared, and time does not depend on the
weights. `python -m benchmarks.peers` prints the rows.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import torch
from rich.console import Console
from torch import Tensor, nn
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    Owlv2VisionConfig,
    Owlv2VisionModel,
    SamVisionConfig,
    SamVisionModel,
    SegGptConfig,
    SegGptForImageSegmentation,
)

from app import backbones
from app.method.pipeline import Pipeline
from app.method.prompts import Query
from app.method.refinement import crf
from app.settings import Settings
from app.wiring import compute_threads

from .measure import Row, by_turns, table, text_ms
from .method import photo
from .presence import NAMES, taught_copies

_CATEGORIES = len(NAMES)


def peer_rows() -> list[Row]:
    """Time of each peer over ours with ten taught categories, one peer in memory at a time."""
    ours = _ours()
    return [_row(what, make, ours) for what, make in _peers()]


def _row(what: str, make: Callable[[], Callable[[], object]], ours: Callable[[], object]) -> Row:
    theirs = make()
    spent, own = by_turns(theirs, ours)
    del theirs
    gc.collect()
    return Row(f"{what} over ours, {_CATEGORIES} taught", text_ms(spent), text_ms(own), spent / own, "≥ 10")


def _ours() -> Callable[[], object]:
    """The pipeline of `POST /segment` with ten taught categories, image tower and CRF included."""
    backbone = backbones.load("embedded", device="cpu", dtype="float32")
    pipeline = Pipeline(backbone, refinement=crf, min_presence=Settings().min_presence)
    queries: list[Query] = taught_copies(backbone)
    rgb = photo()
    return lambda: pipeline.run(rgb, queries)


def _peers() -> Iterator[tuple[str, Callable[[], Callable[[], object]]]]:
    """What each peer does, and a function that builds it and returns its call."""
    yield "CLIPSeg (ViT-B/16, 352 px, encoded once, ten texts)", _clipseg
    yield "SegGPT (ViT-L, 448 px pairs, ten examples)", _seggpt
    yield "OWLv2's image tower (B/16, 960 px)", _owlv2
    yield "SAM's image encoder (ViT-B, 1024 px)", _sam


def _clipseg() -> Callable[[], object]:
    # CLIPSeg-rd64 has 16 pixels per patch; the library's default has 32.
    config = CLIPSegConfig(vision_config={"patch_size": 16, "image_size": 224})
    model = _random(CLIPSegForImageSegmentation, config)
    pixels = torch.rand(1, 3, 352, 352)
    tokens = torch.randint(1, 400, (_CATEGORIES, 8))
    return _inferring(lambda: clipseg_masks(model, pixels, tokens))


def clipseg_masks(model: CLIPSegForImageSegmentation, pixels: Tensor, tokens: Tensor) -> Tensor:
    """CLIPSeg's logits `[text, height, width]` for texts about one photo, which its own `forward` encodes for each."""
    seen = model.clip.get_image_features(pixel_values=pixels, interpolate_pos_encoding=True, output_hidden_states=True)
    read = [seen.hidden_states[layer + 1].expand(len(tokens), -1, -1) for layer in model.extract_layers]
    texts = model.get_conditional_embeddings(batch_size=len(tokens), input_ids=tokens)
    logits: Tensor = model.decoder(read, texts).logits
    return logits


def _seggpt() -> Callable[[], object]:
    model = _random(SegGptForImageSegmentation, SegGptConfig())
    image = torch.rand(1, 3, 448, 448)

    def call() -> None:
        for _ in range(_CATEGORIES):  # an example image and its mask for each category
            model(pixel_values=image, prompt_pixel_values=image, prompt_masks=image, embedding_type="semantic")

    return _inferring(call)


def _owlv2() -> Callable[[], object]:
    model = _random(Owlv2VisionModel, Owlv2VisionConfig(image_size=960, patch_size=16))
    pixels = torch.rand(1, 3, 960, 960)
    return _inferring(lambda: model(pixel_values=pixels))


def _sam() -> Callable[[], object]:
    model = _random(SamVisionModel, SamVisionConfig())
    pixels = torch.rand(1, 3, 1024, 1024)
    return _inferring(lambda: model(pixel_values=pixels))


def _random(kind: type[nn.Module], config: object) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = kind(config)
    return model.eval().requires_grad_(False)


def _inferring(call: Callable[[], Tensor | object]) -> Callable[[], object]:
    @torch.inference_mode()
    def run() -> object:
        return call()

    return run


def main() -> None:
    """Print the rows."""
    console = Console(width=180)
    torch.set_num_threads(compute_threads(Settings()))
    console.print(table("Peers, random weights: only time is compared", peer_rows()))


if __name__ == "__main__":
    main()
