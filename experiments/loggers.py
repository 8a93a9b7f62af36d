"""Loggers: ``metrics.csv`` always, Weights & Biases when it can be reached, never in the way of a run."""

import contextlib
import csv
import importlib.util
import io
import os
import socket
import urllib.parse
import urllib.request
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

WandbChoice = Literal["auto", "online", "offline", "disabled"]
# Long enough for a slow connection, short enough not to be taken for a hang.
INIT_TIMEOUT_SECONDS = 8.0
CONNECT_TIMEOUT_SECONDS = 3.0


class MetricsCSV(Logger):
    """Appends each row to ``metrics.csv`` at once, so that a killed run keeps what it measured.

    A metric that appears later adds a column: the file is rewritten with empty cells in the earlier rows. A resumed
    run in the same directory continues the file.

    Attributes:
        steps_done: Returns the number of optimizer steps done. Lightning counts its rows from 0, and those of a
            validation with the step before it.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        super().__init__()
        self._directory = str(directory)
        self._columns: list[str] | None = None
        self.steps_done: Callable[[], int] | None = None

    @property
    def name(self) -> str:
        """Empty: the file lies directly in the run directory."""
        return ""

    @property
    def version(self) -> str:
        """Empty: the file lies directly in the run directory."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run directory."""
        return self._directory

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self._directory, "metrics.csv")

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: ``config.yaml`` holds the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row.

        Args:
            metrics: Value by name.
            step: Number of the row as Lightning counts; used where ``steps_done`` is not set.
        """
        step = self.steps_done() if self.steps_done is not None else step
        row: dict[str, Any] = {"step": step, "epoch": metrics.get("epoch"), **metrics}
        row = {key: value.item() if isinstance(value, torch.Tensor) else value for key, value in row.items()}
        if self._columns is None:
            self._columns = self._existing_columns()
        fresh = [key for key in row if key not in self._columns]
        if fresh:
            self._columns += fresh
            self._widen()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _existing_columns(self) -> list[str]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return next(csv.reader(file), [])

    def _widen(self) -> None:
        """Rewrite the file with the present columns."""
        assert self._columns is not None
        rows: list[dict[str, Any]] = []
        if self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        temporary = self.path.with_suffix(".csv.tmp")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self.path)


class LazyWandbLogger(WandbLogger):
    """A W&B logger that starts when the run starts, and falls back to offline when the server does not answer.

    Args:
        mode: ``online`` or ``offline``.
        config: The whole configuration, kept as ``cli`` in the W&B config.
        directory: The run directory.
        project: W&B project.
        name: Name of the run in W&B.
        run_id: Id of the run to continue, None for a new one.
    """

    def __init__(
        self,
        mode: Literal["online", "offline"],
        config: Mapping[str, Any],
        directory: str | os.PathLike[str],
        project: str,
        name: str,
        run_id: str | None = None,
    ) -> None:
        super().__init__(project=project, save_dir=str(directory), name=name, id=run_id)
        self._mode = mode
        self._cli_config = dict(config)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run; started at the first use."""
        if self._experiment is None:
            self._experiment = self._start()
        return self._experiment

    def _start(self) -> Any:
        import wandb

        run = None
        if self._mode == "online":
            failure = unreachable(wandb.setup().settings.base_url)
            try:
                run = self._init("online") if failure is None else None
            except wandb.errors.Error as error:
                failure = " ".join(str(error).split())[:120]
                wandb.teardown()
            if failure is not None:
                print(f"W&B does not answer ({failure}); logging offline instead")
        run = run or self._init("offline")
        run.config.update({"cli": self._cli_config}, allow_val_change=True)
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        if getattr(run, "offline", False):
            print(f"W&B offline: upload later with: wandb sync {Path(run.dir).parent}")
        elif self._mode == "online":
            print(f"W&B: {run.url}")
        return run

    def _init(self, mode: Literal["online", "offline"]) -> Any:
        import wandb

        settings = wandb.Settings(silent=True, console="off", init_timeout=INIT_TIMEOUT_SECONDS)
        return wandb.init(
            project=self._project,
            name=self._name,
            dir=self._save_dir,
            id=self._id,
            resume="allow" if self._id else None,
            mode=mode,
            settings=settings,
        )

    def finish(self, exit_code: int) -> None:
        """End the W&B run, so that a later one in this process is a run of its own."""
        if self._experiment is not None:
            self._id = self._experiment.id
            self._experiment.finish(exit_code=exit_code)
            self._experiment = None


def unreachable(url: str) -> str | None:
    """Return why a server cannot be reached, None if it can or if only a proxy could tell.

    W&B itself retries for a long time before it gives up.

    Args:
        url: Address of the server.
    """
    if urllib.request.getproxies():
        return None
    parts = urllib.parse.urlsplit(url)
    try:
        with socket.create_connection(
            (parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)),
            timeout=CONNECT_TIMEOUT_SECONDS,
        ):
            return None
    except OSError as error:
        return f"{parts.hostname}: {error.strerror or error}"


def wandb_mode(choice: WandbChoice) -> Literal["online", "offline"] | None:
    """Decide how to use W&B.

    Args:
        choice: ``auto`` follows ``WANDB_MODE`` where it is set; else it is online with credentials, offline without.

    Returns:
        The mode, None if W&B is not installed or not wanted.
    """
    if choice == "disabled" or importlib.util.find_spec("wandb") is None:
        return None
    if choice in ("online", "offline"):
        return choice
    wanted = os.environ.get("WANDB_MODE", "").lower()
    if wanted in ("disabled", "offline", "online"):
        return None if wanted == "disabled" else wanted  # type: ignore[return-value]
    if wanted == "dryrun":
        return "offline"
    import wandb

    try:
        with contextlib.redirect_stderr(io.StringIO()):  # it announces which account it found
            return "online" if wandb.login(prompt=False, verify=False) else "offline"
    except wandb.errors.Error:
        return "offline"
