//! Messages in a few words, for traces.

use bft::{Message, PrePrepare};

fn header(header: &PrePrepare) -> String {
    format!("place {} {:?}", header.seq, header.digest())
}

/// A message in a few words.
pub(crate) fn of(message: &Message) -> String {
    match message {
        Message::Proposal(proposal) => {
            format!("PRE-PREPARE view {} {}", proposal.header.body.view, header(&proposal.header.body))
        }
        Message::Prepare(prepare) => {
            format!("PREPARE view {} place {} {:?}", prepare.body.view, prepare.body.seq, prepare.body.digest)
        }
        Message::Commit(commit) => format!("COMMIT view {} place {} {:?}", commit.view, commit.seq, commit.digest),
        Message::ViewChange(change) => {
            let prepared = change.body.prepared.iter().map(|prepared| &prepared.header.body);
            let prepared: Vec<_> = prepared.map(|body| format!("in view {} {}", body.view, header(body))).collect();
            format!("VIEW-CHANGE to {} after {} P {prepared:?}", change.body.view, change.body.low_water_mark())
        }
        Message::NewView(new_view) => {
            let proposals: Vec<_> = new_view.body.proposals.iter().map(|body| header(&body.body)).collect();
            let of: Vec<_> = new_view.body.view_changes.iter().map(|(replica, _)| replica.0).collect();
            format!("NEW-VIEW {} of {of:?} O {proposals:?}", new_view.body.view)
        }
        Message::Committed(committed) => {
            format!("executed, view {} place {} {:?}", committed.view, committed.seq, committed.digest())
        }
        Message::Checkpoint(checkpoint) => {
            format!("CHECKPOINT {} {:?}", checkpoint.body.seq, checkpoint.body.digest)
        }
        Message::Body(body) => format!("a batch for place {}", body.seq),
        other => format!("{other:?}"),
    }
}
