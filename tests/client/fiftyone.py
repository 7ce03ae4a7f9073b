"""Labels datasets of a real FiftyOne with this service, and compares what they hold with `POST /segment`.

    python3.11 -m venv /tmp/fiftyone && /tmp/fiftyone/bin/pip install ./client 'fiftyone==1.22.1'
    .venv/bin/python -m tests.client.fiftyone --python /tmp/fiftyone/bin/python

The service starts on a free port with an empty folder and is taught "cat". FiftyOne's Python then runs the check below
and the code of docs/integrations/fiftyone.md. FiftyOne keeps its datasets in a MongoDB, which its installation
downloads. Where that is not possible, `pip install mongomock` and `--in-memory` put one in memory in its place. No test
of `make test`: FiftyOne and what it needs take 1 GB.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from pathlib import Path

from rich.console import Console

from app.demo import EXAMPLES, running_service
from exemplar_client import Client

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "integrations" / "fiftyone.md"
ADDRESS = "http://127.0.0.1:8000"

# A database in memory: FiftyOne and mongoengine get one client of mongomock.
IN_MEMORY = """
import os
os.environ.update(FIFTYONE_DATABASE_URI="mongodb://localhost", FIFTYONE_DATABASE_VALIDATION="false")
import mongoengine, mongomock
import fiftyone.core.odm.database as database

mongomock.MongoClient._closed = False
store = mongomock.MongoClient("localhost")

class One:
    def __new__(cls, *arguments, **options):
        return store

connect = mongoengine.connect
database.pymongo.MongoClient = One
database.mongoengine.connect = lambda name, **_: connect(name, host="localhost", mongo_client_class=One)
database._validate_db_version = lambda *_: None
database._is_client_closed = lambda client: client is None
"""

CHECK = """
from pathlib import Path

import fiftyone
import numpy
from exemplar_client import Client, Invalid
from exemplar_client.fiftyone import segment_samples

client = Client("http://127.0.0.1:8000")
photos = sorted(Path("examples").glob("*.jpg"))
dataset = fiftyone.Dataset("check")
dataset.add_samples([fiftyone.Sample(filepath=str(photo)) for photo in photos[1:]])
assert segment_samples(dataset.limit(3), client, ["cat", "dog"]) == 3
assert segment_samples(dataset, client, ["cat", "dog"]) == 5, "those that have the field are left out"
assert segment_samples(dataset, client, ["cat", "dog"]) == 0
dataset.add_sample(fiftyone.Sample(filepath=str(photos[0])))
assert segment_samples(dataset, client, ["cat", "dog"]) == 1
assert segment_samples(dataset.limit(2), client, ["cat", "dog"], overwrite=True) == 2

def whole(detection, hw):
    mask = numpy.zeros(hw, bool)
    x, y, width, height = numpy.round(numpy.array(detection.bounding_box) * [hw[1], hw[0], hw[1], hw[0]]).astype(int)
    mask[y : y + height, x : x + width] = detection.mask
    return mask

for sample in dataset:
    masks = client.segment(sample.filepath, ["cat", "dog"])
    assert [each.label for each in sample["exemplar"].detections] == [each.name for each in masks.found]
    for detection, mask in zip(sample["exemplar"].detections, masks.found):
        assert (whole(detection, masks.size_hw) == mask.array).all()
        assert detection.confidence == mask.presence
    print(f"  {masks.name}: {', '.join(mask.name for mask in masks.found) or 'nothing'}, equal")

assert segment_samples(dataset, client, ["cat", "dog"], field="map", labels="segmentation") == len(photos)
assert dataset.mask_targets["map"] == {1: "cat", 2: "dog"}
assert (dataset.first()["map"].mask == client.segment(dataset.first().filepath, ["cat", "dog"]).labels).all()
try:
    segment_samples(dataset, client, ["dog"], field="map", labels="segmentation")
except Invalid as refusal:
    print(" ", refusal.detail)
else:
    raise SystemExit("label maps of other categories are not refused")

dataset.add_sample(fiftyone.Sample(filepath="gone.jpg"))
failures = []
assert segment_samples(dataset, client, ["cat"], on_failure=lambda *failure: failures.append(failure)) == 0
assert len(failures) == 1, "a file that is gone does not stop the others"
print(f"{len(photos)} photos, equal; a call that is repeated continues")
"""


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", required=True, type=Path, help="the Python that has FiftyOne")
    parser.add_argument("--in-memory", action="store_true", help="mongomock in place of MongoDB")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_service(Console(quiet=True)) as service:
        (Path(folder) / "examples").symlink_to(EXAMPLES)
        with Client(service.url) as client:
            client.teach("cat", EXAMPLES / "kitten.jpg", EXAMPLES / "kitten_mask.png").wait(progress=False)
        page = "\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL))
        for name, code in {"check": CHECK, PAGE.name: page}.items():
            print(f"{name}:", flush=True)
            script = Path(folder) / "script.py"
            script.write_text((IN_MEMORY if given.in_memory else "") + code.replace(ADDRESS, service.url))
            variables = {"HOME": folder, "FIFTYONE_DO_NOT_TRACK": "true", "PYTHONPATH": str(ROOT / "client")}
            subprocess.run([given.python, script], cwd=folder, env=os.environ | variables, check=True)


if __name__ == "__main__":
    main()
