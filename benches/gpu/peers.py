"""The peers of run.py on torch: commands on standard input, one line of JSON each, as ours.rs has them; `run loop`, `run grouped`, `run triton`, `run train`."""

import json
import statistics
import sys
import time

import torch

SECONDS, CALLS = 0.3, 200
DEVICE = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cuda")


def synchronize():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def timed(call):
    def series(calls):
        synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        synchronize()
        return (time.perf_counter() - start) / calls

    series(2)
    calls = min(max(int(SECONDS / max(series(2), 1e-9)), 3), CALLS)
    return statistics.median(series(calls) for _ in range(3))


class Side:
    def weights(self, experts, hidden, inner):
        self.gate_up = self.down = None

        def stack(rows, columns):
            size = (3 / columns) ** 0.5
            whole = torch.empty(experts, rows, columns, dtype=torch.bfloat16, device=DEVICE)
            return whole.uniform_(-size, size)

        self.experts, self.hidden = experts, hidden
        self.gate_up, self.down = stack(2 * inner, hidden), stack(hidden, inner)

    def tokens(self, tokens, k, file):
        with open(file, "rb") as f:
            self.choices = torch.frombuffer(bytearray(f.read()), dtype=torch.int32).reshape(tokens, k).long().to(DEVICE)
        self.x = torch.rand(tokens, self.hidden, device=DEVICE).to(torch.bfloat16)
        self.weight = torch.full((tokens, k), 1 / k, dtype=torch.bfloat16, device=DEVICE)

    def loop(self, x):
        """One expert after the other, as models in transformers 4 do."""
        out = torch.zeros_like(x)
        mask = torch.nn.functional.one_hot(self.choices, self.experts).permute(2, 1, 0)
        for e in mask.sum((-1, -2)).nonzero().flatten().tolist():
            slot, token = mask[e].nonzero(as_tuple=True)
            gate, up = torch.nn.functional.linear(x[token], self.gate_up[e]).chunk(2, -1)
            y = torch.nn.functional.linear(torch.nn.functional.silu(gate) * up, self.down[e])
            out.index_add_(0, token, y * self.weight[token, slot, None])
        return out

    def grouped(self, x):
        """Rows sorted by expert, `torch._grouped_mm`, and back: what transformers 5 calls grouped_mm."""
        flat = self.choices.flatten()
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat, minlength=self.experts)
        ends = counts.cumsum(0).to(torch.int32)
        rows = x[order // self.choices.shape[1]]
        gate, up = torch._grouped_mm(rows, self.gate_up.transpose(1, 2), offs=ends).chunk(2, -1)
        y = torch._grouped_mm(torch.nn.functional.silu(gate) * up, self.down.transpose(1, 2), offs=ends)
        y = y * self.weight.flatten()[order, None]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=DEVICE)
        return y[back].view(*self.choices.shape, -1).sum(1)

    def triton(self, x):
        """vLLM's kernel in Triton, where vLLM is there."""
        from vllm.model_executor.layers.fused_moe import fused_experts

        return fused_experts(x, self.gate_up, self.down, self.weight.float(), self.choices.to(torch.int32))

    def run(self, what):
        if what == "train":
            self.gate_up.requires_grad_(), self.down.requires_grad_()
            x = self.x.clone().requires_grad_()

            def step():
                self.gate_up.grad = self.down.grad = x.grad = None
                self.grouped(x).sum().backward()

            try:
                return timed(step)
            finally:
                self.gate_up, self.down = self.gate_up.detach(), self.down.detach()
        call = {"loop": self.loop, "grouped": self.grouped, "triton": self.triton}[what]
        with torch.inference_mode():
            return timed(lambda: call(self.x))

    def answer(self, words):
        match words:
            case ["copy", count]:
                source = torch.zeros(int(count) // 4, device=DEVICE)
                return {"gb_s": 2 * int(count) / timed(source.clone) / 1e9}
            case ["product", n]:
                a, b = (torch.rand(int(n), int(n), device=DEVICE).to(torch.bfloat16) for _ in range(2))
                return {"tflop_s": 2 * int(n) ** 3 / timed(lambda: a @ b) / 1e12}
            case ["weights", *sizes]:
                self.weights(*map(int, sizes))
            case ["tokens", tokens, k, file]:
                self.tokens(int(tokens), int(k), file)
            case ["run", what]:
                try:
                    return {"seconds": self.run(what)}
                except Exception as error:  # a peer that is not there, or does not take a shape, must not end the table
                    return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        return {}


side = Side()
for line in sys.stdin:
    print(json.dumps(side.answer(line.split())), flush=True)
