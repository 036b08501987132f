//! The binary `broker`: reads the configuration, runs one broker, and turns what happens into exit codes.
//!
//! Exit codes: 0 stopped as asked, 1 a fault while running, 2 a bad configuration.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use highwater_broker::config::{Command, Config, ConfigCommand, Invocation, LogFormat};
use highwater_broker::{Broker, StartError, open_files};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Each batch that arrives is a large block of memory for a moment. The C library's allocator returns such blocks to the system,
/// which clears them for the next batch: a fifth of a loaded broker's processor time (docs/performance.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A fault of the machine or of the data while running.
const EXIT_FAULT: u8 = 1;
/// A configuration to be mended.
const EXIT_CONFIG: u8 = 2;

fn main() -> ExitCode {
    let invocation = Invocation::parse();
    // Names and values that are not Unicode cannot be keys of ours.
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let config = match Config::load(&invocation.flags, environment) {
        Ok(config) => config,
        Err(error) => return failed(EXIT_CONFIG, &error.to_string()),
    };
    match invocation.command {
        Some(Command::Config { command: ConfigCommand::Check }) => check(&config),
        Some(Command::Config { command: ConfigCommand::Print }) => print(&config),
        None => run(config),
    }
}

fn failed(code: u8, why: &str) -> ExitCode {
    eprintln!("broker: {why}");
    ExitCode::from(code)
}

fn check(config: &Config) -> ExitCode {
    for warning in config.warnings() {
        eprintln!("warning: {warning}");
    }
    println!("the configuration is fine");
    ExitCode::SUCCESS
}

/// Every key in a form that a file can hold, with origin and accepted values behind it.
fn print(config: &Config) -> ExitCode {
    let mut text = String::new();
    let mut section = String::new();
    for line in config.lines() {
        let (group, key) = line.key.rsplit_once('.').unwrap_or(("", &line.key));
        if group != section {
            text.push_str(&format!("{}[{group}]\n", if section.is_empty() { "" } else { "\n" }));
            group.clone_into(&mut section);
        }
        let (value, origin, values) = (line.value, line.origin, line.values);
        text.push_str(&format!("{key} = {value:?}  # {origin}; takes {values}\n"));
    }
    match std::io::stdout().write_all(text.as_bytes()) {
        // Whoever reads may have seen enough, as `head`.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            failed(EXIT_FAULT, &format!("cannot print: {error}"))
        }
        _ => ExitCode::SUCCESS,
    }
}

fn run(config: Config) -> ExitCode {
    start_logging(&config);
    open_files::raise_limit();
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    if let Err(error) = highwater_storage::exit_on_read_fault() {
        tracing::warn!(%error, "a failed read of a log will end this process without a word");
    }
    // One more than there are cores, for one may be waiting for the disk.
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = match runtime.worker_threads(cores.max(2) + 1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(EXIT_FAULT, &format!("cannot start the runtime: {error}")),
    };
    let code = runtime.block_on(serve(config));
    // Whatever blocks still, for example a sync on a dead disk, must not keep the process.
    runtime.shutdown_background();
    code
}

async fn serve(config: Config) -> ExitCode {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return failed(EXIT_FAULT, &format!("cannot wait for signals: {error}")),
    };
    let broker = match Broker::start(config).await {
        Ok(broker) => broker,
        Err(error @ StartError::Config { .. }) => return failed(EXIT_CONFIG, &error.to_string()),
        Err(error) => return failed(EXIT_FAULT, &error.to_string()),
    };
    let announced = async {
        broker.wait_ready().await;
        tracing::info!(
            "ready: node {}, cluster {}, clients on {}, http on {}",
            broker.node().id(),
            broker.node().view().cluster_id,
            broker.client_addr(),
            broker.http_addr()
        );
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = announced => {}
        why = broker.wait_fatal() => {
            tracing::error!("stopping at once: {why}");
            let code = if broker.node().is_misconfigured() { EXIT_CONFIG } else { EXIT_FAULT };
            return failed(code, &why);
        }
        name = signals.next() => tracing::info!("{name}: stopping"),
    }
    tokio::select! {
        () = broker.stop() => {
            tracing::info!("stopped");
            ExitCode::SUCCESS
        }
        why = broker.wait_fatal() => failed(EXIT_FAULT, &why),
        name = signals.next() => failed(EXIT_FAULT, &format!("{name} again: not waiting any longer")),
    }
}

/// The signals that ask the process to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { terminate, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The name of the next one.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Log lines go to standard error. `RUST_LOG` wins over `log.level`.
fn start_logging(config: &Config) {
    let level = || EnvFilter::new(&config.log.level);
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(directives) => EnvFilter::try_new(directives).unwrap_or_else(|_| level()),
        Err(_) => level(),
    };
    let is_terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(is_terminal);
    match (config.log.format, is_terminal) {
        (LogFormat::Json, _) | (LogFormat::Auto, false) => {
            builder.json().flatten_event(true).init();
        }
        (LogFormat::Pretty, _) | (LogFormat::Auto, true) => builder.init(),
    }
}
