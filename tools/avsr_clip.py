#!/usr/bin/env python3
"""Makes the clip of examples/data/speech: a photo that says a sentence of the corpus of tools/avsr_corpus.py.

    python3 -m venv venv && venv/bin/pip install numpy pillow espeakng-loader imageio-ffmpeg
    venv/bin/python tools/avsr_clip.py [--out examples/data/speech] [--text "place blue at f two now"] [--cache data/wheels]

The photo is astronaut.png of scikit-image 0.26.0 (a portrait of Eileen Collins by NASA, public domain), fetched with pip. Its mouth
is painted over with skin, and lips are drawn in its place as tools/avsr_mouths.py draws them, from the times of the sounds of
espeak-ng; the jaw follows, and the head moves a little. Written:

    clip.mp4    256 x 256 pixels, 25 frames a second, H.264 baseline and AAC, 16 kHz mono
    clip.wav    its sound, 16 kHz, 16 bit, mono
    mouth.webp  what alignment to a mean face of 256 x 256 pixels gives back: 96 x 96 grey pixels about the mouth, as large as
                mouths of the corpus are; from the places known here, not from a detector
"""

import argparse
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

import avsr_corpus as corpus
import avsr_mouths as mouths

PHOTO = "skimage/data/astronaut.png"
VERSION, DIGEST = "0.26.0", "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5"

# Places in the photo: corners of the eyes, below the nose, corners of the mouth; and the chin.
POINTS = np.array([(193.6, 101.0), (211.0, 102.4), (238.0, 104.0), (258.6, 103.6), (225.6, 131.0), (204.0, 140.4), (243.0, 142.0)])
LIPS = POINTS[5:]
CHIN = 178.0
# The same points of a mean face of 256 x 256 pixels.
MEAN = np.array([(91.0, 94.8), (112.8, 96.3), (145.6, 96.3), (167.4, 94.8), (129.2, 139.2), (104.3, 154.8), (154.1, 154.8)])

SIDE = 256  # of the clip
FINE = 2  # frames are drawn so many times larger
SHOWN = (142.0, 34.0, 168.0)  # left, top and side of what is shown of the photo
HALF_MOUTH = 23.0  # as alignment gives it back, pixels


def photo(cache):
    """The photo, from the package's wheel. Nothing is installed or run."""
    pattern = f"scikit_image-{VERSION}-*.whl"
    found = sorted(cache.glob(pattern))
    if not found:
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--implementation", "cp", "--python-version", "3.11", "--abi", "cp311", "--platform", "manylinux_2_28_x86_64"]
        result = subprocess.run(command + ["--dest", str(cache), f"scikit-image=={VERSION}"], capture_output=True, text=True)
        found = sorted(cache.glob(pattern))
        if result.returncode or not found:
            reason = (result.stderr.strip().splitlines() or ["pip gave no message"])[-1]
            sys.exit(f"cannot download scikit-image {VERSION}: {reason}\nCheck the network, or put the wheel into {cache} by hand.")
    data = zipfile.ZipFile(found[0]).read(PHOTO)
    if hashlib.sha256(data).hexdigest() != DIGEST:
        sys.exit(f"{found[0]}: {PHOTO} is not the picture that is expected: remove the file and try again")
    return Image.open(io.BytesIO(data)).convert("RGB")


def similarity(source, goal):
    """Least-squares (a, b, x, y) with (u, v) -> (a u - b v + x, b u + a v + y)."""
    s, g = source - source.mean(0), goal - goal.mean(0)
    n = (s**2).sum()
    a, b = (s * g).sum() / n, (s[:, 0] * g[:, 1] - s[:, 1] * g[:, 0]).sum() / n
    at = goal.mean(0) - [[a, -b], [b, a]] @ source.mean(0)
    return a, b, at[0], at[1]


def apply(map_, x, y):
    a, b, u, v = map_
    return a * x - b * y + u, b * x + a * y + v


def sampled(picture, x, y):
    """Bilinear samples of (rows, columns, colours) at x, y; beyond the edge, the edge."""
    rows, columns = picture.shape[:2]
    x, y = np.clip(x, 0, columns - 1.001), np.clip(y, 0, rows - 1.001)
    i, j = y.astype(int), x.astype(int)
    v, u = (y - i)[..., None], (x - j)[..., None]
    upper = picture[i, j] * (1 - u) + picture[i, j + 1] * u
    lower = picture[i + 1, j] * (1 - u) + picture[i + 1, j + 1] * u
    return upper * (1 - v) + lower * v


def without_mouth(face, x, y, rng):
    """The face with its mouth painted over: colours flow in from around an ellipse; x, y are in half mouths."""
    inside = (x / 1.3) ** 2 + ((y - 0.1) / np.where(y < 0.1, 0.56, 0.85)) ** 2
    hole = inside < 1
    filled = face.copy()
    # From coarse to fine, so that it settles soon.
    for size in (64, 128, 256, face.shape[0]):
        small = lambda a: np.asarray(Image.fromarray(a).resize((size, size), Image.Resampling.BOX))
        mask = small(hole.astype(np.float32)) > 0
        level = np.stack([small(filled[:, :, c].astype(np.float32)) for c in range(3)], 2)
        if size == 64:
            level = np.where(mask[:, :, None], level[~mask & (small(inside.astype(np.float32)) < 1.6)].mean(0), level)
        for _ in range(300):
            mean = (np.roll(level, 1, 0) + np.roll(level, -1, 0) + np.roll(level, 1, 1) + np.roll(level, -1, 1)) / 4
            level = np.where(mask[:, :, None], mean, level)
        grown = [np.asarray(Image.fromarray(level[:, :, c].astype(np.float32)).resize(face.shape[1::-1], Image.Resampling.BILINEAR)) for c in range(3)]
        filled = np.where(hole[:, :, None], np.stack(grown, 2), face)
    grain = mouths.blurred(rng.standard_normal((1, hole.shape[0] + 6, hole.shape[1] + 6), dtype=np.float32), 1.5)[0]
    filled += (grain * 6 * hole)[:, :, None]
    # A soft edge.
    soft = np.clip((1.12 - inside) / 0.3, 0, 1)[:, :, None]
    return face + soft * (filled - face)


def half_of(zoom):
    """Half the drawn mouth where a pixel of the photo has `zoom` pixels."""
    a, b, _, _ = similarity(POINTS, MEAN)
    return HALF_MOUTH / np.hypot(a, b) * zoom


def aligned(frame, head, points, centre):
    """The 96 x 96 grey pixels about the mouth of a frame whose head's place is known."""
    a, b, u, v = head
    n = a * a + b * b
    back = (a / n, -b / n, -(a * u + b * v) / n, (b * u - a * v) / n)
    points = np.stack(apply(back, points[:, 0], points[:, 1]), 1)
    to_mean = similarity(points, MEAN)
    x, y = apply(to_mean, *apply(back, *centre))
    from_mean = similarity(MEAN, points)
    columns, rows = np.meshgrid(np.arange(96) - 47.5 + x, np.arange(96) - 47.5 + y)
    crop = sampled(frame.astype(np.float64), *apply(from_mean, columns, rows))
    return np.rint(crop @ [0.299, 0.587, 0.114]).astype(np.uint8)


def drawn(face, params, look, x, y, colours, open_):
    """One frame: the jaw follows the opening, lips are drawn over it."""
    rows, columns = np.mgrid[: face.shape[0], : face.shape[1]].astype(np.float64)
    half = 1 / (x[0, 1] - x[0, 0])
    # Below the mouth all moves down with the jaw; the neck stays.
    chin = (CHIN - LIPS[:, 1].mean()) / half_of(1.0)
    down = np.clip(y / 0.9, 0, 1) * np.clip(1 - (y - chin) / 0.8, 0, 1) * np.clip(2.2 - np.abs(x), 0, 1)
    base = sampled(face, columns, rows - 0.3 * open_ * half * down)
    lips, opening, teeth, tongue, shade, below = (a[0, :, :, None] for a in mouths.layers(params[None], look, x[None], y[None], 2.2 / half))
    x, y = x[:, :, None], y[:, :, None]
    hollow = np.exp(-(((y - below.max(axis=1, keepdims=True) - 0.1) * 6) ** 2) - (x * 1.5) ** 2)
    base = base * (1 - 0.07 * hollow)
    lip = colours["lip"] * (1 + shade) + 28 * np.exp(-(((y - below + 0.22) * 9) ** 2) - (x * 2.2) ** 2)
    inside = colours["cavity"] + tongue * (colours["tongue"] - colours["cavity"])
    inside = inside + teeth * (colours["teeth"] * (1 - 0.12 * np.abs(x)) - inside)
    base = base + lips * (lip - base)
    return base + opening * (inside - base)



def encoded(path, frames, sound):
    """H.264 baseline and AAC by the ffmpeg of imageio-ffmpeg."""
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{SIDE}x{SIDE}"]
    command += ["-r", str(mouths.FPS), "-i", "-", "-i", str(sound), "-c:v", "libx264", "-profile:v", "baseline", "-pix_fmt", "yuv420p"]
    command += ["-crf", "21", "-preset", "veryslow", "-threads", "1", "-c:a", "aac", "-ac", "1", "-ar", str(corpus.RATE), "-b:a", "32k"]
    command += ["-fflags", "+bitexact", "-flags", "+bitexact", "-movflags", "+faststart", "-map_metadata", "-1", str(path)]
    result = subprocess.run(command, input=frames.tobytes(), capture_output=True)
    if result.returncode:
        sys.exit(f"{path}: ffmpeg failed: {result.stderr.decode(errors='replace').strip()}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("examples/data/speech"), help="folder of the clip")
    parser.add_argument("--cache", type=Path, default=Path("data/wheels"), help="folder of downloaded packages")
    parser.add_argument("--text", default=corpus.KEPT[0], help="what is said; the default is in no split of the corpus")
    parser.add_argument("--voice", default="en-us")
    parser.add_argument("--rate", type=int, default=120, help="words a minute")
    parser.add_argument("--hard", type=float, default=0.3, help="as of the corpus")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rng = corpus.generator(options.seed, "clip", options.text)

    speech = corpus.Speech()
    sound, said = speech.alone(speech.speak, options.text, options.voice, options.seed, options.rate, 50, 50)
    sound = corpus.resampled(sound, speech.rate)
    sound, said, frames = corpus.padded(rng, sound * (0.08 / np.sqrt(np.mean(sound**2))), said)
    corpus.write_wav(options.out / "clip.wav", sound)
    print(f"{options.text!r}: {frames} frames, {frames / mouths.FPS:.2f} s; {corpus.runs(corpus.frame_units(said, frames))}")

    # The face as it is shown, larger, and the mouth's place in it.
    left, top, side = SHOWN
    zoom = FINE * SIDE / side
    picture = photo(options.cache).crop((int(left), int(top), int(left + side), int(top + side)))
    picture = picture.resize((FINE * SIDE, FINE * SIDE), Image.Resampling.LANCZOS)
    face = np.asarray(picture).astype(np.float64)
    place = lambda points: (np.asarray(points) - [int(left), int(top)] + 0.5) * zoom - 0.5
    centre, half = place(LIPS).mean(0), half_of(zoom)
    turn = np.arctan2(*(POINTS[3] - POINTS[0])[::-1])
    x, y = (a[0].astype(np.float64) for a in mouths.grid(np.array([[*centre, turn, half]]), *face.shape[:2]))
    bare = without_mouth(face, x, y, rng)
    # Tones: skin from beside the mouth, lips from the photo's.
    tone = lambda inside: np.median(face[inside], axis=0)
    skin = tone((np.abs(x) < 0.3) & (np.abs(y - 1.05) < 0.15))
    lip = 0.3 * tone((np.abs(x) < 0.4) & (np.abs(y - 0.42) < 0.05)) + 0.7 * skin * [0.72, 0.48, 0.47]
    colours = {"lip": lip, "cavity": np.array([52, 22, 22.0]), "teeth": np.array([222, 214, 202.0]), "tongue": np.array([150, 80, 80.0])}

    look = mouths.Look(rng, options.hard)
    look.upper, look.lower, look.bow, look.curl, look.bulge = 0.27, 0.4, 0.3, -0.04, 0.9
    params = mouths.tracks(rng, said, frames, options.hard)
    # The head: a slow nod and turn, in the pixels of the clip.
    t = np.arange(frames) / mouths.FPS
    heads = []
    for i in range(frames):
        roll = np.radians(1.6 * np.sin(2 * np.pi * 0.45 * t[i] + 0.4))
        scale = FINE / (1 + 0.012 * np.sin(2 * np.pi * 0.3 * t[i]))
        a, b = scale * np.cos(roll), scale * np.sin(roll)
        shift = np.array([2.2 * np.sin(2 * np.pi * 0.35 * t[i]), 1.6 * np.sin(2 * np.pi * 0.6 * t[i] + 1.0)])
        middle = np.array([SIDE / 2, SIDE * 0.8])
        at = middle * FINE - [[a, -b], [b, a]] @ (middle + shift)
        heads.append((a, b, at[0], at[1]))  # from the clip's pixels to the face's
    columns, rows = np.meshgrid(np.arange(SIDE) + 0.0, np.arange(SIDE) + 0.0)
    smooth = ImageFilter.GaussianBlur(0.9)
    shown, crops = [], []
    points = place(POINTS)
    for i in range(frames):
        fine = drawn(bare, params[i], look, x, y, colours, params[i, mouths.OPEN])
        fine = Image.fromarray(np.clip(np.rint(fine), 0, 255).astype(np.uint8)).filter(smooth)
        frame = sampled(np.asarray(fine).astype(np.float64), *apply(heads[i], columns, rows))
        shown.append(np.clip(np.rint(frame), 0, 255).astype(np.uint8))
        crops.append(aligned(shown[-1], heads[i], points, centre))
    shown, crops = np.stack(shown), np.stack(crops)
    encoded(options.out / "clip.mp4", shown, options.out / "clip.wav")
    mouths.write_webp(options.out / "mouth.webp", crops, quality=60)
    for name in ("clip.mp4", "clip.wav", "mouth.webp"):
        data = (options.out / name).read_bytes()
        print(f"{name}: {len(data)} bytes, SHA-256 {hashlib.sha256(data).hexdigest()[:16]}")


if __name__ == "__main__":
    main()
