//! The architecture, held by reading the sources: who names whom, and what a file looks like.
//!
//! A small tokenizer (comments and literals dropped) finds the paths that a file names, in `use`
//! trees and elsewhere, resolves `crate`, `self` and `super`, and asks the rules. `tests/layers`
//! holds the same by compiling half of the crate; each sees what the other cannot. Every rule has
//! its own test that it catches a fabricated violation.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const MAX_LINES: usize = 400;
const VAGUE_NAMES: [&str; 6] = ["utils", "helpers", "common", "misc", "types", "manager"];
/// What the application layer must not know, whatever `Cargo.toml` offers.
const TECHNOLOGIES: [&str; 13] = [
    "axum",
    "axum_server",
    "clap",
    "dashmap",
    "figment",
    "foca",
    "hyper_util",
    "prost",
    "prometheus_client",
    "rustix",
    "serde_yaml",
    "tonic",
    "tonic_prost",
];

/// A file below `src`.
struct Source {
    /// Relative to `src`.
    path: PathBuf,
    text: String,
    /// Compiled for tests only: declared behind `#[cfg(test)]`.
    for_tests: bool,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.into(), text: text.to_owned(), for_tests: false }
    }

    /// `adapters/http/routes.rs` is `[adapters, http, routes]`; the roots are empty.
    fn module(&self) -> Vec<String> {
        let mut module: Vec<_> = self
            .path
            .with_extension("")
            .iter()
            .map(|part| part.to_string_lossy().into_owned())
            .collect();
        if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
            module.pop();
        }
        module
    }

    /// The text before the unit tests.
    fn production(&self) -> &str {
        let tests = self.text.find("#[cfg(test)]\nmod tests");
        &self.text[..tests.unwrap_or(self.text.len())]
    }
}

/// What a path starts with, once resolved.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    /// A module or item of this crate, from its root.
    Inside(Vec<String>),
    /// Another crate.
    Crate(String),
}

fn names(module: &[String], text: &str, crates: &BTreeSet<String>) -> BTreeSet<Name> {
    paths(&tokens(text)).into_iter().filter_map(|path| resolve(module, path, crates)).collect()
}

fn resolve(module: &[String], path: Vec<String>, crates: &BTreeSet<String>) -> Option<Name> {
    let mut rest = path.into_iter().peekable();
    let mut base = match rest.peek()?.as_str() {
        "crate" | "lally" => {
            rest.next();
            Vec::new()
        }
        "self" => {
            rest.next();
            module.to_vec()
        }
        "super" => module.to_vec(),
        name if crates.contains(name) => return Some(Name::Crate(name.to_owned())),
        _ => return None,
    };
    while rest.next_if(|part| part == "super").is_some() {
        base.pop();
    }
    base.extend(rest);
    Some(Name::Inside(base))
}

/// Identifiers and punctuation, without comments, strings, characters and lifetimes.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(length) = raw_string(rest).or_else(|| quoted(rest)) {
            length
        } else if first == '_' || first.is_alphanumeric() {
            let end = rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
            tokens.push(rest[..end].to_owned());
            end
        } else if rest.starts_with("::") {
            tokens.push("::".to_owned());
            2
        } else {
            if !first.is_whitespace() {
                tokens.push(first.to_string());
            }
            first.len_utf8()
        };
        rest = &rest[skip..];
    }
    tokens
}

fn raw_string(text: &str) -> Option<usize> {
    let body = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = body.len() - body.trim_start_matches('#').len();
    body[hashes..].starts_with('"').then_some(())?;
    let start = text.len() - body.len() + hashes + 1;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(text[start..].find(&end).map_or(text.len(), |at| start + at + end.len()))
}

/// The length of a string, a character or a lifetime at the start of the text.
fn quoted(text: &str) -> Option<usize> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return Some(at + 1),
            // No closing quote where a character's would be: a lifetime.
            _ if quote == '\'' && at > 1 && !text[1..].starts_with('\\') => return Some(1),
            _ => {}
        }
    }
    Some(text.len())
}

/// Every path with its segments: `use` trees spread out, and `a::b` anywhere else.
fn paths(tokens: &[String]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        // `use<..>` behind a type says what that captures.
        if token == "use" && tokens.get(at + 1).is_none_or(|next| next != "<") {
            at = use_tree(tokens, at + 1, &[], &mut found);
        } else if is_name(token) && tokens.get(at + 1).is_some_and(|next| next == "::") {
            let mut path = vec![token.clone()];
            while tokens.get(at + 1).is_some_and(|next| next == "::")
                && tokens.get(at + 2).is_some_and(|next| is_name(next))
            {
                path.push(tokens[at + 2].clone());
                at += 2;
            }
            found.push(path);
            at += 1;
        } else {
            at += 1;
        }
    }
    found
}

/// Reads one tree of a `use`, and returns where it ends.
fn use_tree(
    tokens: &[String],
    start: usize,
    prefix: &[String],
    found: &mut Vec<Vec<String>>,
) -> usize {
    let mut path = prefix.to_vec();
    let mut at = start;
    while let Some(token) = tokens.get(at) {
        match token.as_str() {
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token != "}") {
                    at = use_tree(tokens, at, &path, found);
                    at += usize::from(tokens.get(at).is_some_and(|token| token == ","));
                }
                return at + 1;
            }
            "," | "}" | ";" => break,
            "as" => at += 1,
            "::" | "*" => {}
            // `use a::{self}` is `use a`.
            "self" if !path.is_empty() => {}
            name => path.push(name.to_owned()),
        }
        at += 1;
    }
    found.push(path);
    at
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c == '_' || c.is_alphabetic())
}

/// Whether a file of this module may name that.
fn may_name(module: &[String], name: &Name, in_tests: bool) -> bool {
    let part = |at: usize| module.get(at).map_or("", String::as_str);
    let layer = part(0);
    match name {
        Name::Crate(krate) => {
            let krate = krate.as_str();
            match layer {
                "domain" => {
                    ["arcstr", "bytes", "thiserror", "xxhash_rust"].contains(&krate)
                        || in_tests && krate == "proptest"
                }
                // `#[cfg_attr(test, mockall::automock)]` stands above every trait.
                "ports" => ["async_trait", "bytes", "mockall", "thiserror"].contains(&krate),
                "app" => part(1) == "compose" || !TECHNOLOGIES.contains(&krate),
                _ => true,
            }
        }
        Name::Inside(path) => {
            let first = path.first().map_or("", String::as_str);
            let second = path.get(1).map_or("", String::as_str);
            match layer {
                "domain" => first == "domain",
                "ports" => ["domain", "ports"].contains(&first),
                "adapters" => {
                    ["domain", "ports"].contains(&first) || first == "adapters" && second == part(1)
                }
                "app" => {
                    ["domain", "ports", "app"].contains(&first)
                        || first == "adapters" && part(1) == "compose"
                }
                // The roots: `lib.rs` declares, `main.rs` starts.
                _ => first == "app" || first == "adapters" && second == "config",
            }
        }
    }
}

fn layer_violations(sources: &[Source], crates: &BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        let module = source.module();
        // Unit tests of adapters and of the application may take what they need.
        let pure = matches!(module.first().map(String::as_str), Some("domain" | "ports"));
        if source.for_tests && !pure {
            continue;
        }
        let production = names(&module, source.production(), crates);
        let mut forbidden: BTreeSet<_> =
            production.into_iter().filter(|name| !may_name(&module, name, false)).collect();
        if pure {
            let tests = &source.text[source.production().len()..];
            let mut inner = module.clone();
            inner.push("tests".into());
            forbidden.extend(
                names(&inner, tests, crates).into_iter().filter(|n| !may_name(&module, n, true)),
            );
        }
        found.extend(
            forbidden.iter().map(|name| format!("{} names {name:?}", source.path.display())),
        );
    }
    found
}

fn entry_violations(sources: &[Source]) -> Vec<String> {
    let merges = |source: &&Source| {
        let tokens = tokens(source.production());
        let merges_store =
            tokens.windows(3).any(|w| w[0] == "store" && w[1] == "." && w[2] == "merge");
        source.path.starts_with("app") && !source.for_tests && merges_store
    };
    sources
        .iter()
        .filter(merges)
        // The latter takes in what is in the log already.
        .filter(|source| {
            ["app/apply.rs", "app/restorer.rs"].iter().all(|p| source.path != Path::new(p))
        })
        .map(|source| format!("{} merges into the store itself", source.path.display()))
        .collect()
}

fn form_violations(source: &Source) -> Vec<String> {
    let path = source.path.display();
    let mut found = Vec::new();
    if !source.text.starts_with("//! ") {
        found.push(format!("{path} does not open with //!"));
    }
    let lines = source.production().lines().count();
    if lines > MAX_LINES && !source.for_tests {
        found.push(format!("{path} has {lines} lines of production code"));
    }
    if source.path.file_name().is_some_and(|name| name == "mod.rs") && !declares_only(&source.text)
    {
        found.push(format!("{path} holds code"));
    }
    for part in source.module() {
        if VAGUE_NAMES.contains(&part.as_str()) {
            found.push(format!("{path}: {part} says nothing"));
        }
    }
    found
}

/// Whether there is nothing but `mod name;`, `use ...;` and attributes.
fn declares_only(text: &str) -> bool {
    let tokens = tokens(text);
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        let end = match token.as_str() {
            "#" => "]",
            "pub" if tokens.get(at + 1).is_some_and(|next| next == "(") => ")",
            "pub" => "pub",
            "mod" | "use" => ";",
            _ => return false,
        };
        // An inline module is code.
        let inline = token == "mod" && tokens.get(at + 2).is_some_and(|next| next == "{");
        let Some(length) = tokens[at..].iter().position(|token| token == end) else { return false };
        if inline {
            return false;
        }
        at += length + 1;
    }
    true
}

/// The names of the crates in `Cargo.toml`, as code spells them.
fn crates_in(manifest: &str) -> BTreeSet<String> {
    let mut crates = BTreeSet::new();
    let mut inside = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.ends_with("dependencies]");
        } else if let (true, Some((name, _))) = (inside, line.split_once('=')) {
            crates.insert(name.trim().replace('-', "_"));
        }
    }
    crates
}

fn sources() -> Vec<Source> {
    fn walk(dir: &Path, root: &Path, found: &mut Vec<Source>) {
        let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                walk(&path, root, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.push(Source::new(&name, &fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &root, &mut found);
    mark_for_tests(&mut found);
    found
}

/// Marks the files whose `mod` line stands behind `#[cfg(test)]`.
fn mark_for_tests(sources: &mut [Source]) {
    let mut for_tests = BTreeSet::new();
    for source in sources.iter() {
        let parent = source.module();
        for (_, behind) in source
            .text
            .match_indices("#[cfg(test)]")
            .map(|(at, m)| (at, &source.text[at + m.len()..]))
        {
            let mut words = behind.split_whitespace().skip_while(|word| word.starts_with("pub"));
            if words.next() == Some("mod")
                && let Some(name) = words.next().and_then(|word| word.strip_suffix(';'))
            {
                for_tests.insert([&parent[..], &[name.to_owned()]].concat());
            }
        }
    }
    for source in sources {
        source.for_tests = for_tests.iter().any(|module| source.module().starts_with(module));
    }
}

fn manifest_crates() -> BTreeSet<String> {
    crates_in(
        &fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap(),
    )
}

#[test]
fn every_layer_names_only_what_it_may() {
    let found = layer_violations(&sources(), &manifest_crates());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn entries_reach_the_store_through_the_replica_alone() {
    let found = entry_violations(&sources());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_file_has_the_agreed_form() {
    let found: Vec<_> = sources().iter().flat_map(form_violations).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_sources_and_the_crates_are_found() {
    let sources = sources();
    for path in ["lib.rs", "main.rs", "domain/mod.rs", "ports/mod.rs", "adapters/mod.rs"] {
        assert!(sources.iter().any(|source| source.path == Path::new(path)), "{path}");
    }
    let crates = manifest_crates();
    for name in ["tokio", "async_trait", "mockall", "tonic_prost_build"] {
        assert!(crates.contains(name), "{name}: {crates:?}");
    }
    assert!(!crates.contains("edition"));
}

/// What the layer rules say about one fabricated file.
fn judged(path: &str, text: &str) -> usize {
    layer_violations(&[Source::new(path, text)], &manifest_crates()).len()
}

#[test]
fn a_domain_that_names_a_runtime_or_another_layer_is_caught() {
    assert_eq!(
        judged("domain/key.rs", "use std::fmt;\nuse super::Value;\nuse thiserror::Error;"),
        0
    );
    assert_eq!(judged("domain/key.rs", "use tokio::time::Instant;"), 1);
    assert_eq!(judged("domain/key.rs", "fn f() { serde_json::to_string(&1); }"), 1);
    assert_eq!(judged("domain/key.rs", "use crate::ports::Store;"), 1);
    assert_eq!(judged("domain/key.rs", "use super::super::ports::Store;"), 1);
    assert_eq!(judged("domain/key.rs", "use crate::{domain::Key, app as house};"), 1);
    assert_eq!(
        judged(
            "domain/key.rs",
            "#[cfg(test)]\nmod tests { use super::*; use proptest::prelude::*; }"
        ),
        0
    );
    assert_eq!(judged("domain/key.rs", "use proptest::prelude::*;"), 1);
    assert_eq!(judged("domain/key.rs", "#[cfg(test)]\nmod tests { use crate::app::X; }"), 1);
}

#[test]
fn a_port_that_names_an_adapter_or_a_technology_is_caught() {
    assert_eq!(
        judged(
            "ports/log.rs",
            "use async_trait::async_trait;\nuse crate::domain::Key;\n#[cfg_attr(test, mockall::automock)]\nuse super::Store;"
        ),
        0
    );
    assert_eq!(judged("ports/log.rs", "use crate::adapters::file_aof::Aof;"), 1);
    assert_eq!(judged("ports/log.rs", "use tonic::Status;"), 1);
}

#[test]
fn an_adapter_that_names_the_application_or_another_adapter_is_caught() {
    assert_eq!(
        judged(
            "adapters/http/routes.rs",
            "use axum::Router;\nuse super::body::Body;\nuse crate::{ports::Store, domain};"
        ),
        0
    );
    assert_eq!(judged("adapters/http/routes.rs", "use crate::app::Node;"), 1);
    assert_eq!(judged("adapters/http/routes.rs", "use crate::adapters::grpc::GrpcPeers;"), 1);
    assert_eq!(judged("adapters/http/routes.rs", "use super::super::grpc::GrpcPeers;"), 1);
    assert_eq!(judged("adapters/http/routes.rs", "fn f() { crate::adapters::clock::now() }"), 1);
}

#[test]
fn an_application_that_names_an_adapter_outside_compose_is_caught() {
    assert_eq!(judged("app/node.rs", "use crate::adapters::clock::SystemClock;"), 1);
    assert_eq!(judged("app/node.rs", "use axum::Router;"), 1);
    assert_eq!(judged("app/node.rs", "use tokio::sync::Notify;\nuse super::Stage;"), 0);
    assert_eq!(judged("app/compose/mod.rs", "use crate::adapters::{clock, http};"), 0);
    assert_eq!(judged("app/compose.rs", "use crate::adapters::{clock, http};"), 0);
}

#[test]
fn a_main_that_reaches_past_the_application_is_caught() {
    assert_eq!(judged("main.rs", "use lally::app::compose;\nuse lally::adapters::config;"), 0);
    assert_eq!(judged("main.rs", "use lally::domain::Key;"), 1);
    assert_eq!(judged("main.rs", "use lally::adapters::http;"), 1);
}

#[test]
fn what_stands_in_comments_strings_and_test_modules_is_no_name() {
    let text = "// use tokio::x;\n/* tonic::y */ const A: &str = \"tokio::z\"; const B: char = '\"';\n\
                fn f<'a>(x: &'a str) { let _ = r#\"tonic::\"w\"\"#; }";
    assert_eq!(judged("domain/key.rs", text), 0);
    assert_eq!(judged("domain/key.rs", &format!("{text}\nfn g() {{ tokio::spawn(x) }}")), 1);
    assert_eq!(judged("domain/key.rs", "fn f() -> impl Fn() + use<> { tokio::spawn(x) }"), 1);
    assert_eq!(judged("app/x.rs", "#[cfg(test)]\nmod tests { use crate::adapters::memory; }"), 0);
    let mut sources = [
        Source::new("app/mod.rs", "#[cfg(test)]\nmod fixture;"),
        Source::new("app/fixture.rs", "use crate::adapters::memory::MemoryLog;"),
    ];
    mark_for_tests(&mut sources);
    assert!(layer_violations(&sources, &manifest_crates()).is_empty());
}

#[test]
fn a_second_way_into_the_store_is_caught() {
    let sneaky =
        |path: &str| entry_violations(&[Source::new(path, "fn f() { self.store.merge(e); }")]);
    assert_eq!(sneaky("app/repair.rs").len(), 1);
    assert!(sneaky("app/apply.rs").is_empty());
}

#[test]
fn a_file_without_an_opening_is_caught() {
    assert_eq!(form_violations(&Source::new("domain/a.rs", "use std::fmt;")).len(), 1);
    assert!(form_violations(&Source::new("domain/a.rs", "//! What it is.\n")).is_empty());
}

#[test]
fn a_file_that_is_too_long_is_caught() {
    let long = "//! Long.\n".to_owned() + &"const A: u8 = 1;\n".repeat(MAX_LINES);
    assert_eq!(form_violations(&Source::new("domain/a.rs", &long)).len(), 1);
    let tests = "//! Long tests.\n#[cfg(test)]\nmod tests {\n".to_owned() + &"\n".repeat(MAX_LINES);
    assert!(form_violations(&Source::new("domain/a.rs", &tests)).is_empty());
}

#[test]
fn code_in_a_mod_rs_is_caught() {
    let fine = "//! Doc.\n\nmod a;\npub mod b;\n#[cfg(test)]\npub use self::{a::X, b::*};\npub(crate) use a::Y;\n";
    assert!(form_violations(&Source::new("domain/mod.rs", fine)).is_empty());
    for code in ["fn f() {}", "const A: u8 = 1;", "mod a { fn f() {} }", "pub struct S;"] {
        let text = format!("//! Doc.\n{code}\n");
        assert_eq!(form_violations(&Source::new("domain/mod.rs", &text)).len(), 1, "{code}");
    }
}

#[test]
fn a_vague_name_is_caught() {
    for path in ["app/utils.rs", "adapters/common/mod.rs", "domain/types.rs"] {
        assert_eq!(form_violations(&Source::new(path, "//! Doc.\n")).len(), 1, "{path}");
    }
}
