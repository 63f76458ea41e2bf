//! Liars to clients.

use base::{Digest, Seq, View};
use bft::{RefusedWhy, Reply, ReplyResult};
use bytes::Bytes;

use super::{Act, Deed, Lie};

fn answer(lie: &mut Lie<'_>, act: &Act<'_>, change: impl FnOnce(&mut Lie<'_>, &mut Reply)) -> bool {
    let Act::Answer { client, session, reply } = act else { return true };
    let mut reply = (*reply).clone();
    change(lie, &mut reply);
    lie.deeds.push(Deed::Answer { client: *client, session: *session, reply });
    false
}

/// Tells clients results that nobody computed, all liars alike.
pub(crate) fn wrong_results(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    answer(lie, act, |_, reply| {
        reply.result = ReplyResult::Full(Bytes::from_static(b"a lie"));
        reply.seq = Seq(1);
    })
}

/// Tells clients the digest of no result at all, all liars alike.
pub(crate) fn wrong_digests(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    answer(lie, act, |_, reply| {
        reply.result = ReplyResult::DigestOnly(Digest([0; 32]));
        reply.seq = Seq(1);
    })
}

/// Sends digests where it should send the whole result.
pub(crate) fn withheld_results(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    answer(lie, act, |_, reply| {
        if let ReplyResult::Full(bytes) = &reply.result {
            reply.result = ReplyResult::DigestOnly(Digest::of(bytes));
        }
    })
}

/// Tells clients that it does not know them.
pub(crate) fn refusals(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    answer(lie, act, |_, reply| reply.result = ReplyResult::Refused(RefusedWhy::UnknownPrincipal))
}

/// Tells clients that it has forgotten them.
pub(crate) fn stale_refusals(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    answer(lie, act, |_, reply| reply.result = ReplyResult::Refused(RefusedWhy::Stale { floor: u64::MAX }))
}

/// Tells clients that there is too much to do.
pub(crate) fn overload_refusals(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    answer(lie, act, |_, reply| reply.result = ReplyResult::Refused(RefusedWhy::Overloaded))
}

/// Right results, at a wrong place in the order, all liars alike.
pub(crate) fn wrong_places(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    answer(lie, act, |_, reply| reply.seq = Seq(reply.seq.0 + 1))
}

/// Right results, and a view that nobody is in.
pub(crate) fn wrong_views(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    answer(lie, act, |lie, reply| reply.view = View(if lie.rng.percent(50) { u64::MAX } else { lie.rng.below(9) }))
}

/// Answers with any of these lies.
pub(crate) fn any_lie(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    let lies = [wrong_results, wrong_digests, withheld_results, refusals, stale_refusals, overload_refusals];
    let chosen = lie.rng.pick(&lies);
    chosen(lie, act)
}
