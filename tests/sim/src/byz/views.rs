//! Liars who change views: too often, with too little, or to what nobody prepared.

use base::{Digest, Seq, Signed, Time, View};
use bft::{Checkpoint, Message, NewView, PrePrepare, ViewChange};

use super::{Act, Lie};

/// Notes the highest view heard of.
fn note_view(lie: &mut Lie<'_>, act: &Act<'_>) -> View {
    if let Act::Hear { message: Message::Status(status), .. } = act
        && status.view.0 < 1 << 30
    {
        lie.memory.numbers[1] = lie.memory.numbers[1].max(status.view.0);
    }
    View(lie.memory.numbers[1])
}

fn bare(lie: &Lie<'_>, view: View) -> Signed<ViewChange> {
    lie.sign(ViewChange { view, stable: None, prepared: Vec::new(), replica: lie.me, life: 0 })
}

/// Asks for the next view all the time.
pub(crate) fn storm(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    let view = note_view(lie, act);
    if matches!(act, Act::Tick) {
        let message = Message::ViewChange(bare(lie, View(view.0 + 1)));
        lie.send_all(&message);
    }
    true
}

/// Asks for views that nobody will live to see.
pub(crate) fn leaps(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    if matches!(act, Act::Tick) {
        let view = if lie.rng.percent(50) { 1 << 40 } else { u64::MAX };
        let view = View(view - lie.rng.below(4));
        let message = Message::ViewChange(bare(lie, view));
        lie.send_all(&message);
    }
    true
}

/// Joins a view change as soon as anybody asks for one.
pub(crate) fn joins_at_once(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    // Liars don't egg each other on: two who answer every word of the other would never end.
    if let Act::Hear { from, message: Message::ViewChange(change) } = act
        && !lie.gang.contains(from)
    {
        let message = Message::ViewChange(bare(lie, change.body.view));
        lie.send_all(&message);
    }
    true
}

fn change(lie: &mut Lie<'_>, act: &Act<'_>, change: impl FnOnce(&mut Lie<'_>, &mut ViewChange)) -> bool {
    let Act::Say { to, message: Message::ViewChange(said) } = act else { return true };
    let mut body = said.body.clone();
    if body.replica != lie.me {
        return true;
    }
    change(lie, &mut body);
    let signed = lie.sign(body);
    lie.send(*to, Message::ViewChange(signed));
    false
}

/// Says that nothing prepared here.
pub(crate) fn forgets_prepared(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    change(lie, act, |_, body| body.prepared.clear())
}

/// Says that no checkpoint was ever stable here, and nothing prepared.
pub(crate) fn forgets_all(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    change(lie, act, |_, body| (body.stable, body.prepared) = (None, Vec::new()))
}

/// Says that something else prepared here than did.
pub(crate) fn forged_prepared(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    change(lie, act, |lie, body| {
        let view = View(body.view.0.saturating_sub(1));
        for prepared in &mut body.prepared {
            let forged = PrePrepare { view, batch: Digest([3; 32]), ..prepared.header.body };
            prepared.header = lie.sign(forged);
        }
    })
}

/// Says that it has a stable checkpoint of another state, which nobody else signed.
pub(crate) fn forged_stable(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    change(lie, act, |lie, body| {
        let Some(proof) = &mut body.stable else { return };
        proof.digest = Digest([8; 32]);
        let vote = Checkpoint { seq: proof.seq, digest: proof.digest, replica: lie.me };
        let count = proof.checkpoints.len();
        proof.checkpoints = vec![lie.sign(vote); count];
    })
}

/// Claims that what prepared did so in another view, with the certificate of the true one.
pub(crate) fn other_views_prepared(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    change(lie, act, |_, body| {
        let view = View(body.view.0.saturating_sub(1));
        body.prepared.iter_mut().for_each(|prepared| prepared.header.body.view = view);
    })
}

/// Tells half of the others the truth, and the rest that nothing prepared here.
pub(crate) fn two_faced_changes(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    match act {
        Act::Say { to, .. } if lie.is_in_first_half(*to) => true,
        _ => forgets_prepared(lie, act),
    }
}

fn begin(lie: &mut Lie<'_>, act: &Act<'_>, change: impl FnOnce(&mut Lie<'_>, &mut NewView)) -> bool {
    let Act::Say { to, message: Message::NewView(said) } = act else { return true };
    let mut body = said.body.clone();
    if body.view.primary(lie.n) != lie.me {
        return true;
    }
    change(lie, &mut body);
    let signed = lie.sign(body);
    lie.send(*to, Message::NewView(signed));
    false
}

/// Begins its view without the last of what prepared.
pub(crate) fn omits_proposals(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    begin(lie, act, |_, body| body.proposals.truncate(body.proposals.len().saturating_sub(1)))
}

/// Begins its view with null requests where something prepared.
pub(crate) fn null_proposals(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    begin(lie, act, |lie, body| {
        let null = bft::Batch::new(Vec::new()).digest();
        for header in &mut body.proposals {
            *header = lie.sign(PrePrepare { at: Time::ZERO, batch: null, ..header.body });
        }
    })
}

/// Begins its view with more than follows.
pub(crate) fn extra_proposals(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    begin(lie, act, |lie, body| {
        let seq = Seq(body.proposals.last().map_or(1, |header| header.body.seq.0 + 1));
        let extra = PrePrepare { view: body.view, seq, at: lie.now, batch: Digest([4; 32]) };
        body.proposals.push(lie.sign(extra));
    })
}

/// Leaves out one of the view changes that its view follows from.
pub(crate) fn omits_changes(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    begin(lie, act, |_, body| body.view_changes.truncate(body.view_changes.len().saturating_sub(1)))
}

/// Names view changes that there are not.
pub(crate) fn invents_changes(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    begin(lie, act, |_, body| body.view_changes.iter_mut().for_each(|(_, digest)| *digest = Digest([5; 32])))
}

/// Begins its view in two ways.
pub(crate) fn two_new_views(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    match act {
        Act::Say { to, .. } if lie.is_in_first_half(*to) => true,
        _ => null_proposals(lie, act),
    }
}

/// Begins views that nobody asked for.
pub(crate) fn unasked_new_views(lie: &mut Lie<'_>, act: &Act<'_>) -> bool {
    let view = note_view(lie, act);
    if matches!(act, Act::Tick) {
        let own = (view.0 + 1..).find(|view| View(*view).primary(lie.n) == lie.me).expect("its turn comes");
        let (view_changes, proposals) = (Vec::new(), Vec::new());
        let message = Message::NewView(lie.sign(NewView { view: View(own), view_changes, proposals }));
        lie.send_all(&message);
    }
    true
}
