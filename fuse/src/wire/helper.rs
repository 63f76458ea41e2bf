//! `fusermount3`: the set-uid program that mounts for users who may not.
//!
//! It mounts, and sends the open `/dev/fuse` back over a socket whose number it finds in
//! `_FUSE_COMMFD`. Its standard input is that socket here, so that no other child inherits it.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg, socketpair,
};

use super::mount::{MountError, Unmount, UnmountError};

/// What goes wrong with the helper, and what to do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum HelperError {
    #[error(
        "{} was not found; install the package fuse3 (`apt install fuse3`, `dnf install fuse3`), or run as root",
        program.display()
    )]
    Missing { program: PathBuf },
    #[error(
        "sharing the mount with other users needs the line user_allow_other in /etc/fuse.conf; \
         add it as root, or mount without allow_other"
    )]
    AllowOtherDenied,
    #[error("{} did not mount: {message}", program.display())]
    Failed { program: PathBuf, message: String },
    #[error("{} could not be run: {source}", program.display())]
    Unusable { program: PathBuf, source: std::io::Error },
}

/// Mounts at `mountpoint` with `options` (as after `-o`) and returns the connection.
pub(super) fn mount(mountpoint: &Path, options: &str, program: Option<&Path>) -> Result<OwnedFd, MountError> {
    let program = program.unwrap_or(Path::new("fusermount3"));
    let unusable = |source: std::io::Error| HelperError::Unusable { program: program.into(), source };
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|errno| unusable(errno.into()))?;
    // The command keeps their end open until it is dropped; we must see it close.
    let mut child = Command::new(program)
        .args(["-o", options, "--"])
        .arg(mountpoint)
        .env("_FUSE_COMMFD", "0")
        .env("LC_ALL", "C")
        .stdin(theirs)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| not_run(program, source))?;
    let received = receive_descriptor(&ours);
    drop(ours);
    let message = read_message(&mut child, program)?;
    match received.map_err(|errno| unusable(errno.into()))? {
        Some(connection) => Ok(connection),
        None => Err(explain(program, mountpoint, message)),
    }
}

/// Unmounts through the helper.
pub(super) fn unmount(mountpoint: &Path, how: Unmount, program: Option<&Path>) -> Result<(), UnmountError> {
    let program = program.unwrap_or(Path::new("fusermount3"));
    let mut command = Command::new(program);
    command.arg("-u");
    if how == Unmount::Lazy {
        command.arg("-z");
    }
    command.arg("--").arg(mountpoint).env("LC_ALL", "C").stdin(Stdio::null());
    let output = command.output().map_err(|source| not_run(program, source))?;
    if output.status.success() {
        return Ok(());
    }
    let path = mountpoint.to_path_buf();
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(if message.contains("busy") {
        UnmountError::Busy { path }
    } else if message.contains("not mounted") || message.contains("not found in") {
        UnmountError::NotPermitted { path }
    } else {
        HelperError::Failed { program: program.into(), message }.into()
    })
}

/// The descriptor that comes over `socket`; `None` when it is closed without one.
fn receive_descriptor(socket: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0u8; 1];
    loop {
        let received =
            recvmsg(socket.as_fd(), &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC);
        match received {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
            Ok(_) => break,
        }
    }
    let mut descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok(descriptors.next().and_then(|mut descriptors| descriptors.next()))
}

/// What the helper has to say; waits for its end.
fn read_message(child: &mut std::process::Child, program: &Path) -> Result<String, HelperError> {
    let mut message = Vec::new();
    let unusable = |source: std::io::Error| HelperError::Unusable { program: program.into(), source };
    if let Some(stderr) = &mut child.stderr {
        std::io::Read::read_to_end(stderr, &mut message).map_err(unusable)?;
    }
    child.wait().map_err(unusable)?;
    Ok(String::from_utf8_lossy(&message).trim().to_owned())
}

fn not_run(program: &Path, source: std::io::Error) -> HelperError {
    match source.kind() {
        std::io::ErrorKind::NotFound => HelperError::Missing { program: program.into() },
        _ => HelperError::Unusable { program: program.into(), source },
    }
}

/// The helper's complaint as an error that says what to do.
fn explain(program: &Path, mountpoint: &Path, message: String) -> MountError {
    if message.contains("user_allow_other") {
        HelperError::AllowOtherDenied.into()
    } else if message.contains("/dev/fuse") && message.contains("not found") {
        MountError::DeviceMissing
    } else if message.contains("/dev/fuse") && message.contains("Permission denied") {
        MountError::DeviceDenied
    } else if message.contains("no write access") || message.contains("not owned by user") {
        let source = std::io::Error::other(format!("only its owner may mount there ({message})"));
        MountError::Inaccessible { path: mountpoint.into(), source }
    } else {
        let message = if message.is_empty() { "it gave no reason".into() } else { message };
        HelperError::Failed { program: program.into(), message }.into()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    #[test]
    fn the_descriptor_sent_is_the_one_received() {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "here").unwrap();
        let file = std::fs::File::open(&path).unwrap();
        let descriptors = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        sendmsg(&theirs, &[std::io::IoSlice::new(b"\0")], &mut control, SendFlags::empty()).unwrap();
        let received = receive_descriptor(&ours).unwrap().unwrap();
        assert_eq!(std::io::read_to_string(std::fs::File::from(received)).unwrap(), "here");
        drop(theirs);
        assert!(receive_descriptor(&ours).unwrap().is_none());
    }

    fn complaint(message: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("fusermount3");
        // Written by another process: a script that this one holds open for writing, or that a
        // child forked meanwhile does, cannot be executed.
        let script = format!("#!/bin/sh\necho \"fusermount3: {message}\" >&2\nexit 1\n");
        let status =
            Command::new("sh").args(["-c", "printf %s \"$1\" > \"$2\"", "sh", &script]).arg(&program).status().unwrap();
        assert!(status.success());
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        mount(folder.path(), "rw", Some(&program)).unwrap_err().to_string()
    }

    #[test]
    fn the_helpers_complaints_become_errors_that_say_what_to_do() {
        let missing = mount(Path::new("/"), "rw", Some(Path::new("/nowhere/fusermount3"))).unwrap_err().to_string();
        assert!(missing.contains("install the package fuse3"), "{missing}");
        let other = complaint("option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf");
        assert!(other.contains("/etc/fuse.conf") && other.contains("add it as root"), "{other}");
        assert!(complaint("failed to open /dev/fuse: Permission denied").contains("0666"));
        assert!(complaint("fuse device /dev/fuse not found. Kernel module not loaded?").contains("modprobe fuse"));
        assert!(complaint("user has no write access to mountpoint /x").contains("only its owner"));
        assert!(complaint("mount failed: Stars are wrong").contains("Stars are wrong"));
    }
}
