//! The command: fill, warm up, measure, tell.

use std::io::Write;
use std::path::Path;

use crate::adapters::config::BenchPlan;
use crate::adapters::http::Remote;

use super::super::command::Stopped;
use super::super::errors::RunError;
use super::load::{Goal, Measured, apply};
use super::{plot, report};

/// Carries out the plan on these nodes and says what came of it. An interrupt ends it; what was measured until then
/// is told.
pub(in super::super) async fn bench(
    plan: BenchPlan,
    nodes: Vec<Remote>,
    out: &mut (dyn Write + Send),
) -> Result<(), Stopped> {
    if plan.fill {
        let filled = apply(&plan, &nodes, Goal::Fill).await;
        if filled.tally.answered() < plan.keys {
            return Err(unmeasured("not every key could be written", &filled));
        }
    }
    if !plan.warmup.is_zero() {
        let warm = apply(&plan, &nodes, Goal::Warmup(plan.warmup)).await;
        if warm.is_interrupted || warm.tally.answered() == 0 {
            return Err(unmeasured("nothing was measured", &warm));
        }
    }
    let measured = apply(&plan, &nodes, Goal::Measure(plan.extent)).await;
    if measured.tally.answered() == 0 {
        return Err(unmeasured("nothing was measured", &measured));
    }
    let json = || format!("{}\n", report::json(&plan, &measured));
    match plan.json.as_deref() {
        Some(path) if path == Path::new("-") => out.write_all(json().as_bytes())?,
        path => {
            out.write_all(report::text(&plan, &measured).as_bytes())?;
            path.map_or(Ok(()), |path| write_file(path, &json()))?;
        }
    }
    if let Some(path) = &plan.plot {
        let svg = plot::svg(&plan, &measured);
        let svg = svg.map_err(|error| RunError::Command(format!("the plot: {error}")))?;
        write_file(path, &svg)?;
    }
    Ok(())
}

fn unmeasured(what: &str, measured: &Measured) -> Stopped {
    let why = match measured.tally.errors.iter().max_by_key(|(_, times)| **times) {
        Some((error, _)) => error,
        None if measured.is_interrupted => "interrupted",
        None => "there was no answer in that time",
    };
    RunError::Command(format!("{what}: {why}")).into()
}

fn write_file(path: &Path, text: &str) -> Result<(), RunError> {
    let written = std::fs::write(path, text);
    written.map_err(|error| RunError::Command(format!("{}: {error}", path.display())))
}
