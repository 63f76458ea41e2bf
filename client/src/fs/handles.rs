//! Opening, flushing and closing files.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use meta::{Attr, Call, Caller, Commit, Content, Denied, Ino, Kind, NewInode, Op, Reply};

use super::error::{FsError, Result};
use super::file::OpenFile;
use super::locks::HandleLocks;
use super::losses::Writes;
use super::names::NewMode;
use super::opening::LettingGo;
use super::{Filesystem, Shared, attr_of, unexpected};
use crate::backend::{BlockStore, Metadata};

/// A handle of an open file: what `fh` is to FUSE. Never 0, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u64);

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags {
    /// To read.
    pub read: bool,
    /// To write.
    pub write: bool,
    /// Every write goes to the end of the file (`O_APPEND`).
    pub append: bool,
    /// Make it empty (`O_TRUNC`); needs `write`.
    pub truncate: bool,
    /// To execute it: read permission is not needed, execute permission is.
    pub execute: bool,
}

impl OpenFlags {
    /// To read only.
    #[must_use]
    pub fn reading() -> OpenFlags {
        OpenFlags { read: true, ..OpenFlags::default() }
    }

    /// To read and write.
    #[must_use]
    pub fn writing() -> OpenFlags {
        OpenFlags { read: true, write: true, ..OpenFlags::default() }
    }

    pub(super) fn mask(self) -> u8 {
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        bit(self.read && !self.execute, meta::READ) | bit(self.write, meta::WRITE) | bit(self.execute, meta::EXECUTE)
    }
}

/// A file that was just opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its handle.
    pub handle: Handle,
    /// Its attributes. What the kernel has of its content is good while `content_version` is.
    pub attr: Attr,
}

/// A handle as it is kept.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) file: Arc<OpenFile>,
    pub(super) flags: OpenFlags,
    pub(super) caller: Caller,
    pub(super) locks: HandleLocks,
    pub(super) writes: Writes,
    /// Another process opened it, with flags that are not all known.
    pub(super) adopted: bool,
}

impl<M: Metadata, B: BlockStore> Filesystem<M, B> {
    /// Opens a regular file.
    ///
    /// # Errors
    /// `Denied` if the caller may not, or if it is no regular file.
    pub async fn open(&self, caller: &Caller, ino: Ino, flags: OpenFlags) -> Result<Opened> {
        if flags.mask() == 0 || (flags.truncate && !flags.write) {
            return Err(FsError::Invalid);
        }
        self.shared.open(caller, ino, flags).await
    }

    /// Makes a regular file and opens it; the mode does not limit this first handle. If the name is taken by a
    /// file and `exclusive` is not set, opens that one.
    ///
    /// # Errors
    /// As [`Filesystem::open`]; `Denied(Exists)` if `exclusive` and the name is taken.
    pub async fn create(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: impl Into<NewMode>,
        flags: OpenFlags,
        exclusive: bool,
    ) -> Result<Opened> {
        let shared = &self.shared;
        let sealed = shared.seal_name(parent, name)?;
        let NewMode { mode, umask } = mode.into();
        let new = NewInode { kind: Kind::File, mode, umask, rdev: 0, target: Default::default() };
        let _opening = shared.begin_open();
        match shared.call(caller, Op::Create { parent, name: sealed, new, exclusive }).await? {
            Reply::Created { attr, fresh: false } => shared.open(caller, attr.ino, flags).await,
            Reply::Created { attr, fresh: true } => {
                let file = shared.attach(attr, &Content::default())?;
                Ok(shared.add_handle(file, caller, flags, true))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Makes a regular file without a name, as if in `parent`, and opens it (`O_TMPFILE`). It lives while it is
    /// open, or until [`Filesystem::link`] gives it a name.
    ///
    /// # Errors
    /// `Denied` if the caller may not make files there; `Invalid` if it is not opened for writing.
    pub async fn create_unnamed(
        &self,
        caller: &Caller,
        parent: Ino,
        mode: impl Into<NewMode>,
        flags: OpenFlags,
    ) -> Result<Opened> {
        if !flags.write {
            return Err(FsError::Invalid);
        }
        let shared = &self.shared;
        let NewMode { mode, umask } = mode.into();
        let new = NewInode { kind: Kind::File, mode, umask, rdev: 0, target: Default::default() };
        let _opening = shared.begin_open();
        match shared.call(caller, Op::CreateUnnamed { parent, new }).await? {
            Reply::Created { attr, .. } => {
                let file = shared.attach(attr, &Content::default())?;
                // It is this mount's to let go.
                file.state.lock().borrowed = false;
                Ok(shared.add_handle(file, caller, flags, true))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// For `close(2)`: what was written through this handle (and any other) is committed when it returns:
    /// whoever opens the file sees it. It is durable, too, unless this mount has a lease on the file; then
    /// it is sent before anything that is done later. Free if nothing was written.
    ///
    /// # Errors
    /// Why it is not; what was written is kept and tried again by the next flush, `fsync` or in
    /// the background. `Lost`: something written through this handle before is gone; once.
    pub async fn flush(&self, handle: Handle) -> Result<()> {
        let open = self.shared.handle(handle)?;
        open.locks.check()?;
        if !open.flags.write {
            return Ok(());
        }
        let committed = self.shared.commit(&open.file, Vec::new()).await;
        self.shared.tell_lost(&open, false)?;
        committed.map(drop)
    }

    /// For `fsync(2)`: everything written to the file is durable and committed when it returns.
    ///
    /// # Errors
    /// As [`Filesystem::flush`]. `Lost`, once for each handle that wrote.
    pub async fn fsync(&self, handle: Handle) -> Result<()> {
        let open = self.shared.handle(handle)?;
        open.locks.check()?;
        let begun = open.writes.begin_sync();
        let committed = self.shared.commit_synced(&open.file).await;
        let settled = if committed.is_ok() { self.shared.settle().await } else { Ok(()) };
        self.shared.tell_lost(&open, true)?;
        committed.and(settled)?;
        open.writes.end_sync(begun);
        Ok(())
    }

    /// The attributes that replicas gave last: after a flush, those with which it was committed.
    ///
    /// # Errors
    /// `BadHandle`.
    pub fn committed_attr(&self, handle: Handle) -> Result<Attr> {
        Ok(self.shared.handle(handle)?.file.state.lock().attr)
    }

    /// The last reference to a handle is gone. What was not flushed (it was written through a
    /// mapping, or flushing failed) is committed; if that fails but may succeed later, it is tried
    /// again in the background.
    ///
    /// # Errors
    /// Why it could not be committed, for the log: the handle is gone in any case.
    pub async fn release(&self, handle: Handle) -> Result<()> {
        let open = self.shared.handles.lock().remove(&handle).ok_or(FsError::BadHandle)?;
        self.shared.release_locks(handle, &open).await;
        self.shared.detach(&open).await
    }
}

impl<M: Metadata, B: BlockStore> Shared<M, B> {
    pub(super) fn handle(&self, handle: Handle) -> Result<Arc<Open>> {
        self.handles.lock().get(&handle).cloned().ok_or(FsError::BadHandle)
    }

    pub(super) async fn open(self: &Arc<Self>, caller: &Caller, ino: Ino, flags: OpenFlags) -> Result<Opened> {
        let _opening = self.begin_open();
        let file = if flags.truncate {
            self.open_empty(caller, ino, flags).await?
        } else {
            let (attr, content) = self.open_content(caller, ino, flags.mask()).await?;
            self.look_if_restored(caller, &attr).await;
            self.attach(attr, &content)?
        };
        Ok(self.add_handle(file, caller, flags, flags.truncate))
    }

    /// Opens a file and makes it empty, in one request.
    async fn open_empty(self: &Arc<Self>, caller: &Caller, ino: Ino, flags: OpenFlags) -> Result<Arc<OpenFile>> {
        let known = self.file(ino);
        // No commit of ours may come between the truncation and taking note of it.
        let mut pipeline = match &known {
            Some(file) => Some(file.pipeline.lock().await),
            None => None,
        };
        let content = Content::default();
        let commit = Commit::whole(ino, None, content.clone());
        let ops = [Op::Open { ino, mask: flags.mask() }, Op::Commit(commit)];
        let answers = self.calls(ops.map(|op| Call { caller: caller.clone(), op }).into()).await?;
        let mut answers = answers.into_iter().map(|answer| answer.into_result());
        answers.next().expect("two answers")?;
        let attr = attr_of(answers.next().expect("two answers")?)?;
        if let (Some(file), Some(pipeline)) = (&known, &mut pipeline) {
            file.state.lock().reset(attr, content.clone(), &self.budget);
            self.outbox.discard(ino, &pipeline.pending);
            pipeline.pending.clear();
        }
        self.look_if_restored(caller, &attr).await;
        self.attach(attr, &content)
    }

    /// The open file of an inode whose attributes and content were just asked for, with one more
    /// handle. The ticket of asking is still held.
    ///
    /// # Errors
    /// `Denied(Stale)` if it lost its last name since and is let go.
    pub(super) fn attach(&self, attr: Attr, content: &Content) -> Result<Arc<OpenFile>> {
        let opening = self.opening.lock();
        let lost = opening.is_lost(attr.ino)?;
        let file = {
            let mut files = self.files.lock();
            let new = || (Arc::new(OpenFile::new(attr, content.clone(), self.options.stage_bytes)), 0);
            let (file, handles) = files.entry(attr.ino).or_insert_with(new);
            *handles += 1;
            file.clone()
        };
        file.refresh(attr, content, &self.budget);
        if lost {
            let mut state = file.state.lock();
            if state.attr.nlink > 0 {
                // As in `lost_name`: what was asked before must not bring the name back.
                state.attr.version += 1;
                (state.attr.nlink, state.fetched) = (0, None);
            }
            (state.orphan, state.borrowed) = (true, false);
        }
        Ok(file)
    }

    fn add_handle(&self, file: Arc<OpenFile>, caller: &Caller, flags: OpenFlags, changed: bool) -> Opened {
        let attr = file.state.lock().local_attr();
        let handle = Handle(self.next_handle.fetch_add(1, Ordering::Relaxed));
        let (locks, writes) = Default::default();
        let open = Open { file, flags, caller: caller.clone(), locks, writes, adopted: false };
        if changed {
            // Opening it changed it.
            self.note_write(&open);
        }
        self.handles.lock().insert(handle, Arc::new(open));
        Opened { handle, attr }
    }

    /// Takes a handle off its file, and ends with the file if it was the last.
    pub(super) async fn detach(self: &Arc<Self>, open: &Open) -> Result<()> {
        self.unpin(&open.file, &open.caller).await
    }

    pub(super) async fn unpin(self: &Arc<Self>, file: &Arc<OpenFile>, caller: &Caller) -> Result<()> {
        let last = {
            let mut files = self.files.lock();
            let (_, handles) = files.get_mut(&file.ino).expect("a file with handles is kept");
            *handles -= 1;
            *handles == 0
        };
        if !last {
            return Ok(());
        }
        let (orphan, borrowed) = {
            let state = file.state.lock();
            (state.orphan, state.borrowed)
        };
        if orphan && borrowed {
            self.give_up(file).await;
            return Ok(());
        }
        if orphan && !(file.is_dirty() && self.is_restored(caller, file.ino).await) {
            // First: nobody is to name what was given up.
            let going = self.begin_letting_go(file.ino, caller);
            if going != LettingGo::Opened {
                self.give_up(file).await;
            }
            if going != LettingGo::Now {
                return Ok(());
            }
            let released = self.let_go(file.ino, caller).await;
            // Its last name may have gone another way than through here.
            return match released {
                Err(FsError::Denied(Denied::Invalid | Denied::Stale | Denied::NotPermitted)) => Ok(()),
                released => released,
            };
        }
        let committed = self.settle_closed(file).await;
        if let Err(error) = &committed {
            tracing::warn!(ino = file.ino.0, %error, "a closed file is not committed");
        }
        committed
    }

    /// Commits a file that nobody has open; gives up what can never be committed.
    pub(super) async fn settle_closed(self: &Arc<Self>, file: &Arc<OpenFile>) -> Result<()> {
        let committed = self.commit(file, Vec::new()).await.map(drop);
        let hopeless = match &committed {
            Ok(()) => false,
            // Full nodes would hide that the file is gone, and with it what there is to commit.
            Err(FsError::NoSpace) => self.is_gone(file).await,
            Err(error) => !error.may_pass(),
        };
        if hopeless {
            {
                let state = file.state.lock();
                if state.is_dirty() && self.losses.concern(file.ino) {
                    self.keep_changes(&state);
                }
            }
            self.give_up(file).await;
        }
        self.forget_settled(file);
        committed
    }

    /// Forgets a file that nobody has open, if there is nothing left to do for it.
    pub(super) fn forget_settled(&self, file: &OpenFile) {
        let mut files = self.files.lock();
        if files.get(&file.ino).is_some_and(|(known, handles)| *handles == 0 && self.is_settled(known)) {
            files.remove(&file.ino);
        }
    }

    /// Whether there is nothing left to do for a file that nobody has open.
    pub(super) fn is_settled(&self, file: &OpenFile) -> bool {
        let mut state = file.state.lock();
        if state.is_dirty() || state.sealing {
            return false;
        }
        // What replicas have as patches need not be here, too.
        state.unload(&self.budget);
        !state.is_patched()
    }

    async fn is_gone(&self, file: &OpenFile) -> bool {
        let writer = file.state.lock().writer.clone();
        let asked = self.call(&writer, Op::GetAttr { ino: file.ino }).await;
        matches!(asked, Err(FsError::Denied(Denied::Stale)))
    }

    /// Forgets what was written to a file that nobody has open; says whether that is so still.
    pub(super) async fn give_up(&self, file: &OpenFile) -> bool {
        let mut pipeline = file.pipeline.lock().await;
        let mut files = self.files.lock();
        if files.get(&file.ino).is_none_or(|(_, handles)| *handles > 0) {
            return false;
        }
        files.remove(&file.ino);
        drop(files);
        let mut state = file.state.lock();
        let (attr, content) = (state.attr, state.content.clone());
        state.reset(attr, content, &self.budget);
        self.outbox.discard(file.ino, &pipeline.pending);
        pipeline.pending.clear();
        true
    }
}
