//! Snapshots in the tree: `.mangrove/snapshots/NAME` in the root directory, and beside them the trash
//! ([`super::trash`]).
//!
//! They are found there and not listed, so that whatever walks through a volume does not walk through its past, too.

use std::time::{Duration, Instant};

use meta::{Attr, Caller, Denied, Ino, Kind, Op, Reply, Snapshot, Timestamp};

use super::error::{FsError, Result};
use super::names::{Entries, Entry};
use super::{Filesystem, Shared, unexpected};
use crate::backend::{BlockStore, Metadata};

/// `.mangrove`, and `snapshots` in it: numbers that no inode of replicas' has.
const TOP: (Ino, &[u8]) = (Ino(1 << 63 | 1), b".mangrove");
const LIST: (Ino, &[u8]) = (Ino(1 << 63 | 2), b"snapshots");
const TRASH: &[u8] = b"trash";

/// For how long what is said of a snapshot may be remembered: once it is deleted it is not there any more.
const LASTS: Duration = Duration::from_secs(60);
/// For how long a name that was there is taken for being there, and for what it was: every path leads by it.
const LISTED: Duration = Duration::from_millis(100);
/// Cookies up to here are `.` and `..`.
const COOKIES_BELOW: u64 = 2;

fn is_special(ino: Ino) -> bool {
    ino == TOP.0 || ino == LIST.0
}

/// For how long what is asked of this inode may be remembered, if it is in a snapshot, or one of the directories
/// above them.
pub(super) fn lasts(ino: Ino, root: Ino) -> Option<Duration> {
    match ino {
        ino if ino == TOP.0 => Some(LASTS),
        ino if ino.is_in_trash() => Some(Duration::ZERO),
        // Its name may be another's by then.
        ino if ino == LIST.0 || (ino.snapshot() != 0 && ino.now() == root) => Some(Duration::ZERO),
        ino => (ino.snapshot() != 0).then_some(LASTS),
    }
}

impl<M: Metadata, B: BlockStore> Filesystem<M, B> {
    /// The volume's snapshots, the latest last.
    ///
    /// # Errors
    /// That replicas do not say.
    pub async fn snapshots(&self, caller: &Caller) -> Result<Vec<Snapshot>> {
        self.shared.snapshots(caller).await
    }
}

impl<M: Metadata, B: BlockStore> Shared<M, B> {
    async fn snapshots(&self, caller: &Caller) -> Result<Vec<Snapshot>> {
        match self.call_replicas(caller, Op::SnapshotList { volume: self.volume.id }).await? {
            Reply::Snapshots(all) => {
                *self.snapshots.lock() = Some((Instant::now(), all.clone()));
                Ok(all)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// The snapshots as they were not long ago.
    async fn recent_snapshots(&self, caller: &Caller) -> Result<Vec<Snapshot>> {
        let recent = self.snapshots.lock().clone().filter(|(at, _)| at.elapsed() < LISTED);
        match recent {
            Some((_, all)) => Ok(all),
            None => self.snapshots(caller).await,
        }
    }

    /// Whether this name is not for replicas to look up.
    pub(super) fn is_special_name(&self, parent: Ino, name: &[u8]) -> bool {
        is_special(parent) || (parent == self.volume.root && name == TOP.1)
    }

    /// Finds such a name.
    ///
    /// # Errors
    /// `Denied(NotFound)`; that replicas do not say.
    pub(super) async fn find_special(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<Attr> {
        let found =
            [(self.volume.root, TOP), (TOP.0, LIST)].into_iter().find(|(at, (_, of))| *at == parent && *of == name);
        if let Some((_, (ino, _))) = found {
            return Ok(self.special(ino, &self.recent_snapshots(caller).await?));
        }
        if parent == TOP.0 && name == TRASH {
            return self.look_attr(caller, Op::GetAttr { ino: self.volume.root.in_trash() }).await;
        }
        if parent != LIST.0 {
            return Err(Denied::NotFound.into());
        }
        let find = |all: Vec<Snapshot>| all.into_iter().find(|snapshot| snapshot.name.as_bytes() == name);
        let named = match find(self.recent_snapshots(caller).await?) {
            Some(named) => named,
            // It may be new.
            None => find(self.snapshots(caller).await?).ok_or(Denied::NotFound)?,
        };
        self.look_attr(caller, Op::GetAttr { ino: self.volume.root.in_snapshot(named.number) }).await
    }

    /// The names in such a directory after `cookie`; `None` if it is another.
    ///
    /// # Errors
    /// That replicas do not say.
    pub(super) async fn list_special(&self, caller: &Caller, ino: Ino, cookie: u64) -> Result<Option<Entries>> {
        if !is_special(ino) {
            return Ok(None);
        }
        let all = self.snapshots(caller).await?;
        let entry = |cookie, name: &[u8], attr| Entry { cookie: cookie + COOKIES_BELOW, name: name.to_vec(), attr };
        let entries: Vec<Entry> = match ino == TOP.0 {
            true => {
                let trash = Attr { ino: self.volume.root.in_trash(), ..self.special(TOP.0, &[]) };
                vec![entry(1, LIST.1, self.special(LIST.0, &all)), entry(2, TRASH, trash)]
            }
            false => {
                let root = |snapshot: &Snapshot| {
                    let attr = self.special(LIST.0, std::slice::from_ref(snapshot));
                    Attr { ino: self.volume.root.in_snapshot(snapshot.number), ..attr }
                };
                all.iter().map(|one| entry(one.number, one.name.as_bytes(), root(one))).collect()
            }
        };
        Ok(Some(Entries { entries: entries.into_iter().filter(|entry| entry.cookie > cookie).collect(), end: true }))
    }

    /// What is to be said of such a directory; `None` if it is of another inode.
    ///
    /// # Errors
    /// `Denied(ReadOnly)`.
    pub(super) async fn ask_special(&self, caller: &Caller, op: &Op) -> Result<Option<Reply>> {
        let root = self.volume.root;
        Ok(Some(match op {
            Op::Parent { ino } if *ino == TOP.0 => self.call_replicas(caller, Op::GetAttr { ino: root }).await?,
            Op::Parent { ino } if *ino == LIST.0 => Reply::Attr(self.special(TOP.0, &[])),
            Op::Parent { ino } if *ino == root.in_trash() => Reply::Attr(self.special(TOP.0, &[])),
            Op::Parent { ino } if ino.snapshot() != 0 && ino.now() == root => Reply::Attr(self.special(LIST.0, &[])),
            Op::GetAttr { ino } if is_special(*ino) => {
                Reply::Attr(self.special(*ino, &self.recent_snapshots(caller).await?))
            }
            Op::Access { ino, mask } if is_special(*ino) && mask & meta::WRITE == 0 => Reply::Unit,
            Op::GetXattr { ino, .. } | Op::GetAcl { ino, .. } if is_special(*ino) => {
                return Err(FsError::Denied(Denied::NoAttribute));
            }
            Op::ListXattr { ino } if is_special(*ino) => Reply::Names(Vec::new()),
            _ => return Ok(None),
        }))
    }

    fn special(&self, ino: Ino, all: &[Snapshot]) -> Attr {
        let latest = all.last();
        let at = latest.map_or(Timestamp::default(), |snapshot| snapshot.taken);
        let version = latest.map_or(0, |snapshot| snapshot.number) + 1;
        Attr {
            ino,
            volume: self.volume.id,
            kind: Kind::Directory,
            mode: 0o555,
            uid: 0,
            gid: 0,
            nlink: 2,
            size: all.len() as u64,
            allocated: 0,
            rdev: 0,
            atime: at,
            mtime: at,
            ctime: at,
            btime: at,
            version,
            content_version: version,
        }
    }
}
