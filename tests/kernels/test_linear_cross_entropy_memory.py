"""What the projection and loss hold at a time: counted without a GPU, measured on one."""

import functools
import weakref

import pytest
import torch
from kernel_testing import DEVICE
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import linear_cross_entropy
from kernels.linear_cross_entropy import forward, op, reference, tuning

# Of the interpreter, where a difference to the lowest float32 overflows to -inf, whose exponential is the 0 wanted.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in multiply:RuntimeWarning")


class Memory(TorchDispatchMode):
    """Adds up what lives of the results of all operations: the peak, and the largest, in bytes."""

    def __init__(self):
        super().__init__()
        self.sizes, self.peak, self.largest = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple) else (results,):
            if isinstance(result, torch.Tensor):
                storage = result.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.sizes.pop, storage._cdata)
                self.largest = max(self.largest, storage.nbytes())
        self.peak = max(self.peak, sum(self.sizes.values()))
        return results


@pytest.mark.parametrize("path", [reference, forward])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_tensor_is_larger_than_a_chunk_or_the_weight(path, dtype, monkeypatch):
    tokens, vocabulary, width = 96, 256, 8
    hidden, weight, bias = (
        torch.randn(*shape).to(DEVICE, dtype) for shape in ((tokens, width), (vocabulary, width), (vocabulary,))
    )
    target = torch.randint(0, vocabulary, (tokens,), device=DEVICE)
    budget = 8 * vocabulary * 4  # 8 rows of float32 logits
    monkeypatch.setitem(tuning.CHUNK_BYTES, DEVICE, budget)
    with Memory() as memory:
        path.linear_cross_entropy(hidden, weight, bias, target, 0.1, 2, dtype, [True, True, True])
    assert memory.largest <= max(budget, 4 * vocabulary * width) < tokens * vocabulary * dtype.itemsize


@pytest.mark.parametrize("tokens", [8192, 32768])
@pytest.mark.parametrize("width", [512, 1024])
def test_counted_peak_is_a_quarter_of_the_plain_path(tokens, width, monkeypatch):
    # On the meta device: every allocation of the real sizes, and no memory. What cuBLAS takes is not in it.
    make = functools.partial(torch.empty, device="meta", dtype=torch.bfloat16, requires_grad=True)
    hidden, weight = make(tokens, width), make(32768, width)
    target = torch.empty(tokens, device="meta", dtype=torch.int64)
    monkeypatch.setattr(forward, "loss_and_gradient", lambda *_: None)
    monkeypatch.setattr(op, "runs_triton", lambda *_: True)

    def peak(function):
        with Memory() as memory:
            torch.autograd.grad(function(), (hidden, weight))
        return memory.peak

    # The operator's own allocations are seen only from within.
    monkeypatch.setattr(torch.ops.heddle, "linear_cross_entropy", op._run)
    plain = peak(lambda: functional.cross_entropy(functional.linear(hidden, weight), target, reduction="sum"))
    assert 6 * tokens * 32768 <= plain
    mine = peak(lambda: linear_cross_entropy(hidden, weight, target)[0])
    assert 4 * 32768 * width < mine <= plain / 4


@pytest.mark.parametrize(
    ("tokens", "row_bytes", "rows"),
    [
        (8192, 65536, 2048),  # a bf16 vocabulary of 32,768: the budget itself
        (8193, 65536, 1639),  # five equal chunks, not four and a row
        (100, 65536, 100),  # all in one
        (0, 65536, 1),  # nothing to do, but a step that a loop can take
        (7, 2**40, 1),  # a row larger than the budget
    ],
)
def test_chunks_are_equal_and_within_the_budget(tokens, row_bytes, rows):
    assert tuning.chunk_rows(tokens, row_bytes, "cuda") == rows


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [8192, 32768])
@pytest.mark.parametrize("width", [512, 1024])
def test_peak_memory_is_a_quarter_of_the_plain_path(tokens, width):
    hidden = torch.randn(tokens, width, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(32768, width, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    target = torch.randint(0, 32768, (tokens,), device=DEVICE)

    def peak(loss):
        torch.autograd.grad(loss(), (hidden, weight))  # what is allocated once only: cuBLAS's workspace
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        torch.autograd.grad(loss(), (hidden, weight))
        return torch.cuda.max_memory_allocated() - before

    plain = peak(lambda: functional.cross_entropy(functional.linear(hidden, weight), target, reduction="sum"))
    assert peak(lambda: linear_cross_entropy(hidden, weight, target)[0]) <= plain / 4
