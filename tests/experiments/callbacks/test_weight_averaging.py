"""The average against a computation by hand, and where it is used."""

import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from toy_experiment import Callback, ToyData, ToyModule

from experiments.callbacks import WeightAveraging
from experiments.callbacks.weight_averaging import parameters_of

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no")


class Watch(Callback):
    """Copies the weights after each step, before the average is updated with them."""

    def __init__(self):
        self.start, self.history, self.steps = None, [], []

    def on_train_start(self, trainer, pl_module):
        self.start = [parameter.detach().clone() for parameter in pl_module.parameters()]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.history.append([parameter.detach().clone() for parameter in pl_module.parameters()])
        self.steps.append(trainer.global_step)


def trainer_of(tmp_path, callbacks, **settings):
    defaults = dict(max_steps=12, max_epochs=-1, val_check_interval=5, check_val_every_n_epoch=None)
    return Trainer(
        **{**defaults, **settings},
        accelerator="cpu",
        callbacks=callbacks,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_equals_the_formula_in_float64(tmp_path, warmup, accumulate):
    module, watch, averaging = ToyModule(), Watch(), WeightAveraging(0.7, warmup)
    trainer = trainer_of(
        tmp_path, [watch, averaging], max_steps=4, precision="64-true", accumulate_grad_batches=accumulate
    )
    trainer.fit(module, ToyData())
    expected = [value.clone() for value in watch.start]
    assert watch.steps == ([1, 2, 3, 4] if accumulate == 1 else [0, 0, 1, 1, 1, 2, 2, 2, 3, 4]), (
        "an epoch's end steps too"
    )
    for update in range(4):
        weights = watch.history[watch.steps.index(update + 1)]
        decay = min(0.7, (1 + update) / (10 + update)) if warmup else 0.7
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, weights, strict=True)]
    for found, wanted in zip(module.parameters(), expected, strict=True):
        assert found.dtype == torch.float64
        torch.testing.assert_close(found.detach(), wanted, rtol=1e-14, atol=1e-15)


def test_validation_sees_the_average_and_training_goes_on_with_the_raw_weights(tmp_path):
    plain = ToyModule()
    torch.manual_seed(1)
    watch_plain = Watch()
    trainer_of(tmp_path, [watch_plain]).fit(plain, ToyData())
    averaged = ToyModule()
    torch.manual_seed(1)
    watch = Watch()
    trainer_of(tmp_path, [watch, WeightAveraging(0.9, warmup=False)]).fit(averaged, ToyData())
    for one, two in zip(watch_plain.history, watch.history, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True)), "averaging must not change training"
    expected = watch.start[0].clone()
    for step, weights in enumerate(watch.history, 1):
        expected = torch.lerp(expected, weights[0], 0.1)
        if step == 5:  # the sanity check runs two batches, a validation too
            torch.testing.assert_close(averaged.validated_with[2], expected)
            assert torch.equal(plain.validated_with[2], weights[0])
    torch.testing.assert_close(next(averaged.parameters()).detach(), expected)


class Tied(LightningModule):
    """Embedding and projection share one weight; a counter is a buffer."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.embedding = nn.Embedding(5, 3, dtype=dtype)
        self.projection = nn.Linear(3, 5, bias=False, dtype=dtype)
        self.projection.weight = self.embedding.weight
        self.register_buffer("count", torch.zeros(()))
        self.frozen = nn.Parameter(torch.ones(2, dtype=dtype), requires_grad=False)

    def training_step(self, batch, batch_idx):
        self.count += 1
        return self.projection(self.embedding(batch.indices % 5)).float().square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(parameters_of(self), lr=0.1)


def test_tied_weights_frozen_weights_and_buffers(tmp_path):
    module, averaging = Tied(), WeightAveraging(0.5)
    trainer = trainer_of(tmp_path, [averaging], max_steps=3)
    saved = {}

    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            trainer.save_checkpoint(tmp_path / "x.ckpt")
            saved["raw"] = pl_module.embedding.weight.detach().clone()

    trainer.callbacks.append(Save())
    trainer.fit(module, ToyData())
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    state = checkpoint["state_dict"]
    assert torch.equal(state["embedding.weight"], state["projection.weight"])
    assert torch.equal(state["embedding.weight"], module.embedding.weight), "the end of fit leaves the average"
    assert state["count"] == 3
    (raw,) = checkpoint["weight_averaging"]["raw"]
    assert torch.equal(raw, saved["raw"])
    assert not torch.equal(raw, state["embedding.weight"])


def test_half_precision_is_averaged_in_float32(tmp_path):
    module, averaging = Tied(torch.bfloat16), WeightAveraging(0.999, warmup=False)
    seen = []

    class See(Callback):
        def on_train_batch_end(self, *rest):
            seen.append(averaging._averages[0].clone())

    trainer_of(tmp_path, [averaging, See()], max_steps=3).fit(module, ToyData())
    assert seen[0].dtype == torch.float32
    assert not torch.equal(seen[0], seen[1]), "a step of 0.001 would be lost in bfloat16"
    assert module.embedding.weight.dtype == torch.bfloat16


def test_averages_hold_no_graph_and_do_not_grow(tmp_path):
    averaging = WeightAveraging()
    sizes = set()

    class See(Callback):
        def on_train_batch_end(self, *rest):
            assert all(a.grad_fn is None and not a.requires_grad for a in averaging._averages)
            sizes.add((len(averaging._averages), sum(a.numel() for a in averaging._averages)))

    trainer_of(tmp_path, [averaging, See()]).fit(ToyModule(), ToyData())
    assert len(sizes) == 1
    assert averaging._averages == [] and averaging._raw is None


def test_nan_weights_are_not_averaged(tmp_path):
    from experiments.callbacks import StopOnNonFinite
    from experiments.errors import NonFiniteError

    averaging = WeightAveraging()
    module = ToyModule(nan_at_step=4)
    with pytest.raises(NonFiniteError):
        trainer_of(tmp_path, [averaging, StopOnNonFinite()]).fit(module, ToyData())
    assert all(torch.isfinite(average).all() for average in averaging._averages)
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


class Scored(ToyModule):
    """Scores a set of weights by its loss, as ClassificationModule does."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.sums, self.logged = {}, {}

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.evaluate(batch, "val")

    def evaluate(self, batch, name):
        self.sums.setdefault(name, []).append(self.network(batch.values).square().mean().item())

    def log_evaluation(self, name):
        self.log(f"{name}/score", sum(self.sums[name]) / len(self.sums[name]))
        self.logged.setdefault(name, []).append(self.sums.pop(name))

    def on_validation_epoch_end(self):
        self.log_evaluation("val")


def test_average_and_raw_weights_are_scored_in_one_validation(tmp_path):
    torch.manual_seed(1)
    module, watch = Scored(), Watch()
    trainer = trainer_of(tmp_path, [watch, WeightAveraging(0.9, warmup=False, evaluate_raw=True)], max_steps=10)
    trainer.fit(module, ToyData())
    other, watch_other = Scored(), Watch()
    torch.manual_seed(1)
    trainer_of(tmp_path, [watch_other, WeightAveraging(0.9, warmup=False)], max_steps=10).fit(other, ToyData())
    for one, two in zip(watch.history, watch_other.history, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True)), "scoring must not change training"
    assert module.logged["val"][-2:] == other.logged["val"][-2:], "the average scores as without"
    raw, averaged = module.network, [weights.clone() for weights in watch.start]
    inputs = [batch.values for batch in validation_batches()]
    for step, weights in enumerate(watch.history, 1):
        averaged = [torch.lerp(old, new, 0.1) for old, new in zip(averaged, weights, strict=True)]
        if step not in (5, 10):
            continue
        for name, wanted in (("val", averaged), ("val_raw", weights)):
            for parameter, value in zip(raw.parameters(), wanted, strict=True):
                parameter.data.copy_(value)
            expected = [raw.eval()(values).square().mean().item() for values in inputs]
            found = module.logged[name][-2 if step == 5 else -1]
            assert found == pytest.approx(expected, rel=1e-5), name
    assert {"val/score", "val_raw/score"} <= set(trainer.callback_metrics)


def validation_batches():
    data = ToyData()
    data.setup("fit")
    return list(data.val_dataloader())


def test_a_module_that_scores_one_set_of_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="evaluate_raw is true, but ToyModule scores one set"):
        trainer_of(tmp_path, [WeightAveraging(evaluate_raw=True)]).fit(ToyModule(), ToyData())


def test_raw_weights_survive_a_validation_that_fails(tmp_path):
    class Failing(Scored):
        def evaluate(self, batch, name):
            if name == "val_raw" and self.global_step == 5:
                raise RuntimeError("a defect")
            super().evaluate(batch, name)

    module, watch = Failing(), Watch()
    with pytest.raises(RuntimeError, match="a defect"):
        trainer_of(tmp_path, [watch, WeightAveraging(0.9, evaluate_raw=True)]).fit(module, ToyData())
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), watch.history[-1], strict=True))


def test_classification_module_logs_both(tmp_path):
    sys.path.insert(0, str(Path(__file__).parents[2] / "lit_models" / "classification"))
    from tiny_images import ImageNetDataModule, Tiny, draw, plain_sgd
    from tiny_images import trainer as quiet_trainer

    from lit_models import ClassificationModule

    module = ClassificationModule(Tiny, plain_sgd)
    trainer = quiet_trainer(
        max_steps=4,
        callbacks=[WeightAveraging(0.99, warmup=False, evaluate_raw=True)],
        limit_val_batches=None,
        val_check_interval=4,
        check_val_every_n_epoch=None,
    )
    trainer.fit(module, datamodule=ImageNetDataModule([draw(8)] * 4, [draw(30), draw(5)]))
    metrics = trainer.callback_metrics
    names = {name.partition("/")[2] for name in metrics if name.startswith("val/")}
    assert names == {"loss", "accuracy", "accuracy_top5"}
    assert all(f"val_raw/{name}" in metrics for name in names)
    assert metrics["val/loss"] != metrics["val_raw/loss"]


def test_bad_decay():
    with pytest.raises(ValueError, match="decay must be at least 0 and below 1; got 1.0"):
        WeightAveraging(1.0)


def test_checkpoint_of_another_network_is_refused(tmp_path):
    trainer = trainer_of(tmp_path, [WeightAveraging()], max_steps=2)
    trainer.fit(Tied(), ToyData())
    averaging = WeightAveraging()
    module = ToyModule()
    module.configure_model()
    trainer = trainer_of(tmp_path, [averaging])
    trainer.state.fn = "fit"
    stored = {"weight_averaging": {"raw": [torch.zeros(1)], "average": [torch.zeros(1)]}}
    with pytest.raises(ValueError, match="the checkpoint averages 1 weights"):
        averaging.on_load_checkpoint(trainer, module, stored)
