//! Shares of right answers.

use serde::Serialize;

/// How many of some questions were answered right.
#[derive(Debug, Default, Serialize)]
pub(super) struct Share {
    pub questions: usize,
    pub right: usize,
    pub accuracy: f64,
}

impl Share {
    pub fn add(&mut self, right: bool) {
        self.join(&Self { questions: 1, right: usize::from(right), accuracy: 0.0 });
    }

    /// Adds the questions of another.
    pub fn join(&mut self, other: &Self) {
        self.questions += other.questions;
        self.right += other.right;
        self.accuracy = self.right as f64 / self.questions as f64;
    }
}
