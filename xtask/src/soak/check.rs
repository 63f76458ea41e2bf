//! Whether a history could have happened on one machine that has one filesystem.
//!
//! A thing (a file, a directory, a lock) is a small state machine; a history says what was asked of it
//! from which mount, when, and what came back. The history is right if the operations can be put in one
//! order in which each takes effect between its beginning and its end, and answers as it did. An operation
//! that ended in an error may take effect at any time after it began, or never.
//!
//! A mount may lose the end of what it did and had not synced when it is killed, or cut off for longer
//! than its lease; never something in the middle, and nothing that a sync covers. So in such an episode a
//! world may have a *branch*: what a mount went on with and nobody else will see. A sync that succeeds
//! says that its mount has no branch; the end of the episode ends the branch.
//!
//! The search goes through the history once and keeps every world that is possible so far (Wing and Gong,
//! in Lowe's order: an operation is put in place when something that ended needs it). It is exact.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::hash::Hash;

/// Time since the run began, ns.
pub(crate) type Moment = u64;

/// How many mounts there are.
pub(crate) const MOUNTS: usize = 2;

/// More worlds than this are given up.
const WORLDS_MAX: usize = 200_000;

/// A thing that operations are done to.
pub(crate) trait Thing: Clone + Debug + Default + Eq + Hash {
    /// What was asked, and what the answer was.
    type Call: Clone + Debug;

    /// What is there after `call`, if it could have been answered so.
    fn apply(&self, call: &Self::Call) -> Option<Self>;

    /// Whether such a call changes nothing.
    fn looks(call: &Self::Call) -> bool;
}

/// What was done from a mount.
#[derive(Clone, Debug)]
pub(crate) enum Deed<C> {
    Call(C),
    /// A sync succeeded.
    Sync,
    /// The end of this episode: what was not sent is gone.
    End(usize),
}

/// A deed and its time.
#[derive(Clone, Debug)]
pub(crate) struct Operation<C> {
    pub(crate) mount: usize,
    pub(crate) began: Moment,
    /// `None`: it ended in an error, and may yet take effect.
    pub(crate) ended: Option<Moment>,
    /// The episode in which it may get lost.
    pub(crate) episode: Option<usize>,
    pub(crate) deed: Deed<C>,
}

/// One way in which all could be so far.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World<T> {
    main: T,
    branches: [Option<T>; MOUNTS],
    /// Episodes below this are over.
    over: [usize; MOUNTS],
    /// Which of the pending operations have taken effect, in order of their numbers.
    done: Vec<usize>,
}

impl<T: Thing> World<T> {
    /// The worlds after this operation takes effect here.
    fn after(&self, operation: &Operation<T::Call>) -> Vec<World<T>> {
        let mount = operation.mount;
        let mut worlds = Vec::new();
        match &operation.deed {
            Deed::Sync => worlds.extend(self.branches[mount].is_none().then(|| self.clone())),
            Deed::End(episode) => {
                let mut world = self.clone();
                world.branches[mount] = None;
                world.over[mount] = episode + 1;
                worlds.push(world);
            }
            Deed::Call(call) => {
                let losable = operation.episode.is_some_and(|episode| episode >= self.over[mount]);
                if self.branches[mount].is_none() {
                    worlds.extend(self.main.apply(call).map(|main| World { main, ..self.clone() }));
                }
                let seen = self.branches[mount].as_ref();
                let leaves = losable && (seen.is_some() || !T::looks(call));
                if let Some(branch) = leaves.then(|| seen.unwrap_or(&self.main).apply(call)).flatten() {
                    let mut world = self.clone();
                    world.branches[mount] = Some(branch);
                    worlds.push(world);
                }
            }
        }
        worlds
    }

    fn has_done(&self, number: usize) -> bool {
        self.done.binary_search(&number).is_ok()
    }

    fn add_done(&mut self, number: usize) {
        if let Err(at) = self.done.binary_search(&number) {
            self.done.insert(at, number);
        }
    }

    /// Whatever only looks and can do so now, has: waiting would not help it.
    fn settle(&mut self, pending: &BTreeMap<usize, &Operation<T::Call>>) {
        for (number, operation) in pending {
            if is_look::<T>(operation) && !self.has_done(*number) && !self.after(operation).is_empty() {
                self.add_done(*number);
            }
        }
    }
}

fn is_look<T: Thing>(operation: &Operation<T::Call>) -> bool {
    match &operation.deed {
        Deed::Call(call) => T::looks(call),
        Deed::Sync => true,
        Deed::End(_) => false,
    }
}

/// Checks a history; what went on around the operation that can't be explained, if there is one.
///
/// # Errors
/// That text.
pub(crate) fn check<T: Thing>(history: &[Operation<T::Call>]) -> Result<(), String> {
    let first = World { main: T::default(), branches: Default::default(), over: [0; MOUNTS], done: Vec::new() };
    let mut worlds = HashSet::from([first]);
    let mut pending = BTreeMap::new();
    for (_, ends, number) in events(history) {
        let operation = &history[number];
        if !ends {
            pending.insert(number, operation);
            if is_look::<T>(operation) {
                let settled = worlds.drain().map(|mut world| {
                    world.settle(&BTreeMap::from([(number, operation)]));
                    world
                });
                worlds = settled.collect();
            }
            continue;
        }
        let next = explain(&worlds, number, &pending).ok_or_else(|| format!("over {WORLDS_MAX} possible worlds"))?;
        if next.is_empty() {
            return Err(complain(history, number, &worlds));
        }
        pending.remove(&number);
        worlds = next;
    }
    Ok(())
}

/// Beginnings and ends in order of time; beginnings first.
fn events<C>(history: &[Operation<C>]) -> Vec<(Moment, bool, usize)> {
    let begins = history.iter().enumerate().map(|(number, operation)| (operation.began, false, number));
    let ends = history.iter().enumerate().filter_map(|(number, operation)| Some((operation.ended?, true, number)));
    let mut events: Vec<_> = begins.chain(ends).collect();
    events.sort_unstable();
    events
}

/// The worlds in which the operation `number`, which has ended, has taken effect. `None`: too many.
fn explain<T: Thing>(
    worlds: &HashSet<World<T>>,
    number: usize,
    pending: &BTreeMap<usize, &Operation<T::Call>>,
) -> Option<HashSet<World<T>>> {
    let mut seen = worlds.clone();
    let mut stack: Vec<_> = worlds.iter().cloned().collect();
    let mut explained = HashSet::new();
    while let Some(mut world) = stack.pop() {
        if let Ok(at) = world.done.binary_search(&number) {
            world.done.remove(at);
            explained.insert(world);
            continue;
        }
        for (other, operation) in pending {
            if world.has_done(*other) || is_look::<T>(operation) {
                continue;
            }
            for mut after in world.after(operation) {
                after.add_done(*other);
                after.settle(pending);
                if seen.insert(after.clone()) {
                    stack.push(after);
                }
            }
        }
        if seen.len() > WORLDS_MAX {
            return None;
        }
    }
    Some(explained)
}

/// Says what can't be explained, and what was going on.
fn complain<T: Thing>(history: &[Operation<T::Call>], number: usize, worlds: &HashSet<World<T>>) -> String {
    use std::fmt::Write as _;
    let wrong = &history[number];
    let mut text = format!("no order explains operation {number}: {}\n  possible before it:\n", line(wrong));
    for world in worlds.iter().take(5) {
        let _ = writeln!(text, "    {:?}, branches {:?}, done {:?}", world.main, world.branches, world.done);
    }
    let around: Vec<_> = history.iter().enumerate().filter(|(_, other)| Some(other.began) <= wrong.ended).collect();
    for (index, operation) in around.iter().skip(around.len().saturating_sub(40)) {
        let _ = writeln!(text, "  {index:5} {}", line(operation));
    }
    text
}

/// An operation as a line of text.
pub(crate) fn line<C: Debug>(operation: &Operation<C>) -> String {
    let seconds = |moment: Moment| format!("{:.6}", moment as f64 / 1e9);
    let Operation { mount, began, ended, episode, deed } = operation;
    let ended = ended.map_or("unknown".to_owned(), seconds);
    let losable = episode.map_or(String::new(), |episode| format!(" (may be lost in episode {episode})"));
    format!("mount {mount} {} - {ended} {deed:?}{losable}", seconds(*began))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
    struct Cell(u64);

    #[derive(Clone, Debug)]
    enum Call {
        Write(u64),
        Read(u64),
    }
    use Call::{Read, Write};

    impl Thing for Cell {
        type Call = Call;

        fn apply(&self, call: &Call) -> Option<Cell> {
            match call {
                Write(value) => Some(Cell(*value)),
                Read(value) => (self.0 == *value).then(|| self.clone()),
            }
        }

        fn looks(call: &Call) -> bool {
            matches!(call, Read(_))
        }
    }

    fn at(mount: usize, began: Moment, ended: Moment, call: Call) -> Operation<Call> {
        Operation { mount, began, ended: Some(ended), episode: None, deed: Deed::Call(call) }
    }

    fn lost(mut operation: Operation<Call>) -> Operation<Call> {
        operation.episode = Some(0);
        operation
    }

    fn deed(mount: usize, began: Moment, ended: Moment, deed: Deed<Call>) -> Operation<Call> {
        Operation { mount, began, ended: Some(ended), episode: None, deed }
    }

    fn is_right(history: &[Operation<Call>]) -> bool {
        check::<Cell>(history).is_ok()
    }

    #[test]
    fn who_reads_sees_what_was_written_before() {
        assert!(is_right(&[at(0, 1, 2, Write(1)), at(1, 3, 4, Read(1))]));
        assert!(!is_right(&[at(0, 1, 2, Write(1)), at(1, 3, 4, Read(0))]));
        assert!(is_right(&[at(0, 1, 5, Write(1)), at(1, 3, 4, Read(0))]), "they overlap");
        assert!(!is_right(&[at(0, 1, 9, Write(1)), at(1, 3, 4, Read(1)), at(0, 5, 6, Read(0))]), "never back");
        let two = [at(0, 1, 9, Write(1)), at(1, 2, 9, Write(2)), at(0, 3, 4, Read(2)), at(0, 5, 6, Read(1))];
        assert!(is_right(&two));
        assert!(!is_right(&[&two[..], &[at(1, 7, 8, Read(2))]].concat()));
    }

    #[test]
    fn what_failed_may_happen_later_or_never_but_once() {
        let mut failed = at(0, 1, 2, Write(1));
        failed.ended = None;
        let with = |reads: &[u64]| {
            let reads = reads.iter().zip(0..).map(|(value, index)| at(1, 10 + 2 * index, 11 + 2 * index, Read(*value)));
            is_right(&[failed.clone()].into_iter().chain(reads).collect::<Vec<_>>())
        };
        assert!(with(&[0, 0]) && with(&[0, 1]) && with(&[1, 1]));
        assert!(!with(&[1, 0]));
    }

    #[test]
    fn a_mount_may_lose_the_end_of_what_it_did_and_nothing_else() {
        let end = deed(0, 20, 21, Deed::End(0));
        let own = [lost(at(0, 1, 2, Write(1))), lost(at(0, 3, 4, Read(1)))];
        let with = |others: &[Operation<Call>]| is_right(&[&own[..], std::slice::from_ref(&end), others].concat());
        assert!(with(&[at(1, 30, 31, Read(0))]), "it was lost");
        assert!(with(&[at(1, 30, 31, Read(1))]), "it was not");
        assert!(with(&[at(1, 5, 6, Write(2)), at(1, 7, 8, Read(2)), lost(at(0, 9, 10, Read(1)))]), "it lives on");
        assert!(!with(&[deed(0, 5, 6, Deed::Sync), at(1, 30, 31, Read(0))]), "it was synced");
        assert!(!with(&[at(1, 5, 6, Read(1)), at(1, 30, 31, Read(0))]), "another has seen it");
        let middle = [lost(at(0, 11, 12, Write(3))), lost(at(0, 13, 14, Read(1)))];
        assert!(!is_right(&[&own[..], &middle, std::slice::from_ref(&end)].concat()));
        assert!(!is_right(&[end, lost(at(0, 30, 31, Write(1))), at(1, 32, 33, Read(0))]), "the episode was over");
    }
}
