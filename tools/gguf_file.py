"""Reads GGUF files, in numpy alone and apart from the library."""

import struct
import sys

import numpy as np


def parse(data):
    """Keys, and tensors as floats."""
    at = 4

    def take(form):
        nonlocal at
        value = struct.unpack_from("<" + form, data, at)[0]
        at += struct.calcsize(form)
        return value

    def text():
        nonlocal at
        n = take("Q")
        at += n
        return data[at - n : at].decode()

    def value(kind):
        if kind == 8:
            return text()
        if kind == 9:
            inner, n = take("I"), take("Q")
            return [value(inner) for _ in range(n)]
        return take({0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}[kind])

    assert data[:4] == b"GGUF" and take("I") in (2, 3)
    tensors, keys = take("Q"), take("Q")
    metadata = {}
    for _ in range(keys):
        key = text()
        metadata[key] = value(take("I"))
    infos = []
    for _ in range(tensors):
        name = text()
        shape = [take("Q") for _ in range(take("I"))][::-1]
        infos.append((name, shape, take("I"), take("Q")))
    alignment = metadata.get("general.alignment", 32)
    start = -(-at // alignment) * alignment
    return metadata, {name: values(data, start + offset, shape, kind) for name, shape, kind, offset in infos}


def values(data, at, shape, kind):
    """The values of a tensor of type F32, Q8_0 or Q4_1."""
    n = int(np.prod(shape))
    if kind == 0:
        out = np.frombuffer(data, "<f4", n, at)
    elif kind == 8:
        blocks = np.frombuffer(data, [("d", "<f2"), ("q", "i1", 32)], n // 32, at)
        out = blocks["d"].astype(np.float32)[:, None] * blocks["q"]
    elif kind == 3:
        blocks = np.frombuffer(data, [("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)], n // 32, at)
        q = np.concatenate([blocks["q"] & 15, blocks["q"] >> 4], 1)
        out = blocks["d"].astype(np.float32)[:, None] * q + blocks["m"].astype(np.float32)[:, None]
    else:
        sys.exit(f"type {kind} is not read here")
    return np.ascontiguousarray(out.reshape(shape), np.float32)
