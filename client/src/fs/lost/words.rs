//! What was done, in words.

use std::path::{Path, PathBuf};

use chunk::name::{open_target, open_xattr_name};
use meta::{AclKind, AttrChange, Kind, NewInode, Op, RenameHow, SetTime};
use serde::Serialize;

use super::places::Places;
use crate::backend::{BlockStore, Loss, LostCall, Metadata};

/// One thing that was done.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    what: &'static str,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    text: String,
}

impl Line {
    fn new(what: &'static str, path: &Path, text: String) -> Line {
        Line { what, path: path.to_string_lossy().into_owned(), to: None, bytes: None, text }
    }

    fn to(what: &'static str, path: &Path, to: &Path, text: String) -> Line {
        Line { to: Some(to.to_string_lossy().into_owned()), ..Line::new(what, path, text) }
    }

    /// For people.
    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

/// A path on one line.
pub(super) fn shown(path: &Path) -> String {
    let path = path.to_string_lossy();
    match path.as_ref() {
        "" => "the root directory".to_owned(),
        path if path.contains(char::is_control) => path.escape_debug().to_string(),
        path => path.to_owned(),
    }
}

/// What was written to a file and not committed.
pub(super) fn dropped(path: &Path, size: u64) -> Line {
    let text = format!("wrote {}, {size} bytes long with it, and could not commit that", shown(path));
    Line { bytes: Some(size), ..Line::new("drop", path, text) }
}

/// What was done.
pub(super) async fn of<M: Metadata, B: BlockStore>(
    lost: &LostCall,
    loss: &Loss,
    places: &mut Places<'_, M, B>,
) -> Line {
    match &lost.call.op {
        Op::Create { parent, name, new, .. } => {
            let path = places.named(*parent, name).await;
            Line::new("create", &path, made(new, &path, places))
        }
        Op::Commit(commit) => {
            let path = places.of(commit.ino).await;
            let size = commit.content.size;
            let gone = if loss.removed.contains(&commit.ino) { " (removed later)" } else { "" };
            let text = format!("wrote {}{gone}, {size} bytes long with it", shown(&path));
            Line { bytes: Some(size), ..Line::new("write", &path, text) }
        }
        Op::Link { ino, parent, name } => {
            let (path, to) = (places.of(*ino).await, places.named(*parent, name).await);
            Line::to("link", &path, &to, format!("gave {} another name, {}", shown(&path), shown(&to)))
        }
        Op::Unlink { parent, name, .. } => {
            let path = places.named(*parent, name).await;
            Line::new("remove", &path, format!("removed {}", shown(&path)))
        }
        Op::Rmdir { parent, name } => {
            let path = places.named(*parent, name).await;
            Line::new("remove", &path, format!("removed the directory {}", shown(&path)))
        }
        Op::Rename { from, from_name, to, to_name, how, .. } => {
            let (path, to) = (places.named(*from, from_name).await, places.named(*to, to_name).await);
            let text = match how {
                RenameHow::Exchange => format!("exchanged {} and {}", shown(&path), shown(&to)),
                _ => format!("renamed {} to {}", shown(&path), shown(&to)),
            };
            Line::to("rename", &path, &to, text)
        }
        Op::SetAttr { ino, change } => {
            let path = places.of(*ino).await;
            Line::new("attributes", &path, format!("{} of {}", changed(change), shown(&path)))
        }
        Op::SetXattr { ino, name, .. } | Op::RemoveXattr { ino, name, .. } => {
            let path = places.of(*ino).await;
            let plain = open_xattr_name(places.keys(), ino.0, name.as_bytes()).unwrap_or_default();
            let how = if matches!(lost.call.op, Op::SetXattr { .. }) { "set" } else { "removed" };
            let plain = String::from_utf8_lossy(&plain).escape_debug().to_string();
            Line::new("xattr", &path, format!("{how} the extended attribute {plain} of {}", shown(&path)))
        }
        Op::CreateUnnamed { parent, .. } => {
            let path = places.of(*parent).await;
            Line::new("create", &path, format!("made a file without a name in {}", shown(&path)))
        }
        Op::SetAcl { ino, kind, acl } => {
            let path = places.of(*ino).await;
            let how = if acl.is_some() { "set" } else { "removed" };
            let which = match kind {
                AclKind::Access => "the access list",
                AclKind::Default => "the access list for what is made in it,",
            };
            Line::new("acl", &path, format!("{how} {which} of {}", shown(&path)))
        }
        other => Line::new("other", &PathBuf::new(), format!("did {other:?}")),
    }
}

/// Something that was made at `path`.
fn made<M: Metadata, B: BlockStore>(new: &NewInode, path: &Path, places: &Places<'_, M, B>) -> String {
    match new.kind {
        Kind::File => format!("made the file {}", shown(path)),
        Kind::Directory => format!("made the directory {}", shown(path)),
        Kind::Symlink => {
            let target = open_target(places.keys(), &new.target).unwrap_or_default();
            let target = String::from_utf8_lossy(&target).into_owned();
            format!("made the symbolic link {} to {}", shown(path), shown(Path::new(&target)))
        }
        kind => format!("made {} ({kind:?})", shown(path)),
    }
}

/// A change of attributes.
fn changed(change: &AttrChange) -> String {
    let AttrChange { mode, uid, gid, atime, mtime } = change;
    let time = |time: &SetTime| match time {
        SetTime::Now => "now".to_owned(),
        SetTime::At(at) => format!("{} s after 1970", at.seconds),
    };
    let all = [
        mode.map(|mode| format!("the mode to {mode:04o}")),
        uid.map(|uid| format!("the owner to {uid}")),
        gid.map(|gid| format!("the group to {gid}")),
        atime.as_ref().map(|at| format!("the time of access to {}", time(at))),
        mtime.as_ref().map(|at| format!("the time of change to {}", time(at))),
    ];
    format!("set {}", all.into_iter().flatten().collect::<Vec<_>>().join(", "))
}
