//! What clients do: think of something, ask for it, and hear what came of it.

use base::{ReplicaId, Time, To};
use bft::Reply;
use bft::client::Output;
use bytes::Bytes;

use crate::machine::Service;
use crate::people::Errand;
use crate::world::{What, World};

/// Requests that a client keeps back until the faults have stopped, so that progress is seen then.
const KEPT_BACK: u64 = 3;

impl<S: Service> World<S> {
    /// A client's deadline has come, or it may have had an idea.
    pub(crate) fn on_client(&mut self, client: usize) {
        match &self.clients[client] {
            away if away.gone => return,
            away if away.paused > self.now => return self.at(away.paused, What::Client { client }),
            _ => {}
        }
        let mut outputs = Vec::new();
        let customer = &mut self.clients[client];
        let local = customer.clock.read(self.now);
        if customer.session.deadline().is_some_and(|at| at <= local) {
            customer.session.on_deadline(local, &mut outputs);
        }
        let busy = self.is_busy(client);
        let customer = &mut self.clients[client];
        if busy {
            customer.to_do = customer.to_do.max(KEPT_BACK + 1);
        }
        let kept = if self.calm { 0 } else { KEPT_BACK };
        if customer.thinks <= self.now && customer.to_do > kept {
            let room = customer.errands.len() < customer.plan.depth && customer.session.can_submit();
            if room {
                self.submit(client, local, &mut outputs);
            }
            let pause = match self.calm {
                _ if busy => 50_000_000,
                true => 1_000_000,
                false => self.rng.waiting(self.clients[client].plan.think) + 1,
            };
            // Who may not ask for more looks again after a while.
            let pause = if room { pause } else { pause.max(10_000_000) };
            self.clients[client].thinks = Time(self.now.0 + pause);
            self.at(Time(self.now.0 + pause), What::Client { client });
        }
        self.carry_out(client, outputs);
    }

    fn submit(&mut self, client: usize, local: Time, outputs: &mut Vec<Output>) {
        let op = S::operation(&mut self.rng, self.operations);
        self.operations += 1;
        self.clients[client].to_do -= 1;
        self.submit_op(client, op, local, outputs);
    }

    fn submit_op(&mut self, client: usize, op: Bytes, local: Time, outputs: &mut Vec<Output>) -> u64 {
        let floor = self.checks.submitted();
        let customer = &mut self.clients[client];
        let ticket = customer.session.submit(local, op.clone(), outputs);
        assert!(customer.errands.insert(ticket, Errand { op, floor }).is_none(), "tickets are unique");
        self.stats.requests += 1;
        ticket
    }

    /// Asks for something that somebody outside wants, and that nobody asked for before: what comes of it is
    /// told ([`World::told`]).
    pub(crate) fn ask(&mut self, client: usize, op: Bytes) -> u64 {
        let mut outputs = Vec::new();
        let local = self.clients[client].clock.read(self.now);
        let ticket = self.submit_op(client, op, local, &mut outputs);
        self.carry_out(client, outputs);
        ticket
    }

    fn carry_out(&mut self, client: usize, outputs: Vec<Output>) {
        let end = self.end_of(client);
        for output in outputs {
            match output {
                Output::Send { to, request } => {
                    self.checks.signed(&request.body);
                    for node in 0..self.nodes.len() {
                        let meant = match to {
                            To::All => true,
                            To::One(one) => self.nodes[node].id == one,
                        };
                        let arrivals: Vec<_> =
                            if meant { self.net.post(self.now, end, node).collect() } else { Vec::new() };
                        for at in arrivals {
                            self.at(at, What::Request { client, to: node, request: Box::new(request.clone()) });
                        }
                    }
                }
                Output::Done { ticket, seq, result } => {
                    let customer = &mut self.clients[client];
                    let errand = customer.errands.remove(&ticket).expect("done once");
                    customer.done += 1;
                    self.stats.done += 1;
                    self.checks.done(&errand.op, errand.floor, seq, &result);
                    if self.open {
                        self.told.push((client, ticket, Some(result.to_vec())));
                    }
                    self.trace.note(self.now, &[50, client as u64, ticket], || {
                        format!("c{client} has its answer to {ticket}")
                    });
                }
                Output::Failed { ticket, why } => {
                    let customer = &mut self.clients[client];
                    customer.errands.remove(&ticket).expect("failed once");
                    customer.failed += 1;
                    self.stats.failed += 1;
                    self.checks.refused(why);
                    if self.open {
                        self.told.push((client, ticket, None));
                    }
                    self.trace.note(self.now, &[51, client as u64, ticket], || {
                        format!("c{client} is refused {ticket}: {why:?}")
                    });
                }
            }
        }
        let customer = &mut self.clients[client];
        let deadline = customer.session.deadline();
        if let Some(deadline) = deadline.filter(|_| deadline != customer.wake) {
            let local = customer.clock.read(self.now);
            customer.wake = Some(deadline);
            let at = self.now.after(deadline.since(local));
            self.at(at, What::Client { client });
        }
    }

    /// A reply arrives.
    pub(crate) fn on_reply(&mut self, from: usize, client: usize, reply: Reply) {
        if self.net.is_cut(from, self.end_of(client)) || self.clients[client].gone {
            return;
        }
        if self.clients[client].paused > self.now {
            return self.at(self.clients[client].paused, What::Reply { from, client, reply });
        }
        let sender: ReplicaId = self.nodes[from].id;
        self.trace.note(self.now, &[21, (from as u64) << 8 | client as u64, reply.timestamp, reply.seq.0], || {
            format!("n{from} -> c{client}  reply {} {:?} {:?}", reply.timestamp, reply.seq, kind(&reply))
        });
        let mut outputs = Vec::new();
        let customer = &mut self.clients[client];
        let local = customer.clock.read(self.now);
        customer.session.on_reply(local, sender, reply, &mut outputs);
        let freed = !outputs.is_empty();
        self.carry_out(client, outputs);
        if freed && self.calm {
            self.at(self.now, What::Client { client });
        }
    }
}

fn kind(reply: &Reply) -> String {
    match &reply.result {
        bft::ReplyResult::Full(bytes) => format!("of {} bytes", bytes.len()),
        other => format!("{other:?}"),
    }
}
