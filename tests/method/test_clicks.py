"""One object from clicks: distances, colours and logistic functions by hand; the fitted ones on a photo."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from app.method.backbone import Backbone
from app.method.clicks import (
    GRID,
    Click,
    Logistic,
    fitted,
    geodesic,
    joined_to,
    lab,
    place_facts,
    probability_of,
    scene_of,
)
from app.method.pipeline import Pipeline
from app.method.refinement import unrefined


def test_a_path_goes_around_a_wall() -> None:
    costs = np.ones((1, 5, 7), np.float32)
    costs[0, :4, 3] = 100  # a wall with a gap in the last row
    distance = geodesic(costs, [(0, 0)])[0]
    assert distance[0, 1] == 1
    assert distance[1, 1] == pytest.approx(1.414)
    assert distance[0, 2] == 2
    around = distance[0, 6]
    assert 6 < around < 15  # over the gap, not through the wall
    assert distance[0, 3] > 50


def test_the_nearest_start_counts() -> None:
    costs = np.ones((2, 3, 11), np.float32)
    costs[1] *= 2
    distance = geodesic(costs, [(1, 0), (1, 10)])
    assert distance[0, 1].tolist() == [0, 1, 2, 3, 4, 5, 4, 3, 2, 1, 0]
    assert (distance[1] == 2 * distance[0]).all()


def test_only_clicked_parts_stay() -> None:
    mask = torch.zeros(1, 1, 3, 11, dtype=torch.bool)
    mask[..., 1, :4] = mask[..., 0, 7:9] = True
    assert joined_to(mask, [(1, 0)])[0, 0].nonzero().tolist() == [[1, 0], [1, 1], [1, 2], [1, 3]]
    assert joined_to(mask, [(1, 0), (0, 7)]).sum() == 6
    assert joined_to(mask, [(2, 10)]).all()  # nothing was found where was clicked


def test_colours_are_those_of_cie() -> None:
    white, black, red = torch.ones(3), torch.zeros(3), torch.tensor([1.0, 0, 0])
    found = lab(torch.stack([white, black, red], dim=1)[:, None])[:, 0].T
    assert found[0].tolist() == pytest.approx([100, 0, 0], abs=0.1)
    assert found[1, 1:].tolist() == pytest.approx([0, 0], abs=0.1)
    assert found[2].tolist() == pytest.approx([53.2, 80.1, 67.2], abs=0.3)


def test_a_logistic_function_standardises_its_facts() -> None:
    logistic = Logistic(0.5, {"a": (1.0, 2.0, 3.0), "b": (0.0, 1.0, -1.0)})
    facts = {"b": torch.tensor([2.0, 99.0]), "other": torch.zeros(2), "a": torch.tensor([5.0, 1.0])}
    assert logistic.log_odds(facts).tolist() == [0.5 + 3 * 2 - 2, 0.5 - 6]  # at most 6 deviations count


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """Two red discs on green noise."""
    rows, columns = np.mgrid[:120, :160]
    rgb = np.random.default_rng(5).integers(60, 90, (120, 160, 3), dtype=np.uint8)
    rgb[..., 1] += 90
    for y, x in ((60, 40), (60, 120)):
        rgb[(rows - y) ** 2 + (columns - x) ** 2 < 25**2] = (220, 30, 30)
    return rgb


@pytest.mark.parametrize("use_mask_decoder", [True, False])
def test_a_click_inside_marks_what_is_clicked_and_one_beside_it_does_not(
    embedded: Backbone, photo: np.ndarray, use_mask_decoder: bool
) -> None:
    image = Pipeline(embedded).see(photo)

    def found(*clicks: Click) -> np.ndarray:
        return probability_of(embedded, image, clicks, refinement=unrefined, use_mask_decoder=use_mask_decoder).numpy()

    one = found(Click(40.0, 60.0))
    assert one.shape == (120, 160)
    assert one[60, 40] > 0.5 > one[5, 80]
    other = found(Click(40.0, 60.0), Click(120.0, 60.0, inside=False))
    assert other[60, 40] > 0.5 > other[60, 120]


def test_the_fitted_functions_read_the_facts_that_there_are(embedded: Backbone, photo: np.ndarray) -> None:
    image = Pipeline(embedded).see(photo)
    for use_mask_decoder in (True, False):
        facts = place_facts(scene_of(embedded, image, use_mask_decoder=use_mask_decoder), [Click(40.0, 60.0)])
        assert facts.keys() == fitted(use_mask_decoder).facts.keys()
        assert all(fact.shape == (GRID**2,) and bool(fact.isfinite().all()) for fact in facts.values())


def test_a_model_without_a_mask_decoder_has_the_same_facts(tiny: Backbone, photo: np.ndarray) -> None:
    found = probability_of(tiny, Pipeline(tiny).see(photo), [Click(40.0, 60.0)], refinement=unrefined)
    assert found.shape == (120, 160)
    assert ((found >= 0) & (found <= 1)).all()


def test_padding_is_no_part_of_the_photo(tiny: Backbone) -> None:
    """A white photo of twice the width is white to its last row, though the network's input is half black."""
    image = Pipeline(tiny).see(np.full((30, 60, 3), 255, np.uint8))
    assert image.frame.content_hw == (16, 40)
    scene = scene_of(tiny, image, use_mask_decoder=False)
    assert scene.colour[0].flatten().tolist() == pytest.approx([5.0] * GRID**2, abs=0.01)  # lightness 100, over 20
    assert np.ptp(scene.costs[0]) == 0
    facts = place_facts(scene, [Click(30.0, 29.9)])
    assert facts["border of clicks"].unique().item() == pytest.approx(4 * 0.5 / GRID)  # the lowest row of places


def test_a_click_inside_is_needed(tiny: Backbone, photo: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a click inside"):
        probability_of(tiny, Pipeline(tiny).see(photo), [Click(40.0, 60.0, inside=False)], refinement=unrefined)
