//! Whole clusters in one thread: replicas, clients, disks, clocks and a network, all driven from one
//! seed, with everything going wrong that may, and every invariant checked at every step.
//!
//! The replicas are the shipped core (`bft`), and what they replicate is the shipped namespace
//! (`meta`) or a cheaper machine. A run is a [`run()`] of one seed. Every way of lying ([`BEHAVIOURS`])
//! is run with as many liars as are tolerated, and everything must hold; and with one more, and then
//! something must break: a checker that does not see that sees nothing.
//!
//! Where to look: `plan` draws what goes wrong; `world` is virtual time and the events in it, with
//! `voice` (write, then speak), `errands` (clients), `happenings` (crashes, cuts, clocks) and `ending`
//! beside it; `lease` puts mounts with the shipped lease code on top; `disk`, `clock` and `net` are the
//! machines; `check` says what must hold; `byz` lies.

mod byz;
mod check;
mod clock;
mod core_can;
mod disk;
mod ending;
mod errands;
mod happenings;
mod keys;
mod lease;
mod machine;
mod net;
mod node;
mod people;
mod plan;
mod rng;
mod run;
mod setting;
mod stats;
mod trace;
mod voice;
mod world;

pub use byz::{BEHAVIOURS, Behaviour};
pub use check::{Invariant, Violation};
pub use lease::{Figures, Row};
pub use run::{Outcome, Scenario, kinds, run};
pub use setting::Setting;
pub use stats::{Settled, Stats};
