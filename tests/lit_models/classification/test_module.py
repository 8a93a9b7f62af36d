"""The LightningModule: means over a whole step, rates, scores of an evaluation, switches, and what it refuses."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))

from tiny_images import ImageNetDataModule, Tiny, Written, draw, plain_sgd, trainer

from datamodules.batches import ImageBatch
from datamodules.image import Mixing
from lit_models import ClassificationModule
from lit_models.classification import ResNet, VisionTransformer
from lit_models.classification.distillation import DistillationConfig, TeacherConfig
from lit_models.classification.metrics import EvaluationScores
from lit_models.classification.network import HeadLogits
from lit_models.optimization import DeiTCosine

# One line of each batch is drawn here and not read from files.
pytestmark = pytest.mark.filterwarnings("ignore:.*(does not have many workers|smaller than the logging interval).*")


def joined(parts):
    """One batch of several."""
    images, labels, indices = (torch.cat(column) for column in list(zip(*parts, strict=True))[:3])
    targets = None if parts[0].targets is None else torch.cat([part.targets for part in parts])
    return ImageBatch(images, labels, indices, targets)


def fitted(batches, network=Tiny, **options):
    torch.manual_seed(3)
    settings = {key: options.pop(key) for key in list(options) if key in ("loss", "binary_reduction")}
    module = ClassificationModule(network, plain_sgd, **settings)
    trainer(**options).fit(module, datamodule=ImageNetDataModule(batches))
    return module


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_micro_batches_of_any_size_equal_one_big_batch(mixed, loss):
    parts = [draw(1, mixed=mixed), draw(5, mixed=mixed), draw(3, mixed=mixed)]
    several = fitted(parts, accumulate_grad_batches=3, loss=loss).network.state_dict()
    for name, value in fitted([joined(parts)], loss=loss).network.state_dict().items():
        torch.testing.assert_close(several[name], value, atol=1e-6, rtol=1e-5)


def test_row_11_the_modules_smoothing_is_for_hard_labels_alone():
    batch = draw(4, mixed=True)
    moved = {}
    for smoothing in (0.0, 0.1):
        torch.manual_seed(3)
        module = ClassificationModule(Tiny, plain_sgd, label_smoothing=smoothing)
        trainer().fit(module, datamodule=ImageNetDataModule([batch]))
        moved[smoothing] = module.network.head.weight.detach()
    assert torch.equal(moved[0.0], moved[0.1])


def test_without_a_teacher_the_mean_of_two_heads_learns():
    batch = draw(4)
    network = fitted([batch], partial(Tiny, distilled=True)).network
    torch.manual_seed(3)
    before = Tiny(7, distilled=True)
    logits = before.forward_heads(batch.images)
    functional.cross_entropy((logits.classes + logits.distillation) / 2, batch.labels, label_smoothing=0.1).backward()
    for head in ("head", "head_distillation"):
        moved = getattr(before, head).weight - getattr(network, head).weight
        torch.testing.assert_close(moved, getattr(before, head).weight.grad, atol=1e-6, rtol=1e-5)


def scores_by_hand(network, batches):
    """Loss and accuracies of a forward pass, image by image."""
    wins, losses, count = {"accuracy": 0, "accuracy_top5": 0, "accuracy_class": 0, "accuracy_distillation": 0}, 0.0, 0
    with torch.no_grad():
        for batch in batches:
            heads = network.eval().forward_heads(batch.images)
            for n, label in enumerate(batch.labels.tolist()):
                if label < 0:
                    continue
                count += 1
                mean = (heads.classes[n] + heads.distillation[n]) / 2
                losses += functional.cross_entropy(mean[None], batch.labels[n : n + 1]).item()
                rank = mean.tolist().index(sorted(mean.tolist(), reverse=True)[0])
                wins["accuracy"] += rank == label
                wins["accuracy_top5"] += (mean > mean[label]).sum().item() < 5
                wins["accuracy_class"] += heads.classes[n].argmax().item() == label
                wins["accuracy_distillation"] += heads.distillation[n].argmax().item() == label
    return {"loss": losses / count, **{name: won / count for name, won in wins.items()}}


def test_scores_of_an_evaluation_with_unequal_batches_and_unknown_labels(capsys):
    batches = [draw(16, first=0), draw(3, first=16), draw(9, first=19)]
    batches[1].labels[1] = -1
    module = ClassificationModule(partial(Tiny, distilled=True))
    [found] = trainer().test(module, datamodule=ImageNetDataModule(batches), verbose=False)
    expected = scores_by_hand(module.network, batches)
    assert expected["accuracy"] < expected["accuracy_top5"] < 1
    assert {name.removeprefix("test/") for name in found} == set(expected)
    for name, value in expected.items():
        assert found[f"test/{name}"] == pytest.approx(value, rel=1e-5), name
    printed = capsys.readouterr().out
    assert f"test/loss {expected['loss']:.4f} nats per image, accuracy {expected['accuracy']:.2%}, top-5" in printed
    assert f"distillation head {expected['accuracy_distillation']:.2%}" in printed


def test_few_classes_and_one_head():
    module = ClassificationModule(Tiny)
    data = ImageNetDataModule([draw(9, classes=3)], classes=3)
    [found] = trainer().test(module, datamodule=data, verbose=False)
    assert found["test/accuracy_top5"] == 1.0, "of three classes all are among the best five"
    assert set(found) == {"test/loss", "test/accuracy", "test/accuracy_top5"}


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_row_16_scores_are_sums_over_parts_of_any_size():
    """What two processes with 1 and 12 images add up to: the states are sums, no means."""
    first, second = draw(1), draw(12)
    parts = [EvaluationScores(7, False) for _ in range(2)]
    whole = EvaluationScores(7, False)
    for part, batch in zip(parts, (first, second), strict=True):
        logits = HeadLogits(torch.randn(len(batch.labels), 7), None)
        part.update(logits, batch.labels)
        whole.update(logits, batch.labels)
    expected = whole.compute()
    for name, metric in whole._named() + [("loss", whole.loss), ("count", whole.count)]:
        assert all(reduce is torch.sum or reduce.__name__ == "dim_zero_sum" for reduce in metric._reductions.values())
        assert metric._update_count == 0, name
    states = [{name: metric.metric_state for name, metric in part._named()} for part in parts]
    for name in ("accuracy", "accuracy_top5"):
        hits = sum(state[name]["tp"].sum() for state in states)
        misses = sum(state[name]["fn"].sum() for state in states)
        assert (hits / (hits + misses)).item() == pytest.approx(expected[name])
    with pytest.raises(ValueError, match="no image of the evaluation has a label"):
        whole.compute()


def test_predictions_name_file_class_and_probability():
    batches = [draw(3), draw(2, first=3)]
    for batch in batches:
        batch.labels.fill_(-1)
    module = ClassificationModule(partial(Tiny, distilled=True))
    found = trainer().predict(module, datamodule=ImageNetDataModule(batches))
    pairs = [pair for part in found for pair in part]
    assert [index for index, _ in pairs] == list(range(5))
    with torch.no_grad():
        best = module.network(batches[1].images).softmax(1).max(1)
    for n in range(2):
        line = f"test/{3 + n}.jpg\tclass {best.indices[n]}\t{best.values[n]:.4f}"
        assert pairs[3 + n][1] == line


def rates(reference_batch, schedule, accumulate=1, **settings):
    module = ClassificationModule(
        Tiny, partial(torch.optim.AdamW, lr=5e-4), schedule, reference_batch=reference_batch, **settings
    )
    used = []
    module.on_before_zero_grad = lambda optimizer: used.append([group["lr"] for group in optimizer.param_groups])
    data = ImageNetDataModule([draw(2)] * 6)
    trainer(max_steps=3, accumulate_grad_batches=accumulate).fit(module, datamodule=data)
    return used


def test_row_3_the_rate_follows_the_effective_batch():
    flat = Written([1.0, 0.5, 0.25])
    assert rates(None, flat)[0] == pytest.approx([5e-4] * 2)
    assert rates(512, flat)[0] == pytest.approx([5e-4 * 2 / 512] * 2)
    assert rates(512, flat, accumulate=2)[0] == pytest.approx([5e-4 * 4 / 512] * 2), "accumulated batches count"


@pytest.mark.filterwarnings("ignore:.*schedule.steps_per_epoch.*")
def test_row_3_deits_absolute_rates_are_not_scaled():
    deit = DeiTCosine(10, 2, warmup_epochs=2)
    assert rates(512, deit)[0] == pytest.approx([1e-6] * 2)
    assert rates(1, deit)[0] == pytest.approx([1e-6] * 2)
    with pytest.warns(UserWarning, match="schedule.steps_per_epoch is 2, but an epoch of this data has 6 steps"):
        rates(None, deit)


@pytest.mark.filterwarnings("error:.*schedule.steps_per_epoch.*")
def test_the_last_step_of_an_epoch_may_hold_fewer_batches():
    rates(None, DeiTCosine(10, 2, warmup_epochs=2), accumulate=4)  # 4 of 6 batches, then 2


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_precisions(precision, distilled, tmp_path):
    data, settings = ImageNetDataModule([draw(2)] * 2), {}
    if distilled:
        source, run = ClassificationModule(partial(VIT, image_size=8), plain_sgd), trainer()
        run.fit(source, datamodule=data)
        run.save_checkpoint(tmp_path / "x.ckpt")
        teacher = TeacherConfig(str(tmp_path / "x.ckpt"))
        settings["distillation"] = DistillationConfig(teacher, mode="soft", class_head=True)
    module = ClassificationModule(Tiny, plain_sgd, **settings)
    trainer(max_steps=1, precision=precision).fit(module, datamodule=data)
    assert module.last_loss.isfinite()
    if distilled:
        expected = torch.tensor(data.std, dtype=torch.float32).view(1, 3, 1, 1)
        assert torch.equal(module.teacher._std, expected), "statistics are not rounded"


def test_layer_decay_scales_every_step():
    for factor, used in zip([1.0, 0.5], rates(None, Written([1.0, 0.5]), layer_decay=0.5), strict=False):
        # Weight and bias of the stem (with the token), of the layer, and of the head.
        assert sorted(used) == pytest.approx(sorted(factor * 5e-4 * 0.5**n for n in (3, 3, 2, 2, 0, 0)))


def test_what_training_logs(monkeypatch):
    module = ClassificationModule(Tiny, plain_sgd)
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: float(value)}))
    trainer(log_every_n_steps=1).fit(module, datamodule=ImageNetDataModule([draw(5)]))
    assert set(logged) == {"train/loss", "train/learning_rate", "train/images"}
    assert (logged["train/images"], logged["train/learning_rate"]) == (5.0, 1.0)


def test_compiled_weights_keep_their_names(monkeypatch):
    eager = partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", eager)
    batch = draw(4)
    torch.manual_seed(3)
    module = ClassificationModule(Tiny, plain_sgd, compile=True)
    assert not hasattr(module.compile, "real"), "nn.Module.compile stays a method"
    trainer().fit(module, datamodule=ImageNetDataModule([batch]))
    plain = fitted([batch])
    assert list(module.state_dict()) == list(plain.state_dict())
    assert not any("_orig_mod" in name for name, _ in module.named_parameters())
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, atol=1e-6, rtol=1e-5)


def test_compile_is_used(monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda function: lambda images: (calls.append(1), function(images))[1])
    module = ClassificationModule(Tiny, plain_sgd, compile=True)
    trainer().fit(module, datamodule=ImageNetDataModule([draw(2)]))
    assert calls == [1]


def test_channels_last_changes_memory_and_nothing_else():
    network, seen, batch = partial(ResNet, depth=8, width=4), [], draw(4)
    torch.manual_seed(3)
    module = ClassificationModule(network, plain_sgd, channels_last=True)
    module.on_train_start = lambda: module.network.stem.register_forward_hook(
        lambda _, inputs, output: seen.append((inputs[0], module.network.stem.weight, output))
    )
    trainer().fit(module, datamodule=ImageNetDataModule([batch]))
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in seen[0])
    plain = fitted([batch], network)
    for name, value in plain.network.state_dict().items():
        torch.testing.assert_close(module.network.state_dict()[name], value, atol=1e-4, rtol=1e-3)


def test_bf16_by_the_trainers_precision():
    module = fitted([draw(4)], precision="bf16-mixed")
    assert module.network.head.weight.dtype == torch.float32
    assert module.last_loss.dtype == torch.float32


VIT = partial(VisionTransformer, image_size=16, patch_size=4, dim=8, depth=1, num_heads=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"reference_batch": 0}, "reference_batch must be at least 1, got 0"),
        (
            {"loss": "binary_cross_entropy", "binary_targets": "above_zero"},
            "binary_targets is above_zero, but label_smoothing 0.1 puts every class above zero",
        ),
        ({"network": VIT}, r"network.image_size is \(16, 16\), but data.image_size is 8"),
        ({"network": lambda classes: torch.nn.Linear(3, classes)}, "network makes a Linear, which is not a Classif"),
        ({"layer_decay": 2.0}, "layer_decay must be above 0 and at most 1, got 2.0"),
    ],
)
@pytest.mark.filterwarnings("ignore:Attribute 'network' removed")
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        trainer().fit(ClassificationModule(**{"network": Tiny, **settings}), datamodule=ImageNetDataModule([draw(2)]))


def test_smoothed_targets_are_no_full_positives():
    module = ClassificationModule(Tiny, loss="binary_cross_entropy", binary_targets="above_zero", label_smoothing=0.0)
    data = ImageNetDataModule([draw(2, mixed=True)])
    data.mixing = Mixing(label_smoothing=0.1)
    with pytest.raises(ValueError, match=r"set data\.mixing\.label_smoothing to 0"):
        trainer().fit(module, datamodule=data)


def test_data_without_classes_is_refused():
    data = ImageNetDataModule([draw(2)])
    del data.num_classes
    with pytest.raises(ValueError, match="ClassificationModule needs a datamodule with classes"):
        trainer().fit(ClassificationModule(Tiny), datamodule=data)
    with pytest.raises(ValueError, match="the data has 1 class"):
        trainer().fit(ClassificationModule(Tiny), datamodule=ImageNetDataModule([draw(2, classes=1)], classes=1))


CONFIG = """\
checkpoint: {monitor: val/accuracy, mode: max}
model:
  class_path: lit_models.ClassificationModule
  init_args:
    network:
      class_path: lit_models.classification.VisionTransformer
      init_args: {image_size: 8, patch_size: 4, dim: 8, depth: 1, num_heads: 2, distilled: true}
    optimizer:
      class_path: lit_models.optimization.Lamb
      init_args: {lr: 1.0e-3, weight_decay: 0.05}
    schedule:
      class_path: lit_models.optimization.DeiTCosine
      init_args: {epochs: 3, steps_per_epoch: 4, warmup_epochs: 1}
    reference_batch: 512
    layer_decay: 0.8
data: {class_path: tiny_images.ImageNetDataModule}
trainer:
  max_steps: 2
  val_check_interval: 2
  accelerator: cpu
  callbacks:
  - class_path: experiments.callbacks.WeightAveraging
    init_args: {decay: 0.9, evaluate_raw: true}
wandb: disabled
"""


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """The command line in an empty directory with a config ``a.yaml``; returns exit code and what was printed."""
    from experiments.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(CONFIG)

    def run(*words):
        code = main([words[0], "-c", "a.yaml", *words[1:]])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def test_the_four_commands(command, tmp_path):
    code, printed = command("fit", "--run_dir=first")
    assert code == 0, printed
    assert "val_raw/accuracy_distillation" in printed
    last = "first/checkpoints/last.ckpt"
    teacher = [f"--model.distillation.teacher.source={last}", "--model.distillation.alpha=0.3"]
    code, printed = command("fit", "--run_dir=second", f"--model.init_from={last}", *teacher)
    assert code == 0, printed
    code, printed = command("test", "--run_dir=third", f"--ckpt_path={last}")
    assert (code, "test/loss" in printed) == (0, True), printed
    code, printed = command("predict", "--run_dir=fourth", f"--ckpt_path={last}")
    assert code == 0, printed
    (written,) = (tmp_path / "fourth").glob("predictions.*")
    assert "test/15.jpg\tclass " in written.read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--model.network.dimm=3", 'unknown key "model.network.dimm"; did you mean "dim"?'),
        ("--model.network.num_classes=3", 'unknown key "model.network.num_classes"'),
        ("--model.network.dim=abc", '"model.network.dim" must be an int; got "abc"'),
        ("--model.network=VisionTransformr", '"model.network": there is no class "VisionTransformr"'),
        ("--model.loss=hinge", '"model.loss" must be "cross_entropy" or "binary_cross_entropy"; got "hinge"'),
        ("--model.distillation.alpha=3", "distillation.alpha must be in [0, 1], got 3.0"),
        ("--model.distillation.mode=soft", "distillation.teacher.source must name a file"),
        ("--model.distillation.teacher.source=no.ckpt", 'distillation.teacher.source: there is no file "no.ckpt"'),
        ("--model.init_from=no.ckpt", 'init_from: there is no file "no.ckpt"'),
    ],
)
def test_mistakes_on_the_command_line(command, override, message):
    words = [override] if "alpha" not in override else [override, "--model.distillation.teacher.source=x"]
    code, printed = command("fit", "--run_dir=x", *words)
    assert (code, message in printed) == (2, True), printed


@pytest.mark.parametrize(
    ("words", "section", "key"),
    [
        (["--model.init_args.distillation.teacher.weights=null"], "distillation.teacher", "weights"),
        (["--model.distillation.teacher.weights", "null"], "distillation.teacher", "weights"),
        (["--model.distillation.teacher.image_size=null"], "distillation.teacher", "image_size"),
        (["--model.init_from=x", "--model.init_args.init_from=null"], "", "init_from"),
        (["--model.head_rows=x", "--model.head_rows=null"], "", "head_rows"),
    ],
)
def test_null_on_the_command_line(command, words, section, key):
    start = ["--model.distillation.teacher.source=x", "--model.distillation.teacher.image_size=9"]
    code, printed = command("fit", *start, *words, "--print_config")
    assert code == 0, printed
    found = yaml.safe_load(printed)["model"]["init_args"]
    for part in filter(None, section.split(".")):
        found = found[part]
    assert found[key] is None
