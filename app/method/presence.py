"""Probability that a photo shows a category: facts on the patch grid, weighed by a logistic model.

Masks cannot tell it: attention is normalised over the prompts, so every name is the most probable one somewhere. The
facts of a category hardly change with the other categories of a request, except for those named `competing`: the mean
over the layers, each normalised over all prompts, is taken before the logarithm.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .scores import normalise

# Shares of the patches over whose best a category's values are averaged.
BEST_SHARES = (0.005, 0.02, 0.07)
_LEAST = 1e-6
# The embedded model's presence was fitted on requests for at most so many names; more count as these.
_MOST_COMPETING = 100
# Deviation of the prior of a category's bias, in log-odds; the largest bias; the halvings that find it to a thousandth.
_BIAS_DEVIATION, _WIDEST, _HALVINGS = 2.0, 16.0, 16

# Facts of a named category, in order.
WORD_FACTS = (
    "match",
    *(f"alone {share}" for share in BEST_SHARES),
    *(f"competing {share}" for share in BEST_SHARES),
    "competing area",
    "competing number",
)


@dataclass(frozen=True)
class LogisticModel:
    """Probability of an event from facts: a hidden layer of tanh units beside a linear term.

    Attributes:
        mean: Of each fact, where the model was fitted.
        deviation: Of each fact.
        hidden: Weights of the hidden units.
        hidden_bias: Their biases.
        out: Weights of the standardised facts and of the hidden units, and a bias at the end.
    """

    mean: Float[Tensor, "fact"]
    deviation: Float[Tensor, "fact"]
    hidden: Float[Tensor, "unit fact"]
    hidden_bias: Float[Tensor, "unit"]
    out: Float[Tensor, "weight"]

    def __call__(self, facts: Float[Tensor, "category fact"]) -> Float[Tensor, "category"]:
        """Probability of each category."""
        return self.logit(facts).sigmoid()

    def logit(self, facts: Float[Tensor, "category fact"]) -> Float[Tensor, "category"]:
        """Log-odds of each category."""
        x = (facts - self.mean) / self.deviation
        units = torch.tanh(x @ self.hidden.T + self.hidden_bias)
        return torch.cat([x, units, torch.ones_like(x[:, :1])], dim=1) @ self.out


def calibrated_bias(logits: Float[Tensor, "example"], present: Bool[Tensor, "example"]) -> float:
    """Number to add to a category's log-odds of presence so that they agree with its own examples.

    The mode of the posterior of a logistic model's bias (Platt 1999) under a normal prior around 0: a single photo
    moves it a little, several that agree move it far.

    Args:
        logits: Log-odds of presence in each of its examples.
        present: True for examples that show it, False for those without it.
    """
    logits, present = logits.double(), present.double()
    low, high = -_WIDEST, _WIDEST  # where the slope, which falls with the bias, is positive and negative
    for _ in range(_HALVINGS):
        bias = (low + high) / 2
        slope = (present - (logits + bias).sigmoid()).sum() - bias / _BIAS_DEVIATION**2
        low, high = (bias, high) if slope > 0 else (low, bias)
    return (low + high) / 2


def shifted(presence: Float[Tensor, "category"], bias: Float[Tensor, "category"]) -> Float[Tensor, "category"]:
    """Probabilities with their log-odds shifted."""
    return torch.where(bias == 0, presence, (presence.logit(eps=_LEAST) + bias).sigmoid())


def by_best_patches(
    scores: Float[Tensor, "class patch"], match_score: Float[Tensor, "category"]
) -> Float[Tensor, "category"]:
    """Presence by the best patches against the background, for a backbone that has nothing better."""
    return word_facts(scores, match_score)[:, WORD_FACTS.index("alone 0.02")].sigmoid()


def word_facts(
    scores: Float[Tensor, "class patch"], match_score: Float[Tensor, "category"]
) -> Float[Tensor, "category fact"]:
    """`WORD_FACTS` of each category.

    Args:
        scores: By the words, the background first.
        match_score: Image-text scores.
    """
    log_scores = scores.clamp_min(torch.finfo(scores.dtype).tiny).log()
    alone = best_means(log_scores[1:] - log_scores[:1])
    probability = normalise(scores)[1:]
    competing = best_means(probability.clamp_min(_LEAST).log())
    area = probability.mean(dim=1, keepdim=True).clamp_min(_LEAST).log()
    number = torch.full_like(area, float(min(len(area), _MOST_COMPETING))).log()
    match = match_score.to(scores).clamp(_LEAST, 1 - _LEAST).logit()[:, None]
    return torch.cat([match, alone, competing, area, number], dim=1)


def best_means(
    values: Float[Tensor, "category patch"], shares: Sequence[float] = BEST_SHARES
) -> Float[Tensor, "category share"]:
    """Mean of each category's best patches, for each share of the patches."""
    counts = [max(1, round(share * values.shape[1])) for share in shares]
    ordered = values.topk(max(counts), dim=1).values
    return torch.stack([ordered[:, :count].mean(dim=1) for count in counts], dim=1)
