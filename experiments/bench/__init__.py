"""``python -m experiments bench NAME``: speed against other libraries, side by side in one run."""

import importlib
import sys

from experiments.errors import near_miss

# name -> (module whose ``main(argv) -> int`` runs it, one line for --help)
BENCHMARKS = {
    "translation": ("experiments.bench.translation", "training, decoding and Lightning's overhead against Marian"),
    "classification": ("experiments.bench.classification", "training steps of image classifiers against timm"),
    "image_pipeline": ("experiments.bench.image_pipeline", "DeiT's augmentation of JPEGs against timm"),
    "image_mixing": ("experiments.bench.image_mixing", "mixup, cutmix and erasing of batches against timm"),
    "run": ("experiments.bench.run", "the result of a training: its scores, minutes, commit and hardware as a row"),
    "curves": ("experiments.bench.curves", "validation scores of runs over their training, as rows and a picture"),
    "attention": ("experiments.bench.attention", "attention kernels, forward and backward, against other libraries"),
    "window_attention": (
        "experiments.bench.window_attention",
        "Swin's shifted windows against eager, SDPA and compiled",
    ),
    "layer_norm": ("experiments.bench.layer_norm", "layer-norm kernels against other libraries and a copy"),
    "linear_cross_entropy": ("experiments.bench.linear_cross_entropy", "projection and loss: time and peak memory"),
    "detection": ("experiments.bench.detection", "a training step of DETR against Hugging Face and the official code"),
    "detection_data": (
        "experiments.bench.detection_data",
        "DETR's augmentation of JPEGs against the official transform",
    ),
    "matcher": ("experiments.bench.matcher", "DETR's matching and set loss against the official computation"),
    "coco_eval": ("experiments.bench.coco_eval", "COCO evaluation: faster-coco-eval against pycocotools"),
    "data_memory": ("experiments.bench.data_memory", "peak memory of the translation data pipeline"),
}


def main(argv: list[str]) -> int:
    """Run the benchmark that the first word names."""
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print("usage: python -m experiments bench NAME [arguments]\n")
        print("\n".join(f"  {name:<22} {line}" for name, (_, line) in BENCHMARKS.items()))
        return 0
    if name not in BENCHMARKS:
        known = ", ".join(BENCHMARKS)
        print(
            f'error: there is no benchmark "{name}"{near_miss(name, BENCHMARKS)}; there are: {known}', file=sys.stderr
        )
        return 2
    return importlib.import_module(BENCHMARKS[name][0]).main(rest)
