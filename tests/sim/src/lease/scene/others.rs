//! Those beside the programs: who believes what, replicas that recall, and mounts that lie.

use base::Time;
use meta::Ino;

use super::super::brake::Point;
use super::super::hostile::marked;
use super::{Asker, Scene};

/// How often replicas tell users that others want something (`server/src/driver.rs`), ns.
const RECALL_AGAIN: u64 = 250_000_000;
/// How many requests a lying mount has under way at a time.
const HOSTILE_MAX: usize = 4;

impl Scene {
    /// Nobody believes that it holds what somebody else holds, or remembers what others may change.
    pub(super) fn believe(&mut self) {
        if self.plan.beyond {
            return;
        }
        let directories: Vec<Ino> = self.places.iter().map(|place| place.directory).chain([self.root]).collect();
        for directory in directories {
            let believers = self.machines.iter().enumerate().filter(|(_, machine)| machine.believes(directory));
            let believers: Vec<_> = believers.map(|(index, machine)| (index, machine.me)).collect();
            self.figures.beliefs += believers.len() as u64;
            let sharers = self
                .machines
                .iter()
                .enumerate()
                .filter(|(_, machine)| machine.remembers(directory) && !machine.believes(directory));
            let sharers: Vec<_> = sharers.map(|(index, machine)| (index, machine.me)).collect();
            self.figures.shared += sharers.len() as u64;
            self.journal(|journal| journal.judge_belief(directory, &believers, &sharers));
        }
    }

    /// Replicas tell users that others want what they have.
    pub(super) fn recall(&mut self, now: Time) {
        for node in 0..self.recalls.len() {
            let Some(core) = self.world.nodes[node].core.as_ref().filter(|_| !self.world.nodes[node].lies) else {
                continue;
            };
            let wanted: Vec<_> = core.state().inner.recalled().copied().collect();
            let (before, at) = &self.recalls[node];
            if wanted.is_empty() || (wanted == *before && now.0 - at.0 < RECALL_AGAIN) {
                self.recalls[node].0 = wanted;
                continue;
            }
            for index in 0..self.machines.len() {
                let machine = &self.machines[index];
                let end = self.world.end_of(machine.client());
                let reached = !self.world.net.is_cut(node, end);
                if reached
                    && wanted.iter().any(|(user, _)| *user == machine.me.0)
                    && let Some(process) = &machine.process
                {
                    let stops = machine.frozen.is_none() && process.desk.brake.is_at(Point::Recalled);
                    process.desk.recalls.notify_one();
                    if stops {
                        process.desk.brake.has_stopped();
                        self.stopped(index);
                    }
                }
            }
            self.recalls[node] = (wanted, now);
        }
    }

    /// Lying mounts get the word.
    pub(super) fn lie(&mut self) {
        for index in 0..self.hostile.len() {
            while self.hostile[index].outstanding() < HOSTILE_MAX {
                let hostile = &mut self.hostile[index];
                let mut journal = self.journal.lock().expect("nobody panics with it");
                let Some((face, batch)) = hostile.think(&mut journal, self.root, &self.places) else { break };
                let (client, mark) = (hostile.client, journal.mark(hostile.who));
                drop(journal);
                if !self.world.clients[client].session.can_submit() {
                    break;
                }
                let ticket = self.world.ask(client, marked(&batch, mark));
                self.world.trace.note(self.world.now, &[64, index as u64], || format!("h{index} asks {batch:?}"));
                self.hostile[index].asked(ticket, face, &batch);
                self.asked.insert((client, ticket), Asker::Hostile(index));
            }
        }
    }
}
