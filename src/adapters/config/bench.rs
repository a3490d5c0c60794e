//! `lally bench`: its options, and the plan that they come to.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use figment::value::Value;

use crate::domain::QuorumSpec;

use super::forms::{self, SeedAddr};

/// What a benchmark does.
#[derive(Debug, Clone, PartialEq)]
pub struct BenchPlan {
    /// `HOST:PORT` of the nodes; connections are spread over them.
    pub addrs: Vec<String>,
    /// Connections, each with one request at a time.
    pub connections: usize,
    /// How long it goes on.
    pub extent: Extent,
    /// Load of the same kind before that, which is not counted.
    pub warmup: Duration,
    /// How many keys there are.
    pub keys: u64,
    /// How often which of them is meant.
    pub distribution: Distribution,
    /// Length of values, in bytes.
    pub value_bytes: usize,
    /// What is asked.
    pub mix: Mix,
    /// The quorum of every request; `None`: what the node does by itself.
    pub quorum: Option<QuorumSpec>,
    /// Requests per second; `None`: as many as are answered.
    pub rate: Option<u32>,
    /// What each connection draws is the same for the same seed.
    pub seed: u64,
    /// Whether every key is written once before.
    pub fill: bool,
    /// Where the result goes as JSON; `-` is standard output, which it then has for itself.
    pub json: Option<PathBuf>,
    /// Where the plot goes, as SVG.
    pub plot: Option<PathBuf>,
}

/// How long a benchmark goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// For this time.
    Time(Duration),
    /// For this many requests.
    Requests(u64),
}

/// How often which key is meant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Distribution {
    /// All as often.
    Uniform,
    /// The k-th as often as `1 / k^exponent` says.
    Zipf(f64),
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => f.write_str("uniform"),
            Self::Zipf(exponent) => write!(f, "zipf:{exponent}"),
        }
    }
}

/// The exponent of a Zipf distribution of which nothing is said: that of the YCSB benchmark.
const EXPONENT: f64 = 0.99;

impl FromStr for Distribution {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, exponent) = text.split_once(':').map_or((text, None), |(n, e)| (n, Some(e)));
        let exponent = exponent.map(str::parse::<f64>).transpose();
        match (name, exponent) {
            ("uniform", Ok(None)) => Ok(Self::Uniform),
            ("zipf", Ok(exponent)) => match exponent.unwrap_or(EXPONENT) {
                exponent if (0.0..=10.0).contains(&exponent) => Ok(Self::Zipf(exponent)),
                _ => Err("the exponent is not from 0 to 10".into()),
            },
            _ => Err("expected uniform, zipf or zipf:EXPONENT".into()),
        }
    }
}

/// Parts of what is asked; their sum is not 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mix {
    /// `/get`.
    pub get: u16,
    /// `/add`.
    pub add: u16,
    /// `/remove`.
    pub remove: u16,
}

impl Mix {
    /// All parts together.
    pub fn sum(self) -> u32 {
        [self.get, self.add, self.remove].map(u32::from).iter().sum()
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [("get", self.get), ("add", self.add), ("remove", self.remove)];
        let mut comma = "";
        for (call, part) in parts.into_iter().filter(|(_, part)| *part > 0) {
            write!(f, "{comma}{call}={part}")?;
            comma = ",";
        }
        Ok(())
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut mix = Self { get: 0, add: 0, remove: 0 };
        for part in text.split(',') {
            let wrong = || format!("{}: expected parts like get=80,add=20", forms::quoted(part));
            let (call, number) = part.split_once('=').ok_or_else(wrong)?;
            let of = match call.trim() {
                "get" => &mut mix.get,
                "add" => &mut mix.add,
                "remove" => &mut mix.remove,
                _ => return Err(wrong()),
            };
            *of = number.trim().parse().map_err(|_| wrong())?;
        }
        if mix.sum() == 0 { Err("all parts are 0".into()) } else { Ok(mix) }
    }
}

pub(super) fn command() -> Command {
    let option = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    Command::new("bench")
        .about("Puts nodes under load and says how they answer")
        .after_help(EXAMPLES)
        .args([
            option("addr", "HOST:PORT", "HTTP address of a node, several times for several [env: LALLY_ADDR] [default: the http_port of this machine's configuration]")
                .action(ArgAction::Append)
                .value_parser(forms::seed),
            option("connections", "N", "Connections, each with one request at a time")
                .default_value("64")
                .value_parser(value_parser!(u16).range(1..)),
            option("duration", "D", "How long [default: 10s]").value_parser(duration).conflicts_with("requests"),
            option("requests", "N", "How many requests, instead of how long").value_parser(value_parser!(u64).range(1..)),
            option("warmup", "D", "Load before that, which is not counted").default_value("1s").value_parser(duration),
            option("keys", "N", "How many keys").default_value("10000").value_parser(value_parser!(u64).range(1..=1_000_000_000)),
            option("distribution", "NAME", "How often which key is meant: uniform, zipf or zipf:EXPONENT").default_value("uniform").value_parser(Distribution::from_str),
            option("value-bytes", "N", "Length of values").default_value("100").value_parser(value_parser!(u32).range(0..=1_048_576)),
            option("mix", "PARTS", "What is asked").default_value("get=50,add=50").value_parser(Mix::from_str),
            option("quorum", "Q", "Quorum of every request: a number, majority or all [default: the node's]").value_parser(QuorumSpec::from_str),
            option("rate", "N", "Requests per second [default: as many as are answered]").value_parser(value_parser!(u32).range(1..)),
            option("seed", "N", "With the same seed each connection draws the same").default_value("1").value_parser(value_parser!(u64)),
            Arg::new("fill").long("fill").action(ArgAction::SetTrue).help("Write every key once before"),
            option("json", "FILE", "Write the result as JSON; - is standard output").value_parser(value_parser!(PathBuf)),
            option("plot", "FILE", "Draw the result, as SVG").value_parser(value_parser!(PathBuf)),
        ])
}

const EXAMPLES: &str = "\
Examples:
  lally bench
      Half reads, half writes, as fast as the node here answers, for ten seconds
  lally bench --rate 5000 --mix get=95,add=5 --distribution zipf --fill --plot load.svg
      A given load; times are counted from when a request was due, also if it had to wait

With --rate, a request that is due while all connections wait for answers counts from when it was
due (coordinated omission is corrected). Without, each connection sends its next request when it has
an answer, and times are those of the answers alone. Keys are named bench-0, bench-1, ..., and stay.

Exit codes: 0 measured; 1 nothing was measured; 2 usage.

Read on: docs/bench.md";

/// A duration of the command line.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    forms::duration(&Value::from(text))
}

/// What was given; `None` for the addresses if they were not.
pub(super) fn plan(matches: &ArgMatches) -> BenchPlan {
    let addrs = matches.get_many::<SeedAddr>("addr").into_iter().flatten();
    let requests = matches.get_one("requests").copied().map(Extent::Requests);
    let time = matches.get_one("duration").copied().unwrap_or(Duration::from_secs(10));
    BenchPlan {
        addrs: addrs.map(SeedAddr::to_string).collect(),
        connections: matches.get_one::<u16>("connections").copied().unwrap_or(1).into(),
        extent: requests.unwrap_or(Extent::Time(time)),
        warmup: matches.get_one("warmup").copied().unwrap_or_default(),
        keys: matches.get_one("keys").copied().unwrap_or(1),
        distribution: matches.get_one("distribution").copied().unwrap_or(Distribution::Uniform),
        value_bytes: matches.get_one::<u32>("value-bytes").map_or(0, |bytes| *bytes as usize),
        mix: matches.get_one("mix").copied().unwrap_or(Mix { get: 1, add: 1, remove: 0 }),
        quorum: matches.get_one("quorum").copied(),
        rate: matches.get_one("rate").copied(),
        seed: matches.get_one("seed").copied().unwrap_or_default(),
        fill: matches.get_flag("fill"),
        json: matches.get_one("json").cloned(),
        plot: matches.get_one("plot").cloned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> Result<BenchPlan, String> {
        let words = ["bench"].iter().chain(args);
        command().try_get_matches_from(words).map(|m| plan(&m)).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_given_has_a_default() {
        let plan = read(&[]).unwrap();
        assert_eq!(plan.extent, Extent::Time(Duration::from_secs(10)));
        assert_eq!((plan.connections, plan.keys, plan.value_bytes), (64, 10_000, 100));
        assert_eq!(plan.mix, Mix { get: 50, add: 50, remove: 0 });
        assert_eq!((plan.rate, plan.quorum, plan.fill), (None, None, false));
        assert!(plan.addrs.is_empty());
    }

    #[test]
    fn what_is_given_is_taken() {
        let plan = read(&[
            "--addr",
            "a:1",
            "--addr",
            "[::1]:2",
            "--requests",
            "7",
            "--mix",
            "remove=1, get=2",
            "--distribution",
            "zipf:1.5",
            "--rate",
            "9",
            "--quorum",
            "majority",
            "--fill",
        ]);
        let plan = plan.unwrap();
        assert_eq!(plan.addrs, ["a:1", "[::1]:2"]);
        assert_eq!(plan.extent, Extent::Requests(7));
        assert_eq!(plan.mix.to_string(), "get=2,remove=1");
        assert_eq!(plan.distribution, Distribution::Zipf(1.5));
        assert_eq!(plan.quorum, Some(QuorumSpec::Majority));
        assert_eq!((plan.rate, plan.fill), (Some(9), true));
    }

    #[test]
    fn what_is_wrong_is_refused_with_what_is_expected() {
        for (args, said) in [
            (["--mix", "get"], "get=80,add=20"),
            (["--mix", "put=1"], "get=80,add=20"),
            (["--mix", "get=0"], "all parts are 0"),
            (["--distribution", "normal"], "expected uniform"),
            (["--distribution", "zipf:-1"], "from 0 to 10"),
            (["--distribution", "uniform:1"], "expected uniform"),
            (["--duration", "10"], "is not a duration"),
            (["--connections", "0"], "connections"),
            (["--addr", "here"], "has no port"),
            (["--quorum", "none"], "majority"),
            (["--rate", "0"], "rate"),
        ] {
            let refused = read(&args).unwrap_err();
            assert!(refused.contains(said), "{args:?}: {refused}");
        }
        assert!(read(&["--requests", "1", "--duration", "1s"]).is_err());
    }
}
