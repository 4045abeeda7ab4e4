#!/usr/bin/env python3
"""Makes what the speech model of published parts learns from and is measured on: synthesised sentences, and recordings of people.

    apt-get install flite
    python3 -m venv venv && venv/bin/pip install numpy pillow espeakng-loader
    venv/bin/python tools/speech_corpus.py [--out data/speech] [--seed 1] [--clips 6000 100]

Needs Python 3.11 or newer on Linux. Splits, `text,audio,frames,voice` in a CSV file each:

    train   clauses of two to fourteen words out of five novels, spoken by two synthesisers
    valid   other clauses, the same voices
    human   ten recordings of people, 34 s and 92 words in all: nothing else of them is trained on

Text: Jane Austen's Emma, Mansfield Park, Northanger Abbey, Persuasion and Pride and Prejudice, in the public domain, out of Debian's
package r-cran-janeaustenr 1.0.0-1 (MIT). Sense and Sensibility is left out: the recordings read of it. Letters are small, there
is no punctuation but apostrophes.

Voices: nine of espeak-ng 1.52 (GPL-3, from the package espeakng-loader 0.2.4) with a rate and a pitch for each clip, and four of
flite 2.2 (permissive, Carnegie Mellon's; three of them were made from recordings of people). Nothing of the programs becomes part of
this project. Clips have a tilt of their spectrum, half of them faint echoes of a room.

Recordings: Debian's pocketsphinx-testdata 0.8+5prealpha+1-15 (BSD-2-Clause, Carnegie Mellon): five of playing cards, five of a reader
for LibriVox, with their transcripts.

Packages are fetched with apt-get, checked, and kept in OUT. Everything is drawn from the seed, each clip from its own.
"""

import argparse
import csv
import gzip
import hashlib
import io
import multiprocessing
import os
import re
import struct
import subprocess
import sys
import tempfile
import wave
import zlib
from pathlib import Path

import avsr_corpus as spoken
import packages
from avsr_corpus import FRAME, RATE, generator, np, resampled, write_wav

NOVELS = ("emma", "mansfieldpark", "northangerabbey", "persuasion", "prideprejudice")
TEXT = ("r-cran-janeaustenr", "1.0.0-1", "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95")
PEOPLE = ("pocketsphinx-testdata", "0.8+5prealpha+1-15", "eaeb7a01d54f20b799d1a81ef110ec544b2cb47ea006614078220737a33019f0")
FLITE = ("slt", "rms", "awb", "kal16")
LONGEST = 7.5  # seconds
WORDS = {"mr": "mister", "mrs": "missus", "dr": "doctor", "messrs": "messieurs"}


# --------------------------------------------------------------------------------------------------------------------- text


def novels(package):
    """The lines of each novel, out of a database of R: a length and compressed data for each value, in the order of their names."""
    with packages.contents(package) as files:
        member = next(name for name in files.getnames() if name.endswith("janeaustenr/data/Rdata.rdb"))
        data = files.extractfile(member).read()
        index = gzip.decompress(files.extractfile(member[:-1] + "x").read())
    known = strings(index)
    names = known[known.index("names") + 1 : known.index("variables")]
    found, at = {}, 0
    for name in names:
        reader = zlib.decompressobj()
        found[name] = strings(reader.decompress(data[at + 4 :]))
        at = len(data) - len(reader.unused_data)
    return found


def strings(data):
    """The strings of a value of R, as `serialize` writes it: type 9 with flags, a length, bytes."""
    found, at = [], 0
    for match in re.finditer(rb"\x00[\x00\x04-\x0c]\x00\x09", data):
        if match.start() >= at:
            size = struct.unpack_from(">i", data, match.end())[0]
            at = match.end() + 4 + max(0, size)
            found.append(data[match.end() + 4 : at].decode("utf-8", "replace"))
    return found


def clauses(lines):
    """Clauses of two to fourteen words: small letters and apostrophes."""
    text = " ".join(line for line in lines if not re.match(r"\s*(chapter|volume)\b", line, re.I))
    text = text.replace("’", "'").replace("_", "")
    text = re.sub(r"\b(Mr|Mrs|Dr|Messrs)\.", lambda match: WORDS[match[1].lower()], text)
    # Without these a comma is only a pause.
    for part in re.split(r'[.;:!?"()\[\]]|--+|—|,(?= (?:and|but|that|which|for|or|as|when|if|so|who|though)\b)', text):
        part = re.sub(r"[\s,-]+", " ", part).strip().lower()
        part = re.sub(r"(^| )'+|'+(?= |$)", r"\1", part).strip()
        if re.fullmatch(r"[a-z' ]+", part) and 2 <= len(part.split()) <= 14:
            yield part


def sentences(package, seed, counts):
    """Clauses for each split, none twice; short ones and long ones alike."""
    books = novels(package)
    missing = [name for name in NOVELS if name not in books]
    if missing:
        sys.exit(f"{package}: holds no {missing[0]}")
    by_length = {}
    for text in sorted({text for name in NOVELS for text in clauses(books[name])}):
        by_length.setdefault(len(text.split()), []).append(text)
    rng = generator(seed, "sentences")
    for texts in by_length.values():
        rng.shuffle(texts)
    found = {}
    for part, count in counts.items():
        found[part] = []
        while len(found[part]) < count:
            length = int(rng.integers(2, 15))
            if not any(by_length.values()):
                sys.exit("there are not so many clauses: ask for fewer clips")
            if by_length.get(length):
                found[part].append(by_length[length].pop())
    return found


# -------------------------------------------------------------------------------------------------------------------- sound


def read_wav(source):
    """Samples in -1 to 1, and their rate."""
    with wave.open(source) as file:
        if (file.getnchannels(), file.getsampwidth()) != (1, 2):
            sys.exit(f"{source}: expected one channel of 16 bit")
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768, file.getframerate()


def flite(text, voice, stretch):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.wav"
        command = ["flite", "-voice", voice, "--setf", f"duration_stretch={stretch:.3f}", "-t", text, "-o", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not path.exists():
            sys.exit(f"flite fails on {text!r}: {done.stderr.strip()}")
        return read_wav(str(path))


def rooms(rng, sound):
    """The sound with a tilt of its spectrum, and half of the time with faint echoes."""
    tilt = rng.uniform(-0.4, 0.3)
    sound = sound + tilt * np.concatenate([[0.0], sound[:-1]])
    if rng.random() < 0.5:
        n = int(rng.uniform(0.05, 0.25) * RATE)
        echo = rng.normal(0, 1, n) * np.exp(-6.9 * np.arange(n) / n)
        echo[: RATE // 400] = 0
        echo *= rng.uniform(0.1, 0.5) / np.sqrt(np.sum(echo**2))
        size = 1 << (len(sound) + n).bit_length()
        sound = sound + np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(echo, size), size)[: len(sound)]
    return sound


def clip(speech, seed, part, index, text):
    """A clause as whole frames at 16 kHz with faint noise around and below, and its voice."""
    rng = generator(seed, part, index)
    # Half of the clips by each synthesiser.
    voices = FLITE if rng.random() < 0.5 else spoken.VOICES
    voice = voices[int(rng.integers(len(voices)))]
    if voice in FLITE:
        sound, rate = flite(text, voice, rng.uniform(0.85, 1.2))
    else:
        how = [int(rng.integers(*bounds)) for bounds in ((1, 2**31), (130, 191), (30, 71), (35, 66))]
        sound, rate = speech.alone(speech.say, text, voice, *how), speech.rate
    sound = sound if rate == RATE else resampled(sound, rate)
    heard = np.flatnonzero(np.abs(sound) > 1e-3 * np.abs(sound).max())
    sound = rooms(rng, sound[heard[0] : heard[-1] + 1])
    sound = sound * (0.07 / max(1e-4, np.sqrt(np.mean(sound**2)))) * 10 ** rng.uniform(-0.25, 0.25)
    before, after = (int(seconds * RATE) for seconds in rng.uniform(0.1, 0.3, 2))
    frames = -(-(before + len(sound) + after) // FRAME)
    whole = rng.normal(0, 10 ** rng.uniform(-4.0, -2.8), frames * FRAME)
    whole[before : before + len(sound)] += sound
    return np.clip(whole, -1, 1), frames, voice


def write_clip(job):
    out, seed, part, index, text = job
    sound, frames, voice = clip(spoken.SPEECH, seed, part, index, text)
    if frames * FRAME > LONGEST * RATE:
        return None
    audio = f"{part}/{index:05}.wav"
    samples = write_wav(out / audio, sound)
    return [text, audio, frames, voice], hashlib.sha256(samples.tobytes()).digest()


def write_part(out, part, clips):
    """The CSV file of a split, once it is complete."""
    with open(out / f"{part}.csv.new", "w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["text", "audio", "frames", "voice"])
        total, frames, words, count = hashlib.sha256(), 0, 0, 0
        for row, digest in (clip for clip in clips if clip):
            lines.writerow(row)
            total.update(digest)
            total.update(repr(row).encode())
            frames, words, count = frames + row[2], words + len(row[0].split()), count + 1
            if count % 500 == 0:
                print(f"  {count}", flush=True)
    (out / f"{part}.csv.new").replace(out / f"{part}.csv")
    print(f"{part}: {count} clips, {frames * FRAME / RATE / 60:.1f} min, {words} words; SHA-256 {total.hexdigest()[:16]}", flush=True)


def people(package, out):
    """The recordings and what is said in them."""
    with packages.contents(package) as files:
        for folder, transcript in (("cards", "cards.transcription"), ("librivox", "transcription")):
            root = f"./usr/share/pocketsphinx/test/data/{folder}/"
            for line in files.extractfile(root + transcript).read().decode().splitlines():
                text, name = re.fullmatch(r"<s>\s*(.*?)\s*</s>\s*\((.*)\)\s*", line).groups()
                data = files.extractfile(f"{root}{name}.wav").read()
                sound, rate = read_wav(io.BytesIO(data))
                if rate != RATE:
                    sys.exit(f"{name}: expected 16 kHz, found {rate}")
                audio = f"human/{folder}-{name.rsplit('-', 1)[-1]}.wav"
                (out / audio).write_bytes(data)
                yield [text.lower(), audio, -(-len(sound) // FRAME), folder], hashlib.sha256(data).digest()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/speech"), help="folder of the corpus")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clips", type=int, nargs=2, default=(6000, 100), metavar=("TRAIN", "VALID"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    try:
        subprocess.run(["flite", "--version"], capture_output=True)
    except OSError:
        sys.exit("the program flite is missing: apt-get install flite")
    text, recordings = (packages.debian(options.out, *package) for package in (TEXT, PEOPLE))
    # What is measured on is drawn first: it does not depend on how much is trained on.
    counts = {"valid": options.clips[1], "train": options.clips[0]}
    texts = sentences(text, options.seed, counts)
    for part in ("human", *counts):
        (options.out / part).mkdir(parents=True, exist_ok=True)
    write_part(options.out, "human", people(recordings, options.out))
    spoken.SPEECH = spoken.Speech()
    with multiprocessing.get_context("fork").Pool(options.workers) as pool:
        for part in counts:
            jobs = [(options.out, options.seed, part, i, text) for i, text in enumerate(texts[part])]
            write_part(options.out, part, pool.imap(write_clip, jobs, chunksize=4))


if __name__ == "__main__":
    main()
