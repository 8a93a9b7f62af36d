"""The tiny translator beside Hugging Face Marian of identical size and weights, in one run.

Three questions, each answered on the same sentences, threads and precision, the providers taking turns:

- training: target tokens (padding not counted) per second, against Marian in batches of random sentences (its default)
  and in batches grouped by length;
- decoding: sentences per second with greedy search and a beam of 5, and whether the translations are equal;
- the cost of Lightning: time per step inside ``Trainer.fit`` over that of a bare loop with the same batches.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from datamodules.batches import EOS_ID, PAD_ID, TranslationBatch
from experiments import quiet
from experiments.bench.record import alternate, median_ratio, record
from experiments.command import CommandParser, run
from lit_models.pretrained.marian import to_marian
from lit_models.translation import Transformer, TransformerConfig, load_checkpoint
from lit_models.translation.loss import translation_loss
from lit_models.translation.search import beam_search, greedy_search

# Transformer-Tiny of Wu et al. 2021, the published Multi30k recipe.
TINY = TransformerConfig(dim=128, feed_forward_dim=256, num_heads=4, encoder_layers=4, decoder_layers=4, dropout=0.3)
LABEL_SMOOTHING = 0.1


@dataclass(frozen=True)
class Pair:
    """Token ids of a sentence pair, both ending with EOS."""

    source: list[int]
    target: list[int]


def main(argv: list[str]) -> int:
    """Measure, print and record."""
    return run(_main, argv)


def _main(argv: list[str]) -> None:
    options = _parser().parse_args(argv)
    quiet.install()
    torch.manual_seed(options.seed)
    if options.threads:
        torch.set_num_threads(options.threads)
    data = _datamodule(options.data_dir, options.length_multiple)
    batches = _first_batches(data, options.steps)
    rows: list[dict[str, Any]] = []
    for precision in options.precision.split(","):
        network = Transformer(replace(TINY, output_bias=True), data.tokenizer.source_vocab_size)
        rows += _training_rows(network, batches, precision, options.rounds)
        rows += _overhead_rows(data, precision, options.steps, options.rounds)
        if options.checkpoint:
            network = load_checkpoint(options.checkpoint).network
        for size in map(int, options.decode_batch.split(",")):
            rows += _decoding_rows(network, data, precision, options.sentences, size, options.rounds)
    for row in rows:
        print("  ".join(f"{value}" for value in row.values() if value != ""))
    if options.record:
        print(record("translation", rows, ("torch", "transformers", "lightning")))


def _parser() -> CommandParser:
    parser = CommandParser("python -m experiments bench translation", __doc__ or "")
    parser.add_argument("--data_dir", default="data/multi30k", help="Multi30k; downloaded if it is not there")
    parser.add_argument("--checkpoint", help="weights to decode with; else those of the training rounds")
    parser.add_argument("--precision", default="32,bf16", help="32, bf16, or both with a comma")
    parser.add_argument("--steps", type=int, default=12, help="optimiser steps in a round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each provider; medians are reported")
    parser.add_argument("--sentences", type=int, default=256, help="test sentences to decode")
    parser.add_argument("--decode_batch", default="64,128", help="sentences decoded together; several with commas")
    parser.add_argument("--length_multiple", type=int, default=1, help="our batches are padded to a multiple of this")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--seed", type=int, default=1, help="of weights and batches")
    parser.add_argument("--record", action="store_true", help="append the rows to experiments/results")
    return parser


def _datamodule(data_dir: str, length_multiple: int) -> Any:
    from datamodules import WMTDataModule
    from datamodules.text.tokenizer import TokenizerConfig

    data = WMTDataModule(
        data_dir=data_dir,
        corpus="multi30k",
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=9712),
        batch_tokens=4096,
        length_multiple=length_multiple,
    )
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


def _first_batches(data: Any, steps: int) -> list[TranslationBatch]:
    loader = iter(data.train_dataloader())
    return [next(loader) for _ in range(steps)]


def _pairs(batches: Sequence[TranslationBatch]) -> list[Pair]:
    """Return the sentences of our batches without padding, for the other side to batch in its own way."""
    return [
        Pair(source[:source_length].tolist(), target[:target_length].tolist())
        for batch in batches
        for source, source_length, target, target_length in zip(
            batch.source, batch.source_lengths.tolist(), batch.target_output, batch.target_lengths.tolist(), strict=True
        )
    ]


def _autocast(precision: str) -> torch.autocast:
    if precision not in ("32", "bf16"):
        raise ValueError(f"--precision takes 32 and bf16, got {precision!r}")
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def _marian(network: Transformer) -> Any:
    from transformers import MarianConfig, MarianMTModel

    state, values = to_marian(network)
    model = MarianMTModel(MarianConfig(**values))
    model.load_state_dict(state)
    return model


def _training_rows(
    network: Transformer, batches: Sequence[TranslationBatch], precision: str, rounds: int
) -> list[dict[str, Any]]:
    """Time the optimiser steps over the same sentences in each provider's batches."""
    pairs = _pairs(batches)
    tokens = sum(len(pair.target) for pair in pairs)
    size = -(-len(pairs) // len(batches))
    order = torch.randperm(len(pairs)).tolist()
    random = [[pairs[i] for i in order[start : start + size]] for start in range(0, len(pairs), size)]
    grouped = _grouped(pairs, size)
    tasks = {
        "heddle": _our_round(network, batches, precision),
        "marian": _their_round(_marian(network), random, precision),
        "marian grouped": _their_round(_marian(network), grouped, precision),
    }
    alternate(tasks, 1)  # the first round of each allocates and warms up
    seconds = alternate(tasks, rounds)
    return [
        _row("training", provider, precision, "target tokens/s", tokens / statistics.median(times), times, seconds)
        for provider, times in seconds.items()
    ]


def _row(
    part: str,
    provider: str,
    precision: str,
    unit: str,
    value: float,
    times: Sequence[float],
    seconds: dict[str, list[float]],
    note: str = "",
) -> dict[str, Any]:
    """A result with the ratio that our time is smaller by, and the range of it over the rounds."""
    ours = seconds["heddle"]
    ratios = sorted(a / b for a, b in zip(times, ours, strict=True))
    return {
        "part": part,
        "provider": provider,
        "precision": precision,
        "value": round(value, 1),
        "unit": unit,
        "heddle_is_faster_by": round(median_ratio(times, ours), 2),
        "range": f"{ratios[0]:.2f}-{ratios[-1]:.2f}",
        "note": note,
    }


def _grouped(pairs: Sequence[Pair], size: int) -> list[list[Pair]]:
    """Batches as the Hugging Face Trainer makes them with ``group_by_length``."""
    from transformers.trainer_pt_utils import get_length_grouped_indices

    order = get_length_grouped_indices([len(pair.source) for pair in pairs], size)
    return [[pairs[i] for i in order[start : start + size]] for start in range(0, len(pairs), size)]


def _our_round(network: Transformer, batches: Sequence[TranslationBatch], precision: str) -> Callable[[], None]:
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.9, 0.98), fused=True)

    def train() -> None:
        for batch in batches:
            with _autocast(precision):
                loss, count = translation_loss(network, batch, LABEL_SMOOTHING)
            (loss / count).backward()
            optimizer.step()
            optimizer.zero_grad()

    return train


def _their_round(model: Any, batches: Sequence[Sequence[Pair]], precision: str) -> Callable[[], None]:
    """Marian with the Trainer's own label smoother and padding; batches are made before the clock starts, as ours."""
    from transformers.trainer_pt_utils import LabelSmoother

    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.98), fused=True)
    smoother = LabelSmoother(epsilon=LABEL_SMOOTHING)

    collated = [_collate(pairs, model.config.decoder_start_token_id) for pairs in batches]

    def train() -> None:
        for source, mask, decoder_input, labels in collated:
            with _autocast(precision):
                output = model(input_ids=source, attention_mask=mask, decoder_input_ids=decoder_input)
                loss = smoother(output, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return train


def _collate(pairs: Sequence[Pair], start: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return source, its mask, decoder input and labels (-100 for padding) of a batch."""
    source, mask = _padded([pair.source for pair in pairs])
    labels, label_mask = _padded([pair.target for pair in pairs])
    decoder_input = torch.cat((torch.full((len(pairs), 1), start), labels[:, :-1]), dim=1)
    return source, mask, decoder_input, labels.masked_fill(label_mask == 0, -100)


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return rows padded to the longest, and the mask of what is not padding."""
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, PAD_ID)
    return padded, (torch.arange(padded.shape[1]) < lengths[:, None]).long()


def _decoding_rows(
    network: Transformer, data: Any, precision: str, sentences: int, size: int, rounds: int
) -> list[dict[str, Any]]:
    """Time greedy search and a beam of 5 on the same batches of test sentences, sorted by length."""
    network.eval()
    model = _marian(network).eval()
    sources = sorted((pair.source for pair in _pairs(list(data.test_dataloader()))), key=len)
    sources = sources[:: max(1, len(sources) // sentences)][:sentences]
    batches = [_padded(sources[i : i + size]) for i in range(0, len(sources), size)]
    rows = []
    for beam_size in (1, 5):
        found: dict[str, list[list[int]]] = {}
        tasks = {
            "heddle": partial(_decode_ours, network, batches, beam_size, precision, found),
            "marian": partial(_decode_theirs, model, batches, beam_size, precision, found),
        }
        alternate(tasks, 1)
        seconds = alternate(tasks, rounds)
        equal = sum(a == b for a, b in zip(found["heddle"], found["marian"], strict=True)) / len(sources)
        part = f"{'greedy' if beam_size == 1 else f'beam {beam_size}'}, {size} sentences"
        note = f"equal translations {equal:.1%}"
        rows += [
            _row(part, name, precision, "sentences/s", len(sources) / statistics.median(times), times, seconds, note)
            for name, times in seconds.items()
        ]
    return rows


def _decode_ours(
    network: Transformer,
    batches: Sequence[tuple[Tensor, Tensor]],
    beam_size: int,
    precision: str,
    found: dict[str, list[list[int]]],
) -> None:
    """Search with Hugging Face's length penalty and stopping rule."""
    found["heddle"] = []
    for source, mask in batches:
        lengths = mask.sum(1).int()
        with torch.inference_mode(), _autocast(precision):
            memory = network.encode(source, lengths)
            limit = source.shape[1] + 50
            if beam_size == 1:
                hypotheses = greedy_search(network, memory, lengths, max_length=limit)
            else:
                hypotheses = beam_search(
                    network,
                    memory,
                    lengths,
                    beam_size=beam_size,
                    max_length=limit,
                    length_penalty=1.0,
                    length_penalty_kind="power",
                    stop="estimate",
                )
        found["heddle"] += [best[0].tokens for best in hypotheses]


def _decode_theirs(
    model: Any,
    batches: Sequence[tuple[Tensor, Tensor]],
    beam_size: int,
    precision: str,
    found: dict[str, list[list[int]]],
) -> None:
    found["marian"] = []
    for source, mask in batches:
        with torch.inference_mode(), _autocast(precision):
            output = model.generate(
                input_ids=source,
                attention_mask=mask,
                num_beams=beam_size,
                do_sample=False,
                max_length=source.shape[1] + 51,  # counts the start token
                length_penalty=1.0,
                early_stopping=False,
                bad_words_ids=[[PAD_ID]],
            )
        for row in output[:, 1:].tolist():
            found["marian"].append(row[: row.index(EOS_ID)] if EOS_ID in row else [t for t in row if t != PAD_ID])


def _overhead_rows(data: Any, precision: str, steps: int, rounds: int) -> list[dict[str, Any]]:
    """Time the steps of ``Trainer.fit``, with the callbacks that act on every step, against a bare loop."""
    seconds: dict[str, list[float]] = {"heddle": [], "bare loop": []}
    for _ in range(rounds):
        seconds["heddle"].append(_fit_step(data, precision, steps))
        seconds["bare loop"].append(_bare_step(data, precision, steps))
    overhead = median_ratio(seconds["heddle"], seconds["bare loop"]) - 1
    return [
        {
            "part": "lightning",
            "provider": "overhead per step",
            "precision": precision,
            "value": round(100 * overhead, 1),
            "unit": "%",
            "heddle_is_faster_by": "",
            "range": "",
            "note": f"fit {1e3 * statistics.median(seconds['heddle']):.0f} ms, "
            f"bare loop {1e3 * statistics.median(seconds['bare loop']):.0f} ms",
        }
    ]


def _fit_step(data: Any, precision: str, steps: int) -> float:
    """Return the median seconds between the starts of two steps in ``Trainer.fit``."""
    from lightning.pytorch import Callback, Trainer

    from experiments.callbacks import RNGState, StepProgressBar, StopOnNonFinite
    from experiments.loggers import MetricsCSV
    from lit_models import TranslationModule

    starts: list[float] = []

    class Clock(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            starts.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as directory:
        trainer = Trainer(
            max_steps=steps,
            precision="bf16-mixed" if precision == "bf16" else "32-true",
            accelerator="cpu",
            logger=MetricsCSV(directory),
            callbacks=[Clock(), RNGState(), StepProgressBar(), StopOnNonFinite()],
            enable_checkpointing=False,
            enable_model_summary=False,
            limit_val_batches=0,
            use_distributed_sampler=False,
            default_root_dir=directory,
        )
        trainer.fit(TranslationModule(network=TINY), datamodule=data)
    return statistics.median(b - a for a, b in zip(starts[1:], starts[2:], strict=False))


def _bare_step(data: Any, precision: str, steps: int) -> float:
    """Return the median seconds of a step of a loop that does the same and no more."""
    network = Transformer(TINY, data.tokenizer.source_vocab_size).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=7e-4, betas=(0.9, 0.98), eps=1e-9)
    starts = []
    loader = iter(data.train_dataloader())
    for _ in range(steps):
        batch = next(loader)
        starts.append(time.perf_counter())
        with _autocast(precision):
            loss, count = translation_loss(network, batch, LABEL_SMOOTHING)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    return statistics.median(b - a for a, b in zip(starts[1:], starts[2:], strict=False))
