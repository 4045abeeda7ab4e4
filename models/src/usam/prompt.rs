//! What is asked about a clip, and the ids around it.

use candle_core::{Result, bail};

use super::UsamConfig;

/// Where the sound stands in a prompt; a split mark, no token.
pub const SOUND: &str = "<AcousticTokens>";

/// The tasks that U-SAM was trained for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// A caption of sounds (`AAC`).
    Caption,
    /// A transcript (`ASR`).
    Transcript,
    /// A Chinese translation of speech (`S2TT`).
    Translation,
    /// A description of music (`MC`).
    Music,
}

impl Task {
    /// All tasks.
    pub const ALL: [Self; 4] = [Self::Caption, Self::Transcript, Self::Translation, Self::Music];

    /// The name that the authors give it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Caption => "AAC",
            Self::Transcript => "ASR",
            Self::Translation => "S2TT",
            Self::Music => "MC",
        }
    }

    /// The task of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn from_name(name: &str) -> Result<Self> {
        match Self::ALL.into_iter().find(|task| task.name() == name) {
            Some(task) => Ok(task),
            None => bail!("task {} is not known; known are AAC, ASR, S2TT, MC", moesaic_kernels::shown(name)),
        }
    }

    /// The authors' prompt, with [`SOUND`] in it.
    pub fn prompt(self) -> &'static str {
        match self {
            Self::Caption => "Describe the detail of this audio:<AcousticTokens>\n---\nDetailed: ",
            Self::Transcript => "Transcribe this audio:<AcousticTokens>\n---\nTranscription: ",
            Self::Translation => "Translate this audio into Chinese text: <AcousticTokens>\n---\nTranslation:",
            Self::Music => "Provide a short description of this music: <AcousticTokens>\n---\nDescription: ",
        }
    }
}

/// Ids of a prompt before and behind the sound, without the first token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// Before the sound.
    pub left: Vec<u32>,
    /// Behind it.
    pub right: Vec<u32>,
}

/// Ids that no text holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    /// First token.
    pub bos: u32,
    /// Last token of an answer.
    pub eos: u32,
    /// Fills shorter rows at the right; appended to the language model's own vocabulary.
    pub pad: u32,
}

impl Vocabulary {
    /// The ids that the model's tokenizer gives the special tokens that `config.json` names.
    ///
    /// # Errors
    /// The tokenizer does not know one, or the language model has no such id: it is of another model then.
    pub fn new(config: &UsamConfig, id: impl Fn(&str) -> Option<u32>) -> Result<Self> {
        let known = |token: &str| match id(token) {
            Some(id) if (id as usize) < config.llm.vocab_size => Ok(id),
            Some(id) => bail!(
                "the tokenizer gives {} the id {id}, the language model has {} tokens: is it this model's own?",
                moesaic_kernels::shown(token),
                config.llm.vocab_size
            ),
            None => bail!(
                "the tokenizer does not know {}: take the one that was saved with the model",
                moesaic_kernels::shown(token)
            ),
        };
        Ok(Self { bos: known(&config.bos)?, eos: known(&config.eos)?, pad: known(&config.pad)? })
    }

    /// Ids of a text without the first and the last token that a tokenizer may have put around it.
    pub fn bare(&self, mut ids: Vec<u32>) -> Vec<u32> {
        if ids.first() == Some(&self.bos) {
            ids.remove(0);
        }
        if ids.last() == Some(&self.eos) {
            ids.pop();
        }
        ids
    }

    /// A prompt's ids. [`SOUND`] says where the sound stands; without it, it stands behind the text, and the answer behind
    /// `Answer:`, in the manner of the tasks.
    ///
    /// # Errors
    /// The text cannot be encoded, or has more than one place for the sound.
    pub fn prompt(&self, text: &str, encode: impl Fn(&str) -> Result<Vec<u32>>) -> Result<Prompt> {
        let (left, right) = match text.split_once(SOUND) {
            Some((_, right)) if right.contains(SOUND) => {
                bail!("a prompt has one place for the sound, this has several")
            }
            Some((left, right)) => (left, right),
            None => (text, "\n---\nAnswer: "),
        };
        let ids = |text: &str| if text.is_empty() { Ok(Vec::new()) } else { encode(text).map(|ids| self.bare(ids)) };
        Ok(Prompt { left: ids(left)?, right: ids(right)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_part_at_the_sound() -> Result<()> {
        let vocabulary = Vocabulary { bos: 1, eos: 2, pad: 3 };
        let encode = |text: &str| Ok([vec![1], text.bytes().map(u32::from).collect(), vec![2]].concat());
        let prompt = vocabulary.prompt("ab<AcousticTokens>\nc", encode)?;
        assert_eq!(prompt, Prompt { left: vec![97, 98], right: vec![10, 99] });
        assert!(vocabulary.prompt("<AcousticTokens>c", encode)?.left.is_empty());
        let bare = vocabulary.prompt("What?", encode)?;
        assert!(bare.left.len() == 5 && bare.right.ends_with(&[u32::from(b':'), u32::from(b' ')]));
        assert!(vocabulary.prompt("<AcousticTokens> <AcousticTokens>", encode).is_err());
        for task in Task::ALL {
            assert_eq!(Task::from_name(task.name())?, task);
            assert!(task.prompt().contains(SOUND));
        }
        assert!(Task::from_name("asr").is_err());
        Ok(())
    }
}
