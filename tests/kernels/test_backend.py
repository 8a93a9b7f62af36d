"""Which backend runs, what it says, and what it refuses."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kernels import backend, use_backend
from kernels.backend import runs_triton

ROOT = Path(__file__).resolve().parents[2]


def on_cuda(dtype):
    """What the choice sees of a CUDA tensor."""
    return SimpleNamespace(is_cuda=True, dtype=dtype, device=SimpleNamespace(type="cuda", index=0))


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    """No backend asked for, nothing said so far, Triton installed, no interpreter."""
    monkeypatch.setattr(backend, "_forced", None)
    monkeypatch.setattr(backend, "has_triton", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    backend._announce.cache_clear()


@pytest.fixture
def said():
    """The lines that the package logs."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    backend.logger.addHandler(handler)
    yield lines
    backend.logger.removeHandler(handler)


def in_new_process(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )


def test_wrong_variable_is_named_at_import():
    run = in_new_process("import kernels.backend", HEDDLE_BACKEND="cuda")
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == 'ValueError: HEDDLE_BACKEND is "cuda"; it must be one of torch, triton'


def test_variable_chooses():
    code = "import torch; from kernels.backend import runs_triton; print(runs_triton(torch.ones(1), 'dropout'))"
    interpreted = in_new_process(code, HEDDLE_BACKEND="triton", TRITON_INTERPRET="1")
    assert interpreted.stdout.strip() == "True", interpreted.stderr
    # An empty variable asks for nothing.
    assert in_new_process(code, HEDDLE_BACKEND="").stdout.strip() == "False"


def test_device_and_dtype_choose():
    assert not runs_triton(torch.ones(1), "layer_norm")
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert runs_triton(on_cuda(dtype), "layer_norm")
    assert not runs_triton(on_cuda(torch.float64), "layer_norm")


def test_without_triton_cuda_runs_in_pytorch(monkeypatch):
    monkeypatch.setattr(backend, "has_triton", lambda: False)
    assert not runs_triton(on_cuda(torch.float16), "layer_norm")
    with use_backend("triton"), pytest.raises(ValueError, match="layer_norm.*needs the package triton"):
        runs_triton(on_cuda(torch.float16), "layer_norm")


def test_use_backend_nests_and_restores_after_an_exception():
    with use_backend("triton"):
        assert runs_triton(on_cuda(torch.float32), "layer_norm")
        with pytest.raises(RuntimeError, match="inside"), use_backend("torch"):
            assert not runs_triton(on_cuda(torch.float32), "layer_norm")
            raise RuntimeError("inside")
        assert backend._forced == "triton"
    assert backend._forced is None


def test_use_backend_refuses_what_does_not_exist():
    with pytest.raises(ValueError, match='the backend is "cuda"; it must be one of torch, triton'):
        with use_backend("cuda"):
            pytest.fail("the block must not run")
    assert backend._forced is None


def test_triton_on_a_cpu_is_refused_with_both_remedies():
    with (
        use_backend("triton"),
        pytest.raises(ValueError, match="layer_norm.*CUDA tensors, got cpu.*TRITON_INTERPRET=1"),
    ):
        runs_triton(torch.ones(1), "layer_norm")


@pytest.mark.parametrize("value", ["1", "true", "ON"])
def test_interpreter_runs_triton_on_a_cpu(value, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", value)
    with use_backend("triton"):
        assert runs_triton(torch.ones(1), "layer_norm")


def test_interpreter_refuses_bfloat16(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with use_backend("triton"), pytest.raises(ValueError, match="layer_norm.*interpreter.*bfloat16.*float32"):
        runs_triton(torch.ones(1, dtype=torch.bfloat16), "layer_norm")


def test_triton_refuses_float64(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with use_backend("triton"), pytest.raises(ValueError, match="layer_norm.*take torch.float16.*got torch.float64"):
        runs_triton(torch.ones(1, dtype=torch.float64), "layer_norm")


def test_says_once_what_runs_and_why(said):
    for _ in range(2):
        runs_triton(torch.ones(1), "layer_norm")
        runs_triton(torch.ones(1), "flash_attention")
    assert said == ["heddle: attention, norms and losses run in PyTorch: the tensors are on cpu"]
    with use_backend("torch"):
        runs_triton(torch.ones(1), "layer_norm")
    assert said[1:] == ['heddle: attention, norms and losses run in PyTorch: "torch" was asked for']
    runs_triton(on_cuda(torch.float32), "layer_norm")
    assert said[2:] == ["heddle: attention, norms and losses run in Triton kernels: the tensors are on cuda"]


def test_says_that_it_interprets(said, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with use_backend("triton"):
        runs_triton(torch.ones(1), "layer_norm")
    assert "Triton kernels, interpreted" in said[0]


def test_says_nothing_while_torch_compiles(said, monkeypatch):
    """A message would break the graph."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert runs_triton(on_cuda(torch.float16), "layer_norm")
    assert not said
