"""A translator without training, with the checkpoint that a run would have written, for the tests of the commands."""

import itertools
from pathlib import Path

import torch

from datamodules.text.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from lit_models.checkpoints import CHECKPOINT_KEY
from lit_models.translation.checkpoint import describe_network
from lit_models.translation.transformer import Transformer, TransformerConfig

SUBJECTS = [("the cat", "die Katze"), ("the dog", "der Hund"), ("the animal", "das Tier"), ("the child", "das Mädchen")]
VERBS = [("sees", "sieht"), ("hears", "hört"), ("loves", "liebt"), ("greets", "grüßt")]
OBJECTS = [("the street", "die Straße"), ("a tree", "einen Baum"), ("the green door", "die grüne Tür")]
PAIRS = [
    tuple(" ".join(part) + " ." for part in zip(*words, strict=True))
    for words in itertools.product(SUBJECTS, VERBS, OBJECTS)
]
MAX_LENGTH = 20


def train_tiny_tokenizer() -> Tokenizer:
    config = TokenizerConfig(vocab_size=90)
    return train_tokenizer(config, lambda: (en for en, _ in PAIRS), lambda: (de for _, de in PAIRS), "pairs")


def write_checkpoint(path: Path, **changes) -> Path:
    """Write a checkpoint; ``changes`` replace its entries, None removes one."""
    torch.manual_seed(7)
    tokenizer = train_tiny_tokenizer()
    sizes = {"dim": 16, "feed_forward_dim": 32, "num_heads": 2, "encoder_layers": 2, "decoder_layers": 2}
    network = Transformer(TransformerConfig(**sizes, tie_output=False, output_bias=True), tokenizer.source_vocab_size)
    with torch.no_grad():
        network.output_projection.weight *= 2.0
        network.output_bias[:] = -1.0
        network.output_bias[3:] = 0.0
        network.output_bias[3] = 2.0  # an untrained network seldom ends a sentence by itself
    checkpoint = {
        "state_dict": {f"network.{name}": weight for name, weight in network.state_dict().items()},
        CHECKPOINT_KEY: describe_network(network),
        "WMTDataModule": {
            "tokenizer": tokenizer.state_dict(),
            "source_language": "en",
            "target_language": "de",
            "max_length": MAX_LENGTH,
        },
    } | changes
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({key: value for key, value in checkpoint.items() if value is not None}, path)
    return path
