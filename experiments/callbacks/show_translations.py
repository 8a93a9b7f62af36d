"""What a translator has learnt, for people to read: sentences it translates and a picture of its attention."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.nn.utils.rnn import pad_sequence

from experiments.translator import Translator
from lit_models.translation import TranslationModule


class ShowTranslations(Callback):
    """Translate a few sentences and draw the attention of the first.

    After validation the translations go to W&B as a table. After testing (with the best checkpoint's weights) they are
    printed, and the picture ``attention.png`` is written to the run directory and handed to W&B.

    Args:
        sentences: Source sentences.

    Raises:
        ValueError: If there is no sentence, or the module does not translate.
    """

    def __init__(self, sentences: list[str]) -> None:
        super().__init__()
        if not sentences:
            raise ValueError("ShowTranslations needs at least one sentence")
        self.sentences = sentences

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand the translations to W&B, while the weights that are validated are still in place."""
        loggers: list[Any] = [logger for logger in trainer.loggers if hasattr(logger, "log_table")]
        if loggers and trainer.is_global_zero and not trainer.sanity_checking:
            _, targets = self._translate(_translator(trainer, pl_module), pl_module)
            texts = self._texts(trainer, targets)
            rows = [list(row) for row in zip(self.sentences, texts, strict=True)]
            for logger in loggers:
                logger.log_table("val/translations", columns=["source", "translation"], data=rows)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the translations and draw the attention of the first."""
        if not trainer.is_global_zero:
            return
        translator = _translator(trainer, pl_module)
        sources, targets = self._translate(translator, pl_module)
        print()
        for sentence, translation in zip(self.sentences, self._texts(trainer, targets), strict=True):
            print(f"  {sentence}\n  → {translation}")
        print()
        path = Path(trainer.default_root_dir) / "attention.png"
        _draw(translator, sources[0], targets[0], path)
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image("test/attention", [str(path)])

    def _translate(self, translator: Translator, module: Any) -> tuple[list[list[int]], list[list[int]]]:
        """Return the sentences' source tokens (with EOS) and those of their best translations (without)."""
        sources = [source.ids for source in translator.encode_sources(self.sentences)]
        rows = [torch.tensor(ids, device=module.device) for ids in sources]
        padded = pad_sequence(rows, batch_first=True, padding_value=translator.network.config.pad_id)
        lengths = torch.tensor([len(ids) for ids in sources], dtype=torch.int32, device=module.device)
        hypotheses = module.translate(padded, lengths, module.search.beam_size)
        return sources, [best[0].tokens for best in hypotheses]

    @staticmethod
    def _texts(trainer: Any, targets: list[list[int]]) -> list[str]:
        return trainer.datamodule.tokenizer.decode_target(targets)


def _translator(trainer: Any, module: LightningModule) -> Translator:
    """Return the module's network and the datamodule's tokenizer as one."""
    if not isinstance(module, TranslationModule) or module.network is None:
        raise ValueError("ShowTranslations goes with lit_models.TranslationModule")
    return Translator(module.network, trainer.datamodule.tokenizer, module.device, trainer.datamodule.max_length)


def _draw(translator: Translator, source: list[int], target: list[int], path: Path) -> None:
    from experiments.attention_plot import save_overview

    save_overview(
        translator.attention_maps([source], [target]),
        translator.tokenizer.source_pieces(source),
        translator.tokenizer.target_pieces([*target, translator.network.config.eos_id]),
        path,
    )
