//! Liars to those who have lost something: parts of a checkpoint that are none, and words to a
//! replica that begins a new life.

use base::{Digest, ReplicaId, Seq, Time};
use bft::{Content, Head, Message, Part, Rejoin, Welcome};
use bytes::Bytes;

use super::{Act, Deed, Lie};

/// Replaces something it would say.
fn instead(lie: &mut Lie<'_>, to: ReplicaId, message: Message) -> bool {
    lie.send(to, message);
    false
}

/// Sends parts of another state.
pub(crate) fn wrong_parts(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    let Act::Say { to, message: Message::Part(part) } = act else { return true };
    let content = match &part.content {
        Content::Fork(children) => {
            let mut children = children.clone();
            children.iter_mut().flatten().for_each(|digest| *digest = Digest::of(&digest.0));
            Content::Fork(children)
        }
        Content::Rows(rows) if lie.rng.percent(50) => {
            // All of them good, and each another's.
            let values = rows.iter().cycle().skip(1).map(|(_, value)| value.clone());
            Content::Rows(rows.iter().map(|(name, _)| name.clone()).zip(values).collect())
        }
        Content::Rows(rows) => {
            let wrong = rows.iter().map(|(name, _)| (name.clone(), Bytes::from_static(b"wrong")));
            Content::Rows(wrong.chain([(Bytes::from_static(b"extra"), Bytes::new())]).collect())
        }
    };
    instead(lie, *to, Message::Part(Part { content, ..part.clone() }))
}

/// Sends heads of another state.
pub(crate) fn wrong_heads(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    let Act::Say { to, message: Message::Head(head) } = act else { return true };
    let wrong = Head { at: Time(head.at.0 + 1), state: Digest([1; 32]), ..*head };
    instead(lie, *to, Message::Head(wrong))
}

/// Sends heads of the true state with a client table that has forgotten everything.
pub(crate) fn empty_tables(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    let Act::Say { to, message: Message::Head(head) } = act else { return true };
    let empty = base::merkle::Trie::new().root();
    instead(lie, *to, Message::Head(Head { table: empty, ..*head }))
}

/// Sends heads of the true state at another time.
pub(crate) fn wrong_times(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    let Act::Say { to, message: Message::Head(head) } = act else { return true };
    instead(lie, *to, Message::Head(Head { at: Time(head.at.0 + 3_600_000_000_000), ..*head }))
}

/// Says that it keeps no checkpoint.
pub(crate) fn keeps_nothing(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    let (to, seq) = match act {
        Act::Say { to, message: Message::Part(part) } => (*to, part.seq),
        Act::Say { to, message: Message::Head(head) } => (*to, head.seq),
        _ => return true,
    };
    instead(lie, to, Message::Gone(seq))
}

/// Never answers who asks for parts.
pub(crate) fn stalls(_: &mut Lie<'_>, act: &Act<'_>) -> bool {
    !matches!(act, Act::Say { message: Message::Part(_) | Message::Head(_) | Message::Gone(_), .. })
}

/// Answers who asks for parts, each time a second late.
pub(crate) fn late_parts(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    match act {
        Act::Say { to, message: message @ (Message::Part(_) | Message::Head(_)) } => {
            lie.deeds.push(Deed::Send { after: 1_000_000_000, to: *to, message: (*message).clone() });
            false
        }
        _ => true,
    }
}

/// Says it has a stable checkpoint that too few signed.
pub(crate) fn unproved_checkpoints(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    let Act::Say { to, message: Message::Stable(proof) } = act else { return true };
    let mut proof = proof.clone();
    proof.seq = Seq(proof.seq.0 + 128);
    proof.checkpoints.truncate(1);
    instead(lie, *to, Message::Stable(proof))
}

/// Tells who begins a new life of ever higher ones that it had.
pub(crate) fn churns_lives(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    match act {
        Act::Say { to, message: Message::Welcome(welcome) } => {
            let higher = Welcome { life: welcome.life + 1, ..welcome.clone() };
            instead(lie, *to, Message::Welcome(higher))
        }
        _ => true,
    }
}

/// Says nothing to who begins a new life.
pub(crate) fn unwelcoming(_: &mut Lie<'_>, act: &Act<'_>) -> bool {
    !matches!(act, Act::Say { message: Message::Welcome(_), .. })
}

/// Begins a new life ten times a second.
pub(crate) fn many_lives(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    if matches!(act, Act::Tick) {
        let message = Message::Rejoin(lie.sign(Rejoin { life: lie.now.0, replica: lie.me }));
        lie.send_all(&message);
    }
    if let Act::Say { to, message: Message::Status(status) } = act {
        // And never has caught up.
        let mut status = status.clone();
        status.rejoins = Some(Seq(u64::MAX));
        return instead(lie, *to, Message::Status(status));
    }
    true
}

/// Begins its last life of all.
pub(crate) fn last_life(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    if matches!(act, Act::Tick) {
        let message = Message::Rejoin(lie.sign(Rejoin { life: u64::MAX, replica: lie.me }));
        lie.send_all(&message);
    }
    true
}
