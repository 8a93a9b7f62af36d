"""``fit``, ``validate``, ``test`` and ``predict``: LightningCLI with clear errors and a directory for each run."""

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from experiments import arguments as command_line
from experiments import quiet, run_directory
from experiments.average import average_files
from experiments.callbacks.checkpoints import BestCheckpoint, CheckpointOptions, LastCheckpoint
from experiments.callbacks.graceful_stop import GracefulStop
from experiments.callbacks.non_finite import StopOnNonFinite
from experiments.callbacks.open_test_split import OpenTestSplit
from experiments.callbacks.progress import StepProgressBar
from experiments.callbacks.rng_state import RNGState
from experiments.callbacks.run_record import RunRecord
from experiments.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from experiments.config_check import check, check_settings
from experiments.errors import StopRequested, UsageError
from experiments.failures import judge, message, resume_hint
from experiments.loggers import LazyWandbLogger, MetricsCSV, WandbChoice, wandb_mode
from experiments.parser import HeddleArgumentParser
from experiments.precision import fastest_precision
from experiments.predictions import gather_predictions, write_predictions

# Training is counted in steps: an epoch's end must not decide when to validate or to stop.
TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": -1,
    "check_val_every_n_epoch": None,
    "val_check_interval": 1000,
    "devices": 1,
    # Our loaders divide their data themselves and resume exactly; Lightning's sampler does not.
    "use_distributed_sampler": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
# Keys that belong to one command or one run, and would make a recorded config unfit for replay.
_NOT_REPLAYED = ("config", "ckpt_path", "run_dir", "verbose", "return_predictions")


class HeddleCLI(LightningCLI):
    """LightningCLI with a run directory, our callbacks and loggers, and no silent overriding.

    Attributes:
        run: The run directory, once it is made.
        record: The callback that knows how far the run came.
        last: The callback that writes ``last.ckpt``.
        best: The callback that writes ``best.ckpt``, if a metric is monitored.
        checkpoint: What ``--ckpt_path`` holds; its tensors stay in the file.
        built: The classes that the configuration describes, and the key of each.
    """

    def __init__(self) -> None:
        self.run: run_directory.RunDirectory | None = None
        self.record: RunRecord | None = None
        self.last: LastCheckpoint | None = None
        self.best: BestCheckpoint | None = None
        self.checkpoint: dict[str, Any] = {}
        self.built: dict[type, str] = {}

    def start(self, given: command_line.Arguments) -> None:
        """Parse, build and run, all of which LightningCLI does in its constructor.

        Args:
            given: The command line, its files known to exist.
        """
        self.given = given
        super().__init__(
            LightningModule,
            LightningDataModule,
            save_config_callback=None,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=1,
            parser_kwargs={"prog": "python -m experiments"},
            parser_class=HeddleArgumentParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=given.command_line(),
            auto_configure_optimizers=False,
            # Keeps class paths out of save_hyperparameters: a checkpoint's settings are the module's affair.
            load_from_checkpoint_support=False,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the commands and the arguments that are not offered: checkpoints are never trusted with code."""
        return {name: hidden | {"weights_only", "verbose"} for name, hidden in LightningCLI.subcommands().items()}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that Lightning does not have."""
        parser.add_argument(
            "--run_dir", type=str | None, default=None, help="Directory of the run (default: runs/TASK/CONFIG/TIME)."
        )
        parser.add_argument(
            "--wandb", type=WandbChoice, default="auto", help="auto: online when logged in, offline when not."
        )
        parser.add_argument("--wandb_project", type=str, default="heddle", help="Project in W&B.")
        parser.add_argument(
            "--test_after_fit", type=bool, default=False, help="fit: test the best checkpoint after training."
        )
        parser.add_argument(
            "--auto_precision",
            type=bool,
            default=False,
            help="bf16-mixed where the device multiplies bfloat16 natively, else 32-true.",
        )
        parser.add_class_arguments(CheckpointOptions, "checkpoint")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Check files and overrides, then parse."""
        if not self.given.asks_for_help:
            self.built = check(self._subcommand_parsers[self.given.command], self.given)
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Look at the checkpoint, and leave the configuration as it was given.

        Lightning lays the hyper-parameters of the checkpoint over the configuration here, without a word.
        """
        path = self.config[self.config.subcommand].get("ckpt_path")
        if path:
            command_line.check_checkpoint_path(str(path))
            self.checkpoint = read_checkpoint(path, mmap=True)

    def before_instantiate_classes(self) -> None:
        """Refuse values that contradict each other or the checkpoint."""
        check_settings(str(self.subcommand), self.config[self.subcommand], self.checkpoint)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Build the trainer with the run directory and what always belongs to a run."""
        settings = self.config[self.subcommand]
        ckpt_path = str(settings.ckpt_path) if settings.get("ckpt_path") else None
        name = run_directory.run_name(self.given.configs[0] if self.given.configs else None)
        self.run = self._run_directory(settings.run_dir, name, ckpt_path)
        text = self._config_text()
        earlier = self._earlier_record()
        self.record = RunRecord(self.run, text, self.given.command_line(), ckpt_path, earlier.get("wandb_id"))
        config = dict(config)
        if settings.auto_precision:
            config["precision"] = fastest_precision(config.get("accelerator", "auto"))
        config["callbacks"] = self._callbacks(config, callbacks)
        config["logger"] = self._loggers(config.get("logger"), settings, text, earlier.get("wandb_id"))
        config["default_root_dir"] = str(self.run.path)
        plugins = config.get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins = [*plugins, AtomicCheckpointIO()]
        config["plugins"] = plugins
        trainer = self.trainer_class(**config)
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                logger.steps_done = lambda: trainer.global_step
        if trainer.world_size > 1 and trainer.global_rank == 0:
            # Lightning starts the other processes from this one: they share the directory.
            os.environ["HEDDLE_RUN_DIR"] = str(self.run.path)
        return trainer

    def _run_directory(self, wanted: str | None, name: str, ckpt_path: str | None) -> run_directory.RunDirectory:
        if _process_rank() != 0:
            shared = os.environ.get("HEDDLE_RUN_DIR", wanted or "runs")
            return run_directory.RunDirectory(Path(shared), name, False)
        return run_directory.create(wanted, name, str(self.subcommand), ckpt_path)

    def _earlier_record(self) -> Mapping[str, Any]:
        """Return what the run that is resumed stored about itself."""
        states = self.checkpoint.get("callbacks", {}) if self.subcommand == "fit" else {}
        return states.get("RunRecord", {}) if isinstance(states, dict) else {}

    def _config_text(self) -> str:
        """Return the configuration as YAML, fit for each of the four commands."""
        dumped = self._parser(self.subcommand).dump(self.config[self.subcommand], skip_unset=False)
        kept = {key: value for key, value in yaml.safe_load(dumped).items() if key not in _NOT_REPLAYED}
        return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)

    def _callbacks(self, config: Mapping[str, Any], callbacks: list[Callback]) -> list[Callback]:
        """Return the user's callbacks, then ours; Lightning itself moves checkpoints to the end."""
        assert self.run is not None and self.record is not None
        chosen = config.get("callbacks") or []
        found = [*(chosen if isinstance(chosen, list) else [chosen]), *callbacks]
        found.append(self.record)
        # One of these that the config lists, with other settings, takes the place of ours.
        found += [kind() for kind in (RNGState, StopOnNonFinite, GracefulStop) if not _has(found, kind)]
        if config.get("enable_progress_bar") is not False and not _has(found, ProgressBar):
            found.append(StepProgressBar())
        if self.subcommand == "fit" and self.config[self.subcommand].test_after_fit:
            found.append(OpenTestSplit())
        if self.subcommand == "fit" and config.get("enable_checkpointing") is not False:
            options: CheckpointOptions = self.config_init[self.subcommand].checkpoint
            self.last = LastCheckpoint(self.run.checkpoints, options.every_n_steps, options.keep_last)
            found.append(self.last)
            if options.monitor is not None:
                self.best = BestCheckpoint(self.run.checkpoints, options)
                found.append(self.best)
        # The user's own ModelCheckpoint, if any, comes after ours.
        return sorted(found, key=lambda callback: isinstance(callback, Checkpoint))

    def _loggers(self, chosen: Any, settings: Any, config: str, wandb_id: str | None) -> list[Logger]:
        """Return metrics.csv, then W&B, then the user's loggers; ``trainer.logger: false`` leaves only the first."""
        assert self.run is not None
        loggers: list[Logger] = [MetricsCSV(self.run.path)]
        if chosen is False:
            return loggers
        mode = wandb_mode(settings.wandb) if _process_rank() == 0 else None
        if mode is not None:
            name = f"{self.run.name}/{self.run.path.name}"
            loggers.append(
                LazyWandbLogger(mode, yaml.safe_load(config), self.run.path, settings.wandb_project, name, wandb_id)
            )
        if isinstance(chosen, Logger):
            loggers.append(chosen)
        elif isinstance(chosen, (list, tuple)):
            loggers.extend(chosen)
        return loggers

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the command, then what follows it; W&B ends with the exit code."""
        failed = True
        try:
            result = self._call(subcommand)
            if subcommand == "predict":
                self._after_predict(result)
            elif subcommand == "fit":
                self._after_fit()
            else:
                print(f"run directory  {self._directory}")
            failed = False
        finally:
            for logger in self.trainer.loggers:
                if isinstance(logger, LazyWandbLogger):
                    logger.finish(int(failed))

    def _call(self, subcommand: str) -> Any:
        arguments = self._prepare_subcommand_kwargs(subcommand)
        method: Callable[..., Any] = getattr(self.trainer, subcommand)
        if subcommand in ("validate", "test"):
            arguments["verbose"] = False  # the modules print their own scores, with what makes them comparable
        return method(**arguments, weights_only=True)

    @property
    def _directory(self) -> Path:
        assert self.run is not None
        return self.run.path

    def _after_predict(self, predictions: Any) -> None:
        predictions = gather_predictions(predictions)
        if not self.trainer.is_global_zero:
            return
        columns = getattr(self.model, "prediction_columns", ())
        json = getattr(self.model, "predictions_are_json", False)
        written = write_predictions(predictions, self._directory, columns, json=json)
        print(f"run directory  {self._directory}")
        if written:
            print(f"predictions    {written}")

    def _after_fit(self) -> None:
        """Test if asked to, and say where everything is."""
        best = Path(self.best.best_model_path) if self.best and self.best.best_model_path else None
        last = self.last.path if self.last and self.last.path.is_file() else None
        averaged = self._average()
        if self.config[self.subcommand].test_after_fit and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            chosen = averaged or best or last
            if chosen is None:
                raise UsageError('"test_after_fit" has no checkpoint to test: no step was trained')
            self.trainer.test(
                self.model, datamodule=self.datamodule, ckpt_path=str(chosen), verbose=False, weights_only=True
            )
        if self.trainer.is_global_zero:
            self._print_summary(best, last)
            if averaged is not None:
                print(f"averaged       {averaged}")

    def _average(self) -> Path | None:
        """Average the kept checkpoints if the configuration says so, and return the file."""
        kind = self.config[self.subcommand].checkpoint.average
        if kind == "none" or self.last is None:
            return None
        kept = list(self.best.best_k_models) if kind == "best" and self.best else self.last.kept
        if not kept:
            return None
        path = self.last.path.with_name("averaged.ckpt")
        if self.trainer.is_global_zero:
            average_files([Path(name) for name in kept], path)
        self.trainer.strategy.barrier("averaged.ckpt")
        return path

    def _print_summary(self, best: Path | None, last: Path | None) -> None:
        here = Path.cwd()
        print(f"run directory  {self._directory}")
        if best is not None:
            value = self.best.best_model_score if self.best else None
            score = f" ({self.best.monitor} {float(value):.4g})" if self.best and value is not None else ""
            print(f"checkpoint     {best.relative_to(here) if best.is_relative_to(here) else best}{score}")
        elif last is not None:
            print(f"checkpoint     {last}")
        for picture in sorted(self._directory.rglob("*.png")):
            if "wandb" not in picture.relative_to(self._directory).parts:
                print(f"picture        {picture}")


def main(argv: list[str] | None = None) -> int:
    """Run one of the Lightning commands.

    Args:
        argv: Words that begin with the command; those of the process if None.

    Returns:
        The exit code, see :mod:`experiments.errors`.
    """
    quiet.install()
    with quiet.unbreakable_output():
        return _run(sys.argv[1:] if argv is None else argv)


def _run(words: list[str]) -> int:
    cli = HeddleCLI()
    try:
        cli.start(command_line.complete(command_line.split(words)))
    except SystemExit as stop:
        return _interrupted(cli) if cli.record and cli.record.interrupted else int(stop.code or 0)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return _interrupted(cli)
    except StopRequested as stop:
        _say_where_to_resume(cli)
        return 128 + stop.signal_number
    except Exception as error:
        verdict = judge(error, cli.record, cli.built)
        if verdict is None:
            raise
        return _fail(cli, *verdict)
    return 0


def _has(callbacks: list[Callback], kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)


def _process_rank() -> int:
    """Return the rank of this process, known before the trainer is built."""
    return int(getattr(rank_zero_only, "rank", 0))


def _interrupted(cli: HeddleCLI) -> int:
    if cli.run is not None and not (cli.record and cli.record.started):
        cli.run.discard()
    return 130


def _fail(cli: HeddleCLI, code: int, error: Exception) -> int:
    """Print one line, with the checkpoint that is left, and return the exit code."""
    if os.environ.get("HEDDLE_TRACEBACK", "") not in ("", "0"):
        traceback.print_exc()
    print(f"error: {message(error)}", file=sys.stderr, flush=True)
    if cli.record is not None and cli.record.started:
        _say_where_to_resume(cli, error)
    elif cli.run is not None:
        cli.run.discard()
    return code


def _say_where_to_resume(cli: HeddleCLI, error: Exception | None = None) -> None:
    if cli.record is not None and cli.last is not None and cli.last.path.is_file():
        print(resume_hint(cli.last.path, cli.record, error), file=sys.stderr, flush=True)
