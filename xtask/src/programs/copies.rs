//! Programs that copy trees, and editors that replace files.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use ::tests::work::CHORE;
use ::tests::{run_ok, tree};
use anyhow::ensure;

use super::{Place, shell};
use crate::steps::Steps;

pub(super) fn rsync(steps: &mut Steps, place: &Place, files: usize) {
    let source = place.cluster.outside().join("rsync-source");
    let mnt = place.mnt();
    let same = || {
        let want = tree::read(&source);
        tree::assert_same(&want, &tree::read(&mnt.join("rsync")));
        let left =
            shell(&source, &format!("rsync -aHXc --delete --dry-run --itemize-changes . '{}/rsync'", mnt.display()));
        ensure!(left.is_empty(), "rsync would still change:\n{left}");
        Ok(format!("{} entries", want.len()))
    };
    let copy = |options: &str| shell(&source, &format!("rsync -aHX --delete {options} . '{}/rsync'", mnt.display()));
    steps.run("rsync of a tree", || {
        fs::create_dir(&source)?;
        tree::make(&source, &tree::plan(files, 21));
        copy("");
        same()
    });
    steps.run("rsync of what changed, by renames", || {
        let change = "find . -type f | sort | awk 'NR % 7 == 0' | while read -r name; do echo more >> \"$name\"; done
                      find . -type f | sort | awk 'NR % 11 == 0' | while read -r name; do rm \"$name\"; done";
        shell(&source, change);
        copy("--no-whole-file");
        same()
    });
    steps.run("rsync of what changed, in place", || {
        let change = "find . -type f -size +8k | sort | awk 'NR % 3 == 0' | while read -r name; do
                          printf middle | dd of=\"$name\" bs=1 seek=4000 conv=notrunc status=none; done";
        shell(&source, change);
        copy("--inplace --no-whole-file");
        same()
    });
    steps.run("rsync from one mount to the other", || {
        let two = place.two.path().join("rsync-back");
        shell(&mnt, &format!("rsync -aHX rsync/ '{}'", two.display()));
        tree::assert_same(&tree::read(&source), &tree::read(&mnt.join("rsync-back")));
        Ok(String::new())
    });
}

pub(super) fn tar(steps: &mut Steps, place: &Place, files: usize) {
    steps.run("tar: unpack, compare, pack again", || {
        let source = place.cluster.outside().join("tar-source");
        fs::create_dir(&source)?;
        tree::make(&source, &tree::plan(files, 22));
        let (mnt, archive) = (place.mnt().join("tar"), place.cluster.outside().join("one.tar"));
        fs::create_dir(&mnt)?;
        let archive = archive.display();
        shell(&source, &format!("tar --sort=name -cf '{archive}' ."));
        shell(&mnt, &format!("tar xpf '{archive}' && tar df '{archive}'"));
        tree::assert_same(&tree::read(&source), &tree::read(&mnt));
        let sum = |dir| shell(dir, "tar --sort=name -cf - . | sha256sum");
        let (want, found) = (sum(source.as_path()), sum(mnt.as_path()));
        ensure!(want == found, "the archive of the copy is another");
        Ok(format!("{files} files; packed again it is the same to the byte"))
    });
}

/// Each way in which editors save: over the file, by a new file and a rename, by a backup that is renamed.
pub(super) fn editors(steps: &mut Steps, place: &Place) {
    let dir = place.mnt().join("editors");
    let insert = "(progn (goto-char (point-max)) (insert \"line\\n\") (save-buffer))";
    let emacs = |settings: &str| {
        let mut command = Command::new("emacs");
        // By itself it makes no backups below /tmp, where the mounts may be.
        let anywhere = "(setq backup-enable-predicate (lambda (_) t))";
        command.args(["-Q", "--batch", "--eval", anywhere, "--eval", settings, "text", "--eval", insert]);
        command
    };
    let vim = |settings: &str| {
        let mut command = Command::new("vim");
        command.args([
            "-u",
            "NONE",
            "-i",
            "NONE",
            "-es",
            "-c",
            "set backupskip=",
            "-c",
            settings,
            "-c",
            "normal Goline",
            "-c",
            "wq",
            "text",
        ]);
        command
    };
    let ways = [
        ("vim, over the file", vim("set backupcopy=yes writebackup"), false),
        ("vim, by a new file", vim("set backupcopy=no backup writebackup"), true),
        ("emacs, by a renamed backup", emacs("(setq make-backup-files t backup-by-copying nil)"), true),
        ("emacs, by a copied backup", emacs("(setq make-backup-files t backup-by-copying t)"), true),
        ("emacs, by a precious file", emacs("(setq make-backup-files nil file-precious-flag t)"), false),
    ];
    steps.run("vim and emacs save in every way they have", || {
        fs::create_dir(&dir)?;
        let mut names = Vec::new();
        for (name, mut command, backup) in ways {
            let file = dir.join("text");
            fs::write(&file, "first\n")?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o640))?;
            for times in 1..=3 {
                run_ok(command.current_dir(&dir), CHORE);
                for mount in [place.mnt(), place.two.path().to_owned()] {
                    let found = fs::read_to_string(mount.join("editors/text"))?;
                    let want = format!("first\n{}", "line\n".repeat(times));
                    ensure!(found == want, "{name}: {} has {found:?} after {times}", mount.display());
                }
            }
            ensure!(fs::metadata(&file)?.permissions().mode() & 0o7777 == 0o640, "{name}: the mode changed");
            let mut left: Vec<_> =
                fs::read_dir(&dir)?.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<_, _>>()?;
            left.sort();
            let want: &[&str] = if backup { &["text", "text~"] } else { &["text"] };
            ensure!(left == want, "{name} left {left:?}");
            left.iter().try_for_each(|file| fs::remove_file(dir.join(file)))?;
            names.push(name);
        }
        Ok(names.join("; "))
    });
}
