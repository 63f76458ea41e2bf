//! Where things were, as this mount saw them.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chunk::VolumeKeys;
use chunk::name::open_name;
use meta::{Caller, Ino, Op, Reply, SealedName};
use tokio::time::Instant;

use super::super::Shared;
use super::super::error::Result;
use super::super::names::check_name;
use crate::backend::{BlockStore, Loss, Metadata};

/// How long replicas are asked for what this mount did not know, for all of a loss.
const ASK_MAX: Duration = Duration::from_secs(20);
/// More directories than this are in no path.
const DEPTH_MAX: usize = 4096;

/// The paths of a volume, from its root.
pub(super) struct Places<'a, M: Metadata, B: BlockStore> {
    shared: &'a Arc<Shared<M, B>>,
    caller: Caller,
    names: HashMap<Ino, (Ino, SealedName)>,
    /// Of directories above those that this mount had leases on; `None`: nobody says.
    above: HashMap<Ino, Option<(Ino, Vec<u8>)>>,
    until: Instant,
}

/// What stands for a path that nobody knows.
pub(super) fn by_number(ino: Ino) -> PathBuf {
    PathBuf::from("by-number").join(ino.0.to_string())
}

impl<'a, M: Metadata, B: BlockStore> Places<'a, M, B> {
    /// Places as they were when something was lost; the rest is asked for as `caller`.
    pub(super) fn new(shared: &'a Arc<Shared<M, B>>, loss: &Loss, caller: Caller) -> Places<'a, M, B> {
        let seen = loss.seen.names().map(|(parent, name, ino)| (ino, (parent, name.clone())));
        let mut names: HashMap<_, _> = seen.collect();
        for lost in &loss.calls {
            // What was removed or given back since is where it was made, as far as is known.
            if let (Some(made), Op::Create { parent, name, .. }) = (lost.made, &lost.call.op) {
                names.entry(made).or_insert_with(|| (*parent, name.clone()));
            }
        }
        Places { shared, caller, names, above: HashMap::new(), until: Instant::now() + ASK_MAX }
    }

    pub(super) fn keys(&self) -> &VolumeKeys {
        &self.shared.chunks.keys
    }

    /// A name in a directory.
    pub(super) async fn named(&mut self, directory: Ino, name: &SealedName) -> PathBuf {
        let within = self.of(directory).await;
        let name = self.plain(directory, name);
        within.join(name.map_or_else(|| "name-that-does-not-open".into(), OsString::from_vec))
    }

    /// The path of an inode, relative to the volume's root.
    pub(super) async fn of(&mut self, ino: Ino) -> PathBuf {
        let (mut at, mut names) = (ino, Vec::new());
        while at != self.shared.volume.root {
            match self.step(at).await {
                Some((parent, name)) if names.len() < DEPTH_MAX => {
                    names.push(OsString::from_vec(name));
                    at = parent;
                }
                _ => {
                    names.extend([at.0.to_string().into(), "by-number".into()]);
                    break;
                }
            }
        }
        names.into_iter().rev().collect()
    }

    async fn step(&mut self, ino: Ino) -> Option<(Ino, Vec<u8>)> {
        if let Some((parent, sealed)) = self.names.get(&ino) {
            return Some((*parent, self.plain(*parent, sealed)?));
        }
        if let Some(known) = self.above.get(&ino) {
            return known.clone();
        }
        let asked = tokio::time::timeout_at(self.until, self.ask(ino)).await;
        let found = asked.ok().and_then(Result::ok).flatten();
        self.above.insert(ino, found.clone());
        found
    }

    fn plain(&self, directory: Ino, sealed: &SealedName) -> Option<Vec<u8>> {
        let plain = open_name(&self.shared.chunks.keys, directory.0, sealed.as_bytes()).ok();
        plain.filter(|name| check_name(name).is_ok())
    }

    /// Asks replicas where a directory is. (They don't say it of files.)
    async fn ask(&self, ino: Ino) -> Result<Option<(Ino, Vec<u8>)>> {
        let Reply::Attr(parent) = self.shared.call(&self.caller, Op::Parent { ino }).await? else { return Ok(None) };
        let mut cookie = 0;
        loop {
            let list = Op::ReadDir { ino: parent.ino, cookie, max: meta::ENTRIES_MAX };
            let Reply::Entries { entries, end } = self.shared.call(&self.caller, list).await? else { return Ok(None) };
            if let Some(entry) = entries.iter().find(|entry| entry.attr.ino == ino) {
                return Ok(self.plain(parent.ino, &entry.name).map(|name| (parent.ino, name)));
            }
            match entries.last() {
                Some(last) if !end => cookie = last.cookie,
                _ => return Ok(None),
            }
        }
    }
}
