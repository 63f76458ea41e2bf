//! Liars whose votes are wrong: other digests, other places, other words to others.

use base::{Digest, ReplicaId, Seq, View};
use bft::{Checkpoint, Commit, Message, Prepare};

use super::{Act, Lie};

/// So far ahead that nobody will ever be there.
const FAR: u64 = 1 << 40;

fn other(digest: Digest) -> Digest {
    Digest::of(&digest.0)
}

/// Replaces what is said by something else, if there is something.
fn instead(lie: &mut Lie<'_>, to: ReplicaId, message: Option<Message>) -> bool {
    match message {
        Some(message) => {
            lie.send(to, message);
            false
        }
        None => true,
    }
}

/// Prepares something else.
pub(crate) fn wrong_prepares(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    let Act::Say { to, message: Message::Prepare(prepare) } = act else { return true };
    let wrong = Prepare { digest: other(prepare.body.digest), ..prepare.body };
    let message = Message::Prepare(lie.sign(wrong));
    instead(lie, *to, Some(message))
}

/// Commits something else.
pub(crate) fn wrong_commits(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    let Act::Say { to, message: Message::Commit(commit) } = act else { return true };
    instead(lie, *to, Some(Message::Commit(Commit { digest: other(commit.digest), ..*commit })))
}

/// Prepares and commits one thing towards half of the others, and another towards the rest.
pub(crate) fn two_faced(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    match act {
        Act::Say { to, .. } if lie.is_in_first_half(*to) => true,
        Act::Say { message: Message::Prepare(_), .. } => wrong_prepares(lie, act),
        Act::Say { message: Message::Commit(_), .. } => wrong_commits(lie, act),
        _ => true,
    }
}

/// Prepares twice: what it should, and then something else.
pub(crate) fn double_votes(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    if let Act::Say { to, message } = act {
        lie.send(*to, (*message).clone());
        wrong_prepares(lie, act);
        wrong_commits(lie, act);
        return false;
    }
    true
}

/// Commits whatever is proposed, at once, prepared or not.
pub(crate) fn hasty_commits(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    if let Act::Hear { message: Message::Proposal(proposal), .. } = act {
        let header = proposal.header.body;
        let commit = Commit { view: header.view, seq: header.seq, digest: header.digest() };
        lie.send_all(&Message::Commit(commit));
    }
    true
}

/// Commits what nobody proposed.
pub(crate) fn commits_from_nowhere(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    if let Act::Hear { message: Message::Proposal(proposal), .. } = act {
        let header = proposal.header.body;
        for ahead in 1..4 {
            let seq = Seq(header.seq.0 + ahead);
            lie.send_all(&Message::Commit(Commit { view: header.view, seq, digest: Digest([ahead as u8; 32]) }));
        }
    }
    true
}

/// Votes in other views, before and after this one.
pub(crate) fn other_views(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    let Act::Say { to, message } = act else { return true };
    let view =
        |view: View, lie: &mut Lie<'_>| View(if lie.rng.percent(50) { view.0 + 1 } else { view.0.saturating_sub(1) });
    let message = match message {
        Message::Prepare(prepare) => {
            let body = Prepare { view: view(prepare.body.view, lie), ..prepare.body };
            Some(Message::Prepare(lie.sign(body)))
        }
        Message::Commit(commit) => Some(Message::Commit(Commit { view: view(commit.view, lie), ..*commit })),
        _ => None,
    };
    instead(lie, *to, message)
}

/// Votes at places far ahead, beside its votes.
pub(crate) fn far_future(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    if let Act::Say { to, message } = act {
        match message {
            Message::Prepare(prepare) => {
                let body = Prepare { seq: Seq(prepare.body.seq.0 + FAR), ..prepare.body };
                let vote = Message::Prepare(lie.sign(body));
                lie.send(*to, vote);
            }
            Message::Commit(commit) => {
                let seq = Seq(u64::MAX - commit.seq.0);
                lie.send(*to, Message::Commit(Commit { seq, ..*commit }));
            }
            Message::Checkpoint(checkpoint) => {
                let body = Checkpoint { seq: Seq(checkpoint.body.seq.0 * FAR), ..checkpoint.body };
                let vote = Message::Checkpoint(lie.sign(body));
                lie.send(*to, vote);
            }
            _ => {}
        }
    }
    true
}

/// Votes in others' names.
pub(crate) fn others_names(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    if let Act::Say { to, message } = act {
        let name = ReplicaId((lie.me.0 + 1) % lie.n as u16);
        match message {
            Message::Prepare(prepare) => {
                let vote = Message::Prepare(lie.sign(Prepare { replica: name, ..prepare.body }));
                lie.send(*to, vote);
            }
            Message::Checkpoint(checkpoint) => {
                let vote = Message::Checkpoint(lie.sign(Checkpoint { replica: name, ..checkpoint.body }));
                lie.send(*to, vote);
            }
            _ => {}
        }
    }
    true
}

/// Says it reached another state at its checkpoints.
pub(crate) fn forged_checkpoints(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    let Act::Say { to, message: Message::Checkpoint(checkpoint) } = act else { return true };
    let body = Checkpoint { digest: other(checkpoint.body.digest), ..checkpoint.body };
    let message = Message::Checkpoint(lie.sign(body));
    instead(lie, *to, Some(message))
}

/// Says of its checkpoints one thing here and another there.
pub(crate) fn two_faced_checkpoints(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    match act {
        Act::Say { to, .. } if lie.is_in_first_half(*to) => true,
        _ => forged_checkpoints(lie, act),
    }
}

/// Says checkpoints of places nobody has reached, or where none is taken.
pub(crate) fn early_checkpoints(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    if let Act::Say { to, message: Message::Commit(commit) } = act {
        for seq in [commit.seq.0 + 1, commit.seq.0.next_multiple_of(16), commit.seq.0.next_multiple_of(128) + 128] {
            let body = Checkpoint { seq: Seq(seq), digest: commit.digest, replica: lie.me };
            let message = Message::Checkpoint(lie.sign(body));
            lie.send(*to, message);
        }
    }
    true
}
