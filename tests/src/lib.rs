//! The harness of the end-to-end tests: real processes, real mounts, real client programs.
//!
//! A test reads as a story: start an [`Up`] or a [`Cluster`], do to its mount what a user would
//! (the [`work`] module has the longer chores), break something, and compare [`tree`]s. Everything
//! started is stopped and unmounted when its guard is dropped, also when a test panics.
//!
//! The harness knows the `mangrove` command only from outside and links no other room. It reports
//! trouble by panicking with a message that names the process and shows the end of its log.

pub mod cluster;
pub mod janitor;
pub mod mount;
pub mod net;
pub mod posix;
pub mod process;
pub mod random;
pub mod status;
pub mod tree;
pub mod wait;
pub mod work;

pub use cluster::Cluster;
pub use mount::{Mount, Up};
pub use net::Net;
pub use process::{Process, mangrove, run_ok, run_refused};
pub use status::Status;
pub use wait::wait_until;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Held by a test that starts whole clusters, so that those of one test program run one by one and
/// their times mean something.
pub fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says why a test cannot run here. Under `MANGROVE_TEST_NO_SKIPS=1` (as in `cargo xtask ci`)
/// a missing tool is a failure; otherwise the reason is printed and the caller returns.
///
/// # Panics
/// If skipping is forbidden.
pub fn skip(why: &str) {
    assert!(std::env::var_os("MANGROVE_TEST_NO_SKIPS").is_none(), "cannot run, and skipping is forbidden: {why}");
    eprintln!("skipped: {why}");
}

/// Why no filesystem can be mounted here, if so.
#[must_use]
pub fn cannot_mount() -> Option<String> {
    use std::fs::OpenOptions;
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        return Some(format!("/dev/fuse: {error}; load the fuse module, or give this container the device"));
    }
    let root = rustix::process::geteuid().is_root();
    (!root && !process::on_path("fusermount3"))
        .then(|| "fusermount3 is missing; as root: apt-get install -y fuse3".to_owned())
}

/// Returns from a test that mounts if nothing can be mounted here, saying why.
#[macro_export]
macro_rules! needs_mount {
    () => {
        if let Some(why) = $crate::cannot_mount() {
            $crate::skip(&why);
            return;
        }
    };
}

/// Returns from a test that runs a program if the program is not installed, saying so.
#[macro_export]
macro_rules! needs_program {
    ($name:literal) => {
        if !$crate::process::on_path($name) {
            $crate::skip(concat!($name, " is missing; as root: apt-get install -y ", $name));
            return;
        }
    };
}
