#!/usr/bin/env python3
"""Makes a corpus of speech, sounds and music with questions: digits that a synthesiser speaks, CC0 samples, notes, and mixtures.

    python3 -m venv venv && venv/bin/pip install numpy soundfile pillow espeakng-loader
    venv/bin/python tools/sound_corpus.py [--out data/sound] [--seed 1] [--clips 6000 300 600 300] [--package FILE.tgz]

Needs Python 3.9 or newer on Linux or macOS, and npm, unless --package names what it would fetch. Speech is made by espeak-ng
(tools/avsr_corpus.py says what that means), music by tools/sound_synth.py; other sounds are those of supersonic-scsynth-samples 0.84.2
(npm), which its authors put in the public domain (CC0). Its loops, among them a known break, are left out.

    25 %    a voice says two to five digits
    15 %    the same over a beat, a chord or a sound
    10 %    a sound of one of fourteen kinds
    15 %    a sound one to six times
    11 %    a beat, slow (60 to 80 a minute), medium (100 to 122) or fast (150 to 185)
    24 %    a chord or a scale of one of five instruments

Files: train.jsonl, valid.jsonl, test.jsonl, with lines of {"audio", "task", "question", "answer", "group"}; every word of a question
or answer is in the vocabulary (tools/sound_tokenizer.py). Strings of digits are either to train or to be tested with. `group` is
`seen`, or in a part of test.jsonl `unseen`: its voices and samples are nowhere else. Clips last 2 to 4 s, by half seconds, 16 kHz, 16 bit,
mono, as FLAC.

Everything is drawn from the seed, each clip from its own: more clips of training change no other clip. The sums printed are those of
all sound and lines.
"""

import argparse
import base64
import hashlib
import io
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

# Workers are as many as there are cores.
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np

import sound_synth as synth
from avsr_corpus import DIGITS, UNSEEN, VOICES, Speech, generator, resampled

RATE = synth.RATE
PACKAGE = "supersonic-scsynth-samples@0.84.2"
SUM = "sha512-XWq1FU3+LQWfnKgf9XGO7Z3SB9Q3H9aFW6ThTjWD0YsThKrJCjyMIO9rMbryXlEe9+UxyvB21SKmJJBXlSZjCw=="
UNSEEN_VOICES = (UNSEEN, "en-us+m2")
# Kinds of samples; the last ones of each are kept for the unseen part of the test.
SAMPLES = {
    "kick": "bd_808 bd_ada bd_boom bd_fat bd_gas bd_haus bd_klub bd_mehackit bd_pure bd_tek bd_zome drum_heavy_kick | bd_jazz bd_sone drum_bass_hard",
    "snare": "drum_snare_hard elec_hi_snare elec_lo_snare elec_mid_snare elec_snare sn_dub sn_generic sn_zome | sn_dolf drum_snare_soft",
    "hat": "hat_bdu hat_cab hat_cats hat_gem hat_gnu hat_gump hat_hier hat_metal hat_noiz hat_snap hat_star hat_tap hat_zan hat_zild | hat_psych hat_yosh hat_len",
    "cymbal": "drum_cymbal_hard drum_cymbal_open drum_splash_hard elec_cymbal ride_tri ride_via | drum_cymbal_soft drum_splash_soft",
    "tom": "drum_tom_hi_hard drum_tom_lo_hard drum_tom_mid_hard drum_tom_lo_soft elec_fuzz_tom | drum_tom_hi_soft drum_tom_mid_soft",
    "tabla": "tabla_ghe1 tabla_ghe2 tabla_ghe4 tabla_ghe5 tabla_ghe7 tabla_na tabla_na_o tabla_re tabla_tas1 tabla_tas2 tabla_te1 tabla_te2 tabla_tun1 tabla_tun2 | tabla_dhec tabla_ghe8 tabla_tas3 tabla_tun3",
    "bell": "elec_bell elec_chime elec_triangle perc_bell | perc_bell2 drum_cowbell",
    "bass": "bass_dnb_f bass_drop_c bass_hard_c bass_hit_c bass_thick_c bass_trance_c | bass_woodsy_c bass_voxy_hit_c",
    "guitar": "guit_e_fifths guit_em9 guit_harmonics | guit_e_slide",
    "robot": "mehackit_robot1 mehackit_robot2 mehackit_robot4 mehackit_robot5 mehackit_robot6 glitch_robot1 | mehackit_robot3 mehackit_robot7 glitch_robot2",
    "phone": "mehackit_phone1 mehackit_phone2 mehackit_phone3 | mehackit_phone4",
    "vinyl": "vinyl_backspin vinyl_hiss vinyl_rewind | vinyl_scratch",
    "blip": "elec_beep elec_blip elec_ping elec_plip elec_pop elec_blup tbd_perc_blip | elec_blip2 elec_twip",
    "drone": "ambi_drone ambi_dark_woosh ambi_glass_hum ambi_haunted_hum ambi_lunar_land ambi_sauna tbd_pad_1 tbd_pad_2 | ambi_glass_rub tbd_pad_3 tbd_pad_4",
}
STROKES = ("kick", "snare", "hat", "tom", "tabla", "blip")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
TEMPOS = {"slow": (60, 80), "medium": (100, 122), "fast": (150, 185)}
MARK = "<AcousticTokens>"
# The last of some is the prompt that U-SAM's authors give the task.
QUESTIONS = {
    "transcribe": ("Which digits are said?", "What does the voice say?", f"Transcribe this audio:{MARK}\n---\nTranscription: "),
    "tag": ("Which sound is it?", "What makes this sound?", "What can be heard beside a voice?"),
    "caption": ("Describe the sound.", "What can be heard?", f"Describe the detail of this audio:{MARK}\n---\nDetailed: "),
    "count": ("How many sounds are there?", "How many digits are said?"),
    "tempo": ("How fast is the beat?", "What is the tempo?"),
    "chord": ("Which chord is it?", "What kind of chord is played?"),
    "scale": ("Which scale is it?", "What kind of scale is played?"),
    "instrument": ("Which instrument plays?", "What is this played on?"),
    "speaking": ("Is anyone speaking?", "Does someone speak?"),
}
MUSIC = f"Provide a short description of this music: {MARK}\n---\nDescription: "
CAPTIONS = "a an man woman says digits over sound of beat chord on scale going up down times once"
LONGEST = 4.0


def words(text):
    """As the tokenizer cuts a text."""
    return re.findall(r"\w+|[^\w\s]+", text.replace(MARK, " ").lower())


def vocabulary():
    """All words of questions and answers, and of the prompts of U-SAM's tasks."""
    texts = [question for several in QUESTIONS.values() for question in several] + [MUSIC, "\n---\nAnswer: ", CAPTIONS, "yes no"]
    for names in (DIGITS, NUMBERS, TEMPOS, SAMPLES, synth.CHORDS, synth.SCALES, synth.Instrument.KINDS):
        texts.extend(names)
    return {word for text in texts for word in words(text)}


def article(word):
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


# ------------------------------------------------------------------------------------------------------------------ samples


def package(given):
    """The package, fetched where it is not given, if it is the one that is meant."""
    if given:
        data = given.read_bytes()
    else:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(["npm", "pack", PACKAGE, "--pack-destination", folder], capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["npm gave no message"])[-1]
                sys.exit(f"{PACKAGE} cannot be fetched: {reason}; give it with --package")
            data = next(Path(folder).glob("*.tgz")).read_bytes()
    if "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode() != SUM:
        sys.exit(f"{given or PACKAGE} is not the package that is expected: its sum differs")
    return data


def samples(data):
    """By group and kind, its sounds at 16 kHz, of 4 s at most."""
    import soundfile

    found = {"seen": {}, "unseen": {}}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for kind, names in SAMPLES.items():
            for group, part in zip(found, names.split("|")):
                for name in part.split():
                    file = tar.extractfile(f"package/samples/{name}.flac")
                    sound, rate = soundfile.read(io.BytesIO(file.read()), always_2d=True)
                    sound = resampled(sound.mean(1), rate)[: int(LONGEST * RATE)]
                    loud = np.flatnonzero(np.abs(sound) > 0.01 * np.abs(sound).max())
                    sound = sound[loud[0] : loud[-1] + 1]
                    sound[-160:] *= np.linspace(1, 0, 160)[-len(sound) :]
                    found[group].setdefault(kind, []).append(sound / np.abs(sound).max())
    return found


# -------------------------------------------------------------------------------------------------------------------- clips


def held_out(text):
    """Whether a string of digits is one to be tested with: a quarter of all."""
    return hashlib.sha256(text.encode()).digest()[0] < 64


class Maker:
    """Draws one clip; what it makes is a sound, and tasks with their answers."""

    def __init__(self, rng, sounds, speech, part, group):
        self.rng, self.sounds, self.speech, self.part, self.group = rng, sounds[group], speech, part, group
        self.asked = []

    def pick(self, values):
        values = list(values)
        return values[int(self.rng.integers(len(values)))]

    def ask(self, task, answer, which=None):
        """A question; `which` says which of the task's."""
        among = QUESTIONS[task] if which is None else [QUESTIONS[task][i] for i in which]
        self.asked.append((task, self.pick(among), answer))

    def caption(self, text, music=False):
        among = QUESTIONS["caption"] + ((MUSIC,) if music else ())
        self.asked.append(("caption", self.pick(among), text))

    def sample(self, kind, seconds=LONGEST):
        """A sound of a kind, a little higher or lower."""
        sound = self.pick(self.sounds[kind])
        speed = self.rng.uniform(0.92, 1.08)
        at = np.arange(0, len(sound) - 1, speed)
        sound = np.interp(at, np.arange(len(sound)), sound)[: int(seconds * RATE)].copy()
        fade = min(len(sound), 320)
        sound[-fade:] *= np.linspace(1, 0, fade)
        return sound

    def voice(self):
        """Digits that fit, who says them, and how many."""
        name = self.pick(UNSEEN_VOICES if self.group == "unseen" else VOICES)
        while True:
            said = [self.pick(DIGITS) for _ in range(int(self.rng.integers(2, 6)))]
            text = " ".join(said)
            if held_out(text) != (self.part == "test"):
                continue
            seed, wpm, pitch, span = (int(self.rng.integers(*bounds)) for bounds in ((1, 2**31), (130, 191), (30, 71), (35, 66)))
            sound, _ = self.speech.alone(self.speech.speak, text, name, seed, wpm, pitch, span)
            sound = resampled(sound, self.speech.rate)
            if len(sound) <= (LONGEST - 0.1) * RATE:
                return sound, said, "woman" if "+f" in name else "man"

    def speaking(self, yes):
        # As many clips say yes as no.
        if yes or self.rng.uniform() < 0.67:
            self.ask("speaking", "yes" if yes else "no")

    def speech_alone(self):
        sound, said, who = self.voice()
        self.ask("transcribe", " ".join(said))
        self.ask("count", NUMBERS[len(said)], [1])
        self.caption(f"a {who} says {NUMBERS[len(said)]} digits")
        self.speaking(True)
        return sound

    def mixture(self):
        sound, said, who = self.voice()
        seconds = len(sound) / RATE
        if self.group == "unseen" or self.rng.uniform() < 0.4:
            kind = self.pick(("cymbal", "bell", "bass", "guitar", "robot", "phone", "vinyl", "drone"))
            below, over = self.sample(kind, seconds), f"a sound of {article(kind)}"
            self.ask("tag", kind, [2])
        elif self.rng.uniform() < 0.5:
            tempo = self.pick(TEMPOS)
            strokes = [self.sample(self.pick(STROKES), 0.5) for _ in range(self.pick((1, 2)))]
            below, over = synth.beat(self.rng, strokes, self.rng.uniform(*TEMPOS[tempo]), seconds), article(f"{tempo} beat")
            self.ask("tempo", tempo)
        else:
            kind, player = self.pick(synth.CHORDS), self.pick(synth.Instrument.KINDS)
            below = synth.chord(self.rng, synth.Instrument(self.rng, player), kind, seconds)
            over = f"{article(f'{kind} chord')} on {article(player)}"
            self.ask("chord", kind)
            self.ask("instrument", player)
        below = synth.levelled(below, -23 - self.rng.uniform(4, 12))[: len(sound)]
        sound = synth.levelled(sound, -23)
        sound[: len(below)] += below
        self.ask("transcribe", " ".join(said))
        self.caption(f"a {who} says {NUMBERS[len(said)]} digits over {over}")
        self.speaking(True)
        return sound

    def one_sound(self):
        kind = self.pick(SAMPLES)
        self.ask("tag", kind, [0, 1])
        self.caption(f"a sound of {article(kind)}")
        self.speaking(False)
        return self.sample(kind)

    def counted(self):
        kind, count = self.pick(("kick", "snare", "hat", "tom", "tabla", "bell", "blip", "phone", "robot")), int(self.rng.integers(1, 7))
        one = self.sample(kind, 0.45)
        # Gaps of 0.3 s at least.
        gaps = self.rng.uniform(0.3, 0.55 if count > 4 else 0.8, count - 1)
        starts = np.concatenate([[0], np.cumsum(gaps)])
        sound = np.zeros(int((starts[-1] + 0.5) * RATE))
        for start in starts:
            at = int(start * RATE)
            sound[at : at + len(one)] += one[: len(sound) - at] * self.rng.uniform(0.7, 1)
        self.ask("count", NUMBERS[count], [0])
        self.ask("tag", kind, [0, 1])
        self.caption(f"a sound of {article(kind)} " + ("once" if count == 1 else f"{NUMBERS[count]} times"))
        self.speaking(False)
        return sound

    def beaten(self):
        tempo, kind = self.pick(TEMPOS), self.pick(STROKES)
        seconds = self.rng.uniform(2.8, LONGEST)
        self.ask("tempo", tempo)
        self.ask("tag", kind, [0, 1])
        self.caption(f"{article(f'{tempo} beat')} of {article(kind)}", music=True)
        self.speaking(False)
        return synth.beat(self.rng, [self.sample(kind, 0.5)], self.rng.uniform(*TEMPOS[tempo]), seconds)

    def chord(self):
        kind, player = self.pick(synth.CHORDS), self.pick(synth.Instrument.KINDS)
        self.ask("chord", kind)
        self.ask("instrument", player)
        self.caption(f"{article(f'{kind} chord')} on {article(player)}", music=True)
        self.speaking(False)
        return synth.chord(self.rng, synth.Instrument(self.rng, player), kind, self.rng.uniform(1.2, 2.6))

    def scale(self):
        kind, player, up = self.pick(synth.SCALES), self.pick(synth.Instrument.KINDS), bool(self.rng.integers(2))
        self.ask("scale", kind)
        self.ask("instrument", player)
        self.caption(f"{article(f'{kind} scale')} on {article(player)} going {'up' if up else 'down'}", music=True)
        self.speaking(False)
        return synth.scale(self.rng, synth.Instrument(self.rng, player), kind, up, self.rng.uniform(2.0, 3.6))

    def clip(self):
        """Sound of a whole number of half seconds, and what is asked."""
        kinds = {self.speech_alone: 25, self.mixture: 15, self.one_sound: 10, self.counted: 15, self.beaten: 11, self.chord: 12, self.scale: 12}
        if self.group == "unseen":
            # Music has no voice and no sample that could be unseen.
            kinds = {self.speech_alone: 30, self.mixture: 20, self.one_sound: 15, self.counted: 20, self.beaten: 15}
        share = np.array(list(kinds.values())) / sum(kinds.values())
        sound = list(kinds)[int(self.rng.choice(len(share), p=share))]()
        sound = synth.levelled(sound, self.rng.uniform(-27, -19))[: int(LONGEST * RATE)]
        halves = max(4, -(-len(sound) * 2 // RATE))
        halves = int(min(2 * LONGEST, halves + self.rng.integers(2)))
        whole = self.rng.normal(0, 10 ** self.rng.uniform(-4.0, -3.2), halves * RATE // 2)
        start = int(self.rng.integers(len(whole) - len(sound) + 1))
        whole[start : start + len(sound)] += sound
        return np.clip(whole, -1, 1), self.asked


SPEECH, SOUNDS, KNOWN = None, None, None  # of the whole process, so that workers have them from its fork


def write_clip(job):
    import soundfile

    out, seed, part, group, index = job
    sound, asked = Maker(generator(seed, part, group, index), SOUNDS, SPEECH, part, group).clip()
    samples = np.rint(sound * 32767).astype("<i2")
    audio = f"audio/{part}/{group}-{index:05}.flac"
    soundfile.write(out / audio, samples, RATE, subtype="PCM_16", format="FLAC")
    lines = []
    for task, question, answer in asked:
        for word in words(question) + words(answer):
            if word not in KNOWN:
                sys.exit(f"{word!r} of {question!r}, {answer!r} is not in the vocabulary")
        lines.append(json.dumps({"audio": audio, "task": task, "question": question, "answer": answer, "group": group}))
    digest = hashlib.sha256(samples.tobytes() + "\n".join(lines).encode()).digest()
    return lines, digest, (out / audio).stat().st_size, len(samples)


def part_of(pool, out, seed, part, counts):
    """Writes the clips of one split and its file."""
    (out / "audio" / part).mkdir(parents=True, exist_ok=True)
    jobs = [(out, seed, part, group, i) for group, count in counts.items() for i in range(count)]
    total, size, length, asked = hashlib.sha256(), 0, 0, 0
    with open(out / f"{part}.jsonl.new", "w", encoding="utf-8") as file:
        for done, (lines, digest, bytes_, samples) in enumerate(pool.imap(write_clip, jobs, chunksize=8), 1):
            file.write("\n".join(lines) + "\n")
            total.update(digest)
            size, length, asked = size + bytes_, length + samples, asked + len(lines)
            if done % 1000 == 0:
                print(f"  {done} of {len(jobs)}", flush=True)
    # Only a complete split has its list.
    (out / f"{part}.jsonl.new").replace(out / f"{part}.jsonl")
    minutes = length / RATE / 60
    print(f"{part}: {len(jobs)} clips, {minutes:.1f} min, {asked} questions, {size / 1e6:.0f} MB; SHA-256 {total.hexdigest()[:16]}", flush=True)


def main():
    global SPEECH, SOUNDS, KNOWN
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/sound"), help="folder of the corpus")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clips", type=int, nargs=4, default=(6000, 300, 600, 300), metavar=("TRAIN", "VALID", "TEST", "UNSEEN"))
    parser.add_argument("--package", type=Path, help=f"{PACKAGE} as npm packs it")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    SPEECH, SOUNDS, KNOWN = Speech(), samples(package(options.package)), vocabulary()
    train, valid, test, unseen = options.clips
    with multiprocessing.get_context("fork").Pool(options.workers) as pool:
        part_of(pool, options.out, options.seed, "valid", {"seen": valid})
        part_of(pool, options.out, options.seed, "test", {"seen": test, "unseen": unseen})
        part_of(pool, options.out, options.seed, "train", {"seen": train})


if __name__ == "__main__":
    main()
