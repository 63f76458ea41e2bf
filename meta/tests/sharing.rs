//! Shared leases: several look at what is there without asking, and nobody changes it before they have ceded it.

mod common;

use common::mount::Mount;
use common::*;
use meta::*;

/// A directory with two files in it, one of them in a directory of its own, and mounts of it.
struct Scene {
    world: World,
    top: Ino,
    sub: Ino,
    mounts: Vec<Mount>,
}

impl Scene {
    fn new(mounts: u64) -> Scene {
        let mut world = World::throwing();
        let top = world.dir(0, world.root, "top", 0o755);
        let sub = world.dir(0, top, "sub", 0o755);
        world.file(0, top, "file", 0o644);
        world.file(0, sub, "file", 0o644);
        Scene { world, top, sub, mounts: (1..=mounts).map(Mount::new).collect() }
    }

    /// A look at a file of a directory, here or nowhere.
    fn look_here(&mut self, who: usize, directory: Ino) -> Option<Attr> {
        let (mount, op) = (&mut self.mounts[who], Op::Lookup { parent: directory, name: name("file") });
        match mount.copy.locally(&op, &mount.me) {
            Local::Can => match mount.apply_own(self.world.now, &op) {
                Ok(Reply::Attr(attr)) => Some(attr),
                other => panic!("{other:?}"),
            },
            _ => None,
        }
    }

    fn hold(&mut self, who: usize, directory: Ino, shared: bool) -> Result<(), Denied> {
        self.mounts[who].hold(&mut self.world, directory, shared)
    }

    /// Gets a lease to look, as a client does, and all names.
    fn share(&mut self, who: usize, directory: Ino) {
        while let Err(why) = self.hold(who, directory, true) {
            assert_eq!(why, Denied::Leased);
            self.heed_all();
        }
        self.mounts[who].fetch(&mut self.world, directory).unwrap();
    }

    /// Each has it, and nobody alone: whoever came first had it alone until the second did.
    fn share_all(&mut self, whos: core::ops::Range<usize>, directory: Ino) {
        for who in whos.clone().chain(whos) {
            self.share(who, directory);
        }
    }

    fn heed_all(&mut self) {
        for mount in &mut self.mounts {
            if self.world.state.recalled().any(|id| *id == mount.me) {
                mount.heed(&mut self.world);
            }
        }
    }

    fn chmod(&mut self, who: usize, directory: Ino, mode: u16) -> Result<Reply, Denied> {
        let look = Op::Lookup { parent: directory, name: name("file") };
        let Ok(Reply::Attr(attr)) = self.mounts[who].ordered(&mut self.world, look) else { panic!("not there") };
        let op = Op::SetAttr { ino: attr.ino, change: AttrChange { mode: Some(mode), ..AttrChange::default() } };
        let done = self.mounts[who].ordered(&mut self.world, op.clone());
        if done.is_ok() {
            self.mounts[who].copy.doubt(&op);
        }
        done
    }
}

#[test]
fn several_look_at_the_same_tree_and_are_asked_before_it_is_changed() {
    let mut scene = Scene::new(3);
    scene.hold(0, scene.world.root, false).unwrap();
    assert_eq!(scene.hold(1, scene.top, true), Err(Denied::Leased), "it is asked for, and can be had then");
    for who in [1, 2, 0] {
        scene.share(who, scene.top);
        scene.share(who, scene.sub);
    }
    for who in 0..3 {
        assert!(scene.look_here(who, scene.top).is_some() && scene.look_here(who, scene.sub).is_some());
        let change = Op::Unlink { parent: scene.top, name: name("file"), keep: false };
        let mount = &scene.mounts[who];
        assert_ne!(mount.copy.locally(&change, &mount.me), Local::Can, "nobody changes it alone");
    }
    assert_eq!(scene.chmod(0, scene.top, 0o600), Err(Denied::Leased));
    let asked: Vec<u64> = scene.world.state.recalled().map(|id| id.1).collect();
    assert_eq!(asked, [2, 3], "all but who changes it");
    scene.heed_all();
    assert!(scene.chmod(0, scene.top, 0o600).is_ok());
    assert_eq!(scene.look_here(1, scene.top), None);
    assert_eq!(scene.look_here(1, scene.sub), None, "what is below went with it");
}

#[test]
fn only_what_is_changed_is_asked_back() {
    let mut scene = Scene::new(3);
    scene.share_all(0..2, scene.top);
    scene.share_all(0..2, scene.sub);
    assert_eq!(scene.chmod(2, scene.sub, 0o600), Err(Denied::Leased));
    scene.heed_all();
    assert!(scene.chmod(2, scene.sub, 0o600).is_ok());
    assert!(scene.look_here(0, scene.top).is_some() && scene.look_here(1, scene.top).is_some());
    assert_eq!((scene.look_here(0, scene.sub), scene.look_here(1, scene.sub)), (None, None));
}

#[test]
fn one_of_two_who_cedes_leaves_it_to_the_other() {
    let mut scene = Scene::new(3);
    scene.share_all(0..2, scene.top);
    assert_eq!(scene.chmod(2, scene.top, 0o600), Err(Denied::Leased));
    scene.mounts[0].heed(&mut scene.world);
    assert_eq!(scene.chmod(2, scene.top, 0o600), Err(Denied::Leased), "the other has it still");
    assert_eq!(scene.hold(0, scene.top, true), Err(Denied::Contended), "nobody joins it meanwhile");
    scene.world.later(1);
    assert_eq!(scene.chmod(2, scene.top, 0o600), Err(Denied::Leased));
    scene.world.later(1);
    assert_eq!(scene.hold(0, scene.top, true), Err(Denied::Contended), "while it is asked for");
    assert!(scene.look_here(1, scene.top).is_some());
    scene.mounts[1].heed(&mut scene.world);
    assert!(scene.chmod(2, scene.top, 0o600).is_ok());
}

#[test]
fn what_is_being_changed_is_shared_when_it_is_quiet() {
    let mut scene = Scene::new(2);
    scene.share_all(0..2, scene.top);
    assert_eq!(scene.chmod(1, scene.top, 0o600), Err(Denied::Leased));
    scene.heed_all();
    for second in 0..4 {
        assert!(scene.chmod(1, scene.top, 0o600 + second).is_ok());
        assert_eq!(scene.hold(0, scene.top, true), Err(Denied::Contended), "it would be asked back at once");
        scene.world.later(1);
    }
    scene.world.later(1);
    scene.share(0, scene.top);
    assert_eq!(scene.look_here(0, scene.top).unwrap().mode, 0o603);
}

#[test]
fn whoever_wants_to_change_what_others_share_gets_it_alone() {
    let mut scene = Scene::new(2);
    scene.share_all(0..2, scene.top);
    assert_eq!(scene.hold(0, scene.sub, false), Err(Denied::Leased), "the other is asked");
    scene.heed_all();
    assert_eq!(scene.hold(1, scene.sub, false), Err(Denied::Contended), "nobody takes it before it was changed");
    scene.world.later(1);
    assert_eq!(scene.hold(0, scene.sub, false), Ok(()));
    scene.mounts[0].fetch(&mut scene.world, scene.sub).unwrap();
    let change = Op::Unlink { parent: scene.sub, name: name("file"), keep: false };
    let mount = &scene.mounts[0];
    assert_eq!(mount.copy.locally(&change, &mount.me), Local::Can);
    assert!(scene.look_here(1, scene.top).is_some(), "the rest is shared as before");
    assert_eq!(scene.hold(1, scene.sub, true), Err(Denied::Leased));
}

#[test]
fn whoever_does_not_answer_is_waited_out_and_the_others_keep_what_they_share() {
    let mut scene = Scene::new(3);
    scene.share_all(0..2, scene.top);
    scene.world.later(30);
    scene.mounts[1].ordered(&mut scene.world, Op::Renew).unwrap();
    // The first is silent from here on, and the second is asked for something else.
    scene.world.now = scene.world.now.after(LEASE_TERM / 2);
    assert_eq!(scene.chmod(2, scene.sub, 0o600), Err(Denied::Leased));
    scene.mounts[1].heed(&mut scene.world);
    assert_eq!(scene.chmod(2, scene.sub, 0o600), Err(Denied::Leased), "its time is not up");
    scene.world.later(1);
    assert!(scene.chmod(2, scene.sub, 0o600).is_ok());
    assert_eq!(scene.mounts[0].ordered(&mut scene.world, Op::Renew), Err(Denied::Fenced));
    assert!(scene.look_here(1, scene.top).is_some());
    assert_eq!(scene.chmod(2, scene.top, 0o600), Err(Denied::Leased), "the second shares it still");
}

#[test]
fn whoever_may_only_read_shares_and_so_does_everybody_where_there_is_a_quota() {
    let mut scene = Scene::new(0);
    let (top, hold) = (scene.top, |shared| Op::Hold { holder: 1, ino: scene.top, instead: 0, shared });
    scene.world.key = key(2);
    assert_eq!(scene.world.run(&user(1000), hold(false)), Err(Denied::Access));
    assert!(matches!(scene.world.run(&user(1000), hold(true)), Ok(Reply::Held { .. })));
    assert!(scene.world.run(&user(1000), Op::ReadDir { ino: top, cookie: 0, max: 9 }).is_ok());
    assert!(scene.world.state.is_read_by(top, &(key(2), 1)) && !scene.world.state.is_held_by(top, &(key(2), 1)));

    let mut quota = World::with(VolumeSpec { quota_inodes: 10, ..spec("small") });
    let hold = |shared| Op::Hold { holder: 1, ino: quota.root, instead: 0, shared };
    let (alone, both) = (hold(false), hold(true));
    assert_eq!(quota.run(&user(0), alone), Err(Denied::NotPermitted));
    assert!(matches!(quota.run(&user(0), both), Ok(Reply::Held { .. })));
}

#[test]
fn locks_that_others_took_while_it_was_shared_are_known_to_who_has_it_alone() {
    let mut scene = Scene::new(2);
    scene.share_all(0..2, scene.top);
    let ino = scene.look_here(0, scene.top).expect("it is shared").ino;
    let lock = LockRequest {
        ino,
        owner: 7,
        kind: LockKind::Flock,
        mode: LockMode::Exclusive,
        start: 0,
        end: i64::MAX as u64,
        pid: 1,
        how: LockHow::Try,
    };
    let granted = scene.mounts[1].ordered(&mut scene.world, Op::Lock(lock));
    assert_eq!(granted, Ok(Reply::Locked(Locked::Granted)), "nobody need be asked");
    // The lease becomes its own alone, once nobody contends for it.
    scene.world.later(25);
    assert_eq!(scene.hold(0, scene.top, false), Err(Denied::Leased));
    scene.mounts[1].heed(&mut scene.world);
    scene.world.later(1);
    scene.hold(0, scene.top, false).unwrap();
    let mount = &scene.mounts[0];
    assert!(mount.copy.is_held_by(scene.top, &mount.me));
    let other = Op::Lock(LockRequest { owner: 8, ..lock });
    assert_ne!(mount.copy.locally(&other, &mount.me), Local::Can, "it is not known yet");
    scene.mounts[0].fetch(&mut scene.world, scene.top).unwrap();
    let mount = &mut scene.mounts[0];
    assert_ne!(mount.copy.locally(&other, &mount.me), Local::Can, "somebody else has a lock on it");
}
