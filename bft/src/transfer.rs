//! State transfer (TOCS'02 §4.6.2): a replica that lacks what nobody retains fetches a checkpoint.
//!
//! The checkpoint is certified by `2f + 1` signatures. From its digest down, everything fetched is
//! checked against a digest that is trusted already: the head against the certificate, a fork of
//! the tree of digests against its parent, rows against the fork. So any peer may be asked for any
//! part, a liar costs one answer, and only what differs from the state here is fetched. When the
//! peers move on to a later checkpoint, the walk starts from its root, past all that is the same.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use base::merkle::{FAN_OUT, Prefix, Trie};
use base::{Digest, Effects, ReplicaId, Seq, StateMachine, Time};
use bytes::Bytes;

use crate::event::{Event, Ignored};
use crate::message::{Content, Head, Message, Part, PartName, Tree, Want};
use crate::params::ROWS_MAX;
use crate::record::{Record, Snapshot, StableProof};
use crate::replica::Replica;
use crate::restore::state_pieces;
use crate::table::Table;

/// Parts asked for at a time.
const ASKED_MAX: usize = 16;
/// Bytes of rows in one answer, unless it is one row.
const ROWS_BYTES_MAX: usize = 256 * 1024;

/// A state at a checkpoint, kept for peers that fetch it. Shares what it can with the state now.
#[derive(Clone, Debug)]
pub(crate) struct Image<S> {
    pub(crate) at: Time,
    pub(crate) state: S,
    pub(crate) table: Table,
}

/// A transfer under way.
#[derive(Clone, Debug)]
pub(crate) struct Transfer<S> {
    proof: StableProof,
    head: Option<Head>,
    state: S,
    table: Table,
    /// Parts known to differ, by their certified digests.
    to_do: Vec<(PartName, Digest)>,
    /// Parts asked for.
    asked: BTreeMap<PartName, Asked>,
    /// Whom to ask next.
    turn: u16,
    /// Peers that answered wrongly or late, or do not have this checkpoint.
    passed_over: BTreeSet<ReplicaId>,
    /// Everybody was passed over since the last part came: a later checkpoint is welcome.
    exhausted: bool,
    asked_head: Option<(ReplicaId, Time)>,
    fetched: u64,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    digest: Digest,
    donor: ReplicaId,
    at: Time,
}

impl<S: StateMachine> Replica<S> {
    /// The stable checkpoint of a peer, certified by `2f + 1`.
    pub(crate) fn on_stable(&mut self, now: Time, proof: StableProof, fx: &mut Effects<Self>) {
        let known = self.transfer.as_ref().map_or(self.last_executed, |transfer| transfer.proof.seq);
        if proof.seq <= known.max(self.last_executed) {
            return self.ignore(Ignored::Stale, fx);
        }
        // One that can still be had is better than a later one.
        if self.transfer.as_ref().is_some_and(|transfer| !transfer.exhausted) {
            return self.ignore(Ignored::Duplicate, fx);
        }
        let far = self.is_far(self.last_executed, proof.seq);
        let needed = far
            || self.transfer.is_some()
            || self.peers.behind.is_some()
            || self.log.low() > self.last_executed
            || self.is_mute();
        if !needed || self.state.tree().is_none() {
            return self.ignore(Ignored::Duplicate, fx);
        }
        // What was fetched for an earlier checkpoint is mostly part of this one.
        let (state, table, fetched) = match self.transfer.take() {
            Some(earlier) => (earlier.state, earlier.table, earlier.fetched),
            None => (self.state.clone(), self.table.clone(), 0),
        };
        self.transfer = Some(Transfer {
            proof,
            head: None,
            state,
            table,
            to_do: Vec::new(),
            asked: BTreeMap::new(),
            turn: self.params.me.0,
            passed_over: BTreeSet::new(),
            exhausted: false,
            asked_head: None,
            fetched,
        });
        self.pump(now, fx);
    }

    /// Asks for what can be asked for, and again for what did not come; installs what is whole.
    pub(crate) fn pump(&mut self, now: Time, fx: &mut Effects<Self>) {
        let Some(mut transfer) = self.transfer.take() else { return };
        if transfer.proof.seq <= self.last_executed {
            return;
        }
        let (n, me, patience) = (self.quorums.n() as u16, self.params.me, self.params.status_interval * 2);
        let seq = transfer.proof.seq;
        transfer.ask_again(now, patience);
        if transfer.passed_over.len() + 1 >= usize::from(n) {
            // Nobody has it, or all were slow: again at the next STATUS, or for a later checkpoint.
            transfer.exhausted = true;
            self.transfer = Some(transfer);
            return;
        }
        if transfer.head.is_none() {
            if transfer.asked_head.is_none() {
                let donor = transfer.next_donor(n, me);
                transfer.asked_head = Some((donor, now));
                fx.send_to(donor, Message::Ask(Want::Head { seq }));
            }
        } else {
            while transfer.asked.len() < ASKED_MAX
                && let Some((name, digest)) = transfer.next_part()
            {
                let donor = transfer.next_donor(n, me);
                transfer.asked.insert(name.clone(), Asked { digest, donor, at: now });
                fx.send_to(donor, Message::Ask(Want::Part { seq, name }));
            }
            if transfer.asked.is_empty() {
                return self.install(now, transfer, fx);
            }
        }
        self.transfer = Some(transfer);
    }

    /// At a STATUS: whoever was passed over may try again.
    pub(crate) fn try_donors_again(&mut self) {
        if let Some(transfer) = &mut self.transfer
            && transfer.passed_over.len() + 1 >= self.quorums.n()
        {
            transfer.passed_over.clear();
        }
    }

    /// The first part of a checkpoint.
    pub(crate) fn on_head(&mut self, now: Time, from: ReplicaId, head: Head, fx: &mut Effects<Self>) {
        let Some(transfer) = self
            .transfer
            .as_mut()
            .filter(|transfer| transfer.head.is_none() && transfer.asked_head.is_some_and(|(donor, _)| donor == from))
        else {
            return self.ignore(Ignored::Stale, fx);
        };
        transfer.asked_head = None;
        if head.seq != transfer.proof.seq || head.digest() != transfer.proof.digest {
            transfer.passed_over.insert(from);
            self.ignore(Ignored::WrongPart, fx);
        } else {
            for (tree, digest) in [(Tree::State, head.state), (Tree::Table, head.table)] {
                transfer.differs(PartName { tree, at: Prefix::default() }, digest);
            }
            transfer.head = Some(head);
        }
        self.pump(now, fx);
    }

    /// A part of a checkpoint.
    pub(crate) fn on_part(&mut self, now: Time, from: ReplicaId, part: Part, fx: &mut Effects<Self>) {
        let Some(transfer) = self.transfer.as_mut().filter(|transfer| transfer.proof.seq == part.seq) else {
            return self.ignore(Ignored::Stale, fx);
        };
        let Some(asked) = transfer.asked.get(&part.name).filter(|asked| asked.donor == from).copied() else {
            return self.ignore(Ignored::Stale, fx);
        };
        transfer.asked.remove(&part.name);
        if transfer.take_in(&part, asked.digest) {
            transfer.fetched += 1;
            transfer.exhausted = false;
        } else {
            transfer.passed_over.insert(from);
            transfer.to_do.push((part.name, asked.digest));
            self.ignore(Ignored::WrongPart, fx);
        }
        self.pump(now, fx);
    }

    /// A peer does not keep the checkpoint asked for.
    pub(crate) fn on_gone(&mut self, now: Time, from: ReplicaId, seq: Seq, fx: &mut Effects<Self>) {
        let Some(transfer) = self.transfer.as_mut().filter(|transfer| transfer.proof.seq == seq) else {
            return self.ignore(Ignored::Stale, fx);
        };
        transfer.passed_over.insert(from);
        transfer.take_back(|asked| asked.donor == from);
        if transfer.asked_head.is_some_and(|(donor, _)| donor == from) {
            transfer.asked_head = None;
        }
        self.pump(now, fx);
    }

    /// All of the checkpoint is here. Durable first: then this replica is one of those that hold it.
    fn install(&mut self, now: Time, mut transfer: Transfer<S>, fx: &mut Effects<Self>) {
        let head = transfer.head.expect("nothing is asked for before it");
        assert!(transfer.state.digest() == head.state, "the parts add up to the state");
        assert!(transfer.table.digest() == head.table, "the parts add up to the client table");
        let (seq, at) = (head.seq, head.at);
        let begin = Snapshot::Begin { view: self.view, seq, at };
        let end = Snapshot::End { digest: transfer.proof.digest };
        // First: to know of a checkpoint that is not here is no harm.
        if seq > self.log.low() {
            fx.persist.push(Record::Stable(transfer.proof.clone()));
            fx.events.push(Event::StableCheckpoint { seq, digest: transfer.proof.digest });
            self.admit_stable(transfer.proof.clone());
        }
        let pieces = core::iter::once(begin).chain(state_pieces(&transfer.state)).chain(transfer.table.pieces());
        fx.persist.extend(pieces.chain(core::iter::once(end)).map(Record::Snapshot));
        fx.events.push(Event::Transferred { seq, parts: transfer.fetched });
        self.admit_installed(seq, at, transfer.state, transfer.table);
        self.peers.behind = None;
        self.views.progress = now;
        self.forget_hopeless();
        self.try_rejoin(fx);
        if seq >= self.log.low() {
            self.take_checkpoint();
            self.say_checkpoint(now, fx);
        }
        self.execute_ready(now, fx);
    }

    /// Takes this state for its own. (When installing and when replaying the records of it.)
    pub(crate) fn admit_installed(&mut self, seq: Seq, at: Time, state: S, table: Table) {
        (self.last_executed, self.last_at) = (seq, at);
        (self.state, self.table) = (state, table);
        self.retained = crate::archive::Retained::default();
        self.vouchers.drop_through(seq);
    }

    /// A peer fetches a checkpoint. What was taken here is kept until it is no longer stable.
    pub(crate) fn answer_head(&mut self, to: ReplicaId, seq: Seq, fx: &mut Effects<Self>) {
        let Some(image) = self.checkpoints.images.get_mut(&seq) else {
            return fx.send_to(to, Message::Gone(seq));
        };
        let head = Head { seq, at: image.at, state: image.state.digest(), table: image.table.digest() };
        fx.send_to(to, Message::Head(head));
    }

    /// A peer fetches a part of a checkpoint.
    pub(crate) fn answer_part(&mut self, to: ReplicaId, seq: Seq, name: &PartName, fx: &mut Effects<Self>) {
        let content = self.checkpoints.images.get_mut(&seq).and_then(|image| image.content(name));
        fx.send_to(
            to,
            match content {
                Some(content) => Message::Part(Part { seq, name: name.clone(), content }),
                None => Message::Gone(seq),
            },
        );
    }
}

impl<S: StateMachine> Image<S> {
    fn content(&mut self, name: &PartName) -> Option<Content> {
        let Image { state, table, .. } = self;
        let tree = match name.tree {
            Tree::State => state.tree()?,
            Tree::Table => table.tree(),
        };
        let branch = tree.branch(&name.at)?;
        if let Some(children) = branch.children.filter(|_| branch.len > ROWS_MAX) {
            return Some(Content::Fork(Box::new(children)));
        }
        let names = tree.names(&name.at);
        let mut rows = Vec::with_capacity(names.len());
        let mut bytes = 0;
        for row in &names {
            let value = match name.tree {
                Tree::State => state.row(row)?,
                Tree::Table => table.row(row)?,
            };
            bytes += row.len() + value.len();
            if let Some(children) = branch.children.filter(|_| bytes > ROWS_BYTES_MAX) {
                return Some(Content::Fork(Box::new(children)));
            }
            rows.push((Bytes::copy_from_slice(row), Bytes::from(value)));
        }
        Some(Content::Rows(rows))
    }
}

impl<S: StateMachine> Transfer<S> {
    fn tree(&mut self, tree: Tree) -> &Trie {
        match tree {
            Tree::State => self.state.tree().expect("a transfer is of a state with a tree"),
            Tree::Table => self.table.tree(),
        }
    }

    /// Notes that a part has this digest, if it has another one here.
    fn differs(&mut self, name: PartName, digest: Digest) {
        let here = self.tree(name.tree).branch(&name.at).map(|branch| branch.digest);
        // A part that should be empty has no digest; one that is empty here has none either.
        let empty = digest == Trie::new().root() && here.is_none();
        if here != Some(digest) && !empty {
            self.to_do.push((name, digest));
        }
    }

    fn next_part(&mut self) -> Option<(PartName, Digest)> {
        while let Some((name, digest)) = self.to_do.pop() {
            if digest == Trie::new().root() {
                // Only a whole tree can be empty, and has this digest then.
                self.clear(&name);
                continue;
            }
            return Some((name, digest));
        }
        None
    }

    /// The next peer in turn that did not fail this transfer; there is one.
    fn next_donor(&mut self, n: u16, me: ReplicaId) -> ReplicaId {
        loop {
            self.turn = (self.turn + 1) % n;
            let donor = ReplicaId(self.turn);
            if donor != me && !self.passed_over.contains(&donor) {
                return donor;
            }
        }
    }

    fn take_back(&mut self, whose: impl Fn(&Asked) -> bool) {
        let back: Vec<_> = self.asked.iter().filter(|(_, asked)| whose(asked)).map(|(name, _)| name.clone()).collect();
        for name in back {
            let asked = self.asked.remove(&name).expect("just seen");
            self.to_do.push((name, asked.digest));
        }
    }

    /// What did not come in time is asked of another.
    fn ask_again(&mut self, now: Time, patience: Duration) {
        let late = |at: Time| now < at || now.since(at) >= patience;
        let silent: BTreeSet<_> = self.asked.values().filter(|asked| late(asked.at)).map(|asked| asked.donor).collect();
        self.take_back(|asked| silent.contains(&asked.donor));
        self.passed_over.extend(silent);
        if let Some((donor, _)) = self.asked_head.filter(|(_, at)| late(*at)) {
            self.passed_over.insert(donor);
            self.asked_head = None;
        }
    }

    fn clear(&mut self, name: &PartName) {
        let gone = self.tree(name.tree).names(&name.at);
        let rows: Vec<_> = gone.iter().map(|row| (row.to_vec(), None)).collect();
        self.patch(name.tree, &rows).expect("its own rows");
    }

    fn patch(&mut self, tree: Tree, rows: &[(Vec<u8>, Option<Vec<u8>>)]) -> Option<()> {
        match tree {
            Tree::State => self.state.patch(rows).ok(),
            Tree::Table => self.table.patch(rows),
        }
    }

    /// Checks an answer against the digest it must have, and takes it in.
    fn take_in(&mut self, part: &Part, digest: Digest) -> bool {
        let name = &part.name;
        match &part.content {
            Content::Fork(children) => {
                if Trie::digest_of_fork(children) != digest || name.at.is_full() {
                    return false;
                }
                for (index, child) in children.iter().enumerate().take(FAN_OUT) {
                    let child_name = PartName { tree: name.tree, at: name.at.child(index) };
                    match child {
                        Some(child) => self.differs(child_name, *child),
                        None => self.clear(&child_name),
                    }
                }
                true
            }
            Content::Rows(rows) => {
                let digest_of = |(row, value): &(Bytes, Bytes)| match name.tree {
                    Tree::State => Some(Digest::of(value)),
                    Tree::Table => Table::row_digest(row, value),
                };
                let digests: Option<Vec<Digest>> = rows.iter().map(digest_of).collect();
                let Some(digests) = digests else { return false };
                let pairs = rows.iter().map(|(row, _)| &**row).zip(digests);
                if Trie::digest_of(&name.at, pairs) != Some(digest) {
                    return false;
                }
                let kept: BTreeSet<&[u8]> = rows.iter().map(|(row, _)| &**row).collect();
                let here = self.tree(name.tree).names(&name.at);
                let gone = here.iter().filter(|row| !kept.contains(&***row)).map(|row| (row.to_vec(), None));
                let new = rows.iter().map(|(row, value)| (row.to_vec(), Some(value.to_vec())));
                let patches: Vec<_> = gone.chain(new).collect();
                // Certified, so they are rows of a state. If this version can't read them, none can help.
                self.patch(name.tree, &patches).is_some()
            }
        }
    }
}

impl Head {
    /// The checkpoint's digest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of_encoded(&(self.seq, self.at, (self.state, self.table)))
    }
}
