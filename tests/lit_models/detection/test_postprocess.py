"""From predictions to detections: which class, which score, whose pixels."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from detection_samples import make_predictions

from lit_models.detection.network import Predictions
from lit_models.detection.postprocess import detections


def test_no_object_is_dropped_before_the_best_class_is_taken_and_nothing_by_its_score():
    # Notes, row 9 and 1.3: an empty slot gives its second best class; no threshold before AP.
    logits = torch.tensor([[[1.0, 3.0, 9.0], [2.0, 0.0, -1.0]]])[None, None]
    found = detections(Predictions(logits, torch.full((1, 1, 1, 2, 4), 0.5)), [(10, 10)])[0]
    assert found.labels.tolist() == [1, 0]
    expected = logits[0, 0, 0].softmax(-1)
    torch.testing.assert_close(found.scores, torch.stack((expected[0, 1], expected[1, 0])))


def test_boxes_are_in_pixels_of_the_original_image():
    # Notes, row 9: not of the resized or padded one; width before height.
    boxes = torch.tensor([[0.5, 0.5, 0.5, 1.0]]).expand(1, 1, 2, 1, 4)
    first, second = detections(Predictions(torch.zeros(1, 1, 2, 1, 3), boxes), [(100, 200), (480, 640)])
    assert first.boxes.tolist() == [[50.0, 0.0, 150.0, 100.0]] and second.boxes.tolist() == [[160.0, 0.0, 480.0, 480.0]]


def test_focal_takes_the_best_pairs_of_query_and_class():
    predictions = make_predictions(2, 1, 3, 8, 5)
    predictions = Predictions(*(values.detach() for values in predictions))
    for image, found in enumerate(detections(predictions, [(1, 1)] * 3, "focal", top=12)):
        scores = predictions.logits[-1, 0, image].sigmoid()
        pairs = sorted(((scores[q, c].item(), q, c) for q in range(8) for c in range(5)), reverse=True)[:12]
        assert found.scores.tolist() == pytest.approx([score for score, _, _ in pairs])
        assert found.labels.tolist() == [label for _, _, label in pairs]
        centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
        torch.testing.assert_close(
            centres, predictions.boxes[-1, 0, image, [query for _, query, _ in pairs], :2], atol=1e-6, rtol=0
        )
    assert len(detections(predictions, [(1, 1)] * 3, "focal")[0].scores) == 40  # there are no 100


def test_the_last_layer_and_first_group_are_the_result_in_float32():
    predictions = Predictions(*(values.detach() for values in make_predictions(3, 2, 1, 4, 6)))
    half = Predictions(*(values.half() for values in predictions))
    found = detections(half, [(32, 48)])[0]
    expected = half.logits[-1, 0, 0].float().softmax(-1)[:, :-1].max(-1)
    assert found.scores.dtype == found.boxes.dtype == torch.float32
    torch.testing.assert_close(found.scores, expected.values, rtol=0, atol=0)
