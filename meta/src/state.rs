//! The state: its tables, and how a batch is applied to them.

use core::fmt;

use base::merkle::Trie;
use base::{ClusterId, Decode as _, DecodeError, Digest, Encode as _, PublicKey, StateMachine, Time, canonical_struct};
use bytes::Bytes;
use imbl::OrdSet;

use crate::access::{Context, Grant};
use crate::directory::{Entry, listed_len};
use crate::filelocks::FileLocks;
use crate::grant::Hold;
use crate::inode::Inode;
use crate::lease::{Holder, HolderId, Zone, is_about_orphan};
use crate::lock::LockIndex;
use crate::op::{Answer, Answers, BATCH_MAX, Batch, Denied, Ino, Op, Reply, SealedName, Snapshot, Volume, VolumeId};
use crate::orphan::Orphan;
use crate::past::{PastKey, PastRow, is_of_snapshot};
use crate::read::Look as _;
use crate::rename::Rename;
use crate::table::{Rows, Shared, Table, row_name};
use crate::trash::{Bins, ROOM_MAX, Thrown};
use crate::volume::Usage;
use crate::xattr::XattrKey;

/// Once the answers to a batch take this many bytes, the calls that are left are refused with
/// [`Denied::TooBig`]. Replies to changes are short: only many listings or values come this far.
pub const ANSWERS_LEN_MAX: usize = 1 << 20;
/// How many expired orphans a batch destroys, and one more for each call: a call makes at most one,
/// so they do not pile up.
const REAPED_MAX: usize = 16;
/// The tag of the clock's row; tables have theirs from 1.
pub(crate) const CLOCK_TAG: u8 = 0;
/// What an answer without a list or a value in it takes at most, bytes.
const SHORT_ANSWER_LEN: usize = 256;

/// What a cluster starts with, as its configuration says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Genesis {
    /// The cluster's name.
    pub cluster: ClusterId,
    /// Who may use it, and as whom. If a key is there twice, the last grant holds.
    pub principals: Vec<(PublicKey, Grant)>,
}

/// How much a state holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Keys with a grant.
    pub principals: usize,
    /// Volumes.
    pub volumes: usize,
    /// Inodes of all volumes, orphans too.
    pub inodes: usize,
    /// Names in all directories.
    pub entries: usize,
    /// Extended attributes.
    pub xattrs: usize,
    /// Inodes without a name that somebody keeps open.
    pub orphans: usize,
    /// Rows kept for snapshots.
    pub kept: usize,
    /// Inodes in the trash.
    pub thrown: usize,
}

/// What is true of the whole state and changes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clock {
    pub(crate) cluster: ClusterId,
    /// The latest agreed time seen.
    pub(crate) last: Time,
    pub(crate) next_ino: Ino,
    pub(crate) next_volume: VolumeId,
    /// Of the next holder's leases.
    pub(crate) next_epoch: u64,
    pub(crate) next_snapshot: u64,
}
canonical_struct!(Clock { cluster, last, next_ino, next_volume, next_epoch, next_snapshot });

/// The namespace. Cloning it costs next to nothing: clones share every row until one of them changes it.
#[derive(Clone)]
pub struct State {
    pub(crate) clock: Clock,
    pub(crate) principals: Table<PublicKey, Grant>,
    pub(crate) volumes: Table<VolumeId, Volume>,
    pub(crate) usage: Table<VolumeId, Usage>,
    pub(crate) inodes: Table<Ino, Shared<Inode>>,
    /// What names lead to, by directory and name.
    pub(crate) entries: Table<(Ino, SealedName), Entry>,
    /// The same names by directory and place, for listing.
    pub(crate) cookies: Table<(Ino, u64), SealedName>,
    pub(crate) xattrs: Table<XattrKey, Bytes>,
    pub(crate) orphans: Table<Ino, Orphan>,
    pub(crate) holders: Table<HolderId, Holder>,
    pub(crate) zones: Table<Ino, Zone>,
    pub(crate) locks: Table<Ino, Shared<FileLocks>>,
    pub(crate) snapshots: Table<u64, Snapshot>,
    /// Rows as they were in snapshots.
    pub(crate) past: Table<(u64, PastKey), PastRow>,
    /// How far ahead of agreed time each key has drawn inode numbers.
    pub(crate) drawn: Table<PublicKey, Time>,
    /// The volumes of which a snapshot waits for leases, and until when nobody else is given any.
    pub(crate) wanted: Table<VolumeId, Time>,
    /// What lost its last name and is kept for a while.
    pub(crate) thrown: Table<Ino, Thrown>,
    /// Up to when a volume's trash was emptied.
    pub(crate) emptied: Table<VolumeId, Time>,
    pub(crate) bins: Bins,
    /// How much of the trash may still make room in this batch.
    pub(crate) room: usize,
    /// The snapshots by volume, and those that are deleted. Follow from `snapshots`.
    pub(crate) taken: OrdSet<(VolumeId, u64)>,
    pub(crate) doomed: OrdSet<u64>,
    /// The holders that are asked for something. Follows from `holders`.
    pub(crate) recalled: OrdSet<HolderId>,
    /// The orphans by expiry. Follows from `orphans`, so it is neither digested nor written down.
    pub(crate) expiry: OrdSet<(Time, Ino)>,
    /// Whose locks are where. Follows from `locks`.
    pub(crate) locked: LockIndex,
    /// In a holder's copy: the files on which it does not know all locks.
    pub(crate) unsure: OrdSet<Ino>,
    /// In a holder's copy: the directories all of whose names are there. Replicas have them all.
    pub(crate) complete: OrdSet<Ino>,
    trie: Trie,
}

impl State {
    /// The state of a cluster in which nothing happened yet.
    #[must_use]
    pub fn genesis(genesis: Genesis) -> State {
        let mut state = State::empty(genesis.cluster);
        for (key, grant) in genesis.principals {
            state.principals.insert(key, grant);
        }
        state
    }

    pub(crate) fn empty(cluster: ClusterId) -> State {
        State {
            clock: Clock {
                cluster,
                last: Time::ZERO,
                next_ino: Ino(1),
                next_volume: VolumeId(1),
                next_epoch: 1,
                next_snapshot: 1,
            },
            principals: Table::new(1),
            volumes: Table::new(2),
            usage: Table::new(3),
            inodes: Table::new(4),
            entries: Table::new(5),
            cookies: Table::new(6),
            xattrs: Table::new(7),
            orphans: Table::new(8),
            holders: Table::new(9),
            zones: Table::new(10),
            locks: Table::new(11),
            snapshots: Table::new(12),
            past: Table::new(13),
            drawn: Table::new(14),
            wanted: Table::new(15),
            thrown: Table::new(16),
            emptied: Table::new(17),
            bins: Bins::default(),
            room: 0,
            taken: OrdSet::new(),
            doomed: OrdSet::new(),
            recalled: OrdSet::new(),
            expiry: OrdSet::new(),
            locked: LockIndex::default(),
            unsure: OrdSet::new(),
            complete: OrdSet::new(),
            trie: Trie::new(),
        }
    }

    /// Applies the calls of a batch that `who` signed, in order, at agreed time `at`. Each is
    /// judged by itself: a refused one changes nothing and the next is applied all the same. A
    /// batch by somebody unknown, or with more than [`BATCH_MAX`] calls, gets one refusal.
    ///
    /// State time never goes back: an `at` before an earlier batch's counts as that one's.
    pub fn apply_batch(&mut self, at: Time, who: &PublicKey, batch: &Batch) -> Answers {
        let Some(&grant) = self.principals.get(who) else {
            return vec![Answer::Denied(Denied::NotGranted)];
        };
        if batch.calls.len() > BATCH_MAX {
            return vec![Answer::Denied(Denied::Malformed)];
        }
        self.clock.last = self.clock.last.max(at);
        if let Err(why) = self.enter(who, batch) {
            return vec![Answer::Denied(why)];
        }
        self.reap(REAPED_MAX + batch.calls.len());
        self.reap_trash(batch.calls.len());
        self.room = ROOM_MAX;
        self.give_up_past();
        let log = batch.by.as_ref().and_then(|by| Some((by, by.log.as_ref()?)));
        let (mut len, mut broken) = (0, false);
        let mut answers = Vec::with_capacity(batch.calls.len());
        for (index, call) in batch.calls.iter().enumerate() {
            let now = log.map_or(self.clock.last, |(by, log)| self.stamp_of(who, by, log.stamps[index]));
            let (by, logged) = (batch.by.as_ref().map(|by| by.holder), log.is_some());
            let cx = Context { now, key: who, grant, caller: &call.caller, by, logged };
            let result = match () {
                () if broken || !self.is_current(who, batch) => Err(Denied::Fenced),
                () if len >= ANSWERS_LEN_MAX => Err(Denied::TooBig),
                () => self.apply_call(&cx, &call.op),
            };
            broken |= logged && result.is_err() && !is_about_orphan(&call.op);
            let answer = result.map_or_else(Answer::Denied, Answer::Done);
            len += answer_len(&answer);
            answers.push(answer);
        }
        if let Some((by, _)) = log {
            self.leave(who, by, !broken);
        }
        answers
    }

    fn apply_call(&mut self, cx: &Context<'_>, op: &Op) -> Result<Reply, Denied> {
        cx.check()?;
        if !is_of_snapshot(op) {
            self.need_leases(cx, op)?;
        }
        self.apply_op(cx, op)
    }

    /// Does what `op` says, for a caller who may ask.
    pub(crate) fn apply_once(&mut self, cx: &Context<'_>, op: &Op) -> Result<Reply, Denied> {
        if let Some(read) = self.read_snapshot(cx, op).or_else(|| self.read(cx, op)) {
            return read;
        }
        match op {
            Op::VolumeCreate(spec) => self.volume_create(cx, spec),
            Op::VolumeList => Ok(self.volume_list()),
            Op::SnapshotTake { volume, name } => self.snapshot_take(cx, *volume, name),
            Op::SnapshotList { volume } => Ok(self.snapshot_list(*volume)),
            Op::SnapshotDelete { volume, name } => self.snapshot_delete(cx, *volume, name),
            Op::Restore { ino, parent, name } => self.restore(cx, *ino, *parent, name),
            Op::Purge { ino } => self.purge(cx, *ino),
            Op::TrashKeep { volume, seconds } => self.trash_keep(cx, *volume, *seconds),
            Op::TrashEmpty { volume } => self.trash_empty(cx, *volume),
            Op::SetAttr { ino, change } => self.set_attr(cx, *ino, change),
            Op::Commit(commit) => self.commit(cx, commit),
            Op::Create { parent, name, new, exclusive } => self.create(cx, *parent, name, new, *exclusive),
            Op::CreateUnnamed { parent, new } => self.create_unnamed(cx, *parent, new),
            Op::Link { ino, parent, name } => self.link(cx, *ino, *parent, name),
            Op::SetAcl { ino, kind, acl } => self.set_acl(cx, *ino, *kind, acl.as_ref()),
            Op::Unlink { parent, name, keep } => self.unlink(cx, *parent, name, *keep),
            Op::Rmdir { parent, name } => self.rmdir(cx, *parent, name),
            Op::Rename { from, from_name, to, to_name, how, keep } => {
                self.rename(cx, Rename { from: *from, from_name, to: *to, to_name, how: *how, keep: *keep })
            }
            Op::ReadDir { ino, cookie, max } => self.read_dir(cx, *ino, *cookie, *max),
            Op::SetXattr { ino, class, name, value, how } => {
                self.set_xattr(cx, (*ino, *class, name.clone()), value, *how)
            }
            Op::ListXattr { ino } => self.list_xattr(cx, *ino),
            Op::RemoveXattr { ino, class, name } => self.remove_xattr(cx, &(*ino, *class, name.clone())),
            Op::KeepOrphan { ino } => self.keep_orphan(cx, *ino),
            Op::ReleaseOrphan { ino } => self.release_orphan(cx, *ino),
            Op::Hold { holder, ino, instead, shared } => {
                self.hold(cx, Hold { number: *holder, ino: *ino, instead: *instead, shared: *shared })
            }
            Op::Renew => self.renew(cx),
            Op::Cede { directories } => self.cede(cx, directories),
            Op::Release => self.release(cx),
            Op::Fetch { ino, cookie, also } => self.fetch(cx, *ino, *cookie, also),
            Op::Lock(request) => self.lock(cx, request),
            Op::GetLock(request) => self.get_lock(cx, request),
            Op::Enroll { holder, instead } => self.enroll(cx, *holder, *instead),
            Op::VolumeGet { .. }
            | Op::StatFs { .. }
            | Op::Lookup { .. }
            | Op::Parent { .. }
            | Op::GetAttr { .. }
            | Op::Access { .. }
            | Op::Open { .. }
            | Op::ReadLink { .. }
            | Op::GetAcl { .. }
            | Op::GetXattr { .. } => unreachable!("a read of single rows"),
        }
    }

    /// Every table, in the order of their tags, which count from 1.
    pub(crate) fn tables(&self) -> [&dyn Rows; 17] {
        let State { principals, volumes, usage, inodes, entries, cookies, xattrs, orphans, .. } = self;
        let State { holders, zones, locks, snapshots, past, drawn, wanted, thrown, emptied, .. } = self;
        [
            principals, volumes, usage, inodes, entries, cookies, xattrs, orphans, holders, zones, locks, snapshots,
            past, drawn, wanted, thrown, emptied,
        ]
    }

    /// As [`State::tables`], to be changed.
    pub(crate) fn tables_mut(&mut self) -> [&mut dyn Rows; 17] {
        let State { principals, volumes, usage, inodes, entries, cookies, xattrs, orphans, .. } = self;
        let State { holders, zones, locks, snapshots, past, drawn, wanted, thrown, emptied, .. } = self;
        [
            principals, volumes, usage, inodes, entries, cookies, xattrs, orphans, holders, zones, locks, snapshots,
            past, drawn, wanted, thrown, emptied,
        ]
    }

    /// The cluster this is the state of.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.clock.cluster
    }

    /// The latest agreed time it has seen.
    #[must_use]
    pub fn now(&self) -> Time {
        self.clock.last
    }

    /// What `who` was granted, if anything.
    #[must_use]
    pub fn grant(&self, who: &PublicKey) -> Option<Grant> {
        self.principals.get(who).copied()
    }

    /// The volumes, by number.
    pub fn volumes(&self) -> impl Iterator<Item = &Volume> {
        self.volumes.iter().map(|(_, volume)| volume)
    }

    /// How much it holds.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            principals: self.principals.len(),
            volumes: self.volumes.len(),
            inodes: self.inodes.len(),
            entries: self.entries.len(),
            xattrs: self.xattrs.len(),
            orphans: self.orphans.len(),
            kept: self.past.len(),
            thrown: self.thrown.len(),
        }
    }
}

/// What an answer takes of [`ANSWERS_LEN_MAX`], bytes: never less than its encoding.
fn answer_len(answer: &Answer) -> usize {
    SHORT_ANSWER_LEN
        + match answer {
            Answer::Done(Reply::Entries { entries, .. }) => entries.iter().map(listed_len).sum(),
            Answer::Done(Reply::Names(names) | Reply::Listed { names, .. }) => {
                names.iter().map(|(_, name)| name.as_bytes().len() + 8).sum()
            }
            Answer::Done(Reply::Value(bytes) | Reply::Target(bytes)) => bytes.len(),
            Answer::Done(Reply::Opened { content, .. }) => {
                content.sealed.len() + content.patches_len() + 4 * content.patches.len()
            }
            Answer::Done(Reply::Volume(volume)) => volume.to_bytes().len(),
            Answer::Done(Reply::Volumes(volumes)) => volumes.to_bytes().len(),
            Answer::Done(Reply::Snapshots(snapshots)) => snapshots.to_bytes().len(),
            Answer::Done(Reply::Held { rows, .. } | Reply::Rows { rows, .. }) => {
                rows.iter().map(|(name, value)| name.len() + value.len() + 16).sum()
            }
            _ => 0,
        }
}

impl StateMachine for State {
    /// `op` is an encoded [`Batch`], the answer encoded [`Answers`].
    fn apply(&mut self, at: Time, who: &PublicKey, op: &[u8]) -> Vec<u8> {
        let answers = match Batch::from_bytes(op) {
            Ok(batch) => self.apply_batch(at, who, &batch),
            Err(_) => vec![Answer::Denied(Denied::Malformed)],
        };
        answers.to_bytes()
    }

    fn admits(&self, who: &PublicKey) -> bool {
        self.principals.get(who).is_some()
    }

    fn digest(&mut self) -> Digest {
        let mut trie = core::mem::take(&mut self.trie);
        trie.insert(&row_name(CLOCK_TAG, &CLOCK_TAG), Digest::of_encoded(&self.clock));
        for table in self.tables_mut() {
            table.settle(&mut trie);
        }
        self.trie = trie;
        self.trie.root()
    }

    fn snapshot(&self) -> Box<dyn Iterator<Item = Vec<u8>> + '_> {
        self.partitions()
    }

    /// Checks the form of the bytes, not that they are a state any cluster was in: whoever restores
    /// compares the digest with a certified one before it applies anything.
    fn restore(&self, partitions: &[Vec<u8>]) -> Result<State, DecodeError> {
        State::from_partitions(partitions)
    }

    fn tree(&mut self) -> Option<&Trie> {
        self.digest();
        Some(&self.trie)
    }

    fn row(&self, name: &[u8]) -> Option<Vec<u8>> {
        self.row_of(name)
    }

    fn patch(&mut self, rows: &[(Vec<u8>, Option<Vec<u8>>)]) -> Result<(), DecodeError> {
        self.patch_rows(rows)
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("clock", &self.clock).field("counts", &self.counts()).finish()
    }
}
