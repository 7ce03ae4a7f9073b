"""Generate some minutes of varied load on a running service, to fill the dashboards.

    python deploy/grafana/load.py http://127.0.0.1:8000 --minutes 5

One client teaches category after category, three segment photos into 1 to 30 names, one sends 20 requests at once every
minute (more than the queue takes if EXEMPLAR_QUEUE_LIMIT is 8), one sends invalid requests, one polls /readyz.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx2 as httpx
from PIL import Image

from app.client import Client
from app.demo import EXAMPLES
from app.errors import AppError

PHOTOS = sorted(path for path in EXAMPLES.glob("*.jpg"))
# Category, photo and mask. Some masks do not match the word, so that the gains differ.
LESSONS = (
    ("person", "astronaut", "astronaut"),
    ("cat", "kitten", "kitten"),
    ("giraffe", "giraffes", "giraffes"),
    ("cup", "teacup", "teacup"),
    ("flag", "grace_hopper", "grace_hopper_flag"),
    ("spoon", "coffee", "coffee_spoon"),
    ("dog", "dog", "dog"),
    ("officer", "grace_hopper", "grace_hopper"),
    ("espresso", "coffee", "coffee"),
    ("tabby", "chelsea", "chelsea"),
    ("long neck", "giraffe_head", "giraffe_head"),
    ("spacesuit", "astronaut", "astronaut"),
)
WORDS = (
    *(name for name, _, _ in LESSONS),
    *("sofa", "tree", "grass", "sky", "wall", "table", "ball", "yarn", "saucer", "uniform", "helmet", "shuttle"),
    *("fence", "wood", "window", "hand", "eye", "ear", "horse", "car", "book", "shoe", "bag", "lamp"),
)


def teach(url: str, until: float) -> None:
    """Teach continuously; every third example is sent twice at once, so that its first job is superseded."""
    with Client(url) as client:
        turn = 0
        while time.time() < until:
            name, photo, mask = LESSONS[turn % len(LESSONS)]
            turn += 1
            for _ in range(2 if turn % 3 == 0 else 1):
                job = client.teach(name, EXAMPLES / f"{photo}.jpg", EXAMPLES / f"{mask}_mask.png", replace=True)
            for _ in client.follow(job["id"]):
                pass
            time.sleep(4)


def segment(url: str, until: float, chance: random.Random) -> None:
    """Segment some photos repeatedly and some in a new size; send a burst from time to time."""
    with Client(url) as client, tempfile.TemporaryDirectory() as folder:
        while time.time() < until:
            photo = chance.choice(PHOTOS)
            if chance.random() < 0.4:
                photo = _resized(photo, chance.uniform(0.5, 1.2), Path(folder))
            with suppress(AppError):  # the queue is full
                client.segment(photo, chance.sample(WORDS, chance.randint(1, 30)))
            in_a_burst = int(time.time()) % 90 < 25
            time.sleep(chance.uniform(0.0, 0.2) if in_a_burst else chance.uniform(0.5, 3.0))


def _resized(photo: Path, scale: float, folder: Path) -> Path:
    with Image.open(photo) as image:
        resized = image.resize((round(image.width * scale), round(image.height * scale)))
    resized.save(folder / photo.name)
    return folder / photo.name


def crowd(url: str, until: float) -> None:
    """Send twenty requests at once, once a minute."""
    photo = EXAMPLES / "chelsea.jpg"

    def ask(client: Client) -> None:
        with suppress(AppError):
            client.segment(photo, ["cat", "sofa", "eye"])

    with Client(url) as client, ThreadPoolExecutor(20) as people:
        while time.time() < until - 60:
            time.sleep(60)
            list(people.map(ask, [client] * 20))


def err(url: str, until: float, chance: random.Random) -> None:
    """Send invalid requests: a wrong path, a wrong name, a broken file, a mask of another photo."""
    kitten = {"image": (EXAMPLES / "kitten.jpg").read_bytes(), "mask": (EXAMPLES / "dog_mask.png").read_bytes()[:99]}
    with httpx.Client(base_url=url, timeout=60) as http:
        while time.time() < until:
            wrong = chance.randrange(4)
            if wrong == 0:
                http.get("/nowhere")
            elif wrong == 1:
                http.get("/categories/nobody taught this")
            elif wrong == 2:
                http.post("/segment", files={"image": b"not a photo"}, data={"categories": ["cat"]})
            else:
                http.post("/categories/cat/example", files=kitten)
            time.sleep(chance.uniform(1, 6))


def look(url: str, until: float) -> None:
    """Send the requests of an orchestrator (/readyz) and of a page that lists the categories."""
    with httpx.Client(base_url=url, timeout=60) as http:
        while time.time() < until:
            http.get("/readyz")
            http.get("/categories")
            time.sleep(5)


def load(url: str, *, minutes: float) -> None:
    until = time.time() + 60 * minutes
    with ThreadPoolExecutor(7) as people:  # one thread per client, independent of the number of cores
        at_work = [
            people.submit(teach, url, until),
            *(people.submit(segment, url, until, random.Random(seed)) for seed in range(3)),
            people.submit(crowd, url, until),
            people.submit(err, url, until, random.Random(3)),
            people.submit(look, url, until),
        ]
    for person in at_work:
        person.result()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Generate some minutes of varied load on a running service.")
    parser.add_argument("url", help="address of the service, such as http://127.0.0.1:8000")
    parser.add_argument("--minutes", type=float, default=5)
    asked = parser.parse_args()
    load(asked.url, minutes=asked.minutes)
