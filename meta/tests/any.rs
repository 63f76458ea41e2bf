//! Whatever is sent: no panic, an unsound state never, a refusal without a trace, and a digest that
//! does not depend on how the state came about.

mod common;

use base::merkle::Prefix;
use base::{Decode as _, Encode as _, StateMachine as _};
use bytes::Bytes;
use common::*;
use meta::*;
use proptest::prelude::*;

fn ino() -> impl Strategy<Value = Ino> {
    prop_oneof![
        12 => (0u64..12).prop_map(Ino),
        2 => (0u64..12, 1u64..4).prop_map(|(ino, number)| Ino(ino).in_snapshot(number)),
        1 => (0u64..12).prop_map(|ino| Ino(ino).in_trash()),
        1 => any::<u64>().prop_map(Ino),
    ]
}

fn some_name() -> impl Strategy<Value = SealedName> {
    (0u8..4).prop_map(|index| name(&format!("name{index}")))
}

fn caller() -> impl Strategy<Value = Caller> {
    (0u32..3, 0u32..3, proptest::collection::vec(0u32..3, 0..2)).prop_map(|(uid, gid, groups)| Caller {
        uid,
        gid,
        groups,
    })
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        4 => Just(Kind::File),
        4 => Just(Kind::Directory),
        1 => Just(Kind::Symlink),
        1 => Just(Kind::Fifo),
        1 => Just(Kind::CharDevice)
    ]
}

/// Modes that now and then allow something.
fn mode() -> impl Strategy<Value = u16> {
    prop_oneof![4 => Just(0o777u16), 1 => Just(0o1777), 2 => 0u16..0o7777, 1 => any::<u16>()]
}

fn set_time() -> impl Strategy<Value = Option<SetTime>> {
    prop_oneof![
        Just(None),
        Just(Some(SetTime::Now)),
        any::<i64>().prop_map(|seconds| Some(SetTime::At(Timestamp { seconds, nanos: 5 })))
    ]
}

fn change() -> impl Strategy<Value = AttrChange> {
    let id = || proptest::option::of(0u32..3);
    (proptest::option::of(mode()), id(), id(), set_time(), set_time())
        .prop_map(|(mode, uid, gid, atime, mtime)| AttrChange { mode, uid, gid, atime, mtime })
}

fn commit() -> impl Strategy<Value = Commit> {
    let size = || prop_oneof![4 => 0u64..1000, 1 => any::<u64>()];
    let form = prop_oneof![Just(Form::Whole), (0..3u32).prop_map(|over| Form::Patch { over }), Just(Form::Fold)];
    let patches = proptest::collection::vec(Just(Bytes::from_static(b"patch")), 0..3);
    (ino(), proptest::option::of(0u64..4), size(), size(), any::<bool>(), form, patches).prop_map(
        |(ino, base, size, allocated, opened, form, patches)| Commit {
            ino,
            base,
            content: match form {
                Form::Patch { .. } => Content { size, allocated, patches, ..Content::default() },
                Form::Whole | Form::Fold => Content { patches, ..content(size, allocated) },
            },
            form,
            mtime: None,
            atime: Some(Timestamp::default()),
            opened,
        },
    )
}

fn class() -> impl Strategy<Value = XattrClass> {
    prop_oneof![
        3 => Just(XattrClass::User),
        1 => Just(XattrClass::Trusted),
        1 => Just(XattrClass::Security),
        1 => Just(XattrClass::System)
    ]
}

fn acl_kind() -> impl Strategy<Value = AclKind> {
    prop_oneof![Just(AclKind::Access), Just(AclKind::Default)]
}

/// Lists that now and then are none.
fn acl() -> impl Strategy<Value = Acl> {
    let entry = || (0u32..4, 0u8..8).prop_map(|(id, may)| AclEntry { id, may });
    let entries = || proptest::collection::vec(entry(), 0..3);
    let class = || prop_oneof![20 => 0u8..8, 1 => any::<u8>()];
    (class(), class(), class(), proptest::option::weighted(0.8, class()), entries(), entries()).prop_map(
        |(owner, group, other, mask, mut users, mut groups)| {
            users.sort_by_key(|user| user.id);
            groups.sort_by_key(|group| group.id);
            Acl { owner, group, other, mask, users, groups }
        },
    )
}

fn umask() -> impl Strategy<Value = u16> {
    prop_oneof![4 => Just(0u16), 2 => 0u16..0o1000, 1 => any::<u16>()]
}

fn name_op() -> impl Strategy<Value = Op> {
    let create = (ino(), some_name(), kind(), mode(), umask(), any::<bool>()).prop_map(
        |(parent, name, kind, mode, umask, exclusive)| {
            let new = NewInode { umask, ..new(kind, mode) };
            Op::Create { parent, name, new, exclusive }
        },
    );
    let how = prop_oneof![Just(RenameHow::Replace), Just(RenameHow::NoReplace), Just(RenameHow::Exchange)];
    let rename = (ino(), some_name(), ino(), some_name(), how, any::<bool>())
        .prop_map(|(from, from_name, to, to_name, how, keep)| Op::Rename { from, from_name, to, to_name, how, keep });
    prop_oneof![
        8 => create,
        2 => (ino(), kind(), mode())
            .prop_map(|(parent, kind, mode)| Op::CreateUnnamed { parent, new: new(kind, mode) }),
        4 => rename,
        1 => (ino(), some_name()).prop_map(|(parent, name)| Op::Lookup { parent, name }),
        2 => (ino(), ino(), some_name()).prop_map(|(ino, parent, name)| Op::Link { ino, parent, name }),
        2 => (ino(), some_name(), any::<bool>()).prop_map(|(parent, name, keep)| Op::Unlink { parent, name, keep }),
        1 => (ino(), some_name()).prop_map(|(parent, name)| Op::Rmdir { parent, name }),
        2 => (ino(), ino(), some_name()).prop_map(|(ino, parent, name)| Op::Restore { ino, parent, name }),
        1 => ino().prop_map(|ino| Op::Purge { ino }),
        1 => (ino(), prop_oneof![0u64..60, any::<u64>()], any::<u32>())
            .prop_map(|(ino, cookie, max)| Op::ReadDir { ino, cookie, max }),
    ]
}

fn inode_op() -> impl Strategy<Value = Op> {
    let xattr = (ino(), class(), some_name(), proptest::collection::vec(any::<u8>(), 0..20)).prop_map(
        |(ino, class, name, value)| Op::SetXattr { ino, class, name, value: value.into(), how: XattrHow::Set },
    );
    prop_oneof![
        2 => (ino(), change()).prop_map(|(ino, change)| Op::SetAttr { ino, change }),
        2 => commit().prop_map(Op::Commit),
        2 => xattr,
        1 => (ino(), any::<u8>()).prop_map(|(ino, mask)| Op::Open { ino, mask }),
        1 => (ino(), any::<u8>()).prop_map(|(ino, mask)| Op::Access { ino, mask }),
        1 => ino().prop_map(|ino| Op::Parent { ino }),
        1 => ino().prop_map(|ino| Op::ReadLink { ino }),
        1 => ino().prop_map(|ino| Op::ListXattr { ino }),
        1 => (ino(), class(), some_name()).prop_map(|(ino, class, name)| Op::GetXattr { ino, class, name }),
        1 => (ino(), class(), some_name()).prop_map(|(ino, class, name)| Op::RemoveXattr { ino, class, name }),
        3 => (ino(), acl_kind(), proptest::option::of(acl()))
            .prop_map(|(ino, kind, acl)| Op::SetAcl { ino, kind, acl }),
        1 => (ino(), acl_kind()).prop_map(|(ino, kind)| Op::GetAcl { ino, kind }),
        1 => ino().prop_map(|ino| Op::KeepOrphan { ino }),
        1 => ino().prop_map(|ino| Op::ReleaseOrphan { ino }),
        1 => (ino(), any::<u64>(), proptest::collection::vec(ino(), 0..3))
            .prop_map(|(ino, cookie, also)| Op::Fetch { ino, cookie, also }),
    ]
}

fn volume_op() -> impl Strategy<Value = Op> {
    let named =
        (0u8..3).prop_map(|index| VolumeSpec { quota_inodes: 6, trash: 1000, ..spec(&format!("volume{index}")) });
    prop_oneof![
        named.prop_map(Op::VolumeCreate),
        Just(Op::VolumeList),
        (0u8..4).prop_map(|index| Op::VolumeGet { name: format!("volume{index}") }),
        (0u32..4).prop_map(|volume| Op::StatFs { volume: VolumeId(volume) }),
        (0u32..3, 0u8..4).prop_map(|(volume, index)| Op::SnapshotTake {
            volume: VolumeId(volume),
            name: format!("snapshot{index}"),
        }),
        (0u32..3).prop_map(|volume| Op::SnapshotList { volume: VolumeId(volume) }),
        (0u32..3, prop_oneof![0u32..2000, any::<u32>()])
            .prop_map(|(volume, seconds)| Op::TrashKeep { volume: VolumeId(volume), seconds }),
        (0u32..3).prop_map(|volume| Op::TrashEmpty { volume: VolumeId(volume) }),
        (0u32..3, 0u8..4).prop_map(|(volume, index)| Op::SnapshotDelete {
            volume: VolumeId(volume),
            name: format!("snapshot{index}"),
        }),
    ]
}

fn calls() -> impl Strategy<Value = Vec<(Call, u8, u64)>> {
    let op = prop_oneof![8 => name_op(), 5 => inode_op(), 1 => volume_op()];
    let call = (caller(), op).prop_map(|(caller, op)| Call { caller, op });
    let seconds = prop_oneof![8 => Just(0u64), 2 => 0u64..2000];
    proptest::collection::vec((call, prop_oneof![8 => Just(1u8), 1 => 2u8..5], seconds), 1..60)
}

fn restored(state: &State) -> State {
    let partitions: Vec<_> = state.snapshot().collect();
    let other = State::genesis(Genesis { cluster: base::ClusterId([0; 16]), principals: vec![] });
    other.restore(&partitions).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_calls_leave_a_sound_state(calls in calls()) {
        let mut world = World::throwing();
        for (call, signer, seconds) in calls {
            world.later(seconds);
            world.key = key(signer);
            if world.state.admits(&world.key) {
                // Checks soundness, and that a refusal left no trace.
                let _ = world.run(&call.caller, call.op);
            }
        }
    }

    #[test]
    fn a_restored_state_is_the_same_state(before in calls(), after in calls()) {
        let mut world = World::throwing();
        let batch = |calls: Vec<(Call, u8, u64)>| Batch::new(calls.into_iter().map(|(call, ..)| call).collect());
        world.state.apply_batch(world.now, &key(1), &batch(before));
        let mut copy = restored(&world.state);
        prop_assert_eq!(copy.audit(), Ok(()));
        prop_assert_eq!(copy.digest(), world.state.digest());
        prop_assert!(copy.snapshot().eq(world.state.snapshot()));
        // It also goes on alike, over the expiry of orphans.
        world.later(10_000);
        let after = batch(after);
        let answers = world.state.apply_batch(world.now, &key(1), &after);
        prop_assert_eq!(copy.apply_batch(world.now, &key(1), &after), answers);
        prop_assert_eq!(copy.digest(), world.state.digest());
    }

    #[test]
    fn a_state_is_its_rows(before in calls(), after in calls(), cut in any::<usize>()) {
        let mut world = World::throwing();
        let batch = |calls: Vec<(Call, u8, u64)>| Batch::new(calls.into_iter().map(|(call, ..)| call).collect());
        world.state.apply_batch(world.now, &key(1), &batch(before));
        // A replica that fell behind here, and fetches the rows that differ.
        let mut copy = world.state.clone();
        world.later(5_000);
        world.state.apply_batch(world.now, &key(1), &batch(after));
        let names = |state: &mut State| {
            let tree = state.tree().expect("it has one");
            assert_eq!(tree.len(), tree.names(&Prefix::default()).len());
            tree.names(&Prefix::default())
        };
        let (here, there) = (names(&mut copy), names(&mut world.state));
        let gone = here.iter().filter(|name| !there.contains(name)).map(|name| (name.to_vec(), None));
        let new = there.iter().map(|name| (name.to_vec(), world.state.row(name)));
        let patches: Vec<_> = gone.chain(new).collect();
        prop_assert!(there.iter().all(|name| world.state.row(name).is_some()));
        copy.patch(&patches).expect("rows");
        prop_assert_eq!(copy.digest(), world.state.digest());
        prop_assert!(copy.snapshot().eq(world.state.snapshot()));
        prop_assert_eq!(copy.audit(), Ok(()));
        // What is no row is refused, without a panic.
        let (mut name, value) = patches[cut % patches.len()].clone();
        name.truncate(cut % name.len());
        let _ = copy.patch(&[(name, value)]);
        let _ = copy.patch(&[(there[cut % there.len()].to_vec(), Some(vec![cut as u8]))]);
    }

    #[test]
    fn a_proven_read_is_the_ordered_read(before in calls(), reads in calls(), drop in any::<prop::sample::Index>()) {
        let mut world = World::throwing();
        let batch = |calls: Vec<(Call, u8, u64)>| Batch::new(calls.into_iter().map(|(call, ..)| call).collect());
        world.state.apply_batch(world.now, &key(1), &batch(before));
        let (at, tree) = (world.now, world.state.tree().expect("it has one").clone());
        for (call, signer, _) in reads {
            let who = key(signer);
            let ordered = world.state.clone().apply_batch(at, &who, &Batch::new(vec![call.clone()]));
            let names = match world.state.rows_of(at, &who, &call) {
                Ok(names) => names,
                // Some may have the answer and not its rows: the attributes of what they may not open.
                Err(Unproven::Withheld) => {
                    let refused = matches!(
                        ordered[0],
                        Answer::Denied(Denied::Access | Denied::NotPermitted | Denied::NotGranted)
                    );
                    prop_assert!(refused || call.caller.uid != 0, "root may have every row");
                    continue;
                }
                Err(why) => {
                    prop_assert_eq!(why, Unproven::NotARead);
                    continue;
                }
            };
            let part = |names: &[Vec<u8>]| {
                let part = tree.part(names.iter().map(Vec::as_slice), |name| world.state.row(name));
                part.proven(&tree.root()).expect("a part of the tree")
            };
            prop_assert_eq!(read_proven(&part(&names), at, &who, &call), Ok(ordered[0].clone()), "{:?}", call);
            // With less, it is noticed that something is missing, unless what is left shows it by chance.
            let mut fewer = names.clone();
            fewer.remove(drop.index(names.len()));
            match read_proven(&part(&fewer), at, &who, &call) {
                Ok(answer) => prop_assert_eq!(answer, ordered[0].clone()),
                Err(why) => prop_assert_eq!(why, Unproven::NotShown),
            }
        }
    }

    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in any::<usize>()) {
        let mut world = World::throwing();
        let before = world.state.digest();
        let malformed = vec![Answer::Denied(Denied::Malformed)].to_bytes();
        if Batch::from_bytes(&bytes).is_err() {
            prop_assert_eq!(world.state.apply(world.now, &key(1), &bytes), malformed.clone());
            prop_assert_eq!(world.state.digest(), before);
        }
        let mut batch = Batch::new(vec![Call { caller: user(0), op: Op::VolumeCreate(spec("other")) }]).to_bytes();
        let at = cut % batch.len();
        prop_assert_eq!(world.state.apply(world.now, &key(1), &batch[..at]), malformed);
        batch[at] ^= 1 + (cut >> 32) as u8 % 255;
        let answers = world.state.apply(world.now, &key(1), &batch);
        prop_assert!(Answers::from_bytes(&answers).is_ok());
        prop_assert_eq!(world.state.audit(), Ok(()));
    }

    #[test]
    fn a_corrupt_snapshot_is_refused_or_shows_in_the_digest(
        calls in calls(), part in any::<usize>(), place in any::<usize>(), bit in 0u32..8
    ) {
        let mut world = World::throwing();
        let batch = Batch::new(calls.into_iter().map(|(call, ..)| call).collect());
        world.state.apply_batch(world.now, &key(1), &batch);
        let mut partitions: Vec<Vec<u8>> = world.state.snapshot().collect();
        let part = part % partitions.len();
        let place = place % partitions[part].len();
        partitions[part][place] ^= 1 << bit;
        if let Ok(mut other) = world.state.restore(&partitions) {
            prop_assert_ne!(other.digest(), world.state.digest());
        }
        partitions[part].truncate(place);
        if let Ok(mut other) = world.state.restore(&partitions) {
            prop_assert_ne!(other.digest(), world.state.digest());
        }
    }
}

#[test]
fn a_snapshot_has_one_clock_and_its_tables_in_order() {
    let mut world = World::throwing();
    let root = world.root;
    world.file(0, root, "f", 0o600);
    let good: Vec<Vec<u8>> = world.state.snapshot().collect();
    assert!(good.len() > 4);
    let refused = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let mut bad = good.clone();
        change(&mut bad);
        assert!(world.state.restore(&bad).is_err());
    };
    refused(&|parts| parts.clear());
    refused(&|parts| drop(parts.remove(0)));
    refused(&|parts| parts.insert(1, parts[0].clone()));
    refused(&|parts| parts[0].push(0));
    refused(&|parts| parts.swap(1, 2));
    refused(&|parts| parts.push(parts[parts.len() - 1].clone()));
    refused(&|parts| parts.push(vec![9, 0]));
    refused(&|parts| parts.push(vec![8]));
    refused(&|parts| parts.push(vec![]));
    assert!(world.state.restore(&good).is_ok());
}

#[test]
fn a_restored_state_still_knows_which_orphans_are_due() {
    let mut world = World::throwing();
    let root = world.root;
    world.file(0, root, "f", 0o600);
    world.unlink(&user(0), root, "f", true).unwrap();
    world.state = restored(&world.state);
    assert_eq!(world.state.audit(), Ok(()));
    world.later(ORPHAN_TERM.as_secs());
    world.state.apply_batch(world.now, &key(1), &Batch::new(vec![]));
    assert_eq!((world.state.counts().orphans, world.state.counts().inodes), (0, 1));
}

#[test]
fn partitions_are_bounded() {
    let mut world = World::throwing();
    let root = world.root;
    for index in 0..12 {
        let ino = world.file(0, root, &format!("f{index}"), 0o600);
        let value = Bytes::from(vec![index; XATTR_VALUE_MAX]);
        let op = Op::SetXattr { ino, class: XattrClass::User, name: name("x"), value, how: XattrHow::Set };
        world.run(&user(0), op).unwrap();
    }
    let lens: Vec<usize> = world.state.snapshot().map(|partition| partition.len()).collect();
    assert!(lens.iter().all(|len| *len <= 256 * 1024), "{lens:?}");
    assert!(lens.len() > 6, "{lens:?}");
    assert_eq!(restored(&world.state).digest(), world.state.digest());
}
