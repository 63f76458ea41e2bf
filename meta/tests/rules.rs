//! The rules of the namespace, one test each. Every operation here also checks that a refusal left
//! no trace and that the state stayed sound (see `common`).

mod common;

use base::StateMachine as _;
use bytes::Bytes;
use common::*;
use meta::*;

const ROOT: u32 = 0;
const ALICE: u32 = 1000;
const BOB: u32 = 1001;

fn member(uid: u32, groups: &[u32]) -> Caller {
    Caller { uid, gid: uid, groups: groups.to_vec() }
}

// ---- Grants ----

#[test]
fn a_key_acts_only_for_the_uids_it_was_granted() {
    let mut world = World::new();
    let root = world.root;
    let probe = |world: &mut World, seed, uid| {
        world.key = key(seed);
        world.run(&user(uid), Op::GetAttr { ino: root }).err()
    };
    assert_eq!(probe(&mut world, 2, 1000), None);
    assert_eq!(probe(&mut world, 2, 0), Some(Denied::NotGranted));
    assert_eq!(probe(&mut world, 2, 1001), Some(Denied::NotGranted));
    assert_eq!(probe(&mut world, 3, 2000), None);
    assert_eq!(probe(&mut world, 3, 2999), None);
    assert_eq!(probe(&mut world, 3, 1999), Some(Denied::NotGranted));
    assert_eq!(probe(&mut world, 3, 3000), Some(Denied::NotGranted));
    assert_eq!(probe(&mut world, 9, 1000), Some(Denied::NotGranted));
    assert!(world.state.admits(&key(2)) && !world.state.admits(&key(9)));
}

#[test]
fn an_unknown_signer_gets_one_refusal_for_the_whole_batch() {
    let mut world = World::new();
    let call = Call { caller: user(ROOT), op: Op::VolumeList };
    let refused = vec![Answer::Denied(Denied::NotGranted)];
    assert_eq!(world.state.apply_batch(world.now, &key(9), &Batch(vec![call.clone(); 3])), refused);
    let too_many = Batch(vec![call; BATCH_MAX + 1]);
    assert_eq!(world.state.apply_batch(world.now, &key(1), &too_many), vec![Answer::Denied(Denied::Malformed)]);
}

#[test]
fn a_caller_names_a_bounded_number_of_groups() {
    let mut world = World::new();
    let ino = world.root;
    assert!(world.run(&member(5, &[6; GROUPS_MAX]), Op::GetAttr { ino }).is_ok());
    assert_eq!(world.run(&member(5, &[6; GROUPS_MAX + 1]), Op::GetAttr { ino }), Err(Denied::Malformed));
}

// ---- Volumes ----

#[test]
fn only_an_admin_makes_volumes_and_names_are_taken_once() {
    let mut world = World::new();
    world.key = key(2);
    assert_eq!(world.run(&user(ALICE), Op::VolumeCreate(spec("other"))), Err(Denied::NotGranted));
    world.key = key(1);
    assert_eq!(world.run(&user(ROOT), Op::VolumeCreate(spec("home"))), Err(Denied::Exists));
    let Ok(Reply::Volume(other)) = world.run(&user(ALICE), Op::VolumeCreate(spec("other"))) else { panic!() };
    assert_eq!(other.spec, spec("other"));
    let root = world.attr(other.root);
    assert_eq!((root.kind, root.mode, root.uid, root.gid), (Kind::Directory, 0o777, ALICE, ALICE));
    assert_eq!((root.nlink, root.size, root.volume), (2, 0, other.id));
    assert_eq!(world.run(&user(BOB), Op::VolumeGet { name: "other".into() }), Ok(Reply::Volume(other.clone())));
    assert_eq!(world.run(&user(BOB), Op::VolumeGet { name: "none".into() }), Err(Denied::NotFound));
    let Ok(Reply::Volumes(all)) = world.run(&user(BOB), Op::VolumeList) else { panic!() };
    assert_eq!(all.len(), 2);
    assert_eq!(all[1], other);
}

#[test]
fn a_volume_is_made_only_as_the_rules_allow() {
    let mut world = World::new();
    let mut refused = |change: &dyn Fn(&mut VolumeSpec)| {
        let mut wrong = spec("wrong");
        change(&mut wrong);
        assert_eq!(world.run(&user(ROOT), Op::VolumeCreate(wrong.clone())), Err(Denied::Invalid), "{wrong:?}");
    };
    refused(&|spec| spec.name = String::new());
    refused(&|spec| spec.name = "a".repeat(65));
    refused(&|spec| spec.name = "a/b".into());
    refused(&|spec| spec.name = "ä".into());
    refused(&|spec| spec.redundancy = Redundancy::Replicate(0));
    refused(&|spec| spec.redundancy = Redundancy::Replicate(17));
    refused(&|spec| spec.chunking.min = 2048);
    refused(&|spec| spec.chunking.min = 5000);
    refused(&|spec| spec.chunking.min = 0);
    refused(&|spec| spec.chunking.average = spec.chunking.min);
    refused(&|spec| spec.chunking.max = spec.chunking.average / 2);
    refused(&|spec| spec.chunking.max = 2 << 20);
    refused(&|spec| spec.root_mode = 0o10_000);
    refused(&|spec| spec.secrets = (0..65).map(|seed| (key(seed), Bytes::new())).collect());
    refused(&|spec| spec.secrets = [(key(1), Bytes::from(vec![0; 257]))].into());
    let mut right = spec("a".repeat(64).as_str());
    right.secrets = (0..64).map(|seed| (key(seed), Bytes::from(vec![0; 256]))).collect();
    right.redundancy = Redundancy::Replicate(16);
    right.chunking = Chunking { min: 4 << 10, average: 1 << 20, max: 1 << 20 };
    assert!(world.run(&user(ROOT), Op::VolumeCreate(right)).is_ok());
}

#[test]
fn space_counts_inodes_and_stored_bytes_up_to_the_quotas() {
    let mut world = World::with(VolumeSpec { quota_bytes: 1000, quota_inodes: 3, ..spec("small") });
    let (root, alice) = (world.root, user(ALICE));
    let file = world.file(ALICE, root, "a", 0o600);
    world.dir(ALICE, root, "d", 0o700);
    assert_eq!(world.create(&alice, root, "b", new(Kind::Fifo, 0o600)), Err(Denied::Quota));
    world.write(&alice, file, content(5000, 900), false).unwrap();
    assert_eq!(world.write(&alice, file, content(5000, 1001), false), Err(Denied::Quota));
    world.write(&alice, file, content(5000, 1000), false).unwrap();
    let full = Space { used_bytes: 1000, quota_bytes: 1000, used_inodes: 3, quota_inodes: 3 };
    assert_eq!(world.run(&alice, Op::StatFs { volume: world.volume }), Ok(Reply::Space(full)));
    world.write(&alice, file, content(10, 10), false).unwrap();
    world.unlink(&alice, root, "a", false).unwrap();
    assert_eq!(world.space(), Space { used_bytes: 0, used_inodes: 2, ..full });
    assert_eq!(world.run(&alice, Op::StatFs { volume: VolumeId(99) }), Err(Denied::NotFound));
}

#[test]
fn bytes_that_cannot_be_counted_are_over_quota() {
    let mut world = World::new();
    let (root, alice, huge) = (world.root, user(ALICE), i64::MAX as u64);
    let results: Vec<_> = ["a", "b", "c"]
        .map(|text| {
            let file = world.file(ALICE, root, text, 0o600);
            world.write(&alice, file, content(huge, huge), false).err()
        })
        .into();
    assert_eq!(results, [None, None, Some(Denied::Quota)]);
}

// ---- Attributes ----

#[test]
fn a_new_inode_is_as_asked() {
    let mut world = World::new();
    let root = world.root;
    let before = world.attr(root);
    world.later(5);
    let attr = world.create(&user(ALICE), root, "a", new(Kind::File, 0o640)).unwrap();
    let now = at(START + 5);
    assert_eq!((attr.kind, attr.mode, attr.uid, attr.gid, attr.nlink), (Kind::File, 0o640, ALICE, ALICE, 1));
    assert_eq!((attr.size, attr.allocated, attr.rdev), (0, 0, 0));
    assert_eq!([attr.atime, attr.mtime, attr.ctime, attr.btime], [now; 4]);
    let after = world.attr(root);
    assert_eq!((after.size, after.nlink, after.mtime, after.ctime), (1, 2, now, now));
    assert_eq!(after.content_version, before.content_version + 1);
    assert_eq!(after.version, before.version + 1);
    assert_eq!(after.atime, before.atime);

    let symlink = world.create(&user(ALICE), root, "l", new(Kind::Symlink, 0)).unwrap();
    assert_eq!((symlink.mode, symlink.size), (0o777, 6));
    assert_eq!(world.run(&user(BOB), Op::ReadLink { ino: symlink.ino }), Ok(Reply::Target(sealed("target"))));
    assert_eq!(world.run(&user(BOB), Op::ReadLink { ino: attr.ino }), Err(Denied::Invalid));
    let subdirectory = world.create(&user(ALICE), root, "d", new(Kind::Directory, 0o700)).unwrap();
    assert_eq!((subdirectory.nlink, world.attr(root).nlink), (2, 3));
}

#[test]
fn only_root_makes_devices_and_targets_have_a_length() {
    let mut world = World::new();
    let root = world.root;
    for (index, kind) in [Kind::CharDevice, Kind::BlockDevice].into_iter().enumerate() {
        let text = format!("dev{index}");
        assert_eq!(world.create(&user(ALICE), root, &text, new(kind, 0o600)), Err(Denied::NotPermitted));
        assert_eq!(world.create(&user(ROOT), root, &text, new(kind, 0o600)).unwrap().rdev, 0x0801);
    }
    for (len, fits) in [(16, false), (17, true), (16 + 4095, true), (16 + 4096, false)] {
        let link = NewInode { target: Bytes::from(vec![1; len]), ..new(Kind::Symlink, 0) };
        let result = world.create(&user(ALICE), root, &format!("l{len}"), link);
        assert_eq!(result.map(|attr| attr.size), if fits { Ok(len as u64 - 16) } else { Err(Denied::Invalid) });
    }
    let aimed = NewInode { target: sealed("x"), ..new(Kind::File, 0o600) };
    assert_eq!(world.create(&user(ALICE), root, "f", aimed), Err(Denied::Invalid));
    assert_eq!(world.create(&user(ALICE), root, "f", new(Kind::File, 0o10_000)), Err(Denied::Invalid));
}

#[test]
fn create_meets_what_is_there() {
    let mut world = World::new();
    let root = world.root;
    let file = world.file(ALICE, root, "f", 0o600);
    world.dir(ALICE, root, "d", 0o700);
    world.create(&user(ALICE), root, "l", new(Kind::Symlink, 0)).unwrap();
    let mut create = |text: &str, kind, exclusive| {
        let op = Op::Create { parent: root, name: name(text), new: new(kind, 0o644), exclusive };
        world.run(&user(BOB), op)
    };
    let Ok(Reply::Created { attr, fresh: false }) = create("f", Kind::File, false) else { panic!() };
    assert_eq!((attr.ino, attr.mode), (file, 0o600));
    assert_eq!(create("f", Kind::File, true), Err(Denied::Exists));
    assert_eq!(create("d", Kind::File, false), Err(Denied::IsDirectory));
    assert_eq!(create("d", Kind::File, true), Err(Denied::Exists));
    assert_eq!(create("d", Kind::Directory, false), Err(Denied::Exists));
    assert_eq!(create("f", Kind::Directory, false), Err(Denied::Exists));
    assert_eq!(create("l", Kind::File, false), Err(Denied::Exists));
}

#[test]
fn set_gid_directories_hand_down_their_group() {
    let mut world = World::new();
    let (root, alice) = (world.root, member(ALICE, &[50]));
    let shared = world.dir(ALICE, root, "shared", 0o777);
    world.chown(&user(ROOT), shared, None, Some(50)).unwrap();
    world.chmod(&user(ROOT), shared, 0o2777).unwrap();
    let file = world.create(&alice, shared, "f", new(Kind::File, 0o2755)).unwrap();
    assert_eq!((file.gid, file.mode), (50, 0o2755));
    let strangers = world.create(&user(BOB), shared, "g", new(Kind::File, 0o2755)).unwrap();
    assert_eq!((strangers.gid, strangers.mode), (50, 0o755), "no set-gid for a group one is not in");
    let locking = world.create(&user(BOB), shared, "h", new(Kind::File, 0o2745)).unwrap();
    assert_eq!(locking.mode, 0o2745, "without group execute it is not a right");
    let subdirectory = world.create(&user(BOB), shared, "d", new(Kind::Directory, 0o755)).unwrap();
    assert_eq!((subdirectory.gid, subdirectory.mode), (50, 0o2755));
}

#[test]
fn chmod_is_for_the_owner_and_set_gid_for_the_group() {
    let mut world = World::new();
    let root = world.root;
    let file = world.file(ALICE, root, "f", 0o644);
    assert_eq!(world.chmod(&user(BOB), file, 0o666), Err(Denied::NotPermitted));
    assert_eq!(world.chmod(&user(ALICE), file, 0o17_777), Err(Denied::Invalid));
    assert_eq!(world.chmod(&user(ALICE), file, 0o6755).unwrap().mode, 0o6755);
    world.chown(&user(ROOT), file, None, Some(50)).unwrap();
    assert_eq!(world.chmod(&user(ALICE), file, 0o6755).unwrap().mode, 0o4755, "not of group 50");
    assert_eq!(world.chmod(&member(ALICE, &[50]), file, 0o6755).unwrap().mode, 0o6755);
    assert_eq!(world.chmod(&user(ROOT), file, 0o2711).unwrap().mode, 0o2711);
    let link = world.create(&user(ALICE), root, "l", new(Kind::Symlink, 0)).unwrap().ino;
    assert_eq!(world.chmod(&user(ALICE), link, 0o600), Err(Denied::Invalid));
}

#[test]
fn chown_is_for_root_and_chgrp_for_the_owner_among_its_groups() {
    let mut world = World::new();
    let root = world.root;
    let file = world.file(ALICE, root, "f", 0o755);
    let alice = member(ALICE, &[50]);
    assert_eq!(world.chown(&alice, file, Some(BOB), None), Err(Denied::NotPermitted));
    assert_eq!(world.chown(&alice, file, None, Some(60)), Err(Denied::NotPermitted));
    assert_eq!(world.chown(&member(BOB, &[50]), file, None, Some(50)), Err(Denied::NotPermitted));
    assert_eq!(world.chown(&alice, file, Some(ALICE), Some(50)).unwrap().gid, 50);
    assert_eq!(world.chown(&user(ALICE), file, None, Some(50)).unwrap().gid, 50, "unchanged");
    assert_eq!(world.chown(&user(ROOT), file, Some(BOB), Some(60)).unwrap().uid, BOB);
    assert_eq!(world.chown(&user(ROOT), file, Some(u32::MAX), None), Err(Denied::Invalid));
    assert_eq!(world.chown(&user(ROOT), file, None, Some(u32::MAX)), Err(Denied::Invalid));
}

#[test]
fn a_change_of_owner_takes_set_id_bits_away() {
    let mut world = World::new();
    let (root, alice) = (world.root, member(ALICE, &[50]));
    let file = world.file(ALICE, root, "f", 0o755);
    world.chmod(&alice, file, 0o6755).unwrap();
    assert_eq!(world.chown(&alice, file, None, Some(50)).unwrap().mode, 0o755);
    world.chmod(&alice, file, 0o6745).unwrap();
    assert_eq!(world.chown(&alice, file, None, Some(ALICE)).unwrap().mode, 0o2745, "set-gid without group execute");
    world.chmod(&user(ROOT), file, 0o4755).unwrap();
    assert_eq!(world.chown(&user(ROOT), file, Some(BOB), None).unwrap().mode, 0o755, "root's chown too");
    let both = AttrChange { mode: Some(0o4755), uid: Some(ALICE), ..AttrChange::default() };
    assert_eq!(world.set(&user(ROOT), file, both).unwrap().mode, 0o4755, "unless a mode is given with it");
    let directory = world.dir(ALICE, root, "d", 0o2755);
    assert_eq!(world.chown(&alice, directory, None, Some(50)).unwrap().mode, 0o2755, "directories keep theirs");
}

#[test]
fn times_are_set_by_the_owner_or_to_now_by_a_writer() {
    let mut world = World::new();
    let root = world.root;
    let file = world.file(ALICE, root, "f", 0o602);
    let past = at(42);
    let times = |atime, mtime| AttrChange { atime, mtime, ..AttrChange::default() };
    let set = Some(SetTime::At(past));
    assert_eq!(world.set(&user(BOB), file, times(set, None)), Err(Denied::NotPermitted));
    assert_eq!(world.set(&user(BOB), file, times(None, set)), Err(Denied::NotPermitted));
    world.later(9);
    let attr = world.set(&user(ALICE), file, times(set, None)).unwrap();
    assert_eq!((attr.atime, attr.mtime, attr.ctime), (past, at(START), at(START + 9)));
    world.later(1);
    let attr = world.set(&user(BOB), file, times(Some(SetTime::Now), Some(SetTime::Now))).unwrap();
    assert_eq!([attr.atime, attr.mtime, attr.ctime], [at(START + 10); 3]);
    world.chmod(&user(ALICE), file, 0o600).unwrap();
    assert_eq!(world.set(&user(BOB), file, times(None, Some(SetTime::Now))), Err(Denied::Access));
    let no_decoder_allows = SetTime::At(Timestamp { seconds: 0, nanos: 1_000_000_000 });
    let call = Call { caller: user(ROOT), op: Op::SetAttr { ino: file, change: times(Some(no_decoder_allows), None) } };
    let answers = world.state.apply_batch(world.now, &key(1), &Batch(vec![call]));
    assert_eq!(answers, [Answer::Denied(Denied::Invalid)]);
}

#[test]
fn an_empty_change_changes_nothing() {
    let mut world = World::new();
    let root = world.root;
    let (file, digest) = (world.file(ALICE, root, "f", 0o600), world.state.digest());
    let attr = world.attr(file);
    assert_eq!(world.set(&user(BOB), file, AttrChange::default()), Ok(attr));
    assert_eq!(world.state.digest(), digest);
}

// ---- Permissions ----

#[test]
fn the_first_class_that_fits_decides() {
    let mut world = World::new();
    let root = world.root;
    let file = world.file(ALICE, root, "f", 0o077);
    world.chown(&user(ROOT), file, None, Some(50)).unwrap();
    let mut may = |caller: &Caller, mask| world.run(caller, Op::Access { ino: file, mask });
    assert_eq!(may(&member(ALICE, &[50]), 4), Err(Denied::Access), "the owner's class gives nothing");
    assert_eq!(may(&member(BOB, &[50]), 7), Ok(Reply::Unit));
    assert_eq!(may(&Caller { uid: BOB, gid: 50, groups: vec![] }, 7), Ok(Reply::Unit));
    assert_eq!(may(&user(BOB), 7), Ok(Reply::Unit));
    assert_eq!(may(&user(ALICE), 0), Ok(Reply::Unit));
    assert_eq!(may(&user(BOB), 8), Err(Denied::Invalid));
    world.chmod(&user(ALICE), file, 0o705).unwrap();
    let mut may = |caller: &Caller, mask| world.run(caller, Op::Access { ino: file, mask });
    assert_eq!(may(&member(BOB, &[50]), 4), Err(Denied::Access), "the group's class gives nothing");
    assert_eq!(may(&user(BOB), 5), Ok(Reply::Unit));
    assert_eq!(may(&user(BOB), 6), Err(Denied::Access));
}

#[test]
fn root_may_anything_but_run_what_nobody_runs() {
    let mut world = World::new();
    let root = world.root;
    let file = world.file(ALICE, root, "f", 0);
    let directory = world.dir(ALICE, root, "d", 0);
    let mut may = |ino, mask| world.run(&user(ROOT), Op::Access { ino, mask });
    assert_eq!(may(file, 6), Ok(Reply::Unit));
    assert_eq!(may(file, 1), Err(Denied::Access));
    assert_eq!(may(directory, 7), Ok(Reply::Unit));
    world.chmod(&user(ROOT), file, 0o010).unwrap();
    assert_eq!(world.run(&user(ROOT), Op::Access { ino: file, mask: 1 }), Ok(Reply::Unit));
}

#[test]
fn names_are_found_with_search_and_changed_with_write_too() {
    let mut world = World::new();
    let root = world.root;
    let directory = world.dir(ALICE, root, "d", 0o777);
    let (file, bob) = (world.file(ALICE, directory, "f", 0o666), user(BOB));
    world.dir(ALICE, directory, "sub", 0o777);
    let changes = |world: &mut World| {
        [
            world.create(&bob, directory, "new", new(Kind::File, 0o600)).err(),
            world.link(&bob, file, directory, "new").err(),
            world.unlink(&bob, directory, "f", false).err(),
            world.rmdir(&bob, directory, "sub").err(),
            world.rename(&bob, (directory, "f"), (root, "moved"), RenameHow::Replace).err(),
            world.rename(&bob, (root, "d2"), (directory, "moved"), RenameHow::Replace).err(),
        ]
    };
    world.dir(ALICE, root, "d2", 0o777);
    world.chmod(&user(ALICE), directory, 0o776).unwrap();
    assert_eq!(changes(&mut world), [Some(Denied::Access); 6], "no search");
    assert_eq!(world.lookup(&bob, directory, "f"), Err(Denied::Access));
    assert!(world.run(&bob, Op::ReadDir { ino: directory, cookie: 0, max: 9 }).is_ok());
    world.chmod(&user(ALICE), directory, 0o775).unwrap();
    assert_eq!(changes(&mut world), [Some(Denied::Access); 6], "no write");
    assert!(world.lookup(&bob, directory, "f").is_ok());
    assert_eq!(world.lookup(&bob, directory, "none"), Err(Denied::NotFound));
    world.chmod(&user(ALICE), directory, 0o773).unwrap();
    assert_eq!(world.run(&bob, Op::ReadDir { ino: directory, cookie: 0, max: 9 }), Err(Denied::Access));
    assert_eq!(world.create(&bob, directory, "new", new(Kind::File, 0o600)).err(), None);
}

#[test]
fn in_a_sticky_directory_only_owners_take_names_away() {
    let mut world = World::new();
    let root = world.root;
    let temporary = world.dir(ALICE, root, "tmp", 0o1777);
    world.file(BOB, temporary, "bobs", 0o666);
    world.file(2000, temporary, "carols", 0o666);
    let carol = user(2000);
    let replace = RenameHow::Replace;
    assert_eq!(world.unlink(&carol, temporary, "bobs", false), Err(Denied::NotPermitted));
    let taken = world.rename(&carol, (temporary, "bobs"), (root, "mine"), replace);
    assert_eq!(taken, Err(Denied::NotPermitted));
    let over = world.rename(&carol, (temporary, "carols"), (temporary, "bobs"), replace);
    assert_eq!(over, Err(Denied::NotPermitted), "what is replaced counts too");
    let swapped = world.rename(&carol, (temporary, "carols"), (temporary, "bobs"), RenameHow::Exchange);
    assert_eq!(swapped, Err(Denied::NotPermitted));
    assert!(world.rename(&carol, (temporary, "carols"), (temporary, "new"), replace).is_ok());
    assert!(world.unlink(&user(ALICE), temporary, "new", false).is_ok(), "the directory's owner");
    assert!(world.unlink(&user(BOB), temporary, "bobs", false).is_ok(), "the file's owner");
    world.dir(BOB, temporary, "bobs", 0o777);
    assert_eq!(world.rmdir(&carol, temporary, "bobs"), Err(Denied::NotPermitted));
    assert!(world.rmdir(&user(ROOT), temporary, "bobs").is_ok(), "root");
}

// ---- Open and content ----

#[test]
fn open_asks_for_what_it_will_do() {
    let mut world = World::new();
    let root = world.root;
    let file = world.file(ALICE, root, "f", 0o641);
    world.write(&user(ALICE), file, content(10, 6), false).unwrap();
    let mut open = |uid, ino, mask| world.run(&user(uid), Op::Open { ino, mask });
    let Ok(Reply::Opened { attr, content: held }) = open(ALICE, file, 6) else { panic!() };
    assert_eq!((attr.size, attr.allocated, held), (10, 6, content(10, 6)));
    assert_eq!(open(BOB, file, 4), Err(Denied::Access));
    assert!(open(BOB, file, 1).is_ok(), "whoever may run it may have it");
    assert_eq!(open(BOB, file, 5), Err(Denied::Access));
    assert_eq!(open(ALICE, file, 0), Err(Denied::Invalid));
    assert_eq!(open(ALICE, file, 12), Err(Denied::Invalid));
    assert_eq!(open(ALICE, root, 2), Err(Denied::IsDirectory));
    assert_eq!(open(ALICE, root, 4), Err(Denied::Invalid));
    assert_eq!(open(ALICE, Ino(999), 4), Err(Denied::Stale));
}

#[test]
fn commit_binds_content_and_counts_versions() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let file = world.file(ALICE, root, "f", 0o600);
    let before = world.attr(file);
    world.later(3);
    let mut commit =
        Commit { ino: file, base: Some(1), content: content(7, 7), mtime: None, atime: None, opened: false };
    let Ok(Reply::Attr(after)) = world.run(&alice, Op::Commit(commit.clone())) else { panic!() };
    assert_eq!((after.size, after.allocated), (7, 7));
    assert_eq!((after.version, after.content_version), (before.version + 1, before.content_version + 1));
    assert_eq!((after.mtime, after.ctime, after.atime), (at(START + 3), at(START + 3), before.atime));
    assert_eq!(world.run(&alice, Op::Commit(commit.clone())), Err(Denied::Stale), "made from version 1");
    commit = Commit { base: Some(2), mtime: Some(at(1)), atime: Some(at(2)), ..commit };
    let Ok(Reply::Attr(after)) = world.run(&alice, Op::Commit(commit.clone())) else { panic!() };
    assert_eq!((after.mtime, after.atime, after.ctime), (at(1), at(2), at(START + 3)));
    assert!(world.run(&alice, Op::Commit(Commit { base: None, ..commit })).is_ok());
}

#[test]
fn content_has_limits() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let file = world.file(ALICE, root, "f", 0o600);
    let link = world.create(&alice, root, "l", new(Kind::Symlink, 0)).unwrap().ino;
    let recipe = |len| Content { sealed: Bytes::from(vec![1; len]), ..content(1, 1) };
    assert!(world.write(&alice, file, recipe(RECIPE_MAX), false).is_ok());
    assert_eq!(world.write(&alice, file, recipe(RECIPE_MAX + 1), false), Err(Denied::Invalid));
    assert_eq!(world.write(&alice, file, content(1, 2), false), Err(Denied::Invalid));
    assert!(world.write(&alice, file, content(i64::MAX as u64, 0), false).is_ok());
    assert_eq!(world.write(&alice, file, content(1 << 63, 0), false), Err(Denied::TooBig));
    assert_eq!(world.write(&alice, root, content(1, 1), false), Err(Denied::IsDirectory));
    assert_eq!(world.write(&alice, link, content(1, 1), false), Err(Denied::Invalid));
    assert_eq!(world.write(&alice, Ino(999), content(1, 1), false), Err(Denied::Stale));
}

#[test]
fn a_write_takes_set_id_bits_away_unless_by_root() {
    let mut world = World::new();
    let (root, writer) = (world.root, member(BOB, &[ALICE]));
    let file = world.file(ALICE, root, "f", 0o777);
    world.chmod(&user(ALICE), file, 0o6777).unwrap();
    assert_eq!(world.write(&user(ROOT), file, content(1, 1), false).unwrap().mode, 0o6777);
    assert_eq!(world.write(&writer, file, content(1, 1), false).unwrap().mode, 0o777);
    world.chmod(&user(ALICE), file, 0o2767).unwrap();
    assert_eq!(world.write(&writer, file, content(1, 1), false).unwrap().mode, 0o2767, "no group execute");
}

#[test]
fn an_open_file_stays_writable_to_those_who_could_open_it() {
    let mut world = World::new();
    let root = world.root;
    let file = world.file(ALICE, root, "f", 0o666);
    let (alice, bob) = (user(ALICE), user(BOB));
    let one = || content(1, 1);
    world.chmod(&alice, file, 0o644).unwrap();
    assert_eq!(world.write(&bob, file, one(), false), Err(Denied::Access), "as truncate would be");
    assert!(world.write(&bob, file, one(), true).is_ok(), "it was open when the mode changed");
    world.chmod(&alice, file, 0o444).unwrap();
    assert!(world.write(&bob, file, one(), true).is_ok(), "a second change forgets nothing");
    assert!(world.write(&alice, file, one(), true).is_ok(), "the owner made it so");
    assert_eq!(world.write(&alice, file, one(), false), Err(Denied::Access));
    world.later(ORPHAN_TERM.as_secs());
    assert_eq!(world.write(&bob, file, one(), true), Err(Denied::Access), "not for ever");
    world.chown(&user(ROOT), file, Some(2000), None).unwrap();
    assert!(world.write(&alice, file, one(), true).is_ok(), "the file was given away under it");
}

#[test]
fn a_creator_writes_to_what_it_made_unwritable() {
    let mut world = World::new();
    let root = world.root;
    let file = world.file(ALICE, root, "object", 0o444);
    assert!(world.write(&user(ALICE), file, content(1, 1), true).is_ok());
    assert_eq!(world.write(&user(ALICE), file, content(2, 2), false), Err(Denied::Access));
    assert_eq!(world.write(&user(BOB), file, content(2, 2), true), Err(Denied::Access));
}

#[test]
fn an_open_file_is_opened_again_by_those_who_could_open_it() {
    let mut world = World::new();
    let root = world.root;
    let file = world.file(ALICE, root, "object", 0o444);
    world.write(&user(ALICE), file, content(3, 3), true).unwrap();
    let secret = world.file(ROOT, root, "shadow", 0o600);
    let again = WRITE | OPENED;
    let open = |world: &mut World, uid, ino, mask| world.run(&user(uid), Op::Open { ino, mask });
    assert_eq!(open(&mut world, ALICE, file, WRITE), Err(Denied::Access), "as the mode has it");
    let Ok(Reply::Opened { content: held, .. }) = open(&mut world, ALICE, file, again) else { panic!() };
    assert_eq!(held, content(3, 3));
    assert_eq!(open(&mut world, BOB, file, again), Err(Denied::Access), "it never could");
    assert_eq!(open(&mut world, BOB, secret, again), Err(Denied::Access), "saying so opens nothing");
    assert_eq!(open(&mut world, ALICE, file, again | EXECUTE), Err(Denied::Access), "the rest goes by the mode");
    assert!(open(&mut world, ALICE, file, again | READ).is_ok());
    for mask in [OPENED, OPENED | READ, again | 16, 128 | again] {
        assert_eq!(open(&mut world, ALICE, file, mask), Err(Denied::Invalid), "{mask}");
    }
    assert_eq!(open(&mut world, ROOT, root, again), Err(Denied::IsDirectory));
    let access = Op::Access { ino: file, mask: again };
    assert_eq!(world.run(&user(ALICE), access), Err(Denied::Invalid), "only to open");

    world.chmod(&user(ALICE), file, 0o666).unwrap();
    world.chmod(&user(ALICE), file, 0o644).unwrap();
    assert!(open(&mut world, BOB, file, again).is_ok(), "it was open when the mode changed");
    world.later(ORPHAN_TERM.as_secs());
    assert_eq!(open(&mut world, BOB, file, again), Err(Denied::Access), "not for ever");
}

#[test]
fn the_last_four_permissions_are_remembered() {
    let mut world = World::new();
    let root = world.root;
    let file = world.file(ALICE, root, "f", 0o600);
    let owners = [2000, 2001, 2002, 2003, 2004];
    for uid in owners.into_iter().chain([BOB]) {
        world.chown(&user(ROOT), file, Some(uid), None).unwrap();
    }
    let may = |world: &mut World, uid| world.write(&user(uid), file, content(1, 1), true).is_ok();
    assert_eq!([ALICE, 2000].map(|uid| may(&mut world, uid)), [false; 2]);
    assert_eq!([2001, 2002, 2003, 2004, BOB].map(|uid| may(&mut world, uid)), [true; 5]);
}

#[test]
fn a_change_of_group_is_remembered_too() {
    let mut world = World::new();
    let root = world.root;
    let file = world.file(ALICE, root, "f", 0o660);
    let bob = member(BOB, &[ALICE]);
    world.chown(&user(ROOT), file, None, Some(50)).unwrap();
    assert_eq!(world.write(&bob, file, content(1, 1), false), Err(Denied::Access));
    assert!(world.write(&bob, file, content(1, 1), true).is_ok());
}

#[test]
fn saying_it_is_open_opens_nothing() {
    let mut world = World::new();
    let root = world.root;
    let secret = world.file(ROOT, root, "shadow", 0o600);
    assert_eq!(world.write(&user(BOB), secret, content(1, 1), true), Err(Denied::Access));
    world.chmod(&user(ROOT), secret, 0o640).unwrap();
    world.chown(&user(ROOT), secret, None, Some(42)).unwrap();
    assert_eq!(world.write(&user(BOB), secret, content(1, 1), true), Err(Denied::Access));
    assert_eq!(world.write(&member(BOB, &[42]), secret, content(1, 1), true), Err(Denied::Access));
}

// ---- Names ----

#[test]
fn links_share_an_inode() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let file = world.file(ALICE, root, "f", 0o600);
    let directory = world.dir(ALICE, root, "d", 0o700);
    world.later(1);
    let Ok(Reply::Attr(attr)) = world.link(&alice, file, directory, "g") else { panic!() };
    assert_eq!((attr.ino, attr.nlink, attr.ctime), (file, 2, at(START + 1)));
    assert_eq!(world.link(&alice, file, root, "f"), Err(Denied::Exists));
    assert_eq!(world.link(&alice, directory, root, "e"), Err(Denied::NotPermitted));
    assert_eq!(world.link(&alice, Ino(999), root, "e"), Err(Denied::Stale));
    assert_eq!(world.link(&alice, file, file, "e"), Err(Denied::NotDirectory));
    assert_eq!(world.unlink(&alice, root, "f", false), Ok(Reply::Unlinked { ino: file, nlink: 1 }));
    assert_eq!(world.attr(file).nlink, 1);
    assert_eq!(world.unlink(&alice, directory, "g", false), Ok(Reply::Unlinked { ino: file, nlink: 0 }));
    assert_eq!(world.run(&alice, Op::GetAttr { ino: file }), Err(Denied::Stale));
}

#[test]
fn links_are_limited() {
    let mut world = World::new();
    let root = world.root;
    let file = world.file(ALICE, root, "f", 0o600);
    let link = |index: u32| Call {
        caller: user(ALICE),
        op: Op::Link { ino: file, parent: root, name: name(&index.to_string()) },
    };
    for first in (1..LINKS_MAX).step_by(BATCH_MAX) {
        let batch = Batch((first..LINKS_MAX.min(first + BATCH_MAX as u32)).map(link).collect());
        let answers = world.state.apply_batch(world.now, &key(1), &batch);
        assert!(answers.iter().all(|answer| matches!(answer, Answer::Done(_))));
    }
    assert_eq!(world.attr(file).nlink, LINKS_MAX);
    assert_eq!(world.link(&user(ALICE), file, root, "one more"), Err(Denied::TooManyLinks));
}

#[test]
fn unlink_is_for_files_and_rmdir_for_empty_directories() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let directory = world.dir(ALICE, root, "d", 0o700);
    world.file(ALICE, root, "f", 0o600);
    world.file(ALICE, directory, "g", 0o600);
    assert_eq!(world.unlink(&alice, root, "d", false), Err(Denied::IsDirectory));
    assert_eq!(world.rmdir(&alice, root, "f"), Err(Denied::NotDirectory));
    assert_eq!(world.rmdir(&alice, root, "d"), Err(Denied::NotEmpty));
    assert_eq!(world.rmdir(&alice, root, "none"), Err(Denied::NotFound));
    assert_eq!(world.unlink(&alice, root, "none", false), Err(Denied::NotFound));
    world.unlink(&alice, directory, "g", false).unwrap();
    assert_eq!(world.rmdir(&alice, root, "d"), Ok(Reply::Unit));
    let attr = world.attr(root);
    assert_eq!((attr.nlink, attr.size), (2, 1));
    assert_eq!(world.run(&alice, Op::GetAttr { ino: directory }), Err(Denied::Stale));
    assert_eq!(world.file(ALICE, root, "h", 0o600), Ino(5), "numbers are not used again");
}

#[test]
fn a_directory_knows_its_parent() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let outer = world.dir(ALICE, root, "outer", 0o700);
    let inner = world.dir(ALICE, outer, "inner", 0o700);
    let file = world.file(ALICE, outer, "f", 0o600);
    let parent = |world: &mut World, uid, ino| match world.run(&user(uid), Op::Parent { ino }) {
        Ok(Reply::Attr(attr)) => Ok(attr.ino),
        Ok(other) => panic!("{other:?}"),
        Err(why) => Err(why),
    };
    assert_eq!(parent(&mut world, ALICE, inner), Ok(outer));
    assert_eq!(parent(&mut world, ALICE, root), Ok(root));
    assert_eq!(parent(&mut world, BOB, inner), Err(Denied::Access));
    assert_eq!(parent(&mut world, ALICE, file), Err(Denied::NotDirectory));
    world.rename(&alice, (outer, "inner"), (root, "inner"), RenameHow::Replace).unwrap();
    assert_eq!(parent(&mut world, ALICE, inner), Ok(root));
}

// ---- Rename ----

#[test]
fn rename_moves_and_replaces() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let (a, b) = (world.dir(ALICE, root, "a", 0o700), world.dir(ALICE, root, "b", 0o700));
    let (f, g) = (world.file(ALICE, a, "f", 0o600), world.file(ALICE, b, "g", 0o600));
    world.later(1);
    let Ok(Reply::Renamed { moved, replaced }) = world.rename(&alice, (a, "f"), (b, "g"), RenameHow::Replace) else {
        panic!()
    };
    assert_eq!((moved.ino, moved.ctime, replaced), (f, at(START + 1), Some((g, 0))));
    assert_eq!(world.lookup(&alice, a, "f"), Err(Denied::NotFound));
    assert_eq!(world.lookup(&alice, b, "g").unwrap().ino, f);
    let (from, to) = (world.attr(a), world.attr(b));
    assert_eq!((from.size, from.mtime, from.ctime), (0, at(START + 1), at(START + 1)));
    assert_eq!((to.size, to.mtime, to.ctime), (1, at(START + 1), at(START + 1)));
    let Ok(Reply::Renamed { replaced: Some((gone, 0)), .. }) =
        world.rename(&alice, (root, "a"), (root, "a"), RenameHow::Replace).and_then(|_| {
            world.dir(ALICE, b, "sub", 0o700);
            world.rename(&alice, (b, "sub"), (root, "a"), RenameHow::Replace)
        })
    else {
        panic!("an empty directory is replaced by a directory")
    };
    assert_eq!(gone, a);
    assert_eq!((world.attr(root).nlink, world.attr(b).nlink), (4, 2));
}

#[test]
fn rename_refuses_what_makes_no_sense() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let outer = world.dir(ALICE, root, "outer", 0o700);
    let inner = world.dir(ALICE, outer, "inner", 0o700);
    let file = world.file(ALICE, root, "f", 0o600);
    world.dir(ALICE, root, "empty", 0o700);
    let mut rename = |from, to, how| world.rename(&alice, from, to, how).err();
    let replace = RenameHow::Replace;
    assert_eq!(rename((root, "f"), (root, "outer"), replace), Some(Denied::IsDirectory));
    assert_eq!(rename((root, "outer"), (root, "f"), replace), Some(Denied::NotDirectory));
    assert_eq!(rename((root, "empty"), (root, "outer"), replace), Some(Denied::NotEmpty));
    assert_eq!(rename((root, "outer"), (outer, "x"), replace), Some(Denied::Invalid));
    assert_eq!(rename((root, "outer"), (inner, "x"), replace), Some(Denied::Invalid));
    assert_eq!(rename((outer, "inner"), (root, "outer"), replace), Some(Denied::NotEmpty));
    assert_eq!(rename((outer, "inner"), (root, "outer"), RenameHow::Exchange), Some(Denied::Invalid));
    assert_eq!(rename((root, "outer"), (outer, "inner"), RenameHow::Exchange), Some(Denied::Invalid));
    assert_eq!(rename((root, "none"), (root, "x"), replace), Some(Denied::NotFound));
    assert_eq!(rename((root, "f"), (root, "none"), RenameHow::Exchange), Some(Denied::NotFound));
    assert_eq!(rename((root, "f"), (root, "empty"), RenameHow::NoReplace), Some(Denied::Exists));
    assert_eq!(rename((root, "f"), (root, "f"), RenameHow::NoReplace), Some(Denied::Exists));
    assert_eq!(rename((root, "f"), (file, "x"), replace), Some(Denied::NotDirectory));
    assert_eq!(rename((root, "f"), (outer, "g"), RenameHow::NoReplace), None);
}

#[test]
fn rename_between_names_of_one_inode_does_nothing() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let file = world.file(ALICE, root, "f", 0o600);
    world.link(&alice, file, root, "g").unwrap();
    let digest = world.state.digest();
    for how in [RenameHow::Replace, RenameHow::Exchange] {
        let reply = world.rename(&alice, (root, "f"), (root, "g"), how);
        assert!(matches!(reply, Ok(Reply::Renamed { replaced: None, moved }) if moved.ino == file));
    }
    assert_eq!(world.state.digest(), digest);
}

#[test]
fn exchange_swaps_whatever_is_there() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let (a, b) = (world.dir(ALICE, root, "a", 0o700), world.dir(ALICE, root, "b", 0o700));
    let (directory, file) = (world.dir(ALICE, a, "x", 0o700), world.file(ALICE, b, "y", 0o600));
    world.file(ALICE, directory, "kept", 0o600);
    world.rename(&alice, (a, "x"), (b, "y"), RenameHow::Exchange).unwrap();
    assert_eq!(world.lookup(&alice, a, "x").unwrap().ino, file);
    assert_eq!(world.lookup(&alice, b, "y").unwrap().ino, directory);
    assert_eq!((world.attr(a).nlink, world.attr(b).nlink), (2, 3));
    assert_eq!(world.run(&alice, Op::Parent { ino: directory }), Ok(Reply::Attr(world.attr(b))));
    assert!(world.lookup(&alice, directory, "kept").is_ok());
}

#[test]
fn a_directory_leaves_its_parent_only_for_those_who_may_write_to_it() {
    let mut world = World::new();
    let root = world.root;
    let (shared, other) = (world.dir(ALICE, root, "shared", 0o777), world.dir(ALICE, root, "other", 0o777));
    world.dir(BOB, shared, "bobs", 0o755);
    world.file(BOB, shared, "file", 0o600);
    world.dir(2000, other, "carols", 0o700);
    let carol = user(2000);
    let mut rename = |from, to, how| world.rename(&carol, from, to, how).err();
    assert_eq!(rename((shared, "bobs"), (other, "x"), RenameHow::Replace), Some(Denied::Access));
    assert_eq!(rename((other, "carols"), (shared, "bobs"), RenameHow::Exchange), Some(Denied::Access));
    assert_eq!(rename((shared, "file"), (other, "file"), RenameHow::Replace), None, "files do not mind");
    assert_eq!(rename((shared, "bobs"), (shared, "renamed"), RenameHow::Replace), None, "its `..` stays");
}

#[test]
fn nothing_crosses_volumes() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let Ok(Reply::Volume(other)) = world.run(&user(ROOT), Op::VolumeCreate(spec("other"))) else { panic!() };
    let file = world.file(ALICE, root, "f", 0o600);
    assert_eq!(world.link(&alice, file, other.root, "f"), Err(Denied::CrossVolume));
    let moved = world.rename(&alice, (root, "f"), (other.root, "f"), RenameHow::Replace);
    assert_eq!(moved, Err(Denied::CrossVolume));
}

#[test]
fn a_walk_for_loops_is_bounded() {
    let mut world = World::new();
    let root = world.root;
    world.dir(ALICE, root, "d", 0o700);
    let mut deepest = root;
    let mut chain = Vec::new();
    for _ in 0..DEPTH_MAX {
        let create = Op::Create { parent: deepest, name: name("x"), new: new(Kind::Directory, 0o700), exclusive: true };
        let call = Call { caller: user(ALICE), op: create };
        let answers = world.state.apply_batch(world.now, &key(1), &Batch(vec![call]));
        let [Answer::Done(Reply::Created { attr, .. })] = &answers[..] else { panic!("{answers:?}") };
        deepest = attr.ino;
        chain.push(deepest);
    }
    let too_deep = world.rename(&user(ALICE), (root, "d"), (deepest, "d"), RenameHow::Replace);
    assert_eq!(too_deep, Err(Denied::Invalid));
    let above = chain[DEPTH_MAX - 2];
    assert!(world.rename(&user(ALICE), (root, "d"), (above, "d"), RenameHow::Replace).is_ok());
    assert!(world.rename(&user(ALICE), (above, "d"), (root, "d"), RenameHow::Replace).is_ok(), "upwards always");
}

// ---- Listing ----

#[test]
fn places_are_stable() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    for text in ["a", "b", "c"] {
        world.file(ALICE, root, text, 0o600);
    }
    let places = |world: &mut World| -> Vec<(u64, SealedName)> {
        world.list(root, 2).into_iter().map(|entry| (entry.cookie, entry.name)).collect()
    };
    assert_eq!(places(&mut world), [(3, name("a")), (4, name("b")), (5, name("c"))]);
    world.unlink(&alice, root, "b", false).unwrap();
    world.file(ALICE, root, "b", 0o600);
    assert_eq!(places(&mut world), [(3, name("a")), (5, name("c")), (6, name("b"))], "no place is used twice");
    world.rename(&alice, (root, "a"), (root, "d"), RenameHow::Replace).unwrap();
    assert_eq!(places(&mut world), [(3, name("d")), (5, name("c")), (6, name("b"))], "renamed in place");
    world.rename(&alice, (root, "d"), (root, "c"), RenameHow::Replace).unwrap();
    assert_eq!(places(&mut world), [(5, name("c")), (6, name("b"))], "takes the place of what it replaces");
}

#[test]
fn listings_are_bounded() {
    let mut world = World::new();
    let root = world.root;
    let long = |index: usize| format!("{index:0>255}");
    for first in (0..1000).step_by(250) {
        let call = |index| Call {
            caller: user(ALICE),
            op: Op::Create { parent: root, name: name(&long(index)), new: new(Kind::File, 0o600), exclusive: true },
        };
        let batch = Batch((first..first + 250).map(call).collect());
        world.state.apply_batch(world.now, &key(1), &batch);
    }
    use base::Encode as _;
    let reply = world.run(&user(ALICE), Op::ReadDir { ino: root, cookie: 0, max: u32::MAX }).unwrap();
    let len = reply.to_bytes().len();
    let Reply::Entries { entries, end: false } = reply else { panic!() };
    assert!((60_000..100_000).contains(&len) && entries.len() < 512, "{len} bytes, {} entries", entries.len());
    assert_eq!(world.list(root, 512).len(), 1000);
    assert_eq!(world.run(&user(ALICE), Op::ReadDir { ino: root, cookie: 0, max: 0 }), Err(Denied::Invalid));
    let past = world.run(&user(ALICE), Op::ReadDir { ino: root, cookie: u64::MAX, max: 5 });
    assert_eq!(past, Ok(Reply::Entries { entries: vec![], end: true }));

    let call = Call { caller: user(ALICE), op: Op::ReadDir { ino: root, cookie: 0, max: 512 } };
    let answers = world.state.apply_batch(world.now, &key(1), &Batch(vec![call; BATCH_MAX]));
    assert!(answers.to_bytes().len() < ANSWERS_LEN_MAX + 128 * 1024);
    assert!(matches!(answers[0], Answer::Done(_)));
    assert_eq!(answers[BATCH_MAX - 1], Answer::Denied(Denied::TooBig));
}

// ---- Orphans ----

#[test]
fn an_orphan_works_until_it_is_released() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let file = world.file(ALICE, root, "f", 0o600);
    world.unlink(&alice, root, "f", true).unwrap();
    assert_eq!((world.attr(file).nlink, world.state.counts().orphans), (0, 1));
    assert!(world.run(&alice, Op::Open { ino: file, mask: 6 }).is_ok());
    assert!(world.write(&alice, file, content(100, 100), true).is_ok());
    assert!(world.chmod(&alice, file, 0o400).is_ok());
    assert_eq!(world.space().used_bytes, 100);
    assert_eq!(world.link(&alice, file, root, "g"), Err(Denied::NotFound));
    world.key = key(2);
    assert_eq!(world.run(&alice, Op::ReleaseOrphan { ino: file }), Err(Denied::NotPermitted), "another key's");
    assert_eq!(world.run(&alice, Op::KeepOrphan { ino: file }), Err(Denied::NotPermitted));
    world.key = key(1);
    assert_eq!(world.run(&user(BOB), Op::ReleaseOrphan { ino: file }), Ok(Reply::Unit), "one mount, many users");
    assert_eq!(world.run(&alice, Op::GetAttr { ino: file }), Err(Denied::Stale));
    assert_eq!(world.run(&alice, Op::ReleaseOrphan { ino: file }), Err(Denied::Stale));
    assert_eq!(world.run(&alice, Op::KeepOrphan { ino: root }), Err(Denied::Invalid));
    assert_eq!((world.space().used_bytes, world.space().used_inodes), (0, 1));
}

#[test]
fn what_a_rename_replaces_can_be_kept() {
    let mut world = World::new();
    let root = world.root;
    let (from_name, to_name) = (name("f"), name("g"));
    world.file(ALICE, root, "f", 0o600);
    let kept = world.file(ALICE, root, "g", 0o600);
    let op = Op::Rename { from: root, from_name, to: root, to_name, how: RenameHow::Replace, keep: true };
    let Ok(Reply::Renamed { replaced, .. }) = world.run(&user(ALICE), op) else { panic!() };
    assert_eq!(replaced, Some((kept, 0)));
    assert_eq!(world.attr(kept).nlink, 0);
}

#[test]
fn an_orphan_goes_after_an_hour_unless_kept() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let (lost, kept) = (world.file(ALICE, root, "f", 0o600), world.file(ALICE, root, "g", 0o600));
    world.unlink(&alice, root, "f", true).unwrap();
    world.unlink(&alice, root, "g", true).unwrap();
    world.later(3599);
    assert_eq!(world.run(&alice, Op::KeepOrphan { ino: kept }), Ok(Reply::Unit));
    assert_eq!(world.attr(lost).nlink, 0);
    world.later(1);
    assert_eq!(world.run(&alice, Op::GetAttr { ino: lost }), Err(Denied::Stale));
    world.later(3598);
    assert_eq!(world.attr(kept).nlink, 0);
    world.later(1);
    assert_eq!(world.run(&alice, Op::GetAttr { ino: kept }), Err(Denied::Stale));
}

#[test]
fn orphans_are_reaped_a_few_at_a_time_and_the_oldest_first() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let files: Vec<_> = (0..40).map(|index| world.file(ALICE, root, &format!("f{index}"), 0o600)).collect();
    for index in 0..40 {
        world.later(1);
        world.unlink(&alice, root, &format!("f{index}"), true).unwrap();
    }
    world.later(10_000);
    world.state.apply_batch(world.now, &key(1), &Batch(vec![]));
    assert_eq!(world.state.counts().orphans, 24);
    let probe = |ino| Call { caller: user(ROOT), op: Op::GetAttr { ino } };
    let batch = Batch(vec![probe(files[16]), probe(files[18])]);
    let answers = world.state.apply_batch(world.now, &key(1), &batch);
    assert_eq!(answers[0], Answer::Denied(Denied::Stale));
    assert_eq!(world.state.counts().orphans, 6);
    world.state.apply_batch(world.now, &key(1), &Batch(vec![]));
    assert_eq!(world.state.counts().orphans, 0);
    assert_eq!(world.state.audit(), Ok(()));
}

#[test]
fn time_never_goes_back() {
    let mut world = World::new();
    let root = world.root;
    world.later(10);
    world.file(ALICE, root, "f", 0o600);
    world.now = base::Time::ZERO;
    let file = world.create(&user(ALICE), root, "g", new(Kind::File, 0o600)).unwrap();
    assert_eq!(file.ctime, at(START + 10));
    assert_eq!(world.state.now(), base::Time::from_parts(START + 10, 0));
}

// ---- Extended attributes ----

fn set(ino: Ino, class: XattrClass, text: &str, value: &[u8], how: XattrHow) -> Op {
    Op::SetXattr { ino, class, name: name(text), value: Bytes::copy_from_slice(value), how }
}

fn get(ino: Ino, class: XattrClass, text: &str) -> Op {
    Op::GetXattr { ino, class, name: name(text) }
}

#[test]
fn extended_attributes_are_set_read_listed_and_removed() {
    use XattrClass::{Trusted, User};
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let (file, other) = (world.file(ALICE, root, "f", 0o600), world.file(ALICE, root, "g", 0o600));
    let before = world.attr(file);
    world.later(1);
    assert_eq!(world.run(&alice, set(file, User, "a", b"1", XattrHow::Replace)), Err(Denied::NoAttribute));
    assert_eq!(world.run(&alice, set(file, User, "a", b"1", XattrHow::Create)), Ok(Reply::Unit));
    assert_eq!(world.run(&alice, set(file, User, "a", b"2", XattrHow::Create)), Err(Denied::Exists));
    assert_eq!(world.run(&alice, set(file, User, "a", b"", XattrHow::Replace)), Ok(Reply::Unit));
    assert_eq!(world.run(&alice, set(file, User, "b", b"3", XattrHow::Set)), Ok(Reply::Unit));
    assert_eq!(world.run(&user(ROOT), set(file, Trusted, "a", b"4", XattrHow::Set)), Ok(Reply::Unit));
    assert_eq!(world.run(&alice, set(other, User, "c", b"5", XattrHow::Set)), Ok(Reply::Unit));
    let after = world.attr(file);
    assert_eq!((after.version, after.ctime, after.mtime), (before.version + 4, at(START + 1), before.mtime));
    assert_eq!(after.content_version, before.content_version);

    assert_eq!(world.run(&alice, get(file, User, "a")), Ok(Reply::Value(Bytes::new())));
    assert_eq!(world.run(&user(ROOT), get(file, Trusted, "a")), Ok(Reply::Value(Bytes::from_static(b"4"))));
    assert_eq!(world.run(&alice, get(file, User, "c")), Err(Denied::NoAttribute));
    let users = vec![(User, name("a")), (User, name("b"))];
    let all = [users.clone(), vec![(Trusted, name("a"))]].concat();
    assert_eq!(world.run(&user(BOB), Op::ListXattr { ino: file }), Ok(Reply::Names(users)));
    assert_eq!(world.run(&user(ROOT), Op::ListXattr { ino: file }), Ok(Reply::Names(all)));
    let remove = Op::RemoveXattr { ino: file, class: User, name: name("a") };
    assert_eq!(world.run(&alice, remove.clone()), Ok(Reply::Unit));
    assert_eq!(world.run(&alice, remove), Err(Denied::NoAttribute));
    assert_eq!(world.state.counts().xattrs, 3);
    world.unlink(&alice, root, "f", false).unwrap();
    assert_eq!(world.state.counts().xattrs, 1, "they go with the inode");
}

#[test]
fn each_class_has_its_rules() {
    use XattrClass::{Security, System, Trusted, User};
    let mut world = World::new();
    let (root, alice, bob) = (world.root, user(ALICE), user(BOB));
    let file = world.file(ALICE, root, "f", 0o604);
    let fifo = world.create(&alice, root, "p", new(Kind::Fifo, 0o666)).unwrap().ino;
    let sticky = world.dir(ALICE, root, "t", 0o1777);
    for class in [User, Trusted, Security, System] {
        assert_eq!(world.run(&user(ROOT), set(file, class, "x", b"v", XattrHow::Set)), Ok(Reply::Unit));
    }
    let mut write = |caller: &Caller, ino, class| world.run(caller, set(ino, class, "x", b"v", XattrHow::Set)).err();
    assert_eq!(write(&alice, file, User), None);
    assert_eq!(write(&bob, file, User), Some(Denied::Access));
    assert_eq!(write(&user(ROOT), fifo, User), Some(Denied::NotPermitted));
    assert_eq!(write(&bob, sticky, User), Some(Denied::NotPermitted));
    assert_eq!(write(&alice, sticky, User), None);
    assert_eq!(write(&alice, file, Trusted), Some(Denied::NotPermitted));
    assert_eq!(write(&alice, file, Security), Some(Denied::NotPermitted));
    assert_eq!(write(&alice, file, System), None);
    assert_eq!(write(&bob, file, System), Some(Denied::NotPermitted));
    assert_eq!(write(&alice, Ino(999), User), Some(Denied::Stale));
    let mut read = |caller: &Caller, ino, class| world.run(caller, get(ino, class, "x")).err();
    assert_eq!(read(&bob, file, User), None);
    assert_eq!(read(&member(BOB, &[ALICE]), file, User), Some(Denied::Access));
    assert_eq!(read(&user(ROOT), fifo, User), Some(Denied::NoAttribute));
    assert_eq!(read(&alice, file, Trusted), Some(Denied::NoAttribute));
    assert_eq!(read(&bob, file, Security), None);
    assert_eq!(read(&bob, file, System), None);
    let remove = Op::RemoveXattr { ino: file, class: Security, name: name("x") };
    assert_eq!(world.run(&alice, remove), Err(Denied::NotPermitted));
}

#[test]
fn extended_attributes_are_limited() {
    use XattrClass::User;
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let file = world.file(ALICE, root, "f", 0o600);
    let biggest = vec![7; XATTR_VALUE_MAX + SEAL_LEN];
    let too_big = vec![7; XATTR_VALUE_MAX + SEAL_LEN + 1];
    assert_eq!(world.run(&alice, set(file, User, "a", &too_big, XattrHow::Set)), Err(Denied::AttributesFull));
    assert_eq!(world.run(&alice, set(file, User, "a", &biggest, XattrHow::Set)), Ok(Reply::Unit));
    assert_eq!(world.run(&alice, set(file, User, "b", &biggest, XattrHow::Set)), Err(Denied::AttributesFull));
    assert_eq!(world.run(&alice, set(file, User, "a", &biggest, XattrHow::Set)), Ok(Reply::Unit), "replaces itself");
    // What is left: the limit, less two names of 17 bytes with 32 each, less the first value.
    let left = XATTRS_LEN_MAX as usize - 2 * (17 + 32) - biggest.len();
    let refused = world.run(&alice, set(file, User, "b", &vec![7; left + 1], XattrHow::Set));
    assert_eq!(refused, Err(Denied::AttributesFull));
    assert_eq!(world.run(&alice, set(file, User, "b", &vec![7; left], XattrHow::Set)), Ok(Reply::Unit));
}
