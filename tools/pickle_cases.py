"""Writes the checkpoints of tests/pickles with torch itself (any version from 1.6 on; made with 2.8).

    python3 tools/pickle_cases.py tests/pickles
"""
import argparse
import collections
import enum
import os
import pathlib
import sys
import types

import torch


def plain():
    w = torch.arange(12, dtype=torch.float32).reshape(3, 4) / 2
    return collections.OrderedDict(
        w=w,
        turned=w.t(),  # the same storage, other strides
        cut=w[1:, 1:3],  # the same storage, from the sixth value on
        narrow=torch.tensor([1.5, -2.0]).to(torch.bfloat16),
        half=torch.tensor([[0.25], [0.5]]).half(),
        ids=torch.tensor([3, -1, 2**40]),
        turned_ids=torch.arange(6).reshape(2, 3).t(),
        mask=torch.tensor([True, False, True]),
        scalar=torch.tensor(2.5, dtype=torch.float64),
        empty=torch.zeros(0, 3),
        trained=torch.nn.Parameter(torch.tensor([7.0])),
    )


def fake(module, **classes):
    """A module that torch can pickle classes of, though their package is not installed."""
    parts = module.split(".")
    for n in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:n]), types.ModuleType(".".join(parts[:n])))
    for name, cls in classes.items():
        cls.__module__, cls.__qualname__ = module, name
        setattr(sys.modules[module], name, cls)


class Dictionary:
    def __init__(self):
        self.symbols = ["<s>", "</s>"]


class Choice(enum.Enum):
    FULL = "full"


def fairseq():
    inner = {
        "_name": "av_hubert", "encoder_layers": 2, "encoder_embed_dim": 8, "encoder_ffn_embed_dim": 16,
        "encoder_attention_heads": 2, "layer_norm_first": True, "resnet_planes": [8, 8, 8, 8], "masking": (0.5, None),
    }
    cfg = {"_name": None, "common": {"fp16": Choice.FULL}, "model": inner, "task": {"_name": "av_hubert_pretraining", "noise": float("inf")}}
    return {
        "args": None, "cfg": cfg, "model": plain(), "task_state": {"dictionaries": [Dictionary()]},
        "extra_state": {"best": 1.25, "rng": torch.ByteTensor([1, 2, 3]), "big": 2**70}, "last_optimizer_state": None,
    }


def old_fairseq():
    return {"args": argparse.Namespace(arch="av_hubert", task="speech", encoder_layers=2), "model": plain()}


def lightning():
    return {
        "epoch": 3, "pytorch-lightning_version": "1.5.10", "callbacks": {}, "loops": None,
        "hyper_parameters": {"lr": 1e-3, "root": pathlib.PurePosixPath("data/lrs3"), "rates": {4, 2}},
        "state_dict": {f"model.{name}": tensor for name, tensor in plain().items()},
    }


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


if __name__ == "__main__":
    out = pathlib.Path(sys.argv[1])
    fake("fairseq.data.dictionary", Dictionary=Dictionary)
    fake("fairseq.dataclass.constants", Choice=Choice)
    torch.save(plain(), out / "plain.pt")
    torch.save(plain(), out / "protocol4.pt", pickle_protocol=4)
    torch.save({"w": plain()["w"]}, out / "protocol5.pt", pickle_protocol=5)
    torch.save({"w": plain()["w"]}, out / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(fairseq(), out / "fairseq.pt")
    torch.save(old_fairseq(), out / "old_fairseq.pt")
    torch.save(lightning(), out / "lightning.ckpt")
    torch.save({"w": plain()["w"], "evil": Evil()}, out / "evil.pt")
