//! One seed, one run.

use core::any::Any;
use core::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::byz::{BEHAVIOURS, Behaviour};
use crate::check::{Invariant, Violation};
use crate::lease;
use crate::lease::{Figures, Row};
use crate::machine::{Journal, Namespace, Service};
use crate::plan::{Machine, Plan};
use crate::setting::Setting;
use crate::stats::Stats;
use crate::world::World;

/// What is run with a seed.
#[derive(Clone, Copy, Debug)]
pub enum Scenario {
    /// Faults, and nobody lies.
    Faults,
    /// Somebody lies in this way: as many as are tolerated, or (`control`) one more.
    Liars {
        /// How.
        behaviour: &'static Behaviour,
        /// One too many.
        control: bool,
    },
    /// One difficulty that does not go away.
    Setting(Setting),
    /// Mounts with leases, with which this goes wrong; or (`control`) worse than may be assumed.
    Leases {
        /// What.
        row: Row,
        /// Worse.
        control: bool,
    },
}

impl Scenario {
    /// The scenario that [`fmt::Display`] wrote.
    #[must_use]
    pub fn parse(text: &str) -> Option<Scenario> {
        if text == "faults" {
            return Some(Scenario::Faults);
        }
        if let Some(setting) = Setting::ALL.into_iter().find(|setting| setting.name() == text) {
            return Some(Scenario::Setting(setting));
        }
        let (name, control) = match text.strip_suffix("+1") {
            Some(name) => (name, true),
            None => (text, false),
        };
        if let Some(row) = Row::ALL.into_iter().find(|row| row.name() == name && (!control || row.has_control())) {
            return Some(Scenario::Leases { row, control });
        }
        let behaviour = BEHAVIOURS.iter().find(|behaviour| behaviour.name == name)?;
        Some(Scenario::Liars { behaviour, control })
    }

    fn plan(self, seed: u64) -> Plan {
        match self {
            Scenario::Faults => Plan::of(seed),
            Scenario::Liars { behaviour, control } => Plan::with_liars(seed, behaviour, control),
            Scenario::Setting(setting) => setting.plan(seed),
            Scenario::Leases { row, control } => lease::draw(seed, row, control).0,
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scenario::Faults => f.write_str("faults"),
            Scenario::Setting(setting) => f.write_str(setting.name()),
            Scenario::Liars { behaviour, control } => {
                write!(f, "{}{}", behaviour.name, if *control { "+1" } else { "" })
            }
            Scenario::Leases { row, control } => {
                write!(f, "{}{}", row.name(), if *control { "+1" } else { "" })
            }
        }
    }
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The first thing that must hold and did not.
    pub violation: Option<Violation>,
    /// A hash over everything that happened: the same for the same seed, to the bit.
    pub hash: u64,
    /// What happened, in numbers.
    pub stats: Stats,
    /// What became of leases.
    pub leases: Option<Figures>,
}

/// Runs one seed. `aloud`: everything that happens is printed, a line each.
#[must_use]
pub fn run(seed: u64, scenario: Scenario, aloud: bool) -> Outcome {
    if let Scenario::Leases { row, control } = scenario {
        return lease::run(seed, row, control, aloud);
    }
    let plan = scenario.plan(seed);
    if aloud {
        println!("{plan:#?}");
    }
    match plan.machine {
        Machine::Journal => run_plan::<Journal>(plan, aloud),
        Machine::Namespace => run_plan::<Namespace>(plan, aloud),
    }
}

fn run_plan<S: Service>(plan: Plan, aloud: bool) -> Outcome {
    let mut world: Option<World<S>> = None;
    // A failed assertion ends the world it is in, and no other.
    let ended = catch_unwind(AssertUnwindSafe(|| world.insert(World::new(plan, aloud)).run()));
    let asserted = ended.err().map(|panic| Violation { invariant: Invariant::Asserts, what: words(panic.as_ref()) });
    let Some(world) = world else {
        return Outcome { violation: asserted, hash: 0, stats: Stats::default(), leases: None };
    };
    let violation = asserted.or(world.checks.violation.clone());
    Outcome { violation, hash: world.trace.hash(), stats: world.stats, leases: None }
}

pub(crate) fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned()
}

/// The kinds of faults that a seed's plan has, for counting.
#[must_use]
pub fn kinds(seed: u64, scenario: Scenario) -> Vec<&'static str> {
    scenario.plan(seed).kinds()
}
