//! The client table: what was executed for whom, so that nothing is executed twice (TOCS'02 §4.1).
//!
//! It is part of the replicated state: it changes only when a batch is executed, the same way at
//! every replica, and its digest is part of the checkpoint's. A session remembers its highest 64
//! executed timestamps with their results; its *floor* is the highest it has forgotten. A
//! principal remembers its 64 most recently used sessions; its floor is the highest timestamp of
//! those it has forgotten, and where new sessions start.

use std::collections::{BTreeMap, BTreeSet};

use base::merkle::Trie;
use base::{Digest, Encode, PublicKey, Seq};
use bytes::Bytes;
use imbl::OrdMap;

use crate::params::{PRINCIPAL_RESULT_BYTES_MAX, RESULT_MAX, SESSIONS_MAX, TIMESTAMPS_MAX};
use crate::record::{CachedResult, Snapshot};

/// The table; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    principals: OrdMap<PublicKey, Principal>,
    /// Digests of sessions and principals, but for those in `changed`.
    digests: Trie,
    /// Whose digests are not up to date: sessions, or (`None`) principals themselves.
    changed: BTreeSet<(PublicKey, Option<u64>)>,
}

#[derive(Clone, Debug, Default)]
struct Principal {
    floor: u64,
    sessions: OrdMap<u64, Session>,
    result_bytes: usize,
}

#[derive(Clone, Debug)]
struct Session {
    floor: u64,
    last_seq: Seq,
    executed: BTreeMap<u64, Executed>,
}

/// A request that was executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Executed {
    /// Where in the order.
    pub(crate) seq: Seq,
    /// The digest of the result.
    pub(crate) digest: Digest,
    /// The result, unless it was too long or had to make room.
    pub(crate) result: Option<Bytes>,
}

/// What the table says about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It was never executed and may be.
    Fresh,
    /// It was executed, with this result.
    Executed(Executed),
    /// It is not above what was forgotten.
    Stale {
        /// The highest forgotten timestamp.
        floor: u64,
    },
}

impl Table {
    /// What is known of a request.
    pub(crate) fn verdict(&self, client: &PublicKey, session: u64, timestamp: u64) -> Verdict {
        let principal = self.principals.get(client);
        // Floors start at 0, so the timestamp 0 is nobody's.
        let floor = match principal.and_then(|principal| principal.sessions.get(&session)) {
            Some(known) => match known.executed.get(&timestamp) {
                Some(executed) => return Verdict::Executed(executed.clone()),
                None => known.floor,
            },
            None => principal.map_or(0, |principal| principal.floor),
        };
        if timestamp <= floor { Verdict::Stale { floor } } else { Verdict::Fresh }
    }

    /// Records that a fresh request was executed, and forgets what no longer fits.
    pub(crate) fn record(
        &mut self,
        client: &PublicKey,
        session: u64,
        timestamp: u64,
        seq: Seq,
        result: Vec<u8>,
    ) -> Executed {
        assert_eq!(self.verdict(client, session, timestamp), Verdict::Fresh, "at most once");
        let digest = Digest::of(&result);
        let kept = (result.len() <= RESULT_MAX).then(|| Bytes::from(result));
        let executed = Executed { seq, digest, result: kept };
        let principal = self.principals.entry(*client).or_default();
        // Whatever this session executed in an earlier life is not above this.
        let floor = principal.floor;
        if !principal.sessions.contains_key(&session) && principal.sessions.len() >= SESSIONS_MAX {
            let forgotten = principal.forget_least_recent();
            self.changed.extend([(*client, Some(forgotten)), (*client, None)]);
        }
        let known =
            principal.sessions.entry(session).or_insert(Session { floor, last_seq: seq, executed: BTreeMap::new() });
        known.last_seq = seq;
        known.executed.insert(timestamp, executed.clone());
        principal.result_bytes += executed.result_len();
        if known.executed.len() > TIMESTAMPS_MAX {
            let (lowest, dropped) = known.executed.pop_first().expect("more than one");
            known.floor = lowest;
            principal.result_bytes -= dropped.result_len();
        }
        self.changed.extend([(*client, Some(session)), (*client, None)]);
        while let Some(dropped) = principal.drop_oldest_result() {
            self.changed.insert((*client, Some(dropped)));
        }
        executed
    }

    /// The digest of all that the table says. Brings digests up to date, hence `&mut`.
    pub(crate) fn digest(&mut self) -> Digest {
        for (client, session) in core::mem::take(&mut self.changed) {
            let principal = self.principals.get(&client);
            let value = match session {
                None => principal.map(|principal| Digest::of_encoded(&principal.floor)),
                Some(session) => principal.and_then(|principal| principal.sessions.get(&session)).map(Session::digest),
            };
            let key = Digest::of_encoded(&(client, session));
            match value {
                Some(value) => self.digests.insert(key, value),
                None => self.digests.remove(&key),
            }
        }
        self.digests.root()
    }

    /// The table as snapshot pieces.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Snapshot> + '_ {
        self.principals.iter().flat_map(|(client, principal)| {
            let head = Snapshot::Principal { client: *client, floor: principal.floor };
            let sessions = principal.sessions.iter().flat_map(|(number, session)| session.pieces(*number));
            core::iter::once(head).chain(sessions)
        })
    }

    /// A principal read back from a snapshot. `None` if it is there already.
    pub(crate) fn restore_principal(&mut self, client: PublicKey, floor: u64) -> Option<()> {
        let principal = Principal { floor, ..Principal::default() };
        self.changed.insert((client, None));
        self.principals.insert(client, principal).is_none().then_some(())
    }

    /// A session read back from a snapshot. `None` if its principal is not there or it is there already.
    pub(crate) fn restore_session(&mut self, client: PublicKey, session: u64, floor: u64, last_seq: Seq) -> Option<()> {
        self.changed.insert((client, Some(session)));
        let new = Session { floor, last_seq, executed: BTreeMap::new() };
        self.principals.get_mut(&client)?.sessions.insert(session, new).is_none().then_some(())
    }

    /// An executed request read back from a snapshot. `None` if its session is not there or it is there already.
    pub(crate) fn restore_executed(
        &mut self,
        client: PublicKey,
        session: u64,
        timestamp: u64,
        executed: Executed,
    ) -> Option<()> {
        let principal = self.principals.get_mut(&client)?;
        principal.result_bytes += executed.result_len();
        principal.sessions.get_mut(&session)?.executed.insert(timestamp, executed).is_none().then_some(())
    }
}

impl Executed {
    fn result_len(&self) -> usize {
        self.result.as_ref().map_or(0, Bytes::len)
    }
}

impl Principal {
    /// Forgets the session used least recently, and refuses from now on what it might have executed.
    fn forget_least_recent(&mut self) -> u64 {
        let oldest = self.sessions.iter().min_by_key(|(number, session)| (session.last_seq, **number));
        let number = *oldest.expect("asked only when there are too many").0;
        let forgotten = self.sessions.remove(&number).expect("just found");
        let highest = forgotten.executed.last_key_value().map_or(forgotten.floor, |(timestamp, _)| *timestamp);
        self.floor = self.floor.max(forgotten.floor).max(highest);
        self.result_bytes -= forgotten.executed.values().map(Executed::result_len).sum::<usize>();
        number
    }

    /// If the results take up too much room, drops one of the least recently used session; says which.
    fn drop_oldest_result(&mut self) -> Option<u64> {
        if self.result_bytes <= PRINCIPAL_RESULT_BYTES_MAX {
            return None;
        }
        let kept = |session: &Session| session.executed.values().any(|executed| executed.result_len() > 0);
        let with_results = self.sessions.iter().filter(|(_, session)| kept(session));
        let oldest = with_results.min_by_key(|(number, session)| (session.last_seq, **number));
        let number = *oldest.expect("the bytes are somewhere").0;
        let session = self.sessions.get_mut(&number).expect("just found");
        let executed = session.executed.values_mut().find(|executed| executed.result_len() > 0).expect("just seen");
        self.result_bytes -= executed.result_len();
        executed.result = None;
        Some(number)
    }
}

impl Session {
    fn digest(&self) -> Digest {
        let mut bytes = Vec::with_capacity(24 + 49 * self.executed.len());
        self.floor.encode(&mut bytes);
        self.last_seq.encode(&mut bytes);
        for (timestamp, executed) in &self.executed {
            timestamp.encode(&mut bytes);
            executed.seq.encode(&mut bytes);
            executed.digest.encode(&mut bytes);
            executed.result.is_some().encode(&mut bytes);
        }
        Digest::of(&bytes)
    }

    fn pieces(&self, session: u64) -> impl Iterator<Item = Snapshot> + '_ {
        let head = Snapshot::Session { session, floor: self.floor, last_seq: self.last_seq };
        let executed = self.executed.iter().map(|(timestamp, executed)| Snapshot::Executed {
            timestamp: *timestamp,
            seq: executed.seq,
            digest: executed.digest,
            result: executed.result.clone().map(CachedResult),
        });
        core::iter::once(head).chain(executed)
    }
}

#[cfg(test)]
mod tests {
    use base::SecretKey;

    use super::*;

    fn key(n: u8) -> PublicKey {
        SecretKey::from_seed(&[n; 32]).public()
    }

    fn run(table: &mut Table, session: u64, timestamp: u64, seq: u64) {
        table.record(&key(1), session, timestamp, Seq(seq), vec![timestamp as u8; 8]);
    }

    #[test]
    fn a_session_remembers_its_highest_timestamps() {
        let mut table = Table::default();
        for timestamp in (100..100 + TIMESTAMPS_MAX as u64).rev() {
            run(&mut table, 1, timestamp, 1);
        }
        assert_eq!(table.verdict(&key(1), 1, 99), Verdict::Fresh, "nothing is forgotten yet");
        run(&mut table, 1, 500, 2);
        assert_eq!(table.verdict(&key(1), 1, 100), Verdict::Stale { floor: 100 });
        assert_eq!(table.verdict(&key(1), 1, 99), Verdict::Stale { floor: 100 });
        assert!(matches!(table.verdict(&key(1), 1, 101), Verdict::Executed(_)));
        assert_eq!(table.verdict(&key(1), 2, 1), Verdict::Fresh, "sessions are apart");
        assert_eq!(table.verdict(&key(2), 1, 1), Verdict::Fresh, "principals are apart");
    }

    #[test]
    fn a_forgotten_session_executes_nothing_again() {
        let mut table = Table::default();
        for session in 0..SESSIONS_MAX as u64 {
            run(&mut table, session, 1000 + session, session + 1);
        }
        run(&mut table, 0, 2000, 900);
        run(&mut table, 777, 5000, 901);
        assert_eq!(
            table.verdict(&key(1), 1, 1001),
            Verdict::Stale { floor: 1001 },
            "session 1 was used least recently"
        );
        assert!(matches!(table.verdict(&key(1), 0, 1000), Verdict::Executed(_)), "session 0 was used since");
        run(&mut table, 1, 1002, 902);
        assert_eq!(table.verdict(&key(1), 1, 1001), Verdict::Stale { floor: 1001 }, "and comes back with that floor");
    }

    #[test]
    fn results_are_bounded_and_their_loss_is_remembered() {
        let mut table = Table::default();
        let count = PRINCIPAL_RESULT_BYTES_MAX / RESULT_MAX + 1;
        for at in 0..count as u64 {
            table.record(&key(1), at % 3, at + 1, Seq(at + 1), vec![1; RESULT_MAX]);
        }
        let lost = |table: &Table, session, timestamp| match table.verdict(&key(1), session, timestamp) {
            Verdict::Executed(executed) => executed.result.is_none(),
            other => panic!("{other:?}"),
        };
        let dropped: Vec<_> = (0..count as u64).filter(|at| lost(&table, at % 3, at + 1)).collect();
        assert_eq!(dropped.len(), 1, "just enough is dropped");
        table.record(&key(2), 1, 1, Seq(99), vec![1; RESULT_MAX + 1]);
        let Verdict::Executed(executed) = table.verdict(&key(2), 1, 1) else { panic!("it was executed") };
        assert_eq!(executed.result, None, "a result too long to send is not kept");
    }

    #[test]
    fn the_digest_is_of_the_content_and_survives_a_snapshot() {
        let mut table = Table::default();
        let mut digests = BTreeSet::from([table.digest()]);
        for step in 0..300u64 {
            run(&mut table, step % 70, 10 + step, step + 1);
            assert!(digests.insert(table.digest()), "every execution changes the digest");
        }
        let mut twin = Table::default();
        let (mut client, mut number) = (key(9), 0);
        for piece in table.pieces() {
            match piece {
                Snapshot::Principal { client: name, floor } => {
                    client = name;
                    twin.restore_principal(name, floor).unwrap();
                }
                Snapshot::Session { session, floor, last_seq } => {
                    number = session;
                    twin.restore_session(client, session, floor, last_seq).unwrap();
                }
                Snapshot::Executed { timestamp, seq, digest, result } => {
                    let result = result.map(|cached| cached.0);
                    twin.restore_executed(client, number, timestamp, Executed { seq, digest, result }).unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(twin.digest(), table.digest());
        run(&mut twin, 3, 9999, 400);
        run(&mut table, 3, 9999, 400);
        assert_eq!(twin.digest(), table.digest());
    }
}
