"""What a run ran on: commit and uncommitted changes, machine, devices and package versions."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent


def describe_git(root: Path = _ROOT) -> tuple[str, str]:
    """Return the state of a checkout.

    Args:
        root: A directory of the checkout; by default the one that holds this code.

    Returns:
        The commit, the branch and the names of changed and untracked files; and the difference to the commit.
        Outside a checkout, or without git, the first says so and the second is empty.
    """
    commit, error = _git(root, "rev-parse", "HEAD")
    if error:
        inside, _ = _git(root, "rev-parse", "--is-inside-work-tree")
        if inside.strip() != "true":
            return f"commit: unknown ({error})\n", ""
        commit = "none yet\n"
    branch, _ = _git(root, "branch", "--show-current")
    status, _ = _git(root, "status", "--porcelain", "--untracked-files=all")
    diff, _ = _git(root, "diff", "HEAD")
    state = f"status:\n{status}" if status else "status: clean\n"
    return f"commit: {commit.strip()}\nbranch: {branch.strip() or 'detached'}\n{state}", diff


def _git(root: Path, *words: str) -> tuple[str, str]:
    """Run git; return its output and, if it failed, why."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, errors="replace", timeout=20, check=False
        )
    except FileNotFoundError:
        return "", "git is not installed"
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", f"git failed: {error}"
    if done.returncode:
        return "", (done.stderr.strip().splitlines() or ["git failed"])[0]
    return done.stdout, ""


def describe_environment() -> dict[str, Any]:
    """Return interpreter, machine, devices and the version of every installed package."""
    import torch

    cuda = torch.cuda.is_available()
    packages = {
        str(distribution.metadata["Name"]): distribution.version
        for distribution in importlib.metadata.distributions()
        if distribution.metadata["Name"]
    }
    return {
        "python": sys.version,
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if cuda else [],
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "torch": torch.__version__,
        "triton": packages.get("triton"),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def cpu_model() -> str:
    """Return the processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _driver() -> str | None:
    """Return the version line of the NVIDIA driver, None without one."""
    try:
        return Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return None
