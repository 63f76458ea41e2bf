//! A mount whose process dies, or is replaced, under programs that use it.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::fs::RawDir;
use rustix::io::Errno;
use rustix::process::{Signal, kill_process};
use tests::process::{ANSWER, Process};
use tests::wait::poll;
use tests::work::CHORE;
use tests::{Cluster, Mount, needs_mount, one_at_a_time, run_ok, tree, wait_until};

const SETTLE: Duration = Duration::from_secs(60);

fn appending(path: &Path) -> File {
    OpenOptions::new().append(true).create(true).open(path).expect("opened")
}

/// Names that a directory gives from where it is read to, in buffers for a few.
fn names_of(dir: &File, most: usize) -> Vec<String> {
    let mut buffer = Vec::with_capacity(1024);
    let mut names = Vec::new();
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    while names.len() < most
        && let Some(entry) = entries.next()
    {
        names.push(entry.expect("an entry").file_name().to_string_lossy().into_owned());
    }
    // What was read ahead is lost with the buffer, so only whole buffers are taken.
    while !entries.is_buffer_empty()
        && let Some(entry) = entries.next()
    {
        names.push(entry.expect("an entry").file_name().to_string_lossy().into_owned());
    }
    names
}

#[test]
fn programs_keep_their_open_files_when_the_process_is_killed() {
    needs_mount!();
    let _turn = one_at_a_time();
    let cluster = Cluster::start();
    let mount = cluster.mount("mount");
    let at = |name: &str| mount.path().join(name);
    fs::create_dir(at("many")).expect("mkdir");
    (0..300).for_each(|index| fs::write(at("many").join(format!("file-{index:03}")), "x").expect("written"));
    fs::write(at("read"), "0123456789").expect("written");
    let mut read = File::open(at("read")).expect("opened");
    let mut half = [0; 5];
    read.read_exact(&mut half).expect("read");
    let mut write = File::create(at("write")).expect("created");
    write.write_all(b"before,").expect("written");
    let mut append = appending(&at("append"));
    append.write_all(b"one,").expect("written");
    let mut nameless = OpenOptions::new().read(true).write(true).create_new(true).open(at("gone")).expect("created");
    nameless.write_all(b"without a name").expect("written");
    fs::remove_file(at("gone")).expect("removed");
    let mut closed = File::create(at("closed to it")).expect("created");
    closed.write_all(b"and still ").expect("written");
    fs::set_permissions(at("closed to it"), std::os::unix::fs::PermissionsExt::from_mode(0o400)).expect("chmod");
    for file in [&write, &append, &nameless, &closed] {
        file.sync_all().expect("synced");
    }
    let listed = File::open(at("many")).expect("opened");
    let mut names = names_of(&listed, 100);
    assert!(names.len() < 250, "the kernel has not all of them yet");
    listed.sync_all().expect("synced");

    let inode = fs::metadata(at("write")).expect("stat").ino();
    mount.kill_server();
    let mut rest = String::new();
    read.read_to_string(&mut rest).expect("a reader reads on");
    assert_eq!(rest, "56789");
    write.write_all(b"after").expect("a writer writes on");
    append.write_all(b"two").expect("an appender appends");
    closed.write_all(b"mine").expect("who may not open it any more has it open");
    nameless.seek(SeekFrom::Start(0)).expect("sought");
    let mut text = String::new();
    nameless.read_to_string(&mut text).expect("what has no name is there");
    assert_eq!(text, "without a name");
    nameless.write_all(b", still").expect("written");
    names.extend(names_of(&listed, usize::MAX));
    names.retain(|name| name.starts_with("file-"));
    names.sort();
    assert_eq!(names, (0..300).map(|index| format!("file-{index:03}")).collect::<Vec<_>>(), "listed once each");
    for file in [&write, &append, &nameless, &closed] {
        file.sync_all().expect("nothing was lost, so nothing is told");
    }
    assert_eq!(fs::read_to_string(at("write")).expect("read"), "before,after");
    assert_eq!(fs::read_to_string(at("append")).expect("read"), "one,two");
    assert_eq!(fs::metadata(at("write")).expect("stat").ino(), inode);
    let mut all = vec![0; 21];
    nameless.read_exact_at(&mut all, 0).expect("read");
    assert_eq!(all, b"without a name, still");
    mount.stop();
}

#[test]
fn what_a_crash_lost_is_told_once_and_what_was_synced_is_not() {
    needs_mount!();
    let _turn = one_at_a_time();
    let cluster = Cluster::start();
    let mount = cluster.mount("mount");
    let mut lost = File::create(mount.path().join("lost")).expect("created");
    lost.write_all(b"synced").expect("written");
    let mut safe = File::create(mount.path().join("safe")).expect("created");
    safe.write_all(b"safe").expect("written");
    (lost.sync_all(), safe.sync_all()).0.expect("synced");
    safe.sync_all().expect("synced");
    let reader = File::open(mount.path().join("lost")).expect("opened");
    lost.write_all(b" and more").expect("written");
    let dir = File::open(mount.path()).expect("opened");
    dir.sync_all().expect("synced");
    fs::write(mount.path().join("never"), "seen").expect("written");

    mount.kill_server();
    assert_eq!(reader.metadata().expect("stat").len(), 6, "what is seen is what there is");
    assert_eq!(safe.sync_all().map_err(|error| error.kind()), Ok(()), "nothing of it was lost");
    let told = lost.sync_all().expect_err("it is told");
    assert_eq!(told.raw_os_error(), Some(Errno::IO.raw_os_error()));
    lost.sync_all().expect("once");
    lost.write_all_at(b" and more", 6).expect("and it can be written again");
    lost.sync_all().expect("synced");
    assert_eq!(fs::read_to_string(mount.path().join("lost")).expect("read"), "synced and more");
    // It may have been sent just before the kill.
    if !mount.path().join("never").exists() {
        assert!(dir.sync_all().is_err(), "a name was lost, and who syncs its directory is told");
        dir.sync_all().expect("once");
    }
    drop(lost);
    mount.stop();
}

#[test]
fn a_restart_under_load_loses_nothing() {
    needs_mount!();
    let _turn = one_at_a_time();
    let cluster = Cluster::start();
    let mount = cluster.mount("mount");
    let source = cluster.outside().join("source");
    fs::create_dir(&source).expect("mkdir");
    tree::make(&source, &tree::plan(400, 3));
    let want = tree::read(&source);
    let mut open = File::create(mount.path().join("open")).expect("created");
    open.write_all(b"not synced, ").expect("written");
    let copying = AtomicBool::new(true);
    let restarts = std::thread::scope(|scope| {
        let copy = scope.spawn(|| {
            for round in 0..3 {
                let to = mount.path().join(format!("copy-{round}"));
                run_ok(Command::new("cp").arg("-a").arg(&source).arg(to), CHORE);
            }
            copying.store(false, Ordering::Release);
        });
        let mut restarts = 0;
        while restarts < 2 || copying.load(Ordering::Acquire) && restarts < 5 {
            let before = mount.server();
            run_ok(cluster.admin().args(["mount", "--restart"]).arg(mount.path()), SETTLE);
            assert_ne!(mount.server(), before, "another process goes on");
            restarts += 1;
        }
        copy.join().expect("copied without an error");
        restarts
    });
    open.write_all(b"and not lost").expect("written");
    open.sync_all().expect("nothing was lost, so nothing is told");
    assert_eq!(fs::read_to_string(mount.path().join("open")).expect("read"), "not synced, and not lost");
    for round in 0..3 {
        tree::assert_same(&want, &tree::read(&mount.path().join(format!("copy-{round}"))));
    }
    assert!(restarts >= 2);
    drop(open);
    mount.stop();
}

#[test]
fn programs_go_on_through_kill_after_kill() {
    needs_mount!();
    let _turn = one_at_a_time();
    let cluster = Cluster::start();
    let mut mount = cluster.mount("mount");
    let path = mount.path().to_owned();
    let (done, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    let went_on = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            // Whatever was under way at a kill is asked for again.
            while !done.load(Ordering::Acquire) {
                let round = rounds.fetch_add(1, Ordering::AcqRel);
                fs::create_dir(path.join(format!("dir-{round}")))?;
            }
            std::io::Result::Ok(())
        });
        let goes_on = || {
            let before = rounds.load(Ordering::Acquire);
            poll(SETTLE, || (rounds.load(Ordering::Acquire) > before + 10).then_some(())).is_some()
        };
        let went_on = (0..4).all(|_| {
            mount.kill_server();
            goes_on()
        });
        done.store(true, Ordering::Release);
        if !went_on {
            // Who hangs is let go by this, so that the test ends.
            mount.process().stop();
        }
        worker.join().expect("it does not panic").expect("no request failed");
        went_on
    });
    assert!(went_on, "no request hangs");
    mount.stop();
}

#[test]
fn a_crash_loop_ends_with_a_reason_and_without_a_dead_mountpoint() {
    needs_mount!();
    let _turn = one_at_a_time();
    let cluster = Cluster::start();
    let mut mount = cluster.mount("mount");
    let path = mount.path().to_owned();
    wait_until("nobody starts it any more", SETTLE, || {
        if let Some(server) = mount.server() {
            let _ = kill_process(server, Signal::KILL);
        }
        (!mount.process().is_running()).then_some(())
    });
    assert_eq!(mount.process().wait_end(ANSWER).code(), Some(1));
    let log = mount.process().log();
    assert!(log.contains("died 5 times within seconds") && log.contains("mount again"), "{log}");
    assert!(!tests::mount::is_mounted(&path), "it is unmounted");
    assert_eq!(fs::read_dir(&path).expect("the folder is as it was").count(), 0);
    drop(mount);
    let mount = cluster.mount("mount");
    fs::write(mount.path().join("again"), "x").expect("it can be mounted again");
    mount.stop();
}

#[test]
fn without_its_supervisor_a_mount_ends_in_order() {
    needs_mount!();
    let _turn = one_at_a_time();
    let cluster = Cluster::start();
    let mut mount = cluster.mount("mount");
    let path = mount.path().to_owned();
    fs::write(path.join("file"), "written").expect("written");
    let server = mount.server().expect("it is served");
    mount.process().kill();
    wait_until("it ends", SETTLE, || rustix::process::test_kill_process(server).is_err().then_some(()));
    assert!(!tests::mount::is_mounted(&path));
    drop(mount);
    let mount = cluster.mount("mount");
    assert_eq!(fs::read_to_string(mount.path().join("file")).expect("read"), "written");
    mount.stop();
}

/// The mounts that `mount.mangrove` makes, which nobody but `umount` ends.
struct Helper<'a> {
    cluster: &'a Cluster,
    program: std::path::PathBuf,
    mounted: std::cell::RefCell<Vec<std::path::PathBuf>>,
}

impl Drop for Helper<'_> {
    fn drop(&mut self) {
        for path in self.mounted.take().into_iter().filter(|path| tests::mount::is_mounted(path)) {
            let _ = Command::new("umount").arg("-l").arg(path).status();
        }
    }
}

impl<'a> Helper<'a> {
    fn new(cluster: &'a Cluster) -> Helper<'a> {
        let program = cluster.outside().join("mount.mangrove");
        std::os::unix::fs::symlink(tests::process::mangrove_binary(), &program).expect("linked");
        Helper { cluster, program, mounted: Default::default() }
    }

    fn command(&self, source: &str, name: &str, options: &str) -> (Command, std::path::PathBuf) {
        let path = self.cluster.outside().join(name);
        fs::create_dir_all(&path).expect("mkdir");
        let ours = tests::mangrove(self.cluster.outside());
        let mut command = Command::new(&self.program);
        command.envs(ours.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env_remove("MANGROVE_CLUSTER").env_remove("MANGROVE_KEY");
        command.arg(source).arg(&path).args(["-o", options]);
        (command, path)
    }

    #[track_caller]
    fn mount(&self, name: &str, options: &str) -> std::path::PathBuf {
        let source = format!("{}:main", self.cluster.path().join("cluster.toml").display());
        let (mut command, path) = self.command(&source, name, options);
        self.mounted.borrow_mut().push(path.clone());
        run_ok(&mut command, ANSWER);
        assert!(tests::mount::is_mounted(&path), "it is mounted when the command returns");
        path
    }

    #[track_caller]
    fn umount(path: &Path) {
        run_ok(Command::new("umount").arg(path), ANSWER);
        // Its processes have the path among their arguments.
        let serves = |pid: &str| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).split('\0').any(|word| Path::new(word) == path)
        };
        wait_until("its processes end", SETTLE, || {
            let all =
                fs::read_dir("/proc").expect("listed").filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            (!all.into_iter().any(|pid| serves(&pid))).then_some(())
        });
    }
}

#[test]
fn mount_mangrove_mounts_with_the_options_of_fstab() {
    needs_mount!();
    if !rustix::process::geteuid().is_root() {
        return tests::skip("the helper of mount(8) is for root");
    }
    let _turn = one_at_a_time();
    let cluster = Cluster::start();
    let helper = Helper::new(&cluster);
    let path = helper.mount("plain", "rw,_netdev,nofail,x-systemd.automount,defaults,uid=1234,gid=4321");
    let script = path.join("script");
    fs::write(&script, "#!/bin/sh\nexit 0\n").expect("written");
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    let shown = fs::metadata(&script).expect("stat");
    assert_eq!((shown.uid(), shown.gid()), (1234, 4321));
    assert!(Command::new(&script).status().expect("it can be run").success());
    Helper::umount(&path);

    let path = helper.mount("strict", "noexec,nodev,nosuid,noatime,cache-size=1M,writeback=off");
    assert_eq!(fs::metadata(path.join("script")).expect("stat").uid(), 0);
    let refused = Command::new(path.join("script")).status().expect_err("no programs are run here");
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
    run_ok(Command::new("mknod").arg(path.join("null")).args(["c", "1", "3"]), ANSWER);
    assert_eq!(File::open(path.join("null")).expect_err("no devices").kind(), ErrorKind::PermissionDenied);
    let table = fs::read_to_string("/proc/self/mountinfo").expect("read");
    let line = table.lines().find(|line| line.contains(&path.display().to_string())).expect("in the table");
    for word in ["noexec", "nodev", "nosuid", "noatime"] {
        assert!(line.contains(word), "{word}: {line}");
    }
    Helper::umount(&path);

    let path = helper.mount("devices", "dev");
    File::open(path.join("null")).expect("a device works");
    Helper::umount(&path);
    let path = helper.mount("readonly", "ro");
    assert_eq!(fs::write(path.join("new"), "x").expect_err("read only").kind(), ErrorKind::ReadOnlyFilesystem);
    assert_eq!(fs::read_to_string(path.join("script")).expect("read"), "#!/bin/sh\nexit 0\n");
    Helper::umount(&path);
}

#[test]
fn mount_mangrove_says_why_it_could_not() {
    needs_mount!();
    let _turn = one_at_a_time();
    let cluster = Cluster::start();
    let helper = Helper::new(&cluster);
    let view = cluster.path().join("cluster.toml").display().to_string();
    let (mut command, path) = helper.command(&format!("{view}:attic"), "attic", "rw");
    tests::run_refused(&mut command, &["no volume", "attic"]);
    assert!(!tests::mount::is_mounted(&path));
    let (mut command, _) = helper.command(&view, "attic", "rw,fast");
    tests::run_refused(&mut command, &["\"fast\" is not known", "noexec"]);
    tests::run_refused(cluster.admin().args(["mount", "--restart"]).arg(&path), &["nobody supervises"]);
}

#[test]
fn an_ordinary_user_keeps_a_mount_through_a_kill() {
    needs_mount!();
    tests::needs_program!("fusermount3");
    tests::needs_program!("setpriv");
    if !rustix::process::geteuid().is_root() {
        return tests::skip("it takes root to become somebody else");
    }
    let _turn = one_at_a_time();
    let cluster = Cluster::start();
    let home = tempfile::Builder::new().prefix("mangrove-user-").tempdir().expect("a temporary folder");
    for name in ["cluster.toml", "admin.key"] {
        fs::copy(cluster.path().join(name), home.path().join(name)).expect("copied");
    }
    let program = home.path().join("mangrove");
    fs::copy(tests::process::mangrove_binary(), &program).expect("copied");
    let path = home.path().join("mnt");
    fs::create_dir(&path).expect("mkdir");
    let own = run_ok(Command::new("chown").args(["-R", "65534:65534"]).arg(home.path()), ANSWER);
    assert_eq!(own, "");
    let ours = tests::mangrove(home.path());
    let mut command = Command::new("setpriv");
    command.envs(ours.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
    command.arg("--cluster").arg(home.path().join("cluster.toml")).arg("mount").arg(&path);
    let mount = Mount::start("user", &mut command, &path, &home.path().join("log"));
    let as_user = |script: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", script]).current_dir(home.path());
        command
    };
    let log = home.path().join("reader.log");
    let mut reader = Process::start("reader", &mut as_user("exec 3<mnt; while [ ! -e go ]; do :; done; ls mnt"), &log);
    mount.kill_server();
    fs::write(home.path().join("go"), "").expect("written");
    assert!(reader.wait_end(SETTLE).success(), "{}", reader.log());
    mount.stop();
}
