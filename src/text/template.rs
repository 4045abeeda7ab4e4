//! Chat templates: how a model wants a conversation written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use jiff::civil::DateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value, ValueKind};
use minijinja::{AutoEscape, Environment, ErrorKind};
use moesaic_kernels::checkpoint::gguf::{Gguf, Metadata, is_gguf};
use serde::{Deserialize, Serialize};
use serde_json::Map;

use super::json::tojson;
use super::read_text;
use super::tokenizer::{Tokenizer, parse_config, tokenizer_config};
use crate::error::{Error, Result, candle_message, one_line, quoted};

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What they say.
    pub content: String,
}

impl Message {
    /// Instructions for the whole conversation; the first message if there are any.
    pub fn system(content: impl Into<String>) -> Self {
        Self { role: "system".into(), content: content.into() }
    }

    /// What the person says.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: "user".into(), content: content.into() }
    }

    /// What the model says.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self { role: "assistant".into(), content: content.into() }
    }
}

/// What a chat template is told beside the messages.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TemplateOptions {
    /// Ends with the words after which the model answers; on by default.
    pub add_generation_prompt: bool,
    /// What the template's `strftime_now` takes for now. Without it that function is undefined, and templates that ask
    /// for it take a date of their own, so that the same conversation gives the same text on any day.
    pub date: Option<DateTime>,
    /// Further variables, such as Qwen3's `enable_thinking`.
    pub variables: BTreeMap<String, serde_json::Value>,
}

impl Default for TemplateOptions {
    fn default() -> Self {
        Self { add_generation_prompt: true, date: None, variables: BTreeMap::new() }
    }
}

/// A model's chat template, in the environment that `transformers` gives it: Jinja with `trim_blocks`, `lstrip_blocks`,
/// `break` and `continue`, Python's string and dict methods, `raise_exception`, `strftime_now`, and a `tojson` that does not
/// escape HTML. `tools` and `documents` stay undefined.
///
/// A template is a program from a stranger: steps, text and time of one rendering are bounded. A rendering that takes longer
/// than ten seconds is an error, but its thread is left behind, as nothing can end it.
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    /// The file that it comes from.
    path: PathBuf,
    /// Special tokens by name.
    tokens: Vec<(&'static str, String)>,
    /// It wants contents as lists of pieces, such as pictures, rather than as text.
    #[cfg(feature = "image")]
    pieces: bool,
}

/// The longest template that is read, in bytes. Published ones stay below 32 kB.
const LONGEST: u64 = 128 << 10;
/// Steps of one rendering; a step pays for 64 bytes of text as well.
const FUEL: u64 = 500_000;
/// Time of one rendering. Steps bound most templates long before; what they do not count is the comparison and the text of
/// lists that hold the same list again and again.
const TIME: Duration = Duration::from_secs(10);
/// Stack of the thread that parses and renders, in bytes: a template can nest as deeply as it is long.
const STACK: usize = 256 << 20;
const NAME: &str = "chat template";

impl ChatTemplate {
    /// The template of a model folder, `None` where there is none: `chat_template.jinja`, or `chat_template` in
    /// `chat_template.json` or `tokenizer_config.json` (of several named ones that called `default`). Of a GGUF file, the template that it holds.
    ///
    /// # Errors
    /// [`Error::Config`] or [`Error::Io`]: a file cannot be read, or the template has an error; the message has its line.
    pub fn load(dir: impl AsRef<Path>, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let dir = dir.as_ref();
        if is_gguf(dir) {
            let file = Gguf::open(dir).map_err(|error| Error::weights(dir, &error))?;
            return Self::of_gguf(dir, file.metadata(), tokenizer);
        }
        let path = dir.join("chat_template.jinja");
        if let Some(source) = read_text(&path, LONGEST)? {
            return Self::new(&path, &source, tokenizer.named()).map(Some);
        }
        // What processors of multimodal models wrote before there was a file for the template alone.
        let path = dir.join("chat_template.json");
        if let Some(json) = read_text(&path, 2 * LONGEST)?
            && let Some(source) = named_template(&path, &parse_config(&path, &json)?)?
        {
            return Self::new(&path, &source, tokenizer.named()).map(Some);
        }
        let path = dir.join("tokenizer_config.json");
        match named_template(&path, &tokenizer_config(dir)?)? {
            Some(source) => Self::new(&path, &source, tokenizer.named()).map(Some),
            None => Ok(None),
        }
    }

    /// The template of a GGUF file with this metadata.
    pub(super) fn of_gguf(path: &Path, metadata: &Metadata, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let source = metadata.text("tokenizer.chat_template");
        let source = source.map_err(|error| Error::config(path, candle_message(&error)))?;
        source.map(|source| Self::new(path, source, tokenizer.named())).transpose()
    }

    pub(super) fn new(path: &Path, source: &str, tokens: &[(&'static str, String)]) -> Result<Self> {
        if source.len() as u64 > LONGEST {
            let problem = format!("its chat template has {} bytes, more than any has: check it", source.len());
            return Err(Error::config(path, problem));
        }
        let broken = |error: minijinja::Error| Error::config(path, describe(&error));
        let text = without_generation_tags(source);
        #[cfg(feature = "image")]
        let pieces = ["'image'", "\"image\""].iter().any(|kind| source.contains(kind));
        let environment = apart(move || environment(text)).ok_or_else(|| Error::config(path, TOO_LONG))?;
        let environment = Arc::new(environment.map_err(broken)?);
        Ok(Self {
            environment,
            path: path.to_path_buf(),
            tokens: tokens.to_vec(),
            #[cfg(feature = "image")]
            pieces,
        })
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// [`Error::Input`] when the template refuses the messages, [`Error::Config`] when it fails or does not come to an end.
    pub fn render(&self, messages: &[Message], options: &TemplateOptions) -> Result<String> {
        self.render_value(Value::from(Serde(messages)), options)
    }

    /// The text of a conversation whose messages are given as JSON, for templates whose contents are lists of pieces.
    #[cfg(feature = "image")]
    pub(crate) fn render_json(&self, messages: &serde_json::Value, options: &TemplateOptions) -> Result<String> {
        self.render_value(Value::from(Serde(messages)), options)
    }

    /// Whether contents are lists of pieces.
    #[cfg(feature = "image")]
    pub(crate) fn takes_pieces(&self) -> bool {
        self.pieces
    }

    fn render_value(&self, messages: Value, options: &TemplateOptions) -> Result<String> {
        let failed = |error: minijinja::Error| match error.kind() {
            ErrorKind::EvalBlock => Error::option(format!(
                "the model's chat template refuses this conversation: {}",
                one_line(error.detail().unwrap_or_default()).chars().take(200).collect::<String>()
            )),
            _ => Error::config(&self.path, describe(&error)),
        };
        let mut context: BTreeMap<String, Value> = BTreeMap::new();
        context.extend(self.tokens.iter().map(|(name, token)| (name.to_string(), Value::from(token.as_str()))));
        context.insert("messages".into(), messages);
        context.insert("add_generation_prompt".into(), options.add_generation_prompt.into());
        if let Some(date) = options.date {
            context.insert("strftime_now".into(), Value::from_function(move |format: &str| strftime(date, format)));
        }
        context.extend(options.variables.iter().map(|(name, value)| (name.clone(), Value::from(Serde(value)))));
        let environment = Arc::clone(&self.environment);
        let rendered = apart(move || environment.get_template(NAME)?.render(Value::from(context)));
        rendered.ok_or_else(|| Error::config(&self.path, TOO_LONG))?.map_err(failed)
    }
}

const TOO_LONG: &str = "its chat template takes too long: use another template";

/// Runs `work` on a thread with a deep stack; `None` where it takes too long or the thread cannot be had.
fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = mpsc::channel();
    let thread = thread::Builder::new().name("chat template".into()).stack_size(STACK);
    // Nobody waits for a result that comes too late.
    thread.spawn(move || drop(done.send(work()))).ok()?;
    result.recv_timeout(TIME).ok()
}

/// The environment of `transformers`, with this template.
fn environment(source: String) -> std::result::Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(|out, state, value| match value.kind() {
        // As Python writes them.
        ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
        ValueKind::None => Ok(out.write_str("None")?),
        _ => minijinja::escape_formatter(out, state, value),
    });
    environment.set_fuel(Some(FUEL));
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", |message: String| -> std::result::Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::EvalBlock, message))
    });
    environment.add_template_owned(NAME, source)?;
    Ok(environment)
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("path", &self.path).finish_non_exhaustive()
    }
}

/// The template in a `tokenizer_config.json`: a string, or a list of named ones.
pub(super) fn named_template(path: &Path, config: &Map<String, serde_json::Value>) -> Result<Option<String>> {
    use serde_json::Value as Json;
    match config.get("chat_template") {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(source)) => Ok(Some(source.clone())),
        Some(Json::Array(named)) => {
            let name = |entry: &Json| Some(entry.get("name")?.as_str()?.to_string());
            let default = named.iter().find(|entry| name(entry).as_deref() == Some("default"));
            match default.and_then(|entry| entry.get("template")?.as_str()) {
                Some(source) => Ok(Some(source.to_string())),
                None => {
                    let names: Vec<String> = named.iter().filter_map(name).map(|name| quoted(&name)).take(8).collect();
                    let problem = format!(
                        "has several chat templates ({}) and none called 'default': save the one to use as \
                         chat_template.jinja",
                        names.join(", ")
                    );
                    Err(Error::config(path, problem))
                }
            }
        }
        Some(_) => Err(Error::config(path, "its chat_template is neither text nor a list: check the file")),
    }
}

/// `{% generation %}` marks, for training, what the model says; without its extension the tag is a block that always runs.
fn without_generation_tags(source: &str) -> String {
    let (mut text, mut rest) = (String::with_capacity(source.len()), source);
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        text.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, behind) = tag.split_at(end + 2);
        let word = tag.trim_matches(|c: char| matches!(c, '{' | '}' | '%' | '-' | '+') || c.is_whitespace());
        match word {
            "generation" => text.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => text.push_str(&tag.replace("endgeneration", "endif")),
            _ => text.push_str(tag),
        }
        rest = behind;
    }
    text + rest
}

fn strftime(date: DateTime, format: &str) -> std::result::Result<String, minijinja::Error> {
    let text = jiff::fmt::strtime::format(format, date);
    text.map_err(|error| minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
}

/// What is wrong with a template, on one line.
fn describe(error: &minijinja::Error) -> String {
    let line = error.line().map_or(String::new(), |line| format!(", line {line}"));
    match error.kind() {
        ErrorKind::OutOfFuel => {
            format!("its chat template{line} does not come to an end or makes too much text: use another template")
        }
        kind => {
            let detail = error.detail().map_or(String::new(), |detail| format!(": {detail}"));
            let text: String = one_line(&format!("{kind}{detail}")).chars().take(200).collect();
            format!("its chat template{line} fails ({text}): correct it, or save another as chat_template.jinja")
        }
    }
}
