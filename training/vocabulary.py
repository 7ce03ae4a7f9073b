"""Names in the training photos: COCO categories, their synonyms, and the ImageNet classes that they cover."""

from collections.abc import Iterable, Sequence

# Synonyms of COCO categories.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "person": ("people", "man", "woman", "human", "child"),
    "bicycle": ("bike",),
    "car": ("automobile",),
    "motorcycle": ("motorbike",),
    "airplane": ("plane", "aeroplane", "aircraft"),
    "truck": ("lorry",),
    "boat": ("ship",),
    "dog": ("puppy",),
    "cat": ("kitten",),
    "cow": ("cattle",),
    "bear": ("bears",),
    "handbag": ("purse",),
    "tie": ("necktie",),
    "suitcase": ("luggage",),
    "sports ball": ("ball",),
    "cup": ("mug",),
    "wine glass": ("goblet",),
    "donut": ("doughnut",),
    "couch": ("sofa",),
    "potted plant": ("houseplant",),
    "tv": ("television", "tv monitor", "screen"),
    "laptop": ("notebook computer",),
    "mouse": ("computer mouse",),
    "remote": ("remote control",),
    "keyboard": ("computer keyboard",),
    "cell phone": ("mobile phone", "phone"),
    "refrigerator": ("fridge",),
    "teddy bear": ("stuffed animal",),
    "hair drier": ("hair dryer",),
    "dining table": ("table",),
}

# ImageNet-1k classes (by index) that are kinds of a COCO category.
KINDS: dict[str, tuple[int, ...]] = {
    "person": (981, 982, 983),
    "bicycle": (444, 671),
    "car": (436, 468, 511, 609, 627, 656, 661, 751, 817),
    "motorcycle": (665, 670),
    "airplane": (404, 895),
    "bus": (654, 779, 874),
    "train": (466, 547, 705, 820),
    "truck": (555, 569, 675, 717, 734, 864, 867),
    "boat": (472, 484, 554, 576, 625, 780, 814, 871, 914),
    "traffic light": (920,),
    "stop sign": (919,),
    "parking meter": (704,),
    "bench": (703,),
    "bird": (*range(7, 25), *range(80, 101), *range(127, 147)),
    "cat": tuple(range(281, 286)),
    "dog": tuple(range(151, 269)),
    "horse": (339,),
    "sheep": (348, 349),
    "cow": (345,),
    "elephant": (101, 385, 386),
    "bear": tuple(range(294, 298)),
    "zebra": (340,),
    "backpack": (414,),
    "umbrella": (879,),
    "handbag": (748,),
    "tie": (906,),
    "skis": (795,),
    "sports ball": (429, 430, 522, 574, 722, 768, 805, 852, 890),
    "tennis racket": (752,),
    "bottle": (440, 720, 737, 898, 907),
    "wine glass": (572, 966),
    "cup": (504, 968),
    "knife": (499,),
    "spoon": (910,),
    "bowl": (659, 809),
    "banana": (954,),
    "apple": (948,),
    "orange": (950,),
    "broccoli": (937,),
    "pizza": (963,),
    "hot dog": (934,),
    "chair": (423, 559, 765, 857),
    "couch": (831,),
    "potted plant": (738,),
    "dining table": (532,),
    "toilet": (861,),
    "tv": (664, 782, 851),
    "laptop": (620, 681),
    "mouse": (673,),
    "remote": (761,),
    "keyboard": (508, 878),
    "cell phone": (487,),
    "microwave": (651,),
    "toaster": (859,),
    "sink": (896,),
    "refrigerator": (760,),
    "book": (917, 921),
    "clock": (409, 530, 892),
    "vase": (883,),
    "teddy bear": (850,),
    "hair drier": (589,),
}

# Caltech-101 names that are kinds of a COCO category.
CALTECH_KINDS: dict[str, str] = {
    "motorbike": "motorcycle",
    "airplane": "airplane",
    "car": "car",
    "cellphone": "cell phone",
    "chair": "chair",
    "windsor chair": "chair",
    "cup": "cup",
    "dalmatian dog": "dog",
    "elephant": "elephant",
    "emu bird": "bird",
    "ferry boat": "boat",
    "flamingo": "bird",
    "flamingo head": "bird",
    "ibis bird": "bird",
    "ketch sailboat": "boat",
    "schooner sailing ship": "boat",
    "laptop": "laptop",
    "pigeon": "bird",
    "rooster": "bird",
    "pizza": "pizza",
    "scissors": "scissors",
    "soccer ball": "sports ball",
    "stop sign": "stop sign",
    "umbrella": "umbrella",
    "watch": "clock",
    "wild cat": "cat",
    "cougar": "cat",
    "cougar face": "cat",
    "leopard": "cat",
}

# Classes that are a place rather than an object: their photos have no object to mask.
PLACES = frozenset({
    "alp", "bubble", "cliff", "coral reef", "geyser", "lakeside", "promontory", "sandbar", "seashore", "valley",
    "volcano", "web site", "menu", "crossword puzzle", "stage", "window screen", "window shade", "sliding door",
    "theater curtain", "stone wall", "tile roof", "thatch", "velvet", "wool", "hay", "wreck", "lawn mower", "suit",
    "maze", "patio", "prison", "restaurant", "shoe shop", "tobacco shop", "toyshop", "bakery", "barbershop",
    "bookshop", "butcher shop", "confectionery", "grocery store", "library", "cinema", "church", "monastery", "palace",
    "mosque", "home theater", "scoreboard", "jigsaw puzzle", "planetarium", "greenhouse", "boathouse", "barn", "castle",
})  # fmt: skip

# Other names that may apply to what is labelled as a category, so they are no negatives for it.
RELATED: dict[str, tuple[str, ...]] = {
    "dining table": ("desk",),
    "dog": ("dalmatian dog", "Snoopy cartoon dog"),
    "cat": ("Garfield cartoon cat", "wild cat", "cougar", "cougar face", "leopard"),
    "person": ("face",),
    "clock": ("watch",),
}

# Supercategories of COCO, whose members look alike more than others do (https://cocodataset.org).
LOOK_ALIKES: tuple[tuple[str, ...], ...] = (
    ("bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    ("traffic light", "fire hydrant", "stop sign", "parking meter", "bench"),
    ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"),
    ("backpack", "umbrella", "handbag", "tie", "suitcase"),
    ("frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard",
     "surfboard", "tennis racket"),
    ("bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl"),
    ("banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake"),
    ("chair", "couch", "potted plant", "bed", "dining table", "toilet"),
    ("tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    ("microwave", "oven", "toaster", "sink", "refrigerator"),
    ("book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)  # fmt: skip


def rivals_of(categories: Iterable[str]) -> tuple[str, ...]:
    """Names of the COCO categories that look like some of these, these included."""
    asked = set(categories)
    return tuple(name for group in LOOK_ALIKES if asked & set(group) for name in group)


def names_of(category: str) -> tuple[str, ...]:
    """The name of a COCO category and its synonyms."""
    return (category, *SYNONYMS.get(category, ()))


def excluded_with(category: str, imagenet: Sequence[str]) -> set[str]:
    """Names that are not used as negatives for a COCO category: its synonyms, kinds and related names."""
    kinds = {imagenet[index] for index in KINDS.get(category, ())}
    caltech = {name for name, kind in CALTECH_KINDS.items() if kind == category}
    return {*names_of(category), *kinds, *caltech, *RELATED.get(category, ())}
