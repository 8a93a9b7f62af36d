"""Machine translation with the encoder-decoder Transformer."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_models.translation.checkpoint import LoadedTranslator, load_checkpoint
    from lit_models.translation.module import SearchConfig, TranslationModule
    from lit_models.translation.transformer import Transformer, TransformerConfig

__all__ = [
    "LoadedTranslator",
    "SearchConfig",
    "Transformer",
    "TransformerConfig",
    "TranslationModule",
    "load_checkpoint",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: the network and its checkpoints need no Lightning."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("LoadedTranslator", "load_checkpoint"):
        home = "checkpoint"
    else:
        home = "transformer" if name.startswith("Transformer") else "module"
    return getattr(import_module(f"{__name__}.{home}"), name)
