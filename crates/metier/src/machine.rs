//! The machine, in the words that reports carry.

use std::fs;

/// Processor, cores, memory and instruction set of this machine.
#[derive(Clone, serde::Serialize)]
pub(crate) struct Machine {
    /// Name of the processor as the system gives it.
    pub(crate) cpu: String,
    /// Threads that Metier computes with.
    pub(crate) threads: usize,
    /// Memory in bytes; 0 when the system does not tell.
    pub(crate) memory_bytes: u64,
    /// Instruction set that the kernels use.
    pub(crate) simd: &'static str,
    /// Operating system and architecture.
    pub(crate) os: String,
    /// Version of Metier.
    pub(crate) metier: &'static str,
}

impl Machine {
    /// Asks the system.
    pub(crate) fn detect() -> Machine {
        let field = |file: &str, key: &str| {
            fs::read_to_string(file).ok().and_then(|text| {
                let line = text.lines().find(|l| l.starts_with(key))?;
                Some(line.split_once(':')?.1.trim().to_owned())
            })
        };
        let memory_kib = field("/proc/meminfo", "MemTotal")
            .and_then(|v| v.split_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or(0);
        Machine {
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".into()),
            threads: rayon::current_num_threads(),
            memory_bytes: memory_kib * 1024,
            simd: kernels::Level::detect().name(),
            os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            metier: env!("CARGO_PKG_VERSION"),
        }
    }

    /// One line for a person.
    pub(crate) fn sentence(&self) -> String {
        let memory = self.memory_bytes as f64 / (1u64 << 30) as f64;
        format!(
            "{}, {} thread(s), {memory:.1} GiB memory, {}, {}, metier {}",
            self.cpu, self.threads, self.simd, self.os, self.metier
        )
    }
}

/// Most memory this process has held so far, in bytes; 0 when the system does not tell.
pub(crate) fn peak_rss_bytes() -> u64 {
    fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|l| l.starts_with("VmHWM:"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        })
        .map_or(0, |kib| kib * 1024)
}
