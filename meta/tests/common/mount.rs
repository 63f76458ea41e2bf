//! A mount as the client library has it.
#![allow(dead_code, unreachable_pub, reason = "a module of several test binaries, none of which uses all of it")]

use base::{PublicKey, Time};
use meta::*;

use super::{CLUSTER, World, key, user};

/// A mount as the client library has it: a copy of what it holds, and the log of what it did there.
pub struct Mount {
    pub me: (PublicKey, u64),
    pub epoch: u64,
    pub copy: State,
    /// What was done, as it is to be logged, when, and what replicas are to answer.
    pub log: Vec<(Call, Time, Answer)>,
    pub parts: u64,
    /// When it last heard of its leases.
    heard: Time,
}

impl Mount {
    pub fn new(number: u64) -> Mount {
        let (copy, me) = (State::copy_of(CLUSTER), (key(1), number));
        Mount { me, epoch: 0, copy, log: Vec::new(), parts: 0, heard: Time::ZERO }
    }

    /// Before it relies on its leases: asks if it did not for long, and forgets everything if they are over.
    pub fn freshen(&mut self, world: &mut World) {
        if self.epoch != 0 && world.now.since(self.heard) > LEASE_TERM / 2 {
            match self.ordered(world, Op::Renew) {
                Ok(Reply::Lease(lease)) => self.take(&lease),
                Err(Denied::Fenced) => *self = Mount { log: self.log.clone(), ..Mount::new(self.me.1) },
                other => panic!("{other:?}"),
            }
            self.heard = world.now;
        }
    }

    pub fn by(&self, log: Option<Log>) -> Option<By> {
        (self.epoch != 0).then_some(By { holder: self.me.1, epoch: self.epoch, log })
    }

    pub fn ordered(&self, world: &mut World, op: Op) -> Result<Reply, Denied> {
        let batch = Batch { calls: vec![Call { caller: user(0), op }], by: self.by(None) };
        let mut answers = world.state.apply_batch(world.now, &self.me.0, &batch);
        assert_eq!(world.state.audit(), Ok(()));
        answers.pop().unwrap().into_result()
    }

    /// Asks for a lease, its own alone or else to look.
    pub fn hold(&mut self, world: &mut World, ino: Ino, shared: bool) -> Result<(), Denied> {
        let Reply::Held { epoch, lease, rows } =
            self.ordered(world, Op::Hold { holder: self.me.1, ino, instead: 0, shared })?
        else {
            panic!("no lease")
        };
        if epoch != self.epoch {
            (self.epoch, self.parts) = (epoch, 0);
            self.copy = State::copy_of(CLUSTER);
        }
        self.copy.learn(&rows, &self.me).unwrap();
        self.take(&lease);
        self.heard = world.now;
        Ok(())
    }

    /// Becomes a holder without leases.
    pub fn enroll(&mut self, world: &mut World) {
        let enroll = Op::Enroll { holder: self.me.1, instead: 0 };
        let Ok(Reply::Held { epoch, lease, rows }) = self.ordered(world, enroll) else { panic!("refused") };
        (self.epoch, self.parts, self.heard) = (epoch, 0, world.now);
        self.copy = State::copy_of(CLUSTER);
        self.copy.learn(&rows, &self.me).unwrap();
        self.take(&lease);
    }

    /// Does what its copy allows, and logs it.
    pub fn apply_own(&mut self, now: Time, op: &Op) -> Result<Reply, Denied> {
        let call = Call { caller: user(0), op: op.clone() };
        let now = self.copy.stamp_own(now, &self.me, op);
        let answer = self.copy.apply_own(now, &self.me, &call);
        if let Some(op) = logged_as(op, &answer) {
            let expected = match &op {
                Op::Lock(LockRequest { how: LockHow::Leave, .. }) => Answer::Done(Reply::Unit),
                _ => answer.clone(),
            };
            self.log.push((Call { op, ..call }, now, expected));
        }
        answer.into_result()
    }

    pub fn take(&mut self, lease: &Lease) {
        self.copy.grant_inos(&self.me, &lease.inos);
    }

    /// Sends the log; replicas must answer as the copy did.
    pub fn ship(&mut self, world: &mut World) {
        while !self.log.is_empty() {
            let part: Vec<_> = self.log.drain(..self.log.len().min(7)).collect();
            let log = Log { part: self.parts, stamps: part.iter().map(|(_, at, _)| *at).collect() };
            let calls = part.iter().map(|(call, ..)| call.clone()).collect();
            let batch = Batch { calls, by: self.by(Some(log)) };
            let answers = world.state.apply_batch(world.now, &self.me.0, &batch);
            assert!(answers.iter().eq(part.iter().map(|(.., answer)| answer)), "{answers:?}\n{part:?}");
            let again = world.state.apply_batch(world.now, &self.me.0, &batch);
            assert_eq!(again, vec![Answer::Denied(Denied::Applied)], "a part is applied once");
            assert_eq!(world.state.audit(), Ok(()));
            self.parts += 1;
        }
    }

    /// Gives back what others want; if there is no room for what is left, all of it.
    pub fn heed(&mut self, world: &mut World) {
        self.ship(world);
        let Ok(Reply::Lease(mut lease)) = self.ordered(world, Op::Renew) else { return };
        for _ in 0..2 {
            let directories = lease.recalls.clone();
            for directory in &directories {
                self.copy.give_back(*directory, &self.me);
            }
            let Ok(Reply::Lease(then)) = self.ordered(world, Op::Cede { directories }) else { panic!("ceding") };
            lease = then;
            self.take(&lease);
        }
        assert_eq!(lease.recalls, []);
    }

    pub fn fetch(&mut self, world: &mut World, ino: Ino) -> Result<(), Denied> {
        let mut cookie = 0;
        loop {
            let also = self.copy.unfetched_after(ino, (ino.0 % 4) as usize, &self.me);
            let fetched = self.ordered(world, Op::Fetch { ino, cookie, also })?;
            let Reply::Rows { rows, whole, next } = fetched else { panic!("no rows") };
            self.copy.learn(&rows, &self.me).unwrap();
            whole.iter().for_each(|directory| self.copy.note_complete(*directory));
            match next {
                Some(next) => cookie = next,
                None => return Ok(()),
            }
        }
    }
}
