//! The recorder behind the `metrics` macros and what it shows to Prometheus. There is no listener of its own: whoever
//! serves `/metrics` calls [`Metrics::render`].

mod catalog;
mod process;

use std::time::Duration;

use ::metrics::gauge;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// How often [`Metrics::upkeep`] wants to be called: histograms keep their samples in memory until it is.
pub const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Bounds of every `…_seconds` histogram: from a warm acquire (100 µs) to an execution at its default timeout (60 s).
const SECONDS: [f64; 18] = [
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];
/// Bounds of every `…_bytes` histogram: from 1 KiB to 1 GiB.
const BYTES: [f64; 6] = [1024.0, 16_384.0, 262_144.0, 4_194_304.0, 67_108_864.0, 1_073_741_824.0];

/// The content type of what [`Metrics::render`] returns.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics of this process.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

impl Metrics {
    /// Installs the recorder for the whole process and describes every metric. Works once in a process.
    pub fn install(version: &'static str) -> Result<Self, BuildError> {
        let handle = builder()?.install_recorder()?;
        catalog::describe();
        gauge!("cloud_sandbox_build_info", "version" => version).set(1.0);
        Ok(Self { handle })
    }

    /// The Prometheus exposition text.
    #[must_use]
    pub fn render(&self) -> String {
        process::record();
        self.handle.render()
    }

    /// Moves the samples taken since the last time into their buckets.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_bytes".to_owned()), &BYTES)
}

#[cfg(test)]
mod tests {
    use ::metrics::{histogram, with_local_recorder};

    use super::*;

    #[test]
    fn latencies_are_counted_in_buckets() {
        let recorder = builder().unwrap().build_recorder();
        with_local_recorder(&recorder, || {
            catalog::describe();
            histogram!("cloud_sandbox_acquire_duration_seconds").record(0.0004);
        });
        let text = recorder.handle().render();
        assert!(text.contains("cloud_sandbox_acquire_duration_seconds_bucket{le=\"0.0005\"} 1"), "{text}");
        assert!(text.contains("cloud_sandbox_acquire_duration_seconds_bucket{le=\"0.00025\"} 0"), "{text}");
    }

    #[test]
    fn process_shows_its_memory_and_its_start() {
        let recorder = builder().unwrap().build_recorder();
        with_local_recorder(&recorder, || {
            catalog::describe();
            process::record();
        });
        let text = recorder.handle().render();
        for name in ["process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds"] {
            assert!(text.contains(&format!("# HELP {name} ")) && text.contains(&format!("\n{name} ")), "{text}");
        }
    }
}
