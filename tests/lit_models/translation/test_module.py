"""The LightningModule: means over all tokens of a step, scores of an evaluation."""

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from datamodules.batches import BOS_ID, EOS_ID, PAD_ID, TranslationBatch
from lit_models.translation import TransformerConfig, TranslationModule
from lit_models.translation.loss import count_correct, hidden_loss

CONFIG = TransformerConfig(dim=16, feed_forward_dim=24, num_heads=2, encoder_layers=1, decoder_layers=1, dropout=0.0)


class Words:
    """A vocabulary of numbers."""

    shared = True
    source_vocab_size = target_vocab_size = 24

    def decode_target(self, rows):
        return [" ".join(map(str, row)) for row in rows]


class Batches(pl.LightningDataModule):
    """Hands out the batches it is given."""

    tokenizer, max_length, languages = Words(), 32, ("en", "de")

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None, collate_fn=lambda batch: batch)

    val_dataloader = test_dataloader = train_dataloader


def draw(lengths, width=9):
    """Sentences of these target lengths, EOS counted."""
    lengths = torch.tensor(lengths, dtype=torch.int32)
    inside = torch.arange(width) < lengths[:, None]
    output = torch.randint(4, 24, (len(lengths), width)).masked_fill(~inside, PAD_ID)
    output[torch.arange(len(lengths)), lengths.long() - 1] = EOS_ID
    target = torch.cat((torch.full((len(lengths), 1), BOS_ID), output[:, :-1]), dim=1)
    references = Words().decode_target([row[: n - 1].tolist() for row, n in zip(output, lengths.tolist(), strict=True)])
    indices = torch.arange(len(lengths))
    return TranslationBatch(output.clone(), lengths, target, output, lengths, indices, references, references)


def fit(batches, **trainer):
    torch.manual_seed(3)
    module = TranslationModule(CONFIG, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0))
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    pl.Trainer(max_steps=1, limit_val_batches=0, enable_model_summary=False, **options, **trainer).fit(
        module, datamodule=Batches(batches)
    )
    return module.network.state_dict()


@pytest.mark.filterwarnings("ignore")
def test_four_micro_batches_equal_one_big_batch():
    # Sentences and lengths differ much: a mean of the four means would be another loss.
    parts = [draw([9]), draw([2, 3, 2]), draw([5, 8, 3, 2, 9, 4]), draw([3, 3])]
    big = TranslationBatch(*(torch.cat(column) for column in list(zip(*parts, strict=True))[:6]), [], [])
    accumulated, at_once = fit(parts, accumulate_grad_batches=4), fit([big])
    for name, value in at_once.items():
        torch.testing.assert_close(accumulated[name], value, atol=1e-6, rtol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_scores_of_an_evaluation(tmp_path, capsys):
    batches = [draw([9, 4]), draw([5, 8, 3])]
    batches[1] = batches[1]._replace(indices=torch.tensor([2, 3, 4]))
    module = TranslationModule(CONFIG)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = pl.Trainer(default_root_dir=tmp_path, **options)
    [scores] = trainer.test(module, datamodule=Batches(batches), verbose=False)
    losses, correct, tokens = 0.0, 0, 0
    with torch.no_grad():
        for batch in batches:
            logits = module.network(batch.source, batch.source_lengths, batch.target_input)
            flat = logits.flatten(0, 1), batch.target_output.flatten()
            losses += torch.nn.functional.cross_entropy(*flat, ignore_index=PAD_ID, reduction="sum").item()
            kept = flat[1] != PAD_ID
            correct += int((flat[0].argmax(-1) == flat[1])[kept].sum())
            tokens += int(kept.sum())
    assert scores["test/loss"] == pytest.approx(losses / tokens, rel=1e-5)
    assert scores["test/perplexity"] == pytest.approx(torch.tensor(losses / tokens).exp().item(), rel=1e-5)
    assert scores["test/token_accuracy"] == pytest.approx(correct / tokens)
    assert {"test/bleu", "test/chrf", "test/bleu_moses_lowercase"} <= set(scores)
    assert len((tmp_path / "test_translations.txt").read_text().splitlines()) == 5
    assert "tok:13a" in capsys.readouterr().out


def test_correct_tokens_are_counted_in_chunks():
    from lit_models.translation import Transformer

    network, batch = Transformer(CONFIG, 24).eval(), draw([9, 4, 2])
    with torch.no_grad():
        memory = network.encode(batch.source, batch.source_lengths)
        hidden = network.decode(batch.target_input, memory, batch.source_lengths)
        counts = {int(count_correct(network, hidden, batch.target_output, size)) for size in (1, 4, 100)}
        _, tokens = hidden_loss(network, hidden, batch.target_output, 0.0)
    assert len(counts) == 1
    assert int(tokens) == 15
