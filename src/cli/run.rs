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
    /// Answer the last question with a forecast of so many rows
    #[arg(long, value_name = "N", requires = "inputs")]
    horizon: Option<usize>,
    /// The column of tables with several, or the series of long ones
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
    /// Ignore times of tables and number the rows 1, 2, 3, ...
    #[arg(long)]
    steps: bool,
    /// Most tokens of an answer [default: what the model's context holds]
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    #[command(flatten)]
    place: super::model::DeviceArgs,
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
        omni: Omni::from_dir_on(&args.model, args.place.device)?,
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
            true => talk.show(&[input])?,
            false => talk.ask(&input.to_string_lossy(), i + 1 == args.inputs.len())?,
        }
    }
    Ok(())
}

/// Whether an input is a file. What only looks like one is refused, so that a wrong path is not read as a question.
pub(super) fn is_file(input: &Path) -> Result<bool> {
    let text = input.to_string_lossy();
    match input.exists() {
        true => Ok(true),
        false if looks_like_a_path(&text) => bail!("cannot read {text}: there is no such file"),
        false => Ok(false),
    }
}

/// Whether text without spaces can only be meant as a path: it begins like one, or ends in a name such as `.csv`.
fn looks_like_a_path(text: &str) -> bool {
    let begins = ["/", "./", "../", "~/", ".\\", "..\\"].iter().any(|start| text.starts_with(start));
    let end = Path::new(text).extension().map(|end| end.to_string_lossy());
    let ends = end.is_some_and(|end| {
        (2..=5).contains(&end.len())
            && end.bytes().all(|b| b.is_ascii_alphanumeric())
            && end.bytes().any(|b| b.is_ascii_alphabetic())
    });
    !text.contains(char::is_whitespace) && (begins || ends)
}

/// The files at the start of a line, and the question behind them; paths with spaces stand in quotes.
fn parse(line: &str) -> Result<(Vec<PathBuf>, &str)> {
    let (mut files, mut rest) = (Vec::new(), line.trim());
    while !rest.is_empty() {
        let quote = rest.chars().next().filter(|first| ['"', '\''].contains(first));
        let (word, behind) = match quote.and_then(|quote| rest[1..].split_once(quote)) {
            Some(quoted) => quoted,
            None => rest.split_once(char::is_whitespace).unwrap_or((rest, "")),
        };
        // The name of a folder may well be a word.
        if !Path::new(word).is_file() {
            if looks_like_a_path(word) {
                bail!("cannot read {word}: there is no such file");
            }
            break;
        }
        files.push(PathBuf::from(word));
        rest = behind.trim_start();
    }
    Ok((files, rest))
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
    /// Opens files for the next question, all of them or none.
    fn show(&mut self, files: &[impl AsRef<Path>]) -> Result<()> {
        let mut options = TableOptions::default();
        options.columns = self.args.column.iter().cloned().collect();
        options.number_rows = self.args.steps;
        let opened = files.iter().map(|file| self.omni.open(file, &options)).collect::<moesaic::Result<Vec<_>>>()?;
        for (media, notes) in opened {
            notes.iter().for_each(|remark| note(remark));
            if let Media::Series(series) = &media {
                self.series = Some(series.clone());
            }
            self.shown.push(media);
        }
        Ok(())
    }

    fn ask(&mut self, question: &str, last: bool) -> Result<()> {
        let unknown = self.omni.unknown_words(question);
        if !unknown.is_empty() {
            note(&format!("words that the model does not know: {}", unknown.join(", ")));
        }
        let mut options = OmniOptions::default();
        (options.horizon, options.max_tokens) = (self.args.horizon.filter(|_| last), self.args.max_tokens);
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
        if answer.text.is_empty() && answer.forecast.is_none() {
            note("the model has no answer: was something shown that the question is about?");
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
                Err(error) if terminal => {
                    note(&format!("{error:#}"));
                    if !self.shown.is_empty() {
                        note("what was shown for this question is dropped");
                        self.shown.clear();
                    }
                }
                done => done?,
            }
        }
        if terminal {
            print("\n")?;
        } else if !self.shown.is_empty() {
            bail!("what is asked about the last file? Give a question behind it");
        }
        Ok(())
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let (files, question) = parse(line)?;
        self.show(&files)?;
        if question.is_empty() { Ok(()) } else { self.ask(question, true) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_path_is_no_question() {
        let is = |text: &str| is_file(Path::new(text));
        assert!(is("Cargo.toml").unwrap());
        for question in
            ["Is it rising?", "transcribe", "What is 3.5 about?", "Why.", "...", "and/or", "3.5", "e.g.", "none.csv it"]
        {
            assert!(!is(question).unwrap(), "{question}");
        }
        for path in ["scene.png", "data/none.csv", "../none", "/none", "./none", "a.h5"] {
            assert!(is(path).unwrap_err().to_string().contains("no such file"), "{path}");
        }
    }

    #[test]
    fn files_stand_in_front_of_a_question() {
        let folder = tempfile::tempdir().unwrap();
        let spaced = folder.path().join("my scene.txt");
        std::fs::write(&spaced, "a").unwrap();
        let spaced = spaced.display().to_string();
        for (line, files, question) in [
            ("Is it rising?", &[][..], "Is it rising?"),
            ("Cargo.toml what is it?", &["Cargo.toml"], "what is it?"),
            ("Cargo.toml README.md", &["Cargo.toml", "README.md"], ""),
            (&format!("\"{spaced}\" 'Cargo.toml'  what?"), &[&spaced, "Cargo.toml"], "what?"),
            (&format!("'{spaced}'"), &[&spaced], ""),
            // A folder, a number and a quotation are words.
            ("src or tests?", &[], "src or tests?"),
            ("3.5 or 4?", &[], "3.5 or 4?"),
            ("\"yes\" or no?", &[], "\"yes\" or no?"),
            ("Yes/no: is it?", &[], "Yes/no: is it?"),
        ] {
            let expected: Vec<PathBuf> = files.iter().map(PathBuf::from).collect();
            assert_eq!(parse(line).unwrap(), (expected, question), "{line}");
        }
        assert!(parse("Cargo.toml typo.csv is it?").unwrap_err().to_string().contains("typo.csv"));
    }
}
