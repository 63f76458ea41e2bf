//! Access lists.

use meta::*;
use proptest::prelude::*;

use super::common::*;
use super::{ALICE, BOB, ROOT, member};

const CAROL: u32 = 1002;

fn named(named: &[(u32, u8)]) -> Vec<AclEntry> {
    named.iter().map(|(id, may)| AclEntry { id: *id, may: *may }).collect()
}

/// A list: what owner, group and others may, the mask, and who else is named.
fn acl((owner, group, other): (u8, u8, u8), mask: u8, users: &[(u32, u8)], groups: &[(u32, u8)]) -> Acl {
    Acl { owner, group, other, mask: Some(mask), users: named(users), groups: named(groups) }
}

fn minimal(owner: u8, group: u8, other: u8) -> Acl {
    Acl { owner, group, other, mask: None, users: vec![], groups: vec![] }
}

impl World {
    fn set_acl(&mut self, caller: &Caller, ino: Ino, kind: AclKind, acl: Option<Acl>) -> Result<Attr, Denied> {
        self.run(caller, Op::SetAcl { ino, kind, acl }).map(|reply| match reply {
            Reply::Attr(attr) => attr,
            other => panic!("{other:?}"),
        })
    }

    fn acl(&mut self, ino: Ino, kind: AclKind) -> Option<Acl> {
        match self.run(&user(BOB), Op::GetAcl { ino, kind }) {
            Ok(Reply::Acl(acl)) => Some(acl),
            Err(Denied::NoAttribute) => None,
            other => panic!("{other:?}"),
        }
    }

    fn may(&mut self, caller: &Caller, ino: Ino) -> u8 {
        let mut may = |mask| if self.run(caller, Op::Access { ino, mask }).is_ok() { mask } else { 0 };
        may(4) | may(2) | may(1)
    }
}

#[test]
fn named_users_and_groups_have_rights_within_the_mask() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let file = world.file(ALICE, root, "f", 0o640);
    world.later(1);
    let list = acl((6, 4, 0), 6, &[(BOB, 7)], &[(42, 2), (43, 4)]);
    let attr = world.set_acl(&alice, file, AclKind::Access, Some(list.clone())).unwrap();
    assert_eq!((attr.mode, attr.ctime), (0o660, at(START + 1)), "the mask is what the mode shows of the group");
    assert_eq!(world.acl(file, AclKind::Access), Some(list));
    assert_eq!(world.may(&alice, file), 6);
    assert_eq!(world.may(&user(BOB), file), 6, "7 within the mask");
    assert_eq!(world.may(&member(BOB, &[43]), file), 6, "a user who is named is not asked for groups");
    assert_eq!(world.may(&member(CAROL, &[ALICE]), file), 4);
    assert_eq!(world.may(&member(CAROL, &[42]), file), 2);
    let both = member(CAROL, &[42, 43]);
    assert_eq!(world.may(&both, file), 6, "each by another group");
    assert_eq!(world.run(&both, Op::Access { ino: file, mask: 6 }), Err(Denied::Access), "and no group gives both");
    assert_eq!(world.may(&user(CAROL), file), 0);
    assert_eq!(world.may(&member(ALICE, &[42]), file), 6);
    assert_eq!(world.may(&user(ROOT), file), 6, "nobody may execute it");
    // What they may do they can do.
    world.write(&user(BOB), file, content(1, 1), false).unwrap();
    assert_eq!(world.write(&member(CAROL, &[43]), file, content(1, 1), false), Err(Denied::Access));
}

#[test]
fn a_change_of_mode_changes_the_mask() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let file = world.file(ALICE, root, "f", 0o640);
    world.set_acl(&alice, file, AclKind::Access, Some(acl((6, 7, 0), 7, &[(BOB, 6)], &[]))).unwrap();
    assert_eq!(world.chmod(&alice, file, 0o741).unwrap().mode, 0o741);
    assert_eq!(world.acl(file, AclKind::Access), Some(acl((7, 7, 1), 4, &[(BOB, 6)], &[])));
    assert_eq!(world.may(&user(BOB), file), 4);
    assert_eq!(world.may(&member(CAROL, &[ALICE]), file), 4);
    world.chmod(&alice, file, 0o700).unwrap();
    assert_eq!(world.may(&user(BOB), file), 0);
    world.chmod(&alice, file, 0o770).unwrap();
    assert_eq!(world.may(&user(BOB), file), 6, "the list itself is as it was");
    // Without a list they are the group's again.
    assert_eq!(world.set_acl(&alice, file, AclKind::Access, None).unwrap().mode, 0o770);
    assert_eq!(world.acl(file, AclKind::Access), None);
    assert_eq!((world.may(&user(BOB), file), world.may(&member(BOB, &[ALICE]), file)), (0, 7));
    assert_eq!(world.set_acl(&alice, file, AclKind::Access, None), Err(Denied::NoAttribute));
}

#[test]
fn a_list_that_says_no_more_than_a_mode_is_one() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let file = world.file(ALICE, root, "f", 0o4640);
    world.set_acl(&alice, file, AclKind::Access, Some(acl((6, 4, 0), 6, &[(BOB, 6)], &[]))).unwrap();
    assert_eq!(world.set_acl(&alice, file, AclKind::Access, Some(minimal(7, 5, 1))).unwrap().mode, 0o4751);
    assert_eq!(world.acl(file, AclKind::Access), None);
    assert_eq!(world.may(&user(BOB), file), 1);
    // A mask alone is a list.
    assert_eq!(world.set_acl(&alice, file, AclKind::Access, Some(acl((7, 5, 1), 1, &[], &[]))).unwrap().mode, 0o4711);
    assert_eq!(world.may(&member(BOB, &[ALICE]), file), 1);
    assert_eq!(
        world.run(&alice, Op::ListXattr { ino: file }),
        Ok(Reply::Listed { names: vec![], access: true, default: false })
    );
    // As chmod does, it takes set-gid from who is not of the group.
    world.chown(&user(ROOT), file, None, Some(42)).unwrap();
    world.chmod(&user(ROOT), file, 0o2711).unwrap();
    assert_eq!(world.set_acl(&alice, file, AclKind::Access, Some(minimal(7, 1, 1))).unwrap().mode, 0o711);
}

#[test]
fn only_the_owner_sets_lists_and_they_are_bounded() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let (file, dir) = (world.file(ALICE, root, "f", 0o666), world.dir(ALICE, root, "d", 0o777));
    let link = world.create(&alice, root, "l", new(Kind::Symlink, 0)).unwrap().ino;
    let good = acl((6, 4, 0), 6, &[(BOB, 6)], &[]);
    let (access, default) = (AclKind::Access, AclKind::Default);
    for kind in [access, default] {
        assert_eq!(world.set_acl(&user(BOB), dir, kind, Some(good.clone())), Err(Denied::NotPermitted));
        world.set_acl(&user(ROOT), dir, kind, Some(good.clone())).unwrap();
        assert_eq!(world.set_acl(&user(BOB), dir, kind, None), Err(Denied::NotPermitted));
        world.set_acl(&alice, dir, kind, None).unwrap();
    }
    assert_eq!(world.set_acl(&alice, file, default, Some(good.clone())), Err(Denied::Access));
    assert_eq!(world.set_acl(&alice, link, access, Some(good.clone())), Err(Denied::Invalid));
    let wrong = [
        Acl { mask: None, ..good.clone() },
        Acl { mask: Some(8), ..good.clone() },
        Acl { owner: 8, ..good.clone() },
        acl((6, 4, 0), 6, &[(BOB, 8)], &[]),
        acl((6, 4, 0), 6, &[(BOB, 6), (ALICE, 6)], &[]),
        acl((6, 4, 0), 6, &[], &[(BOB, 6), (BOB, 6)]),
        acl((6, 4, 0), 6, &[(u32::MAX, 6)], &[]),
    ];
    for wrong in wrong {
        assert_eq!(world.set_acl(&alice, dir, access, Some(wrong.clone())), Err(Denied::Invalid), "{wrong:?}");
        assert_eq!(world.set_acl(&alice, dir, default, Some(wrong)), Err(Denied::Invalid));
    }
    let many: Vec<_> = (0..ACL_NAMED_MAX as u32).map(|id| (id, 7)).collect();
    world.set_acl(&alice, dir, access, Some(acl((7, 7, 7), 7, &many, &[]))).unwrap();
    let more = acl((7, 7, 7), 7, &many, &[(1, 7)]);
    assert_eq!(world.set_acl(&alice, dir, access, Some(more)), Err(Denied::AttributesFull));
}

#[test]
fn what_is_made_in_a_directory_has_its_default_list_and_no_umask() {
    let mut world = World::new();
    let (root, alice) = (world.root, user(ALICE));
    let dir = world.dir(ALICE, root, "d", 0o755);
    let masked = |kind, mode| NewInode { umask: 0o077, ..new(kind, mode) };
    let plain = world.create(&alice, dir, "plain", masked(Kind::File, 0o666)).unwrap();
    assert_eq!(plain.mode, 0o600);
    let default = acl((7, 5, 0), 7, &[(BOB, 6)], &[(42, 7)]);
    let before = world.attr(dir);
    world.set_acl(&alice, dir, AclKind::Default, Some(default.clone())).unwrap();
    assert_eq!((world.attr(dir).mode, world.may(&user(BOB), dir)), (before.mode, 5), "it is not for the directory");

    let file = world.create(&alice, dir, "file", masked(Kind::File, 0o2664)).unwrap();
    assert_eq!(file.mode, 0o2660, "what both allow");
    assert_eq!(world.acl(file.ino, AclKind::Access), Some(acl((6, 5, 0), 6, &[(BOB, 6)], &[(42, 7)])));
    assert_eq!(world.acl(file.ino, AclKind::Default), None);
    let inner = world.create(&alice, dir, "inner", masked(Kind::Directory, 0o700)).unwrap();
    assert_eq!(inner.mode, 0o700);
    assert_eq!(world.acl(inner.ino, AclKind::Access), Some(acl((7, 5, 0), 0, &[(BOB, 6)], &[(42, 7)])));
    assert_eq!(world.acl(inner.ino, AclKind::Default), Some(default.clone()));
    let op = Op::CreateUnnamed { parent: inner.ino, new: masked(Kind::File, 0o666) };
    let Ok(Reply::Created { attr: unnamed, .. }) = world.run(&alice, op) else { panic!("refused") };
    assert_eq!(unnamed.mode, 0o660);
    assert_eq!(world.acl(unnamed.ino, AclKind::Access), Some(acl((6, 5, 0), 6, &[(BOB, 6)], &[(42, 7)])));
    let link = world.create(&alice, dir, "link", masked(Kind::Symlink, 0o777)).unwrap();
    assert_eq!((link.mode, world.acl(link.ino, AclKind::Access)), (0o777, None));
    // What is there already, or comes from elsewhere, stays as it is.
    world.rename(&alice, (dir, "plain"), (inner.ino, "plain"), RenameHow::Replace).unwrap();
    assert_eq!((world.attr(plain.ino).mode, world.acl(plain.ino, AclKind::Access)), (0o600, None));

    // A default list that is no more than a mode.
    world.set_acl(&alice, dir, AclKind::Default, Some(minimal(7, 7, 5))).unwrap();
    let file = world.create(&alice, dir, "second", masked(Kind::File, 0o666)).unwrap();
    assert_eq!((file.mode, world.acl(file.ino, AclKind::Access)), (0o664, None));
    assert_eq!(
        world.create(&alice, dir, "third", NewInode { umask: 0o1000, ..new(Kind::File, 0) }),
        Err(Denied::Invalid)
    );
}

#[test]
fn who_opened_a_file_by_a_list_writes_on_after_the_list_is_gone() {
    let mut world = World::new();
    let (root, alice, bob) = (world.root, user(ALICE), user(BOB));
    let file = world.file(ALICE, root, "f", 0o600);
    world.set_acl(&alice, file, AclKind::Access, Some(acl((6, 0, 0), 6, &[(BOB, 6)], &[]))).unwrap();
    world.set_acl(&alice, file, AclKind::Access, Some(minimal(6, 0, 0))).unwrap();
    assert_eq!(world.write(&bob, file, content(1, 1), false), Err(Denied::Access));
    assert_eq!(world.write(&user(CAROL), file, content(1, 1), true), Err(Denied::Access));
    world.write(&bob, file, content(1, 1), true).unwrap();
    world.later(ORPHAN_TERM.as_secs());
    assert_eq!(world.write(&bob, file, content(1, 1), true), Err(Denied::Access));
}

#[test]
fn directories_are_searched_and_changed_by_their_lists() {
    let mut world = World::new();
    let (root, alice, bob) = (world.root, user(ALICE), user(BOB));
    let dir = world.dir(ALICE, root, "d", 0o700);
    world.file(ALICE, dir, "f", 0o600);
    assert_eq!(world.lookup(&bob, dir, "f"), Err(Denied::Access));
    world.set_acl(&alice, dir, AclKind::Access, Some(acl((7, 0, 0), 7, &[(BOB, 1)], &[]))).unwrap();
    world.lookup(&bob, dir, "f").unwrap();
    assert_eq!(world.run(&bob, Op::ReadDir { ino: dir, cookie: 0, max: 9 }), Err(Denied::Access));
    assert_eq!(world.unlink(&bob, dir, "f", false), Err(Denied::Access));
    world.set_acl(&alice, dir, AclKind::Access, Some(acl((7, 0, 0), 7, &[(BOB, 7)], &[]))).unwrap();
    world.rename(&bob, (dir, "f"), (dir, "g"), RenameHow::Replace).unwrap();
    world.unlink(&bob, dir, "g", false).unwrap();
    assert_eq!(world.unnamed(&user(CAROL), dir, 0o600), Err(Denied::Access));
    world.unnamed(&bob, dir, 0o600).unwrap();
}

/// Who may do what, in the words of POSIX.1e draft 17, §23.1.5.
fn judge(caller: &Caller, (uid, gid): (u32, u32), acl: &Acl, wanted: u8) -> bool {
    let mask = acl.mask.unwrap_or(7);
    let grants = |may: u8| may & wanted == wanted;
    let of_group = |id: u32| caller.gid == id || caller.groups.contains(&id);
    if caller.uid == uid {
        return grants(acl.owner);
    }
    for user in &acl.users {
        if user.id == caller.uid {
            return grants(user.may) && grants(mask);
        }
    }
    let mut matched = false;
    if of_group(gid) {
        matched = true;
        if grants(acl.group) && grants(mask) {
            return true;
        }
    }
    for group in &acl.groups {
        if of_group(group.id) {
            matched = true;
            if grants(group.may) && grants(mask) {
                return true;
            }
        }
    }
    !matched && grants(acl.other)
}

fn any_acl() -> impl Strategy<Value = Acl> {
    let entries = || {
        proptest::collection::btree_map(1..5u32, 0..8u8, 0..4)
            .prop_map(|map| map.into_iter().map(|(id, may)| AclEntry { id, may }).collect::<Vec<_>>())
    };
    (0..8u8, 0..8u8, 0..8u8, proptest::option::of(0..8u8), entries(), entries()).prop_map(
        |(owner, group, other, mask, users, groups)| match mask {
            Some(mask) => Acl { owner, group, other, mask: Some(mask), users, groups },
            None => minimal(owner, group, other),
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn access_is_as_the_standard_words_it(
        acl in any_acl(), uid in 1..5u32, gid in 1..5u32,
        callers in proptest::collection::vec((1..6u32, 1..6u32, proptest::collection::vec(1..6u32, 0..3)), 1..8)
    ) {
        let mut world = World::new();
        let file = world.file(ROOT, world.root, "f", 0);
        world.chown(&user(ROOT), file, Some(uid), Some(gid)).unwrap();
        world.set_acl(&user(ROOT), file, AclKind::Access, Some(acl.clone())).unwrap();
        for (caller, group, groups) in callers {
            let caller = Caller { uid: caller, gid: group, groups };
            for wanted in 1..8u8 {
                let found = world.run(&caller, Op::Access { ino: file, mask: wanted }).is_ok();
                prop_assert_eq!(found, judge(&caller, (uid, gid), &acl, wanted), "{:?} wants {}", caller, wanted);
            }
        }
    }
}
