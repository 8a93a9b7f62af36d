"""The LightningModule of image classification."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from datamodules.batches import ImageBatch
from lit_models.checkpoints import CHECKPOINT_KEY, check_same_settings, difference, plain, write_entry
from lit_models.checks import check_at_least, check_probability
from lit_models.classification.checkpoint import describe_network, start_from
from lit_models.classification.distillation import DistillationConfig, distillation_loss
from lit_models.classification.loss import BinaryReduction, BinaryTargets, LossName, classification_loss
from lit_models.classification.metrics import EvaluationScores
from lit_models.classification.network import Classifier, HeadLogits
from lit_models.classification.teachers import Teacher, build_teacher, download_teacher
from lit_models.optimization import Constant, Schedule, StepTotals, parameter_groups, set_learning_rates

OptimizerFactory = Callable[[Iterable], Optimizer]
# Settings that a checkpoint would silently override: they are in the state of its optimiser.
_IN_OPTIMIZER = ("optimizer", "schedule", "layer_decay", "reference_batch")


class ClassificationModule(pl.LightningModule):
    """Trains an image classifier, with or without a teacher, and scores it.

    The network is built when the datamodule's classes are known. Of a network with two heads the class head learns
    from the labels and the distillation head from the teacher; without a teacher the mean of the heads, which is what
    is predicted, learns from the labels. Validation and testing log the cross-entropy without smoothing (nats per
    image), top-1 and top-5 accuracy, and the accuracy of each of two heads.

    Args:
        network: Makes the network from the number of classes; on the command line a class and its other arguments.
        optimizer: Makes the optimiser from groups of parameters; its learning rate is the peak of the schedule.
            Parameters of one dimension, biases and those that the network names are not decayed.
        schedule: Factor of the learning rate at each optimiser step.
        reference_batch: Number of images per step for which the learning rate is given; the rate used is multiplied by
            (batch x processes x accumulated batches) / ``reference_batch``. 512 for DeiT and Swin; null uses the rate
            as it is (DeiT III).
        layer_decay: Factor of the learning rate from each layer to the one before it; 1 for none.
        loss: ``cross_entropy`` of a softmax, or ``binary_cross_entropy`` of a sigmoid for each class.
        label_smoothing: Share of a label spread evenly over the classes, in [0, 1). It is for hard labels: targets of
            mixed images hold the smoothing of the datamodule's mixing and are not smoothed again.
        binary_targets: Of the binary loss: ``soft`` targets as they are, or every class ``above_zero`` a full positive
            (DeiT III).
        binary_reduction: Of the binary loss over the classes: ``mean`` (DeiT III) or ``sum`` (timm's ``--bce-sum``).
        distillation: Teacher and loss of distillation; null for none.
        init_from: Checkpoint to start from, of this project or a public one. Other classes get a new head, another
            image size resized position embeddings, another window_size of a Swin resized tables.
        head_rows: File with the rows of a public checkpoint's head to keep, one for each class: ``map22kto1k.txt`` of
            Microsoft's Swin for the 1,000 classes of ImageNet out of ImageNet-22k's; null for none.
        channels_last: Keep images and convolutions in channels-last memory.
        compile: Run the network through ``torch.compile``; names of weights stay as they are.

    Raises:
        ValueError: If a number is impossible, or settings contradict each other.
    """

    prediction_columns = ("path", "class", "probability")

    def __init__(
        self,
        network: Callable[[int], Classifier],
        optimizer: OptimizerFactory = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.05),  # noqa: B008
        schedule: Schedule = Constant(),  # noqa: B008
        reference_batch: int | None = None,
        layer_decay: float = 1.0,
        loss: LossName = "cross_entropy",
        label_smoothing: float = 0.1,
        binary_targets: BinaryTargets = "soft",
        binary_reduction: BinaryReduction = "mean",
        distillation: DistillationConfig | None = None,
        init_from: str | None = None,
        head_rows: str | None = None,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        check_probability("label_smoothing", label_smoothing)
        if reference_batch is not None:
            check_at_least("reference_batch", reference_batch, 1)
        if loss == "binary_cross_entropy" and binary_targets == "above_zero" and label_smoothing > 0:
            raise ValueError(
                f"binary_targets is above_zero, but label_smoothing {label_smoothing} puts every class above zero: "
                "set label_smoothing to 0"
            )
        self.save_hyperparameters()
        self.network_factory, self.optimizer_factory, self.schedule = network, optimizer, schedule
        self.reference_batch, self.layer_decay = reference_batch, layer_decay
        self.loss = partial(
            classification_loss,
            loss=loss,
            label_smoothing=label_smoothing,
            binary_targets=binary_targets,
            binary_reduction=binary_reduction,
        )
        self.distillation, self.init_from, self.head_rows = distillation, init_from, head_rows
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.compiles = compile
        self.network: Classifier | None = None
        self.two_heads = False
        self.teacher: Teacher | None = None
        self.scores = nn.ModuleDict()
        self.images_seen = 0
        self.last_loss: Tensor | None = None
        self._forward_heads: Callable[[Tensor], HeadLogits] | None = None
        self._started = False
        self._totals = StepTotals()

    def prepare_data(self) -> None:
        """Download a teacher's weights in one process of each machine."""
        if self.distillation is not None and self._fitting:
            download_teacher(self.distillation.teacher)

    def configure_model(self) -> None:
        """Build the network for the datamodule's classes, once, and its teacher for training.

        Raises:
            FileNotFoundError: If ``init_from`` or the teacher is missing.
            ValueError: If network, data, ``init_from`` and teacher do not fit each other.
        """
        data = self._datamodule
        if self.network is None:
            self.network = self._build_network(data)
        if self.distillation is not None and self._fitting and self.teacher is None:
            self.distillation.check_heads(self.two_heads, type(self.network).__name__)
            self.teacher = build_teacher(self.distillation.teacher, data.class_names)
            self.teacher.see(data.mean, data.std)

    def _build_network(self, data: Any) -> Classifier:
        if data.num_classes < 2:
            raise ValueError(f"the data has {data.num_classes} class: a classifier needs at least 2")
        network = self.network_factory(data.num_classes)
        if not isinstance(network, Classifier):
            raise ValueError(f"network makes a {type(network).__name__}, which is not a Classifier of this project")
        evaluated = getattr(data, "preprocessing", data).image_size  # may differ from the size of training
        sizes = {"image_size": data.image_size, "eval_image_size": evaluated}
        for key, size in sizes.items():
            if network.image_size not in (None, (size, size)) and (key != "image_size" or self._fitting):
                raise ValueError(
                    f"network.image_size is {network.image_size}, but data.{key} is {size}: this network takes images "
                    "of one size"
                )
        self.two_heads = _two_heads(network, network.image_size or (evaluated, evaluated))
        for name in ("val", "val_raw", "test"):
            self.scores[name] = EvaluationScores(data.num_classes, self.two_heads)
        network.to(memory_format=self.memory_format)
        self._forward_heads = torch.compile(network.forward_heads) if self.compiles else network.forward_heads
        return network

    def _start(self) -> None:
        """Load ``init_from`` once, unless a checkpoint was restored, which Lightning does after configure_model."""
        if self.init_from is not None and not self._started:
            data = self._datamodule
            for notice in start_from(self._built, self.init_from, data.class_names, self.head_rows, data.state_dict()):
                rank_zero_info(notice)
            if self.trainer.world_size > 1:  # DDP made the weights equal before; a new head is drawn in each process
                for weight in self._built.state_dict().values():
                    torch.distributed.broadcast(weight, 0)
        self._started = True

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the optimiser, its rate scaled by the batch, and a scheduler that advances with every step."""
        self._start()
        optimizer = self.optimizer_factory(parameter_groups(self._built, self.layer_decay))
        factor = 1.0 if self.reference_batch is None else self.images_per_step / self.reference_batch
        peak = set_learning_rates(optimizer, factor)
        scheduler = LambdaLR(optimizer, self.schedule.for_peak(peak))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def images_per_step(self) -> int:
        """Images that one optimiser step sees in all processes: the effective batch."""
        trainer = self.trainer
        return self._datamodule.batch_size * trainer.world_size * trainer.accumulate_grad_batches

    def on_fit_start(self) -> None:
        """Put the network in training mode, whatever it was made from, and the teacher beside it."""
        self._built.train()
        self._check_mixing()
        if self.teacher is not None:
            self.teacher.to(self.device, self.memory_format)

    def on_train_start(self) -> None:
        """Compare the schedule's epoch with that of the loop, whose last step may hold fewer batches."""
        steps = getattr(self.schedule, "steps_per_epoch", None)
        if steps is None:
            return
        own = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        if own != steps:
            rank_zero_warn(f"schedule.steps_per_epoch is {steps}, but an epoch of this data has {own} steps")

    def forward(self, images: Tensor) -> HeadLogits:
        """Return the heads' logits of normalised images (batch, 3, height, width)."""
        if self._forward_heads is None:
            raise RuntimeError("the network is built in configure_model, which Lightning calls before the loops")
        weights = next(self._built.parameters())  # of half or double precision if the trainer's precision is "true"
        return self._forward_heads(images.to(weights.dtype, memory_format=self.memory_format))

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        """Return the summed loss of a batch; the division is in :meth:`on_before_optimizer_step`."""
        heads = self(batch.images)
        taught = heads.mean if self.teacher is None else heads.classes
        loss_sum = self.loss(taught, batch.labels, batch.targets)
        if self.teacher is not None and self.distillation is not None:
            student = heads.classes if heads.distillation is None else heads.distillation
            alpha = self.distillation.alpha
            distilled = distillation_loss(student, self.teacher(batch.images), self.distillation)
            loss_sum = (1.0 - alpha) * loss_sum + alpha * distilled
        count = torch.tensor(len(batch.images), device=loss_sum.device)
        self.images_seen += len(batch.images) * self.trainer.world_size
        self._totals.add(loss_sum, count)
        self.last_loss = loss_sum.detach() / count
        return loss_sum

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the number of images in the whole step, before they are clipped."""
        loss = self._totals.scale_gradients(self.parameters(), self.trainer.accumulate_grad_batches)
        # The loggers take what was logged in the last step of each interval, and nothing of the steps before it.
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("train/loss", loss)
            self.log("train/learning_rate", max(group["lr"] for group in optimizer.param_groups))
            self.log("train/images", float(self.images_seen))

    def on_validation_start(self) -> None:
        """Validate what ``init_from`` holds if nothing was trained or restored."""
        self._start()

    on_test_start = on_predict_start = on_validation_start

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Gather scores."""
        self.evaluate(batch, "val")

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Gather scores."""
        self.evaluate(batch, "test")

    def predict_step(self, batch: ImageBatch, batch_idx: int) -> list[tuple[int, str]]:
        """Return ``(index, line)`` pairs; a line is file, class and probability with tabs between.

        The images to predict are those of the datamodule's test split.
        """
        logits = self(batch.images).mean.float()
        binary = self.hparams["loss"] == "binary_cross_entropy"
        probabilities, classes = (logits.sigmoid() if binary else logits.softmax(1)).max(1)
        data, lines = self._datamodule, []
        for index, label, share in zip(batch.indices.tolist(), classes.tolist(), probabilities.tolist(), strict=True):
            lines.append((index, f"{data.path_of('test', index)}\t{data.class_names[label]}\t{share:.4f}"))
        return lines

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation split."""
        self.log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test split."""
        self.log_evaluation("test")

    def evaluate(self, batch: ImageBatch, name: Literal["val", "val_raw", "test"]) -> None:
        """Add a batch to the scores of an evaluation; ``val_raw`` is that of the weights beside their average."""
        self._scores_of(name).update(self(batch.images), batch.labels)

    def log_evaluation(self, name: Literal["val", "val_raw", "test"]) -> None:
        """Log the scores of an evaluation over all processes; every process must call it."""
        scores = self._scores_of(name).compute()
        for key, value in scores.items():
            self.log(f"{name}/{key}", value, prog_bar=key in ("loss", "accuracy"))
        if self.trainer.state.fn != "fit" and self.trainer.is_global_zero:
            words = {"accuracy": "accuracy", "accuracy_top5": "top-5", "accuracy_class": "class head"}
            words["accuracy_distillation"] = "distillation head"
            shares = ", ".join(f"{words[key]} {value:.2%}" for key, value in scores.items() if key in words)
            print(f"{name}/loss {scores['loss']:.4f} nats per image, {shares}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what using the network needs."""
        entry = {
            **describe_network(self._built),
            "settings": {**plain(dict(self.hparams)), "images_per_step": self.images_per_step},
            "images_seen": self.images_seen,
        }
        write_entry(checkpoint, entry)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint whose settings differ where it would silently win over the config, or not fit at all.

        Raises:
            ValueError: With every differing key, the checkpoint's value and the config's.
        """
        saved = checkpoint.get(CHECKPOINT_KEY)
        if not isinstance(saved, dict) or saved.get("task") != "classification":
            raise ValueError("the checkpoint was not written by ClassificationModule")
        own = describe_network(self._built)
        same_kind = saved.get("network") == own["network"]
        own = own if same_kind else {"network": own["network"]}  # of two architectures every setting differs
        lines = difference({key: saved.get(key) for key in own}, own)
        if self._fitting and same_kind:
            keys = [*_IN_OPTIMIZER, *(["images_per_step"] if self.reference_batch is not None else [])]
            settings = {**plain(dict(self.hparams)), "images_per_step": self.images_per_step}
            lines += difference({key: saved["settings"].get(key) for key in keys}, {key: settings[key] for key in keys})
        check_same_settings(lines)
        self.images_seen = int(saved.get("images_seen", 0))
        self._started = True

    def _check_mixing(self) -> None:
        """Refuse smoothed targets where every class above zero counts as a full positive."""
        settings, mixing = self.loss.keywords, getattr(self._datamodule, "mixing", None)
        positive = settings["loss"] == "binary_cross_entropy" and settings["binary_targets"] == "above_zero"
        if positive and mixing is not None and mixing.label_smoothing > 0:
            raise ValueError(
                "binary_targets is above_zero, but the targets of the mixed images are above zero for every class: "
                "set data.mixing.label_smoothing to 0"
            )

    def _scores_of(self, name: str) -> EvaluationScores:
        scores = self.scores[name]
        assert isinstance(scores, EvaluationScores)
        return scores

    @property
    def _fitting(self) -> bool:
        return self.trainer.state.fn == "fit"

    @property
    def _datamodule(self) -> Any:
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None or not hasattr(datamodule, "num_classes"):
            raise ValueError(
                "ClassificationModule needs a datamodule with classes, such as datamodules.ImageNetDataModule"
            )
        return datamodule

    @property
    def _built(self) -> Classifier:
        if self.network is None:
            raise RuntimeError("the network is built in configure_model, which Lightning calls before the loops")
        return self.network


@torch.no_grad()
def _two_heads(network: Classifier, size: tuple[int, int]) -> bool:
    """Whether a network has a distillation head; one black image is asked."""
    network.eval()
    heads = network.forward_heads(torch.zeros(1, 3, *size))
    network.train()
    return heads.distillation is not None
