//! Other filesystems that somebody has set up and mounted, to be measured beside ours.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use ::tests::janitor::when_all_is_over;
use anyhow::{Context as _, ensure};
use tempfile::TempDir;

use super::run::succeed;
use super::target::NAMES;

/// Which there are.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Another filesystem to measure, mounted on this folder. Again for each.
    #[arg(long = "peer", value_name = "NAME=FOLDER", value_parser = pair)]
    peers: Vec<(String, String)>,
    /// What a shell runs before a peer is read cold, to empty its caches: unmounts and mounts it, say.
    #[arg(long = "peer-remount", value_name = "NAME=COMMAND", value_parser = pair)]
    remounts: Vec<(String, String)>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("a name, an equals sign and a value are needed".to_owned()),
    }
}

impl Options {
    /// The peers, if they make sense. None may be on the disk of `dir`: then it is not mounted.
    ///
    /// # Errors
    /// What does not.
    pub(crate) fn peers(&self, dir: &Path) -> anyhow::Result<Vec<Peer>> {
        let mut peers: Vec<Peer> = Vec::new();
        for (name, folder) in &self.peers {
            let taken = NAMES.contains(&name.as_str()) || peers.iter().any(|peer| peer.name == *name);
            ensure!(!taken, "--peer {name}: this name is taken; choose another");
            let remount = self.remounts.iter().find(|(of, _)| of == name).map(|(_, command)| command.clone());
            let folder = fs::canonicalize(folder).with_context(|| format!("--peer {name}={folder}"))?;
            let below = device(dir)?;
            let peer = Peer { name: name.clone(), folder, remount, below };
            peer.check_mounted()?;
            peers.push(peer);
        }
        for (name, _) in &self.remounts {
            ensure!(peers.iter().any(|peer| peer.name == *name), "--peer-remount {name}: there is no --peer {name}");
        }
        Ok(peers)
    }
}

fn device(path: &Path) -> anyhow::Result<u64> {
    Ok(fs::metadata(path).with_context(|| path.display().to_string())?.dev())
}

/// A filesystem that somebody mounts.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Its column.
    pub(crate) name: String,
    folder: PathBuf,
    remount: Option<String>,
    /// The device that it is not.
    below: u64,
}

impl Peer {
    fn check_mounted(&self) -> anyhow::Result<()> {
        let (name, folder) = (&self.name, self.folder.display());
        ensure!(
            device(&self.folder)? != self.below,
            "--peer {name}: {folder} is on the disk that everything is on; mount {name} there first"
        );
        Ok(())
    }

    /// Makes a new folder on it.
    ///
    /// # Errors
    /// If that is not possible.
    pub(crate) fn start(&self) -> anyhow::Result<MountedPeer> {
        let folder = tempfile::Builder::new().prefix("mangrove-bench-").tempdir_in(&self.folder);
        let folder = folder.with_context(|| self.folder.display().to_string())?;
        when_all_is_over(&format!("rm -rf --one-file-system '{}'", folder.path().display()));
        Ok(MountedPeer { peer: self.clone(), folder })
    }
}

/// A folder on a peer, which is gone when this is.
pub(crate) struct MountedPeer {
    peer: Peer,
    folder: TempDir,
}

impl MountedPeer {
    /// The folder.
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// Empties its caches as the user said.
    ///
    /// # Errors
    /// If the command fails, or leaves it unmounted.
    pub(crate) fn remount(&self) -> anyhow::Result<()> {
        let Some(command) = &self.peer.remount else { return Ok(()) };
        succeed(Command::new("sh").args(["-c", command]))?;
        self.peer.check_mounted()?;
        ensure!(self.folder.path().is_dir(), "after `{command}` {} is gone", self.folder.path().display());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(peers: &[&str], remounts: &[&str]) -> Result<Vec<Peer>, String> {
        let pairs = |texts: &[&str]| texts.iter().map(|text| pair(text)).collect::<Result<Vec<_>, _>>();
        let options = Options { peers: pairs(peers)?, remounts: pairs(remounts)? };
        options.peers(Path::new("/")).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn peers_that_make_no_sense_are_refused() {
        for (named, remounts, why) in [
            (&["other"][..], &[][..], "an equals sign"),
            (&["mangrove=/proc"], &[], "this name is taken"),
            (&["other=/proc", "other=/proc"], &[], "this name is taken"),
            (&["other=/nowhere/at/all"], &[], "No such file"),
            (&["other=/"], &[], "mount other there first"),
            (&["other=/proc"], &["another=true"], "there is no --peer another"),
        ] {
            let refusal = peers(named, remounts).expect_err(why);
            assert!(refusal.contains(why), "{refusal}");
        }
    }

    #[test]
    fn a_peer_is_remounted_as_the_user_says() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let peer = |remount: &str| Peer {
            name: "other".to_owned(),
            folder: dir.path().to_owned(),
            remount: Some(remount.to_owned()),
            below: 0,
        };
        let seen = dir.path().join("seen");
        let mounted = peer(&format!("touch {}", seen.display())).start().expect("a folder");
        mounted.remount().expect("the command runs");
        assert!(seen.exists());
        let folder = mounted.root();
        drop(mounted);
        assert!(!folder.exists());
        assert!(peer("false").start().expect("a folder").remount().is_err());
        let gone = peer(&format!("rmdir {}/mangrove-bench-*", dir.path().display())).start().expect("a folder");
        assert!(format!("{:#}", gone.remount().expect_err("it is gone")).contains("is gone"));
    }
}
