"""Outcome of tuning: adapter or words, by how well each marks the category's own examples.

The decisions are pure functions of scores (`helps`, `words_suffice`, `teaches_the_word`, `visual_prompt_helps`,
`visual_prompt_harms`). `select` measures what they need, one example at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch.nn import functional as F

from .adapter import Adapter, Kept
from .parameters import ExampleMemory, Parameters, VisualPrompt
from .pieces import Pieces
from .presence import calibrated_bias
from .tuning import CategoryTuning
from .visual_prompt import Prior, fit, mean_features

# With a mask decoder, parameters are kept if the words mark the examples with an IoU below the first number, and the
# parameters with one that is higher by the second. Otherwise they also raise the category's scores where it is not, and
# the example memory alone is better (training/NOTEBOOK.md, section 13); so it is where the network has learned the word
# from many masks (section 15).
_WORDS_FAIL, _CLEAR_GAIN = 0.3, 0.3
# Where the words mark the examples with an IoU of at least the first number, and see the category there with a presence
# of at least the second, they make its masks alone: the appearance of one example would also mark look-alikes.
_WORDS_FIND, _WORDS_SURE = 0.6, 0.7
# Under a word that the network did not learn, the memory of the examples finds other photos better than the word does,
# also where it marks the examples themselves with an IoU that is lower by this (training/NOTEBOOK.md, section 16).
_WITHIN_NOISE = 0.1
# Tensors of an adapter are kept in this format.
_KEPT_DTYPE = torch.float16


@dataclass(frozen=True)
class Outcome:
    """Everything that a category keeps of its tuning.

    Attributes:
        parameters: Tuned parameters, unless the words marked the examples better.
        visual_prompt: Appearance of the examples, for a backbone without a mask decoder.
        memory: Appearance of the examples, for a mask decoder.
        presence_bias: Bias of the category's presence, by the examples, if some of them lack the category.
        example_iou: Mean over the examples that show the category, by what makes the masks, in [0, 1].
        zero_shot_example_iou: The same by the words alone.
        words_suffice: True if masks are made by the words, and the memory serves presence.
        word_is_new: True if the network has not learned the words from many masks, and there is a memory.
    """

    parameters: Parameters | None
    visual_prompt: VisualPrompt | None
    memory: ExampleMemory | None
    presence_bias: float
    example_iou: float
    zero_shot_example_iou: float
    words_suffice: bool = False
    word_is_new: bool = False

    @property
    def helps(self) -> bool:
        """True if parameters and visual prompt are kept; the memory is, in any case."""
        # A large change may overflow in the format in which it is kept.
        marks_well = is_no_worse(self.example_iou, self.zero_shot_example_iou, new=self.word_is_new)
        return marks_well and self._finite()

    def adapter(self, tuning: CategoryTuning, category: str, *, version: int, created_at: str) -> Adapter:
        """The adapter; where masks are made by the words, with the memory alone."""
        keep = self.helps
        return Adapter(
            backbone=tuning.backbone.name,
            revision=tuning.backbone.revision,
            category=category,
            version=version,
            prompts=tuning.words,
            layers=tuning.layers,
            ensemble=(1 / len(tuning.layers),) * len(tuning.layers),
            example_iou=round(self.example_iou, 4),
            zero_shot_example_iou=round(self.zero_shot_example_iou, 4),
            created_at=created_at,
            kept=self._kept() if keep else "words",
            presence_bias=self.presence_bias,
            parameters=self.parameters.map(_to_kept_dtype) if keep and self.parameters else None,
            visual_prompt=self.visual_prompt.map(_to_kept_dtype) if keep and self.visual_prompt else None,
            memory=self.memory.map(_to_kept_dtype) if self.memory else None,
        )

    def _kept(self) -> Kept:
        if self.words_suffice:
            return "presence"
        return "adapter" if self.parameters or self.memory else "words"

    def _finite(self) -> bool:
        tensors = self.parameters.map(_to_kept_dtype).trained if self.parameters else []
        return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def is_no_worse(iou: float, words_iou: float, *, new: bool = False) -> bool:
    """True if what was learned marks the examples at least as well as the words alone.

    Args:
        iou: Mean over the examples, by what was learned.
        words_iou: The same by the words.
        new: True for a memory under words that the network has not learned: it may be a little worse.
    """
    return iou >= words_iou - (_WITHIN_NOISE if new else 0.0)


def words_suffice(words_iou: float, presence: float) -> bool:
    """True if the words know the category: they mark its examples and are sure that it is in them.

    Args:
        words_iou: Mean over the examples, by the words.
        presence: Mean over the examples that show the category, by the words.
    """
    return words_iou >= _WORDS_FIND and presence >= _WORDS_SURE


def teaches_the_word(iou: float, words_iou: float, *, known: bool) -> bool:
    """True if the words hardly find the examples and what was tuned does; such parameters are worth their interference.

    Args:
        iou: Mean over the examples, by the tuned parameters without appearance.
        words_iou: The same by the words.
        known: True if the network has learned one of the words from many masks: a few steps on one photo add nothing.
    """
    return not known and words_iou < _WORDS_FAIL and iou - words_iou >= _CLEAR_GAIN


def may_keep_parameters(tuning: CategoryTuning) -> bool:
    """False if `select` would drop the parameters whatever the steps give, so that none need be run.

    It is so with a mask decoder for most words. A job of the service runs its steps all the same: its record tells
    their loss.
    """
    if not tuning.decodes:
        return True
    words_iou = fmean(tuning.iou(index, None) for index in tuning.shown)
    return teaches_the_word(1.0, words_iou, known=_knows(tuning))


def visual_prompt_helps(with_others: Sequence[float], without: Sequence[float]) -> bool:
    """True if examples are marked better with a visual prompt of the other examples than without one.

    Args:
        with_others: IoU of each example, by a prompt of the others.
        without: IoU of each example, by the parameters alone.
    """
    return sum(a - b for a, b in zip(with_others, without, strict=True)) > 0


def visual_prompt_harms(with_prompt: float, without: float, words: float) -> bool:
    """True if the single example is marked worse with its visual prompt than by the words, and not without it."""
    return with_prompt < words <= without


@torch.no_grad()
def select(tuning: CategoryTuning) -> Pieces[Outcome]:
    """Choose between what was tuned and the words, by the steps so far; a generator that pauses after each measurement.

    The tuned parameters are judged without the appearance of the examples, since an example looks like itself. Photos
    without the category judge nothing: they set the bias of its presence, which keeps it out of photos like them.
    Parameters that are no numbers are dropped, and the words are kept.
    """
    tuned, words, alone = tuning.tuned() if tuning.finite else None, [], []
    for index in tuning.shown:
        words.append(tuning.iou(index, None))
        yield
        alone.append(tuning.iou(index, tuned))
        yield
    suffice, known = False, True
    if tuning.decodes:
        known = _knows(tuning)
        suffice = words_suffice(fmean(words), (yield from _presence_by_words(tuning)))
        parameters, prompt = (tuned if teaches_the_word(fmean(alone), fmean(words), known=known) else None), None
        memory = yield from _memory(tuning, parameters)
    else:
        parameters, memory = tuned, None
        prompt = yield from _visual_prompt_if_it_helps(tuning, tuned, words, alone)
    kept = []
    for index in tuning.shown:
        kept.append(tuning.iou(index, parameters, visual_prompt=prompt, memory=None if suffice else memory))
        yield
    outcome = Outcome(parameters, prompt, memory, 0.0, fmean(kept), fmean(words), suffice, word_is_new=not known)
    # Presence is biased under the parameters that requests will use.
    served = (parameters, prompt) if outcome.helps else (None, None)
    return replace(outcome, presence_bias=(yield from _presence_bias(tuning, *served, memory)))


def _knows(tuning: CategoryTuning) -> bool:
    presence = tuning.backbone.presence
    return presence is not None and presence.knows(tuning.words)


def _presence_by_words(tuning: CategoryTuning) -> Pieces[float]:
    """Mean presence over the examples that show the category."""
    presence = []
    for index in tuning.shown:
        presence.append(float(tuning.presence_logit(index, None).sigmoid()))
        yield
    return fmean(presence)


def _memory(tuning: CategoryTuning, parameters: Parameters | None) -> Pieces[ExampleMemory]:
    """Memory of the examples, with the error of the scores that it is used beside."""
    assert tuning.backbone.mask_decoder is not None
    inside, outside = zip(*(shot.sides(tuning.backbone.patch_grid_hw) for shot in tuning.shots), strict=True)
    log_odds = yield from _log_odds(tuning, parameters)
    features = [shot.features for shot in tuning.shots]
    return tuning.backbone.mask_decoder.remember(features, inside, outside, log_odds)


def _presence_bias(
    tuning: CategoryTuning,
    parameters: Parameters | None,
    visual_prompt: VisualPrompt | None,
    memory: ExampleMemory | None,
) -> Pieces[float]:
    """Bias by which presence agrees with the examples; 0 if all show the category, as an example looks like itself."""
    shown = [shot.shows for shot in tuning.shots]
    if all(shown):
        return 0.0
    logits = []
    for index in range(len(shown)):
        logits.append(tuning.presence_logit(index, parameters, visual_prompt=visual_prompt, memory=memory))
        yield
    return calibrated_bias(torch.stack(logits), torch.tensor(shown, device=logits[0].device))


def _visual_prompt_if_it_helps(
    tuning: CategoryTuning, parameters: Parameters | None, words: Sequence[float], alone: Sequence[float]
) -> Pieces[VisualPrompt | None]:
    if parameters is None or not tuning.recipe.keep_appearance:
        return None
    log_odds = yield from _log_odds(tuning, parameters)
    indices = range(len(tuning.shots))
    if len(tuning.shown) > 1:
        with_others = []
        for index in tuning.shown:
            prompt = _visual_prompt(tuning, log_odds, [other for other in indices if other != index])
            with_others.append(tuning.iou(index, parameters, visual_prompt=prompt))
            yield
        if not visual_prompt_helps(with_others, alone):
            return None
    prompt = _visual_prompt(tuning, log_odds, indices)
    if len(tuning.shown) == 1:
        with_prompt = tuning.iou(tuning.shown[0], parameters, visual_prompt=prompt)
        if visual_prompt_harms(with_prompt, alone[0], words[0]):
            return None
    return prompt


def _log_odds(tuning: CategoryTuning, parameters: Parameters | None) -> Pieces[list[torch.Tensor]]:
    """Log-odds of the category at each patch of each example."""
    log_odds = []
    for index in range(len(tuning.shots)):
        log_odds.append(tuning.log_odds(index, parameters))
        yield
    return log_odds


def _visual_prompt(tuning: CategoryTuning, log_odds: Sequence[torch.Tensor], examples: Sequence[int]) -> VisualPrompt:
    """The visual prompt of some of the examples, on top of the log-odds of all of them."""
    shots = [tuning.shots[index] for index in examples]
    features = [shot.features for shot in shots]
    inside, outside = zip(*(shot.sides(tuning.backbone.patch_grid_hw) for shot in shots), strict=True)
    outer, inner = mean_features(features, inside, outside)
    likeness = [F.normalize(photo.float(), dim=1) @ (inner - outer) for photo in features]
    strength, bias = fit([log_odds[index] for index in examples], likeness, inside, outside, Prior())
    return VisualPrompt(strength * (inner - outer), torch.tensor(bias, device=inner.device))


def _to_kept_dtype(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(_KEPT_DTYPE)
