//! Committing: the last step of a write. *Data down before the name goes up.*
//!
//! Everything written so far is staged, every block the new content names is durable, and only then
//! is the content bound to the inode. If somebody else committed in the meantime, what was written
//! here since the base is laid over their content, and that is committed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::task::Poll;

use base::BlockId;
use futures::future::BoxFuture;
use meta::{Answer, Attr, Call, Caller, Commit, Content, Denied, Op, Reply};

use super::error::{FsError, Result};
use super::file::{OpenFile, Pipeline};
use super::layout::Layout;
use super::outbox::Outbox;
use super::overlay::Overlay;
use super::stage::{Order, blocking};
use super::{Shared, attr_of, unexpected};
use crate::backend::{BlockStore, Metadata, Ready, Unavailable, Unstored};

/// How often content is merged with somebody else's before giving up.
const MERGES_MAX: usize = 16;

/// A commit that names more blocks that are not stored yet waits for them in any case.
const DEFERRED_MAX: usize = 64;

/// How a try to commit ended.
enum Tried {
    /// Applied; the answers to the calls after it.
    Done(Vec<Answer>),
    /// Somebody else committed first.
    Stale,
}

/// The blocks that a commit names.
struct Named<B> {
    outbox: Arc<Outbox<B>>,
    ino: meta::Ino,
    ids: BTreeSet<BlockId>,
}

impl<B: BlockStore> Unstored for Named<B> {
    fn stored(&self) -> BoxFuture<'static, std::result::Result<(), Unavailable>> {
        let (outbox, ino, mut ids) = (self.outbox.clone(), self.ino, self.ids.clone());
        Box::pin(async move {
            // The log is sent: what comes after this needs its blocks, too.
            outbox.hurry();
            let settled = outbox.settle(ino, &mut ids).await;
            settled.map_err(|why| Unavailable(format!("what was written is not stored yet: {why}")))
        })
    }

    fn give_up(&self) {
        self.outbox.discard(self.ino, &self.ids);
    }
}

impl<M: Metadata, B: BlockStore> Shared<M, B> {
    /// Commits what was changed in a file, if anything, and does `then` in the same request (alone,
    /// if nothing was changed). Goes on even if the caller stops waiting.
    ///
    /// # Errors
    /// What was changed stays changed here, and is committed by the next call that succeeds. `then`
    /// may have been done even so.
    pub(super) async fn commit(self: &Arc<Self>, file: &Arc<OpenFile>, then: Vec<Call>) -> Result<Vec<Answer>> {
        self.commit_how(file, then, false).await
    }

    /// Commits what was changed in a file, if anything, for somebody who waits until replicas have it: what is
    /// short goes to them itself.
    ///
    /// # Errors
    /// As [`Shared::commit`].
    pub(super) async fn commit_synced(self: &Arc<Self>, file: &Arc<OpenFile>) -> Result<()> {
        self.commit_how(file, Vec::new(), true).await.map(drop)
    }

    async fn commit_how(self: &Arc<Self>, file: &Arc<OpenFile>, then: Vec<Call>, patch: bool) -> Result<Vec<Answer>> {
        if then.is_empty() && !file.is_dirty() {
            return Ok(Vec::new());
        }
        let (shared, file) = (self.clone(), file.clone());
        let mut commit = Box::pin(async move {
            let mut pipeline = file.pipeline.lock().await;
            shared.commit_locked(&file, &mut pipeline, then, patch).await
        });
        // A small file under a lease waits for nothing, and needs no task of its own.
        if let Poll::Ready(committed) = futures::poll!(&mut commit) {
            return committed;
        }
        tokio::spawn(commit).await.map_err(|failure| FsError::Unavailable(failure.to_string()))?
    }

    async fn commit_locked(
        self: &Arc<Self>,
        file: &Arc<OpenFile>,
        pipeline: &mut Pipeline,
        then: Vec<Call>,
        patch: bool,
    ) -> Result<Vec<Answer>> {
        let begun = loop {
            {
                let mut state = file.state.lock();
                if !state.is_dirty() || !state.lacks_patches() {
                    state.error = None;
                    break state.begin_commit().then(|| (state.overlay.clone(), state.seq, state.size));
                }
            }
            self.ensure_layout(file).await?;
        };
        let Some((dirty, seq, size)) = begun else {
            return if then.is_empty() { Ok(Vec::new()) } else { self.calls(then).await };
        };
        self.outbox.take_failure(file.ino);
        if patch && let Some(answers) = self.try_patch(file, pipeline, size).await? {
            return Ok(answers);
        }
        let order = Order { dirty: &dirty, seq, runs: dirty.runs(), keep_tails: false };
        let committed = match self.stage(file, pipeline, order).await {
            Ok(()) => self.commit_staged(file, pipeline, size, then).await,
            Err(error) => Err(error),
        };
        self.note_failed(file, pipeline, &committed);
        committed
    }

    async fn try_patch(
        self: &Arc<Self>,
        file: &Arc<OpenFile>,
        pipeline: &mut Pipeline,
        size: u64,
    ) -> Result<Option<Vec<Answer>>> {
        let patched = self.commit_patch(file, size).await;
        self.note_failed(file, pipeline, &patched);
        patched
    }

    /// What a commit that failed leaves behind.
    fn note_failed<T>(&self, file: &OpenFile, pipeline: &mut Pipeline, committed: &Result<T>) {
        if committed.is_err() {
            file.state.lock().abort_commit();
        }
        if matches!(committed, Err(FsError::Denied(Denied::Fenced))) {
            self.lose_locks(file, pipeline);
        }
    }

    async fn commit_staged(
        self: &Arc<Self>,
        file: &Arc<OpenFile>,
        pipeline: &mut Pipeline,
        mut size: u64,
        then: Vec<Call>,
    ) -> Result<Vec<Answer>> {
        for _ in 0..MERGES_MAX {
            match self.try_commit(file, pipeline, size, then.clone()).await? {
                Tried::Done(answers) => return Ok(answers),
                Tried::Stale => size = self.merge(file, pipeline).await?,
            }
        }
        Err(FsError::Unavailable("others keep changing the same file".into()))
    }

    async fn try_commit(
        self: &Arc<Self>,
        file: &Arc<OpenFile>,
        pipeline: &mut Pipeline,
        size: u64,
        then: Vec<Call>,
    ) -> Result<Tried> {
        let (recipe, base, writer, mtime) = {
            let mut state = file.state.lock();
            let layout = state.layout.as_mut().expect("staged before");
            layout.resize(size);
            (layout.to_recipe(), state.base, state.writer.clone(), state.written_at())
        };
        // Without a lease others may have seen what was there until now.
        let mtime = mtime.filter(|_| self.metadata.keeps(file.ino));
        let (chunks, ino) = (self.chunks.clone(), file.ino);
        let allocated = recipe.allocated();
        // An extent takes some 70 bytes.
        let bytes = recipe.extents().len() as u64 * 70;
        let sealed = blocking(bytes, move || chunk::seal_recipe(&chunks.keys, ino.0, &recipe)).await?;
        pipeline.pending.extend(sealed.blocks.iter().map(|(id, _)| *id));
        self.outbox.push(ino, sealed.blocks);
        let blocks = self.blocks_of(ino, pipeline).await?;

        let content = Content { size, allocated, root: sealed.root, sealed: sealed.sealed, patches: Vec::new() };
        let commit = Commit { mtime, opened: true, ..Commit::whole(ino, Some(base), content.clone()) };
        let mut calls = vec![Call { caller: writer, op: Op::Commit(commit) }];
        calls.extend(then);
        let deferred = blocks.is_some();
        let mut answers = match blocks {
            None => self.calls(calls).await?,
            Some(ready) => self.metadata.calls_after(calls, ready).await?,
        };
        let rest = answers.split_off(1);
        match answers.pop() {
            Some(Answer::Denied(Denied::Stale)) => Ok(Tried::Stale),
            answer => {
                let attr = attr_of(answer.expect("as many answers as calls").into_result()?)?;
                file.state.lock().end_commit(attr, content);
                if deferred {
                    pipeline.pending.clear();
                }
                Ok(Tried::Done(rest))
            }
        }
    }

    /// Sees to it that a file's blocks are durable before the commit that names them: now, or where nobody
    /// else can see the file yet and they are few, before that is sent.
    async fn blocks_of(self: &Arc<Self>, ino: meta::Ino, pipeline: &mut Pipeline) -> Result<Option<Ready>> {
        let much = pipeline.pending.len() > DEFERRED_MAX || self.outbox.failure().is_some();
        if much || !self.metadata.keeps(ino) {
            self.outbox.settle(ino, &mut pipeline.pending).await?;
            return Ok(None);
        }
        // They are pending until the commit is done: if it is not, the next one waits for them, too.
        Ok(Some(Arc::new(Named { outbox: self.outbox.clone(), ino, ids: pipeline.pending.clone() })))
    }

    /// Lays what the commit under way covers over the content that replicas hold now; returns the
    /// size of both together.
    async fn merge(self: &Arc<Self>, file: &Arc<OpenFile>, pipeline: &mut Pipeline) -> Result<u64> {
        let writer = {
            let mut state = file.state.lock();
            state.forget_base();
            state.writer.clone()
        };
        self.metadata.forget_content(file.ino);
        // The mode may have changed since the file was opened, or never have allowed it.
        let (attr, content) = self.open_content(&writer, file.ino, meta::WRITE | meta::OPENED).await?;
        let theirs = self.whole_layout(file.ino, attr, &content, pipeline).await?;
        let size = {
            let mut state = file.state.lock();
            let before = state.overlay.charge();
            let size = state.merge(attr, content, theirs);
            self.budget.adjust(before, state.overlay.charge());
            size
        };
        let nothing = Overlay::default();
        let order = Order { dirty: &nothing, seq: 0, runs: Vec::new(), keep_tails: false };
        self.stage(file, pipeline, order).await?;
        Ok(size)
    }

    /// The layout of what replicas hold, with its patches in blocks on their way.
    pub(super) async fn whole_layout(
        self: &Arc<Self>,
        ino: meta::Ino,
        attr: Attr,
        content: &Content,
        pipeline: &mut Pipeline,
    ) -> Result<Layout> {
        if content.patches.is_empty() {
            return Ok(Layout::from_recipe(&self.chunks.recipe(ino, content).await?));
        }
        let theirs = Arc::new(OpenFile::new(attr, content.clone(), self.options.stage_bytes));
        let staged = self.stage_now(&theirs, pipeline).await;
        let layout = theirs.state.lock().layout.take();
        theirs.state.lock().unload(&self.budget);
        staged?;
        let resized = layout.map(|mut layout| {
            layout.resize(content.size);
            layout
        });
        resized.ok_or_else(|| FsError::Unavailable("the content changed meanwhile".into()))
    }

    /// A file's attributes and content, if `caller` may have them.
    pub(super) async fn open_content(&self, caller: &Caller, ino: meta::Ino, mask: u8) -> Result<(Attr, Content)> {
        match self.call(caller, Op::Open { ino, mask }).await? {
            Reply::Opened { attr, content } => Ok((attr, content)),
            other => Err(unexpected(&other)),
        }
    }

    /// Loads the layout of what replicas hold, unless it is there.
    pub(super) async fn ensure_layout(&self, file: &OpenFile) -> Result<()> {
        let _loading = file.loading.lock().await;
        loop {
            let (content, base) = {
                let state = file.state.lock();
                if state.layout.is_some() {
                    return Ok(());
                }
                (state.content.clone(), state.base)
            };
            let layout = Layout::from_recipe(&self.chunks.recipe(file.ino, &content).await?);
            let patches = self.patches(file.ino, &content)?;
            let state = &mut *file.state.lock();
            if state.layout.is_none() && state.base == base {
                let before = state.overlay.charge();
                state.overlay.lay_under(&patches);
                self.budget.adjust(before, state.overlay.charge());
                state.layout = Some(layout);
            }
        }
    }
}
