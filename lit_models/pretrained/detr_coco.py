"""COCO's categories: 80 names with ids from 1 to 90, https://cocodataset.org."""

NO_NAME = "N/A"
"""Stands for the ids without a category, as ``datamodules.COCODataModule`` with ``ids=coco`` has it."""
_NAMES = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, N/A, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, N/A, backpack, umbrella, "
    "N/A, N/A, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, "
    "skateboard, surfboard, tennis racket, bottle, N/A, wine glass, cup, fork, knife, spoon, bowl, banana, apple, "
    "sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, N/A, "
    "dining table, N/A, N/A, toilet, N/A, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, "
    "sink, refrigerator, N/A, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
)
COCO_CATEGORIES = {number: name for number, name in enumerate(_NAMES.split(", "), start=1) if name != NO_NAME}
"""Name of each of the 80 categories by its id."""
_PANOPTIC = 250
_THINGS = 1 + max(COCO_CATEGORIES)


def coco_classes(num_classes: int) -> tuple[list[str], list[int]] | None:
    """Return the names and category ids of the classes of a head that was trained on COCO.

    A head of 91 classes is that of the official DETR, whose class numbers are category ids; one of 80 (detectron2's)
    has the categories alone. That of 250 has panoptic ids, of which those of things are these.

    Returns:
        Names and ids by class number; None if COCO has no such number of classes.
    """
    if num_classes == len(COCO_CATEGORIES):
        return list(COCO_CATEGORIES.values()), list(COCO_CATEGORIES)
    if num_classes not in (_THINGS, _PANOPTIC):
        return None
    names = [COCO_CATEGORIES.get(number, NO_NAME) for number in range(_THINGS)]
    names += [f"class {number}" for number in range(_THINGS, num_classes)]
    return names, list(range(num_classes))
