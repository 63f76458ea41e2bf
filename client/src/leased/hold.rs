//! Asking for leases, for how long they last, and for what is there.

use meta::{Answer, Batch, Call, Denied, Ino, Op, Reply};

use super::local::Kind;
use super::{Core, REFUSED, as_root};
use crate::backend::{Metadata, Unavailable};

impl<M: Metadata> Core<M> {
    /// Asks for a lease on a directory; or only to be known. Says whether somebody else has it, and is asked.
    pub(super) async fn hold(&self, call: &Call, directory: Option<(Ino, Kind)>) -> Result<bool, Unavailable> {
        let (by, instead) = {
            let local = self.local.lock();
            (local.by(&self.me, None), local.instead())
        };
        let op = match directory {
            Some((ino, kind)) => Op::Hold { holder: self.me.1, ino, instead, shared: kind == Kind::Shared },
            None => Op::Enroll { holder: self.me.1, instead },
        };
        self.forget().await;
        let asked = (self.local.lock().clock)();
        let done = self.ask(Batch { calls: vec![Call { caller: call.caller.clone(), op }], by }).await;
        let mut local = self.local.lock();
        let mut done = match done {
            Ok(done) => done,
            Err(unknown) => {
                local.give_up(self.cluster);
                return Err(unknown);
            }
        };
        if local.is_over(&done) {
            local.lose(self.cluster);
            return Ok(false);
        }
        match done.pop() {
            Some(Answer::Done(Reply::Held { epoch, lease, rows })) => {
                local.take_hold(asked, epoch, &lease, &rows, &self.me)
            }
            Some(Answer::Denied(Denied::Leased)) => return Ok(true),
            Some(Answer::Done(Reply::Taken { epoch })) if local.begin_instead(epoch) => {}
            refused => {
                let contended =
                    matches!(refused, Some(Answer::Denied(Denied::Contended) | Answer::Done(Reply::Taken { .. })));
                let pause = if contended { REFUSED.0 } else { REFUSED.1 };
                if let Some((directory, kind)) = directory {
                    local.note_refused(directory, call.caller.uid, kind, pause);
                }
            }
        }
        Ok(false)
    }

    /// Asks how long the leases last, and what others want.
    pub(super) async fn renew(&self) -> Result<(), Unavailable> {
        self.lease(Op::Renew).await.map(drop)
    }

    pub(super) async fn lease(&self, op: Op) -> Result<Vec<Ino>, Unavailable> {
        let Some(by) = self.local.lock().by(&self.me, None) else { return Ok(Vec::new()) };
        let epoch = by.epoch;
        let asked = (self.local.lock().clock)();
        let mut done = self.ask(Batch { calls: vec![as_root(op)], by: Some(by) }).await?;
        let mut local = self.local.lock();
        if let Some(Answer::Done(Reply::Lease(lease))) = done.pop() {
            local.take_lease(asked, &lease, &self.me);
            return Ok(lease.recalls);
        }
        // Others may have been granted meanwhile.
        if local.has_epoch(epoch) {
            local.lose(self.cluster);
        }
        Ok(Vec::new())
    }

    /// Fetches all names of a directory; and of those after it, if somebody seems to walk through the tree.
    pub(super) async fn fetch(&self, call: &Call, ino: Ino) -> Result<(), Unavailable> {
        let mut cookie = 0;
        let also = {
            let mut local = self.local.lock();
            let width = local.walk.begin();
            local.copy.unfetched_after(ino, width, &self.me)
        };
        loop {
            let by = self.local.lock().by(&self.me, None);
            let op = Op::Fetch { ino, cookie, also: also.clone() };
            let fetch = Call { caller: call.caller.clone(), op };
            let mut done = self.ask(Batch { calls: vec![fetch], by }).await?;
            let mut local = self.local.lock();
            match done.pop() {
                Some(Answer::Done(Reply::Rows { rows, whole, next })) => {
                    local.take_rows(&rows, &whole, &self.me);
                    match next {
                        Some(next) => cookie = next,
                        None => {
                            local.walk.end();
                            return Ok(());
                        }
                    }
                }
                _ => {
                    // It may be gone, or not for this caller to see: then operations on it are ordered.
                    local.note_unfetched(ino, call.caller.uid);
                    return Ok(());
                }
            }
        }
    }
}
