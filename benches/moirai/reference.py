"""The reference side: uni2ts' Moirai-MoE on torch. Started by run.py, answers commands on standard input.

    make DIR                 writes a model of the small size with random weights, as the hub repository holds it
    table FILE N             writes N series of 100 days as one Parquet file, a row for each series and day
    load                     loads the model
    forecast N               continues the first N series by 96 with 100 sample paths, writes the paths [N, 100, 96] to OUT
    ceilings THREADS         matrix products and a memory read, for scale
"""

import contextlib
import json
import sys
import time
import warnings

warnings.filterwarnings("ignore")
START = time.perf_counter()
import numpy as np  # noqa: E402
import torch  # noqa: E402
from uni2ts.distribution import (  # noqa: E402
    LogNormalOutput, MixtureOutput, NegativeBinomialOutput, NormalFixedScaleOutput, StudentTOutput,
)
from uni2ts.model.moirai_moe import MoiraiMoEForecast, MoiraiMoEModule  # noqa: E402

IMPORT = time.perf_counter() - START
CONTEXT, HORIZON, PATCH, PATHS = 1000, 96, 16, 100
# Of Salesforce/moirai-moe-1.0-R-small.
CONFIG = dict(
    d_model=384, d_ff=512, num_layers=6, patch_sizes=(16,), max_seq_len=512, attn_dropout_p=0.0, dropout_p=0.0, scaling=True,
)


def make(folder):
    torch.manual_seed(20261129)
    mixture = MixtureOutput([StudentTOutput(), NormalFixedScaleOutput(), NegativeBinomialOutput(), LogNormalOutput()])
    module = MoiraiMoEModule(distr_output=mixture, **CONFIG)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.dim() > 1:
                # Wide enough that attention attends and distributions differ, as in a trained model.
                weight.normal_(0.0, weight.shape[-1] ** -0.5)
        # Of one length, so that tokens go to many experts and not to the longest.
        centroid = module.encoder.centroid.normal_()
        centroid *= (centroid.shape[-1] / centroid.square().sum(-1, keepdim=True)).sqrt()
    module.save_pretrained(folder)


def table(file, count):
    import pyarrow
    import pyarrow.parquet

    rng = np.random.default_rng(20261129)
    days = np.arange(100)
    period, phase, level = (rng.uniform(*ends, (count, 1)) for ends in [(4, 40), (0, 6.28), (20, 200)])
    values = level + 10 * np.sin(6.2832 * days / period + phase) + 2 * rng.standard_normal((count, 100))
    names = np.array([f"series {i}" for i in range(count)], dtype=object)
    columns = {
        "id": pyarrow.array(np.repeat(names, 100)),
        "day": pyarrow.array(np.tile(np.datetime64("2024-01-01") + days, count)),
        "value": pyarrow.array(values.ravel().astype("<f4")),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), file)


def fastest(work, times=5):
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def ceilings(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    answer = {"torch 2048^3 f32 GFLOP/s": 2 * 2048**3 / fastest(lambda: a @ b) / 1e9}
    buffer = torch.ones(1 << 28)
    answer["torch read of 1 GiB GB/s"] = buffer.numel() * 4 / fastest(buffer.sum) / 1e9
    torch.set_num_threads(before)
    return answer


def peak():
    """The most memory this process has held, in bytes."""
    lines = [line for line in open("/proc/self/status") if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def main(folder, series, out):
    torch.set_num_threads(2)
    torch.manual_seed(1)
    values = np.fromfile(series, dtype="<f4").reshape(-1, CONTEXT)
    model = None
    for line in sys.stdin:
        command, *words = line.split()
        answer = {}
        start = time.perf_counter()
        if command == "make":
            make(words[0])
        elif command == "table":
            table(words[0], int(words[1]))
        elif command == "load":
            with contextlib.redirect_stdout(sys.stderr):  # it says that it loads
                module = MoiraiMoEModule.from_pretrained(folder)
            # num_samples counts here only: forward() takes it into account for a single patch alone.
            model = MoiraiMoEForecast(
                module=module, prediction_length=HORIZON, target_dim=1, feat_dynamic_real_dim=0, past_feat_dynamic_real_dim=0,
                context_length=CONTEXT, patch_size=PATCH, num_samples=PATHS,
            ).eval()
            answer = {"seconds": time.perf_counter() - start, "import": IMPORT, "peak": peak()}
        elif command == "forecast":
            past = torch.from_numpy(values[: int(words[0])].copy()).unsqueeze(-1)
            seen, padded = torch.ones_like(past, dtype=torch.bool), torch.zeros(past.shape[:2], dtype=torch.bool)
            start = time.perf_counter()
            with torch.inference_mode():
                paths = model(past, seen, padded)
            answer = {"seconds": time.perf_counter() - start, "peak": peak()}
            assert paths.shape == (len(past), PATHS, HORIZON), paths.shape
            paths.numpy().astype("<f4").tofile(out)
        else:
            answer = ceilings(int(words[0]))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
