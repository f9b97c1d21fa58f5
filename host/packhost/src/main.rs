//! The command line of packhost: parses, wires, prints. What it does is in the crates below it.

mod cli;
mod commands;
mod exit;
mod output;
mod settings;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::cli::Cli;
use crate::exit::{Exit, Failure};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are results, wrong usage is not; clap knows where each belongs.
            let asked = matches!(
                error.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            );
            let _ = error.print();
            return if asked {
                Exit::Success.into()
            } else {
                Exit::Usage.into()
            };
        }
    };
    match commands::run(cli) {
        Ok(exit) => exit.into(),
        Err(Failure { exit, message }) => {
            commands::say(&format!("error: {message}"));
            exit.into()
        }
    }
}
