//! Lying clients. They hold their own keys only, and every request they sign is theirs.

use base::{Signature, Signed};
use bytes::Bytes;

use super::Rogue;

/// A timestamp of about now.
fn stamp(rogue: &Rogue) -> u64 {
    rogue.now.0
}

/// Several operations under one timestamp, all to all.
pub(crate) fn same_timestamp(rogue: &mut Rogue) {
    for _ in 0..2 {
        let op = rogue.operation();
        let request = rogue.sign(1, stamp(rogue), op);
        rogue.send_all(&request);
    }
}

/// Another operation under the same timestamp for every replica.
pub(crate) fn equivocates(rogue: &mut Rogue) {
    for to in 0..rogue.n as u16 {
        let op = rogue.operation();
        let request = rogue.sign(1, stamp(rogue), op);
        rogue.send(to, request);
    }
}

/// Timestamps that fall.
pub(crate) fn regresses(rogue: &mut Rogue) {
    let op = rogue.operation();
    let timestamp = stamp(rogue) / 2 - rogue.ticks * 1_000_000_000;
    let request = rogue.sign(1, timestamp, op);
    rogue.send_all(&request);
}

/// Timestamps at both ends of time.
pub(crate) fn extreme_timestamps(rogue: &mut Rogue) {
    let timestamp = rogue.rng.pick(&[0, 1, u64::MAX, u64::MAX - rogue.ticks, 1 << 63]);
    let op = rogue.operation();
    let request = rogue.sign(rogue.ticks % 3, timestamp, op);
    rogue.send_all(&request);
}

/// As many requests as it can sign.
pub(crate) fn floods(rogue: &mut Rogue) {
    for number in 0..40 {
        let op = rogue.operation();
        let request = rogue.sign(1, stamp(rogue) + number, op);
        rogue.send_all(&request);
    }
}

/// Its requests go to one replica only, which is seldom the primary.
pub(crate) fn one_replica(rogue: &mut Rogue) {
    let op = rogue.operation();
    let request = rogue.sign(1, stamp(rogue), op);
    let to = rogue.n as u16 - 1;
    rogue.send(to, request);
}

/// Signatures that are none.
pub(crate) fn bad_signatures(rogue: &mut Rogue) {
    let op = rogue.operation();
    let mut request = rogue.sign(1, stamp(rogue), op);
    rogue.send_all(&Signed { signature: Signature([7; 64]), ..request.clone() });
    // In another's name, and changed after it was signed.
    request.body.client = crate::keys::principal_secret(0).public();
    rogue.send_all(&request);
    let mut changed = rogue.signed[0].clone();
    changed.body.timestamp += 1;
    rogue.send_all(&changed);
}

/// The same request over and over, to everybody.
pub(crate) fn repeats(rogue: &mut Rogue) {
    if rogue.ticks % 10 == 1 {
        let op = rogue.operation();
        rogue.sign(1, stamp(rogue), op);
    }
    for request in rogue.signed.clone().iter().rev().take(10) {
        for _ in 0..3 {
            rogue.send_all(request);
        }
    }
}

/// The same requests over and over, of which others were made long since.
pub(crate) fn repeats_old(rogue: &mut Rogue) {
    for number in 0..4 {
        let op = rogue.operation();
        let request = rogue.sign(1, stamp(rogue) + number, op);
        rogue.send_all(&request);
    }
    let old = rogue.rng.below(rogue.signed.len() as u64) as usize;
    let request = rogue.signed[old].clone();
    rogue.send_all(&request);
}

/// A new session for every request, and a request of an old one.
pub(crate) fn many_sessions(rogue: &mut Rogue) {
    for part in 0..4 {
        let op = rogue.operation();
        let request = rogue.sign(rogue.ticks * 4 + part, stamp(rogue) + part, op);
        rogue.send_all(&request);
    }
    let old = rogue.rng.below(rogue.signed.len() as u64) as usize;
    let request = rogue.signed[old].clone();
    rogue.send_all(&request);
}

/// Operations as long as may be.
pub(crate) fn huge_operations(rogue: &mut Rogue) {
    let mut op = rogue.operation().to_vec();
    op.resize(bft::REQUEST_OP_MAX, 7);
    let request = rogue.sign(1, stamp(rogue), op.into());
    rogue.send_all(&request);
}

/// Operations that mean nothing.
pub(crate) fn nonsense(rogue: &mut Rogue) {
    let mut op = rogue.operation().to_vec();
    let len = rogue.rng.between(9, op.len() as u64) as usize;
    op.truncate(len);
    op.extend_from_slice(&rogue.rng.next().to_le_bytes());
    let request = rogue.sign(1, stamp(rogue), Bytes::from(op));
    rogue.send_all(&request);
}

/// Somebody whom the service does not know.
pub(crate) fn stranger(rogue: &mut Rogue) {
    rogue.principal = crate::keys::KNOWN_MAX + rogue.principal % 4;
    for _ in 0..3 {
        let op = rogue.operation();
        let request = rogue.sign(1, stamp(rogue), op);
        rogue.send_all(&request);
    }
}
