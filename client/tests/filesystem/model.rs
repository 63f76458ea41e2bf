//! A file against a plain vector of bytes: everything a program can do to it, in any order, by two
//! mounts of one volume.

use bytes::Bytes;
use client::fs::{Fallocate, FsError, Handle, OpenFlags, Seek, SetAttr};
use proptest::prelude::*;

use super::world::{Fs, ROOT, World, create, noise, read_all, until, write_file};

#[derive(Clone, Debug)]
enum Step {
    Write { at: u64, len: usize, seed: u64 },
    Zeros { at: u64, len: usize },
    Append { len: usize, seed: u64 },
    Truncate { size: u64, by_handle: bool },
    Fallocate { how: Fallocate, at: u64, len: u64 },
    Read { at: u64, len: u32 },
    Seek { at: u64 },
    Copy { other: bool, from: u64, to: u64, len: u64 },
    Flush,
    Fsync,
    Fold,
    Reopen { truncate: bool },
    Stage,
}

const SIZE: u64 = 100_000;

fn step() -> impl Strategy<Value = Step> {
    let how = prop_oneof![
        Just(Fallocate::Allocate),
        Just(Fallocate::AllocateKeepSize),
        Just(Fallocate::PunchHole),
        Just(Fallocate::ZeroRange),
        Just(Fallocate::ZeroRangeKeepSize),
    ];
    // Around the sizes of chunks, and in between.
    let len = prop_oneof![1..200usize, 4000..4200usize, 16_000..17_000usize, 1..60_000usize];
    let at = prop_oneof![Just(0), 0..SIZE, (0..25u64).prop_map(|block| block * 4096)];
    prop_oneof![
        6 => (at.clone(), len.clone(), any::<u64>()).prop_map(|(at, len, seed)| Step::Write { at, len, seed }),
        1 => (at.clone(), len.clone()).prop_map(|(at, len)| Step::Zeros { at, len }),
        3 => (len.clone(), any::<u64>()).prop_map(|(len, seed)| Step::Append { len, seed }),
        2 => (at.clone(), any::<bool>()).prop_map(|(size, by_handle)| Step::Truncate { size, by_handle }),
        2 => (how, at.clone(), len.clone()).prop_map(|(how, at, len)| Step::Fallocate { how, at, len: len as u64 }),
        3 => (any::<bool>(), at.clone(), at.clone(), len)
            .prop_map(|(other, from, to, len)| Step::Copy { other, from, to, len: len as u64 }),
        3 => (at.clone(), 1..50_000u32).prop_map(|(at, len)| Step::Read { at, len }),
        1 => at.prop_map(|at| Step::Seek { at }),
        1 => Just(Step::Flush),
        3 => Just(Step::Fsync),
        1 => Just(Step::Fold),
        2 => any::<bool>().prop_map(|truncate| Step::Reopen { truncate }),
        1 => Just(Step::Stage),
    ]
}

/// A file as it should be.
#[derive(Default)]
struct Model(Vec<u8>);

impl Model {
    fn write(&mut self, at: u64, bytes: &[u8]) {
        let (at, end) = (at as usize, at as usize + bytes.len());
        if self.0.len() < end {
            self.0.resize(end, 0);
        }
        self.0[at..end].copy_from_slice(bytes);
    }

    fn zero(&mut self, at: u64, len: u64) {
        let size = self.0.len();
        self.0[(at as usize).min(size)..((at + len) as usize).min(size)].fill(0);
    }

    fn grow(&mut self, size: u64) {
        if self.0.len() < size as usize {
            self.0.resize(size as usize, 0);
        }
    }
}

/// The same handle in two ways: to write where it is told, and to append. And another file, to copy from.
struct Session<'a> {
    fs: &'a Fs,
    ino: meta::Ino,
    handle: Handle,
    appending: Handle,
    other: Handle,
}

/// The other file: a hole in its middle.
fn other_bytes() -> Vec<u8> {
    [noise(1, 30_000), vec![0; 20_000], noise(2, 30_000)].concat()
}

impl Session<'_> {
    async fn open(fs: &Fs, ino: meta::Ino, other: meta::Ino, truncate: bool) -> Session<'_> {
        let flags = OpenFlags { truncate, ..OpenFlags::writing() };
        let handle = fs.open(&ROOT, ino, flags).await.expect("opened").handle;
        let flags = OpenFlags { write: true, append: true, ..OpenFlags::default() };
        let appending = fs.open(&ROOT, ino, flags).await.expect("opened").handle;
        let other = fs.open(&ROOT, other, OpenFlags::writing()).await.expect("opened").handle;
        // Some of it is in memory only.
        fs.write(other, 60_000, Bytes::copy_from_slice(&other_bytes()[60_000..70_000])).await.expect("written");
        Session { fs, ino, handle, appending, other }
    }

    async fn close(self) {
        self.fs.flush(self.handle).await.expect("flushed");
        self.fs.release(self.handle).await.expect("released");
        self.fs.release(self.appending).await.expect("released");
        self.fs.release(self.other).await.expect("released");
        self.fs.sync_names().await.expect("sent");
    }

    async fn step(&self, step: &Step, model: &mut Model) {
        let (fs, handle) = (self.fs, self.handle);
        match *step {
            Step::Write { at, len, seed } => {
                let bytes = noise(seed, len);
                model.write(at, &bytes);
                assert_eq!(fs.write(handle, at, bytes.into()).await, Ok(len as u32));
            }
            Step::Zeros { at, len } => {
                model.write(at, &vec![0; len]);
                assert_eq!(fs.write(handle, at, vec![0; len].into()).await, Ok(len as u32));
            }
            Step::Append { len, seed } => {
                let bytes = noise(seed, len);
                model.write(model.0.len() as u64, &bytes);
                assert_eq!(fs.write(self.appending, 17, bytes.into()).await, Ok(len as u32));
            }
            Step::Truncate { size, by_handle } => {
                model.0.resize(size as usize, 0);
                let change = SetAttr { size: Some(size), ..SetAttr::default() };
                let handle = by_handle.then_some(handle);
                let attr = fs.setattr(&ROOT, self.ino, &change, handle).await.expect("truncated");
                assert_eq!(attr.size, size);
            }
            Step::Fallocate { how, at, len } => {
                fs.fallocate(handle, how, at, len).await.expect("done");
                match how {
                    Fallocate::Allocate => model.grow(at + len),
                    Fallocate::AllocateKeepSize => {}
                    Fallocate::PunchHole | Fallocate::ZeroRangeKeepSize => model.zero(at, len),
                    Fallocate::ZeroRange => {
                        model.zero(at, len);
                        model.grow(at + len);
                    }
                }
            }
            Step::Read { at, len } => {
                let bytes = fs.read(handle, at, len).await.expect("read");
                let size = model.0.len();
                let expected = &model.0[(at as usize).min(size)..(at as usize + len as usize).min(size)];
                assert!(bytes == expected, "{len} bytes at {at}");
            }
            Step::Seek { at } => self.seek(at, model).await,
            Step::Copy { other, from, to, len } => {
                let source = if other { other_bytes() } else { model.0.clone() };
                let bytes =
                    &source[(from as usize).min(source.len())..(from as usize + len as usize).min(source.len())];
                let copied = bytes.len() as u64;
                let overlap = !other && from < to + copied && to < from + copied;
                let handles = if other { (self.other, handle) } else { (handle, handle) };
                let found = fs.copy((handles.0, from), (handles.1, to), len).await;
                assert_eq!(found, if overlap { Err(FsError::Invalid) } else { Ok(copied) });
                if !overlap && copied > 0 {
                    model.write(to, bytes);
                }
            }
            Step::Flush => fs.flush(handle).await.expect("flushed"),
            Step::Fsync => fs.fsync(handle).await.expect("synced"),
            Step::Fold => fs.fold().await,
            Step::Stage => {
                // Whatever is written goes down in the background at once when room is short.
                let bytes = Bytes::copy_from_slice(&model.0);
                if !bytes.is_empty() {
                    fs.write(handle, 0, bytes).await.expect("written");
                }
            }
            Step::Reopen { .. } => unreachable!("a session ends with it"),
        }
        let attr = fs.getattr(&ROOT, self.ino).await.expect("there");
        assert_eq!(attr.size, model.0.len() as u64, "after {step:?}");
    }

    /// Every byte in what is called a hole is zero, and data and holes take turns.
    async fn seek(&self, at: u64, model: &Model) {
        let mut at = at;
        let size = model.0.len() as u64;
        if at >= size {
            assert_eq!(self.fs.seek(self.handle, at, Seek::Hole).await, Err(FsError::NoSuchOffset));
        }
        while at < size {
            let data = match self.fs.seek(self.handle, at, Seek::Data).await {
                Ok(data) => data,
                Err(error) => {
                    assert_eq!(error, FsError::NoSuchOffset);
                    size
                }
            };
            assert!(at <= data && model.0[at as usize..data as usize].iter().all(|byte| *byte == 0));
            if data == size {
                return;
            }
            at = self.fs.seek(self.handle, data, Seek::Hole).await.expect("the end is a hole");
            assert!(data < at && at <= size);
        }
    }
}

async fn run(steps: Vec<(bool, Step)>) {
    let world = World::new();
    let mounts = [world.mount(), world.cramped_mount()];
    let opened = create(&mounts[0], "file").await;
    mounts[0].release(opened.handle).await.expect("released");
    let other = write_file(&mounts[0], "other", &other_bytes()).await.ino;
    mounts[0].sync_names().await.expect("sent");
    let ino = opened.attr.ino;

    let mut model = Model::default();
    let mut session = Session::open(&mounts[0], ino, other, false).await;
    for (second, step) in steps {
        if let Step::Reopen { truncate } = step {
            session.close().await;
            if truncate {
                model.0.clear();
            }
            session = Session::open(&mounts[usize::from(second)], ino, other, truncate).await;
        } else {
            session.step(&step, &mut model).await;
        }
        let bytes = read_all(session.fs, session.handle).await;
        let differs = bytes.iter().zip(&model.0).position(|(is, should)| is != should);
        assert!(bytes == model.0, "{} bytes for {}, first wrong {differs:?}", bytes.len(), model.0.len());
    }
    session.close().await;
    // Everything is accounted for, once puts of what was dropped meanwhile have ended.
    until(|| mounts.iter().all(|fs| fs.dirty_bytes() == 0)).await;
    assert!(world.read_afresh("file").await == model.0, "what a new mount sees");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_file_is_a_vector_of_bytes(steps in prop::collection::vec((any::<bool>(), step()), 1..30)) {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_time()
            .build()
            .expect("a runtime")
            .block_on(run(steps));
    }
}
