"""Unsafe compilers on Hopper: one warning each with the remedy, and a safe ptxas where there is one."""

import os
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kernels import hopper

triton = pytest.importorskip("triton")
compiler = pytest.importorskip("triton.backends.nvidia.compiler")


def forget():
    """Make :func:`hopper.prepare` look again."""
    hopper._is_hopper.cache_clear()
    hopper._prepare_hopper.cache_clear()


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A function that sets up a machine with a Hopper, and runs :func:`hopper.prepare`; returns what it warned of."""
    # Set first, so that the test's end removes what the code under test writes.
    monkeypatch.setenv("TRITON_PTXAS_PATH", "")
    monkeypatch.delenv("TRITON_PTXAS_PATH")
    forget()

    def prepare(version="3.8.0", ptxas=(12, 9), bundled=(13, 3), driver=13000, capability=(9, 0)):
        (tmp_path / "bin").mkdir(exist_ok=True)
        newer = tmp_path / "bin" / "ptxas-blackwell"
        if bundled:
            newer.touch()
        monkeypatch.setattr(compiler, "__file__", str(tmp_path / "compiler.py"))
        monkeypatch.setattr(compiler, "get_ptxas", lambda arch: SimpleNamespace(path="/cuda/ptxas"))
        monkeypatch.setattr(hopper, "ptxas_version", {"/cuda/ptxas": ptxas, str(newer): bundled}.__getitem__)
        monkeypatch.setattr(triton, "__version__", version)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: driver, raising=False)
        hopper._is_hopper.cache_clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            hopper.prepare(SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0)))
        return [str(warning.message) for warning in caught]

    yield prepare
    forget()


@pytest.mark.parametrize(
    "version, warned",
    # The first and the last of the bad versions, a local build of it, and their neighbours.
    [("3.3.1", False), ("3.4.0", True), ("3.6.0", True), ("3.7.0+git123", True), ("3.7.1", False), ("3.8.0", False)],
)
def test_versions_that_miscompile(version, warned, machine):
    messages = machine(version=version, ptxas=(13, 4))
    assert len(messages) == warned
    if warned:
        assert f"Triton {version}" in messages[0] and "install triton 3.7.1 or newer" in messages[0]


def test_old_ptxas_is_replaced_where_the_driver_loads_the_newer_ones_code(machine, tmp_path):
    assert not machine()
    assert os.environ["TRITON_PTXAS_PATH"] == str(tmp_path / "bin" / "ptxas-blackwell")


def test_safe_ptxas_stays(machine):
    assert not machine(ptxas=(13, 3))
    assert "TRITON_PTXAS_PATH" not in os.environ


@pytest.mark.parametrize(
    "without",
    [{"driver": 12080}, {"bundled": (13, 1)}, {"bundled": None}],
    ids=["driver of CUDA 12", "bundled ptxas too old", "none bundled"],
)
def test_old_ptxas_without_remedy_is_warned_of_once(without, machine):
    (message,) = machine(**without)
    assert "/cuda/ptxas is ptxas 12.9" in message and "triton 3.9 or newer" in message
    assert "TRITON_PTXAS_PATH" not in os.environ
    assert not machine(**without)


def test_path_that_the_user_chose_stays(machine, monkeypatch):
    monkeypatch.setenv("TRITON_PTXAS_PATH", "/cuda/ptxas")
    (message,) = machine()
    assert "/cuda/ptxas is ptxas 12.9" in message
    assert os.environ["TRITON_PTXAS_PATH"] == "/cuda/ptxas"


def test_other_gpus_are_left_alone(machine):
    for capability in ((8, 0), (8, 9), (10, 0)):
        assert not machine(version="3.6.0", ptxas=(12, 8), driver=12080, capability=capability)


def test_cpu_tensors_are_not_looked_at(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: pytest.fail("asked for a GPU"))
    hopper.prepare(torch.ones(1))


def test_versions_of_the_real_assemblers():
    for path in (Path(compiler.__file__).parent / "bin").glob("ptxas*"):
        assert hopper.ptxas_version(str(path)) >= (12, 0), path
    # Triton reads the same.
    path = hopper._ptxas_of_hopper(compiler)
    assert ".".join(map(str, hopper.ptxas_version(path))) == compiler.get_ptxas(90).version
    # What is no ptxas has no version.
    assert hopper.ptxas_version("/bin/true") == (0, 0)


def test_triton_uses_the_path_for_hopper(monkeypatch):
    newer = Path(compiler.__file__).parent / "bin" / "ptxas-blackwell"
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(newer))
    assert hopper._ptxas_of_hopper(compiler) == str(newer)


@pytest.mark.parametrize("version, loads", [(0, False), (12080, False), (13000, True), (13030, True)])
def test_driver_version(version, loads, monkeypatch):
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: version, raising=False)
    assert hopper.driver_loads_13() == loads
