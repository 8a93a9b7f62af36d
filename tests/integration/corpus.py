"""A small built-in corpus and the settings of a translator that trains on it in seconds."""

from pathlib import Path

from datamodules.synthetic.translation import write_corpus

CONFIGS = Path("experiments/configs/translation")

# What makes any of the shipped configs small; everything else stays as it is shipped.
SMALL = {
    "--model.init_args.network.dim": "16",
    "--model.init_args.network.feed_forward_dim": "32",
    "--model.init_args.network.num_heads": "2",
    "--model.init_args.network.encoder_layers": "1",
    "--model.init_args.network.decoder_layers": "1",
    "--model.init_args.search.max_extra_length": "3",
    "--data.init_args.corpus": "directory",
    "--data.init_args.tokenizer.vocab_size": "400",
    "--data.init_args.batch_tokens": "512",
    "--data.init_args.on_empty": "error",
    "--data.init_args.num_workers": "0",
    "--trainer.accelerator": "cpu",
    "--wandb": "disabled",
}


def small_corpus(directory: Path, train_prefix="train", valid_prefix="valid", test_prefix="test") -> Path:
    """Write 200 + 12 + 12 sentence pairs under the file names that a corpus has."""
    write_corpus(directory, train=200, valid=12, test=12)
    for old, new in (("train", train_prefix), ("valid", valid_prefix), ("test", test_prefix)):
        for language in ("en", "de"):
            (directory / f"{old}.{language}").rename(directory / f"{new}.{language}")
    return directory


def options(values: dict[str, str]) -> list[str]:
    """Return command-line words."""
    return [f"{key}={value}" for key, value in values.items()]
