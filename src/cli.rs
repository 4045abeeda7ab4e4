//! The command line: reads arguments, calls the library, prints. No model knowledge lives here.

#[cfg(feature = "image")]
mod ask;
mod chat;
mod convert;
mod covariates;
mod eval;
mod forecast;
mod generate;
mod info;
mod interrupt;
mod language;
#[cfg(feature = "audio")]
mod listen;
mod model;
mod omni;
mod output;
#[cfg(feature = "table")]
mod parquet;
mod progress;
mod quantise;
mod routes;
mod run;
mod share;
mod sound;
#[cfg(feature = "audio")]
mod speech;
mod tables;
mod train;
mod upcycle;
#[cfg(feature = "image")]
mod vision;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

/// Runs sparse mixture-of-experts models offline: forecasts time series, writes text, answers questions about pictures
/// and sound, or about all of them together.
#[derive(Debug, Parser)]
#[command(name = "moesaic", version, arg_required_else_help = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Forecast(forecast::Args),
    Info(info::Args),
    Generate(generate::Args),
    Chat(chat::Args),
    #[cfg(feature = "image")]
    Ask(ask::Args),
    Run(run::Args),
    Routes(routes::Args),
    #[cfg(feature = "audio")]
    Listen(listen::Args),
    #[cfg(feature = "audio")]
    Transcribe(speech::Args),
    Upcycle(upcycle::Args),
    Mix(upcycle::MixArgs),
    Quantize(quantise::Args),
    Convert(convert::Args),
    /// Train a model.
    #[command(subcommand)]
    Train(TrainCommand),
    /// Measure a model on what it has not seen.
    #[command(subcommand)]
    Eval(EvalCommand),
}

#[derive(Debug, Subcommand)]
enum TrainCommand {
    Forecast(train::Args),
    Language(train::LanguageArgs),
    #[cfg(feature = "image")]
    Vision(vision::TrainArgs),
    Sound(sound::TrainArgs),
    Omni(omni::TrainArgs),
    Encoder(train::EncoderArgs),
    Speech(train::SpeechArgs),
}

#[derive(Debug, Subcommand)]
enum EvalCommand {
    Forecast(eval::Args),
    Language(quantise::EvalArgs),
    #[cfg(feature = "image")]
    Vision(vision::EvalArgs),
    Sound(sound::EvalArgs),
    Omni(omni::EvalArgs),
    #[cfg(feature = "audio")]
    Wer(speech::WerArgs),
}

/// The exit code of a run ended by Ctrl-C, as shells have it.
const INTERRUPTED: i32 = 130;

/// Runs the program.
pub fn run() -> ExitCode {
    #[cfg(any(feature = "table", feature = "image"))]
    keep_quiet_about_damaged_files();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version go to standard output and are a success.
        Err(error) if !error.use_stderr() => return finish(print(&error.render().to_string()).map_err(Into::into)),
        Err(error) => {
            if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
                let _ = error.print();
            } else {
                complain(&usage(&error.render().to_string()));
            }
            return ExitCode::from(2);
        }
    };
    finish(match &cli.command {
        Command::Forecast(args) => forecast::run(args),
        Command::Info(args) => info::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Chat(args) => chat::run(args),
        #[cfg(feature = "image")]
        Command::Ask(args) => ask::run(args),
        Command::Run(args) => run::run(args),
        Command::Routes(args) => routes::run(args),
        #[cfg(feature = "audio")]
        Command::Listen(args) => listen::run(args),
        #[cfg(feature = "audio")]
        Command::Transcribe(args) => speech::run(args),
        Command::Upcycle(args) => upcycle::run(args),
        Command::Mix(args) => upcycle::mix(args),
        Command::Quantize(args) => quantise::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Train(TrainCommand::Forecast(args)) => train::run(args),
        Command::Train(TrainCommand::Language(args)) => train::language(args),
        #[cfg(feature = "image")]
        Command::Train(TrainCommand::Vision(args)) => vision::run(args),
        Command::Train(TrainCommand::Sound(args)) => sound::run(args),
        Command::Train(TrainCommand::Omni(args)) => omni::run(args),
        Command::Train(TrainCommand::Encoder(args)) => train::encoder(args),
        Command::Train(TrainCommand::Speech(args)) => train::speech(args),
        Command::Eval(EvalCommand::Forecast(args)) => eval::run(args),
        Command::Eval(EvalCommand::Language(args)) => quantise::eval(args),
        #[cfg(feature = "image")]
        Command::Eval(EvalCommand::Vision(args)) => vision::eval(args),
        Command::Eval(EvalCommand::Sound(args)) => sound::eval(args),
        Command::Eval(EvalCommand::Omni(args)) => omni::eval(args),
        #[cfg(feature = "audio")]
        Command::Eval(EvalCommand::Wer(args)) => speech::wer(args),
    })
}

/// The Parquet reader and decoders of pictures panic on some damaged files. The library makes that an error, which is reported
/// in one line.
#[cfg(any(feature = "table", feature = "image"))]
fn keep_quiet_about_damaged_files() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        #[cfg(feature = "table")]
        if moesaic::reading_parquet() {
            return;
        }
        #[cfg(feature = "image")]
        if moesaic_encoders::image::decoding() {
            return;
        }
        hook(panic);
    }));
}

fn finish(result: anyhow::Result<()>) -> ExitCode {
    interrupt::leave_if_interrupted();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has seen enough (`moesaic ... | head`).
        Err(error) if broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// One line on standard error. Nobody is left to tell if that fails.
fn complain(message: &str) {
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let _ = writeln!(io::stderr().lock(), "error: {line}");
}

/// What a person should know beside the result.
fn note(message: &str) {
    let _ = writeln!(io::stderr().lock(), "note: {message}");
}

/// Writes to standard output at once, so that a closed pipe is met in one place.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// The parser's message on one line: what is wrong, its hints, and where help is.
fn usage(rendered: &str) -> String {
    let body = rendered.trim().strip_prefix("error:").unwrap_or(rendered);
    let parts: Vec<String> = body
        .split("\n\n")
        .map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|part| !part.is_empty() && !part.starts_with("Usage:") && !part.starts_with("For more information"))
        .collect();
    format!("{}; see --help", parts.join("; "))
}

/// Whether the model forecasts alone, alike in all commands.
#[derive(Debug, clap::Args)]
struct CombineArgs {
    /// The model alone: not combined with smoothed seasonal forecasts, as the built-in model is unless told so
    #[arg(long, conflicts_with = "combine")]
    plain: bool,
    /// Combine the forecast of a model given by --model too
    #[arg(long)]
    combine: bool,
}

impl CombineArgs {
    /// As the option of the library: nothing said, the model decides.
    fn choice(&self) -> Option<bool> {
        (self.plain || self.combine).then_some(self.combine)
    }
}

/// A level of an interval: `90` or `90%` is 0.9.
fn percent(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.trim().trim_end_matches('%').trim().parse().ok();
    match number {
        Some(number) if (1.0..100.0).contains(&number) => Ok(number / 100.0),
        _ => Err("an interval holds between 1 and 99.99 percent: give, for example, 90".into()),
    }
}

/// Whether standard output takes colours: a terminal, and nobody asked for none (no-color.org).
fn colour() -> bool {
    let asked_for_none = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    io::stdout().is_terminal() && !asked_for_none && !dumb
}

/// A size as people read it: `2.9 MB`.
fn bytes(count: u64) -> String {
    let units = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match units.into_iter().find(|(unit, _)| count as f64 >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", count as f64 / unit),
        None => format!("{count} bytes"),
    }
}

/// A count as people read it, to three digits: `1.24 M`.
fn count(number: usize) -> String {
    let units = [(1e9, "B"), (1e6, "M"), (1e3, "k")];
    let Some((unit, name)) = units.into_iter().find(|(unit, _)| number as f64 >= *unit) else {
        return number.to_string();
    };
    let value = number as f64 / unit;
    let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.decimals$} {name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn usage_errors_take_one_line() {
        for arguments in
            [&["moesaic", "forecast"][..], &["moesaic", "forcast"], &["moesaic", "forecast", "a", "--horizn", "3"]]
        {
            let error = Cli::try_parse_from(arguments).unwrap_err();
            let line = usage(&error.render().to_string());
            assert!(!line.contains('\n') && line.ends_with("see --help"), "{line}");
            assert!(line.len() > 30, "{line}");
        }
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!((bytes(2_912_345).as_str(), bytes(12).as_str()), ("2.9 MB", "12 bytes"));
        assert_eq!((count(113_352_192).as_str(), count(999).as_str()), ("113 M", "999"));
    }
}
