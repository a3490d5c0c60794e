//! Every fenced block of every document is run, or stands in a list with the reason why not.
//!
//! A command block is run by `bash -e` as it stands, against nodes of the test's own: only hosts, paths
//! and identities that a reader replaces too are others. A block that is new is run without being
//! registered anywhere. What needs more than a test has is in [`ELSEWHERE`] (another test does it) or in
//! [`PARTLY`], whose blocks are checked as far as they can be.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value as Json;
use serde_yaml::Value as Yaml;

use super::node::{Node, Setup, free_port};
use super::readme::curl_is_there;
use super::ring;

const BINARY: &str = env!("CARGO_BIN_EXE_lally");

/// Blocks that another test runs: the document, how the block begins, the name of the test.
const ELSEWHERE: [(&str, &str, &str); 5] = [
    ("README.md", "lally backup", "the_backups_of_the_documents_are_made_and_nodes_start_on_them"),
    (
        "docs/backup.md",
        "lally --data-dir /var/lib/lally --replay-log",
        "the_backups_of_the_documents_are_made_and_nodes_start_on_them",
    ),
    (
        "docs/backup.md",
        "lally --data-dir /var/lib/lally-2",
        "the_backups_of_the_documents_are_made_and_nodes_start_on_them",
    ),
    ("docs/security.md", "# An authority", "the_three_closed_nodes_of_the_documents_are_a_cluster"),
    ("docs/hooks.md", "cargo run --example", "a_custom_hook_counts_and_refuses"),
];

/// Blocks that do not run in a test: the document, how the block begins, the reason.
const PARTLY: [(&str, &str, &str); 13] = [
    ("README.md", "cargo run --release", "an optimized build takes minutes"),
    ("README.md", "cargo test", "it is this one"),
    ("docs/durability.md", "cargo test --test it every_system_call", "hours"),
    ("docs/faults.md", "make faults", "needs network namespaces, and takes ten minutes"),
    ("docs/simulation.md", "cargo test --test it simulation::", "an hour"),
    ("docs/installation.md", "cargo build", "an optimized build, and writes to /usr"),
    ("docs/installation.md", "make package", "an optimized build, and systemd as process 1"),
    ("docs/installation.md", "useradd", "makes a user, and needs systemd as process 1"),
    ("docs/installation.md", "docker build", "needs docker"),
    ("docs/installation.md", "docker compose", "needs docker"),
    ("docs/installation.md", "kubectl", "needs a Kubernetes cluster"),
    ("docs/installation.md", "helm", "needs a Kubernetes cluster"),
    ("docs/metrics.md", "scrape_configs:", "the configuration of Prometheus"),
];

struct Block {
    document: String,
    language: String,
    text: String,
}

impl Block {
    fn is(&self, (document, begins, _): &(&str, &str, &str)) -> bool {
        self.document == *document && self.text.starts_with(begins)
    }

    fn is_in(&self, list: &[(&str, &str, &str)]) -> bool {
        list.iter().any(|entry| self.is(entry))
    }

    fn name(&self) -> String {
        format!("{}: {}", self.document, self.text.lines().next().unwrap_or_default())
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files below a directory with this ending.
fn files(dir: &Path, ending: &str, deep: bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && deep {
            found.extend(files(&path, ending, deep));
        } else if path.extension().is_some_and(|end| end == ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The fenced blocks of a text, without their indentation.
fn blocks_of(document: &str, text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<(usize, Block)> = None;
    for line in text.lines() {
        let bare = line.trim_start();
        match (bare.strip_prefix("```"), open.as_mut()) {
            (Some(language), None) => {
                let language = language.trim().to_owned();
                let block = Block { document: document.to_owned(), language, text: String::new() };
                open = Some((line.len() - bare.len(), block));
            }
            (Some(_), Some(_)) => blocks.extend(open.take().map(|(_, block)| block)),
            (None, Some((indent, block))) => {
                block.text.push_str(line.get(*indent..).unwrap_or_default());
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "{document}: a block has no end");
    blocks
}

fn blocks() -> Vec<Block> {
    let mut documents = files(root(), "md", false);
    documents.extend(files(&root().join("docs"), "md", false));
    documents.extend(files(&root().join("packaging"), "md", true));
    let of_document = |path: &PathBuf| {
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        blocks_of(&name, &fs::read_to_string(path).unwrap())
    };
    documents.iter().flat_map(of_document).collect()
}

/// The sources of the other tests, one after the other.
fn sources() -> String {
    let files = files(&root().join("tests/it"), "rs", true);
    let others = files.iter().filter(|path| !path.ends_with(file!()));
    others.map(|path| fs::read_to_string(path).unwrap()).collect()
}

/// Runs a script in a directory with `lally` at hand, and with a `curl` that waits for a node that is
/// starting, as a reader does.
fn run(script: &str, dir: &Path, env: &[(&str, String)]) -> Result<(), String> {
    let curl = "silent\nshow-error\nfail\nretry = 60\nretry-delay = 1\nretry-connrefused\n";
    fs::write(dir.join(".curlrc"), curl).unwrap();
    // Load for a second is enough to know that it is measured.
    let script = format!(
        "lally() {{ if [ \"$1\" = bench ]; then set -- \"$@\" --duration 1s --warmup 0s; fi; \
         '{BINARY}' \"$@\"; }}\ncargo() {{ :; }}\npidof() {{ echo \"$NODE_PID\"; }}\n\
         trap 'kill $(jobs -p) 2> /dev/null || :; wait' EXIT\n{script}"
    );
    let mut command = Command::new("bash");
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LALLY_")) {
        command.env_remove(name);
    }
    let output = command
        .current_dir(dir)
        .env("CURL_HOME", dir)
        .envs(env.iter().map(|(name, value)| (name, value)))
        .args(["-ec", &script])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = ["\"status\":\"partial\"", "\"status\":\"error\""];
    if output.status.success() && !failed.iter().any(|status| said.contains(status)) {
        return Ok(());
    }
    Err(format!("{}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr)))
}

/// Runs a block that starts nodes of its own, at other ports and below another directory.
fn run_alone(block: &str) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("target/release")).unwrap();
    std::os::unix::fs::symlink(BINARY, dir.path().join("target/release/lally")).unwrap();
    let named = ["3001", "3002", "3003", "50071", "50072", "50073"];
    let script = named
        .into_iter()
        .fold(block.to_owned(), |script, named| script.replace(named, &free_port().to_string()));
    run(&script.replace("/tmp/", &format!("{}/", dir.path().display())), dir.path(), &[])
}

/// Runs a block for members of a cluster; one of which nothing is heard any more is the last of them.
fn run_in_cluster(block: &str) -> Result<(), String> {
    let mut nodes = ring::start(3, &[]);
    let mut script = block.to_owned();
    for (number, node) in nodes.iter().enumerate() {
        script = script.replace(&format!("localhost:{}", 3001 + number), &node.http().to_string());
    }
    if block.contains("/cluster/forget") {
        let dead = nodes[2].cluster()["node"]["id"].as_str().unwrap().to_owned();
        script = script.replace("9a3b5c7d1e2f4068", &dead);
        nodes[2].kill9();
        ring::wait_state(&nodes[0], &nodes[2], "down");
    }
    let dir = tempfile::tempdir().unwrap();
    run(&script, dir.path(), &[("NODE", nodes[0].http().to_string())])
}

/// Runs a block on the machine of one node, that runs or, for its log, has run.
fn run_beside_a_node(block: &str) -> Result<(), String> {
    let yaml = format!("http_port: {}\ngrpc_port: 0\n", free_port());
    let setup = Setup::new().yaml(&yaml).http_port(None).grpc_port(None);
    let mut node: Node = setup.start_ready();
    node.client().add("greeting", "hello").succeeded();
    let dir = node.setup().dir().to_owned();
    fs::create_dir(dir.join("backup")).unwrap();
    fs::write(dir.join("greeting.txt"), "hello").unwrap();
    let here = node.http().to_string();
    let mut script = block.replace("/backup/", "./backup/");
    if block.contains("lally log ") {
        for place in ["PATH...", "PATH", "DIR"] {
            script = script.replace(&format!(" {place}"), " lally-data");
        }
        assert_eq!(node.terminate(), Some(0));
        let dump = node.setup().run_command(["log", "dump", "lally-data"]);
        fs::write(dir.join("records.jsonl"), dump.stdout).unwrap();
    }
    for host in ["localhost:3000", "db-1:3000", "db-2:3000", "db-2.internal:3000"] {
        script = script.replace(host, &here);
    }
    run(&script, &dir, &[("NODE_PID", node.pid().to_string())])
}

fn run_commands(block: &str) -> Result<(), String> {
    let cluster = ["localhost:3001", "localhost:3002", "localhost:3003", "$NODE"];
    if block.contains(" --data-dir ") && block.contains(" &\n") {
        run_alone(block)
    } else if cluster.iter().any(|host| block.contains(host)) {
        run_in_cluster(block)
    } else {
        run_beside_a_node(block)
    }
}

/// Checks a block of configuration, or a file of tokens, with the files that it names.
fn check_settings(block: &str) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let here = format!("{}/", dir.path().display());
    let (settings, tokens) =
        if block.starts_with("- ") { ("tokens: tokens.yml\n", Some(block)) } else { (block, None) };
    fs::write(dir.path().join("lally.yml"), settings.replace("/etc/lally/", &here)).unwrap();
    fs::write(dir.path().join("search.secret"), "of-at-least-thirty-two-characters").unwrap();
    let make = "lally tls init > made; lally tls node node > made\n\
                cp lally-tls/ca.pem lally-tls/node.pem lally-tls/node.key .\n\
                lally token new app --role write --file tokens.yml > made";
    run(make, dir.path(), &[])?;
    if let Some(tokens) = tokens {
        fs::write(dir.path().join("tokens.yml"), tokens).unwrap();
    }
    run("lally config check", dir.path(), &[])
}

fn check_json(block: &str) -> Result<(), String> {
    let values = serde_json::Deserializer::from_str(block).into_iter::<Json>();
    values.collect::<Result<Vec<_>, _>>().map(drop).map_err(|error| error.to_string())
}

fn there_is(found: bool, what: &str) -> Result<(), String> {
    if found { Ok(()) } else { Err(format!("there is no {what}")) }
}

/// Whether there is what a command line names, of this project.
fn check_names(block: &str) -> Result<(), String> {
    let help = [["--help"].as_slice(), &["status", "--help"]]
        .map(|words| Setup::new().run_command(words).stdout)
        .concat();
    let (sources, makefile) = (sources(), fs::read_to_string(root().join("Makefile")).unwrap());
    let joined = block.replace("\\\n", " ");
    for line in joined.lines().filter(|line| !line.starts_with('#')) {
        let line = line.split(" #").next().unwrap_or_default();
        let words: Vec<_> = line.split_whitespace().collect();
        for pair in words.windows(2) {
            match *pair {
                ["make", target] => there_is(makefile.contains(&format!("\n{target}:")), target)?,
                ["--set", setting] => check_value(setting, &help)?,
                ["--test", name] => there_is(root().join("tests").join(name).exists(), name)?,
                ["--example", name] => {
                    there_is(root().join(format!("examples/{name}.rs")).exists(), name)?;
                }
                _ => {}
            }
        }
        let is_path =
            |word: &&&str| ["packaging/", "docs/"].iter().any(|dir| word.starts_with(dir));
        for path in words.iter().filter(is_path) {
            there_is(root().join(path).exists(), path)?;
        }
        for (name, _) in words.iter().filter_map(|word| word.split_once('=')) {
            if name.starts_with("LALLY_") {
                let is_setting =
                    ["]", ","].iter().any(|end| help.contains(&format!("{name}{end}")));
                there_is(is_setting || sources.contains(name), name)?;
            } else if words.contains(&"make") {
                let used = [format!("$({name})"), format!("$${{{name}:")];
                there_is(used.iter().any(|used| makefile.contains(used)), name)?;
            }
        }
        if words.contains(&"--test") {
            for part in words.last().unwrap_or(&"").split("::").filter(|part| !part.is_empty()) {
                let known = ["fn", "mod"].map(|kind| format!("{kind} {part}"));
                there_is(known.iter().any(|known| sources.contains(known)), part)?;
            }
        }
        if let Some((_, command)) =
            line.split_once(" exec ").and_then(|(_, l)| l.rsplit_once("lally "))
        {
            let done = Setup::new().run_command(command.split_whitespace().chain(["--help"]));
            there_is(done.code == Some(0), command)?;
        }
    }
    Ok(())
}

/// A value of the chart, and of its `config` a setting.
fn check_value(setting: &str, help: &str) -> Result<(), String> {
    let (name, _) = setting.split_once('=').ok_or("a value without one")?;
    let file = root().join("packaging/helm/lally/values.yaml");
    let values: Yaml = serde_yaml::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    if let Some(key) = name.strip_prefix("config.") {
        return there_is(help.contains(&format!("--{} ", key.replace('_', "-"))), name);
    }
    let found = name.split('.').try_fold(&values, |values, part| values.get(part));
    there_is(found.is_some(), name)
}

#[test]
fn every_block_of_the_documents_does_what_it_is_there_for() {
    if !curl_is_there() {
        return;
    }
    let (mut wrong, mut ran) = (Vec::new(), 0);
    for block in blocks() {
        let listed = block.is_in(&ELSEWHERE) || block.is_in(&PARTLY);
        let done = match (block.language.as_str(), listed) {
            ("sh", true) => check_names(&block.text),
            ("sh", false) => {
                ran += 1;
                check_names(&block.text).and_then(|()| run_commands(&block.text))
            }
            ("yaml", false) => check_settings(&block.text),
            ("json", _) => check_json(&block.text),
            ("yaml", true) | ("text" | "python", _) => Ok(()),
            (other, _) => Err(format!("{other:?} is none of sh, yaml, json, text and python")),
        };
        wrong.extend(done.err().map(|error| format!("{}\n  {error}", block.name())));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(ran >= 25, "only {ran} blocks were run");
}

#[test]
fn every_block_that_is_not_run_here_is_there_and_has_its_test() {
    let (blocks, sources) = (blocks(), sources());
    for entry in ELSEWHERE.iter().chain(&PARTLY) {
        let meant = blocks.iter().filter(|block| block.is(entry)).count();
        assert_eq!(meant, 1, "blocks of {} that begin with {:?}", entry.0, entry.1);
    }
    for (_, _, test) in ELSEWHERE {
        assert!(sources.contains(&format!("fn {test}()")), "there is no test {test}");
    }
    let distinct: BTreeSet<_> = blocks.iter().map(Block::name).collect();
    assert!(distinct.len() >= 60, "{distinct:?}");
}

#[test]
fn blocks_that_are_wrong_are_noticed() {
    if !curl_is_there() {
        return;
    }
    for block in [
        "make no-such-target",
        "make sim SEED=1",
        "cargo test --test it no_such_tests",
        "helm install lally packaging/helm/none",
        "helm install lally packaging/helm/lally --set config.fsnyc=always",
        "helm install lally packaging/helm/lally --set image.name=x",
        "docker exec lally lally statsu",
        "docker run --env LALLY_INSECRUE=true lally",
    ] {
        assert!(check_names(block).is_err(), "{block}");
    }
    assert!(run_beside_a_node("lally get no-such-key\n").is_err());
    assert!(run_beside_a_node("curl localhost:3000/get --json '{\"key\":1}'\n").is_err());
    assert!(check_settings("http_prot: 1\n").is_err());
    assert!(check_json("{\"a\":1}\n{").is_err());
    let blocks = blocks_of("a.md", "- x\n  ```sh\n  one\n  ```\n```\ntwo\n```\n");
    let found: Vec<_> = blocks.iter().map(|b| (b.language.as_str(), b.text.as_str())).collect();
    assert_eq!(found, [("sh", "one\n"), ("", "two\n")]);
}
