"""Runs this service as the ML backend of a real Label Studio, and compares what both say of the same photos.

    python3.11 -m venv /tmp/label-studio && /tmp/label-studio/bin/pip install label-studio==1.23.2
    .venv/bin/python -m tests.labelling.label_studio --label-studio /tmp/label-studio/bin/label-studio

Label Studio and the service start on free ports of this machine with empty folders. A kitten is painted as "cat"
through Label Studio's API; its webhook reaches the service, which learns; Label Studio then retrieves predictions of
all tasks. They are decoded with Label Studio's own converter and compared with `POST /segment`. With `--personal-token`
the service reads photos with a personal access token, else with the legacy token that Label Studio sends when it
connects. No test of `make test`: it needs Label Studio, which has a hundred dependencies.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from PIL import Image

from app.masks.brush import mask_to_brush
from app.masks.rle import rle_to_mask

EXAMPLES = Path(__file__).parents[2] / "examples"
TOKEN = secrets.token_hex(20)
KEYS = {scope: secrets.token_hex(16) for scope in ("teach", "admin")}
CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="brush" toName="image"><Label value="cat"/><Label value="dog"/></BrushLabels>
<PolygonLabels name="polygon" toName="image"><Label value="cat"/></PolygonLabels>
<RectangleLabels name="box" toName="image"><Label value="cat"/></RectangleLabels>
<BitmaskLabels name="bitmask" toName="image"><Label value="cat"/></BitmaskLabels></View>"""

# Run by Label Studio's Python: brush run lengths on standard input to the pixels marked, with its own converter.
DECODER = """
import json, sys
from label_studio_sdk.converter.brush import decode_rle
for line in sys.stdin:
    print(json.dumps([int(pixel > 0) for pixel in decode_rle(json.loads(line))[3::4]]))
"""

Json = dict[str, Any]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--label-studio", required=True, type=Path, help="the executable of Label Studio")
    parser.add_argument("--personal-token", action="store_true", help="read photos with a personal access token")
    given = parser.parse_args()
    program: Path = given.label_studio
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        label_studio_url, exemplar_url = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        stack.enter_context(label_studio(program, label_studio_url, Path(folder) / "label-studio"))
        headers = {"Authorization": f"Token {TOKEN}"}
        labels = stack.enter_context(httpx2.Client(base_url=label_studio_url, headers=headers, timeout=120))
        token = post(labels, "/api/token/", {})["token"] if given.personal_token else ""
        stack.enter_context(exemplar(exemplar_url, label_studio_url, token, Path(folder) / "exemplar"))
        own = {"X-API-Key": KEYS["admin"]}
        service = stack.enter_context(httpx2.Client(base_url=exemplar_url, headers=own, timeout=120))
        check(labels, service, program)


def check(labels: httpx2.Client, service: httpx2.Client, program: Path) -> None:
    """Connect both, teach, predict and compare."""
    say(f"Label Studio {get(labels, '/api/version')['release']} and the service answer")
    project = post(labels, "/api/projects", {"title": "Exemplar", "label_config": CONFIG})["id"]
    url = f"{service.base_url}".rstrip("/") + "/label-studio"
    account = {"auth_method": "BASIC_AUTH", "basic_auth_user": "exemplar", "basic_auth_pass": KEYS["teach"]}
    connection = {"project": project, "url": url, "title": "exemplar", "is_interactive": False} | account
    backend = post(labels, "/api/ml", connection)
    # Label Studio has made a webhook, to which it sends no password.
    (webhook,) = get(labels, "/api/webhooks", project=project)
    with_key = {"headers": {"X-API-Key": KEYS["teach"]}, "url": webhook["url"], "send_for_all_actions": True}
    labels.patch(f"/api/webhooks/{webhook['id']}/", json=with_key).raise_for_status()
    say(f"connected: {backend['readable_state']}, version {backend['model_version']}")
    photos = sorted(EXAMPLES.glob("*.jpg"))
    for photo in photos:
        files = {"file": (photo.name, photo.read_bytes(), "image/jpeg")}
        labels.post(f"/api/projects/{project}/import", files=files).raise_for_status()
    tasks = get(labels, "/api/tasks", project=project, page_size=100)["tasks"]
    by_photo = {name_of(task, photos): task["id"] for task in tasks}
    say(f"imported {len(by_photo)} photos")

    annotation = post(labels, f"/api/tasks/{by_photo['kitten.jpg']}/annotations/", {"result": [painted_kitten()]})
    started = time.monotonic()
    category = wait(lambda: adapted(service))
    took_s = time.monotonic() - started
    say(f'annotation {annotation["id"]} taught "cat" in {took_s:.1f} s: {category["examples"]} example')

    action = {"id": "retrieve_tasks_predictions", "project": project}
    started = time.monotonic()
    labels.post(
        "/api/dm/actions", params=action, json={"selectedItems": {"all": True, "excluded": []}}
    ).raise_for_status()
    say(f"retrieved predictions of {len(tasks)} tasks in {time.monotonic() - started:.1f} s")
    version = get(labels, f"/api/ml/{backend['id']}")["model_version"]
    assert version != backend["model_version"], "the version must change with the category"
    for name, task in by_photo.items():
        compare(labels, service, program, EXAMPLES / name, task, version)

    labels.delete(f"/api/annotations/{annotation['id']}/").raise_for_status()
    wait(lambda: not service.get("/categories/cat/examples").json())
    say("the annotation was deleted, and its example is gone")
    post(labels, f"/api/tasks/{by_photo['kitten.jpg']}/annotations/", {"result": [painted_kitten()]})
    wait(lambda: adapted(service))
    service.delete("/categories/cat").raise_for_status()
    labels.post(f"/api/ml/{backend['id']}/train", json={}).raise_for_status()
    wait(lambda: adapted(service))
    say("the category was deleted; Start training taught it again from the project's annotations")


def compare(labels: httpx2.Client, service: httpx2.Client, program: Path, photo: Path, task: int, version: str) -> None:
    """Compare the prediction that Label Studio has stored with the answer of /segment."""
    (prediction,) = get(labels, "/api/predictions", task=task)
    assert prediction["model_version"] == version
    answer = service.post("/segment", files={"image": photo.read_bytes()}, data={"categories": ["cat", "dog"]})
    told = []
    for found in answer.raise_for_status().json()["categories"]:
        regions = [one for one in prediction["result"] if one["value"][one["type"]] == [found["name"]]]
        brushes = [one for one in regions if one["type"] == "brushlabels"]
        assert len(brushes) == found["found"], (photo.name, found["name"])
        kinds = {one["type"] for one in regions}
        assert found["name"] != "cat" or len(kinds) == 4 * found["found"], kinds
        for brush in brushes:
            mask = rle_to_mask(found["segmentation"])
            assert np.array_equal(decoded(program, brush["value"]["rle"]).reshape(mask.shape), mask), photo.name
            told.append(f"{found['name']} {brush['score']:.2f}, {mask.sum()} pixels, equal")
    say(f"  {photo.name}: {'; '.join(told) or 'nothing, as /segment'}")


def decoded(program: Path, rle: list[int]) -> np.ndarray:
    """Brush run lengths decoded by Label Studio's own converter."""
    python = program.parent / "python"
    done = subprocess.run([python, "-c", DECODER], input=json.dumps(rle), capture_output=True, text=True, check=True)
    return np.array(json.loads(done.stdout), dtype=bool)


def painted_kitten() -> Json:
    """The region of a kitten painted with the brush."""
    mask = np.asarray(Image.open(EXAMPLES / "kitten_mask.png").convert("L")) > 0
    height, width = mask.shape
    return {
        "id": "kitten",
        "from_name": "brush",
        "to_name": "image",
        "type": "brushlabels",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {"format": "rle", "rle": mask_to_brush(mask), "brushlabels": ["cat"]},
    }


def adapted(service: httpx2.Client) -> Json | None:
    """The category "cat" when its job has ended with an adapter."""
    answer = service.get("/categories/cat")
    return answer.json() if answer.status_code == 200 and answer.json()["adapter"] else None


def name_of(task: Json, photos: list[Path]) -> str:
    """File name of a task's photo: Label Studio puts some characters and a hyphen before it."""
    sent = task["data"]["image"].rpartition("-")[2]
    return next(photo.name for photo in photos if photo.name == sent)


@contextlib.contextmanager
def label_studio(program: Path, url: str, folder: Path) -> Iterator[None]:
    """Label Studio with an empty folder and one user."""
    folder.mkdir()
    own = {
        # Without these two, Label Studio calls no backend and no webhook on its own machine.
        "ML_BLOCK_LOCAL_IP": "false",
        "SSRF_PROTECTION_ENABLED": "false",
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
    }
    user = ["--username", "labels@example.com", "--password", secrets.token_hex(16), "--user-token", TOKEN]
    where = ["--data-dir", str(folder), "--internal-host", "127.0.0.1", "--port", str(httpx2.URL(url).port)]
    command = [str(program), "start", "--no-browser", "--enable-legacy-api-token", *user, *where]
    with running(command, own, folder / "log.txt"):
        wait(lambda: answers(f"{url}/health"), timeout_s=240)
        yield


@contextlib.contextmanager
def exemplar(url: str, label_studio_url: str, token: str, folder: Path) -> Iterator[None]:
    """This service with an empty store."""
    folder.mkdir()
    own = {
        "EXEMPLAR_PORT": str(httpx2.URL(url).port),
        "EXEMPLAR_DATA_DIR": str(folder),
        # The address by which Label Studio calls itself.
        "EXEMPLAR_LABEL_STUDIO_URL": label_studio_url.replace("127.0.0.1", "localhost"),
        "EXEMPLAR_LABEL_STUDIO_TOKEN": token,
        "EXEMPLAR_API_KEYS": ",".join(f"{scope}:{sha256(key.encode()).hexdigest()}" for scope, key in KEYS.items()),
    }
    with running([sys.executable, "-m", "app", "serve"], own, folder / "log.txt"):
        wait(lambda: answers(f"{url}/healthz"), timeout_s=120)
        yield


@contextlib.contextmanager
def running(command: list[str], variables: dict[str, str], log: Path) -> Iterator[None]:
    """A process, stopped at the end; if something failed, the end of its log is shown."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=os.environ | variables, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield
    except BaseException:
        say(f"--- {command[0]}\n{log.read_text(errors='replace')[-3000:]}")
        raise
    finally:
        process.terminate()
        process.wait(60)


def wait(condition: Callable[[], Any], *, timeout_s: float = 90) -> Any:
    """The first value of a condition that is true."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError("it takes too long")
        time.sleep(0.2)
    return found


def answers(url: str) -> bool:
    """True if there is a server."""
    try:
        return httpx2.get(url, timeout=5).status_code == 200
    except httpx2.HTTPError:
        return False


def get(client: httpx2.Client, path: str, **query: Any) -> Any:
    """JSON of an answer."""
    return client.get(path, params=query).raise_for_status().json()


def post(client: httpx2.Client, path: str, body: Json) -> Any:
    """JSON of an answer."""
    return client.post(path, json=body).raise_for_status().json()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


if __name__ == "__main__":
    main()
