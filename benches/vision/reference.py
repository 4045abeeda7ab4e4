"""The torch side of run.py. Started by run.py with a folder, answers commands on standard input.

    make                        writes the model, the processors' settings and the picture that both sides take
    preprocess crop|pad slow|fast    seconds for one picture, the fastest of several
    load DTYPE                  loads the encoder
    encode N                    seconds for N pictures, the fastest of several
    chat-make, chat-load DTYPE  writes and loads the model of moe_llava.py
    chat-run PROMPT STEPS       seconds of a picture, of a prompt with it and PROMPT words, and of STEPS words more
    ceilings                    matrix products, for scale
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPImageProcessorFast, CLIPVisionConfig, CLIPVisionModel

import moe_llava

FOLDER = Path(sys.argv[1])
WIDTH, HEIGHT = 2000, 1500
SIZES = {"crop": 224, "pad": 336}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
torch.set_grad_enabled(False)


def best(call, least=5, seconds=2.0):
    times, begin = [], time.perf_counter()
    while len(times) < least or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return min(times), result


def write(name, values):
    (FOLDER / f"torch.{name}").write_bytes(np.ascontiguousarray(values, dtype=np.float32).tobytes())


def make():
    torch.manual_seed(20261125)
    config = CLIPVisionConfig(patch_size=16, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    model = CLIPVisionModel(config)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            weight.normal_(0, weight[0].numel() ** -0.5)
    model.save_pretrained(FOLDER / "model")
    # Waves and noise: neither flat nor all edges.
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
    noise = np.random.default_rng(7).integers(-20, 20, (HEIGHT, WIDTH, 3))
    waves = np.stack([np.sin(x / 31 + y / 57), np.sin(x / 11 - y / 23), np.cos(y / 7)], -1) * 100 + 128
    picture = np.clip(waves + noise, 0, 255).astype(np.uint8)
    (FOLDER / "picture.rgb").write_bytes(picture.tobytes())
    for kind, size in SIZES.items():
        CLIPImageProcessor(size={"shortest_edge": size}, crop_size=size).save_pretrained(FOLDER / kind)
    np.random.default_rng(8).standard_normal((8, 3, 224, 224)).astype(np.float32).tofile(FOLDER / "pixels.f32")
    return {}


def square(picture, colour):
    side = max(picture.size)
    padded = Image.new("RGB", (side, side), colour)
    padded.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return padded


def preprocess(kind, how):
    processor = (CLIPImageProcessorFast if how == "fast" else CLIPImageProcessor).from_pretrained(FOLDER / kind)
    picture = Image.fromarray(np.frombuffer((FOLDER / "picture.rgb").read_bytes(), np.uint8).reshape(HEIGHT, WIDTH, 3))
    colour = tuple(int(255 * m) for m in processor.image_mean)

    def call():
        image = square(picture, colour) if kind == "pad" else picture
        return processor(image, return_tensors="pt")["pixel_values"]

    seconds, pixels = best(call)
    if how == "slow":
        write(kind, pixels.numpy())
    return {"seconds": seconds}


def ceilings():
    answer = {}
    for name, dtype in DTYPES.items():
        a = torch.randn(1024, 1024).to(dtype)
        seconds, _ = best(lambda: a @ a, 3, 0.5)
        answer[f"{name} GFLOP/s of torch"] = 2 * 1024**3 / seconds / 1e9
    return answer


def main():
    model, dtype, chat = None, None, None
    for line in sys.stdin:
        match line.split():
            case ["make"]:
                answer = make()
            case ["preprocess", kind, how]:
                answer = preprocess(kind, how)
            case ["load", name]:
                dtype = DTYPES[name]
                model = CLIPVisionModel.from_pretrained(FOLDER / "model", torch_dtype=dtype).eval()
                answer = {}
            case ["encode", n]:
                pixels = torch.from_numpy(np.fromfile(FOLDER / "pixels.f32", np.float32).reshape(8, 3, 224, 224)[: int(n)])
                seconds, states = best(lambda: model(pixels.to(dtype)).last_hidden_state, 3)
                write("encode", states.float().numpy())
                answer = {"seconds": seconds}
            case ["chat-make"]:
                moe_llava.make(FOLDER / "chat")
                np.random.default_rng(9).standard_normal((1, 3, 336, 336)).astype(np.float32).tofile(FOLDER / "chat.f32")
                answer = {}
            case ["chat-load", name]:
                model, dtype, chat = None, DTYPES[name], None
                chat = moe_llava.load(FOLDER / "chat", dtype)
                answer = {}
            case ["chat-run", prompt, steps]:
                pixels = torch.from_numpy(np.fromfile(FOLDER / "chat.f32", np.float32).reshape(1, 3, 336, 336)).to(dtype)
                answer, scores = moe_llava.run(chat, pixels, int(prompt), int(steps))
                write("chat", scores)
            case ["ceilings"]:
                answer = ceilings()
            case _:
                raise SystemExit(f"unknown command {line!r}")
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
