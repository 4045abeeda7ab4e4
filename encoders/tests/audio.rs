//! Sound files as users have them: every format, and everything that can be wrong with one.

use std::path::{Path, PathBuf};

use moesaic_encoders::audio::{
    AudioError, AudioFile, AudioOptions, AudioReader, AvHubertFeatures, CedFeatures, Downmix, WaveNorm,
    WhisperFeatures, read_audio, read_audio_bytes,
};
use moesaic_kernels::rng::Rng;

const M4A: &str = "../tests/fixtures/audio_features/m4a_aac_44k_mono/audio.m4a";

fn path(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if name == M4A { root.join(name) } else { root.join("tests/data").join(name) }
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).expect("a file of this crate")
}

/// A WAV file: `kind` 1 for integers, 3 for floats.
fn wav(kind: u16, bits: u16, channels: u16, rate: u32, data: &[u8]) -> Vec<u8> {
    let align = channels * bits / 8;
    let mut out = Vec::new();
    out.extend(b"RIFF");
    out.extend((36 + data.len() as u32).to_le_bytes());
    out.extend(b"WAVEfmt ");
    out.extend(16u32.to_le_bytes());
    for v in [kind, channels] {
        out.extend(v.to_le_bytes());
    }
    out.extend(rate.to_le_bytes());
    out.extend((rate * u32::from(align)).to_le_bytes());
    for v in [align, bits] {
        out.extend(v.to_le_bytes());
    }
    out.extend(b"data");
    out.extend((data.len() as u32).to_le_bytes());
    out.extend(data);
    out
}

fn wav16(rate: u32, samples: &[i16]) -> Vec<u8> {
    wav(1, 16, 1, rate, &samples.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
}

fn read(bytes: Vec<u8>) -> Result<Vec<f32>, AudioError> {
    read_audio_bytes("clip", bytes, AudioOptions::default())
}

fn lenient(bytes: Vec<u8>) -> Result<Vec<f32>, AudioError> {
    read_audio_bytes("clip", bytes, AudioOptions { lenient: true, ..AudioOptions::default() })
}

#[test]
fn the_same_speech_in_every_format() {
    let flac = read(bytes("speech.flac")).expect("FLAC");
    assert_eq!(flac.len(), 35200);
    for (name, length) in [("speech.mp3", 35200), ("speech.ogg", 35200), (M4A, 35295)] {
        let options = AudioOptions { downmix: Downmix::First, ..AudioOptions::default() };
        let got = read_audio(&path(name), options).expect(name);
        assert_eq!(got.len(), length, "{name}");
        // What encoders put before the sound is gone: the loudest sample stands where it stands in the lossless file.
        let dot = |shift: usize| got[shift..30_000].iter().zip(&flac).map(|(a, b)| a * b).sum::<f32>();
        assert!((1..400).all(|shift| dot(0) > dot(shift)), "{name} is shifted");
    }
}

#[test]
fn the_name_of_a_file_says_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    for (from, to) in [(M4A, "a.wav"), ("speech.mp3", "b.flac"), ("speech.ogg", "c"), ("speech.flac", "d.mp3")] {
        std::fs::copy(path(from), dir.path().join(to)).expect("a copy");
        assert!(read_audio(&dir.path().join(to), AudioOptions::default()).is_ok(), "{from} as {to}");
    }
}

#[test]
fn widths_rates_and_channels() {
    let ramp: Vec<u8> = (0..8000u32).map(|i| (i % 256) as u8).collect();
    assert_eq!(read(wav(1, 8, 1, 8000, &ramp)).expect("8 bit").len(), 16_000);
    // Seven channels of 0.0, 0.1, ... 0.6: their mean, or the first.
    let frame: Vec<u8> = (0..7).flat_map(|c| (c as f32 * 0.1).to_le_bytes()).collect();
    let seven = wav(3, 32, 7, 16_000, &frame.repeat(500));
    let mean = read(seven.clone()).expect("seven channels");
    assert!(mean.len() == 500 && mean.iter().all(|v| (v - 0.3).abs() < 1e-6), "{:?}", &mean[..3]);
    let first = read_audio_bytes("clip", seven, AudioOptions { downmix: Downmix::First, ..AudioOptions::default() });
    assert!(first.expect("one channel").iter().all(|v| *v == 0.0));
    let at_24k = AudioOptions { sample_rate: 24_000, ..AudioOptions::default() };
    assert_eq!(read_audio_bytes("clip", wav16(16_000, &[0; 1600]), at_24k).expect("24 kHz").len(), 2400);
    let odd = AudioOptions { sample_rate: 0, ..AudioOptions::default() };
    assert!(matches!(read_audio_bytes("clip", wav16(16_000, &[0; 1600]), odd), Err(AudioError::Input(_))));
}

#[test]
fn long_files_stream_in_windows() {
    let quiet: Vec<u8> = vec![128; 8000 * 100];
    let reader = AudioReader::from_bytes("long", wav(1, 8, 1, 8000, &quiet), AudioOptions::default()).expect("a file");
    assert_eq!(reader.info().seconds, Some(100.0));
    let lengths: Vec<usize> = reader.windows(480_000).map(|w| w.expect("a window").len()).collect();
    assert_eq!(lengths, [480_000, 480_000, 480_000, 160_000]);
    let short = AudioOptions { max_seconds: 99.0, ..AudioOptions::default() };
    let error = read_audio_bytes("long", wav(1, 8, 1, 8000, &quiet), short).expect_err("too long");
    assert!(matches!(error, AudioError::TooLong { .. }) && error.to_string().contains("max_seconds"), "{error}");
}

#[test]
fn what_is_no_sound_says_so() {
    let dir = tempfile::tempdir().expect("a folder");
    let open = |path: &Path| AudioFile::open(path, false).err().expect("an error");
    assert!(matches!(open(&dir.path().join("none.wav")), AudioError::Io { .. }));
    assert!(matches!(open(dir.path()), AudioError::Io { .. }));
    for text in ["To be, or not to be\n".repeat(500).into_bytes(), b"hi".to_vec(), vec![0; 100_000]] {
        let error = read(text).expect_err("no sound");
        assert!(matches!(error, AudioError::Format { .. }) && error.to_string().contains("ffmpeg"), "{error}");
    }
    assert!(matches!(read(Vec::new()), Err(AudioError::Empty { .. })));
    assert!(matches!(read(wav16(16_000, &[])), Err(AudioError::Empty { .. } | AudioError::Format { .. })));
    assert!(matches!(read(wav(1, 16, 0, 16_000, &[0; 64])), Err(AudioError::Format { .. })));
}

#[test]
fn a_film_without_sound_says_so() {
    // The sound track of a file, declared a picture track: the handler, and with it the coding.
    let mut film = bytes(M4A);
    for (from, to) in [(b"soun", b"vide"), (b"mp4a", b"avc1")] {
        let at: Vec<usize> = (0..film.len() - 4).filter(|&i| &film[i..i + 4] == from).collect();
        at.iter().for_each(|&i| film[i..i + 4].copy_from_slice(to));
        assert!(!at.is_empty());
    }
    let error = read(film).expect_err("no sound");
    assert!(matches!(error, AudioError::NoSound { .. } | AudioError::Format { .. }), "{error:?}");
}

#[test]
fn truncated_files_fail_or_give_what_there_is() {
    let tone: Vec<i16> = (0..32_000).map(|i| ((i % 100) * 200) as i16).collect();
    let half = |mut bytes: Vec<u8>| {
        bytes.truncate(bytes.len() / 2);
        bytes
    };
    for (name, whole) in [("wav", wav16(16_000, &tone)), ("flac", bytes("speech.flac")), ("mp3", bytes("speech.mp3"))] {
        let full = read(whole.clone()).expect(name).len();
        let error = read(half(whole.clone())).expect_err(name);
        assert!(matches!(error, AudioError::Truncated { .. } | AudioError::Damaged { .. }), "{name}: {error}");
        assert!(error.to_string().contains("lenient"), "{error}");
        let part = lenient(half(whole)).expect(name).len();
        assert!(part > full / 4 && part < full * 3 / 4, "{name}: {part} of {full}");
    }
    // The index of this file stands at its end, so nothing of it can be found.
    assert!(matches!(read(half(bytes(M4A))), Err(AudioError::Format { .. })));
}

#[test]
fn samples_that_are_no_numbers_are_refused() {
    let mut values = vec![0.25f32; 1000];
    values[700] = f32::NAN;
    let file = wav(3, 32, 1, 16_000, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
    let error = read(file).expect_err("a NaN");
    assert!(matches!(error, AudioError::NotFinite { index: 700, .. }), "{error:?}");
    values[700] = f32::INFINITY;
    let whisper = WhisperFeatures::new(80).expect("80 bands");
    for result in [
        whisper.extract(&values).err(),
        AvHubertFeatures::new(false).extract(&values).err(),
        CedFeatures::new().extract(&values).err(),
        WaveNorm::LlamaAvsr.apply(&values).err(),
    ] {
        assert!(matches!(result, Some(AudioError::NotFinite { index: 700, .. })), "{result:?}");
    }
}

#[test]
fn silence_and_hundredths_of_seconds_have_features() {
    let whisper = WhisperFeatures::new(80).expect("80 bands");
    for samples in [vec![0f32; 16_000], vec![0.1; 160], vec![0.0; 1]] {
        let features = whisper.extract(&samples).expect("features");
        assert!((features.rows, features.cols) == (80, 3000) && features.values.iter().all(|v| v.is_finite()));
        let stacked = AvHubertFeatures::new(true).extract(&samples).expect("features");
        assert!(stacked.cols == 104 && stacked.values.iter().all(|v| v.is_finite()));
        let wave = WaveNorm::Wav2Vec2.apply(&samples).expect("samples");
        assert!(wave.iter().all(|v| v.is_finite()));
        let ced = CedFeatures::new().extract(&samples);
        match samples.len() {
            16_000 => assert!(ced.expect("features").values.iter().all(|v| *v == -100.0)),
            _ => assert!(ced.expect_err("too short").to_string().contains("257")),
        }
    }
    // Silence: log10 of the floor everywhere.
    assert!(whisper.extract(&[0.0; 100]).expect("features").values.iter().all(|v| *v == -1.5));
    assert!(matches!(whisper.extract(&[]), Err(AudioError::Empty { .. })));
    for bad in
        [WhisperFeatures::new(0).err(), WhisperFeatures::new(202).err(), WhisperFeatures::with_window(80, 1).err()]
    {
        assert!(matches!(bad, Some(AudioError::Input(_))));
    }
}

#[test]
fn preprocessors_are_read_from_a_models_folder() {
    let dir = tempfile::tempdir().expect("a folder");
    let write = |text: &str| std::fs::write(dir.path().join("preprocessor_config.json"), text).expect("a file");
    write(r#"{"feature_size": 128, "chunk_length": 20, "sampling_rate": 16000, "hop_length": 160, "n_fft": 400}"#);
    let features = WhisperFeatures::load(dir.path()).and_then(|w| w.extract(&[0.5; 100])).expect("features");
    assert_eq!((features.rows, features.cols), (128, 2000));
    write(r#"{"feature_size": 1, "do_normalize": false, "sampling_rate": 16000}"#);
    assert_eq!(WaveNorm::load(dir.path()).expect("a norm"), WaveNorm::None);
    write(r#"{"feature_size": 1, "sampling_rate": 24000}"#);
    assert!(WaveNorm::load(dir.path()).is_err());
    write(r#"{"feature_size": 80, "hop_length": 80}"#);
    assert!(WhisperFeatures::load(dir.path()).is_err());
    write("{");
    assert!(WhisperFeatures::load(dir.path()).is_err());
}

/// Whatever stands in a file: an error or samples, no panic that leaves the library, and no memory without bound.
#[test]
fn mutated_files_do_no_harm() {
    let tone: Vec<i16> = (0..2000).map(|i| ((i % 100) * 200) as i16).collect();
    let files = [wav16(16_000, &tone), bytes("speech.ogg"), bytes("speech.flac"), bytes("speech.mp3"), bytes(M4A)];
    for (kind, file) in files.iter().enumerate() {
        for seed in 0..60 {
            let mut rng = Rng::keyed(&[kind as u64, seed]);
            let mut mutated = file.clone();
            // Headers stand at the start, and MP4's at the end.
            let (from, to) = match rng.below(3) {
                0 => (0, mutated.len().min(300)),
                1 => (mutated.len().saturating_sub(1500), mutated.len()),
                _ => (0, mutated.len()),
            };
            for _ in 0..1 + rng.below(6) {
                let at = from + rng.below(to - from);
                mutated[at] = [0, 0xff, 0x7f, rng.below(256) as u8][rng.below(4)];
            }
            if rng.chance(0.2) {
                mutated.truncate(1 + rng.below(mutated.len()));
            }
            for lenient in [false, true] {
                let options = AudioOptions { lenient, max_seconds: 60.0, ..AudioOptions::default() };
                if let Ok(samples) = read_audio_bytes("mutated", mutated.clone(), options) {
                    assert!(samples.len() <= 60 * 16_000 && samples.iter().all(|v| v.is_finite()));
                }
            }
        }
    }
}
