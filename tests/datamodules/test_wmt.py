import gzip
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.trainer.states import TrainerFn

import datamodules
from datamodules import TranslationBatch, WMTDataModule
from datamodules.text import prepare
from datamodules.text.tokenizer import Tokenizer, TokenizerConfig

SMALL = TokenizerConfig(vocab_size=80)


def make(directory: Path, stage: str | None = "fit", **settings: Any) -> WMTDataModule:
    settings = {"tokenizer": SMALL, "batch_tokens": 256, **settings}
    module = WMTDataModule(str(directory), **settings)
    if stage:
        module.prepare_data()
        module.setup(stage)
    return module


def plain(batch: TranslationBatch) -> list[Any]:
    return [field.tolist() if isinstance(field, torch.Tensor) else field for field in batch]


def lines(directory: Path, name: str) -> list[str]:
    return (directory / name).read_text().split("\n")[:-1]


def test_a_batch_holds_what_it_promises(toy_corpus: Path) -> None:
    module = make(toy_corpus)
    english, german = lines(toy_corpus, "train.en"), lines(toy_corpus, "train.de")
    seen = []
    for batch in module.train_dataloader():
        assert batch.source.dtype == batch.target_input.dtype == batch.target_output.dtype == torch.int64
        assert batch.source_lengths.dtype == batch.target_lengths.dtype == torch.int32
        assert batch.indices.dtype == torch.int64
        assert batch.references == batch.sources == []
        assert batch.source.shape[1] % 8 == batch.target_input.shape[1] % 8 == 0
        assert max(batch.source.numel(), batch.target_input.numel()) <= 256
        assert batch.target_input.shape == batch.target_output.shape
        for row, index in enumerate(batch.indices.tolist()):
            ids = module.tokenizer.encode_source([english[index]])[0]
            count = int(batch.source_lengths[row])
            assert batch.source[row].tolist() == [*ids, 3] + [0] * (batch.source.shape[1] - count)
            assert count == len(ids) + 1
            ids = module.tokenizer.encode_target([german[index]])[0]
            count = int(batch.target_lengths[row])
            padding = [0] * (batch.target_output.shape[1] - count)
            assert batch.target_input[row].tolist() == [2, *ids, *padding]
            assert batch.target_output[row].tolist() == [*ids, 3, *padding]
            assert count == len(ids) + 1
        seen += batch.indices.tolist()
    assert sorted(seen) == list(range(300))


def test_source_and_target_change_places_with_the_languages(toy_corpus: Path) -> None:
    module = make(toy_corpus, source_language="de", target_language="en")
    batch = next(iter(module.val_dataloader()))
    german, english = lines(toy_corpus, "valid.de"), lines(toy_corpus, "valid.en")
    assert batch.sources == [german[index] for index in batch.indices]
    assert batch.references == [english[index] for index in batch.indices]
    assert module.tokenizer.decode_source([batch.source[0].tolist()]) == [batch.sources[0]]
    assert module.tokenizer.decode_target([batch.target_output[0].tolist()]) == [batch.references[0]]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_batches_do_not_depend_on_the_workers(toy_corpus: Path, dropout: float) -> None:
    tokenizer = TokenizerConfig(vocab_size=80, dropout=dropout)
    alone = make(toy_corpus, tokenizer=tokenizer).train_dataloader()
    many = make(toy_corpus, tokenizer=tokenizer, num_workers=2).train_dataloader()
    for _ in range(2):
        assert [plain(batch) for batch in many] == [plain(batch) for batch in alone]


def test_epochs_and_seeds_differ(toy_corpus: Path) -> None:
    loader = make(toy_corpus).train_dataloader()
    first, second = ([batch.indices.tolist() for batch in loader] for _ in range(2))
    other = [batch.indices.tolist() for batch in make(toy_corpus, seed=1).train_dataloader()]
    assert first != second
    assert first != other
    assert len(first) == len(second) == len(other)


def test_gzip_equals_plain(toy_corpus: Path) -> None:
    before = [plain(batch) for batch in make(toy_corpus).train_dataloader()]
    for path in list(toy_corpus.glob("*.*")):
        if path.is_file():
            Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    module = make(toy_corpus)
    assert [plain(batch) for batch in module.train_dataloader()] == before
    # The text is the same, so nothing was prepared again.
    assert len(list((toy_corpus / "prepared").glob("tokenizer-*"))) == 1


@pytest.mark.filterwarnings("ignore:.*source lines are longer than max_length.*")
def test_long_pairs_are_dropped_from_training_and_counted(
    toy_corpus: Path, write_pairs: Callable[..., list[tuple[str, str]]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    write_pairs(toy_corpus, "train", 300, seed=1, longest=40)
    module = make(toy_corpus, max_length=24)
    tokenizer = module.tokenizer
    sides = (
        tokenizer.encode_source(lines(toy_corpus, "train.en")),
        tokenizer.encode_target(lines(toy_corpus, "train.de")),
    )
    kept = [index for index, pair in enumerate(zip(*sides, strict=True)) if max(map(len, pair)) < 24]
    assert 0 < len(kept) < 300
    batches = list(module.train_dataloader())
    assert sorted(index for batch in batches for index in batch.indices.tolist()) == kept
    assert f"{300 - len(kept)} pairs longer than 24 tokens dropped" in caplog.text


def test_evaluation_keeps_every_line_and_cuts_long_ones(
    toy_corpus: Path, write_pairs: Callable[..., list[tuple[str, str]]]
) -> None:
    write_pairs(toy_corpus, "valid", 50, seed=2, longest=40)
    module = make(toy_corpus, stage=None, max_length=16)
    module.prepare_data()
    with pytest.warns(UserWarning, match=r"valid\.\{en,de\}: \d+ of 50 source lines are longer than max_length=16"):
        module.setup("fit")
    batches = list(module.val_dataloader())
    assert sorted(index for batch in batches for index in batch.indices.tolist()) == list(range(50))
    english, german = lines(toy_corpus, "valid.en"), lines(toy_corpus, "valid.de")
    for batch in batches:
        assert batch.sources == [english[index] for index in batch.indices]
        assert batch.references == [german[index] for index in batch.indices]
        assert batch.source.shape[1] <= 16
        ends = batch.source[torch.arange(len(batch.source)), batch.source_lengths.long() - 1]
        assert ends.eq(3).all()
    # The order is by length, the longest first, and the same every time.
    assert batches[0].source_lengths.max() == 16
    assert [plain(batch) for batch in module.val_dataloader()] == [plain(batch) for batch in batches]


def test_sampling_is_for_training_only_and_deterministic(toy_corpus: Path) -> None:
    tokenizer = TokenizerConfig(vocab_size=80, dropout=0.3)
    module, again = (make(toy_corpus, tokenizer=tokenizer) for _ in range(2))
    loader = module.train_dataloader()
    first, second = ([plain(batch) for batch in loader] for _ in range(2))
    assert [plain(batch) for batch in again.train_dataloader()] == first
    # The same sentence is cut in another way in the next epoch.
    rows = [
        {index: row for batch in batches for index, row in zip(batch[5], batch[0], strict=True)}
        for batches in (first, second)
    ]
    assert sum(rows[0][index] != rows[1][index] for index in range(300)) > 150
    for batch in first:
        assert max(len(batch[0]) * len(batch[0][0]), len(batch[2]) * len(batch[2][0])) <= 256
        texts = module.tokenizer.decode_source(batch[0])
        assert texts == [lines(toy_corpus, "train.en")[index] for index in batch[5]]
    without = make(toy_corpus)
    assert [plain(batch) for batch in module.val_dataloader()] == [plain(batch) for batch in without.val_dataloader()]


def test_sampling_resumes_exactly(toy_corpus: Path) -> None:
    tokenizer = TokenizerConfig(vocab_size=80, dropout=0.3)
    whole = [plain(batch) for batch in make(toy_corpus, tokenizer=tokenizer).train_dataloader()]
    first = make(toy_corpus, tokenizer=tokenizer).train_dataloader()
    iterator = iter(first)
    seen = [plain(next(iterator)) for _ in range(3)]
    second = make(toy_corpus, tokenizer=tokenizer).train_dataloader()
    second.load_state_dict(first.state_dict())
    assert seen + [plain(batch) for batch in second] == whole


class Recorder(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []

    def training_step(self, batch: TranslationBatch, batch_idx: int) -> torch.Tensor:
        assert isinstance(batch, TranslationBatch)
        self.seen.append(batch.indices.tolist())
        return self.weight * batch.source.float().mean()

    def validation_step(self, batch: TranslationBatch, batch_idx: int) -> None:
        assert batch.references

    def predict_step(self, batch: TranslationBatch, batch_idx: int) -> list[int]:
        return batch.indices.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_trainer(directory: Path, steps: int) -> pl.Trainer:
    return pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        val_check_interval=4,
        check_val_every_n_epoch=None,
        default_root_dir=directory,
    )


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*logging interval.*")
@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_resumes_in_mid_epoch(toy_corpus: Path, tmp_path: Path, workers: int) -> None:
    epoch = len(make(toy_corpus).train_dataloader())
    steps, stop = epoch + 7, epoch + 2
    whole, first, second = Recorder(), Recorder(), Recorder()
    make_trainer(tmp_path, steps).fit(whole, datamodule=make(toy_corpus, None))
    trainer = make_trainer(tmp_path, stop)
    trainer.fit(first, datamodule=make(toy_corpus, None, num_workers=workers))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["WMTDataModule"]
    assert (state["source_language"], state["target_language"], state["max_length"]) == ("en", "de", 256)
    module = make(toy_corpus, None, num_workers=workers)
    make_trainer(tmp_path, steps).fit(second, datamodule=module, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert Tokenizer.from_state_dict(state["tokenizer"]) == module.tokenizer
    assert first.seen + second.seen == whole.seen


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_predicting_reads_the_test_split(toy_corpus: Path, tmp_path: Path) -> None:
    found = make_trainer(tmp_path, 1).predict(Recorder(), datamodule=make(toy_corpus, None))
    assert sorted(index for batch in found for index in batch) == list(range(30))


def test_another_tokenizer_or_direction_is_refused(toy_corpus: Path) -> None:
    state = make(toy_corpus).state_dict()
    other = make(toy_corpus, tokenizer=TokenizerConfig(vocab_size=72))
    with pytest.raises(ValueError, match="trained with another tokenizer"):
        other.load_state_dict(state)
    late = make(toy_corpus, None, tokenizer=TokenizerConfig(vocab_size=72))
    late.load_state_dict(state)
    late.prepare_data()
    with pytest.raises(ValueError, match="trained with another tokenizer"):
        late.setup("test")
    with pytest.raises(ValueError, match="translates en to de, but the data is configured as de to en"):
        make(toy_corpus, None, source_language="de", target_language="en").load_state_dict(state)
    make(toy_corpus, tokenizer=TokenizerConfig(vocab_size=80, dropout=0.1)).load_state_dict(state)


def test_a_budget_below_the_longest_sentence(toy_corpus: Path) -> None:
    with pytest.raises(ValueError, match=r"budget of 16 tokens .* longest sentence of .*train\.\{en,de\}: pair \d+"):
        make(toy_corpus, batch_tokens=16)
    with pytest.raises(ValueError, match=r"budget of 16 tokens .* longest sentence of .*valid\.\{en,de\}: pair \d+"):
        make(toy_corpus, eval_batch_tokens=16)
    tokenizer = TokenizerConfig(vocab_size=80, dropout=0.3)
    longest = max(batch.source.shape[1] for batch in make(toy_corpus).train_dataloader())
    for batch in make(toy_corpus, tokenizer=tokenizer, batch_tokens=longest).train_dataloader():
        assert max(batch.source.numel(), batch.target_input.numel()) <= longest


def test_everything_too_long(toy_corpus: Path) -> None:
    with pytest.raises(ValueError, match=r"every pair of .* is longer than max_length=2 tokens"):
        make(toy_corpus, max_length=2, tokenizer=TokenizerConfig(vocab_size=40))


def test_the_test_split_is_needed_for_testing_only(toy_corpus: Path) -> None:
    (toy_corpus / "test.en").unlink()
    (toy_corpus / "test.de").unlink()
    module = make(toy_corpus)
    with pytest.raises(FileNotFoundError, match=r"test\.en .*holds train\.\{de,en\}, valid\.\{de,en\}"):
        module.setup("test")


def test_faults_show_before_training(toy_corpus: Path) -> None:
    (toy_corpus / "test.de").unlink()
    with pytest.raises(FileNotFoundError, match=r"test\.de \(or \.gz\) is missing: 'test' is there in .*: en"):
        make(toy_corpus, None).prepare_data()
    (toy_corpus / "valid.de").write_text("eins\n")
    with pytest.raises(ValueError, match=r"valid\.en has 40 lines but .*valid\.de has 1"):
        make(toy_corpus, None).prepare_data()
    with pytest.raises(FileNotFoundError, match=r"train\.fr .*'train' is there in these languages: de, en"):
        make(toy_corpus, None, target_language="fr").prepare_data()
    with pytest.raises(FileNotFoundError, match="does not exist; check data_dir"):
        make(toy_corpus / "wrong", None).prepare_data()
    assert not (toy_corpus / "wrong").exists()


def test_faults_show_before_anything_is_learnt(toy_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "train_tokenizer", lambda *_: pytest.fail("learnt"))
    for split in ("test", "valid"):
        (toy_corpus / f"{split}.de").write_text("eins\n")
        with pytest.raises(ValueError, match=rf"{split}\.en has .* lines but .*{split}\.de has 1"):
            make(toy_corpus, None).prepare_data()


def attached(module: WMTDataModule, stage: str) -> WMTDataModule:
    """Attaches a Trainer that is about to do something, as Lightning does before it prepares data."""
    module.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.trainer.state.fn = TrainerFn(stage)
    return module


def test_a_stage_needs_its_own_splits_only(toy_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (toy_corpus / "valid.de").write_text("eins\n")
    module = attached(make(toy_corpus, None), "test")
    module.prepare_data()
    module.setup("test")
    assert len(module.test_dataloader()) > 0
    assert not list((toy_corpus / "prepared").glob("train-tokens-*"))
    for stage in ("validate", "fit"):
        with pytest.raises(ValueError, match=r"valid\.de has 1"):
            attached(make(toy_corpus, None), stage).prepare_data()
    (toy_corpus / "valid.de").unlink()
    monkeypatch.setattr(prepare, "train_tokenizer", lambda *_: pytest.fail("learnt"))
    with pytest.raises(FileNotFoundError, match=r"valid\.de .*is missing"):
        attached(make(toy_corpus, None, tokenizer=TokenizerConfig(vocab_size=72)), "fit").prepare_data()


def test_a_checkpoint_s_tokenizer_needs_no_training_files(toy_corpus: Path) -> None:
    module = make(toy_corpus, "test")
    expected = [plain(batch) for batch in module.test_dataloader()]
    for language in ("en", "de"):
        (toy_corpus / f"train.{language}").unlink()
        (toy_corpus / f"valid.{language}").unlink()
    late = attached(make(toy_corpus, None), "test")
    late.load_state_dict(module.state_dict())
    late.prepare_data()
    late.setup("test")
    assert [plain(batch) for batch in late.test_dataloader()] == expected
    with pytest.raises(FileNotFoundError, match=r"train\.en .*is missing"):
        attached(make(toy_corpus, None), "test").prepare_data()


def test_blank_lines(toy_corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    english = lines(toy_corpus, "train.en")
    english[4] = " "
    (toy_corpus / "train.en").write_text("\n".join(english) + "\n")
    with pytest.raises(ValueError, match=r"1 line is blank: .*train\.en:5;"):
        make(toy_corpus)
    caplog.set_level("INFO")
    module = make(toy_corpus, on_empty="skip")
    assert "1 pairs with a blank side are left out" in caplog.text
    batches = list(module.train_dataloader())
    # Indices stay line numbers of the files.
    assert sorted(index for batch in batches for index in batch.indices.tolist()) == [*range(4), *range(5, 300)]
    batch = batches[0]
    assert module.tokenizer.decode_source(batch.source.tolist()) == [english[index] for index in batch.indices]


def test_evaluation_keeps_blank_lines_when_training_skips_them(toy_corpus: Path) -> None:
    english = lines(toy_corpus, "valid.en")
    english[4] = ""
    (toy_corpus / "valid.en").write_text("\n".join(english) + "\n")
    batches = list(make(toy_corpus, on_empty="skip").val_dataloader())
    assert sorted(index for batch in batches for index in batch.indices.tolist()) == list(range(40))
    assert "" in [source for batch in batches for source in batch.sources]


def test_a_read_only_corpus_with_a_cache_elsewhere(toy_corpus: Path, tmp_path: Path) -> None:
    make(toy_corpus, cache_dir=str(tmp_path / "cache"))
    assert not (toy_corpus / "prepared").exists()
    assert list((tmp_path / "cache").glob("tokenizer-*"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no data_dir"),
        ({"data_dir": "x", "target_language": "en"}, "both 'en'"),
        ({"data_dir": "x", "batch_tokens": 0}, "batch_tokens=0 must be at least 1"),
        ({"data_dir": "x", "eval_batch_tokens": -1}, "eval_batch_tokens=-1"),
        ({"data_dir": "x", "max_length": 1}, "max_length=1 holds no token"),
    ],
)
def test_bad_arguments(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WMTDataModule(**settings)


def test_named_corpora_know_their_files() -> None:
    assert WMTDataModule(corpus="multi30k").prefixes == {"train": "train", "valid": "val", "test": "test_2016_flickr"}
    module = WMTDataModule(corpus="wmt14", test_prefix="newstest2013")
    assert module.prefixes == {"train": "train", "valid": "newstest2013", "test": "newstest2013"}
    assert module.data_dir == Path("data/wmt14")


def test_readers_travel_to_workers_without_the_data(toy_corpus: Path) -> None:
    loader = make(toy_corpus).train_dataloader()
    assert len(pickle.dumps(loader._held[0].dataset)) < 2000
    loader = make(toy_corpus, tokenizer=TokenizerConfig(vocab_size=80, dropout=0.1)).train_dataloader()
    reader = pickle.loads(pickle.dumps(loader._held[0].dataset))
    assert plain(reader[0, loader.order.batches(0)[0]]) == plain(next(iter(loader)))


def test_processes_take_their_shares(toy_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [batch.indices.tolist() for batch in make(toy_corpus).train_dataloader()]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    shares, evaluated = [], []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        module = make(toy_corpus)
        shares.append([batch.indices.tolist() for batch in module.train_dataloader()])
        evaluated += [index for batch in module.val_dataloader() for index in batch.indices.tolist()]
    assert [batch for step in zip(*shares, strict=True) for batch in step] == whole[: len(whole) // 2 * 2]
    assert sorted(evaluated) == list(range(40))


def test_the_package_imports_nothing_until_asked() -> None:
    code = "import sys, datamodules; dir(datamodules); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    names = {
        "COCODataModule",
        "DetectionBatch",
        "ImageBatch",
        "ImageNetDataModule",
        "TranslationBatch",
        "WMTDataModule",
    }
    assert set(dir(datamodules)) == names
    with pytest.raises(
        AttributeError, match="has no attribute 'WMT'; it has COCODataModule, DetectionBatch, ImageBatch, "
    ):
        _ = datamodules.WMT


@pytest.mark.filterwarnings("ignore::Warning")
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("batch_tokens=-3", "batch_tokens"),
        ("num_workers=-1", "num_workers"),
        ("corpus=wmt15", "corpus"),
        ("tokenizer.kind=word", "'bpe', 'unigram'"),
        ("tokenizer.vocab_sizes=100", "vocab_sizes"),
    ],
)
def test_mistakes_show_when_the_configuration_is_parsed(
    argument: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(pl.LightningDataModule, "data")
    with pytest.raises(SystemExit):
        parser.parse_args(["--data=datamodules.WMTDataModule", f"--data.{argument}"])
    assert message in capsys.readouterr().err
