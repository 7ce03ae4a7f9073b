"""One object of a photo from clicks: places that look like the clicked ones and are joined to them.

The photo is seen as a grid of places. Facts of every place (likeness to the clicked places by the model's features and
by colour, distance in the plane, and geodesic distance, which grows at edges) go through a logistic function. It was
fitted on photos with masks (`training.clicks`) and knows nothing of categories.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from .backbone import Backbone
from .frame import without_padding
from .pipeline import FramedImage
from .refinement import Refinement

# Rows and columns of places: cells of 4 × 4 pixels of the embedded model's input.
GRID = 96
# Sweeps over the grid that let a geodesic path turn so many times.
_SWEEPS = 2
_FAR = 1e6
# A path costs this much per place where nothing changes, and 1 more where the photo changes as it does on average.
_STEP = 0.3
# Scales of CIE L*a*b* and of distances, so that facts are near one.
_COLOUR_SCALE, _PLANE_SCALE = 20.0, 4.0
# Facts are standardised and clamped to this range.
FACT_RANGE = 6.0

WEIGHTS = Path(__file__).parent / "weights" / "clicks.json"


# Row and column on the grid.
Place = tuple[int, int]


@dataclass(frozen=True)
class Click:
    """A place of a photo that was clicked, in pixels; `inside` is False for a place that is not of the object."""

    x: float
    y: float
    inside: bool = True


@dataclass(frozen=True)
class Scene:
    """What clicks are compared with: one photo on the grid of places, and what changes where.

    Attributes:
        spaces: Unit features on grids of their own, by name.
        colour: CIE L*a*b*, scaled.
        costs: Cost of a step at each place, by each kind of change.
        photo_hw: Height and width of the photo in pixels.
    """

    spaces: Mapping[str, Float[Tensor, "_feature _y _x"]]
    colour: Float[Tensor, "3 row column"]
    costs: Float[np.ndarray, "kind row column"]
    photo_hw: tuple[int, int]


@dataclass(frozen=True)
class Logistic:
    """A logistic function of facts by name.

    Attributes:
        bias: Log-odds of average facts.
        facts: Of each fact its mean, its deviation, and its weight once standardised.
    """

    bias: float
    facts: Mapping[str, tuple[float, float, float]]

    def log_odds(self, facts: Mapping[str, Float[Tensor, "place"]]) -> Float[Tensor, "place"]:
        """Log-odds of every place; facts that have no weight are not read."""
        mean, deviation, weight = torch.tensor(list(self.facts.values())).T
        stacked = torch.stack([facts[name] for name in self.facts], dim=1)
        standardised = ((stacked - mean) / deviation).clamp(-FACT_RANGE, FACT_RANGE)
        log_odds: Tensor = standardised @ weight + self.bias
        return log_odds


@cache
def fitted(use_mask_decoder: bool) -> Logistic:
    """The fitted logistic function, in the mask decoder's spaces or in that of the patches."""
    stored = json.loads(WEIGHTS.read_text())["decoder" if use_mask_decoder else "patches"]
    facts = {name: (mean, deviation, weight) for name, (mean, deviation, weight) in stored["facts"].items()}
    return Logistic(stored["bias"], facts)


@torch.no_grad()
def probability_of(
    backbone: Backbone,
    image: FramedImage,
    clicks: Sequence[Click],
    *,
    refinement: Refinement,
    use_mask_decoder: bool = True,
) -> Float[Tensor, "height width"]:
    """Probability that a pixel of the photo is of the clicked object.

    Args:
        backbone: A loaded model.
        image: The photo as the network takes it.
        clicks: At least one of them inside the object.
        refinement: Of the object's edges.
        use_mask_decoder: False to use the patches and the colours alone, as for a model without a mask decoder.

    Raises:
        ValueError: If no click is inside.
    """
    if not any(click.inside for click in clicks):
        raise ValueError("expected a click inside the object, got none")
    use_mask_decoder = use_mask_decoder and backbone.mask_decoder is not None
    scene = scene_of(backbone, image, use_mask_decoder=use_mask_decoder)
    found = fitted(use_mask_decoder).log_odds(place_facts(scene, clicks)).sigmoid().view(1, 1, GRID, GRID)
    clicked = found * joined_to(found >= 0.5, [_place(scene.photo_hw, click) for click in clicks if click.inside])
    rgb = without_padding(image.rgb.cpu(), image.frame)
    object_ = F.interpolate(clicked, size=rgb.shape[1:], mode="bilinear", align_corners=False)[0, 0]
    refined = refinement(torch.stack([1 - object_, object_]), rgb, few_rounds=True)
    return F.interpolate(refined[None, 1:], size=scene.photo_hw, mode="bilinear", align_corners=False)[0, 0]


def joined_to(
    inside: Bool[Tensor, "one one row column"], places: Sequence[Place]
) -> Float[Tensor, "one one row column"]:
    """1 in the parts of a mask that have one of the places, and everywhere if none has."""
    mask = inside.float()
    reached = torch.zeros_like(mask)
    for row, column in places:
        reached[..., row, column] = mask[..., row, column]
    if not reached.any():
        return torch.ones_like(mask)
    while not torch.equal(grown := F.max_pool2d(reached, 3, 1, 1) * mask, reached):
        reached = grown
    return reached


def scene_of(backbone: Backbone, image: FramedImage, *, use_mask_decoder: bool) -> Scene:
    """A photo as clicks are compared with it, in the mask decoder's spaces or in that of the patches."""
    features = backbone.patch_features(image.encoded)
    if decoder := backbone.mask_decoder if use_mask_decoder else None:
        spaces = {
            name: without_padding(space, image.frame)
            for name, space in decoder.comparison_spaces(features, image.encoded).items()
        }
    else:
        patches = without_padding(features.float().T.reshape(-1, *backbone.patch_grid_hw), image.frame)
        spaces = {"patch": patches - patches.mean(dim=(1, 2), keepdim=True)}
    spaces = {name: F.normalize(space.float().cpu(), dim=0) for name, space in spaces.items()}
    rgb = without_padding(image.rgb.cpu(), image.frame)
    colour = F.interpolate(lab(rgb)[None], size=(GRID, GRID), mode="area")[0] / _COLOUR_SCALE
    costs = torch.stack([_change(colour), *(_on_grid(_change(space)) for space in spaces.values())]) + _STEP
    return Scene(spaces, colour, costs.numpy(), image.frame.photo_hw)


def _change(maps: Float[Tensor, "_feature _y _x"]) -> Float[Tensor, "y x"]:
    """How much the features change at each place, relative to the photo's mean."""
    padded = F.pad(maps[None], (1, 1, 1, 1), mode="replicate")[0]
    down = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]).square().sum(dim=0)
    across = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]).square().sum(dim=0)
    change = (down + across).sqrt()
    return change / change.mean().clamp_min(1e-6)


def _on_grid(maps: Float[Tensor, "*maps y x"]) -> Float[Tensor, "*maps row column"]:
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    finer = F.interpolate(flat, size=(GRID, GRID), mode="bilinear", align_corners=False)
    return finer.reshape(*maps.shape[:-2], GRID, GRID)


def lab(rgb: Float[Tensor, "3 height width"]) -> Float[Tensor, "3 height width"]:
    """CIE L*a*b* (D65) of sRGB values in [0, 1]: distances are as large as people see them."""
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = rgb.new_tensor([[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0178, 0.1095, 0.8727]])
    x, y, z = (to_xyz @ linear.flatten(1)).view_as(rgb).clamp_min(1e-6) ** (1 / 3)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def geodesic(
    costs: Float[np.ndarray, "kind row column"], starts: Sequence[Place]
) -> Float[np.ndarray, "kind row column"]:
    """Least cost of a path from the nearest start to each place, by sweeps in the four directions.

    Paths go to the eight neighbours; they turn back at most as often as there are sweeps.
    """
    far = np.full(costs.shape, _FAR, np.float32)
    for row, column in starts:
        far[:, row, column] = 0
    turned, turned_costs = far.transpose(0, 2, 1), np.ascontiguousarray(costs.transpose(0, 2, 1))
    for _ in range(_SWEEPS):
        for distance, cost in ((far, costs), (turned, turned_costs)):
            _sweep(distance, cost)
            _sweep(distance[:, ::-1], cost[:, ::-1])
    return far


def _paths(costs: Float[np.ndarray, "kind row column"], starts: Sequence[Place]) -> Float[Tensor, "kind place"]:
    return torch.from_numpy(geodesic(costs, starts)).flatten(1)


def _sweep(distance: np.ndarray, cost: np.ndarray) -> None:
    """Carry distances from each row to the next, in place."""
    for row in range(1, distance.shape[1]):
        before, here = distance[:, row - 1], distance[:, row]
        step = 0.5 * (cost[:, row - 1] + cost[:, row])
        np.minimum(here, before + step, out=here)
        step = 0.707 * (cost[:, row - 1, :-1] + cost[:, row, 1:])
        np.minimum(here[:, 1:], before[:, :-1] + step, out=here[:, 1:])
        step = 0.707 * (cost[:, row - 1, 1:] + cost[:, row, :-1])
        np.minimum(here[:, :-1], before[:, 1:] + step, out=here[:, :-1])


def place_facts(scene: Scene, clicks: Sequence[Click]) -> dict[str, Float[Tensor, "place"]]:
    """Facts of every place by the clicks, by name. Facts of clicks outside the object are 0 without any."""
    inside = [_place(scene.photo_hw, click) for click in clicks if click.inside]
    outside = [_place(scene.photo_hw, click) for click in clicks if not click.inside]
    facts = _plane_facts(inside, outside) | _colour_facts(scene.colour, inside, outside)
    for name, space in scene.spaces.items():
        like = _likeness(space, inside)
        facts[f"{name} like"] = like
        facts[f"{name} like, centred"] = like - like.mean()
        facts[f"{name} unlike"] = like - _likeness(space, outside) if outside else torch.zeros_like(like)
        facts[f"{name} border"] = _border_likeness(space)
    near = _paths(scene.costs, inside)
    beyond = _paths(scene.costs, outside) if outside else near
    for kind, name in enumerate(["colour", *scene.spaces]):
        facts[f"{name} path"] = (near[kind] + 1).log()
        facts[f"{name} path, rank"] = (near[kind].argsort().argsort() / GRID**2 + 0.003).log()
        facts[f"{name} path outside"] = _log_ratio(beyond[kind], near[kind], 1.0)
    return facts


def _plane_facts(inside: Sequence[Place], outside: Sequence[Place]) -> dict[str, Float[Tensor, "place"]]:
    rows, columns = (axis.flatten() for axis in torch.meshgrid(_centres(), _centres(), indexing="ij"))
    near = _plane_distance(rows, columns, inside)
    beyond = _plane_distance(rows, columns, outside) if outside else near
    border = torch.stack([rows, columns, 1 - rows, 1 - columns]).amin(dim=0)
    return {
        "plane": _PLANE_SCALE * near,
        "plane, log": (near + 0.01).log(),
        "plane outside": _log_ratio(beyond, near, 0.01),
        "border": _PLANE_SCALE * border,
        "border of clicks": torch.full_like(near, _PLANE_SCALE * min(_inset(place) for place in inside)),
        "clicks inside": torch.full_like(near, math.log(len(inside))),
        "clicks outside": torch.full_like(near, math.log1p(len(outside))),
    }


def _colour_facts(
    colour: Float[Tensor, "3 row column"], inside: Sequence[Place], outside: Sequence[Place]
) -> dict[str, Float[Tensor, "place"]]:
    near = _colour_distance(colour, inside)
    beyond = _colour_distance(colour, outside) if outside else near
    return {"colour": near, "colour, log": (near + 0.1).log(), "colour outside": _log_ratio(beyond, near, 0.3)}


def _place(photo_hw: tuple[int, int], click: Click) -> Place:
    """Row and column of the place that was clicked."""
    row, column = (int(value / side * GRID) for value, side in zip((click.y, click.x), photo_hw, strict=True))
    return min(max(row, 0), GRID - 1), min(max(column, 0), GRID - 1)


def _likeness(space: Float[Tensor, "_feature _y _x"], places: Sequence[Place]) -> Float[Tensor, "place"]:
    """Cosine with the most similar of the clicked places, whose features are interpolated."""
    centres = _centres()
    xy = torch.stack([torch.stack([centres[column], centres[row]]) for row, column in places])
    clicked = F.grid_sample(
        space[None], (2 * xy - 1)[None, None], mode="bilinear", padding_mode="border", align_corners=False
    )[0, :, 0]
    like = (F.normalize(clicked, dim=0).T @ space.flatten(1)).amax(dim=0)
    return _on_grid(like.view(space.shape[1:])).flatten()


def _border_likeness(space: Float[Tensor, "_feature _y _x"]) -> Float[Tensor, "place"]:
    """Cosine with the mean of the places along the photo's edges, which are mostly background."""
    edges = torch.cat([space[:, 0], space[:, -1], space[:, :, 0], space[:, :, -1]], dim=1)
    said = F.normalize(edges.mean(dim=1), dim=0) @ space.flatten(1)
    return _on_grid(said.view(space.shape[1:])).flatten()


def _colour_distance(colour: Float[Tensor, "3 row column"], places: Sequence[Place]) -> Float[Tensor, "place"]:
    flat = colour.flatten(1)
    return torch.stack([(flat - colour[:, row, column, None]).norm(dim=0) for row, column in places]).amin(dim=0)


def _plane_distance(rows: Tensor, columns: Tensor, places: Sequence[Place]) -> Float[Tensor, "place"]:
    at = _centres()
    return torch.stack([torch.hypot(rows - at[row], columns - at[column]) for row, column in places]).amin(dim=0)


def _centres() -> Float[Tensor, "side"]:
    return (torch.arange(GRID) + 0.5) / GRID


def _inset(place: Place) -> float:
    return min(min(at + 0.5, GRID - at - 0.5) for at in place) / GRID


def _log_ratio(above: Tensor, below: Tensor, least: float) -> Tensor:
    return ((above + least) / (below + least)).log()
