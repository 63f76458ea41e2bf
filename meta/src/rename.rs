//! Renaming, with the flags of `renameat2(2)`.

use crate::access::{Context, WRITE};
use crate::directory::{Entry, need_subdirectory};
use crate::inode::{Inode, NO_HOME};
use crate::op::{Attr, Denied, Ino, Kind, RenameHow, Reply, SealedName};
use crate::read::Look as _;
use crate::state::State;

/// How deep below its volume's root a directory may be for another directory to be moved into it:
/// the deepest that one path of `PATH_MAX` bytes can name. It bounds the walk that looks for loops.
pub const DEPTH_MAX: usize = 2048;

/// A request to rename.
#[derive(Clone, Copy)]
pub(crate) struct Rename<'a> {
    pub(crate) from: Ino,
    pub(crate) from_name: &'a SealedName,
    pub(crate) to: Ino,
    pub(crate) to_name: &'a SealedName,
    pub(crate) how: RenameHow,
    pub(crate) keep: bool,
}

/// An entry and the attributes of what it names.
type Named = (Entry, Attr);

impl State {
    pub(crate) fn rename(&mut self, cx: &Context<'_>, op: Rename<'_>) -> Result<Reply, Denied> {
        let (from, to) = (self.searchable(cx, op.from)?, self.searchable(cx, op.to)?);
        if from.attr.volume != to.attr.volume {
            return Err(Denied::CrossVolume);
        }
        let source = self.named(op.from, op.from_name)?.ok_or(Denied::NotFound)?;
        let target = self.named(op.to, op.to_name)?;
        match (op.how, target) {
            (RenameHow::NoReplace, Some(_)) => return Err(Denied::Exists),
            (RenameHow::Exchange, None) => return Err(Denied::NotFound),
            (_, Some((entry, _))) if entry.ino == source.0.ino => {
                return Ok(Reply::Renamed { moved: source.1, replaced: None });
            }
            _ => {}
        }
        self.need_no_loop(&op, &source.1, target.as_ref().map(|(_, attr)| attr))?;
        let replaced = target.map(|(entry, _)| self.inode(entry.ino)).transpose()?;
        need_rename(cx, &op, (from, to), self.inode(source.0.ino)?, replaced)?;
        match (op.how, target) {
            (RenameHow::Exchange, Some(target)) => self.exchange(cx, &op, source, target),
            _ => self.move_entry(cx, &op, source, target),
        }
    }

    fn named(&self, parent: Ino, name: &SealedName) -> Result<Option<Named>, Denied> {
        self.entry(parent, name).map(|entry| Ok((entry, *self.attr(entry.ino)?))).transpose()
    }

    /// Refuses to put a directory below itself.
    fn need_no_loop(&self, op: &Rename<'_>, source: &Attr, target: Option<&Attr>) -> Result<(), Denied> {
        if op.from == op.to {
            return Ok(());
        }
        if source.kind == Kind::Directory {
            self.need_outside(op.to, source.ino)?;
        }
        match (op.how, target) {
            (RenameHow::Exchange, Some(target)) if target.kind == Kind::Directory => {
                self.need_outside(op.from, target.ino)
            }
            _ => Ok(()),
        }
    }

    /// Refuses with [`Denied::Invalid`] if `directory` is `top` or below it, or too deep to say.
    fn need_outside(&self, mut directory: Ino, top: Ino) -> Result<(), Denied> {
        for _ in 0..DEPTH_MAX {
            if directory == top {
                return Err(Denied::Invalid);
            }
            let parent = self.parent_of(directory);
            if parent == directory {
                return Ok(());
            }
            directory = parent;
        }
        Err(Denied::Invalid)
    }

    fn move_entry(
        &mut self,
        cx: &Context<'_>,
        op: &Rename<'_>,
        (source, attr): Named,
        target: Option<Named>,
    ) -> Result<Reply, Denied> {
        // What replaces an entry takes its place, and what is renamed within a directory keeps its
        // own: a loop that lists a directory and renames what it finds comes to an end.
        let within = (op.from == op.to).then_some(source.cookie);
        let cookie = target.map(|(entry, _)| entry.cookie).or(within);
        self.unbind(op.from, op.from_name, source);
        if let Some((entry, _)) = target {
            self.unbind(op.to, op.to_name, entry);
        }
        self.bind(op.to, op.to_name, source.ino, cookie);

        let moved = i32::from(attr.kind == Kind::Directory);
        let replaced = i32::from(target.is_some_and(|(_, attr)| attr.kind == Kind::Directory));
        let arrived = i64::from(target.is_none());
        self.touch_both(cx, op, (-1, -moved), (arrived, moved - replaced));
        let replaced = target.map(|(entry, attr)| match attr.kind {
            Kind::Directory => {
                self.end_directory(cx, entry.ino, (op.to, op.to_name));
                (entry.ino, 0)
            }
            _ => (entry.ino, self.drop_link(cx, entry.ino, (op.to, op.to_name), op.keep)),
        });
        Ok(Reply::Renamed { moved: self.arrive(cx, source.ino, op.to), replaced })
    }

    fn exchange(
        &mut self,
        cx: &Context<'_>,
        op: &Rename<'_>,
        (source, source_attr): Named,
        (target, target_attr): Named,
    ) -> Result<Reply, Denied> {
        self.unbind(op.from, op.from_name, source);
        self.unbind(op.to, op.to_name, target);
        self.bind(op.from, op.from_name, target.ino, Some(source.cookie));
        self.bind(op.to, op.to_name, source.ino, Some(target.cookie));

        let directory = |attr: Attr| i32::from(attr.kind == Kind::Directory);
        let gained = directory(source_attr) - directory(target_attr);
        self.touch_both(cx, op, (0, -gained), (0, gained));
        self.arrive(cx, target.ino, op.from);
        Ok(Reply::Renamed { moved: self.arrive(cx, source.ino, op.to), replaced: None })
    }

    /// Counts entries and subdirectories that left and arrived: once, if both were in one directory.
    fn touch_both(&mut self, cx: &Context<'_>, op: &Rename<'_>, from: (i64, i32), to: (i64, i32)) {
        if op.from == op.to {
            self.touch_directory(cx.stamp(), op.to, from.0 + to.0, from.1 + to.1);
        } else {
            self.touch_directory(cx.stamp(), op.from, from.0, from.1);
            self.touch_directory(cx.stamp(), op.to, to.0, to.1);
        }
    }

    /// Notes on an inode that it was renamed, and where it is now.
    fn arrive(&mut self, cx: &Context<'_>, ino: Ino, to: Ino) -> Attr {
        let inode = self.change(ino);
        inode.touch(cx.stamp());
        let alone = inode.attr.kind == Kind::Directory || inode.attr.nlink == 1;
        if alone || inode.home != to {
            inode.home = if alone { to } else { NO_HOME };
        }
        inode.attr
    }
}

/// The permissions and kinds that `rename(2)` asks for.
fn need_rename(
    cx: &Context<'_>,
    op: &Rename<'_>,
    (from, to): (&Inode, &Inode),
    source: &Inode,
    target: Option<&Inode>,
) -> Result<(), Denied> {
    let is_directory = |inode: &Inode| inode.attr.kind == Kind::Directory;
    cx.need_removal(from, &source.attr)?;
    match target {
        None => cx.need(to, WRITE)?,
        Some(target) => cx.need_removal(to, &target.attr)?,
    }
    let exchange = op.how == RenameHow::Exchange;
    if op.from != op.to {
        // A directory that changes its parent is changed itself: in its `..`.
        let moving = [Some(source), target.filter(|_| exchange)];
        for inode in moving.into_iter().flatten().filter(|inode| is_directory(inode)) {
            cx.need(inode, WRITE)?;
        }
        if is_directory(source) && !target.is_some_and(is_directory) {
            need_subdirectory(&to.attr)?;
        }
        if exchange && target.is_some_and(is_directory) && !is_directory(source) {
            need_subdirectory(&from.attr)?;
        }
    }
    match target.filter(|_| !exchange) {
        Some(target) if is_directory(source) && !is_directory(target) => Err(Denied::NotDirectory),
        Some(target) if !is_directory(source) && is_directory(target) => Err(Denied::IsDirectory),
        Some(target) if is_directory(target) && target.attr.size != 0 => Err(Denied::NotEmpty),
        _ => Ok(()),
    }
}
