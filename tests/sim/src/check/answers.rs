//! I2, linearizability: every answer is that of a fresh machine to which the agreed history is
//! applied, and what was finished before something else began comes before it.

use std::collections::BTreeMap;

use base::{Digest, PublicKey, ReplicaId, Seq};

use super::Verdict;
use crate::machine::{Entry, Service};

/// A request's name: principal, session, timestamp.
pub(crate) type Name = (PublicKey, u64, u64);

/// The reference: a machine beside the replicas'.
pub(crate) struct Answers<S> {
    model: S,
    strict: bool,
    /// What clients were told of operations that no correct replica has executed yet: only where
    /// there are too many liars.
    told_early: BTreeMap<Digest, Digest>,
    /// The answers' digests, in order.
    answers: Vec<Digest>,
    /// Where operations are in the history, by digest.
    places: BTreeMap<Digest, u64>,
    /// The operations that were signed under a name; more than one if their client lies.
    names: BTreeMap<Name, Vec<Digest>>,
    /// And the other way round.
    op_names: BTreeMap<Digest, Name>,
    /// Where in the order of batches correct replicas say that a request was executed.
    seqs: BTreeMap<Name, (ReplicaId, Seq, Digest)>,
    /// The last place of which some client knows.
    known: Option<u64>,
}

impl<S: Service> Answers<S> {
    /// Nothing was applied to `genesis` yet.
    pub(crate) fn new(genesis: S, strict: bool) -> Answers<S> {
        Answers {
            model: genesis,
            strict,
            told_early: BTreeMap::new(),
            answers: Vec::new(),
            places: BTreeMap::new(),
            names: BTreeMap::new(),
            op_names: BTreeMap::new(),
            seqs: BTreeMap::new(),
            known: None,
        }
    }

    /// An operation was signed under this name.
    pub(crate) fn named(&mut self, name: Name, op: Digest) {
        self.op_names.entry(op).or_insert(name);
        let ops = self.names.entry(name).or_default();
        if !ops.contains(&op) {
            ops.push(op);
        }
    }

    /// The next entry of the history.
    pub(crate) fn applied(&mut self, entry: &Entry, op: Digest) -> Verdict {
        let place = self.answers.len() as u64;
        let answer = Digest::of(&self.model.apply(entry.at, &entry.who, &entry.op));
        self.answers.push(answer);
        self.places.entry(op).or_insert(place);
        if self.told_early.remove(&op).is_some_and(|told| told != answer) {
            return Err(format!("a client was told something else of place {place} than the model answers"));
        }
        if answer == entry.answer {
            return Ok(());
        }
        Err(format!("at place {place} a replica answered {:?} where the model answers {answer:?}", entry.answer))
    }

    /// A correct replica answers.
    pub(crate) fn replied(&mut self, who: ReplicaId, name: Name, seq: Seq, digest: Digest) -> Verdict {
        let (first, at, said) = *self.seqs.entry(name).or_insert((who, seq, digest));
        if (at, said) != (seq, digest) {
            let (_, session, timestamp) = name;
            let place = format!("request {timestamp} of session {session}");
            return Err(format!("{who:?} answers {digest:?} at {seq:?} to {place}; {first:?} {said:?} at {at:?}"));
        }
        // The empty operation, which opens a session, never reaches the machine.
        let ops = self.names.get(&name).map_or(&[][..], Vec::as_slice);
        let mut places = ops.iter().filter_map(|op| self.places.get(op)).peekable();
        if places.peek().is_none() || places.any(|place| self.answers[*place as usize] == digest) {
            return Ok(());
        }
        Err(format!("{who:?} answers {digest:?}, which is not what the model answers"))
    }

    /// How far the history is known to anybody who begins now.
    pub(crate) fn known_through(&self) -> Option<u64> {
        self.known
    }

    /// A correct client was told a result. Gives the operation's place, if it has one yet.
    pub(crate) fn done(
        &mut self,
        op: Digest,
        floor: Option<u64>,
        seq: Seq,
        result: &[u8],
    ) -> Result<Option<u64>, String> {
        let Some(place) = self.places.get(&op).copied() else {
            if !self.strict {
                self.told_early.insert(op, Digest::of(result));
                return Ok(None);
            }
            return Err("a client was told the result of an operation that was never executed".into());
        };
        if floor.is_some_and(|floor| place <= floor) {
            return Err(format!(
                "place {place} was executed before place {floor:?}, which was finished before it began"
            ));
        }
        if self.answers[place as usize] != Digest::of(result) {
            return Err(format!("a client was told something else of place {place} than the model answers"));
        }
        self.known = self.known.max(Some(place));
        let Some(name) = self.op_names.get(&op).copied() else { return Ok(Some(place)) };
        // What the client believes counts like a correct replica's word.
        let (_, at, _) = *self.seqs.entry(name).or_insert((ReplicaId(u16::MAX), seq, Digest::of(result)));
        if at == seq {
            Ok(Some(place))
        } else {
            Err(format!("a client was told that place {place} is in {seq:?}, not {at:?}"))
        }
    }

    /// The end: whatever a client was told must have been executed by now.
    pub(crate) fn finish(&self) -> Verdict {
        if self.told_early.is_empty() { Ok(()) } else { Err("a client was told what nobody ever executed".into()) }
    }

    /// A correct replica has applied the whole history: its state is the model's.
    pub(crate) fn state(&mut self, who: ReplicaId, digest: Digest) -> Verdict {
        let model = self.model.digest();
        if digest == model { Ok(()) } else { Err(format!("{who:?} has the state {digest:?}, the model {model:?}")) }
    }
}

#[cfg(test)]
mod tests {
    use base::{StateMachine as _, Time};
    use bytes::Bytes;

    use super::*;
    use crate::keys::known_principals;
    use crate::machine::Journal;
    use crate::rng::Rng;

    /// A history of two operations, and what they were answered with.
    fn told() -> (Answers<Journal>, Vec<(Bytes, Vec<u8>)>) {
        let principals = known_principals();
        let mut machine = Journal::genesis(&principals);
        let mut answers = Answers::new(machine.clone(), true);
        let mut results = Vec::new();
        for number in 0..2 {
            let op = Journal::operation(&mut Rng::new(number), number);
            let result = machine.apply(Time(number), &principals[0], &op);
            let answer = Digest::of(&result);
            let entry = Entry { at: Time(number), who: principals[0], op: op.clone(), answer, chain: answer };
            answers.named((principals[0], 1, number), Digest::of(&op));
            assert_eq!(answers.applied(&entry, Digest::of(&op)), Ok(()));
            results.push((op, result));
        }
        (answers, results)
    }

    #[test]
    fn a_wrong_result_is_caught() {
        let (mut answers, results) = told();
        let (op, result) = &results[1];
        assert_eq!(answers.done(Digest::of(op), None, Seq(7), result), Ok(Some(1)));
        assert!(answers.done(Digest::of(op), None, Seq(7), b"a lie").is_err());
        assert!(answers.done(Digest::of(b"never asked"), None, Seq(7), result).is_err());
        let name = (known_principals()[0], 1, 1);
        assert!(answers.replied(ReplicaId(0), name, Seq(7), Digest::of(result)).is_ok());
        assert!(answers.replied(ReplicaId(1), name, Seq(8), Digest::of(result)).is_err());
        assert!(answers.replied(ReplicaId(1), name, Seq(7), Digest::of(b"a lie")).is_err());
    }

    #[test]
    fn an_order_against_real_time_is_caught() {
        let (mut answers, results) = told();
        assert_eq!(answers.done(Digest::of(&results[1].0), None, Seq(7), &results[1].1), Ok(Some(1)));
        let floor = answers.known_through();
        assert_eq!(floor, Some(1));
        assert!(answers.done(Digest::of(&results[0].0), floor, Seq(7), &results[0].1).is_err());
    }

    #[test]
    fn another_answer_than_the_models_is_caught() {
        let (mut answers, results) = told();
        let (op, answer) = (results[0].0.clone(), Digest::of(b"rot"));
        let entry = Entry { at: Time(9), who: known_principals()[0], op, answer, chain: answer };
        assert!(answers.applied(&entry, Digest([9; 32])).is_err());
        assert!(answers.state(ReplicaId(0), Digest([9; 32])).is_err());
    }
}
