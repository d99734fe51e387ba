//! The `collimate` command.

mod bench;
mod info;
mod run;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A distributed task and actor runtime for HPC clusters.
#[derive(Parser)]
#[command(name = "collimate", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start the ranks of a job and wait for them
    Run(run::Run),
    /// Measure what tasks and objects cost, beside references
    Bench(bench::Bench),
    /// Say what this machine offers and which settings are in force
    Info(info::Info),
    /// Start ranks here for a launcher on another host
    #[command(name = "_remote", hide = true)]
    Remote,
}

/// Why the command fails, in one line, and the exit status that says whose
/// fault it is.
enum Failure {
    /// The command line is wrong: status 2.
    Usage(String),
    /// Anything else: status 1.
    Other(String),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => {
            // Help or the version, which were asked for. A closed output is
            // the reader's business.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(Failure::Usage(one_line(&error))),
    };
    let result = match cli.command {
        Command::Run(run) => run.execute(),
        Command::Bench(bench) => bench.execute(),
        Command::Info(info) => info.execute(),
        Command::Remote => collimate::boot::serve_remote().map(|()| ExitCode::SUCCESS).map_err(Failure::Other),
    };
    result.unwrap_or_else(fail)
}

/// Writes to standard output. Whoever no longer reads has what it wanted.
fn print(text: &str) {
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn fail(failure: Failure) -> ExitCode {
    let (text, status) = match failure {
        Failure::Usage(text) => (text, 2),
        Failure::Other(text) => (text, 1),
    };
    eprintln!("collimate: {text}");
    ExitCode::from(status)
}

/// What clap says, without its paragraphs: the first one names the mistake, and
/// the help is one option away.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let what = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
    let what = what.split_whitespace().collect::<Vec<_>>().join(" ");
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "no command was given (see `collimate --help`)".into();
    }
    format!("{what} (see `collimate --help`)")
}
