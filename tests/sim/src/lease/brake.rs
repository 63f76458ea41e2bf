//! Where a mount's process may be when something happens to it: before or after it did something here, with
//! a request not sent yet, sent, or answered.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use meta::{Batch, Op};
use tokio::sync::Notify;

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A part of the log.
    Part,
    Renew,
    Cede,
    Hold,
    Fetch,
    /// Anything else that is ordered.
    Other,
}

impl Kind {
    const ALL: [Kind; 6] = [Kind::Part, Kind::Renew, Kind::Cede, Kind::Hold, Kind::Fetch, Kind::Other];

    pub(crate) fn of(batch: &Batch) -> Kind {
        if batch.by.as_ref().is_some_and(|by| by.log.is_some()) {
            return Kind::Part;
        }
        match batch.calls.first().map(|call| &call.op) {
            Some(Op::Renew) => Kind::Renew,
            Some(Op::Cede { .. }) => Kind::Cede,
            Some(Op::Hold { .. } | Op::Enroll { .. }) => Kind::Hold,
            Some(Op::Fetch { .. }) => Kind::Fetch,
            _ => Kind::Other,
        }
    }
}

/// A place in a mount's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    /// A program is about to ask for something.
    BeforeOp,
    /// It was answered.
    AfterOp,
    /// It is about to wait until all is sent.
    BeforeSync,
    /// It has a lock.
    Locked,
    /// What was written is committed, because a lease is to be given back.
    Flushing,
    /// A request is made, and has not left.
    Made(Kind),
    /// It has left.
    Sent(Kind),
    /// Its answer has come, and was not looked at yet.
    Answered(Kind),
    /// It was told that others want something, and has not looked yet.
    Recalled,
}

impl Point {
    /// All of them.
    pub(crate) fn all() -> Vec<Point> {
        let single = [Point::BeforeOp, Point::AfterOp, Point::BeforeSync, Point::Locked, Point::Flushing];
        let each = |of: fn(Kind) -> Point| Kind::ALL.into_iter().map(of);
        let kinds = each(Point::Made).chain(each(Point::Sent)).chain(each(Point::Answered));
        single.into_iter().chain([Point::Recalled]).chain(kinds).collect()
    }
}

/// Stops a process at one of its points.
#[derive(Debug, Default)]
pub(crate) struct Brake {
    /// Where, and how many times that is passed before.
    wanted: Mutex<Option<(Point, u32)>>,
    stopped: AtomicBool,
    resumed: Notify,
}

impl Brake {
    /// Stops the process when it comes there.
    pub(crate) fn set(&self, point: Point, spare: u32) {
        *self.wanted.lock().expect("nobody panics with it") = Some((point, spare));
    }

    /// The process is at this point; whether it stops there.
    pub(crate) fn is_at(&self, point: Point) -> bool {
        let mut wanted = self.wanted.lock().expect("nobody panics with it");
        match &mut *wanted {
            Some((at, 0)) if *at == point => {
                *wanted = None;
                self.stopped.store(true, Ordering::Relaxed);
                true
            }
            Some((at, spare)) if *at == point => {
                *spare -= 1;
                false
            }
            _ => false,
        }
    }

    /// The process passes this point, at once or after it stood still there.
    pub(crate) async fn pass(&self, point: Point) {
        if self.is_at(point) {
            self.resumed.notified().await;
        }
    }

    /// Whether it has stopped there. Says so once.
    pub(crate) fn has_stopped(&self) -> bool {
        self.stopped.swap(false, Ordering::Relaxed)
    }

    /// Whether it stands still, or is about to.
    pub(crate) fn is_pulled(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// The process goes on.
    pub(crate) fn release(&self) {
        self.resumed.notify_waiters();
    }
}
