//! What the clients ask for: real operations on the namespace that carry so many bytes.

use base::Encode as _;
use bytes::Bytes;
use meta::op::{AttrChange, Commit, Content, SetTime};
use meta::{Answer, Call, Caller, Chunking, Ino, NewInode, Op, Redundancy, Reply, SealedName, VolumeSpec};

use crate::Outcome;
use crate::link::Session;

/// A call of the user who may do everything.
pub(crate) fn call(op: Op) -> Call {
    Call { caller: Caller::default(), op }
}

/// A name as a client would seal it, as far as replicas can tell.
pub(crate) fn sealed_name(number: u64) -> SealedName {
    SealedName::new(Bytes::from(format!("a sealed name, long enough: {number:016}"))).expect("of a name's length")
}

/// The operation that carries `payload` bytes:
///
/// - none: `SetAttr` of the modification time;
/// - up to 512: `Commit`, the last step of every write, whose recipe they are;
/// - more: `SetXattr`, whose value they are.
///
/// The first two are answered by the inode's attributes, some 110 bytes; `SetXattr` by one byte.
pub(crate) fn operation(file: Ino, payload: usize, number: u64) -> Call {
    let bytes = || {
        let mut bytes = vec![number as u8; payload];
        let stamp = number.to_bytes();
        let len = stamp.len().min(payload);
        bytes[..len].copy_from_slice(&stamp[..len]);
        Bytes::from(bytes)
    };
    call(match payload {
        0 => {
            let change = AttrChange { mtime: Some(SetTime::Now), ..AttrChange::default() };
            Op::SetAttr { ino: file, change }
        }
        1..=meta::op::RECIPE_MAX => {
            let content = Content { size: number, allocated: 0, root: None, sealed: bytes(), patches: Vec::new() };
            Op::Commit(Commit { opened: true, ..Commit::whole(file, None, content) })
        }
        _ => {
            let (class, how) = (meta::op::XattrClass::User, meta::op::XattrHow::Set);
            Op::SetXattr { ino: file, class, name: sealed_name(0), value: bytes(), how }
        }
    })
}

/// The name of what [`operation`] does.
pub(crate) fn operation_name(payload: usize) -> &'static str {
    match payload {
        0 => "SetAttr",
        1..=meta::op::RECIPE_MAX => "Commit",
        _ => "SetXattr",
    }
}

/// Makes a volume with `count` empty files.
pub(crate) async fn make_volume(session: &mut Session, name: &str, count: usize) -> Outcome<Vec<Ino>> {
    let spec = VolumeSpec {
        name: name.into(),
        quota_bytes: 0,
        quota_inodes: 0,
        redundancy: Redundancy::Replicate(1),
        chunking: Chunking { min: 16 << 10, average: 64 << 10, max: 256 << 10 },
        secrets: std::collections::BTreeMap::new(),
        root_mode: 0o777,
        trash: 0,
    };
    let made = session.ask(vec![call(Op::VolumeCreate(spec))]).await?;
    let [Answer::Done(Reply::Volume(volume))] = made.as_slice() else {
        return Err(format!("no volume: {made:?}").into());
    };
    let root = volume.root;
    let create = |number: usize| {
        let new = NewInode { kind: meta::Kind::File, mode: 0o666, umask: 0, rdev: 0, target: Bytes::new() };
        call(Op::Create { parent: root, name: sealed_name(number as u64), new, exclusive: true })
    };
    let mut created = Vec::new();
    for first in (0..count).step_by(meta::BATCH_MAX) {
        let calls = (first..count.min(first + meta::BATCH_MAX)).map(create).collect();
        created.extend(session.ask(calls).await?);
    }
    let file = |answer: Answer| match answer {
        Answer::Done(Reply::Created { attr, .. }) => Ok(attr.ino),
        other => Err(format!("no file: {other:?}").into()),
    };
    created.into_iter().map(file).collect()
}
