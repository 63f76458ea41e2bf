//! What programs rely on a filesystem for, one small check each. A check gets an empty folder.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs as sys;
use rustix::io::Errno;

use crate::random::noise;

/// A check: its name and what it does in an empty folder.
pub type CheckFn = (&'static str, fn(&Path));

/// Every check.
pub const CHECKS: &[CheckFn] = &[
    ("rename replaces, refuses and exchanges", rename),
    ("an editor's save leaves the new file under the old name", editor_save),
    ("hard links share one file", hard_links),
    ("symbolic links keep their target", symbolic_links),
    ("modes and times are kept", modes_and_times),
    ("extended attributes", extended_attributes),
    ("access lists are kept, and show in the mode", access_lists),
    ("holes read as zeros and cost nothing", sparse),
    ("truncating and extending", truncate),
    ("an unlinked file lives while it is open", unlinked_but_open),
    ("a file without a name can be given one", unnamed),
    ("a copy has what its source had", copies),
    ("appends of two writers do not overwrite each other", append),
    ("names of 255 bytes, and not of 256", long_names),
    ("a directory can be emptied while it is read", readdir_while_deleting),
    ("a directory that is not empty stays", directories),
    ("exclusive creation has one winner", exclusive_create),
    ("a file past 4 GiB", past_four_gib),
    ("special files", special_files),
    ("the free space is told", free_space),
    ("locks exclude", locks),
];

/// Runs every check in its own folder below `root`.
///
/// # Panics
/// After the last one, if any failed; the message names them.
pub fn check_all(root: &Path) {
    let mut failed = Vec::new();
    for (index, (name, check)) in CHECKS.iter().enumerate() {
        let dir = root.join(format!("check-{index:02}"));
        fs::create_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        if std::panic::catch_unwind(|| check(&dir)).is_err() {
            eprintln!("^^^ failed: {name}");
            failed.push(*name);
        }
    }
    assert!(failed.is_empty(), "{} of {} checks failed: {failed:?}", failed.len(), CHECKS.len());
}

/// What is in a folder, sorted.
fn list(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).expect("readdir").map(|entry| entry.expect("entry").file_name());
    let names: BTreeSet<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.into_iter().collect()
}

fn rename(dir: &Path) {
    let (a, b, c) = (dir.join("a"), dir.join("b"), dir.join("c"));
    fs::write(&a, "one").expect("write");
    fs::write(&b, "two").expect("write");
    fs::rename(&a, &b).expect("rename over a file");
    assert_eq!((list(dir), fs::read_to_string(&b).expect("read")), (vec!["b".to_owned()], "one".to_owned()));

    fs::write(&a, "three").expect("write");
    let no_replace = sys::renameat_with(sys::CWD, &a, sys::CWD, &b, sys::RenameFlags::NOREPLACE);
    assert_eq!(no_replace, Err(Errno::EXIST));
    sys::renameat_with(sys::CWD, &a, sys::CWD, &b, sys::RenameFlags::EXCHANGE).expect("exchange");
    assert_eq!(fs::read_to_string(&a).expect("read") + &fs::read_to_string(&b).expect("read"), "onethree");

    fs::create_dir_all(c.join("deep")).expect("mkdir");
    let into_itself = fs::rename(&c, c.join("deep/c")).expect_err("a folder cannot move into itself");
    assert_eq!(into_itself.raw_os_error(), Some(Errno::INVAL.raw_os_error()));
    fs::create_dir(dir.join("d")).expect("mkdir");
    fs::rename(&c, dir.join("d")).expect("a folder may replace an empty one");
    assert_eq!(list(dir), ["a", "b", "d"]);
    assert_eq!(fs::rename(&a, dir.join("d")).expect_err("a file over a folder").kind(), ErrorKind::IsADirectory);
}

fn editor_save(dir: &Path) {
    let path = dir.join("note.txt");
    fs::write(&path, "old").expect("write");
    for round in 0..5 {
        let (backup, new) = (dir.join("note.txt~"), dir.join(".note.txt.swp"));
        let text = format!("round {round}");
        let mut file = File::create(&new).expect("create");
        file.write_all(text.as_bytes()).expect("write");
        file.sync_all().expect("fsync");
        let _ = fs::remove_file(&backup);
        fs::hard_link(&path, &backup).expect("link");
        fs::rename(&new, &path).expect("rename");
        File::open(dir).expect("open the folder").sync_all().expect("fsync of a folder");
        assert_eq!(fs::read_to_string(&path).expect("read"), text);
    }
    assert_eq!(fs::read_to_string(dir.join("note.txt~")).expect("read"), "round 3");
}

fn hard_links(dir: &Path) {
    let (a, b) = (dir.join("a"), dir.join("sub/b"));
    fs::create_dir(dir.join("sub")).expect("mkdir");
    fs::write(&a, "shared").expect("write");
    fs::hard_link(&a, &b).expect("link");
    let (first, second) = (fs::metadata(&a).expect("stat"), fs::metadata(&b).expect("stat"));
    assert_eq!((first.ino(), first.nlink()), (second.ino(), 2));
    OpenOptions::new().append(true).open(&b).expect("open").write_all(b" bytes").expect("write");
    assert_eq!(fs::read_to_string(&a).expect("read"), "shared bytes");
    fs::remove_file(&a).expect("unlink");
    assert_eq!(fs::metadata(&b).expect("stat").nlink(), 1);
    assert_eq!(fs::read_to_string(&b).expect("read"), "shared bytes");
}

fn symbolic_links(dir: &Path) {
    let long = "x/".repeat(1000);
    for target in ["file", "../elsewhere", "/absolute", long.as_str()] {
        let link = dir.join("link");
        symlink(target, &link).expect("symlink");
        assert_eq!(fs::read_link(&link).expect("readlink"), Path::new(target));
        assert_eq!(fs::symlink_metadata(&link).expect("lstat").len(), target.len() as u64);
        fs::remove_file(&link).expect("unlink");
    }
    fs::write(dir.join("file"), "through").expect("write");
    symlink("file", dir.join("link")).expect("symlink");
    assert_eq!(fs::read_to_string(dir.join("link")).expect("read"), "through");
}

fn modes_and_times(dir: &Path) {
    let path = dir.join("file");
    fs::write(&path, "x").expect("write");
    for mode in [0o600, 0o755, 0o444, 0o000, 0o644] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o7777, mode);
    }
    let old = UNIX_EPOCH + Duration::new(86_400 * 365, 123_456_789);
    OpenOptions::new().write(true).open(&path).expect("open").set_modified(old).expect("utimes");
    assert_eq!(fs::metadata(&path).expect("stat").modified().expect("mtime"), old, "to the nanosecond");
    let before = fs::metadata(&path).expect("stat");
    OpenOptions::new().append(true).open(&path).expect("open").write_all(b"y").expect("write");
    let after = fs::metadata(&path).expect("stat");
    assert!(after.modified().expect("mtime") > old && after.len() == before.len() + 1, "a write moves the time");
}

fn extended_attributes(dir: &Path) {
    let path = dir.join("file");
    fs::write(&path, "x").expect("write");
    let mut value = vec![0; 8192];
    assert_eq!(sys::getxattr(&path, "user.none", &mut value), Err(Errno::NODATA));
    let long = noise(1, 0, 4000);
    sys::setxattr(&path, "user.short", b"a value", sys::XattrFlags::CREATE).expect("setxattr");
    sys::setxattr(&path, "user.long", &long, sys::XattrFlags::empty()).expect("setxattr");
    assert_eq!(sys::setxattr(&path, "user.short", b"", sys::XattrFlags::CREATE), Err(Errno::EXIST));
    assert_eq!(sys::setxattr(&path, "user.new", b"", sys::XattrFlags::REPLACE), Err(Errno::NODATA));
    let len = sys::getxattr(&path, "user.long", &mut value).expect("getxattr");
    assert_eq!(value[..len], long);
    assert_eq!(sys::getxattr(&path, "user.long", &mut value[..10]), Err(Errno::RANGE));
    let len = sys::listxattr(&path, &mut value).expect("listxattr");
    let names: BTreeSet<_> = value[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    assert_eq!(names, BTreeSet::from([&b"user.long"[..], b"user.short"]));
    sys::removexattr(&path, "user.short").expect("removexattr");
    assert_eq!(sys::removexattr(&path, "user.short"), Err(Errno::NODATA));
}

fn access_lists(dir: &Path) {
    let path = dir.join("file");
    fs::write(&path, "x").expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
    let (access, default) = ("system.posix_acl_access", "system.posix_acl_default");
    let none = u32::MAX;
    let list = |entries: &[(u16, u16, u32)]| {
        let entry =
            |(tag, may, id): &(u16, u16, u32)| [&tag.to_le_bytes()[..], &may.to_le_bytes(), &id.to_le_bytes()].concat();
        [2u32.to_le_bytes().to_vec(), entries.iter().flat_map(entry).collect()].concat()
    };
    let set = |path: &Path, name: &str, value: &[u8]| sys::setxattr(path, name, value, sys::XattrFlags::empty());
    let mut value = [0; 256];
    let mut get = |path: &Path, name: &str| sys::getxattr(path, name, &mut value).map(|len| value[..len].to_vec());
    let mode = |path: &Path| fs::metadata(path).expect("stat").mode() & 0o7777;
    assert_eq!(get(&path, access), Err(Errno::NODATA));
    let named = list(&[(1, 6, none), (2, 7, 1234), (4, 4, none), (16, 6, none), (32, 0, none)]);
    set(&path, access, &named).expect("set an access list");
    assert_eq!((get(&path, access), mode(&path)), (Ok(named.clone()), 0o660));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).expect("chmod");
    let masked = list(&[(1, 6, none), (2, 7, 1234), (4, 4, none), (16, 0, none), (32, 4, none)]);
    assert_eq!(get(&path, access), Ok(masked));
    set(&path, access, &list(&[(1, 7, none), (4, 5, none), (32, 1, none)])).expect("set one that is a mode");
    assert_eq!((get(&path, access), mode(&path)), (Err(Errno::NODATA), 0o751));
    assert_eq!(set(&path, default, &named), Err(Errno::ACCESS));
    set(dir, default, &named).expect("set a default list");
    fs::create_dir(dir.join("inner")).expect("mkdir");
    assert_eq!((get(&dir.join("inner"), default), mode(&dir.join("inner"))), (Ok(named), 0o660));
    sys::removexattr(dir, default).expect("take it away");
    assert_eq!(get(dir, default), Err(Errno::NODATA));
}

fn sparse(dir: &Path) {
    const HOLE: u64 = 64 << 20;
    let file = OpenOptions::new().create_new(true).read(true).write(true).open(dir.join("file")).expect("open");
    file.write_all_at(b"start", 0).expect("write");
    file.write_all_at(b"end", HOLE).expect("write");
    file.sync_all().expect("fsync");
    let meta = file.metadata().expect("stat");
    assert_eq!(meta.len(), HOLE + 3);
    assert!(meta.blocks() * 512 < HOLE / 4, "a hole of 64 MiB costs {} blocks", meta.blocks());
    let mut middle = vec![1; 100_000];
    file.read_exact_at(&mut middle, HOLE / 2).expect("read");
    assert!(middle.iter().all(|byte| *byte == 0), "a hole reads as zeros");
    let data = sys::seek(&file, sys::SeekFrom::Data(1 << 20)).expect("SEEK_DATA");
    assert!(data > 1 << 20 && data <= HOLE, "data after 1 MiB found at {data}");
    let hole = sys::seek(&file, sys::SeekFrom::Hole(0)).expect("SEEK_HOLE");
    assert!((5..=1 << 20).contains(&hole), "hole found at {hole}");
    assert_eq!(sys::seek(&file, sys::SeekFrom::Data(HOLE + 3)), Err(Errno::NXIO));

    sys::fallocate(&file, sys::FallocateFlags::empty(), HOLE, 1 << 20).expect("fallocate");
    assert_eq!(file.metadata().expect("stat").len(), HOLE + (1 << 20), "allocating past the end extends");
    let punch = sys::FallocateFlags::PUNCH_HOLE | sys::FallocateFlags::KEEP_SIZE;
    match sys::fallocate(&file, punch, 0, 4096) {
        Err(Errno::OPNOTSUPP) => return,
        result => result.expect("punch a hole"),
    }
    let mut start = [1; 5];
    file.read_exact_at(&mut start, 0).expect("read");
    assert_eq!(start, [0; 5], "a punched hole reads as zeros");
}

fn truncate(dir: &Path) {
    let path = dir.join("file");
    fs::write(&path, noise(3, 0, 500_000)).expect("write");
    let file = OpenOptions::new().read(true).write(true).open(&path).expect("open");
    for len in [300_001, 70_000, 3] {
        file.set_len(len).expect("truncate");
        assert_eq!(fs::read(&path).expect("read"), noise(3, 0, len as usize), "cut to {len}");
    }
    file.set_len(200_000).expect("extend");
    let mut want = noise(3, 0, 3);
    want.resize(200_000, 0);
    assert_eq!(fs::read(&path).expect("read"), want, "what was cut off does not come back");
    drop(OpenOptions::new().write(true).truncate(true).open(&path).expect("open"));
    assert_eq!(fs::metadata(&path).expect("stat").len(), 0);
}

fn unlinked_but_open(dir: &Path) {
    let path = dir.join("file");
    let mut file = OpenOptions::new().create_new(true).read(true).write(true).open(&path).expect("open");
    file.write_all(&noise(4, 0, 100_000)).expect("write");
    fs::remove_file(&path).expect("unlink");
    assert_eq!(list(dir), Vec::<String>::new());
    file.write_all(b"more").expect("write after unlink");
    assert_eq!(file.metadata().expect("fstat").nlink(), 0);
    file.seek(SeekFrom::Start(0)).expect("seek");
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).expect("read");
    assert_eq!(bytes, [noise(4, 0, 100_000), b"more".to_vec()].concat());
    fs::write(&path, "another").expect("the name is free");
    assert_eq!(file.metadata().expect("fstat").len(), 100_004);
}

fn unnamed(dir: &Path) {
    let (mode, flags) = (sys::Mode::from_raw_mode(0o640), sys::OFlags::TMPFILE | sys::OFlags::RDWR);
    let mut file = File::from(sys::open(dir, flags, mode).expect("open with O_TMPFILE"));
    file.write_all(&noise(5, 0, 100_000)).expect("write");
    let before = file.metadata().expect("fstat");
    assert_eq!((before.nlink(), before.mode() & 0o7777, before.len()), (0, 0o640, 100_000));
    assert_eq!(list(dir), Vec::<String>::new());
    let link = |file: &File, name: &str| {
        let own = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
        sys::linkat(sys::CWD, own, sys::CWD, dir.join(name), sys::AtFlags::SYMLINK_FOLLOW)
    };
    link(&file, "named").expect("linkat");
    assert_eq!(link(&file, "named"), Err(Errno::EXIST));
    assert_eq!((file.metadata().expect("fstat").nlink(), list(dir)), (1, vec!["named".into()]));
    file.write_all(b"more").expect("write");
    drop(file);
    let bytes = fs::read(dir.join("named")).expect("read");
    assert!(bytes == [noise(5, 0, 100_000), b"more".to_vec()].concat());
    fs::remove_file(dir.join("named")).expect("unlink");
    // One that is to stay without a name does, and so does one that lost its name.
    let kept = File::from(sys::open(dir, flags | sys::OFlags::EXCL, mode).expect("open with O_TMPFILE and O_EXCL"));
    assert_eq!(link(&kept, "no"), Err(Errno::NOENT));
    let lost = File::create(dir.join("lost")).expect("create");
    fs::remove_file(dir.join("lost")).expect("unlink");
    assert_eq!(link(&lost, "no"), Err(Errno::NOENT));
    assert_eq!(list(dir), Vec::<String>::new());
}

fn copies(dir: &Path) {
    let open = |name: &str| {
        let mut options = OpenOptions::new();
        options.create_new(true).read(true).write(true).open(dir.join(name)).expect("open")
    };
    let (source, target) = (open("source"), open("target"));
    let bytes = noise(6, 0, 1_000_000);
    source.write_all_at(&bytes, 0).expect("write");
    target.write_all_at(&noise(7, 0, 300_000), 0).expect("write");
    let copy = |mut from: u64, mut to: u64, len: usize| {
        sys::copy_file_range(&source, Some(&mut from), &target, Some(&mut to), len).expect("copy_file_range")
    };
    let mut want = noise(7, 0, 300_000);
    assert_eq!(copy(100_001, 250_003, 500_000), 500_000);
    want.truncate(250_003);
    want.extend_from_slice(&bytes[100_001..600_001]);
    assert_eq!(copy(999_000, 10, 5_000), 1_000, "up to the end");
    want[10..1_010].copy_from_slice(&bytes[999_000..]);
    source.write_all_at(b"later", 200_000).expect("write");
    target.sync_all().expect("fsync");
    assert!(fs::read(dir.join("target")).expect("read") == want);
    let mut at = 0;
    let itself = sys::copy_file_range(&source, Some(&mut at), &source, Some(&mut 10), 100);
    assert_eq!(itself, Err(Errno::INVAL), "ranges that overlap");
}

fn append(dir: &Path) {
    let path = dir.join("log");
    File::create(&path).expect("create");
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let mut file = OpenOptions::new().append(true).open(&path).expect("open");
            std::thread::spawn(move || {
                (0..100).for_each(|line| file.write_all(format!("{writer} {line:04}\n").as_bytes()).expect("write"));
            })
        })
        .collect();
    writers.into_iter().for_each(|writer| writer.join().expect("a writer"));
    let text = fs::read_to_string(&path).expect("read");
    for writer in 0..4 {
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with(&format!("{writer} "))).collect();
        let want: Vec<_> = (0..100).map(|line| format!("{writer} {line:04}")).collect();
        assert_eq!(lines, want, "writer {writer}'s lines, all and in order");
    }
}

fn long_names(dir: &Path) {
    let longest = "n".repeat(255);
    let umlauts = "ü".repeat(127) + "x";
    for name in [longest.as_str(), umlauts.as_str(), "a b\tc\nd", "\u{1f33f}", "..."] {
        fs::write(dir.join(name), name).expect("write");
        assert_eq!(fs::read_to_string(dir.join(name)).expect("read"), name);
    }
    assert_eq!(list(dir).len(), 5);
    let latin1: &OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"caf\xe9");
    fs::write(dir.join(latin1), "not UTF-8").expect("write");
    assert_eq!(fs::read_to_string(dir.join(latin1)).expect("read"), "not UTF-8");
    let error = fs::write(dir.join("n".repeat(256)), "x").expect_err("256 bytes are too many");
    assert_eq!(error.raw_os_error(), Some(Errno::NAMETOOLONG.raw_os_error()));
}

fn readdir_while_deleting(dir: &Path) {
    for index in 0..300 {
        File::create(dir.join(format!("file-{index:04}-{}", "x".repeat(60)))).expect("create");
    }
    let mut deleted = 0;
    for entry in fs::read_dir(dir).expect("readdir") {
        fs::remove_file(entry.expect("entry").path()).expect("unlink");
        deleted += 1;
    }
    assert_eq!((deleted, list(dir).len()), (300, 0), "each is listed once and can be removed");
}

fn directories(dir: &Path) {
    let (outer, inner) = (dir.join("outer"), dir.join("outer/inner"));
    fs::create_dir(&outer).expect("mkdir");
    assert_eq!(fs::metadata(&outer).expect("stat").nlink(), 2);
    fs::create_dir(&inner).expect("mkdir");
    assert_eq!(fs::metadata(&outer).expect("stat").nlink(), 3);
    assert_eq!(fs::create_dir(&inner).expect_err("twice").kind(), ErrorKind::AlreadyExists);
    assert_eq!(fs::remove_dir(&outer).expect_err("not empty").kind(), ErrorKind::DirectoryNotEmpty);
    assert_eq!(fs::remove_file(&inner).expect_err("a folder").kind(), ErrorKind::IsADirectory);
    fs::remove_dir(&inner).expect("rmdir");
    fs::remove_dir(&outer).expect("rmdir");
    assert_eq!(fs::metadata(&outer).expect_err("gone").kind(), ErrorKind::NotFound);
}

fn exclusive_create(dir: &Path) {
    let winners: usize = (0..8)
        .map(|_| {
            let path = dir.join("lock");
            std::thread::spawn(move || OpenOptions::new().write(true).create_new(true).open(path).is_ok())
        })
        .collect::<Vec<_>>()
        .into_iter()
        .map(|thread| usize::from(thread.join().expect("a thread")))
        .sum();
    assert_eq!(winners, 1);
}

fn past_four_gib(dir: &Path) {
    let offset = (5 << 30) + 1;
    let file = OpenOptions::new().create_new(true).read(true).write(true).open(dir.join("file")).expect("open");
    file.write_all_at(b"beyond", offset).expect("write");
    file.sync_all().expect("fsync");
    drop(file);
    let file = File::open(dir.join("file")).expect("open");
    let mut bytes = [0; 6];
    file.read_exact_at(&mut bytes, offset).expect("read");
    assert_eq!((&bytes, file.metadata().expect("stat").len()), (b"beyond", offset + 6));
}

fn special_files(dir: &Path) {
    let mode = sys::Mode::from_raw_mode(0o640);
    sys::mknodat(sys::CWD, dir.join("pipe"), sys::FileType::Fifo, mode, 0).expect("mkfifo");
    let kind = sys::FileType::from_raw_mode(fs::metadata(dir.join("pipe")).expect("stat").mode());
    assert_eq!(kind, sys::FileType::Fifo);
    let socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).expect("bind");
    std::os::unix::net::UnixStream::connect(dir.join("socket")).expect("connect");
    drop(socket);
    assert_eq!(list(dir), ["pipe", "socket"]);
}

fn free_space(dir: &Path) {
    let space = sys::statvfs(dir).expect("statfs");
    assert!(space.f_blocks > 0 && space.f_bavail > 0 && space.f_bfree <= space.f_blocks, "blocks");
    assert_eq!(space.f_namemax, 255);
}

fn locks(dir: &Path) {
    let path = dir.join("lock");
    let (first, second) = (File::create(&path).expect("create"), File::open(&path).expect("open"));
    first.lock().expect("flock");
    assert!(matches!(second.try_lock(), Err(fs::TryLockError::WouldBlock)), "a second lock is refused");
    first.unlock().expect("unlock");
    second.try_lock_shared().expect("free again");
    first.try_lock_shared().expect("shared locks agree");
}
