//! Arguments in, exit code out.

use std::ffi::OsString;
use std::io::{BufWriter, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use lally::adapters::config::{self, Command, Config, Invocation, LogFormat};
use lally::app::compose::{self, RunError, ServingRuntime, Signals};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long threads that do not end by themselves (a hook that hangs, a resolver that is not answered)
/// are waited for.
const LAST_THREADS: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let environment = match environment() {
        Ok(environment) => environment,
        Err(refusal) => return fail(&refusal, 2),
    };
    let done = match config::parse(std::env::args_os().collect(), environment) {
        Ok(Invocation::Run(config)) => {
            start_logging(&config);
            serve(*config)
        }
        Ok(Invocation::Do(command)) => perform(command),
        Err(exit) if exit.code == 0 => {
            std::io::stdout().write_all(exit.text.as_bytes()).ok();
            return ExitCode::SUCCESS;
        }
        Err(exit) => return fail(&exit.text, exit.code),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("error: {error}\n"), error.exit_code()),
    }
}

/// The environment as text; what is no text is not ours, unless it has one of our names.
fn environment() -> Result<Vec<(String, String)>, String> {
    let text = |(name, value): (OsString, OsString)| {
        let name = name.into_string().ok()?;
        match value.into_string() {
            Ok(value) => Some(Ok((name, value))),
            Err(_) if name.starts_with("LALLY_") => Some(Err(format!(
                "error: environment variable {name} is not UTF-8 text; set it anew, or give its flag\n"
            ))),
            Err(_) => None,
        }
    };
    std::env::vars_os().filter_map(text).collect()
}

fn serve(config: Config) -> Result<(), RunError> {
    let cannot = |error| RunError::Server { server: "task", error };
    let runtime = ServingRuntime::new(config.worker_threads).map_err(cannot)?;
    let outcome = runtime.block_on(async {
        let mut signals = UnixSignals::listen().map_err(cannot)?;
        compose::run(config, &mut signals).await
    });
    runtime.shutdown(LAST_THREADS);
    outcome
}

/// Carries out a command. It logs nothing: what it has to say is its output.
fn perform(command: Command) -> Result<(), RunError> {
    let cannot = |error: std::io::Error| RunError::Command(error.to_string());
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
    let out = std::io::stdout();
    let is_terminal = out.is_terminal();
    let done = runtime.block_on(compose::perform(command, is_terminal, &mut BufWriter::new(out)));
    runtime.shutdown_timeout(LAST_THREADS);
    done
}

/// Logs to stderr. A level without more means Lally's own messages; the libraries below it speak
/// up for warnings only, so that not even `trace` shows what they carry: users' values.
fn start_logging(config: &Config) {
    let level = &config.log_level;
    let bare = !level.contains(['=', ',']);
    let directives = if bare { format!("warn,lally={level}") } else { level.clone() };
    let logger = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(directives))
        .with_writer(std::io::stderr)
        // It would be printed to stderr, which is what has failed, and panic.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    match config.log_format {
        LogFormat::Text => logger.with_target(false).init(),
        LogFormat::Json => logger.json().init(),
    }
}

fn fail(text: &str, code: u8) -> ExitCode {
    std::io::stderr().write_all(text.as_bytes()).ok();
    ExitCode::from(code)
}

/// SIGTERM and SIGINT.
struct UnixSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl UnixSignals {
    fn listen() -> std::io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self { terminate, interrupt })
    }
}

impl Signals for UnixSignals {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
