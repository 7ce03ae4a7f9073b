"""One-shot tuning: a category's own copy of a few parameters, fitted to its examples (paper, section 3.4).

Categories come one at a time and each owns its adapter, unlike in the paper, whose joint tuning is in
`app.research.joint_tuning`. Tuning goes step by step, and `selection` goes example by example, so that a caller can do
other work between them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .backbone import Backbone
from .evidence import Evidence, patch_logits, prompt_evidence
from .low_rank import factorised
from .parameters import Change, ExampleMemory, LowRank, Parameters, TokenRows, VisualPrompt
from .pipeline import score_map
from .prompts import Prompts
from .scores import LayerWeights, ScoreMap, normalise
from .shot import Shot
from .visual_prompt import visual_logits

# AdamW, as the authors run it.
LEARNING_RATE, WEIGHT_DECAY = 2e-4, 0.05
# Names of other categories that compete while one is tuned.
COMPETING_CATEGORIES = 16
# Examples that one step looks at, in turn.
_SHOTS_PER_STEP = 4


@dataclass(frozen=True)
class Recipe:
    """How a category is tuned; `TUNED` and `PAPER` are the two in use.

    Attributes:
        name: Value of the setting EXEMPLAR_METHOD.
        balanced: As of `Shot.loss_weight`.
        interpolation: How far the adapter goes from the base parameters to the tuned ones. All the way (1) is the
            authors'; one photo teaches too much certainty, and a fifth of the way does better on other photos
            (Wortsman et al. 2022, https://arxiv.org/abs/2109.01903).
        rank: Directions that are kept of the change of each matrix; None for all (the authors').
        keep_appearance: Keep the appearance of the examples: as a memory where the backbone has a mask decoder, and as
            a visual prompt elsewhere. (The authors have neither.)
        steps: Optimiser steps.
    """

    name: Literal["tuned", "paper"]
    balanced: bool
    interpolation: float
    rank: int | None
    keep_appearance: bool
    steps: int = 20


# Measured best on photos that were not trained on (docs/quality.md).
TUNED = Recipe("tuned", balanced=True, interpolation=0.2, rank=8, keep_appearance=True)
# The authors' loss and parameters, one category at a time.
PAPER = Recipe("paper", balanced=False, interpolation=1.0, rank=None, keep_appearance=False)


class CategoryTuning:
    """Tuning of one category's parameters while everything else stands still.

    The prompts of the background and of the other categories run under the base model, so their attention is a constant
    of each example, computed once. A step runs forward and backward for the category's own one to three prompts only.

    Args:
        backbone: A loaded model; its parameters are only read.
        shots: The category's examples, at least one.
        words: The category's name and synonyms.
        others: Prompts of the background and of the other known categories: a pixel outside the mask is one of them.
        layers: Layers to tune and read.
        recipe: One of the two above.

    Raises:
        ValueError: If there is no shot.
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
        if not shots:
            raise ValueError("expected at least one shot, got none")
        self.backbone, self.shots, self.words = backbone, tuple(shots), tuple(words)
        self.layers, self.recipe = tuple(layers), recipe
        self.text = backbone.tokenize(words)
        self._others = others
        self._others_evidence: dict[int, Evidence] = {}  # by example, made when it is first looked at
        self._base = backbone.trainable(layers, self.text)
        self.parameters = self._base.map(lambda tensor: tensor.clone().requires_grad_(True))
        self._optimiser = torch.optim.AdamW(self.parameters.trained, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        self._turns = _turns(len(shots))

    @property
    def decodes(self) -> bool:
        """True if the category keeps an example memory and is judged by decoded masks."""
        return self.recipe.keep_appearance and self.backbone.mask_decoder is not None

    def step(self) -> float:
        """One optimiser step; returns its loss."""
        loss = torch.stack([self._loss(index) for index in next(self._turns)]).mean()
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
        self._optimiser.step()
        return loss.item()

    @torch.no_grad()
    def tuned(self) -> Parameters:
        """The recipe's part of the way from base to tuned parameters, as factors of the change if it names a rank."""
        share = self.recipe.interpolation
        delta = {name: _part_of_the_way(self._base.delta[name], change, share)
                 for name, change in self.parameters.delta.items()}  # fmt: skip
        rows = torch.lerp(self._base.tokens.rows, self.parameters.tokens.rows.detach(), share)
        parameters = Parameters(delta, TokenRows(self.parameters.tokens.ids, rows))
        return parameters if self.recipe.rank is None else factorised(parameters, self._base, self.recipe.rank)

    def scores(
        self, index: int, parameters: Parameters | None, visual_prompt: VisualPrompt | None = None
    ) -> Float[Tensor, "class patch"]:
        """Class scores of one example: the background, the other categories, and this one last.

        Args:
            index: Of the example.
            parameters: Of this category's prompts; None for the words alone.
            visual_prompt: Added to this category's logits.
        """
        shot, others = self.shots[index], self._evidence_of_others(index)
        stacked = parameters.stacked if parameters else None
        seen = self.backbone.attend(shot.image, self.text, layers=self.layers, adapters=stacked)
        own = patch_logits(seen, self.text.attention_mask, self.layers)
        if visual_prompt:
            own = own + visual_logits(shot.features, VisualPrompt.stack([visual_prompt]))
        stop = others.spans[-1][1]
        evidence = Evidence(
            patch_logits=torch.cat([others.patch_logits, own], dim=1),
            match_score=torch.cat([others.match_score, seen.match_score.float()]),
            spans=(*others.spans, (stop, stop + len(self.words))),
        )
        return evidence.class_scores(LayerWeights.mean(self.layers, len(evidence.spans)))

    def log_odds(self, index: int, parameters: Parameters | None) -> Float[Tensor, "patch"]:
        """Log-odds of the category against everything else at each patch of an example."""
        return torch.logit(normalise(self.scores(index, parameters))[-1], eps=1e-5)

    def iou(
        self,
        index: int,
        parameters: Parameters | None,
        *,
        visual_prompt: VisualPrompt | None = None,
        memory: ExampleMemory | None = None,
    ) -> float:
        """Intersection over union on one example, in [0, 1]; by the words alone if nothing is given."""
        shot, scores = self.shots[index], self.scores(index, parameters, visual_prompt)
        memories = [*[None] * (len(scores) - 1), memory]
        found = score_map(self.backbone, shot.image, scores, memories, use_mask_decoder=self.decodes)
        return shot.iou(found.at(shot.size_hw).argmax(dim=0) == len(scores) - 1)

    def _evidence_of_others(self, index: int) -> Evidence:
        if index not in self._others_evidence:
            with torch.no_grad():
                evidence = prompt_evidence(self.backbone, self.shots[index].image, self._others, self.layers)
            self._others_evidence[index] = evidence
        return self._others_evidence[index]

    def _loss(self, index: int) -> Float[Tensor, ""]:
        """Cross-entropy of the category against everything else, weighted cell by cell."""
        shot, scores = self.shots[index], self.scores(index, self.parameters)
        either = torch.stack([scores[:-1].sum(dim=0), scores[-1]])
        grid = ScoreMap(either, self.backbone.patch_grid_hw, align_corners=True)
        log_p = grid.probabilities(shot.size_hw).clamp_min(1e-12).log()
        weight = shot.loss_weight(balanced=self.recipe.balanced)
        return -(weight * log_p.flip(0)).sum()


def _turns(count: int) -> Iterator[list[int]]:
    """Examples of each step, a few at a time in turn."""
    size, start = min(_SHOTS_PER_STEP, count), 0
    while True:
        yield [(start + offset) % count for offset in range(size)]
        start += size


def _part_of_the_way(base: Change, tuned: Change, share: float) -> Change:
    # One factor of a product going part of the way takes the product as far.
    if isinstance(base, LowRank) and isinstance(tuned, LowRank):
        return LowRank(torch.lerp(base.left, tuned.left.detach(), share), tuned.right.detach())
    if isinstance(base, Tensor) and isinstance(tuned, Tensor):
        return torch.lerp(base, tuned.detach(), share)
    raise ValueError(f"expected two changes of one kind, got {type(base).__name__} and {type(tuned).__name__}")
