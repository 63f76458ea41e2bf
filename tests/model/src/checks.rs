//! What is run: bounds and liars.

use core::time::Duration;

use crate::run::Limits;
use crate::setup::{Restarts, Setup};

/// A check, for each of some traitors.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// What it is called.
    pub name: &'static str,
    /// Which replicas lie, one in each run. The primaries of views 0, 1 and 2 are replicas 0, 1 and 2.
    pub traitors: &'static [u16],
    views: u64,
    places: u64,
    restarts: Restarts,
    vouchers: bool,
    /// The longest it may take; it is not exhaustive if it takes longer.
    seconds: Option<u64>,
    /// About how many states are looked at, and so how much memory it takes; not exhaustive if there are more.
    states: Option<usize>,
}

/// One place, and everything exhausted.
const ONE: Check = Check {
    name: "1 place, 1 view",
    traitors: &[0, 3],
    views: 1,
    places: 1,
    restarts: Restarts::Sometimes,
    vouchers: true,
    seconds: None,
    states: None,
};

/// All checks.
pub const CHECKS: &[Check] = &[
    ONE,
    Check {
        name: "1 place, 2 views, no restarts",
        traitors: &[0, 1, 2, 3],
        views: 2,
        restarts: Restarts::Never,
        ..TWO
    },
    Check { name: "1 place, 2 views, restarts", restarts: Restarts::Sometimes, ..TWO },
    TWO,
    // A primary that learned another batch than it proposed may propose that one again after a restart,
    // and does not without: so restarts are moves here.
    Check { name: "1 place, 2 views, vouchers", vouchers: true, restarts: Restarts::Sometimes, ..TWO },
    THREE,
    WINDOW,
];

const TWO: Check = Check {
    name: "1 place, 2 views",
    traitors: &[0, 1, 2, 3],
    views: 2,
    places: 1,
    restarts: Restarts::Always,
    vouchers: false,
    seconds: None,
    states: None,
};

const THREE: Check = Check { name: "1 place, 3 views", views: 3, ..TWO };

const WINDOW: Check = Check {
    name: "2 places, 2 views, checkpoint",
    traitors: &[0, 1, 3],
    places: 2,
    restarts: Restarts::Never,
    states: Some(400_000),
    ..TWO
};

/// What a core with a seeded bug is put to, in this order, until the bug is found.
pub const FOR_BUGS: &[Check] = &[
    ONE,
    Check { name: "1 place, 2 views, no restarts", restarts: Restarts::Never, traitors: &[0, 1, 3], ..TWO },
    Check { traitors: &[3, 1, 0], seconds: Some(600), ..THREE },
];

impl Check {
    /// Its setup, with this traitor.
    #[must_use]
    pub fn setup(&self, traitor: u16) -> Setup {
        let Check { views, places, restarts, vouchers, .. } = *self;
        Setup { places, restarts, vouchers, checkpoints: places > 1, ..Setup::one_place(views, traitor) }
    }

    /// When to stop it.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits { depth: None, time: self.seconds.map(Duration::from_secs), states: self.states }
    }
}
