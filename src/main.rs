//! Arguments in, exit code out.

use std::ffi::OsString;
use std::io::{BufWriter, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use lally::adapters::config::{self, Command, Config, Invocation, LogFormat, Login, Origin};
use lally::app::compose::{
    self, Reloading, RunError, ServiceManager, ServingRuntime, SetLogLevel, Signal as Asked,
    Signals,
};
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
    let arguments: Vec<_> = std::env::args_os().collect();
    let done = match config::parse(arguments.clone(), environment.clone()) {
        Ok(Invocation::Run { config, settings }) => {
            let origin = Origin::new(arguments, environment);
            let set_log_level = start_logging(&config);
            serve(*config, Reloading { origin, settings, set_log_level })
        }
        Ok(Invocation::Do(command, login)) => perform(command, &login),
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

fn serve(config: Config, reloading: Reloading) -> Result<(), RunError> {
    let cannot = |error| RunError::Server { server: "task", error };
    let runtime = ServingRuntime::new(config.worker_threads).map_err(cannot)?;
    let manager = ServiceManager::at(std::env::var_os(compose::NOTIFY_SOCKET));
    let outcome = runtime.block_on(async {
        let mut signals = UnixSignals::listen().map_err(cannot)?;
        compose::run(config, reloading, &mut signals, &manager).await
    });
    runtime.shutdown(LAST_THREADS);
    outcome
}

/// Carries out a command. It logs nothing: what it has to say is its output.
fn perform(command: Command, login: &Login) -> Result<(), RunError> {
    let cannot = |error: std::io::Error| RunError::Command(error.to_string());
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
    let out = std::io::stdout();
    let is_terminal = out.is_terminal();
    let mut out = BufWriter::new(out);
    let done = runtime.block_on(compose::perform(command, login, is_terminal, &mut out));
    runtime.shutdown_timeout(LAST_THREADS);
    done
}

/// Logs to stderr. Returns the way to change the level later.
fn start_logging(config: &Config) -> SetLogLevel {
    let logger = tracing_subscriber::fmt()
        .with_env_filter(filter(&config.log_level))
        .with_writer(std::io::stderr)
        // It would be printed to stderr, which is what has failed, and panic.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    match config.log_format {
        LogFormat::Text => {
            let logger = logger.with_target(false).with_filter_reloading();
            let handle = logger.reload_handle();
            logger.init();
            Arc::new(move |level| handle.reload(filter(level)).map_err(|error| error.to_string()))
        }
        LogFormat::Json => {
            let logger = logger.json().with_filter_reloading();
            let handle = logger.reload_handle();
            logger.init();
            Arc::new(move |level| handle.reload(filter(level)).map_err(|error| error.to_string()))
        }
    }
}

/// A level without more means Lally's own messages; the libraries below it speak up for warnings only,
/// so that not even `trace` shows what they carry: users' values.
fn filter(level: &str) -> EnvFilter {
    let bare = !level.contains(['=', ',']);
    let directives = if bare { format!("warn,lally={level}") } else { level.to_owned() };
    EnvFilter::new(directives)
}

fn fail(text: &str, code: u8) -> ExitCode {
    std::io::stderr().write_all(text.as_bytes()).ok();
    ExitCode::from(code)
}

/// SIGTERM and SIGINT stop, SIGHUP reloads.
struct UnixSignals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl UnixSignals {
    fn listen() -> std::io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        let hangup = signal(SignalKind::hangup())?;
        Ok(Self { terminate, interrupt, hangup })
    }
}

impl Signals for UnixSignals {
    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }
}
