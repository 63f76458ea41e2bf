//! Liars who leave out, delay and repeat; every word they say is true.

use bft::Message;

use super::{Act, Deed, Lie};

const MS: u64 = 1_000_000;

/// Says nothing to anybody.
pub(crate) fn silent(_: &mut Lie<'_>, act: &Act<'_>) -> bool {
    !matches!(act, Act::Say { .. } | Act::Answer { .. })
}

/// Never answers a client.
pub(crate) fn no_answers(_: &mut Lie<'_>, act: &Act<'_>) -> bool {
    !matches!(act, Act::Answer { .. })
}

/// Proposes just before it would be suspected: nine tenths of the timeout late.
pub(crate) fn slow_primary(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    delay(lie, act, 900 * MS, 900 * MS, |message| matches!(message, Message::Proposal(_)))
}

/// Says everything late.
pub(crate) fn dawdling(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    delay(lie, act, 100 * MS, 2000 * MS, |_| true)
}

fn delay(lie: &mut Lie<'_>, act: &Act<'_>, least: u64, most: u64, what: fn(&Message) -> bool) -> bool {
    let Act::Say { to, message } = act else { return true };
    if !what(message) {
        return true;
    }
    let after = lie.rng.between(least, most);
    lie.deeds.push(Deed::Send { after, to: *to, message: (*message).clone() });
    false
}

/// Hears no request of one principal, from wherever it comes.
pub(crate) fn censor(_: &mut Lie<'_>, act: &Act<'_>) -> bool {
    let victim = crate::keys::principal_secret(0).public();
    match act {
        Act::Asked { request } => request.body.client != victim,
        Act::Hear { message: Message::Forward(request), .. } => request.body.client != victim,
        _ => true,
    }
}

/// Talks to all but one correct replica.
pub(crate) fn shuns_one(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    let victim = lie.others().into_iter().rfind(|other| !lie.gang.contains(other));
    !matches!(act, Act::Say { to, .. } if Some(*to) == victim)
}

/// Helps nobody to catch up.
pub(crate) fn unhelpful(_: &mut Lie<'_>, act: &Act<'_>) -> bool {
    let Act::Say { message, .. } = act else { return true };
    !matches!(message, Message::Committed(_) | Message::Body(_) | Message::Status(_))
}

/// Hears nobody's STATUS and asks nobody, but says its own.
pub(crate) fn deaf_to_status(_: &mut Lie<'_>, act: &Act<'_>) -> bool {
    !matches!(act, Act::Hear { message: Message::Status(_) | Message::Ask(_), .. })
}

/// Prepares, and never commits.
pub(crate) fn no_commits(_: &mut Lie<'_>, act: &Act<'_>) -> bool {
    !matches!(act, Act::Say { message: Message::Commit(_), .. })
}

/// Commits, and never prepares.
pub(crate) fn no_prepares(_: &mut Lie<'_>, act: &Act<'_>) -> bool {
    !matches!(act, Act::Say { message: Message::Prepare(_), .. })
}

/// Never proposes.
pub(crate) fn no_proposals(_: &mut Lie<'_>, act: &Act<'_>) -> bool {
    !matches!(act, Act::Say { message: Message::Proposal(_), .. })
}

/// Proposes to just enough others.
pub(crate) fn proposes_to_some(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    let Act::Say { to, message: Message::Proposal(proposal) } = act else { return true };
    let place = usize::from(to.0) + proposal.header.body.seq.0 as usize;
    place % lie.n >= (lie.n - 1) / 3
}

/// Keeps its checkpoints to itself.
pub(crate) fn no_checkpoints(_: &mut Lie<'_>, act: &Act<'_>) -> bool {
    !matches!(act, Act::Say { message: Message::Checkpoint(_), .. })
}

/// Takes no part in view changes.
pub(crate) fn no_view_changes(_: &mut Lie<'_>, act: &Act<'_>) -> bool {
    !matches!(act, Act::Say { message: Message::ViewChange(_) | Message::NewView(_), .. })
}

/// Says everything five times.
pub(crate) fn stutters(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    if let Act::Say { to, message } = act {
        for _ in 0..4 {
            let after = lie.rng.below(50 * MS);
            lie.deeds.push(Deed::Send { after, to: *to, message: (*message).clone() });
        }
    }
    true
}

/// Says again what it and others said long ago.
pub(crate) fn replays(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    match act {
        Act::Say { message, .. } => lie.memory.keep(lie.me, message),
        Act::Hear { from, message } => lie.memory.keep(*from, message),
        Act::Tick if !lie.memory.messages.is_empty() => {
            for to in lie.others() {
                let old = lie.rng.below(lie.memory.messages.len() as u64) as usize;
                let message = lie.memory.messages[old].1.clone();
                lie.send(to, message);
            }
        }
        _ => {}
    }
    true
}

/// Crashes every few seconds and forgets all that it promised.
pub(crate) fn amnesia(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    if matches!(act, Act::Tick) && lie.rng.percent(4) {
        lie.deeds.push(Deed::Forget);
    }
    true
}

/// Now this, now that: loses, delays, repeats.
pub(crate) fn moody(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    if matches!(act, Act::Tick) {
        lie.memory.numbers[0] = lie.memory.numbers[0].wrapping_add(u64::from(lie.rng.percent(3)));
    }
    match lie.memory.numbers[0] % 4 {
        0 => true,
        1 => dawdling(lie, act),
        2 => stutters(lie, act),
        _ => silent(lie, act),
    }
}
