//! What the operating system says of this process, under the names that Prometheus' own clients use,
//! so that the usual dashboards find it. On systems without `/proc` some of it is missing.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// Reads it at every scrape.
#[derive(Debug)]
pub(super) struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (name, help) = ("process_cpu_seconds", "Processor time of the process");
        encoder
            .encode_descriptor(name, help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, u64>(&cpu_seconds(), None)?;
        for (name, help, value) in [
            ("process_resident_memory_bytes", "Memory of the process", resident_bytes()),
            ("process_open_fds", "Open file descriptors", open_fds()),
            (
                "process_max_fds",
                "How many file descriptors the process may have",
                getrlimit(Resource::Nofile).current,
            ),
        ] {
            let Some(value) = value else { continue };
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "seconds of processor time, less than 2^53")]
fn cpu_seconds() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

fn resident_bytes() -> Option<u64> {
    resident_in(&fs::read_to_string("/proc/self/status").ok()?)
}

/// A line of the status reads `VmRSS:     5348 kB`.
fn resident_in(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1_024)
}

fn open_fds() -> Option<u64> {
    // The directory that is read is one of them.
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_found_among_the_lines_of_the_status() {
        let status = "Name:\tlally\nVmRSS:\t    5348 kB\nThreads:\t3\n";
        assert_eq!(resident_in(status), Some(5_348 * 1_024));
        for other in ["", "VmRSS: many kB", "VmRSS:\t5348"] {
            assert_eq!(resident_in(other), None);
        }
    }

    #[test]
    fn a_process_that_lives_has_all_of_it() {
        assert!(cpu_seconds() > 0.0);
        if cfg!(target_os = "linux") {
            assert!(resident_bytes() > Some(1 << 20) && open_fds() > Some(2));
        }
    }
}
