//! Patches: what is short and waited for goes to replicas itself, and into blocks later.
//!
//! A put to the storage nodes takes as long as an agreement. Whoever syncs a few bytes waits for one of the two:
//! the bytes are committed as patches over what the recipe says, stay in the overlay here, and are *folded* into
//! blocks with all that was written meanwhile, by the next commit of the whole or by one of their own in the
//! background. Only where this mount has a lease, so that there is one who folds them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chunk::{PATCH_OVERHEAD, Patch};
use meta::{Answer, Attr, Caller, Commit, Content, Denied, Form, Ino, Op};

use super::Shared;
use super::error::{FsError, Result};
use super::file::{OpenFile, Pipeline, State};
use super::outbox::Budget;
use super::overlay::{Body, Overlay};
use crate::backend::{BlockStore, Metadata};

/// What is longer than this goes into blocks at once: each replica would have to take it over, bytes.
const SHORT: usize = 16 << 10;
/// How many files are folded together.
const TOGETHER: usize = 64;

impl Overlay {
    /// Lays patches under everything that is there; of themselves, the later over the earlier.
    pub(super) fn lay_under(&mut self, patches: &[Patch]) {
        for patch in patches.iter().rev() {
            let end = patch.offset + patch.bytes.len() as u64;
            let mut at = patch.offset;
            while at < end {
                if let Some(over) = self.at(at) {
                    at = over.end;
                    continue;
                }
                let gap = self.next_start(at).map_or(end, |next| next.min(end));
                let bytes = patch.bytes.slice((at - patch.offset) as usize..(gap - patch.offset) as usize);
                self.write(at, bytes, 0);
                at = gap;
            }
        }
    }
}

/// Ends what [`Shared::begin_staging`] begins.
pub(super) struct Sealing<'a>(&'a OpenFile);

impl Drop for Sealing<'_> {
    fn drop(&mut self) {
        self.0.state.lock().sealing = false;
    }
}

impl State {
    /// Whether replicas have patches that are not in the overlay.
    pub(super) fn lacks_patches(&self) -> bool {
        self.layout.is_none() && !self.content.patches.is_empty()
    }

    /// Whether replicas have patches of this file that are to be folded by us.
    pub(super) fn is_patched(&self) -> bool {
        self.patched_since.is_some()
    }

    fn is_patched_for(&self, age: Duration) -> bool {
        self.patched_since.is_some_and(|since| since.elapsed() >= age)
    }

    /// What the commit under way covers, if that is short, and all of it in memory.
    fn short_changes(&self) -> Option<Vec<(u64, Bytes)>> {
        let changes = self.committing.as_ref()?;
        if changes.exact || self.stale || self.is_doubted() || self.base == u64::MAX {
            return None;
        }
        let (mut writes, mut len) = (Vec::new(), 0);
        for range in changes.written.iter() {
            let mut at = range.start;
            while at < range.end {
                let Body::Data(bytes) = self.overlay.at(at)?.body else { return None };
                let bytes = bytes.slice(..bytes.len().min((range.end - at) as usize));
                len += bytes.len() + PATCH_OVERHEAD;
                let next = at + bytes.len() as u64;
                writes.push((at, bytes));
                at = next;
                if len > SHORT || !self.content.has_room(writes.len(), len) {
                    return None;
                }
            }
        }
        (!writes.is_empty()).then_some(writes)
    }

    /// Forgets what replicas have, too, so that it is loaded when it is needed.
    pub(super) fn unload(&mut self, budget: &Budget) {
        budget.adjust(self.overlay.charge(), 0);
        self.overlay.clear();
        self.layout = None;
    }
}

impl<M: Metadata, B: BlockStore> Shared<M, B> {
    pub(super) fn patches(&self, ino: Ino, content: &Content) -> Result<Vec<Patch>> {
        let opened = content.patches.iter().map(|sealed| Patch::open(&self.chunks.keys, ino.now().0, sealed));
        let patches: Vec<Patch> = opened.collect::<std::result::Result<_, _>>()?;
        let under = patches.first().map_or(0, |first| first.under);
        let within = |patch: &Patch| patch.under == under && patch.offset + patch.bytes.len() as u64 <= content.size;
        match under <= content.size && patches.iter().all(within) {
            true => Ok(patches),
            false => Err(FsError::Corrupt("a patch goes where the file is not".into())),
        }
    }

    /// What lies over the layout of a file and is to be staged, with patches that replicas have: what is staged
    /// takes the whole chunks' place. The caller has the pipeline's lock; the layout stays until the guard goes.
    pub(super) async fn begin_staging<'a>(&self, file: &'a OpenFile) -> Result<(Sealing<'a>, Overlay, u64)> {
        loop {
            {
                let mut state = file.state.lock();
                if !state.lacks_patches() {
                    state.sealing = true;
                    return Ok((Sealing(file), state.overlay.clone(), state.seq));
                }
            }
            self.ensure_layout(file).await?;
        }
    }

    /// Commits what was written as patches, if that will do; the changes are committing. `None` if it will not.
    pub(super) async fn commit_patch(&self, file: &Arc<OpenFile>, size: u64) -> Result<Option<Vec<Answer>>> {
        let (writes, before, base, writer, mtime) = {
            let state = file.state.lock();
            let Some(writes) = state.short_changes().filter(|_| self.metadata.keeps(file.ino)) else {
                return Ok(None);
            };
            (writes, state.content.clone(), state.base, state.writer.clone(), state.written_at())
        };
        let under = match self.patches(file.ino, &before)?.first() {
            Some(first) => first.under,
            None => before.size,
        };
        // What lies within the file takes nothing more, as far as anybody knows before it is folded.
        let beyond = |(at, bytes): &(u64, Bytes)| (at + bytes.len() as u64).saturating_sub((*at).max(before.size));
        let allocated = (before.allocated + writes.iter().map(beyond).sum::<u64>()).min(size);
        let seal = |(offset, bytes)| Patch { offset, under, bytes }.seal(&self.chunks.keys, file.ino.0);
        let patches: Vec<Bytes> = writes.into_iter().map(seal).collect();
        let new = Content { size, allocated, patches: patches.clone(), ..Content::default() };
        let form = Form::Patch { over: before.patches.len() as u32 };
        let commit = Commit { form, mtime, opened: true, ..Commit::whole(file.ino, Some(base), new) };
        match self.call_attr(&writer, Op::Commit(commit)).await {
            Ok(attr) => {
                let patches = before.patches.iter().cloned().chain(patches).collect();
                let mut state = file.state.lock();
                state.end_commit(attr, Content { size, allocated, patches, ..before });
                state.patched_since.get_or_insert_with(Instant::now);
                Ok(Some(Vec::new()))
            }
            // Somebody else committed first: with that the whole is merged.
            Err(FsError::Denied(Denied::Stale)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Folds all patches into blocks.
    pub(super) async fn fold_all(self: &Arc<Self>) {
        let _one = self.folding.lock().await;
        self.fold_older(Duration::ZERO).await;
    }

    /// Folds those that files have had for so long, unless somebody is at it: that may take a while.
    pub(super) async fn fold_old(self: &Arc<Self>) {
        if let Ok(_one) = self.folding.try_lock() {
            self.fold_older(self.options.write_back).await;
        }
    }

    async fn fold_older(self: &Arc<Self>, age: Duration) {
        let files: Vec<_> = self.files.lock().values().map(|(file, _)| file.clone()).collect();
        let due = |file: &Arc<OpenFile>| file.state.lock().is_patched_for(age);
        let due: Vec<_> = files.into_iter().filter(due).collect();
        for some in due.chunks(TOGETHER) {
            let folds = some.iter().map(|file| async move {
                if let Err(error) = self.fold(file, age).await {
                    tracing::debug!(ino = file.ino.0, %error, "what was written last stays with the replicas");
                }
                self.forget_settled(file);
            });
            futures::future::join_all(folds).await;
        }
    }

    /// Puts what replicas have of a file as patches into blocks, and lets them forget it: as if it was another's
    /// file, so that nobody here waits for that. Leaves alone what was written here since.
    ///
    /// # Errors
    /// If it could not be stored, or replicas have something else by now.
    async fn fold(self: &Arc<Self>, file: &Arc<OpenFile>, age: Duration) -> Result<()> {
        let (attr, content, base, writer) = {
            let mut state = file.state.lock();
            if !self.metadata.keeps(file.ino) {
                // Others write to it by now, and whoever does next commits the whole.
                state.patched_since = None;
            }
            // So do we, if we wrote to it since.
            if state.is_dirty() || state.stale || !state.is_patched_for(age) {
                return Ok(());
            }
            (state.attr, state.content.clone(), state.base, state.writer.clone())
        };
        let patches = content.patches.len();
        let folded = self.fold_content(file.ino, attr, &content, base, &writer).await;
        let mut state = file.state.lock();
        if state.base != base || state.content.patches.len() != patches {
            return folded.map(drop);
        }
        match folded {
            Ok((attr, content)) => {
                state.patched_since = None;
                state.content = content;
                state.note(attr);
                if !state.is_dirty() && !state.sealing {
                    state.unload(&self.budget);
                }
                Ok(())
            }
            Err(error) => {
                // What is refused is folded when it is written to, the rest tried again.
                let again = !matches!(error, FsError::Denied(_));
                state.patched_since = again.then(Instant::now);
                Err(error)
            }
        }
    }

    async fn fold_content(
        self: &Arc<Self>,
        ino: Ino,
        attr: Attr,
        content: &Content,
        base: u64,
        writer: &Caller,
    ) -> Result<(Attr, Content)> {
        let mut pipeline = Pipeline::default();
        let recipe = self.whole_layout(ino, attr, content, &mut pipeline).await?.to_recipe();
        let sealed = chunk::seal_recipe(&self.chunks.keys, ino.0, &recipe);
        pipeline.pending.extend(sealed.blocks.iter().map(|(id, _)| *id));
        self.outbox.push(ino, sealed.blocks);
        // Not in the log before they are stored: who syncs something else does not wait for that. What can't be
        // stored stays: a commit that is not sent yet may name the same blocks.
        self.outbox.settle(ino, &mut pipeline.pending).await?;
        let (size, allocated, patches) = (content.size, recipe.allocated(), Vec::new());
        let folded = Content { size, allocated, root: sealed.root, sealed: sealed.sealed, patches };
        let commit = Commit { form: Form::Fold, opened: true, ..Commit::whole(ino, Some(base), folded.clone()) };
        let attr = self.call_attr(writer, Op::Commit(commit)).await?;
        Ok((attr, folded))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_lie_under_what_was_written_since_and_the_later_over_the_earlier() {
        let patch = |offset, byte: u8, len| Patch { offset, under: 0, bytes: vec![byte; len].into() };
        let mut overlay = Overlay::default();
        overlay.write(10, vec![9; 5].into(), 3);
        overlay.punch(30..32, 4);
        overlay.lay_under(&[patch(0, 1, 20), patch(5, 2, 10), patch(28, 3, 10)]);
        let byte = |at| match overlay.at(at).map(|dirty| dirty.body) {
            Some(Body::Data(bytes)) => Some(bytes[0]),
            Some(Body::Hole) => Some(0),
            None => None,
        };
        let expected = [(0, Some(1)), (5, Some(2)), (10, Some(9)), (14, Some(9)), (15, Some(1)), (19, Some(1))];
        let more = [(20, None), (28, Some(3)), (30, Some(0)), (31, Some(0)), (32, Some(3)), (37, Some(3)), (38, None)];
        for (at, expected) in expected.into_iter().chain(more) {
            assert_eq!(byte(at), expected, "at {at}");
        }
        let before = overlay.clone();
        overlay.lay_under(&[patch(0, 7, 20)]);
        assert_eq!(before.charge(), overlay.charge(), "nothing was free");
    }
}
