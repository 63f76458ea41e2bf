//! A node's data folder: what is refused, with which words, and that nothing is written then.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use base::{ClusterId, NodeId, PublicKey, SecretKey};
use server::folder::{Folder, FolderError};

const CLUSTER: ClusterId = ClusterId([0xa1; 16]);
const NODE: NodeId = NodeId(3);

fn key(seed: u8) -> PublicKey {
    SecretKey::from_seed(&[seed; 32]).public()
}

fn open(path: &Path) -> Result<Folder, FolderError> {
    Folder::open(path, &CLUSTER, NODE, &key(1))
}

/// Every file under `path` with its bytes.
fn contents(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.display().to_string(), fs::read(&path).unwrap_or_default())).collect()
}

/// Opens a folder that must be refused; says with which words, having checked that nothing changed.
fn refused(path: &Path) -> String {
    let before = contents(path);
    let error = open(path).map(drop).unwrap_err().to_string();
    assert_eq!(contents(path), before, "a refused folder was written to");
    assert!(error.contains(&path.display().to_string()), "{error}");
    error
}

#[test]
fn the_first_use_makes_a_folder_private_and_this_nodes_own() {
    use std::os::unix::fs::PermissionsExt as _;
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("deep/er/node-3");
    let folder = open(&path).unwrap();
    assert_eq!((folder.path(), folder.identity().cluster, folder.identity().node), (&*path, CLUSTER, NODE));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    drop(folder);
    let before = fs::read(path.join("NODE")).unwrap();
    drop(open(&path).unwrap());
    assert_eq!(fs::read(path.join("NODE")).unwrap(), before);
}

#[test]
fn a_folder_in_use_is_refused_with_the_others_pid() {
    let temp = tempfile::tempdir().unwrap();
    let folder = open(temp.path()).unwrap();
    let error = refused(temp.path());
    assert!(error.contains("is in use by another node") && error.contains("stop that node"), "{error}");
    assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
    drop(folder);
    open(temp.path()).unwrap();
}

#[test]
fn another_nodes_folder_is_refused_with_both_names() {
    for (cluster, node, seed, says) in [
        (ClusterId([0xb2; 16]), NODE, 1, "node 3 of cluster b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2,"),
        (CLUSTER, NodeId(4), 1, "node 4 of cluster a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1,"),
        (CLUSTER, NODE, 2, &format!("with key {}", key(2))),
    ] {
        let temp = tempfile::tempdir().unwrap();
        drop(Folder::open(temp.path(), &cluster, node, &key(seed)).unwrap());
        let error = refused(temp.path());
        assert!(error.contains(says) && error.contains("belongs to") && error.contains("its own folder"), "{error}");
        assert!(error.contains("but this is node 3 of cluster a1a1"), "{error}");
    }
}

#[test]
fn a_newer_folder_is_refused_whatever_else_it_says() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("NODE"), "mangrove-node 7\nsomething of tomorrow\n").unwrap();
    let error = refused(temp.path());
    assert!(error.contains("newer version (format 7; this program knows 1)"), "{error}");
}

#[test]
fn a_damaged_identity_is_never_taken_for_good() {
    let temp = tempfile::tempdir().unwrap();
    drop(open(temp.path()).unwrap());
    let file = temp.path().join("NODE");
    let good = fs::read(&file).unwrap();
    for place in 0..good.len() {
        for bit in [1, 4, 0x80] {
            let mut bad = good.clone();
            bad[place] ^= bit;
            fs::write(&file, &bad).unwrap();
            let error = refused(temp.path());
            // A flipped digit of the format is rightly called newer.
            assert!(error.contains("is damaged") || error.contains("newer version"), "byte {place}: {error}");
        }
        fs::write(&file, &good[..place]).unwrap();
        assert!(refused(temp.path()).contains("is damaged"), "cut at {place}");
    }
    fs::write(&file, &good).unwrap();
    open(temp.path()).unwrap();
}

#[test]
fn what_is_not_a_nodes_folder_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("thesis.tex"), "irreplaceable").unwrap();
    let error = refused(temp.path());
    assert!(error.contains("is not empty (it holds thesis.tex)") && error.contains("an empty one"), "{error}");

    let file = temp.path().join("thesis.tex");
    for path in [file.clone(), file.join("node-3")] {
        let error = open(&path).map(drop).unwrap_err();
        assert!(matches!(error, FolderError::NotAFolder { .. }), "{error}");
        assert!(error.to_string().contains("is not a folder"), "{error}");
    }
    assert_eq!(fs::read(&file).unwrap(), b"irreplaceable");
}

#[test]
fn a_crash_at_first_use_leaves_a_usable_folder() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("LOCK"), "").unwrap();
    fs::write(temp.path().join("NODE.tmp"), "mangrove-no").unwrap();
    fs::create_dir(temp.path().join("lost+found")).unwrap();
    drop(open(temp.path()).unwrap());
    open(temp.path()).unwrap();
}

#[test]
fn a_folder_that_cannot_be_written_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("here");
    fs::create_dir(&path).unwrap();
    // Root may write whatever the mode says, so root gets a read-only filesystem.
    let mounted = rustix::process::geteuid().is_root()
        && rustix::mount::mount("none", &path, "tmpfs", rustix::mount::MountFlags::RDONLY, None).is_ok();
    if !mounted {
        use std::os::unix::fs::PermissionsExt as _;
        if rustix::process::geteuid().is_root() {
            eprintln!("skipped: this root may not mount a read-only filesystem");
            return;
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o500)).unwrap();
    }
    let errors = [&path, &path.join("node-3")].map(|path| open(path).map(drop).unwrap_err());
    if mounted {
        rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
    for error in errors {
        assert!(matches!(error, FolderError::NotWritable { .. }), "{error}");
        assert!(error.to_string().contains("can't be written"), "{error}");
    }
}
