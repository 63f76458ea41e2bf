//! The shipped core (`bft`) under a model checker (stateright): four replicas, of which one lies, and
//! every order in which anything can happen to them, within bounds.
//!
//! The checker sees a group as the states of its honest replicas and the set of all that they said.
//! Nothing said is ever lost or used up, so losing, repeating, delaying and reordering are all there
//! without being modelled; the traitor says whatever its key and what was said allow, to whom it likes,
//! at any time. A replica's reaction is computed by the core itself, once for each of its states and
//! each message, and remembered (`locals`). Three things keep the space small, and lose nothing:
//! - a delivery that nobody notices is part of the step that somebody does (`steps`);
//! - a replica restarts after every such step and forgets what was merely said to it, which can be
//!   said again; that it then becomes what it was is checked at every step ([`Restarts::Always`]);
//! - states of a replica that answer everything alike are one (`bft`'s fingerprint).
//!
//! Where to look: `setup` has the bounds, `traitor` the lies, `nets` the properties, `space` what
//! stateright sees, [`CHECKS`] what is run.

mod cell;
mod checks;
mod keys;
mod locals;
mod messages;
mod nets;
mod print;
mod run;
mod setup;
mod space;
mod steps;
mod traitor;
mod words;

pub use checks::{CHECKS, Check, FOR_BUGS};
pub use run::{Limits, Outcome, check};
pub use setup::{Restarts, Setup};
