//! The service that is shipped: `meta`, with operations over few names and few inodes, so that they
//! meet: some two in five succeed, and the others are refused alike everywhere.

use base::{Encode as _, PublicKey};
use bytes::Bytes;
use meta::{
    AttrChange, Batch, Call, Caller, Chunking, Commit, Content, Genesis, Grant, Ino, Kind, NewInode, Op, Redundancy,
    RenameHow, SEAL_LEN, SealedName, State, Uids, VolumeSpec, XattrClass, XattrHow,
};

use super::Service;
use crate::keys::CLUSTER;
use crate::rng::Rng;

/// The replicated namespace.
pub(crate) type Namespace = State;

impl Service for State {
    fn genesis(principals: &[PublicKey]) -> State {
        let grant = Grant { uids: Uids::Any, admin: true };
        State::genesis(Genesis { cluster: CLUSTER, principals: principals.iter().map(|key| (*key, grant)).collect() })
    }

    fn operation(rng: &mut Rng, number: u64) -> Bytes {
        let uid = if rng.percent(85) { 0 } else { rng.below(3) as u32 };
        let caller = Caller { uid, gid: uid, groups: vec![] };
        let count = if rng.percent(80) { 1 } else { rng.between(2, 6) };
        // The first operations of a run make sure that there is a volume to work in.
        let volume = (number < 4).then(|| Op::VolumeCreate(volume()));
        let ops = volume.into_iter().chain((0..count).map(|_| operation(rng)));
        // No inode has this number; the refusal costs nothing, and the bytes are nobody else's.
        let mark = Op::GetAttr { ino: Ino(u64::MAX - number) };
        let calls = ops.chain([mark]).map(|op| Call { caller: caller.clone(), op });
        Batch::new(calls.collect()).to_bytes().into()
    }
}

fn volume() -> VolumeSpec {
    VolumeSpec {
        name: "home".into(),
        quota_bytes: 0,
        quota_inodes: 0,
        redundancy: Redundancy::Replicate(3),
        chunking: Chunking { min: 16 << 10, average: 64 << 10, max: 256 << 10 },
        secrets: [].into(),
        root_mode: 0o777,
        trash: 0,
    }
}

fn ino(rng: &mut Rng) -> Ino {
    // Mostly the root, which is the first inode of all.
    if rng.percent(70) { Ino(1) } else { Ino(rng.between(1, 12)) }
}

fn name(rng: &mut Rng) -> SealedName {
    let mut bytes = vec![b'a' + rng.below(8) as u8];
    bytes.extend_from_slice(&[0xee; SEAL_LEN]);
    SealedName::new(bytes).expect("a name's length")
}

fn operation(rng: &mut Rng) -> Op {
    match rng.below(16) {
        0..=4 => {
            let kind = if rng.percent(40) { Kind::Directory } else { Kind::File };
            let new = NewInode { kind, mode: 0o777, umask: 0, rdev: 0, target: Bytes::new() };
            Op::Create { parent: ino(rng), name: name(rng), new, exclusive: rng.percent(20) }
        }
        5 | 6 => {
            let how = rng.pick(&[RenameHow::Replace, RenameHow::NoReplace, RenameHow::Exchange]);
            let (from_name, to_name) = (name(rng), name(rng));
            Op::Rename { from: ino(rng), from_name, to: ino(rng), to_name, how, keep: rng.percent(30) }
        }
        7 => Op::Unlink { parent: ino(rng), name: name(rng), keep: rng.percent(50) },
        8 => Op::Rmdir { parent: ino(rng), name: name(rng) },
        9 => Op::Link { ino: ino(rng), parent: ino(rng), name: name(rng) },
        10 | 11 => {
            let size = rng.below(100_000);
            let content = Content {
                size,
                allocated: size,
                root: None,
                sealed: Bytes::from_static(b"recipe"),
                patches: Vec::new(),
            };
            Op::Commit(Commit { opened: true, ..Commit::whole(ino(rng), None, content) })
        }
        12 => {
            let (class, how) = (XattrClass::User, XattrHow::Set);
            let value = Bytes::from(vec![5; rng.below(600) as usize]);
            Op::SetXattr { ino: ino(rng), class, name: name(rng), value, how }
        }
        13 => Op::SetAttr {
            ino: ino(rng),
            change: AttrChange { mode: Some(0o700 + rng.below(64) as u16), ..AttrChange::default() },
        },
        14 => Op::ReadDir { ino: ino(rng), cookie: 0, max: 32 },
        _ => Op::Lookup { parent: ino(rng), name: name(rng) },
    }
}

#[cfg(test)]
mod tests {
    use base::{Decode as _, StateMachine as _, Time};
    use meta::{Answer, Answers};

    use super::*;
    use crate::keys::known_principals;

    #[test]
    fn a_good_part_of_the_operations_succeeds() {
        let principals = known_principals();
        let mut state = <State as Service>::genesis(&principals);
        let mut rng = Rng::new(1);
        let (mut done, mut all) = (0, 0);
        for number in 0..500 {
            let op = State::operation(&mut rng, number);
            let answers = Answers::from_bytes(&state.apply(Time(number << 30), &principals[0], &op)).unwrap();
            all += answers.len() - 1;
            done += answers.iter().filter(|answer| matches!(answer, Answer::Done(_))).count();
        }
        assert!(done * 100 / all > 33, "{done} of {all}");
        assert!(state.counts().inodes > 20);
    }
}
