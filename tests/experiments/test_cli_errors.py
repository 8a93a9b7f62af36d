"""Each mistake gets one line that names the key, the file and the near miss, and exit code 2."""

import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from toy_experiment import write_config

from experiments import quiet
from experiments.callbacks.run_record import RunRecord
from experiments.cli import main
from experiments.failures import judge

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
        ("--model.learning_rate=-0.1", "model: learning_rate must be positive; got -0.1"),
        ("--trainer.default_root_dir=x", '"trainer.default_root_dir" is the run directory: use "run_dir"'),
        ("--trainer.max_steps=-1", 'training has no end: set "trainer.max_steps"'),
        ("--trainer.log_every_n_steps=0", '"trainer.log_every_n_steps" must be at least 1; got 0'),
        ("--data.root=missing.txt", "missing.txt: No such file or directory"),
        ("--model=ToyModul", '"model": there is no class "ToyModul"; did you mean "ToyModule"?'),
        ("--data=ToyDatta", '"data": there is no class "ToyDatta"; did you mean "ToyData"?'),
        ("--data=toy_experiment.ToyDatta", '"data": "toy_experiment" has no class "ToyDatta"; did you mean "ToyData"?'),
        (
            "--trainer.callbacks+=EarlyStoping",
            '"trainer.callbacks": there is no class "EarlyStoping"; did you mean "EarlyStopping"?',
        ),
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
        (
            "model: TranslationModul",
            '"model": there is no class "TranslationModul" (bad.yaml, line 1); did you mean "Tr',
        ),
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


def test_testing_after_training_needs_a_checkpoint(here, capsys):
    words = ("fit", "-c", "toy.yaml", "--test_after_fit=true")
    assert error_of(capsys, *words, "--trainer.enable_checkpointing=false").startswith('"test_after_fit" needs ')
    assert main([*words, "--trainer.fast_dev_run=true"]) == 0


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_evaluation_needs_a_checkpoint(here, capsys, command):
    message = f"{command} needs --ckpt_path CHECKPOINT: without one it would use random weights"
    assert error_of(capsys, command) == message
    assert error_of(capsys, command, "-c", "toy.yaml") == message
    assert error_of(capsys, command, "-c", "toy.yaml", "--ckpt_path=null") == message
    assert not list(here.rglob("config.yaml"))


def test_nothing_left_to_train(here, capsys):
    assert main(["fit", "-c", "toy.yaml", "--trainer.max_steps=2", "--run_dir=run"]) == 0
    capsys.readouterr()
    checkpoint = "run/checkpoints/last.ckpt"
    for steps in (1, 2):
        message = f'nothing to train: the checkpoint "{checkpoint}" is at step 2, "trainer.max_steps" is {steps}'
        assert error_of(capsys, "fit", "--ckpt_path", checkpoint, f"--trainer.max_steps={steps}") == message
    assert not Path("runs").exists()


def test_wrong_monitor_of_the_checkpoint(here, capsys):
    assert main(["fit", "-c", "toy.yaml", "--checkpoint.monitor=val/los", "--run_dir=run"]) == 2
    error, hint = capsys.readouterr().err.strip().splitlines()
    assert error.startswith('error: "checkpoint.monitor" is "val/los", which validation does not log; did you mean "va')
    assert hint.startswith("resume with: python -m experiments ")
    assert main(shlex.split(hint.removeprefix("resume with: python -m experiments "))) == 0, "the hint is right"


def test_wrong_monitor_of_early_stopping(here, capsys):
    callback = {"class_path": "EarlyStopping", "init_args": {"monitor": "val/los"}}
    write_config(here / "toy.yaml", trainer__callbacks=[callback], checkpoint__every_n_steps=1)
    assert main(["fit", "-c", "toy.yaml", "--run_dir=run"]) == 2
    error, hint = capsys.readouterr().err.strip().splitlines()
    assert error.startswith('error: "monitor" of EarlyStopping is "val/los", which is not logged; did you mean "val/l')
    assert hint == ("resume with: python -m experiments fit -c CORRECTED_CONFIG --ckpt_path run/checkpoints/last.ckpt")


def test_hint_names_the_config_of_a_resumed_run(here, capsys):
    resume = ["fit", "--ckpt_path=run/checkpoints/last.ckpt", "--run_dir=run", "--trainer.max_steps=20"]
    assert main(["fit", "-c", "toy.yaml", "--trainer.max_steps=5", "--run_dir=run"]) == 0
    assert main([*resume, "--model.signal_at_step=12"]) == 143
    hint = capsys.readouterr().err.strip().splitlines()[-1]
    assert "fit -c run/config-2.yaml --ckpt_path run/checkpoints/last.ckpt" in hint


@pytest.mark.parametrize(
    ("error", "before", "after"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 2, 4),
        (OSError(errno.EROFS, "Read-only file system", "corpus.de"), 2, 4),
        (OSError(errno.EIO, "Input/output error", "corpus.de"), 2, None),
        (OSError("libfoo.so: cannot open shared object file"), None, None),
        (ValueError("the network's logits are NaN: use an earlier checkpoint"), 2, 3),
        (KeyError("x"), None, None),
    ],
)
def test_exit_codes(error, before, after):
    record = RunRecord(None, "", [], None, None)
    codes = []
    for record.started in (False, True):
        record.evaluated = ("validation", 7, 2, torch.tensor([5, 6]))
        verdict = judge(error, record, {})
        codes.append(verdict and verdict[0])
    assert codes == [before, after]
    if after == 3:
        message = "validation after step 7, batch 2, examples 5, 6 (counted from 0): the network"
        assert str(verdict[1]).startswith(message)


def test_full_disk_while_the_run_is_recorded(here, capsys, monkeypatch):
    real = Path.write_text

    def full(path, text, **options):
        real(path, text[:1], **options)
        if path.name.startswith("git"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    Path("empty").mkdir()
    for directory in ("new", "empty"):
        message = f'cannot record the run in "{directory}": No space left on device'
        assert error_of(capsys, "fit", "-c", "toy.yaml", f"--run_dir={directory}") == message
    assert not Path("new").exists()
    assert not list(Path("empty").iterdir())


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


def test_ctrl_c_during_the_imports(monkeypatch):
    from experiments import __main__ as dispatch

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(dispatch, "main", interrupted)
    assert dispatch.run() == 130


def test_run_outlives_its_reader(tmp_path):
    code = (
        "import sys; from experiments import quiet\n"
        "with quiet.unbreakable_output():\n"
        "    for number in range(100_000): print(number)\n"
        "    print('the end', file=sys.stderr)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.stderr.read() == "the end\n"
    assert process.wait(timeout=60) == 0


def test_warning_for_the_user_is_one_line():
    assert quiet._format_warning(UserWarning("two\n lines"), UserWarning, "a.py", 3) == "warning: two lines\n"
    assert "a.py:3: DeprecationWarning" in quiet._format_warning("old", DeprecationWarning, "a.py", 3, line="x")


def test_foreign_kernels_package_is_named(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("raise RuntimeError('the wrong one was imported')")
    root = str(Path.cwd())
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {root!r}]; from experiments.__main__ import main; "
    done = run_python("-c", f"{code}sys.exit(main(['fit']))", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f'error: "import kernels" finds {tmp_path / "kernels"}')
