//! Reads over rows that somebody proved.
//!
//! A replica tells which rows a read looks at ([`State::rows_of`]) and proves them; whoever asked runs
//! the same read over them ([`read_proven`]). Both notice by looking: the replica notes what the read
//! asks for, the asker that it asks for something that was not shown.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use base::merkle::Proven;
use base::{ClusterId, PublicKey, Time};
use bytes::Bytes;

use crate::access::{Context, EXECUTE, Grant, READ, WRITE};
use crate::directory::Entry;
use crate::inode::{Body, Inode};
use crate::op::{Answer, Call, Denied, Ino, Reply, SealedName, Snapshot, Volume, VolumeId};
use crate::past::{Past, PastKey, PastRow, answered, in_snapshot};
use crate::read::Look;
use crate::state::{CLOCK_TAG, State};
use crate::table::{Key, Table, Value, row_name};
use crate::volume::Usage;
use crate::xattr::XattrKey;

/// Why a call can't be answered by proven rows. An ordered one can always be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unproven {
    /// It is no read of single rows.
    #[error("this operation has to be ordered")]
    NotARead,
    /// The rows it needs hold more than the answer to it, and the caller may not have that.
    #[error("the caller may not have the rows that prove the answer")]
    Withheld,
    /// Rows it needs are not shown, or are not ones of a state.
    #[error("the proof does not show what the answer needs")]
    NotShown,
}

impl State {
    /// The names of the rows that answer this call of `who`, at agreed time `at`, there or not.
    ///
    /// With a row goes all that it holds. Of a file that is its recipe, which only who may open it can
    /// ask for otherwise; of a directory, where it is in the tree, for who may search it.
    ///
    /// # Errors
    /// [`Unproven::NotARead`], or [`Unproven::Withheld`] from whoever may not have these rows.
    pub fn rows_of(&self, at: Time, who: &PublicKey, call: &Call) -> Result<Vec<Vec<u8>>, Unproven> {
        if self.is_leased(&call.op) {
            // Whoever holds it may know better.
            return Err(Unproven::Withheld);
        }
        let noting =
            Noting { state: self, names: RefCell::default(), inodes: RefCell::default(), past: RefCell::default() };
        let answer = judge(&noting, at, who, call)?;
        if matches!(answer, Err(Denied::Access | Denied::NotPermitted | Denied::NotGranted)) {
            return Err(Unproven::Withheld);
        }
        let grant = self.grant_row(who).ok_or(Unproven::Withheld)?;
        let cx = Context { now: at, key: who, grant, caller: &call.caller, by: None, logged: false };
        let inodes = noting.inodes.into_inner();
        if inodes.iter().any(|ino| self.is_thrown(*ino)) {
            // Whether its row counts is told by others.
            return Err(Unproven::Withheld);
        }
        let past = noting.past.into_inner();
        let past = past.iter().filter_map(|key| match self.past_row(key) {
            Some(PastRow::Inode(inode)) => Some(&**inode),
            _ => None,
        });
        let shown = inodes.iter().filter_map(|ino| self.inode_row(*ino)).chain(past);
        let withheld = shown.into_iter().any(|inode| !may_have(&cx, inode));
        if withheld { Err(Unproven::Withheld) } else { Ok(noting.names.into_inner().into_iter().collect()) }
    }
}

/// Whether the caller could learn by other calls what this inode's row holds.
pub(crate) fn may_have(cx: &Context<'_>, inode: &Inode) -> bool {
    match &inode.body {
        Body::File { .. } => [READ, WRITE, EXECUTE].into_iter().any(|mask| cx.may(inode, mask)),
        Body::Directory { .. } => cx.may(inode, EXECUTE),
        Body::Symlink { .. } | Body::Special => true,
    }
}

/// Answers a call of `who` from these rows, as a state that holds them would at agreed time `at`.
///
/// # Errors
/// [`Unproven`], if they are not all that it needs.
pub fn read_proven(rows: &Proven, at: Time, who: &PublicKey, call: &Call) -> Result<Answer, Unproven> {
    let mut state = State::empty(ClusterId([0; 16]));
    let shown: Vec<_> = rows.rows().into_iter().map(|(name, value)| (name.to_vec(), Some(value.to_vec()))).collect();
    state.patch_rows(&shown).map_err(|_| Unproven::NotShown)?;
    let shown = Shown { rows, state, missed: Cell::new(false) };
    let answer = judge(&shown, at, who, call)?;
    if shown.missed.get() { Err(Unproven::NotShown) } else { Ok(answer.map_or_else(Answer::Denied, Answer::Done)) }
}

/// What [`State::apply_batch`] does with a call, for reads of single rows.
fn judge(rows: &impl Look, at: Time, who: &PublicKey, call: &Call) -> Result<Result<Reply, Denied>, Unproven> {
    let Some(grant) = rows.grant_row(who) else { return Ok(Err(Denied::NotGranted)) };
    let cx = Context { now: at, key: who, grant, caller: &call.caller, by: None, logged: false };
    if let Err(why) = cx.check() {
        return Ok(Err(why));
    }
    let Some(found) = in_snapshot(&call.op) else { return rows.read(&cx, &call.op).ok_or(Unproven::NotARead) };
    let (number, op) = match found {
        Ok(found) => found,
        Err(why) => return Ok(Err(why)),
    };
    if number == Ino::TRASH {
        return Err(Unproven::NotARead);
    }
    let past = match Past::new(rows, number) {
        Ok(past) => past,
        Err(why) => return Ok(Err(why)),
    };
    let read = past.read(&cx, &op).ok_or(Unproven::NotARead)?;
    Ok(read.map(|reply| answered(number, reply)))
}

/// A state that notes which rows are looked at.
struct Noting<'a> {
    state: &'a State,
    names: RefCell<BTreeSet<Vec<u8>>>,
    inodes: RefCell<BTreeSet<Ino>>,
    past: RefCell<BTreeSet<(u64, PastKey)>>,
}

impl Noting<'_> {
    fn note<K: Key, V: Value>(&self, table: &Table<K, V>, key: &K) {
        self.names.borrow_mut().insert(table.row_name(key));
    }
}

impl Look for Noting<'_> {
    fn grant_row(&self, who: &PublicKey) -> Option<Grant> {
        self.note(&self.state.principals, who);
        self.state.grant_row(who)
    }

    fn inode_row(&self, ino: Ino) -> Option<&Inode> {
        self.note(&self.state.inodes, &ino);
        self.inodes.borrow_mut().insert(ino);
        if self.state.inodes.get(&ino).is_some_and(|inode| inode.attr.nlink == 0) {
            self.note(&self.state.thrown, &ino);
            self.note(&self.state.orphans, &ino);
        }
        self.state.inode_row(ino)
    }

    fn entry_row(&self, key: &(Ino, SealedName)) -> Option<Entry> {
        self.note(&self.state.entries, key);
        self.state.entry_row(key)
    }

    fn xattr_row(&self, key: &XattrKey) -> Option<&Bytes> {
        self.note(&self.state.xattrs, key);
        self.state.xattr_row(key)
    }

    fn volume_row(&self, volume: VolumeId) -> Option<&Volume> {
        self.note(&self.state.volumes, &volume);
        self.state.volume_row(volume)
    }

    fn usage_row(&self, volume: VolumeId) -> Option<Usage> {
        self.note(&self.state.usage, &volume);
        self.state.usage_row(volume)
    }

    fn snapshot_row(&self, number: u64) -> Option<&Snapshot> {
        self.note(&self.state.snapshots, &number);
        self.state.snapshot_row(number)
    }

    fn past_row(&self, key: &(u64, PastKey)) -> Option<&PastRow> {
        self.note(&self.state.past, key);
        self.past.borrow_mut().insert(key.clone());
        self.state.past_row(key)
    }

    fn next_volume(&self) -> VolumeId {
        self.names.borrow_mut().insert(row_name(CLOCK_TAG, &CLOCK_TAG));
        self.state.next_volume()
    }
}

/// Proven rows, that note if others are looked at.
struct Shown<'a> {
    rows: &'a Proven,
    /// The rows that are there, decoded.
    state: State,
    missed: Cell<bool>,
}

impl Shown<'_> {
    /// Whether the rows say if there is one with this name.
    fn tells<K: Key, V: Value>(&self, table: &Table<K, V>, key: &K) -> bool {
        self.tell(&table.row_name(key))
    }

    fn tell(&self, name: &[u8]) -> bool {
        let shown = self.rows.get(name).is_ok();
        self.missed.set(self.missed.get() || !shown);
        shown
    }
}

impl Look for Shown<'_> {
    fn grant_row(&self, who: &PublicKey) -> Option<Grant> {
        self.tells(&self.state.principals, who).then(|| self.state.grant_row(who))?
    }

    fn inode_row(&self, ino: Ino) -> Option<&Inode> {
        let there = self.tells(&self.state.inodes, &ino).then(|| self.state.inodes.get(&ino))??;
        // What has no name is there for who has it open, if it is not in the trash alone.
        let told = || self.tells(&self.state.thrown, &ino) && self.tells(&self.state.orphans, &ino);
        (there.attr.nlink > 0 || told()).then(|| self.state.inode_row(ino))?
    }

    fn entry_row(&self, key: &(Ino, SealedName)) -> Option<Entry> {
        self.tells(&self.state.entries, key).then(|| self.state.entry_row(key))?
    }

    fn xattr_row(&self, key: &XattrKey) -> Option<&Bytes> {
        self.tells(&self.state.xattrs, key).then(|| self.state.xattr_row(key))?
    }

    fn volume_row(&self, volume: VolumeId) -> Option<&Volume> {
        self.tells(&self.state.volumes, &volume).then(|| self.state.volume_row(volume))?
    }

    fn usage_row(&self, volume: VolumeId) -> Option<Usage> {
        self.tells(&self.state.usage, &volume).then(|| self.state.usage_row(volume))?
    }

    fn snapshot_row(&self, number: u64) -> Option<&Snapshot> {
        self.tells(&self.state.snapshots, &number).then(|| self.state.snapshot_row(number))?
    }

    fn past_row(&self, key: &(u64, PastKey)) -> Option<&PastRow> {
        self.tells(&self.state.past, key).then(|| self.state.past_row(key))?
    }

    fn next_volume(&self) -> VolumeId {
        // A state without this row has a clock all the same: one before the first volume.
        self.tell(&row_name(CLOCK_TAG, &CLOCK_TAG));
        self.state.next_volume()
    }
}
