"""Each mistake gets one line that names the key, the file and the near miss, and exit code 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from toy_experiment import write_config

from experiments.cli import main

MODEL = "model: {class_path: toy_experiment.ToyModule"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "toy.yaml")
    return tmp_path


def error_of(capsys, *words):
    """Run a command that must fail with code 2, and return its one line."""
    assert main(list(words)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # argparse would take this one for max_epochs
        ("--trainer.max_epoch=3", 'unknown key "trainer.max_epoch"; did you mean "max_epochs"?'),
        ("--model.init_args.network.dimm=3", 'unknown key "model.init_args.network.dimm"; did you mean "dim"?'),
        # the short form, which leaves init_args out
        ("--model.network.dimm=3", 'unknown key "model.network.dimm"; did you mean "dim"?'),
        ("--model.init_args.network.dim=three", '"model.init_args.network.dim" must be an int; got "three"'),
        ("--model.init_args.network.dim=1.5", '"model.init_args.network.dim" must be an int; got "1.5"'),
        ("--model.init_args.warmup_steps=ab", '"model.init_args.warmup_steps" must be an int or null; got "ab"'),
        (
            "--model.init_args.network.norm_order=per",
            '"model.init_args.network.norm_order" must be "pre" or "post"; got "per"',
        ),
        ("--data.batch_sizes=4", 'unknown key "data.batch_sizes"; did you mean "batch_size"?'),
        ("--checkpoint.monitr=x", 'unknown key "checkpoint.monitr"; did you mean "monitor"?'),
        ("--checkpoint.keep_best=0", '"checkpoint.keep_best" must be at least 1; got 0'),
        ("--wandb=onlin", '"wandb" must be one of "auto", "online", "offline", "disabled"; got "onlin"'),
        # raised by the module's constructor, which jsonargparse wraps in a dump of types
        ("--model.learning_rate=-0.1", "learning_rate must be positive; got -0.1"),
        ("--trainer.default_root_dir=x", '"trainer.default_root_dir" is the run directory: use "run_dir"'),
        ("--trainer.max_steps=-1", 'training has no end: set "trainer.max_steps"'),
        ("--data.root=missing.txt", "missing.txt: No such file or directory"),
        ("extra", 'unknown argument "extra"'),
        ("--weights_only=false", 'unknown key "weights_only"'),
    ],
)
def test_override(here, capsys, override, message):
    assert error_of(capsys, "fit", "-c", "toy.yaml", override).startswith(message)
    assert not list(here.rglob("config.yaml")), "a run that never began leaves no directory"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {class_path: a\n", "bad.yaml, line 2: not valid YAML: "),
        (
            "model:\n  class_path: toy_experiment.ToyModule\n  init_args:\n    network:\n      dimm: 4\n",
            'unknown key "model.init_args.network.dimm" (bad.yaml, line 5); did you mean "dim"?',
        ),
        (
            f"{MODEL}, init_args: {{learning_rate: [1]}}}}",
            '"model.init_args.learning_rate" must be a number; got a list (bad.yaml, line 1)',
        ),
        (f"{MODEL}, init_args: {{learning_rate: {{a: 1}}}}}}", 'unknown key "model.init_args.learning_rate.a"'),
        (f"{MODEL}, learning_rate: 1}}", '"model.learning_rate" belongs under "model.init_args"'),
        (
            "model: {class_path: toy_experiment.ToyMdule}",
            '"model.class_path": "toy_experiment" has no class "ToyMdule" (bad.yaml, line 1); did you mean "ToyModule"',
        ),
        ("model: {class_path: toy_experimen.X}", '"model.class_path": there is no module "toy_experimen"'),
        (
            "model: {class_path: toy_experiment.ToyData}",
            '"model.class_path": "toy_experiment.ToyData" is not a LightningModule',
        ),
        ("model: {class_pat: x}", '"model" needs "class_path" and "init_args"; got "class_pat"'),
        ("modle: {}", 'unknown key "modle" (bad.yaml, line 1); did you mean "model"?'),
        # YAML keeps the second and says nothing
        ("trainer:\n  max_steps: 1\n  max_steps: 2\n", '"trainer.max_steps" is given twice (bad.yaml, lines 2 and 3)'),
        (
            "trainer: {callbacks: [{class_path: ModelCheckpoint, init_args: {montor: x}}]}",
            'unknown key "trainer.callbacks[0].init_args.montor" (bad.yaml, line 1); did you mean "monitor"?',
        ),
        (
            "trainer: {callbacks: [{class_path: experiments.callbacks.WeightAveragin}]}",
            '"trainer.callbacks[0].class_path": "experiments.callbacks" has no class "WeightAveragin"',
        ),
        ("trainer: 3", '"trainer" must be a mapping; got "3"'),
        ("3", '"bad.yaml" holds no keys'),
        ("", '"bad.yaml" holds no keys'),
        (f"{MODEL}}}", '"data" must be given'),
    ],
)
def test_config_file(here, capsys, text, message):
    (here / "bad.yaml").write_text(text)
    assert error_of(capsys, "fit", "-c", "bad.yaml").startswith(message)


def test_config_that_is_not_text(here, capsys):
    (here / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    assert error_of(capsys, "fit", "-c", "bad.yaml") == '"bad.yaml" is not a text file in UTF-8'


def test_missing_config(here, capsys):
    assert error_of(capsys, "fit", "-c", "toi.yaml") == 'there is no config file "toi.yaml"; did you mean "toy.yaml"?'
    assert error_of(capsys, "fit").startswith("fit needs a configuration, -c CONFIG; shipped with Heddle: ")
    assert error_of(capsys, "fit", "-c") == "-c needs the path of a configuration file"


def test_checkpoints_that_cannot_be_used(here, capsys):
    (here / "junk.ckpt").write_text("junk")
    torch.save({"weights": torch.zeros(2)}, "foreign.ckpt")
    torch.save({"state_dict": {}, "loops": torch.nn.Linear(1, 1)}, "code.ckpt")
    fit = ("fit", "-c", "toy.yaml", "--ckpt_path")
    assert error_of(capsys, *fit, "junck.ckpt").endswith('"junck.ckpt"; did you mean "junk.ckpt"?')
    assert error_of(capsys, *fit, "junk.ckpt") == '"junk.ckpt" is not a checkpoint, or it is cut short'
    assert "not a checkpoint of a training run" in error_of(capsys, *fit, "foreign.ckpt")
    # a pickled object would run code: refused
    assert error_of(capsys, *fit, "code.ckpt").startswith('"code.ckpt" is not a checkpoint that can be read')
    # Lightning would look for "last", find nothing in the new directory and train from the start without a word
    assert error_of(capsys, *fit, "last") == 'there is no checkpoint "last"'
    assert "test needs -c CONFIG" in error_of(capsys, "test", "--ckpt_path", "foreign.ckpt")


def test_defect_of_the_code_keeps_its_traceback(here):
    with pytest.raises(ValueError, match="a defect of the code"):
        main(["fit", "-c", "toy.yaml", "--model.fail=step", "--trainer.num_sanity_val_steps=0"])


def test_traceback_on_request(here, capsys, monkeypatch):
    monkeypatch.setenv("HEDDLE_TRACEBACK", "1")
    assert main(["fit", "-c", "toy.yaml", "--data.root=missing.txt"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def run_python(*words, cwd=None, **env):
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=cwd, env={**os.environ, **env}, check=False
    )


def test_help_is_light_and_lists_every_command():
    code = (
        "import sys; from experiments.__main__ import main; code = main(['--help']); "
        "assert not {'torch', 'lightning', 'wandb'} & set(sys.modules), 'heavy'; sys.exit(code)"
    )
    done = run_python("-c", code, PYTHONPATH=str(Path.cwd()))
    assert done.returncode == 0, done.stderr
    for command in ("fit", "validate", "test", "predict", "translate", "attend", "bench"):
        assert f"\n  {command} " in done.stdout


def test_unknown_command(capsys):
    from experiments.__main__ import main as dispatch

    assert dispatch(["fitt"]) == 2
    assert 'error: unknown command "fitt"; did you mean "fit"?' in capsys.readouterr().err


def test_foreign_kernels_package_is_named(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("raise RuntimeError('the wrong one was imported')")
    root = str(Path.cwd())
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {root!r}]; from experiments.__main__ import main; "
    done = run_python("-c", f"{code}sys.exit(main(['fit']))", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f'error: "import kernels" finds {tmp_path / "kernels"}')
