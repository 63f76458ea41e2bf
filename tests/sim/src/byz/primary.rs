//! Liars who propose: two batches for one place, wrong times, wrong requests.

use base::{Digest, Seq, Signature, Signed, Time};
use bft::{BATCH_REQUESTS_MAX, Batch, Commit, Message, PrePrepare, Prepare, Proposal, Request};

use super::{Act, Lie};
use crate::keys::principal_secret;

/// As far as backups accept, all but a little, ns.
const EDGE: u64 = 9_800_000_000;
const HOUR: u64 = 3_600_000_000_000;

/// Replaces an own proposal by the one that `change` makes of it.
fn propose(lie: &mut Lie<'_>, act: &Act<'_>, change: impl FnOnce(&mut Lie<'_>, &mut PrePrepare, &mut Batch)) -> bool {
    let Act::Say { to, message: Message::Proposal(proposal) } = act else { return true };
    let (mut header, mut batch) = (proposal.header.body, proposal.batch.clone());
    // Only its own: others' it can merely pass on.
    if header.view.primary(lie.n) != lie.me {
        return true;
    }
    change(lie, &mut header, &mut batch);
    let header = lie.sign(header);
    lie.send(*to, Message::Proposal(Proposal { header, batch }));
    false
}

fn with_batch(header: &mut PrePrepare, batch: &mut Batch, requests: Vec<Signed<Request>>) {
    *batch = Batch::new(requests);
    header.batch = batch.digest();
}

/// Proposes one batch to half of the others, and an empty one to the rest; the gang votes with
/// each half for what that half was told.
pub(crate) fn equivocates(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    two_proposals(lie, act, |header, batch| with_batch(header, batch, Vec::new()))
}

/// The same with the time only.
pub(crate) fn equivocates_in_time(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    two_proposals(lie, act, |header, _| header.at = Time(header.at.0 + 1))
}

fn two_proposals(lie: &mut Lie<'_>, act: &Act<'_>, change: fn(&mut PrePrepare, &mut Batch)) -> bool {
    let Act::Say { to, message } = act else { return true };
    if lie.is_in_first_half(*to) || lie.gang.contains(to) {
        return true;
    }
    let (view, seq) = match message {
        Message::Proposal(proposal) => {
            let header = proposal.header.body;
            if lie.gang.contains(&header.view.primary(lie.n)) {
                lie.memory.keep(lie.me, message);
            }
            return propose(lie, act, |_, header, batch| change(header, batch));
        }
        Message::Prepare(prepare) => (prepare.body.view, prepare.body.seq),
        Message::Commit(commit) => (commit.view, commit.seq),
        _ => return true,
    };
    let told = lie.memory.messages.iter().rev().find_map(|(_, message)| match message {
        Message::Proposal(told) if (told.header.body.view, told.header.body.seq) == (view, seq) => Some(told.clone()),
        _ => None,
    });
    let Some(told) = told else { return true };
    let (mut header, mut batch) = (told.header.body, told.batch);
    change(&mut header, &mut batch);
    let digest = header.digest();
    let vote = match message {
        Message::Prepare(_) => Message::Prepare(lie.sign(Prepare { view, seq, digest, replica: lie.me })),
        _ => {
            // This half never hears from enough others that it prepared, so the commit comes along.
            Message::Commit(Commit { view, seq, digest })
        }
    };
    lie.send(*to, vote);
    false
}

/// Proposes two batches, one to each half, and prepares each itself: as if a primary had two votes.
pub(crate) fn primary_prepares(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    if let Act::Say { to, message: Message::Proposal(proposal) } = act
        && proposal.header.body.view.primary(lie.n) == lie.me
    {
        let (mut header, mut batch) = (proposal.header.body, proposal.batch.clone());
        if !lie.is_in_first_half(*to) && !lie.gang.contains(to) {
            with_batch(&mut header, &mut batch, Vec::new());
        }
        let PrePrepare { view, seq, .. } = header;
        let vote = lie.sign(Prepare { view, seq, digest: header.digest(), replica: lie.me });
        lie.send(*to, Message::Prepare(vote));
    }
    equivocates(lie, act)
}

/// Proposes something else for the same place a little later.
pub(crate) fn second_thoughts(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    if let Act::Say { to, message: message @ Message::Proposal(_) } = act {
        propose(lie, act, |_, header, batch| with_batch(header, batch, Vec::new()));
        for deed in &mut lie.deeds {
            if let super::Deed::Send { after, .. } = deed {
                *after = 3_000_000;
            }
        }
        lie.send(*to, (*message).clone());
        return false;
    }
    true
}

/// Names another batch than it sends.
pub(crate) fn wrong_batch(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    propose(lie, act, |_, header, _| header.batch = Digest([9; 32]))
}

/// Sends its proposals without their bodies.
pub(crate) fn null_body(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    let Act::Say { to, message: Message::Proposal(proposal) } = act else { return true };
    let header = proposal.header.clone();
    lie.send(*to, Message::Proposal(Proposal { header, batch: Batch::new(Vec::new()) }));
    false
}

/// Leaves gaps in the order.
pub(crate) fn gaps(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    propose(lie, act, |_, header, _| header.seq = Seq(header.seq.0 + header.seq.0 / 3))
}

/// Proposes far beyond the water marks.
pub(crate) fn far_proposals(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    propose(lie, act, |_, header, _| header.seq = Seq(header.seq.0 + (1 << 40)))
}

/// Proposes times an hour ahead.
pub(crate) fn time_ahead(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    propose(lie, act, |_, header, _| header.at = Time(header.at.0 + HOUR))
}

/// Proposes times as far ahead as is allowed, and then the time now: the order runs back.
pub(crate) fn time_swings(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    propose(lie, act, |_, header, _| {
        if header.seq.0 % 2 == 0 {
            header.at = Time(header.at.0 + HOUR / 400);
        }
    })
}

/// Proposes times an hour ago.
pub(crate) fn time_behind(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    propose(lie, act, |_, header, _| header.at = Time(header.at.0 - HOUR))
}

/// Proposes times as far behind as is allowed, and then, every other half a minute, as far ahead.
pub(crate) fn time_leaps(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    let late = (lie.now.0 / 30_000_000_000).is_multiple_of(2);
    propose(lie, act, |_, header, _| header.at = Time(if late { header.at.0 - EDGE } else { header.at.0 + EDGE }))
}

/// Proposes one and the same time for ever.
pub(crate) fn time_stands(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    propose(lie, act, |_, header, _| header.at = crate::clock::START)
}

/// Every request twice in a batch.
pub(crate) fn duplicates(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    propose(lie, act, |_, header, batch| {
        let mut requests = batch.requests().to_vec();
        requests.extend_from_within(..requests.len().min(BATCH_REQUESTS_MAX - requests.len()));
        with_batch(header, batch, requests);
    })
}

/// Old requests in new batches.
pub(crate) fn stale_requests(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    if let Act::Asked { request } = act {
        lie.memory.keep_request(request);
    }
    propose(lie, act, |lie, header, batch| {
        let mut requests = batch.requests().to_vec();
        requests.splice(0..0, lie.memory.requests.iter().take(20).cloned());
        requests.truncate(BATCH_REQUESTS_MAX);
        with_batch(header, batch, requests);
    })
}

/// The requests of a batch the other way round.
pub(crate) fn reverses(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    propose(lie, act, |_, header, batch| {
        let requests = batch.requests().iter().rev().cloned().collect();
        with_batch(header, batch, requests);
    })
}

/// Requests that no client made, in clients' names.
pub(crate) fn invented_requests(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    propose(lie, act, |lie, header, batch| {
        let client = principal_secret(0).public();
        let op = bytes::Bytes::from(vec![lie.rng.below(256) as u8; 40]);
        let body = Request { client, session: 1, timestamp: header.at.0, op };
        // The best it can do is to sign with its own key.
        let invented = lie.sign(body.clone());
        let blank = Signed { body, signature: Signature([0; 64]) };
        let mut requests = batch.requests().to_vec();
        requests.push(if lie.rng.percent(50) { invented } else { blank });
        requests.truncate(BATCH_REQUESTS_MAX);
        with_batch(header, batch, requests);
    })
}

/// Genuine requests, changed.
pub(crate) fn changed_requests(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    propose(lie, act, |_, header, batch| {
        let mut requests = batch.requests().to_vec();
        if let Some(first) = requests.first_mut() {
            first.body.timestamp += 1;
        }
        with_batch(header, batch, requests);
    })
}

/// Batches as long as may be, full of one request.
pub(crate) fn oversized(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    propose(lie, act, |_, header, batch| {
        let Some(first) = batch.requests().first().cloned() else { return };
        let room = bft::BATCH_BYTES_MAX / (first.body.op.len() + 200);
        let mut requests = vec![first; BATCH_REQUESTS_MAX.min(room)];
        let own = batch.requests().len().min(requests.len());
        requests[..own].clone_from_slice(&batch.requests()[..own]);
        if batch.bytes() < 1000 {
            with_batch(header, batch, requests);
        }
    })
}

/// Passes on to everybody whatever clients ask of it, again and again.
pub(crate) fn forwards(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    match act {
        Act::Asked { request } => lie.memory.keep_request(request),
        Act::Tick => {
            for request in lie.memory.requests.clone().iter().rev().take(30) {
                lie.send_all(&Message::Forward(request.clone()));
            }
        }
        _ => {}
    }
    true
}
