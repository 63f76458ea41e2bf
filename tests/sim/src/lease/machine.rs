//! A machine with a mount: the shipped lease code (`client::leased`), on a runtime of its own whose time is
//! the machine's, and programs that use it.

use core::time::Duration;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base::{PublicKey, Time};
use client::backend::Metadata as _;
use client::leased::Leased;
use meta::Ino;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use super::line::{Desk, Line};
use super::plan::MachinePlan;
use crate::keys::{CLUSTER, principal_secret};

/// How often a runtime is given the word until nothing in it can go on.
const TURNS: usize = 6;

/// A machine.
pub(crate) struct Machine {
    pub(crate) plan: MachinePlan,
    pub(crate) me: (PublicKey, u64),
    /// The running process.
    pub(crate) process: Option<Process>,
    /// Counts its lives.
    pub(crate) life: usize,
    /// How far the machine's clock is, ns since it was started; as of when.
    boot: Arc<AtomicU64>,
    as_of: Time,
    /// Until when the process stands still.
    pub(crate) frozen: Option<Time>,
    /// It gives everything back, and is not to be asked what it believes.
    pub(crate) closing: bool,
}

/// A process that serves a mount.
pub(crate) struct Process {
    pub(crate) desk: Arc<Desk>,
    pub(crate) leased: Leased<Line>,
    pub(crate) programs: Vec<JoinHandle<()>>,
    runtime: Runtime,
    /// How far its runtime's clock is behind the machine's, ns.
    behind: u64,
}

impl Machine {
    /// A machine on which nothing runs yet.
    pub(crate) fn new(plan: MachinePlan, now: Time) -> Machine {
        let me = (principal_secret(plan.principal).public(), plan.number);
        let boot = Arc::new(AtomicU64::new(1_000_000_000 * (1 + plan.number)));
        Machine { plan, me, process: None, life: 0, boot, as_of: now, frozen: None, closing: false }
    }

    /// The session of its present life.
    pub(crate) fn client(&self) -> usize {
        self.plan.client + self.life
    }

    /// Starts a process that mounts the volume with this root.
    pub(crate) fn start(&mut self, root: Ino) {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime without threads or files");
        let desk = Arc::new(Desk::default());
        let (line, boot) = (Line(desk.clone()), self.boot.clone());
        let clock = Arc::new(move || Duration::from_nanos(boot.load(Ordering::Relaxed)));
        let leased = runtime.block_on(async { Leased::with_clock(line, CLUSTER, self.me, Some(root), clock) });
        self.process = Some(Process { desk, leased, programs: Vec::new(), runtime, behind: 0 });
        self.closing = false;
    }

    /// The process is gone at once, and with it all that it did not send.
    pub(crate) fn kill(&mut self) {
        self.frozen = None;
        if let Some(Process { runtime, leased, programs, .. }) = self.process.take() {
            drop((leased, programs));
            drop(runtime);
        }
    }

    /// Runs something in the process.
    pub(crate) fn spawn(&mut self, program: impl Future<Output = ()> + Send + 'static) {
        let process = self.process.as_mut().expect("it runs");
        process.programs.push(process.runtime.spawn(program));
    }

    /// Lets the machine's clock come to where it is now. `stands`: it does not while the process does.
    pub(crate) fn tick(&mut self, now: Time, stands: bool) {
        let passed = now.0.saturating_sub(self.as_of.0);
        self.as_of = now.max(self.as_of);
        if stands && self.frozen.is_some() {
            return;
        }
        let passed = passed.saturating_add_signed((passed as i64 / 1000).saturating_mul(self.plan.rate) / 1000);
        self.boot.fetch_add(passed, Ordering::Relaxed);
        if let Some(process) = &mut self.process {
            process.behind += passed;
        }
    }

    /// Gives the process the word, until it waits for something.
    pub(crate) fn drive(&mut self) {
        let Some(process) = self.process.as_mut().filter(|_| self.frozen.is_none()) else { return };
        let behind = core::mem::take(&mut process.behind);
        let desk = process.desk.clone();
        process.runtime.block_on(async {
            if behind > 0 {
                tokio::time::advance(Duration::from_nanos(behind)).await;
            }
            for _ in 0..TURNS {
                tokio::task::yield_now().await;
                if desk.brake.is_pulled() {
                    break;
                }
            }
        });
    }

    /// Whether it would use a lease on this directory now.
    pub(crate) fn believes(&self, directory: Ino) -> bool {
        let runs = self.frozen.is_none() && !self.closing;
        runs && self.process.as_ref().is_some_and(|process| process.leased.keeps(directory))
    }

    /// Whether it would answer what is asked of this directory now, without asking.
    pub(crate) fn remembers(&self, directory: Ino) -> bool {
        let lasts = |leased: &Leased<_>| !leased.lasts(directory, leased.generation()).is_zero();
        let runs = self.frozen.is_none() && !self.closing;
        runs && self.process.as_ref().is_some_and(|process| lasts(&process.leased))
    }

    /// Whether its programs have ended.
    pub(crate) fn is_idle(&self) -> bool {
        self.process.as_ref().is_none_or(|process| process.programs.iter().all(JoinHandle::is_finished))
    }
}
