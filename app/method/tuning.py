"""One-shot tuning: a category's own copy of a few parameters, fitted to its examples (paper, section 3.4).

Each category is tuned alone and has an adapter of its own, unlike in the paper, whose joint tuning is in
`app.research.joint_tuning`. Tuning runs step by step, and `selection` example by example, so that the caller can do
other work in between.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .backbone import Backbone
from .evidence import Evidence, patch_logits, prompt_evidence
from .low_rank import factorised
from .parameters import Change, ExampleMemory, LowRank, Parameters, TokenRows, VisualPrompt
from .pieces import Pieces, finished
from .pipeline import backbone_presence, score_map
from .prompts import Prompts
from .scores import LayerWeights, ScoreMap, normalise
from .shot import Shot
from .visual_prompt import visual_logits

# The authors' settings of AdamW.
LEARNING_RATE, WEIGHT_DECAY = 2e-4, 0.05
# Number of other categories whose names compete with the one being tuned.
COMPETING_CATEGORIES = 16
# Examples per step; successive steps cycle through all examples.
_SHOTS_PER_STEP = 4


@dataclass(frozen=True)
class Recipe:
    """Configuration of tuning; `TUNED` and `PAPER` are the two in use.

    Attributes:
        name: Value of the setting EXEMPLAR_METHOD.
        balanced: See `Shot.loss_weight`.
        interpolation: Position of the adapter between the base parameters (0) and the tuned ones (1, the authors'
            choice). Tuning on one photo makes the model overconfident; 0.2 gives better masks on other photos
            (Wortsman et al. 2022, https://arxiv.org/abs/2109.01903).
        rank: Rank to which the change of each matrix is reduced; None keeps the full change (the authors' choice).
        keep_appearance: True to keep the appearance of the examples: as an example memory if the backbone has a mask
            decoder, else as a visual prompt. (The authors have neither.)
        steps: Optimiser steps.
    """

    name: Literal["tuned", "paper"]
    balanced: bool
    interpolation: float
    rank: int | None
    keep_appearance: bool
    steps: int = 20


# Best measured quality on photos outside the training set (docs/quality.md).
TUNED = Recipe("tuned", balanced=True, interpolation=0.2, rank=8, keep_appearance=True)
# The authors' loss and parameters, one category at a time.
PAPER = Recipe("paper", balanced=False, interpolation=1.0, rank=None, keep_appearance=False)


class CategoryTuning:
    """Tuning of one category's parameters; all other parameters are fixed.

    The prompts of the background and of the other categories run under the base model, so their attention is constant
    for each example and computed once. A step runs forward and backward for the category's one to three prompts only.

    Args:
        backbone: A loaded model; its parameters are only read.
        shots: Examples of the category, at least one of them with it.
        words: Name and synonyms of the category.
        others: Prompts of the background and of the other known categories; pixels outside the mask belong to them.
        layers: Layers to tune and read.
        recipe: `TUNED` or `PAPER`.

    Raises:
        ValueError: If no example shows the category.
    """

    def __init__(
        self,
        backbone: Backbone,
        shots: Sequence[Shot],
        words: Sequence[str],
        *,
        others: Prompts,
        layers: Sequence[int],
        recipe: Recipe = TUNED,
    ) -> None:
        self.shown = tuple(index for index, shot in enumerate(shots) if shot.shows)
        if not self.shown:
            raise ValueError("expected at least one shot that shows the category, got none")
        self.backbone, self.shots, self.words = backbone, tuple(shots), tuple(words)
        self.layers, self.recipe = tuple(layers), recipe
        self.text = backbone.tokenize(words)
        self._others = others
        self._others_evidence: dict[int, Evidence] = {}  # by example, computed on first use
        self._base = backbone.trainable(layers, self.text)
        self.parameters = self._base.map(lambda tensor: tensor.clone().requires_grad_(True))
        self._optimiser = torch.optim.AdamW(
            self.parameters.trained, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
        )
        self._turns = _turns([shot.shows for shot in shots])

    @property
    def decodes(self) -> bool:
        """True if the category keeps an example memory and is judged by decoded masks."""
        return self.recipe.keep_appearance and self.backbone.mask_decoder is not None

    def step(self) -> float:
        """Run one optimiser step and return its loss."""
        return finished(self.step_in_pieces())

    def step_in_pieces(self) -> Pieces[float]:
        """`step`, in pieces of one pass over one example."""
        turn, total = next(self._turns), 0.0
        self._optimiser.zero_grad()
        for position, index in enumerate(turn):
            if position:
                yield
            if index not in self._others_evidence:
                self._evidence_of_others(index)
                yield
            loss = self._loss(index) / len(turn)
            loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
            total += loss.item()
        self._optimiser.step()
        return total

    @property
    def finite(self) -> bool:
        """False if a step gave a parameter that is no number."""
        return all(bool(tensor.isfinite().all()) for tensor in self.parameters.trained)

    @torch.no_grad()
    def tuned(self) -> Parameters:
        """Parameters interpolated between base and tuned as in the recipe; low-rank factors if it has a rank."""
        share = self.recipe.interpolation
        delta = {name: _part_of_the_way(self._base.delta[name], change, share)
                 for name, change in self.parameters.delta.items()}  # fmt: skip
        rows = torch.lerp(self._base.tokens.rows, self.parameters.tokens.rows.detach(), share)
        parameters = Parameters(delta, TokenRows(self.parameters.tokens.ids, rows))
        return parameters if self.recipe.rank is None else factorised(parameters, self._base, self.recipe.rank)

    def evidence(
        self, index: int, parameters: Parameters | None, visual_prompt: VisualPrompt | None = None
    ) -> Evidence:
        """Evidence of one example: background, other categories, and this category last.

        Args:
            index: Index of the example.
            parameters: Parameters for this category's prompts; None for the words alone.
            visual_prompt: Visual prompt whose logits are added to this category's.
        """
        shot, others = self.shots[index], self._evidence_of_others(index)
        stacked = parameters.stacked if parameters else None
        seen = self.backbone.attend(shot.image, self.text, layers=self.layers, adapters=stacked)
        own = patch_logits(seen, self.text.attention_mask, self.layers)
        if visual_prompt:
            own = own + visual_logits(shot.features, VisualPrompt.stack([visual_prompt]))
        stop = others.spans[-1][1]
        return Evidence(
            patch_logits=torch.cat([others.patch_logits, own], dim=1),
            match_score=torch.cat([others.match_score, seen.match_score.float()]),
            spans=(*others.spans, (stop, stop + len(self.words))),
        )

    def scores(
        self, index: int, parameters: Parameters | None, visual_prompt: VisualPrompt | None = None
    ) -> Float[Tensor, "class patch"]:
        """Class scores of one example: background, other categories, and this category last."""
        return self._scores(self.evidence(index, parameters, visual_prompt))

    @torch.no_grad()
    def presence_logit(
        self,
        index: int,
        parameters: Parameters | None,
        *,
        visual_prompt: VisualPrompt | None = None,
        memory: ExampleMemory | None = None,
    ) -> Float[Tensor, ""]:
        """Log-odds that an example shows the category, by `app.method.presence`."""
        evidence = self.evidence(index, parameters, visual_prompt)
        scores, match = self._scores(evidence), evidence.best_match()
        words = [*(query.words for query in self._others.queries[1:]), self.words]
        memories = [*[None] * (len(match) - 1), memory]
        found = backbone_presence(self.backbone, self.shots[index].image, scores, match, words, memories)
        return found[-1].logit(eps=1e-6)

    def log_odds(self, index: int, parameters: Parameters | None) -> Float[Tensor, "patch"]:
        """Log-odds of the category against all other classes at each patch of an example."""
        return torch.logit(normalise(self.scores(index, parameters))[-1], eps=1e-5)

    def iou(
        self,
        index: int,
        parameters: Parameters | None,
        *,
        visual_prompt: VisualPrompt | None = None,
        memory: ExampleMemory | None = None,
    ) -> float:
        """Intersection over union on an example that shows the category; without parameters, that of the words."""
        shot, scores = self.shots[index], self.scores(index, parameters, visual_prompt)
        memories = [*[None] * (len(scores) - 1), memory]
        found = score_map(self.backbone, shot.image, scores, memories, use_mask_decoder=self.decodes)
        return shot.iou(found.at(shot.size_hw).argmax(dim=0) == len(scores) - 1)

    def _scores(self, evidence: Evidence) -> Float[Tensor, "class patch"]:
        return evidence.class_scores(LayerWeights.mean(self.layers, len(evidence.spans)))

    def _evidence_of_others(self, index: int) -> Evidence:
        if index not in self._others_evidence:
            with torch.no_grad():
                evidence = prompt_evidence(self.backbone, self.shots[index].image, self._others, self.layers)
            self._others_evidence[index] = evidence
        return self._others_evidence[index]

    def _loss(self, index: int) -> Float[Tensor, ""]:
        """Cross-entropy of the category against all other classes, weighted per cell."""
        shot, scores = self.shots[index], self.scores(index, self.parameters)
        either = torch.stack([scores[:-1].sum(dim=0), scores[-1]])
        grid = ScoreMap(either, self.backbone.patch_grid_hw, align_corners=True)
        probabilities = grid.probabilities(shot.size_hw)
        # The bound is far below what a word that the model does not know is given: below it, there is no gradient.
        log_p = probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()
        weight = shot.loss_weight(balanced=self.recipe.balanced)
        return -(weight * log_p.flip(0)).sum()


def _turns(shows: Sequence[bool]) -> Iterator[list[int]]:
    """Indices of the examples of each step, cycling through those with the category and through those without it."""
    sides = [[index for index, shown in enumerate(shows) if shown is side] for side in (True, False)]
    sizes = [min(_SHOTS_PER_STEP, len(side)) for side in sides]
    # However many lack the category, they count no more than those that show it.
    sizes[1] = min(sizes)
    for step in count():
        yield [
            side[(step * size + offset) % len(side)]
            for side, size in zip(sides, sizes, strict=True)
            for offset in range(size)
        ]


def _part_of_the_way(base: Change, tuned: Change, share: float) -> Change:
    # Interpolating one factor of a product by a share interpolates the product by the same share.
    if isinstance(base, LowRank) and isinstance(tuned, LowRank):
        return LowRank(torch.lerp(base.left, tuned.left.detach(), share), tuned.right.detach())
    if isinstance(base, Tensor) and isinstance(tuned, Tensor):
        return torch.lerp(base, tuned.detach(), share)
    raise ValueError(f"expected two changes of the same kind, got {type(base).__name__} and {type(tuned).__name__}")
