//! Volumes: making, finding, and what their files take.

use base::canonical_struct;
use bytes::Bytes;

use crate::access::{Context, Inherited, check_mode};
use crate::inode::Body;
use crate::op::{Chunking, Denied, Ino, Kind, NewInode, Redundancy, Reply, Space, Volume, VolumeId, VolumeSpec};
use crate::read::Look as _;
use crate::state::State;

/// Most volumes in a cluster.
pub const VOLUMES_MAX: usize = 1024;
const NAME_LEN_MAX: usize = 64;
const SECRETS_MAX: usize = 64;
const SECRET_LEN_MAX: usize = 256;
const COPIES_MAX: u8 = 16;
const CHUNK_LEN_MIN: u32 = 4 << 10;
const CHUNK_LEN_MAX: u32 = 1 << 20;

/// What a volume's files take: beside the volume, because it changes with every one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Bytes of content that are not holes.
    pub(crate) bytes: u64,
    /// Inodes, the root and orphans too.
    pub(crate) inodes: u64,
}
canonical_struct!(Usage { bytes, inodes });

impl State {
    pub(crate) fn volume_create(&mut self, cx: &Context<'_>, spec: &VolumeSpec) -> Result<Reply, Denied> {
        if !cx.grant.admin {
            return Err(Denied::NotGranted);
        }
        check_spec(spec)?;
        if self.volume_named(&spec.name).is_some() {
            return Err(Denied::Exists);
        }
        if self.volumes.len() >= VOLUMES_MAX || self.clock.next_ino >= Ino::END {
            return Err(Denied::Quota);
        }
        let id = self.draw_volume();
        let root = self.draw_ino();
        let new = NewInode { kind: Kind::Directory, mode: spec.root_mode, umask: 0, rdev: 0, target: Bytes::new() };
        let owned = Inherited { mode: new.mode, gid: cx.caller.gid, lists: None };
        let attr = self.new_attr(cx, root, id, &new, &owned);
        let volume = Volume { id, root, spec: spec.clone() };
        self.usage.insert(id, Usage::default());
        self.add_inode(attr, root, None, Body::new(&new));
        self.volumes.insert(id, volume.clone());
        Ok(Reply::Volume(volume))
    }

    pub(crate) fn volume_list(&self) -> Reply {
        Reply::Volumes(self.volumes.iter().map(|(_, volume)| volume.clone()).collect())
    }

    /// What a volume's files take, and of how much; `None` if there is no such volume.
    #[must_use]
    pub fn space(&self, volume: VolumeId) -> Option<Space> {
        self.space_of(volume)
    }

    /// Whether a file may grow from `before` to `after` bytes. Shrinking always may.
    pub(crate) fn need_bytes(&self, volume: VolumeId, before: u64, after: u64) -> Result<(), Denied> {
        if after <= before {
            return Ok(());
        }
        let space = self.space(volume).ok_or(Denied::Stale)?;
        let used = space.used_bytes.saturating_add(after - before);
        if space.quota_bytes != 0 && used > space.quota_bytes { Err(Denied::Quota) } else { Ok(()) }
    }

    /// Whether there may be one more inode.
    pub(crate) fn need_inode(&self, volume: VolumeId) -> Result<(), Denied> {
        let space = self.space(volume).ok_or(Denied::Stale)?;
        let none_left = self.clock.next_ino >= Ino::END;
        let full = none_left || (space.quota_inodes != 0 && space.used_inodes >= space.quota_inodes);
        if full { Err(Denied::Quota) } else { Ok(()) }
    }

    pub(crate) fn charge_bytes(&mut self, volume: VolumeId, before: u64, after: u64) {
        if before != after {
            let usage = self.usage_mut(volume);
            usage.bytes = usage.bytes.saturating_sub(before).saturating_add(after);
        }
    }

    pub(crate) fn charge_inode(&mut self, volume: VolumeId, by: i64) {
        let usage = self.usage_mut(volume);
        usage.inodes = usage.inodes.checked_add_signed(by).expect("every inode was counted");
    }

    fn usage_mut(&mut self, volume: VolumeId) -> &mut Usage {
        self.usage.change(&volume).expect("every inode's volume exists")
    }

    fn draw_volume(&mut self) -> VolumeId {
        let id = self.clock.next_volume;
        self.clock.next_volume = VolumeId(id.0 + 1);
        id
    }

    /// A number that no inode had before.
    pub(crate) fn draw_ino(&mut self) -> Ino {
        let ino = self.clock.next_ino;
        self.clock.next_ino = Ino(ino.0 + 1);
        ino
    }
}

fn check_spec(spec: &VolumeSpec) -> Result<(), Denied> {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let Redundancy::Replicate(copies) = spec.redundancy;
    let secrets = &spec.secrets;
    let valid = (1..=NAME_LEN_MAX).contains(&spec.name.len())
        && spec.name.bytes().all(letter)
        && (1..=COPIES_MAX).contains(&copies)
        && chunking_is_valid(spec.chunking)
        && secrets.len() <= SECRETS_MAX
        && secrets.values().all(|secret| secret.len() <= SECRET_LEN_MAX);
    if !valid {
        return Err(Denied::Invalid);
    }
    check_mode(spec.root_mode)
}

/// Powers of two between 4 KiB and 1 MiB; the average at least twice the smallest, or nearly every
/// cut would be at the smallest and not where the content says.
fn chunking_is_valid(Chunking { min, average, max }: Chunking) -> bool {
    [min, average, max].into_iter().all(u32::is_power_of_two)
        && min >= CHUNK_LEN_MIN
        && average / 2 >= min
        && max >= average
        && max <= CHUNK_LEN_MAX
}
