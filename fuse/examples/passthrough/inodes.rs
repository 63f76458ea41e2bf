//! The inodes the kernel remembers, and how each is found again in the source.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use fuse::wire::Errno;
use fuse::wire::abi::ROOT;
use parking_lot::RwLock;
use rustix::fs::{FileType, Mode, OFlags, Stat};

use super::filesystem::{Result, stat};

/// The table. A directory is an `O_PATH` descriptor, and so is anything else while fewer than
/// `held_max` are held: a descriptor survives renames and unlinks. What comes later is found by
/// name, and gets its descriptor when that name is about to go.
pub(crate) struct Inodes {
    table: RwLock<Table>,
    held_max: usize,
}

struct Table {
    by_number: HashMap<u64, Inode>,
    by_source: HashMap<(u64, u64), u64>,
    next: u64,
    held: usize,
}

struct Inode {
    place: Place,
    source: (u64, u64),
    lookups: u64,
}

enum Place {
    Held(Arc<OwnedFd>),
    Named { parent: u64, name: OsString },
}

impl Inodes {
    /// Only the root, which is never forgotten.
    pub(crate) fn new(root: OwnedFd, held_max: usize) -> Result<Inodes> {
        let source = source(&stat(&root)?);
        let inode = Inode { place: Place::Held(Arc::new(root)), source, lookups: 1 };
        let table = Table {
            by_number: HashMap::from([(ROOT, inode)]),
            by_source: HashMap::from([(source, ROOT)]),
            next: ROOT + 1,
            held: 1,
        };
        Ok(Inodes { table: RwLock::new(table), held_max })
    }

    /// A descriptor of inode `number`.
    pub(crate) fn get(&self, number: u64) -> Result<Arc<OwnedFd>> {
        let (parent, name, expected) = {
            let table = self.table.read();
            let inode = table.by_number.get(&number).ok_or(Errno::STALE)?;
            match &inode.place {
                Place::Held(descriptor) => return Ok(descriptor.clone()),
                Place::Named { parent, name } => (*parent, name.clone(), inode.source),
            }
        };
        let descriptor = open_path(&*self.get(parent)?, &name)?;
        if source(&stat(&descriptor)?) != expected {
            return Err(Errno::STALE);
        }
        Ok(Arc::new(descriptor))
    }

    /// Looks `name` up in the directory `parent`, whose number is `parent_number`, and counts it.
    pub(crate) fn find(&self, parent_number: u64, parent: &OwnedFd, name: &OsStr) -> Result<(u64, Stat)> {
        let descriptor = open_path(parent, name)?;
        let stat = stat(&descriptor)?;
        let source = source(&stat);
        let mut table = self.table.write();
        let table = &mut *table;
        let number = *table.by_source.entry(source).or_insert(table.next);
        if number == table.next {
            table.next += 1;
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            let place = if is_directory || table.held < self.held_max {
                table.held += 1;
                Place::Held(Arc::new(descriptor))
            } else {
                Place::Named { parent: parent_number, name: name.to_owned() }
            };
            table.by_number.insert(number, Inode { place, source, lookups: 0 });
        }
        let inode = table.by_number.get_mut(&number).ok_or(Errno::STALE)?;
        inode.lookups += 1;
        Ok((number, stat))
    }

    /// Takes back `lookups` of what [`Inodes::find`] counted.
    pub(crate) fn forget(&self, number: u64, lookups: u64) {
        let mut table = self.table.write();
        let Some(inode) = table.by_number.get_mut(&number) else { return };
        inode.lookups = inode.lookups.saturating_sub(lookups);
        if inode.lookups == 0 && number != ROOT {
            let (source, held) = (inode.source, matches!(inode.place, Place::Held(_)));
            table.by_source.remove(&source);
            table.by_number.remove(&number);
            table.held -= usize::from(held);
        }
    }

    /// To call before `name` in `parent` goes or gets another inode: holds what it names now.
    pub(crate) fn hold(&self, parent: &OwnedFd, name: &OsStr) -> Result<()> {
        if !self.any_named() {
            return Ok(());
        }
        let descriptor = match open_path(parent, name) {
            Ok(descriptor) => descriptor,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let source = source(&stat(&descriptor)?);
        let mut table = self.table.write();
        let table = &mut *table;
        if let Some(inode) = table.by_source.get(&source).and_then(|number| table.by_number.get_mut(number))
            && matches!(inode.place, Place::Named { .. })
        {
            inode.place = Place::Held(Arc::new(descriptor));
            table.held += 1;
        }
        Ok(())
    }

    fn any_named(&self) -> bool {
        let table = self.table.read();
        table.held < table.by_number.len()
    }
}

fn open_path(parent: &OwnedFd, name: &OsStr) -> Result<OwnedFd> {
    rustix::fs::openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn source(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}
