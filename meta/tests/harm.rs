//! Leases when there is too much of everything, or somebody is silent, or tricky: nobody believes what is not so,
//! and nobody waits for more than a term.

mod common;

use std::time::Duration;

use base::Encode as _;
use common::mount::Mount;
use common::*;
use meta::*;
use proptest::prelude::*;

fn share(world: &mut World, mounts: &mut [Mount], who: usize, directory: Ino) {
    while let Err(why) = mounts[who].hold(world, directory, true) {
        assert_eq!(why, Denied::Leased);
        for mount in mounts.iter_mut() {
            if world.state.recalled().any(|id| *id == mount.me) {
                mount.heed(world);
            }
        }
    }
    mounts[who].fetch(world, directory).unwrap();
}

fn share_both(world: &mut World, mounts: &mut [Mount], directory: Ino) {
    [0, 1, 0, 1].into_iter().for_each(|who| share(world, mounts, who, directory));
}

fn chmod(ino: Ino, mode: u16) -> Op {
    Op::SetAttr { ino, change: AttrChange { mode: Some(mode), ..AttrChange::default() } }
}

fn run(world: &mut World, seed: u8, uid: u32, ops: Vec<Op>, by: Option<By>) -> Answers {
    let calls = ops.into_iter().map(|op| Call { caller: user(uid), op }).collect();
    world.state.apply_batch(world.now, &key(seed), &Batch { calls, by })
}

fn hold(number: u64, ino: Ino) -> Op {
    Op::Hold { holder: number, ino, instead: 0, shared: true }
}

/// Asks for a lease as a holder that begins anew, whoever has its number.
fn hold_anew(world: &mut World, seed: u8, uid: u32, number: u64, ino: Ino) -> Answers {
    match run(world, seed, uid, vec![hold(number, ino)], None)[..] {
        [Answer::Done(Reply::Taken { epoch: instead })] => {
            run(world, seed, uid, vec![Op::Hold { holder: number, ino, instead, shared: true }], None)
        }
        ref answers => answers.to_vec(),
    }
}

#[test]
fn what_is_given_back_in_many_pieces_is_known_to_both_sides() {
    let mut world = World::new();
    let top = world.dir(0, world.root, "top", 0o755);
    let directories: Vec<Ino> = (0..540).map(|i| world.dir(0, top, &format!("d{i}"), 0o755)).collect();
    let mut mounts = vec![Mount::new(1), Mount::new(2)];
    share_both(&mut world, &mut mounts, top);
    for directory in &directories {
        let op = chmod(*directory, 0o711);
        while mounts[1].ordered(&mut world, op.clone()) == Err(Denied::Leased) {
            mounts[0].heed(&mut world);
        }
        mounts[1].copy.doubt(&op);
        for (mount, ino) in [(&mounts[0], top), (&mounts[0], *directory), (&mounts[1], top)] {
            let believes = mount.copy.is_read_by(ino, &mount.me);
            assert!(!believes || world.state.is_read_by(ino, &mount.me), "{directory:?}");
        }
    }
    assert!(!mounts[0].copy.is_read_by(top, &mounts[0].me), "in the end there was no room for pieces");
}

fn lock_of(ino: Ino, owner: u64) -> Op {
    let (kind, mode, how) = (LockKind::Flock, LockMode::Exclusive, LockHow::Try);
    Op::Lock(LockRequest { ino, owner, kind, mode, start: 0, end: i64::MAX as u64, pid: 1, how })
}

#[test]
fn locks_taken_while_a_directory_was_shared_are_known_however_it_becomes_one_holders() {
    // Part of what was shared; and what was shared with all around it.
    for inner in [true, false] {
        let mut world = World::new();
        let top = world.dir(0, world.root, "top", 0o755);
        let sub = world.dir(0, top, "sub", 0o755);
        let ino = world.file(0, sub, "file", 0o644);
        let mut mounts = vec![Mount::new(1), Mount::new(2)];
        share_both(&mut world, &mut mounts, top);
        share_both(&mut world, &mut mounts, sub);
        let locked = mounts[1].ordered(&mut world, lock_of(ino, 7));
        assert_eq!(locked, Ok(Reply::Locked(Locked::Granted)));
        let wanted = if inner { sub } else { top };
        world.later(25);
        assert_eq!(mounts[0].hold(&mut world, wanted, false), Err(Denied::Leased));
        mounts[1].heed(&mut world);
        world.later(2);
        let wanted = if inner { sub } else { world.root };
        mounts[0].hold(&mut world, wanted, false).unwrap();
        assert!(world.state.is_held_by(sub, &mounts[0].me));
        for directory in [None, Some(world.root), Some(top), Some(sub)] {
            // Before it has fetched them again, and after.
            let _ = directory.map(|directory| mounts[0].fetch(&mut world, directory));
            assert_ne!(mounts[0].copy.locally(&lock_of(ino, 8), &mounts[0].me), Local::Can);
        }
        assert!(mounts[0].copy.is_held_by(sub, &mounts[0].me) && mounts[0].copy.has_inode(ino));
    }
}

#[test]
fn a_silent_one_is_waited_for_once_however_deep_it_goes() {
    // Whether it may only look there, or have it alone.
    [0o755, 0o777].into_iter().for_each(wait_for_a_silent_one);
}

fn wait_for_a_silent_one(mode: u16) {
    let mut world = World::new();
    let mut directories = vec![world.dir(0, world.root, "d", mode)];
    for level in 0..8 {
        let around = *directories.last().unwrap();
        directories.push(world.dir(0, around, &format!("d{level}"), mode));
    }
    let deep = *directories.last().unwrap();
    let me = Mount::new(9);
    assert!(matches!(hold_anew(&mut world, 2, 1000, 1, directories[0])[..], [Answer::Done(_)]));
    let (mut waited, mut level) = (0, 0);
    while me.ordered(&mut world, chmod(deep, 0o700)) == Err(Denied::Leased) {
        world.later(1);
        waited += 1;
        if waited % 60 == 59 && level < 7 {
            level += 1;
            hold_anew(&mut world, 2, 1000, 1, directories[level]);
        }
        assert!(waited <= 62, "more than a term");
    }
}

#[test]
fn a_silent_one_does_not_share_it_again_at_once() {
    let mut world = World::new();
    let (top, root) = (world.dir(0, world.root, "top", 0o755), world.root);
    let directory = world.dir(0, top, "dir", 0o755);
    let (me, mut honest, mut second) = (Mount::new(9), Mount::new(3), Mount::new(4));
    honest.hold(&mut world, root, true).unwrap();
    assert_eq!(second.hold(&mut world, root, true), Err(Denied::Leased));
    honest.heed(&mut world);
    second.hold(&mut world, root, true).unwrap();
    let (mut waited, mut passed) = (0, 0);
    for round in 0..10 {
        hold_anew(&mut world, 2, 1000, 1, directory);
        while me.ordered(&mut world, chmod(directory, 0o755 | (round % 2) << 4)) == Err(Denied::Leased) {
            second.heed(&mut world);
            world.later(1);
            (waited, passed) = (waited + 1, passed + 1);
        }
        world.later(3);
        passed += 3;
    }
    assert!(waited <= 2 * 62 && passed < 160, "{waited} of {passed} s for 10 changes");
}

#[test]
fn nobody_shares_what_he_may_not_look_at() {
    let mut world = World::new();
    let secret = world.dir(0, world.root, "secret", 0o700);
    let public = world.dir(0, world.root, "public", 0o755);
    let root = world.root;
    let (mut first, mut second) = (Mount::new(1), Mount::new(2));
    first.hold(&mut world, root, true).unwrap();
    assert_eq!(second.hold(&mut world, root, true), Err(Denied::Leased));
    first.heed(&mut world);
    second.hold(&mut world, root, true).unwrap();
    assert!(second.ordered(&mut world, chmod(root, 0o700)).is_ok());
    world.later(3);
    let stranger = (key(2), 1);
    assert!(matches!(hold_anew(&mut world, 2, 1000, 1, public)[..], [Answer::Done(_)]));
    assert_eq!([root, secret, public].map(|ino| world.state.is_read_by(ino, &stranger)), [false, false, true]);
    assert!(world.state.is_read_by(public, &second.me), "nobody else lost it");
    assert_eq!(world.state.audit(), Ok(()));
}

#[test]
fn answers_about_leases_are_short_however_many_share_how_much() {
    let mut world = World::new();
    let top = world.dir(0, world.root, "top", 0o755);
    let directories: Vec<Ino> = (0..510).map(|i| world.dir(0, top, &format!("d{i}"), 0o755)).collect();
    for (seed, uid, mine) in [(2, 1000, &directories[..255]), (3, 2000, &directories[255..])] {
        for number in 0..62 {
            let first = hold_anew(&mut world, seed, uid, number, mine[0]).pop().unwrap();
            let Answer::Done(Reply::Held { epoch, .. }) = first else { panic!("{first:?}") };
            for part in mine[1..].chunks(50) {
                let ops = part.iter().map(|ino| hold(number, *ino)).collect();
                run(&mut world, seed, uid, ops, Some(By { holder: number, epoch, log: None }));
            }
        }
    }
    assert_eq!(world.state.audit(), Ok(()));
    // Whoever may have it alone, if there were not so many, can look.
    for (seed, uid) in [(1, 0), (3, 2000)] {
        let held = hold_anew(&mut world, seed, uid, 63, top);
        let [Answer::Done(Reply::Held { epoch, .. })] = &held[..] else { panic!("{held:?}") };
        let fetch = vec![Op::Fetch { ino: top, cookie: 0, also: directories.clone() }];
        let by = Some(By { holder: 63, epoch: *epoch, log: None });
        let fetched = run(&mut world, seed, uid, fetch, by);
        assert!(matches!(fetched[..], [Answer::Done(Reply::Rows { .. })]));
        assert!(held.to_bytes().len() < 130 << 10 && fetched.to_bytes().len() < 130 << 10);
    }
}

#[test]
fn what_is_fetched_ahead_is_what_may_be_read_and_fits() {
    let mut world = World::new();
    let top = world.dir(0, world.root, "top", 0o777);
    let [open, secret, there] = [("open", 0o755), ("secret", 0o700), ("there", 0o755)].map(|(name, mode)| {
        let made = world.dir(0, top, name, mode);
        for index in 0..40 {
            world.dir(0, made, &format!("d{index}"), 0o755);
        }
        made
    });
    let empty = world.dir(0, top, "empty", 0o755);
    let elsewhere = world.dir(0, world.root, "elsewhere", 0o755);
    let held = hold_anew(&mut world, 2, 1000, 1, top).pop();
    let Some(Answer::Done(Reply::Held { epoch, .. })) = held else { panic!("{held:?}") };
    let fetch = |world: &mut World, also: Vec<Ino>| {
        let by = Some(By { holder: 1, epoch, log: None });
        let fetched = run(world, 2, 1000, vec![Op::Fetch { ino: top, cookie: 0, also }], by);
        assert!(fetched.to_bytes().len() < 100 << 10);
        match &fetched[..] {
            [Answer::Done(Reply::Rows { rows, whole, next: None })] => (rows.len(), whole.clone()),
            other => panic!("{other:?}"),
        }
    };
    let (alone, whole) = fetch(&mut world, Vec::new());
    assert_eq!(whole, [top]);
    let (rows, whole) = fetch(&mut world, vec![secret, elsewhere, Ino(999_999), open]);
    assert_eq!((rows, whole), (alone + 81, vec![top, open]), "itself, and forty names with what they lead to");
    let (rows, whole) = fetch(&mut world, [open, there].repeat(1000));
    assert!((3..65).contains(&whole.len()) && rows == alone + 81 * (whole.len() - 1), "{} in {rows}", whole.len());
    assert_eq!(fetch(&mut world, [empty].repeat(1000)).1.len(), 1 + meta::ALSO_MAX);
}

#[test]
fn whoever_is_kept_busy_with_what_others_ask_for_is_asked_all_the_same() {
    let mut world = World::new();
    let top = world.dir(0, world.root, "top", 0o755);
    let wanted = world.dir(0, top, "wanted", 0o755);
    let directories: Vec<Ino> = (0..640).map(|i| world.dir(0, top, &format!("d{i}"), 0o755)).collect();
    let first = hold_anew(&mut world, 2, 1000, 1, top).pop().unwrap();
    let Answer::Done(Reply::Held { epoch, .. }) = first else { panic!("{first:?}") };
    let by = || Some(By { holder: 1, epoch, log: None });
    let (me, mut waited) = (Mount::new(9), 0);
    let mut parts = directories.chunks(64);
    let ask = |world: &mut World, part: &[Ino]| {
        run(world, 3, 2000, part.iter().map(|ino| chmod(*ino, 0o711)).collect(), None);
        part.to_vec()
    };
    let mut asked = ask(&mut world, parts.next().unwrap());
    while me.ordered(&mut world, chmod(wanted, 0o711)) == Err(Denied::Leased) {
        world.now = world.now.after(Duration::from_secs(1));
        waited += 1;
        assert!(waited <= 62, "more than a term");
        if waited % 50 == 0 {
            run(&mut world, 2, 1000, vec![Op::Cede { directories: asked.clone() }], by());
            run(&mut world, 2, 1000, vec![Op::Renew], by());
            asked = ask(&mut world, parts.next().expect("it is over by then"));
        }
    }
}

#[test]
fn whoever_makes_room_for_another_is_counted_nowhere_any_more() {
    let mut world = World::new();
    let around = world.dir(2000, world.root, "around", 0o700);
    let inner = world.dir(2000, around, "inner", 0o755);
    assert!(world.run(&user(0), chmod(around, 0o500)).is_ok());
    world.later(3);
    // One of a key's users shares what is around it; then its time is up, and the key has as many holders as it may.
    assert!(matches!(hold_anew(&mut world, 3, 2000, 1, around)[..], [Answer::Done(_)]));
    world.later(61);
    for holder in 2..=64 {
        let enrolled = run(&mut world, 3, 2000, vec![Op::Enroll { holder, instead: 0 }], None);
        assert!(matches!(enrolled[..], [Answer::Done(_)]));
    }
    // Another of its users may look at the inner one only, and needs the first one's place.
    let cut = hold_anew(&mut world, 3, 2001, 65, inner);
    assert_eq!(cut, [Answer::Denied(Denied::Contended)]);
    assert_eq!(world.state.audit(), Ok(()));
    assert!(!world.state.is_read_by(around, &(key(3), 1)), "it was the one that had to go");
}

/// One thing that somebody sends: whose key, as which holder, about which directory, what, and how much later.
type Sent = (u8, u64, usize, u8, u64);

fn play(crowded: bool, steps: &[Sent]) {
    let mut world = World::new();
    let mut directories = vec![world.root];
    for (index, mode) in [0o755, 0o777, 0o700, 0o500, 0o755, 0o777, 0o711, 0o755].into_iter().enumerate() {
        let around = directories[index / 2];
        let uid = [0, 1000, 2000][index % 3];
        let made = world.dir(0, around, &format!("d{index}"), mode);
        let change = AttrChange { uid: Some(uid), ..AttrChange::default() };
        world.run(&user(0), Op::SetAttr { ino: made, change }).unwrap();
        directories.push(made);
    }
    // With as many holders as a key may have, each new one takes another's place.
    for holder in (0..62).filter(|_| crowded) {
        run(&mut world, 3, 2000, vec![Op::Enroll { holder: 1000 + holder, instead: 0 }], None);
    }
    let mut epochs = std::collections::BTreeMap::new();
    for (who, number, place, what, later) in steps {
        let (seed, uid) = [(3, 2000), (3, 2001), (3, 2000), (3, 2001), (1, 0), (2, 1000)][usize::from(who % 6)];
        let ino = directories[place % directories.len()];
        let known = epochs.get(&(seed, *number)).copied();
        let by = known.map(|epoch| By { holder: *number, epoch, log: None });
        let (fresh, shared) = (what % 8 == 0, what % 3 > 0);
        let instead = known.filter(|_| fresh).unwrap_or(0);
        let op = match what / 8 % 8 {
            0..=3 => Op::Hold { holder: *number, ino, instead, shared },
            4 => Op::Cede { directories: directories.clone() },
            5 => [Op::Renew, Op::Release, Op::Fetch { ino, cookie: 0, also: vec![ino] }][usize::from(what % 3)].clone(),
            6 => Op::Enroll { holder: *number, instead },
            _ => chmod(ino, [0o755, 0o700, 0o500][usize::from(what % 3)]),
        };
        let answers = run(&mut world, seed, uid, vec![op], by.filter(|_| !fresh));
        if let [Answer::Done(Reply::Held { epoch, .. } | Reply::Taken { epoch })] = answers[..] {
            epochs.insert((seed, *number), epoch);
        } else if answers == [Answer::Denied(Denied::Fenced)] {
            epochs.remove(&(seed, *number));
        }
        assert_eq!(world.state.audit(), Ok(()));
        world.later(if later % 10 == 0 { 61 } else { later % 5 });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn whatever_holders_ask_for_the_state_stays_sound(
        crowded: bool,
        steps in prop::collection::vec((any::<u8>(), 0..8_u64, 0..9_usize, any::<u8>(), 0..100_u64), 1..150)
    ) {
        play(crowded, &steps);
    }
}

#[test]
fn whoever_begins_anew_again_and_again_does_not_use_up_the_numbers_of_inodes() {
    let mut world = World::new();
    let enroll = |world: &mut World, instead: u64| {
        let answers = run(world, 2, 1000, vec![Op::Enroll { holder: 1, instead }], None);
        match &answers[..] {
            [Answer::Done(Reply::Held { epoch, lease, .. })] => (*epoch, lease.inos.clone()),
            other => panic!("{other:?}"),
        }
    };
    let (mut epoch, mut ranges) = (0, 0);
    for _ in 0..300 {
        let (next, inos) = enroll(&mut world, epoch);
        (epoch, ranges) = (next, ranges + inos.len());
    }
    assert!((16..100).contains(&ranges), "{ranges} ranges of numbers");
    // Whoever has none makes files all the same; and in time there are some again.
    let root = world.root;
    world.key = key(2);
    let open = world.create(&user(1000), root, "f", new(Kind::File, 0o600));
    assert!(open.is_ok() || open == Err(Denied::Access));
    world.later(20);
    assert_eq!(enroll(&mut world, epoch).1.len(), 1);
    assert_eq!(world.state.audit(), Ok(()));
}
