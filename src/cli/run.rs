//! `moesaic run`

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use moesaic::{Conversation, Media, Omni, OmniAnswer, OmniOptions, Series, TableOptions};
use serde::Serialize;

use super::chat::read;
use super::{info, note, print, tables};

/// Ask about any mix of pictures, sounds, tables and texts.
///
/// Files are known by their content. Each question ends a turn of one conversation: it is about the files before it, and may be about what was
/// shown in earlier turns. The model answers in words, or with a forecast of the last table that it was shown.
///
/// Without inputs it reads questions line by line, from a terminal or a pipe: files stand in front of the question, or on lines of their own.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Files (pictures, sound, CSV or Parquet tables, text) and questions
    #[arg(value_name = "INPUT")]
    inputs: Vec<PathBuf>,
    /// Folder of a model that reads all of these, such as assets/omni of this project
    #[arg(long, value_name = "MODEL")]
    model: PathBuf,
    /// Answer the last question with a forecast of so many values
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// The column of a table with several
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
    /// Most tokens of an answer [default: what the model's context holds]
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Print each answer as one line of JSON
    #[arg(long)]
    json: bool,
}

/// Columns of a table of numbers.
const WIDTH: usize = 80;

pub(super) fn run(args: &Args) -> Result<()> {
    if !info::reads_all(&args.model) {
        let dir = args.model.display();
        if !args.model.exists() {
            bail!("{dir}: there is no such folder");
        }
        bail!(
            "{dir} is no model that reads pictures, sound and tables together: `moesaic info` says what it is; `ask`, `listen`, \
             `transcribe`, `forecast` and `chat` are for others"
        );
    }
    let files: Vec<bool> = args.inputs.iter().map(|input| is_file(input)).collect::<Result<_>>()?;
    if let (Some(last), Some(true)) = (args.inputs.last(), files.last()) {
        bail!("what is asked about {}? Give a question behind it", last.display());
    }
    let mut talk = Talk {
        omni: Omni::from_dir(&args.model)?,
        args,
        conversation: Conversation::default(),
        shown: Vec::new(),
        series: None,
    };
    if args.inputs.is_empty() {
        return talk.lines();
    }
    for (i, (input, file)) in args.inputs.iter().zip(files).enumerate() {
        match file {
            true => talk.show(input)?,
            false => talk.ask(&input.to_string_lossy(), i + 1 == args.inputs.len())?,
        }
    }
    Ok(())
}

/// Whether an input is a file; what only looks like one is refused, so that a wrong path is not read as a question.
fn is_file(input: &Path) -> Result<bool> {
    if input.exists() {
        return Ok(true);
    }
    let text = input.to_string_lossy();
    let ends = input.extension().is_some_and(|end| {
        (1..=5).contains(&end.len()) && end.to_string_lossy().bytes().all(|b| b.is_ascii_alphanumeric())
    });
    if !text.contains(char::is_whitespace) && (text.contains(std::path::MAIN_SEPARATOR) || ends) {
        bail!("cannot read {text}: there is no such file");
    }
    Ok(false)
}

/// A conversation.
struct Talk<'a> {
    omni: Omni,
    args: &'a Args,
    conversation: Conversation,
    /// What the next question is about.
    shown: Vec<Media>,
    /// The last series that was shown.
    series: Option<Series>,
}

impl Talk<'_> {
    fn show(&mut self, file: &Path) -> Result<()> {
        let mut options = TableOptions::default();
        options.columns = self.args.column.iter().cloned().collect();
        let (media, notes) = self.omni.open(file, &options)?;
        notes.iter().for_each(|remark| note(remark));
        if let Media::Series(series) = &media {
            self.series = Some(series.clone());
        }
        self.shown.push(media);
        Ok(())
    }

    fn ask(&mut self, question: &str, last: bool) -> Result<()> {
        let unknown = self.omni.unknown_words(question);
        if !unknown.is_empty() {
            note(&format!("words that the model does not know: {}", unknown.join(", ")));
        }
        let mut options = OmniOptions::default();
        (options.steps, options.max_tokens) = (self.args.steps.filter(|_| last), self.args.max_tokens);
        let answer = self.omni.ask(&mut self.conversation, &self.shown, question, &options)?;
        self.shown.clear();
        if self.args.json {
            #[derive(Serialize)]
            struct Line<'a> {
                question: &'a str,
                #[serde(flatten)]
                answer: &'a OmniAnswer,
            }
            return Ok(print(&(serde_json::to_string(&Line { question, answer: &answer })? + "\n"))?);
        }
        if !answer.text.is_empty() || answer.forecast.is_none() {
            print(&format!("{}\n", answer.text))?;
        }
        if let (Some(mut forecast), Some(series)) = (answer.forecast, &self.series) {
            // The median is the forecast itself.
            forecast.quantiles.retain(|quantile| quantile.level != 0.5);
            let time = series.calendar().map(|_| "time");
            let (series, forecast) = (std::slice::from_ref(series), std::slice::from_ref(&forecast));
            print(tables::readable(time, series, forecast, WIDTH).trim_start_matches('\n'))?;
        }
        if !answer.finished {
            note("the answer was cut: it reached the most tokens, or the end of the model's context");
        }
        Ok(())
    }

    /// Questions from standard input.
    fn lines(&mut self) -> Result<()> {
        let terminal = io::stdin().is_terminal();
        if terminal {
            note(
                "ask about files, which stand in front of the question; /reset forgets the conversation, Ctrl-D leaves",
            );
        }
        while let Some(line) = read(terminal)? {
            let done = match line.trim() {
                "" => Ok(()),
                "/quit" | "/exit" => break,
                "/reset" | "/clear" => {
                    (self.conversation, self.series) = (Conversation::default(), None);
                    self.shown.clear();
                    Ok(())
                }
                line => self.line(line),
            };
            // At a terminal one can do better next time.
            match done {
                Err(error) if terminal => note(&format!("{error:#}")),
                done => done?,
            }
        }
        if terminal {
            print("\n")?;
        }
        Ok(())
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let bare = line.trim_matches(['"', '\'']);
        if is_file(Path::new(bare))? {
            return self.show(Path::new(bare));
        }
        let mut rest = line;
        while let Some((word, behind)) = rest.split_once(char::is_whitespace) {
            if !is_file(Path::new(word))? {
                break;
            }
            self.show(Path::new(word))?;
            rest = behind.trim_start();
        }
        match is_file(Path::new(rest))? {
            true => self.show(Path::new(rest)),
            false => self.ask(rest, true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_path_is_no_question() {
        let is = |text: &str| is_file(Path::new(text));
        assert!(is("Cargo.toml").unwrap());
        for question in ["Is it rising?", "transcribe", "What is 3.5 about?", "Why.", "...", "and/or what?"] {
            assert!(!is(question).unwrap(), "{question}");
        }
        for path in ["scene.png", "data/none", "../none.csv", "a.h5"] {
            assert!(is(path).unwrap_err().to_string().contains("no such file"), "{path}");
        }
    }
}
