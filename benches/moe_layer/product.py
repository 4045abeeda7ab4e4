"""The product by torch (oneDNN, MKL) that main.rs compares with: a line "M N K DTYPE" in, GFLOP/s out, or "slow" where torch
has no real kernel for the type on this processor."""

import sys
import time

import torch

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
OPERANDS = {}
# GFLOP/s of a small product below which a large one would take minutes.
SLOW = 20


def rate(x, weight):
    with torch.inference_mode():
        start = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        seconds = time.perf_counter() - start
    return 2 * x.shape[0] * weight.shape[0] * weight.shape[1] / seconds / 1e9


def slow(dtype):
    square = torch.randn(256, 256).to(dtype)
    return max(rate(square, square) for _ in range(5)) < SLOW


TOO_SLOW = {name: slow(dtype) for name, dtype in DTYPES.items()}

for line in sys.stdin:
    m, n, k, dtype = line.split()
    m, n, k = int(m), int(n), int(k)
    if TOO_SLOW[dtype]:
        print("slow", flush=True)
        continue
    if line not in OPERANDS:
        OPERANDS.clear()
        OPERANDS[line] = torch.randn(m, k).to(DTYPES[dtype]), torch.randn(n, k).to(DTYPES[dtype])
        rate(*OPERANDS[line])
    print(rate(*OPERANDS[line]), flush=True)
