"""Small kernels with one fault each, which the compile-only gate must find, and one without."""

import os
import time

import torch
import triton
import triton.language as tl
from compile_gate import Case


@triton.jit
def copy_kernel(source, target, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    tl.store(target + columns, tl.load(source + columns))


@triton.jit
def products_kernel(
    a,
    b,
    c,
    out,
    length,
    TRANSPOSED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """out (COLUMNS, WIDTH) = sum over blocks of ROWS of (a bᵀ)ᵀ c, the transposed product written out or avoided."""
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    width = tl.arange(0, WIDTH)
    b_block = tl.load(b + columns[:, None] * WIDTH + width[None, :])
    total = tl.zeros((COLUMNS, WIDTH), tl.float32)
    for start in range(0, length, ROWS):
        a_block = tl.load(a + (start + rows)[:, None] * WIDTH + width[None, :])
        c_block = tl.load(c + (start + rows)[:, None] * WIDTH + width[None, :])
        if TRANSPOSED:
            scores = tl.exp2(tl.dot(a_block, tl.trans(b_block)))
            total = tl.dot(tl.trans(scores.to(c_block.dtype)), c_block, total)
        else:
            scores = tl.exp2(tl.dot(b_block, tl.trans(a_block)))
            total = tl.dot(scores.to(c_block.dtype), c_block, total)
    tl.store(out + columns[:, None] * WIDTH + width[None, :], total)


def copy():
    tensor = torch.empty(1024, device="meta")
    copy_kernel[(1,)](tensor, tensor, BLOCK=1024)


def products(transposed, rows, columns, width, warps, dtype=torch.bfloat16):
    tensor = torch.empty(4096, width, dtype=dtype, device="meta")
    products_kernel[(1,)](
        tensor,
        tensor,
        tensor,
        torch.empty(columns, width, device="meta"),
        4096,
        TRANSPOSED=transposed,
        ROWS=rows,
        COLUMNS=columns,
        WIDTH=width,
        num_warps=warps,
        num_stages=2,
    )


def toy(name, run, **options):
    return Case("toy", name, "", "bfloat16", run, targets=("sm_90",), **options)


CASES = [
    toy("clean", lambda: products(False, 64, 128, 64, 8)),
    toy("transposed", lambda: products(True, 64, 128, 64, 8)),
    toy("spilling", lambda: products(False, 64, 256, 128, 4)),
    toy("too much shared memory", lambda: products(False, 512, 128, 128, 8)),
    # 16 rows of a result do not fill the 64 of an HGMMA.
    toy("no HGMMA", lambda: products(False, 64, 16, 64, 4)),
    toy("raising", lambda: products(False, 48, 128, 64, 8)),
    toy("launching nothing", lambda: None),
    toy("aborting", os.abort),
    toy("hanging", lambda: time.sleep(60), limit=1),
]
