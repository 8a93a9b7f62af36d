"""Short forms of nested classes, and mistakes inside what a factory such as an optimizer takes."""

import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from experiments.cli import main

CONFIG = """\
model:
  class_path: lit_models.TranslationModule
  init_args:
    optimizer:
      class_path: torch.optim.Adam
      init_args:
        lr: 1.0e-3
        betas: [0.9, 0.98]
    schedule:
      class_path: lit_models.optimization.WarmupCosine
      init_args: {total_steps: 10, warmup_steps: 2}
data: {class_path: toy_experiment.ToyData}
trainer: {max_steps: 2}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(CONFIG)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "section", "key", "value"),
    [
        # with and without init_args at either level
        (["--model.schedule.init_args.total_steps=100"], "schedule", "total_steps", 100),
        (["--model.schedule.total_steps=300"], "schedule", "total_steps", 300),
        (["--model.init_args.schedule.total_steps=300"], "schedule", "total_steps", 300),
        (["--model.init_args.schedule.init_args.total_steps=300"], "schedule", "total_steps", 300),
        (["--model.optimizer.lr=0.5"], "optimizer", "lr", 0.5),
        (["--model.init_args.optimizer.init_args.lr=0.5"], "optimizer", "lr", 0.5),
        (["--model.optimizer.betas=[0.8, 0.9]"], "optimizer", "betas", [0.8, 0.9]),
        # another class, whose parameters count from then on
        (["--model.schedule=Constant", "--model.schedule.warmup_steps=3"], "schedule", "warmup_steps", 3),
        (["--model.optimizer=torch.optim.SGD", "--model.optimizer.momentum=0.9"], "optimizer", "momentum", 0.9),
        (["--model.optimizer=SGD", "--model.init_args.optimizer.nesterov=true"], "optimizer", "nesterov", True),
        (["--model.optimizer.class_path=SGD", "--model.optimizer.momentum=0.9"], "optimizer", "momentum", 0.9),
        (["--model=TranslationModule", "--model.label_smoothing=0.2"], "optimizer", "lr", 1e-3),
    ],
)
def test_short_forms(here, capsys, words, section, key, value):
    assert main(["fit", "-c", "a.yaml", *words, "--print_config"]) == 0, capsys.readouterr().err
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["init_args"][section]["init_args"][key] == value


def test_short_form_of_the_last_callback(here, capsys):
    words = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=a", "--trainer.callbacks.patience=7"]
    assert main(["fit", "-c", "a.yaml", *words, "--print_config"]) == 0
    (callback,) = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
    assert (callback["init_args"]["monitor"], callback["init_args"]["patience"]) == ("a", 7)


def error_of(capsys, *words):
    assert main(["fit", "-c", "a.yaml", *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line.removeprefix("error: ")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lr: 1.0e-3", "lrr: 1", 'unknown key "{optimizer}.init_args.lrr" (a.yaml, line 7); did you mean "lr"?'),
        ("lr: 1.0e-3", "lr: abc", '"{optimizer}.init_args.lr" must be a number; got "abc" (a.yaml, line 7)'),
        # the code gives these, not the config
        ("lr: 1.0e-3", "params: 1", 'unknown key "{optimizer}.init_args.params" (a.yaml, line 7)'),
        ("[0.9, 0.98]", "[0.9]", '"{optimizer}.init_args.betas" must be a list of 2; got a list of 1 (a.yaml, line 8)'),
        ("[0.9, 0.98]", "[0.9, b]", '"{optimizer}.init_args.betas[1]" must be a number; got "b" (a.yaml, line 8)'),
        (
            "optim.Adam",
            "optim.Adamm",
            '"{optimizer}.class_path": "torch.optim" has no class "Adamm" (a.yaml, line 5); did you mean "Adam"?',
        ),
        (
            "torch.optim.Adam",
            "Adamm",
            '"{optimizer}.class_path": there is no class "Adamm" (a.yaml, line 5); did you me',
        ),
        (
            "torch.optim.Adam",
            "lit_models.translation.SearchConfig",
            '"{optimizer}.class_path": "lit_models.translation.SearchConfig" is not a Optimizer or Call',
        ),
    ],
)
def test_mistakes_in_an_optimizer(here, capsys, old, new, message):
    assert old in CONFIG
    (here / "a.yaml").write_text(CONFIG.replace(old, new))
    expected = message.format(optimizer="model.init_args.optimizer")
    assert error_of(capsys).startswith(expected)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--model.optimizer.lrr=1", 'unknown key "model.optimizer.lrr"; did you mean "lr"?'),
        ("--model.optimizer=Adamm", '"model.optimizer": there is no class "Adamm"; did you mean "Adam"?'),
        ("--model.schedule.total_step=1", 'unknown key "model.schedule.total_step"; did you mean "total_steps"?'),
        ("--model.schedule=Constnt", '"model.schedule": there is no class "Constnt"; did you mean "Constant"?'),
        (
            "--model=TranslationModul",
            '"model": there is no class "TranslationModul"; did you mean "TranslationModule"?',
        ),
        ("--data=WMTDatamodule", '"data": there is no class "WMTDatamodule"; did you mean "WMTDataModule"?'),
        # a range that only the constructor knows
        ("--model.network.dim=-32", "model.network: dim must be at least 1"),
    ],
)
def test_mistakes_in_an_override(here, capsys, override, message):
    assert error_of(capsys, override).startswith(message)


def test_section_without_a_class_path(here, capsys):
    (here / "a.yaml").write_text(CONFIG.replace("class_path: torch.optim.Adam\n      ", ""))
    message = '"model.init_args.optimizer" needs "class_path" and "init_args"; got "init_args" (a.yaml, line 5)'
    assert error_of(capsys) == message
