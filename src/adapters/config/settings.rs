//! The settings of a node, typed, and the rules between them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use figment::value::Value;
use figment::{Figment, Profile};

use crate::domain::{MAX_VALUE_BYTES, QuorumSpec};

use super::choices::{Fsync, LogFormat, fsync, log_format};
use super::errors::Mistake;
use super::forms::{self, AdvertiseAddr, SeedAddr, Wrong};
use super::hooks::{self as hook_sections, PolicyRuleConfig, WebhookConfig};
use super::keys::{KNOWN_HOOKS, KeySpec};
use super::limits::Limits;
use super::section::SectionSpec;
use super::security::{Purpose, Security};

const KIB: u64 = 1_024;

/// In milliseconds.
const MINUTE_MS: u64 = 60_000;
const YEAR_MS: u64 = 365 * 86_400_000;
const MIB: u64 = 1_024 * KIB;

/// JSON may need six bytes for one of a value.
const MAX_BODY_BYTES: u64 = 128 * MIB;

/// Unless values may be longer than half of it.
const DEFAULT_BODY_BYTES: usize = 2 * 1_024 * 1_024;

const MAX_WORKER_THREADS: u64 = 1_024;

/// Requests, and connections: more than any machine has descriptors for.
const MAX_AT_A_TIME: u64 = 1_000_000;

/// The settings of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file that was read, if any.
    pub config_file: Option<PathBuf>,
    /// Start with an empty log, the old one moved aside.
    pub fresh: bool,
    /// The log whose contents replace the node's. Never together with `fresh`.
    pub replay_log: Option<PathBuf>,
    /// Set a damaged log aside, and get the data from the other members.
    pub recover_from_peers: bool,
    /// Members to join through; none for the first node of a cluster.
    pub seed_nodes: Vec<SeedAddr>,
    /// 0 for any free port.
    pub http_port: u16,
    /// 0 for any free port, else not equal to `http_port`.
    pub grpc_port: u16,
    /// Replies needed for a read.
    pub read_quorum: QuorumSpec,
    /// Acknowledgements needed for a write.
    pub write_quorum: QuorumSpec,
    /// Where both servers listen; may be a wildcard.
    pub bind: IpAddr,
    /// Where peers reach this node, if that is not where it listens.
    pub advertise_addr: Option<AdvertiseAddr>,
    /// Log and identity.
    pub data_dir: PathBuf,
    /// When the log is forced to disk.
    pub fsync: Fsync,
    /// 1 to 64 characters of `[A-Za-z0-9._-]`.
    pub cluster_name: String,
    /// Upper bound of one client request, at most 10 s.
    pub request_timeout: Duration,
    /// A filter in the form of `tracing_subscriber`'s `EnvFilter`; known to be valid.
    pub log_level: String,
    /// How to log.
    pub log_format: LogFormat,
    /// Requests that take longer are logged; `None`: none is.
    pub slow_log_threshold: Option<Duration>,
    /// Longest value, at most 16 MiB.
    pub max_value_bytes: usize,
    /// Longest HTTP body, not less than `max_value_bytes`.
    pub max_body_bytes: usize,
    /// Bytes that the data may take in memory, at least 1 MiB.
    pub max_memory: Option<u64>,
    /// How far in the future a version may lie.
    pub max_clock_drift: Duration,
    /// Names out of [`KNOWN_HOOKS`], each once.
    pub hooks: Vec<String>,
    /// What clients are refused, in the order in which it is asked about.
    pub policy: Vec<PolicyRuleConfig>,
    /// Who is told of changes.
    pub webhooks: Vec<WebhookConfig>,
    /// How often nodes compare their data.
    pub anti_entropy_interval: Duration,
    /// How long tombstones are kept at least.
    pub tombstone_grace: Duration,
    /// How long a member may be down before tombstones are forgotten without it.
    pub max_absence: Duration,
    /// Threads that serve requests.
    pub worker_threads: NonZeroUsize,
    /// Requests of clients that are worked on at a time.
    pub max_in_flight: usize,
    /// Connections of clients that are open at a time.
    pub max_connections: usize,
    /// How long a new connection may take for the head of its first request.
    pub header_read_timeout: Duration,
    /// How long the body of a request may take.
    pub body_read_timeout: Duration,
    /// How long a connection may be idle.
    pub keep_alive_timeout: Duration,
    /// Who is let in, and how it is spoken.
    pub security: Security,
    /// Whether whoever reaches this node is trusted.
    pub insecure: bool,
    /// How much of everything else there may be.
    pub limits: Limits,
}

impl Config {
    /// `HOST:PORT` at which a program on this machine finds the HTTP server of this node.
    ///
    /// # Errors
    /// When that is not known before the node runs.
    pub(super) fn http_addr_here(&self, option: &str) -> Result<String, String> {
        if self.http_port == 0 {
            return Err(format!(
                "http_port is 0, any free port: say with --{option} HOST:PORT where the node is"
            ));
        }
        let ip = match self.bind {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        Ok(SocketAddr::new(ip, self.http_port).to_string())
    }

    /// Reads every setting. The rules between settings are not checked yet.
    pub(super) fn read(figment: &Figment, config_file: Option<PathBuf>) -> Result<Self, Mistake> {
        let from = Reader(figment);
        let max_value_bytes =
            from.required("max_value_bytes", |v| size(v, 1, MAX_VALUE_BYTES as u64))?;
        let max_body_bytes = from.optional("max_body_bytes", |v| size(v, KIB, MAX_BODY_BYTES))?;
        let default_body_bytes = DEFAULT_BODY_BYTES.max(2 * max_value_bytes);
        Ok(Self {
            config_file,
            fresh: from.required("fresh", forms::switch)?,
            replay_log: from.optional("replay_log", path)?,
            recover_from_peers: from.required("recover_from_peers", forms::switch)?,
            seed_nodes: from.optional("seed_node", seeds)?.unwrap_or_default(),
            http_port: from.required("http_port", port)?,
            grpc_port: from.required("grpc_port", port)?,
            read_quorum: from.required("read_quorum", quorum)?,
            write_quorum: from.required("write_quorum", quorum)?,
            bind: from.required("bind", forms::ip)?,
            advertise_addr: from.optional("advertise_addr", forms::advertise)?,
            data_dir: from.required("data_dir", path)?,
            fsync: from.required("fsync", fsync)?,
            cluster_name: from.required("cluster_name", forms::cluster_name)?,
            request_timeout: from.required("request_timeout", |v| duration(v, 1, 10_000))?,
            log_level: from.required("log_level", forms::log_filter)?,
            log_format: from.required("log_format", log_format)?,
            slow_log_threshold: from
                .required("slow_log_threshold", |v| duration(v, 0, 3_600_000))
                .map(|threshold| Some(threshold).filter(|threshold| !threshold.is_zero()))?,
            max_value_bytes,
            max_body_bytes: max_body_bytes.unwrap_or(default_body_bytes),
            max_memory: from
                .optional("max_memory", |v| forms::in_range(forms::size(v)?, MIB, u64::MAX, v))?,
            max_clock_drift: from.required("max_clock_drift", |v| duration(v, 1, 3_600_000))?,
            hooks: from.optional("hooks", hooks)?.unwrap_or_default(),
            policy: from.optional("policy", hook_sections::policy)?.unwrap_or_default(),
            webhooks: from.optional("webhooks", hook_sections::webhooks)?.unwrap_or_default(),
            anti_entropy_interval: from
                .required("anti_entropy_interval", |v| duration(v, 10, 86_400_000))?,
            tombstone_grace: from
                .required("tombstone_grace", |v| duration(v, MINUTE_MS, YEAR_MS))?,
            max_absence: from.required("max_absence", |v| duration(v, MINUTE_MS, YEAR_MS))?,
            worker_threads: from
                .optional("worker_threads", threads)?
                .unwrap_or_else(default_worker_threads),
            max_in_flight: from.required("max_in_flight", |v| count(v, 1, MAX_AT_A_TIME))?,
            max_connections: from.required("max_connections", |v| count(v, 1, MAX_AT_A_TIME))?,
            header_read_timeout: from
                .required("header_read_timeout", |v| duration(v, 10, 10 * MINUTE_MS))?,
            body_read_timeout: from
                .required("body_read_timeout", |v| duration(v, 10, 10 * MINUTE_MS))?,
            keep_alive_timeout: from
                .required("keep_alive_timeout", |v| duration(v, 10, 86_400_000))?,
            security: Security::read(&from, from.required("metrics_need_token", forms::switch)?)?,
            insecure: from.required("insecure", forms::switch)?,
            limits: Limits::read(&from)?,
        })
    }

    /// What is against the rules between settings.
    pub(super) fn check(&self, figment: &Figment, purpose: Purpose) -> Vec<Mistake> {
        let from = Reader(figment);
        let mut mistakes = Vec::new();
        let mut refuse =
            |keys: &[&'static str], text| mistakes.push(Mistake::new(text).about(keys));
        if self.http_port == self.grpc_port && self.http_port != 0 {
            let text = format!(
                "{} and {} are both {}; expected two different ports, or 0 for any free port",
                from.place("http_port"),
                from.place("grpc_port"),
                self.http_port
            );
            refuse(&["http_port", "grpc_port"], text);
        }
        if self.max_absence < self.tombstone_grace {
            let text = format!(
                "{} is shorter than {}; expected at least as long",
                from.place("max_absence"),
                from.place("tombstone_grace")
            );
            refuse(&["max_absence", "tombstone_grace"], text);
        }
        if self.fresh && self.replay_log.is_some() {
            let text = format!(
                "{} and {} exclude each other; expected one of them: start with an empty log, or \
                 with the contents of another one",
                from.place("fresh"),
                from.place("replay_log")
            );
            refuse(&["fresh", "replay_log"], text);
        }
        if self.max_body_bytes < self.max_value_bytes {
            let text = format!(
                "{} is less than {}; expected a body that holds the longest value",
                from.place("max_body_bytes"),
                from.place("max_value_bytes")
            );
            refuse(&["max_body_bytes", "max_value_bytes"], text);
        }
        if self.limits.max_pending_bytes < self.max_body_bytes {
            let text = format!(
                "{} is less than {}; expected room for the longest body",
                from.place("max_pending_bytes"),
                from.place("max_body_bytes")
            );
            refuse(&["max_pending_bytes", "max_body_bytes"], text);
        }
        mistakes.extend(self.check_reachable(&from));
        mistakes.extend(self.security.check(&from));
        if purpose == Purpose::Run && mistakes.is_empty() && !self.insecure {
            mistakes.extend(self.security.open_to_all(&from, self.bind));
        }
        mistakes
    }

    /// A node that listens on the loopback address only, and tells a seed on another host to call
    /// it there, joins and then gets nothing. Names are not judged: they are resolved later.
    fn check_reachable(&self, from: &Reader<'_>) -> Option<Mistake> {
        let elsewhere = |seed: &&SeedAddr| {
            seed.host.parse::<IpAddr>().is_ok_and(|ip| !ip.to_canonical().is_loopback())
        };
        let seed = self.seed_nodes.iter().find(elsewhere)?;
        if !self.bind.to_canonical().is_loopback() {
            return None;
        }
        let text = format!(
            "{} is {}, where no other host reaches this node, but the seed {seed} ({}) is on \
             another host; add --bind with an address of this host that the seed can reach, \
             or --bind 0.0.0.0",
            from.place("bind"),
            self.bind,
            from.place("seed_node"),
        );
        Some(Mistake::new(text).about(&["bind", "seed_node"]))
    }
}

/// What the layers say.
pub(super) struct Reader<'a>(&'a Figment);

impl Reader<'_> {
    /// Where the value of a key stands.
    pub(super) fn place(&self, key: &str) -> String {
        let metadata = self.0.find_metadata(key);
        let place = metadata.map(|metadata| metadata.interpolate(&Profile::Default, &[key]));
        place.unwrap_or_else(|| format!("the default of {key}"))
    }

    /// Whether the key has a value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.0.find_value(key).is_ok()
    }

    pub(super) fn optional<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&Value) -> Result<T, Wrong>,
    ) -> Result<Option<T>, Mistake> {
        let Ok(value) = self.0.find_value(key) else { return Ok(None) };
        read(&value).map(Some).map_err(|wrong| {
            let section = || SectionSpec::find(key).map(|spec| spec.expected);
            let expected = KeySpec::find(key).map(|spec| spec.expected).or_else(section);
            let expected = expected.unwrap_or("another value");
            let text = format!("{}: {wrong}; expected {expected}", self.place(key));
            Mistake::new(text).about(&[key])
        })
    }

    pub(super) fn required<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&Value) -> Result<T, Wrong>,
    ) -> Result<T, Mistake> {
        let missing = || Mistake::new(format!("{key} is not set"));
        self.optional(key, read)?.ok_or_else(missing)
    }
}

fn port(value: &Value) -> Result<u16, Wrong> {
    let out_of_range = |_| format!("{} is out of range", forms::shown(value));
    u16::try_from(forms::integer(value)?).map_err(out_of_range)
}

fn quorum(value: &Value) -> Result<QuorumSpec, Wrong> {
    let wrong = || format!("{} is not a quorum", forms::shown(value));
    match value {
        Value::String(_, text) if text == "majority" => Ok(QuorumSpec::Majority),
        Value::String(_, text) if text == "all" => Ok(QuorumSpec::All),
        _ => forms::integer(value)?.to_string().parse().map_err(|_| wrong()),
    }
}

pub(super) fn path(value: &Value) -> Result<PathBuf, Wrong> {
    let text = forms::text(value)?;
    if text.contains('\0') {
        return Err(format!("{} contains a NUL", forms::quoted(text)));
    }
    Ok(text.into())
}

fn seeds(value: &Value) -> Result<Vec<SeedAddr>, Wrong> {
    let mut seeds = Vec::new();
    for text in forms::list(value)? {
        let seed = forms::seed(text)?;
        if !seeds.contains(&seed) {
            seeds.push(seed);
        }
    }
    Ok(seeds)
}

fn hooks(value: &Value) -> Result<Vec<String>, Wrong> {
    let mut hooks = Vec::new();
    for name in forms::list(value)? {
        if !KNOWN_HOOKS.contains(&name) {
            return Err(format!("{} is no known hook", forms::quoted(name)));
        }
        if !hooks.iter().any(|hook| hook == name) {
            hooks.push(name.to_owned());
        }
    }
    Ok(hooks)
}

pub(super) fn duration(value: &Value, min_ms: u64, max_ms: u64) -> Result<Duration, Wrong> {
    let (min, max) = (Duration::from_millis(min_ms), Duration::from_millis(max_ms));
    forms::in_range(forms::duration(value)?, min, max, value)
}

pub(super) fn size(value: &Value, min: u64, max: u64) -> Result<usize, Wrong> {
    let bytes = forms::in_range(forms::size(value)?, min, max, value)?;
    usize::try_from(bytes).map_err(|_| format!("{} is out of range", forms::shown(value)))
}

pub(super) fn count<T: TryFrom<u64>>(value: &Value, min: u64, max: u64) -> Result<T, Wrong> {
    let number = forms::in_range(forms::integer(value)?, min, max, value)?;
    T::try_from(number).map_err(|_| format!("{} is out of range", forms::shown(value)))
}

/// One less than cores: what is left goes to the kernel's part of the network and the disk, to the
/// log and to compactions.
fn default_worker_threads() -> NonZeroUsize {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    NonZeroUsize::new(cores.saturating_sub(1)).unwrap_or(NonZeroUsize::MIN)
}

fn threads(value: &Value) -> Result<NonZeroUsize, Wrong> {
    let threads = NonZeroUsize::new(count(value, 1, MAX_WORKER_THREADS)?);
    threads.ok_or_else(|| format!("{} is out of range", forms::shown(value)))
}
