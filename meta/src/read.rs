//! Reads that look at single rows, by their names.
//!
//! They are written once, over whatever rows there are: the whole [`State`], or the few that somebody
//! proved (`proven`). What is listed or searched for needs the whole state and is not here.

use base::PublicKey;
use bytes::Bytes;

use crate::access::{Context, EXECUTE, Grant, OPENED, READ, WRITE};
use crate::acl::AclKind;
use crate::content::need_write;
use crate::directory::Entry;
use crate::inode::{Body, Inode};
use crate::op::{Attr, Denied, Ino, Kind, Op, Reply, SealedName, Snapshot, Space, Volume, VolumeId};
use crate::past::{PastKey, PastRow};
use crate::state::State;
use crate::volume::{Usage, VOLUMES_MAX};
use crate::xattr::{XattrKey, need_xattr_read};

/// Rows by their names, and what is read of them.
pub(crate) trait Look {
    fn grant_row(&self, who: &PublicKey) -> Option<Grant>;
    fn inode_row(&self, ino: Ino) -> Option<&Inode>;
    fn entry_row(&self, key: &(Ino, SealedName)) -> Option<Entry>;
    fn xattr_row(&self, key: &XattrKey) -> Option<&Bytes>;
    fn volume_row(&self, volume: VolumeId) -> Option<&Volume>;
    fn usage_row(&self, volume: VolumeId) -> Option<Usage>;
    fn snapshot_row(&self, number: u64) -> Option<&Snapshot>;
    fn past_row(&self, key: &(u64, PastKey)) -> Option<&PastRow>;
    /// The number that the next volume will have.
    fn next_volume(&self) -> VolumeId;

    /// What `op` reads, if it is a read of single rows.
    fn read(&self, cx: &Context<'_>, op: &Op) -> Option<Result<Reply, Denied>> {
        Some(match op {
            Op::VolumeGet { name } => self.volume_named(name).cloned().map(Reply::Volume).ok_or(Denied::NotFound),
            Op::StatFs { volume } => self.stat_fs(*volume),
            Op::Lookup { parent, name } => self.lookup(cx, *parent, name),
            Op::Parent { ino } => self.parent(cx, *ino),
            Op::GetAttr { ino } => self.get_attr(*ino),
            Op::Access { ino, mask } => self.access(cx, *ino, *mask),
            Op::Open { ino, mask } => self.open(cx, *ino, *mask),
            Op::ReadLink { ino } => self.read_link(*ino),
            Op::GetAcl { ino, kind } => self.get_acl(*ino, *kind),
            Op::GetXattr { ino, class, name } => self.get_xattr(cx, &(*ino, *class, name.clone())),
            _ => return None,
        })
    }

    fn lookup(&self, cx: &Context<'_>, parent: Ino, name: &SealedName) -> Result<Reply, Denied> {
        let (_, entry) = self.find(cx, parent, name)?;
        self.get_attr(entry.ino)
    }

    /// The directory that `ino` is in; a root is in itself.
    fn parent(&self, cx: &Context<'_>, ino: Ino) -> Result<Reply, Denied> {
        self.searchable(cx, ino)?;
        self.get_attr(self.inode(ino)?.home)
    }

    fn get_attr(&self, ino: Ino) -> Result<Reply, Denied> {
        Ok(Reply::Attr(*self.attr(ino)?))
    }

    /// `mask` of 0 asks only whether the inode exists.
    fn access(&self, cx: &Context<'_>, ino: Ino, mask: u8) -> Result<Reply, Denied> {
        if mask & !(READ | WRITE | EXECUTE) != 0 {
            return Err(Denied::Invalid);
        }
        cx.need(self.inode(ino)?, mask)?;
        Ok(Reply::Unit)
    }

    /// `mask` may also ask for execute: whoever may run a file may have its content. With
    /// [`OPENED`], writing is asked for as a commit to an open file asks for it.
    fn open(&self, cx: &Context<'_>, ino: Ino, mask: u8) -> Result<Reply, Denied> {
        let inode = self.inode(ino)?;
        let opened = mask & (OPENED | WRITE) == OPENED | WRITE;
        let asked = if opened { mask & !(OPENED | WRITE) } else { mask };
        if mask == 0 || asked & !(READ | WRITE | EXECUTE) != 0 {
            return Err(Denied::Invalid);
        }
        match &inode.body {
            Body::File { content, .. } => {
                cx.need(inode, asked)?;
                if opened {
                    need_write(cx, inode, true)?;
                }
                Ok(Reply::Opened { attr: inode.attr, content: content.clone() })
            }
            Body::Directory { .. } if mask & WRITE != 0 => Err(Denied::IsDirectory),
            Body::Directory { .. } | Body::Symlink { .. } | Body::Special => Err(Denied::Invalid),
        }
    }

    fn read_link(&self, ino: Ino) -> Result<Reply, Denied> {
        match &self.inode(ino)?.body {
            Body::Symlink { target } => Ok(Reply::Target(target.clone())),
            _ => Err(Denied::Invalid),
        }
    }

    fn get_xattr(&self, cx: &Context<'_>, key: &XattrKey) -> Result<Reply, Denied> {
        need_xattr_read(cx, self.inode(key.0)?, key.1)?;
        self.xattr_row(key).cloned().map(Reply::Value).ok_or(Denied::NoAttribute)
    }

    /// Everybody may read it, as everybody may read a mode.
    fn get_acl(&self, ino: Ino, kind: AclKind) -> Result<Reply, Denied> {
        self.inode(ino)?.acl(kind).map(Reply::Acl).ok_or(Denied::NoAttribute)
    }

    fn stat_fs(&self, volume: VolumeId) -> Result<Reply, Denied> {
        self.space_of(volume).map(Reply::Space).ok_or(Denied::NotFound)
    }

    /// Volumes are numbered from 1 and stay.
    fn volume_named(&self, name: &str) -> Option<&Volume> {
        let numbers = (1..self.next_volume().0).take(VOLUMES_MAX);
        numbers.filter_map(|number| self.volume_row(VolumeId(number))).find(|volume| volume.spec.name == name)
    }

    /// What a volume's files take, and of how much; `None` if there is no such volume.
    fn space_of(&self, volume: VolumeId) -> Option<Space> {
        let (usage, spec) = (self.usage_row(volume)?, &self.volume_row(volume)?.spec);
        Some(Space {
            used_bytes: usage.bytes,
            quota_bytes: spec.quota_bytes,
            used_inodes: usage.inodes,
            quota_inodes: spec.quota_inodes,
        })
    }

    /// The inode, or [`Denied::Stale`].
    fn inode(&self, ino: Ino) -> Result<&Inode, Denied> {
        self.inode_row(ino).ok_or(Denied::Stale)
    }

    /// The inode's attributes, or [`Denied::Stale`].
    fn attr(&self, ino: Ino) -> Result<&Attr, Denied> {
        Ok(&self.inode(ino)?.attr)
    }

    /// The inode, if it is a directory's.
    fn directory(&self, ino: Ino) -> Result<&Inode, Denied> {
        let inode = self.inode(ino)?;
        if inode.attr.kind == Kind::Directory { Ok(inode) } else { Err(Denied::NotDirectory) }
    }

    /// A directory in which the caller may look names up.
    fn searchable(&self, cx: &Context<'_>, ino: Ino) -> Result<&Inode, Denied> {
        let directory = self.directory(ino)?;
        cx.need(directory, EXECUTE)?;
        Ok(directory)
    }

    fn entry(&self, parent: Ino, name: &SealedName) -> Option<Entry> {
        self.entry_row(&(parent, name.clone()))
    }

    /// A name in a directory that the caller may search.
    fn find(&self, cx: &Context<'_>, parent: Ino, name: &SealedName) -> Result<(&Inode, Entry), Denied> {
        let directory = self.searchable(cx, parent)?;
        Ok((directory, self.entry(parent, name).ok_or(Denied::NotFound)?))
    }
}

impl Look for State {
    fn grant_row(&self, who: &PublicKey) -> Option<Grant> {
        self.principals.get(who).copied()
    }

    fn inode_row(&self, ino: Ino) -> Option<&Inode> {
        let there = |inode: &&Inode| inode.attr.nlink > 0 || !self.is_thrown(ino);
        self.inodes.get(&ino).map(|inode| &**inode).filter(there)
    }

    fn entry_row(&self, key: &(Ino, SealedName)) -> Option<Entry> {
        self.entries.get(key).copied()
    }

    fn xattr_row(&self, key: &XattrKey) -> Option<&Bytes> {
        self.xattrs.get(key)
    }

    fn volume_row(&self, volume: VolumeId) -> Option<&Volume> {
        self.volumes.get(&volume)
    }

    fn usage_row(&self, volume: VolumeId) -> Option<Usage> {
        self.usage.get(&volume).copied()
    }

    fn snapshot_row(&self, number: u64) -> Option<&Snapshot> {
        self.snapshots.get(&number)
    }

    fn past_row(&self, key: &(u64, PastKey)) -> Option<&PastRow> {
        self.past.get(key)
    }

    fn next_volume(&self) -> VolumeId {
        self.clock.next_volume
    }
}
