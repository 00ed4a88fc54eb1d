//! The machine, in the words that reports carry.

use std::fs;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Processor, cores, memory and instruction set of this machine, as the system tells.
pub(crate) fn detect() -> eval::Machine {
    let field = |file: &str, key: &str| {
        let text = fs::read_to_string(file).ok()?;
        let line = text.lines().find(|l| l.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    eval::Machine {
        cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".into()),
        instructions: kernels::Level::detect().name().to_owned(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        threads: rayon::current_num_threads(),
        memory_bytes: meminfo("MemTotal").unwrap_or(0),
        os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
    }
}

/// What this machine can do at best, as measured.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(crate) struct Roofline {
    /// Bytes read from memory per second, all threads together.
    pub(crate) bytes_per_second: f64,
    /// f32 operations per second of fused multiply-adds, all threads together.
    pub(crate) flops_per_second: f64,
}

impl Roofline {
    /// Measures for about a second; the best of several runs counts, as what disturbs only slows.
    /// Reads `bytes` of memory, which must be far more than the caches hold.
    pub(crate) fn measure(bytes: usize) -> Roofline {
        // Not zeros: the system may hand out one page of them for all.
        let values = vec![1.0f32; bytes / size_of::<f32>()];
        let bytes_per_second = best(|| {
            black_box(kernels::read_all(black_box(&values)));
            (values.len() * size_of::<f32>()) as f64
        });
        let flops_per_second = best(|| black_box(kernels::multiply_adds(black_box(1 << 20))).0);
        Roofline { bytes_per_second, flops_per_second }
    }

    /// The higher line of two measurements of the same machine.
    pub(crate) fn better(self, other: Roofline) -> Roofline {
        Roofline {
            bytes_per_second: self.bytes_per_second.max(other.bytes_per_second),
            flops_per_second: self.flops_per_second.max(other.flops_per_second),
        }
    }
}

/// Memory that a roofline measurement reads: well beyond any cache.
pub(crate) const ROOFLINE_BYTES: usize = 512 << 20;

/// The highest rate of `work` (which returns how much it did) over at least five runs and half a
/// second.
fn best(mut work: impl FnMut() -> f64) -> f64 {
    let started = Instant::now();
    let (mut runs, mut rate) = (0, 0.0f64);
    while runs < 5 || started.elapsed() < Duration::from_millis(500) {
        let run = Instant::now();
        let done = work();
        rate = rate.max(done / run.elapsed().as_secs_f64().max(1e-9));
        runs += 1;
    }
    rate
}

/// Memory that can be had without swapping, in bytes; 0 when the system does not tell.
pub(crate) fn available_bytes() -> u64 {
    meminfo("MemAvailable").unwrap_or(0)
}

/// A value of /proc/meminfo in bytes.
fn meminfo(key: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.split(':').next() == Some(key))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// The most memory that this process has held so far, in bytes.
pub(crate) fn peak_rss_bytes() -> u64 {
    own_status("VmHWM:")
}

/// The memory that this process holds now, in bytes.
pub(crate) fn rss_bytes() -> u64 {
    own_status("VmRSS:")
}

fn own_status(key: &str) -> u64 {
    let kib = fs::read_to_string("/proc/self/status").ok().and_then(|text| {
        let line = text.lines().find(|l| l.starts_with(key))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    kib.map_or(0, |kib| kib * 1024)
}
