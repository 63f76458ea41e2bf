//! What the workers of `cargo xtask soak` do things to, as small state machines.

use super::check::Thing;

/// A file that is replaced as a whole, again and again; each content is another number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Register(Option<u64>);

#[derive(Clone, Debug)]
pub(crate) enum RegisterCall {
    Write(u64),
    Read(Option<u64>),
}

impl Thing for Register {
    type Call = RegisterCall;

    fn apply(&self, call: &RegisterCall) -> Option<Register> {
        match call {
            RegisterCall::Write(value) => Some(Register(Some(*value))),
            RegisterCall::Read(value) => (self.0 == *value).then(|| self.clone()),
        }
    }

    fn looks(call: &RegisterCall) -> bool {
        matches!(call, RegisterCall::Read(_))
    }
}

/// How many names a [`Folder`] has at most.
pub(crate) const NAMES: usize = 4;

/// Names in one directory or two that are made, moved and removed, each of which only one can do. A name
/// is a symbolic link that says who made it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Folder([Option<u64>; NAMES]);

/// Names are numbers below [`NAMES`].
#[derive(Clone, Debug)]
pub(crate) enum FolderCall {
    Make(usize, u64),
    Remove(usize),
    /// From one name to another that was not there.
    Move(usize, usize),
    Look(usize, u64),
    /// Something is there.
    Taken(usize),
    Missing(usize),
    /// Which names are there, of those that were looked for.
    List([Option<bool>; NAMES]),
}

impl Thing for Folder {
    type Call = FolderCall;

    fn apply(&self, call: &FolderCall) -> Option<Folder> {
        let mut after = self.clone();
        let fits = match call {
            FolderCall::Make(name, who) => after.0[*name].replace(*who).is_none(),
            FolderCall::Remove(name) => after.0[*name].take().is_some(),
            FolderCall::Move(from, to) => {
                after.0[*to] = after.0[*from].take();
                self.0[*from].is_some() && self.0[*to].is_none()
            }
            FolderCall::Look(name, who) => self.0[*name] == Some(*who),
            FolderCall::Taken(name) => self.0[*name].is_some(),
            FolderCall::Missing(name) => self.0[*name].is_none(),
            FolderCall::List(names) => {
                self.0.iter().zip(names).all(|(one, there)| there.is_none_or(|there| one.is_some() == there))
            }
        };
        fits.then_some(after)
    }

    fn looks(call: &FolderCall) -> bool {
        !matches!(call, FolderCall::Make(..) | FolderCall::Remove(_) | FolderCall::Move(..))
    }
}

/// A counter, and the lock that whoever counts must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Counter {
    holder: Option<u64>,
    count: u64,
}

#[derive(Clone, Debug)]
pub(crate) enum CounterCall {
    /// By whom.
    Lock(u64),
    Unlock(u64),
    /// Somebody holds it.
    Busy,
    /// By the holder, from this to one more.
    Add(u64, u64),
    /// The holder found this.
    Found(u64, u64),
}

impl Thing for Counter {
    type Call = CounterCall;

    fn apply(&self, call: &CounterCall) -> Option<Counter> {
        let mine = |who: &u64| self.holder == Some(*who);
        match call {
            CounterCall::Lock(who) => self.holder.is_none().then_some(Counter { holder: Some(*who), ..*self }),
            CounterCall::Unlock(who) => mine(who).then_some(Counter { holder: None, ..*self }),
            CounterCall::Busy => self.holder.is_some().then(|| self.clone()),
            CounterCall::Add(who, from) => {
                (mine(who) && self.count == *from).then(|| Counter { count: from + 1, ..self.clone() })
            }
            CounterCall::Found(who, count) => (mine(who) && self.count == *count).then(|| self.clone()),
        }
    }

    fn looks(call: &CounterCall) -> bool {
        matches!(call, CounterCall::Busy | CounterCall::Found(..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_made_by_one_and_moves_where_nothing_is() {
        let one = Folder::default().apply(&FolderCall::Make(0, 7)).expect("free");
        assert_eq!(one.apply(&FolderCall::Make(0, 8)), None);
        let two = one.apply(&FolderCall::Make(1, 8)).expect("free");
        assert_eq!(two.apply(&FolderCall::Move(0, 1)), None);
        let moved = two.apply(&FolderCall::Move(0, 2)).expect("free");
        assert!(moved.apply(&FolderCall::List([Some(false), Some(true), Some(true), None])).is_some());
        assert!(moved.apply(&FolderCall::Look(2, 7)).is_some() && moved.apply(&FolderCall::Missing(0)).is_some());
    }

    #[test]
    fn only_the_holder_counts() {
        let held = Counter::default().apply(&CounterCall::Lock(1)).expect("free");
        assert_eq!(held.apply(&CounterCall::Lock(2)), None);
        assert_eq!(held.apply(&CounterCall::Add(2, 0)), None);
        let one = held.apply(&CounterCall::Add(1, 0)).expect("held");
        assert_eq!(one.apply(&CounterCall::Add(1, 0)), None);
        let free = one.apply(&CounterCall::Unlock(1)).expect("held");
        assert!(free.apply(&CounterCall::Lock(2)).is_some());
    }
}
