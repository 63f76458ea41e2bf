//! Real mounts: the passthrough example under real programs, and a small filesystem that misbehaves.
//!
//! Without `/dev/fuse`, or as a user without `fusermount3`, these tests say so and do nothing.

#[path = "../examples/passthrough/filesystem.rs"]
mod filesystem;
#[path = "../examples/passthrough/inodes.rs"]
mod inodes;
mod small;

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use filesystem::Passthrough;
use fuse::wire::{
    End, Errno, Filesystem, HelperError, MountError, MountOptions, Mounted, Session, SessionOptions, Unmount,
    UnmountError, check_mountpoint, clear_stale, mounted_at,
};
use rustix::fs::{CWD, FallocateFlags, RenameFlags, XattrFlags};
use small::Small;
use tempfile::TempDir;

/// How long anything here may take before the test fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(20);

/// Mounts, or says why this machine cannot.
fn try_mount(mountpoint: &Path) -> Option<(Mounted, std::os::fd::OwnedFd)> {
    match Mounted::mount(mountpoint, &MountOptions::default()) {
        Ok(mounted) => Some(mounted),
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

async fn serve<F: Filesystem>(filesystem: Arc<F>) -> Option<(Session, TempDir)> {
    let mountpoint = tempfile::tempdir().unwrap();
    let (mounted, connection) = try_mount(mountpoint.path())?;
    Some((Session::start(mounted, connection, filesystem, SessionOptions::default()).await.unwrap(), mountpoint))
}

/// Runs what blocks where it may, and gives up in the end.
async fn blocking<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(run)).await.expect("in time").unwrap()
}

async fn unmount(session: Session) {
    let mountpoint = session.mountpoint().to_path_buf();
    let unmounting = async {
        session.unmount(Unmount::Clean).await.unwrap();
        session.ended().await
    };
    assert_eq!(tokio::time::timeout(PATIENCE, unmounting).await.expect("in time"), End::Unmounted);
    assert_eq!(mounted_at(&mountpoint), None);
}

/// Runs `check` on a passthrough mount of an empty directory; it is given the mount and the source.
async fn on_passthrough(check: impl FnOnce(&Path, &Path) + Send + 'static) {
    let source = tempfile::tempdir().unwrap();
    let filesystem = Arc::new(Passthrough::new(source.path()).unwrap());
    let Some((session, mountpoint)) = serve(filesystem).await else { return };
    let (mount, behind) = (mountpoint.path().to_path_buf(), source.path().to_path_buf());
    blocking(move || check(&mount, &behind)).await;
    unmount(session).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_made_read_written_and_cut() {
    on_passthrough(|mount, source| {
        let path = mount.join("file");
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o640).open(&path).unwrap();
        file.write_all(b"hello, world").unwrap();
        file.seek(SeekFrom::Start(7)).unwrap();
        let mut rest = String::new();
        file.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "world");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        file.set_len(5).unwrap();
        file.sync_all().unwrap();
        assert_eq!(fs::read(source.join("file")).unwrap(), b"hello");
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"!").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"hello!");
        // Truncation by open must reach the filesystem: no setattr follows it.
        drop(File::create(&path).unwrap());
        assert_eq!(fs::metadata(source.join("file")).unwrap().len(), 0);
        let again = OpenOptions::new().write(true).create_new(true).open(&path).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::AlreadyExists);
    })
    .await;
}

/// With more inodes than it may hold descriptors for: those are found by name, also under another
/// one, and outlive the one they had.
#[tokio::test(flavor = "multi_thread")]
async fn inodes_that_are_not_held_are_found_again() {
    let source = tempfile::tempdir().unwrap();
    let filesystem = Arc::new(Passthrough::holding(source.path(), 4).unwrap());
    let Some((session, mountpoint)) = serve(filesystem).await else { return };
    let mount = mountpoint.path().to_path_buf();
    blocking(move || {
        let name = |index: usize| mount.join(format!("file-{index}"));
        fs::create_dir(mount.join("folder")).unwrap();
        (0..40).for_each(|index| fs::write(name(index), format!("{index}")).unwrap());
        for index in 0..40 {
            assert_eq!(fs::metadata(name(index)).unwrap().len(), if index < 10 { 1 } else { 2 });
        }
        let mut open = File::open(name(20)).unwrap();
        fs::remove_file(name(20)).unwrap();
        fs::rename(name(21), mount.join("folder/21")).unwrap();
        fs::rename(name(22), name(23)).unwrap();
        fs::rename(mount.join("folder"), mount.join("moved")).unwrap();
        let mut text = String::new();
        open.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), open.metadata().unwrap().len()), ("20", 2));
        assert_eq!(fs::read(mount.join("moved/21")).unwrap(), b"21");
        assert_eq!(fs::read(name(23)).unwrap(), b"22");
        fs::set_permissions(name(30), PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(fs::metadata(name(30)).unwrap().permissions().mode() & 0o777, 0o600);
    })
    .await;
    unmount(session).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_transfers_are_whole_at_any_offset() {
    on_passthrough(|mount, source| {
        let data: Vec<u8> = (0..5_000_003u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let path = mount.join("long");
        fs::write(&path, &data).unwrap();
        assert!(fs::read(source.join("long")).unwrap() == data);
        // A new open drops the cache, so that this reads through the layer.
        assert!(fs::read(&path).unwrap() == data);
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        file.write_all_at(&data[..2_000_000], 3_000_001).unwrap();
        let mut piece = vec![0; 2_000_000];
        file.read_exact_at(&mut piece, 3_000_001).unwrap();
        assert!(piece == data[..2_000_000]);
        // Past 4 GiB.
        file.write_all_at(b"far", 5 << 30).unwrap();
        assert_eq!(file.metadata().unwrap().len(), (5 << 30) + 3);
        file.read_exact_at(&mut piece[..3], 5 << 30).unwrap();
        assert_eq!(&piece[..3], b"far");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_made_linked_renamed_and_removed() {
    on_passthrough(|mount, source| {
        let directory = mount.join("directory");
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("a"), "a").unwrap();
        fs::hard_link(directory.join("a"), mount.join("b")).unwrap();
        assert_eq!(fs::metadata(mount.join("b")).unwrap().nlink(), 2);
        symlink("directory/a", mount.join("link")).unwrap();
        assert_eq!(fs::read_link(mount.join("link")).unwrap(), Path::new("directory/a"));
        assert_eq!(fs::read(mount.join("link")).unwrap(), b"a");
        fs::write(mount.join("c"), "c").unwrap();
        let rename =
            |from: &str, to: &str, flags| rustix::fs::renameat_with(CWD, mount.join(from), CWD, mount.join(to), flags);
        assert_eq!(rename("b", "c", RenameFlags::NOREPLACE), Err(Errno::EXIST));
        rename("b", "c", RenameFlags::EXCHANGE).unwrap();
        assert_eq!(
            (fs::read(mount.join("b")).unwrap(), fs::read(mount.join("c")).unwrap()),
            (b"c".into(), b"a".into())
        );
        rename("b", "directory/d", RenameFlags::empty()).unwrap();
        assert_eq!(fs::read(source.join("directory/d")).unwrap(), b"c");
        assert_eq!(fs::remove_dir(&directory).unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(fs::metadata(mount.join("link")).unwrap_err().kind(), ErrorKind::NotFound);
        let status = Command::new("mkfifo").arg(mount.join("pipe")).status().unwrap();
        assert!(status.success() && fs::symlink_metadata(source.join("pipe")).unwrap().mode() & 0o170_000 == 0o010_000);
        let longest = "n".repeat(255);
        fs::write(mount.join(&longest), "").unwrap();
        assert!(source.join(&longest).exists());
        assert_eq!(fs::write(mount.join("n".repeat(256)), "").unwrap_err().kind(), ErrorKind::InvalidFilename);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unlinked_file_lives_as_long_as_it_is_open() {
    on_passthrough(|mount, _| {
        let path = mount.join("gone");
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        file.write_all(b"still here").unwrap();
        file.rewind().unwrap();
        assert_eq!(std::io::read_to_string(&file).unwrap(), "still here");
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        file.set_len(5).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 5);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn listings_of_any_length_name_everything_once() {
    on_passthrough(|mount, source| {
        // More than fit in one reply, with names long enough to make them uneven.
        let mut made: Vec<String> = (0..3000).map(|i| format!("{i}-{}", "x".repeat(i % 200))).collect();
        made.iter().for_each(|name| drop(File::create(source.join(name)).unwrap()));
        let mut listed: Vec<(String, u64)> = fs::read_dir(mount)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().ino()))
            .collect();
        made.sort();
        listed.sort();
        assert!(listed.iter().map(|(name, _)| name).eq(made.iter()));
        let (name, inode) = &listed[1234];
        assert_eq!(fs::metadata(source.join(name)).unwrap().ino(), *inode);
        // Plain names without attributes, and the two that every directory has.
        let output = Command::new("ls").arg("-fa").arg(mount).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), made.len() + 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_space_and_holes_pass_through() {
    on_passthrough(|mount, source| {
        let path = mount.join("file");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o751)).unwrap();
        assert_eq!(fs::metadata(source.join("file")).unwrap().mode() & 0o7777, 0o751);
        let time = std::time::UNIX_EPOCH - Duration::from_millis(1500);
        file.set_modified(time).unwrap();
        assert_eq!(fs::metadata(source.join("file")).unwrap().modified().unwrap(), time, "before 1970");

        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 1 << 20).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
        file.write_all_at(&[1; 4096], 0).unwrap();
        file.write_all_at(&[1; 4096], 512 << 10).unwrap();
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, hole, 4096, (512 << 10) - 4096).unwrap();
        assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)), Ok(4096));
        assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(4096)), Ok(512 << 10));

        let copy = File::create(mount.join("copy")).unwrap();
        let (mut from, mut to) = (512 << 10, 10);
        assert_eq!(rustix::fs::copy_file_range(&file, Some(&mut from), &copy, Some(&mut to), 4096), Ok(4096));
        assert_eq!(fs::metadata(source.join("copy")).unwrap().len(), 4106);

        match rustix::fs::setxattr(&path, "user.colour", b"blue", XattrFlags::CREATE) {
            Err(Errno::OPNOTSUPP) => eprintln!("the source has no extended attributes; not tested"),
            result => {
                result.unwrap();
                let again = rustix::fs::setxattr(&path, "user.colour", b"red", XattrFlags::CREATE);
                assert_eq!(again, Err(Errno::EXIST));
                let mut value = [0u8; 16];
                assert_eq!(rustix::fs::getxattr(&path, "user.colour", &mut value), Ok(4));
                assert_eq!(&value[..4], b"blue");
                assert_eq!(rustix::fs::getxattr(&path, "user.colour", &mut value[..2]), Err(Errno::RANGE));
                assert_eq!(rustix::fs::getxattr_query(&path, "user.colour"), Ok(4));
                let mut names = [0u8; 256];
                let length = rustix::fs::listxattr(&path, &mut names).unwrap();
                assert!(names[..length].split(|byte| *byte == 0).any(|name| name == b"user.colour"));
                rustix::fs::removexattr(&path, "user.colour").unwrap();
                assert_eq!(rustix::fs::getxattr(&path, "user.colour", &mut value), Err(Errno::NODATA));
            }
        }
        let (here, there) = (rustix::fs::statvfs(mount).unwrap(), rustix::fs::statvfs(source).unwrap());
        assert_eq!((here.f_blocks, here.f_namemax), (there.f_blocks, there.f_namemax));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_threads_work_side_by_side() {
    on_passthrough(|mount, source| {
        std::thread::scope(|scope| {
            for thread in 0..8 {
                scope.spawn(move || {
                    let directory = mount.join(format!("{thread}"));
                    fs::create_dir(&directory).unwrap();
                    for file in 0..50u8 {
                        let path = directory.join(format!("{file}"));
                        fs::write(&path, vec![file; 70_000]).unwrap();
                        assert!(fs::read(&path).unwrap() == vec![file; 70_000]);
                        fs::rename(&path, directory.join(format!("{file}.done"))).unwrap();
                    }
                });
            }
        });
        assert_eq!(
            (0..8).map(|thread| fs::read_dir(source.join(format!("{thread}"))).unwrap().count()).sum::<usize>(),
            400
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_does_not_wait_for_its_answer() {
    let filesystem = Arc::new(Small::default());
    let Some((session, mountpoint)) = serve(filesystem.clone()).await else { return };
    let mut child =
        tokio::process::Command::new("cat").arg(mountpoint.path().join("slow")).stdout(Stdio::null()).spawn().unwrap();
    // Under way, and not only asked for.
    tokio::time::timeout(PATIENCE, filesystem.slow_reads.acquire()).await.expect("in time").unwrap().forget();
    let pid = rustix::process::Pid::from_raw(child.id().unwrap() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let status = tokio::time::timeout(PATIENCE, child.wait()).await.expect("it ends in time").unwrap();
    assert_eq!(status.signal(), Some(15));
    tokio::time::timeout(PATIENCE, filesystem.interrupted.acquire()).await.expect("in time").unwrap().forget();
    unmount(session).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_answer_holds_up_nobody_else() {
    let filesystem = Arc::new(Small::default());
    let Some((session, mountpoint)) = serve(filesystem.clone()).await else { return };
    // More of them than there are readers.
    let slow = 3 * SessionOptions::default().readers as u32;
    let mut children: Vec<_> = (0..slow)
        .map(|_| {
            let mut cat = tokio::process::Command::new("cat");
            cat.arg(mountpoint.path().join("slow")).stdout(Stdio::null()).kill_on_drop(true).spawn().unwrap()
        })
        .collect();
    tokio::time::timeout(PATIENCE, filesystem.slow_reads.acquire_many(slow)).await.expect("in time").unwrap().forget();
    let path = mountpoint.path().join("fixed");
    assert_eq!(blocking(move || fs::read(path).unwrap()).await, small::FIXED);
    for child in &mut children {
        tokio::time::timeout(PATIENCE, child.kill()).await.expect("in time").unwrap();
    }
    unmount(session).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_that_panics_is_an_io_error_and_the_mount_lives_on() {
    let Some((session, mountpoint)) = serve(Arc::new(Small::default())).await else { return };
    let mount = mountpoint.path().to_path_buf();
    blocking(move || {
        for name in ["panics", "panics-later"] {
            // More often than there are readers to lose.
            for _ in 0..20 {
                let error = File::open(mount.join(name)).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
            }
        }
        assert_eq!(fs::read(mount.join("fixed")).unwrap(), small::FIXED);
        assert_eq!(fs::write(mount.join("new"), "").unwrap_err().raw_os_error(), Some(Errno::NOSYS.raw_os_error()));
    })
    .await;
    unmount(session).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_kernel_caches_can_be_invalidated() {
    let filesystem = Arc::new(Small::default());
    let Some((session, mountpoint)) = serve(filesystem.clone()).await else { return };
    let path = mountpoint.path().join("counter");
    let length = move || {
        let path = path.clone();
        blocking(move || fs::metadata(path).unwrap().len())
    };
    let first = length().await;
    assert_eq!(length().await, first, "cached");
    session.notifier().inval_inode(small::COUNTER, 0, 0).await.unwrap();
    assert!(length().await > first, "asked again");
    let lookups = filesystem.lookups();
    length().await;
    assert_eq!(filesystem.lookups(), lookups, "the name is cached");
    session.notifier().inval_entry(fuse::wire::abi::ROOT, "counter".as_ref(), false).await.unwrap();
    length().await;
    assert_eq!(filesystem.lookups(), lookups + 1, "looked up again");
    session.notifier().inval_entry(fuse::wire::abi::ROOT, "never seen".as_ref(), true).await.unwrap();
    let notifier = session.notifier();
    unmount(session).await;
    notifier.inval_inode(small::COUNTER, 0, 0).await.expect("nothing is cached of a mount that is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_in_use_is_not_unmounted_and_goes_on() {
    let filesystem = Arc::new(Small::default());
    let Some((session, mountpoint)) = serve(filesystem.clone()).await else { return };
    let path = mountpoint.path().join("fixed");
    let file = blocking(move || File::open(path).unwrap()).await;
    let error = session.unmount(Unmount::Clean).await.unwrap_err();
    assert!(matches!(error, UnmountError::Busy { .. }), "{error}");
    let again = check_mountpoint(mountpoint.path()).unwrap_err();
    assert!(matches!(&again, MountError::AlreadyMounted { kind, .. } if kind == "fuse.mangrove"), "{again}");
    let file = blocking(move || {
        assert_eq!(std::io::read_to_string(&file).unwrap().as_bytes(), small::FIXED);
        file
    })
    .await;
    assert!(!filesystem.is_destroyed());
    drop(file);
    // The release of the file is on its way while the kernel already allows the unmount.
    unmount(session).await;
    assert!(filesystem.is_destroyed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lazy_unmount_is_out_of_sight_at_once_and_serves_who_is_left() {
    let Some((session, mountpoint)) = serve(Arc::new(Small::default())).await else { return };
    let path = mountpoint.path().join("fixed");
    let file = blocking(move || File::open(path).unwrap()).await;
    session.unmount(Unmount::Lazy).await.unwrap();
    assert!(check_mountpoint(mountpoint.path()).is_ok());
    assert_eq!(blocking(move || std::io::read_to_string(&file).unwrap()).await.as_bytes(), small::FIXED);
    assert_eq!(tokio::time::timeout(PATIENCE, session.ended()).await, Ok(End::Unmounted));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_when_somebody_else_unmounts() {
    let filesystem = Arc::new(Small::default());
    let Some((session, mountpoint)) = serve(filesystem.clone()).await else { return };
    let path = mountpoint.path().to_path_buf();
    blocking(move || fuse::wire::unmount(&path, Unmount::Clean).unwrap()).await;
    assert_eq!(tokio::time::timeout(PATIENCE, session.ended()).await, Ok(End::Unmounted));
    assert!(filesystem.is_destroyed());
    drop(session);
    assert!(check_mountpoint(mountpoint.path()).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_session_unmounts() {
    let Some((session, mountpoint)) = serve(Arc::new(Small::default())).await else { return };
    assert!(mounted_at(session.mountpoint()).is_some());
    blocking(move || drop(session)).await;
    assert!(check_mountpoint(mountpoint.path()).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_mount_is_named_and_can_be_cleared() {
    let mountpoint = tempfile::tempdir().unwrap();
    let Some((mounted, connection)) = try_mount(mountpoint.path()) else { return };
    // As `kill -9` leaves it.
    drop(connection);
    std::mem::forget(mounted);
    let error = check_mountpoint(mountpoint.path()).unwrap_err();
    assert!(matches!(error, MountError::Stale { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("Transport endpoint is not connected") && message.contains("umount -l"), "{message}");
    assert!(!clear_stale(mountpoint.path(), "fuse.other").unwrap(), "somebody else's is left alone");
    assert!(clear_stale(mountpoint.path(), "fuse.mangrove").unwrap());
    assert!(!clear_stale(mountpoint.path(), "fuse.mangrove").unwrap());
    assert!(check_mountpoint(mountpoint.path()).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filesystem_that_refuses_to_start_is_not_left_mounted() {
    let mountpoint = tempfile::tempdir().unwrap();
    let Some((mounted, connection)) = try_mount(mountpoint.path()) else { return };
    let filesystem = Arc::new(Small::refusing());
    let error = Session::start(mounted, connection, filesystem, SessionOptions::default()).await.unwrap_err();
    assert!(error.to_string().contains("refused to start"), "{error}");
    assert!(check_mountpoint(mountpoint.path()).is_ok());
}
