"""Teaching on the command line: one category, and all of a COCO file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import numpy as np
import pytest
from PIL import Image

from app.cli.coco_examples import read_categories
from app.masks.boxes import bbox_of
from app.masks.polygons import mask_to_polygons
from app.masks.rle import mask_to_rle

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("words", [[], ["README.md", "--absent"]], ids=["neither", "both"])
def test_an_example_has_a_mask_or_lacks_the_category(command, words: list[str]) -> None:
    done = command("register", "cat", "examples/dog.jpg", *words)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Give a mask of the category, or --absent" in done.stderr


class Warning202(BaseHTTPRequestHandler):
    """A service that takes an example with a warning, whose job has ended already."""

    job: ClassVar = {"id": "j", "status": "succeeded", "progress": 1.0, "error": None}
    adapter: ClassVar = {"version": 1, "example_iou": 0.5, "zero_shot_example_iou": 0.4}
    warning: ClassVar = {"code": "mask-very-small", "detail": "The mask [bold]marks 1 pixel."}

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.answer({"job": self.job, "category": {}, "warnings": [self.warning]})

    def do_GET(self) -> None:
        if self.path.endswith("/events"):
            self.answer(self.job, kind="text/event-stream", prefix="data: ", suffix="\n\n")
        else:
            self.answer({"adapter": self.adapter})

    def answer(self, body: dict, *, kind: str = "application/json", prefix: str = "", suffix: str = "") -> None:
        raw = f"{prefix}{json.dumps(body)}{suffix}".encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


def test_teach_tells_what_is_probably_not_meant(command, serving) -> None:
    with serving(Warning202) as url:
        files = ("examples/kitten.jpg", "examples/kitten_mask.png")
        done = command("teach", "cat", *files, "--url", url)
    assert done.returncode == 0
    assert done.stderr == "Warning: The mask [bold]marks 1 pixel.\n"
    assert "version 1" in done.stdout


def mask_of(name: str) -> np.ndarray:
    with Image.open(EXAMPLES / f"{name}_mask.png") as image:
        return np.array(image.convert("L")) > 0


def as_is(path: str) -> str:
    return path


@pytest.fixture
def coco(tmp_path: Path) -> Callable[..., Path]:
    """Writes a COCO file of the sample photos, whose names a tool may have changed, beside its folder of images."""

    def written(named: Callable[[str], str] = as_is, **changes: Any) -> Path:
        (tmp_path / "images").mkdir(exist_ok=True)
        for photo in ("kitten", "chelsea", "teacup", "astronaut"):
            shutil.copy(EXAMPLES / f"{photo}.jpg", tmp_path / "images")
        images = []
        for number, photo in enumerate(("kitten", "chelsea", "teacup", "astronaut"), 1):
            height, width = mask_of(photo).shape
            images.append({"id": number, "file_name": named(f"{photo}.jpg"), "width": width, "height": height})
        kitten, chelsea = mask_of("kitten"), mask_of("chelsea")
        left = kitten & (np.arange(kitten.shape[1]) < 350)
        annotations = [
            # Two parts of one cat: both are taught.
            {"image_id": 1, "category_id": 0, "segmentation": mask_to_polygons(left), "area": int(left.sum())},
            {"image_id": 1, "category_id": 0, "segmentation": uncompressed(kitten & ~left), "area": 10},
            {"image_id": 2, "category_id": 0, "segmentation": mask_to_rle(chelsea), "area": 5},
            # Only a box, as of a tool that draws rectangles.
            {"image_id": 3, "category_id": 7, "segmentation": [], "bbox": bbox_of(mask_of("teacup"))},
        ]
        content = {
            "images": images,
            "annotations": [{"id": id} | annotation for id, annotation in enumerate(annotations)],
            "categories": [{"id": 0, "name": "cat"}, {"id": 7, "name": "cup"}, {"id": 9, "name": "sofa"}],
        } | changes
        file = tmp_path / "annotations" / "instances_default.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))
        return file

    return written


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """Run lengths as labelling tools write them: numbers."""
    column = mask.T.ravel()
    ends = np.flatnonzero(np.diff(column)) + 1
    counts = np.diff([0, *ends, len(column)]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if column[0] else counts}


def examples_of(url: str, name: str) -> list[dict[str, Any]]:
    return httpx2.get(f"{url}/categories/{name}/examples").json()


def test_a_coco_file_teaches_all_its_categories(command, tiny_url, coco) -> None:
    done = command("teach", "--coco", coco(), "--category", "cat", "--category", "cup", "--url", tiny_url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kitten.jpg" in done.stdout  # the largest annotation
    assert "teacup.jpg" in done.stdout
    (cat,) = examples_of(tiny_url, "cat")
    assert cat["area"] == pytest.approx(mask_of("kitten").sum(), rel=0.01)
    (cup,) = examples_of(tiny_url, "cup")
    assert cup["area"] == np.prod(bbox_of(mask_of("teacup"))[2:])
    done = command("teach", "--coco", coco(), "--shots", "2", "--replace", "--category", "cat", "--url", tiny_url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {example["width"] for example in examples_of(tiny_url, "cat")} == {
        mask_of("kitten").shape[1],
        mask_of("chelsea").shape[1],
    }


@pytest.mark.parametrize(
    "named",
    [
        lambda name: f"images/1f0a9c3e-{name}",
        lambda name: f"../../label-studio/data/media/upload/7/1f0a9c3e-{name}",
        lambda name: f"images\\{name}",
        lambda name: f"/data/local-files/?d=team%20a/{name}",
        lambda name: f"https://photos.example.com/a%20b/{name}?token=x",
        lambda name: f"default/{name}",
    ],
    ids=["prefix", "upload", "windows", "local files", "address", "subset"],
)
def test_photos_are_found_under_the_names_of_labelling_tools(tmp_path, coco, named) -> None:
    categories = {category.name: category for category in read_categories(coco(named), None, [])}
    assert categories["cat"].candidates[0].photo.samefile(tmp_path / "images" / "kitten.jpg")


@pytest.mark.parametrize("name", ["s3://bucket[1]/kitten.jpg", "http://[team/kitten.jpg", f"{'x' * 300}.jpg"])
def test_names_of_photos_that_no_system_has(tmp_path, coco, name: str) -> None:
    categories = {
        one.name: one for one in read_categories(coco(lambda file: name if file == "kitten.jpg" else file), None, [])
    }
    photos = [candidate.photo and candidate.photo.name for candidate in categories["cat"].candidates]
    assert photos == (["kitten.jpg", "chelsea.jpg"] if "kitten" in name else ["chelsea.jpg", None])


def test_accents_of_another_system(tmp_path, coco) -> None:
    file = coco(lambda name: name.replace("kitten", "cafe\N{COMBINING ACUTE ACCENT}"))
    (tmp_path / "images" / "kitten.jpg").rename(tmp_path / "images" / "caf\N{LATIN SMALL LETTER E WITH ACUTE}.jpg")
    categories = {category.name: category for category in read_categories(file, None, [])}
    assert categories["cat"].candidates[0].photo is not None


def test_a_byte_order_mark_endless_numbers_and_two_spellings(coco) -> None:
    categories = [{"id": 0, "name": "Cat"}, {"id": 7, "name": "cAT"}]
    file = coco(categories=categories)
    content = json.loads(file.read_text())
    content["annotations"][0]["area"] = 10**400
    file.write_text(json.dumps(content), encoding="utf-8-sig")
    (category,) = read_categories(file, None, ["CAT"])
    assert (category.name, len(category.candidates)) == ("Cat", 3)
    assert read_categories(file, None, ["cAT"])[0].name == "Cat"


def test_a_photo_is_not_taught_under_the_name_of_another(tmp_path, coco) -> None:
    file = coco(lambda name: {"kitten.jpg": "cam2/0001.jpg", "chelsea.jpg": "cam1/0001.jpg"}.get(name, name))
    (tmp_path / "cam1").mkdir()
    shutil.copy(EXAMPLES / "chelsea.jpg", tmp_path / "cam1" / "0001.jpg")
    (category,) = read_categories(file, tmp_path / "cam1", ["cat"])
    photos = {candidate.image.file_name: candidate.photo for candidate in category.candidates}
    assert photos == {"cam1/0001.jpg": tmp_path / "cam1" / "0001.jpg", "cam2/0001.jpg": None}


def test_photos_outside_the_folder_are_not_looked_at(tmp_path, coco) -> None:
    outside = tmp_path.parent / "outside.jpg"
    shutil.copy(EXAMPLES / "kitten.jpg", outside)
    file = coco(lambda name: f"../../{outside.name}" if name == "kitten.jpg" else name)
    categories = {category.name: category for category in read_categories(file, tmp_path / "images", ["cat"])}
    assert [candidate.photo.name for candidate in categories["cat"].candidates if candidate.photo] == ["chelsea.jpg"]


def test_what_can_not_be_taught_is_told_and_the_rest_is_taught(command, tiny_url, coco, tmp_path) -> None:
    file = coco()
    content = json.loads(file.read_text())
    content["categories"].append({"id": 5, "name": "poster"})
    content["images"].append({"id": 5, "file_name": "dog.jpg", "width": 10_000_000, "height": 10_000_000})
    content["annotations"].append({"id": 9, "image_id": 5, "category_id": 5, "bbox": [0, 0, 10, 10]})
    content["categories"].append({"id": 6, "name": " "})
    content["annotations"].append({"id": 10, "image_id": 1, "category_id": 6, "bbox": [0, 0, 10, 10]})
    file.write_text(json.dumps(content))
    shutil.copy(EXAMPLES / "dog.jpg", tmp_path / "images")
    (tmp_path / "images" / "teacup.jpg").unlink()
    (tmp_path / "images" / "kitten.jpg").write_bytes(b"no photo")  # then the next photo of a cat is taken
    done = command("teach", "--coco", file, "--url", tiny_url)
    assert done.returncode == 1
    lines = {line.split()[1]: line for line in done.stdout.splitlines() if "│" in line}
    assert "chelsea.jpg" in lines["cat"]
    assert "the photo teacup.jpg is missing" in lines["cup"]
    assert "no annotation" in lines["sofa"]
    assert "dog.jpg: the annotation can't be drawn" in lines["poster"]
    assert "A name has 1 to 64 characters" in lines["│"]
    assert "4 of 5 categories were not taught" in done.stderr
    assert len(examples_of(tiny_url, "cat")) == 1


@pytest.mark.parametrize(
    ("changes", "words", "told"),
    [
        ({"annotations": []}, [], "has no annotation"),
        ({"annotations": [{"image_id": "1", "category_id": 0, "bbox": [0, 0, 9, 9]}]}, [], "No annotation of"),
        ({"annotations": None}, [], "is not a COCO instances file"),
        ({"images": [{"id": 1}]}, [], "is not a COCO instances file"),
        ({"categories": [{"id": 0, "name": None}]}, [], "the name of category 0 is no text"),
        ({}, ["--category", "dog"], "has no category dog: it has cat, cup, sofa"),
        ({}, ["--images", "tests"], "None of the photos"),
        ({}, ["--absent"], "--coco names the categories"),
        ({}, ["cat", "examples/kitten.jpg"], "--coco names the categories"),
    ],
)
def test_a_coco_file_that_can_not_be_used(command, coco, changes, words, told) -> None:
    done = command("teach", "--coco", coco(**changes), *words, "--url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert told in done.stderr


def test_a_box_is_an_example(command, tiny_url) -> None:
    done = command("teach", "cat", "examples/kitten.jpg", "--box", "118,69,522,284", "--url", tiny_url)
    assert done.returncode == 0, done.stderr
    assert examples_of(tiny_url, "cat")[0]["area"] == 522 * 284
    done = command("register", "cat", "examples/dog.jpg", "--absent", "--url", tiny_url)
    assert done.returncode == 0, done.stderr
    assert [example["absent"] for example in examples_of(tiny_url, "cat")] == [False, True]


@pytest.mark.parametrize("box", ["1,2,3", "a,b,c,d", ""])
def test_a_box_of_another_form(command, box: str) -> None:
    done = command("teach", "cat", "examples/kitten.jpg", "--box", box, "--url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "--box is x,y,width,height" in done.stderr


def test_an_error_of_the_service_keeps_its_brackets(command, tiny_url) -> None:
    done = command("teach", "cat", "examples/kitten.jpg", "--box", "0,0,0,0", "--url", tiny_url)
    assert done.returncode == 1
    assert "Send [x, y, width, height] in pixels" in done.stderr
