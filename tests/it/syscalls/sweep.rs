//! Every target, one injury after the other; and the result.
//!
//! `cargo test` makes a fixed sample of the runs, `make syscalls` all of them, and writes what came of
//! them below `docs/results`. `LALLY_SYSCALLS_ONLY` picks those whose line contains a text.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use super::calls::Call;
use super::plan::{Plan, plan};
use super::scenes::{CHANGING, Injury, Run, Scene, Template, run};
use super::verdict::{Class, hit, judge};
use crate::process::durable_names::can_trace;
use crate::results::{self, from_env, say};

/// Runs without injuries of each script.
const WHOLE_RUNS: usize = 4;

/// Runs of a sample.
const SAMPLE: usize = 36;
/// Runs at a time: a run mostly waits.
const AT_A_TIME: usize = 2;
/// How often a call that was not hit is aimed at: which thread does something is not always the same.
const TRIES: usize = 4;

/// A call to be injured.
#[derive(Clone)]
struct Target {
    scene: Scene,
    call: Call,
    plan: Option<Plan>,
}

/// One injury of one call.
struct Job<'a> {
    target: &'a Target,
    injury: Injury,
}

impl Job<'_> {
    fn line(&self) -> String {
        let Target { scene, call, plan } = self.target;
        let how = plan.as_ref().map_or_else(String::new, |plan| {
            format!(" -P {} when={}", plan.paths.join(" -P "), plan.when)
        });
        format!("{}: {} {}{how}", scene.name(), call.shown(), self.injury.name())
    }
}

/// What came of the jobs.
#[derive(Default)]
struct Results {
    classes: BTreeMap<(String, Injury), BTreeMap<Class, usize>>,
    broken: Vec<String>,
    /// Hit another call each time.
    astray: Vec<String>,
}

#[test]
fn every_system_call_that_fails_or_kills_a_node_loses_nothing_and_is_not_passed_over_in_silence() {
    if !can_trace() {
        return;
    }
    let began = Instant::now();
    let is_full = std::env::var_os("LALLY_SYSCALLS").is_some();
    let only: String = from_env("LALLY_SYSCALLS_ONLY").unwrap_or_default();
    let template = Template::build();
    let targets: Vec<Target> = in_parallel(&Scene::ALL, |scene| targets(*scene, &template))
        .into_iter()
        .flatten()
        .collect();
    let mut jobs: Vec<_> = targets.iter().flat_map(jobs_of).collect();
    jobs.retain(|job| job.line().contains(&only));
    if !is_full && jobs.len() > SAMPLE {
        // Every way to be killed, and what the log itself must notice. Evenly over the calls, and so
        // over the scenes and injuries.
        jobs.retain(|job| job.injury == Injury::Kill || job.target.call.forces_or_writes_log());
        let all = jobs.len();
        jobs.sort_by_key(|job| (job.injury, job.target.call.name.clone()));
        let mut place = 0;
        jobs.retain(|_| {
            place += 1;
            (place * SAMPLE) % all < SAMPLE
        });
    }
    let done = AtomicUsize::new(0);
    let results = Mutex::new(Results::default());
    in_parallel(&jobs, |job| {
        do_job(job, &template, &results);
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        if is_full && done.is_multiple_of(100) {
            say(&format!("{done} of {} runs, {} s", jobs.len(), began.elapsed().as_secs()));
        }
    });
    let results = results.into_inner().unwrap();
    let unreached: Vec<_> = targets
        .iter()
        .filter(|target| target.plan.is_none())
        .map(|target| format!("{}: {}", target.scene.name(), target.call.shown()))
        .collect();
    let report = report(&targets, &results, &unreached, jobs.len());
    if is_full {
        say(&report);
    }
    results::keep("LALLY_SYSCALLS_RESULT", || report);
    assert!(results.broken.is_empty(), "{}", results.broken.join("\n"));
    // What was aimed at was hit, but for a few that another thread happened to make.
    assert!(results.astray.len() * 20 <= jobs.len(), "{}", results.astray.join("\n"));
    assert!(jobs.len() >= SAMPLE || !only.is_empty(), "{} runs", jobs.len());
}

/// The calls of a run without injuries. Aimed at are those that another one makes as well: which thread
/// makes them, and how many writes are one, is not the same each time. Of some runs the one in which
/// the most can be aimed at.
fn targets(scene: Scene, template: &Template) -> Vec<Target> {
    let runs: Vec<_> = (0..WHOLE_RUNS).map(|_| whole_run(scene, template)).collect();
    let plans = |calls: &Vec<Call>| (0..calls.len()).map(|at| plan(calls, at)).collect::<Vec<_>>();
    let plans: Vec<_> = runs.iter().map(plans).collect();
    let shared = |run: usize| {
        let others = || plans.iter().enumerate().filter(move |(other, _)| *other != run);
        let is_shared =
            |plan: &Plan| others().any(|(_, plans)| plans.iter().flatten().any(|p| p == plan));
        plans[run].iter().map(|plan| plan.clone().filter(is_shared)).collect::<Vec<_>>()
    };
    let aimed_at = |run: &usize| shared(*run).iter().flatten().count();
    let best = (0..WHOLE_RUNS).max_by_key(aimed_at).unwrap();
    let calls = runs[best].iter().cloned().zip(shared(best));
    calls.map(|(call, plan)| Target { scene, call, plan }).collect()
}

fn whole_run(scene: Scene, template: &Template) -> Vec<Call> {
    let whole = run(scene, template, None);
    let verdict = judge(&whole, None, None);
    assert_eq!(verdict, Ok(Class::Missed), "{}: {:?}", scene.name(), whole.end);
    assert!(whole.told.done > 1 && whole.listened);
    whole.calls
}

fn jobs_of(target: &Target) -> Vec<Job<'_>> {
    let changes = CHANGING.split(',').any(|name| name.trim() == target.call.name);
    // A look can fail, but there is no space that it could need, and a kill there is one elsewhere.
    let injuries = if changes { &Injury::ALL[..] } else { &[Injury::Eio] };
    let is_planned = target.plan.is_some();
    injuries.iter().filter(|_| is_planned).map(|&injury| Job { target, injury }).collect()
}

fn do_job(job: &Job<'_>, template: &Template, results: &Mutex<Results>) {
    let Target { scene, call, plan } = job.target;
    let plan = plan.as_ref().unwrap();
    for _ in 0..TRIES {
        // What does not end in time panics.
        let run =
            catch_unwind(AssertUnwindSafe(|| run(*scene, template, Some((plan, job.injury)))));
        let Ok(run) = run else {
            let broken = format!("{}: panicked, see above", job.line());
            return results.lock().unwrap().broken.push(broken);
        };
        let hit = hit(&run, plan, job.injury);
        let verdict = judge(&run, hit, Some(job.injury));
        let mut results = results.lock().unwrap();
        let class = match verdict {
            Ok(class) => class,
            Err(why) => {
                let broken = format!("{}:\n  {why}\n{}", job.line(), excerpt(&run));
                say(&broken);
                return results.broken.push(broken);
            }
        };
        // Whatever was hit, it was an injury, and it was judged; but it is counted where it belongs.
        if hit.is_some_and(|hit| hit.paths == call.paths) {
            let classes = results.classes.entry((call.name.clone(), job.injury)).or_default();
            *classes.entry(class).or_default() += 1;
            return;
        }
    }
    results.lock().unwrap().astray.push(job.line());
}

/// What the node said last.
fn excerpt(run: &Run) -> String {
    let lines: Vec<_> = run.end.stderr.lines().collect();
    let last = lines[lines.len().saturating_sub(8)..].join("\n  | ");
    format!("  exit code {:?}, {:?}\n  | {last}", run.end.code, run.told)
}

/// Does something with each of these, a few at a time.
fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<(usize, R)>> = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(place) else { return };
                    let result = work(item);
                    results.lock().unwrap().push((place, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap();
    results.sort_by_key(|(place, _)| *place);
    results.into_iter().map(|(_, result)| result).collect()
}

/// The dated result, in Markdown.
fn report(targets: &[Target], results: &Results, unreached: &[String], jobs: usize) -> String {
    let Results { broken, astray, .. } = results;
    let mut out = format!(
        "# Every system call, {}\n\nRevision {}, debug build, {} cores, {}. {} calls of {} traced \
         scripts; {jobs} runs with one injury each: {} broke a promise, {} hit another call than \
         was aimed at, {} calls could not be singled out. What is done and what may come of \
         it: [docs/durability.md](../durability.md#every-system-call).\n\n",
        results::date(),
        results::revision(),
        results::cores(),
        tracer(),
        targets.len(),
        Scene::ALL.len(),
        broken.len(),
        astray.len(),
        unreached.len(),
    );
    out.push_str("| call | k |");
    for injury in Injury::ALL {
        write!(out, " {} |", injury.name()).unwrap();
    }
    out.push_str("\n|---|---|---|---|---|---|\n");
    let names: BTreeSet<_> = targets.iter().map(|target| &target.call.name).collect();
    for name in names {
        let count = targets.iter().filter(|target| target.call.name == *name).count();
        write!(out, "| `{name}` | {count} |").unwrap();
        for injury in Injury::ALL {
            let classes = results.classes.get(&(name.clone(), injury));
            let shown = classes.into_iter().flatten().map(|(c, n)| format!("{n} {}", c.name()));
            write!(out, " {} |", shown.collect::<Vec<_>>().join(", ")).unwrap();
        }
        out.push('\n');
    }
    out.push_str("\n| script | calls |\n|---|---|\n");
    for scene in Scene::ALL {
        let count = targets.iter().filter(|target| target.scene == scene).count();
        writeln!(out, "| {} | {count} |", scene.name()).unwrap();
    }
    for (title, lines) in [
        ("Broken", broken.as_slice()),
        ("Another call was hit", astray),
        ("Not singled out", unreached),
    ] {
        if !lines.is_empty() {
            write!(out, "\n## {title}\n\n```text\n{}\n```\n", lines.join("\n")).unwrap();
        }
    }
    out
}

fn tracer() -> String {
    let version = Command::new("strace").arg("-V").output().unwrap().stdout;
    let version = String::from_utf8_lossy(&version).lines().next().unwrap_or_default().to_owned();
    version.replace(" -- version", "")
}
