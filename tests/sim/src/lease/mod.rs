//! Leases under faults: mounts with the shipped lease code (`client::leased`) on a simulated cluster.
//!
//! What is shipped: the replicas' core and state, the session's core (`bft::client`), and all that a mount
//! decides about its leases, its copy, its log and its locks. What is the simulator's: the line between them
//! (`line`, in the place of `client::session::Session`: no requests are put together), recalls (`scene`, in the
//! place of `server/src/driver.rs`), and programs, which stand where `client::fs` does.
//!
//! Where to look: `plan` draws what goes wrong; `scene` is the run; `machine` is a machine with a mount,
//! `brake` stops its process at a point of its work, `program` is what runs on it; `hostile` is a mount that
//! lies; `journal` judges.

mod brake;
mod figures;
mod hostile;
mod journal;
mod line;
mod machine;
mod plan;
mod program;
mod scene;

use core::cell::Cell;
use std::sync::Once;

use crate::byz::{TIME_LAGS, TIME_LIES};
use crate::check::{Invariant, Violation};
use crate::run::Outcome;

pub use figures::Figures;
pub(crate) use plan::draw;

/// What goes wrong with leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// Clocks are off, jump, and run at half to twice their rate.
    Clocks,
    /// The primary lies about the time.
    Time,
    /// The primary lets agreed time fall behind, and would have it catch up at once.
    Lag,
    /// A mount's process stands still, past the end of its leases.
    Stopped,
    /// A mount lies.
    Hostile,
    /// Many want one directory, or one lock.
    Crowd,
    /// A mount's process is killed.
    Crashed,
}

impl Row {
    /// All of them.
    pub const ALL: [Row; 7] = [Row::Clocks, Row::Time, Row::Lag, Row::Stopped, Row::Hostile, Row::Crowd, Row::Crashed];

    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Row::Clocks => "lease-clocks",
            Row::Time => "lease-time",
            Row::Lag => "lease-lag",
            Row::Stopped => "lease-stopped",
            Row::Hostile => "lease-hostile",
            Row::Crowd => "lease-crowd",
            Row::Crashed => "lease-crashed",
        }
    }

    /// Whether there is a run of it that must fail because an assumption does not hold.
    #[must_use]
    pub fn has_control(self) -> bool {
        matches!(self, Row::Clocks | Row::Time | Row::Stopped)
    }
}

thread_local! {
    /// Panics in this thread; a runtime keeps those of its tasks to itself.
    static PANICS: Cell<u64> = const { Cell::new(0) };
}

/// Runs one seed.
pub(crate) fn run(seed: u64, row: Row, control: bool, aloud: bool) -> Outcome {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.set(PANICS.get() + 1);
            before(panic);
        }));
    });
    let (world, plan) = plan::draw(seed, row, control);
    if aloud {
        println!("{world:#?}\n{plan:#?}");
    }
    let before = PANICS.get();
    let played = std::panic::catch_unwind(move || scene::play(world, plan, aloud));
    let panicked = || Violation { invariant: Invariant::Asserts, what: "something panicked".into() };
    let asserted = (PANICS.get() > before).then(panicked);
    match played {
        Ok((violation, world, figures)) => {
            let violation = asserted.or(violation);
            Outcome { violation, hash: world.trace.hash(), stats: world.stats, leases: Some(figures) }
        }
        Err(panic) => {
            let what = crate::run::words(panic.as_ref());
            let violation = Some(Violation { invariant: Invariant::Asserts, what });
            Outcome { violation, hash: 0, stats: crate::Stats::default(), leases: None }
        }
    }
}
