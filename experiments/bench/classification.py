"""A training step, its backward or a forward pass of image classifiers beside timm's, from equal weights in one run.

A step is the forward, the loss of soft targets, the backward and a fused AdamW step, with stochastic depth as DeiT is
trained; weights are float32, and bfloat16 is autocast. timm's network is made first, ours is loaded from its state
dict, and the logits of both must agree before anything is timed. On a GPU the time is that of its events, and the peak
memory of a step is given: beside weights and optimiser, and for a backward alone beside what its forward kept.
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
from torch.nn import functional

from experiments.bench.kernel_case import keep_buffers
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
from lit_models.classification.loss import classification_loss
from lit_models.classification.network import Classifier
from lit_models.classification.registry import build
from lit_models.pretrained import load_pretrained

PROVIDERS = ("heddle", "timm", "heddle-compile", "timm-compile")
# Largest difference of the logits, as a share of their standard deviation: rounding in either dtype.
AGREEMENT = {"float32": 1e-3, "bfloat16": 0.2}


@dataclass(frozen=True)
class Peer:
    """timm's network, and what training sets in both.

    Attributes:
        model: timm's name.
        settings: Arguments of timm's constructor beside stochastic depth, for another size than the name's.
        drop_path: Stochastic depth.
        image_size: Height and width of the images, for a network that takes any.
    """

    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    drop_path: float = 0.1
    image_size: int = 224


NETWORKS = {
    "deit_tiny": Peer("deit_tiny_patch16_224"),
    "deit_small": Peer("deit_small_patch16_224"),
    "deit_base": Peer("deit_base_patch16_224"),
    "deit_small_distilled": Peer("deit_small_distilled_patch16_224"),
    "deit3_small": Peer("deit3_small_patch16_224", drop_path=0.05),
    "cait_xxs24": Peer("cait_xxs24_224", drop_path=0.05),
    "cait_s24": Peer("cait_s24_224"),
    "swin_tiny": Peer("swin_tiny_patch4_window7_224", drop_path=0.2),
    "swinv2_tiny": Peer("swinv2_tiny_window8_256", drop_path=0.2, image_size=256),
}


def main(argv: list[str]) -> int:
    """Measure, print and record."""
    return run(_main, argv)


def _main(argv: list[str]) -> None:
    options = _parser().parse_args(argv)
    device = prepare(options)
    providers = options.providers or (PROVIDERS if device.type == "cuda" else PROVIDERS[:2])
    if "heddle" not in providers:
        raise ValueError(f"--providers {' '.join(providers)} must have heddle among them: the ratios are to its time")
    rows = []
    for name in options.networks:
        for dtype in options.dtype:
            torch.manual_seed(options.seed)
            rows += _compare(name, dtype, options, providers, device)
            print_rows(rows[-len(providers) :])
    if options.record:
        print(record("classification", rows, ("torch", "timm")))


def _parser() -> CommandParser:
    parser = CommandParser("python -m experiments bench classification", __doc__ or "")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["deit_tiny", "deit_small"], metavar="NAME")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES), metavar="DTYPE")
    parser.add_argument("--batch-size", type=positive, default=16, help="images of a step")
    parser.add_argument(
        "--providers", nargs="+", choices=PROVIDERS, metavar="NAME", help="default all on a GPU, not compiled on a CPU"
    )
    parser.add_argument("--steps", type=positive, default=1, help="steps in a round")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--train", dest="part", action="store_const", const="train", default="train", help="the default")
    what.add_argument("--backward", dest="part", action="store_const", const="backward", help="a step's backward alone")
    what.add_argument("--eval", dest="part", action="store_const", const="eval", help="the forward pass alone")
    add_options(parser, rounds=9)
    return parser


def _compare(
    name: str, dtype: str, options: argparse.Namespace, providers: tuple[str, ...], device: torch.device
) -> list[dict[str, Any]]:
    """Check that both networks agree, time them, and return a row for each provider."""
    peer = NETWORKS[name]
    theirs, ours = make_pair(peer)
    networks = {"timm": theirs.to(device), "heddle": ours.to(device)}
    height, width = ours.image_size or (peer.image_size, peer.image_size)
    images = torch.randn(options.batch_size, 3, height, width, device=device)
    difference = logits_difference(theirs, ours, images, DTYPES[dtype])
    if not difference <= AGREEMENT[dtype]:
        raise RuntimeError(f"{name} in {dtype}: the logits differ by {difference:.2g} of their standard deviation")
    targets = torch.rand(options.batch_size, ours.num_classes, device=device).softmax(1)
    steps = {
        provider: make_step(networks, provider, options.part, DTYPES[dtype], images, targets) for provider in providers
    }
    times = take_turns(steps, options.rounds, repeats=options.steps, device=device)
    peaks = {provider: step_peak(step, device) for provider, step in steps.items()}
    return [
        {
            "network": name,
            "part": options.part,
            "dtype": dtype,
            "batch_size": options.batch_size,
            "provider": provider,
            "milliseconds": round(1e3 * statistics.median(taken.wall), 2),
            "images_per_second": round(options.batch_size / statistics.median(taken.wall), 1),
            **_beside(provider, times, device),
            "step_peak_mb": peaks[provider],
            "logits_difference": f"{difference:.1e}",
        }
        for provider, taken in times.items()
    ]


def _beside(provider: str, times: dict[str, Times], device: torch.device) -> dict[str, Any]:
    """Compare a provider with ours: a compiled one with ours compiled, where that is measured."""
    beside = "heddle-compile" if provider == "timm-compile" and "heddle-compile" in times else "heddle"
    return {"beside": beside, **compare(times[provider], times[beside], on_gpu=device.type == "cuda")}


def make_pair(peer: Peer) -> tuple[nn.Module, Classifier]:
    """Return timm's network and ours with the same weights, both with stochastic depth."""
    import timm

    theirs: nn.Module = timm.create_model(peer.model, drop_path_rate=peer.drop_path, **peer.settings)
    for parameter in theirs.parameters():  # zero biases and tiny LayerScales would hide a mistake in the check
        parameter.data += 0.02 * torch.randn_like(parameter)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "timm.pth"
        torch.save(theirs.state_dict(), path)
        loaded = load_pretrained(path).network
    settings = {**loaded.settings, "drop_path": peer.drop_path}
    ours = build(type(loaded).__name__, loaded.num_classes, settings)
    ours.load_state_dict(loaded.state_dict())
    return theirs, ours


@torch.inference_mode()
def logits_difference(theirs: nn.Module, ours: nn.Module, images: Tensor, dtype: torch.dtype) -> float:
    """Return the largest difference of two networks' logits in evaluation, as a share of their standard deviation."""
    logits = []
    for network in (theirs, ours):
        with autocast(images.device, dtype):
            logits.append(network.eval()(images[:2]).float())
    return float((logits[0] - logits[1]).abs().max() / logits[0].std())


def make_step(
    networks: dict[str, nn.Module], provider: str, part: str, dtype: torch.dtype, images: Tensor, targets: Tensor
) -> Callable[[], None]:
    """Return a training step ("train"), its backward ("backward") or a forward pass ("eval") of one provider."""
    source, _, is_compiled = provider.partition("-")
    network = networks[source].train(part != "eval")
    if is_compiled and part == "backward":
        keep_buffers()
    forward = torch.compile(network) if is_compiled else network

    @torch.inference_mode()
    def evaluate() -> None:
        with autocast(images.device, dtype):
            forward(images)

    if part == "eval":
        return evaluate
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, weight_decay=0.05, fused=True)
    labels = targets.argmax(1)

    def loss() -> Tensor:
        with autocast(images.device, dtype):
            logits = forward(images)
            if source == "heddle":
                return classification_loss(logits, labels, targets) / len(images)
            return torch.sum(-targets * functional.log_softmax(logits, dim=-1), dim=-1).mean()

    def train() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    if part == "train":
        return train
    kept = loss()

    def backward() -> None:
        kept.backward(retain_graph=True)
        optimizer.zero_grad()

    return backward
