//! Who is to be told of what was lost.
//!
//! Where leases end before all that was done under them was sent, the rest is lost. Each handle through which
//! such a file was written is told once, at its next `fsync` or `close`; if there is none left, or it was names,
//! whoever next syncs the file or the directory.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use meta::{Ino, Op};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::error::{FsError, Result};
use super::file::State;
use super::handles::Open;
use super::lost::{Changed, Lot};
use super::outbox::Outbox;
use super::writing::Writing;
use super::{Filesystem, Shared};
use crate::backend::{BlockStore, Loss, LostCall, Metadata};

/// Tells whoever remembers what these inodes were that they are not.
pub type Doubt = Arc<dyn Fn(&[Ino]) + Send + Sync>;

/// What was lost, and what of it is still to be kept.
pub(super) struct Losses {
    state: Mutex<Told>,
    lots: mpsc::UnboundedSender<Lot>,
    /// How many lots are not kept yet.
    left: watch::Sender<usize>,
    pub(super) folder: Option<PathBuf>,
    pub(super) doubt: Mutex<Option<Doubt>>,
}

#[derive(Default)]
struct Told {
    /// How often something was lost.
    count: u64,
    inodes: HashMap<Ino, Lost>,
}

/// What was lost of one inode.
struct Lost {
    /// With the latest loss of this number.
    number: u64,
    /// Somebody was told.
    told: bool,
}

/// What was written through one handle.
#[derive(Debug, Default)]
pub(super) struct Writes(Mutex<Written>);

#[derive(Debug, Default)]
struct Written {
    count: u64,
    /// How often something had been lost when the oldest write was made that is not synced.
    unsynced: Option<u64>,
    /// The file's count of writes with the latest of these.
    seq: u64,
    /// Something was dropped, and this handle was not told.
    dropped: bool,
}

impl Writes {
    /// It was written through just now.
    pub(super) fn wrote(&self, seq: u64) {
        self.0.lock().seq = seq;
    }

    /// For [`Writes::end_sync`].
    pub(super) fn begin_sync(&self) -> u64 {
        self.0.lock().count
    }

    /// All is synced that was written when the sync began.
    pub(super) fn end_sync(&self, begun: u64) {
        let mut written = self.0.lock();
        if written.count == begun {
            written.unsynced = None;
        }
    }

    /// What was written to the file after that many writes is dropped: says whether this handle wrote some.
    pub(super) fn drop_after(&self, seq: u64) -> bool {
        let mut written = self.0.lock();
        let drops = written.seq > seq;
        written.dropped |= drops;
        drops
    }

    fn take_dropped(&self) -> bool {
        std::mem::take(&mut self.0.lock().dropped)
    }

    /// Whether something was written before loss `number`, and this handle was not told.
    fn take_lost(&self, number: u64) -> bool {
        let mut written = self.0.lock();
        let lost = written.unsynced.is_some_and(|before| before < number);
        if lost {
            written.unsynced = Some(number);
        }
        lost
    }
}

impl Losses {
    pub(super) fn new(folder: Option<PathBuf>) -> (Arc<Losses>, mpsc::UnboundedReceiver<Lot>) {
        let (lots, receiver) = mpsc::unbounded_channel();
        let (left, doubt) = (watch::channel(0).0, Mutex::default());
        (Arc::new(Losses { state: Mutex::default(), lots, left, folder, doubt }), receiver)
    }

    /// Takes what was lost just now. Waits for nothing, and calls nobody who might wait for the caller.
    pub(super) fn take<B: BlockStore>(&self, loss: Loss, outbox: &Outbox<B>) {
        let inos: BTreeSet<Ino> = loss.calls.iter().flat_map(concerned).collect();
        {
            let told = &mut *self.state.lock();
            told.count += u64::from(!inos.is_empty());
            let number = told.count;
            told.inodes.extend(inos.iter().map(|ino| (*ino, Lost { number, told: false })));
        }
        outbox.rescue(&inos);
        self.push(Lot::Log(Box::new(loss)));
    }

    pub(super) fn push(&self, lot: Lot) {
        self.begin();
        // The other end goes with the volume.
        let _ = self.lots.send(lot);
    }

    /// Something begins that [`Filesystem::keep_lost`] waits for.
    pub(super) fn begin(&self) {
        self.left.send_modify(|left| *left += 1);
    }

    /// A lot is kept, or whatever else was begun has ended.
    pub(super) fn kept(&self) {
        self.left.send_modify(|left| *left -= 1);
    }

    fn count(&self) -> u64 {
        self.state.lock().count
    }

    /// Whether something of this inode was lost.
    pub(super) fn concern(&self, ino: Ino) -> bool {
        self.state.lock().inodes.contains_key(&ino)
    }

    /// Whether something of it was lost, and nobody was told.
    pub(super) fn is_untold(&self, ino: Ino) -> bool {
        self.state.lock().inodes.get(&ino).is_some_and(|lost| !lost.told)
    }

    /// Whether somebody is to be told now: who wrote that, or whoever `syncs`.
    fn tell(&self, ino: Ino, writes: Option<&Writes>, syncs: bool) -> bool {
        let mut told = self.state.lock();
        let Some(lost) = told.inodes.get_mut(&ino) else { return false };
        let wrote = writes.is_some_and(|writes| writes.take_lost(lost.number));
        let first = syncs && !lost.told;
        lost.told |= wrote || syncs;
        wrote || first
    }

    fn error(&self) -> FsError {
        let place = self.folder.as_deref().map(Path::display);
        FsError::Lost(place.map_or(String::new(), |place| format!("; what could be kept of them is in {place}")))
    }
}

/// The inodes that are not what somebody was told they are, without this.
pub(super) fn concerned(lost: &LostCall) -> Vec<Ino> {
    let mut inos = match &lost.call.op {
        Op::Commit(commit) => vec![commit.ino],
        Op::SetAttr { ino, .. } | Op::SetXattr { ino, .. } | Op::RemoveXattr { ino, .. } | Op::SetAcl { ino, .. } => {
            vec![*ino]
        }
        Op::Create { parent, .. } | Op::Unlink { parent, .. } | Op::Rmdir { parent, .. } => vec![*parent],
        Op::Link { ino, parent, .. } => vec![*ino, *parent],
        Op::Rename { from, to, .. } => vec![*from, *to],
        // Who has locks is told of them, and nobody of what is without a name.
        _ => Vec::new(),
    };
    inos.extend(lost.made);
    inos
}

impl<M: Metadata, B: BlockStore> Filesystem<M, B> {
    /// For `fsync` of a directory: returns when replicas have every change of names and attributes that was made
    /// here.
    ///
    /// # Errors
    /// If they do not; `Lost`, once, if they never will have one that was made to this directory.
    pub async fn sync_inode(&self, ino: Ino) -> Result<()> {
        let settled = self.shared.settle().await;
        match self.shared.losses.tell(ino, None, true) {
            true => Err(self.shared.losses.error()),
            false => settled,
        }
    }

    /// Returns when all that was lost until now is kept, as far as it can be, and nobody relies on it here.
    pub async fn keep_lost(&self) {
        let mut left = self.shared.losses.left.subscribe();
        // The sender lives as long as the volume.
        let _ = left.wait_for(|left| *left == 0).await;
    }

    /// Whether something was lost of which nobody was told.
    #[must_use]
    pub fn is_any_untold(&self) -> bool {
        self.shared.losses.state.lock().inodes.values().any(|lost| !lost.told)
    }

    /// Says who is to be told when inodes are not what they were said to be, because that was lost.
    pub fn on_doubt(&self, doubt: Doubt) {
        *self.shared.losses.doubt.lock() = Some(doubt);
    }
}

impl<M: Metadata, B: BlockStore> Shared<M, B> {
    /// Returns when replicas have what was done here, or it is known to be lost.
    pub(super) async fn settle(&self) -> Result<()> {
        let settled = self.metadata.settle().await;
        settled.map_err(|why| self.outbox.failure().unwrap_or_else(|| why.into()))
    }

    /// Who is about to write through a handle, and when.
    pub(super) fn writing<'a>(&'a self, open: &'a Open) -> Writing<'a> {
        Writing { caller: &open.caller, agreed: self.metadata.time_of(open.file.ino), budget: &self.budget }
    }

    /// Something is about to be written through a handle.
    pub(super) fn note_write(&self, open: &Open) {
        let losses = self.losses.count();
        let mut written = open.writes.0.lock();
        written.count += 1;
        written.unsynced.get_or_insert(losses);
    }

    /// Tells who wrote through this handle, or whoever `syncs` the file, that it is lost.
    ///
    /// # Errors
    /// `Lost`.
    pub(super) fn tell_lost(&self, open: &Open, syncs: bool) -> Result<()> {
        open.locks.check()?;
        self.tell_dropped(open)?;
        match self.losses.tell(open.file.ino, Some(&open.writes), syncs) {
            true => Err(self.losses.error()),
            false => Ok(()),
        }
    }

    /// Tells who wrote through this handle that it was dropped.
    ///
    /// # Errors
    /// `Lost`.
    pub(super) fn tell_dropped(&self, open: &Open) -> Result<()> {
        if open.writes.take_dropped() { Err(self.losses.error()) } else { Ok(()) }
    }

    /// What was written to a file and not committed will be forgotten: it is kept for who looks for it.
    pub(super) fn keep_changes(&self, state: &State) {
        let ino = state.attr.ino;
        self.outbox.rescue(&BTreeSet::from([ino]));
        self.losses.push(Lot::Dropped(Box::new(Changed::of(ino, state))));
    }
}
