//! What a traitor can say: everything that a replica with its key and all that the others said could
//! make of these, as far as it can matter. It says any of it to anybody, at any time.

use std::collections::{BTreeMap, BTreeSet};

use base::{Digest, Quorums, ReplicaId, Seq, Signed, View};
use bft::{
    Body, Checkpoint, Commit, Committed, Message, NewView, PrePrepare, Prepare, Prepared, Proposal, StableProof,
    ViewChange,
};

use crate::keys::{self, N};
use crate::locals::Locals;
use crate::messages::{Input, Messages};
use crate::setup::{NOW, Setup};

/// A proposal, by view, place and digest.
type Name = (View, Seq, Digest);

/// What honest replicas said that lies can be made of, and what the traitors add to it.
struct Material<'a> {
    setup: &'a Setup,
    quorums: Quorums,
    headers: BTreeMap<Name, Signed<PrePrepare>>,
    prepares: BTreeMap<Name, BTreeMap<ReplicaId, Signed<Prepare>>>,
    checkpoints: BTreeMap<(Seq, Digest), BTreeMap<ReplicaId, Signed<Checkpoint>>>,
    changes: BTreeMap<View, BTreeMap<ReplicaId, Vec<Signed<ViewChange>>>>,
    tricks: &'a mut Tricks,
}

/// What is the same whatever was said so far. Two proofs of one thing are as good as one, so that only
/// the first that was found is shown.
#[derive(Default)]
pub(crate) struct Tricks {
    certificates: BTreeMap<Name, Prepared>,
    /// Whether a correct replica enters this new view.
    enters: BTreeMap<Input, bool>,
}

/// All that the traitors can say, once this was said.
pub(crate) fn lies(
    setup: &Setup,
    said: &[Input],
    tricks: &mut Tricks,
    locals: &Locals,
    messages: &mut Messages,
) -> Vec<Input> {
    let mut material = Material::of(setup, said, tricks, messages);
    let mut lies = BTreeSet::new();
    for traitor in setup.traitors.iter().copied().map(ReplicaId) {
        material.vote(traitor);
        material.leave(traitor);
    }
    for traitor in setup.traitors.iter().copied().map(ReplicaId) {
        let mut say = |message| {
            let number = messages.number(traitor, message, locals.context());
            if messages.get(number).verified.is_some() {
                lies.insert(number);
            }
        };
        material.say_normal_case(traitor, locals, &mut say);
        material.say_changes(traitor, &mut say);
        lies.extend(material.new_views(traitor, locals, messages));
    }
    lies.into_iter().collect()
}

impl<'a> Material<'a> {
    fn of(setup: &'a Setup, said: &[Input], tricks: &'a mut Tricks, messages: &Messages) -> Material<'a> {
        let mut material = Material {
            setup,
            quorums: Quorums::of(N).expect("a group"),
            headers: BTreeMap::new(),
            prepares: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            changes: BTreeMap::new(),
            tricks,
        };
        for sent in said.iter().map(|input| messages.get(*input)) {
            match &sent.message {
                Message::Proposal(proposal) => material.add_header(&proposal.header),
                Message::NewView(new_view) => {
                    new_view.body.proposals.iter().for_each(|header| material.add_header(header));
                }
                Message::Prepare(prepare) => {
                    let Prepare { view, seq, digest, replica } = prepare.body;
                    material.prepares.entry((view, seq, digest)).or_default().insert(replica, prepare.clone());
                }
                Message::Checkpoint(checkpoint) => {
                    let Checkpoint { seq, digest, replica } = checkpoint.body;
                    material.checkpoints.entry((seq, digest)).or_default().insert(replica, checkpoint.clone());
                }
                Message::ViewChange(change) => material.add_change(change.clone()),
                _ => {}
            }
        }
        material
    }

    fn add_header(&mut self, header: &Signed<PrePrepare>) {
        let PrePrepare { view, seq, .. } = header.body;
        self.headers.insert((view, seq, header.body.digest()), header.clone());
    }

    fn add_change(&mut self, change: Signed<ViewChange>) {
        let of_view = self.changes.entry(change.body.view).or_default();
        of_view.entry(change.body.replica).or_default().push(change);
    }

    fn views_led_by(&self, traitor: ReplicaId) -> impl Iterator<Item = View> + use<> {
        (0..self.setup.views).map(View).filter(move |view| view.primary(N) == traitor)
    }

    /// Proposals in the views that it leads, prepares in the others, checkpoints like the others'.
    fn vote(&mut self, traitor: ReplicaId) {
        for view in self.views_led_by(traitor) {
            let places = (1..=self.setup.places).map(Seq);
            let own = places.flat_map(|seq| {
                let header = move |batch: bft::Batch| PrePrepare { view, seq, at: NOW, batch: batch.digest() };
                self.setup.lies_of(traitor, seq).map(header)
            });
            let again = self.headers.values().filter(|header| header.body.view < view);
            let again = again.map(|header| PrePrepare { view, ..header.body });
            let headers: Vec<_> = own.chain(again).map(|header| keys::sign(traitor, header)).collect();
            headers.iter().for_each(|header| self.add_header(header));
        }
        for (view, seq, digest) in self.headers.keys().copied().filter(|(view, ..)| view.primary(N) != traitor) {
            let prepare = keys::sign(traitor, Prepare { view, seq, digest, replica: traitor });
            self.prepares.entry((view, seq, digest)).or_default().insert(traitor, prepare);
        }
        for ((seq, digest), votes) in &mut self.checkpoints {
            let checkpoint = Checkpoint { seq: *seq, digest: *digest, replica: traitor };
            votes.insert(traitor, keys::sign(traitor, checkpoint));
        }
    }

    /// View changes with every choice of what it says it prepared: nothing, what can be proven, and
    /// what can't (the door refuses that).
    fn leave(&mut self, traitor: ReplicaId) {
        for view in (1..self.setup.views).map(View) {
            let proofs = self.checkpoints.iter().filter(|(_, votes)| votes.len() >= self.quorums.strong());
            let proof = |((seq, digest), votes): (&(Seq, Digest), &BTreeMap<_, Signed<Checkpoint>>)| {
                let checkpoints = votes.values().take(self.quorums.strong()).cloned().collect();
                StableProof { seq: *seq, digest: *digest, checkpoints }
            };
            let stables: Vec<_> = core::iter::once(None).chain(proofs.map(proof).map(Some)).collect();
            let mut changes = Vec::new();
            for stable in stables {
                let low = stable.as_ref().map_or(Seq(0), |proof| proof.seq);
                for prepared in self.prepared_sets(traitor, low, view) {
                    let stable = stable.clone();
                    let change = ViewChange { view, stable, prepared, replica: traitor, life: 0 };
                    changes.push(keys::sign(traitor, change));
                }
            }
            changes.into_iter().for_each(|change| self.add_change(change));
        }
    }

    /// Every P: at each place after `low` nothing, or one certificate.
    fn prepared_sets(&mut self, traitor: ReplicaId, low: Seq, below: View) -> Vec<Vec<Prepared>> {
        let mut sets = vec![Vec::new()];
        for seq in (low.0 + 1..=self.setup.places).map(Seq) {
            let names = self.headers.keys().filter(|(view, place, _)| *place == seq && *view < below);
            let names: Vec<Name> = names.copied().collect();
            let certificates: Vec<_> = names.into_iter().map(|name| self.certificate(traitor, name)).collect();
            let with = |set: &Vec<Prepared>| {
                let set = set.clone();
                certificates
                    .iter()
                    .map(move |certificate| [set.as_slice(), core::slice::from_ref(certificate)].concat())
            };
            let longer: Vec<_> = sets.iter().flat_map(with).collect();
            sets.extend(longer);
        }
        sets
    }

    /// A certificate for a proposal: with good prepares, where there are enough, and else with some in
    /// the name of others.
    fn certificate(&mut self, traitor: ReplicaId, name: Name) -> Prepared {
        let (view, seq, digest) = name;
        let header = &self.headers[&name];
        let good = self.prepares.get(&name).into_iter().flat_map(|votes| votes.values().cloned());
        let mut prepares: Vec<_> = good.take(self.quorums.prepares()).collect();
        if prepares.len() == self.quorums.prepares() {
            let proof = Prepared { header: header.clone(), prepares };
            return self.tricks.certificates.entry(name).or_insert(proof).clone();
        }
        let others = (0..N as u16).map(ReplicaId).filter(|replica| *replica != view.primary(N));
        for replica in others {
            if prepares.len() < self.quorums.prepares() && prepares.iter().all(|vote| vote.body.replica != replica) {
                prepares.push(keys::sign(traitor, Prepare { view, seq, digest, replica }));
            }
        }
        Prepared { header: header.clone(), prepares }
    }

    fn say_normal_case(&self, traitor: ReplicaId, locals: &Locals, say: &mut impl FnMut(Message)) {
        for ((seq, _), (at, batch)) in locals.choices() {
            if self.headers.values().any(|header| (header.body.seq, header.body.batch) == (*seq, batch.digest())) {
                say(Message::Body(Body { seq: *seq, batch: batch.clone() }));
                if self.setup.vouchers {
                    let (view, at, batch) = (View(0), *at, batch.clone());
                    say(Message::Committed(Committed { seq: *seq, view, at, batch }));
                }
            }
        }
        for ((view, seq, digest), header) in &self.headers {
            let (view, seq, digest) = (*view, *seq, *digest);
            say(Message::Commit(Commit { view, seq, digest }));
            if view.primary(N) == traitor
                && let Some((_, batch)) = locals.choices().get(&(seq, digest))
            {
                say(Message::Proposal(Proposal { header: header.clone(), batch: batch.clone() }));
            }
        }
        let own = |votes: &BTreeMap<ReplicaId, Signed<Prepare>>| votes.get(&traitor).cloned();
        self.prepares.values().filter_map(own).for_each(|prepare| say(Message::Prepare(prepare)));
        let own = |votes: &BTreeMap<ReplicaId, Signed<Checkpoint>>| votes.get(&traitor).cloned();
        self.checkpoints.values().filter_map(own).for_each(|checkpoint| say(Message::Checkpoint(checkpoint)));
    }

    fn say_changes(&self, traitor: ReplicaId, say: &mut impl FnMut(Message)) {
        for change in self.changes.values().filter_map(|of_view| of_view.get(&traitor)).flatten() {
            say(Message::ViewChange(change.clone()));
        }
    }

    /// New views made of any `2f + 1` view changes, with any choice of what these could be taken to
    /// say; of those that a correct replica enters one for each choice, and one of the others.
    fn new_views(&mut self, traitor: ReplicaId, locals: &Locals, messages: &mut Messages) -> Vec<Input> {
        let mut lies = BTreeMap::new();
        for view in self.views_led_by(traitor).filter(|view| view.0 > 0) {
            let Some(changes) = self.changes.get(&view) else { continue };
            for set in sets_of(changes, self.quorums.strong()) {
                let mut names: Vec<_> = set.iter().map(|change| (change.body.replica, change.body.digest())).collect();
                names.sort_unstable();
                let low = set.iter().map(|change| change.body.low_water_mark()).max();
                for choice in proposals(&set) {
                    let header = |&(seq, at, batch): &_| keys::sign(traitor, PrePrepare { view, seq, at, batch });
                    let proposals = choice.iter().map(header).collect();
                    let new_view = keys::sign(traitor, NewView { view, view_changes: names.clone(), proposals });
                    let number = messages.number(traitor, Message::NewView(new_view.clone()), locals.context());
                    if messages.get(number).verified.is_none() {
                        continue;
                    }
                    let enters = *self.tricks.enters.entry(number).or_insert_with(|| locals.enters(&new_view, &set));
                    let kind = enters.then(|| (low, choice.clone()));
                    lies.entry((view, kind)).or_insert(number);
                }
            }
        }
        lies.into_values().collect()
    }
}

/// Every set of view changes of this many replicas, one of each.
fn sets_of(changes: &BTreeMap<ReplicaId, Vec<Signed<ViewChange>>>, size: usize) -> Vec<Vec<&Signed<ViewChange>>> {
    let mut sets: Vec<Vec<&Signed<ViewChange>>> = vec![Vec::new()];
    for choices in changes.values() {
        let smaller = sets.iter().filter(|set| set.len() < size);
        let with = |set: &Vec<_>| choices.iter().map(|change| [set.as_slice(), &[change]].concat()).collect::<Vec<_>>();
        let larger: Vec<_> = smaller.flat_map(with).collect();
        sets.extend(larger);
    }
    sets.retain(|set| set.len() == size);
    sets
}

/// Every O that could be said to follow from these: for each place from the highest or no stable
/// checkpoint on, something that one of them says prepared there, or the null request.
fn proposals(set: &[&Signed<ViewChange>]) -> Vec<Vec<(Seq, base::Time, Digest)>> {
    let prepared = set.iter().flat_map(|change| &change.body.prepared).map(|prepared| prepared.header.body);
    let headers: Vec<PrePrepare> = prepared.collect();
    let low = set.iter().map(|change| change.body.low_water_mark()).max().unwrap_or(Seq(0));
    let last = headers.iter().map(|header| header.seq).max().unwrap_or(low);
    let mut all = vec![Vec::new()];
    let mut longest = vec![Vec::new()];
    for seq in (low.0 + 1..=last.0).map(Seq) {
        let at_place = headers.iter().filter(|header| header.seq == seq);
        let mut choices: Vec<_> = at_place.map(|header| (seq, header.at, header.batch)).collect();
        choices.push((seq, base::Time::ZERO, bft::Batch::null().digest()));
        choices.sort_unstable();
        choices.dedup();
        let with =
            |set: &Vec<_>| choices.iter().map(|choice| [set.as_slice(), &[*choice]].concat()).collect::<Vec<_>>();
        longest = longest.iter().flat_map(with).collect();
        all.extend(longest.iter().cloned());
    }
    all
}
