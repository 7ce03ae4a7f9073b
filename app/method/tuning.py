"""One-shot tuning: a category's own copy of a few parameters, fitted to its examples (paper, section 3.4).

`CategoryTuning` is the service's way: categories come one at a time and each owns its adapter. `JointTuning` is the
authors': one set of parameters for all classes at once. Both go step by step, so that a caller can do other work
between steps.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor
from torch.nn import functional as F

from .adapter import MEMORY_PREFIX, TOKEN_IDS, Adapter
from .backbone import Backbone, TextTokens
from .class_map import normalise, upsample
from .ensemble import LayerWeights, weighted_scores
from .evidence import Evidence, Query, patch_logits, prompt_evidence
from .example_memory import remember
from .low_rank import RIGHT, factorised
from .mask_decoder import finest_scores
from .prompts import PromptSet
from .visual_prompt import BIAS, DIRECTION, Prior, fit, mean_features, visual_logits

IGNORE = 255  # label of pixels that count for neither side

# What numbers of an example are remembered by: IoU by words, parameters and adapter, and the gain by a visual prompt.
_WORDS, _PARAMETERS, _ADAPTED, _GAIN = "words", "parameters", "adapted", "gain"


@dataclass(frozen=True)
class Recipe:
    """How a category is tuned.

    Attributes:
        steps: Optimiser steps.
        learning_rate: Of AdamW (the authors': 2e-4).
        weight_decay: Of AdamW (the authors': 0.05).
        balanced: Object and background count the same however small the object is; otherwise the authors' way, each
            pixel counts, background pixels half.
        background_weight: Weight of a background pixel when not balanced (the authors': 0.5).
        learned_ensemble: Learn the weights of the layers too; otherwise their mean.
        ensemble_learning_rate: Rate of those weights' logits.
        interpolation: How far the adapter goes from the base parameters to the tuned ones. All the way (1) is the
            authors'; one photo teaches too much certainty, and a fifth of the way does better on other photos
            (Wortsman et al. 2022, https://arxiv.org/abs/2109.01903).
        visual_prompt: What to believe of the visual prompt, which is fitted after the last step; None for none (the
            authors'). A memory takes its place.
        rank: Directions that are kept of the change of each matrix; None for all (the authors').
        memory: Keep what the examples look like, for a backbone whose mask decoder knows what to do with it; and judge
            by what it marks (the authors have none).
        others: So many other categories' names compete while one is tuned.
        shots_per_step: Examples that one step looks at, in turn.
        label_scale: Loss resolution, in pixels per patch.
    """

    steps: int = 20
    learning_rate: float = 2e-4
    weight_decay: float = 0.05
    balanced: bool = True
    background_weight: float = 0.5
    learned_ensemble: bool = False
    ensemble_learning_rate: float = 0.02
    interpolation: float = 0.2
    visual_prompt: Prior | None = field(default_factory=Prior)
    rank: int | None = 8
    memory: bool = True
    others: int = 16
    shots_per_step: int = 4
    label_scale: int = 4


PAPER_RECIPE = Recipe(balanced=False, interpolation=1.0, visual_prompt=None, rank=None, memory=False)


@dataclass(frozen=True)
class Shot:
    """One example, ready for tuning.

    Attributes:
        image_tokens: Of its photo; the image tower is frozen, so they are computed once.
        features: What they say of each patch.
        target: Share of each cell that the category covers, in [0, 1].
        inside: Share of each cell that the photo covers (0 in the padding).
    """

    image_tokens: Float[Tensor, "image_token width"]
    features: Float[Tensor, "patch feature"]
    target: Float[Tensor, "y x"]
    inside: Float[Tensor, "y x"]

    @property
    def size_hw(self) -> tuple[int, int]:
        """Cells from top to bottom and from left to right."""
        height, width = self.target.shape
        return height, width

    def sides(self, grid_hw: tuple[int, int]) -> tuple[Float[Tensor, "patch"], Float[Tensor, "patch"]]:
        """Share of each patch that is the category, and that is not; padding is neither."""
        both = torch.stack([self.target, 1 - self.target]) * self.inside
        inside, outside = F.adaptive_avg_pool2d(both, grid_hw).flatten(1)
        return inside, outside


def shot(
    backbone: Backbone,
    image_tokens: Float[Tensor, "image_token width"],
    labels: Real[Tensor, "size size"],
    *,
    label_scale: int,
) -> Shot:
    """Make a shot of an example.

    Args:
        labels: On the network's input: the share of the pixel that the category covers, so 1 or 0 almost everywhere;
            255 padding or unknown.
        label_scale: Resolution of the loss, in pixels per patch.
    """
    rows, columns = backbone.patch_grid_hw
    cells = (rows * label_scale, columns * label_scale)
    labels = labels.to(image_tokens.device)
    known = labels != IGNORE
    inside = F.adaptive_avg_pool2d(known.float()[None], cells)[0]
    category = F.adaptive_avg_pool2d((labels * known).float()[None], cells)[0]
    return Shot(image_tokens, backbone.patch_features(image_tokens), category / inside.clamp_min(1e-6), inside)


class CategoryTuning:
    """Tune one category's adapter while everything else stands still.

    The background's prompts and the other categories' run under the base model, so their attention is a constant of
    each example, computed once. A step runs forward and backward for the category's own one to three prompts only.

    Args:
        backbone: A loaded model; its parameters are only read.
        shots: The category's examples, at least one.
        words: The category's name and other words for it.
        background: Words for "none of them".
        others: Names of the other known categories: a pixel outside the mask is one of them or background.
        layers: Layers to tune and read.
        recipe: How.

    Raises:
        ValueError: If there is no shot.
    """

    def __init__(
        self,
        backbone: Backbone,
        shots: Sequence[Shot],
        words: Sequence[str],
        *,
        background: Sequence[str],
        others: Sequence[str] = (),
        layers: Sequence[int],
        recipe: Recipe,
    ) -> None:
        if not shots:
            raise ValueError("expected at least one shot, got none")
        self.backbone, self.shots, self.layers, self.recipe = backbone, shots, tuple(layers), recipe
        self.text = backbone.tokenize(words)
        self._prompts = tuple(words)
        self._others = [Query(tuple(background)), *(Query((name,)) for name in others)]
        self._constant: dict[int, Evidence] = {}  # by example, made when it is first looked at
        self.parameters = {
            name: tensor.requires_grad_(name != TOKEN_IDS)
            for name, tensor in backbone.trainable(layers, self.text).items()
        }
        device = shots[0].image_tokens.device
        self._start = {name: tensor.detach().clone() for name, tensor in self.parameters.items()}
        self._layer_logits = torch.zeros(len(self.layers), device=device, requires_grad=recipe.learned_ensemble)
        self._optimiser = torch.optim.AdamW(
            [
                {
                    "params": [p for p in self.parameters.values() if p.requires_grad],
                    "weight_decay": recipe.weight_decay,
                },
                {"params": [self._layer_logits], "lr": recipe.ensemble_learning_rate, "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
        )
        self._turn = self._turns()
        # Of the steps so far, each made when it is first asked for; numbers by what they are of, and by example.
        self._adapted: dict[str, Tensor] | None = None
        self._numbers: dict[tuple[str, int], float] = {}
        self._odds: dict[tuple[bool, int], Tensor] = {}

    @property
    def ensemble(self) -> tuple[float, ...]:
        """Weight of each layer, sum 1; learned only together with parameters that are kept."""
        return tuple(self._mix(self.adapted()).detach().tolist())

    def step(self) -> float:
        """One optimiser step; returns its loss."""
        losses = [self._loss(index) for index in next(self._turn)]
        loss = torch.stack(losses).mean()
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
        self._optimiser.step()
        self._adapted, self._odds = None, {}
        self._numbers = {key: number for key, number in self._numbers.items() if key[0] == _WORDS}
        return loss.item()

    def finishing(self) -> Iterator[None]:
        """Do ahead what `adapter` needs, one example at a time, so that a caller can do other work between."""
        count = range(len(self.shots))
        parameters = self._part_of_the_way()
        for index in count:
            with torch.no_grad():
                self._iou(_WORDS, index, None)
                self._iou(_PARAMETERS, index, parameters)
            yield
        for index in count:
            with torch.no_grad():
                if self._decodes:
                    self._log_odds(index, self._kept(parameters))
                elif self.recipe.visual_prompt and len(self.shots) > 1:
                    self._gain_by_others(index, parameters)
            yield
        for index in count:
            with torch.no_grad():
                self._iou(_ADAPTED, index, self.adapted())
            yield

    @torch.no_grad()
    def adapter(self, category: str, *, version: int, created_at: str) -> Adapter:
        """The outcome.

        If the adapter scores below the words alone on the category's own examples, it holds no tensors: the category
        keeps the words, and the two scores say so.
        """
        tuned, words = self.example_iou(adapted=True), self.example_iou(adapted=False)
        return Adapter(
            backbone=self.backbone.name,
            revision=self.backbone.revision,
            category=category,
            version=version,
            prompts=self._prompts,
            layers=self.layers,
            ensemble=self.ensemble,
            tensors=self.tensors() if tuned >= words else {},
            example_iou=round(tuned, 4),
            zero_shot_example_iou=round(words, 4),
            created_at=created_at,
        )

    @torch.no_grad()
    def example_iou(self, *, adapted: bool) -> float:
        """Mean intersection over union on the category's own examples, by the adapter or the words alone."""
        return self._mean_iou(_ADAPTED, self.adapted()) if adapted else self._mean_iou(_WORDS, None)

    def _mean_iou(self, what: str, parameters: Mapping[str, Tensor] | None) -> float:
        return sum(self._iou(what, index, parameters) for index in range(len(self.shots))) / len(self.shots)

    @torch.no_grad()
    def adapted(self) -> dict[str, Tensor]:
        """The adapter: the recipe's part of the way from base to tuned parameters, and how the examples look.

        Matrices are factors of their change if the recipe names a rank. For a mask decoder looks are a memory; then
        parameters that mark the examples worse than the words do are left out. For any other backbone they are a visual
        prompt.

        The visual prompt is left out where it does harm. Of several examples: where each is marked no better with one
        of the others than without. Of a single one: where it is marked worse with it than by the words alone, and not
        without it.
        """
        if self._adapted is None:
            self._adapted = self._finish()
        return self._adapted

    def _part_of_the_way(self) -> dict[str, Tensor]:
        """The recipe's part of the way from base to tuned parameters, as factors of the change if it names a rank."""
        share = self.recipe.interpolation
        # Of a product of factors one goes part of the way: the product does too.
        parameters = {
            name: tensor.detach()
            if name == TOKEN_IDS or name.endswith(RIGHT)
            else torch.lerp(self._start[name], tensor.detach(), share)
            for name, tensor in self.parameters.items()
        }
        return parameters if self.recipe.rank is None else factorised(parameters, self._start, self.recipe.rank)

    def _finish(self) -> dict[str, Tensor]:
        parameters = self._part_of_the_way()
        if not self._decodes:
            return self._with_visual_prompt(parameters)
        kept = self._kept(parameters)
        return {**(kept or {}), **self._memory(kept)}

    def _kept(self, parameters: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """The parameters, unless they mark the examples worse than the words: asked without looks, since an example
        looks like itself.
        """
        helps = self._mean_iou(_PARAMETERS, parameters) >= self._mean_iou(_WORDS, None)
        return parameters if helps else None

    def _with_visual_prompt(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        """The parameters, and a visual prompt where it helps."""
        if self.recipe.visual_prompt is None:
            return parameters
        count = range(len(self.shots))
        if len(self.shots) > 1 and sum(self._gain_by_others(index, parameters) for index in count) <= 0:
            return parameters
        whole = {**parameters, **self._visual_prompt(count, parameters)}
        if len(self.shots) > 1:
            return whole
        words = self._mean_iou(_WORDS, None)
        does_harm = self._measured_iou(0, whole) < words <= self._mean_iou(_PARAMETERS, parameters)
        return parameters if does_harm else whole

    def _memory(self, parameters: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """How the examples look, and how far off these parameters are on them; the words alone if there are none."""
        assert self.backbone.mask_decoder is not None
        inside, outside = zip(*(example.sides(self.backbone.patch_grid_hw) for example in self.shots), strict=True)
        features = [example.features for example in self.shots]
        log_odds = [self._log_odds(index, parameters) for index in range(len(self.shots))]
        return remember(self.backbone.mask_decoder, features, inside, outside, log_odds)

    @property
    def _decodes(self) -> bool:
        return self.recipe.memory and self.backbone.mask_decoder is not None

    def _gain_by_others(self, index: int, parameters: Mapping[str, Tensor]) -> float:
        """How much better a visual prompt of the other examples marks this one than the parameters alone."""
        if (_GAIN, index) not in self._numbers:
            others = [other for other in range(len(self.shots)) if other != index]
            with_it = self._measured_iou(index, {**parameters, **self._visual_prompt(others, parameters)})
            self._numbers[_GAIN, index] = with_it - self._iou(_PARAMETERS, index, parameters)
        return self._numbers[_GAIN, index]

    def _log_odds(self, index: int, parameters: Mapping[str, Tensor] | None) -> Float[Tensor, "patch"]:
        """Of the category against everything else, in an example; by the words alone if there are no parameters."""
        key = (parameters is not None, index)
        if key not in self._odds:
            self._odds[key] = torch.logit(normalise(self._scores(index, parameters))[-1], eps=1e-5)
        return self._odds[key]

    def _visual_prompt(self, examples: Sequence[int], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The visual prompt that some of the examples give, on top of these parameters."""
        assert self.recipe.visual_prompt is not None
        shots = [self.shots[index] for index in examples]
        features = [example.features for example in shots]
        inside, outside = zip(*(example.sides(self.backbone.patch_grid_hw) for example in shots), strict=True)
        outer, inner = mean_features(features, inside, outside)
        likeness = [F.normalize(photo.float(), dim=1) @ (inner - outer) for photo in features]
        log_odds = [self._log_odds(index, parameters) for index in examples]
        strength, bias = fit(log_odds, likeness, inside, outside, self.recipe.visual_prompt)
        return {DIRECTION: strength * (inner - outer), BIAS: torch.tensor(bias, device=inner.device)}

    def tensors(self, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
        """The adapter's parameters, as it keeps them."""
        return {
            name: tensor.clone() if name == TOKEN_IDS else tensor.to(dtype) for name, tensor in self.adapted().items()
        }

    def _turns(self) -> Iterator[list[int]]:
        """Examples of each step: as many as the recipe says, in turn."""
        size, start = min(self.recipe.shots_per_step, len(self.shots)), 0
        while True:
            yield [(start + offset) % len(self.shots) for offset in range(size)]
            start += size

    def _scores(self, index: int, parameters: Mapping[str, Tensor] | None) -> Float[Tensor, "class patch"]:
        """Class scores of one example: background, the other categories, and this one last.

        Args:
            parameters: Of this category's adapter; None for the words alone.
        """
        example, constant = self.shots[index], self._constant_of(index)
        adapters = {name: tensor[None] for name, tensor in parameters.items()} if parameters else None
        seen = self.backbone.attend(example.image_tokens, self.text, layers=self.layers, adapters=adapters)
        own = patch_logits(seen, self.text, self.layers)
        if parameters and DIRECTION in parameters:
            own = own + visual_logits(example.features, parameters[DIRECTION][None], parameters[BIAS][None])
        stop = constant.spans[-1][1]
        evidence = Evidence(
            patch_logits=torch.cat([constant.patch_logits, own], dim=1),
            match_score=torch.cat([constant.match_score, seen.match_score.float()]),
            spans=(*constant.spans, (stop, stop + len(self._prompts))),
        )
        # Only this category's weights are learned; the other classes average, as they will at request time. The words
        # alone average too, as a category without an adapter does.
        mix = self._mix(parameters)
        average = mix.new_full((len(constant.spans), len(self.layers)), 1 / len(self.layers))
        return weighted_scores(evidence, LayerWeights(self.layers, torch.cat([average, mix[None]])))

    def _mix(self, parameters: Mapping[str, Tensor] | None) -> Float[Tensor, "layer"]:
        """Weight of each layer under these parameters; a memory alone is none."""
        is_tuned = any(not name.startswith(MEMORY_PREFIX) for name in parameters or ())
        return (self._layer_logits if is_tuned else torch.zeros_like(self._layer_logits)).softmax(dim=0)

    def _constant_of(self, index: int) -> Evidence:
        if index not in self._constant:
            with torch.no_grad():
                tokens = self.shots[index].image_tokens
                self._constant[index] = prompt_evidence(self.backbone, tokens, self._others, self.layers)
        return self._constant[index]

    def _loss(self, index: int) -> Float[Tensor, ""]:
        example = self.shots[index]
        scores = self._scores(index, self.parameters)
        either = torch.stack([scores[:-1].sum(dim=0), scores[-1]])
        log_p = normalise(upsample(either, self.backbone.patch_grid_hw, example.size_hw)).clamp_min(1e-12).log()
        weight = object_and_background_weight(example, self.recipe)
        return -(weight * log_p.flip(0)).sum()

    def _iou(self, what: str, index: int, parameters: Mapping[str, Tensor] | None) -> float:
        """Of one example, by these parameters.

        Args:
            what: What they are, by which the result is remembered.
        """
        if (what, index) not in self._numbers:
            self._numbers[what, index] = self._measured_iou(index, parameters)
        return self._numbers[what, index]

    def _measured_iou(self, index: int, parameters: Mapping[str, Tensor] | None) -> float:
        example, scores = self.shots[index], self._scores(index, parameters)
        adapters = [*[None] * (len(scores) - 1), parameters]
        scores, grid_hw, corners = finest_scores(
            self.backbone, example.image_tokens, scores, adapters, second_look=self._decodes
        )
        maps = upsample(scores, grid_hw, example.size_hw, corners=corners)
        return binary_iou(maps.argmax(dim=0) == len(maps) - 1, example)


def object_and_background_weight(example: Shot, recipe: Recipe) -> Float[Tensor, "2 y x"]:
    """Weight of each cell's "is the category" and "is not" in the loss; all weights sum to 1."""
    sides = torch.stack([example.target, 1 - example.target]) * example.inside
    if recipe.balanced:
        return 0.5 * sides / sides.sum(dim=(1, 2), keepdim=True).clamp_min(1e-6)
    sides = torch.stack([sides[0], recipe.background_weight * sides[1]])
    return sides / sides.sum()


def binary_iou(predicted: Bool[Tensor, "y x"], example: Shot) -> float:
    """Intersection over union of a prediction and an example, cells weighted by how much they hold; in [0, 1]."""
    chosen = predicted.float() * example.inside
    wanted = example.target * example.inside
    overlap = (chosen * example.target).sum()
    return float(overlap / (chosen.sum() + wanted.sum() - overlap).clamp_min(1e-6))


class JointTuning:
    """The authors' tuning: one copy of the parameters for all prompts, on supports of all classes at once.

    Args:
        backbone: A loaded model; its parameters are only read.
        image_tokens: Of each support.
        labels: Of each support, on the network's input; values are classes, 255 is ignored.
        text: Tokens of all prompts.
        prompts: Which prompts make up which class.
        layers: Layers to tune and read.
        recipe: `steps` is not used: call `epoch` as often as wanted (the authors: 5 on PASCAL, 2 on COCO).
        supports_per_step: Supports of one optimiser step (the authors': 2).
    """

    def __init__(
        self,
        backbone: Backbone,
        image_tokens: Sequence[Float[Tensor, "image_token width"]],
        labels: Sequence[Int[Tensor, "size size"]],
        *,
        text: TextTokens,
        prompts: PromptSet,
        layers: Sequence[int],
        recipe: Recipe = PAPER_RECIPE,
        supports_per_step: int = 2,
    ) -> None:
        self.backbone, self.image_tokens, self.labels = backbone, image_tokens, labels
        self.text, self.prompts, self.layers = text, prompts, tuple(layers)
        self.recipe, self.supports_per_step = recipe, supports_per_step
        self.parameters = {
            name: tensor.requires_grad_(name != TOKEN_IDS) for name, tensor in backbone.trainable(layers, text).items()
        }
        self._optimiser = torch.optim.AdamW(
            [p for p in self.parameters.values() if p.requires_grad],
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
        )

    def epoch(self) -> Iterator[float]:
        """One pass over the supports, in order; yields the loss of each step."""
        for start in range(0, len(self.labels), self.supports_per_step):
            indices = range(start, min(start + self.supports_per_step, len(self.labels)))
            loss = self._loss(indices)
            self._optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
            self._optimiser.step()
            yield loss.item()

    @torch.no_grad()
    def class_map(
        self, image_tokens: Float[Tensor, "image_token width"], text: TextTokens, prompts: PromptSet
    ) -> Float[Tensor, "class size size"]:
        """Class probabilities of an image under the tuned parameters, at the network's input size."""
        return self._class_map(image_tokens, text, prompts)

    @torch.no_grad()
    def scores(
        self, image_tokens: Float[Tensor, "image_token width"], text: TextTokens, prompts: PromptSet
    ) -> Float[Tensor, "class patch"]:
        """Class scores of an image under the tuned parameters, on the patch grid."""
        return class_scores_of(self.backbone, image_tokens, text, prompts, self.layers, self._adapters)

    def _loss(self, indices: Sequence[int]) -> Float[Tensor, ""]:
        """One weighted mean over the pixels of all supports of the step, not a mean of means."""
        log_p = (
            torch.stack([self._class_map(self.image_tokens[index], self.text, self.prompts) for index in indices])
            .clamp_min(1e-12)
            .log()
        )
        weight = torch.ones(len(self.prompts.spans))
        weight[0] = self.recipe.background_weight
        labels = torch.stack([self.labels[index] for index in indices]).to(log_p.device)
        return F.nll_loss(log_p, labels, weight=weight.to(log_p), ignore_index=IGNORE)

    def _class_map(self, image_tokens: Tensor, text: TextTokens, prompts: PromptSet) -> Tensor:
        return class_map_of(self.backbone, image_tokens, text, prompts, self.layers, self._adapters)

    @property
    def _adapters(self) -> dict[str, Tensor]:
        return {name: tensor[None] for name, tensor in self.parameters.items()}


def class_map_of(
    backbone: Backbone,
    image_tokens: Float[Tensor, "image_token width"],
    text: TextTokens,
    prompts: PromptSet,
    layers: Sequence[int],
    adapters: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "class size size"]:
    """Class probabilities of one image, all prompts under the base model or under one adapter; the layers' mean."""
    mean = class_scores_of(backbone, image_tokens, text, prompts, layers, adapters)
    return normalise(upsample(mean, backbone.patch_grid_hw, (backbone.input_size,) * 2))


def class_scores_of(
    backbone: Backbone,
    image_tokens: Float[Tensor, "image_token width"],
    text: TextTokens,
    prompts: PromptSet,
    layers: Sequence[int],
    adapters: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "class patch"]:
    """What `class_map_of` brings to the network's input."""
    seen = backbone.attend(image_tokens, text, layers=layers, adapters=adapters)
    evidence = Evidence(patch_logits(seen, text, layers), seen.match_score.float(), prompts.spans)
    equal = torch.ones(len(prompts.spans), len(layers))
    # Divided after the sum, as the authors do: thirds are not exact.
    return weighted_scores(evidence, LayerWeights(tuple(layers), equal)) / len(layers)
