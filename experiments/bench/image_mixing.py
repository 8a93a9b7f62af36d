"""Mixup, CutMix and random erasing of normalised batches on the device, beside timm's, in one run.

Both have DeiT's settings. Each draws its own boxes and shares from the same distributions, new ones for every batch.
"""

import argparse
import random
import statistics
from collections.abc import Callable
from itertools import cycle

import numpy as np
import torch
from torch import Tensor

from datamodules.image import Mixing, RandomErasing
from datamodules.loading import keyed_seed
from experiments.bench.record import record
from experiments.bench.side_by_side import add_options, compare, positive, prepare, print_rows, take_turns
from experiments.command import CommandParser, run

MODES = ("batch", "pair", "element")
# How often CutMix is chosen.
SWITCH = {"mixup": 0.0, "cutmix": 1.0, "mixup, cutmix, erasing": 0.5}
PARTS = ("erasing", *(f"{name}, {mode}" for name in SWITCH for mode in MODES))

Work = Callable[[], None]


def main(argv: list[str]) -> int:
    """Measure, print and record."""
    return run(_main, argv)


def _main(argv: list[str]) -> None:
    options = _parser().parse_args(argv)
    device = prepare(options)
    if options.batch_size % 2:
        raise ValueError(f"--batch-size {options.batch_size} is odd, but images are mixed in pairs")
    rows = []
    for part in options.parts:
        tasks = make_tasks(part, options, device)
        times = take_turns(tasks, options.rounds, repeats=options.batches, device=device)
        rows += [
            {
                "part": part,
                "batch_size": options.batch_size,
                "image_size": options.image_size,
                "provider": provider,
                "milliseconds": round(1e3 * statistics.median(taken.wall), 3),
                **compare(taken, times["heddle"], on_gpu=device.type == "cuda"),
            }
            for provider, taken in times.items()
        ]
    print_rows(rows)
    if options.record:
        print(record("image_mixing", rows, ("torch", "timm")))


def _parser() -> CommandParser:
    parser = CommandParser("python -m experiments bench image_mixing", __doc__ or "")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=f"some of {'; '.join(PARTS)}"
    )
    parser.add_argument("--batch-size", type=positive, default=64, help="images of a batch")
    parser.add_argument("--image-size", type=positive, default=224, help="their height and width")
    parser.add_argument("--batches", type=positive, default=16, help="batches in a round")
    add_options(parser, rounds=9)
    return parser


def make_tasks(part: str, options: argparse.Namespace, device: torch.device) -> dict[str, Work]:
    """Return what each provider does to a batch of its own."""
    generator = torch.Generator().manual_seed(options.seed)
    shape = (options.batch_size, 3, options.image_size, options.image_size)
    images = torch.randn(shape, generator=generator).to(device)
    labels = torch.randint(1000, (options.batch_size,), generator=generator).to(device)
    return {
        "heddle": _ours(part, images, labels, options.seed),
        "timm": _theirs(part, images.clone(), labels, options.seed),
    }


def _ours(part: str, images: Tensor, labels: Tensor, seed: int) -> Work:
    name, _, mode = part.rpartition(", ")
    erasing = RandomErasing() if "erasing" in part else None
    mixing = Mixing(mode=mode, switch_probability=SWITCH[name]) if name else None  # type: ignore[arg-type]
    # A batch brings its seeds along; 500 batches pass before they come again.
    keys = cycle([[keyed_seed(seed, step, index) for index in range(len(images))] for step in range(500)])

    def work() -> None:
        seeds = next(keys)
        if erasing is not None:
            erasing(images, seeds)
        if mixing is not None:
            mixing(images, labels, 1000, seeds, 0)

    return work


def _theirs(part: str, images: Tensor, labels: Tensor, seed: int) -> Work:
    from timm.data import Mixup
    from timm.data.random_erasing import RandomErasing as TimmErasing

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - timm draws from the global generators
    name, _, mode = part.rpartition(", ")
    erasing = TimmErasing(0.25, mode="pixel", device=images.device.type) if "erasing" in part else None
    mode = "elem" if mode == "element" else mode
    mixing = Mixup(0.8, 1.0, switch_prob=SWITCH[name], mode=mode, num_classes=1000) if name else None

    def work() -> None:
        if erasing is not None:
            erasing(images)
        if mixing is not None:
            mixing(images, labels)

    return work
