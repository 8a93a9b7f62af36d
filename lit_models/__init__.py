"""Networks and their LightningModules."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_models.translation.module import TranslationModule

__all__ = ["TranslationModule"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name == "TranslationModule":
        from lit_models.translation.module import TranslationModule

        return TranslationModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
