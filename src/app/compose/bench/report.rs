//! The result, for people and for programs.

use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::adapters::config::BenchPlan;

use super::load::Measured;
use super::workload::CALLS;

/// Shares of the requests that are answered within a time.
const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

/// How fast it was to go.
pub(super) fn rate(plan: &BenchPlan) -> String {
    plan.rate.map_or("as fast as it goes".into(), |rate| format!("{rate} requests/s"))
}

/// A table, and what there is to know about it.
pub(super) fn text(plan: &BenchPlan, measured: &Measured) -> String {
    let mut out = String::new();
    write_text(&mut out, plan, measured).unwrap_or_default();
    out
}

fn write_text(out: &mut String, plan: &BenchPlan, measured: &Measured) -> std::fmt::Result {
    let Measured { took, tally, unanswered, is_interrupted, .. } = measured;
    let BenchPlan { connections, keys, distribution, value_bytes, mix, .. } = plan;
    let quorum = plan.quorum.map_or("the node's".into(), |quorum| quorum.to_string());
    writeln!(out, "\n{}: {connections} connections, {}", plan.addrs.join(", "), rate(plan))?;
    writeln!(
        out,
        "{mix} over {keys} keys ({distribution}), values of {value_bytes} bytes, quorum: {quorum}\n"
    )?;
    write!(out, "{:<8}{:>12}{:>12}", "", "requests", "per second")?;
    for (name, _) in QUANTILES {
        write!(out, "{name:>10}")?;
    }
    writeln!(out, "{:>10}", "max")?;
    for call in CALLS {
        write_row(out, call.as_str(), tally.of(call), *took)?;
    }
    write_row(out, "all", &tally.all(), *took)?;
    writeln!(
        out,
        "\n{:.1} s, {} partial, {} errors",
        took.as_secs_f64(),
        tally.partial,
        tally.failed()
    )?;
    for (error, times) in &tally.errors {
        writeln!(out, "  {times} times: {error}")?;
    }
    if *unanswered > 0 {
        writeln!(
            out,
            "{unanswered} requests were due and not answered: all connections waited for answers. The node \
             does not keep up, or it takes more --connections."
        )?;
    }
    if plan.rate.is_none() {
        writeln!(out, "Times under a given load are those with --rate.")?;
    }
    if *is_interrupted {
        writeln!(out, "Interrupted: this is what was measured until then.")?;
    }
    Ok(())
}

fn write_row(
    out: &mut String,
    name: &str,
    times: &Histogram<u64>,
    took: Duration,
) -> std::fmt::Result {
    if times.is_empty() {
        return Ok(());
    }
    write!(out, "{name:<8}{:>12}{:>12.0}", times.len(), per_second(times, took))?;
    for (_, quantile) in QUANTILES {
        write!(out, "{:>10}", shown(times.value_at_quantile(quantile)))?;
    }
    writeln!(out, "{:>10}", shown(times.max()))
}

/// Microseconds, as people read them.
fn shown(micros: u64) -> String {
    let time = Duration::from_micros(micros);
    if micros < 1_000_000 {
        return format!("{:.2} ms", time.as_secs_f64() * 1e3);
    }
    format!("{:.2} s", time.as_secs_f64())
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^52")]
fn per_second(times: &Histogram<u64>, took: Duration) -> f64 {
    times.len() as f64 / took.as_secs_f64().max(f64::EPSILON)
}

/// Everything, with times in microseconds.
pub(super) fn json(plan: &BenchPlan, measured: &Measured) -> Value {
    let Measured { took, tally, series, unanswered, is_interrupted } = measured;
    let row = |times: &Histogram<u64>| {
        let mut row = Map::from_iter([
            ("requests".to_owned(), times.len().into()),
            ("per_second".to_owned(), per_second(times, *took).into()),
            ("mean_us".to_owned(), times.mean().into()),
            ("max_us".to_owned(), times.max().into()),
        ]);
        row.extend(QUANTILES.map(|(name, quantile)| {
            let name = format!("{}_us", name.replace('.', "_"));
            (name, times.value_at_quantile(quantile).into())
        }));
        Value::Object(row)
    };
    let calls = CALLS.into_iter().filter(|call| !tally.of(*call).is_empty());
    let calls = calls.map(|call| (call.as_str().to_owned(), row(tally.of(call))));
    let calls: Map<_, _> = calls.chain([("all".to_owned(), row(&tally.all()))]).collect();
    let series = series.iter().map(|step| {
        json!({
            "at_seconds": step.at.as_secs_f64(),
            "per_second": step.per_second,
            "errors": step.errors,
            "p50_us": step.median_us,
            "p99_us": step.p99_us,
        })
    });
    json!({
        "addrs": plan.addrs,
        "connections": plan.connections,
        "rate": plan.rate,
        "keys": plan.keys,
        "distribution": plan.distribution.to_string(),
        "value_bytes": plan.value_bytes,
        "mix": plan.mix.to_string(),
        "quorum": plan.quorum.map(|quorum| quorum.to_string()),
        "seed": plan.seed,
        "seconds": took.as_secs_f64(),
        "interrupted": is_interrupted,
        "calls": calls,
        "partial": tally.partial,
        "errors": tally.errors,
        "unanswered": unanswered,
        "series": series.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::adapters::config::{self, Command, Invocation};
    use crate::app::compose::bench::connection::Reply;
    use crate::app::compose::bench::load::Step;
    use crate::app::compose::bench::tally::Tally;
    use crate::ports::OpKind;

    /// The defaults.
    pub(in super::super) fn plan() -> BenchPlan {
        let words = ["lally", "bench", "--addr", "db:1"].map(Into::into);
        match config::parse(words.into(), Vec::new()) {
            Ok(Invocation::Do(Command::Bench(plan), _)) => *plan,
            other => panic!("{other:?}"),
        }
    }

    /// A thousand reads of 1 to 1,000 ms, a write and a refusal, in ten seconds.
    pub(in super::super) fn measured() -> Measured {
        let mut tally = Tally::new();
        for ms in 1..=1_000 {
            tally.record(OpKind::Get, Reply::Success, Duration::from_millis(ms));
        }
        tally.record(OpKind::Add, Reply::Partial, Duration::from_micros(250));
        tally.record(OpKind::Add, Reply::Error("503 overloaded".into()), Duration::ZERO);
        let step = |seconds| Step {
            at: Duration::from_secs(seconds),
            per_second: 100.0,
            errors: 0,
            median_us: 500_000,
            p99_us: 990_000,
        };
        Measured {
            took: Duration::from_secs(10),
            tally,
            series: (1..=10).map(step).collect(),
            unanswered: 0,
            is_interrupted: false,
        }
    }

    #[test]
    fn the_table_has_a_row_for_each_call_that_was_made() {
        let said = text(&plan(), &measured());
        let row = |name: &str| {
            let line = said.lines().find(|line| line.starts_with(name));
            line.map(|line| line.split_whitespace().collect::<Vec<_>>())
        };
        let get = row("get ").unwrap();
        assert_eq!(get[1..3], ["1000", "100"]);
        assert!(get[3..5] == ["500.22", "ms"] || get[3..5] == ["500.00", "ms"], "{get:?}");
        assert_eq!(row("add ").unwrap()[1], "1");
        assert_eq!(row("remove"), None);
        for part in ["db:1: 64 connections", "1 partial, 1 errors", "1 times: 503 overloaded"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(!said.contains("not answered") && !said.contains("Interrupted"));
    }

    #[test]
    fn what_was_not_measured_is_said() {
        let measured = Measured { unanswered: 7, is_interrupted: true, ..measured() };
        let said = text(&BenchPlan { rate: Some(5), ..plan() }, &measured);
        for part in ["5 requests/s", "7 requests were due and not answered", "Interrupted"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }

    #[test]
    fn programs_get_everything_in_microseconds() {
        let json = json(&plan(), &measured());
        assert_eq!(json["calls"]["all"]["requests"], 1_001);
        let p99 = json["calls"]["get"]["p99_us"].as_u64().unwrap();
        assert!(p99.abs_diff(990_000) < 1_000, "{p99}");
        assert!(json["calls"]["get"]["p99_9_us"].is_u64() && json["calls"]["remove"].is_null());
        assert_eq!(json["errors"]["503 overloaded"], 1);
        assert_eq!(json["series"].as_array().map(Vec::len), Some(10));
        assert_eq!((&json["seconds"], &json["rate"]), (&10.0.into(), &Value::Null));
    }
}
