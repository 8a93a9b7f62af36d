"""Every entry of every launch table compiles for three GPUs, spills nothing, fits, and uses what resources.csv says.

One run of compile_only.py compiles everything, in a process that does not interpret kernels; the tests here read what
came of it, about 250 compilations. ``python tests/kernels/compile_only.py`` shows it without pytest.
"""

import json
import os
import subprocess
import sys

import pytest

triton = pytest.importorskip("triton")

import compile_only  # noqa: E402
from compile_cases import cases  # noqa: E402
from compile_gate import TARGETS, Outcome, Resources, faults, key, pairs, transposed_products  # noqa: E402
from compile_toys import CASES as TOYS  # noqa: E402

SM_90 = TARGETS["sm_90"]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What became of every case and toy: one run for all tests."""
    path = tmp_path_factory.mktemp("compile") / "outcomes.json"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    run = subprocess.run(
        [sys.executable, compile_only.__file__, "--json", path],
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert path.exists(), run.stderr[-2000:]
    return {
        name: Outcome([Resources(**kernel) for kernel in outcome["kernels"]], outcome["error"], outcome["seconds"])
        for name, outcome in json.loads(path.read_text()).items()
    }


@pytest.fixture(scope="module")
def table():
    return compile_only.read_table()


@pytest.mark.parametrize("case, target", pairs(cases()), ids=[key(*pair) for pair in pairs(cases())])
def test_case(case, target, outcomes, table):
    wrong = compile_only.judge(case, target, outcomes[key(case, target)], table, triton.__version__)
    if wrong:
        pytest.fail("\n".join([key(case, target), *wrong]), pytrace=False)


def test_table_holds_these_cases_and_no_others(table):
    shipped = {
        tuple(str(part) for part in (case.room, case.entry, case.features, case.dtype, target.name))
        for case, target in pairs(cases())
    }
    assert {tuple(row[column] for column in compile_only.WHICH) for row in table} == shipped, compile_only.REWRITE


# The gate finds what it is there to find.


@pytest.fixture
def toy(outcomes):
    """The outcome of a toy by its name."""
    return lambda name: next(outcomes[key(case, SM_90)] for case in TOYS if case.entry == name)


def test_clean_kernel_passes(toy):
    outcome = toy("clean")
    assert not outcome.error and not faults(outcome.kernels, SM_90)
    (kernel,) = outcome.kernels
    assert kernel.registers > 0 and kernel.tensor_core > 0 and kernel.wide_loads > 0 and kernel.half_dots == 2


@pytest.mark.parametrize(
    "name, words",
    [
        ("transposed", "a transposed product goes into a product"),
        ("spilling", "spill instructions"),
        ("too much shared memory", "bytes of shared memory, limit 232448"),
        ("no HGMMA", "2 products in 16 bits, none runs as HGMMA"),
    ],
)
def test_rule_is_enforced(name, words, toy):
    outcome = toy(name)
    assert not outcome.error
    found = faults(outcome.kernels, SM_90)
    assert any(words in fault for fault in found)
    if name == "no HGMMA":
        assert not any(words in fault for fault in faults(outcome.kernels, SM_90, hgmma=False))


@pytest.mark.parametrize(
    "name, words",
    [
        ("raising", "arange's range must be a power of 2"),
        ("launching nothing", "no kernel was launched"),
        ("aborting", "ended by SIGABRT"),
        ("hanging", "ended by SIGALRM"),
    ],
)
def test_failed_compilation_is_an_error_of_its_case_alone(name, words, toy):
    outcome = toy(name)
    assert not outcome.kernels and words in outcome.error


def test_difference_from_the_table_is_shown_with_the_command_that_accepts_it(toy):
    case, outcome = TOYS[0], toy("clean")
    committed = compile_only.rows(case, SM_90, "3.8.0", outcome.kernels)
    assert not compile_only.judge(case, SM_90, outcome, committed, "3.8.0")
    registers = committed[0]["registers"]
    committed[0]["registers"] = "1"
    (wrong,) = compile_only.judge(case, SM_90, outcome, committed, "3.8.0")
    assert compile_only.REWRITE in wrong and "registers=1 " in wrong and f"registers={registers} " in wrong
    # Another compiler makes other code: only the rules hold there.
    assert not compile_only.judge(case, SM_90, outcome, committed, "3.9.0")


def test_case_missing_in_the_table_is_a_difference(toy):
    other = compile_only.rows(TOYS[1], SM_90, "3.8.0", toy("transposed").kernels)
    assert compile_only.judge(TOYS[0], SM_90, toy("clean"), other, "3.8.0")


LOOP = """
    %q = tt.load %pointer : tensor<64x64x!tt.ptr<bf16>> loc(#loc1)
    %sum:2 = scf.for %i = %lower to %upper step %one iter_args(%last = %q, %total = %zero) -> (tensor) : i32 {
      %turned = tt.trans %last {order = array<i32: 1, 0>} : tensor<64x64xbf16> -> tensor<64x64xbf16> loc(#loc2)
      %next = tt.dot %turned, %q, %total : tensor<64x64xbf16> * tensor<64x64xbf16> -> tensor<64x64xf32> loc(#loc3)
      %scores = tt.dot %q, %q, %zero : tensor<64x64xbf16> * tensor<64x64xbf16> -> tensor<64x64xf32> loc(#loc4)
      %small = arith.truncf %scores : tensor<64x64xf32> to tensor<64x64xbf16> loc(#loc5)
      scf.yield YIELDED, %next : tensor<64x64xbf16>, tensor<64x64xf32> loc(#loc6)
    } loc(#loc7)
"""


def test_transposed_product_is_followed_through_a_loop():
    """The product of one step comes back in the next, and is transposed there; a loaded tile may be."""
    assert transposed_products(LOOP.replace("YIELDED", "%small")) == ["%turned"]
    assert transposed_products(LOOP.replace("YIELDED", "%q")) == []


def test_transposed_product_that_is_only_stored_is_allowed():
    assert not transposed_products(
        """
        %scores = tt.dot %a, %b, %zero : tensor<64x64xbf16> * tensor<64x64xbf16> -> tensor<64x64xf32> loc(#loc4)
        %turned = tt.trans %scores {order = array<i32: 1, 0>} : tensor<64x64xf32> -> tensor<64x64xf32> loc(#loc2)
        tt.store %pointers, %turned : tensor<64x64x!tt.ptr<f32>> loc(#loc5)
        """
    )
