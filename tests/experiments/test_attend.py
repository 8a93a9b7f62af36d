"""``attend`` and its pictures: the right weights under the right labels, files of the right kind, one-line errors."""

import sys
from pathlib import Path

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

sys.path.insert(0, str(Path(__file__).parent))
from tiny_translator import PAIRS, write_checkpoint

from experiments import attend, attend_translation, attention_plot
from experiments.attention_plot import Panel, draw_attention, draw_panels, readable, save, save_overview
from experiments.translator import Translator
from lit_models.translation.transformer import AttentionMaps

SOURCE, TARGET = PAIRS[3]
PNG, PDF = b"\x89PNG", b"%PDF"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(write_checkpoint(tmp_path_factory.mktemp("run") / "tiny.ckpt"))


@pytest.fixture
def run(checkpoint, capsys, tmp_path):
    def call(*options, text=SOURCE):
        arguments = ["--checkpoint", checkpoint, "--text", text, "--device", "cpu", "--output", str(tmp_path / "it")]
        code = attend.main([*arguments, *map(str, options)])
        captured = capsys.readouterr()
        return code, captured.out.split("\n")[:-1], captured.err

    return call


@pytest.mark.parametrize("options", [["--heads", "average"], ["--heads", "all", "--target", "die Katze ."]])
def test_six_files(run, tmp_path, options):
    code, files, error = run(*options)
    assert code == 0 and error.startswith("translation: " if "--target" not in options else "")
    names = [f"it_{stack}.{suffix}" for stack in ("encoder", "decoder", "cross") for suffix in ("png", "pdf")]
    assert [Path(file).name for file in files] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    for file in files:
        assert Path(file).read_bytes().startswith(PNG if file.endswith("png") else PDF)


def test_the_directory_is_made(run, tmp_path):
    for prefix in (tmp_path / "new" / "deep" / "it", f"{tmp_path}/other/"):
        code, files, _ = run("--target", "die", "--output", prefix, text="the")
        assert code == 0 and len(files) == 6
        assert all(Path(file).is_file() for file in files)
    assert Path(files[0]) == tmp_path / "other" / "_encoder.png"


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_a_full_disk_names_the_picture_and_leaves_the_old_one(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"it.{suffix}"
    path.write_text("as it was")

    def fail(self, temporary, **_):
        Path(temporary).write_text("half")
        raise OSError("encoder error -2 when writing image file")  # what Pillow says when a write fails

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="encoder error") as caught:
        save(draw_attention(torch.eye(2), ["a", "b"], ["c", "d"], "T"), path)
    assert caught.value.filename == str(path)
    assert path.read_text() == "as it was" and [found.name for found in tmp_path.iterdir()] == [path.name]


def test_every_layer_has_its_files(run):
    code, files, _ = run("--layer", "all", "--target", "die Katze .", text="the cat .")
    assert code == 0 and len(files) == 12
    assert any(file.endswith("it_cross_layer1.pdf") for file in files)
    assert Path(run("--layer", 1, "--target", "die", text="the")[1][0]).name == "it_encoder.png"


def test_weights_stand_under_their_labels(run, checkpoint, monkeypatch):
    """The picture of the cross-attention is the mean over heads of the layer asked for, row by written token."""
    drawn = {}

    def remember(weights, rows, columns, title, **axes):
        drawn[title.partition(",")[0]] = (weights, rows, columns)
        return draw_attention(weights, rows, columns, title, **axes)

    monkeypatch.setattr(attend_translation, "draw_attention", remember)
    assert run("--layer", 1, "--target", TARGET)[0] == 0
    translator = Translator.load(checkpoint, "cpu")
    source, target = translator.encode_sources([SOURCE])[0].ids, translator.tokenizer.encode_target([TARGET])[0]
    expected = translator.network.attention_maps(
        torch.tensor([source]), torch.tensor([len(source)]), torch.tensor([[2, *target]])
    )
    for title, maps in zip(
        ("Encoder self-attention", "Decoder self-attention", "Cross-attention"), expected, strict=True
    ):
        torch.testing.assert_close(drawn[title][0], maps[0][0].mean(0))
    _, rows, columns = drawn["Cross-attention"]
    assert rows == [readable(piece) for piece in translator.tokenizer.target_pieces([*target, 3])]
    assert columns == [readable(piece) for piece in translator.tokenizer.source_pieces(source)]
    assert any("ß" in label or "ü" in label for label in rows)
    _, rows, columns = drawn["Decoder self-attention"]
    assert columns[0] == "<s>" and rows[-1] == "</s>" and columns[1:] == rows[:-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layer", 3], "--layer 3: the encoder has 2 layers"),
        (["--layer", 0], '--layer "0": it must be a layer\'s number from 1, last, or all'),
        (["--layer", "first"], '--layer "first"'),
        (["--heads", "some"], "--heads: invalid choice"),
        (["--target", " "], "--target is empty"),
        (["--beam", 0], "--beam 0"),
        (["--text", ""], "--text is empty"),
        (["--haeds", "all"], 'unknown argument "--haeds"; did you mean "--heads"?'),
        (["--output", "README.md/such/it"], 'README.md" is a file, not a directory'),
        (["--length-penalty", "nan"], "--length-penalty nan"),
        (["--text", "\u200b"], "--text is empty"),
        (["--checkpoint", "no.ckpt"], 'there is no checkpoint "no.ckpt"'),
        (["--target", "das Tier " * 500], "cannot be read"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, options, message):
    code, files, error = run(*options)
    assert code == 2 and files == [] and not list(tmp_path.iterdir())
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_long_text_is_cut_with_a_warning(run):
    code, _, error = run("--target", TARGET, text=f"{SOURCE} " * 9)
    assert code == 0 and error.startswith("warning: --text has ")


def label_boxes(axes, labels):
    renderer = FigureCanvasAgg(axes.figure).get_renderer()
    return [label.get_window_extent(renderer) for label in labels]


@pytest.mark.parametrize("count", [1, 12, 90])
def test_labels_do_not_overlap_and_stay_inside(count):
    words = ["Donaudampfschifffahrt", "·ß", "Übergröße", "."]
    labels = [words[place % len(words)] for place in range(count)]
    figure = draw_attention(
        torch.rand(2, count, count), labels, labels, "Title", row_axis="rows", column_axis="columns"
    )
    width, height = figure.get_size_inches() * figure.dpi
    for axes in figure.axes[:2]:
        boxes = label_boxes(axes, axes.get_yticklabels())
        assert all(upper.y0 >= lower.y1 for upper, lower in zip(boxes, boxes[1:], strict=False))
        for box in boxes + label_boxes(axes, [*axes.get_xticklabels(), *axes.texts]):
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
        anchors = [tick.get_window_extent().x0 for tick in axes.get_xticklabels()]
        slanted_space = (anchors[-1] - anchors[0]) / max(count - 1, 1) * 0.7071
        assert count == 1 or slanted_space >= attention_plot.LABEL_SIZE / 72 * figure.dpi, "45 degrees apart enough"


def test_panels_are_cut_to_their_labels_and_share_a_scale():
    weights = torch.zeros(4, 5)
    weights[1, 2], weights[3, 4] = 0.5, 9.0
    figure = draw_panels([Panel(weights, ["a", "b"], ["c", "d", "e"]), Panel(weights[:2, :3], ["a", "b"], ["c"])], "T")
    first, second, _ = figure.axes
    assert first.images[0].get_array().tolist() == weights[:2, :3].tolist()
    assert [label.get_text() for label in first.get_xticklabels()] == ["c", "d", "e"]
    assert first.images[0].get_clim() == second.images[0].get_clim() == (0.0, 0.5)


def test_too_few_weights_are_an_error():
    with pytest.raises(ValueError, match=r"weights of shape \(2, 3\) for 3 rows and 3 columns"):
        draw_attention(torch.ones(2, 3), ["a", "b", "c"], ["a", "b", "c"], "T")
    with pytest.raises(ValueError, match="no token"):
        draw_attention(torch.ones(2, 3), [], ["a"], "T")


def test_readable_pieces():
    assert [readable(piece) for piece in ("▁the", "ing", "▁", "</s>", ".", "<")] == [
        "the",
        "·ing",
        "␣",
        "</s>",
        "·.",
        "·<",
    ]


def test_overview(tmp_path):
    maps = AttentionMaps(*([torch.rand(3, 2, 9, 9).softmax(-1)] * 2 for _ in range(3)))
    save_overview(maps, ["▁the", "▁cat", "</s>"], ["▁die", "▁Kat", "ze", "</s>"], tmp_path / "overview.png", row=2)
    assert (tmp_path / "overview.png").read_bytes().startswith(PNG)


def test_same_weights_same_bytes(tmp_path):
    for name in ("a.pdf", "b.pdf", "a.png", "b.png"):
        save(draw_attention(torch.eye(3), ["ä", "b", "c"], ["d", "e", "f"], "T"), tmp_path / name)
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_pyplot_stays_out():
    """Importing pyplot picks a backend for the whole program."""
    import subprocess

    code = "import sys, experiments.attention_plot; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
