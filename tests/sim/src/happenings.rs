//! What happens to nodes and links: starts, crashes, cuts, clocks; and the end of all that.

use base::{Protocol as _, ReplicaId, Time};
use bft::Replica;

use crate::core_can::CORE;
use crate::machine::{Service, Watched};
use crate::net::Weather;
use crate::node::params;
use crate::plan::{Cut, Fault};
use crate::world::{What, World};

impl<S: Service> World<S> {
    /// A node starts from its disk; or finds its disk damaged, and does not.
    pub(crate) fn start(&mut self, node: usize) {
        if self.nodes[node].core.is_some() || self.nodes[node].lost {
            return;
        }
        if self.nodes[node].rotten {
            self.trace.note(self.now, &[40, node as u64], || format!("n{node} finds its log damaged"));
            if !CORE.rejoin {
                self.nodes[node].lost = true;
                return;
            }
            // It comes back with what it can read, and the knowledge that something is lost.
            self.stats.disks_lost += 1;
            let params = params(self.plan.n, node, &self.plan.tuning);
            let genesis = Watched::new(S::genesis(&crate::keys::known_principals()), None, 0);
            let actor = &mut self.nodes[node];
            let life = actor.clock.read(self.now).0;
            actor.rotten = false;
            let readable = actor.disk.readable(&mut self.rng);
            let damaged = Replica::restore((params, genesis), readable).ok();
            actor.disk.wipe();
            match damaged.and_then(|damaged| damaged.salvage(life)) {
                Some(salvaged) => {
                    self.stats.salvaged += 1;
                    actor.disk.begin_with(salvaged.records());
                }
                None => actor.disk.begin_life(actor.id, life),
            }
        } else if self.nodes[node].disk.durable().is_empty() {
            let actor = &mut self.nodes[node];
            actor.disk.begin_life(actor.id, 0);
        }
        let actor = &self.nodes[node];
        let (tape, rot) = if actor.lies {
            (None, self.plan.behaviour.map_or(0, |behaviour| behaviour.rot()))
        } else {
            (Some(self.tape.clone()), 0)
        };
        let genesis = Watched::new(S::genesis(&crate::keys::known_principals()), tape, rot);
        self.nodes[node].start(self.plan.n, &self.plan.tuning, genesis);
        self.stats.starts += 1;
        self.trace.note(self.now, &[41, node as u64], || format!("n{node} starts"));
        self.after_step(node, base::Effects::new());
    }

    /// A node's process ends at once; it comes back after `down` ns.
    pub(crate) fn crash(&mut self, node: usize, down: u64) {
        if self.nodes[node].core.is_none() {
            return;
        }
        self.nodes[node].stop();
        let torn = self.nodes[node].disk.crash(&mut self.rng);
        self.stats.crashes += 1;
        self.stats.torn += u64::from(torn);
        self.trace.note(self.now, &[42, node as u64], || format!("n{node} crashes"));
        let life = self.nodes[node].life;
        self.after_ns(down, What::Start { node, life });
    }

    /// A node crashes and loses its disk.
    pub(crate) fn forget(&mut self, node: usize) {
        self.crash(node, 50_000_000);
        self.nodes[node].disk.wipe();
    }

    pub(crate) fn on_fault(&mut self, fault: Fault) {
        let kind = format!("{fault:?}");
        self.trace.note(self.now, &[43, kind.len() as u64], || kind);
        let correct = |node: usize| !self.plan.liars.contains(&node);
        match fault {
            Fault::Crash { node, down } if correct(node) => self.crash(node, down),
            Fault::Crash { .. } => {}
            Fault::PowerLoss { down } => self.power_loss(down),
            Fault::Cut(cut) => self.cut(cut),
            Fault::Mend => self.net.heal(),
            Fault::Jump { node, by } => {
                self.stats.jumps += 1;
                self.nodes[node].clock.jump(by);
            }
            Fault::JumpAll { by } => {
                self.stats.jumps += 1;
                self.nodes.iter_mut().for_each(|node| node.clock.jump(by));
            }
            Fault::Pause { node, time } => {
                self.stats.pauses += 1;
                self.nodes[node].paused = Time(self.now.0 + time);
            }
            Fault::Rot { node } if correct(node) => {
                self.nodes[node].rotten = true;
                self.crash(node, 0);
            }
            Fault::Rot { .. } => {}
        }
    }

    /// Everybody goes down at once; disks are looked at while they hold all there is.
    fn power_loss(&mut self, down: u64) {
        self.stats.power_losses += 1;
        for node in 0..self.nodes.len() {
            let down = self.rng.below(down + 1);
            self.crash(node, down);
        }
        let f = (self.plan.n - 1) / 3;
        let disks = self.nodes.iter().filter(|node| !node.lies && !node.rotten);
        self.checks.all_down(f + 1, disks.map(|node| node.disk.durable()));
    }

    fn cut(&mut self, cut: Cut) {
        self.stats.cuts += 1;
        let n = self.plan.n;
        let ends = self.nodes.len() + self.clients.len() + self.rogues.len();
        match cut {
            Cut::Isolate { node } => self.net.part(|end| end == node, ends),
            Cut::Halves { mask } => self.net.part(|end| mask >> (end % 64) & 1 == 1, ends),
            Cut::OneWay { from, to } => self.net.cut(from, to),
            Cut::Deaf { node } => (0..ends).filter(|from| *from != node).for_each(|from| self.net.cut(from, node)),
            Cut::Mute { node } => (0..ends).filter(|to| *to != node).for_each(|to| self.net.cut(node, to)),
            Cut::Bridge { node, mask } => {
                let side = |end: usize| mask >> (end % 64) & 1 == 1;
                for from in (0..n).filter(|from| *from != node) {
                    for to in (0..n).filter(|to| *to != node && side(*to) != side(from)) {
                        self.net.cut(from, to);
                    }
                }
            }
            Cut::Ring => {
                for from in 0..n {
                    let near = |to: usize| (to + 1) % n == from || (from + 1) % n == to || to == from;
                    (0..n).filter(|to| !near(*to)).for_each(|to| self.net.cut(from, to));
                }
            }
        }
    }

    /// The faults stop: links are whole and quick, clocks about right, and everybody is back who can be.
    pub(crate) fn on_calm(&mut self) {
        self.calm = true;
        self.left_at_calm = self.clients.iter().map(|client| client.to_do + client.errands.len() as u64).sum();
        self.trace.note(self.now, &[44], || "the faults stop".into());
        self.net.weather = Weather::FAIR;
        self.net.heal();
        for node in 0..self.nodes.len() {
            let (offset, _) = self.plan.clocks[usize::from(self.nodes[node].id.0)];
            self.nodes[node].clock.offset = offset;
            self.nodes[node].clock.rate = 0;
            self.nodes[node].paused = Time::ZERO;
            if self.nodes[node].core.is_none() && !self.nodes[node].lost {
                let life = self.nodes[node].life;
                self.after_ns(1, What::Start { node, life });
            }
        }
        let views = self.nodes.iter().filter(|node| !node.lies).filter_map(|node| node.core.as_ref());
        let view = views.map(|core| core.status().view).max().unwrap_or_default();
        let bad = self.gang.len() + self.nodes.iter().filter(|node| node.lost).count();
        self.checks.progress.faults_stop(self.now, view, self.views_allowed(3 * bad as u64));
        for client in 0..self.clients.len() {
            self.at(self.now, What::Client { client });
        }
    }

    /// The nodes that are correct, and not lost.
    pub(crate) fn correct_nodes(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|node| !self.nodes[*node].lies && !self.nodes[*node].lost)
    }

    /// Whether an id belongs to a node that is there.
    pub(crate) fn nodes_of_id(&self, id: ReplicaId) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(move |node| self.nodes[*node].id == id)
    }
}
