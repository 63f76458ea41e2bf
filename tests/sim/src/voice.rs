//! From effects to the world: write, then speak; a crash may come anywhere in between.

use base::{Effects, ReplicaId, To};
use bft::{Event, Message};

use crate::byz::Act;
use crate::disk::is_promise;
use crate::machine::Service;
use crate::node::{Core, Work};
use crate::world::{What, World};

impl<S: Service> World<S> {
    /// A core has taken a step: it is looked at, and its voice gets what it wants done.
    pub(crate) fn after_step(&mut self, node: usize, fx: Effects<Core<S>>) {
        let actor = &mut self.nodes[node];
        if let (Some(core), false) = (&actor.core, actor.lies) {
            let clock = actor.clock.read(self.now);
            self.checks.stepped(actor.id, clock, core);
        }
        if !fx.is_empty() {
            actor.waiting.push(Work::Effects(fx));
        }
        if actor.disk.wants_snapshot(self.plan.disk.snapshot_after)
            && let Some(core) = &actor.core
        {
            actor.waiting.push(Work::Snapshot(Box::new(core.condense())));
        }
        if let Some(at) = self.nodes[node].next_wake(self.now) {
            let life = self.nodes[node].life;
            self.at(at, What::Wake { node, life, at });
        }
        self.voice(node);
    }

    /// Takes all that waits: one sync for it, if any of it needs one, and then it is said.
    fn voice(&mut self, node: usize) {
        let actor = &mut self.nodes[node];
        if actor.speech.is_some() || actor.waiting.is_empty() {
            return;
        }
        let mut work = core::mem::take(&mut actor.waiting);
        let (mut promised, mut snapshots) = (false, Vec::new());
        for work in &mut work {
            match work {
                Work::Effects(fx) => {
                    for record in fx.persist.drain(..) {
                        if !actor.lies {
                            self.checks.persisted(&record);
                        }
                        promised |= is_promise(&record);
                        actor.disk.append(record);
                    }
                }
                Work::Snapshot(condensed) => {
                    actor.disk.begin_snapshot();
                    promised = true;
                    snapshots.push(condensed.clone());
                }
            }
        }
        let life = actor.life;
        if !promised {
            return self.speak(node, work);
        }
        actor.disk.begin_sync();
        actor.speech = Some(work);
        let sync = self.sync_time();
        self.stats.syncs += 1;
        self.after_ns(sync, What::Synced { node, life });
        for condensed in snapshots {
            let writing = sync + self.rng.below(20 * sync + 1);
            self.after_ns(writing, What::Snapshot { node, life, condensed });
        }
    }

    fn sync_time(&mut self) -> u64 {
        let (least, most) = self.plan.disk.sync;
        let time = self.rng.between(least, most);
        if !self.calm && self.rng.per_million(self.plan.disk.stall) { time * 100 } else { time }
    }

    /// The disk has synced: what depended on it is said, and what waited meanwhile comes next.
    pub(crate) fn on_synced(&mut self, node: usize) {
        let actor = &mut self.nodes[node];
        actor.disk.finish_sync();
        if let Some(work) = actor.speech.take() {
            self.speak(node, work);
        }
        self.voice(node);
    }

    /// Sends and tells, in order; it may crash before any of it.
    fn speak(&mut self, node: usize, work: Vec<Work<S>>) {
        let crashes = !self.calm && !self.nodes[node].lies && self.rng.per_million(self.plan.crash);
        let actions = work.iter().map(|work| match work {
            Work::Effects(fx) => (fx.send.len() + fx.events.len()) as u64,
            Work::Snapshot(_) => 0,
        });
        let mut left = if crashes { self.rng.below(actions.sum::<u64>() + 1) } else { u64::MAX };
        let mut may = || {
            let may = left > 0;
            left = left.saturating_sub(1);
            may
        };
        let mut letters: Vec<Vec<Message>> = vec![Vec::new(); self.nodes.len()];
        for work in work {
            let Work::Effects(fx) = work else { continue };
            for send in fx.send.into_iter().take_while(|_| may()) {
                self.address(node, send.to, send.message, &mut letters);
            }
            for event in fx.events.into_iter().take_while(|_| may()) {
                self.tell(node, event);
            }
        }
        for (to, messages) in letters.into_iter().enumerate() {
            self.post(node, to, messages);
        }
        if crashes {
            let down = self.rng.below(self.plan.down + 1);
            self.crash(node, down);
        }
    }

    /// Puts a message into the letters of those whom it is for.
    fn address(&mut self, node: usize, to: To<ReplicaId>, message: Message, letters: &mut [Vec<Message>]) {
        let who = self.nodes[node].id;
        if !self.nodes[node].lies {
            self.checks.said(who, &message);
        }
        let mut copies = 0;
        for (to_node, letter) in letters.iter_mut().enumerate() {
            let id = self.nodes[to_node].id;
            let meant = match to {
                To::All => id != who,
                To::One(one) => id == one,
            };
            if !meant {
                continue;
            }
            copies += 1;
            if self.nodes[node].lies && !self.lie(node, &Act::Say { to: id, message: &message }) {
                continue;
            }
            letter.push(message.clone());
        }
        self.nodes[node].sent += copies;
    }

    /// Sends a letter; the network may take its messages apart.
    pub(crate) fn post(&mut self, from: usize, to: usize, mut messages: Vec<Message>) {
        if messages.is_empty() {
            return;
        }
        if messages.len() > 1 && self.rng.percent(20) {
            let rest = messages.split_off(messages.len() / 2);
            self.post(from, to, rest);
        }
        let mut arrivals = self.net.post(self.now, from, to).peekable();
        while let Some(at) = arrivals.next() {
            let letter = if arrivals.peek().is_some() { messages.clone() } else { core::mem::take(&mut messages) };
            self.at(at, What::Parcel { from, to, messages: letter });
        }
    }

    fn tell(&mut self, node: usize, event: Event) {
        let (who, lies) = (self.nodes[node].id, self.nodes[node].lies);
        if !lies {
            let gang = &self.gang;
            self.checks.event(who, &event, |accused| !gang.contains(&accused));
        }
        match event {
            Event::Reply { client, session, reply } => {
                if lies && !self.lie(node, &Act::Answer { client, session, reply: &reply }) {
                    return;
                }
                self.answer(node, client, session, reply);
            }
            Event::Executed { seq, .. } => {
                self.stats.batches += u64::from(who.0 == 0);
                self.trace.note(self.now, &[30, u64::from(who.0), seq.0], || format!("n{node} executed {seq:?}"));
            }
            Event::Misbehaved { .. } => self.stats.accused += 1,
            Event::Ignored(_) => {}
            Event::Rejoined { .. } | Event::Transferred { .. } => {
                self.stats.rejoined += u64::from(matches!(event, Event::Rejoined { .. }));
                self.stats.transfers += u64::from(matches!(event, Event::Transferred { .. }));
                self.trace.note(self.now, &[32, u64::from(who.0)], || format!("n{node} {event:?}"));
            }
            other => self.trace.note(self.now, &[31, u64::from(who.0)], || format!("n{node} {other:?}")),
        }
    }

    /// Sends a reply to a client, if it has a session here.
    pub(crate) fn answer(&mut self, node: usize, client: base::PublicKey, session: u64, reply: bft::Reply) {
        let Some(client) = self.sessions.get(&(client, session)).copied() else { return };
        let end = self.end_of(client);
        let arrivals: Vec<_> = self.net.post(self.now, node, end).collect();
        for at in arrivals {
            self.at(at, What::Reply { from: node, client, reply: reply.clone() });
        }
    }
}
