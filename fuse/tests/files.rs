//! What Linux asks of files beyond reading and writing: files without a name, copies that move no bytes,
//! access lists. Each with leases and without.
//!
//! Without `/dev/fuse`, or as a user without `fusermount3`, these tests say so and do nothing.

mod cluster;

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use cluster::{Cluster, blocking, mounted, unmount};
use fuse::MountOptions;
use fuse::wire::Errno;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, XattrFlags};

/// Runs `check` in a mount without leases and in one with; then `again` in a mount by another client.
async fn on_mounts(check: fn(&Path), again: fn(&Path)) {
    for leases in [false, true] {
        let cluster = Cluster::new();
        let first = if leases { cluster.open_with(cluster.leased(1)) } else { cluster.open() };
        let Some((mount, mountpoint)) = mounted(first.clone(), MountOptions::default()).await else { return };
        let path = mountpoint.path().to_path_buf();
        blocking(move || check(&path)).await;
        unmount(mount).await;
        first.close().await.unwrap();
        let Some((mount, mountpoint)) = mounted(cluster.open(), MountOptions::default()).await else { return };
        let path = mountpoint.path().to_path_buf();
        blocking(move || again(&path)).await;
        unmount(mount).await;
    }
}

fn unnamed(dir: &Path, flags: OFlags) -> Result<File, Errno> {
    rustix::fs::open(dir, OFlags::TMPFILE | flags, Mode::from_raw_mode(0o666)).map(File::from)
}

fn link(file: &File, path: &Path) -> Result<(), Errno> {
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, own, CWD, path, AtFlags::SYMLINK_FOLLOW)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_without_a_name_can_be_given_one() {
    let make = |mount: &Path| {
        let before = fs::metadata(mount).unwrap();
        let mut file = unnamed(mount, OFlags::RDWR).unwrap();
        file.write_all(b"made without a name").unwrap();
        let made = file.metadata().unwrap();
        let umask = rustix::process::umask(Mode::empty());
        rustix::process::umask(umask);
        assert_eq!(made.mode() & 0o777, 0o666 & !umask.as_raw_mode());
        assert_eq!((made.nlink(), made.len()), (0, 19));
        assert_eq!(fs::read_dir(mount).unwrap().count(), 0);
        assert_eq!(fs::metadata(mount).unwrap().ctime_nsec(), before.ctime_nsec());
        link(&file, &mount.join("named")).unwrap();
        let linked = fs::metadata(mount.join("named")).unwrap();
        assert_eq!((linked.nlink(), linked.ino(), linked.len()), (1, made.ino(), 19));
        file.write_all_at(b"M", 0).unwrap();
        fs::remove_file(mount.join("named")).unwrap();
        assert_eq!(link(&file, &mount.join("again")), Err(Errno::NOENT), "its only name is gone");

        let other = unnamed(mount, OFlags::WRONLY).unwrap();
        (&other).write_all(b"named, then closed").unwrap();
        link(&other, &mount.join("kept")).unwrap();
        let closed = unnamed(mount, OFlags::RDWR | OFlags::EXCL).unwrap();
        assert_eq!(link(&closed, &mount.join("never")), Err(Errno::NOENT), "O_EXCL");
        assert_eq!(unnamed(mount, OFlags::RDONLY).unwrap_err(), Errno::INVAL);
        assert_eq!(unnamed(&mount.join("kept"), OFlags::RDWR).unwrap_err(), Errno::NOTDIR);
    };
    let find = |mount: &Path| {
        assert_eq!(fs::read_dir(mount).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(mount.join("kept")).unwrap(), "named, then closed");
        assert_eq!(rustix::fs::statvfs(mount).unwrap().f_files - rustix::fs::statvfs(mount).unwrap().f_ffree, 2);
    };
    on_mounts(make, find).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_are_of_what_was_written() {
    let make = |mount: &Path| {
        let bytes: Vec<u8> = (0..3_000_001u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let options = || fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).to_owned();
        let (source, target) = (mount.join("source"), mount.join("target"));
        let (from, to) = (options().open(&source).unwrap(), options().open(&target).unwrap());
        from.write_all_at(&bytes, 0).unwrap();
        let copy = |from: &File, mut at: u64, to: &File, mut place: u64, len: usize| {
            rustix::fs::copy_file_range(from, Some(&mut at), to, Some(&mut place), len)
        };
        // The kernel has pages of the target, which are old then.
        to.write_all_at(&[7; 100_000], 0).unwrap();
        assert!(fs::read(&target).unwrap() == [7; 100_000]);
        assert_eq!(copy(&from, 0, &to, 0, 5_000_000), Ok(3_000_001));
        assert!(fs::read(&target).unwrap() == bytes);
        from.write_all_at(b"changed", 1_000_000).unwrap();
        assert_eq!(copy(&from, 999_990, &to, 17, 100), Ok(100));
        let mut expected = bytes.clone();
        expected[17..117].copy_from_slice(&bytes[999_990..1_000_090]);
        expected[27..34].copy_from_slice(b"changed");
        assert!(fs::read(&target).unwrap() == expected);
        let mut part = [0; 100];
        to.read_exact_at(&mut part, 17).unwrap();
        assert_eq!(&part[10..17], b"changed");
        // Into itself; not where it overlaps; not to append.
        assert_eq!(copy(&to, 0, &to, 4_000_000, 100), Ok(100));
        assert_eq!(to.metadata().unwrap().len(), 4_000_100);
        assert_eq!(copy(&to, 0, &to, 50, 100), Err(Errno::INVAL));
        assert_eq!(copy(&to, 5_000_000, &from, 0, 100), Ok(0));
        let append = fs::OpenOptions::new().append(true).open(&source).unwrap();
        assert_eq!(copy(&to, 0, &append, 0, 100), Err(Errno::BADF));
        drop((from, to));
        let status = Command::new("cp").arg(&target).arg(mount.join("by-cp")).status().unwrap();
        assert!(status.success());
    };
    let find = |mount: &Path| {
        let target = fs::read(mount.join("target")).unwrap();
        assert!(target.len() == 4_000_100 && target[..100] == target[4_000_000..]);
        assert!(fs::read(mount.join("by-cp")).unwrap() == target);
        assert_eq!(&fs::read(mount.join("source")).unwrap()[1_000_000..1_000_007], b"changed");
    };
    on_mounts(make, find).await;
}

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const NONE: u32 = u32::MAX;
/// Two users that need not exist.
const ALICE: u32 = 54_321;
const BOB: u32 = 54_322;

/// An access list as programs give it: its entries, each what it is of, what that may, and its id.
fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let entry =
        |(tag, may, id): &(u16, u16, u32)| [&tag.to_le_bytes()[..], &may.to_le_bytes(), &id.to_le_bytes()].concat();
    [2u32.to_le_bytes().to_vec(), entries.iter().flat_map(entry).collect()].concat()
}

fn get(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = [0; 1024];
    rustix::fs::getxattr(path, name, &mut value).map(|len| value[..len].to_vec())
}

/// Whether a shell can do something as this user, whose group has the same number.
fn can(user: u32, script: &str, path: &Path) -> bool {
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh"]).arg(path).current_dir("/").uid(user).gid(user);
    shell.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
}

#[tokio::test(flavor = "multi_thread")]
async fn access_lists_say_who_may() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED, only root can act as two users");
        return;
    }
    let make = |mount: &Path| {
        fs::set_permissions(mount, fs::Permissions::from_mode(0o755)).unwrap();
        let (dir, file) = (mount.join("directory"), mount.join("directory/file"));
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(&file, "content").unwrap();
        std::os::unix::fs::chown(&dir, Some(ALICE), Some(ALICE)).unwrap();
        assert_eq!(get(&dir, ACCESS), Err(Errno::NODATA));
        let (read, write, search) = ("cat \"$1\"", "echo more >> \"$1\"", "cd \"$1\"");
        assert!(can(ALICE, search, &dir) && !can(BOB, search, &dir) && !can(BOB, read, &file));
        assert!(!can(BOB, "test -x \"$1\"", &dir));

        let bob = list(&[(1, 7, NONE), (2, 5, BOB), (4, 0, NONE), (16, 7, NONE), (32, 0, NONE)]);
        rustix::fs::setxattr(&dir, ACCESS, &bob, XattrFlags::empty()).unwrap();
        assert_eq!(get(&dir, ACCESS), Ok(bob.clone()));
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o7777, 0o770, "the mode shows the mask at once");
        assert!(can(BOB, search, &dir) && can(BOB, "ls \"$1\"", &dir) && !can(BOB, "mkdir \"$1/x\"", &dir));
        assert!(can(BOB, "test -x \"$1\" && test ! -w \"$1\"", &dir));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(!can(BOB, read, &file));
        let reader = list(&[(1, 6, NONE), (4, 0, NONE), (8, 4, BOB), (16, 6, NONE), (32, 0, NONE)]);
        rustix::fs::setxattr(&file, ACCESS, &reader, XattrFlags::empty()).unwrap();
        assert!(can(BOB, read, &file) && !can(BOB, write, &file));
        // chmod changes the mask.
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(!can(BOB, read, &file));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o660)).unwrap();
        assert!(can(BOB, read, &file));
        let mut names = [0; 256];
        let length = rustix::fs::listxattr(&file, &mut names).unwrap();
        assert_eq!(&names[..length], b"system.posix_acl_access\0");

        // What is made below a default list has it, whatever the umask.
        let default = list(&[(1, 7, NONE), (2, 6, BOB), (4, 5, NONE), (16, 7, NONE), (32, 0, NONE)]);
        rustix::fs::setxattr(&dir, DEFAULT, &default, XattrFlags::empty()).unwrap();
        assert!(can(ALICE, "umask 077; cd \"$1\" && echo new > made && mkdir inner && mkfifo pipe", &dir));
        let mode = |name: &str| fs::metadata(dir.join(name)).unwrap().mode() & 0o7777;
        assert_eq!((mode("made"), mode("inner"), mode("pipe")), (0o660, 0o770, 0o660));
        assert_eq!(get(&dir.join("inner"), DEFAULT), Ok(default));
        assert!(can(BOB, write, &dir.join("made")));
        // And without, the umask counts.
        rustix::fs::removexattr(&dir, DEFAULT).unwrap();
        assert_eq!(get(&dir, DEFAULT), Err(Errno::NODATA));
        assert!(can(ALICE, "umask 027; cd \"$1\" && mkdir second && echo x > third && mkfifo fourth", &dir));
        assert_eq!((mode("second"), mode("third"), mode("fourth")), (0o750, 0o640, 0o640));

        // What is no more than a mode is one; only the owner says; only directories have a default.
        let minimal = list(&[(1, 6, NONE), (4, 4, NONE), (32, 4, NONE)]);
        rustix::fs::setxattr(&file, ACCESS, &minimal, XattrFlags::empty()).unwrap();
        assert_eq!((get(&file, ACCESS), fs::metadata(&file).unwrap().mode() & 0o777), (Err(Errno::NODATA), 0o644));
        assert_eq!(rustix::fs::setxattr(&file, DEFAULT, &bob, XattrFlags::empty()), Err(Errno::ACCESS));
        assert_eq!(rustix::fs::setxattr(&file, ACCESS, &bob[..9], XattrFlags::empty()), Err(Errno::INVAL));
        rustix::fs::setxattr(&file, ACCESS, &reader, XattrFlags::empty()).unwrap();
    };
    let find = |mount: &Path| {
        let (dir, file) = (mount.join("directory"), mount.join("directory/file"));
        let reader = list(&[(1, 6, NONE), (4, 0, NONE), (8, 4, BOB), (16, 6, NONE), (32, 0, NONE)]);
        assert_eq!(get(&file, ACCESS), Ok(reader));
        assert!(can(BOB, "cat \"$1\"", &file) && can(BOB, "cd \"$1\"", &dir));
        fs::remove_dir_all(&dir).unwrap();
    };
    on_mounts(make, find).await;
}
