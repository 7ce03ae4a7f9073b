"""Baseline of `make bench`: the method without optimisation, as the authors' code runs it.

Every prompt has a copy of the image tokens in every layer, class maps are computed at full resolution, the CRF copies
every neighbourhood, and a tuning step runs all prompts of all classes and the vision tower. It runs on BLIP of
transformers, so it is also a reference for `app.backbones.blip`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BlipForImageTextRetrieval

from app.method.backbone import TextTokens
from app.method.crf import CrfParameters
from app.method.shot import BACKGROUND_WEIGHT, IGNORE
from app.method.tuning import LEARNING_RATE, WEIGHT_DECAY

# Half-open range of prompts of each class, the background first.
Spans = Sequence[tuple[int, int]]


def class_map(
    model: BlipForImageTextRetrieval, pixels: Tensor, text: TextTokens, spans: Spans, layers: Sequence[int]
) -> Tensor:
    """Class probabilities `[class, size, size]` of one normalised image `[3, size, size]` (paper, section 3.2)."""
    return compete(*evidence(model, pixels, text, layers), spans, size=pixels.shape[1])


def evidence(
    model: BlipForImageTextRetrieval, pixels: Tensor, text: TextTokens, layers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Logits summed over tokens `[layer, prompt, patch]`, and image-text scores `[prompt]`."""
    heads = model.config.text_config.num_attention_heads
    image = model.vision_model(pixels[None], interpolate_pos_encoding=True).last_hidden_state
    image = image.expand(len(text.input_ids), -1, -1).contiguous()
    with _queries_and_keys(model, layers) as caught:
        hidden = model.text_encoder(
            text.input_ids, attention_mask=text.attention_mask, encoder_hidden_states=image
        ).last_hidden_state
    match = (model.itm_head(hidden).softmax(dim=2)[..., 1] * text.attention_mask).amax(dim=1)
    summed = []
    for layer in layers:
        query, key = (tensor.unflatten(2, (heads, -1)).transpose(1, 2) for tensor in caught[layer])
        logits = query @ key.mT / query.shape[-1] ** 0.5
        summed.append((logits.amax(dim=1)[..., 1:] * text.attention_mask[..., None]).sum(dim=1))
    return torch.stack(summed), match


def compete(logits: Tensor, match: Tensor, spans: Spans, *, size: int) -> Tensor:
    """Class probabilities: softmax over prompts, sum or maximum per class, mean over layers at full resolution."""
    side = round(logits.shape[2] ** 0.5)
    maps = []
    for layer in logits:
        scores = layer.softmax(dim=0) * match[:, None]
        background, *others = [scores[start:stop] for start, stop in spans]
        of_class = torch.stack([background.sum(dim=0), *(other.amax(dim=0) for other in others)])
        grid = of_class.view(1, -1, side, side)
        maps.append(F.interpolate(grid, size=(size, size), mode="bilinear", align_corners=True)[0])
    mean = torch.stack(maps).mean(dim=0)
    return mean / mean.sum(dim=0)


def crf(probabilities: Tensor, colours: Tensor, parameters: CrfParameters | None = None) -> Tensor:
    """ConvCRF with all neighbours copied by `unfold` in every iteration (paper, section 3.3)."""
    p = parameters or CrfParameters()
    height, width = probabilities.shape[1:]
    top, left = ((-height) % p.blur + 1) // 2, ((-width) % p.blur + 1) // 2

    def pooled(maps: Tensor) -> Tensor:
        return F.avg_pool2d(maps[None], p.blur, padding=(top, left), count_include_pad=False)

    def neighbours(maps: Tensor) -> Tensor:
        size = p.filter_size
        return F.unfold(maps, size, padding=size // 2).view(maps.shape[1], size * size, *maps.shape[2:])

    rows = torch.arange(height).to(colours)[:, None].expand(height, width)
    columns = torch.arange(width).to(colours)[None].expand(height, width)
    kernel = torch.zeros(()).to(colours)
    for features, weight in (
        (torch.stack([rows, columns]) / p.position_deviation, p.position_weight),
        (colours / p.colour_deviation, p.colour_weight),
    ):
        small = pooled(features)
        distance = (neighbours(small) - small[0][:, None]).square().sum(dim=0)
        kernel = kernel + weight * torch.exp(-distance / 2)
    # The kernel is not 0 outside the image, but predictions are, so nothing is added from there.
    unary = probabilities.log_softmax(dim=0)
    prediction = unary
    for _ in range(p.iterations):
        message = (neighbours(pooled(prediction)) * kernel).sum(dim=1)
        fine = F.interpolate(message[None], scale_factor=float(p.blur), mode="bilinear", align_corners=False)[0]
        message = fine[:, top : top + height, left : left + width]
        prediction = ((1 - p.message_weight) * unary + p.message_weight * message).softmax(dim=0)
    return prediction


class JointTuning:
    """The authors' tuning (paper, section 3.4): all classes at once, two supports a step.

    Args:
        model: The model; it is modified.
        pixels: Normalised supports `[support, 3, size, size]`.
        labels: Classes of their pixels `[support, size, size]`.
        text: Tokens of all prompts.
        spans: Prompts of each class.
        layers: Layers to tune and read.
    """

    def __init__(
        self,
        model: BlipForImageTextRetrieval,
        pixels: Tensor,
        labels: Tensor,
        text: TextTokens,
        spans: Spans,
        layers: Sequence[int],
    ) -> None:
        self.model, self.pixels, self.labels = model.requires_grad_(False), pixels, labels
        self.text, self.spans, self.layers = text, spans, layers
        encoder = model.text_encoder
        learning = [encoder.embeddings.word_embeddings.weight]
        for layer in layers:
            learning += encoder.encoder.layer[layer].crossattention.parameters()
        self._optimiser = torch.optim.AdamW(
            [parameter.requires_grad_(True) for parameter in learning],
            lr=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
        )

    def step(self) -> float:
        """Run one optimiser step on all supports and return its loss."""
        maps = [class_map(self.model, image, self.text, self.spans, self.layers) for image in self.pixels]
        weight = torch.ones(len(self.spans))
        weight[0] = BACKGROUND_WEIGHT
        log_p = torch.stack(maps).clamp_min(1e-12).log()
        loss = F.nll_loss(log_p, self.labels, weight=weight, ignore_index=IGNORE)
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        return loss.item()


@contextmanager
def _queries_and_keys(
    model: BlipForImageTextRetrieval, layers: Sequence[int]
) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
    """Record the projections of the cross-attention of some layers while the text tower runs."""
    caught: dict[int, dict[str, Tensor]] = {layer: {} for layer in layers}
    found: dict[int, tuple[Tensor, Tensor]] = {}
    hooks = []
    for layer in layers:
        attention = model.text_encoder.encoder.layer[layer].crossattention.self
        for part in ("query", "key"):

            def keep(module: object, given: object, out: Tensor, layer: int = layer, part: str = part) -> None:
                caught[layer][part] = out
                if len(caught[layer]) == 2:
                    found[layer] = (caught[layer]["query"], caught[layer]["key"])

            hooks.append(getattr(attention, part).register_forward_hook(keep))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
