"""The product by torch (oneDNN, MKL) that main.rs compares with: a line "M N K DTYPE" in, GFLOP/s out."""

import sys
import time

import torch

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
OPERANDS = {}

for line in sys.stdin:
    m, n, k, dtype = line.split()
    m, n, k = int(m), int(n), int(k)
    if line not in OPERANDS:
        OPERANDS.clear()
        OPERANDS[line] = torch.randn(m, k).to(DTYPES[dtype]), torch.randn(n, k).to(DTYPES[dtype])
        torch.nn.functional.linear(*OPERANDS[line])
    x, weight = OPERANDS[line]
    start = time.perf_counter()
    with torch.inference_mode():
        torch.nn.functional.linear(x, weight)
    print(2 * m * n * k / (time.perf_counter() - start) / 1e9, flush=True)
