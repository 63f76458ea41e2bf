//! What a holder's copy is filled with: the rows of directories.

use core::ops::Bound;

use base::Encode;

use crate::access::{Context, EXECUTE, READ};
use crate::inode::{Inode, NO_HOME};
use crate::lease::HolderId;
use crate::op::{Content, Denied, ENTRIES_MAX, Ino, Kind, Reply, Row, SealedName, XattrClass};
use crate::past::Past;
use crate::proven::may_have;
use crate::read::Look;
use crate::state::State;
use crate::table::{Key, Table, Value};
use crate::thrown::Bin;
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
        let asking = Asking { cx, names: self, holder: Some(cx.holder()?) };
        asking.fetch(self, ino, cookie, also)
    }
}

impl Past<'_, State> {
    /// The same of a snapshot; `also` are of it, too. With it comes what the caller's key was granted.
    pub(crate) fn fetch(&self, cx: &Context<'_>, ino: Ino, cookie: u64, also: &[Ino]) -> Result<Reply, Denied> {
        let asking = Asking { cx, names: self.state(), holder: None };
        asking.fetch_with_grant(self, ino, cookie, also)
    }
}

impl Bin<'_> {
    /// The same of what is in the trash.
    pub(crate) fn fetch(&self, ino: Ino, cookie: u64) -> Result<Reply, Denied> {
        let asking = Asking { cx: self.cx, names: self.state, holder: None };
        asking.fetch_with_grant(self, ino, cookie, &[])
    }
}

/// A tree whose rows can be fetched.
trait Tree: Look {
    /// The next name in a directory.
    fn name_after(&self, directory: Ino, cookie: u64) -> Option<(u64, SealedName)>;
    fn xattr_names(&self, ino: Ino) -> Vec<(XattrClass, SealedName)>;
}

impl Tree for State {
    fn name_after(&self, directory: Ino, cookie: u64) -> Option<(u64, SealedName)> {
        let after = (Bound::Excluded((directory, cookie)), Bound::Included((directory, u64::MAX)));
        self.cookies.range(after).next().map(|((_, place), name)| (*place, name.clone()))
    }

    fn xattr_names(&self, ino: Ino) -> Vec<(XattrClass, SealedName)> {
        self.xattrs.range(xattrs_of(ino)).map(|((_, class, name), _)| (*class, name.clone())).collect()
    }
}

impl Tree for Past<'_, State> {
    fn name_after(&self, directory: Ino, mut cookie: u64) -> Option<(u64, SealedName)> {
        loop {
            let (place, name) = self.place_after(directory, cookie)?;
            match name {
                Some(name) => return Some((place, name)),
                None => cookie = place,
            }
        }
    }

    fn xattr_names(&self, ino: Ino) -> Vec<(XattrClass, SealedName)> {
        self.xattrs(ino)
    }
}

impl Tree for Bin<'_> {
    fn name_after(&self, directory: Ino, cookie: u64) -> Option<(u64, SealedName)> {
        Bin::name_after(self, directory, cookie)
    }

    fn xattr_names(&self, ino: Ino) -> Vec<(XattrClass, SealedName)> {
        self.state.xattr_names(ino)
    }
}

/// Whoever fetches.
struct Asking<'a> {
    cx: &'a Context<'a>,
    /// What names rows, and knows of locks and leases.
    names: &'a State,
    /// Whose copy it is for; of what is past nobody has leases.
    holder: Option<HolderId>,
}

impl Asking<'_> {
    fn fetch_with_grant(&self, tree: &impl Tree, ino: Ino, cookie: u64, also: &[Ino]) -> Result<Reply, Denied> {
        let mut reply = self.fetch(tree, ino, cookie, also)?;
        if let Reply::Rows { rows, .. } = &mut reply {
            rows.push(row(&self.names.principals, self.cx.key, &self.cx.grant));
        }
        Ok(reply)
    }

    fn fetch(&self, tree: &impl Tree, ino: Ino, cookie: u64, also: &[Ino]) -> Result<Reply, Denied> {
        self.cx.need(tree.directory(ino)?, READ | EXECUTE)?;
        if !self.may_have_names(ino) {
            return Err(Denied::Fenced);
        }
        let mut page = Page::default();
        let next = self.list_rows(tree, (ino, cookie), true, &mut page);
        let mut whole = Vec::new();
        if next.is_none() {
            whole.push(ino);
            let may = |ino: Ino| {
                let allowed = tree.directory(ino).is_ok_and(|inode| self.cx.need(inode, READ | EXECUTE).is_ok());
                allowed && self.may_have_names(ino)
            };
            for directory in also.iter().take(ALSO_MAX).filter(|directory| may(**directory)) {
                let before = (page.rows.len(), page.len);
                if self.list_rows(tree, (*directory, 0), false, &mut page).is_some() {
                    page.rows.truncate(before.0);
                    break;
                }
                whole.push(*directory);
            }
        }
        Ok(Reply::Rows { rows: page.rows, whole, next })
    }

    fn may_have_names(&self, directory: Ino) -> bool {
        self.holder.as_ref().is_none_or(|holder| self.names.is_read_by(directory, holder))
    }

    /// Adds a directory's rows from a place on, `some` in any case; returns where there are more, if the page
    /// is full.
    fn list_rows(&self, tree: &impl Tree, from: (Ino, u64), some: bool, page: &mut Page) -> Option<u64> {
        let (ino, cookie) = from;
        let inode = tree.inode_row(ino)?;
        let mut own = vec![row(&self.names.inodes, &ino, inode)];
        if self.may_fetch(tree, inode) {
            own.extend(self.xattr_rows(tree, ino));
        }
        page.add(own);
        let (mut last, mut count) = (None, 0);
        while let Some((place, name)) = tree.name_after(ino, last.unwrap_or(cookie)) {
            let rows = self.rows_of_name(tree, ino, name);
            let full = page.len + len_of(&rows) > ROWS_LEN_MAX || count == ENTRIES_MAX;
            if full && (last.is_some() || !some) {
                return last.or(Some(cookie));
            }
            page.add(rows);
            (last, count) = (Some(place), count + 1);
        }
        None
    }

    /// The rows of a name in a directory, and of what it leads to.
    fn rows_of_name(&self, tree: &impl Tree, directory: Ino, name: SealedName) -> Vec<Row> {
        let Some(entry) = tree.entry(directory, &name) else { return Vec::new() };
        let (child, state) = (entry.ino, self.names);
        let mut rows = vec![row(&state.entries, &(directory, name), &entry)];
        if let Some(inode) = tree.inode_row(child).filter(|inode| self.may_fetch(tree, inode)) {
            rows.push(row(&state.inodes, &child, inode));
            if self.holder.is_some() {
                rows.extend(state.locks.get(&child).map(|locks| row(&state.locks, &child, locks)));
            }
            rows.extend(self.xattr_rows(tree, child));
        }
        rows.extend(self.holder.as_ref().and_then(|holder| state.zone_row(child, holder)));
        rows
    }

    fn xattr_rows(&self, tree: &impl Tree, ino: Ino) -> Vec<Row> {
        let keys = tree.xattr_names(ino).into_iter().map(|(class, name)| (ino, class, name));
        keys.filter_map(|key| tree.xattr_row(&key).map(|value| row(&self.names.xattrs, &key, value))).collect()
    }

    /// Whether the caller could learn by other calls all that is sent of an inode.
    fn may_fetch(&self, tree: &impl Tree, inode: &Inode) -> bool {
        let readable = |(class, _): (XattrClass, _)| need_xattr_read(self.cx, inode, class).is_ok();
        inode.xattrs_len <= XATTRS_FETCHED_MAX
            && (self.cx.is_root() || may_have(self.cx, inode))
            && (inode.xattrs_len == 0 || tree.xattr_names(inode.attr.ino).into_iter().all(readable))
    }
}

/// A row with its name, as it is digested: of inodes, what a shared one holds.
fn row<K: Key, V: Value>(table: &Table<K, V>, key: &K, value: &impl Encode) -> Row {
    (table.row_name(key).into(), value.to_bytes().into())
}

impl State {
    /// Directories in this copy whose names are not, and that the holder may look at: those that a walk through
    /// the tree comes to after `ino`, as far as is known.
    #[must_use]
    pub fn unfetched_after(&self, ino: Ino, count: usize, me: &HolderId) -> Vec<Ino> {
        self.walk_after(ino, count, |child| self.is_read_by(child, me))
    }

    /// The same in a copy of a snapshot.
    #[must_use]
    pub fn unfetched_in_past(&self, ino: Ino, count: usize) -> Vec<Ino> {
        self.walk_after(ino, count, |_| true)
    }

    /// The names in a directory of this copy after a place: where each is, what it leads to, and what that holds if
    /// it is a file.
    pub fn names_after(&self, directory: Ino, cookie: u64) -> impl Iterator<Item = (u64, Ino, Option<&Content>)> {
        let after = (Bound::Excluded((directory, cookie)), Bound::Included((directory, u64::MAX)));
        self.cookies.range(after).filter_map(move |((_, place), name)| {
            let ino = self.entry(directory, name)?.ino;
            Some((*place, ino, self.content(ino)))
        })
    }

    /// The directory that an inode in this copy is in, if it is in one.
    #[must_use]
    pub fn home_of(&self, ino: Ino) -> Option<Ino> {
        self.inodes.get(&ino).map(|inode| inode.home).filter(|home| *home != NO_HOME)
    }

    fn walk_after(&self, ino: Ino, count: usize, may: impl Fn(Ino) -> bool) -> Vec<Ino> {
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
                Some(child) if may(child) => found.push(child),
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
