//! The machine, in the words that reports carry.

use std::fs;

/// Processor, cores, memory and instruction set of this machine, as the system tells.
pub(crate) fn detect() -> eval::Machine {
    let field = |file: &str, key: &str| {
        let text = fs::read_to_string(file).ok()?;
        let line = text.lines().find(|l| l.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let memory_kib = field("/proc/meminfo", "MemTotal")
        .and_then(|v| v.split_whitespace().next()?.parse::<u64>().ok())
        .unwrap_or(0);
    eval::Machine {
        cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".into()),
        instructions: kernels::Level::detect().name().to_owned(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        threads: rayon::current_num_threads(),
        memory_bytes: memory_kib * 1024,
        os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
    }
}

/// Most memory this process has held so far, in bytes; 0 when the system does not tell.
pub(crate) fn peak_rss_bytes() -> u64 {
    let kib = fs::read_to_string("/proc/self/status").ok().and_then(|text| {
        let line = text.lines().find(|l| l.starts_with("VmHWM:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    kib.map_or(0, |kib| kib * 1024)
}
