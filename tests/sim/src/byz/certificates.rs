//! Liars with certificates: true ones that they keep to themselves until they do harm, and ones put
//! together from what they hold.

use base::{Digest, ReplicaId, Seq, Signed, View};
use bft::{Batch, Message, PrePrepare, Prepare, Prepared, ViewChange};

use super::{Act, Lie};

const S: u64 = 1_000_000_000;

/// Replaces an own view change.
fn change(lie: &mut Lie<'_>, act: &Act<'_>, change: impl FnOnce(&mut Lie<'_>, &mut ViewChange)) -> bool {
    let Act::Say { to, message: Message::ViewChange(said) } = act else { return true };
    if said.body.replica != lie.me {
        return true;
    }
    let mut body = said.body.clone();
    change(lie, &mut body);
    let signed = lie.sign(body);
    lie.send(*to, Message::ViewChange(signed));
    false
}

/// Whether this is an own proposal.
fn is_own_proposal(lie: &Lie<'_>, act: &Act<'_>) -> bool {
    matches!(act, Act::Say { message: Message::Proposal(proposal), .. }
        if proposal.header.body.view.primary(lie.n) == lie.me)
}

/// Says that something else prepared, and proves it with one backup's prepare over and over, in the
/// last view of a liar. Proposes nothing, so that views come to an end.
pub(crate) fn one_signer(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    if is_own_proposal(lie, act) {
        return false;
    }
    change(lie, act, |lie, body| {
        let of_liars = |view: &View| lie.gang.contains(&view.primary(lie.n));
        let Some(view) = (0..body.view.0).rev().take(lie.n).map(View).find(of_liars) else { return };
        let primary = view.primary(lie.n);
        let Some(backup) = lie.gang.iter().copied().find(|who| *who != primary) else { return };
        for prepared in &mut body.prepared {
            let forged = PrePrepare { view, batch: null(), ..prepared.header.body };
            let prepare = Prepare { view, seq: forged.seq, digest: forged.digest(), replica: backup };
            let count = prepared.prepares.len();
            prepared.header = lie.sign_as(primary, forged);
            prepared.prepares = vec![lie.sign_as(backup, prepare); count];
        }
    })
}

/// Says that something else prepared in its own view than did, with the prepares for what did.
/// Proposes only half of the time, so that views come to an end.
pub(crate) fn swapped(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    if is_own_proposal(lie, act) {
        return (lie.now.0 / (2 * S)).is_multiple_of(2);
    }
    change(lie, act, |lie, body| {
        for prepared in &mut body.prepared {
            let header = prepared.header.body;
            if header.view.primary(lie.n) == lie.me {
                prepared.header = lie.sign(PrePrepare { batch: null(), ..header });
            }
        }
    })
}

fn null() -> Digest {
    Batch::new(Vec::new()).digest()
}

/// Whether two liars play their game at a place of a view of the first.
fn is_hoarded(lie: &Lie<'_>, view: View, seq: Seq) -> bool {
    lie.gang.first() == Some(&view.primary(lie.n)) && seq.0.is_multiple_of(3)
}

/// The first liar, as primary, lets just too few others prepare; with the second's prepare it has a
/// certificate that nobody else has. Both keep it back in the next view change, while another batch
/// takes the place, and show it in those after that: true, and out of date.
pub(crate) fn hoards(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    match act {
        Act::Say { to, message: message @ Message::Proposal(proposal) } => {
            let PrePrepare { view, seq, .. } = proposal.header.body;
            if is_hoarded(lie, view, seq) {
                if view.primary(lie.n) == lie.me && !knows(lie, message) {
                    lie.memory.keep(lie.me, message);
                }
                return view.primary(lie.n) == lie.me && is_chosen(lie, *to);
            }
            // The second's view ends, once what they have can do harm.
            lie.memory.messages.is_empty() || view.primary(lie.n) != lie.me || lie.gang[0] == lie.me
        }
        Act::Say { message: Message::Prepare(prepare), .. } => !is_hoarded(lie, prepare.body.view, prepare.body.seq),
        Act::Hear { from, message: message @ Message::Prepare(prepare) } => {
            if is_hoarded(lie, prepare.body.view, prepare.body.seq) && !knows(lie, message) {
                lie.memory.keep(*from, message);
            }
            true
        }
        _ => change(lie, act, |lie, body| {
            for prepared in hoard(lie) {
                let PrePrepare { view, seq, .. } = prepared.header.body;
                if seq > body.low_water_mark() && view.0 + 1 < body.view.0 {
                    body.prepared.retain(|other| other.header.body.seq != seq);
                    body.prepared.push(prepared);
                }
            }
            body.prepared.sort_by_key(|prepared| prepared.header.body.seq);
        }),
    }
}

fn knows(lie: &Lie<'_>, message: &Message) -> bool {
    lie.memory.messages.iter().any(|(_, kept)| kept == message)
}

/// Whether a replica is one of those who are let prepare: one fewer than a certificate needs.
fn is_chosen(lie: &Lie<'_>, who: ReplicaId) -> bool {
    let needed = (lie.n - 1) / 3 * 2;
    let correct = (0..lie.n as u16).map(ReplicaId).filter(|other| !lie.gang.contains(other));
    correct.take(needed - 1).any(|chosen| chosen == who)
}

/// The certificates that the liars hold.
fn hoard(lie: &Lie<'_>) -> Vec<Prepared> {
    let needed = (lie.n - 1) / 3 * 2;
    let Some(second) = lie.gang.get(1).copied() else { return Vec::new() };
    let mut hoard = Vec::new();
    for (_, message) in &lie.memory.messages {
        let Message::Proposal(proposal) = message else { continue };
        let PrePrepare { view, seq, .. } = proposal.header.body;
        let digest = proposal.header.body.digest();
        let vote = Prepare { view, seq, digest, replica: second };
        let own = lie.sign_as(second, vote);
        let others = lie.memory.messages.iter().filter_map(|(_, message)| match message {
            Message::Prepare(prepare) if prepare.body == (Prepare { replica: prepare.body.replica, ..vote }) => {
                Some(prepare.clone())
            }
            _ => None,
        });
        let mut prepares: Vec<Signed<Prepare>> = others.chain([own]).collect();
        prepares.sort_by_key(|prepare| prepare.body.replica);
        prepares.dedup_by_key(|prepare| prepare.body.replica);
        prepares.truncate(needed);
        if prepares.len() == needed {
            hoard.retain(|other: &Prepared| other.header.body.seq != seq);
            hoard.push(Prepared { header: proposal.header.clone(), prepares });
        }
    }
    hoard
}
