//! Snapshots of volumes: rows as they were.
//!
//! Taking one costs nothing: it is a number. Before a row of the volume changes for the first time after its
//! latest snapshot, it is kept under that snapshot's number; so a row as it was in a snapshot is the one kept
//! under the first number from there on, or if there is none, as it is. Rows that came later are told by
//! themselves: an inode by when it was born, a name by its place, which counts on in each directory.
//!
//! Inodes of a snapshot have its number in the upper bits of theirs ([`Ino::in_snapshot`]): whatever looks at an
//! inode or a name looks at them, and nothing changes them.

use core::cell::Cell;
use core::ops::Bound;
use std::collections::BTreeSet;

use base::{DecodeError, PublicKey, canonical_enum};
use bytes::Bytes;

use crate::access::{Context, Grant, READ, WRITE};
use crate::directory::{Entry, LISTING_LEN_MAX, listed_len};
use crate::inode::{Body, Inode};
use crate::op::{
    Answer, Attr, Call, Caller, Denied, DirEntry, ENTRIES_MAX, Ino, Op, Reply, Row, SealedName, Snapshot, Volume,
    VolumeId, XattrClass,
};
use crate::read::Look;
use crate::state::State;
use crate::table::Shared;
use crate::volume::Usage;
use crate::xattr::{XattrKey, least_name, xattrs_of};

/// Most snapshots of a volume, with those whose rows are not all given up yet.
pub const SNAPSHOTS_MAX: usize = 64;

/// Which row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PastKey {
    Inode(Ino),
    Entry(Ino, SealedName),
    Place(Ino, u64),
    Xattr(Ino, XattrClass, SealedName),
}
canonical_enum!(PastKey {
    0 => Inode(ino),
    1 => Entry(directory, name),
    2 => Place(directory, cookie),
    3 => Xattr(ino, class, name),
});

/// What it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PastRow {
    /// There was none.
    None,
    Inode(Shared<Inode>),
    Entry(Entry),
    Place(SealedName),
    Xattr(Bytes),
}
canonical_enum!(PastRow {
    0 => None,
    1 => Inode(inode),
    2 => Entry(entry),
    3 => Place(name),
    4 => Xattr(value),
});

impl Ino {
    const SNAPSHOT_SHIFT: u32 = 44;
    /// No inode has this number or a greater one.
    pub(crate) const END: Ino = Ino(1 << Self::SNAPSHOT_SHIFT);
    /// No snapshot has this number or a greater one: the upper half is for whoever shows inodes to others.
    pub(crate) const SNAPSHOTS_END: u64 = Self::TRASH;
    /// Stands where a snapshot's number would, for what is in the trash.
    pub const TRASH: u64 = (1 << (63 - Self::SNAPSHOT_SHIFT)) - 1;

    /// Its number in a snapshot.
    #[must_use]
    pub fn in_snapshot(self, number: u64) -> Ino {
        Ino(number << Self::SNAPSHOT_SHIFT | self.now().0)
    }

    /// Its number in the trash.
    #[must_use]
    pub fn in_trash(self) -> Ino {
        self.in_snapshot(Self::TRASH)
    }

    /// Whether it is in the trash.
    #[must_use]
    pub fn is_in_trash(self) -> bool {
        self.snapshot() == Self::TRASH
    }

    /// The snapshot it is of; 0: none.
    #[must_use]
    pub fn snapshot(self) -> u64 {
        self.0 >> Self::SNAPSHOT_SHIFT
    }

    /// The number of the same inode outside of snapshots.
    #[must_use]
    pub fn now(self) -> Ino {
        Ino(self.0 & (Self::END.0 - 1))
    }
}

/// The inodes that an operation names.
fn inos(op: &Op) -> [Option<Ino>; 2] {
    match op {
        Op::Lookup { parent: ino, .. }
        | Op::Create { parent: ino, .. }
        | Op::CreateUnnamed { parent: ino, .. }
        | Op::Unlink { parent: ino, .. }
        | Op::Rmdir { parent: ino, .. }
        | Op::GetAttr { ino }
        | Op::Access { ino, .. }
        | Op::Open { ino, .. }
        | Op::SetAttr { ino, .. }
        | Op::ReadLink { ino }
        | Op::ReadDir { ino, .. }
        | Op::SetXattr { ino, .. }
        | Op::GetXattr { ino, .. }
        | Op::ListXattr { ino }
        | Op::RemoveXattr { ino, .. }
        | Op::SetAcl { ino, .. }
        | Op::GetAcl { ino, .. }
        | Op::Parent { ino }
        | Op::Hold { ino, .. }
        | Op::Purge { ino }
        | Op::Fetch { ino, .. } => [Some(*ino), None],
        Op::Commit(commit) => [Some(commit.ino), None],
        Op::Lock(request) | Op::GetLock(request) => [Some(request.ino), None],
        Op::Link { ino: one, parent: other, .. }
        | Op::Restore { ino: one, parent: other, .. }
        | Op::Rename { from: one, to: other, .. } => [Some(*one), Some(*other)],
        _ => [None, None],
    }
}

/// Whether an operation is about a snapshot.
#[must_use]
pub fn is_of_snapshot(op: &Op) -> bool {
    snapshot_of(op) != 0
}

/// The number of the snapshot that an operation is about; 0: none.
#[must_use]
pub fn snapshot_of(op: &Op) -> u64 {
    inos(op).into_iter().flatten().map(Ino::snapshot).find(|number| *number != 0).unwrap_or(0)
}

/// What an operation looks at in a snapshot, if it is about one: its number, and the operation as it would be
/// outside. [`Denied::ReadOnly`] if it changes something.
pub(crate) fn in_snapshot(op: &Op) -> Option<Result<(u64, Op), Denied>> {
    if !is_of_snapshot(op) {
        return None;
    }
    let mut plain = op.clone();
    let number = match &mut plain {
        Op::Access { mask, .. } | Op::Open { mask, .. } if *mask & WRITE != 0 => return Some(Err(Denied::ReadOnly)),
        Op::Lookup { parent: ino, .. }
        | Op::GetAttr { ino }
        | Op::Access { ino, .. }
        | Op::Open { ino, .. }
        | Op::ReadLink { ino }
        | Op::ReadDir { ino, .. }
        | Op::GetXattr { ino, .. }
        | Op::ListXattr { ino }
        | Op::GetAcl { ino, .. }
        | Op::Fetch { ino, .. }
        | Op::Parent { ino } => {
            let number = ino.snapshot();
            *ino = ino.now();
            number
        }
        _ => return Some(Err(Denied::ReadOnly)),
    };
    Some(Ok((number, plain)))
}

/// The same answer about a snapshot.
pub(crate) fn answered(number: u64, mut reply: Reply) -> Reply {
    let tag = |attr: &mut Attr| {
        attr.ino = attr.ino.in_snapshot(number);
        if number == Ino::TRASH {
            crate::thrown::named(attr);
        }
    };
    match &mut reply {
        Reply::Attr(attr) | Reply::Opened { attr, .. } => tag(attr),
        Reply::Entries { entries, .. } => entries.iter_mut().for_each(|entry| tag(&mut entry.attr)),
        _ => {}
    }
    reply
}

/// Rows as they were in a snapshot.
pub(crate) struct Past<'a, L> {
    rows: &'a L,
    /// It, and those after it of the same volume.
    numbers: Vec<u64>,
    volume: VolumeId,
    /// How many places the directory that was looked at last had given.
    counted: Cell<Option<(Ino, u64)>>,
}

impl<'a, L: Look> Past<'a, L> {
    pub(crate) fn new(rows: &'a L, number: u64) -> Result<Past<'a, L>, Denied> {
        let snapshot = rows.snapshot_row(number).filter(|snapshot| !snapshot.deleted).ok_or(Denied::Stale)?;
        Ok(Past::of(rows, snapshot))
    }

    pub(crate) fn of(rows: &'a L, snapshot: &Snapshot) -> Past<'a, L> {
        let later = |number: &u64| rows.snapshot_row(*number).map(|snapshot| snapshot.later);
        let all = core::iter::successors(Some(snapshot.number), later).take_while(|number| *number != 0);
        let numbers = all.take(SNAPSHOTS_MAX).collect();
        Past { rows, numbers, volume: snapshot.volume, counted: Cell::new(None) }
    }

    /// Which it is.
    pub(crate) fn number(&self) -> u64 {
        self.numbers[0]
    }

    /// Whether the volume has none after it.
    pub(crate) fn is_last(&self) -> bool {
        self.numbers.len() == 1
    }

    pub(crate) fn kept(&self, key: PastKey) -> Option<&'a PastRow> {
        let mut key = (0, key);
        self.numbers.iter().find_map(|number| {
            key.0 = *number;
            self.rows.past_row(&key)
        })
    }

    /// How many places a directory had given.
    pub(crate) fn next_cookie(&self, directory: Ino) -> u64 {
        if let Some((_, next)) = self.counted.get().filter(|(counted, _)| *counted == directory) {
            return next;
        }
        let next = match self.inode_row(directory).map(|inode| &inode.body) {
            Some(Body::Directory { next_cookie }) => *next_cookie,
            _ => 0,
        };
        self.counted.set(Some((directory, next)));
        next
    }
}

impl<L: Look> Look for Past<'_, L> {
    fn grant_row(&self, who: &PublicKey) -> Option<Grant> {
        self.rows.grant_row(who)
    }

    fn inode_row(&self, ino: Ino) -> Option<&Inode> {
        let inode = match self.kept(PastKey::Inode(ino)) {
            Some(PastRow::Inode(inode)) => Some(&**inode),
            Some(_) => None,
            None => self.rows.inode_row(ino),
        };
        inode.filter(|inode| inode.born <= self.numbers[0] && inode.attr.volume == self.volume)
    }

    fn entry_row(&self, key: &(Ino, SealedName)) -> Option<Entry> {
        let entry = match self.kept(PastKey::Entry(key.0, key.1.clone())) {
            Some(PastRow::Entry(entry)) => Some(*entry),
            Some(_) => None,
            None => self.rows.entry_row(key),
        };
        entry.filter(|entry| entry.cookie < self.next_cookie(key.0))
    }

    fn xattr_row(&self, key: &XattrKey) -> Option<&Bytes> {
        match self.kept(PastKey::Xattr(key.0, key.1, key.2.clone())) {
            Some(PastRow::Xattr(value)) => Some(value),
            Some(_) => None,
            None => self.rows.xattr_row(key),
        }
    }

    fn volume_row(&self, volume: VolumeId) -> Option<&Volume> {
        self.rows.volume_row(volume)
    }

    fn usage_row(&self, volume: VolumeId) -> Option<Usage> {
        self.rows.usage_row(volume)
    }

    fn next_volume(&self) -> VolumeId {
        self.rows.next_volume()
    }

    fn snapshot_row(&self, number: u64) -> Option<&Snapshot> {
        self.rows.snapshot_row(number)
    }

    fn past_row(&self, key: &(u64, PastKey)) -> Option<&PastRow> {
        self.rows.past_row(key)
    }
}

impl Past<'_, State> {
    fn read_dir(&self, cx: &Context<'_>, ino: Ino, cookie: u64, max: u32) -> Result<Reply, Denied> {
        cx.need(self.directory(ino)?, READ)?;
        if max == 0 {
            return Err(Denied::Invalid);
        }
        let (mut entries, mut len, mut last) = (Vec::new(), 0, cookie);
        let end = loop {
            let Some((cookie, name)) = self.place_after(ino, last) else { break true };
            if entries.len() >= max.min(ENTRIES_MAX) as usize || len >= LISTING_LEN_MAX {
                break false;
            }
            last = cookie;
            // A place that was given up before, or to a name that came later.
            let Some(name) = name else { continue };
            let entry = self.entry(ino, &name).ok_or(Denied::Stale)?;
            let entry = DirEntry { cookie, name, attr: *self.attr(entry.ino)? };
            len += listed_len(&entry);
            entries.push(entry);
        };
        Ok(Reply::Entries { entries, end })
    }

    /// The next place in a directory, and what name was there.
    pub(crate) fn place_after(&self, directory: Ino, cookie: u64) -> Option<(u64, Option<SealedName>)> {
        let (first, end) = (cookie.checked_add(1)?, self.next_cookie(directory));
        if first >= end {
            return None;
        }
        let now = self.rows.cookies.range((directory, first)..(directory, end)).next().map(|((_, at), _)| *at);
        let kept = self.numbers.iter().filter_map(|number| {
            let range = (*number, PastKey::Place(directory, first))..(*number, PastKey::Place(directory, end));
            self.rows.past.range(range).next().and_then(|((_, key), _)| match key {
                PastKey::Place(_, at) => Some(*at),
                _ => None,
            })
        });
        let at = kept.chain(now).min()?;
        let name = match self.kept(PastKey::Place(directory, at)) {
            Some(PastRow::Place(name)) => Some(name.clone()),
            Some(_) => None,
            None => self.rows.cookies.get(&(directory, at)).cloned(),
        };
        Some((at, name))
    }

    fn list_xattr(&self, cx: &Context<'_>, ino: Ino) -> Result<Reply, Denied> {
        let listed = self.inode(ino)?.listed();
        let shown = |(class, _): &(XattrClass, _)| cx.is_root() || *class != XattrClass::Trusted;
        let names = self.xattrs(ino).into_iter().filter(shown).collect();
        Ok(match listed {
            (false, false) => Reply::Names(names),
            (access, default) => Reply::Listed { names, access, default },
        })
    }

    /// The extended attributes that an inode had.
    pub(crate) fn xattrs(&self, ino: Ino) -> Vec<(XattrClass, SealedName)> {
        if self.inode_row(ino).is_none_or(|inode| inode.xattrs_len == 0) {
            return Vec::new();
        }
        let now = self.rows.xattrs.range(xattrs_of(ino)).map(|((_, class, name), _)| (*class, name.clone()));
        let mut names: BTreeSet<_> = now.collect();
        for number in &self.numbers {
            let all = self.rows.past.range((Bound::Included((*number, PastKey::xattrs_from(ino))), Bound::Unbounded));
            names.extend(all.map_while(|((at, key), _)| match key {
                PastKey::Xattr(of, class, name) if at == number && *of == ino => Some((*class, name.clone())),
                _ => None,
            }));
        }
        let there = |(class, name): &(XattrClass, SealedName)| self.xattr_row(&(ino, *class, name.clone())).is_some();
        names.into_iter().filter(there).collect()
    }

    pub(crate) fn state(&self) -> &State {
        self.rows
    }
}

impl PastKey {
    /// Before all extended attributes of an inode.
    fn xattrs_from(ino: Ino) -> PastKey {
        PastKey::Xattr(ino, XattrClass::User, least_name())
    }
}

impl State {
    /// What `op` reads of a snapshot, if it is about one.
    pub(crate) fn read_snapshot(&self, cx: &Context<'_>, op: &Op) -> Option<Result<Reply, Denied>> {
        let (number, op) = match in_snapshot(op)? {
            Ok(found) => found,
            Err(why) => return Some(Err(why)),
        };
        if number == Ino::TRASH {
            return Some(self.read_trash(cx, &op));
        }
        let read = || {
            let past = Past::new(self, number)?;
            match &op {
                Op::ReadDir { ino, cookie, max } => past.read_dir(cx, *ino, *cookie, *max),
                Op::ListXattr { ino } => past.list_xattr(cx, *ino),
                Op::Fetch { ino, cookie, also } => past.fetch(cx, *ino, *cookie, also),
                op => past.read(cx, op).unwrap_or(Err(Denied::ReadOnly)),
            }
        };
        Some(read().map(|reply| answered(number, reply)))
    }
}

impl PastRow {
    /// Whether a snapshot could have it: an inode that was born later could not.
    pub(crate) fn was_there(&self, number: u64) -> bool {
        !matches!(self, PastRow::Inode(inode) if inode.born > number)
    }
}

/// A copy of a snapshot, at whoever looks at it: rows that were fetched.
impl State {
    /// Adds rows that replicas gave of a snapshot, with all names of these directories.
    ///
    /// # Errors
    /// If they are not rows of a state.
    pub fn learn_past(&mut self, rows: &[Row], whole: &[Ino]) -> Result<(), DecodeError> {
        let mut given = State::empty(self.clock.cluster);
        let rows: Vec<_> = rows.iter().map(|(name, value)| (name.to_vec(), Some(value.to_vec()))).collect();
        given.patch_rows(&rows)?;
        given.principals.iter().for_each(|(key, grant)| self.principals.add(key, grant));
        given.inodes.iter().for_each(|(ino, inode)| self.inodes.add(ino, inode));
        given.xattrs.iter().for_each(|(key, value)| self.xattrs.add(key, value));
        for (key, entry) in given.entries.iter() {
            self.entries.add(key, entry);
            self.cookies.add(&(key.0, entry.cookie), &key.1);
        }
        self.complete.extend(whole.iter().copied());
        self.forget_changes();
        Ok(())
    }

    /// Answers a call about the snapshot that this is a copy of, if all that it looks at is here.
    ///
    /// # Errors
    /// The directory whose rows it lacks, if that is known.
    pub fn look_at_past(&self, who: &PublicKey, call: &Call) -> Result<Answer, Option<Ino>> {
        let (number, op) = match in_snapshot(&call.op) {
            Some(Ok(found)) => found,
            Some(Err(why)) => return Ok(Answer::Denied(why)),
            None => return Err(None),
        };
        if self.principals.get(who).is_none() {
            return Err(Self::directories_of(&op).first().copied());
        }
        let known = |ino: Ino| self.inodes.get(&ino).is_some();
        let there = match &op {
            Op::Lookup { parent, name } if self.complete.contains(parent) => {
                self.entry(*parent, name).is_none_or(|entry| known(entry.ino))
            }
            Op::ReadDir { ino, cookie, max } if self.complete.contains(ino) => {
                let mut names = self.cookies.range((*ino, *cookie)..=(*ino, u64::MAX)).take(*max as usize + 1);
                names.all(|(_, name)| self.entry(*ino, name).is_some_and(|entry| known(entry.ino)))
            }
            Op::Lookup { parent: ino, .. } | Op::ReadDir { ino, .. } => return Err(Some(*ino)),
            Op::Parent { ino } => self.inodes.get(ino).is_some_and(|inode| known(inode.home)),
            op => self.has_looked_at(op),
        };
        if !there {
            return Err(None);
        }
        self.answer_past(who, &call.caller, number, &op).ok_or(None)
    }

    /// Whether the inode that an operation looks at is in this copy, with all that it looks at.
    pub(crate) fn has_looked_at(&self, op: &Op) -> bool {
        match op {
            Op::GetXattr { ino, .. } | Op::ListXattr { ino } => {
                self.inodes.get(ino).is_some_and(|inode| self.has_xattrs(inode))
            }
            Op::GetAttr { ino }
            | Op::Access { ino, .. }
            | Op::Open { ino, .. }
            | Op::ReadLink { ino }
            | Op::GetAcl { ino, .. } => self.has_inode(*ino),
            _ => false,
        }
    }

    /// What this copy answers, if it is known what the caller's key may do.
    pub(crate) fn answer_past(&self, who: &PublicKey, caller: &Caller, number: u64, op: &Op) -> Option<Answer> {
        let grant = *self.principals.get(who)?;
        let cx = Context { now: self.clock.last, key: who, grant, caller, by: None, logged: false };
        let result = cx.check().and_then(|()| match op {
            Op::ReadDir { ino, cookie, max } => self.read_dir(&cx, *ino, *cookie, *max),
            Op::ListXattr { ino } => self.list_xattr(&cx, *ino),
            op => self.read(&cx, op).unwrap_or(Err(Denied::ReadOnly)),
        });
        Some(result.map_or_else(Answer::Denied, |reply| Answer::Done(answered(number, reply))))
    }
}
