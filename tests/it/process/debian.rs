//! The Debian package: built, installed, its service run as its user, removed and purged.
//!
//! It is installed on this machine, by root, and so only where somebody wants that: with `CI` or
//! `LALLY_TEST_PACKAGE` set, where no package of this name is installed, and where no systemd runs that
//! would start the service by itself. The service's command comes from the installed unit, the user too;
//! instead of systemd this test starts it and listens to what it says. Only the ports are others.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::client::Client;
use super::node::{addr_in, signal};
use super::service_manager::Listener;
use super::turn::Turn;
use super::wait::{PATIENCE, eventually, is, look_until};

/// By which a package is known that a test has left behind.
const BUILDER: &str = "Lally tests";

const DATA: &str = "/var/lib/lally";
const CONFIG: &str = "/etc/lally/lally.yml";
const PROGRAM: &str = "/usr/bin/lally";
const UNIT: &str = "/usr/lib/systemd/system/lally.service";
const ENABLED: &str = "/etc/systemd/system/multi-user.target.wants/lally.service";

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

#[track_caller]
fn succeeds(program: &str, args: &[&str]) -> String {
    let output = run(program, args);
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn is_there(path: &str) -> bool {
    Path::new(path).exists()
}

/// Runs `dpkg`, once nobody else does.
#[track_caller]
fn dpkg(args: &[&str]) {
    let ran = look_until(PATIENCE * 4, || {
        let output = run("dpkg", args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if said.contains("locked by another process") { Err(said) } else { Ok(output) }
    });
    let output = ran.unwrap();
    assert!(output.status.success(), "dpkg {args:?}: {output:?}");
}

/// Who built the package that is installed, or was and has left its configuration.
fn builder() -> Option<String> {
    let shown = run("dpkg-query", &["--show", "--showformat=${Maintainer}", "lally"]);
    shown.status.success().then(|| String::from_utf8_lossy(&shown.stdout).into_owned())
}

/// Why the package is not to be installed here.
fn objection() -> Option<&'static str> {
    if std::env::var_os("CI").is_none() && std::env::var_os("LALLY_TEST_PACKAGE").is_none() {
        return Some(
            "it would be installed on this machine: LALLY_TEST_PACKAGE=1 says that it may",
        );
    }
    let is_root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    if !is_root || !["/usr/bin/dpkg", "/usr/bin/dpkg-shlibdeps"].into_iter().all(is_there) {
        return Some("it needs root, dpkg and dpkg-dev");
    }
    is_there("/run/systemd/system").then_some("systemd runs, and would start the service")
}

/// The package, installed; purged when dropped.
struct Installed {
    package: String,
    /// Whether this test has brought the user, and takes it away again.
    brought_user: bool,
    _turn: Arc<Turn>,
    _dir: TempDir,
}

impl Installed {
    fn build_and_install() -> Option<Self> {
        if let Some(why) = objection() {
            assert!(std::env::var_os("CI").is_none(), "the package is not installed: {why}");
            eprintln!("SKIPPED: the package is not installed: {why}");
            return None;
        }
        let turn = Turn::of_this_thread();
        if builder().is_some_and(|builder| builder.starts_with(BUILDER)) {
            dpkg(&["--purge", "lally"]);
        }
        let is_taken = builder().is_some() || [DATA, CONFIG, PROGRAM].into_iter().any(is_there);
        assert!(!is_taken, "this machine has a Lally already, which is left alone");
        let dir = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/debian/build");
        let built = Command::new(script)
            .arg(env!("CARGO_BIN_EXE_lally"))
            .arg(dir.path())
            .args(["-Zgzip", "-z1"])
            .env("DEBFULLNAME", BUILDER)
            .output()
            .unwrap();
        assert!(built.status.success(), "{built:?}");
        let package = String::from_utf8(built.stdout).unwrap().trim_end().to_owned();
        let brought_user = !run("getent", &["passwd", "lally"]).status.success();
        let installed = Self { package, brought_user, _turn: turn, _dir: dir };
        installed.install();
        Some(installed)
    }

    fn install(&self) {
        dpkg(&["--install", &self.package]);
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        run("dpkg", &["--purge", "lally"]);
        if self.brought_user {
            run("deluser", &["--quiet", "--system", "lally"]);
        }
    }
}

/// The value of a line of the installed unit.
fn unit(name: &str) -> String {
    let unit = fs::read_to_string(UNIT).unwrap();
    let mut values = unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    values.next().unwrap_or_else(|| panic!("no {name} in {unit}")).to_owned()
}

/// The service, run as systemd would run it.
struct Service {
    process: Child,
    listener: Listener,
    log: PathBuf,
    http: SocketAddr,
    _dir: TempDir,
}

impl Service {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("stderr");
        // The service's user does not get into the directory of the test, but needs no path either.
        let name = format!("lally{}", dir.path().display());
        let listener = Listener::at_name(&name);
        let (user, group) = (unit("User"), unit("Group"));
        let process = Command::new("setpriv")
            .args([format!("--reuid={user}"), format!("--regid={group}")])
            .args(["--init-groups", "--inh-caps=-all", "--no-new-privs"])
            .args(unit("ExecStart").split_whitespace())
            .env_clear()
            .envs([("LALLY_HTTP_PORT", "0"), ("LALLY_GRPC_PORT", "0")])
            .env("NOTIFY_SOCKET", format!("@{name}"))
            .current_dir("/")
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        listener.wait_for("STATUS=ready");
        let said = fs::read_to_string(&log).unwrap();
        let listens = said.lines().find(|line| line.contains("HTTP listening"));
        let http = listens.and_then(addr_in).unwrap_or_else(|| panic!("no address in {said}"));
        Self { process, listener, log, http, _dir: dir }
    }

    /// SIGTERM, as a stop begins.
    fn stop(mut self) {
        signal(&self.process, "TERM");
        self.listener.wait_for("STOPPING=1");
        let code = eventually("the service ends", PATIENCE, || {
            self.process.try_wait().unwrap().map(|status| status.code()).ok_or("it runs")
        });
        assert_eq!(code, Some(0), "{}", fs::read_to_string(&self.log).unwrap());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Without effect on one that has ended.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

#[test]
fn the_debian_package_installs_a_service_that_keeps_its_data_until_it_is_purged() {
    let Some(package) = Installed::build_and_install() else { return };
    let user = succeeds("getent", &["passwd", "lally"]);
    assert!(user.trim_end().ends_with("/nologin"), "{user}");
    let data = fs::metadata(DATA).unwrap();
    let id = succeeds("id", &["--user", "lally"]).trim().parse::<u32>().unwrap();
    assert_eq!((data.uid(), data.permissions().mode() & 0o777), (id, 0o700));
    assert!(fs::symlink_metadata(ENABLED).is_ok(), "the service is not enabled");
    assert_eq!(unit("Type"), "notify");

    let service = Service::start();
    Client::new(service.http).add("k", "v").succeeded();
    let at = service.http.to_string();
    assert_eq!(succeeds(PROGRAM, &["get", "k", "--addr", &at]), "v");
    let stop_within: u64 = unit("TimeoutStopSec").trim_end_matches('s').parse().unwrap();
    assert!(Duration::from_secs(stop_within) > Duration::from_secs(10));
    service.stop();
    assert!(succeeds(PROGRAM, &["log", "check", DATA]).contains("intact"));

    fs::write(CONFIG, format!("data_dir: {DATA}\nwrite_quorum: majority\n")).unwrap();
    dpkg(&["--remove", "lally"]);
    assert!(!is_there(PROGRAM) && !is_there(UNIT));
    assert!(is_there(CONFIG) && is_there("/var/lib/lally/node.json"));

    package.install();
    assert!(fs::read_to_string(CONFIG).unwrap().contains("majority"), "the settings are gone");
    let service = Service::start();
    assert_eq!(Client::new(service.http).get("k").value().as_deref(), Some("v"));
    service.stop();

    dpkg(&["--purge", "lally"]);
    for path in [PROGRAM, UNIT, CONFIG, "/etc/lally", DATA, "/usr/share/doc/lally"] {
        assert!(!is_there(path), "{path} is left");
    }
    assert!(fs::symlink_metadata(ENABLED).is_err(), "{ENABLED} is left");
    eventually("nothing is known of it", PATIENCE, || {
        is(builder().is_none(), "dpkg still knows it")
    });
}
