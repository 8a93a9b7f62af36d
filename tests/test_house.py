"""The house's rules that a machine can hold: who may import whom, and what start-up may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "kernels": {"kernels"},
    "lit_models": {"kernels", "lit_models", "datamodules.batches"},
    "datamodules": {"datamodules"},
    "experiments": {"kernels", "lit_models", "datamodules", "experiments"},
}


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_down_the_house(package):
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for module in imported_modules(path)
        if module.split(".")[0] in ALLOWED
        and not any(module == name or module.startswith(f"{name}.") for name in ALLOWED[package])
    ]
    assert not wrong


def test_only_one_lightning():
    for package in ALLOWED:
        for path in (ROOT / package).rglob("*.py"):
            assert not any(module.split(".")[0] == "pytorch_lightning" for module in imported_modules(path)), path


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        # torch's own FLOP counter, in which the operators enter their formulas, imports triton.
        ("import kernels", ["lightning", "wandb", "matplotlib", "sentencepiece", "transformers"]),
        ("import lit_models.translation.transformer", ["lightning", "wandb", "matplotlib", "sentencepiece"]),
        ("import datamodules", ["torch", "lightning", "wandb"]),
        ("import experiments.__main__", ["torch", "lightning", "wandb"]),
        ("import lit_models.translation.module", ["wandb", "sacrebleu", "sacremoses"]),
    ],
)
def test_start_up_is_light(statement, unwanted):
    code = f"import sys; {statement}; print([name for name in {unwanted!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
