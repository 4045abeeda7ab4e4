#!/usr/bin/env python3
"""Makes a corpus of audio-visual speech: sentences spoken by a synthesiser, and mouths drawn from the times of its sounds.

    python3 -m venv venv && venv/bin/pip install numpy pillow espeakng-loader
    venv/bin/python tools/avsr_corpus.py [--out data/avsr] [--seed 1] [--clips 5000 300 500 500] [--hard 1.0]

Needs Python 3.9 or newer on Linux or macOS. The sound is made by espeak-ng 1.52 (GPL-3, from the package espeakng-loader 0.2.4, which
holds library and data; nothing of it becomes part of this project), the pictures by tools/avsr_mouths.py. Both streams come from
the same true times of the sounds: results on this corpus say what a model can learn, not how well it reads the lips of people.

Sentences, each different from all others:

    60 %    six words like those of the GRID corpus (M. Cooke et al., 2006): place blue at f two now
    25 %    three to six digits: seven two nine
    15 %    three to five letters: b k q

Splits, `text,audio,video,frames,units,voice` in a CSV file each:

    train   nine voices, each clip with a rate and a pitch of its own
    valid   other sentences, the same voices
    test    other sentences, the same voices
    voice   other sentences and a voice that is nowhere else

`audio` is 16 kHz, 16 bit, mono, of frames x 640 samples, with 0.1 to 0.3 s of faint noise before and after; `video` is a lossless
animated WebP of 96 x 96 grey pixels, 25 frames a second; `units` is the sound of each frame, run by run (`_*4 p*2 l*3`); units.txt lists
all. babble_train.wav and babble_test.wav are 60 s of voices speaking at once, of sentences that no split has, for noise. --hard
scales all that makes lips hard to read; 0 is a clean drawing.

Everything is drawn from the seed, each clip from its own: more clips of training change no other clip. The sums printed
are those of all sound, pictures and lines: with the defaults, Pillow 13.0 and numpy 2.4 on x86-64, 12d8bc9f203d3f80 (valid),
5dfbc96bf838845d (test), eb2fcec251e1e866 (voice), 0e24af503486c31e (train). It takes 12 minutes of one core and 1.2 GB.
"""

import argparse
import csv
import ctypes
import hashlib
import multiprocessing
import os
import pickle
import random
import re
import sys
import wave
from pathlib import Path

# Workers are as many as there are cores.
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np

import avsr_mouths as mouths

RATE = 16000
FRAME = RATE // mouths.FPS
VOICES = ("en-us", "en-us+f3", "en-us+m5", "en-gb-x-rp", "en-gb-x-rp+f2", "en-gb-scotland+m3", "en-gb-x-gbcwmd+f1", "en-us-nyc+m7", "en-029+f4")
UNSEEN = "en-gb-x-gbclan+f5"

GRID = (
    ("bin", "lay", "place", "set"),
    ("blue", "green", "red", "white"),
    ("at", "by", "in", "with"),
    tuple("abcdefghijklmnopqrstuvxyz"),
    ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    ("again", "now", "please", "soon"),
)
LETTERS, DIGITS = GRID[3], GRID[4]
# Kept for demonstrations: no split has them.
KEPT = ("place blue at f two now", "set white by m nine please", "lay green with o five again")

# The sounds of all accents in one inventory; "" goes to the sound before.
UNITS = "_ p b t d k g f v T D s z tS dZ m n l r w j i: I E a V @ u: eI oU aI aU o@ i@ A@".split()
MERGED = {"_:": "_", ";": "", "t#": "t", "t[": "t", "w#": "w", "r-": "r", "aI2": "aI", "a#": "@", "0": "V", "O@": "o@", "aa": "a", "I2": "I", "3": "@"}


# ---------------------------------------------------------------------------------------------------------------- sentences


def sentence(rng):
    kind = rng.random()
    if kind < 0.6:
        return " ".join(rng.choice(words) for words in GRID)
    words, most = (DIGITS, 6) if kind < 0.85 else (LETTERS, 5)
    return " ".join(rng.choice(words) for _ in range(rng.randint(3, most)))


def sentences(name, seed, count, taken):
    """Sentences that are not yet taken, and takes them."""
    rng = random.Random(f"{seed}/{name}/sentences")
    found = []
    for _ in range(200 * count + 1000):
        if len(found) == count:
            return found
        text = sentence(rng)
        if text not in taken:
            taken.add(text)
            found.append(text)
    sys.exit(f"there are no {count} further sentences for {name}: ask for fewer clips")


# -------------------------------------------------------------------------------------------------------------------- voice


class Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class Event(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("uid", ctypes.c_uint), ("text_position", ctypes.c_int), ("length", ctypes.c_int)]
    _fields_ += [("audio_position", ctypes.c_int), ("sample", ctypes.c_int), ("user_data", ctypes.c_void_p), ("id", Id)]


CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))
WORD, PHONEME = 1, 7


class Speech:
    """The synthesiser. Its state outlives a call, so each sentence is spoken by a process of its own that forgets it."""

    def __init__(self):
        try:
            import espeakng_loader
        except ImportError:
            sys.exit("the package espeakng-loader is missing: pip install espeakng-loader")
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.library.espeak_Synth.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int]
        self.library.espeak_Synth.argtypes += [ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p]
        self.c = ctypes.CDLL(None)
        self.callback = CALLBACK(self.receive)
        self.sound, self.events = [], []
        # 2: no audio device, calls wait; 1: events of phonemes.
        self.rate = self.library.espeak_Initialize(2, 0, str(espeakng_loader.get_data_path()).encode(), 1)
        if self.rate <= 0:
            sys.exit("espeak-ng does not start: reinstall espeakng-loader")
        self.library.espeak_SetSynthCallback(self.callback)

    def receive(self, samples, count, events):
        if count > 0 and samples:
            self.sound.append(np.ctypeslib.as_array(samples, (count,)).copy())
        i = 0
        while events[i].type:
            event = events[i]
            if event.type == PHONEME:
                self.events.append((event.sample, bytes(event.id.string).split(b"\0")[0].decode()))
            i += 1
        return 0

    def say(self, text, voice, seed, wpm, pitch, span):
        """Samples at 22.05 kHz as floats in -1 to 1. In the text, [[...]] holds phonemes."""
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self.c.srand(ctypes.c_uint(seed))
        if self.library.espeak_SetVoiceByName(voice.encode()):
            sys.exit(f"espeak-ng has no voice {voice}: its data is not that of espeakng-loader 0.2.4")
        for parameter, value in ((1, wpm), (3, pitch), (4, span)):
            self.library.espeak_SetParameter(parameter, value, 0)
        # UTF-8 in which [[...]] holds phonemes.
        self.library.espeak_Synth(text.encode(), len(text.encode()) + 1, 0, 1, 0, 1 | 0x100, None, None)
        if not self.sound:
            sys.exit(f"espeak-ng says nothing for {text!r} with the voice {voice}")
        return np.concatenate(self.sound).astype(np.float32) / 32768

    def speak(self, text, *voice):
        """The same where "a" is a letter, and phones (sound, start, end) in seconds."""
        # "a" alone would be read as the article.
        sound = self.say(" ".join("[['eI]]" if word == "a" else word for word in text.split(" ")), *voice)
        return sound, phones(self.events, self.rate, len(sound), text)

    def alone(self, way, *arguments):
        """`say` or `speak` in a process of its own."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(reading)
                with os.fdopen(writing, "wb") as file:
                    pickle.dump(way(*arguments), file)
                code = 0
            finally:
                os._exit(code)
        os.close(writing)
        with os.fdopen(reading, "rb") as file:
            data = file.read()
        if os.waitpid(child, 0)[1]:
            sys.exit(f"espeak-ng failed on {arguments}")
        return pickle.loads(data)


def phones(events, rate, samples, text):
    """Phones (sound, start, end) in seconds from events, whose time is where a phoneme begins."""
    found = []
    for sample, name in events:
        # Marks of stress stand before a name.
        name = name.lstrip("',")
        name = MERGED.get(name, name)
        if name and name not in UNITS:
            sys.exit(f"espeak-ng says {name!r} in {text!r}, which is no unit: add it to MERGED")
        if name and not (found and found[-1][0] == name == "_"):
            found.append((name, sample / rate))
    ends = [start for _, start in found[1:]] + [samples / rate]
    return [(name, start, end) for (name, start), end in zip(found, ends) if end > start]


# -------------------------------------------------------------------------------------------------------------------- sound


def resampled(sound, rate):
    """From `rate` to 16 kHz by a windowed sinc of 24 crossings to each side."""
    ratio = min(1.0, RATE / rate) * 0.95
    reach = int(np.ceil(24 / ratio))
    count = len(sound) * RATE // rate
    at = np.arange(count) * (rate / RATE)
    first = np.floor(at).astype(int)
    offsets = np.arange(-reach + 1, reach + 1)
    # Phases repeat after as many outputs as the rates' common divisor allows.
    period = RATE // np.gcd(RATE, rate)
    t = (at[:period] - first[:period])[:, None] - offsets
    taps = ratio * np.sinc(ratio * t) * np.cos(np.pi * t / (2 * reach + 2)) ** 2
    padded = np.pad(sound.astype(np.float64), (reach, reach + 1))
    out = np.empty(count)
    for phase in range(min(period, count)):
        windows = first[phase::period, None] + offsets + reach
        out[phase::period] = padded[windows] @ taps[phase]
    return out


def write_wav(path, sound):
    """16 bit; gives what was written."""
    samples = np.clip(np.rint(sound * 32767), -32768, 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())
    return samples


def spoken(speech, rng, text, voice):
    """A sentence at 16 kHz, its level at -23 dB, and its phones."""
    seed = int(rng.integers(1, 2**31))
    wpm, pitch, span = (int(rng.integers(*bounds)) for bounds in ((130, 191), (30, 71), (35, 66)))
    sound, said = speech.alone(speech.speak, text, voice, seed, wpm, pitch, span)
    sound = resampled(sound, speech.rate)
    return sound * (0.07 / max(1e-4, np.sqrt(np.mean(sound**2)))), said


def padded(rng, sound, said):
    """Faint noise before, after and below; whole frames. Gives sound, phones and frames."""
    before, after = rng.uniform(0.1, 0.3, 2)
    lead = int(before * RATE)
    frames = -(-(lead + len(sound) + int(after * RATE)) // FRAME)
    whole = rng.normal(0, 10 ** rng.uniform(-4.0, -3.2), frames * FRAME)
    whole[lead : lead + len(sound)] += sound * 10 ** rng.uniform(-0.25, 0.25)
    shift = lead / RATE
    said = [(name, start + shift, end + shift) for name, start, end in said]
    said = [("_", 0.0, said[0][1])] + said + [("_", said[-1][2], frames / mouths.FPS)]
    return np.clip(whole, -1, 1), said, frames


def frame_units(said, frames):
    """The sound that fills most of each frame."""
    share = np.zeros((frames, len(UNITS)))
    edges = np.arange(frames) / mouths.FPS
    for name, start, end in said:
        share[:, UNITS.index(name)] += np.clip(np.minimum(end, edges + 1 / mouths.FPS) - np.maximum(start, edges), 0, None)
    return [UNITS[i] for i in share.argmax(1)]


def runs(units):
    """`_ _ p` as `_*2 p*1`."""
    counted = []
    for unit in units:
        if counted and counted[-1][0] == unit:
            counted[-1][1] += 1
        else:
            counted.append([unit, 1])
    return " ".join(f"{unit}*{count}" for unit, count in counted)


# -------------------------------------------------------------------------------------------------------------------- clips


def generator(*key):
    """A random generator for a key."""
    return np.random.default_rng(list(hashlib.sha256("/".join(map(str, key)).encode()).digest()))


def clip(speech, seed, part, index, text, hard):
    """Everything of one clip: sound, phones, frames of the mouth, voice."""
    rng = generator(seed, part, index)
    voice = UNSEEN if part == "voice" else VOICES[int(rng.integers(len(VOICES)))]
    sound, said, frames = padded(rng, *spoken(speech, rng, text, voice))
    look = mouths.Look(rng, hard)
    pictures = mouths.render(rng, mouths.tracks(rng, said, frames, hard), look)
    return sound, said, pictures, voice


def write_clip(job):
    out, seed, part, index, text, hard = job
    sound, said, pictures, voice = clip(SPEECH, seed, part, index, text, hard)
    audio, video = f"audio/{part}/{index:05}.wav", f"video/{part}/{index:05}.webp"
    samples = write_wav(out / audio, sound)
    mouths.write_webp(out / video, pictures)
    row = [text, audio, video, len(pictures), runs(frame_units(said, len(pictures))), voice]
    return row, hashlib.sha256(samples.tobytes() + pictures.tobytes()).digest(), (out / video).stat().st_size


SPEECH = None  # of the whole process, so that workers have it from its fork


def part_of(pool, out, part, jobs):
    """Writes the clips of one split and its CSV file."""
    for folder in ("audio", "video"):
        (out / folder / part).mkdir(parents=True, exist_ok=True)
    total, size, frames = hashlib.sha256(), 0, 0
    with open(out / f"{part}.csv.new", "w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["text", "audio", "video", "frames", "units", "voice"])
        for done, (row, digest, bytes_) in enumerate(pool.imap(write_clip, jobs, chunksize=4), 1):
            lines.writerow(row)
            total.update(digest)
            total.update(repr(row).encode())
            size, frames = size + bytes_, frames + row[3]
            if done % 500 == 0:
                print(f"  {done} of {len(jobs)}", flush=True)
    # Only a complete split has its list.
    (out / f"{part}.csv.new").replace(out / f"{part}.csv")
    mean = frames / max(1, len(jobs))
    print(f"{part}: {len(jobs)} clips, {frames / mouths.FPS / 60:.1f} min, {mean:.1f} frames each, {size / 1e6:.0f} MB of pictures; SHA-256 {total.hexdigest()[:16]}", flush=True)


def speak_one(job):
    seed, name, track, index, text = job
    rng = generator(seed, name, track, index)
    return spoken(SPEECH, rng, text, VOICES[int(rng.integers(len(VOICES)))])[0]


def babble(pool, out, name, seed, texts, seconds=60, voices=8):
    """Writes `voices` people speaking at once without end."""
    length = seconds * RATE
    total = np.zeros(length)
    each = len(texts) // voices
    for track in range(voices):
        jobs = [(seed, name, track, i, texts[track * each + i]) for i in range(each)]
        line = np.concatenate(pool.map(speak_one, jobs, chunksize=4))
        if len(line) < length:
            sys.exit(f"{name}: too few sentences for {seconds} s")
        # Nobody begins with the others.
        start = int(generator(seed, name, track).integers(len(line)))
        total += np.roll(line, start)[:length]
    write_wav(out / f"{name}.wav", total * (0.07 / np.sqrt(np.mean(total**2))))
    print(f"{name}: {seconds} s of {voices} voices", flush=True)


def main():
    global SPEECH
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/avsr"), help="folder of the corpus")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clips", type=int, nargs=4, default=(5000, 300, 500, 500), metavar=("TRAIN", "VALID", "TEST", "VOICE"))
    parser.add_argument("--hard", type=float, default=1.0, help="scales what makes lips hard to read")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if not 0 <= options.hard <= 3:
        sys.exit("--hard must lie between 0 and 3")
    options.out.mkdir(parents=True, exist_ok=True)
    SPEECH = Speech()
    counts = dict(zip(("train", "valid", "test", "voice"), options.clips))
    taken = set(KEPT)
    noise = {name: sentences(name, options.seed, 8 * 60, taken) for name in ("babble_test", "babble_train")}
    # What is measured on is drawn first: it does not depend on how much is trained on.
    texts = {part: sentences(part, options.seed, counts[part], taken) for part in ("test", "voice", "valid", "train")}
    (options.out / "units.txt").write_text("\n".join(UNITS) + "\n", encoding="utf-8")
    with multiprocessing.get_context("fork").Pool(options.workers) as pool:
        for name, lines in noise.items():
            babble(pool, options.out, name, options.seed, lines)
        for part in ("valid", "test", "voice", "train"):
            jobs = [(options.out, options.seed, part, i, text, options.hard) for i, text in enumerate(texts[part])]
            part_of(pool, options.out, part, jobs)


if __name__ == "__main__":
    main()
