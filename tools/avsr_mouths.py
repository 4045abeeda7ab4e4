#!/usr/bin/env python3
"""Draws the mouths of the audio-visual corpus (tools/avsr_corpus.py): 96 x 96 grey pixels, 25 pictures a second.

Each sound has a target: how far the mouth opens, how wide and how round it is, what is seen of teeth and tongue. What voice or
the back of the tongue does is not seen: p, b and m look the same, so do t, d and n, and k has hardly a shape of its own. Around
its target a sound leans on its neighbours (M. Cohen and D. Massaro, Modeling coarticulation in synthetic visual speech, 1993):
a parameter at time t is the mean of all targets, weighted by how dominant each sound is and by how near it is. Every clip has
a mouth of its own: shape, tones, light, place, blur, noise, and how well it articulates.

Lengths are in half mouths: -1 and 1 are the corners of the mouth at rest, y points down, (0, 0) is between the lips.
"""

import io
import struct

import numpy as np
from PIL import Image

SIDE = 96
FPS = 25

OPEN, WIDE, ROUND, TEETH, TONGUE, TUCK, PRESS = range(7)
REST = np.array([0.1, 0.0, 0.0, 0.1, 0.0, 0.0, 0.0])

# sound: (opening 0 to 1, width -1 to 1, roundness, upper teeth, tongue between the teeth, lower lip under the teeth), and how
# dominant the opening and the shape (width, roundness) are. Diphthongs are two halves.
VISEMES = {
    "_": ((0.08, 0.0, 0.0, 0.1, 0.0, 0.0), 0.5, 0.3),
    "bilabial": ((0.0, 0.0, 0.1, 0.0, 0.0, 0.0), 1.0, 0.15),
    "labiodental": ((0.16, 0.1, 0.0, 0.8, 0.0, 1.0), 0.9, 0.4),
    "dental": ((0.25, 0.1, 0.0, 0.5, 0.9, 0.0), 0.7, 0.2),
    "alveolar": ((0.24, 0.15, 0.0, 0.6, 0.25, 0.0), 0.5, 0.15),
    "sibilant": ((0.18, 0.3, 0.0, 0.9, 0.0, 0.0), 0.7, 0.3),
    "lateral": ((0.34, 0.1, 0.0, 0.5, 0.6, 0.0), 0.5, 0.15),
    "palatal": ((0.28, -0.4, 0.6, 0.8, 0.0, 0.0), 0.7, 0.7),
    "velar": ((0.34, 0.05, 0.0, 0.3, 0.1, 0.0), 0.15, 0.08),
    "r": ((0.24, -0.35, 0.4, 0.3, 0.1, 0.0), 0.4, 0.5),
    "w": ((0.1, -0.8, 1.0, 0.0, 0.0, 0.0), 0.8, 1.0),
    "i": ((0.28, 0.65, 0.0, 0.75, 0.1, 0.0), 0.7, 0.8),
    "e": ((0.5, 0.45, 0.0, 0.5, 0.2, 0.0), 0.8, 0.7),
    "a": ((0.85, 0.25, 0.0, 0.35, 0.2, 0.0), 1.0, 0.7),
    "uh": ((0.58, 0.05, 0.0, 0.35, 0.15, 0.0), 0.8, 0.5),
    "schwa": ((0.36, 0.0, 0.0, 0.3, 0.1, 0.0), 0.3, 0.2),
    "u": ((0.17, -0.7, 0.9, 0.05, 0.0, 0.0), 0.8, 1.0),
    "o": ((0.48, -0.45, 0.65, 0.1, 0.0, 0.0), 0.8, 0.9),
}
SOUNDS = {
    **{s: "bilabial" for s in ("p", "b", "m")},
    **{s: "labiodental" for s in ("f", "v")},
    **{s: "dental" for s in ("T", "D")},
    **{s: "alveolar" for s in ("t", "d", "n")},
    **{s: "sibilant" for s in ("s", "z")},
    **{s: "palatal" for s in ("tS", "dZ")},
    **{s: "velar" for s in ("k", "g", "h")},
    **{"_": "_", "l": "lateral", "r": "r", "w": "w", "j": "i", "i:": "i", "I": "e", "E": "e", "a": "a", "V": "uh", "@": "schwa"},
    **{"u:": "u", "oU": "o u", "eI": "e i", "aI": "a i", "aU": "a u", "o@": "o uh", "i@": "i schwa", "A@": "a r"},
}


def tracks(rng, phones, frames, hard=1.0):
    """Parameters of the mouth in each frame, (frames, 7), for phones given as (sound, start, end) in seconds."""
    parts = []
    for sound, start, end in phones:
        halves = SOUNDS[sound].split()
        for i, name in enumerate(halves):
            step = (end - start) / len(halves)
            parts.append((name, start + i * step, start + (i + 1) * step))
    starts, ends = (np.array([p[i] for p in parts]) for i in (1, 2))
    target = np.array([VISEMES[p[0]][0] for p in parts])
    lean = np.array([VISEMES[p[0]][1:] for p in parts])
    # The same sound is made a little differently each time, and with clip-wide habits.
    habit = {name: rng.normal(0, 0.1 * hard, 6) for name in VISEMES}
    target = target + np.array([habit[p[0]] for p in parts]) + rng.normal(0, 0.09 * hard, target.shape)
    lean = lean * np.exp(rng.normal(0, 0.25 * hard, lean.shape))
    late = rng.normal(0.0, 0.02 * hard)
    middle = (starts + ends) / 2 + late + rng.normal(0, 0.014 * hard, len(parts))
    times = (np.arange(frames) + 0.5) / FPS
    away = np.maximum(0, np.abs(times[:, None] - middle) - (ends - starts) / 3)
    reach = (0.035 + 0.025 * hard) * np.exp(rng.normal(0, 0.15))
    near = np.exp(-away / reach)
    columns = [0, 1, 1, 0, 0, 0]
    weight = near[:, :, None] * lean[:, columns] + 1e-9
    params = np.zeros((frames, 7))
    params[:, :6] = (weight * target).sum(1) / weight.sum(1)
    # Weak articulation, and muscles that do not hold still.
    effort = np.clip(rng.uniform(1 - 0.5 * hard, 1.1), 0.2, None)
    params[:, :6] = REST[:6] + effort * (params[:, :6] - REST[:6])
    params[:, :6] += wander(rng, frames, 6, 0.75) * np.array([0.07, 0.1, 0.08, 0.12, 0.1, 0.06]) * hard
    # Lips that must meet do meet, from before the burst on.
    press = np.zeros(frames)
    for (name, _, _), start, end in zip(parts, starts, ends):
        if name == "bilabial":
            start, end = start - 0.03, min(end, start + 0.05)
            far = np.maximum(start - times, times - end)
            # At least the frame nearest to the middle.
            far[np.argmin(np.abs(times - (start + end) / 2))] = 0
            press = np.maximum(press, np.clip(1 - far / 0.035, 0, 1))
    params[:, OPEN] *= 1 - press
    params[:, TONGUE] *= 1 - press
    params[:, TUCK] *= 1 - press
    params[:, PRESS] = press
    low = np.array([0, -1, 0, 0, 0, 0, 0])
    return np.clip(params, low, 1.1)


def wander(rng, frames, width, keep):
    """Noise of variance 1 in which `keep` of a value stays in the next frame."""
    steps = rng.normal(0, 1, (frames, width))
    for t in range(1, frames):
        steps[t] = keep * steps[t - 1] + np.sqrt(1 - keep * keep) * steps[t]
    return steps


class Look:
    """What stays the same within a clip: the face, the light, the camera."""

    def __init__(self, rng, hard=1.0):
        uniform = rng.uniform
        self.size = uniform(18.5, 24.5)  # half the mouth, pixels; crops about a mean face have 25
        self.centre = rng.normal(0, 1.5, 2).clip(-4, 4)
        self.turn = np.radians(rng.normal(0, 3))
        self.upper, self.lower = uniform(0.2, 0.36), uniform(0.3, 0.5)  # lips
        self.bow, self.curl = uniform(0.1, 0.5), uniform(-0.1, 0.12)
        self.bulge = uniform(0.6, 1.0)
        self.gape = uniform(0.6, 0.85)  # height of a mouth wide open
        self.drop = uniform(0.6, 0.8)  # the lower lip's share of it
        self.skin = uniform(85, 200)
        self.lip = self.skin * uniform(0.62, 0.96)
        self.cavity = uniform(15, 45)
        self.tooth = min(235, self.skin * uniform(0.95, 1.2) + 15)
        self.tongue = self.cavity + uniform(0.25, 0.7) * (self.lip - self.cavity)
        self.light = rng.normal(0, 0.13, 2).tolist()
        self.gloss = uniform(0.0, 0.25)
        self.folds = uniform(0.0, 0.12, 3).tolist()
        self.patches = rng.normal(0, 1, (6, 6)) * uniform(2, 7)
        self.grain = rng.normal(0, 1, (SIDE, SIDE)) * uniform(0, 5)
        self.blur = uniform(0.4, 0.5 + 1.0 * hard)
        self.noise = uniform(2.0, 2.1 + 3.9 * hard)
        self.flicker = uniform(0, 0.012 * hard)
        self.shake = uniform(0.1, 0.1 + 0.5 * hard)
        self.drift = uniform(0.2, 0.3 + 0.8 * hard)
        self.lost = uniform(0, 0.12 * hard)  # share of frames that repeat the one before


def poses(rng, look, frames):
    """Centre x, y in pixels, angle in radians and half mouth in pixels of each frame."""
    slow, fast = wander(rng, frames, 4, 0.95), rng.normal(0, 1, (frames, 4))
    at = np.empty((frames, 4))
    at[:, :2] = SIDE / 2 - 0.5 + look.centre + look.drift * slow[:, :2] + look.shake * fast[:, :2]
    at[:, 2] = look.turn + 0.015 * look.drift * slow[:, 2] + 0.012 * look.shake * fast[:, 2]
    at[:, 3] = look.size * (1 + 0.012 * look.drift * slow[:, 3] + 0.012 * look.shake * fast[:, 3])
    return at


def grid(at, rows=SIDE, columns=SIDE):
    """Each pixel's place in half mouths, two arrays (frames, rows, columns)."""
    x = np.arange(columns, dtype=np.float32)[None, None, :] - at[:, 0, None, None].astype(np.float32)
    y = np.arange(rows, dtype=np.float32)[None, :, None] - at[:, 1, None, None].astype(np.float32)
    c, s = (f(at[:, 2]) / at[:, 3] for f in (np.cos, np.sin))
    c, s = c[:, None, None].astype(np.float32), s[:, None, None].astype(np.float32)
    return c * x + s * y, c * y - s * x


def layers(params, look, x, y, edge):
    """What covers each pixel and how it is shaded: lips, opening, teeth, tongue in 0 to 1, shade of the lips, and where the
    lower lip ends. `edge` is the width of a pixel."""
    p = params.astype(np.float32)[:, :, None, None]
    ramp = lambda inside: np.clip(inside * np.float32(1 / edge) + np.float32(0.5), 0, 1)
    half = 1 + 0.16 * p[:, WIDE] - 0.3 * p[:, ROUND] + 0.03 * p[:, PRESS] - 0.06 * p[:, OPEN]
    z = x / half
    q = np.clip(1 - z * z, 0, 1)
    root = np.sqrt(q)
    # Corners turn up or down; a tucked lower lip rises to the teeth.
    y = y + look.curl * z * z
    height = look.gape * p[:, OPEN] + 0.045
    inner = np.clip(1 - 1.2 * z * z, 0, 1)
    arch = inner if look.bulge < 0.8 else np.sqrt(inner)
    top = -(1 - look.drop) * height * arch
    tuck = 0.12 * p[:, TUCK]
    bottom = (look.drop * height - tuck * 0.6) * arch
    thick = (1 - 0.22 * p[:, PRESS]) * (1 + 0.2 * p[:, ROUND])
    bow = 1 - look.bow * np.exp(-((z * np.float32(5)) ** 2))
    above = top - look.upper * thick * bow * q * (0.6 + 0.4 * root)
    below = bottom + look.lower * thick * (1 - 0.35 * p[:, TUCK]) * root * (0.5 + 0.5 * q)
    lips = ramp(y - above) * ramp(below - y) * (q > 0)
    opening = ramp(y - top) * ramp(bottom - y) * (inner > 0)
    teeth = ramp(top + 0.3 * p[:, TEETH] * root + tuck - y) * ramp(0.72 * half - np.abs(x))
    tongue = ramp(y - (bottom - np.minimum(0.9 * height, 0.08 + 0.45 * p[:, TONGUE] * (height + 0.1)) * q))
    shade = np.where(y < (top + bottom) / 2, np.float32(-0.1), 0.08 - 0.3 * np.abs(y - (bottom + below) / 2))
    return lips, opening, teeth, tongue, shade + 0.04 * p[:, ROUND], below


def blurred(pictures, sigma):
    """Gaussian blur of (frames, rows, columns), 3 pixels smaller at each side."""
    taps = np.exp(-0.5 * (np.arange(4) / sigma) ** 2)
    taps = (taps / (taps[0] + 2 * taps[1:].sum())).astype(np.float32)
    for axis in (1, 2):
        size = pictures.shape[axis] - 6
        part = lambda k: pictures[:, k : k + size] if axis == 1 else pictures[:, :, k : k + size]
        total = taps[0] * part(3)
        for k in range(1, 4):
            if taps[k] > 2e-3:
                total += taps[k] * (part(3 - k) + part(3 + k))
        pictures = total
    return pictures


def face(look, at):
    """What does not move: skin in its light, (1, 102, 102), 3 pixels wider than a picture at each side; and the light."""
    x, y = grid(np.array([[at[:, 0].mean() + 3, at[:, 1].mean() + 3, at[:, 2].mean(), at[:, 3].mean()]]), SIDE + 6, SIDE + 6)
    patches = Image.fromarray(look.patches.astype(np.float32)).resize((SIDE + 6, SIDE + 6), Image.Resampling.BICUBIC)
    skin = look.skin + np.asarray(patches)[None] + np.pad(look.grain, 3, mode="reflect").astype(np.float32)
    nose = np.exp(-(((y + 1.35) * 6) ** 2) - (x * 2) ** 2)
    fold = np.exp(-(((np.abs(x) - 1.35 - 0.25 * y) * 7) ** 2))
    light = 1 + look.light[0] * x / 2 + look.light[1] * y / 2
    return skin * (1 - look.folds[0] * 3 * nose - look.folds[1] * fold), light


def render(rng, params, look, step=10):
    """Frames as the camera sees them, (frames, 96, 96) of u8, in steps of `step` grey levels (what noise hides takes no space)."""
    frames = len(params)
    at = poses(rng, look, frames)
    lost = rng.random(frames) < look.lost
    for t in range(1, frames):
        if lost[t]:
            params[t], at[t] = params[t - 1], at[t - 1]
    skin, light = face(look, at)
    # Only a window around the mouth changes; it is 3 pixels wider than what is kept of it.
    reach = at[:, 3].max()
    bounds = lambda lows, highs, low, high: (max(0, int(lows.min() - low * reach)), min(SIDE, int(highs.max() + high * reach) + 1))
    left, right = bounds(at[:, 0], at[:, 0], 1.45, 1.45)
    top, bottom = bounds(at[:, 1], at[:, 1], 1.0, 1.75)
    window = at - [left - 3, top - 3, 0, 0]
    x, y = grid(window, bottom - top + 6, right - left + 6)
    part = (slice(None), slice(top, bottom + 6), slice(left, right + 6))
    lips, opening, teeth, tongue, shade, below = layers(params, look, x, y, 1.3 / look.size)
    # The hollow above the chin moves with the lower lip.
    hollow = np.exp(-(((y - below.max(axis=2, keepdims=True) - 0.12) * 7) ** 2) - (x * 1.4) ** 2)
    near = skin[part] * (1 - (look.folds[2] + 0.05) * hollow)
    lip = look.lip * (1 + shade) + look.gloss * 90 * np.exp(-(((y - below + 0.22) * 9) ** 2) - (x * 2.2) ** 2)
    inside = look.cavity + tongue * (look.tongue - look.cavity)
    inside += teeth * (look.tooth * (1 - 0.12 * np.abs(x)) - inside)
    near += lips * (lip - near)
    near += opening * (inside - near)
    near *= light[part]
    picture = np.repeat(blurred(skin * light, look.blur), frames, axis=0)
    picture[:, top:bottom, left:right] = blurred(near, look.blur)
    picture *= 1 + np.float32(look.flicker) * rng.standard_normal((frames, 1, 1), dtype=np.float32)
    picture += np.float32(look.noise) * rng.standard_normal(picture.shape, dtype=np.float32)
    return (np.clip(np.rint(picture * np.float32(1 / step)), 0, 255 // step) * step).astype(np.uint8)


def write_webp(path, frames, quality=None, milliseconds=1000 // FPS):
    """Writes an animation, without loss if no quality is given, each frame whole and of its own duration: encoders of animations
    may join frames that are alike. `frames` is (frames, rows, columns) of u8 grey, or with a last axis of 3 colours."""
    how = {"lossless": True, "quality": 0, "method": 0} if quality is None else {"quality": quality, "method": 6}
    rows, columns = frames.shape[1:3]
    u24 = lambda n: struct.pack("<I", n)[:3]
    chunk = lambda name, data: name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
    body = chunk(b"VP8X", b"\x02\0\0\0" + u24(columns - 1) + u24(rows - 1)) + chunk(b"ANIM", struct.pack("<IH", 0xFF000000, 0))
    for frame in frames:
        file = io.BytesIO()
        Image.fromarray(frame).convert("RGB").save(file, "WEBP", **how)
        picture = file.getvalue()[12:]  # its only chunk, VP8L or VP8
        head = u24(0) * 2 + u24(columns - 1) + u24(rows - 1) + u24(milliseconds) + b"\x02"
        body += chunk(b"ANMF", head + picture)
    path.write_bytes(chunk(b"RIFF", b"WEBP" + body))


def read_webp(path):
    """Frames (frames, rows, columns, 3) and durations in ms."""
    image = Image.open(path)
    frames, spans = [], []
    for i in range(getattr(image, "n_frames", 1)):
        image.seek(i)
        frames.append(np.asarray(image.convert("RGB")))
        spans.append(image.info.get("duration", 0))
    return np.stack(frames), spans
