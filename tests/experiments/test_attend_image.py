"""``attend --image``: the right weights over the right patches, the rollout, and one line for every mistake."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

sys.path.insert(0, str(Path(__file__).parent))
import tiny_translator
from tiny_classifier import build, write_checkpoint, write_image

from experiments import attend, attend_image
from experiments.attend_image import attend_to, rollout
from experiments.classifier import ImageClassifier
from experiments.image_plot import Overlay, Thumbnail, draw_grid, draw_overlays, fitting, overlaid
from lit_models.classification.resnet import ResNet


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with an image and a checkpoint of each kind."""
    path = tmp_path_factory.mktemp("attend")
    write_image(path / "photo.png", 3)
    for kind in ("vit", "deit", "cait"):
        write_checkpoint(path / f"{kind}.ckpt", build(kind))
    write_checkpoint(path / "average.ckpt", build("vit", pool="average", registers=2))
    return path


@pytest.fixture
def run(place, capsys, tmp_path):
    def call(kind, *options):
        arguments = ["--checkpoint", place / f"{kind}.ckpt", "--device", "cpu", "--output", tmp_path / "it"]
        code = attend.main([*map(str, arguments), *map(str, options)])
        captured = capsys.readouterr()
        return code, [Path(file).name for file in captured.out.split("\n")[:-1]], captured.err

    return call


def names(*parts):
    return [*(f"it_{part}.{suffix}" for part in parts for suffix in ("png", "pdf")), "it_weights.npz"]


def random_maps(shapes):
    generator = torch.Generator().manual_seed(2)
    return [torch.rand(3, *shape, generator=generator).softmax(-1) for shape in shapes]


def test_rollout_is_the_sum_over_all_paths():
    """Abnar & Zuidema 2020: the share of an input is the sum over all ways through the layers of their products."""
    maps = random_maps([(4, 4)] * 3)
    found = rollout(maps)
    steps = [[[(layer[:, i, j].double().mean() + (i == j)) / 2 for j in range(4)] for i in range(4)] for layer in maps]
    for end, start in itertools.product(range(4), repeat=2):
        paths = itertools.product(range(4), repeat=2)
        brute = sum(steps[2][end][b] * steps[1][b][a] * steps[0][a][start] for a, b in paths)
        assert float(found[end, start]) == pytest.approx(float(brute), abs=1e-7)  # softmax rows sum to 1 in float32
    torch.testing.assert_close(found.sum(1), torch.ones(4, dtype=torch.float64))


def test_rollout_of_class_attention():
    """CaiT: the patches attend among themselves, then the class token alone attends to itself and to them."""
    first, second, third, fourth = maps = random_maps([(4, 4), (4, 4), (1, 5), (1, 5)])
    eye = torch.eye(4)
    patches = (second.mean(0) + eye) / 2 @ ((first.mean(0) + eye) / 2)
    token = torch.tensor([1.0, 0, 0, 0, 0])
    for layer in (third, fourth):  # what the token is made of: itself as it came in, and patches
        weights = layer.mean(0)[0]
        token = (token + weights[0] * token + torch.cat([torch.zeros(1), weights[1:]])) / 2
    expected = torch.cat([token[:1], token[1:] @ patches]).double()
    torch.testing.assert_close(rollout(maps)[0], expected, atol=1e-6, rtol=1e-5)


def test_negative_weights_of_talking_heads_are_no_shares():
    layer = torch.tensor([[[0.5, -0.5], [0.2, 0.2]]])
    torch.testing.assert_close(rollout([layer]), torch.tensor([[1.0, 0.0], [0.25, 0.75]], dtype=torch.float64))


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_rows_of_the_tokens_and_columns_of_the_patches(kind):
    """A weight is laid where its patch is: tokens are class, distillation, registers, then patches row by row."""
    network = build(kind, registers=3, image_size=(16, 24))
    images = torch.randn(1, 3, 16, 24)
    maps, found = network.attention_maps(images), attend_to(network, images)
    prefix = 4 + (kind == "deit")
    assert list(found.layers) == list(found.rollout) == ["class", "distillation"][: 1 + (kind == "deit")]
    for place, weights in enumerate(found.layers.values()):
        assert weights.shape == (2, 2, 2, 3)
        for layer, head, row, column in itertools.product(range(2), range(2), range(2), range(3)):
            expected = maps[layer][0, head, place, prefix + 3 * row + column]
            assert float(weights[layer, head, row, column]) == pytest.approx(float(expected), abs=1e-7)
    whole = rollout([layer[0] for layer in maps])
    torch.testing.assert_close(found.rollout["class"].flatten(), whole[0, prefix:].float())


def test_a_network_that_averages_patches():
    network, images = build("vit", pool="average"), torch.randn(1, 3, 32, 32)
    found = attend_to(network, images)
    expected = network.attention_maps(images)[1][0, :, 1:, 1:].mean(1)
    torch.testing.assert_close(found.layers["patches"][1].flatten(1), expected)
    assert list(found.layers) == ["patches"]


@pytest.mark.parametrize(
    ("kind", "options", "parts"),
    [
        ("vit", [], ["class", "rollout"]),
        ("deit", ["--heads", "all"], ["class", "distillation", "rollout"]),
        ("cait", ["--layer", "all"], ["class_layer1", "class_layer2", "rollout"]),
        ("average", ["--layer", 1], ["patches", "rollout"]),
    ],
)
def test_files(run, place, tmp_path, kind, options, parts):
    code, files, error = run(kind, "--image", place / "photo.png", *options)
    assert code == 0 and error == ""
    assert files == names(*parts) and sorted(path.name for path in tmp_path.iterdir()) == sorted(files)
    classifier = ImageClassifier.load(place / f"{kind}.ckpt", "cpu")
    image = classifier.read(place / "photo.png")
    found = attend_to(classifier.network, classifier.normalized(image[None]))
    with np.load(tmp_path / "it_weights.npz") as arrays:
        np.testing.assert_array_equal(arrays["image"], image.permute(1, 2, 0).numpy())
        for name, weights in found.layers.items():
            np.testing.assert_allclose(arrays[name], weights.numpy(), atol=1e-6)
            np.testing.assert_allclose(arrays[f"rollout_{name}"], found.rollout[name].numpy(), atol=1e-6)


def test_the_layer_asked_for_is_drawn(run, place, monkeypatch):
    drawn = []
    monkeypatch.setattr(attend_image, "_draw", lambda image, panels, *titles: drawn.append((panels, titles)))
    monkeypatch.setattr(attend_image, "save_figure", lambda *rest: [])
    classifier = ImageClassifier.load(place / "vit.ckpt", "cpu")
    image = classifier.read(place / "photo.png")
    weights = attend_to(classifier.network, classifier.normalized(image[None])).layers["class"]
    run("vit", "--image", place / "photo.png", "--layer", 1)
    run("vit", "--image", place / "photo.png", "--heads", "all")
    torch.testing.assert_close(drawn[0][0]["class token"], weights[0].mean(0))
    torch.testing.assert_close(drawn[2][0]["head 2"], weights[1, 1])
    assert drawn[2][1][0] == "Attention of the class token, layer 2 of 2, 2 heads"
    probabilities = classifier.probabilities(image[None])[0]
    best = f"{classifier.class_names[int(probabilities.argmax())]} ({probabilities.max():.1%})"
    share = weights[0].sum((1, 2)).mean()
    assert drawn[0][1][1] == f"photo.png, taken for {best}; {share:.0%} of the weight is on patches"


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("vit", [], "what to attend to is missing: --text for a translator, --image for an image classifier"),
        ("vit", ["--image", "PHOTO", "--text", "x"], "leave one of the two out"),
        ("vit", ["--image", "PHOTO", "--target", "x"], "--target goes with --text, not with --image"),
        ("vit", ["--image", "PHOTO", "--beam", 3], "--beam goes with --text, not with --image"),
        ("vit", ["--text", "x", "--image-size", 64], "--image-size goes with --image, not with --text"),
        ("vit", ["--text", "the cat"], "is classification: give --image instead of --text"),
        ("translator", ["--image", "PHOTO"], "is translation: give --text instead of --image"),
        ("vit", ["--image", "no.png"], '--image "no.png": there is no such file'),
        ("vit", ["--image", "README.md"], "README.md is not an image"),
        ("vit", ["--image", "PHOTO", "--layer", 3], "--layer 3: the network has 2 layers"),
        ("cait", ["--image", "PHOTO", "--layer", 3], "--layer 3: the class attention has 2 layers"),
        ("vit", ["--image", "PHOTO", "--crop", 0], "--crop 0.0: it must be above 0"),
        ("resnet", ["--image", "PHOTO"], "ResNet has no attention maps"),
    ],
)
def test_mistakes_are_one_line(run, place, tmp_path, kind, options, message):
    if kind == "translator":
        tiny_translator.write_checkpoint(place / "translator.ckpt")
    if kind == "resnet":
        write_checkpoint(place / "resnet.ckpt", ResNet(6, depth=8, width=4))
    code, files, error = run(kind, *(place / "photo.png" if option == "PHOTO" else option for option in options))
    assert code == 2 and files == [] and not list(tmp_path.iterdir())
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert "standard output" not in error


def test_a_weight_colors_its_own_patch():
    """Rows are rows: on a picture of 2 by 3 patches one weight is bright where it belongs, and nowhere else."""
    weights = torch.zeros(2, 3)
    weights[1, 2] = 1.0
    found = overlaid(torch.full((3, 200, 300), 128, dtype=torch.uint8), weights)
    height, width = found.shape[:2]
    bright = found.sum(-1) > found.sum(-1).mean()
    assert (height, width) == (400, 600)
    assert bright[height // 2 :, 2 * width // 3 :].all()
    assert not bright[: height // 2].any() and not bright[:, : 2 * width // 3].any()


def boxes_of(figure):
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [text for text in figure.texts if text.get_text()]
    for axes in figure.axes:
        low, high = axes.get_ylim()
        ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
        texts += [axes._left_title, *(label for place, label in ticks if low <= place <= high)]
    return [text.get_window_extent(renderer) for text in texts if text.get_text()]


@pytest.mark.parametrize(("count", "shape"), [(1, (32, 32)), (6, (224, 150))])
def test_labels_stay_inside_and_apart(count, shape):
    image = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
    overlays = [Overlay(torch.arange(16.0).view(4, 4) / 1.25, f"head {number}") for number in range(1, count + 1)]
    title, subtitle = (
        "Attention of the distillation token, layer 12 of 12",
        "name_$x$.jpg, taken for it; " + "long " * 20,
    )
    figures = [
        draw_overlays(image, overlays, title, subtitle, "weight\n(× 1/196)"),
        draw_grid([Thumbnail(image, [("Donaudampfschifffahrtsgesellschaft" * 2, "k"), ("✗ 3%", "k")])] * count, title),
    ]
    for figure in figures:
        width, height = figure.get_size_inches() * figure.dpi
        boxes = boxes_of(figure)
        assert len(boxes) > 2
        for box in boxes:
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
        for first, second in itertools.combinations(boxes, 2):
            apart = first.x1 <= second.x0 or second.x1 <= first.x0 or first.y1 <= second.y0 or second.y1 <= first.y0
            assert apart


def test_long_labels_are_cut():
    assert fitting("cat", 1.0) == "cat"
    assert fitting("Donaudampfschifffahrt", 0.6).endswith("…") and fitting("Donaudampfschifffahrt", 0.6).startswith(
        "Don"
    )
