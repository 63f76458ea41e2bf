//! Looking at what others may change, without holding up what is done here.
//!
//! An operation that changes something is ordered after the log, alone. One that only looks at what the log
//! does not touch need not wait for either: no answer of replicas' can be older than what was done here to it.

use base::PublicKey;
use meta::{Answer, Attr, Batch, Call, Denied, Ino, Op, Reply};

use super::Core;
use super::local::Local;
use crate::backend::{Metadata, Unavailable};

/// What came of looking.
pub(super) enum Looked {
    /// The answer.
    Answer(Box<Answer>),
    /// Somebody else has a lease on it.
    Leased,
    /// It has to be done after the log.
    InOrder,
}

/// What an operation looks at, if it changes nothing: the rows that its answer follows from are those of this
/// inode, and of its entries.
fn looks_at(op: &Op) -> Option<Ino> {
    match op {
        Op::Lookup { parent, .. } => Some(*parent),
        Op::GetAttr { ino }
        | Op::Access { ino, .. }
        | Op::Open { ino, .. }
        | Op::ReadLink { ino }
        | Op::ReadDir { ino, .. }
        | Op::GetAcl { ino, .. }
        | Op::GetXattr { ino, .. }
        | Op::ListXattr { ino } => Some(*ino),
        _ => None,
    }
}

impl<M: Metadata> Core<M> {
    /// Looks at what nothing done here has to do with.
    pub(super) async fn look(&self, call: &Call) -> Result<Looked, Unavailable> {
        let by = {
            let local = self.local.lock();
            if !looks_at(&call.op).is_some_and(|ino| local.is_elsewhere(ino, &self.me)) {
                return Ok(Looked::InOrder);
            }
            local.by(&self.me, None)
        };
        // Names that were this client's may be others' by now.
        self.forget().await;
        let mut answers = self.ask(Batch { calls: vec![call.clone()], by }).await?;
        Ok(match answers.pop() {
            Some(Answer::Denied(Denied::Leased)) => Looked::Leased,
            // Whatever becomes of the leases is seen to in order.
            None | Some(Answer::Denied(Denied::Fenced)) => Looked::InOrder,
            Some(mut answer) => match self.local.lock().complete(&mut answer, call, &self.me) {
                true => Looked::Answer(Box::new(answer)),
                false => Looked::InOrder,
            },
        })
    }
}

impl Local {
    /// Whether nothing that is done here has to do with this inode, or with the names in it.
    fn is_elsewhere(&self, ino: Ino, me: &(PublicKey, u64)) -> bool {
        !self.ceding && !self.touched.contains(&ino) && !self.copy.is_held_by(ino, me)
    }

    /// Puts into an answer of replicas' what is known here of inodes in it that are this client's. Says whether
    /// it could.
    fn complete(&mut self, answer: &mut Answer, call: &Call, me: &(PublicKey, u64)) -> bool {
        let looked: Vec<&mut Attr> = match answer {
            Answer::Done(Reply::Attr(attr)) => vec![attr],
            Answer::Done(Reply::Entries { entries, .. }) => entries.iter_mut().map(|entry| &mut entry.attr).collect(),
            _ => Vec::new(),
        };
        looked.into_iter().all(|attr| {
            if self.is_elsewhere(attr.ino, me) {
                return true;
            }
            let look = Call { caller: call.caller.clone(), op: Op::GetAttr { ino: attr.ino } };
            match self.apply(&look, me, None) {
                Some(Answer::Done(Reply::Attr(known))) => *attr = known,
                _ => return false,
            }
            true
        })
    }
}
