//! The end of leases that were lost, and of what was done under them.

use base::ClusterId;
use meta::{Form, Ino, Op};

use super::Local;
use crate::backend::{Loss, LostCall, Unavailable};

fn is_fold(op: &Op) -> bool {
    matches!(op, Op::Commit(commit) if commit.form == Form::Fold)
}

impl Local {
    /// The leases are over: what is not sent is lost.
    pub(in crate::leased) fn lose(&mut self, cluster: ClusterId) {
        let left = self.log.iter().filter(|logged| !is_fold(&logged.call.op)).count();
        let lost = if left > 0 { Some(self.lost.unwrap_or(0) + left) } else { self.lost };
        let losses = self.losses + u64::from(left > 0);
        self.hand_over();
        self.begin_anew(cluster);
        (self.shipped, self.lost, self.losses, self.has_held) = (self.logged, lost, losses, true);
    }

    /// Nobody knows whether replicas did something that concerns these leases, or will: they are given up,
    /// and what is still under way in their name is refused once there are others.
    pub(in crate::leased) fn give_up(&mut self, cluster: ClusterId) {
        assert!(self.log.is_empty(), "everything is sent before anything is ordered");
        let (lost, losses) = (self.lost, self.losses);
        let instead = if self.epoch == 0 { self.instead } else { self.epoch };
        self.hand_over();
        self.begin_anew(cluster);
        (self.shipped, self.lost, self.losses, self.instead) = (self.logged, lost, losses, instead);
    }

    /// Without leases and without a log; what was lost before stays so.
    fn begin_anew(&mut self, cluster: ClusterId) {
        let (logged, ended, granted) = (self.logged, self.ended + 1, self.granted);
        let (owned, taker) = (self.owned.lose(), self.taker.take());
        let unfounded = core::mem::take(&mut self.unfounded);
        let new = Local::new(cluster, self.volume_root, self.clock.clone());
        *self = Local { logged, ended, granted, owned, unfounded, taker, ..new };
    }

    /// Gives what is in the log, and the files with locks, to whoever takes losses.
    fn hand_over(&mut self) {
        let locked = self.owned.files();
        if self.log.is_empty() && locked.is_empty() {
            return;
        }
        // A fold that replicas don't have changes nothing that anybody wrote.
        let lost = self
            .log
            .drain(..)
            .filter(|logged| !is_fold(&logged.call.op))
            .map(|logged| LostCall { call: logged.call, made: logged.made });
        let calls: Vec<LostCall> = lost.collect();
        self.unfounded.extend(calls.iter().filter_map(|lost| match &lost.call.op {
            Op::Commit(commit) => Some(commit.ino),
            _ => None,
        }));
        match &self.taker {
            Some(take) => {
                let removed = core::mem::take(&mut self.removed).into_keys().collect();
                take(Loss { calls, locked, removed, seen: self.copy.clone() });
            }
            None if calls.is_empty() => {}
            None => {
                let operations = calls.len();
                tracing::error!(operations, "leases were over before everything done under them was sent");
            }
        }
    }

    /// Whether a commit builds on content that was lost: whatever replicas have by now only looks like it.
    pub(super) fn is_unfounded(&self, op: &Op) -> bool {
        matches!(op, Op::Commit(commit) if commit.base.is_some() && self.unfounded.contains(&commit.ino))
    }

    /// Nobody here builds on lost content of this file any more.
    pub(in crate::leased) fn forget_content(&mut self, ino: Ino) {
        self.unfounded.remove(&ino);
    }

    /// How often something was lost.
    pub(in crate::leased) fn losses(&self) -> u64 {
        self.losses
    }

    /// Says that something was lost: once, and to everybody who began to wait when it had not been lost
    /// (`losses`) yet.
    pub(in crate::leased) fn tell_lost(&mut self, losses: u64) -> Result<(), Unavailable> {
        let told = self.lost.take();
        match told.or((losses != self.losses).then_some(0)) {
            None => Ok(()),
            Some(0) => Err(Unavailable("changes made here were lost: this client was cut off for too long".into())),
            Some(count) => Err(Unavailable(format!(
                "{count} changes made here were lost: this client was cut off for so long that others were given what \
                 it had leases on"
            ))),
        }
    }
}
