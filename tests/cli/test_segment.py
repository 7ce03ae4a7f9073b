"""Segmenting on the command line: folders, what is kept, what goes wrong, and COCO files that others read."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from app.cli.results import listed
from app.masks.rle import mask_to_rle, rle_to_mask

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NOWHERE = "http://127.0.0.1:9"
# The random model is sure of nothing.
EVERYTHING = ("--category", "cat", "--category", "sofa", "--min-presence", "0")

pytestmark = pytest.mark.timeout(300)  # the embedded model takes seconds for each photo where cores are shared


def picture(file: Path, *, seed: int, hw: tuple[int, int] = (31, 47)) -> None:
    """A photo of nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with three photos, one of them in a subfolder, and things that are no photos."""
    folder = tmp_path / "photos"
    for seed, name in enumerate(["a.png", "b.png", "more/a.png"]):
        picture(folder / name, seed=seed)
    (folder / "notes.txt").write_text("no photo")
    picture(folder / ".thumbnails" / "a.png", seed=9)
    return folder


def coco_of(file: Path) -> COCO:
    """The file as pycocotools reads it."""
    return COCO(str(file))


def drawn(coco: COCO, annotation: dict[str, Any]) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pycocotools under NumPy 2
        return coco.annToMask(annotation).astype(bool)


def test_a_folder_becomes_a_coco_file_label_maps_and_overlays(command, embedded_url, tmp_path) -> None:
    photos = tmp_path / "photos"
    for name in ("chelsea.jpg", "more/kitten.jpg"):
        (photos / name).parent.mkdir(exist_ok=True)
        shutil.copy(EXAMPLES / Path(name).name, photos / name)
    out = photos / "results"  # among the photos: the pictures in it are no photos
    for _ in range(2):
        words = ("--category", "sofa", "--category", "cat", "--masks", "--overlays", "--url", embedded_url)
        done = command("segment", photos, "--out", out, *words)
        assert done.returncode == 0, done.stderr
        assert "2 of 2" in done.stdout
    coco = coco_of(out / "instances.json")
    assert {image["file_name"] for image in coco.dataset["images"]} == {"chelsea.jpg", "more/kitten.jpg"}
    assert [(category["id"], category["name"]) for category in coco.dataset["categories"]] == [(1, "sofa"), (2, "cat")]
    assert len({annotation["id"] for annotation in coco.dataset["annotations"]}) == len(coco.dataset["annotations"])
    for image in coco.dataset["images"]:
        labels = np.zeros((image["height"], image["width"]), np.uint8)
        annotations = coco.loadAnns(coco.getAnnIds(image["id"]))
        assert annotations
        for annotation in annotations:
            mask = drawn(coco, annotation)
            assert mask.sum() == annotation["area"] > 0
            assert 0 <= annotation["score"] <= 1
            labels[mask] = annotation["category_id"]
        with Image.open(out / "masks" / image["file_name"].replace(".jpg", ".png")) as stored:
            assert json.loads(stored.info["categories"]) == ["sofa", "cat"]
            assert (np.array(stored) == labels).all()
        with Image.open(out / "overlays" / image["file_name"].replace(".jpg", ".png")) as painted:
            assert painted.size == (image["width"], image["height"])


def test_objects_apart_from_each_other_are_annotations_of_their_own(command, embedded_url, tmp_path) -> None:
    """Two photos of a cat with a grey wall between them; the file with parts is made of the same answers."""
    with Image.open(EXAMPLES / "chelsea.jpg") as cat:
        beside = Image.new("RGB", (3 * cat.width, cat.height), (128, 128, 128))
        for column in (0, 2 * cat.width):
            beside.paste(cat, (column, 0))
    beside.save(tmp_path / "cats.png")
    words = ("segment", tmp_path / "cats.png", "--category", "cat", "--out", tmp_path / "out")
    assert command(*words, "--url", embedded_url).returncode == 0
    whole = coco_of(tmp_path / "out" / "instances.json")
    assert command(*words, "--parts", "--url", NOWHERE).returncode == 0
    parts = coco_of(tmp_path / "out" / "instances.json")
    (one,) = whole.dataset["annotations"]
    assert {each["category_id"] for each in parts.dataset["annotations"]} == {one["category_id"]}
    assert {each["score"] for each in parts.dataset["annotations"]} == {one["score"]}
    masks = [drawn(parts, each) for each in parts.dataset["annotations"]]
    assert len(masks) >= 2
    assert np.sum(masks, axis=0).max() == 1, "no pixel is in two of them"
    assert np.sum(masks) >= 0.99 * drawn(whole, one).sum(), "nothing but specks is left out"
    assert not (np.any(masks, axis=0) & ~drawn(whole, one)).any()
    wall = slice(int(1.2 * cat.width), int(1.8 * cat.width))
    assert not any(mask[:, : wall.start].any() and mask[:, wall.stop :].any() for mask in masks)


def test_parts_are_of_a_coco_file(command, photos) -> None:
    done = command("segment", photos, "--parts", "--url", NOWHERE)
    assert done.returncode != 0
    assert "--parts needs --out or --coco" in done.stderr


def test_what_is_there_is_not_asked_for_again(command, tiny_url, photos, tmp_path) -> None:
    out = tmp_path / "out"
    words = ("segment", photos, *EVERYTHING, "--out", out)
    assert command(*words, "--url", tiny_url).returncode == 0
    before = (out / "instances.json").read_bytes()
    done = command(*words, "--overlays", "--url", NOWHERE)  # pictures are drawn of the results that are there
    assert done.returncode == 0, done.stderr
    assert (out / "instances.json").read_bytes() == before
    assert (out / "overlays" / "more" / "a.png").exists()
    picture(photos / "new.png", seed=20)
    assert "No service answers" in command(*words, "--url", NOWHERE).stderr
    assert len(coco_of(out / "instances.json").imgs) == 3
    done = command(*words, "--json", "--url", tiny_url)
    assert [json.loads(line)["filename"] for line in done.stdout.splitlines()] == ["new.png"]
    assert len(coco_of(out / "instances.json").imgs) == 4
    picture(photos / "new.png", seed=21)  # another photo under the same name
    done = command(*words, "--json", "--url", tiny_url)
    assert [json.loads(line)["filename"] for line in done.stdout.splitlines()] == ["new.png"]
    done = command(*words, "--json", "--again", "--url", tiny_url)
    assert len(done.stdout.splitlines()) == 4


def test_a_line_that_was_cut_off_is_asked_for_again(command, tiny_url, photos, tmp_path) -> None:
    out = tmp_path / "out"
    words = ("segment", photos, *EVERYTHING, "--out", out, "--url", tiny_url)
    assert command(*words).returncode == 0
    results = out / "results.ndjson"
    results.write_bytes(results.read_bytes()[:-9])
    done = command(*words, "--json")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert len(coco_of(out / "instances.json").imgs) == 3


def test_a_bad_photo_does_not_end_the_run(command, tiny_url, photos, tmp_path) -> None:
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff no photo")
    (photos / "empty.png").write_bytes(b"")
    coco = tmp_path / "found.json"
    done = command("segment", photos, *EVERYTHING, "--coco", coco, "--url", tiny_url)
    assert done.returncode == 1
    assert "broken.jpg: " in done.stderr
    assert "empty.png: " in done.stderr
    assert "of 3" in done.stdout
    assert len(coco_of(coco).imgs) == 3
    (photos / "broken.jpg").unlink()
    picture(photos / "empty.png", seed=5)
    assert command("segment", photos, *EVERYTHING, "--coco", coco, "--url", tiny_url).returncode == 0
    assert len(coco_of(coco).imgs) == 4


def test_results_of_other_options_and_files_of_others_are_kept(command, tiny_url, photos, tmp_path) -> None:
    out = tmp_path / "out"
    words = ("segment", photos, "--out", out, "--url", tiny_url)
    assert command(*words, *EVERYTHING).returncode == 0
    done = command(*words, "--category", "dog")
    assert done.returncode == 1
    assert "--again" in done.stderr
    truth = tmp_path / "truth.json"
    truth.write_text('{"images": [], "annotations": [], "categories": []}')
    done = command("segment", photos, *EVERYTHING, "--coco", truth, "--url", tiny_url)
    assert done.returncode == 1
    assert f"{truth} was not written by this command" in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--masks"], "need --out"),
        (["--overlays", "--coco", "x.json"], "need --out"),
        (["--out", "README.md"], "README.md"),
        (["--coco", "no-such-folder/x.json"], "no-such-folder"),
        (["--min-presence", "2"], "--min-presence"),
        (["--overlay", "x.png"], "only one photo"),
    ],
)
def test_options_that_do_not_fit(command, words: list[str], told: str) -> None:
    done = command("segment", "examples", *words, "--url", NOWHERE)
    assert done.returncode
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_without_photos(command, tmp_path) -> None:
    done = command("segment", tmp_path, "--url", NOWHERE)
    assert done.returncode == 1
    assert "has no image file" in done.stderr


def test_names_of_photos_stay_in_their_folder(tmp_path, monkeypatch) -> None:
    for seed, name in enumerate(["one/a.png", "two/a.png", "two/out/masks/a.png"]):
        picture(tmp_path / name, seed=seed)
    monkeypatch.chdir(tmp_path / "one")
    found = listed([Path("../two"), Path("a.png")], without=Path("../two/out")).photos
    assert [photo.name for photo in found] == ["two/a.png", "one/a.png"]
    assert [photo.name for photo in listed([Path("../two"), Path("../two/out")], without=None).photos] == [
        "a.png",
        "out/masks/a.png",
    ]
    # The folder of the results may hold the photos.
    assert [photo.name for photo in listed([Path("../two/out"), Path()], without=tmp_path).photos] == [
        "two/out/masks/a.png",
        "one/a.png",
    ]


def test_linked_folders_are_searched_once(tmp_path) -> None:
    picture(tmp_path / "elsewhere" / "b.png", seed=1)
    picture(tmp_path / "photos" / "a.png", seed=2)
    picture(tmp_path / "photos" / ".thumbnails" / "a.png", seed=2)
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "photos")
    found = listed([tmp_path / "photos"], without=None).photos
    assert [photo.name for photo in found] == ["a.png", "linked/b.png"]


def test_photos_of_one_stem_have_pictures_of_their_own(command, tiny_url, tmp_path) -> None:
    for seed, name in enumerate(["a.png", "a.bmp", "b.png", "c.bmp", "c.png", "c.png.tif"]):
        picture(tmp_path / "photos" / name, seed=seed)
    out = tmp_path / "out"
    done = command("segment", tmp_path / "photos", *EVERYTHING, "--out", out, "--masks", "--url", tiny_url)
    assert done.returncode == 0, done.stderr
    drawn = ["a.bmp.png", "a.png.png", "b.png", "c.bmp.png", "c.png.png", "c.png.tif.png"]
    assert sorted(file.name for file in (out / "masks").iterdir()) == drawn


def test_all_again_keeps_the_results_before_until_it_is_done(command, tiny_url, photos, tmp_path) -> None:
    out = tmp_path / "out"
    words = ("segment", photos, *EVERYTHING, "--out", out)
    assert command(*words, "--url", tiny_url).returncode == 0
    before = (out / "instances.json").read_bytes(), (out / "results.ndjson").read_bytes()
    assert command(*words, "--again", "--url", NOWHERE).returncode == 1
    assert ((out / "instances.json").read_bytes(), (out / "results.ndjson").read_bytes()) == before
    done = command("segment", photos, "--category", "dog", "--out", out, "--again", "--url", tiny_url)
    assert done.returncode == 0, done.stderr
    coco = coco_of(out / "instances.json")
    assert ([category["name"] for category in coco.dataset["categories"]], len(coco.imgs)) == (["dog"], 3)
    assert sorted(file.name for file in out.iterdir()) == ["instances.json", "results.ndjson"]


def test_two_commands_do_not_write_to_one_folder_at_once(command, tiny_url, photos, tmp_path) -> None:
    out = tmp_path / "out"
    words = ("segment", photos, *EVERYTHING, "--out", out, "--url", tiny_url)
    assert command(*words).returncode == 0
    before = (out / "results.ndjson").read_bytes()
    with (out / "results.ndjson").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for more in ((), ("--again",)):
            done = command(*words, *more)
            assert done.returncode == 1
            assert "Another command writes to" in done.stderr
    assert (out / "results.ndjson").read_bytes() == before
    assert command(*words).returncode == 0


def test_pictures_show_the_results_that_are_there(command, embedded_url, tmp_path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    shutil.copy(EXAMPLES / "kitten.jpg", photos)
    words = ("segment", photos, "--category", "cat", "--out", out, "--url", embedded_url)
    pictures = ("--masks", "--overlays")

    def drawn_at() -> list[int]:
        return [(out / folder / "kitten.png").stat().st_mtime_ns for folder in ("masks", "overlays")]

    def marked() -> int:
        with Image.open(out / "masks" / "kitten.png") as labels:
            assert labels.size == photo.size
            return int(np.count_nonzero(labels))

    with Image.open(photos / "kitten.jpg") as photo:
        photo.load()
    assert command(*words, "--min-presence", "0", *pictures).returncode == 0
    first, area = drawn_at(), marked()
    assert area
    assert command(*words, "--min-presence", "1", "--again").returncode == 0  # without pictures
    assert command(*words, "--min-presence", "1", *pictures).returncode == 0
    second = drawn_at()
    assert all(late > early for early, late in zip(first, second, strict=True))
    assert not marked()
    assert command(*words, "--min-presence", "1", *pictures).returncode == 0
    assert drawn_at() == second  # they show what is there already
    photo = photo.reduce(2)  # another photo under the same name
    photo.save(photos / "kitten.jpg")
    assert command(*words, "--min-presence", "1").returncode == 0
    assert command(*words, "--min-presence", "1", *pictures).returncode == 0
    assert not marked()
    with Image.open(out / "overlays" / "kitten.png") as painted:
        assert painted.size == photo.size


def test_the_coco_file_has_the_photos_of_the_command_alone(command, tiny_url, photos, tmp_path) -> None:
    out = tmp_path / "out"
    words = ("segment", photos, *EVERYTHING, "--out", out, "--url", tiny_url)
    assert command(*words).returncode == 0
    (photos / "a.png").write_bytes(b"no photo any more")
    (photos / "b.png").rename(photos / "c.png")
    assert command(*words).returncode == 1
    images = coco_of(out / "instances.json").dataset["images"]
    assert [image["file_name"] for image in images] == ["c.png", "more/a.png"]


def test_a_photo_with_the_longest_name(command, tiny_url, tmp_path) -> None:
    picture(tmp_path / "photos" / f"{'x' * 251}.png", seed=1)
    words = ("segment", tmp_path / "photos", *EVERYTHING, "--out", tmp_path / "out", "--masks", "--url", tiny_url)
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "masks" / f"{'x' * 251}.png").exists()


class Slow(BaseHTTPRequestHandler):
    """A service that answers the first photo of a batch at once, and the others after the test."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        start = body.index(b"\x89PNG")
        photo = body[start : body.index(b"\r\n--", start)]
        mask = np.zeros((31, 47), bool)
        mask[3:20, 5:30] = True
        found = {"name": "cat", "adapted": False, "presence": 0.9, "area": int(mask.sum()), "bbox": [5, 3, 25, 17]}
        line = {
            "index": 0,
            "image": {"width": 47, "height": 31, "sha256": hashlib.sha256(photo).hexdigest()},
            "categories": [found | {"segmentation": mask_to_rle(mask)}],
        }
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.end_headers()
        self.wfile.write(json.dumps(line).encode() + b"\n")
        self.wfile.flush()
        time.sleep(20)

    def log_message(self, *_: object) -> None:
        """Not in the test's output."""


def test_ctrl_c_leaves_what_was_done(serving, photos, tmp_path) -> None:
    out = tmp_path / "out"
    with serving(Slow) as url:
        words = ["segment", str(photos), "--out", str(out), "--url", url]
        # A shell that runs the tests in the background makes them ignore Ctrl-C, which a child inherits.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        child = subprocess.Popen(
            [sys.executable, "-m", "app", *words], cwd=ROOT, env=os.environ, stderr=subprocess.PIPE, text=True
        )
        signal.signal(signal.SIGINT, before)
        deadline = time.monotonic() + 60
        results = out / "results.ndjson"
        while not (results.exists() and results.read_bytes().count(b"\n") == 2):
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "Interrupted: 2 of 3 photos are left" in said
    assert "Traceback" not in said
    coco = coco_of(out / "instances.json")
    assert [image["file_name"] for image in coco.dataset["images"]] == ["a.png"]
    assert coco.dataset["annotations"][0]["area"] == 17 * 25


def test_from_one_example_to_a_coco_file_and_back(command, embedded_url, tmp_path) -> None:
    files = (EXAMPLES / "kitten.jpg", EXAMPLES / "kitten_mask.png")
    assert command("teach", "cat", *files, "--url", embedded_url).returncode == 0
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("chelsea.jpg", "kitten.jpg", "coffee.jpg"):
        shutil.copy(EXAMPLES / name, photos)
    out = tmp_path / "out"
    done = command("segment", photos, "--out", out, "--url", embedded_url)
    assert done.returncode == 0, done.stderr
    coco = coco_of(out / "instances.json")
    names = {image["id"]: image["file_name"] for image in coco.dataset["images"]}
    found = {names[annotation["image_id"]]: annotation for annotation in coco.dataset["annotations"]}
    assert {"chelsea.jpg", "kitten.jpg"} <= set(found)
    with Image.open(EXAMPLES / "chelsea_mask.png") as image:
        truth = np.array(image.convert("L")) > 0
    mask = drawn(coco, found["chelsea.jpg"])
    assert (mask == rle_to_mask(found["chelsea.jpg"]["segmentation"])).all()
    assert (mask & truth).sum() / (mask | truth).sum() > 0.7

    assert command("delete", "cat", "--url", embedded_url).returncode == 0
    done = command("teach", "--coco", out / "instances.json", "--images", photos, "--url", embedded_url)
    assert done.returncode == 0, done.stdout + done.stderr
    (category,) = json.loads(command("categories", "--json", "--url", embedded_url).stdout)
    assert (category["name"], category["examples"]) == ("cat", 1)
    assert category["adapter"]["example_iou"] > 0.5


def test_what_was_taught_between_two_runs_is_told(command, embedded_url, tmp_path) -> None:
    """A cup was taught after the first photos were labelled; then one more photo comes."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for name in ("coffee.jpg", "dog.jpg"):
        shutil.copy(EXAMPLES / name, photos)
    segment = ("segment", photos, "--out", out, "--url", embedded_url)

    def teach(name: str, photo: str) -> None:
        done = command("teach", name, EXAMPLES / f"{photo}.jpg", EXAMPLES / f"{photo}_mask.png", "--url", embedded_url)
        assert done.returncode == 0, done.stderr

    teach("cat", "kitten")
    assert "from before" not in command(*segment).stderr
    assert "from before" not in command(*segment).stderr
    teach("cup", "teacup")
    shutil.copy(EXAMPLES / "chelsea.jpg", photos)
    done = command(*segment)
    assert "2 of 2 earlier results are from before cup changed: --again" in done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if " of " in line]
    assert {row[1]: row[5] for row in rows if row[1] in {"cat", "cup"}} == {"cat": "3", "cup": "1"}
    done = command(*segment, "--again")
    assert "from before" not in done.stderr
    assert "cup" in done.stdout
    done = command("segment", photos, "--category", "cat", "--out", tmp_path / "named", "--url", embedded_url)
    teach("cat", "chelsea")
    done = command("segment", photos, "--category", "cat", "--out", tmp_path / "named", "--url", embedded_url)
    assert "3 of 3 earlier results are from before cat changed" in done.stderr


def test_one_photo_is_printed_as_before(command, tiny_url, photos) -> None:
    answer = json.loads(command("segment", photos / "a.png", *EVERYTHING, "--json", "--url", tiny_url).stdout)
    assert [found["name"] for found in answer["categories"]] == ["cat", "sofa"]
    overlay = photos.parent / "overlay.png"
    done = command("segment", photos / "a.png", *EVERYTHING, "--overlay", overlay, "--url", tiny_url)
    assert "sofa" in done.stdout
    with Image.open(io.BytesIO(overlay.read_bytes())) as painted:
        assert painted.size == (47, 31)
    done = command("segment", photos, *EVERYTHING, "--url", tiny_url)
    assert done.stdout.count("sofa") == 3
