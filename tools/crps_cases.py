"""Writes tests/data/crps.json: forecasts of two origins and what GluonTS, utilsforecast and properscoring say of them.

    python3 -m venv venv && venv/bin/pip install gluonts==0.17.0 utilsforecast==0.2.17 properscoring==0.1
    venv/bin/python tools/crps_cases.py > tests/data/crps.json
"""

import json

import numpy as np
import pandas as pd
import properscoring
from gluonts.ev.metrics import Coverage, MeanWeightedSumQuantileLoss, WeightedSumQuantileLoss
from gluonts.model.forecast import SampleForecast
from utilsforecast.losses import coverage, scaled_crps

LEVELS = [round(0.1 * i, 1) for i in range(1, 10)]
rng = np.random.default_rng(5)
origins, horizon, paths = 2, 6, 25
actual = (rng.normal(size=(origins, horizon)) * 3 + 4).astype(np.float32)
samples = (rng.normal(size=(origins, paths, horizon)) * 2.5 + 3.5).astype(np.float32)

forecasts = [SampleForecast(s, start_date=pd.Period("2020-01-01", freq="D")) for s in samples]
quantiles = np.stack([[f.quantile(q) for q in LEVELS] for f in forecasts])  # (origins, levels, horizon)

data = {"label": actual} | {str(q): quantiles[:, i] for i, q in enumerate(LEVELS)}


def evaluate(metric):
    evaluator = metric(axis=None)
    evaluator.update(data)
    return float(np.asarray(evaluator.get()))


frame = pd.DataFrame({"unique_id": "y", "y": actual.reshape(-1).astype(np.float64)})
for i, q in enumerate(LEVELS):
    frame[f"m-{q}"] = quantiles[:, i].reshape(-1).astype(np.float64)
models = {"m": [f"m-{q}" for q in LEVELS]}
crps = scaled_crps(frame, models, np.array(LEVELS), id_col="unique_id", target_col="y")
frame["m-lo-80"], frame["m-hi-80"] = frame["m-0.1"], frame["m-0.9"]
inside = coverage(frame, ["m"], 80, id_col="unique_id", target_col="y")

y = actual.astype(np.float64)
ensemble = properscoring.crps_ensemble(y, np.moveaxis(samples.astype(np.float64), 1, -1))

print(
    json.dumps(
        {
            "levels": LEVELS,
            "actual": [[float(v) for v in row] for row in actual],
            "samples": [[[round(float(v), 9) for v in path] for path in origin] for origin in samples],
            "gluonts": {
                "mean_weighted_sum_quantile_loss": evaluate(MeanWeightedSumQuantileLoss(quantile_levels=LEVELS)),
                "weighted_sum_quantile_loss": [evaluate(WeightedSumQuantileLoss(q=q)) for q in LEVELS],
                "coverage": [evaluate(Coverage(q=q)) for q in LEVELS],
            },
            "utilsforecast": {"scaled_crps": float(crps["m"].iloc[0]), "coverage_80": float(inside["m"].iloc[0])},
            "properscoring": {"crps_ensemble": float(ensemble.sum() / np.abs(y).sum())},
        }
    )
)
