//! `moesaic chat`

use std::io::{self, BufRead, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, Result};
use jiff::civil::DateTime;
use moesaic::{Answer, Chat, Finish, Memory, Message, Speed, TemplateOptions, TextOptions};
use serde::Serialize;

use super::language::{WritingArgs, answering, catch_interrupts, interrupted, speed};
use super::model::text_folder;
use super::{note, print};

/// Talk with a language model.
///
/// Each line is a message; the answer appears as it is written. Ctrl-C stops an answer, Ctrl-C again or Ctrl-D leaves, /help
/// lists commands. Lines may come from a pipe, too.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder of a language model with a chat template
    #[cfg_attr(feature = "hub", doc = "")]
    #[cfg_attr(
        feature = "hub",
        doc = "Also the id of one on the Hub, which is downloaded once: org/name or org/name@revision."
    )]
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Instructions for the whole conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// The date that the model is told, if its template tells one, such as 2026-01-31 [default: today, in UTC]
    #[arg(long, value_name = "DATE", value_parser = date)]
    date: Option<DateTime>,
    #[command(flatten)]
    writing: WritingArgs,
    /// Print each answer as one line of JSON
    #[arg(long)]
    json: bool,
}

const HELP: &str = "\
/help            this list
/reset           forget the conversation, but not the instructions
/system [TEXT]   start anew with these instructions, or without any
/quit            leave, as Ctrl-D does
A line that ends in \\ goes on in the next one.
";

/// Most tokens of an answer in a conversation, where neither user nor model says.
const MOST_TOKENS: usize = 1024;

fn date(text: &str) -> Result<DateTime, String> {
    text.parse().map_err(|_| "give a date such as 2026-01-31".into())
}

pub(super) fn run(args: &Args) -> Result<()> {
    let dir = text_folder(&args.model)?;
    let mut chat = Chat::from_dir_on(dir, args.writing.dtype, args.writing.place.device)?;
    args.writing.attach(chat.generator_mut())?;
    let mut template = TemplateOptions::default();
    template.date = Some(args.date.unwrap_or_else(today));
    let mut options = args.writing.options();
    options.max_tokens = options.max_tokens.or(chat.generator().max_new_tokens()).or(Some(MOST_TOKENS));
    catch_interrupts()?;
    let mut talk = Talk { chat, template, options, json: args.json, messages: Vec::new(), memory: Memory::default() };
    talk.start(args.system.as_deref().unwrap_or_default());
    let terminal = io::stdin().is_terminal();
    if terminal {
        note("/help lists commands; Ctrl-D leaves");
    }
    while let Some(line) = read(terminal)? {
        match line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), "")) {
            ("", _) => {}
            ("/quit" | "/exit", "") => break,
            ("/help", "") => print(HELP)?,
            ("/reset" | "/clear", "") => talk.reset(),
            ("/system", text) => talk.start(text.trim()),
            (command, _) if command.starts_with('/') => {
                note(&format!("there is no command {command}; /help lists them, a space before it makes it a message"));
            }
            _ => talk.answer(line.trim())?,
        }
    }
    if terminal {
        print("\n")?;
    }
    Ok(())
}

/// A conversation.
struct Talk {
    chat: Chat,
    template: TemplateOptions,
    options: TextOptions,
    json: bool,
    messages: Vec<Message>,
    /// Of what the model has seen of it.
    memory: Memory,
}

impl Talk {
    /// Starts anew with these instructions; empty for none.
    fn start(&mut self, system: &str) {
        self.messages.clear();
        if !system.is_empty() {
            self.messages.push(Message::system(system));
        }
    }

    /// Forgets everything but the instructions.
    fn reset(&mut self) {
        self.messages.retain(|message| message.role == "system");
    }

    fn answer(&mut self, text: &str) -> Result<()> {
        self.messages.push(Message::user(text));
        answering(true);
        let result = self.write();
        answering(false);
        let (answer, times) = match result {
            Ok(written) => written,
            // A conversation that has grown too long, or that the template refuses, can go on differently.
            Err(Failed::Model(error @ moesaic::Error::Input { .. })) if io::stdin().is_terminal() => {
                self.messages.pop();
                note(&format!("{error}; /reset starts anew"));
                return Ok(());
            }
            Err(Failed::Model(error)) => return Err(error.into()),
            Err(Failed::Output(error)) => return Err(error.into()),
        };
        if self.json {
            #[derive(Serialize)]
            struct Line<'a> {
                #[serde(flatten)]
                answer: &'a Answer,
                speed: Speed,
            }
            print(&(serde_json::to_string(&Line { answer: &answer, speed: times })? + "\n"))?;
        } else {
            print("\n")?;
            note(&speed(&times, answer.tokens));
            match answer.finish {
                Finish::Length => note("cut at the most tokens of an answer; --max-tokens allows more"),
                Finish::Context => note("the model's context is full; /reset starts anew"),
                Finish::Eos | Finish::Stopped => {}
            }
        }
        self.messages.push(Message::assistant(answer.text));
        Ok(())
    }

    /// The answer to the last message, printed as it comes.
    fn write(&mut self) -> std::result::Result<(Answer, Speed), Failed> {
        let memory = std::mem::take(&mut self.memory);
        let stream = self.chat.resume(memory, &self.messages, &self.template, &self.options).map_err(Failed::Model)?;
        let mut printed = Ok(());
        let written = stream.run_remembering(&mut |piece| {
            if !self.json && !piece.text.is_empty() {
                printed = print(&piece.text);
            }
            if interrupted() || printed.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        printed.map_err(Failed::Output)?;
        let (mut answers, times, memory) = written.map_err(Failed::Model)?;
        self.memory = memory;
        let answer = answers.pop().ok_or_else(|| moesaic::Error::Compute("the model gave no answer".into()));
        Ok((answer.map_err(Failed::Model)?, times))
    }
}

enum Failed {
    Model(moesaic::Error),
    Output(io::Error),
}

/// The next message, `None` at the end of the input.
pub(super) fn read(terminal: bool) -> Result<Option<String>> {
    let mut message = String::new();
    let mut prompt = "> ";
    loop {
        if terminal {
            let mut out = io::stdout().lock();
            out.write_all(prompt.as_bytes())?;
            out.flush()?;
        }
        let mut line = String::new();
        if io::stdin().lock().read_line(&mut line).context("cannot read standard input")? == 0 {
            return Ok((!message.is_empty()).then_some(message));
        }
        let line = line.trim_end_matches(['\n', '\r']);
        match line.strip_suffix('\\') {
            Some(part) => message.push_str(&format!("{part}\n")),
            None => {
                message.push_str(line);
                return Ok(Some(message));
            }
        }
        prompt = ". ";
    }
}

/// Now in UTC.
fn today() -> DateTime {
    jiff::tz::Offset::UTC.to_datetime(jiff::Timestamp::now())
}
