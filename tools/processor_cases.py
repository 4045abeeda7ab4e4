"""Writes what the processors of transformers make of small pictures: encoders/tests/data/pictures.json.

    pip install torch==2.8.0 transformers==4.57.6 pillow==13.0.0
    python tools/processor_cases.py encoders/tests/data/pictures.json

Pictures come from a formula that the test repeats. Of pixels the file has sums: of each block of numbers v (as bytes again),
the sum of (i % 251 + 1) * v[i].
"""

import ast
import inspect
import json
import math
import sys

import numpy as np
import PIL
import transformers
from PIL import Image
from transformers.models.aria.image_processing_aria import AriaImageProcessor
from transformers.models.llava_next.image_processing_llava_next import LlavaNextImageProcessor, select_best_resolution
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor, smart_resize

HALF = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)


def picture(w, h):
    y, x, c = np.meshgrid(np.arange(h), np.arange(w), np.arange(3), indexing="ij")
    return Image.fromarray(((x * 7 + y * 13 + c * 29 + (x * y) % 23 * 5) % 256).astype(np.uint8))


def sums(values, block):
    """Of normalised values, in blocks of so many numbers."""
    values = np.rint((np.asarray(values, dtype=np.float64) * 0.5 + 0.5) * 255).astype(np.int64).ravel()
    return [int((v * (np.arange(len(v)) % 251 + 1)).sum()) for v in np.split(values, range(block, len(values), block))]


def method(module, name):
    """A function of a module that cannot be imported without torchvision."""
    path = inspect.getfile(transformers).replace("__init__.py", module)
    tree = ast.parse(open(path).read())
    node = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name)
    node.decorator_list = []
    node.returns = None
    for argument in node.args.args:
        argument.annotation = None
    space = dict(math=math, np=np)
    exec(compile(ast.Module([node], []), path, "exec"), space)
    return space[name]


def aria():
    for size, options in [
        ((37, 29), dict(max_image_size=490)),
        ((20, 61), dict(max_image_size=490, min_image_size=200)),
        ((40, 40), dict(max_image_size=980)),
        ((95, 40), dict(max_image_size=490, split_image=True)),
        ((50, 50), dict(max_image_size=490, split_image=True)),
        ((100, 310), dict(max_image_size=980, split_image=True, split_resolutions=[[490, 980], [980, 490], [1470, 490]])),
    ]:
        got = AriaImageProcessor(**options)([picture(*size)], return_tensors="np")
        mask = got["pixel_mask"]
        real = [[int(m[0].sum()), int(m[:, 0].sum())] for m in mask]
        assert all(m[:h, :w].all() and m.sum() == w * h for m, (w, h) in zip(mask, real))
        side = options["max_image_size"]
        yield dict(size=size, config=options, real=real, sums=sums(got["pixel_values"], side * 49))


def qwen():
    for size, options in [
        ((300, 200), dict(min_pixels=65536, max_pixels=16777216, patch_size=16, **HALF)),
        ((50, 90), dict(min_pixels=65536, max_pixels=16777216, patch_size=16, **HALF)),
        ((300, 200), dict(min_pixels=1024, max_pixels=20000, patch_size=14, **HALF)),
    ]:
        got = Qwen2VLImageProcessor(**options)([picture(*size)], return_tensors="np")
        grid, values = got["image_grid_thw"][0].tolist(), got["pixel_values"]
        yield dict(size=size, config=options, grid=grid, sums=sums(values, 16 * values.shape[1]))


def frames():
    """A video of three frames, without resizing."""
    processor = Qwen2VLImageProcessor(patch_size=8, do_resize=False, **HALF)
    keys = "do_resize size resample do_rescale rescale_factor do_normalize image_mean image_std patch_size"
    options = {key: getattr(processor, key) for key in (keys + " temporal_patch_size merge_size do_convert_rgb").split()}
    video = [picture(48, 32).transpose(turn) for turn in [Image.FLIP_TOP_BOTTOM, Image.FLIP_LEFT_RIGHT, Image.ROTATE_180]]
    values, grid = processor._preprocess(video, **options)
    return dict(size=(48, 32), grid=[int(n) for n in grid], sums=sums(values, 4 * values.shape[1]))


def sizes():
    resize = method("models/qwen3_vl/video_processing_qwen3_vl.py", "smart_resize")
    pictures = [(w, h) for w in (1, 31, 48, 80, 112, 640, 1000, 5000) for h in (20, 48, 144, 777, 4096) if max(w, h) <= 200 * min(w, h)]
    for least, most in [(65536, 16777216), (1024, 300000)]:
        for w, h in pictures:
            high, wide = smart_resize(h, w, factor=32, min_pixels=least, max_pixels=most)
            yield dict(size=(w, h), pixels=(least, most), to=(wide, high))
            for n in (2, 3, 9):
                if min(w, h) >= 32:
                    high, wide = resize(n, h, w, 2, 32, least, most)
                    yield dict(size=(w, h), frames=n, pixels=(least, most), to=(wide, high))


def samples():
    sample = method("models/qwen3_vl/video_processing_qwen3_vl.py", "sample_frames")

    class Processor:
        fps, min_frames, max_frames = 2, 4, 768

    for total, fps in [(1, 24), (3, 24), (48, 24), (250, 29.97), (100, 7.5), (24000, 24)]:
        class Metadata:
            total_num_frames = total
        Metadata.fps = fps
        indices = sample(Processor, Metadata)
        yield dict(total=total, fps=fps, n=len(indices), sum=int((indices * (np.arange(len(indices)) % 251 + 1)).sum()))


def tiles():
    pinpoints = [[24, 48], [48, 24], [48, 48], [72, 24], [24, 72]]
    config = dict(size=dict(shortest_edge=24), crop_size=dict(height=24, width=24), image_grid_pinpoints=pinpoints, **HALF)
    for size in [(40, 30), (30, 40), (20, 20), (100, 100), (100, 31), (17, 90), (50, 8)]:
        got = LlavaNextImageProcessor(**config)([picture(*size)], return_tensors="np")["pixel_values"][0]
        high, wide = select_best_resolution((size[1], size[0]), pinpoints)
        yield dict(size=size, config=config, grid=(wide, high), tiles=len(got), sums=sums(got, 24 * 24 * 3))


print(transformers.__version__, PIL.__version__)
cases = dict(aria=list(aria()), qwen=list(qwen()), frames=frames(), sizes=list(sizes()), samples=list(samples()), tiles=list(tiles()))
with open(sys.argv[1], "w") as f:
    json.dump(cases, f, separators=(",", ":"))
    f.write("\n")
