"""Distillation: its losses by hand, its settings, and what a teacher sees and is not part of."""

import math
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))

from tiny_images import MEAN, STD, ImageNetDataModule, Tiny, draw, plain_sgd, trainer

from lit_models import ClassificationModule
from lit_models.classification import module as module_file
from lit_models.classification.distillation import DistillationConfig, TeacherConfig, distillation_loss
from lit_models.classification.teachers import Teacher, build_teacher

TEACHER = TeacherConfig("timm:resnet10t", weights=None)


def divergence(student, teacher, temperature):
    """KL(teacher || student) of one example."""
    rows = []
    for logits in (student, teacher):
        exponents = [math.exp(value / temperature) for value in logits.double().tolist()]
        rows.append([value / sum(exponents) for value in exponents])
    return sum(q * math.log(q / p) for p, q in zip(*rows, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_loss_and_its_two_reductions(temperature):
    student, teacher = torch.randn(3, 6), torch.randn(3, 6) * 2
    total = sum(divergence(one, two, temperature) for one, two in zip(student, teacher, strict=True)) * temperature**2
    for reduction, expected in (("numel", total / (3 * 6)), ("batchmean", total / 3)):
        config = DistillationConfig(TEACHER, "soft", temperature=temperature, reduction=reduction)
        assert distillation_loss(student, teacher, config).item() / 3 == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_logits_of_half_precision_are_summed_in_float32(mode):
    student, teacher = (torch.randn(64, 200) * 3).bfloat16(), (torch.randn(64, 200) * 3).bfloat16()
    config = DistillationConfig(TEACHER, mode, temperature=2.0, reduction="batchmean")
    found = distillation_loss(student, teacher, config)
    assert found.dtype == torch.float32
    if mode == "hard":
        rows = student.double().log_softmax(1)
        expected = -rows[torch.arange(64), teacher.argmax(1)].sum().item()
    else:
        expected = 4.0 * sum(divergence(one, two, 2.0) for one, two in zip(student, teacher, strict=True))
    # Sums of 12,800 float32 numbers; in bfloat16 the loss would be 100 times further off.
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_hard_loss_takes_the_teachers_decision_unsmoothed():
    student, teacher = torch.randn(3, 6), torch.randn(3, 6)
    found = distillation_loss(student, teacher, DistillationConfig(TEACHER)).item()
    decisions = teacher.argmax(1).tolist()
    assert found == pytest.approx(-sum(student.log_softmax(1)[n, k].item() for n, k in enumerate(decisions)), rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.5}, r"distillation.alpha must be in \[0, 1\], got 1.5"),
        ({"alpha": -0.1}, r"distillation.alpha must be in \[0, 1\], got -0.1"),
        ({"temperature": 0.0}, "distillation.temperature must be above 0, got 0.0"),
        ({"class_head": True}, "distillation.class_head is for soft distillation"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        DistillationConfig(TEACHER, **settings)


def test_impossible_teachers_are_named():
    with pytest.raises(ValueError, match="distillation.teacher.source must name"):
        TeacherConfig("")
    with pytest.raises(ValueError, match="distillation.teacher.image_size must be at least 1"):
        TeacherConfig("timm:x", image_size=0)
    names = [f"{n}" for n in range(3)]
    with pytest.raises(FileNotFoundError, match='distillation.teacher.source: there is no file "missing.pth"'):
        build_teacher(TeacherConfig("missing.pth"), names)
    with pytest.raises(ValueError, match="timm has no network 'resnt18'"):
        build_teacher(TeacherConfig("timm:resnt18"), names)
    with pytest.raises(ValueError, match="torchvision has no classification network 'fcn_resnet50'"):
        build_teacher(TeacherConfig("torchvision:fcn_resnet50"), names)
    with pytest.raises(ValueError, match="resnet18 has no weights 'V9', only IMAGENET1K_V1"):
        build_teacher(TeacherConfig("torchvision:resnet18", "V9"), names)
    with pytest.raises(ValueError, match="timm names weights with the network"):
        build_teacher(TeacherConfig("timm:resnet10t", "V1"), names)
    with pytest.raises(ValueError, match="distillation.teacher.source: timm:resnet10t has 1000 classes, the data 3"):
        build_teacher(TEACHER, names)


def test_teachers_by_name_and_their_statistics():
    names = [f"{n}" for n in range(1000)]
    teacher = build_teacher(TEACHER, names)
    assert (teacher.image_size, teacher.network.training) == (None, False)
    assert teacher(torch.randn(1, 3, 32, 32)).shape == (1, 1000), "a ConvNet sees the images as they are"
    fixed = build_teacher(TeacherConfig("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k", None), names)
    assert fixed.image_size == (224, 224)
    assert fixed._mean.flatten().tolist() == pytest.approx([0.5] * 3)
    assert fixed(torch.randn(1, 3, 32, 32)).shape == (1, 1000)
    small = build_teacher(TeacherConfig("torchvision:shufflenet_v2_x0_5", None, image_size=64), names)
    assert small.image_size == (64, 64)
    assert small._std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])


class Recording(torch.nn.Module):
    """A teacher that keeps what it sees."""

    def __init__(self, classes=7):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, classes))
        self.norm = torch.nn.BatchNorm2d(3)
        self.seen, self.modes = [], []

    def forward(self, images):
        self.seen.append(images.clone())
        self.modes.append(self.training)
        return self.norm(images).mean((2, 3)) @ self.weight


def taught(monkeypatch, config, network=None, **settings):
    """A module whose teacher is a Recording with other statistics than the data."""
    recording = Recording()
    teacher = Teacher(recording, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), None)
    monkeypatch.setattr(module_file, "build_teacher", lambda *_: teacher)
    monkeypatch.setattr(module_file, "download_teacher", lambda *_: None)
    network = network or partial(Tiny, distilled=True)
    module = ClassificationModule(network, plain_sgd, distillation=config, label_smoothing=0.1, **settings)
    return module, recording


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_row_1_the_distillation_head_learns_from_the_teacher_and_the_class_head_from_the_labels(monkeypatch, mode):
    batch = draw(6, mixed=True)
    config = DistillationConfig(TEACHER, mode, alpha=0.3, temperature=2.0)
    module, recording = taught(monkeypatch, config)
    data = ImageNetDataModule([batch])
    start = {}
    module.on_train_start = lambda: start.update(
        {k: v.detach().clone() for k, v in module.network.state_dict().items()}
    )
    trainer().fit(module, datamodule=data)
    student = Tiny(7, distilled=True)
    student.load_state_dict(start)
    heads = student.forward_heads(batch.images)
    # What the teacher sees: the mixed images, normalised anew.
    pixels = batch.images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    renormalised = (pixels - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    (seen,) = recording.seen
    torch.testing.assert_close(seen, renormalised)
    logits = recording(renormalised).detach()
    base = -(batch.targets * heads.classes.log_softmax(1)).sum(1).mean()
    if mode == "hard":
        second = functional.cross_entropy(heads.distillation, logits.argmax(1))
    else:
        pair = ((heads.distillation / 2).log_softmax(1), (logits / 2).softmax(1))
        second = functional.kl_div(*pair, reduction="sum") * 4 / heads.distillation.numel()
    (0.7 * base + 0.3 * second).backward()
    for name, parameter in student.named_parameters():
        moved = start[name] - module.network.state_dict()[name]
        torch.testing.assert_close(moved, parameter.grad, atol=1e-6, rtol=1e-5, msg=name)


def test_the_teacher_stays_out_of_everything(monkeypatch, tmp_path):
    module, recording = taught(monkeypatch, DistillationConfig(TEACHER))
    before = {name: value.clone() for name, value in recording.state_dict().items()}
    steps = trainer(max_steps=3, val_check_interval=1, check_val_every_n_epoch=None, limit_val_batches=None)
    steps.fit(module, datamodule=ImageNetDataModule([draw(4), draw(4)]))
    module.train()
    assert recording.modes == [False] * 3, "eval mode, also after module.train()"
    assert not recording.training
    for name, value in recording.state_dict().items():
        assert torch.equal(value, before[name]), name  # also batch norm's running statistics
    own = {id(parameter) for parameter in recording.parameters()}
    assert not own & {id(parameter) for parameter in module.parameters()}
    assert not own & {id(p) for group in steps.optimizers[0].param_groups for p in group["params"]}
    assert all(parameter.grad is None for parameter in recording.parameters())
    steps.save_checkpoint(tmp_path / "x.ckpt")
    names = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in names} == {"network"}


@pytest.mark.parametrize(
    ("config", "distilled", "message"),
    [
        (DistillationConfig(TEACHER), False, "distillation.mode is hard, but Tiny has no distillation head"),
        (DistillationConfig(TEACHER, "soft"), False, "has no distillation head.*or distillation.class_head: true"),
        (DistillationConfig(TEACHER, "soft", class_head=True), True, "class_head is true, but Tiny has a distill"),
    ],
)
def test_row_1_a_network_without_the_head_is_refused(monkeypatch, config, distilled, message):
    module, _ = taught(monkeypatch, config, partial(Tiny, distilled=distilled))
    with pytest.raises(ValueError, match=message):
        trainer().fit(module, datamodule=ImageNetDataModule([draw(2)]))


def test_one_head_may_be_distilled_softly_if_that_is_said(monkeypatch):
    module, recording = taught(monkeypatch, DistillationConfig(TEACHER, "soft", class_head=True, alpha=1.0), Tiny)
    batch, start = draw(5), {}
    module.on_train_start = lambda: start.update(
        {k: v.detach().clone() for k, v in module.network.state_dict().items()}
    )
    trainer().fit(module, datamodule=ImageNetDataModule([batch]))
    student = Tiny(7)
    student.load_state_dict(start)
    logits = recording(recording.seen[0]).detach()
    own = student(batch.images)
    (functional.kl_div(own.log_softmax(1), logits.softmax(1), reduction="sum") / own.numel()).backward()
    moved = start["head.weight"] - module.network.head.weight
    torch.testing.assert_close(moved, student.head.weight.grad, atol=1e-6, rtol=1e-5)


def test_no_teacher_is_built_to_evaluate(monkeypatch, capsys):
    missing = DistillationConfig(TeacherConfig("missing.pth"))
    module = ClassificationModule(partial(Tiny, distilled=True), distillation=missing)
    trainer(limit_val_batches=None).validate(module, datamodule=ImageNetDataModule([draw(2)]), verbose=False)
    assert module.teacher is None
    assert "distillation head" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="missing.pth"):
        trainer().fit(module, datamodule=ImageNetDataModule([draw(2)]))
