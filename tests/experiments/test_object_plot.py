"""Pictures of boxes: how many panels, and what is drawn in which."""

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from experiments.object_plot import COLORS, Mark, Pair, draw_pairs

IMAGE = torch.arange(3 * 24 * 12).reshape(3, 24, 12).to(torch.uint8)


def boxes(axes):
    """Left, top, right and bottom of what is drawn, in pixels from the corner of the image, with its color."""
    return [
        ([patch.get_x() + 0.5, patch.get_y() + 0.5, *(side + 0.5 for side in patch.get_corners()[2])],
         to_hex(patch.get_edgecolor()))
        for patch in axes.patches if isinstance(patch, Rectangle)
    ]  # fmt: skip


def test_what_is_there_stands_beside_what_was_found():
    pairs = [
        Pair(IMAGE, [Mark((3, 9, 9, 15), 2, "goldfish")], [Mark((-4, 1, 20, 30), 8, "dog 75%")] * 2, "image 7"),
        Pair(255 - IMAGE, [], [], "image 8"),
    ]
    figure = draw_pairs(pairs, "title")
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == ["image 7, objects: 1", "found: 2", "image 8, objects: 0", "found: 0"]
    assert [text.get_text() for text in figure.texts][0] == "title"
    truth, found, *empty = figure.axes
    assert boxes(truth) == [([3, 9, 9, 15], COLORS[2])]
    assert boxes(found) == [([0, 1, 12, 24], COLORS[1])] * 2, "cut at the border of 12 x 24 pixels"
    assert [text.get_text() for text in truth.texts] == ["goldfish"]
    assert [text.get_text() for text in found.texts] == ["dog 75%"] * 2
    assert not any(boxes(axes) for axes in empty)
    for axes, image in zip(figure.axes, (IMAGE, IMAGE, 255 - IMAGE, 255 - IMAGE), strict=True):
        assert torch.equal(torch.from_numpy(axes.images[0].get_array().data).permute(2, 0, 1), image)
    # Each pair in its own row or column, what was found to the right.
    left, right = (axes.get_position() for axes in (truth, found))
    assert left.x1 < right.x0 and left.y0 == right.y0


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (3, 1, 3), (5, 2, 4)])
def test_images_alone_come_in_rows_of_four(count, rows, columns):
    figure = draw_pairs([Pair(IMAGE, [], None, f"image {number}") for number in range(count)], "title")
    places = [axes.get_position() for axes in figure.axes]
    assert len({round(place.y0, 6) for place in places}) == rows
    assert len({round(place.x0, 6) for place in places}) == columns and len(places) == count
