//! Directories: finding, making, linking, removing and listing names.

use core::ops::Bound;

use base::canonical_struct;

use crate::access::{Context, Inherited, READ, WRITE, check_mode};
use crate::acl::Lists;
use crate::inode::{Body, Inode, NO_HOME};
use crate::op::{
    Attr, Denied, DirEntry, ENTRIES_MAX, Ino, Kind, LINKS_MAX, NewInode, Reply, SEAL_LEN, SealedName, TARGET_MAX,
    Timestamp, VolumeId,
};
use crate::read::Look as _;
use crate::state::State;
use crate::table::Shared;

/// The place of a directory's first entry: 1 and 2 are for `.` and `..`, which doors add.
pub(crate) const FIRST_COOKIE: u64 = 3;
/// Once the encoded entries of a listing are this long, bytes, it ends.
pub(crate) const LISTING_LEN_MAX: usize = 96 * 1024;
const SYMLINK_MODE: u16 = 0o777;
const UMASK_BITS: u16 = 0o777;

/// What a name in a directory leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) ino: Ino,
    /// Its place in the directory.
    pub(crate) cookie: u64,
}
canonical_struct!(Entry { ino, cookie });

impl State {
    pub(crate) fn create(
        &mut self,
        cx: &Context<'_>,
        parent: Ino,
        name: &SealedName,
        new: &NewInode,
        exclusive: bool,
    ) -> Result<Reply, Denied> {
        let directory = self.searchable(cx, parent)?;
        if let Some(entry) = self.entry(parent, name) {
            return self.create_over(entry, new, exclusive);
        }
        cx.need(directory, WRITE)?;
        check_new(cx, new)?;
        if new.kind == Kind::Directory {
            need_subdirectory(&directory.attr)?;
        }
        let (volume, inherited) = (directory.attr.volume, cx.inherited(directory, new));
        self.need_inode(volume)?;
        self.need_number(cx)?;

        let ino = self.draw_ino_for(cx)?;
        let attr = self.new_attr(cx, ino, volume, new, &inherited);
        let Inherited { lists, .. } = inherited;
        self.add_inode(attr, parent, lists, Body::new(new));
        self.bind(parent, name, ino, None);
        self.touch_directory(cx.stamp(), parent, 1, i32::from(new.kind == Kind::Directory));
        Ok(Reply::Created { attr, fresh: true })
    }

    /// Makes a file without a name, as if in this directory.
    pub(crate) fn create_unnamed(&mut self, cx: &Context<'_>, parent: Ino, new: &NewInode) -> Result<Reply, Denied> {
        let directory = self.searchable(cx, parent)?;
        cx.need(directory, WRITE)?;
        check_new(cx, new)?;
        if new.kind != Kind::File {
            return Err(Denied::Invalid);
        }
        let (volume, inherited) = (directory.attr.volume, cx.inherited(directory, new));
        self.need_inode(volume)?;
        self.need_number(cx)?;

        let ino = self.draw_ino_for(cx)?;
        let attr = Attr { nlink: 0, ..self.new_attr(cx, ino, volume, new, &inherited) };
        let Inherited { lists, .. } = inherited;
        self.add_inode(attr, parent, lists, Body::new(new));
        self.set_orphan(ino, cx.key, cx.now);
        Ok(Reply::Created { attr, fresh: true })
    }

    pub(crate) fn link(&mut self, cx: &Context<'_>, ino: Ino, parent: Ino, name: &SealedName) -> Result<Reply, Denied> {
        let inode = self.inode(ino)?;
        let attr = &inode.attr;
        let directory = self.searchable(cx, parent)?;
        if self.entry(parent, name).is_some() {
            return Err(Denied::Exists);
        }
        cx.need(directory, WRITE)?;
        match attr {
            _ if attr.volume != directory.attr.volume => return Err(Denied::CrossVolume),
            _ if attr.kind == Kind::Directory => return Err(Denied::NotPermitted),
            _ if attr.nlink == 0 => self.need_nameable(cx, inode)?,
            _ if attr.nlink >= LINKS_MAX => return Err(Denied::TooManyLinks),
            _ => {}
        }
        self.end_orphan(ino);
        self.bind(parent, name, ino, None);
        self.touch_directory(cx.stamp(), parent, 1, 0);
        let inode = self.change(ino);
        inode.attr.nlink += 1;
        if inode.attr.nlink == 1 {
            inode.home = parent;
        } else if inode.home != parent {
            inode.home = NO_HOME;
        }
        inode.touch(cx.stamp());
        Ok(Reply::Attr(inode.attr))
    }

    pub(crate) fn unlink(
        &mut self,
        cx: &Context<'_>,
        parent: Ino,
        name: &SealedName,
        keep: bool,
    ) -> Result<Reply, Denied> {
        let (directory, entry) = self.find(cx, parent, name)?;
        let victim = self.attr(entry.ino)?;
        cx.need_removal(directory, victim)?;
        if victim.kind == Kind::Directory {
            return Err(Denied::IsDirectory);
        }
        self.unbind(parent, name, entry);
        self.touch_directory(cx.stamp(), parent, -1, 0);
        let nlink = self.drop_link(cx, entry.ino, (parent, name), keep);
        Ok(Reply::Unlinked { ino: entry.ino, nlink })
    }

    pub(crate) fn rmdir(&mut self, cx: &Context<'_>, parent: Ino, name: &SealedName) -> Result<Reply, Denied> {
        let (directory, entry) = self.find(cx, parent, name)?;
        let victim = self.attr(entry.ino)?;
        cx.need_removal(directory, victim)?;
        if victim.kind != Kind::Directory {
            return Err(Denied::NotDirectory);
        }
        if victim.size != 0 {
            return Err(Denied::NotEmpty);
        }
        self.unbind(parent, name, entry);
        self.touch_directory(cx.stamp(), parent, -1, -1);
        self.end_directory(cx, entry.ino, (parent, name));
        Ok(Reply::Unit)
    }

    pub(crate) fn read_dir(&self, cx: &Context<'_>, ino: Ino, cookie: u64, max: u32) -> Result<Reply, Denied> {
        cx.need(self.directory(ino)?, READ)?;
        if max == 0 {
            return Err(Denied::Invalid);
        }
        let after = (Bound::Excluded((ino, cookie)), Bound::Included((ino, u64::MAX)));
        let mut rows = self.cookies.range(after).peekable();
        let (mut entries, mut len) = (Vec::new(), 0);
        while entries.len() < max.min(ENTRIES_MAX) as usize && len < LISTING_LEN_MAX {
            let Some((&(_, cookie), name)) = rows.next() else { break };
            let entry = self.entry(ino, name).expect("a place has its name");
            let attr = *self.attr(entry.ino)?;
            let entry = DirEntry { cookie, name: name.clone(), attr };
            len += listed_len(&entry);
            entries.push(entry);
        }
        Ok(Reply::Entries { entries, end: rows.peek().is_none() })
    }
}

/// What an entry of a listing takes, bytes: at least the length of its encoding.
pub(crate) fn listed_len(entry: &DirEntry) -> usize {
    128 + entry.name.as_bytes().len()
}

/// The rules and steps that the operations on names, [`crate::rename`] too, are made of.
impl State {
    /// The directory that a directory is in.
    pub(crate) fn parent_of(&self, directory: Ino) -> Ino {
        self.inodes.get(&directory).map_or(directory, |inode| inode.home)
    }

    /// Gives `ino` a name, in the given place or a new one.
    pub(crate) fn bind(&mut self, parent: Ino, name: &SealedName, ino: Ino, cookie: Option<u64>) {
        if let Some(cookie) = cookie {
            self.keep_name(parent, name, cookie);
        }
        let cookie = cookie.unwrap_or_else(|| self.draw_cookie(parent));
        let before = self.entries.insert((parent, name.clone()), Entry { ino, cookie });
        assert!(before.is_none(), "a name is bound once");
        self.cookies.insert((parent, cookie), name.clone());
    }

    /// Takes a name away; the caller sees to what it named.
    pub(crate) fn unbind(&mut self, parent: Ino, name: &SealedName, entry: Entry) {
        self.keep_name(parent, name, entry.cookie);
        self.entries.remove(&(parent, name.clone()));
        self.cookies.remove(&(parent, entry.cookie));
        self.kept_name(parent, name, entry.cookie);
    }

    /// Ends an empty directory that had this name.
    pub(crate) fn end_directory(&mut self, cx: &Context<'_>, ino: Ino, (parent, name): (Ino, &SealedName)) {
        if !self.throw(cx, ino, parent, name) {
            self.destroy(ino);
        }
    }

    /// Notes that a directory has so many more entries, and so many more of them directories.
    pub(crate) fn touch_directory(&mut self, at: Timestamp, ino: Ino, entries: i64, subdirectories: i32) {
        let inode = self.change(ino);
        inode.touch_content(at);
        let attr = &mut inode.attr;
        attr.size = attr.size.checked_add_signed(entries).expect("every entry was counted");
        attr.nlink = attr.nlink.checked_add_signed(subdirectories).expect("every subdirectory was counted");
    }

    /// The attributes of an inode about to be made.
    pub(crate) fn new_attr(
        &self,
        cx: &Context<'_>,
        ino: Ino,
        volume: VolumeId,
        new: &NewInode,
        inherited: &Inherited,
    ) -> Attr {
        let at = cx.stamp();
        let is = |kind| new.kind == kind;
        Attr {
            ino,
            volume,
            kind: new.kind,
            mode: if is(Kind::Symlink) { SYMLINK_MODE } else { inherited.mode },
            uid: cx.caller.uid,
            gid: inherited.gid,
            nlink: if is(Kind::Directory) { 2 } else { 1 },
            size: new.target.len().saturating_sub(SEAL_LEN) as u64,
            allocated: 0,
            rdev: if is(Kind::CharDevice) || is(Kind::BlockDevice) { new.rdev } else { 0 },
            atime: at,
            mtime: at,
            ctime: at,
            btime: at,
            version: 1,
            content_version: 1,
        }
    }

    pub(crate) fn add_inode(&mut self, attr: Attr, home: Ino, lists: Option<Box<Lists>>, body: Body) {
        self.charge_inode(attr.volume, 1);
        let inode = Inode { attr, xattrs_len: 0, home, born: self.clock.next_snapshot, lists, body };
        self.inodes.insert(attr.ino, Shared::new(inode));
    }

    /// `Create` of a name that is taken.
    fn create_over(&self, entry: Entry, new: &NewInode, exclusive: bool) -> Result<Reply, Denied> {
        let attr = *self.attr(entry.ino)?;
        match (exclusive, new.kind, attr.kind) {
            (false, Kind::File, Kind::File) => Ok(Reply::Created { attr, fresh: false }),
            (false, Kind::File, Kind::Directory) => Err(Denied::IsDirectory),
            _ => Err(Denied::Exists),
        }
    }

    fn draw_cookie(&mut self, directory: Ino) -> u64 {
        match &mut self.change(directory).body {
            Body::Directory { next_cookie } => {
                *next_cookie += 1;
                *next_cookie - 1
            }
            _ => unreachable!("names are bound in directories"),
        }
    }
}

/// Refuses one more subdirectory if its links could not be counted.
pub(crate) fn need_subdirectory(directory: &Attr) -> Result<(), Denied> {
    if directory.nlink < u32::MAX { Ok(()) } else { Err(Denied::TooManyLinks) }
}

fn check_new(cx: &Context<'_>, new: &NewInode) -> Result<(), Denied> {
    check_mode(new.mode)?;
    if new.umask & !UMASK_BITS != 0 {
        return Err(Denied::Invalid);
    }
    let target_fits = match new.kind {
        Kind::Symlink => (SEAL_LEN + 1..=SEAL_LEN + TARGET_MAX).contains(&new.target.len()),
        _ => new.target.is_empty(),
    };
    match new.kind {
        _ if !target_fits => Err(Denied::Invalid),
        Kind::CharDevice | Kind::BlockDevice if !cx.is_root() => Err(Denied::NotPermitted),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use base::Encode as _;

    use super::*;

    #[test]
    fn a_listed_entry_is_no_longer_than_is_counted_for_it() {
        let attr = Attr {
            ino: Ino(1),
            volume: VolumeId(1),
            kind: Kind::File,
            mode: 0,
            uid: 0,
            gid: 0,
            nlink: 0,
            size: 0,
            allocated: 0,
            rdev: 0,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            btime: Timestamp::default(),
            version: 0,
            content_version: 0,
        };
        let name = SealedName::new(vec![1; 40]).unwrap();
        let entry = DirEntry { cookie: 3, name, attr };
        assert!(entry.to_bytes().len() <= listed_len(&entry), "{}", entry.to_bytes().len());
    }
}
