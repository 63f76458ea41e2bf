//! The trash in the tree.

use client::fs::OpenFlags;
use meta::{Denied, Ino, Kind, Op, RenameHow, THROWN_AGE};

use super::world::{Fs, ROOT, World, close, content, create, denied, find, list, noise, write_all, write_file};

/// One with a trash.
fn world() -> World {
    let world = World::new();
    world.replicas.ask(Op::TrashKeep { volume: world.volume.id, seconds: 3600 });
    world
}

async fn mkdir(fs: &Fs, parent: Ino, name: &[u8]) -> Ino {
    fs.mkdir(&ROOT, parent, name, 0o755).await.expect("made").ino
}

/// A file in a directory.
async fn file(fs: &Fs, parent: Ino, name: &[u8], bytes: &[u8]) -> Ino {
    let ino = write_file(fs, "written", bytes).await.ino;
    fs.rename(&ROOT, (fs.root(), b"written"), (parent, name), RenameHow::Replace).await.expect("moved");
    ino
}

async fn lookup(fs: &Fs, path: &str) -> Result<Ino, client::fs::FsError> {
    let (parent, name) = path.rsplit_once('/').expect("a path");
    let parent = find(fs, parent).await;
    fs.lookup(&ROOT, parent, name.as_bytes()).await.map(|attr| attr.ino)
}

async fn unlink(fs: &Fs, path: &str) {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let parent = if parent.is_empty() { fs.root() } else { find(fs, parent).await };
    fs.unlink(&ROOT, parent, name.as_bytes()).await.expect("removed");
}

/// A mount when what was made is old enough to be kept, and long after what was removed: by mounts' clocks, too,
/// which go on while agreed time stands still here.
async fn aged(world: &World, fs: Fs) -> Fs {
    fs.close().await.expect("closed");
    world.replicas.pass(10 * THROWN_AGE);
    world.mount()
}

/// What it takes for replicas to know of it.
async fn sync(fs: &Fs) {
    fs.sync_all().await.expect("synced");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_removed_is_found_by_its_path_and_moved_back() {
    let world = world();
    let fs = world.mount();
    let dir = mkdir(&fs, fs.root(), b"dir").await;
    file(&fs, dir, b"long", &noise(1, 60_000)).await;
    fs.symlink(&ROOT, dir, b"link", b"somewhere").await.expect("made");
    let fs = aged(&world, fs).await;
    unlink(&fs, "dir/long").await;
    unlink(&fs, "dir/link").await;
    assert_eq!(list(&fs, dir).await, [""; 0]);

    for fs in [&fs, &world.mount()] {
        let trash = find(fs, ".mangrove/trash").await;
        assert_eq!(trash, fs.root().in_trash());
        assert_eq!(list(fs, trash).await, ["dir"], "a directory that is there is a way to what was in it");
        let there = find(fs, ".mangrove/trash/dir").await;
        assert_eq!(list(fs, there).await, ["link", "long"]);
        assert!(content(fs, ".mangrove/trash/dir/long").await == noise(1, 60_000));
        let link = find(fs, ".mangrove/trash/dir/link").await;
        assert_eq!(fs.readlink(&ROOT, link).await.expect("read"), b"somewhere");
        let (top, root) = (find(fs, ".mangrove").await, fs.root());
        for (child, parent) in [(there, trash), (trash, top), (top, root)] {
            assert_eq!(fs.parent(&ROOT, child).await.expect("there").ino, parent);
        }
        let attr = fs.getattr(&ROOT, there).await.expect("there");
        assert_eq!((attr.kind, attr.ino, attr.nlink), (Kind::Directory, there, 1));
    }
    let trash = find(&fs, ".mangrove/trash/dir").await;
    fs.rename(&ROOT, (trash, b"long"), (fs.root(), b"back"), RenameHow::NoReplace).await.expect("moved back");
    assert!(content(&world.mount(), "back").await == noise(1, 60_000));
    assert_eq!((list(&fs, trash).await, list(&fs, fs.root()).await.len()), (vec!["link".into()], 2));
    let opened = create(&fs, "other").await;
    close(&fs, opened.handle).await;
    let onto = fs.rename(&ROOT, (trash, b"link"), (fs.root(), b"other"), RenameHow::Replace).await;
    assert_eq!(denied(onto), Denied::Exists, "nothing that is there is replaced");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_that_was_removed_comes_back_whole() {
    let world = world();
    let fs = world.mount();
    let (top, mut homes) = (mkdir(&fs, fs.root(), b"top").await, Vec::new());
    for name in [b"one", b"two"] {
        let dir = mkdir(&fs, top, name).await;
        for index in 0..150 {
            file(&fs, dir, format!("f{index}").as_bytes(), &noise(index, 100)).await;
        }
        homes.push(dir);
    }
    file(&fs, top, b"early", b"removed before").await;
    let fs = aged(&world, fs).await;
    unlink(&fs, "top/early").await;
    file(&fs, top, b"late", b"there for a moment").await;
    unlink(&fs, "top/late").await;
    let fs = aged(&world, fs).await;
    for dir in &homes {
        for index in 0..150 {
            fs.unlink(&ROOT, *dir, format!("f{index}").as_bytes()).await.expect("removed");
        }
    }
    for (parent, name) in [(top, "one"), (top, "two"), (fs.root(), "top")] {
        fs.rmdir(&ROOT, parent, name.as_bytes()).await.expect("removed");
    }
    let other = world.mount();
    sync(&fs).await;
    assert_eq!(list(&other, find(&other, ".mangrove/trash/top").await).await, ["early", "one", "two"]);
    assert_eq!(content(&other, ".mangrove/trash/top/two/f149").await, noise(149, 100));
    let trash = find(&other, ".mangrove/trash").await;
    let back = (other.root(), &b"again"[..]);
    other.rename(&ROOT, (trash, b"top"), back, RenameHow::Replace).await.expect("moved back");
    for fs in [&fs, &other] {
        assert_eq!(list(fs, find(fs, "again").await).await, ["one", "two"]);
        assert_eq!(list(fs, find(fs, "again/two").await).await.len(), 150);
        assert_eq!(content(fs, "again/one/f7").await, noise(7, 100));
        assert_eq!(list(fs, find(fs, ".mangrove/trash").await).await, ["again"]);
        assert_eq!(list(fs, find(fs, ".mangrove/trash/again/one").await).await, [""; 0]);
    }
    assert_eq!(content(&fs, ".mangrove/trash/again/early").await, b"removed before");
    assert_eq!(world.replicas.state().counts().thrown, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_had_the_same_name_is_found_by_a_number_too() {
    let world = world();
    let mut fs = world.mount();
    let mut inos = Vec::new();
    for text in ["first", "second", "third"] {
        inos.push(write_file(&fs, "note", text.as_bytes()).await.ino);
        fs = aged(&world, fs).await;
        unlink(&fs, "note").await;
        sync(&fs).await;
    }
    let numbered: Vec<String> = inos.iter().map(|ino| format!("note.~{}~", ino.0)).collect();
    let trash = find(&fs, ".mangrove/trash").await;
    let mut listed = vec!["note".to_owned(), numbered[0].clone(), numbered[1].clone()];
    listed.sort();
    assert_eq!(list(&fs, trash).await, listed);
    assert_eq!(content(&fs, ".mangrove/trash/note").await, b"third");
    for (name, text) in numbered.iter().zip(["first", "second", "third"]) {
        assert_eq!(content(&fs, &format!(".mangrove/trash/{name}")).await, text.as_bytes());
    }
    for wrong in ["note.~999999~", "other.~2~", "note.~x~", &format!("other.~{}~", inos[0].0)] {
        assert_eq!(denied(lookup(&fs, &format!(".mangrove/trash/{wrong}")).await), Denied::NotFound, "{wrong}");
    }
    // A directory that has the name now is a way to what was in it.
    mkdir(&fs, fs.root(), b"note").await;
    let last = &numbered[2];
    assert_eq!(list(&fs, trash).await.iter().filter(|name| name.starts_with("note.")).count(), 3);
    assert_eq!(content(&fs, &format!(".mangrove/trash/{last}")).await, b"third");
    fs.rename(&ROOT, (trash, numbered[0].as_bytes()), (fs.root(), b"old"), RenameHow::Replace).await.expect("back");
    assert_eq!(content(&fs, "old").await, b"first");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_changed_in_the_trash_but_what_is_removed_for_good() {
    let world = world();
    let fs = world.mount();
    let dir = mkdir(&fs, fs.root(), b"dir").await;
    let gone = mkdir(&fs, fs.root(), b"gone").await;
    file(&fs, gone, b"file", b"text").await;
    let fs = aged(&world, fs).await;
    unlink(&fs, "gone/file").await;
    fs.rmdir(&ROOT, fs.root(), b"gone").await.expect("removed");
    let trash = find(&fs, ".mangrove/trash").await;
    let into = fs.rename(&ROOT, (fs.root(), b"dir"), (trash, b"dir2"), RenameHow::Replace).await;
    assert_eq!(denied(into), Denied::ReadOnly);
    let within = fs.rename(&ROOT, (trash, b"gone"), (trash, b"dir2"), RenameHow::Replace).await;
    assert_eq!(denied(within), Denied::ReadOnly);
    assert_eq!(denied(fs.mkdir(&ROOT, trash, b"new", 0o755).await), Denied::ReadOnly);
    // What is there is not removed by way of the trash.
    assert_eq!(denied(fs.rmdir(&ROOT, trash, b"dir").await), Denied::ReadOnly);
    let out = fs.rename(&ROOT, (trash, b"dir"), (fs.root(), b"dir2"), RenameHow::Replace).await;
    assert_eq!(denied(out), Denied::ReadOnly);
    assert_eq!(find(&fs, "dir").await, dir);

    assert_eq!(denied(fs.unlink(&ROOT, trash, b"gone").await), Denied::IsDirectory);
    assert_eq!(denied(fs.rmdir(&ROOT, trash, b"gone").await), Denied::NotEmpty);
    let inner = find(&fs, ".mangrove/trash/gone").await;
    assert_eq!(denied(fs.rmdir(&ROOT, inner, b"file").await), Denied::NotDirectory);
    fs.unlink(&ROOT, inner, b"file").await.expect("removed");
    fs.rmdir(&ROOT, trash, b"gone").await.expect("removed");
    assert_eq!(list(&fs, trash).await, ["dir"]);
    assert_eq!(world.replicas.state().counts().thrown, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_mount_has_open_goes_on_and_what_came_and_went_leaves_nothing() {
    let world = world();
    let fs = world.mount();
    write_file(&fs, "open", b"before, ").await;
    let fs = aged(&world, fs).await;
    let opened = fs.open(&ROOT, find(&fs, "open").await, OpenFlags::writing()).await.expect("opened");
    unlink(&fs, "open").await;
    write_file(&fs, "open", b"of a moment").await;
    unlink(&fs, "open").await;
    sync(&fs).await;
    write_all(&fs, opened.handle, 8, b"after").await;
    fs.fsync(opened.handle).await.expect("synced");
    assert_eq!(content(&world.mount(), ".mangrove/trash/open").await, b"before, after");
    let trash = find(&fs, ".mangrove/trash").await;
    fs.rename(&ROOT, (trash, b"open"), (fs.root(), b"open"), RenameHow::Replace).await.expect("back");
    // Open all the while, it has a name again and is not let go of.
    write_all(&fs, opened.handle, 13, b", restored").await;
    close(&fs, opened.handle).await;
    assert_eq!(content(&fs, "open").await, b"before, after, restored");
    let opened = fs.open(&ROOT, find(&fs, "open").await, OpenFlags::writing()).await.expect("opened");
    write_all(&fs, opened.handle, 0, b"BEFORE").await;
    close(&fs, opened.handle).await;
    assert_eq!(content(&world.mount(), "open").await, b"BEFORE, after, restored");
    // Emptied by an administrator.
    unlink(&fs, "open").await;
    assert_eq!(list(&fs, trash).await, ["open"]);
    world.replicas.ask(Op::TrashEmpty { volume: world.volume.id });
    assert_eq!(list(&fs, trash).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_mount_restores_is_written_by_who_has_it_open() {
    let world = world();
    let fs = world.mount();
    write_file(&fs, "open", b"before").await;
    let (fs, other) = (aged(&world, fs).await, world.mount());
    let opened = fs.open(&ROOT, find(&fs, "open").await, OpenFlags::writing()).await.expect("opened");
    unlink(&fs, "open").await;
    sync(&fs).await;
    write_all(&fs, opened.handle, 0, b"AF").await;
    let trash = find(&other, ".mangrove/trash").await;
    other.rename(&ROOT, (trash, b"open"), (other.root(), b"back"), RenameHow::Replace).await.expect("back");
    fs.release(opened.handle).await.expect("released, and not flushed");
    sync(&fs).await;
    assert_eq!(content(&other, "back").await, b"AFfore");
    // And it is opened as others are.
    let opened = fs.open(&ROOT, find(&fs, "back").await, OpenFlags::writing()).await.expect("opened");
    write_all(&fs, opened.handle, 2, b"TER").await;
    close(&fs, opened.handle).await;
    assert_eq!(content(&world.mount(), "back").await, b"AFTERe");
    assert_eq!(world.replicas.state().counts().orphans, 0);
}
