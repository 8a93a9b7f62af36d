"""The LightningModule of machine translation."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from datamodules.batches import BOS_ID, EOS_ID, PAD_ID, TranslationBatch
from lit_models.checkpoints import CHECKPOINT_KEY, check_same_settings, difference, plain, write_entry
from lit_models.checks import check_at_least, check_probability
from lit_models.optimization import InverseSquareRoot, Schedule, StepTotals
from lit_models.translation.checkpoint import describe_network
from lit_models.translation.loss import count_correct, hidden_loss, translation_loss
from lit_models.translation.metrics import CorpusScores, corpus_scores
from lit_models.translation.search import Hypothesis, beam_search
from lit_models.translation.transformer import Transformer, TransformerConfig

OptimizerFactory = Callable[[Iterable], Optimizer]


@dataclass(frozen=True)
class SearchConfig:
    """How translations are searched in validation, testing and prediction.

    Attributes:
        beam_size: Hypotheses kept per sentence in testing and prediction; 1 is greedy search.
        validation_beam_size: The same during validation, where speed matters more.
        length_penalty: Exponent α of the length normalisation.
        length_penalty_kind: ``"gnmt"`` divides by ((5 + length) / 6)^α, ``"power"`` by length^α (fairseq, Marian).
        max_extra_length: A translation may be this many tokens longer than its source.
    """

    beam_size: int = 4
    validation_beam_size: int = 1
    length_penalty: float = 0.6
    length_penalty_kind: Literal["gnmt", "power", "none"] = "gnmt"
    max_extra_length: int = 50

    def __post_init__(self) -> None:
        for name in ("beam_size", "validation_beam_size", "max_extra_length"):
            check_at_least(name, getattr(self, name), 1)


@dataclass
class _Evaluation:
    """What an evaluation loop gathers on one rank."""

    sums: list[Tensor] = field(default_factory=list)
    lines: dict[int, tuple[str, str]] = field(default_factory=dict)


class TranslationModule(pl.LightningModule):
    """Trains a Transformer on token batches and scores its translations.

    The network is built when the datamodule's vocabulary is known. Training minimises the label-smoothed cross-entropy
    per target token, where "per token" means over all micro-batches and ranks of a step. Validation and testing log the
    cross-entropy without smoothing (nats per token), perplexity, token accuracy, BLEU and chrF.

    Args:
        network: Sizes and variants of the Transformer.
        optimizer: Makes the optimiser from the parameters; its learning rate is the peak of the schedule.
        schedule: Factor of the learning rate at each optimiser step.
        label_smoothing: Share of the label spread evenly over the vocabulary, in [0, 1).
        search: How translations are searched.
    """

    def __init__(
        self,
        network: TransformerConfig = TransformerConfig(),  # noqa: B008 (frozen)
        optimizer: OptimizerFactory = partial(torch.optim.Adam, lr=7e-4, betas=(0.9, 0.98), eps=1e-9),  # noqa: B008
        schedule: Schedule = InverseSquareRoot(4000),  # noqa: B008
        label_smoothing: float = 0.1,
        search: SearchConfig = SearchConfig(),  # noqa: B008
    ) -> None:
        super().__init__()
        check_probability("label_smoothing", label_smoothing)
        self.save_hyperparameters()
        self.network_config = network
        self.optimizer_factory = optimizer
        self.schedule = schedule
        self.label_smoothing = label_smoothing
        self.search = search
        self.network: Transformer | None = None
        self.tokens_seen = 0
        self.last_loss: Tensor | None = None
        self._totals = StepTotals()
        self._evaluation = _Evaluation()

    def configure_model(self) -> None:
        """Build the network for the datamodule's vocabulary, once."""
        if self.network is not None:
            return
        tokenizer, config = self.tokenizer, self.network_config
        for name, data_id in (("pad_id", PAD_ID), ("bos_id", BOS_ID), ("eos_id", EOS_ID)):
            if getattr(config, name) != data_id:
                raise ValueError(f"network.{name} is {getattr(config, name)}; in the data's vocabulary it is {data_id}")
        longest = self._datamodule.max_length
        if config.positions == "learned" and longest > config.max_positions:
            raise ValueError(
                f"network.max_positions {config.max_positions} is less than the data's max_length {longest}: learned "
                "positions know no longer sentence"
            )
        target_vocab_size = None if tokenizer.shared else tokenizer.target_vocab_size
        self.network = Transformer(self.network_config, tokenizer.source_vocab_size, target_vocab_size)

    @property
    def tokenizer(self) -> Any:
        """The datamodule's tokenizer."""
        return self._datamodule.tokenizer

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the optimiser, and a scheduler that advances with every optimiser step."""
        optimizer = self.optimizer_factory(self.parameters())
        scheduler = LambdaLR(optimizer, self.schedule.for_peak(optimizer.defaults["lr"]))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Count this process's target tokens while the batch is in host memory, where counting costs no wait."""
        if self.trainer.training:
            self.tokens_seen += int(batch.target_lengths.sum())
        return batch

    def training_step(self, batch: TranslationBatch, batch_idx: int) -> Tensor:
        """Return the summed loss of a batch; the division is in :meth:`on_before_optimizer_step`."""
        loss_sum, count = translation_loss(self._built, batch, self.label_smoothing)
        self._totals.add(loss_sum, count)
        self.last_loss = loss_sum.detach() / count
        return loss_sum

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the number of target tokens in the whole step, before they are clipped."""
        loss = self._totals.scale_gradients(self.parameters(), self.trainer.accumulate_grad_batches)
        # The loggers take what was logged in the last step of each interval, and nothing of the steps before it.
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("train/loss", loss)
            self.log("train/learning_rate", optimizer.param_groups[0]["lr"])
            self.log("train/tokens", float(self.tokens_seen))

    def validation_step(self, batch: TranslationBatch, batch_idx: int) -> None:
        """Gather losses and translations."""
        self._evaluate(batch, self.search.validation_beam_size)

    def test_step(self, batch: TranslationBatch, batch_idx: int) -> None:
        """Gather losses and translations."""
        self._evaluate(batch, self.search.beam_size)

    def predict_step(self, batch: TranslationBatch, batch_idx: int) -> list[tuple[int, str]]:
        """Return ``(line number, translation)`` pairs."""
        hypotheses = self.translate(batch.source, batch.source_lengths, self.search.beam_size)
        return list(zip(batch.indices.tolist(), self._texts(hypotheses), strict=True))

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation split."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test split."""
        self._log_evaluation("test")

    def translate(self, source: Tensor, source_lengths: Tensor, beam_size: int) -> list[list[Hypothesis]]:
        """Search the translations of (batch, source_length) token rows, best first."""
        return self._search(self._built.encode(source, source_lengths), source_lengths, beam_size)

    def _search(self, memory: Tensor, source_lengths: Tensor, beam_size: int) -> list[list[Hypothesis]]:
        limits = source_lengths.long() + self.search.max_extra_length
        if self.network_config.positions == "learned":
            limits = limits.clamp(max=self.network_config.max_positions)
        return beam_search(
            self._built,
            memory,
            source_lengths,
            beam_size=beam_size,
            max_length=limits,
            length_penalty=self.search.length_penalty,
            length_penalty_kind=self.search.length_penalty_kind,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what using the network needs."""
        entry = {
            **describe_network(self._built),
            "settings": plain(dict(self.hparams)),
            "tokens_seen": self.tokens_seen,
        }
        write_entry(checkpoint, entry)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint whose settings differ where it would silently win over the config, or not fit at all.

        Raises:
            ValueError: With every differing key, the checkpoint's value and the config's.
        """
        saved = checkpoint.get(CHECKPOINT_KEY)
        if not isinstance(saved, dict) or saved.get("task") != "translation":
            raise ValueError("the checkpoint was not written by TranslationModule")
        own = describe_network(self._built)
        lines = difference({key: saved[key] for key in own}, own)
        if self.trainer.training or self.trainer.state.fn == "fit":
            overridden = ("optimizer", "schedule")
            settings = plain(dict(self.hparams))
            lines += difference(
                {key: saved["settings"].get(key) for key in overridden}, {key: settings.get(key) for key in overridden}
            )
        check_same_settings(lines)
        self.tokens_seen = int(saved.get("tokens_seen", 0))

    @property
    def _datamodule(self) -> Any:
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None or not hasattr(datamodule, "tokenizer"):
            raise ValueError("TranslationModule needs a datamodule with a tokenizer, such as datamodules.WMTDataModule")
        return datamodule

    @property
    def _built(self) -> Transformer:
        if self.network is None:
            raise RuntimeError("the network is built in configure_model, which Lightning calls before the loops")
        return self.network

    def _evaluate(self, batch: TranslationBatch, beam_size: int) -> None:
        network = self._built
        memory = network.encode(batch.source, batch.source_lengths)
        hidden = network.decode(batch.target_input, memory, batch.source_lengths)
        loss_sum, count = hidden_loss(network, hidden, batch.target_output, 0.0)
        correct = count_correct(network, hidden, batch.target_output)
        self._evaluation.sums.append(torch.stack((loss_sum.double(), count.double(), correct.double())))
        texts = self._texts(self._search(memory, batch.source_lengths, beam_size))
        for index, text, reference in zip(batch.indices.tolist(), texts, batch.references, strict=True):
            self._evaluation.lines[index] = (text, reference)

    def _texts(self, hypotheses: list[list[Hypothesis]]) -> list[str]:
        return self.tokenizer.decode_target([best[0].tokens for best in hypotheses])

    def _log_evaluation(self, prefix: str) -> None:
        """Reduce over ranks and log. Line numbers make duplicates from padded samplers count once."""
        sums = torch.stack(self._evaluation.sums).sum(0)
        lines = dict(self._evaluation.lines)
        self._evaluation = _Evaluation()
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(sums)
            gathered: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(gathered, lines)
            lines = {index: pair for part in gathered for index, pair in part.items()}
        loss, accuracy = sums[0] / sums[1], float(sums[2] / sums[1])
        ordered = [lines[index] for index in sorted(lines)]
        language = self._datamodule.languages[1] if prefix == "test" else None
        scores = corpus_scores([text for text, _ in ordered], [reference for _, reference in ordered], language)
        self.log(f"{prefix}/loss", loss.float(), prog_bar=True)
        self.log(f"{prefix}/perplexity", loss.exp().float())
        self.log(f"{prefix}/token_accuracy", accuracy)
        for name, value in scores.values.items():
            self.log(f"{prefix}/{name}", value, prog_bar=name == "bleu")
        if self.trainer.state.fn != "fit" and self.trainer.is_global_zero:
            self._report(prefix, float(loss), accuracy, scores, [text for text, _ in ordered])

    def _report(self, prefix: str, loss: float, accuracy: float, scores: CorpusScores, translations: list[str]) -> None:
        """Write the translations, and print the scores with the signatures without which none can be compared."""
        path = Path(self.trainer.default_root_dir) / f"{prefix}_translations.txt"
        path.write_text("".join(f"{line}\n" for line in translations), encoding="utf-8")
        print(
            f"{prefix}/loss {loss:.4f} nats per token, perplexity {math.exp(loss):.3f}, token accuracy {accuracy:.2%}"
        )
        for name, value in scores.values.items():
            print(f"{prefix}/{name} {value:.2f}  {scores.signatures[name]}")
