//! What a hostile file makes the readers allocate, measured. One test in a process of its own: the
//! peak is the process's.

use std::fs;
use std::path::{Path, PathBuf};

use data::{ReadOptions, read};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// Reads a file and returns the peak in MiB, whatever came of it.
fn peak(path: &Path) -> f32 {
    ALLOCATED.reset_peak_usage();
    let before = ALLOCATED.current_usage_as_mb();
    let _ = read(path, &ReadOptions::default());
    ALLOCATED.peak_usage_as_mb() - before
}

#[test]
fn memory_follows_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    // One row without an end, and one that is nested without an end.
    for name in ["a.jsonl", "a.json", "a.csv"] {
        let long = format!("[{{\"prompt\":\"{}", "x".repeat(20 << 20));
        let deep = format!("{{\"messages\":{}", "[".repeat(20 << 20));
        for text in [long, deep] {
            let path = write(name, text.as_bytes());
            let peak = peak(&path);
            assert!(peak < 160.0, "{name}: {peak} MiB for 20 MiB");
        }
    }
    // Numbers that lie, in headers of pages and in the footer: every byte in turn.
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata/parquet");
    let whole = fs::read(golden.join("chat.parquet")).unwrap();
    let mut worst = (0.0, 0);
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] = 0xff;
        // Two bytes make a number large enough.
        if let Some(next) = bytes.get_mut(at + 1) {
            *next |= 0x80;
        }
        let peak = peak(&write("a.parquet", &bytes));
        if peak > worst.0 {
            worst = (peak, at);
        }
    }
    let (peak_mib, at) = worst;
    println!("largest peak {peak_mib} MiB, byte {at} changed");
    assert!(peak_mib < 64.0, "{peak_mib} MiB for byte {at} changed");

    let bomb = golden.join("bomb.parquet");
    let peak_mib = peak(&bomb);
    println!("rows out of a dictionary: {peak_mib} MiB");
    assert!(peak_mib < 1024.0, "{peak_mib} MiB");
}
