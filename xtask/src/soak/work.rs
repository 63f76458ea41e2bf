//! What the workers do on the mounts, all of which goes into histories.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ::tests::random::{Random, noise};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::check::Thing;
use super::history::{Book, Door, Episode, History, No};
use super::lock::{Lock, Taken};
use super::things::{Counter, CounterCall, Folder, FolderCall, NAMES, Register, RegisterCall};

/// How long somebody waits for a lock before doing something else.
const PATIENCE: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(3);

/// A thing, and where it is.
struct Placed<T: Thing> {
    history: History<T>,
    /// The folder that has it, from the mountpoint.
    dir: PathBuf,
    /// Where the other half of it is, if it is in two folders.
    half: Option<PathBuf>,
    /// The mount that it mostly belongs to.
    home: Option<usize>,
    /// Nobody knows who holds its lock.
    given_up: AtomicBool,
}

impl<T: Thing> Placed<T> {
    fn new(number: usize, name: &str, home: Option<usize>) -> Placed<T> {
        let dir = home.map_or(format!("round-{number}"), |home| format!("round-{number}-of-{home}"));
        let history = History::new(format!("{dir}/{name}"));
        Placed { history, dir: Path::new(&dir).join(name), half: None, home, given_up: AtomicBool::new(false) }
    }
}

impl Placed<Folder> {
    /// Whether a name is in the first or in the second half, if there are two.
    fn is_in(&self, name: usize, half: usize) -> bool {
        self.half.is_none() || name % 2 == half
    }

    fn path(&self, door: &Door, name: usize) -> PathBuf {
        let dir = if self.is_in(name, 0) { &self.dir } else { self.half.as_ref().unwrap_or(&self.dir) };
        door.path.join(dir).join(format!("name-{name}"))
    }
}

/// The last one is in two folders, one of each mount's.
fn folder(number: usize, index: usize, home: Option<usize>) -> Placed<Folder> {
    let mut folder = Placed::new(number, &format!("folder-{index}"), home);
    if index == 3 {
        folder.dir = PathBuf::from(format!("round-{number}-half-0"));
        folder.half = Some(PathBuf::from(format!("round-{number}-half-1")));
    }
    folder
}

/// Some time of work on new things, in the middle of which something goes wrong.
pub(crate) struct Round {
    pub(crate) book: Book,
    registers: Vec<Placed<Register>>,
    folders: Vec<Placed<Folder>>,
    counters: Vec<Placed<Counter>>,
    lock: Lock,
    /// Locks are made durable before anybody relies on them: their mount may be cut off for so long that
    /// it would lose them, and not know.
    pub(crate) careful: bool,
    next: AtomicU64,
    visits: AtomicBool,
    over: AtomicBool,
}

impl Round {
    pub(crate) fn new(number: usize, start: Instant, lock: Lock, careful: bool) -> Round {
        // Everybody's, the first mount's, the second's.
        let home = |index: usize| [None, Some(0), Some(1)][index % 3];
        Round {
            book: Book::new(start),
            registers: (0..6).map(|index| Placed::new(number, &format!("register-{index}"), home(index))).collect(),
            folders: (0..4).map(|index| folder(number, index, home(index))).collect(),
            counters: (0..3).map(|index| Placed::new(number, &format!("counter-{index}"), home(index))).collect(),
            lock,
            careful,
            next: AtomicU64::new(1),
            visits: AtomicBool::new(false),
            over: AtomicBool::new(false),
        }
    }

    /// Makes the folders that everything is in, each from the mount whose it is.
    pub(crate) fn lay_out(&self, doors: &[Door], first: usize) -> io::Result<()> {
        let registers = self.registers.iter().map(|register| (register.home, &register.dir));
        let folders = self.folders.iter().map(|folder| (folder.home, &folder.dir));
        let counters = self.counters.iter().map(|counter| (counter.home, &counter.dir));
        for (home, dir) in registers.chain(folders).chain(counters) {
            let dir = doors[home.unwrap_or(first)].path.join(dir);
            fs::create_dir_all(dir.join("spare"))?;
        }
        for half in self.folders.iter().filter_map(|folder| folder.half.as_ref()) {
            fs::create_dir(doors[1 - first].path.join(half))?;
        }
        for counter in &self.counters {
            let dir = doors[counter.home.unwrap_or(first)].path.join(&counter.dir);
            File::create(dir.join("log"))?;
            fs::write(dir.join("count"), "0")?;
        }
        doors.iter().try_for_each(|door| File::open(&door.path)?.sync_all())
    }

    /// From now on mounts also go to what is another's.
    pub(crate) fn visit(&self) {
        self.visits.store(true, Ordering::SeqCst);
    }

    pub(crate) fn finish(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::SeqCst)
    }

    /// One worker, until the round is over.
    pub(crate) fn work(&self, door: &Door, worker: u64, seed: u64) {
        let mut random = Random::new(seed);
        while !self.is_over() {
            if !door.is_open() {
                std::thread::sleep(PAUSE);
                continue;
            }
            let kind = random.below(10);
            let done = match kind {
                0..=2 => {
                    self.pick(door, &self.registers, &mut random).map(|at| self.write(door, at, worker, &mut random))
                }
                3 | 4 => self.pick(door, &self.registers, &mut random).map(|at| self.read(door, at)),
                5..=8 => self.pick(door, &self.folders, &mut random).map(|at| self.change_names(door, at, &mut random)),
                _ => self.pick(door, &self.counters, &mut random).map(|at| self.count(door, at, &mut random)),
            };
            if done == Some(Err(No::Unknown)) {
                std::thread::sleep(Duration::from_millis(300));
            }
        }
    }

    /// One of these things: more often its own, which is faster, than everybody's; seldom what is another
    /// mount's, and never before visits begin.
    fn pick<'a, T: Thing>(&self, door: &Door, all: &'a [Placed<T>], random: &mut Random) -> Option<&'a Placed<T>> {
        let one = &all[random.below(all.len() as u64) as usize];
        let chosen = match one.home {
            None => random.below(3) == 0,
            Some(home) if home == door.mount => true,
            Some(_) => self.visits.load(Ordering::SeqCst) && random.below(50) == 0,
        };
        chosen.then_some(one)
    }

    fn sync(&self, door: &Door, path: &Path) -> Result<(), No> {
        self.book.sync(door, "fsync of a directory", || File::open(path)?.sync_all())
    }

    fn write(&self, door: &Door, at: &Placed<Register>, worker: u64, random: &mut Random) -> Result<(), No> {
        let (dir, value) = (door.path.join(&at.dir), self.number());
        let spare = dir.join(format!("spare/{}-{worker}", door.mount));
        let written = self.book.ask(door, "a new file", || {
            let mut file = File::create(&spare)?;
            file.write_all(&content(value))?;
            Ok(file)
        });
        let file = written.result?;
        if random.below(2) == 0 {
            self.book.sync(door, "fsync of a file", || file.sync_all())?;
        }
        drop(file);
        let renamed = self.book.ask(door, "rename", || fs::rename(&spare, dir.join("file")));
        match renamed.result {
            // The new file was lost before it got its name.
            Err(No::Missing) => return Err(No::Missing),
            _ => at.history.add(door, &renamed, RegisterCall::Write(value)),
        }
        renamed.result?;
        if random.below(3) == 0 { self.sync(door, &dir) } else { Ok(()) }
    }

    fn read(&self, door: &Door, at: &Placed<Register>) -> Result<(), No> {
        let answer = self.book.ask(door, "read", || fs::read(door.path.join(&at.dir).join("file")));
        let seen = match &answer.result {
            Err(No::Missing) => None,
            Err(no) => return Err(*no),
            Ok(bytes) => {
                let value = value_of(bytes);
                if value.is_none() {
                    let (name, len) = (&at.history.name, bytes.len());
                    self.book.broken(format!("{name}: mount {} read {len} bytes that nobody wrote", door.mount));
                    return Ok(());
                }
                value
            }
        };
        at.history.add(door, &answer, RegisterCall::Read(seen));
        Ok(())
    }

    fn change_names(&self, door: &Door, at: &Placed<Folder>, random: &mut Random) -> Result<(), No> {
        let who = self.number();
        let path = |name: usize| at.path(door, name);
        let name = random.below(NAMES as u64) as usize;
        let to = (name + 1 + random.below(NAMES as u64 - 1) as usize) % NAMES;
        let (history, book) = (&at.history, &self.book);
        let result = match random.below(8) {
            0..=2 => {
                let answer = book.ask(door, "symlink", || symlink(who.to_string(), path(name)));
                match answer.result {
                    Err(No::Exists) => history.add(door, &answer, FolderCall::Taken(name)),
                    _ => history.add(door, &answer, FolderCall::Make(name, who)),
                }
                answer.result
            }
            3 => {
                let answer = book.ask(door, "unlink", || fs::remove_file(path(name)));
                match answer.result {
                    Err(No::Missing) => history.add(door, &answer, FolderCall::Missing(name)),
                    _ => history.add(door, &answer, FolderCall::Remove(name)),
                }
                answer.result
            }
            4 | 5 => {
                let rename = || renameat_with(CWD, path(name), CWD, path(to), RenameFlags::NOREPLACE);
                let answer = book.ask(door, "rename to a new name", || rename().map_err(io::Error::from));
                match answer.result {
                    Err(No::Missing) => history.add(door, &answer, FolderCall::Missing(name)),
                    Err(No::Exists) => history.add(door, &answer, FolderCall::Taken(to)),
                    _ => history.add(door, &answer, FolderCall::Move(name, to)),
                }
                answer.result
            }
            6 => self.look(door, at, name),
            _ => self.list(door, at, name % 2),
        };
        let dir = door.path.join(&at.dir);
        if result.is_ok() && random.below(6) == 0 { self.sync(door, &dir) } else { result }
    }

    fn look(&self, door: &Door, at: &Placed<Folder>, name: usize) -> Result<(), No> {
        let answer = self.book.ask(door, "readlink", || fs::read_link(at.path(door, name)));
        match &answer.result {
            Err(No::Missing) => at.history.add(door, &answer, FolderCall::Missing(name)),
            Err(no) => return Err(*no),
            Ok(who) => {
                let who = who.to_string_lossy().parse().expect("a number");
                at.history.add(door, &answer, FolderCall::Look(name, who));
            }
        }
        Ok(())
    }

    fn list(&self, door: &Door, at: &Placed<Folder>, half: usize) -> Result<(), No> {
        let dir = door.path.join(if half == 1 { at.half.as_ref().unwrap_or(&at.dir) } else { &at.dir });
        let answer = self.book.ask(door, "readdir", || {
            let mut there: [_; NAMES] = std::array::from_fn(|name| at.is_in(name, half).then_some(false));
            for entry in fs::read_dir(&dir)? {
                let name = entry?.file_name();
                let number = name.to_string_lossy().strip_prefix("name-").and_then(|number| number.parse().ok());
                number.into_iter().for_each(|number: usize| there[number] = Some(true));
            }
            Ok(there)
        });
        let there = *answer.result.as_ref().map_err(|no| *no)?;
        at.history.add(door, &answer, FolderCall::List(there));
        Ok(())
    }

    /// Counts one up under the lock. If it is not known how that ended, the counter is left alone.
    fn count(&self, door: &Door, at: &Placed<Counter>, random: &mut Random) -> Result<(), No> {
        let (dir, who) = (door.path.join(&at.dir), self.number());
        let until = Instant::now() + PATIENCE;
        let (held, taken) = loop {
            if self.is_over() || at.given_up.load(Ordering::SeqCst) || Instant::now() > until {
                return Ok(());
            }
            match self.lock.take(&self.book, door, &dir) {
                Taken::Mine(held, answer) => {
                    at.history.add(door, &answer, CounterCall::Lock(who));
                    break (held, answer);
                }
                Taken::Later => {}
                Taken::Others(answer) if self.lock == Lock::Mkdir => {
                    at.history.add(door, &answer, CounterCall::Busy);
                }
                Taken::Others(answer) => at.history.add(door, &answer, CounterCall::Busy),
                Taken::Unknown(answer) => {
                    at.given_up.store(true, Ordering::SeqCst);
                    at.history.add(door, &answer, CounterCall::Lock(who));
                    return Err(No::Unknown);
                }
            }
            std::thread::sleep(PAUSE);
        };
        let careful = self.careful || random.below(2) == 0;
        let locked = if careful { self.sync(door, &dir) } else { Ok(()) };
        let counted = locked.and_then(|()| self.add_one(door, at, who, held.file.as_ref(), random));
        if let Ok(open) = counted {
            let freed = self.lock.free(&self.book, door, &dir, held);
            at.history.add(door, &freed, CounterCall::Unlock(who));
            if freed.result.is_ok() {
                // What was written goes before the unlock.
                open.into_iter().for_each(|number| at.history.close(number, &freed));
                return Ok(());
            }
        }
        if self.lock != Lock::Mkdir {
            // Such a lock goes with whoever held it.
            at.history.add_possible(door, &taken, CounterCall::Unlock(who));
        }
        at.given_up.store(true, Ordering::SeqCst);
        Err(No::Unknown)
    }

    /// What is `locked` is the log, and stays open: then the number of what was added is told.
    fn add_one(
        &self,
        door: &Door,
        at: &Placed<Counter>,
        who: u64,
        locked: Option<&File>,
        random: &mut Random,
    ) -> Result<Option<usize>, No> {
        let (dir, history) = (door.path.join(&at.dir), &at.history);
        let read = self.book.ask(door, "read of a log", || match locked {
            None => fs::read_to_string(dir.join("log")),
            Some(mut log) => {
                let mut text = String::new();
                log.rewind()?;
                log.read_to_string(&mut text)?;
                Ok(text)
            }
        });
        let log = read.result.as_ref().map_err(|no| *no)?;
        let count = log.lines().count() as u64;
        let right = log.lines().zip(1_u64..).all(|(line, number)| line == line_of(number).trim_end());
        let text = match locked {
            None => self.book.ask(door, "read of a count", || fs::read_to_string(dir.join("count"))).result?,
            Some(_) => count.to_string(),
        };
        if !right || (!log.is_empty() && !log.ends_with('\n')) || text != count.to_string() {
            let end = log.lines().last().unwrap_or_default();
            let (name, mount) = (&history.name, door.mount);
            let wrong =
                format!("{name}: mount {mount}: {count} lines, the last {end:?}, in order: {right}; count {text}");
            self.book.broken(wrong);
        }
        history.add(door, &read, CounterCall::Found(who, count));
        let added = self.book.ask(door, "append to a log", || {
            let line = line_of(count + 1);
            match locked {
                None => OpenOptions::new().append(true).open(dir.join("log"))?.write_all(line.as_bytes()),
                Some(mut log) => log.write_all(line.as_bytes()),
            }
        });
        let add = CounterCall::Add(who, count);
        if let Some(log) = locked {
            let number = history.add_open(door, &added, add);
            added.result?;
            if random.below(3) == 0 {
                self.book.sync(door, "fsync of a log", || log.sync_all())?;
                history.close(number, &added);
            }
            return Ok(Some(number));
        }
        history.add(door, &added, add);
        added.result?;
        let spare = dir.join("spare/count");
        let write = |path: &Path| fs::write(path, (count + 1).to_string());
        let replaced = if random.below(2) == 0 {
            self.book.ask(door, "count in place", || write(&dir.join("count")))
        } else {
            self.book.ask(door, "count replaced", || write(&spare).and_then(|()| fs::rename(&spare, dir.join("count"))))
        };
        replaced.result?;
        if random.below(3) == 0 {
            self.sync(door, &dir)?;
        }
        Ok(None)
    }

    /// Looks at everything from a mount, when nobody works.
    pub(crate) fn look_at_all(&self, door: &Door) {
        for register in &self.registers {
            let _ = self.read(door, register);
        }
        for folder in &self.folders {
            for name in 0..NAMES {
                let _ = self.look(door, folder, name);
            }
            let _ = (self.list(door, folder, 0), self.list(door, folder, 1));
        }
    }

    pub(crate) fn operations(&self) -> usize {
        let registers = self.registers.iter().map(|register| register.history.len());
        let folders = self.folders.iter().map(|folder| folder.history.len());
        registers.chain(folders).chain(self.counters.iter().map(|counter| counter.history.len())).sum()
    }

    /// Everything that is wrong with what was seen.
    pub(crate) fn check(&self, episodes: &[Episode]) -> Vec<String> {
        let registers = self.registers.iter().map(|register| register.history.check(&self.book, episodes));
        let folders = self.folders.iter().map(|folder| folder.history.check(&self.book, episodes));
        let counters = self.counters.iter().map(|counter| counter.history.check(&self.book, episodes));
        let wrong = registers.chain(folders).chain(counters).filter_map(Result::err);
        self.book.all_broken().into_iter().chain(wrong).collect()
    }
}

/// What is in a register's file: its number, and so many bytes that follow from it.
fn content(value: u64) -> Vec<u8> {
    let mut random = Random::new(value);
    let largest = [100, 5_000, 200_000][random.below(3) as usize];
    let mut bytes = format!("{value}\n").into_bytes();
    bytes.extend(noise(value, 0, random.below(largest) as usize));
    bytes
}

/// The number in a register's file, if its content is whole.
fn value_of(bytes: &[u8]) -> Option<u64> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let value = std::str::from_utf8(&bytes[..end]).ok()?.parse().ok()?;
    (bytes == content(value)).then_some(value)
}

/// A line of a log; each has another length.
fn line_of(number: u64) -> String {
    format!("{number} {}|\n", ".".repeat(number as usize % 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_content_is_seen() {
        for value in 1..30 {
            let mut bytes = content(value);
            assert_eq!(value_of(&bytes), Some(value));
            bytes.push(0);
            assert_eq!(value_of(&bytes), None);
        }
        assert_eq!(value_of(b""), None);
    }
}
