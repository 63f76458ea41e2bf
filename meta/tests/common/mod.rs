//! A namespace to try things in: one volume, its root open to all, a key that may act for anyone.
#![allow(dead_code, unreachable_pub, reason = "a module of several test binaries, none of which uses all of it")]

pub mod mount;

use base::{ClusterId, Decode as _, Digest, PublicKey, SecretKey, StateMachine as _, Time};
use bytes::Bytes;
use meta::*;

pub const CLUSTER: ClusterId = ClusterId([7; 16]);
/// Whole seconds at which worlds begin.
pub const START: u64 = 1_000_000;

pub fn key(seed: u8) -> PublicKey {
    SecretKey::from_seed(&[seed; 32]).public()
}

/// A name as if sealed: its bytes and 16 more.
pub fn name(text: &str) -> SealedName {
    SealedName::new([text.as_bytes(), &[0xEE; SEAL_LEN]].concat()).unwrap()
}

pub fn sealed(text: &str) -> Bytes {
    Bytes::from([text.as_bytes(), &[0xEE; SEAL_LEN]].concat())
}

pub fn user(uid: u32) -> Caller {
    Caller { uid, gid: uid, groups: vec![] }
}

pub fn spec(name: &str) -> VolumeSpec {
    VolumeSpec {
        name: name.into(),
        quota_bytes: 0,
        quota_inodes: 0,
        redundancy: Redundancy::Replicate(3),
        chunking: Chunking { min: 16 << 10, average: 64 << 10, max: 256 << 10 },
        secrets: [(key(1), Bytes::from_static(b"sealed to key 1"))].into(),
        root_mode: 0o777,
        trash: 0,
    }
}

pub fn new(kind: Kind, mode: u16) -> NewInode {
    let target = if kind == Kind::Symlink { sealed("target") } else { Bytes::new() };
    NewInode { kind, mode, umask: 0, rdev: 0x0801, target }
}

pub fn content(size: u64, allocated: u64) -> Content {
    Content { size, allocated, root: None, sealed: Bytes::from_static(b"recipe"), patches: Vec::new() }
}

pub fn at(seconds: u64) -> Timestamp {
    Timestamp { seconds: seconds as i64, nanos: 0 }
}

#[derive(Clone)]
pub struct World {
    pub state: State,
    pub key: PublicKey,
    pub now: Time,
    pub root: Ino,
    pub volume: VolumeId,
}

impl World {
    /// Keys: 1 may do anything, 2 may act for uid 1000, 3 for 2000 to 2999.
    pub fn new() -> World {
        World::with(spec("home"))
    }

    /// One with a trash that keeps things for a hundred seconds.
    pub fn throwing() -> World {
        World::with(VolumeSpec { trash: 100, ..spec("home") })
    }

    pub fn with(spec: VolumeSpec) -> World {
        let principals = vec![
            (key(1), Grant { uids: Uids::Any, admin: true }),
            (key(2), Grant { uids: Uids::One(1000), admin: false }),
            (key(3), Grant { uids: Uids::Range { first: 2000, last: 2999 }, admin: false }),
        ];
        let state = State::genesis(Genesis { cluster: CLUSTER, principals });
        let mut world =
            World { state, key: key(1), now: Time::from_parts(START, 0), root: Ino(0), volume: VolumeId(0) };
        let Reply::Volume(volume) = world.run(&user(0), Op::VolumeCreate(spec)).unwrap() else { panic!() };
        (world.root, world.volume) = (volume.root, volume.id);
        world
    }

    /// Runs one operation through the bytes, as a replica would. A refusal must leave no trace, and
    /// the state must be sound whatever happened.
    pub fn run(&mut self, caller: &Caller, op: Op) -> Result<Reply, Denied> {
        use base::Encode as _;
        let before = self.settled();
        let batch = Batch::new(vec![Call { caller: caller.clone(), op: op.clone() }]).to_bytes();
        let answers = Answers::from_bytes(&self.state.apply(self.now, &self.key, &batch)).unwrap();
        let [answer] = <[Answer; 1]>::try_from(answers).unwrap();
        let result = answer.into_result();
        if result.is_err() {
            assert_eq!(self.state.digest(), before, "refused with an effect: {op:?}");
        }
        assert_eq!(self.state.audit(), Ok(()), "after {op:?}");
        result
    }

    /// The digest after time alone has moved on.
    fn settled(&mut self) -> Digest {
        assert!(self.state.apply_batch(self.now, &self.key, &Batch::new(vec![])).len() <= 1);
        self.state.digest()
    }

    pub fn later(&mut self, seconds: u64) {
        self.now = self.now.after(std::time::Duration::from_secs(seconds));
    }

    pub fn attr(&mut self, ino: Ino) -> Attr {
        match self.run(&user(0), Op::GetAttr { ino }) {
            Ok(Reply::Attr(attr)) => attr,
            other => panic!("{ino:?}: {other:?}"),
        }
    }

    pub fn create(&mut self, caller: &Caller, parent: Ino, text: &str, new: NewInode) -> Result<Attr, Denied> {
        let op = Op::Create { parent, name: name(text), new, exclusive: true };
        self.run(caller, op).map(|reply| match reply {
            Reply::Created { attr, fresh: true } => attr,
            other => panic!("{other:?}"),
        })
    }

    pub fn file(&mut self, uid: u32, parent: Ino, text: &str, mode: u16) -> Ino {
        self.create(&user(uid), parent, text, new(Kind::File, mode)).unwrap().ino
    }

    pub fn unnamed(&mut self, caller: &Caller, parent: Ino, mode: u16) -> Result<Attr, Denied> {
        let op = Op::CreateUnnamed { parent, new: new(Kind::File, mode) };
        self.run(caller, op).map(|reply| match reply {
            Reply::Created { attr, fresh: true } => attr,
            other => panic!("{other:?}"),
        })
    }

    pub fn dir(&mut self, uid: u32, parent: Ino, text: &str, mode: u16) -> Ino {
        self.create(&user(uid), parent, text, new(Kind::Directory, mode)).unwrap().ino
    }

    pub fn lookup(&mut self, caller: &Caller, parent: Ino, text: &str) -> Result<Attr, Denied> {
        self.run(caller, Op::Lookup { parent, name: name(text) }).map(|reply| match reply {
            Reply::Attr(attr) => attr,
            other => panic!("{other:?}"),
        })
    }

    pub fn set(&mut self, caller: &Caller, ino: Ino, change: AttrChange) -> Result<Attr, Denied> {
        self.run(caller, Op::SetAttr { ino, change }).map(|reply| match reply {
            Reply::Attr(attr) => attr,
            other => panic!("{other:?}"),
        })
    }

    pub fn chmod(&mut self, caller: &Caller, ino: Ino, mode: u16) -> Result<Attr, Denied> {
        self.set(caller, ino, AttrChange { mode: Some(mode), ..AttrChange::default() })
    }

    pub fn chown(&mut self, caller: &Caller, ino: Ino, uid: Option<u32>, gid: Option<u32>) -> Result<Attr, Denied> {
        self.set(caller, ino, AttrChange { uid, gid, ..AttrChange::default() })
    }

    pub fn write(&mut self, caller: &Caller, ino: Ino, content: Content, opened: bool) -> Result<Attr, Denied> {
        let commit = Commit { ino, base: None, content, form: Form::Whole, mtime: None, atime: None, opened };
        self.run(caller, Op::Commit(commit)).map(|reply| match reply {
            Reply::Attr(attr) => attr,
            other => panic!("{other:?}"),
        })
    }

    pub fn unlink(&mut self, caller: &Caller, parent: Ino, text: &str, keep: bool) -> Result<Reply, Denied> {
        self.run(caller, Op::Unlink { parent, name: name(text), keep })
    }

    pub fn rmdir(&mut self, caller: &Caller, parent: Ino, text: &str) -> Result<Reply, Denied> {
        self.run(caller, Op::Rmdir { parent, name: name(text) })
    }

    pub fn link(&mut self, caller: &Caller, ino: Ino, parent: Ino, text: &str) -> Result<Reply, Denied> {
        self.run(caller, Op::Link { ino, parent, name: name(text) })
    }

    pub fn rename(
        &mut self,
        caller: &Caller,
        (from, from_text): (Ino, &str),
        (to, to_text): (Ino, &str),
        how: RenameHow,
    ) -> Result<Reply, Denied> {
        let (from_name, to_name) = (name(from_text), name(to_text));
        self.run(caller, Op::Rename { from, from_name, to, to_name, how, keep: false })
    }

    /// All entries of a directory, read `step` at a time.
    pub fn list(&mut self, ino: Ino, step: u32) -> Vec<DirEntry> {
        let (mut all, mut cookie) = (Vec::<DirEntry>::new(), 0);
        loop {
            let reply = self.run(&user(0), Op::ReadDir { ino, cookie, max: step });
            let Ok(Reply::Entries { entries, end }) = reply else { panic!("{reply:?}") };
            assert!(entries.len() <= step as usize && (end || !entries.is_empty()));
            cookie = entries.last().map_or(cookie, |entry| entry.cookie);
            all.extend(entries);
            if end {
                assert!(all.is_sorted_by(|a, b| a.cookie < b.cookie));
                return all;
            }
        }
    }

    pub fn space(&self) -> Space {
        self.state.space(self.volume).unwrap()
    }
}
