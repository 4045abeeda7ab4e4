"""Sounds that tools/sound_corpus.py makes of nothing: notes of five instruments, chords, scales; and what it does with all sounds."""

import numpy as np

RATE = 16000
CHORDS = {"major": (0, 4, 7), "minor": (0, 3, 7), "diminished": (0, 3, 6), "augmented": (0, 4, 8)}
SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11, 12),
    "minor": (0, 2, 3, 5, 7, 8, 10, 12),
    "pentatonic": (0, 2, 4, 7, 9, 12, 14, 16),
    "chromatic": (0, 1, 2, 3, 4, 5, 6, 7),
    "wholetone": (0, 2, 4, 6, 8, 10, 12, 14),
}


def harmonics(rng, pitch, count, weights, vibrato=0.0):
    """A sum of harmonics below 7.5 kHz; `pitch` in Hz, `vibrato` as a share of it."""
    t = np.arange(count) / RATE
    bend = vibrato * np.sin(2 * np.pi * rng.uniform(4.5, 6.5) * t + rng.uniform(0, 6)) if vibrato else np.zeros(count)
    phase = 2 * np.pi * np.cumsum(pitch * (1 + bend)) / RATE
    sound = np.zeros(count)
    for i, weight in enumerate(weights, 1):
        if i * pitch < 7500:
            sound += weight * np.sin(i * phase + rng.uniform(0, 6))
    return sound


def faded(sound, attack, release):
    """With a rise and a fall of so many seconds."""
    count = len(sound)
    t = np.arange(count) / RATE
    return sound * np.minimum(1, t / attack) * np.minimum(1, (count / RATE - t) / release).clip(0)


class Instrument:
    """An instrument of one of five kinds; no two sound alike."""

    KINDS = ("organ", "piano", "flute", "violin", "harp")

    def __init__(self, rng, kind):
        self.kind, self.rng = kind, rng
        self.tilt = rng.uniform(0.8, 1.3)
        self.drawbars = rng.uniform(0.3, 1, 9) * (rng.uniform(size=9) < 0.75)
        self.drawbars[0] = 1
        self.bright, self.decay = rng.uniform(0.3, 0.6), rng.uniform(0.5, 1.4)

    def note(self, pitch, seconds):
        """`pitch` in semitones as MIDI counts them."""
        rng, count = self.rng, int(seconds * RATE)
        hz = 440 * 2 ** ((pitch - 69) / 12)
        t = np.arange(count) / RATE
        order = np.arange(1, 25)
        if self.kind == "organ":
            return faded(harmonics(rng, hz, count, self.drawbars), 0.01, 0.03)
        if self.kind == "piano":
            sound = sum(
                harmonics(rng, hz * i * np.sqrt(1 + 4e-4 * i * i), count, [0.9 ** i / i**self.tilt]) * np.exp(-t * (1 + 0.4 * i) / self.decay)
                for i in range(1, 13)
                if i * hz < 7000
            )
            return faded(sound, 0.003, 0.05)
        if self.kind == "flute":
            breath = np.convolve(rng.normal(0, 1, count), np.ones(8) / 8, "same") * 0.04
            return faded(harmonics(rng, hz, count, [1, 0.25 * self.bright, 0.12, 0.03], 0.004) + breath, 0.06, 0.08)
        if self.kind == "violin":
            return faded(harmonics(rng, hz, count, 1 / order**self.tilt, 0.008), 0.09, 0.09)
        return faded(self.pluck(hz, count), 0.002, 0.05)

    def pluck(self, hz, count):
        """A plucked string (Karplus and Strong, 1983): noise that goes round a loop which smooths it."""
        length = max(2, round(RATE / hz - 0.5))
        loop = self.rng.uniform(-1, 1, length)
        rounds = -(-count // length)
        out = np.empty((rounds, length))
        for i in range(rounds):
            out[i] = loop
            loop = 0.996 * (0.5 * loop + 0.5 * np.roll(loop, 1))
        return out.reshape(-1)[:count]


def chord(rng, player, kind, seconds):
    """All notes at once, or one after the other as they stay."""
    root, sound = rng.integers(55, 73), np.zeros(int(seconds * RATE))
    spread = rng.uniform(0.08, 0.25) if rng.uniform() < 0.4 else 0.0
    # The last note has at least half of a short clip.
    spread = min(spread, 0.5 * seconds / len(CHORDS[kind]))
    for i, step in enumerate(CHORDS[kind]):
        start = int(i * spread * RATE)
        note = player.note(root + step, seconds - i * spread)
        sound[start : start + len(note)] += note
    return sound


def scale(rng, player, kind, up, seconds):
    """Eight notes."""
    root, steps = rng.integers(55, 70), SCALES[kind] if up else SCALES[kind][::-1]
    each = seconds / len(steps)
    sound = np.zeros(int(seconds * RATE) + 1)
    for i, step in enumerate(steps):
        start = int(i * each * RATE)
        note = player.note(root + step, each)
        sound[start : start + len(note)] += note
    return sound


def beat(rng, strokes, tempo, seconds):
    """Strokes at so many beats a minute; of two sounds, the second stands between."""
    count, gap = int(seconds * RATE), 60 / tempo
    sound = np.zeros(count)
    for i in range(int(seconds / gap) + 1):
        stroke = strokes[i % len(strokes)]
        start = int(i * gap * RATE)
        end = min(count, start + min(len(stroke), int(gap * RATE)))
        sound[start:end] += stroke[: max(0, end - start)] * rng.uniform(0.85, 1)
    return sound


def levelled(sound, decibels):
    """With a root mean square of so many decibels over the half of its frames that is loudest, below clipping."""
    frames = sound[: len(sound) // 160 * 160].reshape(-1, 160)
    power = np.sort((frames**2).mean(1))[len(frames) // 2 :]
    sound = sound * (10 ** (decibels / 20) / max(1e-6, np.sqrt(power.mean() if len(power) else 0)))
    return sound * min(1.0, 0.95 / max(1e-6, np.abs(sound).max()))
