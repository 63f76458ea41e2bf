//! Reads from proven rows: who is given them, and what they say.

mod common;

use base::merkle::Proven;
use base::{Encode as _, StateMachine as _};
use common::*;
use meta::*;

/// The rows that answer a call, proven.
fn rows(world: &mut World, call: &Call) -> Result<Proven, Unproven> {
    let names = world.state.rows_of(world.now, &world.key, call)?;
    let tree = world.state.tree().expect("it has one").clone();
    let part = tree.part(names.iter().map(Vec::as_slice), |name| world.state.row(name));
    Ok(part.proven(&tree.root()).expect("a part of its own tree"))
}

fn read(world: &mut World, uid: u32, op: Op) -> Result<Result<Reply, Denied>, Unproven> {
    let call = Call { caller: user(uid), op };
    let rows = rows(world, &call)?;
    Ok(read_proven(&rows, world.now, &world.key, &call)?.into_result())
}

#[test]
fn a_name_is_proven_to_be_there_or_not() {
    let mut world = World::new();
    let root = world.root;
    let file = world.file(1000, root, "f", 0o644);
    let lookup = |text: &str| Op::Lookup { parent: root, name: name(text) };
    let attr = world.attr(file);
    assert_eq!(read(&mut world, 1000, lookup("f")), Ok(Ok(Reply::Attr(attr))));
    assert_eq!(read(&mut world, 1000, lookup("g")), Ok(Err(Denied::NotFound)));
    assert_eq!(read(&mut world, 1000, Op::GetAttr { ino: Ino(999) }), Ok(Err(Denied::Stale)));
    let xattr = |text: &str| Op::GetXattr { ino: file, class: XattrClass::Security, name: name(text) };
    assert_eq!(read(&mut world, 1000, xattr("capability")), Ok(Err(Denied::NoAttribute)));
}

#[test]
fn a_link_an_attribute_a_volume_and_its_space_are_proven() {
    let mut world = World::new();
    let (root, volume) = (world.root, world.volume);
    let link = world.create(&user(0), root, "l", new(Kind::Symlink, 0o777)).unwrap().ino;
    assert_eq!(read(&mut world, 7, Op::ReadLink { ino: link }), Ok(Ok(Reply::Target(sealed("target")))));
    let (ino, class) = (world.file(7, root, "f", 0o600), XattrClass::User);
    let value = sealed("value");
    let set = Op::SetXattr { ino, class, name: name("x"), value: value.clone(), how: XattrHow::Set };
    world.run(&user(7), set).unwrap();
    assert_eq!(read(&mut world, 7, Op::GetXattr { ino, class, name: name("x") }), Ok(Ok(Reply::Value(value))));
    for name in ["home", "elsewhere"] {
        let get = Op::VolumeGet { name: name.into() };
        let ordered = world.run(&user(7), get.clone());
        assert_eq!(read(&mut world, 7, get), Ok(ordered));
    }
    let space = world.space();
    assert_eq!(read(&mut world, 7, Op::StatFs { volume }), Ok(Ok(Reply::Space(space))));
}

#[test]
fn who_may_not_have_a_row_is_not_given_it() {
    let mut world = World::new();
    let root = world.root;
    let private = world.dir(1000, root, "d", 0o700);
    let file = world.file(1000, private, "f", 0o600);
    let lookup = Op::Lookup { parent: private, name: name("f") };
    assert!(read(&mut world, 1000, lookup.clone()).is_ok());
    assert_eq!(read(&mut world, 2000, lookup), Err(Unproven::Withheld), "no right to search");
    // Anybody may ask for attributes, but with them in the row is the recipe.
    assert!(read(&mut world, 1000, Op::GetAttr { ino: file }).is_ok());
    assert_eq!(read(&mut world, 2000, Op::GetAttr { ino: file }), Err(Unproven::Withheld));
    assert!(world.run(&user(2000), Op::GetAttr { ino: file }).is_ok());
    assert_eq!(read(&mut world, 2000, Op::GetAttr { ino: private }), Err(Unproven::Withheld));
    // A key may act only for those it was granted, and one that has no grant for nobody.
    world.key = key(2);
    assert!(read(&mut world, 1000, Op::GetAttr { ino: file }).is_ok());
    assert_eq!(read(&mut world, 0, Op::GetAttr { ino: file }), Err(Unproven::Withheld));
    world.key = key(9);
    assert_eq!(read(&mut world, 1000, Op::GetAttr { ino: root }), Err(Unproven::Withheld));
}

#[test]
fn what_lists_or_changes_is_not_proven() {
    let mut world = World::new();
    let ino = world.root;
    let ops = [
        Op::ReadDir { ino, cookie: 0, max: 9 },
        Op::ListXattr { ino },
        Op::VolumeList,
        Op::Rmdir { parent: ino, name: name("d") },
    ];
    for op in ops {
        assert_eq!(read(&mut world, 0, op), Err(Unproven::NotARead));
    }
}

/// Rows that show something, but not what the read looks at: a liar's choice of them.
#[test]
fn rows_of_another_read_do_not_answer() {
    let mut world = World::new();
    let root = world.root;
    let there = world.file(0, root, "f", 0o644);
    let call = |op| Call { caller: user(5), op };
    let asked = call(Op::Lookup { parent: root, name: name("f") });
    for another in [Op::GetAttr { ino: there }, Op::GetAttr { ino: root }, Op::StatFs { volume: world.volume }] {
        let shown = rows(&mut world, &call(another)).unwrap();
        let (at, key) = (world.now, world.key);
        assert_eq!(read_proven(&shown, at, &key, &asked), Err(Unproven::NotShown));
    }
    // Without the grant nobody knows whether the key may ask at all: it is not taken for a refusal.
    let names = world.state.rows_of(world.now, &world.key, &asked).unwrap();
    let tree = world.state.tree().unwrap().clone();
    let grant: Vec<_> = names.iter().filter(|name| name[0] == 1).collect();
    assert_eq!(grant.len(), 1);
    let rest = names.iter().filter(|name| name[0] != 1).map(Vec::as_slice);
    let shown = tree.part(rest, |name| world.state.row(name)).proven(&tree.root()).unwrap();
    assert_eq!(read_proven(&shown, world.now, &world.key, &asked), Err(Unproven::NotShown));
}

#[test]
fn what_is_in_a_snapshot_is_proven_to_whoever_had_a_right_to_it_then() {
    let mut world = World::new();
    let (root, volume) = (world.root, world.volume);
    let file = world.file(1000, root, "f", 0o600);
    let gone = world.file(1000, root, "gone", 0o644);
    for name in ["first", "second"] {
        world.run(&user(0), Op::SnapshotTake { volume, name: name.into() }).unwrap();
    }
    let was = world.attr(file.in_snapshot(1));
    world.chmod(&user(1000), file, 0o644).unwrap();
    world.unlink(&user(1000), root, "gone", false).unwrap();
    world.file(1000, root, "new", 0o644);
    for number in [1, 2] {
        let lookup = |text: &str| Op::Lookup { parent: root.in_snapshot(number), name: name(text) };
        let attr = Attr { ino: file.in_snapshot(number), ..was };
        assert_eq!(read(&mut world, 1000, lookup("f")), Ok(Ok(Reply::Attr(attr))));
        assert_eq!(read(&mut world, 1000, lookup("new")), Ok(Err(Denied::NotFound)));
        let there = read(&mut world, 2000, lookup("gone"));
        assert!(matches!(there, Ok(Ok(Reply::Attr(attr))) if attr.ino == gone.in_snapshot(number)), "{there:?}");
        let open = Op::Open { ino: gone.in_snapshot(number), mask: READ };
        assert!(matches!(read(&mut world, 2000, open), Ok(Ok(Reply::Opened { .. }))));
        // Whoever may read it now could not read what it held then.
        assert!(read(&mut world, 2000, Op::GetAttr { ino: file }).is_ok());
        let then = Op::GetAttr { ino: file.in_snapshot(number) };
        assert_eq!(read(&mut world, 2000, then), Err(Unproven::Withheld));
    }
    assert_eq!(read(&mut world, 0, Op::GetAttr { ino: file.in_snapshot(3) }), Ok(Err(Denied::Stale)));
    let write = Op::Open { ino: gone.in_snapshot(1), mask: READ | WRITE };
    assert_eq!(read(&mut world, 0, write), Ok(Err(Denied::ReadOnly)));
}

#[test]
fn nobody_proves_that_what_was_removed_is_there() {
    let mut world = World::throwing();
    let root = world.root;
    let [file, other] = ["f", "g"].map(|name| world.file(1000, root, name, 0o644));
    world.later(THROWN_AGE.as_secs());
    world.unlink(&user(1000), root, "f", false).unwrap();
    let look = |ino| Call { caller: user(1000), op: Op::GetAttr { ino } };
    assert_eq!(world.state.rows_of(world.now, &world.key, &look(file)), Err(Unproven::Withheld));
    // A replica that lies shows what it would show of one that is there.
    let row = |ino: Ino| [&[4][..], &ino.to_bytes()].concat();
    let mut names = world.state.rows_of(world.now, &world.key, &look(other)).unwrap();
    let at = names.iter().position(|name| *name == row(other)).expect("the inode's row");
    names[at] = row(file);
    let tree = world.state.tree().expect("it has one").clone();
    let part = tree.part(names.iter().map(Vec::as_slice), |name| world.state.row(name));
    let rows = part.proven(&tree.root()).expect("a part of its own tree");
    assert_eq!(read_proven(&rows, world.now, &world.key, &look(file)), Err(Unproven::NotShown));
    // What somebody has open is proven to be, with the rows that say so.
    world.unlink(&user(1000), root, "g", true).unwrap();
    assert!(matches!(read(&mut world, 1000, Op::GetAttr { ino: other }), Ok(Ok(Reply::Attr(attr))) if attr.nlink == 0));
}
