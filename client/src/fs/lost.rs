//! Keeping what was lost: a folder of this machine for each loss, with a list of what was done and the content of
//! the files that were written, for a person to look through.
//!
//! The list is written first, so that whatever ends this in the middle leaves something to read. Nothing waits
//! for it but the end of the mount.
//!
//! Where to look: `folder` is what is written, `places` says where things were, `words` what was done.

mod folder;
mod places;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use meta::{Attr, Caller, Content, Form, Ino, Op};
use tokio::sync::mpsc;

use super::error::{FsError, Result};
use super::file::State;
use super::layout::Layout;
use super::losses::concerned;
use super::overlay::Overlay;
use super::{Shared, view};
use crate::backend::{BlockStore, Loss, Metadata};
pub use folder::utc;
use folder::{Draft, Folder};
use places::Places;

/// How much of a file is read at a time, bytes.
const STEP: u64 = 4 << 20;
/// How long content is waited for that can't be had at the moment, for all of one loss.
const PATIENCE: Duration = Duration::from_secs(60);
/// And how long before it is asked for again.
const PAUSE: Duration = Duration::from_secs(1);
/// What is dropped so soon after a loss goes to the same folder.
const SAME: Duration = Duration::from_secs(600);

/// Something to be kept.
pub(super) enum Lot {
    /// What was done under leases that were lost.
    Log(Box<Loss>),
    /// What was written to a file and can't be committed.
    Dropped(Box<Changed>),
}

/// A file with what was written to it.
pub(super) struct Changed {
    ino: Ino,
    program: bool,
    content: Content,
    layout: Option<Layout>,
    overlay: Overlay,
    size: u64,
}

impl Changed {
    pub(super) fn of(ino: Ino, state: &State) -> Changed {
        let (program, content, size) = (is_program(&state.local_attr()), state.content.clone(), state.size);
        Changed { ino, program, content, layout: state.layout.clone(), overlay: state.overlay.clone(), size }
    }

    /// What was committed, and nothing else.
    fn committed(ino: Ino, program: bool, content: &Content) -> Changed {
        let (layout, overlay) = (None, Overlay::default());
        Changed { ino, program, content: content.clone(), layout, overlay, size: content.size }
    }

    /// How many bytes it takes, about.
    fn bytes(&self) -> u64 {
        let sealed = self.layout.as_ref().map_or(self.content.allocated, Layout::allocated);
        (sealed + self.overlay.charge()).min(self.size)
    }
}

/// What is known from one lot to the next.
#[derive(Default)]
struct Before {
    folder: Option<(Folder, Instant)>,
    /// Where files were of which something may have to be kept later.
    places: BTreeMap<Ino, PathBuf>,
}

/// Keeps what is lost, one lot after the other, until the volume is unmounted.
pub(super) async fn keep<M: Metadata, B: BlockStore>(
    shared: Weak<Shared<M, B>>,
    mut lots: mpsc::UnboundedReceiver<Lot>,
) {
    let mut before = Before::default();
    while let Some(lot) = lots.recv().await {
        let Some(shared) = shared.upgrade() else { return };
        match lot {
            Lot::Log(loss) => shared.keep_log(&mut before, *loss).await,
            Lot::Dropped(changed) => shared.keep_dropped(&mut before, *changed).await,
        }
        shared.outbox.end_rescue();
        shared.losses.kept();
    }
}

/// Whether it is of no interest to anybody but replicas.
fn is_internal(op: &Op) -> bool {
    matches!(op, Op::Lock(_) | Op::KeepOrphan { .. } | Op::ReleaseOrphan { .. })
}

impl<M: Metadata, B: BlockStore> Shared<M, B> {
    async fn keep_log(self: &Arc<Self>, before: &mut Before, loss: Loss) {
        self.doubt(&loss);
        let calls: Vec<_> = loss.calls.iter().filter(|lost| !is_internal(&lost.call.op)).collect();
        if self.losses.folder.is_none() {
            if !calls.is_empty() {
                let operations = calls.len();
                tracing::error!(operations, "leases were over before all was sent: changes made here are lost");
            }
            return;
        }
        let caller = calls.first().map_or_else(Caller::default, |lost| lost.call.caller.clone());
        let mut places = Places::new(self, &loss, caller);
        let open = loss.calls.iter().filter_map(|lost| lost.made).chain(loss.locked.iter().copied());
        for ino in open.filter(|ino| self.file(*ino).is_some()).collect::<Vec<_>>() {
            before.places.insert(ino, places.of(ino).await);
        }
        if calls.is_empty() {
            return;
        }
        let mut lines = Vec::with_capacity(calls.len());
        for lost in &calls {
            lines.push(words::of(lost, &loss, &mut places).await);
        }
        let Some(mut folder) = self.new_folder(lines).await else { return };
        let mut last = BTreeMap::new();
        for lost in calls {
            if let Op::Commit(commit) = &lost.call.op {
                let new = &commit.content;
                match (commit.form, loss.seen.content(commit.ino)) {
                    // What is only a part is whole where it was done.
                    (Form::Patch { .. }, Some(seen)) => drop(last.insert(commit.ino, seen.clone())),
                    (Form::Patch { .. }, None) => {
                        let whole = last.entry(commit.ino).or_insert_with(Content::default);
                        whole.patches.extend(new.patches.iter().cloned());
                        (whole.size, whole.allocated) = (new.size, new.allocated);
                    }
                    _ => drop(last.insert(commit.ino, new.clone())),
                }
            }
        }
        let until = Instant::now() + PATIENCE;
        for (ino, content) in last {
            let attr = loss.seen.known(ino);
            let nameless = attr.is_some_and(|attr| attr.nlink == 0) && self.file(ino).is_none();
            if !loss.removed.contains(&ino) && !nameless {
                let place = places.of(ino).await;
                let changed = Changed::committed(ino, attr.is_some_and(is_program), &content);
                self.keep_file(&mut folder, &changed, place, until).await;
            }
        }
        folder.end().await;
        before.folder = Some((folder, Instant::now()));
    }

    async fn keep_dropped(self: &Arc<Self>, before: &mut Before, changed: Changed) {
        let ino = changed.ino;
        tracing::error!(ino = ino.0, bytes = changed.size, "what was written here and not committed is dropped");
        if self.losses.folder.is_none() {
            return;
        }
        let place = match before.places.get(&ino) {
            Some(place) => place.clone(),
            None => places::by_number(ino),
        };
        let line = words::dropped(&place, changed.size);
        let recent = before.folder.take().filter(|(_, ended)| ended.elapsed() < SAME);
        let folder = match recent {
            Some((mut folder, _)) if folder.is_there().await => {
                folder.add(vec![line]).await;
                Some(folder)
            }
            _ => self.new_folder(vec![line]).await,
        };
        let Some(mut folder) = folder else { return };
        self.keep_file(&mut folder, &changed, place, Instant::now() + PATIENCE).await;
        folder.end().await;
        before.folder = Some((folder, Instant::now()));
    }

    /// A folder that says what was lost.
    async fn new_folder(&self, lines: Vec<words::Line>) -> Option<Folder> {
        let (within, operations) = (self.losses.folder.clone()?, lines.len());
        match Folder::make(within.clone(), &self.volume.spec.name, self.options.lost_bytes_max, lines).await {
            Ok(folder) => {
                let place = folder.path().display();
                tracing::error!(operations, folder = %place, "leases were over before all was sent: changes are lost");
                Some(folder)
            }
            Err(error) => {
                let within = within.display();
                tracing::error!(operations, %error, folder = %within, "changes are lost, and can't be kept there");
                None
            }
        }
    }

    /// Has everybody know that what was lost is not so: readers, who had locks, and who told the kernel.
    fn doubt(self: &Arc<Self>, loss: &Loss) {
        let inos: BTreeSet<Ino> = loss.calls.iter().flat_map(concerned).collect();
        let locked = BTreeSet::from_iter(loss.locked.iter().copied());
        let nameless = |ino: Ino| loss.seen.known(ino).is_some_and(|attr| attr.nlink == 0);
        self.opening.lock().find(|ino| loss.removed.contains(&ino) || nameless(ino));
        let shared = self.clone();
        self.losses.begin();
        tokio::spawn(async move {
            let doubts = shared.open_files().into_iter().map(|file| async {
                let file = file;
                let orphan = file.state.lock().orphan;
                if !orphan && !inos.contains(&file.ino) && !locked.contains(&file.ino) {
                    return;
                }
                // A commit that was done under the lease must not end after this.
                let mut pipeline = file.pipeline.lock().await;
                if shared.metadata.has_lost_locks(file.ino) {
                    shared.lose_locks(&file, &mut pipeline);
                }
                // One without a name may have it still.
                file.state.lock().doubt();
            });
            futures::future::join_all(doubts).await;
            let doubt = shared.losses.doubt.lock().clone();
            if let Some(doubt) = doubt {
                doubt(&Vec::from_iter(inos));
            }
            shared.losses.kept();
        });
    }

    async fn keep_file(self: &Arc<Self>, folder: &mut Folder, changed: &Changed, place: PathBuf, until: Instant) {
        let begun = folder.begin(place, changed.ino, changed.bytes(), changed.program);
        let Some(draft) = begun.await else { return };
        match self.keep_content(&draft, changed, until).await {
            Ok(bytes) => folder.kept(draft, bytes).await,
            Err(error) => folder.incomplete(draft, &error).await,
        }
    }

    /// Writes a file's content down; returns how many bytes that are not holes.
    async fn keep_content(self: &Arc<Self>, draft: &Draft, changed: &Changed, until: Instant) -> Result<u64> {
        let layout = match &changed.layout {
            Some(layout) => layout.clone(),
            None => loop {
                match self.chunks.recipe(changed.ino, &changed.content).await {
                    Ok(recipe) => break Layout::from_recipe(&recipe),
                    Err(error) => again(error, until).await?,
                }
            },
        };
        let mut overlay = changed.overlay.clone();
        if changed.layout.is_none() {
            overlay.lay_under(&self.patches(changed.ino, &changed.content)?);
        }
        let (mut at, mut written) = (0, 0);
        while at < changed.size {
            let parts = view::parts(&overlay, &layout, at..changed.size, STEP);
            let filled = loop {
                match self.chunks.fill(parts.clone()).await {
                    Ok(filled) => break filled,
                    Err(error) => again(error, until).await?,
                }
            };
            at = filled.last().map_or(changed.size, |part| part.end);
            written += draft.write(filled).await?;
        }
        draft.finish(changed.size).await?;
        Ok(written)
    }
}

/// Whether its owner may run it.
fn is_program(attr: &Attr) -> bool {
    attr.mode & 0o100 != 0
}

/// Waits before something is asked for again, if it may be had later.
///
/// # Errors
/// The error, if not.
async fn again(error: FsError, until: Instant) -> Result<()> {
    if !error.may_pass() || Instant::now() >= until {
        return Err(error);
    }
    tokio::time::sleep(PAUSE).await;
    Ok(())
}
