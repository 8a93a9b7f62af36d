"""What a translator has learnt, for people to read: sentences it translates and a picture of its attention."""

from functools import partial
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from experiments.translator import Translator
from lit_models.translation.search import beam_search


class ShowTranslations(Callback):
    """Translate a few sentences and draw the attention of the first.

    After validation the translations go to W&B as a table. After testing (with the best checkpoint's weights) they are
    printed, and the picture ``attention.png`` is written to the run directory and handed to W&B.

    Args:
        sentences: Source sentences.
    """

    def __init__(self, sentences: list[str]) -> None:
        super().__init__()
        if not sentences:
            raise ValueError("ShowTranslations needs at least one sentence")
        self.sentences = sentences

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand the translations to W&B."""
        loggers = [logger for logger in trainer.loggers if hasattr(logger, "log_table")]
        if loggers and trainer.is_global_zero and not trainer.sanity_checking:
            rows = list(zip(self.sentences, self._translate(trainer, pl_module), strict=True))
            for logger in loggers:
                logger.log_table(
                    "val/translations", columns=["source", "translation"], data=[list(row) for row in rows]
                )

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the translations and draw the attention."""
        if not trainer.is_global_zero:
            return
        translations = self._translate(trainer, pl_module)
        print()
        for sentence, translation in zip(self.sentences, translations, strict=True):
            print(f"  {sentence}\n    → {translation}")
        print()
        path = Path(trainer.default_root_dir) / "attention.png"
        self._draw(_translator(trainer, pl_module), self.sentences[0], translations[0], path)
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image("test/attention", [str(path)])

    def _translate(self, trainer: Trainer, module: LightningModule) -> list[str]:
        translator = _translator(trainer, module)
        search = partial(
            beam_search,
            beam_size=module.search.beam_size,
            length_penalty=module.search.length_penalty,
            length_penalty_kind=module.search.length_penalty_kind,
        )
        sources = [source.ids for source in translator.encode_sources(self.sentences)]
        hypotheses = translator.translate(sources, search)
        return translator.tokenizer.decode_target([best[0].tokens for best in hypotheses])

    @staticmethod
    def _draw(translator: Translator, sentence: str, translation: str, path: Path) -> None:
        """Draw what the translation looked at."""
        from experiments.attention_plot import save_overview

        source = translator.encode_sources([sentence])[0].ids
        [target] = translator.tokenizer.encode_target([translation])
        maps = translator.attention_maps([source], [target])
        save_overview(
            maps,
            translator.tokenizer.source_pieces(source),
            translator.tokenizer.target_pieces([translator.network.config.bos_id, *target]),
            path,
        )


def _translator(trainer: Trainer, module: LightningModule) -> Translator:
    """Return the module's network and the datamodule's tokenizer as one."""
    data = trainer.datamodule
    return Translator(
        module.network, data.tokenizer, module.device, data.max_length, (data.source_language, data.target_language)
    )
