//! What a holder's copy is filled with: the rows of directories.

use core::ops::Bound;

use crate::access::{Context, EXECUTE, READ};
use crate::inode::Inode;
use crate::lease::HolderId;
use crate::op::{Denied, ENTRIES_MAX, Ino, Kind, Reply, Row, SealedName};
use crate::proven::may_have;
use crate::read::Look as _;
use crate::state::State;
use crate::xattr::{need_xattr_read, xattrs_of};

/// Most directories that are asked for together with the one that is needed.
pub const ALSO_MAX: usize = 64;
/// Once the rows of an answer are this long, bytes, it ends.
const ROWS_LEN_MAX: usize = 96 * 1024;
/// An inode with more bytes of extended attributes than this is left out.
const XATTRS_FETCHED_MAX: u64 = 4096;
/// How many names are looked at for directories that could be asked for, too.
const LOOKS_MAX: usize = 4096;

/// Rows, and how long they are, bytes.
#[derive(Default)]
struct Page {
    rows: Vec<Row>,
    len: usize,
}

impl Page {
    fn add(&mut self, rows: Vec<Row>) {
        self.len += len_of(&rows);
        self.rows.extend(rows);
    }
}

fn len_of(rows: &[Row]) -> usize {
    rows.iter().map(|(name, value)| name.len() + value.len() + 16).sum()
}

impl State {
    /// The rows of a directory's entries, for the copy of whoever has a lease on it: names, what they
    /// lead to, and extended attributes; and where there is room, all those of other directories. Inodes that
    /// the caller may not know all of are left out.
    pub(crate) fn fetch(&self, cx: &Context<'_>, ino: Ino, cookie: u64, also: &[Ino]) -> Result<Reply, Denied> {
        cx.need(self.directory(ino)?, READ | EXECUTE)?;
        let holder = cx.holder()?;
        if !self.is_read_by(ino, &holder) {
            return Err(Denied::Fenced);
        }
        let mut page = Page::default();
        let next = self.list_rows(cx, &holder, (ino, cookie), true, &mut page);
        let mut whole = Vec::new();
        if next.is_none() {
            whole.push(ino);
            let may = |ino: Ino| {
                let allowed = self.directory(ino).is_ok_and(|inode| cx.need(inode, READ | EXECUTE).is_ok());
                allowed && self.is_read_by(ino, &holder)
            };
            for directory in also.iter().take(ALSO_MAX).filter(|directory| may(**directory)) {
                let before = (page.rows.len(), page.len);
                if self.list_rows(cx, &holder, (*directory, 0), false, &mut page).is_some() {
                    page.rows.truncate(before.0);
                    break;
                }
                whole.push(*directory);
            }
        }
        Ok(Reply::Rows { rows: page.rows, whole, next })
    }

    /// Adds a directory's rows from a place on, `some` in any case; returns where there are more, if the page
    /// is full.
    fn list_rows(
        &self,
        cx: &Context<'_>,
        holder: &HolderId,
        (ino, cookie): (Ino, u64),
        some: bool,
        page: &mut Page,
    ) -> Option<u64> {
        page.add(self.rows_named(vec![self.inodes.row_name(&ino)]));
        if self.inodes.get(&ino).is_some_and(|inode| self.may_fetch(cx, inode)) {
            let xattrs = self.xattrs.range(xattrs_of(ino)).map(|(key, _)| self.xattrs.row_name(key));
            page.add(self.rows_named(xattrs.collect()));
        }
        let mut last = None;
        let after = (Bound::Excluded((ino, cookie)), Bound::Included((ino, u64::MAX)));
        for (count, ((_, place), name)) in self.cookies.range(after).enumerate() {
            let rows = self.rows_of_name(cx, holder, ino, name);
            let full = page.len + len_of(&rows) > ROWS_LEN_MAX || count == ENTRIES_MAX as usize;
            if full && (last.is_some() || !some) {
                return last.or(Some(cookie));
            }
            page.add(rows);
            last = Some(*place);
        }
        None
    }

    /// The rows of a name in a directory, and of what it leads to.
    fn rows_of_name(&self, cx: &Context<'_>, holder: &HolderId, directory: Ino, name: &SealedName) -> Vec<Row> {
        let child = self.entry(directory, name).expect("a place has its name").ino;
        let mut names = vec![self.entries.row_name(&(directory, name.clone()))];
        if let Some(inode) = self.inodes.get(&child).filter(|inode| self.may_fetch(cx, inode)) {
            names.push(self.inodes.row_name(&inode.attr.ino));
            names.extend(self.locks.get(&child).map(|_| self.locks.row_name(&child)));
            names.extend(self.xattrs.range(xattrs_of(child)).map(|(key, _)| self.xattrs.row_name(key)));
        }
        let mut rows = self.rows_named(names);
        rows.extend(self.zone_row(child, holder));
        rows
    }

    /// Whether the caller could learn by other calls all that is sent of an inode.
    fn may_fetch(&self, cx: &Context<'_>, inode: &Inode) -> bool {
        let mut classes = self.xattrs.range(xattrs_of(inode.attr.ino)).map(|((_, class, _), _)| *class);
        inode.xattrs_len <= XATTRS_FETCHED_MAX
            && (cx.is_root() || may_have(cx, inode))
            && (inode.xattrs_len == 0 || classes.all(|class| need_xattr_read(cx, inode, class).is_ok()))
    }

    /// Directories in this copy whose names are not, and that the holder may look at: those that a walk through
    /// the tree comes to after `ino`, as far as is known.
    #[must_use]
    pub fn unfetched_after(&self, ino: Ino, count: usize, me: &HolderId) -> Vec<Ino> {
        let (mut found, mut climbed) = (Vec::new(), ino);
        // Where the walk is, in each directory of the path.
        let mut path: Vec<(Ino, u64)> = Vec::new();
        for _ in 0..LOOKS_MAX {
            if found.len() >= count {
                break;
            }
            let Some((directory, cookie)) = path.last_mut() else {
                let home = self.inodes.get(&climbed).map(|inode| inode.home).filter(|home| *home != climbed);
                let Some(home) = home.filter(|home| self.complete.contains(home)) else { break };
                let Some(place) = self.place_of(home, climbed) else { break };
                path.push((home, place));
                climbed = home;
                continue;
            };
            let after = (Bound::Excluded((*directory, *cookie)), Bound::Included((*directory, u64::MAX)));
            let Some(((_, place), name)) = self.cookies.range(after).next() else {
                path.pop();
                continue;
            };
            *cookie = *place;
            let child = self.entry(*directory, name).and_then(|entry| self.inodes.get(&entry.ino));
            match child.filter(|child| child.attr.kind == Kind::Directory).map(|child| child.attr.ino) {
                Some(child) if self.complete.contains(&child) => path.push((child, 0)),
                Some(child) if self.is_read_by(child, me) => found.push(child),
                _ => {}
            }
        }
        found
    }

    /// Where a directory is in the one it is in, if that is soon found.
    fn place_of(&self, home: Ino, ino: Ino) -> Option<u64> {
        let all = (Bound::Included((home, 0)), Bound::Included((home, u64::MAX)));
        let mut places = self.cookies.range(all).take(LOOKS_MAX);
        places.find(|(_, name)| self.entry(home, name).is_some_and(|entry| entry.ino == ino)).map(|((_, at), _)| *at)
    }
}
