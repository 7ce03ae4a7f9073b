"""The training loop."""

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from .batches import Material, batches
from .losses import map_losses
from .network import Network
from .stages import Stage
from .together import mask_losses

# Steps over which a learning rate rises to its peak.
_WARM_UP = 60


def train(
    network: Network, material: Material, stage: Stage, *, seed: int, keep: Callable[[dict[str, Tensor], int], None]
) -> None:
    """Train one stage; the network then has the weights interpolated by `stage.share` towards their running mean.

    Args:
        network: The network to train.
        material: The training data.
        stage: The stage.
        seed: Seed of all random choices.
        keep: Called with the averaged weights and the number of steps, every 200 steps and at the end.
    """
    parts = [network.part(name) for name, _ in stage.learning_rates]
    learning = {name: tensor.requires_grad_(True) for part in parts for name, tensor in part.items()}
    start = {name: tensor.detach().clone() for name, tensor in learning.items()}
    average = {name: tensor.clone() for name, tensor in start.items()}
    groups = [
        {"params": list(part.values()), "peak": rate, "waits": stage.tower_waits * stage.steps * (name == "tower")}
        for part, (name, rate) in zip(parts, stage.learning_rates, strict=True)
    ]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.02)
    rng = random.Random(seed)
    torch.manual_seed(seed)
    smooth: dict[str, float] = {}
    losses_of = mask_losses if stage.together else map_losses
    bar = tqdm(batches(material, stage, seed), total=stage.steps, desc=stage.name, unit="step", mininterval=20)
    for step, samples in enumerate(bar):
        cosine = 0.5 * (1 + math.cos(math.pi * step / stage.steps)) * 0.98 + 0.02
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * cosine * min(1.0, max(0.0, (step + 1 - group["waits"]) / _WARM_UP))
        losses = {
            name: torch.stack(each).mean()
            for name, each in losses_of(network, material.vocabulary, samples, stage, step, rng).items()
        }
        optimiser.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(list(learning.values()), 1.0)
        optimiser.step()
        decay = min(stage.average, (step + 1) / (step + 20))
        for name, tensor in learning.items():
            average[name].lerp_(tensor.detach(), 1 - decay)
        for name, value in losses.items():
            smooth[name] = 0.97 * smooth.get(name, value.item()) + 0.03 * value.item()
        bar.set_postfix({name: f"{value:.3f}" for name, value in smooth.items()}, refresh=False)
        if (step + 1) % 200 == 0 or step + 1 == stage.steps:
            keep({**network.weights, **average}, step + 1)
    for name, tensor in learning.items():
        tensor.requires_grad_(False).copy_(torch.lerp(start[name], average[name], stage.share))
