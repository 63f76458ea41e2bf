//! Locks: many owners on several mounts, with leases moving between these, against plain bytes.

mod common;

use std::collections::BTreeMap;

use base::Time;
use common::mount::Mount;
use common::*;
use meta::*;
use proptest::prelude::*;

/// How many bytes of a file the model knows.
const BYTES: u64 = 12;

/// Which owner has a byte of a file how, in all kinds: what POSIX says, as plainly as it can be said.
type Model = BTreeMap<(Ino, LockKind, u64), BTreeMap<Owner, LockMode>>;
/// Which mount, and which of its owners.
type Owner = (usize, u64);

fn bytes_of(request: &LockRequest) -> impl Iterator<Item = u64> + use<> {
    let (start, end) = if request.kind == LockKind::Posix { (request.start, request.end) } else { (0, BYTES - 1) };
    start..=end.min(BYTES - 1)
}

struct Scene {
    world: World,
    mounts: Vec<Mount>,
    model: Model,
    directories: Vec<Ino>,
    files: Vec<Ino>,
    local: usize,
}

impl Scene {
    /// Two directories with two files each.
    fn new(mounts: u64) -> Scene {
        let mut world = World::new();
        let directories: Vec<_> = ["a", "b"].map(|text| world.dir(0, world.root, text, 0o777)).into();
        let places = directories.iter().flat_map(|directory| [(*directory, "x"), (*directory, "y")]);
        let files = places.map(|(directory, text)| world.file(0, directory, text, 0o666)).collect();
        let mounts = (1..=mounts).map(Mount::new).collect();
        Scene { world, mounts, model: Model::new(), directories, files, local: 0 }
    }

    fn request(
        &self,
        file: usize,
        kind: LockKind,
        owner: u64,
        (start, end): (u64, u64),
        mode: LockMode,
    ) -> LockRequest {
        LockRequest { ino: self.files[file], kind, owner, start, end, mode, pid: owner as u32, how: LockHow::Try }
    }

    /// One operation by one mount, where leases allow it here, else by replicas.
    fn run(&mut self, who: usize, op: &Op) -> Result<Reply, Denied> {
        let mut held = false;
        for _ in 0..8 {
            let (world, mount) = (&mut self.world, &mut self.mounts[who]);
            mount.freshen(world);
            if mount.epoch == 0 {
                mount.enroll(world);
            }
            match mount.copy.locally(op, &mount.me) {
                Local::Can => {
                    self.local += 1;
                    return mount.apply_own(world.now, op);
                }
                Local::Fetch(ino) => {
                    mount.ship(world);
                    mount.fetch(world, ino).unwrap();
                }
                Local::Cannot(Some(directory)) if !held => {
                    held = true;
                    mount.ship(world);
                    let _ = mount.hold(world, directory, false);
                }
                Local::Cannot(_) => {
                    mount.ship(world);
                    let answer = mount.ordered(world, op.clone());
                    if answer != Err(Denied::Leased) {
                        if is_logged(op) {
                            mount.copy.doubt(op);
                        }
                        return answer;
                    }
                    for index in (0..self.mounts.len()).filter(|index| *index != who) {
                        if self.world.state.recalled().any(|id| *id == self.mounts[index].me) {
                            self.mounts[index].heed(&mut self.world);
                        }
                    }
                }
            }
        }
        panic!("{op:?} does not get through");
    }

    /// Waits for a lock.
    fn wait(&mut self, who: usize, request: LockRequest) -> Result<Reply, Denied> {
        self.run(who, &Op::Lock(LockRequest { how: LockHow::Wait, ..request }))
    }

    fn conflicts(&self, owner: Owner, request: &LockRequest) -> bool {
        let exclusive = request.mode == LockMode::Exclusive;
        bytes_of(request).any(|byte| {
            let had = self.model.get(&(request.ino, request.kind, byte));
            had.is_some_and(|had| {
                had.iter().any(|(other, mode)| *other != owner && (exclusive || *mode == LockMode::Exclusive))
            })
        })
    }

    /// A lock, as the model says that it must come out.
    fn lock(&mut self, who: usize, request: LockRequest) -> Result<Reply, Denied> {
        let owner = (who, request.owner);
        let taken = request.mode != LockMode::Unlock && self.conflicts(owner, &request);
        let answer = self.run(who, &Op::Lock(request));
        let granted = match &answer {
            Ok(Reply::Locked(Locked::Granted)) => true,
            Err(Denied::Locked) => false,
            Ok(Reply::Locked(Locked::Waiting { .. } | Locked::Deadlock)) if request.how == LockHow::Wait => {
                if request.kind == LockKind::Flock {
                    self.set(owner, &LockRequest { mode: LockMode::Unlock, ..request });
                }
                // Without being in anybody's way it may stand behind somebody who came before.
                return answer;
            }
            other => panic!("{request:?}: {other:?}"),
        };
        assert_eq!(granted, !taken, "{request:?} by {owner:?} in {:?}", self.model);
        if granted {
            self.set(owner, &request);
        }
        answer
    }

    fn set(&mut self, owner: Owner, request: &LockRequest) {
        for byte in bytes_of(request) {
            let had = self.model.entry((request.ino, request.kind, byte)).or_default();
            match request.mode {
                LockMode::Unlock => had.remove(&owner),
                mode => had.insert(owner, mode),
            };
        }
    }

    /// Whoever asks for any byte hears what the model says.
    fn check(&mut self, who: usize, owner: u64, file: usize) {
        for kind in [LockKind::Posix, LockKind::Flock] {
            for byte in 0..BYTES {
                for mode in [LockMode::Shared, LockMode::Exclusive] {
                    let request = self.request(file, kind, owner, (byte, byte), mode);
                    let taken = self.conflicts((who, owner), &request);
                    match self.run(who, &Op::GetLock(request)) {
                        Ok(Reply::Conflict(seen)) => {
                            assert_eq!(seen.is_some(), taken, "{request:?}: {seen:?}");
                            let there = |seen: LockSeen| seen.start <= byte && byte <= seen.end;
                            assert!(seen.is_none_or(there), "another place");
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
    }

    fn later(&mut self, seconds: u64) {
        // Whoever lives says so.
        self.mounts.iter_mut().for_each(|mount| mount.ship(&mut self.world));
        self.world.later(seconds);
        for mount in self.mounts.iter_mut().filter(|mount| mount.epoch != 0) {
            mount.ordered(&mut self.world, Op::Renew).unwrap();
        }
    }
}

/// What to do, in small numbers: which mount, what, which owner, which file, from where to where.
type Step = (usize, u8, u64, usize, (u64, u64));

fn any_step() -> impl Strategy<Value = Step> {
    let range =
        (0..BYTES, 0..BYTES).prop_map(|(a, b)| (a.min(b), if a.max(b) == BYTES - 1 { LOCK_END } else { a.max(b) }));
    (0..3_usize, any::<u8>(), 0..2_u64, 0..4_usize, range)
}

fn play(steps: &[Step]) -> Scene {
    let mut scene = Scene::new(3);
    for (index, (who, what, owner, file, range)) in steps.iter().enumerate() {
        let kind = if what / 16 % 4 == 0 { LockKind::Flock } else { LockKind::Posix };
        let mode = if what / 64 % 2 == 0 { LockMode::Shared } else { LockMode::Exclusive };
        let lock = scene.request(*file, kind, *owner, *range, mode);
        let directory = scene.directories[file / 2];
        match what % 16 {
            0..=5 => drop(scene.lock(*who, lock)),
            6 | 7 => drop(scene.lock(*who, LockRequest { how: LockHow::Wait, ..lock })),
            8..=10 => drop(scene.lock(*who, LockRequest { mode: LockMode::Unlock, ..lock })),
            11 => {
                let leave = LockRequest { how: LockHow::Leave, ..lock };
                assert_eq!(scene.run(*who, &Op::Lock(leave)), Ok(Reply::Unit));
            }
            // What moves leases about.
            12 => drop(scene.run(*who, &Op::ReadDir { ino: directory, cookie: 0, max: 100 })),
            13 => {
                let (text, new) = (name(&format!("n{index}")), new(Kind::File, 0o644));
                scene.run(*who, &Op::Create { parent: directory, name: text, new, exclusive: true }).unwrap();
            }
            14 => scene.later(15),
            _ => scene.check(*who, *owner, *file),
        }
    }
    for who in 0..3 {
        scene.mounts[who].ship(&mut scene.world);
    }
    for file in 0..4 {
        scene.check(file % 3, 7, file);
    }
    scene
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn locks_of_several_mounts_are_those_of_one_system(
        steps in prop::collection::vec(any_step(), 1..120)
    ) {
        play(&steps);
    }
}

fn granted(answer: Result<Reply, Denied>) -> bool {
    answer == Ok(Reply::Locked(Locked::Granted))
}

fn waiting(answer: &Result<Reply, Denied>) -> bool {
    matches!(answer, Ok(Reply::Locked(Locked::Waiting { .. })))
}

const ALL: (u64, u64) = (0, LOCK_END);
use LockKind::{Flock, Posix};
use LockMode::{Exclusive, Shared, Unlock};

#[test]
fn the_proptest_locks_here_as_well_as_there() {
    let mut scene = Scene::new(1);
    scene.run(0, &Op::ReadDir { ino: scene.directories[0], cookie: 0, max: 100 }).unwrap();
    let before = scene.local;
    for index in 0..100 {
        let mode = if index % 2 == 0 { Exclusive } else { Unlock };
        assert!(granted(scene.run(0, &Op::Lock(scene.request(0, Posix, 1, ALL, mode)))));
    }
    assert_eq!(scene.local - before, 100, "nobody was asked");
    assert_eq!(scene.mounts[0].log.len(), 100);
    scene.mounts[0].ship(&mut scene.world);
}

#[test]
fn a_circle_of_waits_across_files_and_mounts_is_refused() {
    let mut scene = Scene::new(3);
    for who in 0..3 {
        let own = scene.request(who, Posix, 9, ALL, Exclusive);
        assert!(granted(scene.run(who, &Op::Lock(own))));
    }
    for who in 0..2 {
        let next = scene.request(who + 1, Posix, 9, (5, 5), Exclusive);
        assert!(waiting(&scene.wait(who, next)));
    }
    let last = scene.request(0, Posix, 9, (5, 5), Exclusive);
    assert_eq!(scene.wait(2, last), Ok(Reply::Locked(Locked::Deadlock)));
    assert!(waiting(&scene.wait(1, scene.request(2, Posix, 9, (5, 5), Exclusive))), "only one is refused");
    // It gives way, and the others get on.
    assert!(granted(scene.run(2, &Op::Lock(scene.request(2, Posix, 9, ALL, Unlock)))));
    assert!(granted(scene.wait(1, scene.request(2, Posix, 9, (5, 5), Exclusive))));
}

#[test]
fn a_wait_here_and_a_wait_there_make_a_circle_too() {
    let mut scene = Scene::new(2);
    // One mount has a lease on the first directory, and locks of two owners there.
    scene.run(0, &Op::ReadDir { ino: scene.directories[0], cookie: 0, max: 100 }).unwrap();
    assert!(granted(scene.run(0, &Op::Lock(scene.request(0, Posix, 1, ALL, Exclusive)))));
    assert!(granted(scene.run(1, &Op::Lock(scene.request(2, Posix, 7, ALL, Exclusive)))));
    assert!(granted(scene.run(0, &Op::Lock(scene.request(3, Posix, 2, ALL, Exclusive)))));
    let before = scene.local;
    assert!(waiting(&scene.wait(0, scene.request(0, Posix, 2, ALL, Shared))));
    assert_eq!(scene.local, before + 1, "nobody was asked");
    assert!(waiting(&scene.wait(1, scene.request(3, Posix, 7, ALL, Shared))));
    assert_eq!(scene.wait(0, scene.request(2, Posix, 1, ALL, Shared)), Ok(Reply::Locked(Locked::Deadlock)));
}

#[test]
fn readers_do_not_overtake_a_writer_who_waits_and_whoever_stops_asking_loses_its_place() {
    let mut scene = Scene::new(3);
    assert!(granted(scene.wait(0, scene.request(0, Flock, 1, ALL, Shared))));
    assert!(waiting(&scene.wait(1, scene.request(0, Flock, 1, ALL, Exclusive))));
    assert!(waiting(&scene.wait(2, scene.request(0, Flock, 1, ALL, Shared))), "behind the writer");
    assert!(granted(scene.run(2, &Op::Lock(scene.request(0, Flock, 2, ALL, Shared)))), "who only tries does not wait");
    for (who, owner) in [(0, 1), (2, 2)] {
        assert!(granted(scene.run(who, &Op::Lock(scene.request(0, Flock, owner, ALL, Unlock)))));
    }
    assert!(waiting(&scene.wait(2, scene.request(0, Flock, 1, ALL, Shared))), "still behind it");
    scene.later(11);
    assert!(granted(scene.wait(2, scene.request(0, Flock, 1, ALL, Shared))), "it did not ask for so long");
}

#[test]
fn whoever_is_waited_for_is_not_kept_waiting_behind_those_who_do() {
    let mut scene = Scene::new(2);
    assert!(granted(scene.run(0, &Op::Lock(scene.request(0, Posix, 1, (0, 4), Shared)))));
    assert!(waiting(&scene.wait(1, scene.request(0, Posix, 1, (0, 9), Exclusive))));
    assert!(granted(scene.wait(0, scene.request(0, Posix, 1, (5, 9), Shared))), "or both would wait for ever");
}

#[test]
fn two_who_share_a_file_and_each_want_it_alone_get_it_one_after_the_other() {
    let mut scene = Scene::new(2);
    for who in 0..2 {
        assert!(granted(scene.run(who, &Op::Lock(scene.request(0, Flock, 1, ALL, Shared)))));
    }
    let alone = scene.request(0, Flock, 1, ALL, Exclusive);
    assert_eq!(scene.run(0, &Op::Lock(alone)), Err(Denied::Locked));
    assert!(waiting(&scene.wait(0, alone)), "it gave up what it had");
    assert!(granted(scene.run(1, &Op::Lock(alone))), "who tries may have it");
    assert!(granted(scene.run(1, &Op::Lock(LockRequest { mode: Unlock, ..alone }))));
    assert!(granted(scene.wait(0, alone)));
}

#[test]
fn whoever_is_silent_for_a_term_loses_its_locks_to_who_wants_them_and_not_before() {
    let mut scene = Scene::new(2);
    let lock = scene.request(0, Posix, 1, ALL, Exclusive);
    assert!(granted(scene.run(0, &Op::Lock(lock))));
    scene.world.now = scene.world.now.after(LEASE_TERM);
    scene.mounts[1].enroll(&mut scene.world);
    assert_eq!(scene.mounts[1].ordered(&mut scene.world, Op::Lock(lock)), Err(Denied::Locked), "not before");
    scene.world.later(1);
    let seen = scene.mounts[1].ordered(&mut scene.world, Op::GetLock(lock));
    assert_eq!(seen, Ok(Reply::Conflict(None)));
    assert!(granted(scene.mounts[1].ordered(&mut scene.world, Op::Lock(lock))));
    assert_eq!(scene.mounts[0].ordered(&mut scene.world, Op::Lock(lock)), Err(Denied::Fenced), "and is told");
    assert_eq!(scene.mounts[0].ordered(&mut scene.world, Op::Renew), Err(Denied::Fenced));
    // A lock that nobody else wants lasts.
    scene.world.later(100_000);
    assert!(granted(scene.mounts[1].ordered(&mut scene.world, Op::Lock(LockRequest { mode: Shared, ..lock }))));
}

#[test]
fn whoever_has_the_lease_asks_whether_the_owner_of_a_lock_lives() {
    let mut scene = Scene::new(2);
    let lock = scene.request(0, Posix, 1, ALL, Exclusive);
    assert!(granted(scene.run(1, &Op::Lock(lock))));
    scene.run(0, &Op::ReadDir { ino: scene.directories[0], cookie: 0, max: 100 }).unwrap();
    assert_eq!(scene.run(0, &Op::Lock(lock)), Err(Denied::Locked));
    scene.world.later(40);
    scene.mounts[0].ordered(&mut scene.world, Op::Renew).unwrap();
    scene.world.later(40);
    assert!(granted(scene.run(0, &Op::Lock(lock))), "its own copy would say no for ever");
}

#[test]
fn what_a_mount_had_goes_with_it_and_with_the_file() {
    let mut scene = Scene::new(2);
    let lock = scene.request(0, Posix, 1, ALL, Exclusive);
    assert!(granted(scene.run(0, &Op::Lock(lock))));
    assert!(waiting(&scene.wait(1, lock)));
    scene.mounts[0].ship(&mut scene.world);
    scene.mounts[0].ordered(&mut scene.world, Op::Release).unwrap();
    assert!(granted(scene.wait(1, lock)), "it gave everything back");
    let directory = scene.directories[0];
    scene.run(1, &Op::Unlink { parent: directory, name: name("x"), keep: false }).unwrap();
    scene.mounts[1].ship(&mut scene.world);
    assert_eq!(scene.world.state.audit(), Ok(()), "no locks without a file");
}

#[test]
fn locks_need_a_holder_a_file_and_the_right_to_use_it() {
    let mut world = World::new();
    let (file, closed) = (world.file(0, world.root, "f", 0o644), world.file(0, world.root, "closed", 0o600));
    let lock = |ino, kind, mode, range: (u64, u64)| {
        let (start, end) = range;
        Op::Lock(LockRequest { ino, kind, owner: 1, start, end, mode, pid: 1, how: LockHow::Try })
    };
    assert_eq!(world.run(&user(0), lock(file, Posix, Shared, ALL)), Err(Denied::Fenced), "nobody's");
    let Ok(Reply::Held { epoch, .. }) = world.run(&user(0), Op::Enroll { holder: 1, instead: 0 }) else { panic!() };
    let as_holder = |world: &mut World, uid, op: Op| {
        let by = Some(By { holder: 1, epoch, log: None });
        let batch = Batch { calls: vec![Call { caller: user(uid), op }], by };
        world.state.apply_batch(world.now, &key(1), &batch).pop().unwrap().into_result()
    };
    assert!(granted(as_holder(&mut world, 1000, lock(file, Posix, Shared, ALL))));
    assert_eq!(as_holder(&mut world, 1000, lock(file, Posix, Exclusive, ALL)), Err(Denied::Access));
    assert!(granted(as_holder(&mut world, 1000, lock(file, Flock, Exclusive, ALL))), "as Linux: reading is enough");
    assert_eq!(as_holder(&mut world, 1000, lock(file, LockKind::Append, Exclusive, ALL)), Err(Denied::Access));
    assert_eq!(as_holder(&mut world, 1000, lock(closed, Flock, Shared, ALL)), Err(Denied::Access));
    assert!(granted(as_holder(&mut world, 1000, lock(closed, Posix, Unlock, ALL))), "always");
    let root = world.root;
    assert_eq!(as_holder(&mut world, 0, lock(root, Posix, Shared, ALL)), Err(Denied::IsDirectory));
    for range in [(5, 4), (0, LOCK_END + 1), (u64::MAX, u64::MAX)] {
        assert_eq!(as_holder(&mut world, 0, lock(file, Posix, Shared, range)), Err(Denied::Invalid));
    }
    assert!(granted(as_holder(&mut world, 0, lock(file, Posix, Unlock, (LOCK_END, LOCK_END)))));
    assert_eq!(world.state.audit(), Ok(()));
    let again = world.run(&user(0), Op::Enroll { holder: 1, instead: 0 });
    assert_eq!(again, Ok(Reply::Taken { epoch }), "another may not use its name without ending it");
}

#[test]
fn no_client_has_locks_without_end() {
    let mut scene = Scene::new(2);
    scene.mounts.iter_mut().for_each(|mount| mount.enroll(&mut scene.world));
    let mut locked = 0;
    let ask = |scene: &mut Scene, who: usize, op: LockRequest| {
        let batch = Batch { calls: vec![Call { caller: user(0), op: Op::Lock(op) }], by: scene.mounts[who].by(None) };
        scene.world.state.apply_batch(scene.world.now, &key(1), &batch).pop().unwrap().into_result()
    };
    for index in 0..2000u64 {
        let single = scene.request(0, Posix, 1, (index * 2, index * 2), Exclusive);
        match ask(&mut scene, 0, single) {
            Ok(_) => locked += 1,
            refused => assert_eq!(refused, Err(Denied::NoLocks)),
        }
    }
    assert_eq!(locked, FILE_LOCKS_MAX);
    // Cutting a lock in two is one more.
    let whole = scene.request(1, Posix, 1, ALL, Exclusive);
    assert!(granted(ask(&mut scene, 0, whole)));
    let cuts = (1..2000).map(|at| scene.request(1, Posix, 1, (at * 2, at * 2), Unlock)).collect::<Vec<_>>();
    let cut = cuts.into_iter().filter(|cut| granted(ask(&mut scene, 0, *cut))).count();
    assert_eq!(cut, FILE_LOCKS_MAX - 1);
    let mut waiters = 0;
    for owner in 0..200 {
        let wish = LockRequest { how: LockHow::Wait, ..scene.request(0, Posix, owner, ALL, Shared) };
        waiters += usize::from(waiting(&ask(&mut scene, 1, wish)));
    }
    assert_eq!(waiters, FILE_WAITERS_MAX);
    let mut all = 2 * FILE_LOCKS_MAX;
    'files: for index in 0.. {
        let file = scene.world.file(0, scene.directories[0], &format!("f{index}"), 0o644);
        scene.files.push(file);
        for at in 0..200 {
            let lock = scene.request(4 + index, Posix, 1, (at * 2, at * 2), Exclusive);
            match ask(&mut scene, 0, lock) {
                Ok(_) => all += 1,
                refused => {
                    assert_eq!(refused, Err(Denied::NoLocks));
                    break 'files;
                }
            }
        }
    }
    assert_eq!(all, HOLDER_LOCKS_MAX);
    assert_eq!(scene.world.state.audit(), Ok(()));
}

#[test]
fn a_log_that_takes_what_others_have_ends_its_holder() {
    let mut scene = Scene::new(2);
    let lock = scene.request(0, Posix, 1, ALL, Exclusive);
    assert!(granted(scene.run(1, &Op::Lock(lock))));
    scene.mounts[0].hold(&mut scene.world, scene.directories[0], false).unwrap();
    let log = Log { part: 0, stamps: vec![Time::ZERO] };
    let batch = Batch { calls: vec![Call { caller: user(0), op: Op::Lock(lock) }], by: scene.mounts[0].by(Some(log)) };
    let answers = scene.world.state.apply_batch(scene.world.now, &key(1), &batch);
    assert_eq!(answers, [Answer::Denied(Denied::Locked)]);
    assert_eq!(scene.mounts[0].ordered(&mut scene.world, Op::Renew), Err(Denied::Fenced));
}
