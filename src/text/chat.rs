//! Conversations.

use std::path::Path;

use moesaic_models::generate::Memory;

use super::generator::{Answer, Parts, TextGenerator};
use super::options::{Dtype, TextOptions};
use super::stream::TextStream;
use super::template::{ChatTemplate, Message, TemplateOptions};
use crate::device::Device;
use crate::error::{Error, Result};

/// A language model that answers in conversations. It holds no state between calls: the caller keeps the messages.
///
/// ```no_run
/// use moesaic::{Chat, Message, TemplateOptions, TextOptions};
///
/// # fn main() -> moesaic::Result<()> {
/// let chat = Chat::from_dir("path/to/OLMoE-1B-7B-0924-Instruct")?;
/// let messages = [Message::user("What is a mixture of experts?")];
/// for piece in chat.stream(&messages, &TemplateOptions::default(), &TextOptions::default())? {
///     print!("{}", piece?.text);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Chat {
    generator: TextGenerator,
    template: ChatTemplate,
}

impl Chat {
    /// The model in this folder or GGUF file (see [`TextGenerator::from_dir`]), which must have a chat template.
    ///
    /// # Errors
    /// As [`TextGenerator::from_dir`], and [`Error::Config`] where the model has no chat template or a broken one.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        Self::load(dir.as_ref(), None, Device::Cpu)
    }

    /// The same with weights and cache converted to a number type.
    ///
    /// # Errors
    /// As [`from_dir`](Self::from_dir).
    pub fn from_dir_as(dir: impl AsRef<Path>, dtype: Dtype) -> Result<Self> {
        Self::load(dir.as_ref(), Some(dtype), Device::Cpu)
    }

    /// The same on a device, with weights and cache converted to a number type or as they are stored.
    ///
    /// # Errors
    /// As [`from_dir`](Self::from_dir), and [`Error::Device`] where the device cannot be used.
    pub fn from_dir_on(dir: impl AsRef<Path>, dtype: Option<Dtype>, device: Device) -> Result<Self> {
        Self::load(dir.as_ref(), dtype, device)
    }

    fn load(dir: &Path, dtype: Option<Dtype>, device: Device) -> Result<Self> {
        // The template first: weights take long to read.
        let parts = Parts::load(dir)?;
        let template = match &parts.gguf {
            Some(file) => ChatTemplate::of_gguf(dir, file.metadata(), &parts.tokenizer)?,
            None => ChatTemplate::load(dir, &parts.tokenizer)?,
        };
        let Some(template) = template else {
            if parts.gguf.is_some() {
                let problem = "has no chat template: the model was not made for conversations; go on with plain text \
                               instead (`moesaic generate`)";
                return Err(Error::config(dir, problem));
            }
            let problem = "has no chat_template: the model was not made for conversations; go on with plain text \
                           instead (`moesaic generate`), or save a template beside it as chat_template.jinja";
            return Err(Error::config(&dir.join("tokenizer_config.json"), problem));
        };
        let generator = TextGenerator::of_parts(dir, parts, dtype, device)?;
        Ok(Self { generator, template })
    }

    /// The model.
    pub fn generator(&self) -> &TextGenerator {
        &self.generator
    }

    /// The model, to attach adapters to ([`TextGenerator::attach`]).
    pub fn generator_mut(&mut self) -> &mut TextGenerator {
        &mut self.generator
    }

    /// The text that the model is given for a conversation.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn prompt(&self, messages: &[Message], template: &TemplateOptions) -> Result<String> {
        if messages.is_empty() {
            return Err(Error::option("the conversation is empty: give at least one message"));
        }
        self.template.render(messages, template)
    }

    /// The next message, piece by piece.
    ///
    /// # Errors
    /// As [`prompt`](Self::prompt) and [`TextGenerator::stream`].
    pub fn stream(
        &self,
        messages: &[Message],
        template: &TemplateOptions,
        options: &TextOptions,
    ) -> Result<TextStream<'_>> {
        let prompt = self.prompt(messages, template)?;
        self.generator.stream_rows(vec![self.generator.tokenizer.encode_rendered(&prompt)?], options, None)
    }

    /// [`stream`](Self::stream) for a conversation that goes on: what `memory` holds of it does not run through the model
    /// again. Begin with `Memory::default()`; [`TextStream::run_remembering`] gives the memory for the next message. A memory
    /// belongs to this model with these adapters, and one that holds another text does no harm.
    ///
    /// # Errors
    /// As [`stream`](Self::stream).
    pub fn resume(
        &self,
        memory: Memory,
        messages: &[Message],
        template: &TemplateOptions,
        options: &TextOptions,
    ) -> Result<TextStream<'_>> {
        let prompt = self.generator.tokenizer.encode_rendered(&self.prompt(messages, template)?)?;
        self.generator.stream_rows(vec![prompt], options, Some(memory))
    }

    /// The next message.
    ///
    /// # Errors
    /// As [`stream`](Self::stream).
    pub fn answer(&self, messages: &[Message], template: &TemplateOptions, options: &TextOptions) -> Result<Answer> {
        let none = || Error::Compute("the model gave no answer".into());
        if options.beams.is_some() {
            let rows = [self.generator.tokenizer.encode_rendered(&self.prompt(messages, template)?)?];
            return self.generator.search_rows(&rows, 1, options)?.into_iter().flatten().next().ok_or_else(none);
        }
        self.stream(messages, template, options)?.answers()?.into_iter().next().ok_or_else(none)
    }
}
