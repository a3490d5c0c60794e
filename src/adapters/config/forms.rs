//! The forms of values: durations, sizes, addresses and names out of what a layer gives.
//!
//! Each function says in its error what is wrong with the value; what is expected instead is in
//! the table of keys.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

use figment::value::{Num, Value};

/// How much of a wrong value is quoted.
const MAX_QUOTED_CHARS: usize = 60;

/// Longest DNS name, without the dot at its end (RFC 1035).
const MAX_NAME_BYTES: usize = 253;

const MAX_LABEL_BYTES: usize = 63;

/// What is wrong with a value.
pub(super) type Wrong = String;

/// The gRPC address of a member to join through.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SeedAddr {
    /// An IPv4 address, an IPv6 address without brackets, or a DNS name.
    pub host: String,
    /// Not 0.
    pub port: u16,
}

impl fmt::Display for SeedAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", Bracketed(&self.host), self.port)
    }
}

/// Where peers are told to reach this node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AdvertiseAddr {
    /// An IPv4 address, an IPv6 address without brackets, or a DNS name.
    pub host: String,
    /// Not 0; `None` for the port that the gRPC server really has.
    pub port: Option<u16>,
}

impl AdvertiseAddr {
    /// `HOST:PORT`, with this port if none is configured.
    pub fn with_port(&self, bound: u16) -> String {
        format!("{}:{}", Bracketed(&self.host), self.port.unwrap_or(bound))
    }
}

/// An IPv6 address needs brackets before a port.
struct Bracketed<'a>(&'a str);

impl fmt::Display for Bracketed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.contains(':') { write!(f, "[{}]", self.0) } else { f.write_str(self.0) }
    }
}

/// A value as a message shows it.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::String(_, text) => quoted(text),
        Value::Char(_, c) => quoted(&c.to_string()),
        Value::Bool(_, b) => b.to_string(),
        Value::Num(..) => {
            let number = value.to_num().and_then(Num::to_i128);
            let number = number.map(|n| n.to_string());
            let number = number.or_else(|| value.to_u128().map(|n| n.to_string()));
            number.or_else(|| value.to_f64().map(|n| n.to_string())).unwrap_or_default()
        }
        Value::Empty(..) => "nothing".to_owned(),
        Value::Dict(..) => "a mapping".to_owned(),
        Value::Array(..) => "a list".to_owned(),
    }
}

pub(super) fn switch(value: &Value) -> Result<bool, Wrong> {
    let wrong = || unquoted::<bool>(value, "truth value");
    value.to_bool().ok_or_else(wrong)
}

pub(super) fn text(value: &Value) -> Result<&str, Wrong> {
    match value {
        Value::String(_, text) if text.is_empty() => Err("it is empty".to_owned()),
        Value::String(_, text) => Ok(text),
        Value::Num(..) | Value::Bool(..) => {
            Err(format!("{} is not a text (put it in quotes if it is meant as one)", shown(value)))
        }
        _ => Err(format!("{} is not a text", shown(value))),
    }
}

pub(super) fn integer(value: &Value) -> Result<u64, Wrong> {
    let number = value.to_num().and_then(Num::to_u128_lossy);
    let number = number.and_then(|n| u64::try_from(n).ok());
    number.ok_or_else(|| match value {
        Value::Num(..) => format!("{} is not a whole number in this range", shown(value)),
        _ => unquoted::<u64>(value, "whole number"),
    })
}

pub(super) fn in_range<T: PartialOrd + Copy>(n: T, min: T, max: T, v: &Value) -> Result<T, Wrong> {
    if n < min || n > max { Err(format!("{} is out of range", shown(v))) } else { Ok(n) }
}

/// A whole number and `ms`, `s`, `m` or `h`.
pub(super) fn duration(value: &Value) -> Result<Duration, Wrong> {
    let wrong = || format!("{} is not a duration (a whole number and ms, s, m or h)", shown(value));
    let Value::String(_, text) = value else { return Err(wrong()) };
    let (number, unit) = number_and_unit(text).ok_or_else(wrong)?;
    let ms_per_unit = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(ms_per_unit).map(Duration::from_millis).ok_or_else(wrong)
}

/// Bytes, or a whole number and `B`, `KiB`, `MiB` or `GiB`.
pub(super) fn size(value: &Value) -> Result<u64, Wrong> {
    let Value::String(_, text) = value else { return integer(value) };
    let wrong = || format!("{} is not a size", shown(value));
    let (number, unit) = number_and_unit(text).ok_or_else(wrong)?;
    let shift = match unit {
        "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(wrong()),
    };
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

/// The texts of a list, or of one text with commas.
pub(super) fn list(value: &Value) -> Result<Vec<&str>, Wrong> {
    if let Value::Array(_, items) = value {
        let nested: Result<Vec<_>, _> = items.iter().map(|item| text(item).map(split)).collect();
        return Ok(nested?.into_iter().flatten().collect());
    }
    Ok(split(text(value)?).collect())
}

pub(super) fn ip(value: &Value) -> Result<IpAddr, Wrong> {
    let text = text(value)?;
    let ip = IpAddr::from_str(text).map_err(|_| format!("{} is no IP address", quoted(text)))?;
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    if ip.is_multicast() || broadcast {
        return Err(format!("{ip} is not the address of one host"));
    }
    Ok(ip)
}

pub(super) fn seed(text: &str) -> Result<SeedAddr, Wrong> {
    let (host, port) = host_and_port(text)?;
    let port = port.ok_or_else(|| format!("{} has no port", quoted(text)))?;
    Ok(SeedAddr { host, port })
}

pub(super) fn advertise(value: &Value) -> Result<AdvertiseAddr, Wrong> {
    let (host, port) = host_and_port(text(value)?)?;
    Ok(AdvertiseAddr { host, port })
}

pub(super) fn cluster_name(value: &Value) -> Result<String, Wrong> {
    let name = text(value)?;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if name.len() > 64 {
        return Err(format!("{} has {} bytes", quoted(name), name.len()));
    }
    match name.chars().find(|c| !u8::try_from(*c).is_ok_and(allowed)) {
        Some(c) => Err(format!("{} contains {c:?}", quoted(name))),
        None => Ok(name.to_owned()),
    }
}

/// A level, or directives of the form that `tracing_subscriber` reads.
pub(super) fn log_filter(value: &Value) -> Result<String, Wrong> {
    let text = text(value)?;
    // A bare word that is no level would be taken for the name of a module, and a misspelt level
    // would silently turn logging off.
    let misspelt =
        split(text).find(|part| !text.contains('[') && !part.contains('=') && !is_level(part));
    if let Some(part) = misspelt {
        return Err(format!("{} is no level", quoted(part)));
    }
    match tracing_subscriber::EnvFilter::builder().parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{} is no filter: {error}", quoted(text))),
    }
}

/// Whether this is the name of a log level.
pub(super) fn is_level(word: &str) -> bool {
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    levels.iter().any(|level| word.eq_ignore_ascii_case(level))
}

pub(super) fn quoted(text: &str) -> String {
    let mut chars = text.chars();
    let start: String = chars.by_ref().take(MAX_QUOTED_CHARS).collect();
    if chars.next().is_some() { format!("{start:?}...") } else { format!("{start:?}") }
}

/// Says that a value is not of this kind. Outside YAML, a text that reads as one has become one;
/// if it is still a text, it was in quotes.
fn unquoted<T: FromStr>(value: &Value, kind: &str) -> Wrong {
    match value {
        Value::String(_, text) if text.parse::<T>().is_ok() => {
            format!("{} is a text, because of its quotes, and not a {kind}", quoted(text))
        }
        _ => format!("{} is not a {kind}", shown(value)),
    }
}

fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim)
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(end)?;
    Some((number.parse().ok()?, unit.trim_start()))
}

fn host_and_port(text: &str) -> Result<(String, Option<u16>), Wrong> {
    let (host, port) = split_port(text)?;
    let port = match port {
        None => None,
        Some(digits) => {
            let number: Option<u16> = digits.parse().ok();
            let plain = digits.bytes().all(|b| b.is_ascii_digit());
            match number {
                Some(0) => return Err(format!("{} has port 0", quoted(text))),
                Some(port) if plain => Some(port),
                _ => return Err(format!("{} has no valid port", quoted(text))),
            }
        }
    };
    if host.is_empty() {
        return Err(format!("{} has no host", quoted(text)));
    }
    Ok((checked_host(host, text)?, port))
}

/// Splits off the port. The host of an IPv6 address comes back with one colon at least.
fn split_port(text: &str) -> Result<(&str, Option<&str>), Wrong> {
    if let Some(rest) = text.strip_prefix('[') {
        let unclosed = || format!("{} has no closing bracket", quoted(text));
        let (host, after) = rest.split_once(']').ok_or_else(unclosed)?;
        if Ipv6Addr::from_str(host).is_err() {
            return Err(format!("{} has no IPv6 address in its brackets", quoted(text)));
        }
        return match after.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if after.is_empty() => Ok((host, None)),
            None => Err(format!("{} goes on after the bracket", quoted(text))),
        };
    }
    match text.rsplit_once(':') {
        Some(_) if text.contains('/') => {
            Err(format!("{} has no valid host: this is no place for a URL", quoted(text)))
        }
        Some((host, _)) if host.contains(':') => {
            Err(format!("{} is ambiguous: an IPv6 address goes in brackets", quoted(text)))
        }
        Some((host, port)) => Ok((host, Some(port))),
        None => Ok((text, None)),
    }
}

fn checked_host(host: &str, whole: &str) -> Result<String, Wrong> {
    if let Ok(ip) = IpAddr::from_str(host) {
        let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
        if ip.is_unspecified() || ip.is_multicast() || broadcast {
            return Err(format!("{} is not the address of one host", quoted(whole)));
        }
        return Ok(ip.to_string());
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    let label_ok = |label: &str| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        (1..=MAX_LABEL_BYTES).contains(&label.len()) && label.bytes().all(allowed)
    };
    // Names whose last label is a number are IPv4 addresses, and then wrong ones.
    let numeric = name.rsplit('.').next().is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit()));
    if name.len() > MAX_NAME_BYTES || numeric || !name.split('.').all(label_ok) {
        return Err(format!("{} has no valid host", quoted(whole)));
    }
    Ok(host.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_a_number_and_a_unit() {
        for (text, ms) in [("500ms", 500), ("2s", 2_000), ("1m", 60_000), ("1 h", 3_600_000)] {
            assert_eq!(duration(&text.into()), Ok(Duration::from_millis(ms)));
        }
        for text in ["", "2", "s", "1.5s", "-1s", "2 sec", "2S", "99999999999999999999s"] {
            assert!(duration(&text.into()).is_err(), "{text}");
        }
        assert!(duration(&2u8.into()).is_err());
        assert!(duration(&"18446744073709551615h".into()).is_err());
    }

    #[test]
    fn sizes_are_bytes_or_a_number_and_a_unit() {
        for (text, bytes) in [("10B", 10), ("1KiB", 1_024), ("2 MiB", 2 << 20), ("1GiB", 1 << 30)] {
            assert_eq!(size(&text.into()), Ok(bytes));
        }
        assert_eq!(size(&123u16.into()), Ok(123));
        for text in ["", "1MB", "1.5MiB", "-1", "MiB", "18446744073709551615GiB"] {
            assert!(size(&text.into()).is_err(), "{text}");
        }
        assert!(size(&(-1).into()).is_err());
    }

    #[test]
    fn a_seed_is_a_host_and_a_port() {
        for (text, host, port) in [
            ("10.0.0.1:50071", "10.0.0.1", 50_071),
            ("[::1]:1", "::1", 1),
            ("[2001:DB8::1]:65535", "2001:db8::1", 65_535),
            ("localhost:50071", "localhost", 50_071),
            ("DB-1.internal_zone.:80", "db-1.internal_zone.", 80),
        ] {
            assert_eq!(seed(text), Ok(SeedAddr { host: host.into(), port }), "{text}");
        }
        for (text, says) in [
            ("10.0.0.1", "no port"),
            ("host", "no port"),
            ("host:", "no valid port"),
            ("host:0", "port 0"),
            ("host:65536", "no valid port"),
            ("host:+1", "no valid port"),
            ("host:http", "no valid port"),
            (":50071", "no host"),
            ("", "no host"),
            ("::1:50071", "brackets"),
            ("[::1", "closing bracket"),
            ("[::1]50071", "after the bracket"),
            ("[host]:1", "no IPv6 address"),
            ("10.0.0.300:1", "no valid host"),
            ("10.0.1:1", "no valid host"),
            ("a b:1", "no valid host"),
            ("a..b:1", "no valid host"),
            ("http://host:1", "URL"),
            ("0.0.0.0:1", "not the address of one host"),
            ("[::]:1", "not the address of one host"),
            ("224.0.0.1:1", "not the address of one host"),
            ("255.255.255.255:1", "not the address of one host"),
        ] {
            let wrong = seed(text).unwrap_err();
            assert!(wrong.contains(says), "{text}: {wrong}");
        }
    }

    #[test]
    fn a_seed_reads_back_as_it_is_shown() {
        for text in ["10.0.0.1:1", "[::1]:2", "host.example:3"] {
            assert_eq!(seed(text).map(|seed| seed.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn an_advertised_port_is_optional() {
        let shown = |text: &str| advertise(&text.into()).map(|addr| addr.with_port(7));
        assert_eq!(shown("10.0.0.1"), Ok("10.0.0.1:7".to_owned()));
        assert_eq!(shown("10.0.0.1:9"), Ok("10.0.0.1:9".to_owned()));
        assert_eq!(shown("[::1]"), Ok("[::1]:7".to_owned()));
        for text in ["0.0.0.0", "[::]:1", "239.1.1.1", "host:0", ":1", "::1"] {
            assert!(shown(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_bind_address_is_one_of_a_host_or_a_wildcard() {
        for text in ["127.0.0.1", "0.0.0.0", "::", "::1", "10.1.2.3"] {
            assert!(ip(&text.into()).is_ok(), "{text}");
        }
        for text in ["localhost", "10.0.0.1:80", "[::1]", "224.0.0.1", "ff02::1", ""] {
            assert!(ip(&text.into()).is_err(), "{text}");
        }
    }

    #[test]
    fn cluster_names_have_a_small_alphabet_and_a_bound() {
        for name in ["a", "Prod-1.eu_west", &"x".repeat(64)] {
            assert_eq!(cluster_name(&name.into()), Ok(name.to_owned()));
        }
        for name in ["", "a b", "a/b", "é", &"x".repeat(65)] {
            assert!(cluster_name(&name.into()).is_err(), "{name}");
        }
    }

    #[test]
    fn a_misspelt_level_is_not_taken_for_a_module() {
        for filter in ["info", "WARN", "info,lally=debug", "lally::audit=off", "[span{a=1}]=trace"]
        {
            assert_eq!(log_filter(&filter.into()), Ok(filter.to_owned()));
        }
        for filter in ["", "loud", "inof,lally=debug", "lally=loud"] {
            assert!(log_filter(&filter.into()).is_err(), "{filter}");
        }
    }

    #[test]
    fn a_message_quotes_little_of_a_long_value() {
        assert!(quoted(&"é".repeat(1_000)).chars().count() < 80);
        assert_eq!(quoted("a\nb"), r#""a\nb""#);
    }
}
