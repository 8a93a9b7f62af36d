"""A training step of DETR beside Hugging Face's and the official structure, from equal weights in one run.

A step is the forward over a padded batch with dropout, the losses of all layers of the decoder with their matching, the
backward, clipping and a fused AdamW step; weights are float32, and bfloat16 is autocast. The first stage of the
backbone and its norms are frozen, as published: Hugging Face's code means to and does not, so it is done for it here.
Its auxiliary losses are on in the step, and off while the outputs of all are compared, before anything is timed; with
them it computes something else. The official structure is told to use torch's fused attention, its losses are those of
``bench matcher``. Convolutions get the same memory layout everywhere. On a GPU the time is that of its events, and the
peak memory of a step beside weights and optimiser is given.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.batches import DetectionBatch
from experiments.bench.detection_official import OfficialDETR
from experiments.bench.matcher import official_loss, random_boxes, targets_of
from experiments.bench.record import record
from experiments.bench.side_by_side import (
    DTYPES,
    Times,
    add_options,
    autocast,
    compare,
    positive,
    prepare,
    print_rows,
    step_peak,
    take_turns,
)
from experiments.command import CommandParser, run
from lit_models.detection.criterion import SetCriterion
from lit_models.detection.detr import DETR
from lit_models.pretrained import detector_to_huggingface, load_pretrained_detector

PROVIDERS = ("heddle", "transformers", "official")
# Largest difference of logits and boxes, as a share of their standard deviation: rounding in either dtype.
AGREEMENT = {"float32": 1e-3, "bfloat16": 0.2}
# (height, width) of the images as shares of the shorter side; batches repeat them.
SHAPES = ((1.0, 4 / 3), (0.84, 1.12), (1.0, 1.5), (0.72, 1.08))


@dataclass(frozen=True)
class Structure:
    """What of a DETR is not as published, for the tests' sake.

    Attributes:
        dilation: DC5.
        settings: Other arguments of ``OfficialDETR``.
    """

    dilation: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


NETWORKS = {"detr_r50": Structure(), "detr_r50_dc5": Structure(dilation=True)}


def main(argv: list[str]) -> int:
    """Measure, print and record."""
    return run(_main, argv)


def _main(argv: list[str]) -> None:
    options = _parser().parse_args(argv)
    device = prepare(options)
    providers = options.providers
    if "heddle" not in providers:
        raise ValueError(f"--providers {' '.join(providers)} must have heddle among them: the ratios are to its time")
    rows = []
    for name in options.networks:
        for dtype in options.dtype:
            torch.manual_seed(options.seed)
            rows += _compare(name, dtype, options, device)
            print_rows(rows[-len(providers) :])
    if options.record:
        print(record("detection", rows, ("torch", "transformers", "timm")))


def _parser() -> CommandParser:
    parser = CommandParser("python -m experiments bench detection", __doc__ or "")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["detr_r50"], metavar="NAME")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32"], metavar="DTYPE")
    parser.add_argument("--batch-size", type=positive, default=2, help="images of a step")
    parser.add_argument("--image-size", type=positive, default=800, help="pixels of the largest shorter side")
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=PROVIDERS, metavar="NAME")
    parser.add_argument("--channels-last", action="store_true", help="memory layout of the convolutions, everywhere")
    parser.add_argument("--steps", type=positive, default=1, help="steps in a round")
    add_options(parser, rounds=9)
    return parser


def _compare(name: str, dtype: str, options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Check that all networks agree, time them, and return a row for each provider."""
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    networks = {
        provider: network.to(device=device, memory_format=layout)  # type: ignore[call-overload]
        for provider, network in make_networks(NETWORKS[name], options.providers).items()
    }
    batch = make_batch(options.batch_size, options.image_size, options.seed, device)
    batch = batch._replace(images=batch.images.contiguous(memory_format=layout))
    calls = {provider: Caller(provider, network, batch) for provider, network in networks.items()}
    difference = outputs_difference(calls, DTYPES[dtype])
    if not difference <= AGREEMENT[dtype]:
        raise RuntimeError(f"{name} in {dtype}: the outputs differ by {difference:.2g} of their standard deviation")
    steps = {provider: make_step(call, DTYPES[dtype]) for provider, call in calls.items()}
    times = take_turns(steps, options.rounds, repeats=options.steps, device=device)
    peaks = {provider: step_peak(step, device) for provider, step in steps.items()}
    valid = sum(height * width for height, width in batch.sizes) / batch.images[:, 0].numel()
    return [
        {
            "network": name,
            "dtype": dtype,
            "batch_size": options.batch_size,
            "canvas": f"{batch.images.shape[2]}x{batch.images.shape[3]}",
            "useful_pixels": round(valid, 3),
            "channels_last": options.channels_last,
            "provider": provider,
            "milliseconds": round(1e3 * statistics.median(taken.wall), 2),
            **_beside(taken, times["heddle"], peaks[provider], peaks["heddle"], device),
            "outputs_difference": f"{difference:.1e}",
        }
        for provider, taken in times.items()
    ]


def _beside(
    taken: Times, ours: Times, peak: int | str, our_peak: int | str, device: torch.device
) -> dict[str, str | float]:
    share = round(our_peak / peak, 3) if isinstance(peak, int) and isinstance(our_peak, int) else ""
    return {
        **compare(taken, ours, on_gpu=device.type == "cuda"),
        "step_peak_mb": peak,
        "heddle_takes_of_it": share,
    }


def make_networks(structure: Structure, providers: tuple[str, ...]) -> dict[str, nn.Module]:
    """Return each provider's network with the same random weights, which came through the public layouts."""
    official = OfficialDETR(dilation=structure.dilation, **structure.settings)
    for module in official.modules():  # zero biases and unit gains would hide a mistake in the check
        if isinstance(module, nn.LayerNorm | nn.MultiheadAttention):
            for parameter in module.parameters():
                if parameter.dim() == 1:
                    parameter.data += 0.1 * torch.randn_like(parameter)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "official.pth"
        torch.save({"model": official.state_dict()}, path)
        heads = structure.settings.get("num_heads")
        loaded = load_pretrained_detector(path, dilation=structure.dilation, num_heads=heads)
    ours = DETR(loaded.network.num_classes, **{**loaded.network.settings, "dropout": official.dropout})
    ours.load_state_dict(loaded.network.state_dict())
    networks = {"heddle": ours, "official": official}
    if "transformers" in providers:
        networks["transformers"] = _hugging_face(ours)
    return {provider: networks[provider] for provider in providers}


def _hugging_face(ours: DETR) -> nn.Module:
    from transformers import DetrConfig, DetrForObjectDetection

    state, config = detector_to_huggingface(ours, layout="memory")
    # The paper's: dropout of activations inside the feed-forward networks and of attention weights as on the branches.
    theirs = DetrForObjectDetection(DetrConfig(**{key: config[key] for key in config if key != "architectures"}))
    theirs.load_state_dict(state)
    for name, parameter in theirs.model.backbone.named_parameters():
        parameter.requires_grad_(any(stage in name for stage in ("layer2", "layer3", "layer4")))
    return theirs


def make_batch(images: int, size: int, seed: int, device: torch.device) -> DetectionBatch:
    """Return noise in a padded batch, 7 objects to an image as in COCO."""
    sizes = tuple(
        (round(SHAPES[number % len(SHAPES)][0] * size), round(SHAPES[number % len(SHAPES)][1] * size))
        for number in range(images)
    )
    generator = torch.Generator().manual_seed(seed)
    canvas = torch.zeros(images, 3, max(height for height, _ in sizes), max(width for _, width in sizes))
    for image, (height, width) in zip(canvas, sizes, strict=True):
        image[:, :height, :width] = torch.randn(3, height, width, generator=generator)
    boxes = random_boxes((images, 7), generator).to(device)
    labels = torch.randint(91, (images, 7), generator=generator).to(device)
    counts, numbers = (7,) * images, tuple(range(images))
    return DetectionBatch(canvas.to(device), sizes, boxes, labels, counts, numbers, sizes, 7 * images)


class Caller:
    """Calls one provider's network and its losses with a batch, which is laid out for it once.

    Args:
        provider: One of ``PROVIDERS``.
        network: Its network.
        batch: The batch, on the network's device.
    """

    def __init__(self, provider: str, network: nn.Module, batch: DetectionBatch) -> None:
        self.provider, self.network, self.batch = provider, network, batch
        self.targets = targets_of(batch)
        self.padding = torch.ones_like(batch.images[:, 0], dtype=torch.bool)
        for masked, (height, width) in zip(self.padding, batch.sizes, strict=True):
            masked[:height, :width] = False
        self.valid = (~self.padding).long()
        self.criterion = SetCriterion(network.num_classes) if isinstance(network, DETR) else None
        self.labels = [{"class_labels": target["labels"], "boxes": target["boxes"]} for target in self.targets]

    def outputs(self) -> tuple[Tensor, Tensor]:
        """Return the last layer's logits and boxes."""
        if self.provider == "heddle":
            return self.network(self.batch.images, self.batch.sizes).final
        if self.provider == "official":
            return self.network(self.batch.images, self.padding).final
        self.network.config.auxiliary_loss = False  # type: ignore[union-attr]
        outputs = self.network(self.batch.images, pixel_mask=self.valid)
        return outputs.logits, outputs.pred_boxes

    def loss(self, dtype: torch.dtype) -> Tensor:
        """Return the sum of the losses of all layers, of a forward in a dtype."""
        images = self.batch.images
        if self.provider == "transformers":
            self.network.config.auxiliary_loss = True  # type: ignore[union-attr]
            with autocast(images.device, dtype):
                return self.network(images, pixel_mask=self.valid, labels=self.labels).loss
        with autocast(images.device, dtype):
            inside = self.batch.sizes if self.provider == "heddle" else self.padding
            predictions = self.network(images, inside)
        if self.criterion is not None:
            return self.criterion(predictions, self.batch).total
        predictions = type(predictions)(*(values.float() for values in predictions))
        return official_loss(predictions, self.targets, predictions.logits.shape[-1] - 1)


@torch.no_grad()
def outputs_difference(calls: dict[str, Caller], dtype: torch.dtype) -> float:
    """Return the largest difference of outputs from ours in evaluation, as a share of their standard deviation."""
    found = {}
    for provider, call in calls.items():
        call.network.eval()
        with autocast(call.batch.images.device, dtype):
            found[provider] = [values.float() for values in call.outputs()]
    ours = found["heddle"]
    return max(
        float((theirs - own).abs().max() / own.std())
        for outputs in found.values()
        for theirs, own in zip(outputs, ours, strict=True)
    )


def make_step(call: Caller, dtype: torch.dtype) -> Callable[[], None]:
    """Return a training step of one provider."""
    call.network.train()
    trained = [parameter for parameter in call.network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, weight_decay=1e-4, fused=True)

    def step() -> None:
        call.loss(dtype).backward()
        nn.utils.clip_grad_norm_(trained, 0.1)
        optimizer.step()
        optimizer.zero_grad()

    return step
