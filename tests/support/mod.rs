//! Runs the program in a scratch folder, with a small model of random weights.

#![allow(dead_code)] // each test file uses its part

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Run {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The folder of a model small enough for tests.
pub fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/time_moe/forward_generate_bf16")
}

pub fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data").join(name)
}

pub fn program(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moesaic"));
    command.current_dir(folder).env_remove("NO_COLOR").stdin(Stdio::null());
    // No test asks the real Hub, nor looks into the cache of whoever runs it.
    for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"] {
        command.env_remove(name);
    }
    for name in ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "SSL_CERT_FILE", "HF_HUB_DISABLE_PROGRESS_BARS"] {
        command.env_remove(name).env_remove(name.to_ascii_lowercase());
    }
    command.env("HF_HOME", folder.join("hf")).env("HF_HUB_OFFLINE", "1");
    command
}

pub fn run<S: AsRef<OsStr>>(folder: &Path, arguments: &[S]) -> Run {
    program(folder).args(arguments).output().unwrap().into()
}

/// Names in a folder, sorted, hidden ones included.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A copy of the test model in a new folder.
pub fn copy_of_model(folder: &Path) -> PathBuf {
    let copy = folder.join("model");
    fs::create_dir(&copy).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::write(copy.join(name), fs::read(model().join(name)).unwrap()).unwrap();
    }
    copy
}

/// Writes a tone, 16 bit at 16 kHz.
pub fn tone(path: &Path, hertz: f32, seconds: f32) {
    let samples: Vec<i16> = (0..(seconds * 16_000.0) as usize)
        .map(|i| ((i as f32 / 16_000.0 * hertz * std::f32::consts::TAU).sin() * 9000.0) as i16)
        .collect();
    let bytes = (samples.len() * 2) as u32;
    let mut file = b"RIFF".to_vec();
    file.extend((36 + bytes).to_le_bytes());
    file.extend(b"WAVEfmt ");
    file.extend(16u32.to_le_bytes());
    file.extend([1u16, 1].map(u16::to_le_bytes).concat());
    file.extend([16_000u32, 32_000].map(u32::to_le_bytes).concat());
    file.extend([2u16, 16].map(u16::to_le_bytes).concat());
    file.extend(b"data");
    file.extend(bytes.to_le_bytes());
    file.extend(samples.iter().flat_map(|s| s.to_le_bytes()));
    fs::write(path, file).unwrap();
}
