//! Liars about where they stand: STATUS, vouchers, and what others ask for.

use base::{Digest, ReplicaId, Seq, Time, View};
use bft::{Batch, Body, Committed, Message, SlotState, Status, WINDOW_MAX, Want};

use super::{Act, Lie};

/// Replaces an own STATUS.
fn status(lie: &mut Lie<'_>, act: &Act<'_>, change: impl FnOnce(&mut Lie<'_>, &mut Status)) -> bool {
    let Act::Say { to, message: Message::Status(status) } = act else { return true };
    let mut status = status.clone();
    change(lie, &mut status);
    lie.send(*to, Message::Status(status));
    false
}

/// Says it has executed nothing.
pub(crate) fn status_low(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    status(lie, act, |lie, status| {
        (status.last_executed, status.low_water_mark, status.slots) = (Seq(0), Seq(0), Vec::new());
        status.round = lie.rng.below(2);
    })
}

/// Says it is far ahead, and retains nothing that others need.
pub(crate) fn status_high(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    status(lie, act, |lie, status| {
        let far = if lie.rng.percent(50) { u64::MAX } else { status.last_executed.0 + 1000 };
        (status.last_executed, status.low_water_mark, status.oldest_retained) = (Seq(far), Seq(far), Seq(far));
    })
}

/// Says whatever.
pub(crate) fn status_random(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    status(lie, act, |lie, status| {
        let near = status.last_executed.0;
        let mut seq = || {
            Seq([0, near, near + lie.rng.below(9), near.saturating_sub(lie.rng.below(9)), u64::MAX]
                [lie.rng.below(5) as usize])
        };
        (status.last_executed, status.low_water_mark, status.oldest_retained) = (seq(), seq(), seq());
        status.view = View(lie.rng.below(3));
        status.round = lie.rng.below(3);
    })
}

/// Says all it can of places it knows nothing of.
pub(crate) fn status_huge(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    status(lie, act, |lie, status| {
        let state = lie.rng.pick(&[SlotState::Empty, SlotState::Proposed, SlotState::Prepared]);
        status.slots = vec![state; WINDOW_MAX as usize];
    })
}

/// Says its STATUS, as if it had just started, twenty times as often as others.
pub(crate) fn status_flood(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    if let Act::Say { message: Message::Status(status), .. } = act {
        lie.memory.messages = vec![(lie.me, Message::Status(Status { round: 0, ..status.clone() }))];
    }
    if let (Act::Tick, Some((_, message))) = (act, lie.memory.messages.last().cloned()) {
        for _ in 0..4 {
            lie.send_all(&message);
        }
    }
    true
}

/// Vouches for batches that were never committed: the gang all for the same.
pub(crate) fn lying_vouchers(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    match act {
        Act::Hear { from, message: Message::Status(status) } if status.last_executed.0 < u64::MAX - 4 => {
            for ahead in 1..4 {
                let (seq, at) = (Seq(status.last_executed.0 + ahead), Time(status.last_executed.0));
                let lie_of = Committed { seq, view: View(0), at, batch: Batch::new(Vec::new()) };
                lie.send(*from, Message::Committed(lie_of));
            }
            true
        }
        Act::Say { message: Message::Committed(_), .. } => false,
        _ => true,
    }
}

/// Vouches for each committed batch with another time.
pub(crate) fn vouchers_of_another_time(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    let Act::Say { to, message: Message::Committed(committed) } = act else { return true };
    let other = Committed { at: Time(committed.at.0 + 1), ..committed.clone() };
    lie.send(*to, Message::Committed(other));
    false
}

/// Vouches for many batches ahead, to take up room.
pub(crate) fn voucher_flood(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    if let Act::Hear { from, message: Message::Status(status) } = act {
        for ahead in (1..40).rev() {
            let seq = Seq(status.last_executed.0.saturating_add(ahead));
            let at = Time(lie.rng.next());
            lie.send(*from, Message::Committed(Committed { seq, view: View(0), at, batch: Batch::new(Vec::new()) }));
        }
    }
    true
}

/// Asks for everything there may be, all the time.
pub(crate) fn asks_flood(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    if matches!(act, Act::Tick) {
        let places = (0..WINDOW_MAX).map(|seq| (Seq(seq), Digest([seq as u8; 32]))).collect();
        lie.send_all(&Message::Ask(Want::Batches { places }));
        let of = (0..lie.n as u16).map(ReplicaId).collect();
        let view = View(lie.rng.below(8));
        lie.send_all(&Message::Ask(Want::ViewChanges { view, of }));
    }
    true
}

/// Sends bodies that nobody asked for, and wrong ones to those who ask.
pub(crate) fn wrong_bodies(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    match act {
        Act::Hear { from, message: Message::Ask(Want::Batches { places }) } => {
            for (seq, _) in places.iter().take(20) {
                lie.send(*from, Message::Body(Body { seq: *seq, batch: Batch::new(Vec::new()) }));
            }
            true
        }
        Act::Say { message: Message::Body(_), .. } => false,
        Act::Tick => {
            let seq = Seq(lie.rng.below(200));
            lie.send_all(&Message::Body(Body { seq, batch: Batch::new(Vec::new()) }));
            true
        }
        _ => true,
    }
}
