//! Orphans: inodes without a name that somebody still has open; and the end of an inode.
//!
//! One that lost its last name has none again unless it is found in the trash ([`crate::trash`]). One that was made
//! without a name may be given one by whoever keeps it; until then it has a home, the directory in which it was made,
//! and is leased with that.

use core::time::Duration;

use base::{PublicKey, Time, canonical_struct};

use crate::access::Context;
use crate::filelocks::FileLocks;
use crate::inode::{Inode, NO_HOME};
use crate::op::{Denied, Ino, Kind, Reply, SealedName};
use crate::read::Look as _;
use crate::state::State;
use crate::xattr::xattrs_of;

/// How long an orphan is kept unless its owner renews it, agreed time. A file also remembers for
/// this long who could write to it before its permissions were changed.
pub const ORPHAN_TERM: Duration = Duration::from_secs(3600);

/// An inode without a name that its owner has open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Orphan {
    /// The key that keeps it.
    pub(crate) owner: [u8; 32],
    /// When it goes, unless renewed.
    pub(crate) until: Time,
}
canonical_struct!(Orphan { owner, until });

impl State {
    /// Takes one name off `ino`, which is no directory: the one that it had there; says how many it has left.
    pub(crate) fn drop_link(
        &mut self,
        cx: &Context<'_>,
        ino: Ino,
        (parent, name): (Ino, &SealedName),
        keep: bool,
    ) -> u32 {
        let inode = self.change(ino);
        assert!(inode.attr.kind != Kind::Directory && inode.attr.nlink > 0, "a name without a link");
        inode.attr.nlink -= 1;
        inode.touch(cx.stamp());
        let left = inode.attr.nlink;
        if left == 0 {
            inode.home = NO_HOME;
        }
        if left == 0 {
            let thrown = self.throw(cx, ino, parent, name);
            match keep {
                true => self.set_orphan(ino, cx.key, cx.now),
                false if thrown => self.close_thrown(ino),
                false => self.destroy(ino),
            }
        }
        left
    }

    /// Makes an inode as if it had never been, and gives back what it took.
    pub(crate) fn destroy(&mut self, ino: Ino) {
        let keys: Vec<_> = self.xattrs.range(xattrs_of(ino)).map(|(key, _)| key.clone()).collect();
        for key in &keys {
            self.keep_xattr(key);
            self.xattrs.remove(key);
        }
        self.keep_inode(ino);
        let inode = self.inodes.remove(&ino).expect("an inode is destroyed once");
        keys.iter().for_each(|key| self.kept_xattr(inode.attr.volume, key));
        self.end_zone(ino);
        self.set_locks(ino, FileLocks::default());
        self.charge_bytes(inode.attr.volume, inode.attr.allocated, 0);
        self.charge_inode(inode.attr.volume, -1);
    }

    pub(crate) fn keep_orphan(&mut self, cx: &Context<'_>, ino: Ino) -> Result<Reply, Denied> {
        self.owned_orphan(cx, ino)?;
        self.set_orphan(ino, cx.key, cx.now);
        Ok(Reply::Unit)
    }

    pub(crate) fn release_orphan(&mut self, cx: &Context<'_>, ino: Ino) -> Result<Reply, Denied> {
        let orphan = self.owned_orphan(cx, ino)?;
        self.forget_orphan(ino, orphan.until);
        Ok(Reply::Unit)
    }

    /// Destroys at most `most` orphans whose time is up, the longest overdue first.
    pub(crate) fn reap(&mut self, most: usize) {
        for _ in 0..most {
            match self.expiry.get_min() {
                Some(&(until, ino)) if until <= self.clock.last => self.forget_orphan(ino, until),
                _ => return,
            }
        }
    }

    /// The orphan, if the signing key is the one that keeps it. Which uid it acts for is no matter:
    /// one mount serves many users.
    fn owned_orphan(&self, cx: &Context<'_>, ino: Ino) -> Result<Orphan, Denied> {
        self.inode(ino)?;
        let orphan = self.orphans.get(&ino).ok_or(Denied::Invalid)?;
        if orphan.owner == *cx.key.as_array() { Ok(*orphan) } else { Err(Denied::NotPermitted) }
    }

    pub(crate) fn set_orphan(&mut self, ino: Ino, owner: &PublicKey, now: Time) {
        let orphan = Orphan { owner: *owner.as_array(), until: now.after(ORPHAN_TERM) };
        if let Some(before) = self.orphans.insert(ino, orphan) {
            self.expiry.remove(&(before.until, ino));
        }
        self.expiry.insert((orphan.until, ino));
    }

    fn forget_orphan(&mut self, ino: Ino, until: Time) {
        self.orphans.remove(&ino);
        self.expiry.remove(&(until, ino));
        if self.is_thrown(ino) {
            self.close_thrown(ino);
        } else {
            self.destroy(ino);
        }
    }

    /// Refuses a first name to what had one before, and to who did not make it.
    pub(crate) fn need_nameable(&self, cx: &Context<'_>, inode: &Inode) -> Result<(), Denied> {
        let kept = self.orphans.get(&inode.attr.ino).is_some_and(|orphan| orphan.owner == *cx.key.as_array());
        if kept && inode.home != NO_HOME { Ok(()) } else { Err(Denied::NotFound) }
    }

    /// An inode that was made without a name gets one: it is an orphan no more.
    pub(crate) fn end_orphan(&mut self, ino: Ino) {
        if let Some(orphan) = self.orphans.remove(&ino) {
            self.expiry.remove(&(orphan.until, ino));
        }
    }
}
