//! What a mount loses when its leases end: it is kept, and whoever wrote it is told.

use std::collections::BTreeMap;
use std::fs;
use std::future::pending;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use client::fs::{FileLock, Filesystem, FsError, Handle, LockWait, OpenFlags, Options, SetAttr};
use meta::{AttrChange, Ino, LOCK_END, LockKind, LockMode, RenameHow};
use tempfile::TempDir;

use super::world::{
    Fs, ROOT, SECRET, World, close, create, noise, options, read_all, read_file, write_all, write_file,
};

/// A cluster, a mount that keeps what it loses, and where.
struct Scene {
    world: World,
    fs: Fs,
    lost: TempDir,
}

impl Scene {
    fn new() -> Scene {
        Scene::with(|options| options)
    }

    fn with(change: impl FnOnce(Options) -> Options) -> Scene {
        let (world, lost) = (World::new(), TempDir::new().expect("a folder"));
        let fs = world.mount_with(change(Options { lost: Some(lost.path().join("made")), ..options() }));
        Scene { world, fs, lost }
    }

    /// The folders there are, the oldest first.
    fn folders(&self) -> Vec<PathBuf> {
        let listed = fs::read_dir(self.lost.path().join("made")).into_iter().flatten();
        let mut folders: Vec<_> = listed.map(|entry| entry.expect("an entry").path()).collect();
        folders.sort_by_key(|path| fs::metadata(path).and_then(|of| of.created()).expect("a time"));
        folders
    }

    /// Cuts the mount off until others may have had what it had, and has it hear of that; gives the folder with
    /// what it lost.
    async fn lose(&self) -> PathBuf {
        self.lose_after(async || {}).await
    }

    /// The same; something is done meanwhile.
    async fn lose_after(&self, meanwhile: impl AsyncFnOnce()) -> PathBuf {
        let before = self.folders().len();
        self.world.replicas.pass(Duration::from_secs(100));
        self.world.replicas.ask(meta::Op::GetAttr { ino: self.world.root() });
        meanwhile().await;
        let began = std::time::Instant::now();
        while self.folders().len() == before {
            assert!(began.elapsed().as_secs() < 60, "nothing is lost");
            self.world.replicas.nudge();
            tokio::task::yield_now().await;
        }
        self.fs.keep_lost().await;
        self.folders().pop().expect("just made")
    }

    /// Waits until the mount has a lease again on a file in the root directory.
    async fn regain(&self, name: &str, ino: Ino) {
        let began = std::time::Instant::now();
        while !self.fs.keeps(ino) {
            assert!(began.elapsed().as_secs() < 60, "others have it");
            self.world.replicas.pass(Duration::from_secs(30));
            self.fs.lookup(&ROOT, self.fs.root(), name.as_bytes()).await.expect("there");
            tokio::task::yield_now().await;
        }
    }

    async fn unsent(&self, name: &str, bytes: &[u8]) -> Ino {
        let made = create(&self.fs, name).await;
        write_all(&self.fs, made.handle, 0, bytes).await;
        self.fs.flush(made.handle).await.expect("flushed");
        self.fs.release(made.handle).await.expect("released");
        made.attr.ino
    }
}

fn list(folder: &Path) -> String {
    fs::read_to_string(folder.join("what-was-lost.txt")).expect("a list")
}

/// All files below a folder, by path.
fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut left = vec![folder.to_owned()];
    while let Some(at) = left.pop() {
        for entry in fs::read_dir(&at).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                left.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("below it").to_str().expect("text").to_owned();
                found.insert(name, fs::read(path).expect("readable"));
            }
        }
    }
    found
}

fn is_lost<T: std::fmt::Debug>(result: Result<T, FsError>) -> bool {
    match result {
        Ok(_) => false,
        Err(FsError::Lost(_)) => true,
        Err(other) => panic!("{other:?}"),
    }
}

async fn open(fs: &Fs, ino: Ino) -> Handle {
    fs.open(&ROOT, ino, OpenFlags::writing()).await.expect("opened").handle
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_never_reached_a_node_is_kept_as_it_was() {
    let scene = Scene::new();
    let fs = &scene.fs;
    let root = fs.root();
    write_file(fs, "saved", b"old").await;
    write_file(fs, "gone", b"gone").await;
    let stored = scene.world.stores.ids();
    scene.world.stores.open.send_replace(false);

    let directory = fs.mkdir(&ROOT, root, "dïr\n".as_bytes(), 0o755).await.expect("made").ino;
    scene.unsent("draft", &noise(1, 90_000)).await;
    fs.rename(&ROOT, (root, b"draft"), (root, b"saved"), RenameHow::Replace).await.expect("renamed");
    let tool = scene.unsent("tool", &noise(2, 30_000)).await;
    fs.rename(&ROOT, (root, b"tool"), (directory, b"tool"), RenameHow::Replace).await.expect("renamed");
    let attrs = AttrChange { mode: Some(0o6755), ..AttrChange::default() };
    let set = SetAttr { attrs, ..SetAttr::default() };
    fs.setattr(&ROOT, tool, &set, None).await.expect("changed");
    // A hole, and what was written twice.
    let sparse = create(fs, "sparse").await;
    write_all(fs, sparse.handle, 200_000, b"end").await;
    fs.flush(sparse.handle).await.expect("flushed");
    write_all(fs, sparse.handle, 0, b"begin").await;
    fs.flush(sparse.handle).await.expect("flushed");
    let gone = fs.lookup(&ROOT, root, b"gone").await.expect("there").ino;
    let gone = fs.open(&ROOT, gone, OpenFlags::reading()).await.expect("opened").handle;
    fs.unlink(&ROOT, root, b"gone").await.expect("removed");
    fs.symlink(&ROOT, root, b"link", b"tool").await.expect("made");
    scene.unsent("removed", &noise(3, 30_000)).await;
    fs.unlink(&ROOT, root, b"removed").await.expect("removed");

    let folder = scene.lose().await;
    let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
    assert!(name.starts_with("home-2") && name.ends_with('Z'), "{name}");
    let mut whole = b"begin".to_vec();
    whole.resize(200_000, 0);
    whole.extend(b"end");
    let expected: BTreeMap<String, Vec<u8>> =
        [("saved", noise(1, 90_000)), ("dïr\n/tool", noise(2, 30_000)), ("sparse", whole)]
            .map(|(name, bytes)| (name.to_owned(), bytes))
            .into();
    let found = tree(&folder.join("files"));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    assert!(found == expected, "as it was written");
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o7777;
    let files = folder.join("files");
    assert_eq!((mode(&folder), mode(&files.join("saved")), mode(&files.join("dïr\n/tool"))), (0o700, 0o600, 0o700));

    let text = list(&folder);
    let lines = [
        "made the directory dïr\\n",
        "made the file draft",
        "renamed draft to saved",
        "renamed tool to dïr\\n/tool",
        "set the mode to 6755 of dïr\\n/tool",
        "wrote sparse, 200003 bytes long with it",
        "removed gone",
        "made the symbolic link link to tool",
        "removed removed",
        "This is all: 3 files kept, 120008 bytes; 0 not kept.",
    ];
    let mut rest = text.as_str();
    for line in lines {
        let at = rest.find(line).unwrap_or_else(|| panic!("{line:?} in its turn in {text}"));
        rest = &rest[at + line.len()..];
    }
    let json = fs::read_to_string(folder.join("what-was-lost.jsonl")).expect("a list");
    let parsed: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(parsed.iter().any(|line| line["what"] == "rename" && line["path"] == "draft" && line["to"] == "saved"));
    assert!(parsed.iter().all(|line| text.contains(line["text"].as_str().expect("text"))));

    assert_eq!(scene.world.stores.ids(), stored, "none of it was sent");
    scene.world.stores.open.send_replace(true);
    fs.sync_all().await.expect_err("changes were lost");
    assert!(read_file(fs, "saved").await == b"old");
    assert!(read_all(fs, gone).await == b"gone");
    fs.release(gone).await.expect("released");
    fs.sync_all().await.expect("nothing is left to lose");
    assert!(scene.world.read_afresh("gone").await == b"gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_who_wrote_is_told_once_and_nobody_else() {
    let scene = Scene::new();
    let fs = &scene.fs;
    let (lost, safe) = (write_file(fs, "lost", b"a").await.ino, write_file(fs, "safe", b"b").await.ino);
    let chmodded = write_file(fs, "chmodded", b"c").await.ino;
    let directory = fs.mkdir(&ROOT, fs.root(), b"d", 0o755).await.expect("made").ino;
    let quiet = fs.mkdir(&ROOT, fs.root(), b"quiet", 0o755).await.expect("made").ino;
    let [one, two, reader, closer] =
        [open(fs, lost).await, open(fs, lost).await, open(fs, lost).await, open(fs, lost).await];
    let synced = open(fs, safe).await;
    let database = open(fs, chmodded).await;
    write_all(fs, synced, 0, b"synced").await;
    fs.fsync(synced).await.expect("synced");
    write_all(fs, database, 0, b"synced").await;
    fs.fsync(database).await.expect("synced");
    for handle in [one, two, closer] {
        write_all(fs, handle, 0, b"not sent").await;
        fs.flush(handle).await.expect("flushed");
    }
    fs.create(&ROOT, directory, b"made", 0o644, OpenFlags::writing(), true).await.expect("made");
    let attrs = AttrChange { mode: Some(0o600), ..AttrChange::default() };
    fs.setattr(&ROOT, chmodded, &SetAttr { attrs, ..SetAttr::default() }, None).await.expect("changed");

    scene.lose().await;
    fs.fsync(synced).await.expect("it is there");
    fs.sync_inode(quiet).await.expect("nothing was done in it");
    assert!(fs.is_dirty(directory), "the word that it was lost is not given yet");
    assert!(is_lost(fs.sync_inode(directory).await));
    fs.sync_inode(directory).await.expect("told once");
    assert!(!fs.is_dirty(directory));
    fs.flush(reader).await.expect("it wrote nothing");
    assert!(is_lost(fs.flush(closer).await));
    fs.flush(closer).await.expect("told once");
    for handle in [one, two] {
        assert!(is_lost(fs.fsync(handle).await));
        fs.fsync(handle).await.expect("told once");
    }
    fs.fsync(reader).await.expect("others were told");
    fs.flush(database).await.expect("all that was written through it is there");
    assert!(is_lost(fs.fsync(database).await), "whoever first syncs the file is told of its mode");
    fs.fsync(database).await.expect("told once");
    let told = fs.sync_names().await;
    assert!(matches!(&told, Err(FsError::Unavailable(why)) if why.contains("lost")), "{told:?}");
    fs.sync_names().await.expect("told once");

    // And again, of the next loss.
    scene.regain("lost", lost).await;
    write_all(fs, one, 0, b"not sent").await;
    fs.flush(one).await.expect("flushed");
    assert!(fs.keeps(lost), "or nothing would be lost");
    scene.lose().await;
    assert!(is_lost(fs.fsync(one).await));
    fs.fsync(two).await.expect("who wrote it was told");
    assert_eq!(scene.folders().len(), 2, "a folder each");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_committed_is_laid_over_what_others_wrote() {
    let scene = Scene::new();
    let fs = &scene.fs;
    let ino = write_file(fs, "file", &noise(1, 60_000)).await.ino;
    let handle = open(fs, ino).await;
    write_all(fs, handle, 0, &noise(2, 20_000)).await;
    fs.flush(handle).await.expect("committed here, and not sent");
    write_all(fs, handle, 40_000, &noise(3, 20_000)).await;
    let folder = scene
        .lose_after(async || {
            // One commit here was lost, one there was not: they count alike.
            let other = scene.world.mount();
            let there = open(&other, ino).await;
            write_all(&other, there, 30_000, &noise(4, 20_000)).await;
            close(&other, there).await;
        })
        .await;
    assert!(is_lost(fs.fsync(handle).await));
    fs.fsync(handle).await.expect("told once");
    let mut expected = noise(1, 60_000);
    expected[30_000..50_000].copy_from_slice(&noise(4, 20_000));
    expected[40_000..].copy_from_slice(&noise(3, 20_000));
    assert!(scene.world.read_afresh("file").await == expected);
    assert!(read_all(fs, handle).await == expected);
    let mut kept = noise(1, 60_000);
    kept[..20_000].copy_from_slice(&noise(2, 20_000));
    assert!(tree(&folder.join("files"))["file"] == kept, "what was committed here");
    assert_eq!(scene.world.replicas.state().audit(), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_see_what_is_so_after_a_loss() {
    let scene = Scene::new();
    let fs = &scene.fs;
    let ino = write_file(fs, "file", b"before").await.ino;
    let handle = open(fs, ino).await;
    write_all(fs, handle, 0, b"lost!!").await;
    fs.flush(handle).await.expect("flushed");
    scene
        .lose_after(async || {
            let other = scene.world.mount();
            let there = open(&other, ino).await;
            write_all(&other, there, 0, b"theirs").await;
            close(&other, there).await;
        })
        .await;
    assert!(is_lost(fs.fsync(handle).await));
    let began = std::time::Instant::now();
    while read_all(fs, handle).await != b"theirs" {
        assert!(began.elapsed().as_secs() < 10, "{:?}", read_all(fs, handle).await);
        tokio::task::yield_now().await;
    }
    assert_eq!(fs.getattr(&ROOT, ino).await.expect("there").size, 6);
    assert_eq!(read_file(fs, "file").await, b"theirs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_to_a_file_that_is_lost_is_kept_when_it_is_closed() {
    let scene = Scene::new();
    let fs = &scene.fs;
    write_file(fs, "first", b"small").await;
    let made = create(fs, "file").await;
    write_all(fs, made.handle, 0, &noise(1, 50_000)).await;
    let folder = scene.lose().await;
    assert_eq!(tree(&folder.join("files")).len(), 0, "it was not committed");
    write_all(fs, made.handle, 50_000, &noise(2, 10_000)).await;
    assert!(is_lost(fs.fsync(made.handle).await));
    fs.flush(made.handle).await.expect_err("the file is not there");
    let _ = fs.release(made.handle).await;
    fs.keep_lost().await;
    assert_eq!(scene.folders().len(), 1, "it belongs to the same loss");
    let expected = [noise(1, 50_000), noise(2, 10_000)].concat();
    assert!(tree(&folder.join("files")) == BTreeMap::from([("file".to_owned(), expected)]));
    assert!(list(&folder).contains("wrote file, 60000 bytes long with it, and could not commit that"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_is_kept_than_may_be() {
    let scene = Scene::with(|options| Options { lost_bytes_max: 50_000, ..options });
    write_file(&scene.fs, "first", b"small").await;
    for (name, len) in [("a", 30_000), ("b", 30_000), ("c", 15_000)] {
        scene.unsent(name, &noise(len, len as usize)).await;
    }
    let folder = scene.lose().await;
    let found = tree(&folder.join("files"));
    assert_eq!(found.keys().collect::<Vec<_>>(), ["a", "c"]);
    assert!(found["a"] == noise(30_000, 30_000) && found["c"] == noise(15_000, 15_000));
    let text = list(&folder);
    assert!(text.contains("wrote b, 30000 bytes") && text.contains("not kept: the content of b:"), "{text}");
    assert!(text.contains("2 files kept, 45000 bytes; 1 not kept"), "{text}");

    // With what is there of earlier losses.
    let first = scene.fs.lookup(&ROOT, scene.fs.root(), b"first").await.expect("there").ino;
    scene.regain("first", first).await;
    scene.unsent("d", &noise(4, 10_000)).await;
    let second = scene.lose().await;
    assert!(list(&second).contains("not kept: the content of d:"), "{}", list(&second));
    fs::remove_dir_all(&folder).expect("removed");
    scene.regain("first", first).await;
    scene.unsent("e", &noise(5, 10_000)).await;
    assert!(tree(&scene.lose().await.join("files")) == BTreeMap::from([("e".to_owned(), noise(5, 10_000))]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_that_is_gone_is_listed_as_such() {
    let scene = Scene::with(|options| Options { cache: super::world::cramped().cache, ..options });
    let ino = write_file(&scene.fs, "file", &noise(1, 400_000)).await.ino;
    read_file(&scene.fs, "file").await;
    let handle = open(&scene.fs, ino).await;
    write_all(&scene.fs, handle, 0, b"new").await;
    scene.fs.flush(handle).await.expect("flushed");
    scene.world.stores.forget_all();
    let folder = scene.lose().await;
    let found = tree(&folder.join("files"));
    assert_eq!(found.keys().collect::<Vec<_>>(), ["file.incomplete"]);
    let text = list(&folder);
    assert!(
        text.contains("wrote file, 400000 bytes") && text.contains("not kept: the content of file: damaged"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_begin_at_the_root_whatever_was_leased() {
    let scene = Scene::new();
    let (fs, other) = (&scene.fs, scene.world.mount());
    let own = fs.mkdir(&ROOT, fs.root(), b"own", 0o755).await.expect("made").ino;
    let deep = fs.mkdir(&ROOT, own, b"deep", 0o755).await.expect("made").ino;
    // The root is everybody's from here on.
    other.mkdir(&ROOT, other.root(), b"theirs", 0o755).await.expect("made");
    let flags = OpenFlags::writing();
    let made = fs.create(&ROOT, deep, b"file", 0o644, flags, true).await.expect("made");
    write_all(fs, made.handle, 0, b"content").await;
    fs.flush(made.handle).await.expect("flushed");
    assert!(fs.keeps(made.attr.ino), "or nothing would be lost");
    let folder = scene.lose_after(async || drop(other.readdir(&ROOT, deep, 0, 10).await.expect("theirs now"))).await;
    assert_eq!(tree(&folder.join("files")), BTreeMap::from([("own/deep/file".to_owned(), b"content".to_vec())]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_dropped_with_a_lock_is_kept_and_told_to_each_who_wrote_it() {
    for leased in [true, false] {
        let (world, lost) = (World::new(), TempDir::new().expect("a folder"));
        let with = Options { lost: Some(lost.path().to_owned()), ..options() };
        let names = world.names(leased);
        let one = Filesystem::open_volume(names, world.stores.clone(), world.volume.clone(), &SECRET, with);
        let one = one.expect("mounted");
        let ino = write_file(&one, "file", b"before").await.ino;
        let [locker, writer, synced] = [open(&one, ino).await, open(&one, ino).await, open(&one, ino).await];
        write_all(&one, synced, 0, b"synced").await;
        one.fsync(synced).await.expect("synced");
        let (kind, mode) = (LockKind::Posix, LockMode::Exclusive);
        let lock = FileLock { kind, owner: 1, start: 0, end: LOCK_END, mode, pid: 1 };
        let never = Duration::from_secs(3600);
        one.lock(locker, lock, LockWait::No, pending(), never).await.expect("locked");
        write_all(&one, writer, 6, &noise(1, 30_000)).await;
        world.replicas.pass(Duration::from_secs(100));
        let two = world.mount();
        let there = open(&two, ino).await;
        two.lock(there, lock, LockWait::No, pending(), never).await.expect("it is free by now");

        let began = std::time::Instant::now();
        while leased && fs::read_dir(lost.path()).expect("listed").next().is_none() {
            assert!(began.elapsed().as_secs() < 60, "nothing is lost");
            world.replicas.nudge();
            tokio::task::yield_now().await;
        }
        one.sync_all().await.expect_err("locks were lost");
        one.keep_lost().await;
        assert!(is_lost(one.fsync(writer).await), "leases: {leased}");
        one.fsync(writer).await.expect("told once");
        one.flush(synced).await.expect("what was written through it is there");
        assert_eq!(one.flush(locker).await, Err(FsError::Denied(meta::Denied::Fenced)));
        let folder = fs::read_dir(lost.path()).expect("listed").next().expect("one").expect("an entry").path();
        let place = if leased { "file".to_owned() } else { format!("by-number/{}", ino.0) };
        let expected = [b"synced".to_vec(), noise(1, 30_000)].concat();
        assert!(tree(&folder.join("files")) == BTreeMap::from([(place, expected)]), "leases: {leased}");
        assert_eq!(read_file(&two, "file").await, b"synced");
    }
}
