"""Checkpoints: what they hold, what they are refused for, and how fine-tuning starts from them."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny_images import ImageNetDataModule, Tiny, Written, draw, plain_sgd, trainer

from lit_models import ClassificationModule
from lit_models.classification import ResNet, VisionTransformer
from lit_models.classification.checkpoint import load_checkpoint
from lit_models.classification.distillation import TeacherConfig
from lit_models.classification.teachers import build_teacher
from lit_models.layers import resize_positions

VIT = partial(VisionTransformer, image_size=8, patch_size=4, dim=8, depth=1, num_heads=2)
ADAM = partial(torch.optim.AdamW, lr=1e-3)


def written(path, network=VIT, batches=None, **settings):
    """Train a step, write the checkpoint, and return the module."""
    module = ClassificationModule(network, settings.pop("optimizer", ADAM), **settings)
    run = trainer()
    run.fit(module, datamodule=batches or ImageNetDataModule([draw(4)]))
    run.save_checkpoint(path)
    return module


def test_a_checkpoint_is_enough_to_use_the_network(tmp_path):
    module = written(tmp_path / "x.ckpt", partial(VIT, distilled=True))
    loaded = load_checkpoint(tmp_path / "x.ckpt")
    assert not loaded.network.training
    images = torch.randn(3, 3, 8, 8)
    assert torch.equal(loaded.network(images), module.network.eval()(images))
    assert loaded.class_names == [f"class {n}" for n in range(7)]
    assert loaded.preprocessing["mean"] == list(ImageNetDataModule.mean)
    assert loaded.preprocessing["crop_mode"] == "center"
    assert "hyper_parameters" not in loaded.checkpoint
    assert loaded.checkpoint["heddle"]["settings"]["network"]["init_args"]["dim"] == 8
    assert loaded.checkpoint["heddle"]["images_seen"] == 4


def test_loading_needs_no_lightning(tmp_path):
    import subprocess

    written(tmp_path / "x.ckpt")
    code = (
        "import sys; from lit_models.classification.checkpoint import load_checkpoint; load_checkpoint(sys.argv[1]); "
    )
    code += "print([name for name in ('lightning', 'torchvision', 'timm', 'torchmetrics') if name in sys.modules])"
    command = [sys.executable, "-c", code, str(tmp_path / "x.ckpt")]
    root = Path(__file__).parents[3]
    assert subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def changed(path, **changes):
    checkpoint = torch.load(path, weights_only=True)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            checkpoint[section][name] = value
        else:
            del checkpoint[section]
    torch.save(checkpoint, path)
    return path


def test_foreign_files_are_named(tmp_path):
    file = tmp_path / "x.ckpt"
    with pytest.raises(FileNotFoundError, match="there is no checkpoint .*missing.ckpt"):
        load_checkpoint(tmp_path / "missing.ckpt")
    written(file)
    cases = [
        ({"heddle__task": "translation"}, "is not a classification checkpoint.*one of translation"),
        ({"heddle__format": 9}, "has checkpoint format 9"),
        ({"heddle__network": "Tiny"}, "there is no network 'Tiny'"),
        ({"heddle__num_classes": 8}, "the weights do not fit the network"),
        ({"ImageNetDataModule": None}, "has no class names"),
        ({"heddle": None}, "is not a classification checkpoint of this project .it has no 'heddle' entry"),
    ]
    for changes, message in cases:
        copy = tmp_path / "changed.ckpt"
        copy.write_bytes(file.read_bytes())
        with pytest.raises(ValueError, match=message):
            load_checkpoint(changed(copy, **changes))
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(ValueError, match="is not a PyTorch checkpoint, or it is cut short"):
        load_checkpoint(file)


@pytest.mark.parametrize(
    ("settings", "batch", "message"),
    [
        ({"network": partial(Tiny, dim=5)}, 4, "network_settings.dim: checkpoint 6, config 5"),
        ({"network": partial(ResNet, depth=8, width=4)}, 4, "network: checkpoint 'Tiny', config 'ResNet'"),
        ({"schedule": Written([0.5])}, 4, "schedule.*factors: checkpoint"),
        ({"optimizer": partial(torch.optim.AdamW, lr=2e-3)}, 4, "optimizer.init_args.lr: checkpoint 0.001, config 0.0"),
        ({"layer_decay": 0.5}, 4, "layer_decay: checkpoint 1.0, config 0.5"),
        ({}, 2, "images_per_step: checkpoint 4, config 2"),
    ],
)
def test_resuming_with_other_settings_is_refused(tmp_path, settings, batch, message):
    base = {"network": Tiny, "optimizer": ADAM, "schedule": Written([1.0]), "reference_batch": 512}
    written(tmp_path / "x.ckpt", **base)
    module = ClassificationModule(**{**base, **settings})
    with pytest.raises(ValueError, match=message):
        trainer(max_steps=2).fit(
            module, datamodule=ImageNetDataModule([draw(batch)]), ckpt_path=tmp_path / "x.ckpt", weights_only=True
        )


@pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable.*")
def test_a_run_resumes_exactly(tmp_path):
    batches = [draw(4, mixed=True) for _ in range(4)]
    data = ImageNetDataModule(batches)
    settings = {"optimizer": ADAM, "schedule": Written([1.0, 0.5, 0.2, 0.1]), "reference_batch": 2, "layer_decay": 0.7}
    torch.manual_seed(3)
    straight = ClassificationModule(Tiny, **settings)
    trainer(max_steps=4).fit(straight, datamodule=data)
    torch.manual_seed(3)
    first, run = ClassificationModule(Tiny, **settings), trainer(max_steps=2)
    run.fit(first, datamodule=data)
    run.save_checkpoint(tmp_path / "half.ckpt")
    second = ClassificationModule(Tiny, **settings)
    rest = ImageNetDataModule([*batches[2:], *batches[:2]])  # a plain list does not know where it was
    trainer(max_steps=4).fit(second, datamodule=rest, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert second.images_seen == straight.images_seen == 16
    for name, value in straight.network.state_dict().items():
        assert torch.equal(second.network.state_dict()[name], value), name


def started(path, network=VIT, side=8, classes=7, **settings):
    """The network as training begins that starts from a checkpoint."""
    module = ClassificationModule(network, plain_sgd, init_from=str(path), **settings)
    start = {}
    module.on_train_start = lambda: start.update({k: v.clone() for k, v in module.network.state_dict().items()})
    data = ImageNetDataModule([draw(2, side=side, classes=len(range(7)))], classes=classes)
    data.image_size = side
    trainer().fit(module, datamodule=data)
    return module, start


def test_fine_tuning_at_another_resolution(tmp_path):
    source = written(tmp_path / "x.ckpt").network
    module, start = started(tmp_path / "x.ckpt", partial(VIT, image_size=16, drop_path=0.1), side=16)
    assert module.network.image_size == (16, 16)
    source.set_input_size(16)
    for name, value in source.state_dict().items():
        torch.testing.assert_close(start[name], value, atol=0, rtol=0)
    assert start["positions"].shape[1] == 16 + 1


def test_other_classes_get_a_new_head_with_a_notice(tmp_path, caplog):
    source = written(tmp_path / "x.ckpt").network
    caplog.set_level("INFO")
    _, same = started(tmp_path / "x.ckpt")
    assert torch.equal(same["head.weight"], source.head.weight)
    assert "new head" not in caplog.text
    _, more = started(tmp_path / "x.ckpt", classes=9)
    assert more["head.weight"].shape == (9, 8)
    assert "new head: 7 classes become 9" in caplog.text
    assert torch.equal(more["positions"], source.positions)
    _, others = started(tmp_path / "x.ckpt", classes=[f"other {n}" for n in range(7)])
    assert not torch.equal(others["head.weight"], source.head.weight), "seven classes of other names"


def test_fine_tuning_is_in_training_mode(tmp_path):
    """DeiT's first code fine-tuned in evaluation mode, without stochastic depth."""
    written(tmp_path / "x.ckpt")
    modes = []
    module = ClassificationModule(VIT, plain_sgd, init_from=str(tmp_path / "x.ckpt"))
    module.on_train_batch_start = lambda *_: modes.append([part.training for part in module.network.modules()])
    steps = trainer(max_steps=3, limit_val_batches=None, val_check_interval=1, check_val_every_n_epoch=None)
    steps.fit(module, datamodule=ImageNetDataModule([draw(2)]))
    assert len(modes) == 3
    assert all(all(mode) for mode in modes)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (partial(ResNet, depth=8, width=4), "holds a VisionTransformer, the network of the config is a ResNet"),
        (partial(VIT, norm_eps=1e-5), "network.norm_eps: checkpoint 1e-06, config 1e-05"),  # row 5
        (partial(VIT, dim=16), "network.dim: checkpoint 8, config 16"),
        (partial(VIT, layer_scale=1e-4), "does not fit the network of the config"),
    ],
)
def test_starting_from_another_network_is_refused(tmp_path, network, message):
    written(tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=message):
        started(tmp_path / "x.ckpt", network)


def test_starting_from_a_public_file(tmp_path, caplog):
    import timm
    from safetensors.torch import save_file

    sizes = {"depth": 1, "embed_dim": 64, "num_heads": 1, "patch_size": 4}
    public = timm.create_model("deit_tiny_patch16_224", **sizes, img_size=8, num_classes=1000)
    save_file(public.state_dict(), tmp_path / "x.safetensors")
    caplog.set_level("INFO")
    wide = partial(VIT, dim=64, num_heads=1)
    _, start = started(tmp_path / "x.safetensors", partial(wide, position_antialias=True, image_size=16), side=16)
    assert "the checkpoint has 1000 classes and 7 are wanted: the head is freshly initialised" in caplog.text
    assert start["positions"].shape == (1, 17, 64)
    assert torch.equal(start["layers.0.feed_forward.contract.weight"], public.blocks[0].mlp.fc2.weight)
    with pytest.raises(ValueError, match="network.position_antialias: checkpoint True, config False"):  # row 10
        started(tmp_path / "x.safetensors", wide)
    with pytest.raises(ValueError, match="distillation.teacher.source.*has 1000 classes, the data 7"):
        build_teacher(TeacherConfig(str(tmp_path / "x.safetensors")), [f"class {n}" for n in range(7)])


def test_an_evaluation_scores_what_it_starts_from(tmp_path):
    source = written(tmp_path / "x.ckpt")
    data = ImageNetDataModule([draw(5)])
    module = ClassificationModule(VIT, init_from=str(tmp_path / "x.ckpt"))
    found = [trainer().test(each, datamodule=data, verbose=False)[0]["test/loss"] for each in (source, module)]
    assert found[0] == pytest.approx(found[1])


def test_a_missing_start_is_named():
    with pytest.raises(FileNotFoundError, match='init_from: there is no file "missing.pth"'):
        started("missing.pth")


def test_a_resumed_run_does_not_start_anew(tmp_path):
    written(tmp_path / "start.ckpt")
    module, _ = started(tmp_path / "start.ckpt")
    module.trainer.save_checkpoint(tmp_path / "x.ckpt")
    (tmp_path / "start.ckpt").unlink()
    again = ClassificationModule(VIT, plain_sgd, init_from=str(tmp_path / "start.ckpt"))
    data = ImageNetDataModule([draw(2)])
    trainer(max_steps=2).fit(again, datamodule=data, ckpt_path=tmp_path / "x.ckpt", weights_only=True)
    assert again.images_seen == 4


def test_a_checkpoint_teaches_and_its_classes_must_be_the_same(tmp_path):
    module = written(tmp_path / "x.ckpt")
    names = [f"class {n}" for n in range(7)]
    teacher = build_teacher(TeacherConfig(str(tmp_path / "x.ckpt")), names)
    teacher.see(ImageNetDataModule.mean, ImageNetDataModule.std)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(teacher(images), module.network.eval()(images), atol=1e-6, rtol=1e-5)
    assert teacher.image_size == (8, 8)
    assert teacher(torch.randn(2, 3, 24, 24)).shape == (2, 7), "resized to what the network takes"
    for others, message in (
        (names[:5], "has 7 classes, the data 5; they must be the same"),
        ([*names[:4], "x", *names[5:]], "the first that differ are 'class 4' and 'x'"),
        ([f"other {n}" for n in range(7)], "the first that differ are 'class 0' and 'other 0'"),
    ):
        with pytest.raises(ValueError, match=message):
            build_teacher(TeacherConfig(str(tmp_path / "x.ckpt")), others)


def test_what_a_public_file_leaves_open_is_the_configs(tmp_path, caplog):
    """Heads 8 wide that no shape tells, a head behind a layer of its own, and the position table's own rule."""
    from safetensors.torch import save_file

    from lit_models.pretrained import to_timm

    public = VIT(7, dim=16, num_heads=2, image_size=16)
    layer = {"pre_logits.fc.weight": torch.ones(16, 16), "pre_logits.fc.bias": torch.ones(16)}
    save_file({**to_timm(public), **layer}, tmp_path / "x.safetensors")
    caplog.set_level("INFO")
    module, start = started(tmp_path / "x.safetensors", partial(VIT, dim=16, position_antialias=True))
    assert module.network.settings["num_heads"] == 2
    assert "representation layer" in caplog.text and "2 attention heads, as in the config" in caplog.text
    assert not torch.equal(start["head.weight"], public.head.weight), "it reads the layer that is not there"
    resized = resize_positions(public.positions.detach(), (4, 4), (2, 2), prefix=1, antialias=True)
    torch.testing.assert_close(start["positions"], resized)


def test_starting_from_a_directory_of_hugging_face(tmp_path):
    import json

    from safetensors.torch import save_file

    from lit_models.pretrained import to_huggingface

    public = VIT(7)
    state, config = to_huggingface(public)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, start = started(tmp_path)
    for name, value in public.state_dict().items():
        torch.testing.assert_close(start[name], value, atol=0, rtol=0)
    with pytest.raises(ValueError, match="num_heads 4 was given, but the file says 2"):
        started(tmp_path, partial(VIT, num_heads=4))


@pytest.mark.parametrize(("architecture", "found"), [("swin", "SwinTransformer"), ("vit", "VisionTransformer")])
def test_a_public_file_of_another_architecture_is_named(tmp_path, architecture, found):
    """Before heads and windows, which mean nothing to it."""
    from lit_models.classification import SwinTransformer
    from lit_models.pretrained import to_timm, to_torchvision

    swin = partial(SwinTransformer, dim=24, depths=(1, 1), num_heads=(2, 4), window_size=4)
    state, network = (to_torchvision(swin(7)), VIT) if architecture == "swin" else (to_timm(VIT(7)), swin)
    torch.save(state, tmp_path / "x.pth")
    own = "VisionTransformer" if architecture == "swin" else "SwinTransformer"
    with pytest.raises(ValueError, match=rf"x\.pth: it holds a {found}, the network of the config is a {own}"):
        started(tmp_path / "x.pth", network)


def test_another_preprocessing_is_told(tmp_path, caplog):
    import json

    from safetensors.torch import save_file

    from lit_models.pretrained import to_timm

    save_file(to_timm(VIT(7)), tmp_path / "model.safetensors")
    statistics = {"mean": [0.5, 0.5, 0.5], "std": list(ImageNetDataModule.std), "interpolation": "bilinear"}
    config = {"architecture": "vit", "num_heads": 2, "pretrained_cfg": {**statistics, "crop_pct": 0.875}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    caplog.set_level("INFO")
    started(tmp_path, partial(VIT, image_size=16, position_antialias=True), side=16)
    told = [record.message for record in caplog.records if " was made with " in record.message]
    assert told == [
        f'mean: "{tmp_path}" was made with (0.5, 0.5, 0.5), the data has (0.4, 0.5, 0.6); see data.mean',
        f'interpolation: "{tmp_path}" was made with bilinear, the data has bicubic; see data.interpolation',
    ]
    caplog.clear()
    written(tmp_path / "x.ckpt")
    started(tmp_path / "x.ckpt", partial(VIT, image_size=16), side=16)
    assert " was made with " not in caplog.text, "another size is no mistake"
