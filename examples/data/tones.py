#!/usr/bin/env python3
"""Writes tones.wav, the clip of examples/asr_features.rs: made from formulas, so nobody's recording.

    python3 examples/data/tones.py

1.5 s at 16 kHz, 16 bit: a sweep from 150 to 6000 Hz, a pause, then the harmonics of 140 Hz under two formants, like a vowel.
"""

import math
import random
import struct
import wave
from pathlib import Path

RATE = 16000


def sweep(t, seconds=0.7, low=150.0, high=6000.0):
    ratio = high / low
    return 0.5 * math.sin(2 * math.pi * low * seconds / math.log(ratio) * (ratio ** (t / seconds) - 1))


def vowel(t, pitch=140.0):
    value = 0.0
    for harmonic in range(1, 28):
        hertz = pitch * harmonic
        loud = sum(math.exp(-(((hertz - formant) / width) ** 2)) for formant, width in [(700, 220), (1200, 260), (2600, 400)])
        value += loud * math.sin(2 * math.pi * hertz * t)
    return 0.12 * value


def main():
    rng = random.Random(16000)
    values = []
    for i in range(int(1.5 * RATE)):
        t = i / RATE
        if t < 0.7:
            value, edge = sweep(t), min(t, 0.7 - t)
        elif 0.85 <= t < 1.45:
            value, edge = vowel(t), min(t - 0.85, 1.45 - t)
        else:
            value, edge = 0.0, 0.0
        value = value * min(1.0, edge / 0.02) + 0.0005 * rng.gauss(0, 1)
        values.append(max(-32768, min(32767, round(32767 * value))))
    with wave.open(str(Path(__file__).with_name("tones.wav")), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(struct.pack(f"<{len(values)}h", *values))


if __name__ == "__main__":
    main()
