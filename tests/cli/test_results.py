"""What is kept of the runs of `segment`: nothing is lost, mixed up or taken for something else by the next run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.cli import segment
from app.cli.results import listed

NOWHERE = "http://127.0.0.1:9"


def picture(file: Path, *, seed: int, hw: tuple[int, int] = (5, 7)) -> None:
    """A photo of nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with three photos."""
    for seed, name in enumerate(["a.png", "b.png", "c.png"]):
        picture(tmp_path / "photos" / name, seed=seed)
    return tmp_path / "photos"


@pytest.fixture
def segmented(command, instant_url: str, tmp_path: Path) -> Callable[..., None]:
    """Runs `segment`, with results in `out`, without an error."""

    def run(*words: object) -> None:
        done = command("segment", *words, "--out", tmp_path / "out", "--url", instant_url)
        assert done.returncode == 0, done.stderr

    return run


def in_coco(out: Path) -> list[str]:
    """Names of the photos in the COCO file of a folder of results."""
    return [image["file_name"] for image in json.loads((out / "instances.json").read_text())["images"]]


def kept(out: Path) -> dict[str, list[str]]:
    """The categories that are kept of each photo."""
    _, *lines = map(json.loads, (out / "results.ndjson").read_text().splitlines())
    return {line["filename"]: [found["name"] for found in line["categories"]] for line in lines}


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize(("option", "folder"), [("--masks", "masks"), ("--overlays", "overlays")])
def test_pictures_of_another_origin_are_kept(command, instant_url, photos, tmp_path, option, folder) -> None:
    out = tmp_path / "out"
    picture(out / folder / "b.png", seed=7)
    before = (out / folder / "b.png").read_bytes()
    done = command("segment", photos, "--out", out, option, "--url", instant_url)
    assert done.returncode == 1
    assert f"{out / folder / 'b.png'} was not written by this command, and is kept" in done.stderr
    assert (out / folder / "b.png").read_bytes() == before
    assert names_in(out / folder) == ["b.png"]
    assert not (out / "instances.json").exists()  # no photo was segmented before it was noticed


def test_an_overlay_replaces_overlays_alone(command, instant_url, photos, tmp_path) -> None:
    words = ("segment", photos / "a.png", "--url", instant_url, "--overlay")
    before = (photos / "b.png").read_bytes()
    done = command(*words, photos / "b.png")
    assert done.returncode == 1
    assert "b.png was not written by this command" in done.stderr
    assert (photos / "b.png").read_bytes() == before
    for _ in range(2):
        assert command(*words, tmp_path / "overlay.png").returncode == 0
    with Image.open(tmp_path / "overlay.png") as painted:
        assert painted.size == (7, 5)


def test_an_interruption_while_earlier_results_are_looked_for_changes_nothing(
    command, segmented, photos, tmp_path, monkeypatch
) -> None:
    segmented(photos)
    out = tmp_path / "out"
    before = (out / "instances.json").read_bytes()
    take = segment._Run._take

    def interrupted(run, photo, answer) -> None:
        if photo.name == "c.png":
            raise KeyboardInterrupt
        take(run, photo, answer)

    monkeypatch.setattr(segment._Run, "_take", interrupted)
    done = command("segment", photos, "--out", out, "--masks", "--overlays", "--url", NOWHERE)
    assert done.returncode == 130
    assert (out / "instances.json").read_bytes() == before


def test_an_interruption_while_pictures_are_drawn_loses_no_result(
    command, segmented, photos, tmp_path, monkeypatch
) -> None:
    segmented(photos)
    out = tmp_path / "out"
    before = (out / "instances.json").read_bytes()

    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr("app.cli.results.label_map", interrupted)
    done = command("segment", photos, "--out", out, "--masks", "--url", NOWHERE)
    assert done.returncode == 130
    assert "Interrupted: pictures are left; the same command continues." in done.stderr
    assert (out / "instances.json").read_bytes() == before


def test_too_many_categories_for_a_label_map(command, segmented, photos, tmp_path) -> None:
    many = [word for number in range(256) for word in ("--category", f"thing {number}")]
    done = command("segment", photos, *many, "--out", tmp_path / "new", "--masks", "--url", NOWHERE)
    assert "A label map (--masks) holds at most 255 categories, there are 256" in done.stderr
    segmented(photos, *many)
    done = command("segment", photos, *many, "--out", tmp_path / "out", "--masks", "--url", NOWHERE)
    assert "there are 256" in done.stderr
    assert in_coco(tmp_path / "out") == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize("more", [(), ("--again",)], ids=["once", "again"])
def test_photos_of_another_folder_do_not_replace_those_of_the_same_name(
    command, segmented, photos, instant_url, tmp_path, more
) -> None:
    picture(tmp_path / "other" / "a.png", seed=9)
    segmented(photos, "--masks")
    out = tmp_path / "out"
    before = (out / "instances.json").read_bytes(), (out / "masks" / "a.png").read_bytes()
    done = command("segment", tmp_path / "other", *more, "--out", out, "--masks", "--url", instant_url)
    assert done.returncode == 1
    assert f"has results of photos in {photos}, not in {tmp_path / 'other'}: choose another --out" in done.stderr
    assert ((out / "instances.json").read_bytes(), (out / "masks" / "a.png").read_bytes()) == before


def test_a_folder_that_was_moved(command, segmented, photos, tmp_path) -> None:
    segmented(photos)
    moved = photos.rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to(moved)
    out = tmp_path / "out"
    results = out / "results.ndjson"
    assert "correct the folder in the first line" in command("segment", moved, "--out", out, "--url", NOWHERE).stderr
    results.write_text(results.read_text().replace(str(photos), str(moved)))
    for place in (moved, tmp_path / "link"):
        assert command("segment", place, "--out", out, "--url", NOWHERE).returncode == 0


def test_results_of_earlier_versions_are_continued(command, segmented, photos, tmp_path) -> None:
    segmented(photos)
    results = tmp_path / "out" / "results.ndjson"
    _, *lines = results.read_text().splitlines(keepends=True)
    results.write_text("".join(['{"asked": {"categories": [], "min_presence": null}}\n', *lines]))
    done = command("segment", photos, "--out", tmp_path / "out", "--url", NOWHERE)
    assert done.returncode == 0, done.stderr


def test_some_photos_again_leave_the_others_as_they_are(segmented, photos, tmp_path) -> None:
    segmented(photos, "--masks")
    segmented(photos / "b.png", "--again")
    assert sorted(kept(tmp_path / "out")) == ["a.png", "b.png", "c.png"]
    segmented(photos, "--category", "dog", "--again")
    segmented(photos / "b.png", "--category", "cat", "--again")  # results of other categories are not mixed
    assert kept(tmp_path / "out") == {"b.png": ["cat"]}


def test_a_photo_that_fails_again_keeps_its_result(command, segmented, photos, tmp_path, monkeypatch) -> None:
    from app.client import Client

    segmented(photos)
    out = tmp_path / "out"
    busy = {"problem": {"detail": "The queue is full.", "status": 503}}
    monkeypatch.setattr(Client, "batch", lambda *_, **__: iter([{"index": index} | busy for index in range(3)]))
    done = command("segment", photos, "--out", out, "--again", "--url", NOWHERE)
    assert done.returncode == 1
    assert done.stderr.count("The queue is full.") == 3
    assert in_coco(out) == sorted(kept(out)) == ["a.png", "b.png", "c.png"]


def test_pictures_of_an_earlier_run_are_no_photos(segmented, photos, tmp_path) -> None:
    segmented(photos, "--masks", "--overlays")
    (tmp_path / "out").rename(photos / "labels")
    (photos / "linked").symlink_to(photos / "labels" / "masks")
    picture(photos / "masks" / "d.png", seed=5)  # a folder of that name alone
    assert [photo.name for photo in listed([photos], without=None).photos] == ["a.png", "b.png", "c.png", "masks/d.png"]


def test_pictures_are_left_out_through_a_link_too(photos, tmp_path) -> None:
    picture(tmp_path / "out" / "masks" / "a.png", seed=4)
    (photos / "out").symlink_to(tmp_path / "out")
    found = listed([photos], without=tmp_path / "out").photos
    assert [photo.name for photo in found] == ["a.png", "b.png", "c.png"]


def test_a_run_without_a_result_binds_to_nothing(command, segmented, photos, tmp_path) -> None:
    words = ("--out", tmp_path / "out", "--url", NOWHERE)
    assert "No service answers" in command("segment", photos, "--category", "cta", *words).stderr
    segmented(photos, "--category", "cat")
    assert kept(tmp_path / "out") == {"a.png": ["cat"], "b.png": ["cat"], "c.png": ["cat"]}


@pytest.mark.parametrize("content", ["notes", '{"my": "lines"}\n'])
def test_a_file_of_another_origin_is_no_file_of_results(command, photos, tmp_path, content) -> None:
    results = tmp_path / "out" / "results.ndjson"
    results.parent.mkdir()
    results.write_text(content)
    done = command("segment", photos, "--out", tmp_path / "out", "--url", NOWHERE)
    assert "has no results of this command" in done.stderr
    assert results.read_text() == content


def test_a_picture_is_not_taken_for_that_of_another_photo_of_its_stem(segmented, photos, tmp_path) -> None:
    masks = tmp_path / "out" / "masks"
    picture(photos / "a.bmp", seed=7, hw=(3, 11))
    (photos / "a.png").rename(tmp_path / "a.png")
    segmented(photos, "--masks")
    assert names_in(masks) == ["a.png", "b.png", "c.png"]
    (tmp_path / "a.png").rename(photos / "a.png")
    segmented(photos, "--masks")
    assert names_in(masks) == ["a.bmp.png", "a.png.png", "b.png", "c.png"]
    segmented(photos / "a.png", "--masks")  # one of them alone has the same name
    assert names_in(masks) == ["a.bmp.png", "a.png.png", "b.png", "c.png"]


def test_folders_that_can_not_be_searched_and_links_that_lead_nowhere(
    command, instant_url, photos, tmp_path, monkeypatch
) -> None:
    (photos / "private").mkdir()
    (photos / "gone.jpg").symlink_to(tmp_path / "gone.jpg")
    (photos / "disk").symlink_to(tmp_path / "disk")
    (photos / "notes.txt").symlink_to(tmp_path / "notes.txt")
    scandir = os.scandir

    def denied(place):
        if str(place).endswith("private"):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", denied)
    for more in ((), ("--out", tmp_path / "out")):
        done = command("segment", photos, *more, "--url", instant_url)
        assert done.returncode == 1
        assert f"{photos / 'private'}: Permission denied." in done.stderr
        assert f"{photos / 'gone.jpg'}: No such file or directory." in done.stderr
        assert f"{photos / 'disk'}: No such file or directory." in done.stderr
        assert "notes.txt" not in done.stderr
        assert "of 3" in done.stdout or done.stdout.count(".png") == 3


def test_a_photo_that_is_named_twice_is_segmented_once(command, instant_url, photos) -> None:
    done = command("segment", photos, photos / "a.png", photos, "--json", "--url", instant_url)
    assert len(done.stdout.splitlines()) == 3
    done = command("segment", photos / "a.png", photos / "a.png", "--json", "--url", instant_url)
    assert json.loads(done.stdout)["image"]["width"] == 7


def test_a_picture_whose_name_is_too_long_is_a_problem_of_its_photo(command, instant_url, photos, tmp_path) -> None:
    stem = "x" * 250
    picture(photos / f"{stem}.png", seed=8)
    picture(photos / f"{stem}.bmp", seed=9)
    done = command("segment", photos, "--out", tmp_path / "out", "--masks", "--url", instant_url)
    assert done.returncode == 1
    assert done.stderr.count("File name too long") == 2
    assert f"{stem}.bmp.png can't be written" in done.stderr
    assert len(in_coco(tmp_path / "out")) == 5
    assert names_in(tmp_path / "out" / "masks") == ["a.png", "b.png", "c.png"]


def test_what_was_found_is_printed_when_the_connection_is_lost(command, photos, monkeypatch) -> None:
    from app.client import Client
    from app.errors import UnavailableError

    def cut(*_: object, **__: object):
        found = {"name": "cat", "adapted": True, "presence": 0.5, "area": 7}
        yield {"index": 0, "categories": [found]}
        raise UnavailableError("No service answers.")

    monkeypatch.setattr(Client, "batch", cut)
    done = command("segment", photos, "--url", NOWHERE)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "Error: No service answers.")
    assert "a.png" in done.stdout
