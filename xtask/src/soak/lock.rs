//! The kinds of lock that workers of `cargo xtask soak` can take.
//!
//! A lock that its mount lost (cut off for longer than its leases last) guards nothing any more. Whoever made a
//! directory finds that out by nothing; whoever locked a file is told by that file, and by no other: so what is
//! counted in is what is locked, and is used through the handle that has the lock.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::io::Errno;

use super::history::{Answer, Book, Door, No};

/// How two workers keep out of each other's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Lock {
    /// Whoever can make a directory holds it.
    Mkdir,
    /// `flock` of the file that is counted in.
    Flock,
    /// A record lock of that file. Such locks are a process's, so workers of one mount, threads of one process,
    /// keep each other out by themselves.
    Fcntl,
}

/// A lock that is held.
#[derive(Debug)]
pub(crate) struct Held {
    /// What is locked.
    pub(crate) file: Option<File>,
    _turn: Option<Turn>,
}

/// Which record locks workers of this process hold or ask for.
static TURNS: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

#[derive(Debug)]
struct Turn(PathBuf);

impl Turn {
    fn take(dir: &Path) -> Option<Turn> {
        TURNS.lock().expect("lock").insert(dir.to_owned()).then(|| Turn(dir.to_owned()))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TURNS.lock().expect("lock").remove(&self.0);
    }
}

/// What came of asking for a lock.
pub(crate) enum Taken {
    Mine(Held, Answer<()>),
    Others(Answer<()>),
    Unknown(Answer<()>),
    /// The mount was not asked.
    Later,
}

impl Lock {
    /// Asks for it once, without waiting.
    pub(crate) fn take(self, book: &Book, door: &Door, dir: &Path) -> Taken {
        let turn = if self == Lock::Fcntl { Turn::take(dir) } else { None };
        if self == Lock::Fcntl && turn.is_none() {
            return Taken::Later;
        }
        let mut held = Held { file: None, _turn: turn };
        let answer = book.ask(door, "lock", || {
            if self == Lock::Mkdir {
                return fs::create_dir(dir.join("lock"));
            }
            let file = File::options().read(true).append(true).open(dir.join("log"))?;
            self.operate(&file, FlockOperation::NonBlockingLockExclusive)?;
            held.file = Some(file);
            Ok(())
        });
        match answer.result {
            Ok(()) => Taken::Mine(held, answer),
            Err(No::Exists) => Taken::Others(answer),
            Err(_) => Taken::Unknown(answer),
        }
    }

    /// Gives it back.
    pub(crate) fn free(self, book: &Book, door: &Door, dir: &Path, held: Held) -> Answer<()> {
        book.ask(door, "unlock", || match &held.file {
            None => fs::remove_dir(dir.join("lock")),
            Some(file) => self.operate(file, FlockOperation::Unlock),
        })
    }

    fn operate(self, file: &File, operation: FlockOperation) -> io::Result<()> {
        let result = if self == Lock::Flock { flock(file, operation) } else { fcntl_lock(file, operation) };
        // Somebody else's lock is what an existing directory is.
        result.map_err(|errno| if matches!(errno, Errno::AGAIN | Errno::ACCESS) { Errno::EXIST } else { errno }.into())
    }
}
