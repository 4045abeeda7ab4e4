//! What training and measuring ask of the model: several questions about clips that were encoded once.

use candle_core::{DType, Result, Tensor, bail};
use moesaic_kernels::losses::ctc;
use moesaic_kernels::{Routes, Tokens};

use super::{Prompt, SaclmLosses, Sequence, Usam};
use crate::decoder::{Output, follows};

/// The parts of the loss of answers; all carry gradients.
#[derive(Clone, Debug)]
pub struct AnswerLosses {
    /// What is minimised: cross entropy, balance as the language model's config weighs it, and what [`Beside`] asks for, weighted.
    pub total: Tensor,
    /// Mean cross entropy of the answers.
    pub cross_entropy: Tensor,
    /// The balance loss of a sparse language model, unweighted.
    pub balance: Option<Tensor>,
    /// The contrastive loss, unweighted, where it is asked for.
    pub contrastive: Option<SaclmLosses>,
    /// The CTC loss of the sound's tokens, unweighted, where it is asked for.
    pub ctc: Option<Tensor>,
}

/// Losses beside that of the answers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beside<'a> {
    /// Whose text each row is held against by the contrastive loss ([`Saclm::negatives`](super::Saclm::negatives)), and its weight.
    pub contrast: Option<(&'a [u32], f64)>,
    /// The rows whose texts are said in the sound, in that order, and the weight of the CTC loss of their tokens of sound: through
    /// the language model's head, each is to be a token of the text, or the padding token between them.
    pub said: Option<(&'a [u32], f64)>,
}

/// A pass over questions with their answers.
pub(crate) struct Pass {
    sequence: Sequence,
    sound: Tokens,
    output: Output,
    /// Of the projector: one for all rows, or one a row.
    projected: Vec<Routes>,
}

impl Pass {
    /// Routes of the projector.
    pub(crate) fn projected(&self) -> &[Routes] {
        &self.projected
    }

    /// Routes of the sparse layers of the language model.
    pub(crate) fn layers(&self) -> &[Routes] {
        &self.output.routes
    }
}

impl Usam {
    /// Encoded clips, each as often and in the order that `clips` says: a row for each question.
    ///
    /// # Errors
    /// There is no such clip.
    pub fn repeated(&self, encoded: &Tokens, clips: &[u32]) -> Result<Tokens> {
        let rows = Tensor::from_slice(clips, clips.len(), encoded.embeds.device())?;
        Ok(Tokens { embeds: encoded.embeds.contiguous()?.index_select(&rows, 0)?, ..encoded.clone() })
    }

    /// The pass over rows of encoded sound, prompts and texts.
    pub(crate) fn pass(&self, encoded: &Tokens, prompts: &[Prompt], texts: &[Vec<u32>]) -> Result<Pass> {
        let mut projected = self.project(encoded, prompts, None)?;
        let Some(sound) = projected.tokens.pop() else { bail!("the projector gave no tokens") };
        let sequence = self.sequence(&sound, prompts, texts)?;
        let output = self.forward(&sequence, None)?;
        Ok(Pass { sequence, sound, output, projected: projected.routes })
    }

    /// The loss of answers about encoded sound, row by row; texts are ids without first and last token.
    ///
    /// # Errors
    /// Numbers of rows, prompts and texts differ, or an id is not in the vocabulary.
    pub fn answer_loss(
        &self,
        encoded: &Tokens,
        prompts: &[Prompt],
        texts: &[Vec<u32>],
        beside: Beside<'_>,
    ) -> Result<AnswerLosses> {
        let pass = self.pass(encoded, prompts, texts)?;
        let losses = self.llm().loss_of(&pass.output, &pass.sequence.labels, false)?;
        let (mut total, mut contrastive, mut ctc) = (losses.total, None, None);
        if let Some((negatives, weight)) = beside.contrast {
            let loss = self.saclm.forward(&pass.sound.embeds, &pass.sequence.text, negatives, None)?;
            total = (total + (&loss.total * weight)?)?;
            contrastive = Some(loss);
        }
        if let Some((rows, weight)) = beside.said.filter(|(rows, _)| !rows.is_empty()) {
            let loss = self.said(&pass.sound, rows, texts)?;
            total = (total + (&loss * weight)?)?;
            ctc = Some(loss);
        }
        Ok(AnswerLosses { total, cross_entropy: losses.cross_entropy, balance: losses.aux, contrastive, ctc })
    }

    /// How likely the tokens of sound of some rows, brought to length 1 in the mean of squares, say the texts of these rows.
    fn said(&self, sound: &Tokens, rows: &[u32], texts: &[Vec<u32>]) -> Result<Tensor> {
        let own = rows.iter().map(|&row| texts.get(row as usize).cloned()).collect::<Option<Vec<_>>>();
        let Some(own) = own else { bail!("rows {rows:?} of {} texts", texts.len()) };
        let index = Tensor::from_slice(rows, rows.len(), sound.embeds.device())?;
        let x = sound.embeds.index_select(&index, 0)?.to_dtype(DType::F32)?;
        let mean = (x.sqr()?.mean_keepdim(2)? + 1e-6)?; // (rows, t, 1)
        let logits = self.llm().logits(&x.broadcast_div(&mean.sqrt()?)?)?; // (rows, t, V)
        ctc(&logits, &own, self.vocabulary().pad)
    }

    /// Whether each row's text is what greedy generation gives, to the last token.
    ///
    /// # Errors
    /// As [`answer_loss`](Self::answer_loss).
    pub fn answers_right(&self, encoded: &Tokens, prompts: &[Prompt], texts: &[Vec<u32>]) -> Result<Vec<bool>> {
        self.judged(&self.pass(encoded, prompts, texts)?)
    }

    /// The same of a pass that was made.
    pub(crate) fn judged(&self, pass: &Pass) -> Result<Vec<bool>> {
        follows(&pass.output, &pass.sequence.labels, |hidden| self.llm().logits(hidden))
    }
}
