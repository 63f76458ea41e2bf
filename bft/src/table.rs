//! The client table: what was executed for whom, so that nothing is executed twice (TOCS'02 §4.1).
//!
//! It is part of the replicated state: it changes only when a batch is executed, the same way at
//! every replica, and its digest is part of the checkpoint's. A session remembers its highest 64
//! executed timestamps with their results; its *floor* is the highest it has forgotten. A
//! principal remembers its 64 most recently used sessions; its floor is the highest timestamp of
//! those it has forgotten, and where new sessions start.

use std::collections::{BTreeMap, BTreeSet};

use base::merkle::Trie;
use base::{Decode, Digest, Encode, PublicKey, Reader, Seq};
use bytes::Bytes;
use imbl::OrdMap;

use crate::params::{PRINCIPAL_RESULT_BYTES_MAX, RESULT_MAX, SESSIONS_MAX, TIMESTAMPS_MAX};
use crate::record::{CachedResult, Snapshot};

/// The table; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    principals: OrdMap<PublicKey, Principal>,
    /// Digests of the rows, but for those in `changed`.
    digests: Trie,
    /// Rows whose digests are not up to date.
    changed: BTreeSet<RowName>,
}

/// What names a row: a principal; a session of it; a request executed in that.
type RowName = (PublicKey, Option<u64>, Option<u64>);

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
            let (forgotten, timestamps) = principal.forget_least_recent();
            self.changed.extend([(*client, Some(forgotten), None), (*client, None, None)]);
            self.changed.extend(timestamps.into_iter().map(|timestamp| (*client, Some(forgotten), Some(timestamp))));
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
            self.changed.insert((*client, Some(session), Some(lowest)));
        }
        let row = (*client, Some(session), Some(timestamp));
        self.changed.extend([row, (*client, Some(session), None), (*client, None, None)]);
        while let Some((session, timestamp)) = principal.drop_oldest_result() {
            self.changed.insert((*client, Some(session), Some(timestamp)));
        }
        executed
    }

    /// The digest of all that the table says. Brings digests up to date, hence `&mut`.
    pub(crate) fn digest(&mut self) -> Digest {
        self.tree().root()
    }

    /// The tree of digests of the rows, brought up to date.
    pub(crate) fn tree(&mut self) -> &Trie {
        for name in core::mem::take(&mut self.changed) {
            match self.row_bytes(&name, false) {
                Some(value) => self.digests.insert(&name.to_bytes(), Digest::of(&value)),
                None => self.digests.remove(&name.to_bytes()),
            }
        }
        &self.digests
    }

    /// The row of this name, encoded; of a result only its digest is in the row's own, so it may be
    /// left out.
    fn row_bytes(&self, (client, session, timestamp): &RowName, with_result: bool) -> Option<Vec<u8>> {
        let principal = self.principals.get(client)?;
        let Some(session) = session else { return Some(principal.floor.to_bytes()) };
        let session = principal.sessions.get(session)?;
        let Some(timestamp) = timestamp else { return Some((session.floor, session.last_seq).to_bytes()) };
        let executed = session.executed.get(timestamp)?;
        let mut bytes = (executed.seq, executed.digest, executed.result.is_some()).to_bytes();
        if let Some(result) = executed.result.as_ref().filter(|_| with_result) {
            result.encode(&mut bytes);
        }
        Some(bytes)
    }

    /// The encoded value of the row with this name, result and all.
    pub(crate) fn row(&self, name: &[u8]) -> Option<Vec<u8>> {
        self.row_bytes(&RowName::from_bytes(name).ok()?, true)
    }

    /// The digest that a row with this name and value has in the tree; `None` if it is none.
    pub(crate) fn row_digest(name: &[u8], value: &[u8]) -> Option<Digest> {
        match RowName::from_bytes(name).ok()? {
            (_, Some(_), Some(_)) => {
                let executed = decode_executed(value)?;
                Some(Digest::of_encoded(&(executed.seq, executed.digest, executed.result.is_some())))
            }
            (_, None, Some(_)) => None,
            _ => Some(Digest::of(value)),
        }
    }

    /// Sets rows to these values, or removes them; `None` if one is no row.
    pub(crate) fn patch(&mut self, rows: &[(Vec<u8>, Option<Vec<u8>>)]) -> Option<()> {
        for (name, value) in rows {
            let name = RowName::from_bytes(name).ok()?;
            self.patch_row(&name, value.as_deref())?;
            self.changed.insert(name);
        }
        Some(())
    }

    fn patch_row(&mut self, name: &RowName, value: Option<&[u8]>) -> Option<()> {
        let (client, session, timestamp) = *name;
        let Some(value) = value else {
            let Some(principal) = self.principals.get_mut(&client) else { return Some(()) };
            match (session, timestamp) {
                (None, _) => drop(self.principals.remove(&client)),
                (Some(session), None) => {
                    let removed = principal.sessions.remove(&session);
                    principal.result_bytes -= removed.map_or(0, |session| session.result_len());
                }
                (Some(session), Some(timestamp)) => {
                    let known = principal.sessions.get_mut(&session);
                    let removed = known.and_then(|known| known.executed.remove(&timestamp));
                    principal.result_bytes -= removed.map_or(0, |executed| executed.result_len());
                }
            }
            return Some(());
        };
        let principal = self.principals.entry(client).or_default();
        let Some(session) = session else {
            principal.floor = u64::from_bytes(value).ok()?;
            return Some(());
        };
        let empty = Session { floor: 0, last_seq: Seq(0), executed: BTreeMap::new() };
        let known = principal.sessions.entry(session).or_insert(empty);
        match timestamp {
            None => (known.floor, known.last_seq) = <(u64, Seq)>::from_bytes(value).ok()?,
            Some(timestamp) => {
                let executed = decode_executed(value)?;
                principal.result_bytes += executed.result_len();
                let earlier = known.executed.insert(timestamp, executed);
                principal.result_bytes -= earlier.map_or(0, |earlier| earlier.result_len());
            }
        }
        Some(())
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
        self.changed.insert((client, None, None));
        self.principals.insert(client, principal).is_none().then_some(())
    }

    /// A session read back from a snapshot. `None` if its principal is not there or it is there already.
    pub(crate) fn restore_session(&mut self, client: PublicKey, session: u64, floor: u64, last_seq: Seq) -> Option<()> {
        self.changed.insert((client, Some(session), None));
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
        self.changed.insert((client, Some(session), Some(timestamp)));
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
    fn forget_least_recent(&mut self) -> (u64, Vec<u64>) {
        let oldest = self.sessions.iter().min_by_key(|(number, session)| (session.last_seq, **number));
        let number = *oldest.expect("asked only when there are too many").0;
        let forgotten = self.sessions.remove(&number).expect("just found");
        let highest = forgotten.executed.last_key_value().map_or(forgotten.floor, |(timestamp, _)| *timestamp);
        self.floor = self.floor.max(forgotten.floor).max(highest);
        self.result_bytes -= forgotten.result_len();
        (number, forgotten.executed.into_keys().collect())
    }

    /// If the results take up too much room, drops one of the least recently used session; says which.
    fn drop_oldest_result(&mut self) -> Option<(u64, u64)> {
        if self.result_bytes <= PRINCIPAL_RESULT_BYTES_MAX {
            return None;
        }
        let kept = |session: &Session| session.executed.values().any(|executed| executed.result_len() > 0);
        let with_results = self.sessions.iter().filter(|(_, session)| kept(session));
        let oldest = with_results.min_by_key(|(number, session)| (session.last_seq, **number));
        let number = *oldest.expect("the bytes are somewhere").0;
        let session = self.sessions.get_mut(&number).expect("just found");
        let dropped = session.executed.iter_mut().find(|(_, executed)| executed.result_len() > 0);
        let (timestamp, executed) = dropped.expect("just seen");
        self.result_bytes -= executed.result_len();
        executed.result = None;
        Some((number, *timestamp))
    }
}

impl Session {
    fn result_len(&self) -> usize {
        self.executed.values().map(Executed::result_len).sum()
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

/// A request that was executed, from its row; `None` if it is none, or its result is another's.
fn decode_executed(value: &[u8]) -> Option<Executed> {
    let mut input = Reader::new(value);
    let (seq, digest, kept) = <(Seq, Digest, bool)>::decode(&mut input).ok()?;
    let result = if kept { Some(CachedResult::decode(&mut input).ok()?.0) } else { None };
    let good = input.is_empty() && result.as_ref().is_none_or(|result| Digest::of(result) == digest);
    good.then_some(Executed { seq, digest, result })
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
        let mut patched = Table::default();
        patched.record(&key(5), 9, 9, Seq(9), vec![9]);
        let there = patched.tree().names(&base::merkle::Prefix::default());
        let gone = there.iter().map(|name| (name.to_vec(), None));
        let names = table.tree().names(&base::merkle::Prefix::default());
        let rows = names.iter().map(|name| (name.to_vec(), table.row(name)));
        patched.patch(&gone.chain(rows).collect::<Vec<_>>()).expect("rows");
        assert_eq!(patched.digest(), table.digest(), "row by row");
        let sizes = |table: &Table| table.principals.values().map(|principal| principal.result_bytes).sum::<usize>();
        assert_eq!(sizes(&patched), sizes(&table));
        assert!(names.iter().all(|name| {
            let value = table.row(name).expect("it is there");
            let mut spoilt = value.clone();
            *spoilt.last_mut().expect("not empty") ^= 1;
            let digest = Table::row_digest(name, &value);
            digest.is_some() && digest != Table::row_digest(name, &spoilt)
        }));

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
