//! Who asks, with all groups: a FUSE request names only one of them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use meta::Caller;
use parking_lot::Mutex;

use crate::wire::Request;

/// How long a thread's groups are believed. They hardly ever change while it runs; this bounds how
/// long a new thread with an old one's number could pass for it.
const BELIEVED: Duration = Duration::from_secs(1);
/// Threads remembered.
const THREADS_MAX: usize = 1024;

/// Finds the supplementary groups of callers.
#[derive(Debug, Default)]
pub(crate) struct Groups(Mutex<HashMap<Key, (Instant, Vec<u32>)>>);

/// Who they belong to. A thread that changes its ids is another caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    pid: u32,
    uid: u32,
    gid: u32,
}

impl Groups {
    /// The caller of `request`. Root needs no groups, and what the kernel asks by itself has none.
    pub(crate) fn caller(&self, request: &Request) -> Caller {
        let groups = if request.uid == 0 || request.pid == 0 { Vec::new() } else { self.of(request) };
        Caller { uid: request.uid, gid: request.gid, groups }
    }

    fn of(&self, request: &Request) -> Vec<u32> {
        let key = Key { pid: request.pid, uid: request.uid, gid: request.gid };
        let now = Instant::now();
        if let Some((read, groups)) = self.0.lock().get(&key)
            && now.duration_since(*read) < BELIEVED
        {
            return groups.clone();
        }
        // A thread that is gone, or hidden from us, has the rights of its main group only.
        let status = std::fs::read_to_string(format!("/proc/{}/status", request.pid)).unwrap_or_default();
        let groups = parse(&status);
        let mut known = self.0.lock();
        if known.len() >= THREADS_MAX {
            known.retain(|_, (read, _)| now.duration_since(*read) < BELIEVED);
        }
        if known.len() < THREADS_MAX {
            known.insert(key, (now, groups.clone()));
        }
        groups
    }
}

/// The line `Groups:` of a status file.
fn parse(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    line.split_ascii_whitespace().map_while(|group| group.parse().ok()).take(meta::GROUPS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uid: u32, pid: u32) -> Request {
        let (interrupt, until_answered) = Default::default();
        Request { unique: 2, uid, gid: 7, pid, interrupt, until_answered }
    }

    #[test]
    fn groups_are_read_from_the_status_file() {
        assert_eq!(parse("Name:\tsh\nGroups:\t4 24 1000 \nNStgid:\t1\n"), [4, 24, 1000]);
        assert!(parse("Groups:\t\n").is_empty());
        assert!(parse("").is_empty());
        let many = format!("Groups: {}", "9 ".repeat(5000));
        assert_eq!(parse(&many).len(), meta::GROUPS_MAX);
    }

    #[test]
    fn a_caller_has_its_threads_groups() {
        let ours: Vec<u32> = rustix::process::getgroups().unwrap().iter().map(|group| group.as_raw()).collect();
        let caller = Groups::default().caller(&request(1000, std::process::id()));
        assert_eq!(caller, Caller { uid: 1000, gid: 7, groups: ours });
        assert!(Groups::default().caller(&request(1000, u32::MAX)).groups.is_empty(), "no such thread");
        assert!(Groups::default().caller(&request(0, std::process::id())).groups.is_empty(), "root needs none");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let groups = Groups::default();
        (1..2 * THREADS_MAX as u32).for_each(|pid| drop(groups.caller(&request(1000, pid + (1 << 30)))));
        assert!(groups.0.lock().len() <= THREADS_MAX);
    }
}
