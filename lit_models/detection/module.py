"""The LightningModule of object detection."""

import json
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from datamodules.batches import DetectionBatch
from lit_models.checkpoints import CHECKPOINT_KEY, check_same_settings, difference, plain, write_entry
from lit_models.checks import check_at_least
from lit_models.detection.backbone import ResNetBackbone
from lit_models.detection.checkpoint import classification_of, describe_network, refuse_other_categories, start_from
from lit_models.detection.criterion import Losses, SetCriterion
from lit_models.detection.detr import DETR
from lit_models.detection.evaluation import Backend, CocoScores
from lit_models.detection.network import Detector, Predictions
from lit_models.detection.postprocess import Detections, coco_results, detections
from lit_models.optimization import Constant, Schedule

OptimizerFactory = Callable[[Iterable], Optimizer]
EvaluationName = Literal["val", "val_raw", "test"]
STEPS_FROM_SCRATCH = 100_000
"""Steps that users of DETR report as the least from which training from scratch found anything in photographs."""
# Settings that a checkpoint would silently override: they are in the state of its optimiser.
_IN_OPTIMIZER = ("optimizer", "backbone_learning_rate", "schedule")
_SPLITS: dict[str, str] = {"val": "valid", "val_raw": "valid", "test": "test"}


class DetectionModule(pl.LightningModule):
    """Trains a detector on a set loss, and scores it as COCO does.

    The network is built when the datamodule's classes are known. The loss of a step is that of all its images, however
    they were cut into micro-batches and processes. Validation and testing log COCO's 12 numbers; testing writes the AP
    of each class to ``test_per_class.tsv``. Prediction gives COCO results.

    A warning is given where a DETR starts from scratch on photographs with fewer than 100,000 optimiser steps (images x
    epochs / batch) ahead of it: reports agree that it then finds little. It is not given for the built-in corpus, with
    ``init_from``, for a resumed run, or for the successors of DETR.

    Args:
        network: Makes the network from the number of classes; on the command line a class and its other arguments.
        optimizer: Makes the optimiser from groups of parameters; its learning rate is the peak of the schedule. As in
            the published code everything is decayed, biases and norms too.
        backbone_learning_rate: Peak of the backbone's learning rate; null for the optimiser's, as a backbone without
            pretrained weights needs.
        schedule: Factor of both learning rates at each optimiser step.
        criterion: Makes the loss from the number of classes; null for that of the network's kind, with the published
            weights.
        init_from: Checkpoint of this project to start from; other classes get a new class head.
        channels_last: Keep images and convolutions in channels-last memory, faster on most devices.
        evaluation: Which implementation counts COCO's numbers: ``faster`` or ``pycocotools``.

    Raises:
        ValueError: If a number is impossible.
    """

    predictions_are_json = True

    def __init__(
        self,
        network: Callable[[int], Detector],
        optimizer: OptimizerFactory = partial(torch.optim.AdamW, lr=1e-4, weight_decay=1e-4),  # noqa: B008
        backbone_learning_rate: float | None = 1e-5,
        schedule: Schedule = Constant(),  # noqa: B008
        criterion: Callable[[int], SetCriterion] | None = None,
        init_from: str | None = None,
        channels_last: bool = False,
        evaluation: Backend = "faster",
    ) -> None:
        super().__init__()
        if backbone_learning_rate is not None:
            check_at_least("backbone_learning_rate", backbone_learning_rate, 0.0)
        self.save_hyperparameters()
        self.network_factory, self.optimizer_factory, self.schedule = network, optimizer, schedule
        self.backbone_learning_rate, self.criterion_factory = backbone_learning_rate, criterion
        self.init_from, self.evaluation = init_from, evaluation
        self.channels_last = channels_last
        self.network: Detector | None = None
        self.criterion: SetCriterion | None = None
        self.images_seen = 0
        self.last_loss: Tensor | None = None
        self._parts: list[dict[str, Tensor]] = []
        self._scores: dict[str, CocoScores] = {}
        self._started = False

    def configure_model(self) -> None:
        """Build the network and the loss for the datamodule's classes, once.

        Raises:
            ValueError: If the network is no detector, or the loss is for another kind of network.
        """
        if self.network is not None:
            return
        count = self._datamodule.num_classes
        network = self.network_factory(count)
        if not isinstance(network, Detector):
            raise ValueError(f"network makes a {type(network).__name__}, which is not a Detector of this project")
        kind = classification_of(network)
        make = self.criterion_factory or partial(SetCriterion, classification=kind)
        self.criterion = make(count)
        if self.criterion.classification != kind:
            raise ValueError(
                f"criterion.classification is {self.criterion.classification}, but the outputs of a "
                f"{type(network).__name__} are for {kind}"
            )
        # ResNetBackbone chooses by itself.
        self.network = network.to(memory_format=torch.channels_last) if self.channels_last else network

    def _start(self) -> None:
        """Load ``init_from`` once, unless a checkpoint was restored, which Lightning does after configure_model."""
        if self.init_from is not None and not self._started:
            for notice in start_from(self._built, self.init_from, self._datamodule.class_names):
                rank_zero_info(notice)
            if self.trainer.world_size > 1:  # DDP made the weights equal before; a new head is drawn in each process
                for weight in self._built.state_dict().values():
                    torch.distributed.broadcast(weight, 0)
        self._started = True

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the optimiser with the backbone's own rate, and a scheduler that advances with every step."""
        self._start()
        groups: dict[bool, list[Tensor]] = {False: [], True: []}
        for name, parameter in self._built.named_parameters():
            if parameter.requires_grad:
                own = name.startswith("backbone.") and self.backbone_learning_rate is not None
                groups[own].append(parameter)
        given: list[dict[str, Any]] = [{"params": groups[False]}]
        if groups[True]:
            given.append({"params": groups[True], "lr": self.backbone_learning_rate})
        optimizer = self.optimizer_factory(given)
        scheduler = LambdaLR(optimizer, self.schedule.for_peak(float(optimizer.defaults["lr"])))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Put the network in training mode, whatever it was made from, and look at what will stay as it is."""
        self._built.train()
        _warn_of_frozen_noise(self._built)

    def on_train_start(self) -> None:
        """Look at what is ahead: how many steps, and whether the schedule's epochs are those of the loop."""
        # An epoch's last step may hold fewer batches.
        epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        self._warn_of_few_steps(epoch)
        planned = getattr(self.schedule, "steps_per_epoch", None)
        if planned not in (None, epoch):
            rank_zero_warn(f"schedule.steps_per_epoch is {planned}, but an epoch of this data has {epoch} steps")

    def forward(self, images: Tensor, sizes: Iterable[tuple[int, int]]) -> Predictions:
        """Return the predictions for normalised, padded images (batch, 3, height, width) of these sizes."""
        weights = next(self._built.parameters())  # of half or double precision if the trainer's precision is "true"
        layout = torch.channels_last if self.channels_last else torch.preserve_format
        return self._built(images.to(weights.dtype, memory_format=layout), tuple(sizes))

    def training_step(self, batch: DetectionBatch, batch_idx: int) -> Tensor:
        """Return the batch's share of the step's loss, times what Lightning and DDP will divide it by."""
        losses: Losses = self._loss(self(batch.images, batch.sizes), batch, batch.step_images or None)
        self.images_seen += len(batch.counts) * self.trainer.world_size
        trainer = self.trainer
        # Shares add up; what is shown of a micro-batch is about as large as the step's loss.
        averaged = trainer.accumulate_grad_batches * trainer.world_size
        self.last_loss = losses.total.detach() * averaged
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._parts.append({"loss": losses.total.detach(), **losses.parts})
        return losses.total * averaged

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the losses of the whole step, and of the last layer how good its predictions are."""
        parts, self._parts = self._parts, []
        if not parts:
            return
        sums = torch.stack([torch.stack([part[name].float() for part in parts]).sum() for name in parts[0]])
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(sums)
        counted = len(parts) * self.trainer.world_size
        for name, value in zip(parts[0], sums, strict=True):
            # The losses are shares of the step's, the others are means.
            self.log(f"train/{name}", value if name.startswith("loss") else value / counted)
        self.log("train/learning_rate", max(group["lr"] for group in optimizer.param_groups))
        self.log("train/images", float(self.images_seen))

    def on_validation_start(self) -> None:
        """Validate what ``init_from`` holds if nothing was trained or restored; forget what was cut short."""
        self._start()
        self._scores.clear()

    on_test_start = on_predict_start = on_validation_start

    def validation_step(self, batch: DetectionBatch, batch_idx: int) -> dict[str, list[Detections]]:
        """Gather detections, and hand them to the callbacks."""
        return {"detections": self.evaluate(batch, "val")}

    def test_step(self, batch: DetectionBatch, batch_idx: int) -> dict[str, list[Detections]]:
        """Gather detections, and hand them to the callbacks."""
        return {"detections": self.evaluate(batch, "test")}

    def predict_step(self, batch: DetectionBatch, batch_idx: int) -> list[tuple[int, str]]:
        """Return ``(image id, text)`` pairs; a text is COCO's results of the image in JSON, one to a line.

        The images to predict are those of the datamodule's test split.
        """
        categories = self._datamodule.category_ids
        return [
            (number, ",\n".join(json.dumps(result) for result in coco_results(number, found, categories)))
            for number, found in zip(batch.image_ids, self._detect(batch), strict=True)
        ]

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation split."""
        self.log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test split."""
        self.log_evaluation("test")

    def evaluate(self, batch: DetectionBatch, name: EvaluationName) -> list[Detections]:
        """Add a batch to an evaluation; ``val_raw`` is that of the weights beside their average."""
        found = self._detect(batch)
        self._scores_of(name).update(batch.image_ids, found)
        return found

    def log_evaluation(self, name: EvaluationName) -> None:
        """Log the scores of an evaluation over all processes; every process must call it."""
        result = self._scores_of(name).compute()
        del self._scores[name]
        for key, value in result.summary.items():
            self.log(f"{name}/{key}", value, prog_bar=key in ("AP", "AP50"))
        if self.trainer.state.fn == "fit" or not self.trainer.is_global_zero:
            return
        print(", ".join(f"{name}/{key} {value:.4f}" for key, value in result.summary.items()))
        path = Path(self.trainer.default_root_dir) / f"{name}_per_class.tsv"
        rows = [f"{label}\t{value:.4f}\n" for label, value in result.per_class.items()]
        path.write_text("".join(["class\tAP\n", *rows]), encoding="utf-8")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what using the network needs."""
        data = self._datamodule
        entry = {
            **describe_network(self._built),
            "class_names": list(data.class_names),
            "category_ids": list(data.category_ids),
            "settings": plain(dict(self.hparams)),
            "images_seen": self.images_seen,
        }
        write_entry(checkpoint, entry)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint whose settings differ where it would silently win over the config, or not fit at all.

        Raises:
            ValueError: With every differing key, the checkpoint's value and the config's.
        """
        saved = checkpoint.get(CHECKPOINT_KEY)
        if not isinstance(saved, dict) or saved.get("task") != "detection":
            raise ValueError("the checkpoint was not written by DetectionModule")
        refuse_other_categories(saved, self._datamodule.class_names, self._datamodule.category_ids)
        own = describe_network(self._built)
        same_kind = saved.get("network") == own["network"]
        own = own if same_kind else {"network": own["network"]}  # of two architectures every setting differs
        lines = difference({key: saved.get(key) for key in own}, own)
        if self.trainer.state.fn == "fit" and same_kind:
            theirs, settings = saved["settings"], plain(dict(self.hparams))
            lines += difference(
                {key: theirs.get(key) for key in _IN_OPTIMIZER}, {key: settings[key] for key in _IN_OPTIMIZER}
            )
        check_same_settings(lines)
        self.images_seen = int(saved.get("images_seen", 0))
        self._started = True

    def _loss(self, predictions: Predictions, batch: DetectionBatch, step_images: int | None) -> Losses:
        if self.criterion is None:
            raise RuntimeError("the loss is built in configure_model, which Lightning calls before the loops")
        return self.criterion(predictions, batch, step_images)

    def _detect(self, batch: DetectionBatch) -> list[Detections]:
        """Return what is found in the images of a batch.

        Raises:
            FloatingPointError: If a prediction is NaN or infinite.
        """
        if self.criterion is None:
            raise RuntimeError("the loss is built in configure_model, which Lightning calls before the loops")
        predictions = self(batch.images, batch.sizes)
        logits, boxes = predictions.final
        finite = (logits.isfinite().all(-1) & boxes.isfinite().all(-1)).all(-1)
        if not finite.all():  # the detections go to the host anyway
            bad = [number for number, fine in zip(batch.image_ids, finite.tolist(), strict=True) if not fine]
            listed = ", ".join(map(str, bad))
            raise FloatingPointError(f"the predictions for the image ids {listed} are NaN or infinite")
        return detections(predictions, batch.original_sizes, self.criterion.classification)

    def _scores_of(self, name: str) -> CocoScores:
        if name not in self._scores:
            data = self._datamodule
            self._scores[name] = CocoScores(data.ground_truth(_SPLITS[name]), data.category_ids, self.evaluation)
        return self._scores[name]

    def _warn_of_few_steps(self, epoch: int) -> None:
        """Say so if a DETR starts from scratch with too few steps ahead of it, see the class."""
        trainer, ours = self.trainer, getattr(self._datamodule, "corpus", None) == "synthetic"
        ends = [trainer.max_steps] if trainer.max_steps > 0 else []
        ends += [trainer.max_epochs * epoch] if trainer.max_epochs not in (None, -1) else []
        steps, started = min(ends, default=math.inf), self.init_from is not None or trainer.global_step > 0
        if type(self.network) is not DETR or steps >= STEPS_FROM_SCRATCH or started or ours:
            return
        rank_zero_warn(
            f"a DETR from scratch has {steps:,} optimiser steps ahead of it (images x epochs / batch); with fewer "
            f"than {STEPS_FROM_SCRATCH:,} it finds little in photographs. Start from a checkpoint (init_from), train "
            "longer, or take lit_models.detection.ConditionalDETR, which learns faster"
        )

    @property
    def _datamodule(self) -> Any:
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None or not hasattr(datamodule, "category_ids"):
            raise ValueError("DetectionModule needs a datamodule with objects, such as datamodules.COCODataModule")
        return datamodule

    @property
    def _built(self) -> Detector:
        if self.network is None:
            raise RuntimeError("the network is built in configure_model, which Lightning calls before the loops")
        return self.network


def _warn_of_frozen_noise(network: Detector) -> None:
    """Say so if the first stage of a ResNet is frozen at random weights: its norm is as a new one's."""
    backbone = getattr(network, "backbone", None)
    if not isinstance(backbone, ResNetBackbone) or all(weight.requires_grad for weight in backbone.parameters()):
        return
    norm: Any = backbone.bn1
    if bool((norm.weight == 1).all() & (norm.bias == 0).all()):
        rank_zero_warn(
            "the first stages of the backbone are frozen at random weights: give backbone.weights or init_from, or "
            "train all of it with trainable_from: conv1, frozen_norm: false"
        )
