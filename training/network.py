"""The embedded model with gradients, and the loss of a class map."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import BertTokenizer

from app.backbones.embedded import efficientnet
from app.backbones.embedded.efficientnet import EDGE_BLOCKS, EfficientNetLite2
from app.backbones.embedded.mask_decoder import PREFIX
from app.backbones.embedded.model import HEADS, TEXT_EPS, VOCABULARY, image_tokens
from app.backbones.shared.blip_text import BlipText, attention
from app.backbones.shared.tokens import tokenize
from app.method.backbone import TextTokens
from app.method.scores import head_max, token_sum

from .start import TEXT_LAYERS

_CPU = torch.device("cpu")


class Network:
    """The embedded model in training.

    Attributes:
        weights: All tensors under their names in the weights file, float32.
        tower: The image tower; it shares its tensors with `weights`.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights
        prefix = "image_tower."
        self.tower: EfficientNetLite2 = efficientnet.build(
            {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)},
            torch.float32,
        )
        weights.update({prefix + name: tensor for name, tensor in self.tower.tensors()})
        self.text = BlipText(weights, heads=HEADS, layer_count=TEXT_LAYERS, eps=TEXT_EPS)
        self.tokenizer = BertTokenizer(vocab=str(VOCABULARY))

    def part(self, name: str) -> dict[str, Tensor]:
        """Parameters of one part of the network, which have a common learning rate.

        Args:
            name: `joining` (token projections, cross-attentions, match head), `tower` (head and last stages of the
                image tower, without depthwise filters), `earlier tower` (its stages between the edge map and these,
                without depthwise filters), `match` (match head, and cross-attention from the second layer's values on),
                `text` (the rest of the text tower from there on), `decoder's spaces` (the projections of the mask
                decoder in which patches are compared) or `decoder` (the rest of the mask decoder).
        """
        return {key: tensor for key, tensor in self.weights.items() if self._is_part(name, key)}

    def _is_part(self, part: str, key: str) -> bool:
        layer = int(key.split(".")[2]) if key.startswith("encoder.layer.") else -1
        cross = "crossattention" in key
        asks = ".query." in key or ".key." in key
        block = int(key.split(".")[2]) if key.startswith("image_tower.blocks.") else -1
        filters = key.endswith("depthwise.weight")
        decodes = key.startswith(PREFIX) and not key.endswith((".mean", ".deviation"))
        match part:
            case "joining":
                return cross or key.startswith(("vis.", "itm_head."))
            case "tower":
                return (block >= len(self.tower.before) and not filters) or key in ("head_w", "head_b")
            case "earlier tower":
                return EDGE_BLOCKS < block < len(self.tower.before) and not filters
            case "match":
                return key.startswith("itm_head.") or (cross and (layer > 1 or (layer == 1 and not asks)))
            case "text":
                forward = ".intermediate." in key or f".layer.{layer}.output." in key
                return not cross and (layer > 1 or (layer == 1 and forward))
            case "decoder's spaces":
                return decodes and is_of_a_space(key.removeprefix(PREFIX))
            case "decoder":
                return decodes and not is_of_a_space(key.removeprefix(PREFIX))
        raise ValueError(f"expected a part of the network, got {part!r}")

    def encode(
        self, rgb: Float[Tensor, "batch 3 size size"], patches: Int[Tensor, "patch"], *, tower_learns: bool
    ) -> Float[Tensor, "batch image_token width"]:
        """The global token and the tokens of some patches. The tower's early stages are always frozen."""
        with torch.no_grad():
            _, fine = self.tower.early(rgb)
        with torch.set_grad_enabled(tower_learns):
            deep = fine
            for block in self.tower.after:
                deep = _with_cheap_gradient(block, deep)
        # Only some of the patches, because the layers after the tower cost as much as its late stages.
        some = [maps.flatten(2)[..., patches].unsqueeze(3) for maps in (fine, deep)]
        return image_tokens(self.weights, *some)[0]

    def encode_whole(
        self, rgb: Float[Tensor, "batch 3 size size"]
    ) -> tuple[Float[Tensor, "batch channel yy xx"], Float[Tensor, "batch image_token width"]]:
        """The edge map and all tokens. The tower is trained from the second block after the edge map on."""
        with torch.no_grad():
            edges = self.tower.edges(rgb)
            x = self.tower.before[EDGE_BLOCKS](edges)  # the cheap gradient does not support its stride
        for block in self.tower.before[EDGE_BLOCKS + 1 :]:
            x = _with_cheap_gradient(block, x)
        fine = x
        for block in self.tower.after:
            x = _with_cheap_gradient(block, x)
        return edges, image_tokens(self.weights, fine, x)[0]

    def tokens_of(self, words: Sequence[str]) -> TextTokens:
        """Tokens of the prompts of these words."""
        return tokenize(self.tokenizer, words, _CPU)

    @torch.no_grad()
    def first_hidden(self, text: TextTokens) -> Float[Tensor, "prompt token hidden"]:
        """Hidden states from which the first cross-attention computes its queries; independent of the image, frozen."""
        x = self.text._embed(text, None)
        mask = (1 - text.attention_mask[:, None, None, :].to(x.dtype)) * -1e4
        prefix = "encoder.layer.0.attention."
        return attention(x, x, mask, self.text.weights, prefix, heads=self.text.heads, eps=self.text.eps)

    def first_scores(
        self,
        hidden: Float[Tensor, "prompt token hidden"],
        mask: Int[Tensor, "prompt token"],
        tokens: Float[Tensor, "batch patch width"],
    ) -> Float[Tensor, "batch prompt patch"]:
        """Logits of the first layer, maximum over heads and sum over tokens, of the same prompts for all photos."""
        prefix = "encoder.layer.0.crossattention.self."
        w = self.weights
        q = F.linear(hidden, w[prefix + "query.weight"], w[prefix + "query.bias"]).unflatten(-1, (HEADS, -1))
        k = F.linear(tokens, w[prefix + "key.weight"], w[prefix + "key.bias"]).unflatten(-1, (HEADS, -1))
        real = mask.bool()
        flat = q[real].transpose(0, 1) / q.shape[-1] ** 0.5  # head, token of any prompt, size
        logits = flat[None] @ k.permute(0, 2, 3, 1)  # batch, head, token, patch
        strongest = logits.amax(dim=1)
        owner = torch.arange(len(mask))[:, None].expand_as(mask)[real]
        out = strongest.new_zeros(len(tokens), len(mask), tokens.shape[1])
        return out.index_add(1, owner, strongest)

    def all_scores(
        self, tokens: Float[Tensor, "image_token width"], text: TextTokens
    ) -> tuple[list[Float[Tensor, "prompt patch"]], Float[Tensor, "prompt 2"]]:
        """Scores of one photo's prompts by every layer, and the logits of the match head."""
        scores, hidden = self._scores(self.text, tokens, text)
        return scores, F.linear(hidden[:, 0], self.weights["itm_head.weight"], self.weights["itm_head.bias"])

    def layer_scores(
        self, tokens: Float[Tensor, "image_token width"], text: TextTokens, layers: int
    ) -> list[Float[Tensor, "prompt patch"]]:
        """Scores of one photo's prompts by the first layers; later layers are not run."""
        return self._scores(replace(self.text, layer_count=layers), tokens, text)[0]

    def _scores(self, tower: BlipText, tokens: Tensor, text: TextTokens) -> tuple[list[Tensor], Tensor]:
        layers = range(tower.layer_count)
        logits, hidden = tower.attend(tokens, text, layers=layers, adapters=None)
        return [token_sum(head_max(logits[layer][..., 1:]), text.attention_mask) for layer in layers], hidden


def is_of_a_space(name: str) -> bool:
    """True if a tensor of the mask decoder belongs to a projection in which patches are compared."""
    return name.startswith("projection.") or name in ("example.weight", "example.bias")


def class_map_loss(
    scores: Float[Tensor, "prompt patch"],
    background: int,
    target: Float[Tensor, "class patch"],
    known: Float[Tensor, "patch"],
    *,
    background_shift: float = 0.0,
) -> Float[Tensor, ""]:
    """Cross-entropy of the class map, with each class weighted by the root of its area.

    The probability of the background is the sum over its prompts.

    Args:
        scores: Scores of the prompts, those of the background first.
        background: Number of background prompts.
        target: Share of each patch that each class covers.
        known: Share of each patch that is labelled.
        background_shift: Added to the background's logit: log of the ratio of its prompts at inference to those here.
    """
    joined = torch.cat([scores[:background].logsumexp(dim=0, keepdim=True) + background_shift, scores[background:]])
    log_p = joined.log_softmax(dim=0).clamp_min(-25)
    share = target * known
    area = share.sum(dim=1, keepdim=True)
    weight = share / (area + 2).sqrt()
    return -(weight * log_p).sum() / weight.sum().clamp_min(1e-6)


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution with frozen filters, whose gradient is a single convolution.

    torch's own backward also computes the gradient of the filters and takes ten times as long.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.weight, ctx.dilation = weight, dilation
        padding = (weight.shape[-1] // 2) * dilation
        return F.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=len(weight))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def, override]
        flipped = ctx.weight.flip(2, 3).to(grad.dtype).contiguous(memory_format=torch.channels_last)
        padding = (flipped.shape[-1] // 2) * ctx.dilation
        grad = grad.contiguous(memory_format=torch.channels_last)
        back = F.conv2d(grad, flipped, None, padding=padding, dilation=ctx.dilation, groups=len(flipped))
        return back, None, grad.sum(dim=(0, 2, 3)), None


def _with_cheap_gradient(block: efficientnet.Block, x: Tensor) -> Tensor:
    """Run the block with cheap gradients; its pointwise convolutions are matrix products."""
    y = F.relu6(_pointwise(x, block.expand)) if block.expand else x
    depthwise = block.depthwise
    y = F.relu6(_Depthwise.apply(y, depthwise.weight.detach(), depthwise.bias, depthwise.dilation))
    y = _pointwise(y, block.project)
    return x + y if block.residual else y


def _pointwise(x: Tensor, conv: efficientnet.Conv) -> Tensor:
    return F.linear(x.permute(0, 2, 3, 1), conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)
