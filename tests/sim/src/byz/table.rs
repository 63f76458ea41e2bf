//! All the ways of lying.

use bft::ReplyResult;
use bytes::Bytes;

use super::{Act, Behaviour, Deed, How, Lie, Place};
use crate::check::Invariant::{Agreement, Progress};

/// Every way of lying.
pub const BEHAVIOURS: &[Behaviour] = &[Behaviour {
    name: "silent",
    row: "Silent primary",
    applies: &[Agreement, Progress],
    how: How::Tamper(silent),
    place: Place::Anywhere,
    hush: false,
}];

fn silent(_: &mut Lie<'_>, act: &Act<'_>) -> bool {
    !matches!(act, Act::Say { .. } | Act::Answer { .. })
}

/// Tells clients results that nobody computed, all liars alike.
pub(crate) fn lie_to_clients(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    if let Act::Answer { client, session, reply } = act {
        let mut reply = (*reply).clone();
        reply.result = ReplyResult::Full(Bytes::from_static(b"a lie"));
        lie.deeds.push(Deed::Answer { client: *client, session: *session, reply });
        return false;
    }
    true
}
