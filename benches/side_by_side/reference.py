"""The reference side: sktime's copy of Time-MoE on torch. Started by run.py, answers commands on standard input.

    make DIR                 writes a model of the 50M size with random weights, as the hub repository holds it
    load DTYPE               loads it
    forecast N DTYPE         forecasts the first N series, writes the values to OUT
    ceilings                 matrix products and a memory read, for scale
"""

import json
import sys
import time
from pathlib import Path

START = time.perf_counter()
import numpy as np  # noqa: E402
import torch  # noqa: E402
from sktime.libs.timemoe import TimeMoeForPrediction  # noqa: E402
from sktime.libs.timemoe.timemoe_config import TimeMoeConfig  # noqa: E402

IMPORT = time.perf_counter() - START
# GFLOP/s below which torch has no real kernel for a type here.
SLOW = 20
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
CONFIG = dict(
    hidden_size=384, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=12,
    num_experts=8, num_experts_per_tok=2, horizon_lengths=[1, 8, 32, 64], max_position_embeddings=4096, input_size=1,
    hidden_act="silu", rms_norm_eps=1e-6, rope_theta=10000, attention_dropout=0.0, use_dense=False,
    apply_aux_loss=True, router_aux_loss_factor=0.02, initializer_range=0.02, tie_word_embeddings=False,
)


def make(folder):
    torch.manual_seed(20261124)
    model = TimeMoeForPrediction(TimeMoeConfig(**CONFIG))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                # Wide enough that routers decide and attention attends, as in a trained model.
                weight.normal_(0.0, 1.0 if weight.shape[1] == 1 else weight.shape[1] ** -0.5)
    model.to(torch.bfloat16).save_pretrained(folder, safe_serialization=True)
    config = json.loads((Path(folder) / "config.json").read_text())
    config.update(CONFIG, model_type="time_moe", architectures=["TimeMoeForPrediction"], torch_dtype="bfloat16")
    (Path(folder) / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def fastest(work, times=5):
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def ceilings():
    answer = {}
    for name, dtype in DTYPES.items():
        # Without processor support torch multiplies bf16 hundreds of times slower: a large product would take minutes.
        for n in [256, 2048]:
            a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
            rate = 2 * n**3 / fastest(lambda: a @ b) / 1e9
            if rate < SLOW:
                break
        answer[f"torch {n}^3 {name} GFLOP/s"] = rate
        answer[f"{name} is slow"] = rate < SLOW
    buffer = torch.ones(1 << 28)
    answer["torch read of 1 GiB GB/s"] = buffer.numel() * 4 / fastest(buffer.sum) / 1e9
    return answer


def main(folder, series, out):
    torch.set_num_threads(2)
    values = np.fromfile(series, dtype="<f4").reshape(-1, 512)
    models = {}

    def load(name):
        if name not in models:
            models.clear()
            models[name] = TimeMoeForPrediction.from_pretrained(folder, torch_dtype=DTYPES[name]).eval()
        return models[name]

    def forecast(count, name):
        model = load(name)
        x = torch.from_numpy(values[:count].copy()).to(DTYPES[name])
        start = time.perf_counter()
        with torch.inference_mode():
            y = model.generate(x, max_new_tokens=96)[:, 512:]
        seconds = time.perf_counter() - start
        y.float().numpy().astype("<f4").tofile(out)
        return seconds

    for line in sys.stdin:
        command, *words = line.split()
        start = time.perf_counter()
        if command == "make":
            make(words[0])
            answer = {}
        elif command == "load":
            load(words[0])
            answer = {"seconds": time.perf_counter() - start, "import": IMPORT}
        elif command == "forecast":
            answer = {"seconds": forecast(int(words[0]), words[1])}
        else:
            answer = ceilings()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
