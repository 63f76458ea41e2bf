//! Leases: holders with copies and logs of their own do what one namespace would have done.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use base::Time;
use bytes::Bytes;
use common::mount::Mount;
use common::*;
use meta::*;
use proptest::prelude::*;

/// Everything: two mounts, the replicated state, and one namespace that knows nothing of leases.
struct Scene {
    world: World,
    mounts: Vec<Mount>,
    plain: World,
    /// The plain namespace's inode for each of the other's.
    twins: BTreeMap<Ino, Ino>,
    inos: Vec<Ino>,
    local: usize,
}

impl Scene {
    fn new(mounts: u64) -> Scene {
        let (world, plain) = (World::throwing(), World::throwing());
        let (inos, twins) = (vec![world.root], BTreeMap::from([(world.root, plain.root)]));
        Scene { world, mounts: (1..=mounts).map(Mount::new).collect(), plain, twins, inos, local: 0 }
    }

    fn twin(&self, ino: Ino) -> Ino {
        self.twins[&ino]
    }

    fn translate(&self, op: &Op) -> Op {
        let mut op = op.clone();
        let parts: Vec<&mut Ino> = match &mut op {
            Op::Lookup { parent, .. } | Op::Create { parent, .. } | Op::Unlink { parent, .. } => vec![parent],
            Op::Rmdir { parent, .. } | Op::CreateUnnamed { parent, .. } => vec![parent],
            Op::Link { ino, parent, .. } | Op::Restore { ino, parent, .. } => vec![ino, parent],
            Op::Rename { from, to, .. } => vec![from, to],
            Op::GetAttr { ino } | Op::SetAttr { ino, .. } | Op::ReadDir { ino, .. } | Op::Parent { ino } => vec![ino],
            Op::Commit(commit) => vec![&mut commit.ino],
            Op::SetXattr { ino, .. } | Op::GetXattr { ino, .. } => vec![ino],
            Op::KeepOrphan { ino } | Op::ReleaseOrphan { ino } => vec![ino],
            Op::SetAcl { ino, .. } | Op::GetAcl { ino, .. } => vec![ino],
            other => panic!("{other:?}"),
        };
        for part in parts {
            *part = self.twins[part];
        }
        op
    }

    /// One operation by one mount, as its users see it.
    fn run(&mut self, who: usize, op: &Op) {
        let twin = self.translate(op);
        self.make_known(who, op);
        let answer = self.answer(who, op);
        let expected = self.plain.run(&user(0), twin);
        match (&answer, &expected) {
            (Ok(Reply::Created { attr: ours, fresh }), Ok(Reply::Created { attr: theirs, fresh: too })) => {
                assert_eq!(fresh, too);
                if *fresh {
                    assert_eq!(self.twins.insert(ours.ino, theirs.ino), None, "a number is used once");
                    self.inos.push(ours.ino);
                }
                self.same(ours, theirs);
            }
            (Ok(Reply::Attr(ours)), Ok(Reply::Attr(theirs))) => self.same(ours, theirs),
            (Ok(Reply::Renamed { moved: ours, .. }), Ok(Reply::Renamed { moved: theirs, .. })) => {
                self.same(ours, theirs);
            }
            (Ok(Reply::Entries { entries: ours, end }), Ok(Reply::Entries { entries: theirs, end: too })) => {
                assert_eq!((ours.len(), end), (theirs.len(), too));
                for (ours, theirs) in ours.iter().zip(theirs) {
                    assert_eq!((ours.cookie, &ours.name), (theirs.cookie, &theirs.name));
                    self.same(&ours.attr, &theirs.attr);
                }
            }
            (Ok(Reply::Unlinked { nlink, .. }), Ok(Reply::Unlinked { nlink: too, .. })) => assert_eq!(nlink, too),
            _ => assert_eq!(answer, expected, "{op:?}"),
        }
    }

    fn same(&self, ours: &Attr, theirs: &Attr) {
        let blank = |attr: &Attr, ino| {
            let at = Timestamp::default();
            Attr { ino, atime: at, mtime: at, ctime: at, btime: at, ..*attr }
        };
        assert_eq!(blank(ours, self.twin(ours.ino)), blank(theirs, theirs.ino));
    }

    /// A mount knows of another's inode only from replicas.
    fn make_known(&mut self, who: usize, op: &Op) {
        let named = format!("{op:?}");
        for (_, mount) in self.mounts.iter_mut().enumerate().filter(|(index, _)| *index != who) {
            let new = |answer: &Answer| match answer {
                Answer::Done(Reply::Created { attr, .. }) => named.contains(&format!("{:?}", attr.ino)),
                _ => false,
            };
            if mount.log.iter().any(|(.., answer)| new(answer)) {
                mount.ship(&mut self.world);
            }
        }
    }

    fn answer(&mut self, who: usize, op: &Op) -> Result<Reply, Denied> {
        let mut held = false;
        for _ in 0..8 {
            let (world, mount) = (&mut self.world, &mut self.mounts[who]);
            mount.freshen(world);
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
                    // What replicas tell is only of use once they know all that was done here.
                    mount.ship(world);
                    if mount.hold(world, directory, !is_change(op)) == Err(Denied::Leased) {
                        held = false;
                        self.heed_others(who);
                    }
                }
                Local::Cannot(_) => {
                    mount.ship(world);
                    let answer = mount.ordered(world, op.clone());
                    if answer == Err(Denied::Leased) {
                        self.heed_others(who);
                        continue;
                    }
                    mount.copy.doubt(op);
                    if let (Op::Restore { ino, .. }, Ok(_)) = (op, &answer) {
                        mount.copy.note_restored(*ino);
                    }
                    return answer;
                }
            }
        }
        panic!("{op:?} does not get through");
    }

    /// One of those who are asked gives back: the next try finds the others in the way still.
    fn heed_others(&mut self, who: usize) {
        let asked =
            |mount: &Mount| mount.me.1 != who as u64 + 1 && self.world.state.recalled().any(|id| *id == mount.me);
        if let Some(index) = self.mounts.iter().position(asked) {
            self.mounts[index].heed(&mut self.world);
        }
    }
}

/// What to do, in small numbers: which mount, what, where, under which names.
type Step = (usize, u8, usize, usize, u8, u8);

fn play(steps: &[Step]) -> Scene {
    let mut scene = Scene::new(3);
    for (who, what, first, second, a, b) in steps {
        scene.world.now = scene.world.now.after(Duration::from_millis(1));
        let pick = |index: usize| scene.inos[index % scene.inos.len()];
        let (ino, other) = (pick(*first), pick(*second));
        let (a, b) = (name(&format!("n{}", a % 4)), name(&format!("n{}", b % 4)));
        let kind = if what % 2 == 0 { Kind::File } else { Kind::Directory };
        let class = [XattrClass::User, XattrClass::Trusted][usize::from(what / 21 % 2)];
        let op = match what % 21 {
            0..=3 => {
                let new = NewInode { umask: u16::from(*second as u8), ..new(kind, 0o775) };
                Op::Create { parent: ino, name: a, new, exclusive: what % 3 == 0 }
            }
            4 => Op::Unlink { parent: ino, name: a, keep: false },
            5 => Op::Rmdir { parent: ino, name: a },
            6 => Op::Link { ino, parent: other, name: a },
            7 | 8 => {
                let how = [RenameHow::Replace, RenameHow::NoReplace, RenameHow::Exchange][usize::from(what / 21 % 3)];
                Op::Rename { from: ino, from_name: a, to: other, to_name: b, how, keep: false }
            }
            9 if what / 21 % 3 == 0 => {
                let users = vec![AclEntry { id: u32::from(*what), may: 5 }];
                let list = Acl { owner: 7, group: 5, other: 1, mask: Some(4), users, groups: vec![] };
                let kind = if first % 2 == 0 { AclKind::Access } else { AclKind::Default };
                Op::SetAcl { ino, kind, acl: (second % 3 > 0).then_some(list) }
            }
            9 => Op::SetAttr { ino, change: AttrChange { mode: Some(0o700), ..AttrChange::default() } },
            10 if what / 21 % 3 > 0 => {
                let form = [Form::Patch { over: u32::from(what % 2) }, Form::Fold][usize::from(what / 21 % 3) - 1];
                let patches = vec![Bytes::from(vec![*what; 9]); usize::from(form != Form::Fold)];
                let content = Content { size: 2000, patches, ..Content::default() };
                let base = Some(*second as u64 % 4);
                Op::Commit(Commit { form, ..Commit::whole(ino, base, content) })
            }
            10 => {
                let written =
                    scene.world.now.since(Time::ZERO).saturating_sub(Duration::from_millis(*second as u64 % 9));
                let mtime = (first % 2 == 0).then(|| Time::ZERO.after(written).into());
                let content = content(u64::from(*what) * 10, u64::from(*what));
                Op::Commit(Commit { mtime, ..Commit::whole(ino, None, content) })
            }
            11 => Op::ReadDir { ino, cookie: 0, max: 100 },
            12 => Op::Lookup { parent: ino, name: a },
            13 => Op::Parent { ino },
            14 if what / 21 % 2 == 0 => Op::GetAcl { ino, kind: [AclKind::Access, AclKind::Default][second % 2] },
            14 => Op::GetAttr { ino },
            15 => {
                let how = [XattrHow::Set, XattrHow::Create, XattrHow::Replace][usize::from(what / 42 % 3)];
                Op::SetXattr { ino, class, name: a, value: sealed(&format!("{what}")), how }
            }
            16 if what / 21 % 3 == 0 => {
                // Replicas throw away what they have heard of.
                scene.mounts.iter_mut().for_each(|mount| mount.ship(&mut scene.world));
                Op::Restore { ino, parent: other, name: a }
            }
            16 => Op::GetXattr { ino, class, name: a },
            17 | 18 => Op::CreateUnnamed { parent: ino, new: new(Kind::File, 0o600) },
            19 if what / 21 % 2 == 0 => Op::KeepOrphan { ino },
            19 => Op::ReleaseOrphan { ino },
            _ => {
                // A mount does not keep what it did to itself for long.
                scene.mounts.iter_mut().for_each(|mount| mount.ship(&mut scene.world));
                scene.world.later(15);
                scene.plain.later(15);
                continue;
            }
        };
        scene.run(*who, &op);
    }
    for mount in &mut scene.mounts {
        mount.ship(&mut scene.world);
    }
    scene
}

fn any_step() -> impl Strategy<Value = Step> {
    (0..3_usize, any::<u8>(), 0..12_usize, 0..12_usize, any::<u8>(), any::<u8>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn mounts_with_leases_are_one_namespace(
        steps in prop::collection::vec(any_step(), 1..120)
    ) {
        play(&steps);
    }
}

#[test]
fn one_mount_alone_asks_nobody() {
    let mut scene = Scene::new(1);
    let root = scene.world.root;
    for index in 0..200 {
        scene.run(
            0,
            &Op::Create {
                parent: root,
                name: name(&format!("f{index}")),
                new: new(Kind::File, 0o644),
                exclusive: true,
            },
        );
    }
    assert_eq!(scene.local, 200);
    scene.mounts[0].ship(&mut scene.world);
    assert_eq!(scene.world.attr_as(&scene.mounts[0], root).size, 200);
}

impl World {
    fn attr_as(&mut self, mount: &Mount, ino: Ino) -> Attr {
        match mount.ordered(self, Op::GetAttr { ino }) {
            Ok(Reply::Attr(attr)) => attr,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn whoever_does_not_answer_is_fenced_when_its_time_is_up_and_loses_the_end_of_its_log() {
    let mut scene = Scene::new(2);
    let root = scene.world.root;
    let file = |text: &str| Op::Create { parent: root, name: name(text), new: new(Kind::File, 0o644), exclusive: true };
    scene.run(0, &file("sent"));
    scene.mounts[0].ship(&mut scene.world);
    let lost = scene.answer(0, &file("lost")).unwrap();
    assert!(matches!(lost, Reply::Created { .. }));
    let look = Op::Lookup { parent: root, name: name("sent") };
    assert_eq!(scene.mounts[1].ordered(&mut scene.world, look.clone()), Err(Denied::Leased));
    assert_eq!(scene.world.state.recalled().count(), 1);
    scene.world.now = scene.world.now.after(LEASE_TERM);
    assert_eq!(scene.mounts[1].ordered(&mut scene.world, look.clone()), Err(Denied::Leased), "not before");
    scene.world.later(1);
    assert!(scene.mounts[1].ordered(&mut scene.world, look).is_ok());
    let mount = &mut scene.mounts[0];
    let (call, at, _) = mount.log.pop().unwrap();
    let log = Log { part: mount.parts, stamps: vec![at] };
    let batch = Batch { calls: vec![call], by: mount.by(Some(log)) };
    let answers = scene.world.state.apply_batch(scene.world.now, &key(1), &batch);
    assert_eq!(answers, vec![Answer::Denied(Denied::Fenced)]);
    assert_eq!(mount.ordered(&mut scene.world, Op::Renew), Err(Denied::Fenced));
}

#[test]
fn all_who_are_in_the_way_are_asked_at_once() {
    let mut scene = Scene::new(3);
    let root = scene.world.root;
    let [from, to] = ["from", "to"].map(|text| scene.world.dir(0, root, text, 0o755));
    scene.world.file(0, from, "file", 0o644);
    scene.mounts[0].hold(&mut scene.world, from, false).unwrap();
    scene.mounts[1].hold(&mut scene.world, to, false).unwrap();
    let rename =
        Op::Rename { from, from_name: name("file"), to, to_name: name("file"), how: RenameHow::Replace, keep: false };
    assert_eq!(scene.mounts[2].ordered(&mut scene.world, rename.clone()), Err(Denied::Leased));
    assert_eq!(scene.world.state.recalled().count(), 2);
    // Neither of them answers: one term is waited out, not one after the other.
    scene.world.now = scene.world.now.after(LEASE_TERM);
    scene.world.later(1);
    assert!(scene.mounts[2].ordered(&mut scene.world, rename).is_ok());
}

#[test]
fn a_lease_that_ran_out_goes_on_while_nobody_wants_what_it_covers() {
    let mut scene = Scene::new(1);
    let root = scene.world.root;
    let file = |text: &str| Op::Create { parent: root, name: name(text), new: new(Kind::File, 0o644), exclusive: true };
    scene.run(0, &file("a"));
    scene.world.later(10_000);
    scene.plain.later(10_000);
    scene.run(0, &file("b"));
    scene.mounts[0].ship(&mut scene.world);
}

#[test]
fn a_log_with_a_hole_or_with_what_is_not_the_holders_fences_it() {
    let mut scene = Scene::new(2);
    let root = scene.world.root;
    let own = scene.world.dir(0, root, "own", 0o755);
    let theirs = scene.world.dir(0, root, "theirs", 0o755);
    let create =
        |parent, text: &str| Op::Create { parent, name: name(text), new: new(Kind::File, 0o644), exclusive: true };
    let send = |scene: &mut Scene, part, ops: Vec<Op>| {
        let stamps = vec![scene.world.now; ops.len()];
        let calls = ops.into_iter().map(|op| Call { caller: user(0), op }).collect();
        let batch = Batch { calls, by: scene.mounts[0].by(Some(Log { part, stamps })) };
        scene.world.state.apply_batch(scene.world.now, &key(1), &batch)
    };
    let denied = |why| Answer::Denied(why);
    scene.mounts[0].hold(&mut scene.world, own, false).unwrap();
    assert_eq!(send(&mut scene, 1, vec![create(own, "x")]), [denied(Denied::Fenced)], "part 0 is missing");
    assert_eq!(
        send(&mut scene, 0, vec![create(own, "x"), create(theirs, "y"), create(own, "z")])[1..],
        [denied(Denied::Fenced), denied(Denied::Fenced)]
    );
    assert_eq!(scene.mounts[0].ordered(&mut scene.world, Op::Renew), Err(Denied::Fenced), "it is no holder any more");
    let listed = |world: &mut World, ino| world.attr(ino).size;
    assert_eq!((listed(&mut scene.world, own), listed(&mut scene.world, theirs)), (1, 0), "a beginning, no hole");

    scene.mounts[0] = Mount::new(1);
    scene.mounts[0].hold(&mut scene.world, own, false).unwrap();
    let answers = send(&mut scene, 0, vec![Op::GetAttr { ino: own }]);
    assert_eq!(answers, [denied(Denied::Malformed)], "a read is nothing to log");
}

#[test]
fn stamps_are_taken_within_bounds() {
    let mut scene = Scene::new(1);
    let root = scene.world.root;
    scene.mounts[0].hold(&mut scene.world, root, false).unwrap();
    let now = scene.world.now;
    let made = |scene: &mut Scene, part, stamp| {
        let new = new(Kind::File, 0o644);
        let op = Op::Create { parent: root, name: name(&format!("f{part}")), new, exclusive: true };
        let (calls, log) = (vec![Call { caller: user(0), op }], Log { part, stamps: vec![stamp] });
        let batch = Batch { calls, by: scene.mounts[0].by(Some(log)) };
        match scene.world.state.apply_batch(now, &key(1), &batch).pop().unwrap() {
            Answer::Done(Reply::Created { attr, .. }) => attr.btime,
            other => panic!("{other:?}"),
        }
    };
    let second = Duration::from_secs(1);
    assert_eq!(made(&mut scene, 0, now.after(second)), at(START + 1), "clocks differ");
    assert_eq!(made(&mut scene, 1, now.after(second * 3600)), at(START + 10), "but not by an hour");
    assert_eq!(made(&mut scene, 2, Time::ZERO), at(START), "nothing was done before the lease");
}

#[test]
fn a_lease_gives_no_rights_and_needs_some() {
    let mut world = World::new();
    let closed = world.dir(0, world.root, "closed", 0o755);
    world.key = key(2);
    assert_eq!(
        world.run(&user(1000), Op::Hold { holder: 1, ino: closed, instead: 0, shared: false }),
        Err(Denied::Access)
    );
    let own = world.dir(1000, world.root, "own", 0o755);
    let Ok(Reply::Held { .. }) = world.run(&user(1000), Op::Hold { holder: 1, ino: own, instead: 0, shared: false })
    else {
        panic!("refused")
    };
    assert_eq!(
        world.run(&user(0), Op::Hold { holder: 1, ino: own, instead: 0, shared: false }),
        Err(Denied::NotGranted)
    );
    let quota = World::with(VolumeSpec { quota_inodes: 10, ..spec("small") });
    let mut quota = quota;
    let root = quota.root;
    assert_eq!(
        quota.run(&user(0), Op::Hold { holder: 1, ino: root, instead: 0, shared: false }),
        Err(Denied::NotPermitted)
    );
}

#[test]
fn holders_and_zones_are_bounded() {
    let mut world = World::new();
    let root = world.root;
    let mut held = 0;
    for number in 0..100 {
        let own = world.dir(0, root, &format!("d{number}"), 0o755);
        held +=
            usize::from(world.run(&user(0), Op::Hold { holder: number, ino: own, instead: 0, shared: false }).is_ok());
    }
    assert_eq!(held, 64);
    world.later(100);
    let own = world.dir(0, root, "late", 0o755);
    assert!(
        world.run(&user(0), Op::Hold { holder: 100, ino: own, instead: 0, shared: false }).is_ok(),
        "one whose time is up makes room"
    );
}

#[test]
fn whoever_begins_anew_fences_who_it_was() {
    let mut scene = Scene::new(1);
    let root = scene.world.root;
    let create =
        |text: &str| Op::Create { parent: root, name: name(text), new: new(Kind::File, 0o644), exclusive: true };
    scene.run(0, &create("a"));
    scene.mounts[0].ship(&mut scene.world);
    // It crashed, and came back under the same number.
    let mut again = Mount::new(1);
    let hold = |instead| Op::Hold { holder: 1, ino: root, instead, shared: false };
    let old = scene.mounts[0].epoch;
    assert_eq!(again.ordered(&mut scene.world, hold(0)), Ok(Reply::Taken { epoch: old }));
    let anew = again.ordered(&mut scene.world, hold(old));
    let Ok(Reply::Held { epoch, .. }) = anew else { panic!("{anew:?}") };
    again.epoch = epoch;
    // What it asked for at first was held up, and comes late; so does what it asked for a life before.
    for late in [hold(0), hold(old), Op::Enroll { holder: 1, instead: 0 }, Op::Enroll { holder: 1, instead: old }] {
        assert_eq!(Mount::new(1).ordered(&mut scene.world, late), Ok(Reply::Taken { epoch }), "it ends nothing");
    }
    let batch = |mount: &Mount, part, text| {
        let (calls, log) = (vec![Call { caller: user(0), op: create(text) }], Log { part, stamps: vec![Time::ZERO] });
        Batch { calls, by: mount.by(Some(log)) }
    };
    for part in [0, 1, 2] {
        let late = batch(&scene.mounts[0], part, "late");
        let answers = scene.world.state.apply_batch(scene.world.now, &key(1), &late);
        assert_eq!(answers, [Answer::Denied(Denied::Fenced)], "what was under way when it crashed");
    }
    let first = batch(&again, 0, "new");
    assert!(matches!(scene.world.state.apply_batch(scene.world.now, &key(1), &first)[..], [Answer::Done(_)]));
}

#[test]
fn whoever_is_asked_for_something_has_no_longer_than_it_had() {
    let mut scene = Scene::new(2);
    let root = scene.world.root;
    let look = Op::Lookup { parent: root, name: name("sent") };
    scene.run(0, &Op::Create { parent: root, name: name("sent"), new: new(Kind::File, 0o644), exclusive: true });
    scene.mounts[0].ship(&mut scene.world);
    let mut refused = 0;
    // It hears, renews, and gives nothing back.
    while scene.mounts[1].ordered(&mut scene.world, look.clone()) == Err(Denied::Leased) {
        refused += 1;
        assert!(refused < 10, "it could go on for ever");
        let Ok(Reply::Lease(lease)) = scene.mounts[0].ordered(&mut scene.world, Op::Renew) else { panic!("refused") };
        assert_eq!(lease.recalls, [root]);
        scene.world.later(10);
    }
    assert_eq!(refused, 7, "sixty seconds after it was asked");
    assert_eq!(scene.mounts[0].ordered(&mut scene.world, Op::Renew), Err(Denied::Fenced));
}

#[test]
fn whatever_comes_after_giving_everything_back_is_refused() {
    let mut scene = Scene::new(1);
    let root = scene.world.root;
    let after = [
        Op::Renew,
        Op::Cede { directories: vec![root] },
        Op::Fetch { ino: root, cookie: 0, also: vec![] },
        Op::GetAttr { ino: root },
        Op::Release,
    ];
    for op in after {
        scene.mounts[0] = Mount::new(1);
        scene.mounts[0].hold(&mut scene.world, root, false).unwrap();
        let calls = [Op::Release, op].map(|op| Call { caller: user(0), op }).into();
        let batch = Batch { calls, by: scene.mounts[0].by(None) };
        let answers = scene.world.state.apply_batch(scene.world.now, &key(1), &batch);
        assert_eq!(answers, [Answer::Done(Reply::Unit), Answer::Denied(Denied::Fenced)]);
        assert_eq!(scene.world.state.audit(), Ok(()));
    }
}

#[test]
fn beginning_anew_again_and_again_does_not_keep_others_out() {
    let mut scene = Scene::new(2);
    let root = scene.world.root;
    let own = scene.world.dir(0, root, "own", 0o755);
    let look = Op::Lookup { parent: own, name: name("x") };
    let greedy = |scene: &mut Scene| {
        let hold = |instead| Op::Hold { holder: 1, ino: root, instead, shared: false };
        match Mount::new(1).ordered(&mut scene.world, hold(0)) {
            Ok(Reply::Taken { epoch }) => Mount::new(1).ordered(&mut scene.world, hold(epoch)),
            other => other,
        }
    };
    greedy(&mut scene).unwrap();
    assert_eq!(scene.mounts[1].ordered(&mut scene.world, look.clone()), Err(Denied::Leased));
    let _ = greedy(&mut scene);
    assert_eq!(scene.mounts[1].ordered(&mut scene.world, look), Err(Denied::NotFound), "it is open for a while");
}

#[test]
fn a_file_without_a_name_is_leased_with_the_directory_it_was_made_in() {
    let mut scene = Scene::new(2);
    let root = scene.world.root;
    scene.run(0, &Op::GetAttr { ino: root });
    let before = scene.local;
    scene.run(0, &Op::CreateUnnamed { parent: root, new: new(Kind::File, 0o600) });
    let made = *scene.inos.last().unwrap();
    let commit = Commit { opened: true, ..Commit::whole(made, None, content(9, 9)) };
    scene.run(0, &Op::Commit(commit));
    scene.run(0, &Op::Link { ino: made, parent: root, name: name("f") });
    assert!(scene.local - before >= 3, "nobody was asked");
    scene.run(0, &Op::CreateUnnamed { parent: root, new: new(Kind::File, 0o600) });
    let other = *scene.inos.last().unwrap();
    scene.mounts[0].ship(&mut scene.world);
    for op in [Op::GetAttr { ino: other }, Op::ReleaseOrphan { ino: other }] {
        assert_eq!(scene.mounts[1].ordered(&mut scene.world, op), Err(Denied::Leased));
    }
    // Given back, it is for replicas to say what becomes of it.
    scene.run(1, &Op::Lookup { parent: root, name: name("f") });
    scene.run(0, &Op::Link { ino: other, parent: root, name: name("g") });
    scene.run(1, &Op::Lookup { parent: root, name: name("g") });
}
