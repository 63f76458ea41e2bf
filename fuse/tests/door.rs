//! A volume mounted: the real door, library and state machine under real programs, without a network.
//!
//! Without `/dev/fuse`, or as a user without `fusermount3`, these tests say so and do nothing.

mod cluster;
mod takeover;

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use cluster::{Cluster, PATIENCE, blocking, unmount};
use fuse::wire::Errno;
use fuse::{Mount, MountOptions};
use rustix::fs::{CWD, FallocateFlags, RawDir, RenameFlags, XattrFlags};
use tempfile::TempDir;

/// Mounts the volume for one more client, or says why this machine cannot.
async fn mounted(cluster: &Cluster) -> Option<(Mount, TempDir)> {
    let options = MountOptions { interrupt_grace: Duration::from_millis(100), ..MountOptions::default() };
    cluster::mounted(cluster.open(), options).await
}

/// Runs `check` in a mount, then `again` in a mount by another client.
async fn on_mount(check: impl FnOnce(&Path) + Send + 'static, again: impl FnOnce(&Path) + Send + 'static) {
    let cluster = Cluster::new();
    let Some((mount, mountpoint)) = mounted(&cluster).await else { return };
    let path = mountpoint.path().to_path_buf();
    blocking(move || check(&path)).await;
    unmount(mount).await;
    let Some((mount, mountpoint)) = mounted(&cluster).await else { return };
    let path = mountpoint.path().to_path_buf();
    blocking(move || again(&path)).await;
    unmount(mount).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_is_there_again_after_a_remount() {
    let data: Vec<u8> = (0..3_000_001u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let same = data.clone();
    let make = move |mount: &Path| {
        fs::create_dir(mount.join("directory")).unwrap();
        fs::write(mount.join("directory/long"), &data).unwrap();
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(mount.join("short")).unwrap();
        file.write_all(b"a few bytes").unwrap();
        fs::hard_link(mount.join("short"), mount.join("directory/other")).unwrap();
        symlink("directory/long", mount.join("link")).unwrap();
        fs::rename(mount.join("short"), mount.join("moved")).unwrap();
        file.write_all(b", and more").unwrap();
        let longest = mount.join("n".repeat(255));
        fs::write(&longest, "n").unwrap();
        fs::set_permissions(&longest, fs::Permissions::from_mode(0o4711)).unwrap();
        File::open(&longest).unwrap().set_modified(std::time::UNIX_EPOCH - Duration::from_millis(1500)).unwrap();
        assert_eq!(fs::write(mount.join("n".repeat(256)), "").unwrap_err().kind(), ErrorKind::InvalidFilename);
    };
    let find = move |mount: &Path| {
        assert!(fs::read(mount.join("link")).unwrap() == same);
        assert_eq!(fs::read_to_string(mount.join("moved")).unwrap(), "a few bytes, and more");
        let moved = fs::metadata(mount.join("moved")).unwrap();
        assert_eq!((moved.nlink(), moved.mode()), (2, 0o100_640));
        assert_eq!(moved.ino(), fs::metadata(mount.join("directory/other")).unwrap().ino());
        assert_eq!(fs::metadata(mount).unwrap().ino(), fuse::wire::abi::ROOT);
        let longest = fs::metadata(mount.join("n".repeat(255))).unwrap();
        assert_eq!(longest.mode(), 0o104_711);
        assert_eq!(longest.modified().unwrap(), std::time::UNIX_EPOCH - Duration::from_millis(1500));
        assert_eq!(fs::metadata(mount.join("short")).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(fs::remove_dir(mount.join("directory")).unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
        fs::remove_dir_all(mount.join("directory")).unwrap();
        assert_eq!(fs::read_dir(mount).unwrap().count(), 3);
    };
    on_mount(make, find).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn open_files_do_what_programs_expect() {
    let make = |mount: &Path| {
        let path = mount.join("file");
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        file.write_all(b"hello, world").unwrap();
        file.seek(SeekFrom::Start(7)).unwrap();
        let mut rest = String::new();
        file.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "world");
        file.set_len(5).unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"!").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"hello!");
        file.sync_all().unwrap();
        // Replaced while open: both live on.
        fs::write(mount.join("new"), "new").unwrap();
        fs::rename(mount.join("new"), &path).unwrap();
        file.write_all_at(b"J", 0).unwrap();
        let mut all = [0; 6];
        file.read_exact_at(&mut all, 0).unwrap();
        assert_eq!(&all, b"Jello!");
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        assert_eq!(fs::read(&path).unwrap(), b"new");
        drop(File::create(&path).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);

        let rename =
            |from: &str, to: &str, flags| rustix::fs::renameat_with(CWD, mount.join(from), CWD, mount.join(to), flags);
        fs::write(mount.join("other"), "other").unwrap();
        assert_eq!(rename("other", "file", RenameFlags::NOREPLACE), Err(Errno::EXIST));
        rename("other", "file", RenameFlags::EXCHANGE).unwrap();
        assert_eq!(rename("other", "file", RenameFlags::WHITEOUT), Err(Errno::INVAL));

        let sparse = OpenOptions::new().read(true).write(true).create_new(true).open(mount.join("sparse")).unwrap();
        sparse.write_all_at(b"end", 5 << 30).unwrap();
        assert_eq!(rustix::fs::seek(&sparse, rustix::fs::SeekFrom::Data(0)).map(|at| at > 4 << 30), Ok(true));
        assert_eq!(rustix::fs::seek(&sparse, rustix::fs::SeekFrom::Hole(0)), Ok(0));
        assert_eq!(rustix::fs::seek(&sparse, rustix::fs::SeekFrom::Data(6 << 30)), Err(Errno::NXIO));
        rustix::fs::fallocate(&sparse, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 5 << 30, 2).unwrap();
        let collapse = rustix::fs::fallocate(&sparse, FallocateFlags::COLLAPSE_RANGE, 0, 65536);
        assert_eq!(collapse, Err(Errno::OPNOTSUPP));
    };
    let find = |mount: &Path| {
        assert_eq!(fs::read(mount.join("file")).unwrap(), b"other");
        let sparse = File::open(mount.join("sparse")).unwrap();
        let mut end = [1; 3];
        sparse.read_exact_at(&mut end, 5 << 30).unwrap();
        assert_eq!(&end, b"\0\0d");
        assert!(sparse.metadata().unwrap().blocks() < 1024);
    };
    on_mount(make, find).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn listings_of_any_length_name_everything_once() {
    const FILES: usize = 1300;
    let name = |i: usize| format!("{i}-{}", "x".repeat(i % 200));
    let make = move |mount: &Path| {
        fs::create_dir(mount.join("many")).unwrap();
        (0..FILES).for_each(|i| symlink("nowhere", mount.join("many").join(name(i))).unwrap());
    };
    let find = move |mount: &Path| {
        let listed = || -> Vec<(String, u64)> {
            let entries = fs::read_dir(mount.join("many")).unwrap().map(|entry| entry.unwrap());
            let entry =
                |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().ino());
            let mut listed: Vec<_> = entries.map(entry).collect();
            listed.sort();
            listed
        };
        let mut made: Vec<String> = (0..FILES).map(name).collect();
        made.sort();
        assert!(listed().into_iter().map(|(name, _)| name).eq(made));
        // With removals while it is read: what stays is named once.
        for (at, entry) in fs::read_dir(mount.join("many")).unwrap().enumerate() {
            if at % 2 == 0 {
                fs::remove_file(entry.unwrap().path()).unwrap();
            }
        }
        assert_eq!(listed().len(), FILES / 2);
        let output = std::process::Command::new("ls").arg("-fai").arg(mount.join("many")).output().unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.lines().count(), FILES / 2 + 2);
        assert!(output.lines().any(|line| line.trim() == "1 .."), "the parent's number");
        fs::remove_dir_all(mount.join("many")).unwrap();
    };
    on_mount(make, find).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_does_not_undo_what_was_changed_while_it_was_read() {
    const FILES: usize = 300;
    let cluster = Cluster::new();
    let Some((mount, mountpoint)) = mounted(&cluster).await else { return };
    let many = mountpoint.path().join("many");
    blocking(move || {
        fs::create_dir(&many).unwrap();
        (0..FILES).for_each(|i| fs::write(many.join(i.to_string()), "ten bytes.").unwrap());
        // A page of names at a time, and the attributes of each, or the kernel stops to ask for them.
        let next = |entries: &mut RawDir<'_, File>| {
            let name = loop {
                let name = entries.next()?.unwrap().file_name().to_bytes().to_vec();
                if !name.starts_with(b".") {
                    break name;
                }
            };
            let path = many.join(OsStr::from_bytes(&name));
            let size = fs::metadata(&path).unwrap().len();
            Some((path, size))
        };
        let mut page = [MaybeUninit::uninit(); 4096];
        let mut entries = RawDir::new(File::open(&many).unwrap(), &mut page);
        let order: Vec<_> = std::iter::from_fn(|| next(&mut entries)).map(|(path, _)| path).collect();
        assert_eq!(order.len(), FILES);
        let [.., unlinked, truncated, written] = order.as_slice() else { panic!("too few") };
        let open = |path| OpenOptions::new().read(true).write(true).open(path).unwrap();
        let (truncate, write) = (open(truncated), open(written));

        let mut page = [MaybeUninit::uninit(); 4096];
        let mut entries = RawDir::new(File::open(&many).unwrap(), &mut page);
        (0..30).for_each(|_| assert_eq!(next(&mut entries).unwrap().1, 10));
        fs::remove_file(unlinked).unwrap();
        truncate.set_len(5).unwrap();
        write.write_all_at(&[7; 1000], 10).unwrap();
        let rest: Vec<_> = std::iter::from_fn(|| next(&mut entries)).collect();
        assert_eq!(rest.len(), FILES - 31);
        assert_eq!((truncate.metadata().unwrap().len(), write.metadata().unwrap().len()), (5, 1010));
        assert_eq!(rest[rest.len() - 2..], [(truncated.clone(), 5), (written.clone(), 1010)]);
        assert_eq!(fs::read(written).unwrap()[10..], [7; 1000]);
        assert!(!unlinked.exists());
    })
    .await;
    unmount(mount).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_read_again_from_the_start_shows_what_was_made_elsewhere() {
    let cluster = Cluster::new();
    let Some((here, here_path)) = mounted(&cluster).await else { return };
    let Some((there, there_path)) = mounted(&cluster).await else { return };
    let (near, far) = (here_path.path().join("directory"), there_path.path().join("directory"));
    blocking(move || {
        fs::create_dir(&near).unwrap();
        let mut directory = rustix::fs::Dir::new(File::open(&near).unwrap()).unwrap();
        let mut names = || -> Vec<_> {
            directory.rewind();
            let names = std::iter::from_fn(|| directory.read()).map(|entry| entry.unwrap().file_name().to_owned());
            names.filter(|name| !name.to_bytes().starts_with(b".")).collect()
        };
        assert!(names().is_empty());
        for made in ["first", "second"] {
            fs::write(far.join(made), "").unwrap();
            assert!(names().iter().any(|name| name.to_bytes() == made.as_bytes()), "{made}");
        }
    })
    .await;
    unmount(here).await;
    unmount(there).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_of_all_kinds_are_kept() {
    let make = |mount: &Path| {
        let path = mount.join("file");
        fs::write(&path, "x").unwrap();
        let status = std::process::Command::new("mkfifo").arg(mount.join("pipe")).status().unwrap();
        assert!(status.success());
        rustix::fs::setxattr(&path, "user.colour", b"blue", XattrFlags::CREATE).unwrap();
        assert_eq!(rustix::fs::setxattr(&path, "user.colour", b"red", XattrFlags::CREATE), Err(Errno::EXIST));
        assert_eq!(rustix::fs::setxattr(&path, "user.size", b"1", XattrFlags::REPLACE), Err(Errno::NODATA));
        assert_eq!(rustix::fs::setxattr(&path, "strange.colour", b"1", XattrFlags::empty()), Err(Errno::OPNOTSUPP));
    };
    let find = |mount: &Path| {
        let path = mount.join("file");
        assert_eq!(fs::symlink_metadata(mount.join("pipe")).unwrap().mode() & 0o170_000, 0o010_000);
        let mut value = [0u8; 16];
        assert_eq!(rustix::fs::getxattr(&path, "user.colour", &mut value), Ok(4));
        assert_eq!(&value[..4], b"blue");
        assert_eq!(rustix::fs::getxattr(&path, "user.colour", &mut value[..2]), Err(Errno::RANGE));
        let length = rustix::fs::listxattr(&path, &mut value).unwrap();
        assert_eq!(&value[..length], b"user.colour\0");
        rustix::fs::removexattr(&path, "user.colour").unwrap();
        assert_eq!(rustix::fs::getxattr(&path, "user.colour", &mut value), Err(Errno::NODATA));
        let space = rustix::fs::statvfs(mount).unwrap();
        assert_eq!(space.f_namemax, 255);
        assert_eq!(space.f_bavail * space.f_frsize, 1 << 29);
    };
    on_mount(make, find).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn times_stay_as_they_are_once_a_file_is_closed() {
    let cluster = Cluster::new();
    let Some((here, here_path)) = mounted(&cluster).await else { return };
    let Some((there, there_path)) = mounted(&cluster).await else { return };
    let (near, far) = (here_path.path().to_owned(), there_path.path().to_owned());
    blocking(move || {
        let all = |of: &fs::Metadata| {
            (of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec(), of.blocks(), of.size(), of.mode())
        };
        for (name, sync) in [("closed", false), ("synced", true)] {
            let mut file = File::create(near.join(name)).unwrap();
            file.write_all(&[7; 10_000]).unwrap();
            file.metadata().unwrap();
            // What is on its way to the cluster is dated there; what was told before was a guess.
            if sync {
                file.sync_all().unwrap();
            } else {
                drop(file);
            }
            let (seen, elsewhere) = (fs::metadata(near.join(name)).unwrap(), fs::metadata(far.join(name)).unwrap());
            assert_eq!(all(&seen), all(&elsewhere), "{name}");
        }
    })
    .await;
    unmount(here).await;
    unmount(there).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_directory_is_empty_to_who_is_in_it() {
    let check = |mount: &Path| {
        let path = mount.join("directory");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o2750)).unwrap();
        let directory = File::open(&path).unwrap();
        fs::remove_dir(&path).unwrap();
        let left = directory.metadata().unwrap();
        assert_eq!((left.nlink(), left.mode()), (0, 0o042_750));
        let itself = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string());
        assert_eq!(fs::read_dir(&itself).unwrap().count(), 0);
        assert_eq!(fs::write(itself.join("file"), "x").unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(fs::metadata(&path).unwrap_err().kind(), ErrorKind::NotFound);
    };
    on_mount(check, |_| {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_birth_is_told() {
    let make = |mount: &Path| {
        let path = mount.join("file");
        fs::write(&path, "x").unwrap();
        let born = fs::metadata(&path).unwrap().created().unwrap();
        fs::File::options().append(true).open(&path).unwrap().write_all(b"y").unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_eq!((after.created().unwrap(), after.size()), (born, 2));
        assert!(born <= after.modified().unwrap() && born.elapsed().unwrap() < PATIENCE);
        let mode = rustix::fs::Mode::from(0o600);
        let device = rustix::fs::makedev(259, 70_000);
        match rustix::fs::mknodat(CWD, mount.join("disk"), rustix::fs::FileType::BlockDevice, mode, device) {
            Err(Errno::PERM) => {}
            made => made.unwrap(),
        }
    };
    let find = |mount: &Path| {
        let file = fs::metadata(mount.join("file")).unwrap();
        assert!(file.created().unwrap() <= file.modified().unwrap());
        assert_eq!((file.size(), file.mode(), file.nlink()), (2, 0o100_644, 1));
        if let Ok(disk) = fs::symlink_metadata(mount.join("disk")) {
            assert_eq!(disk.rdev(), rustix::fs::makedev(259, 70_000));
            assert!(disk.created().is_ok());
        }
    };
    on_mount(make, find).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_opens_a_file_after_it_was_closed_elsewhere_sees_what_was_written() {
    let cluster = Cluster::new();
    let Some((here, here_path)) = mounted(&cluster).await else { return };
    let Some((there, there_path)) = mounted(&cluster).await else { return };
    let (near, far) = (here_path.path().join("file"), there_path.path().join("file"));
    blocking(move || {
        for round in 0..5u8 {
            // The same length each time: only the content tells.
            fs::write(&near, [round; 10_000]).unwrap();
            assert!(fs::read(&far).unwrap() == [round; 10_000], "round {round}");
            assert!(fs::read(&far).unwrap() == [round; 10_000], "cached, round {round}");
        }
        // Another length, though the kernel believes it knows it.
        for length in [1usize, 50_000, 20] {
            fs::metadata(&far).unwrap();
            fs::write(&near, vec![9; length]).unwrap();
            assert!(fs::read(&far).unwrap() == vec![9; length], "length {length}");
        }
    })
    .await;
    unmount(here).await;
    unmount(there).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_can_be_killed_while_the_cluster_does_not_answer() {
    let cluster = Cluster::new();
    let Some((mount, mountpoint)) = mounted(&cluster).await else { return };
    let path = mountpoint.path().join("file");
    blocking(move || fs::write(path, "here").unwrap()).await;
    cluster.set_reachable(false);
    let mut child = tokio::process::Command::new("cat")
        .arg(mountpoint.path().join("nothing"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    tokio::time::timeout(PATIENCE, cluster.is_asked()).await.expect("in time");
    let pid = rustix::process::Pid::from_raw(child.id().unwrap() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let status = tokio::time::timeout(PATIENCE, child.wait()).await.expect("it ends in time").unwrap();
    assert_eq!(status.signal(), Some(15));
    cluster.set_reachable(true);
    let path = mountpoint.path().join("file");
    assert_eq!(blocking(move || fs::read_to_string(path).unwrap()).await, "here");
    unmount(mount).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_at_the_unmount_is_committed() {
    let cluster = Cluster::new();
    let Some((mount, mountpoint)) = mounted(&cluster).await else { return };
    let path = mountpoint.path().join("file");
    let file = blocking(move || {
        let mut file = File::create(path).unwrap();
        file.write_all(b"not closed").unwrap();
        file
    })
    .await;
    // In use: it is detached in the end, and the file works on.
    unmount(mount).await;
    assert!(fuse::check_mountpoint(mountpoint.path()).is_ok());
    blocking(move || {
        (&file).write_all(b", now it is").unwrap();
        file.sync_all().unwrap();
    })
    .await;
    let Some((mount, mountpoint)) = mounted(&cluster).await else { return };
    let path = mountpoint.path().join("file");
    assert_eq!(blocking(move || fs::read_to_string(path).unwrap()).await, "not closed, now it is");
    unmount(mount).await;
}
