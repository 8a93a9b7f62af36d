"""``average``: the mean of the right files, which translates, and one-line errors."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_translator import PAIRS, write_checkpoint

from experiments import translate
from experiments.__main__ import main
from lit_models.translation import load_checkpoint


def load(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("first") / "a.ckpt", loops={}, global_step=1)


def variant(first, path, shift, **changes):
    """Write the checkpoint again with other weights; ``changes`` replace its entries."""
    checkpoint = load(first)
    weights = {id(value): value for value in checkpoint["state_dict"].values()}
    for value in {value.data_ptr(): value for value in weights.values()}.values():
        value += shift
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint | changes, path)
    return path


@pytest.fixture
def call(capsys):
    def run(*words):
        code = main(["average", *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_two_checkpoints_give_their_mean(first, tmp_path, call, capsys):
    training = {"optimizer_states": [{}], "lr_schedulers": [{}]}
    second = variant(first, tmp_path / "b.ckpt", 0.5, global_step=2, **training)
    output = tmp_path / "new" / "mean.ckpt"
    code, printed, error = call("--output", output, "--checkpoints", first, second)
    assert (code, error) == (0, "")
    assert "averaged a.ckpt, b.ckpt" in printed and str(output) in printed
    averaged, one, two = load(output), load(first), load(second)
    assert averaged["global_step"] == 2 and averaged["loops"] == {}
    assert averaged["heddle"]["averaged"] == ["a.ckpt", "b.ckpt"]
    assert not training.keys() & averaged.keys()
    for name, value in averaged["state_dict"].items():
        torch.testing.assert_close(value, (one["state_dict"][name] + two["state_dict"][name]) / 2, rtol=0, atol=1e-6)
    assert load_checkpoint(output).network is not None
    lines = tmp_path / "lines.txt"
    lines.write_text(f"{PAIRS[0][0]}\n", encoding="utf-8")
    words = ["--checkpoint", str(output), "--input", str(lines), "--output", str(tmp_path / "out.txt")]
    assert translate.main([*words, "--device", "cpu"]) == 0
    assert len((tmp_path / "out.txt").read_text(encoding="utf-8").splitlines()) == 1


def test_training_does_not_resume_from_an_average(first, tmp_path, call, capsys):
    second = variant(first, tmp_path / "b.ckpt", 0.5, global_step=2)
    output = tmp_path / "mean.ckpt"
    assert call("--output", output, "--checkpoints", first, second)[0] == 0
    config = "experiments/configs/translation/synthetic.yaml"
    assert main(["fit", "-c", config, f"--ckpt_path={output}", f"--run_dir={tmp_path / 'run'}"]) == 2
    assert "is an average of checkpoints, from which no training resumes" in capsys.readouterr().err


def test_the_newest_and_the_best_of_a_run(first, tmp_path, call):
    run = tmp_path / "run"
    for step in (2, 10, 9):
        variant(first, run / "checkpoints" / f"last-step{step}.ckpt", step, global_step=step)
    variant(first, run / "checkpoints" / "last.ckpt", 10, global_step=10)
    output = tmp_path / "mean.ckpt"
    assert call("--output", output, "--run", run, "--last", 2)[0] == 0
    assert load(output)["heddle"]["averaged"] == ["last-step10.ckpt", "last-step9.ckpt"]
    for mode, expected in (("max", ["best-step=5.ckpt", "best-step=7.ckpt"]), ("min", ["best-step=6.ckpt"])):
        scores = {"best-step=5.ckpt": 30.0, "best-step=6.ckpt": 10.0, "best-step=7.ckpt": 20.0}
        best = max(scores.values()) if mode == "max" else min(scores.values())
        state = {
            "best_k_models": {f"elsewhere/{name}": torch.tensor(score) for name, score in scores.items()},
            "best_model_score": torch.tensor(best),
        }
        for step in (5, 6, 7):
            path = run / "checkpoints" / f"best-step={step}.ckpt"
            variant(first, path, 0.0, global_step=step, callbacks={"BestCheckpoint{'mode': ...}": state})
        assert call("--output", output, "--run", run, "--best", len(expected))[0] == 0
        assert load(output)["heddle"]["averaged"] == expected


def test_mistakes_are_one_line(first, tmp_path, call):
    second = variant(first, tmp_path / "run" / "checkpoints" / "last.ckpt", 0.5, global_step=2)
    network = load(first)["heddle"]
    other_network = network | {"network": network["network"] | {"dim": 32}}
    other = variant(first, tmp_path / "other.ckpt", 0.0, heddle=other_network)
    data = load(first)["WMTDataModule"]
    tokenizer = data["tokenizer"] | {"source_model": torch.zeros(3, dtype=torch.uint8)}
    foreign = variant(first, tmp_path / "foreign.ckpt", 0.0, WMTDataModule=data | {"tokenizer": tokenizer})
    text = tmp_path / "text.ckpt"
    text.write_text("no checkpoint")
    output = tmp_path / "mean.ckpt"
    for words, message in [
        (["--checkpoints", first, other], "is of another network than"),
        (["--checkpoints", first, other], "network.dim: 32, not 16"),
        (["--checkpoints", first, foreign], "has another tokenizer than"),
        (["--checkpoints", first, text], "is not a checkpoint, or it is cut short"),
        (["--checkpoints", first, tmp_path / "none.ckpt"], "there is no checkpoint"),
        (["--checkpoints", first], "at least two files"),
        (["--checkpoints", first, first], "each given once"),
        (["--checkpoints", first, second, "--last", 2], "give --run too"),
        (["--run", tmp_path / "run"], "--run needs --last N or --best N"),
        (["--run", tmp_path / "run", "--last", 0], "--last 0: it must be at least 1"),
        (["--run", tmp_path / "run", "--last", 2], "has 1 such checkpoints"),
        (["--run", tmp_path / "run", "--best", 1], "has 0 such checkpoints"),
        (["--run", tmp_path / "none", "--last", 1], "is not a directory"),
        ([], "one of the arguments --checkpoints --run is required"),
    ]:
        code, printed, error = call("--output", output, *words)
        assert (code, printed) == (2, ""), words
        assert error.startswith("error: ") and error.count("\n") == 1, error
        assert message in error
        assert not output.exists()
    for target, message in ((first, "is one of the checkpoints"), (tmp_path, "is a directory")):
        code, _, error = call("--output", target, "--checkpoints", first, second)
        assert code == 2 and message in error


def test_classifiers(tmp_path, call):
    """The count of images differs between two checkpoints of a run; classes of other names are not averaged."""
    import tiny_classifier

    network = tiny_classifier.build()
    described = {"format": 1, "task": "classification", "network": "VisionTransformer", "num_classes": 6}
    described["network_settings"] = dict(network.settings)
    paths = [
        tiny_classifier.write_checkpoint(
            tmp_path / f"{step}.ckpt", network, loops={}, global_step=step, heddle=described | {"images_seen": 8 * step}
        )
        for step in (1, 2)
    ]
    output = tmp_path / "mean.ckpt"
    code, _, error = call("--output", output, "--checkpoints", *paths)
    assert (code, error) == (0, "") and load(output)["heddle"]["images_seen"] == 16
    checkpoint = load(paths[1])
    checkpoint["ImageNetDataModule"]["class_names"][2] = "carp"
    torch.save(checkpoint, paths[1])
    code, _, error = call("--output", output, "--checkpoints", *paths)
    assert code == 2 and error.endswith(f'2.ckpt" has other classes than "{paths[0]}" (carp, not goldfish)\n')
