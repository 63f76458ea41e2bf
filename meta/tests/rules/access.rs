//! Who may do what: grants, volumes, permissions.

use base::StateMachine as _;
use bytes::Bytes;
use meta::*;

use super::common::*;
use super::{ALICE, BOB, ROOT, member};

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
    assert_eq!(world.state.apply_batch(world.now, &key(9), &Batch::new(vec![call.clone(); 3])), refused);
    let too_many = Batch::new(vec![call; BATCH_MAX + 1]);
    assert_eq!(world.state.apply_batch(world.now, &key(1), &too_many), vec![Answer::Denied(Denied::Malformed)]);
}

#[test]
fn a_caller_names_a_bounded_number_of_groups() {
    let mut world = World::new();
    let ino = world.root;
    assert!(world.run(&member(5, &[6; GROUPS_MAX]), Op::GetAttr { ino }).is_ok());
    assert_eq!(world.run(&member(5, &[6; GROUPS_MAX + 1]), Op::GetAttr { ino }), Err(Denied::Malformed));
}

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
fn nobody_makes_more_bytes_than_can_be_counted() {
    let mut world = World::new();
    let (root, alice, most) = (world.root, user(ALICE), 1 << 50);
    let (long, sparse) = (i64::MAX as u64, 10);
    let file = world.file(ALICE, root, "a", 0o600);
    for (size, allocated, result) in [
        (long, long, Some(Denied::TooBig)),
        (long, most + 1, Some(Denied::TooBig)),
        (long, most, None),
        (long, sparse, None),
    ] {
        assert_eq!(world.write(&alice, file, content(size, allocated), false).err(), result);
    }
    assert_eq!(world.space().used_bytes, sparse);
}

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
