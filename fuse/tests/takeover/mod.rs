//! One process after the other behind one mount: what the first did not answer, the second is asked again.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fuse::wire::{HelperError, MountError, Mounted};
use fuse::{Mount, MountOptions, Turn};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::PATIENCE;
use crate::cluster::Cluster;

/// More than there are readers.
const REQUESTS: usize = 32;
/// Who has the files of a mount that nobody reads requests for: we, and who keeps its ledger.
const OWNERS: usize = 2;

type Files = client::fs::Filesystem<client::leased::Leased<Cluster>, Cluster>;

/// A mount of its own, without anybody who serves it yet.
struct Kept {
    _mounted: Mounted,
    connection: OwnedFd,
    ledger: OwnedFd,
    folder: TempDir,
}

impl Kept {
    fn new() -> Option<Kept> {
        let folder = tempfile::tempdir().unwrap();
        match Mounted::mount(folder.path(), &fuse::wire::MountOptions::default()) {
            Ok((mounted, connection)) => {
                Some(Kept { _mounted: mounted, connection, ledger: Turn::ledger().unwrap(), folder })
            }
            Err(
                error @ (MountError::DeviceMissing
                | MountError::DeviceDenied
                | MountError::NotPermitted
                | MountError::Helper(HelperError::Missing { .. })),
            ) => {
                eprintln!("SKIPPED, this machine cannot mount: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    async fn serve(&self, cluster: &Cluster, before: Option<&Mount>, ledger: &OwnedFd) -> (Mount, Arc<Files>) {
        let (connection, ledger) = (self.connection.try_clone().unwrap(), ledger.try_clone().unwrap());
        let turn = Turn::new(connection, ledger, before.map(Mount::agreed), before.is_some());
        let fs = cluster.open();
        (fuse::serve(fs.clone(), self.path(), MountOptions::default(), turn).await.unwrap(), fs)
    }
}

/// Has `change` done by a process that dies before it answers, and gives what it is told in the end.
async fn done_and_not_answered<T: Send + 'static>(
    prepare: impl FnOnce(&Path) + Send + 'static,
    change: impl FnOnce(PathBuf) -> T + Send + 'static,
    remembers: bool,
) -> Option<(T, Cluster)> {
    let cluster = Cluster::new();
    let kept = Arc::new(Kept::new()?);
    let (first, fs) = kept.serve(&cluster, None, &kept.ledger).await;
    let path = kept.path().to_path_buf();
    tokio::task::spawn_blocking(move || prepare(&path)).await.unwrap();
    let held = cluster.hold_changes();
    let path = kept.path().to_path_buf();
    let changing: JoinHandle<T> = tokio::task::spawn_blocking(move || change(path));
    tokio::time::timeout(PATIENCE, held.anybody()).await.unwrap();
    assert!(!first.leave(Duration::from_millis(1)).await, "it is under way");
    held.release();
    assert!(first.leave(PATIENCE).await, "it is done, and nobody is told");
    assert!(!changing.is_finished());
    // In a process of its own it would be dead now. Here its readers take a request each before they notice.
    let path = kept.path().to_path_buf();
    let asks = |_| {
        let path = path.clone();
        tokio::task::spawn_blocking(move || drop(rustix::fs::statvfs(&path)))
    };
    let others: Vec<_> = (0..REQUESTS).map(asks).collect();
    let alone = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(5));
        while Arc::strong_count(&fs) > OWNERS {
            ticks.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, alone).await.expect("its readers end");
    let forgetful = Turn::ledger().unwrap();
    let (second, _) = kept.serve(&cluster, Some(&first), if remembers { &kept.ledger } else { &forgetful }).await;
    let told = tokio::time::timeout(PATIENCE, changing).await.expect("it is asked again").unwrap();
    others.into_iter().for_each(|other| other.abort());
    drop((first, second, kept));
    Some((told, cluster))
}

fn nothing(_: &Path) {}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_made_for_this_request_is_what_was_asked_for() {
    for remembers in [true, false] {
        let make = |path: PathBuf| fs::create_dir(path.join("new")).map_err(|error| error.kind());
        let Some((told, _)) = done_and_not_answered(nothing, make, remembers).await else { return };
        // Who can't know it must not say so: somebody else may have made it, as a lock.
        assert_eq!(told, if remembers { Ok(()) } else { Err(ErrorKind::AlreadyExists) });
    }
    let create = |path: PathBuf| {
        let file = fs::OpenOptions::new().write(true).create_new(true).open(path.join("new"));
        file.and_then(|file| std::os::unix::fs::FileExt::write_all_at(&file, b"x", 0)).map_err(|error| error.kind())
    };
    let Some((told, _)) = done_and_not_answered(nothing, create, true).await else { return };
    assert_eq!(told, Ok(()), "and its handle works");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_removed_for_this_request_is_gone_as_asked() {
    for remembers in [true, false] {
        let prepare = |path: &Path| fs::write(path.join("old"), "x").unwrap();
        let remove = |path: PathBuf| fs::remove_file(path.join("old")).map_err(|error| error.kind());
        let Some((told, _)) = done_and_not_answered(prepare, remove, remembers).await else { return };
        assert_eq!(told, if remembers { Ok(()) } else { Err(ErrorKind::NotFound) });
        let prepare = |path: &Path| fs::create_dir(path.join("old")).unwrap();
        let rename = |path: PathBuf| fs::rename(path.join("old"), path.join("new")).map_err(|error| error.kind());
        let Some((told, _)) = done_and_not_answered(prepare, rename, remembers).await else { return };
        assert_eq!(told, if remembers { Ok(()) } else { Err(ErrorKind::NotFound) });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_is_not_undone() {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    for remembers in [true, false] {
        let prepare = |path: &Path| ["a", "b"].iter().for_each(|name| fs::write(path.join(name), name).unwrap());
        let exchange = |path: PathBuf| {
            let told = renameat_with(CWD, path.join("a"), CWD, path.join("b"), RenameFlags::EXCHANGE);
            (told, fs::read_to_string(path.join("a")).unwrap())
        };
        let Some((told, _)) = done_and_not_answered(prepare, exchange, remembers).await else { return };
        let answer = if remembers { Ok(()) } else { Err(rustix::io::Errno::IO) };
        assert_eq!(told, (answer, "b".to_owned()));
    }
}
