//! A git repository that is cloned, and looked at.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use ::tests::random::Random;
use ::tests::tree::plan;
use ::tests::work::git;
use anyhow::{Context as _, ensure};

use super::rows::Row;
use super::run::{Run, succeed};

/// Files that each commit changes.
const CHANGED: usize = 10;
/// When the first commit was made; then one an hour.
const BEGINNING: usize = 1_500_000_000;

/// `git clone`, then `git status`: the second, which finds the index in order and everything warm, and one
/// after a restart.
pub(crate) fn measure(run: &mut Run<'_>) -> anyhow::Result<()> {
    let (root, files) = (run.folder("git")?, run.sizes.git_files);
    let mut command = git(&root);
    command.args(["clone", "--quiet", "--no-local"]).arg(&run.inputs.repository).arg("clone");
    run.time(Row::Clone, files, || succeed(&mut command).map_err(io::Error::other))?;
    let clone = root.join("clone");
    let status = || clean(&clone).map_err(io::Error::other);
    if run.wants(&[Row::StatusWarm, Row::StatusCold]) {
        status()?;
        run.time(Row::StatusWarm, files, status)?;
    }
    if run.wants(&[Row::StatusCold]) {
        run.cool()?;
        run.time(Row::StatusCold, files, status)?;
    }
    let tracked = answer(git(&clone).arg("ls-files"))?.lines().count();
    ensure!(tracked == files, "{tracked} files are in the clone");
    Ok(fs::remove_dir_all(&root)?)
}

/// Has git look at all files; none may differ from what was checked out.
fn clean(clone: &Path) -> anyhow::Result<()> {
    let found = answer(git(clone).args(["status", "--porcelain"]))?;
    ensure!(found.is_empty(), "git finds changes that nobody made:\n{found}");
    Ok(())
}

fn answer(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?} ended with {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// Makes the repository, bare and packed: the same commits every time.
pub(crate) fn make(path: &Path, files: usize, commits: usize) -> anyhow::Result<()> {
    fs::create_dir(path)?;
    succeed(git(path).args(["init", "--quiet", "--bare"]))?;
    let mut import = git(path).args(["fast-import", "--quiet"]).stdin(Stdio::piped()).spawn()?;
    let mut out = BufWriter::new(import.stdin.take().context("its input was asked for")?);
    let written = write_history(&mut out, files, commits).and_then(|()| out.flush());
    drop(out);
    let status = import.wait()?;
    ensure!(status.success(), "git fast-import ended with {status}");
    written.context("git fast-import")?;
    succeed(git(path).args(["-c", "pack.threads=1", "repack", "-a", "-d", "-f", "--quiet"]))
}

/// A first commit of all files, then commits that put a line into some of them.
fn write_history(out: &mut impl Write, files: usize, commits: usize) -> io::Result<()> {
    let (plan, mut random) = (plan(files, 78), Random::new(79));
    let mut texts: Vec<String> = plan.iter().map(|planned| text(&mut random, planned.size)).collect();
    for commit in 0..commits {
        let message = format!("Commit {commit}\n");
        writeln!(out, "commit refs/heads/main")?;
        writeln!(out, "committer Test <test@example.org> {} +0000", BEGINNING + commit * 3600)?;
        writeln!(out, "data {}\n{message}", message.len())?;
        let changed: Vec<usize> = match commit {
            0 => (0..files).collect(),
            _ => (0..CHANGED).map(|_| random.below(files as u64) as usize).collect(),
        };
        for index in changed {
            let text = &mut texts[index];
            if commit > 0 {
                let at = random.below(text.len() as u64 + 1) as usize;
                let at = text[..at].rfind('\n').map_or(0, |end| end + 1);
                text.insert_str(at, &line(&mut random));
            }
            writeln!(out, "M 100644 inline {}\ndata {}\n{text}", plan[index].path.display(), text.len())?;
        }
    }
    Ok(())
}

/// Lines that compress about as source text does.
fn text(random: &mut Random, size: usize) -> String {
    let mut text = String::with_capacity(size + 100);
    while text.len() < size {
        text += &line(random);
    }
    text
}

fn line(random: &mut Random) -> String {
    let mut line = "    ".repeat(random.below(4) as usize);
    for _ in 0..2 + random.below(9) {
        // The word for a small number comes more often, as words do.
        let rarest = 1 + random.below(4096);
        let word = random.below(rarest);
        let _ = write!(line, "w{word:x} ");
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_is_the_same_every_time() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("repository");
        make(&path, 40, 5).expect("git makes it");
        let ask = |arguments: &[&str]| answer(git(&path).args(arguments)).expect("git answers");
        assert_eq!(ask(&["rev-list", "--count", "main"]), "5\n");
        assert_eq!(ask(&["ls-tree", "-r", "--name-only", "main"]).lines().count(), 40);
        assert_eq!(ask(&["rev-parse", "main"]), "446022ca6a170c64f15a77042836f7adc84ef2f4\n");
    }
}
