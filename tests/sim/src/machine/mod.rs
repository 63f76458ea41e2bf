//! What is replicated here: any state machine that can make up operations for itself, and the tape
//! on which every application of one is noted.

mod journal;
mod namespace;
mod watched;

use base::{PublicKey, StateMachine};
use bytes::Bytes;

pub(crate) use journal::Journal;
pub(crate) use namespace::Namespace;
pub(crate) use watched::{Entry, Tape, Watched};

use crate::rng::Rng;

/// A state machine with a workload.
pub(crate) trait Service: StateMachine + 'static {
    /// What it starts as.
    fn genesis(principals: &[PublicKey]) -> Self;

    /// An operation that nobody else asks for: `number` is part of its bytes, so that the bytes
    /// name it wherever they turn up.
    fn operation(rng: &mut Rng, number: u64) -> Bytes;
}
