//! What campaigns share: their sizes come from the environment, their results go to dated files that
//! the documentation quotes.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::str::FromStr;

/// A number or a name from the environment, if it is there and is one.
pub fn from_env<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// The seed of what a test draws, which `LALLY_TEST_SEED` repeats. It is said.
pub fn seed() -> u64 {
    let seed = from_env("LALLY_TEST_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    eprintln!("LALLY_TEST_SEED={seed}");
    seed
}

/// Says it past the test harness, which shows what a test prints only if it fails.
pub fn say(text: &str) {
    io::stderr().write_all(format!("{text}\n").as_bytes()).unwrap();
}

/// Writes a result where this variable of the environment says, if it does: a path relative to the
/// root of the repository.
pub fn keep(variable: &str, text: impl FnOnce() -> String) {
    let Ok(path) = std::env::var(variable) else { return };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text()).unwrap();
}

/// The time of a result.
pub fn date() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string()
}

/// How many cores there were.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(0, usize::from)
}

/// How it was built.
pub const fn build() -> &'static str {
    if cfg!(debug_assertions) { "debug build" } else { "optimized build" }
}

/// The last commit that changed the product, which stays the same when results are committed.
pub fn revision() -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let changed =
        git(&["status", "--porcelain", "src", "Cargo.lock"]).is_some_and(|files| !files.is_empty());
    let name = git(&["log", "-1", "--format=%h", "--abbrev=12", "--", "src", "Cargo.lock"])
        .unwrap_or_else(|| "unknown".into());
    if changed { format!("{name} with changes") } else { name }
}
