"""The benchmark of shifted windows: what it counts, that all compute the same, and that a mistake is seen."""

import dataclasses

import pytest
import torch

from experiments.__main__ import main as dispatch
from experiments.bench import kernel_run, kernel_timing, record, window_attention
from experiments.bench.kernel_case import OURS, Check, NotSupported, refusal
from experiments.bench.window_attention import WindowCase
from experiments.bench.window_attention_providers import NAMES, PROVIDERS, flex, region_ids
from kernels import window_attention as ours

CPU = torch.device("cpu")
# 2 x 2 windows of 3 x 3 tokens, so that all four kinds of the last row and column occur
TOY = WindowCase("toy", batch=2, size=6, heads=2, head_dim=4, window=3)
CASES = {
    "plain": TOY,
    "shifted": dataclasses.replace(TOY, shift=1),
    "cosine": dataclasses.replace(TOY, shift=1, cosine=True),
    "one window": dataclasses.replace(TOY, size=3),
}


def test_the_shapes_are_those_of_the_targets():
    cases = {
        group: [case for case in window_attention.CASES if case.group == group]
        for group in ("swin", "swinv2", "swinv2_16")
    }
    for group, window, sizes in (("swin", 7, (56, 28, 14, 7)), ("swinv2", 8, (64, 32, 16, 8))):
        heads = dict(zip(sizes, (3, 6, 12, 24), strict=True))
        found = {(case.size, case.heads, case.shift) for case in cases[group]}
        shifted = {(size, heads[size], window // 2) for size in sizes[:3]}  # no network shifts a single window
        assert found == {(size, heads[size], 0) for size in sizes} | shifted
        assert {(case.window, case.head_dim, case.cosine) for case in cases[group]} == {(window, 32, window == 8)}
    assert {(case.size, case.window, case.shift) for case in cases["swinv2_16"]} == {
        (64, 16, 0), (64, 16, 8), (32, 16, 0), (32, 16, 8), (16, 16, 0),
    }  # fmt: skip
    assert cases["swin"][0].label == "128x56x56x96 window 7"
    assert cases["swinv2"][1].shrunk().label == "2x64x64x96 window 8 shift 4 cosine"


def test_bytes_are_those_of_the_tensors():
    inputs = TOY.make(CPU, torch.bfloat16)
    [upstream], qkv = inputs.upstream, inputs["qkv"]
    output = TOY.plain(inputs)[0]
    assert TOY.work("forward", 2) == qkv.nbytes + output.nbytes
    assert TOY.work("backward", 2) == qkv.nbytes + upstream.nbytes + qkv.nbytes  # and the gradient of qkv


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_all_compute_what_the_kernel_does(case):
    inputs = case.make(CPU, torch.float64)
    settings = {"window_size": case.window, "shift": case.shift, "num_heads": case.heads}
    expected = ours(inputs["qkv"], inputs["table"], **settings, logit_scale=inputs["logit_scale"])
    expected_gradients = torch.autograd.grad(expected, inputs.leaves(), inputs.upstream)
    torch.testing.assert_close(case.plain(inputs)[0], expected)
    for name in ("eager", "sdpa"):
        [output] = PROVIDERS[name](case, inputs).forward()
        gradients = torch.autograd.grad(output, inputs.leaves(), inputs.upstream)
        torch.testing.assert_close((output, *gradients), (expected, *expected_gradients))
    tensors = {name: None if inputs[name] is None else inputs[name].detach() for name in (*NAMES[:-1], "regions")}
    output = flex(*tensors.values(), case.window, case.shift)  # FlexAttention has no backward on a CPU
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=1e-5)  # its scores are in float32


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_right_providers_pass_the_check(case):
    check = Check(case, case.make(CPU, torch.float32))
    for name in (OURS, "sdpa"):
        assert refusal(check, PROVIDERS[name]) is None, name


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("mask", lambda mask: None, "of the output"),
        ("relative", lambda relative: relative.T, "of the output"),  # keys and queries exchanged
        ("logit_scale", lambda scale: scale.clamp(max=6.0), "of the output"),
        ("table", torch.Tensor.detach, "no gradient of table"),
    ],
)
def test_a_mistake_is_seen(name, change, reason):
    case = CASES["cosine"]

    def wrong(case, inputs):
        tensors = {**inputs.tensors, name: change(inputs[name])}
        return PROVIDERS["eager"](case, dataclasses.replace(inputs, tensors=tensors))

    found = refusal(Check(case, case.make(CPU, torch.float32)), wrong)
    assert found is not None and reason in found.reason


def test_regions_are_the_corners_of_a_shifted_map():
    # Of 6 x 6 tokens shifted by 1, the last row and column came from the other side.
    assert region_ids(6, 3, 1).tolist() == [
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 2, 1, 1, 2, 1, 1, 2],
        [3, 3, 3, 3, 3, 3, 6, 6, 6],
        [4, 4, 5, 4, 4, 5, 7, 7, 8],
    ]


def test_what_others_cannot_do_is_said(monkeypatch):
    with pytest.raises(NotSupported, match="no backward on a CPU"):
        PROVIDERS["flex"](TOY, TOY.make(CPU, torch.float32))
    session = kernel_run.Session(
        window_attention.BENCHMARK, kernel_run.parse(window_attention.BENCHMARK, []), device=CPU
    )
    for name in ("compile-eager", "compile-sdpa"):
        with pytest.raises(NotSupported, match="only if --providers names it"):
            session.providers[name](TOY, TOY.make(CPU, torch.float32))


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setitem(kernel_timing.SECONDS_EACH, "cpu", 0.001)
    monkeypatch.setattr(kernel_run, "measure_roofs", lambda *arguments: kernel_timing.Roofs(1.0, 1.0))
    return tmp_path


def test_the_batch_is_what_was_asked_for(results, monkeypatch, capsys):
    benchmark = dataclasses.replace(window_attention.BENCHMARK, cases=[dataclasses.replace(CASES["cosine"], batch=0)])
    monkeypatch.setattr(window_attention, "BENCHMARK", benchmark)
    for words, label in (([], "2x6x6x8 window 3 shift 1 cosine"), (["--batch-size", "3"], "3x6x6x8 window 3 shift 1")):
        assert dispatch(["bench", "window_attention", *words]) == 0
        assert label in capsys.readouterr().out
    assert dispatch(["bench", "window_attention", "--batch-size", "0"]) == 2
    assert "'0' must be a whole number of 1 or more" in capsys.readouterr().err


def test_every_launch_entry_is_a_provider(monkeypatch):
    from kernels.window_attention import tuning

    small, large = tuning.Entry(16, 16, 1, 2, 4), tuning.Entry(64, 64, 4, 2, 4)
    shape = tuning.Shape("sm_90", 2, 16, 16, tuning.PLAIN)
    entries = [("forward", small), ("forward", large), ("backward_window", small), ("backward_query", large)]
    monkeypatch.setattr(tuning, "entries", lambda: ((kind, shape, entry) for kind, entry in entries * 2))
    benchmark = dataclasses.replace(window_attention.BENCHMARK, cases=[CASES["shifted"]])
    monkeypatch.setattr(window_attention, "BENCHMARK", benchmark)
    monkeypatch.setitem(kernel_timing.SECONDS_EACH, "cpu", 0.001)
    options = kernel_run.parse(benchmark, [], numbers={"batch_size": ""}, all_configs="")
    sessions = window_attention.entry_sessions(options)
    name = "16x16 warps 1 stages 2 programs 4"
    assert [list(session.providers) for session in sessions] == [
        [OURS, f"forward {name}", "forward 64x64 warps 4 stages 2 programs 4"],
        [OURS, f"backward_window {name}", "backward_query 64x64 warps 4 stages 2 programs 4"],
    ]
    for session, direction in zip(sessions, ("forward", "backward"), strict=True):
        ours, fits, other = kernel_run.measure_case(session, session.cases()[0]).values()
        assert list(ours.seconds) == list(fits.seconds) == [(direction, "eager")]
        assert other.refusal.status == "not supported"
    inputs = TOY.make(CPU, torch.float32)
    with sessions[0].providers[f"forward {name}"](TOY, inputs).context():
        assert tuning.entry("forward", shape) == small


def test_entries_are_timed_on_a_gpu_alone(capsys):
    assert dispatch(["bench", "window_attention", "--all-configs"]) == 2
    assert "--all-configs needs a GPU" in capsys.readouterr().err
