//! How people read what a node says.

use std::borrow::Cow;
use std::fmt::Write;

use super::answers::{ClusterAnswer, Member, OtherMember, StopAnswer};

/// A text for a terminal: what could steer it is escaped, line breaks and tabs are not.
pub(super) fn harmless(text: &str) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if steers(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// JSON for a terminal, likewise: it means the same.
pub(super) fn harmless_json(json: &str) -> Cow<'_, str> {
    // What is below the space, JSON itself does not let through.
    let steers = |c: char| ('\u{7f}'..='\u{9f}').contains(&c);
    if !json.contains(steers) {
        return Cow::Borrowed(json);
    }
    let mut shown = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if steers(c) {
            // Writing to a String does not fail.
            write!(shown, "\\u{:04x}", u32::from(c)).unwrap_or_default();
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// The members, a line each, the one that was asked first.
pub(super) fn cluster(answer: &ClusterAnswer) -> String {
    let ClusterAnswer { keys, tombstones, .. } = answer;
    let [cluster, digest] = [&answer.cluster, &answer.digest].map(|text| harmless(text));
    let titles =
        ["ID", "STATE", "GRPC", "HTTP", "VERSION", "HINTS", "IN SYNC", "LAG", "HEARD", "CLOCK"];
    let mut rows = vec![titles.map(str::to_owned)];
    rows.push(row(&answer.node, ["-"; 5].map(str::to_owned)));
    for other in &answer.members {
        let OtherMember { member, hints, in_sync, clock_offset_ms, last_heard_ms, lag_ms } = other;
        let clock = clock_offset_ms.map_or_else(unknown, |ms| format!("{ms:+} ms"));
        let heard = last_heard_ms.map_or_else(unknown, |ms| format!("{} ago", seconds(ms)));
        let lag = lag_ms.map_or_else(unknown, seconds);
        rows.push(row(member, [hints.to_string(), yes(*in_sync).to_owned(), lag, heard, clock]));
    }
    let mut out =
        format!("cluster {cluster}: {keys} keys, {tombstones} tombstones, digest {digest}\n");
    out.push_str(&table(&rows));
    out
}

fn unknown() -> String {
    "-".to_owned()
}

/// A time in whole seconds, as precise as it is known.
fn seconds(ms: u64) -> String {
    format!("{} s", ms / 1_000)
}

fn row(member: &Member, rest: [String; 5]) -> [String; 10] {
    let [hints, in_sync, lag, heard, clock] = rest;
    let Member { id, state, grpc_addr, http_addr, version } = member;
    let version = version.as_ref().map_or("-", String::as_str);
    let [id, state, grpc_addr, http_addr, version] =
        [id, state, grpc_addr, http_addr, version].map(|text| harmless(text).into_owned());
    [id, state, grpc_addr, http_addr, version, hints, in_sync, lag, heard, clock]
}

/// Columns as wide as what is in them.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            // Writing to a String does not fail.
            write!(line, "{cell:<width$}  ").unwrap_or_default();
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// How a node is, in three lines.
pub(super) fn status(
    addr: &str,
    not_ready: Option<&str>,
    cluster: &ClusterAnswer,
    stop: &StopAnswer,
) -> String {
    let others = &cluster.members;
    let count = |state: &str| others.iter().filter(|other| other.member.state == state).count();
    let behind = others.iter().filter(|other| !other.in_sync).count();
    let ready = not_ready.map_or("ready".to_owned(), |why| format!("not ready: {}", harmless(why)));
    let version = cluster.node.version.as_ref();
    let version = version.map(|is| format!(", version {}", harmless(is))).unwrap_or_default();
    let lag = others.iter().filter(|other| !other.in_sync).filter_map(|other| other.lag_ms).max();
    let lag = lag.map(|ms| format!(" (for up to {})", seconds(ms))).unwrap_or_default();
    let stopping = if stop.safe {
        "safe to stop".to_owned()
    } else {
        format!("not safe to stop: {}", harmless(&stop.reasons.join("; ")))
    };
    format!(
        "node {} of cluster {} at {addr}{version}: {ready}\n{} keys, {} tombstones; {} other members, {} alive, {behind} \
         not in sync{lag}\n{stopping}\n",
        harmless(&cluster.node.id),
        harmless(&cluster.cluster),
        cluster.keys,
        cluster.tombstones,
        others.len(),
        count("alive"),
    )
}

const fn yes(is_so: bool) -> &'static str {
    if is_so { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> ClusterAnswer {
        serde_json::from_str(
            r#"{"cluster":"lally","node":{"id":"1","grpc_addr":"a:1","http_addr":"a:2","state":"alive",
                "version":"0.2.0"},"members":[{"id":"22","grpc_addr":"bb:1","http_addr":"b:2","state":"down","hints":7,
                "in_sync":false,"clock_offset_ms":-3,"last_heard_ms":61999,"lag_ms":62000,
                "version":null}],"keys":5,"tombstones":1,"digest":"00ff"}"#,
        )
        .unwrap()
    }

    #[test]
    fn the_members_stand_in_columns() {
        let expected = "\
cluster lally: 5 keys, 1 tombstones, digest 00ff
ID  STATE  GRPC  HTTP  VERSION  HINTS  IN SYNC  LAG   HEARD     CLOCK
1   alive  a:1   a:2   0.2.0    -      -        -     -         -
22  down   bb:1  b:2   -        7      no       62 s  61 s ago  -3 ms
";
        assert_eq!(cluster(&asked()), expected);
    }

    #[test]
    fn a_status_says_whether_and_why_not() {
        let safe = StopAnswer { safe: true, reasons: Vec::new() };
        let expected = "node 1 of cluster lally at a:2, version 0.2.0: ready\n5 keys, 1 tombstones; \
                        1 other members, 0 alive, 1 not in sync (for up to 62 s)\nsafe to stop\n";
        assert_eq!(status("a:2", None, &asked(), &safe), expected);
        let reasons = vec!["it is the last one".to_owned(), "b needs it".to_owned()];
        let shown = status("a:2", Some("joining"), &asked(), &StopAnswer { safe: false, reasons });
        assert!(shown.contains("not ready: joining\n"), "{shown}");
        assert!(shown.ends_with("not safe to stop: it is the last one; b needs it\n"), "{shown}");
    }

    #[test]
    fn what_steers_a_terminal_is_escaped_and_nothing_else() {
        assert_eq!(harmless("\u{1b}[2Jx\r"), "\\u{1b}[2Jx\\r");
        for text in ["", "a b", "a\n\tb", "é🦀", "\\u{1b}"] {
            assert!(matches!(harmless(text), Cow::Borrowed(_)), "{text:?}");
        }
        assert_eq!(harmless("\u{9b}31m"), "\\u{9b}31m");
    }

    #[test]
    fn json_that_steers_a_terminal_is_escaped_and_means_the_same() {
        let value = "\u{9b}2J é\u{7f}\n";
        let json = serde_json::to_string(value).unwrap();
        let shown = harmless_json(&json);
        assert!(!shown.contains(char::is_control), "{shown}");
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), value);
        assert!(matches!(harmless_json("{}"), Cow::Borrowed(_)));
    }
}
