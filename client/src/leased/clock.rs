//! The clock that leases are counted by.

use std::sync::Arc;
use std::time::Duration;

/// Says how long ago a machine was started, by a clock that nobody sets and that goes on while it sleeps.
pub type SinceBoot = Arc<dyn Fn() -> Duration + Send + Sync>;

/// How long ago this machine was started.
pub(super) fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}
