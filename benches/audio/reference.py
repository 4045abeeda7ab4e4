"""The torch side of run.py. Started by run.py, answers commands on standard input.

    make DIR                a Whisper-base-sized model with random weights in f32, as the hub repository would hold it
    file FILE               Whisper features of a whole 16-bit WAV file in windows of 30 s
    whisper MELS            features of the samples in WAVE.f32, in windows of 30 s
    avhubert | ced          python_speech_features.logfbank with AV-HuBERT's stacking and norm; torchaudio's mel spectrogram
    resample                those samples from 44.1 to 16 kHz by torchaudio
    load DTYPE              loads the encoder
    encode BATCH            runs it on the first window's features
    part NAME DTYPE         makes U-SAM's encoder of sounds (ced) or its qformer of usam.py
    listen BATCH            runs it: CED on the features of the first ten seconds, the Q-Former on ten seconds of tokens
    missing                 which of these it has no package for
    ceilings                matrix products and a memory read, for scale
"""

import json
import sys
import time
import wave

from pathlib import Path

import numpy as np
import torch
import usam
from safetensors.torch import load_file
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperModel

try:  # Not in every environment: `missing` says so, and run.py leaves their rows out.
    import torchaudio
except ImportError:
    torchaudio = None
try:
    import python_speech_features
except ImportError:
    python_speech_features = None

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
WINDOW = 480000
# GFLOP/s below which torch has no real kernel for a type here.
SLOW = 20


def make(folder):
    torch.manual_seed(20261125)
    config = WhisperConfig(
        d_model=512, encoder_layers=6, encoder_attention_heads=8, encoder_ffn_dim=2048, decoder_layers=1,
        decoder_attention_heads=8, decoder_ffn_dim=2048, num_mel_bins=80,
    )
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.normal_(0.0, weight.shape[1] ** -0.5)
    model.save_pretrained(folder, safe_serialization=True, max_shard_size="100GB")
    usam.make(Path(folder))


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
        for n in [256, 2048]:
            a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
            rate = 2 * n**3 / fastest(lambda: a @ b, 20 if n == 256 else 5) / 1e9
            if rate < SLOW:
                break
        answer[f"torch {n}^3 {name} GFLOP/s"] = rate
        answer[f"{name} is slow"] = rate < SLOW
    buffer = torch.ones(1 << 28)
    answer["torch read of 1 GiB GB/s"] = buffer.numel() * 4 / fastest(buffer.sum) / 1e9
    return answer


def windows(samples):
    return (samples[at : at + WINDOW] for at in range(0, len(samples), WINDOW))


def avhubert(samples):
    values = (samples * 32768).round().clip(-32768, 32767).astype(np.int16)
    banks = python_speech_features.logfbank(values, samplerate=16000).astype(np.float32)
    banks = np.pad(banks, ((0, -len(banks) % 4), (0, 0))).reshape(-1, 104)
    return torch.nn.functional.layer_norm(torch.from_numpy(banks), (104,)).numpy()


def main(folder, wav, out):
    torch.set_num_threads(2)
    samples = np.fromfile(wav, dtype="<f4")
    extractors = {mels: WhisperFeatureExtractor(feature_size=mels) for mels in (80, 128)}
    if torchaudio:
        mel = torchaudio.transforms.MelSpectrogram(16000, n_fft=512, hop_length=160, f_min=0, f_max=8000, n_mels=64)
        decibels = torchaudio.transforms.AmplitudeToDB(top_db=120)
    whisper = lambda window, mels: extractors[mels](window, sampling_rate=16000, return_tensors="np").input_features[0]
    model = None
    for line in sys.stdin:
        command, *words = line.split()
        values, extra = None, {}
        start = time.perf_counter()
        if command == "make":
            make(words[0])
        elif command == "file":
            count = 0
            with wave.open(words[0]) as file:
                while frames := file.readframes(WINDOW):
                    values = np.frombuffer(frames, dtype="<i2").astype(np.float32) / 32768
                    whisper(values, 80)
                    count += 1
            values, extra = None, {"windows": count}
        elif command == "whisper":
            for window in windows(samples):
                values = whisper(window, int(words[0]))
        elif command == "avhubert":
            values = avhubert(samples)
        elif command == "ced":
            for window in windows(samples):
                values = decibels(mel(torch.from_numpy(window))).numpy()
        elif command == "resample":
            values = torchaudio.functional.resample(torch.from_numpy(samples), 44100, 16000).numpy()
        elif command == "load":
            model = WhisperModel.from_pretrained(folder, dtype=DTYPES[words[0]]).eval().encoder
        elif command == "encode":
            features = torch.from_numpy(whisper(samples[:WINDOW], 80)).to(model.dtype)
            features = features[None].repeat(int(words[0]), 1, 1)
            with torch.inference_mode():
                start = time.perf_counter()
                values = model(features).last_hidden_state
                extra = {"seconds": time.perf_counter() - start}
            values = values[0].float().numpy()
        elif command == "part":
            part, kind = words[0], DTYPES[words[1]]
            model = usam.load(Path(folder), part, kind)
            features = load_file(Path(folder) / "tokens.safetensors")["tokens"]
            if part == "ced":
                features = decibels(mel(torch.from_numpy(samples[:160000])))[None]
            features = features.to(kind)
        elif command == "listen":
            rows = features.repeat(int(words[0]), 1, 1)
            with torch.inference_mode():
                start = time.perf_counter()
                values = model(rows)
                extra = {"seconds": time.perf_counter() - start}
            values = values[0].float().numpy()
        elif command == "missing":
            found = {"ced": torchaudio, "resample": torchaudio, "avhubert": python_speech_features}
            extra = {"missing": [name for name, module in found.items() if module is None]}
        else:
            extra = ceilings()
        answer = {"seconds": time.perf_counter() - start, **extra}
        if values is not None:
            np.ascontiguousarray(values, dtype="<f4").tofile(out)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
