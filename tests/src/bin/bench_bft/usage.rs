//! What processes used, as `/proc` tells it.

use std::fs;
use std::time::Duration;

/// Processor time and memory of some processes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// User and system time of all together, threads that have ended included.
    pub(crate) cpu: Duration,
    /// The most memory that one of them ever had, KiB.
    pub(crate) peak_kib: u64,
}

/// Of these processes. One that is gone counts for nothing.
pub(crate) fn of(processes: impl IntoIterator<Item = u32>) -> Usage {
    let mut usage = Usage::default();
    for process in processes {
        usage.cpu += cpu_time(&process.to_string());
        usage.peak_kib = usage.peak_kib.max(peak_kib(process));
    }
    usage
}

/// Of this process.
pub(crate) fn own_cpu() -> Duration {
    cpu_time("self")
}

fn cpu_time(process: &str) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    // Linux reports 100 ticks a second to user space on every architecture we build for.
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

fn peak_kib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

/// Has the kernel forget the most memory that a process ever had.
pub(crate) fn forget_peak(process: u32) {
    // Where that is not allowed, peaks are those since the start: larger, never smaller.
    let _ = fs::write(format!("/proc/{process}/clear_refs"), "5");
}

/// The p50 of 200 appends of 1 KiB, each synced.
pub(crate) fn fdatasync_p50(folder: &std::path::Path) -> std::io::Result<Duration> {
    use std::io::Write as _;
    let mut file = fs::File::create(folder.join("sync-probe"))?;
    let mut times = Vec::new();
    for _ in 0..200 {
        let started = std::time::Instant::now();
        file.write_all(&[7; 1024])?;
        file.sync_data()?;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}
