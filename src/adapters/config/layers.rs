//! The layers, lowest first: defaults, file, environment, command line.
//!
//! Every layer is checked on its own before the next one covers it: a mistake in the file is
//! refused also where a flag overrules it, since it would come to light on another day.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::absence::{self, is_absent, present};
use super::ask::{self, ADDR, ADDR_VARIABLE};
use super::cli::{Asked, CommandLine};
use super::effective::{Setting, Settings, Source};
use super::errors::{ConfigExit, Mistake, Refused};
use super::invocation::{Command, Invocation, LogCommand, TlsCommand};
use super::keys::{CONFIG, KEYS, KeySpec, Kind};
use super::section::{SECTIONS, SectionSpec};
use super::security::{Login, Purpose};
use super::{Config, cli, file, forms, manual, secrets};

/// The file that is read if it exists and no other one is named.
const DEFAULT_FILE: &str = "./lally.yml";

const RUST_LOG: &str = "RUST_LOG";
const LOG_LEVEL: &str = "log_level";

/// Reads what is to be done from the command line (the first argument is the program), and the
/// configuration for that from there, the environment and the file they name, or `./lally.yml`.
/// What needs no configuration is not held up by a mistake in it.
///
/// # Errors
/// Help and version, and every refusal, with what to print and the exit code. Nothing was touched.
pub fn parse(args: Vec<OsString>, env: Vec<(String, String)>) -> Result<Invocation, ConfigExit> {
    parse_beside(Path::new(DEFAULT_FILE), args, env)
}

fn parse_beside(
    default_file: &Path,
    args: Vec<OsString>,
    env: Vec<(String, String)>,
) -> Result<Invocation, ConfigExit> {
    let CommandLine { flags, asked, login } = cli::read(args)?;
    let flags = &flags;
    // Of a variable that is there twice, the later one counts, as in a shell.
    let env: Env = env.into_iter().filter(|(name, text)| absence::counts(name, text)).collect();
    // A flag of this command is more than a variable for all.
    let named = env.get(ADDR_VARIABLE).filter(|_| flags.is_empty());
    let merged = || merge(default_file, flags, &env, Purpose::Run);
    let config =
        || merge(default_file, flags, &env, Purpose::Ask).map(|(config, _)| Box::new(config));
    let mut login = secrets::or_from_variables(login, |variable| env.get(variable).cloned());
    let command = match asked {
        Asked::Run => {
            let (config, settings) = merged()?;
            return Ok(Invocation::Run { config: Box::new(config), settings });
        }
        Asked::ConfigCheck => {
            let (config, settings) = merged()?;
            let (config, fine) = (Box::new(config), settings.found_fine());
            return Ok(Invocation::Do(Command::CheckConfig { config, fine }, Login::default()));
        }
        Asked::ConfigShow(form) => return Ok(print(merged()?.1.shown(form))),
        Asked::Completions(shell) => return Ok(print(manual::completions(shell))),
        Asked::Man(dir) => return Ok(Invocation::Do(manual::pages(dir), login)),
        Asked::LogCheck(paths) => LogCommand::Check { paths },
        Asked::LogDump(paths) => LogCommand::Dump { paths },
        Asked::LogRepair(path) => LogCommand::Repair { path },
        Asked::LogImport(file) => LogCommand::Import { file, node: config()? },
        Asked::Backup { to, from } => {
            let from = match from {
                Some(addr) => addr.to_string(),
                None => ask::node_here(named, "from", &mut login, config)?,
            };
            return Ok(Invocation::Do(Command::Backup { to, from }, login));
        }
        Asked::Bench(mut plan) => {
            if plan.addrs.is_empty() {
                plan.addrs = vec![ask::node_here(named, ADDR, &mut login, config)?];
            }
            return Ok(Invocation::Do(Command::Bench(plan), login));
        }
        Asked::Ask(mut plan) => {
            if plan.addr.is_empty() {
                plan.addr = ask::node_here(named, ADDR, &mut login, config)?;
            }
            return Ok(Invocation::Do(Command::Ask(plan), login));
        }
        Asked::Settled(command) => return Ok(Invocation::Do(command, login)),
        Asked::Tls(mut command) => {
            if let TlsCommand::Node { cluster, .. } = &mut command {
                *cluster = config()?.cluster_name;
            }
            return Ok(Invocation::Do(Command::Tls(command), login));
        }
    };
    Ok(Invocation::Do(Command::Log(command), login))
}

fn print(text: String) -> Invocation {
    Invocation::Do(Command::Print(text), Login::default())
}

type Texts = Vec<(&'static KeySpec, String)>;

/// Without empty variables that count as left out.
type Env = BTreeMap<String, String>;

/// What the layers say together; or every mistake in any of them.
fn merge(
    default_file: &Path,
    flags: &Texts,
    env: &Env,
    purpose: Purpose,
) -> Result<(Config, Settings), Refused> {
    let variables = variables(env);
    let file = chosen_file(default_file, flags, &variables);
    let mut mistakes = Vec::new();
    let mut layers = vec![Layer::texts(Place::Default, defaults())];
    if let Some(chosen) = &file {
        layers.push(Layer::file(chosen, &mut mistakes));
    }
    layers.push(Layer::texts(Place::RustLog, rust_log(env)));
    layers.push(Layer::texts(Place::Environment, variables));
    layers.push(Layer::texts(Place::Flags, flags.clone()));

    let path = file.map(|chosen| chosen.path);
    let (mut figment, mut config, mut found) = (Figment::new(), None, BTreeMap::new());
    for mut layer in layers {
        layer.refuse_blanks(&mut mistakes);
        let (merged, read) = cover(&figment, &mut layer, path.as_ref(), &mut mistakes)?;
        (figment, config) = (merged, Some(read));
        found.extend(layer.settings());
    }
    let config = config.ok_or_else(|| Refused::new("there are no settings at all"))?;
    // What is wrong already is not held against what is right.
    let is_known =
        |key: &&str| mistakes.iter().all(|m| !m.keys.is_empty() && !m.keys.contains(key));
    let rules =
        config.check(&figment, purpose).into_iter().filter(|rule| rule.keys.iter().all(is_known));
    let rules: Vec<_> = rules.collect();
    mistakes.extend(rules);
    if !mistakes.is_empty() {
        return Err(Refused(mistakes));
    }
    let settings = Settings::new(&config, found);
    Ok((config, settings))
}

/// The settings with this layer on top of those below, without what is wrong in it.
fn cover(
    below: &Figment,
    layer: &mut Layer,
    path: Option<&PathBuf>,
    mistakes: &mut Vec<Mistake>,
) -> Result<(Figment, Config), Refused> {
    loop {
        let merged = below.clone().merge(layer.clone());
        let mistake = match Config::read(&merged, path.cloned()) {
            Ok(config) => return Ok((merged, config)),
            Err(mistake) => mistake,
        };
        let wrong = mistake.keys.iter().filter_map(|key| layer.values.remove(*key)).count();
        mistakes.push(mistake);
        // What stands below was right.
        if wrong == 0 {
            return Err(Refused(std::mem::take(mistakes)));
        }
    }
}

/// Where a value stands, so that a message can send its reader there.
#[derive(Debug, Clone)]
enum Place {
    Default,
    File(String),
    RustLog,
    Environment,
    Flags,
}

impl Place {
    fn of(&self, key: &str) -> String {
        let spec = KeySpec::find(key);
        match self {
            Self::Default => format!("the default of {key}"),
            Self::File(path) => format!("configuration file {path}, key {key}"),
            Self::RustLog => format!("environment variable {RUST_LOG} (key {key})"),
            Self::Environment => {
                let variable = spec.map(KeySpec::variable).unwrap_or_default();
                format!("environment variable {variable} (key {key})")
            }
            Self::Flags => {
                let flag = spec.map(|spec| spec.flag).unwrap_or_default();
                format!("flag --{flag} (key {key})")
            }
        }
    }

    /// The source of what can stand in a file only.
    fn of_file(&self) -> Source {
        match self {
            Self::File(path) => Source::File(path.clone()),
            _ => Source::Default,
        }
    }

    fn source(&self, key: &KeySpec) -> Source {
        match self {
            Self::Default => Source::Default,
            Self::File(path) => Source::File(path.clone()),
            Self::RustLog => Source::Environment(RUST_LOG.to_owned()),
            Self::Environment => Source::Environment(key.variable()),
            Self::Flags => Source::CommandLine(format!("--{}", key.flag)),
        }
    }
}

#[derive(Debug, Clone)]
struct Layer {
    place: Place,
    values: Dict,
}

impl Layer {
    fn texts(place: Place, texts: Texts) -> Self {
        let given = texts.into_iter().filter(|(key, text)| key.name != CONFIG && !is_absent(text));
        let values = given.map(|(key, text)| (key.name.to_owned(), typed(key.kind, text)));
        Self { place, values: values.collect() }
    }

    /// What the file says that can be understood.
    fn file(chosen: &ChosenFile, mistakes: &mut Vec<Mistake>) -> Self {
        let shown = chosen.path.display().to_string();
        let (mapping, blank) = file::mapping(&chosen.path).unwrap_or_else(|wrong| {
            mistakes.push(Mistake::new(format!("{}: {shown} {wrong}", chosen.named_by)));
            (serde_yaml::Mapping::new(), Vec::new())
        });
        let mut values: Dict =
            blank.into_iter().map(|key| (key.to_owned(), String::new().into())).collect();
        for (name, value) in mapping {
            match pair(&name, &value) {
                Ok((key, Some(value))) => drop(values.insert(key.to_owned(), value)),
                Ok((_, None)) => {}
                Err(wrong) => {
                    let text = format!("configuration file {shown}{}", wrong.text);
                    mistakes.push(Mistake { text, ..wrong });
                }
            }
        }
        Self { place: Place::File(shown), values }
    }

    /// Takes out what must not be left blank, and is.
    fn refuse_blanks(&mut self, mistakes: &mut Vec<Mistake>) {
        for key in absence::CLOSING {
            let is_blank =
                |value: &Value| value.as_str().is_some_and(|text| text.trim().is_empty());
            if self.values.get(key).is_some_and(is_blank) {
                self.values.remove(key);
                let text = format!("{}: {}", self.place.of(key), absence::blank(key));
                mistakes.push(Mistake::new(text).about(&[key]));
            }
        }
    }

    /// What this layer sets.
    fn settings(&self) -> impl Iterator<Item = (&'static str, Setting)> {
        self.values.iter().filter_map(|(name, value)| {
            if let Some(section) = SectionSpec::find(name) {
                return Some((section.name, Setting::of_section(value, self.place.of_file())));
            }
            let key = KeySpec::find(name)?;
            Some((key.name, Setting::new(key, value, self.place.source(key))))
        })
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        let place = self.place.clone();
        Metadata::named("settings").interpolater(move |_, path| place.of(&path.join(".")))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

struct ChosenFile {
    path: PathBuf,
    /// What made it the file to read.
    named_by: String,
}

/// A line of the file: a key, and its value unless that is "none". What is wrong is said as the end of
/// a sentence that begins with the file.
fn pair(
    name: &serde_yaml::Value,
    value: &serde_yaml::Value,
) -> Result<(&'static str, Option<Value>), Mistake> {
    let key = known(name).map_err(|wrong| Mistake::new(format!(": {wrong}")))?;
    let value = Value::serialize(value)
        .map_err(|error| Mistake::new(format!(", key {key}: {error}")).about(&[key]))?;
    Ok((key, present(value)))
}

fn chosen_file(default_file: &Path, flags: &Texts, variables: &Texts) -> Option<ChosenFile> {
    let named = |texts: &Texts, place: &Place| {
        let (_, path) = texts.iter().find(|(key, text)| key.name == CONFIG && !is_absent(text))?;
        Some(ChosenFile { path: path.into(), named_by: place.of(CONFIG) })
    };
    named(flags, &Place::Flags).or_else(|| named(variables, &Place::Environment)).or_else(|| {
        let named_by = "configuration file".to_owned();
        default_file.exists().then(|| ChosenFile { path: default_file.to_owned(), named_by })
    })
}

fn known(name: &serde_yaml::Value) -> Result<&'static str, String> {
    let serde_yaml::Value::String(name) = name else {
        return Err("a key is not a text; expected lines of KEY: VALUE".to_owned());
    };
    if let Some(key) = KeySpec::find(name).filter(|key| key.name != CONFIG) {
        return Ok(key.name);
    }
    if let Some(section) = SectionSpec::find(name) {
        return Ok(section.name);
    }
    let hint = if let Some(key) = KeySpec::nearest(name).filter(|key| key.name != CONFIG) {
        format!("did you mean {}?", key.name)
    } else {
        let sections = SECTIONS.iter().map(|section| section.name);
        let names = KEYS.iter().map(|key| key.name).filter(|name| *name != CONFIG).chain(sections);
        format!("expected one of {}", names.collect::<Vec<_>>().join(", "))
    };
    Err(format!("unknown key {}; {hint}", forms::quoted(name)))
}

fn defaults() -> Texts {
    KEYS.iter().filter_map(|key| Some((key, key.default?.to_owned()))).collect()
}

/// Known variables only: orchestrators inject `LALLY_PORT` and the like for a service's name.
fn variables(env: &Env) -> Texts {
    let value = |key: &KeySpec| env.get(&key.variable());
    KEYS.iter().filter_map(|key| Some((key, value(key)?.to_owned()))).collect()
}

/// `RUST_LOG` is not ours alone: what it may say is what `tracing_subscriber` reads in it, where a
/// bare word that is no level is a module, logged in full. Written out, it fits our stricter form.
fn rust_log(env: &Env) -> Texts {
    let spelt_out = |part: &str| {
        let bare = !part.is_empty() && !part.contains('=') && !forms::is_level(part);
        if bare { format!("{part}=trace") } else { part.to_owned() }
    };
    let text = env.get(RUST_LOG).map(|text| {
        if text.contains('[') {
            return text.to_owned();
        }
        text.split(',').map(str::trim).map(spelt_out).collect::<Vec<_>>().join(",")
    });
    KeySpec::find(LOG_LEVEL).zip(text).into_iter().collect()
}

fn typed(kind: Kind, text: String) -> Value {
    match kind {
        Kind::Switch => text.parse::<bool>().map_or_else(|_| text.into(), Value::from),
        Kind::Number => text.parse::<u64>().map_or_else(|_| text.into(), Value::from),
        Kind::Text | Kind::List => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::config::{Fsync, LogFormat, SeedAddr, Stream};
    use crate::domain::QuorumSpec;
    use std::time::Duration;

    /// The example of the product's description, word for word.
    const EXAMPLE: &str = "\
fresh: false # Start fresh, wiping the previous AOF log (default: false)
replay_log: None # Path to a custom AOF log file for replay
seed_node: None # IPv4 address and port of the seed node (if joining a cluster)
grpc_port: 50071 # Port for the gRPC server
http_port: 3000 # Port for the HTTP server
read_quorum: 1 # Number of nodes required for a successful read operation
write_quorum: 1 # Number of nodes required for a successful write operation
";

    struct Layers {
        dir: tempfile::TempDir,
        args: Vec<String>,
        env: Vec<(String, String)>,
    }

    fn layers() -> Layers {
        Layers { dir: tempfile::tempdir().unwrap(), args: Vec::new(), env: Vec::new() }
    }

    fn file(content: impl AsRef<[u8]>) -> Layers {
        let layers = layers();
        std::fs::write(layers.path("lally.yml"), content).unwrap();
        layers
    }

    impl Layers {
        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn args(mut self, args: &[&str]) -> Self {
            self.args.extend(args.iter().map(ToString::to_string));
            self
        }

        fn env(mut self, name: &str, value: &str) -> Self {
            self.env.push((name.to_owned(), value.to_owned()));
            self
        }

        fn parse(&self) -> Result<Invocation, ConfigExit> {
            let args = ["lally"].into_iter().chain(self.args.iter().map(String::as_str));
            let args = args.map(OsString::from).collect();
            parse_beside(&self.path("lally.yml"), args, self.env.clone())
        }

        fn config(&self) -> Config {
            let Ok(Invocation::Run { config, .. }) = self.parse() else {
                panic!("{:?}", self.parse())
            };
            *config
        }

        /// The message of a refusal.
        fn refused(&self) -> String {
            let exit = self.parse().unwrap_err();
            assert_eq!((exit.code, exit.stream), (2, Stream::Stderr), "{exit}");
            exit.text
        }
    }

    fn assert_says(message: &str, parts: &[&str]) {
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    }

    #[test]
    fn nothing_given_gives_the_defaults() {
        let config = layers().config();
        assert_eq!(config.config_file, None);
        assert!(!config.fresh && config.replay_log.is_none() && config.seed_nodes.is_empty());
        assert!(!config.recover_from_peers);
        assert_eq!((config.http_port, config.grpc_port), (3_000, 50_071));
        assert_eq!((config.read_quorum, config.write_quorum), (QuorumSpec::ONE, QuorumSpec::ONE));
        assert_eq!(config.bind.to_string(), "127.0.0.1");
        assert_eq!(config.advertise_addr, None);
        assert_eq!(config.data_dir, PathBuf::from("./lally-data"));
        assert_eq!((config.fsync, config.log_format), (Fsync::EverySec, LogFormat::Text));
        assert_eq!((config.cluster_name.as_str(), config.log_level.as_str()), ("lally", "info"));
        assert_eq!(config.request_timeout, Duration::from_secs(2));
        assert_eq!((config.max_value_bytes, config.max_body_bytes), (1 << 20, 2 << 20));
        assert_eq!(config.max_memory, None);
        assert_eq!(config.max_clock_drift, Duration::from_millis(500));
        assert_eq!(config.anti_entropy_interval, Duration::from_secs(30));
        assert_eq!(config.tombstone_grace, Duration::from_secs(86_400));
        assert_eq!(config.max_absence, Duration::from_secs(604_800));
        assert!(config.hooks.is_empty());
        assert!(config.worker_threads.get() >= 1);
        assert_eq!((config.max_in_flight, config.max_connections), (1_024, 4_096));
        assert_eq!(config.header_read_timeout, Duration::from_secs(5));
        assert_eq!(config.body_read_timeout, Duration::from_secs(10));
        assert_eq!(config.keep_alive_timeout, Duration::from_secs(60));
    }

    #[test]
    fn the_example_of_the_description_is_the_defaults() {
        let layers = file(EXAMPLE);
        let mut config = layers.config();
        assert_eq!(config.config_file.take(), Some(layers.path("lally.yml")));
        assert_eq!(config, self::layers().config());
    }

    #[test]
    fn a_file_without_settings_is_fine() {
        for content in ["", "\n", "# nothing\n", "---\n", "{}"] {
            assert_eq!(file(content).config().http_port, 3_000);
        }
    }

    #[test]
    fn the_command_line_wins_over_the_environment_over_the_file_over_the_defaults() {
        let layers = file("http_port: 1\n");
        assert_eq!(layers.config().http_port, 1);
        let layers = layers.env("LALLY_HTTP_PORT", "2");
        assert_eq!(layers.config().http_port, 2);
        assert_eq!(layers.args(&["--http-port", "3"]).config().http_port, 3);
    }

    #[test]
    fn absent_in_every_spelling_leaves_the_layer_below() {
        for absent in ["None", "null", "~", "", "\"None\"", "\"~\""] {
            let is_refused = |name| absent.is_empty() && absence::CLOSING.contains(&name);
            for key in KEYS.iter().filter(|key| key.name != CONFIG && !is_refused(key.name)) {
                let config = file(format!("{}: {absent}\n", key.name)).config();
                assert_eq!(Config { config_file: None, ..config }, layers().config());
            }
        }
        for absent in ["None", "null", "~"] {
            let layers = file("http_port: 1\n").env("LALLY_HTTP_PORT", absent);
            assert_eq!(layers.args(&["--http-port", absent]).config().http_port, 1);
        }
        assert_eq!(file("http_port: 1\n").env("LALLY_HTTP_PORT", "").config().http_port, 1);
        assert!(layers().args(&["--config", "None"]).parse().is_ok());
    }

    #[test]
    fn what_keeps_strangers_out_is_not_left_blank() {
        for name in absence::CLOSING {
            let key = KeySpec::find(name).unwrap();
            let says = [name, "it is empty", "expected", "None"];
            for blank in ["", "\"\"", "'  '", "# later"] {
                let layers = file(format!("{name}: {blank}\n"));
                assert_says(&layers.refused(), &[&says[..], &["lally.yml"]].concat());
                // Also where it is overruled.
                let overruled = layers.args(&[&format!("--{}=None", key.flag)]);
                assert_says(&overruled.refused(), &says);
            }
            for blank in ["", " "] {
                let variable = key.variable();
                let from_env = layers().env(&variable, blank).refused();
                assert_says(&from_env, &[&says[..], &[&variable]].concat());
                let flag = format!("--{}={blank}", key.flag);
                assert_says(&layers().args(&[&flag]).refused(), &says);
            }
        }
        let all: String = absence::CLOSING.map(|name| format!("{name}:\n")).concat();
        assert_eq!(file(all).refused().matches("it is empty").count(), absence::CLOSING.len());
    }

    #[test]
    fn every_setting_can_be_given_in_every_layer() {
        let settings = [
            ("fresh", "true"),
            ("recover_from_peers", "true"),
            ("seed_node", "127.0.0.1:9"),
            ("http_port", "0"),
            ("grpc_port", "0"),
            ("read_quorum", "majority"),
            ("write_quorum", "2"),
            ("bind", "0.0.0.0"),
            ("insecure", "true"),
            ("advertise_addr", "db-1.internal"),
            ("data_dir", "some/dir"),
            ("fsync", "always"),
            ("cluster_name", "prod"),
            ("request_timeout", "500ms"),
            ("log_level", "debug"),
            ("log_format", "json"),
            ("max_value_bytes", "16MiB"),
            ("max_body_bytes", "20MiB"),
            ("max_memory", "8GiB"),
            ("max_clock_drift", "1s"),
            ("hooks", "audit"),
            ("anti_entropy_interval", "1m"),
            ("tombstone_grace", "2h"),
            ("max_absence", "4h"),
            ("worker_threads", "3"),
            ("max_in_flight", "10"),
            ("max_connections", "20"),
            ("header_read_timeout", "1s"),
            ("body_read_timeout", "2s"),
            ("keep_alive_timeout", "3s"),
            ("tokens", "tokens.yml"),
            ("metrics_need_token", "true"),
            ("http_tls_cert", "a.pem"),
            ("http_tls_key", "a.key"),
            ("peer_tls_ca", "ca.pem"),
            ("peer_tls_cert", "b.pem"),
            ("peer_tls_key", "b.key"),
            ("max_pending_bytes", "20MiB"),
            ("max_headers", "12"),
            ("max_header_bytes", "9KiB"),
            ("write_timeout", "4s"),
            ("max_log_queue", "5MiB"),
            ("max_hints", "6MiB"),
            ("max_peer_connections", "13"),
            ("max_peer_streams", "16"),
            ("peer_timeout", "7s"),
        ];
        let (mut flags, mut variables) = (layers(), layers());
        let mut yaml = String::new();
        for (name, text) in settings {
            let key = KeySpec::find(name).unwrap();
            yaml.extend([name, ": ", text, "\n"]);
            variables = variables.env(&key.variable(), text);
            flags = flags.args(&[&format!("--{}={text}", key.flag)]);
        }
        let from_file = Config { config_file: None, ..file(&yaml).config() };
        assert_eq!(flags.config(), from_file);
        assert_eq!(variables.config(), from_file);
        assert_eq!(from_file.write_quorum.to_string(), "2");
        assert_eq!(from_file.max_body_bytes, 20 << 20);
        assert_eq!(from_file.max_memory, Some(8 << 30));
        assert_ne!(from_file.worker_threads.get(), 0);
        let limits = from_file.limits;
        assert_eq!((from_file.max_connections, from_file.max_in_flight), (20, 10));
        assert_eq!((limits.max_headers, limits.max_header_bytes), (12, 9 << 10));
        let timeouts = [
            from_file.header_read_timeout,
            from_file.body_read_timeout,
            from_file.keep_alive_timeout,
            limits.write_timeout,
            limits.peer_timeout,
        ];
        assert_eq!(timeouts.map(|timeout| timeout.as_secs()), [1, 2, 3, 4, 7]);
        assert_eq!((limits.max_log_queue, limits.max_hints), (5 << 20, 6 << 20));
        assert_eq!((limits.max_peer_connections, limits.max_peer_streams), (13, 16));
        assert_eq!(limits.max_pending_bytes, 20 << 20);
        let replay = layers().env("LALLY_REPLAY_LOG", "/x.aof").config().replay_log;
        assert_eq!(replay, Some(PathBuf::from("/x.aof")));
    }

    #[test]
    fn seeds_come_as_a_text_with_commas_a_list_or_several_flags() {
        let expected: Vec<SeedAddr> = [("127.0.0.1", 1), ("localhost", 2)]
            .map(|(host, port)| SeedAddr { host: host.to_owned(), port })
            .into();
        for layers in [
            file("seed_node: 127.0.0.1:1, localhost:2\n"),
            file("seed_node: [\"127.0.0.1:1\", \"localhost:2\", None]\n"),
            file("seed_node:\n  - 127.0.0.1:1\n  - localhost:2\n  - 127.0.0.1:1\n"),
            layers().env("LALLY_SEED_NODE", "127.0.0.1:1,localhost:2"),
            layers().args(&["--seed-node", "127.0.0.1:1", "--seed_node", "localhost:2"]),
        ] {
            assert_eq!(layers.config().seed_nodes, expected);
        }
    }

    #[test]
    fn the_file_is_named_by_the_flag_then_by_the_variable_then_by_default() {
        let layers = file("http_port: 1\n");
        let (second, third) = (layers.path("2.yml"), layers.path("3.yml"));
        std::fs::write(&second, "http_port: 2\n").unwrap();
        std::fs::write(&third, "http_port: 3\n").unwrap();
        let layers = layers.env("LALLY_CONFIG", second.to_str().unwrap());
        assert_eq!(layers.config().http_port, 2);
        let layers = layers.args(&["--config", third.to_str().unwrap()]);
        assert_eq!(layers.config().http_port, 3);
        assert_eq!(layers.config().config_file, Some(third));
    }

    #[test]
    fn a_named_file_that_does_not_exist_is_refused() {
        let message = layers().args(&["--config", "/no/such.yml"]).refused();
        assert_says(&message, &["--config", "/no/such.yml", "does not exist", "YAML file"]);
        let message = layers().env("LALLY_CONFIG", "/no/such.yml").refused();
        assert_says(&message, &["LALLY_CONFIG", "/no/such.yml", "does not exist"]);
    }

    #[test]
    fn a_file_that_is_no_mapping_of_text_is_refused() {
        let layers = layers();
        std::fs::create_dir(layers.path("lally.yml")).unwrap();
        assert_says(&layers.refused(), &["lally.yml", "is a directory"]);
        let endless = "#".repeat(1_024 * 1_024 + 1);
        for (content, says) in [
            (&b"\xff\xfe"[..], "not UTF-8"),
            (b"- a\n- b\n", "not a mapping"),
            (b"hello\n", "not a mapping"),
            (b"a: [\n", "not valid YAML"),
            (b"http_port: 1\nhttp_port: 1\n", "duplicate entry"),
            (b"http_port: 1\n---\nhttp_port: 2\n", "not valid YAML"),
            (b"5: x\n", "a key is not a text"),
            (endless.as_bytes(), "longer than"),
        ] {
            assert_says(&file(content).refused(), &["lally.yml", says]);
        }
    }

    #[test]
    fn an_unknown_key_of_the_file_is_refused_with_the_nearest_one() {
        let message = file("http_prot: 3000\n").refused();
        assert_says(
            &message,
            &["lally.yml", "unknown key \"http_prot\"", "did you mean http_port?"],
        );
        let message = file("colour: red\n").refused();
        assert_says(&message, &["\"colour\"", "expected one of fresh, replay_log", "http_port"]);
        assert_says(&file("config: x.yml\n").refused(), &["unknown key \"config\""]);
    }

    #[test]
    fn unknown_variables_are_ignored() {
        let layers = layers().env("LALLY_PORT", "tcp://10.0.0.1:80").env("LALLY_NOPE", "1");
        assert_eq!(layers.config(), self::layers().config());
    }

    #[test]
    fn a_wrong_value_is_refused_with_its_place_its_key_and_the_form() {
        for (key, wrong, form) in [
            ("fresh", "maybe", "true or false"),
            ("recover_from_peers", "seldom", "true or false"),
            ("http_port", "65536", "from 0 to 65535"),
            ("http_port", "abc", "from 0 to 65535"),
            ("grpc_port", "-1", "from 0 to 65535"),
            ("read_quorum", "0", "majority or all"),
            ("write_quorum", "two", "majority or all"),
            ("write_quorum", "1.5", "majority or all"),
            ("seed_node", "10.0.0.1", "HOST:PORT"),
            ("seed_node", "10.0.0.1:0", "HOST:PORT"),
            ("seed_node", "0.0.0.0:1", "HOST:PORT"),
            ("bind", "localhost", "IPv4 or IPv6"),
            ("advertise_addr", "0.0.0.0", "that peers can reach"),
            ("advertise_addr", "224.0.0.1:1", "that peers can reach"),
            ("fsync", "sometimes", "always, everysec or never"),
            ("cluster_name", "a b", "1 to 64 characters"),
            ("request_timeout", "2 apples", "from 1ms to 10s"),
            ("request_timeout", "0s", "from 1ms to 10s"),
            ("request_timeout", "11s", "from 1ms to 10s"),
            ("log_level", "loud", "off, error, warn"),
            ("log_format", "xml", "text or json"),
            ("max_value_bytes", "0", "16MiB"),
            ("max_value_bytes", "17MiB", "16MiB"),
            ("max_body_bytes", "1B", "128MiB"),
            ("max_memory", "0", "1MiB or more"),
            ("max_memory", "1023KiB", "1MiB or more"),
            ("max_memory", "1 GB", "1MiB or more"),
            ("max_memory", "half", "1MiB or more"),
            ("max_clock_drift", "2h", "to 1h"),
            ("hooks", "webhook", "the known hooks are: audit"),
            ("anti_entropy_interval", "1ms", "10ms to 24h"),
            ("worker_threads", "0", "from 1 to 1024"),
            ("max_in_flight", "0", "from 1 to 1000000"),
            ("max_connections", "many", "from 1 to 1000000"),
            ("header_read_timeout", "1ms", "10ms to 10m"),
            ("body_read_timeout", "11m", "10ms to 10m"),
            ("keep_alive_timeout", "60", "10ms to 24h"),
            ("max_pending_bytes", "1KiB", "from 1MiB to 64GiB"),
            ("max_headers", "7", "from 8 to 1024"),
            ("max_headers", "1025", "from 8 to 1024"),
            ("max_header_bytes", "8191", "from 8KiB to 1MiB"),
            ("write_timeout", "9ms", "from 10ms to 1h"),
            ("max_log_queue", "0", "from 1MiB to 64GiB"),
            ("max_hints", "65GiB", "from 64KiB to 64GiB"),
            ("max_peer_connections", "0", "from 1 to 1000000"),
            ("max_peer_streams", "15", "from 16 to 65536"),
            ("peer_timeout", "61s", "from 100ms to 1m"),
        ] {
            let spec = KeySpec::find(key).unwrap();
            let message = file(format!("{key}: {wrong}\n")).refused();
            assert_says(&message, &["lally.yml", key, form]);
            let message = layers().env(&spec.variable(), wrong).refused();
            assert_says(&message, &[&format!("environment variable {}", spec.variable()), form]);
            let message = layers().args(&[&format!("--{}={wrong}", spec.flag)]).refused();
            assert_says(&message, &[&format!("flag --{}", spec.flag), key, form]);
        }
    }

    #[test]
    fn types_count_in_the_file() {
        for wrong in [
            "http_port: \"3000\"",
            "http_port: 3000.0",
            "http_port: true",
            "http_port: [3000]",
            "http_port: {a: 1}",
            "fresh: \"true\"",
            "fresh: 1",
            "read_quorum: \"2\"",
            "read_quorum: true",
            "cluster_name: 5",
            "data_dir: [a]",
            "seed_node: 5",
            "seed_node: [[\"a:1\"]]",
            "request_timeout: 2",
            "log_level: true",
            "bind: \"\"",
            "http_port: !tag 3000",
        ] {
            assert_says(&file(wrong).refused(), &["lally.yml", wrong.split(':').next().unwrap()]);
        }
    }

    #[test]
    fn a_mistake_in_the_file_is_refused_also_below_a_flag() {
        let layers = file("http_port: abc\n").args(&["--http-port", "1"]);
        assert_says(&layers.refused(), &["lally.yml", "http_port"]);
    }

    #[test]
    fn two_equal_ports_are_refused_unless_both_are_free_to_choose() {
        let layers = file("http_port: 7\n").args(&["--grpc-port", "7"]);
        assert_says(&layers.refused(), &["lally.yml, key http_port", "--grpc-port", "both 7"]);
        let message = self::layers().args(&["--http-port", "50071"]).refused();
        assert_says(&message, &["--http-port", "the default of grpc_port"]);
        assert!(self::layers().args(&["--http-port=0", "--grpc-port=0"]).parse().is_ok());
    }

    #[test]
    fn fresh_and_replay_log_exclude_each_other_across_layers() {
        let layers = file("replay_log: old.aof\n").args(&["--fresh"]);
        assert_says(&layers.refused(), &["flag --fresh", "lally.yml, key replay_log", "exclude"]);
        let overruled = file("fresh: true\n").args(&["--fresh=false", "--replay-log", "x"]);
        assert!(overruled.parse().is_ok());
    }

    #[test]
    fn a_seed_on_another_host_needs_a_bind_address_that_it_can_reach() {
        let seed = ["--seed-node", "10.0.0.1:50071"];
        let message = layers().args(&seed).refused();
        assert_says(&message, &["--bind", "10.0.0.1:50071", "127.0.0.1", "--seed-node"]);
        assert!(
            layers().args(&["--bind", "::1", "--seed-node", "[2001:db8::1]:1"]).parse().is_err()
        );
        assert!(layers().args(&seed).args(&["--bind", "0.0.0.0", "--insecure"]).parse().is_ok());
        for near in ["127.0.0.2:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "localhost:1", "db-1:1"] {
            assert!(layers().args(&["--seed-node", near]).parse().is_ok(), "{near}");
        }
    }

    #[test]
    fn there_is_room_for_the_longest_body() {
        let message = layers().args(&["--max-pending-bytes", "1MiB"]).refused();
        assert_says(&message, &["max-pending-bytes", "max_body_bytes", "longest body"]);
        let config = layers().args(&["--max-pending-bytes", "2MiB"]).config();
        assert_eq!(config.limits.max_pending_bytes, config.max_body_bytes);
    }

    #[test]
    fn a_body_holds_the_longest_value() {
        let config = layers().args(&["--max-value-bytes", "4MiB"]).config();
        assert_eq!(config.max_body_bytes, 8 << 20);
        let layers = layers().args(&["--max-value-bytes", "4MiB", "--max-body-bytes", "3MiB"]);
        assert_says(&layers.refused(), &["--max-body-bytes", "--max-value-bytes", "less than"]);
    }

    #[test]
    fn rust_log_counts_below_our_own_variable_and_above_the_file() {
        let level = |layers: Layers| layers.config().log_level;
        let layers = || file("log_level: warn\n");
        assert_eq!(level(layers()), "warn");
        assert_eq!(level(layers().env("RUST_LOG", "debug,hyper")), "debug,hyper=trace");
        let both = layers().env("RUST_LOG", "debug").env("LALLY_LOG_LEVEL", "error");
        assert_eq!(level(both), "error");
        assert_says(
            &layers().env("RUST_LOG", "a=b=c").refused(),
            &["environment variable RUST_LOG"],
        );
    }

    #[test]
    fn help_and_version_go_to_standard_output() {
        let exit = layers().args(&["--version"]).parse().unwrap_err();
        let expected = format!("lally {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!((exit.text, exit.stream, exit.code), (expected, Stream::Stdout, 0));
        let exit = layers().args(&["--help"]).parse().unwrap_err();
        assert_eq!((exit.stream, exit.code), (Stream::Stdout, 0));
    }

    #[test]
    fn mistakes_on_the_command_line_are_usage_errors() {
        for args in [
            &["--http-prot", "1"][..],
            &["serve"],
            &["--http-port"],
            &["--fresh", "yes"],
            &["log"],
            &["log", "check"],
            &["log", "mend", "a"],
            &["log", "repair", "a", "b"],
            &["--http-port", "1", "log", "check", "a"],
            &["log", "check", "a", "--http-port", "1"],
            &["log", "import", "a", "--http-port", "1"],
        ] {
            layers().args(args).refused();
        }
        assert_says(&layers().args(&["--http-prot", "1"]).refused(), &["--http-port"]);
        assert_says(&layers().args(&["--data-dir="]).refused(), &["--data-dir", "path"]);
    }

    #[test]
    fn a_command_that_needs_no_configuration_does_not_read_it() {
        let wrong = || file("http_port: abc\n").env("LALLY_GRPC_PORT", "x");
        let paths = vec![PathBuf::from("a"), PathBuf::from("b")];
        for (args, expected) in [
            (&["log", "check", "a", "b"][..], LogCommand::Check { paths: paths.clone() }),
            (&["log", "dump", "a", "b"], LogCommand::Dump { paths }),
            (&["log", "repair", "a"], LogCommand::Repair { path: "a".into() }),
        ] {
            let given = wrong().args(args).parse().unwrap();
            assert_eq!(given, Invocation::Do(Command::Log(expected), Login::default()));
        }
        assert_says(&wrong().args(&["log", "import", "a"]).refused(), &["http_port"]);
    }

    #[test]
    fn a_backup_is_of_the_node_that_the_configuration_says() {
        let from = |layers: Layers, args: &[&str]| {
            let given = layers.args(&[&["backup", "d"][..], args].concat()).parse();
            let Ok(Invocation::Do(Command::Backup { to, from }, _)) = given else {
                panic!("{given:?}")
            };
            assert_eq!(to, PathBuf::from("d"));
            from
        };
        assert_eq!(from(layers(), &[]), "127.0.0.1:3000");
        assert_eq!(from(file("http_port: 3001\nbind: 0.0.0.0\n"), &[]), "127.0.0.1:3001");
        assert_eq!(from(file("bind: '::'\n"), &["--http-port", "7"]), "[::1]:7");
        assert_eq!(from(layers().env("LALLY_BIND", "10.0.0.1"), &[]), "10.0.0.1:3000");
        assert_eq!(from(file("http_port: abc\n"), &["--from", "db:1"]), "db:1");
        let any = file("http_port: 0\n").args(&["backup", "d"]);
        assert_says(&any.refused(), &["http_port", "--from"]);
    }

    #[test]
    fn a_command_for_a_node_has_the_configuration_of_the_node() {
        let layers = file("cluster_name: blue\n").env("LALLY_DATA_DIR", "here");
        let config = layers.config();
        let args = ["log", "import", "a.jsonl"];
        let given = layers.args(&args).parse().unwrap();
        let import = |node| {
            let node = Box::new(node);
            Invocation::Do(
                Command::Log(LogCommand::Import { file: "a.jsonl".into(), node }),
                Login::default(),
            )
        };
        assert_eq!(given, import(config.clone()));
        let layers = file("cluster_name: blue\n").args(&args).args(&["--data-dir", "there"]);
        let config_file = Some(layers.path("lally.yml"));
        let there = Config { data_dir: "there".into(), config_file, ..config };
        assert_eq!(layers.parse().unwrap(), import(there));
    }

    #[test]
    fn the_example_of_the_reference_is_the_one_of_the_description() {
        assert!(include_str!("../../../docs/configuration.md").contains(EXAMPLE));
    }
}
