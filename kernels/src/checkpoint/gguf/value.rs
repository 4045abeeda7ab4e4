//! Metadata values of a GGUF file.

use std::collections::BTreeMap;

use candle_core::Result;

use crate::checkpoint::text::{refuse, shown};

/// A value, by what it means rather than by how many bits it takes.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of 8, 16, 32 or 64 bits.
    Unsigned(u64),
    /// Of 8, 16, 32 or 64 bits.
    Signed(i64),
    /// Of 32 or 64 bits.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// Text.
    Text(String),
    /// Several of one type.
    List(List),
}

/// Values of one type.
#[derive(Clone, Debug, PartialEq)]
pub enum List {
    /// Of 8, 16, 32 or 64 bits.
    Unsigned(Vec<u64>),
    /// Of 8, 16, 32 or 64 bits.
    Signed(Vec<i64>),
    /// Of 32 or 64 bits.
    Float(Vec<f64>),
    /// True or false.
    Bool(Vec<bool>),
    /// Texts.
    Text(Vec<String>),
    /// Lists.
    List(Vec<List>),
}

/// The metadata of a file, by key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata(pub(super) BTreeMap<String, Value>);

impl FromIterator<(String, Value)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (String, Value)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}

impl Metadata {
    /// A value by its key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// All keys and values, in byte order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// A text.
    ///
    /// # Errors
    /// The value is something else.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(wrong(key, "text")),
        }
    }

    /// True or false.
    ///
    /// # Errors
    /// The value is something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(wrong(key, "true or false")),
        }
    }

    /// A whole number from 0 on, or a list of the same one (some keys are given by layer).
    ///
    /// # Errors
    /// The value is something else, or differs from layer to layer.
    pub fn whole(&self, key: &str) -> Result<Option<u64>> {
        let signed = |n: i64| u64::try_from(n).map_err(|_| wrong(key, "a whole number from 0 on"));
        let same = |all: &[u64]| match all {
            [first, rest @ ..] if rest.iter().all(|n| n == first) => Ok(Some(*first)),
            _ => refuse!("{} differs from layer to layer, which is not supported", shown(key)),
        };
        match self.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(n)) => Ok(Some(*n)),
            Some(Value::Signed(n)) => signed(*n).map(Some),
            Some(Value::List(List::Unsigned(all))) => same(all),
            Some(Value::List(List::Signed(all))) => {
                same(&all.iter().map(|&n| signed(n)).collect::<Result<Vec<u64>>>()?)
            }
            Some(_) => Err(wrong(key, "a whole number from 0 on")),
        }
    }

    /// A number.
    ///
    /// # Errors
    /// The value is something else.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(number)) => Ok(Some(*number)),
            Some(Value::Unsigned(n)) => Ok(Some(*n as f64)),
            Some(Value::Signed(n)) => Ok(Some(*n as f64)),
            Some(_) => Err(wrong(key, "a number")),
        }
    }

    /// A list of texts.
    ///
    /// # Errors
    /// The value is something else.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::List(List::Text(texts))) => Ok(Some(texts)),
            Some(_) => Err(wrong(key, "a list of texts")),
        }
    }

    /// A list of numbers.
    ///
    /// # Errors
    /// The value is something else.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        Ok(match self.get(key) {
            None => None,
            Some(Value::List(List::Float(all))) => Some(all.clone()),
            Some(Value::List(List::Unsigned(all))) => Some(all.iter().map(|&n| n as f64).collect()),
            Some(Value::List(List::Signed(all))) => Some(all.iter().map(|&n| n as f64).collect()),
            Some(_) => return Err(wrong(key, "a list of numbers")),
        })
    }
}

fn wrong(key: &str, expected: &str) -> candle_core::Error {
    crate::checkpoint::text::error(format!("{} is of another type than expected: {expected}", shown(key)))
}
