//! Liars by chance: fields changed a little, as ByzzFuzz does (Winter et al., OOPSLA'23), or bytes.
//!
//! *Small scope*: a field becomes the one before or after it, or another digest that was said before.
//! What is changed is decided once for a round (a view and a place) and a receiver, so that a lie is
//! consistent, and now and then for all receivers alike.

use base::{Decode as _, Digest, Encode as _, Seq, View};
use bft::{Checkpoint, Commit, Committed, Message, Prepare, Proposal, Status, ViewChange};

use super::{Act, Lie};
use crate::rng::Rng;

/// Changes a field by little.
pub(crate) fn small_scope(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    fuzz(lie, act, |value, rng| if rng.percent(50) { value.saturating_add(1) } else { value.saturating_sub(1) })
}

/// Changes a field to anything.
pub(crate) fn any_scope(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    fuzz(lie, act, |value, rng| match rng.below(4) {
        0 => rng.next(),
        1 => 0,
        2 => u64::MAX,
        _ => value.saturating_add(rng.below(100)),
    })
}

/// Changes bits.
pub(crate) fn bits(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    let Act::Say { to, message } = act else { return true };
    if lie.rng.percent(60) {
        return true;
    }
    let mut bytes = message.to_bytes();
    for _ in 0..lie.rng.between(1, 3) {
        let place = lie.rng.below(bytes.len() as u64) as usize;
        bytes[place] ^= 1 << lie.rng.below(8);
    }
    if let Ok(message) = Message::from_bytes(&bytes) {
        lie.send(*to, message);
    }
    false
}

fn fuzz(lie: &mut Lie<'_>, act: &Act<'_>, change: fn(u64, &mut Rng) -> u64) -> bool {
    let Act::Say { to, message } = act else { return true };
    let round = crate::trace::numbers(message)[1];
    let whom = if round.is_multiple_of(3) { 0 } else { u64::from(to.0) };
    let mut rng = Rng::new(round ^ whom << 48 ^ u64::from(lie.me.0) << 56 ^ lie.memory.numbers[2]);
    if rng.percent(50) {
        return true;
    }
    if rng.percent(20) {
        return false;
    }
    let digest = other_digest(lie, message, &mut rng);
    let message = mutate(lie, message, digest, &mut rng, change);
    lie.send(*to, message);
    false
}

/// A digest said before, or none of anything.
fn other_digest(lie: &mut Lie<'_>, message: &Message, rng: &mut Rng) -> Digest {
    let said = match message {
        Message::Prepare(vote) => Some(vote.body.digest),
        Message::Checkpoint(vote) => Some(vote.body.digest),
        _ => None,
    };
    if said.is_some() {
        lie.memory.keep(lie.me, message);
    }
    let kept = lie.memory.messages.len() as u64;
    let old = (kept > 0).then(|| &lie.memory.messages[rng.below(kept) as usize].1);
    match old {
        Some(Message::Prepare(vote)) => vote.body.digest,
        Some(Message::Checkpoint(vote)) => vote.body.digest,
        _ => Digest([rng.below(4) as u8; 32]),
    }
}

fn mutate(
    lie: &Lie<'_>,
    message: &Message,
    digest: Digest,
    rng: &mut Rng,
    change: fn(u64, &mut Rng) -> u64,
) -> Message {
    let field = rng.below(3);
    let mut number = |value: u64, which: u64| if field == which { change(value, rng) } else { value };
    let hash = |value: Digest| if field == 2 { digest } else { value };
    match message.clone() {
        Message::Proposal(Proposal { header, batch }) => {
            let mut body = header.body;
            body.view = View(number(body.view.0, 0));
            body.seq = Seq(number(body.seq.0, 1));
            body.at.0 = number(body.at.0, 2);
            let own = header.body.view.primary(lie.n) == lie.me;
            Message::Proposal(Proposal { header: if own { lie.sign(body) } else { header }, batch })
        }
        Message::Prepare(vote) => {
            let Prepare { view, seq, digest, replica } = vote.body;
            let (view, seq) = (View(number(view.0, 0)), Seq(number(seq.0, 1)));
            Message::Prepare(lie.sign(Prepare { view, seq, digest: hash(digest), replica }))
        }
        Message::Commit(Commit { view, seq, digest }) => {
            let (view, seq) = (View(number(view.0, 0)), Seq(number(seq.0, 1)));
            Message::Commit(Commit { view, seq, digest: hash(digest) })
        }
        Message::Checkpoint(vote) => {
            let Checkpoint { seq, digest, replica } = vote.body;
            Message::Checkpoint(lie.sign(Checkpoint { seq: Seq(number(seq.0, 1)), digest: hash(digest), replica }))
        }
        Message::Status(status) => {
            let (view, last) = (View(number(status.view.0, 0)), Seq(number(status.last_executed.0, 1)));
            let low_water_mark = Seq(number(status.low_water_mark.0, 2));
            Message::Status(Status { view, last_executed: last, low_water_mark, ..status })
        }
        Message::Committed(Committed { seq, view, mut at, batch }) => {
            at.0 = number(at.0, 0);
            Message::Committed(Committed { seq: Seq(number(seq.0, 1)), view, at, batch })
        }
        Message::ViewChange(said) if said.body.replica == lie.me => {
            let view = View(number(said.body.view.0, 0));
            let mut prepared = said.body.prepared;
            if field == 1 {
                prepared.pop();
            }
            let stable = said.body.stable.filter(|_| field != 2);
            Message::ViewChange(lie.sign(ViewChange { view, stable, prepared, replica: lie.me, life: said.body.life }))
        }
        other => other,
    }
}
