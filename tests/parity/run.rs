//! Finding cases, running them, and saying how it went.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};

use crate::case::{Case, Got};
use crate::compare::{Outcome, Tolerances, compare, numbers};
use crate::families::{Family, families, not_supported};

/// How many cases ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    pub passed: usize,
    pub failed: usize,
    pub not_supported: usize,
}

/// Runs all cases under `roots`; `say` gets each line.
///
/// # Errors
/// What keeps any case from being run: a root that is not there, an unknown device or family to narrow to.
pub fn run(roots: &[PathBuf], only: Option<&str>, device: Option<&str>, say: &mut dyn FnMut(&str)) -> Result<Total> {
    let (device, dtype) = parse_device(device)?;
    let only = parse_only(only)?;
    let mut total = Total::default();
    for root in roots {
        for dir in cases(root)? {
            run_one(&dir, (&device, dtype), &only, &mut total, say);
        }
    }
    let Total { passed, failed, not_supported } = total;
    say(&format!("parity: {passed} passed, {failed} failed, {not_supported} not supported"));
    Ok(total)
}

/// A device, and behind a `+` the number type of weights: `cuda+bf16`.
fn parse_device(name: Option<&str>) -> Result<(Device, DType)> {
    let name = name.unwrap_or("cpu");
    let (name, dtype) = match name.split_once('+') {
        None => (name, DType::F32),
        Some((name, "bf16")) => (name, DType::BF16),
        Some((name, "f16")) => (name, DType::F16),
        Some((_, other)) => bail!("MOESAIC_DEVICE={name}: {other} is neither bf16 nor f16"),
    };
    let device = match name {
        "cpu" | "" => Ok(Device::Cpu),
        "cuda" => {
            let has = candle_core::utils::cuda_is_available();
            ensure!(has, "MOESAIC_DEVICE=cuda, but this build has no CUDA");
            Device::new_cuda_with_stream(0)
                .map_err(|e| anyhow::anyhow!("MOESAIC_DEVICE=cuda, but no GPU answers: {}", first_line(e)))
        }
        other => bail!("MOESAIC_DEVICE={other} is neither cpu nor cuda"),
    };
    Ok((device?, dtype))
}

/// The families to run; empty for all.
fn parse_only(only: Option<&str>) -> Result<Vec<&str>> {
    let names: Vec<&str> = only.unwrap_or_default().split(',').map(str::trim).filter(|n| !n.is_empty()).collect();
    for name in &names {
        ensure!(known(name), "MOESAIC_PARITY_ONLY={name}: there is no such family");
    }
    Ok(names)
}

fn known(family: &str) -> bool {
    families().iter().any(|f| f.name == family) || not_supported().iter().any(|(name, _)| *name == family)
}

/// The case folders under a root that is a folder of families, of one family's cases, or a case, in order of name.
fn cases(root: &Path) -> Result<Vec<PathBuf>> {
    let is_case = |dir: &Path| dir.join("case.json").is_file();
    if is_case(root) {
        return Ok(vec![root.to_path_buf()]);
    }
    let mut found = Vec::new();
    for dir in folders(root)? {
        // A folder of a family without case.json is taken for a case that has lost it, and fails as one.
        if is_case(&dir) { found.push(dir) } else { found.extend(folders(&dir)?) }
    }
    Ok(found)
}

fn folders(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("{}: cannot be listed", dir.display()))?;
    let mut found: Vec<PathBuf> = entries
        .map(|entry| Ok(entry?.path()))
        .filter(|path: &std::io::Result<PathBuf>| path.as_ref().map_or(true, |p| p.is_dir() && !hidden(p)))
        .collect::<std::io::Result<_>>()?;
    found.sort();
    Ok(found)
}

fn hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

fn run_one(dir: &Path, (device, dtype): (&Device, DType), only: &[&str], total: &mut Total, say: &mut dyn FnMut(&str)) {
    let case = match Case::describe(dir, device, dtype) {
        Ok(case) => case,
        // Its family is not known, so no narrowing can leave it out.
        Err(e) => {
            total.failed += 1;
            return say(&format!("{}: FAILED: {}", dir.display(), first_line(format!("{e:#}"))));
        }
    };
    if !only.is_empty() && !only.contains(&case.family.as_str()) {
        return;
    }
    let label = format!("{}/{}", case.family, case.name);
    if let Some((_, reason)) = not_supported().iter().find(|(name, _)| *name == case.family) {
        total.not_supported += 1;
        return say(&format!("{label} not supported: {reason}"));
    }
    let Some(family) = families().iter().find(|f| f.name == case.family) else {
        total.failed += 1;
        return say(&format!("{label} FAILED: there is no family of this name"));
    };
    match check(family, case) {
        Err(e) => {
            total.failed += 1;
            say(&format!("{label} FAILED: {}", first_line(format!("{e:#}"))));
        }
        Ok(report) => {
            let worst =
                report.worst.map_or("none".to_string(), |(name, o)| format!("{name} {:.2e}/{:.2e}", o.err, o.tol));
            say(&format!("{label} tensors {} worst {worst}", report.compared));
            report.problems.iter().for_each(|p| say(&format!("  FAILED {p}")));
            if report.problems.is_empty() { total.passed += 1 } else { total.failed += 1 }
        }
    }
}

/// What one case gave.
struct Report {
    compared: usize,
    worst: Option<(String, Outcome)>,
    problems: Vec<String>,
}

fn check(family: &Family, mut case: Case) -> Result<Report> {
    case.load()?;
    // Strings have no tolerance: their family compares them itself.
    let strings = case.expected().is_empty();
    let tolerances = if strings { None } else { Some(Tolerances::parse(case.json.get("tolerance"))?) };
    let mut got = Got::default();
    // One case that panics must not keep the others from being seen.
    match catch_unwind(AssertUnwindSafe(|| (family.run)(&case, &mut got))) {
        Ok(result) => result?,
        Err(_) => bail!("its code panicked, see above"),
    }
    let mut report = Report { compared: 0, worst: None, problems: Vec::new() };
    if case.dtype != DType::F32 {
        // Rounded weights route tokens otherwise, so that values say nothing: all must be there, and numbers where they should be.
        for (name, expected) in case.expected() {
            match got.get(name).and_then(|got| numbers_as(got, expected)) {
                Ok(()) => report.compared += 1,
                Err(e) => report.problems.push(format!("{name}: {}", first_line(format!("{e:#}")))),
            }
        }
        return Ok(report);
    }
    for (name, expected) in case.expected() {
        let Some(tolerances) = &tolerances else { break };
        let outcome = got.get(name).and_then(|got| {
            let mask = (family.meaningful)(&case, name)?;
            compare(got, expected, tolerances.rule(name), mask.as_deref(), case.expected())
        });
        match outcome {
            Err(e) => report.problems.push(format!("{name}: {}", first_line(format!("{e:#}")))),
            Ok(outcome) => {
                report.compared += 1;
                if !outcome.passes() {
                    report.problems.push(format!("{name}: {}", outcome.explain()));
                }
                if report.worst.as_ref().is_none_or(|(_, worst)| outcome.ratio > worst.ratio) {
                    report.worst = Some((name.clone(), outcome));
                }
            }
        }
    }
    Ok(report)
}

/// Finite wherever the reference is, as far as both have the same shape.
fn numbers_as(got: &Tensor, expected: &Tensor) -> Result<()> {
    let (got_values, values) = (numbers(got)?, numbers(expected)?);
    let broken = got_values.iter().zip(&values).position(|(got, expected)| expected.is_finite() && !got.is_finite());
    ensure!(got.dims() != expected.dims() || broken.is_none(), "value {} is no number", broken.unwrap_or_default());
    Ok(())
}

/// candle puts stack traces into its messages where `RUST_BACKTRACE` is set; a report has one line for each problem.
fn first_line(message: impl std::fmt::Display) -> String {
    message.to_string().lines().next().unwrap_or_default().to_string()
}

mod tests {
    use super::*;

    fn fixtures() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
    }

    /// A copy of a case whose files can be spoiled.
    fn copy(case: &str, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(fixtures().join(case)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }

    fn lines(root: &Path, only: Option<&str>) -> (Result<Total>, String) {
        let mut lines = String::new();
        let total = run(&[root.to_path_buf()], only, None, &mut |line| lines.extend([line, "\n"]));
        (total, lines)
    }

    const SMALL: &str = "time_moe/forward_generate_bf16";

    fn totals(passed: usize, failed: usize, not_supported: usize) -> Total {
        Total { passed, failed, not_supported }
    }

    #[test]
    fn all_layouts_of_a_folder_are_walked() {
        let dir = tempfile::tempdir().unwrap();
        copy(SMALL, &dir.path().join("time_moe/one"));
        for root in [dir.path().to_path_buf(), dir.path().join("time_moe"), dir.path().join("time_moe/one")] {
            let (total, text) = lines(&root, None);
            assert_eq!(total.unwrap(), totals(1, 0, 0), "{text}");
            assert!(text.starts_with("time_moe/one tensors 34 worst "), "{text}");
            assert!(text.ends_with("\nparity: 1 passed, 0 failed, 0 not supported\n"), "{text}");
        }
        assert_eq!(lines(dir.path(), Some("mixtral, llama")).0.unwrap(), totals(0, 0, 0));
        assert_eq!(lines(dir.path(), Some("mixtral,time_moe")).0.unwrap(), totals(1, 0, 0));
        assert!(lines(dir.path(), Some("time_mo")).0.is_err());
        assert!(lines(&dir.path().join("nowhere"), None).0.is_err());
    }

    #[test]
    fn whatever_is_wrong_with_a_case_fails_it() {
        type Spoil = fn(&Path);
        let spoil: [(&str, Spoil, &str); 7] = [
            ("no case.json", |d| std::fs::remove_file(d.join("case.json")).unwrap(), "case.json: cannot be read"),
            ("case.json cut off", |d| std::fs::write(d.join("case.json"), "{").unwrap(), "is not JSON"),
            ("unknown family", |d| edit(d, "\"time_moe\"", "\"time_mo\""), "there is no family of this name"),
            ("no weights", |d| std::fs::remove_file(d.join("model.safetensors")).unwrap(), "model.safetensors"),
            ("no expectations", |d| std::fs::remove_file(d.join("expected.safetensors")).unwrap(), "no such file"),
            ("an unknown tolerance", |d| edit(d, "\"rtol\"", "\"rtoll\""), "rtoll is not known"),
            ("tolerances of nothing", |d| edit(d, "0.0001", "0.0"), "values are out of tolerance"),
        ];
        for (what, spoil, words) in spoil {
            let dir = tempfile::tempdir().unwrap();
            let case = dir.path().join("time_moe/one");
            copy(SMALL, &case);
            spoil(&case);
            let (total, text) = lines(dir.path(), None);
            assert!(text.contains(words), "{what}: {text}");
            assert_eq!(total.unwrap(), totals(0, 1, 0), "{what}: {text}");
        }
    }

    fn edit(dir: &Path, from: &str, to: &str) {
        let path = dir.join("case.json");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        std::fs::write(path, text.replace(from, to)).unwrap();
    }
}
