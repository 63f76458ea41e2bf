//! Leases that several have at a time: what they look at, and what becomes of it when it is changed.

use std::sync::atomic::Ordering;
use std::time::Duration;

use client::fs::OpenFlags;
use meta::Ino;

use super::world::{Fs, ROOT, World, close, noise, read_all};

const FILES: u64 = 50;

/// A directory with files in it that one mount made and sent.
async fn tree(world: &World, fs: &Fs) -> Ino {
    let directory = fs.mkdir(&ROOT, fs.root(), b"d", 0o755).await.expect("made").ino;
    for index in 0..FILES {
        let name = format!("f{index}");
        let flags = OpenFlags::writing();
        let made = fs.create(&ROOT, directory, name.as_bytes(), 0o644, flags, true).await.expect("made");
        fs.write(made.handle, 0, noise(index, 100).into()).await.expect("written");
        close(fs, made.handle).await;
    }
    fs.sync_all().await.expect("sent");
    assert_eq!(world.replicas.state().audit(), Ok(()));
    directory
}

/// Everything that `ls -l` and `cat` look at.
async fn look(fs: &Fs) {
    let directory = fs.lookup(&ROOT, fs.root(), b"d").await.expect("there").ino;
    let listed = fs.readdir(&ROOT, directory, 0, 1000).await.expect("listed").entries;
    assert_eq!(listed.len() as u64, FILES);
    for index in 0..FILES {
        let name = format!("f{index}");
        let attr = fs.lookup(&ROOT, directory, name.as_bytes()).await.expect("there");
        assert!(fs.lookup(&ROOT, directory, b"absent").await.is_err());
        let opened = fs.open(&ROOT, attr.ino, OpenFlags::reading()).await.expect("opened");
        assert!(read_all(fs, opened.handle).await == noise(index, 100));
        close(fs, opened.handle).await;
    }
}

/// What a look costs, in requests of all mounts together.
async fn cost(world: &World, fs: &Fs) -> usize {
    let before = world.replicas.requests.load(Ordering::SeqCst);
    look(fs).await;
    world.replicas.requests.load(Ordering::SeqCst) - before
}

/// What was given back, or changed, is not asked for again for a while.
async fn calm(world: &World) {
    world.replicas.pass(Duration::from_secs(3));
    tokio::time::advance(Duration::from_secs(3)).await;
}

#[tokio::test(start_paused = true)]
async fn several_mounts_look_at_the_same_tree_and_ask_replicas_next_to_nothing() {
    let world = World::new();
    let mounts = [world.mount(), world.mount(), world.mount()];
    let directory = tree(&world, &mounts[0]).await;
    for fs in &mounts[1..] {
        let first = cost(&world, fs).await;
        assert!(first <= 20, "{first} requests for the first look at {FILES} files");
    }
    calm(&world).await;
    assert!(cost(&world, &mounts[0]).await <= 20);
    for fs in &mounts {
        assert_eq!(cost(&world, fs).await, 0, "and for the second");
        assert!(!fs.lasts(directory, fs.generation()).is_zero(), "the kernel is told so");
    }
    // One more comes along, when anybody could have it alone, and takes nothing from the others.
    world.replicas.pass(Duration::from_secs(30));
    let (fourth, generations) = (world.mount(), mounts.each_ref().map(|fs| fs.generation()));
    fourth.getattr(&ROOT, fourth.root()).await.expect("there");
    assert!(cost(&world, &fourth).await <= 20);
    assert_eq!(mounts.each_ref().map(|fs| fs.generation()), generations);
    assert_eq!(world.replicas.state().audit(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn those_who_share_see_every_change_at_once() {
    let world = World::new();
    let mounts = [world.mount(), world.mount(), world.mount()];
    let directory = tree(&world, &mounts[0]).await;
    for round in 0..6 {
        for fs in mounts.iter().chain(&mounts) {
            calm(&world).await;
            look(fs).await;
        }
        let shared = mounts.iter().filter(|fs| !fs.lasts(directory, fs.generation()).is_zero()).count();
        assert_eq!(shared, 3, "round {round}");
        let (writer, generation) = (&mounts[round % 3], mounts[(round + 1) % 3].generation());
        let ino = writer.lookup(&ROOT, directory, b"f0").await.expect("there").ino;
        let opened = writer.open(&ROOT, ino, OpenFlags::writing()).await.expect("opened");
        writer.write(opened.handle, 100, noise(77, 100).into()).await.expect("written");
        close(writer, opened.handle).await;
        writer.unlink(&ROOT, directory, b"f1").await.expect("removed");
        for fs in &mounts {
            let attr = fs.lookup(&ROOT, directory, b"f0").await.expect("there");
            assert_eq!(attr.size, 200);
            let opened = fs.open(&ROOT, ino, OpenFlags::reading()).await.expect("opened");
            assert!(read_all(fs, opened.handle).await == [noise(0, 100), noise(77, 100)].concat());
            close(fs, opened.handle).await;
            assert!(fs.lookup(&ROOT, directory, b"f1").await.is_err());
            assert_eq!(fs.readdir(&ROOT, directory, 0, 1000).await.expect("listed").entries.len() as u64, FILES - 1);
        }
        assert_ne!(mounts[(round + 1) % 3].generation(), generation, "what the kernel was told is over");
        // As it was.
        let flags = OpenFlags { truncate: true, ..OpenFlags::writing() };
        let opened = writer.open(&ROOT, ino, flags).await.expect("opened");
        writer.write(opened.handle, 0, noise(0, 100).into()).await.expect("written");
        close(writer, opened.handle).await;
        let flags = OpenFlags::writing();
        let made = writer.create(&ROOT, directory, b"f1", 0o644, flags, true).await.expect("made");
        writer.write(made.handle, 0, noise(1, 100).into()).await.expect("written");
        close(writer, made.handle).await;
    }
    assert_eq!(world.replicas.state().audit(), Ok(()));
}
