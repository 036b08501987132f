//! The binary as scripts see it: standard output, standard error, exit codes.
//!
//! Owns: checks of the process. Never: checks of what the code behind it returns (unit tests have those).

mod offline;
mod online;

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs `broker-cli` with nothing of this machine's configuration.
fn cli(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_broker-cli"))
        .args(arguments)
        .env_remove("HIGHWATER_SERVERS")
        .env_remove("HIGHWATER_PROFILE")
        .env("HIGHWATER_CLI_CONFIG", folder.join("cli.toml"))
        .stdin(Stdio::null())
        .output()
        .expect("broker-cli starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("standard output is text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("standard error is text")
}
