//! `broker-cli`: administers topics, produces and consumes from a terminal or a script.
//!
//! Owns: parsing the command line, the runtime, turning a failure into two lines and an exit code. Never: gRPC (the client
//! crate has that), data on standard error or notices on standard output. `docs/cli.md` describes it for users.

mod args;
mod commands;
mod env;
mod failure;
mod output;
mod position;
mod profile;
mod shapes;
mod template;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::args::{Cli, Command};
use crate::commands::Session;
use crate::failure::Failure;

fn main() -> ExitCode {
    // A wrong command line ends here with clap's message and exit code 2.
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report();
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { global, output, command } = cli;
    match command {
        // These need no cluster, hence no runtime.
        Command::Completion { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "broker-cli",
                &mut std::io::stdout().lock(),
            );
            Ok(())
        }
        Command::Version { out } => commands::version(out.format.or(output).unwrap_or_default()),
        Command::Profile(verb) => commands::profile::run(verb, global.tls, output),
        command => {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .map_err(|error| Failure::error(format!("cannot start a runtime: {error}")))?;
            let session = Session::new(global, output)?;
            let done = runtime.block_on(commands::run(session, command));
            // A read of standard input that is still waiting must not keep the process alive.
            runtime.shutdown_background();
            done
        }
    }
}
