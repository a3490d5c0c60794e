//! The table of keys: the one list from which flags, environment variables and defaults follow.

/// The hooks that the configuration can turn on.
pub const KNOWN_HOOKS: &[&str] = &["audit"];

/// What a text from the environment or the command line becomes; YAML has types of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `true` or `false`.
    Switch,
    /// A whole number if it reads as one, else a text.
    Number,
    /// A text, whatever it reads like.
    Text,
    /// As a text, and a flag that may be given several times.
    List,
}

/// One key of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeySpec {
    /// As in YAML. The environment variable is `LALLY_` and this in capitals.
    pub(super) name: &'static str,
    /// Without its two hyphens: the name with hyphens in place of underscores.
    pub(super) flag: &'static str,
    pub(super) kind: Kind,
    /// The name of the value in the help.
    pub(super) placeholder: &'static str,
    /// In the form of a text; `None` where the default is no fixed value.
    pub(super) default: Option<&'static str>,
    /// One sentence for the help.
    pub(super) help: &'static str,
    /// Completes "expected ..." in refusals.
    pub(super) expected: &'static str,
}

impl KeySpec {
    /// The environment variable.
    pub(super) fn variable(&self) -> String {
        format!("LALLY_{}", self.name.to_ascii_uppercase())
    }

    /// The key of this name.
    pub(super) fn find(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// The key whose name is nearest to this one, if it is near.
    pub(super) fn nearest(name: &str) -> Option<&'static Self> {
        let name = name.to_ascii_lowercase().replace('-', "_");
        let near = KEYS.iter().map(|key| (distance(&name, key.name), key));
        near.min_by_key(|(distance, _)| *distance).filter(|(d, _)| *d <= 3).map(|(_, key)| key)
    }
}

macro_rules! key {
    ($name:literal, $flag:literal, $kind:ident, $placeholder:literal, $default:expr, $help:literal, $expected:literal) => {
        KeySpec {
            name: $name,
            flag: $flag,
            kind: Kind::$kind,
            placeholder: $placeholder,
            default: $default,
            help: $help,
            expected: $expected,
        }
    };
}

/// Every key, in the order of the help.
#[rustfmt::skip]
pub(super) const KEYS: [KeySpec; 49] = [
    key!("fresh", "fresh", Switch, "BOOL", Some("false"),
        "Start with an empty log; the old one is moved aside, never deleted",
        "true or false"),
    key!("replay_log", "replay-log", Text, "PATH", None,
        "Replace the contents of the node's log by those of this log and replay them; the old one is moved aside",
        "the path of a log"),
    key!("recover_from_peers", "recover-from-peers", Switch, "BOOL", Some("false"),
        "If the log is damaged, move it aside and get the data from the other members",
        "true or false"),
    key!("seed_node", "seed-node", List, "HOST:PORT", None,
        "gRPC address of any member of the cluster to join; may be given several times, or as a comma list",
        "HOST:PORT, or several with commas between them (YAML: or a list); HOST is an IPv4 address, an IPv6 address in brackets ([::1]) or a DNS name, PORT is 1 to 65535"),
    key!("http_port", "http-port", Number, "N", Some("3000"),
        "Port of the HTTP API; 0 = any free port",
        "a port: a whole number from 0 to 65535 (0 = any free port)"),
    key!("grpc_port", "grpc-port", Number, "N", Some("50071"),
        "Port of the gRPC server, for other nodes; 0 = any free port",
        "a port: a whole number from 0 to 65535 (0 = any free port)"),
    key!("read_quorum", "read-quorum", Number, "Q", Some("1"),
        "Replies needed for a read: a number >= 1, 'majority' or 'all'",
        "a quorum: a whole number >= 1, majority or all"),
    key!("write_quorum", "write-quorum", Number, "Q", Some("1"),
        "Acknowledgements needed for a write, this node's own included: a number >= 1, 'majority' or 'all'",
        "a quorum: a whole number >= 1, majority or all"),
    key!("bind", "bind", Text, "IP", Some("127.0.0.1"),
        "Address both servers listen on; 0.0.0.0 or :: for every interface",
        "an IPv4 or IPv6 address of this host, or 0.0.0.0 or :: for every interface"),
    key!("advertise_addr", "advertise-addr", Text, "HOST[:PORT]", None,
        "Where peers reach this node's gRPC server, when that is not the bind address and port",
        "HOST or HOST:PORT; HOST is an IPv4 address, an IPv6 address in brackets ([::1]) or a DNS name that peers can reach, PORT is 1 to 65535"),
    key!("data_dir", "data-dir", Text, "PATH", Some("./lally-data"),
        "Directory of the log and the node's identity; created if it is missing",
        "the path of a directory"),
    key!("fsync", "fsync", Text, "POLICY", Some("everysec"),
        "When the log is forced to disk: 'always' (before each acknowledgement), 'everysec' or 'never'",
        "always, everysec or never"),
    key!("cluster_name", "cluster-name", Text, "NAME", Some("lally"),
        "Nodes of different clusters refuse each other",
        "a name of 1 to 64 characters out of A-Z, a-z, 0-9, '.', '_' and '-'"),
    key!("request_timeout", "request-timeout", Text, "DURATION", Some("2s"),
        "Upper bound of one client request",
        "a duration from 1ms to 10s, such as 2s or 500ms"),
    key!("log_level", "log-level", Text, "LEVEL", Some("info"),
        "What is logged: off, error, warn, info, debug, trace, or a filter such as info,lally=debug",
        "off, error, warn, info, debug or trace, or a filter such as info,lally=debug"),
    key!("log_format", "log-format", Text, "FORMAT", Some("text"),
        "How it is logged: 'text' or 'json'",
        "text or json"),
    key!("slow_log_threshold", "slow-log-threshold", Text, "DURATION", Some("250ms"),
        "Requests that take longer are logged with what they waited for; 0ms turns that off",
        "a duration from 0ms to 1h, such as 250ms; 0ms turns it off"),
    key!("max_value_bytes", "max-value-bytes", Number, "SIZE", Some("1MiB"),
        "Longest value",
        "a size from 1 to 16MiB: bytes, or a whole number with KiB or MiB"),
    key!("max_body_bytes", "max-body-bytes", Number, "SIZE", None,
        "Longest body of an HTTP request [default: 2MiB, or twice max_value_bytes if that is more]",
        "a size from 1KiB to 128MiB: bytes, or a whole number with KiB or MiB"),
    key!("max_memory", "max-memory", Number, "SIZE", None,
        "What the data of this node may take in memory; above it, writes that make it grow are refused [default: no limit]",
        "a size of 1MiB or more: bytes, or a whole number with KiB, MiB or GiB"),
    key!("max_clock_drift", "max-clock-drift", Text, "DURATION", Some("500ms"),
        "How far in the future a version may lie before it is refused",
        "a duration from 1ms to 1h, such as 500ms"),
    key!("hooks", "hooks", List, "NAME", None,
        "Hooks to turn on: 'audit'; may be given several times, or as a comma list",
        "names of hooks, with commas between them (YAML: or a list); the known hooks are: audit"),
    key!("anti_entropy_interval", "anti-entropy-interval", Text, "DURATION", Some("30s"),
        "How often nodes compare their data",
        "a duration from 10ms to 24h, such as 30s or 5m"),
    key!("tombstone_grace", "tombstone-grace", Text, "DURATION", Some("24h"),
        "How long it is remembered at least that a key was removed",
        "a duration from 1m to 8760h, such as 24h"),
    key!("max_absence", "max-absence", Text, "DURATION", Some("168h"),
        "How long a member may be down before removed keys are forgotten without it",
        "a duration from 1m to 8760h, such as 168h"),
    key!("worker_threads", "worker-threads", Number, "N", None,
        "Threads that serve requests [default: one less than cores, at least 1]",
        "a whole number from 1 to 1024"),
    key!("max_in_flight", "max-in-flight", Number, "N", Some("1024"),
        "Requests of clients that are worked on at a time; more are refused at once",
        "a whole number from 1 to 1000000"),
    key!("max_connections", "max-connections", Number, "N", Some("4096"),
        "Connections of clients that are open at a time; more are closed at once",
        "a whole number from 1 to 1000000"),
    key!("header_read_timeout", "header-read-timeout", Text, "DURATION", Some("5s"),
        "How long a new connection may take for the head of its first request",
        "a duration from 10ms to 10m, such as 5s"),
    key!("body_read_timeout", "body-read-timeout", Text, "DURATION", Some("10s"),
        "How long the body of a request may take",
        "a duration from 10ms to 10m, such as 10s"),
    key!("keep_alive_timeout", "keep-alive-timeout", Text, "DURATION", Some("60s"),
        "How long a connection may be idle between two requests",
        "a duration from 10ms to 24h, such as 60s"),
    key!("tokens", "tokens", Text, "PATH", None,
        "File of the tokens that clients need, as 'lally token new' makes it [default: clients need none]",
        "the path of a file of tokens"),
    key!("metrics_need_token", "metrics-need-token", Switch, "BOOL", Some("false"),
        "Whether GET /metrics needs a token, too",
        "true or false"),
    key!("http_tls_cert", "http-tls-cert", Text, "PATH", None,
        "Certificate that clients are shown, in PEM; then they are spoken to in TLS only",
        "the path of a certificate in PEM"),
    key!("http_tls_key", "http-tls-key", Text, "PATH", None,
        "Key of that certificate, in PEM",
        "the path of a private key in PEM"),
    key!("peer_tls_ca", "peer-tls-ca", Text, "PATH", None,
        "Authority of the nodes' certificates, in PEM; then nodes speak TLS only to each other, and both sides show a certificate",
        "the path of a certificate in PEM"),
    key!("peer_tls_cert", "peer-tls-cert", Text, "PATH", None,
        "This node's certificate for other nodes, in PEM, as 'lally tls node' makes it",
        "the path of a certificate in PEM"),
    key!("peer_tls_key", "peer-tls-key", Text, "PATH", None,
        "Key of that certificate, in PEM",
        "the path of a private key in PEM"),
    key!("insecure", "insecure", Switch, "BOOL", Some("false"),
        "Listen where others reach this node without tokens and certificates: everybody there is trusted",
        "true or false"),
    key!("max_pending_bytes", "max-pending-bytes", Number, "SIZE", Some("256MiB"),
        "What the bodies that clients are still sending may take in memory; above it, 503",
        "a size from 1MiB to 64GiB: bytes, or a whole number with KiB, MiB or GiB"),
    key!("max_headers", "max-headers", Number, "N", Some("64"),
        "Header lines of an HTTP request",
        "a whole number from 8 to 1024"),
    key!("max_header_bytes", "max-header-bytes", Number, "SIZE", Some("16KiB"),
        "Bytes of the head of an HTTP request",
        "a size from 8KiB to 1MiB: bytes, or a whole number with KiB or MiB"),
    key!("write_timeout", "write-timeout", Text, "DURATION", Some("30s"),
        "How long a client may take nothing of its answer before the connection is closed",
        "a duration from 10ms to 1h, such as 30s"),
    key!("max_log_queue", "max-log-queue", Number, "SIZE", Some("64MiB"),
        "What may wait for the log; above it, writes wait, and get 503 after a second",
        "a size from 1MiB to 64GiB: bytes, or a whole number with KiB, MiB or GiB"),
    key!("max_hints", "max-hints", Number, "SIZE", Some("64MiB"),
        "What the hints for one absent member may take; above it, the member is compared in full",
        "a size from 64KiB to 64GiB: bytes, or a whole number with KiB, MiB or GiB"),
    key!("max_peer_connections", "max-peer-connections", Number, "N", Some("1024"),
        "Open connections of peers, which have three each; one more is closed at once",
        "a whole number from 1 to 1000000"),
    key!("max_peer_streams", "max-peer-streams", Number, "N", Some("256"),
        "Calls at a time on one connection of a peer",
        "a whole number from 16 to 65536"),
    key!("peer_timeout", "peer-timeout", Text, "DURATION", Some("2s"),
        "Upper bound of one call to a peer",
        "a duration from 100ms to 1m, such as 2s"),
    // Beside the table of layers: says which file is the YAML layer, so it is no key of the file.
    key!("config", "config", Text, "PATH", None,
        "Configuration file in YAML [default: ./lally.yml if it exists]",
        "the path of a YAML file"),
];

/// The key that names the file and cannot stand in it.
pub(super) const CONFIG: &str = "config";

/// Levenshtein's distance: single-character edits between two texts.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b.chars()) {
            let edited = (diagonal + usize::from(x != y)).min(left + 1).min(*cell + 1);
            diagonal = std::mem::replace(cell, edited);
            left = edited;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_count_edits() {
        for (a, b, edits) in [("", "", 0), ("abc", "", 3), ("", "ab", 2), ("port", "prot", 2)] {
            assert_eq!(distance(a, b), edits, "{a} {b}");
        }
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn a_flag_is_the_name_in_hyphens() {
        for key in &KEYS {
            assert_eq!(key.flag, key.name.replace('_', "-"));
        }
    }

    #[test]
    fn a_misspelt_key_finds_the_right_one() {
        for (typed, meant) in [
            ("http_prot", Some("http_port")),
            ("http-port", Some("http_port")),
            ("HTTP_PORT", Some("http_port")),
            ("seed_nodes", Some("seed_node")),
            ("colour", None),
        ] {
            assert_eq!(KeySpec::nearest(typed).map(|key| key.name), meant);
        }
    }

    #[test]
    fn the_reference_has_every_key_with_its_flag_variable_and_default() {
        let reference = include_str!("../../../docs/configuration.md");
        for key in &KEYS {
            let row = reference
                .lines()
                .find(|line| line.starts_with(&format!("| `--{}", key.flag)))
                .unwrap_or_else(|| panic!("docs/configuration.md has no row for {}", key.name));
            assert!(row.contains(&format!("`{}`", key.variable())), "{row}");
            if key.name != CONFIG {
                assert!(row.contains(&format!("`{}`", key.name)), "{row}");
            }
            if let Some(default) = key.default {
                assert!(row.contains(&format!("`{default}`")), "{row}");
            }
        }
    }
}
