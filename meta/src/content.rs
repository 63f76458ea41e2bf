//! Content: binding a new recipe to a file, and what that costs of the volume's quota.
//!
//! What is short, and waited for, need not be in blocks at once: it is kept here as *patches* over the recipe,
//! until its writer folds them in. A log that database systems call write-ahead, of a few writes a file.

use base::BlockId;

use crate::access::{Context, WRITE, written_mode};
use crate::inode::{Body, Inode, check_timestamp};
use crate::op::{Commit, Content, Denied, Form, PATCHES_LEN_MAX, PATCHES_MAX, RECIPE_MAX, Reply};
use crate::read::Look as _;
use crate::state::State;

/// The longest file Linux knows (`MAX_LFS_FILESIZE`), bytes.
const SIZE_MAX: u64 = i64::MAX as u64;
/// The most that a file's content may be said to take, bytes: a pebibyte.
const ALLOCATED_MAX: u64 = 1 << 50;

impl State {
    pub(crate) fn commit(&mut self, cx: &Context<'_>, commit: &Commit) -> Result<Reply, Denied> {
        let inode = self.inode(commit.ino)?;
        need_write(cx, inode, commit.opened)?;
        check_content(&commit.content)?;
        for time in [commit.mtime, commit.atime].into_iter().flatten() {
            check_timestamp(time)?;
        }
        if commit.base.is_some_and(|base| base != inode.attr.content_version) {
            return Err(Denied::Stale);
        }
        let content = laid(inode, commit)?;
        let (volume, before, after) = (inode.attr.volume, inode.attr.allocated, commit.content.allocated);
        self.need_bytes(volume, before, after)?;

        self.charge_bytes(volume, before, after);
        let inode = self.change(commit.ino);
        match commit.form {
            Form::Fold => inode.attr.version += 1,
            Form::Whole | Form::Patch { .. } => {
                inode.touch_content(cx.stamp());
                inode.attr.mtime = commit.mtime.unwrap_or(cx.stamp());
                inode.attr.atime = commit.atime.unwrap_or(inode.attr.atime);
                inode.attr.mode = written_mode(cx.caller, &inode.attr);
            }
        }
        (inode.attr.size, inode.attr.allocated) = (content.size, content.allocated);
        if let Body::File { content: before, formers } = &mut inode.body {
            *before = content;
            formers.retain(|former| former.is_remembered(cx.now));
        }
        Ok(Reply::Attr(inode.attr))
    }
}

/// Whether the caller may write to this file. One that says it `opened` the file before may also
/// if it owns the file (it could give itself the right) or if the file's mode or owner, as they
/// were not long ago, allowed it.
pub(crate) fn need_write(cx: &Context<'_>, inode: &Inode, opened: bool) -> Result<(), Denied> {
    let formers = match &inode.body {
        Body::File { formers, .. } => formers,
        Body::Directory { .. } => return Err(Denied::IsDirectory),
        Body::Symlink { .. } | Body::Special => return Err(Denied::Invalid),
    };
    if cx.may(inode, WRITE) {
        return Ok(());
    }
    let before = || cx.owns(&inode.attr) || formers.iter().any(|former| former.let_write(cx));
    if opened && before() { Ok(()) } else { Err(Denied::Access) }
}

/// The content that a file has after a commit.
fn laid(inode: &Inode, commit: &Commit) -> Result<Content, Denied> {
    let (Body::File { content: before, .. }, new) = (&inode.body, &commit.content) else {
        return Err(Denied::Invalid);
    };
    let sound = match commit.form {
        Form::Whole => new.patches.is_empty(),
        // What it is laid over is as its writer knows it.
        Form::Patch { .. } => {
            let alone = new.root.is_none() && new.sealed.is_empty() && !new.patches.is_empty();
            alone && commit.base.is_some() && new.size >= before.size
        }
        // Each follows a patch, by which times changed.
        Form::Fold => {
            let whole = new.patches.is_empty() && new.size == before.size;
            whole && commit.base.is_some() && !before.patches.is_empty()
        }
    };
    match commit.form {
        _ if !sound => Err(Denied::Invalid),
        Form::Patch { over } if over as usize != before.patches.len() => Err(Denied::Stale),
        Form::Patch { .. } if !before.has_room(new.patches.len(), new.patches_len()) => Err(Denied::TooBig),
        Form::Patch { .. } => {
            let patches = before.patches.iter().chain(&new.patches).cloned().collect();
            let (size, allocated) = (new.size, new.allocated);
            Ok(Content { size, allocated, patches, ..before.clone() })
        }
        Form::Whole | Form::Fold => Ok(new.clone()),
    }
}

fn check_content(content: &Content) -> Result<(), Denied> {
    if content.size > SIZE_MAX || content.allocated > ALLOCATED_MAX {
        return Err(Denied::TooBig);
    }
    let root_known = content.root.is_none_or(|root| root.kind == BlockId::BLAKE3);
    if content.sealed.len() > RECIPE_MAX || content.allocated > content.size || !root_known {
        return Err(Denied::Invalid);
    }
    if content.patches.len() > PATCHES_MAX || content.patches_len() > PATCHES_LEN_MAX {
        return Err(Denied::TooBig);
    }
    Ok(())
}
