"""The kernel benchmarks on a CPU: what they count, what they refuse, what they print and write."""

import contextlib
import csv
import dataclasses
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend

from experiments.__main__ import main as dispatch
from experiments.bench import attention, kernel_run, kernel_timing, layer_norm, linear_cross_entropy, record
from experiments.bench import window_attention as windows
from experiments.bench.attention_providers import PROVIDERS, plain_attention, sdpa_reason
from experiments.bench.kernel_case import OURS, Built, Check, NotSupported, Refusal, in_turns, refusal
from experiments.bench.kernel_report import Report, Result, summary
from experiments.bench.kernel_timing import Call, Clock, Roofs, Task, measure

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = {module.BENCHMARK.name: module for module in (attention, layer_norm, linear_cross_entropy, windows)}


def attention_case(**sizes):
    defaults = {"batch": 3, "heads": 2, "query_length": 8, "key_length": 8, "head_dim": 4}
    return attention.AttentionCase("toy", **(defaults | sizes))


# What is counted


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shortest", [0, 1, 5])  # no padding, one key only, some keys
@pytest.mark.parametrize(
    ("queries", "keys"), [(8, 8), (3, 8), (8, 5)]
)  # self, cached decoding, queries that see nothing
def test_pairs_are_the_visible_ones(causal, shortest, queries, keys):
    case = attention_case(causal=causal, shortest=shortest, query_length=queries, key_length=keys)
    mask = case.make(CPU, torch.float32)["mask"]
    visible = torch.ones(3, 1, queries, keys, dtype=torch.bool) if mask is None else mask.expand(3, 1, queries, keys)
    assert case.pairs() == visible.sum().item()


def test_work_is_counted_as_documented():
    # 2 products of 2 operations for 3 x 2 x 8 x 8 pairs and 4 elements
    assert attention_case().work("forward", 2) == 4 * 3 * 2 * 8 * 8 * 4
    assert attention_case().work("backward", 2) == 2.5 * attention_case().work("forward", 2)
    plain = layer_norm.LayerNormCase("plain", rows=10, width=4)
    assert (plain.work("forward", 2), plain.work("backward", 2)) == (2 * 80, 3 * 80)
    add = layer_norm.LayerNormCase("add", rows=10, width=4, add=True)
    assert (add.work("forward", 2), add.work("backward", 2)) == (4 * 80, 4 * 80)
    assert dataclasses.replace(add, dropout=0.1).work("backward", 2) == 5 * 80
    loss = linear_cross_entropy.LinearCrossEntropyCase("8k", tokens=5, vocabulary=7, width=3)
    assert (loss.work("evaluation", 2), loss.work("training", 2)) == (2 * 105, 6 * 105)


def test_the_shapes_are_those_of_the_targets():
    cases = attention.BENCHMARK.cases
    groups = {group: [case for case in cases if case.group == group] for group in ("deit", "long", "bias", "detr")}
    sizes = {(case.batch, case.heads, case.query_length, case.head_dim) for case in groups["deit"]}
    assert sizes == {(b, h, n, 64) for b in (64, 256, 1024) for h in (3, 6, 12) for n in (197, 198)}
    assert len(groups["deit"]) == len(sizes)
    sizes = {(case.query_length, case.head_dim, case.causal) for case in groups["long"]}
    assert sizes == {(n, d, c) for n in (2048, 4096, 8192, 16384) for d in (64, 128) for c in (False, True)}
    assert {case.batch * case.query_length for case in groups["long"]} == {16384}
    assert {case.key_length for case in groups["bias"]} == {512, 1024, 2048, 4096}
    assert all(case.bias for case in groups["bias"])
    assert {(case.query_length, case.key_length) for case in groups["detr"]} >= {(1050, 1050), (100, 4200)}
    assert all(case.dropout == 0.1 and case.lengths[-1] < case.key_length for case in groups["detr"])


def test_self_attention_reads_views_of_one_projection():
    inputs = attention_case().make(CPU, torch.float32)
    assert inputs["query"].untyped_storage().data_ptr() == inputs["value"].untyped_storage().data_ptr()
    assert inputs["query"].stride() == (8 * 3 * 2 * 4, 4, 3 * 2 * 4, 1)


def test_sets_of_inputs_exceed_the_cache():
    assert kernel_timing.sets_to_rotate(torch.device("cuda"), 10 * 2**20) == 13
    assert kernel_timing.sets_to_rotate(torch.device("cuda"), 2**40) == 2
    assert kernel_timing.sets_to_rotate(torch.device("cuda"), 1) == kernel_timing.MOST_SETS
    assert kernel_timing.sets_to_rotate(CPU, 1) == 2


def test_a_short_run_sees_every_group():
    order = in_turns(attention.BENCHMARK.cases)
    assert [case.group for case in order[:5]] == ["deit", "translation", "detr", "long", "bias"]
    assert sorted(map(str, order)) == sorted(map(str, attention.BENCHMARK.cases))


# What is refused


def answering(change, case, inputs):
    """A provider that changes the plain formula's inputs or outputs."""
    names = ("query", "key", "value", "mask", "bias")
    return Built(lambda: (change(case, plain_attention, *(inputs[name] for name in names)),))


def right(case, plain, *tensors):
    return plain(*tensors, case.dropout)


def without_mask(case, plain, query, key, value, mask, bias):
    return plain(query, key, value, None, bias, case.dropout)


def without_bias_gradient(case, plain, query, key, value, mask, bias):
    return plain(query, key, value, mask, bias.detach(), case.dropout)


def without_dropout(case, plain, *tensors):
    return plain(*tensors, 0.0)


def dropout_without_scaling(case, plain, *tensors):
    return plain(*tensors, case.dropout) * (1.0 - case.dropout)


def not_finite(case, plain, *tensors):
    return plain(*tensors, case.dropout) * float("nan")


def no_such_function(case, plain, *tensors):
    raise TypeError("there is no such function\nand more")


def no_memory(case, plain, *tensors):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("change", "sizes", "status", "reason"),
    [
        (right, {}, "", ""),
        (right, {"dropout": 0.1}, "", ""),
        (without_mask, {"shortest": 3}, "wrong", "of the output"),
        (without_bias_gradient, {"bias": True}, "not supported", "no gradient of bias"),
        (without_dropout, {"dropout": 0.1}, "wrong", "dropout changes nothing"),
        (dropout_without_scaling, {"dropout": 0.1}, "wrong", "on average"),
        (not_finite, {}, "wrong", "relative error nan"),
        (no_such_function, {}, "failed", "TypeError: there is no such function"),
        (no_memory, {}, "not supported", "not enough memory"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_result_is_not_timed(change, sizes, status, reason, dtype):
    case = attention_case(batch=6, heads=4, query_length=64, key_length=64, **sizes)
    check = Check(case, case.make(CPU, dtype))
    found = refusal(check, partial(answering, change)) or Refusal("", "")
    assert found.status == status
    assert reason in found.reason


def test_a_wrong_gradient_is_found():
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(context, tensor):
            return tensor.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient / 2

    def halve(case, plain, query, *others):
        return plain(Halved.apply(query), *others, 0.0)

    case = attention_case()
    found = refusal(Check(case, case.make(CPU, torch.float32)), partial(answering, halve))
    assert found.status == "wrong"
    assert "the gradient of query" in found.reason


@pytest.mark.parametrize(
    ("name", "dtype"),
    # Not layer_norm in bfloat16: torch sums the gradient of the weight in that dtype on a CPU, with errors of 5 %.
    [*((name, torch.float32) for name in BENCHMARKS), ("attention", torch.bfloat16)],
)
def test_this_project_and_the_plain_paths_are_right(name, dtype):
    benchmark = BENCHMARKS[name].BENCHMARK
    for case in {case.group + str(case.dropout): case.shrunk() for case in benchmark.cases}.values():
        check = Check(case, case.make(CPU, dtype))
        for provider in ("heddle", "plain", "torch", "sdpa-math"):
            if provider in benchmark.providers:
                assert refusal(check, benchmark.providers[provider]) is None, (provider, case)


def test_why_torch_does_not_use_a_backend():
    # As torch 2.11 words it: a header for each backend, then the reason.
    messages = [
        "Memory efficient kernel not used because: (Triggered internally at /x/sdp_utils.cpp:1.)",
        "Memory Efficient attention has been runtime disabled. (Triggered internally at /x/sdp_utils.cpp:2.)",
        "Flash attention kernel not used because: (Triggered internally at /x/sdp_utils.cpp:3.)",
        "Flash Attention does not support non-null attn_mask. (Triggered internally at /x/sdp_utils.cpp:4.)",
    ]
    assert sdpa_reason(messages, SDPBackend.FLASH_ATTENTION) == "Flash Attention does not support non-null attn_mask."
    assert sdpa_reason(messages[:3], SDPBackend.FLASH_ATTENTION) == "torch has no such kernel for these inputs"
    assert sdpa_reason([], SDPBackend.CUDNN_ATTENTION) == "torch has no such kernel for these inputs"


@pytest.mark.parametrize(
    ("provider", "sizes", "reason"),
    [
        ("flex", {"dropout": 0.1}, "has no dropout"),
        ("sdpa", {"bias": True, "causal": True}, "takes either a bias or a mask"),
        ("plain", {"query_length": 10**7}, "holds every score"),
        ("flash-attn-2", {}, "flash_attn is not installed"),
    ],
)
def test_what_others_cannot_do_is_said(provider, sizes, reason):
    case = attention_case(**sizes)
    inputs = attention_case(**(sizes | {"query_length": 8})).make(CPU, torch.float32)
    with pytest.raises(NotSupported, match=reason):
        PROVIDERS[provider](case, inputs)


# How it is timed


class FakeClock(Clock):
    """Says what each run is to take, and remembers the order."""

    def __init__(self, seconds_of):
        super().__init__(CPU)
        self.seconds_of, self.order = seconds_of, []

    def seconds(self, run, repeats=1):
        self.order.append((run, repeats))
        return self.seconds_of[run]


def test_tasks_take_turns_and_slow_ones_fewer():
    entered = []

    @contextlib.contextmanager
    def context():
        entered.append(True)
        yield

    tasks = {"fast": Task("fast", 4, context), "slow": Task("slow", 2)}
    clock = FakeClock({"fast": 1e-4, "slow": 1.0})
    seconds = measure(tasks, clock, seconds_each=0.1)
    assert (len(seconds["fast"]), len(seconds["slow"])) == (50, 5)
    assert (seconds["fast"][0], seconds["slow"][0]) == (1e-4 / 4, 1.0 / 2)
    rounds = clock.order[4:]
    assert rounds[:10] == [("fast", 20), ("slow", 1)] * 5
    assert rounds[10:] == [("fast", 20)] * 45
    assert len(entered) == 51


class FakeGraph:
    """Runs at once what it is to capture."""

    def __init__(self, run):
        self.replays, self.run = 0, run
        run()

    def replay(self):
        self.replays += 1


@pytest.mark.parametrize(("direction", "forwards", "backwards"), [("forward", 16, 0), ("backward", 2, 16)])
def test_a_graph_holds_several_passes_over_all_sets(monkeypatch, direction, forwards, backwards):
    graphs = []
    monkeypatch.setattr(kernel_timing, "capture", lambda run: graphs.append(FakeGraph(run)) or graphs[-1])
    monkeypatch.setattr(kernel_timing, "_is_short", lambda *arguments: True)
    counts = {"forward": 0, "backward": 0}

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(context, tensor):
            counts["forward"] += 1
            return tensor.clone()

        @staticmethod
        def backward(context, gradient):
            counts["backward"] += 1
            return gradient

    def call():
        leaf = torch.ones(3, requires_grad=True)
        return Call(lambda: (Counted.apply(leaf),), [leaf], [torch.ones(3)])

    task = kernel_timing.graph_task(direction, [call(), call()], contextlib.nullcontext)
    assert counts == {"forward": forwards, "backward": backwards}
    assert task.calls == 16
    # A backward needs what its captured forward saves, so that one is replayed once.
    assert [graph.replays for graph in graphs] == ([1, 0] if direction == "backward" else [0])
    task.run()
    assert graphs[-1].replays == 1


def test_directions_do_what_they_say():
    leaf = torch.ones(3, requires_grad=True)
    seen = []
    call = Call(lambda: seen.append(torch.is_grad_enabled()) or (leaf * 2,), [leaf], [torch.ones(3)])
    for direction, grad_enabled in (("forward", [True]), ("evaluation", [False]), ("training", [True])):
        seen.clear()
        kernel_timing.eager_task(direction, [call], contextlib.nullcontext).run()
        assert seen == grad_enabled, direction
    seen.clear()
    task = kernel_timing.eager_task("backward", [call], contextlib.nullcontext)
    task.run(), task.run()
    assert len(seen) == 1  # the forward is not part of a backward


def test_peak_memory_of_a_forward_and_its_backward():
    leaf = torch.zeros(250_000, requires_grad=True)
    call = Call(lambda: (leaf.exp(),), [leaf], [torch.ones(250_000)])
    assert kernel_timing.peak_bytes(call, CPU) == pytest.approx(2_000_000, rel=0.01)  # the output and the gradient


def test_roofs():
    roofs = Roofs(tflops=2.0, gb_per_second=3.0)
    assert (roofs.of("TFLOP/s"), roofs.of("GB/s")) == (2.0, 3.0)


# What is said


def reported(seconds, on_gpu=True, **changes):
    """A report with made-up times: ``seconds`` by provider, for (forward, graph) and twice that for eager."""
    results = {name: Result() for name in seconds}
    for name, value in seconds.items():
        if isinstance(value, Refusal):
            # It was timed before it dropped out: it must not count.
            results[name].refusal = value
            value = 1e-9
        results[name].seconds = {("forward", "graph"): [value] * 5, ("forward", "eager"): [2 * value] * 5}
    case = attention_case(batch=1, heads=1, query_length=1000, key_length=1000, head_dim=250)  # 10^9 operations
    report = Report(case, "bfloat16", ("graph", "eager"), Roofs(10.0, 5.0), results, on_gpu)
    return dataclasses.replace(report, **changes)


def test_ratios_rates_and_percentages():
    report = reported({OURS: 1e-3, "a": 2e-3, "b": 1.5e-3, "c": Refusal("wrong", "relative error 1")})
    assert report.best_other("forward", "graph") == "b"
    rows = {(row["provider"], row["timing"]): row for row in report.rows()}
    ours = rows[OURS, "graph"]
    assert (ours["milliseconds"], ours["rate"], ours["unit"]) == ("1", "1", "TFLOP/s")
    assert (ours["times_best_other"], ours["best_other"], ours["percent_of_roof"]) == ("1.500", "b", "10.0")
    assert rows["a", "eager"]["milliseconds"] == "4"
    assert rows["a", "graph"]["times_best_other"] == "0.750"
    assert (rows["c", ""]["status"], rows["c", ""]["note"], rows["c", ""]["rate"]) == ("wrong", "relative error 1", "")
    assert len({tuple(row) for row in rows.values()}) == 1


def test_the_table_has_the_fastest_first_and_says_who_is_missing():
    report = reported({"a": 2e-3, OURS: 1e-3, "c": Refusal("not supported", "has no dropout")})
    report.results["a"].notes.append("forward: no CUDA graph: it waits")
    lines = report.table().strip().splitlines()
    assert "graph ms" in lines[1] and "eager ms" in lines[1]
    assert lines[2].split()[:4] == ["forward", OURS, "1", "2"]
    assert lines[3].split()[1] == "a"
    assert lines[4:] == ["  a: forward: no CUDA graph: it waits", "  c: not supported: has no dropout"]


def test_no_absolute_times_of_a_cpu():
    report = reported({OURS: 1e-3, "a": 2e-3}, on_gpu=False)
    assert "ms" not in report.table()
    assert {row["milliseconds"] for row in report.rows()} == {""}


def test_memory_against_the_baseline():
    report = reported({OURS: 1e-3, "plain": 1e-3}, memory_baseline="plain")
    report.results[OURS].peak_bytes, report.results["plain"].peak_bytes = 1_000_000, 4_000_000
    row = next(row for row in report.rows() if row["provider"] == OURS)
    assert (row["peak_mb"], row["peak_share"]) == ("1", "0.250")


def test_the_summary_ranges_over_shapes():
    slow, fast = reported({OURS: 1e-3, "a": 2e-3}), reported({OURS: 1e-3, "a": 1e-3, "b": 3e-3})
    assert "toy forward: best other 1.00-2.00, a 1.00-2.00, b 3.00-3.00" in summary([slow, fast])
    assert "toy forward: nobody else ran" in summary([reported({OURS: 1e-3})])
    # A provider without graphs is compared eagerly.
    del slow.results["a"].seconds["forward", "graph"]
    assert "best other 2.00-2.00, a 2.00-2.00" in summary([slow])


# The commands


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setitem(kernel_timing.SECONDS_EACH, "cpu", 0.001)
    return tmp_path


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_run_prints_records_and_draws(name, results, capsys):
    picture = results / "picture.png"
    words = ["bench", name, "--seconds", "0.01", "--record", "--plot", str(picture)]
    assert dispatch(words) == 0
    output = capsys.readouterr().out
    assert "roofs of this run" in output and "left out after 0.01 s" in output
    assert re.search(r"compile(-eager)?: not supported: on a CPU only if --providers names it", output)
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with (results / f"kernel_{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["direction"] for row in rows} == {"", *BENCHMARKS[name].BENCHMARK.cases[0].directions}
    ours = [row for row in rows if row["provider"] == OURS]
    assert all(row["status"] == "right" and float(row["rate"]) > 0 and row["best_other"] for row in ours)
    assert all(row["commit"] and row["torch"] and row["hardware"] and not row["milliseconds"] for row in rows)
    assert dispatch([*words[:4], "--record"]) == 0
    with (results / f"kernel_{name}.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2 * len(rows)


def test_a_file_with_other_columns_is_refused_before_measuring(results, capsys):
    (results / "kernel_layer_norm.csv").write_text("a,b\n1,2\n")
    assert dispatch(["bench", "layer_norm", "--record"]) == 2
    captured = capsys.readouterr()
    assert "move it away" in captured.err
    assert "roofs" not in captured.out


def test_a_gpu_run_has_graphs_times_and_the_driver(results, monkeypatch, capsys):
    """The path of a GPU with stand-ins for what only a GPU has: a graph, and nvidia-smi."""
    capturing = []

    def capture(run):
        capturing.append(True)
        try:
            run()
        finally:
            capturing.clear()
        return SimpleNamespace(replay=lambda: time.sleep(1e-4))

    def waiting(case, inputs):
        def forward():
            if capturing:
                raise RuntimeError("operation not permitted when stream is capturing")
            return layer_norm.PROVIDERS["torch"](case, inputs).forward()

        return Built(forward)

    nvidia_smi = results / "nvidia-smi"
    nvidia_smi.write_text("#!/bin/sh\necho 580.159.03\n")
    nvidia_smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(results), prepend=":")
    monkeypatch.setattr(kernel_timing, "capture", capture)
    monkeypatch.setattr(kernel_run, "_check_device", lambda *arguments: None)
    monkeypatch.setattr(kernel_run.Session, "on_gpu", True)
    providers = {OURS: layer_norm.PROVIDERS[OURS], "torch": layer_norm.PROVIDERS["torch"], "waiting": waiting}
    cases = [layer_norm.BENCHMARK.cases[0].shrunk()]
    benchmark = dataclasses.replace(layer_norm.BENCHMARK, cases=cases, providers=providers)
    monkeypatch.setattr(layer_norm, "BENCHMARK", benchmark)
    assert dispatch(["bench", "layer_norm", "--dtype", "float32", "--record"]) == 0
    assert "waiting: forward: no CUDA graph: RuntimeError: operation not permitted" in capsys.readouterr().out
    with (results / "kernel_layer_norm.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    timed = {(row["provider"], row["direction"], row["timing"]) for row in rows}
    both = {
        (name, way, timing)
        for name in (OURS, "torch")
        for way in ("forward", "backward")
        for timing in ("graph", "eager")
    }
    assert timed == both | {("waiting", way, "eager") for way in ("forward", "backward")}
    assert all(float(row["milliseconds"]) > 0 and row["driver"] == "580.159.03" for row in rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["attention", "--shapes", "diet"], '--shapes: there is no "diet"; did you mean "detr"?; there are: deit, '),
        (["attention", "--providers", "heddle,sdpa-flsh"], 'no "sdpa-flsh"; did you mean "sdpa-flash"?'),
        (["layer_norm", "--dtype", "int8"], "--dtype: invalid choice: 'int8'"),
        (["layer_norm", "--seconds", "0"], "--seconds must be more than 0, got 0"),
        (["layer_norm", "--plot", "/no/such/directory/x.png"], "--plot: there is no directory /no/such/directory"),
        (["layer_norm", "--al"], 'unknown argument "--al"'),
        (["attention", "--all-configs"], "--all-configs needs a GPU"),
        (["attenton"], 'there is no benchmark "attenton"; did you mean "attention"?'),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, message, capsys):
    assert dispatch(["bench", *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert message in lines[0]


def test_our_own_wrong_result_is_exit_code_1(results, monkeypatch, capsys):
    wrong = {
        **layer_norm.PROVIDERS,
        OURS: lambda case, inputs: Built(lambda: (sum(map(inputs.__getitem__, inputs.wanted)),)),
    }
    monkeypatch.setattr(layer_norm, "BENCHMARK", dataclasses.replace(layer_norm.BENCHMARK, providers=wrong))
    assert dispatch(["bench", "layer_norm", "--shapes", "plain", "--seconds", "0.01"]) == 1
    captured = capsys.readouterr()
    assert "heddle: wrong: relative error" in captured.out
    assert "error: 2048x768: heddle wrong" in captured.err


def test_every_tile_is_a_provider(monkeypatch):
    from kernels.flash_attention import tuning

    tiles = {"forward": [tuning.Tile(16, 32, 4, 2)], "backward_query": [tuning.Tile(32, 16, 8, 1)]}
    monkeypatch.setattr(tuning, "candidates", lambda kind: tiles.get(kind, []), raising=False)
    options = kernel_run.parse(attention.BENCHMARK, ["--shapes", "bias"], all_configs="")
    sessions = attention.tile_sessions(options)
    assert [list(session.providers) for session in sessions] == [
        [OURS, "forward 16x32 warps 4 stages 2"],
        [OURS, "backward_query 32x16 warps 8 stages 1"],
    ]
    results = kernel_run.measure_case(sessions[1], sessions[1].cases()[0])
    assert [list(result.seconds) for result in results.values()] == [[("backward", "eager")]] * 2
    built = sessions[0].providers["forward 16x32 warps 4 stages 2"](
        attention_case(), attention_case().make(CPU, torch.float32)
    )
    with built.context():
        assert tuning.tile("forward", None) == tuning.Tile(16, 32, 4, 2)


def test_the_commit_of_a_copy_without_git(monkeypatch):
    monkeypatch.setattr(record, "describe_git", lambda: ("commit: unknown (git is not installed)\n", ""))
    monkeypatch.delenv("HEDDLE_COMMIT", raising=False)
    assert record.measured_on(())["commit"] == "unknown"
    monkeypatch.setenv("HEDDLE_COMMIT", "0123456789")
    assert record.measured_on(())["commit"] == "0123456789"


BLOCKED = ("lightning", "jsonargparse", "sentencepiece", "sacrebleu", "sacremoses", "tqdm", "wandb", "safetensors")
BLOCKED += ("transformers", "hypothesis", "torchvision", "yaml")


def test_a_bare_image_has_what_the_benchmarks_import():
    code = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)
sys.meta_path.insert(0, Blocker())
from experiments.__main__ import main
from experiments.bench import kernel_plot, attention, linear_cross_entropy, kernel_timing
assert "matplotlib.pyplot" not in sys.modules
kernel_timing.SECONDS_EACH["cpu"] = 0.001
sys.exit(main(["bench", "layer_norm", "--shapes", "plain", "--seconds", "0.01"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "heddle" in done.stdout
