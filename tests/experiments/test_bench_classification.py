"""The comparison of training steps with timm: equal weights, turns, rows, and what is refused."""

import copy
import csv
import dataclasses

import pytest
import torch

from experiments.__main__ import main as dispatch
from experiments.bench import classification, record
from experiments.bench.classification import Peer, logits_difference, make_pair, make_step
from experiments.bench.side_by_side import Times, compare, take_turns

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2, "num_classes": 7}
TOY = Peer("deit_tiny_patch16_224", SMALL)
# Two windows to a side in the first stage, which are shifted, and one in the second; a file of V2 does not say its
# windows, so that the toy has those of the network.
WINDOWS = {"embed_dim": 32, "depths": (2, 2), "num_heads": (1, 2), "num_classes": 7}
TOYS = {
    "deit": dataclasses.replace(TOY, image_size=32),
    "swin": Peer("swin_tiny_patch4_window7_224", {**WINDOWS, "img_size": 32, "window_size": 4}, image_size=32),
    "swinv2": Peer("swinv2_tiny_window8_256", {**WINDOWS, "img_size": 64}, image_size=64),
}


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setitem(classification.NETWORKS, "deit_tiny", TOY)
    return tmp_path


def test_a_run_prints_and_records_a_row_for_each_provider(results, capsys):
    words = ["bench", "classification", "--networks", "deit_tiny", "--batch-size", "4", "--rounds", "2", "--record"]
    assert dispatch(words) == 0
    assert "heddle_is_faster_by" in capsys.readouterr().out
    with (results / "classification.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["dtype"], row["provider"]) for row in rows] == [
        (dtype, provider) for dtype in ("float32", "bfloat16") for provider in ("heddle", "timm")
    ]
    assert {row["part"] for row in rows} == {"train"}
    assert all(float(row["images_per_second"]) > 0 for row in rows)
    assert float(rows[0]["logits_difference"]) < 1e-4 and rows[0]["heddle_is_faster_by"] == "1.0"


def test_evaluation_changes_no_weight(results, capsys):
    words = ["bench", "classification", "--networks", "deit_tiny", "--dtype", "float32", "--rounds", "1", "--eval"]
    assert dispatch([*words, "--batch-size", "2"]) == 0
    assert " eval " in capsys.readouterr().out


@pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS)
def test_both_sides_train_the_same(toy, monkeypatch):
    # Without stochastic depth, whose draws differ, a step from equal weights leads to equal weights; unlike AdamW's,
    # a step of gradient descent follows the scale of the loss.
    monkeypatch.setattr(torch.optim, "AdamW", lambda parameters, **_: torch.optim.SGD(parameters, lr=1.0))
    torch.manual_seed(0)
    theirs, ours = make_pair(dataclasses.replace(toy, drop_path=0.0))
    networks = {"timm": theirs, "heddle": ours}
    images, targets = torch.randn(4, 3, toy.image_size, toy.image_size), torch.rand(4, 7).softmax(1)
    assert logits_difference(theirs, ours, images, torch.float32) < 1e-4
    start = copy.deepcopy(ours)
    for provider in networks:
        make_step(networks, provider, "train", torch.float32, images, targets)()
    assert theirs.training and ours.training
    assert logits_difference(theirs, ours, images, torch.float32) < 1e-3
    assert logits_difference(start, ours, images, torch.float32) > 0.1
    assert make_pair(toy)[1].settings["drop_path"] == 0.1


def test_a_backward_alone_is_repeated_over_one_forward(monkeypatch):
    forwards, gradients = [], []
    theirs, ours = make_pair(TOY)
    networks = {"timm": theirs, "heddle": ours}
    ours.register_forward_hook(lambda *arguments: forwards.append(True))
    ours.head.weight.register_hook(lambda gradient: gradients.append(gradient.clone()))
    start = copy.deepcopy(ours.state_dict())
    images, targets = torch.randn(4, 3, 32, 32), torch.rand(4, 7).softmax(1)
    step = make_step(networks, "heddle", "backward", torch.float32, images, targets)
    step(), step()
    assert len(forwards) == 1 and ours.training
    assert len(gradients) == 2 and torch.equal(*gradients) and gradients[0].any()
    assert all(parameter.grad is None for parameter in ours.parameters())
    assert all(torch.equal(start[name], tensor) for name, tensor in ours.state_dict().items())


def test_a_network_of_any_size_gets_images_of_its_peer(results, monkeypatch, capsys):
    sizes = []
    monkeypatch.setitem(classification.NETWORKS, "swinv2_tiny", TOYS["swinv2"])
    monkeypatch.setattr(classification, "make_step", lambda *arguments: lambda: sizes.append(arguments[4].shape))
    words = ["bench", "classification", "--networks", "swinv2_tiny", "--dtype", "float32", "--rounds", "1"]
    assert dispatch([*words, "--batch-size", "2", "--backward"]) == 0
    assert set(sizes) == {(2, 3, 64, 64)}
    assert " backward " in capsys.readouterr().out


def test_weights_that_differ_are_not_timed(results, monkeypatch):
    def unequal(peer):
        theirs, ours = make_pair(peer)
        ours.head.weight.data.neg_()
        return theirs, ours

    monkeypatch.setattr(classification, "make_pair", unequal)
    with pytest.raises(RuntimeError, match="deit_tiny in float32: the logits differ"):
        dispatch(["bench", "classification", "--networks", "deit_tiny", "--batch-size", "2", "--rounds", "1"])


def test_a_compiled_peer_stands_beside_ours_compiled():
    times = {"heddle": Times([1.0], [1.0]), "heddle-compile": Times([0.5], [0.5]), "timm-compile": Times([2.0], [2.0])}
    device = torch.device("cpu")
    row = classification._beside("timm-compile", times, device)
    assert (row["beside"], row["heddle_is_faster_by"]) == ("heddle-compile", 4.0)
    del times["heddle-compile"]
    assert classification._beside("timm-compile", times, device)["heddle_is_faster_by"] == 2.0


def test_turns_are_taken_in_both_orders():
    order = []
    times = take_turns({name: lambda name=name: order.append(name) for name in "ab"}, 3, repeats=2)
    assert "".join(order) == "ab" + "aabb" + "bbaa" + "aabb"
    assert [len(taken.wall) for taken in times.values()] == [3, 3]


def test_the_ratio_is_the_median_over_the_rounds():
    theirs, ours = Times([2.0, 9.0, 4.0], [1.0, 1.0, 1.0]), Times([1.0, 3.0, 1.0], [1.0, 0.5, 0.5])
    assert compare(theirs, ours) == {"heddle_is_faster_by": 3.0, "quartiles": "2.00-4.00", "by_cpu_time": 2.0}
    assert compare(theirs, ours, on_gpu=True)["by_cpu_time"] == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--networks", "deit_huge"], "deit_huge"),
        (["--providers", "timm"], "must have heddle among them"),
        (["--batch-size", "0"], "'0' must be a whole number of 1 or more"),
        (["--train", "--eval"], "not allowed with"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, message, capsys):
    assert dispatch(["bench", "classification", *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]
