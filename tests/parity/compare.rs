//! Tolerances of a case and the comparison of one tensor.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;

/// How near a float tensor must be; integers are compared exactly whatever this says.
#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
    /// Equal values.
    Exact,
    /// `|got - expected| <= atol + rtol * |expected|`
    Near { atol: f64, rtol: f64 },
    /// The absolute part is `times` an expected tensor (one value, one that broadcasts to the compared shape, or else its largest
    /// value).
    NearTimes { tensor: String, times: f64, rtol: f64 },
}

/// The `tolerance` of a `case.json`.
pub struct Tolerances {
    default: Rule,
    by_name: Vec<(String, Rule)>,
}

impl Tolerances {
    /// Reads the object; anything in it that is not understood is an error, since it might have been a tighter bound.
    pub fn parse(json: Option<&Value>) -> Result<Self> {
        let json = json.and_then(Value::as_object).context("case.json has no tolerance")?;
        let default = rule(json.get("default").context("tolerance has no default")?)?;
        if let Some(integers) = json.get("integers") {
            ensure!(integers == "exact", "tolerance for integers is not \"exact\"");
        }
        let by_name = match json.get("tensors") {
            None => Vec::new(),
            Some(map) => {
                let map = map.as_object().context("tolerance.tensors is not a map")?;
                map.iter().map(|(name, value)| Ok((name.clone(), rule(value)?))).collect::<Result<_>>()?
            }
        };
        Ok(Self { default, by_name })
    }

    /// The rule of a tensor: its own name before any pattern, then the pattern with the most literal characters.
    pub fn rule(&self, name: &str) -> &Rule {
        let matching = self.by_name.iter().filter(|(pattern, _)| matches(pattern, name));
        let rank = |pattern: &str| (pattern == name, pattern.chars().filter(|c| !matches!(c, '*' | '?')).count());
        matching.max_by_key(|(pattern, _)| rank(pattern)).map_or(&self.default, |(_, rule)| rule)
    }
}

fn rule(json: &Value) -> Result<Rule> {
    if json == "exact" {
        return Ok(Rule::Exact);
    }
    let map = json.as_object().with_context(|| format!("tolerance {json} is neither a map nor \"exact\""))?;
    if let Some(key) = map.keys().find(|k| !matches!(k.as_str(), "atol" | "rtol" | "atol_times" | "note")) {
        bail!("tolerance key {key} is not known");
    }
    let number = |value: &Value| {
        value.as_f64().filter(|v| *v >= 0.0).with_context(|| format!("tolerance {value} is not a number from 0 on"))
    };
    let rtol = map.get("rtol").map_or(Ok(0.0), number)?;
    match (map.get("atol"), map.get("atol_times")) {
        (Some(_), Some(_)) => bail!("tolerance {json} has both atol and atol_times"),
        (None, None) if !map.contains_key("rtol") => bail!("tolerance {json} is empty"),
        (atol, None) => Ok(Rule::Near { atol: atol.map_or(Ok(0.0), number)?, rtol }),
        (None, Some(pair)) => match pair.as_array().map(Vec::as_slice) {
            Some([Value::String(tensor), times]) => {
                Ok(Rule::NearTimes { tensor: tensor.clone(), times: number(times)?, rtol })
            }
            _ => bail!("atol_times {pair} is not [name, factor]"),
        },
    }
}

/// Whether a name fits a pattern in which `*` is any run of characters and `?` any one.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    // reach[j]: the pattern so far fits the first j characters.
    let mut reach = vec![false; name.len() + 1];
    reach[0] = true;
    for p in pattern {
        if p == '*' {
            let first = reach.iter().position(|r| *r).unwrap_or(reach.len());
            reach[first..].fill(true);
        } else {
            for j in (0..name.len()).rev() {
                reach[j + 1] = reach[j] && (p == '?' || p == name[j]);
            }
            reach[0] = false;
        }
    }
    reach[name.len()]
}

/// The value that is worst in relation to its bound, and how many are out of bounds.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// `|got - expected|` there; infinite where one of them is not a number or the two infinities differ.
    pub err: f64,
    /// The bound there.
    pub tol: f64,
    /// err / tol; 0 where both are 0.
    pub ratio: f64,
    pub index: Vec<usize>,
    pub got: f64,
    pub expected: f64,
    pub compared: usize,
    pub out: usize,
}

impl Outcome {
    /// Whether every value is within its bound.
    pub fn passes(&self) -> bool {
        self.out == 0
    }

    /// What is wrong, for a tensor that does not pass.
    pub fn explain(&self) -> String {
        let Self { err, tol, index, got, expected, compared, out, .. } = self;
        format!(
            "{out} of {compared} values are out of tolerance; at {index:?} got {got}, expected {expected}: {err:.2e} > {tol:.2e}"
        )
    }
}

/// Compares one tensor. `mask` has one value for each position of the leading axes; false leaves the position out.
///
/// # Errors
/// The shapes differ, one side is integer and the other is not, or there is nothing to compare.
pub fn compare(
    got: &Tensor,
    expected: &Tensor,
    rule: &Rule,
    mask: Option<&[bool]>,
    all: &BTreeMap<String, Tensor>,
) -> Result<Outcome> {
    ensure!(got.dims() == expected.dims(), "shape {:?}, expected {:?}", got.dims(), expected.dims());
    let (is, should) = (got.dtype(), expected.dtype());
    ensure!(is.is_int() == should.is_int(), "dtype {}, expected {}", is.as_str(), should.as_str());
    let count = expected.elem_count();
    let per_position = match mask {
        None => 1,
        Some(mask) => {
            ensure!(
                !mask.is_empty() && count.is_multiple_of(mask.len()),
                "a mask of {} does not fit {count} values",
                mask.len()
            );
            count / mask.len()
        }
    };
    let (got_values, values) = (numbers(got)?, numbers(expected)?);
    let bounds = bounds(if should.is_int() { &Rule::Exact } else { rule }, expected, &values, all)?;
    let mut worst: Option<Outcome> = None;
    let (mut compared, mut out) = (0, 0);
    for (i, ((&got, &expected), &tol)) in got_values.iter().zip(&values).zip(&bounds).enumerate() {
        if mask.is_some_and(|mask| !mask[i / per_position]) {
            continue;
        }
        compared += 1;
        let err = distance(got, expected);
        // Both sides may be 0; written so that a NaN anywhere counts as out.
        let fits = err <= tol;
        out += usize::from(!fits);
        let ratio = if err == 0.0 { 0.0 } else { err / tol };
        if worst.as_ref().is_none_or(|w| ratio > w.ratio) {
            worst = Some(Outcome { err, tol, ratio, index: vec![i], got, expected, compared, out });
        }
    }
    let mut worst = worst.context("there is nothing to compare")?;
    worst.index = position(worst.index[0], expected.dims());
    Ok(Outcome { compared, out, ..worst })
}

/// The distance between two values: NaN is near NaN only, an infinity near itself only.
fn distance(got: f64, expected: f64) -> f64 {
    match (got.is_nan(), expected.is_nan()) {
        (true, true) => 0.0,
        (false, false) if got == expected => 0.0,
        (false, false) if got.is_finite() && expected.is_finite() => (got - expected).abs(),
        _ => f64::INFINITY,
    }
}

/// The expected tensor that a tolerance names: itself, or that of the case's one pass (`step1.scale` for `scale`).
fn named<'a>(name: &str, all: &'a BTreeMap<String, Tensor>) -> Result<&'a Tensor> {
    let of_a_pass = |key: &str| key.split_once('.').is_some_and(|(_, rest)| rest == name);
    let mut found = all.iter().filter(|(key, _)| of_a_pass(key)).map(|(_, tensor)| tensor);
    match (all.get(name), found.next(), found.next()) {
        (Some(tensor), ..) | (None, Some(tensor), None) => Ok(tensor),
        _ => bail!("atol_times names {name}, which is not in the case, or in several passes"),
    }
}

fn bounds(rule: &Rule, tensor: &Tensor, values: &[f64], all: &BTreeMap<String, Tensor>) -> Result<Vec<f64>> {
    // The bound at a value that is not finite must not become infinite, or anything would pass there.
    let relative = |rtol: f64, v: f64| if v.is_finite() { rtol * v.abs() } else { 0.0 };
    Ok(match rule {
        Rule::Exact => vec![0.0; values.len()],
        Rule::Near { atol, rtol } => values.iter().map(|v| atol + relative(*rtol, *v)).collect(),
        Rule::NearTimes { tensor: name, times, rtol } => {
            let by = named(name, all)?.to_dtype(DType::F64)?;
            let by = if by.elem_count() == 1 { by.reshape(())? } else { by };
            let by = match by.broadcast_as(tensor.shape()) {
                Ok(by) => numbers(&by)?,
                // Of other positions than those compared: its largest value counts.
                Err(_) => vec![numbers(&by)?.iter().fold(0.0, |most: f64, v| most.max(v.abs())); values.len()],
            };
            ensure!(by.iter().all(|v| v.is_finite()), "{name}, which the tolerance depends on, is not finite");
            by.iter().zip(values).map(|(by, v)| times * by.abs() + relative(*rtol, *v)).collect()
        }
    })
}

pub fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    let flat = tensor.to_device(&Device::Cpu)?.flatten_all()?;
    if flat.dtype() != DType::I64 {
        return Ok(flat.to_dtype(DType::F64)?.to_vec1()?);
    }
    // Exact for what is compared exactly: f64 holds integers up to 2^53.
    let wide = flat.to_vec1::<i64>()?;
    ensure!(wide.iter().all(|v| v.unsigned_abs() <= 1 << 53), "an integer beyond 2^53 cannot be compared exactly");
    Ok(wide.into_iter().map(|v| v as f64).collect())
}

fn position(mut index: usize, dims: &[usize]) -> Vec<usize> {
    let mut at = vec![0; dims.len()];
    for (slot, &dim) in at.iter_mut().zip(dims).rev() {
        *slot = index % dim.max(1);
        index /= dim.max(1);
    }
    at
}

mod tests {
    use super::*;
    use serde_json::json;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    fn passes(got: &[f32], expected: &[f32], rule: &Rule) -> bool {
        compare(&tensor(got), &tensor(expected), rule, None, &BTreeMap::new()).unwrap().passes()
    }

    const NEAR: Rule = Rule::Near { atol: 0.125, rtol: 0.5 };

    #[test]
    fn a_wrong_value_fails_and_is_pointed_at() {
        let (got, expected) = (tensor(&[1., 2., 3., 9.]), tensor(&[1., 2., 3., 4.]));
        let (got, expected) = (got.reshape((2, 2)).unwrap(), expected.reshape((2, 2)).unwrap());
        let outcome = compare(&got, &expected, &NEAR, None, &BTreeMap::new()).unwrap();
        assert!(!outcome.passes());
        assert_eq!((outcome.index.as_slice(), outcome.out, outcome.compared), (&[1, 1][..], 1, 4));
        assert_eq!((outcome.err, outcome.tol), (5.0, 2.125));
        assert!(outcome.explain().contains("at [1, 1] got 9, expected 4"), "{}", outcome.explain());
    }

    #[test]
    fn the_bound_itself_still_passes() {
        for (got, ok) in [(4.0, true), (6.125, true), (1.875, true), (6.1251, false), (1.8749, false)] {
            assert_eq!(passes(&[got], &[4.0], &NEAR), ok, "{got}");
        }
        assert!(passes(&[0.125], &[0.0], &NEAR) && !passes(&[0.126], &[0.0], &NEAR));
        assert!(passes(&[4.0], &[4.0], &Rule::Exact) && !passes(&[4.0000005], &[4.0], &Rule::Exact));
    }

    #[test]
    fn what_is_not_finite_must_be_expected() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let wide = Rule::Near { atol: 1e30, rtol: 1e30 };
        for (got, expected, ok) in [
            (nan, 1., false),
            (1., nan, false),
            (nan, nan, true),
            (inf, 1., false),
            (1., inf, false),
            (inf, inf, true),
            (-inf, inf, false),
            (nan, inf, false),
            (inf, nan, false),
        ] {
            assert_eq!(passes(&[0., got, 0.], &[0., expected, 0.], &wide), ok, "{got} for {expected}");
        }
        // The worst value is the NaN, wherever it stands.
        let outcome = compare(&tensor(&[9., nan, 9.]), &tensor(&[0.; 3]), &NEAR, None, &BTreeMap::new()).unwrap();
        assert_eq!((outcome.index, outcome.out), (vec![1], 3));
    }

    #[test]
    fn shape_and_kind_must_agree() {
        let none = BTreeMap::new();
        let fails = |got: &Tensor, expected: &Tensor| compare(got, expected, &NEAR, None, &none).is_err();
        let ints = Tensor::new(&[1u32, 2], &Device::Cpu).unwrap();
        assert!(fails(&tensor(&[1., 2.]), &tensor(&[1., 2., 3.])));
        assert!(fails(&tensor(&[1., 2.]).reshape((1, 2)).unwrap(), &tensor(&[1., 2.])));
        assert!(fails(&tensor(&[1., 2.]), &ints) && fails(&ints, &tensor(&[1., 2.])));
        assert!(fails(&tensor(&[]), &tensor(&[])), "an empty tensor proves nothing");
    }

    #[test]
    fn integers_are_exact_whatever_the_tolerance() {
        let ints = |v: &[i64]| Tensor::new(v, &Device::Cpu).unwrap();
        let compare = |a: &Tensor, b: &Tensor| compare(a, b, &NEAR, None, &BTreeMap::new());
        assert!(compare(&ints(&[100, 7]), &ints(&[100, 7])).unwrap().passes());
        assert!(!compare(&ints(&[101, 7]), &ints(&[100, 7])).unwrap().passes());
        // The width does not matter: candle's indices are u32, the reference's i32 or i64.
        assert!(compare(&ints(&[100, 7]).to_dtype(DType::U32).unwrap(), &ints(&[100, 7])).unwrap().passes());
        assert!(compare(&ints(&[i64::MAX]), &ints(&[i64::MAX - 1])).is_err());
    }

    #[test]
    fn names_beat_patterns_and_long_patterns_beat_short_ones() {
        let tolerances = Tolerances::parse(Some(&json!({
            "default": {"atol": 1.0, "rtol": 0.0},
            "tensors": {"*grad*": {"atol": 2.0}, "*.grad.model.*": {"atol": 3.0}, "a.grad.model.x": {"atol": 4.0}, "a.grad.model.x*": {"atol": 6.0}, "*": {"atol": 5.0},
                        "ids": "exact", "q?": {"rtol": 0.5}}
        })))
        .unwrap();
        let near = |atol| Rule::Near { atol, rtol: 0.0 };
        for (name, rule) in [
            ("a.grad_norm", near(2.0)),
            ("a.grad.model.y", near(3.0)),
            ("a.grad.model.x", near(4.0)),
            ("hidden", near(5.0)),
            ("ids", Rule::Exact),
            ("q7", Rule::Near { atol: 0.0, rtol: 0.5 }),
            ("q77", near(5.0)),
        ] {
            assert_eq!(*tolerances.rule(name), rule, "{name}");
        }
        let plain = Tolerances::parse(Some(&json!({"default": {"atol": 1.0}, "integers": "exact"}))).unwrap();
        assert_eq!(*plain.rule("anything"), near(1.0));
    }

    #[test]
    fn tolerances_that_are_not_understood_are_refused() {
        for bad in [
            json!(null),
            json!({}),
            json!({"default": {}}),
            json!({"default": "about"}),
            json!({"default": {"atol": -1.0}}),
            json!({"default": {"atol": "1"}}),
            json!({"default": {"atol": 1.0, "max": 2.0}}),
            json!({"default": {"atol": 1.0}, "integers": "near"}),
            json!({"default": {"atol": 1.0}, "tensors": []}),
            json!({"default": {"atol": 1.0}, "tensors": {"x": {"atol_times": ["y"]}}}),
            json!({"default": {"atol": 1.0}, "tensors": {"x": {"atol": 1.0, "atol_times": ["y", 2.0]}}}),
        ] {
            assert!(Tolerances::parse(Some(&bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bound_can_be_a_multiple_of_another_tensor() {
        let json = json!({"default": {"atol": 0.0}, "tensors": {"g.*": {"atol_times": ["norm", 0.5], "rtol": 0.0}}});
        let tolerances = Tolerances::parse(Some(&json)).unwrap();
        let all = BTreeMap::from([("norm".to_string(), tensor(&[2.0]))]);
        let near = |got: &[f32], all| compare(&tensor(got), &tensor(&[0., 0.]), tolerances.rule("g.w"), None, all);
        assert!(near(&[1.0, -1.0], &all).unwrap().passes());
        assert!(!near(&[1.0, -1.001], &all).unwrap().passes());
        // One bound for each value, where that tensor has the shape for it.
        let each = BTreeMap::from([("norm".to_string(), tensor(&[2.0, 4.0]))]);
        assert!(near(&[1.0, 2.0], &each).unwrap().passes() && !near(&[2.0, 1.0], &each).unwrap().passes());
        assert!(near(&[0.0, 0.0], &BTreeMap::new()).is_err(), "a bound by a tensor that is not there");
    }

    #[test]
    fn positions_without_meaning_are_left_out_and_no_others() {
        let none = BTreeMap::new();
        let (got, expected) = (tensor(&[1., 2., 9., 9.]), tensor(&[1., 2., 3., 4.]));
        let by = |mask: &[bool]| compare(&got, &expected, &NEAR, Some(mask), &none);
        assert!(by(&[true, false]).unwrap().passes());
        assert!(!by(&[false, true]).unwrap().passes());
        assert!(!by(&[true, true, true, false]).unwrap().passes());
        assert!(by(&[false, false]).is_err(), "nothing is left to compare");
        assert!(by(&[true, true, true]).is_err(), "a mask that does not divide the tensor");
    }

    #[test]
    fn patterns_match_as_shells_match() {
        for (pattern, name, fits) in [
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("*grad*", "train.grad.w", true),
            ("*grad*", "grad", true),
            ("grad.*", "train.grad.w", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("topk.*", "topkX1", false),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} on {name:?}");
        }
    }
}
