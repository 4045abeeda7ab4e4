//! How many words a speech model gets wrong.

use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};

use super::{Clip, Clips, heard};
use crate::avsr::{Avsr, Media, Rates, fit_to_video};

/// What stands between what was said and what was written down: the fewest changes that make one of the other
/// (Levenshtein).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errors {
    /// Words that are others.
    pub substitutions: usize,
    /// Words that are missing.
    pub deletions: usize,
    /// Words that were not said.
    pub insertions: usize,
    /// Words that were said.
    pub words: usize,
}

impl Errors {
    /// Wrong words, of all three kinds.
    pub fn count(&self) -> usize {
        self.substitutions + self.deletions + self.insertions
    }

    /// Wrong words over words that were said, which may exceed 1; 0 where nothing was said and nothing written.
    pub fn rate(&self) -> f64 {
        match (self.count(), self.words) {
            (0, _) => 0.0,
            (count, words) => count as f64 / words.max(1) as f64,
        }
    }

    /// Both together: rates of several texts are those of the sums.
    pub fn plus(self, other: Self) -> Self {
        Self {
            substitutions: self.substitutions + other.substitutions,
            deletions: self.deletions + other.deletions,
            insertions: self.insertions + other.insertions,
            words: self.words + other.words,
        }
    }
}

/// The errors in `found`, words or tokens of what was said as `said`. Among equally few changes those with more substitutions
/// count.
pub fn word_errors<T: PartialEq>(said: &[T], found: &[T]) -> Errors {
    // Of each prefix of `found`, for the words of `said` so far: changes, and what they are.
    let mut row: Vec<Errors> = (0..=found.len()).map(|i| Errors { insertions: i, ..Errors::default() }).collect();
    for (i, word) in said.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], Errors { deletions: i + 1, ..Errors::default() });
        for (j, other) in found.iter().enumerate() {
            let (above, left) = (row[j + 1], row[j]);
            let mut best = diagonal;
            if word != other {
                best.substitutions += 1;
                let deleted = Errors { deletions: above.deletions + 1, ..above };
                let inserted = Errors { insertions: left.insertions + 1, ..left };
                for way in [deleted, inserted] {
                    if way.count() < best.count() {
                        best = way;
                    }
                }
            }
            diagonal = std::mem::replace(&mut row[j + 1], best);
        }
    }
    Errors { words: said.len(), ..row.pop().unwrap_or_default() }
}

/// Wrong tokens in a hundred of the first `count` clips, for each way that the model can take them.
pub(super) fn measure(model: &Avsr, clips: &dyn Clips, count: usize) -> Result<Vec<(String, f64)>> {
    let task = model.config().task;
    let ways: Vec<(&str, bool, bool)> = [("audio", true, false), ("video", false, true), ("both", true, true)]
        .into_iter()
        .filter(|&(_, hears, sees)| match (task.hears(), task.sees()) {
            (true, true) => true,
            own => own == (hears, sees),
        })
        .collect();
    let mut sums = vec![Errors::default(); ways.len()];
    for index in 0..count.min(clips.lengths().len()) {
        let Clip { sound, lips, text } = clips.clip(index, task.hears(), task.sees())?;
        let pixels = lips.as_ref().map(|lips| model.lips(&lips.rgb, lips.size)).transpose()?;
        let sound = match task.hears() {
            true => {
                let sound = heard(index, sound)?;
                let fitted = lips.as_ref().map(|lips| fit_to_video(&sound, lips.size.0));
                Some(model.sound(&[fitted.as_deref().unwrap_or(&sound)])?)
            }
            false => None,
        };
        for ((_, hears, sees), sum) in ways.iter().zip(&mut sums) {
            let media = Media { audio: sound.as_ref().filter(|_| *hears), video: pixels.as_ref().filter(|_| *sees) };
            let answers = model.transcribe(media, Rates::default(), &model.options())?;
            let Some(answer) = answers.first() else { bail!("the model gave no answer") };
            *sum = sum.plus(word_errors(&text, &model.vocabulary().bare(answer.tokens.clone())));
        }
    }
    let name = |(way, _, _): &(&str, bool, bool)| format!("wrong_{way}");
    Ok(ways.iter().zip(sums).map(|(way, sum)| (name(way), 100.0 * sum.rate())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_compared_by_the_fewest_changes() {
        let errors = |said: &str, found: &str| {
            let words = |text: &str| text.split_whitespace().map(str::to_string).collect::<Vec<_>>();
            let e = word_errors(&words(said), &words(found));
            (e.substitutions, e.deletions, e.insertions, e.words)
        };
        assert_eq!(errors("bin blue at f two now", "bin blue at f two now"), (0, 0, 0, 6));
        assert_eq!(errors("bin blue at f two now", "bin red at two now"), (1, 1, 0, 6));
        assert_eq!(errors("one two", "one one two two three"), (0, 0, 3, 2));
        assert_eq!(errors("", "one"), (0, 0, 1, 0));
        assert_eq!(errors("a b c", ""), (0, 3, 0, 3));
        assert_eq!(errors("a b c d", "b c d e"), (0, 1, 1, 4));
        assert_eq!(errors("a b", "c d"), (2, 0, 0, 2));
        assert_eq!(word_errors(&[1, 2], &[3, 4, 5]).rate(), 1.5);
        assert_eq!(Errors::default().rate(), 0.0);
    }
}
