//! Memory of this process, for tests that are alone in their process.

use std::fs;

pub const MIB: usize = 1 << 20;

/// Peak resident memory since [`reset_peak`], in bytes.
pub fn peak() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    let kibibytes = line.split_whitespace().nth(1).unwrap();
    kibibytes.parse::<usize>().unwrap() * 1024
}

pub fn reset_peak() {
    fs::write("/proc/self/clear_refs", "5").unwrap();
}
