//! Proven reads: rows of a state that `2f + 1` replicas have signed, shown by one of them.
//!
//! From the signatures down: `2f + 1` replicas signed the digest of a [`Head`]; the head holds the
//! agreed time and the root of the state's tree; a part of that tree shows the rows. `f + 1` of the
//! signers are correct, so the rows are as they were at that place and time in the agreed order,
//! whoever shows them.

use std::collections::BTreeSet;

use base::merkle::{Part, Proven, Trie};
use base::{
    Decode, DecodeError, Encode, Forged, Quorums, Reader, ReplicaId, Seq, Signature, Signed, StateMachine, Time,
    Verifier,
};

use crate::mark::Mark;
use crate::message::Head;
use crate::params::{Context, REPLICAS_MAX};

/// Longest encoded [`ReadProof`], bytes. Whoever decodes one looks at its length first.
pub const READ_PROOF_MAX: usize = 256 * 1024;

/// A state that `2f + 1` replicas have signed, to prove reads from. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Certified<S> {
    head: Head,
    signers: Vec<(ReplicaId, Signature)>,
    state: S,
    tree: Trie,
}

impl<S: StateMachine> Certified<S> {
    pub(crate) fn new(head: Head, signers: Vec<(ReplicaId, Signature)>, state: S, tree: Trie) -> Certified<S> {
        Certified { head, signers, state, tree }
    }

    /// Every batch up to here is in it.
    pub fn seq(&self) -> Seq {
        self.head.seq
    }

    /// The agreed time of the last of them.
    pub fn at(&self) -> Time {
        self.head.at
    }

    /// The state.
    pub fn state(&self) -> &S {
        &self.state
    }

    /// Proves what rows have these names, or that there are none.
    pub fn prove(&self, names: &[Vec<u8>]) -> ReadProof {
        let part = self.tree.part(names.iter().map(Vec::as_slice), |name| self.state.row(name));
        ReadProof { head: self.head, signers: self.signers.clone(), part }
    }
}

/// Rows of a signed state, as somebody shows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadProof {
    /// Place, agreed time and digests.
    pub head: Head,
    /// Who signed the head's digest as a [`Mark`].
    pub signers: Vec<(ReplicaId, Signature)>,
    /// The rows, in a part of the tree of the head's state.
    pub part: Part,
}

impl Encode for ReadProof {
    fn encode(&self, out: &mut Vec<u8>) {
        self.head.encode(out);
        self.signers.encode(out);
        self.part.encode(out);
    }
}

impl Decode for ReadProof {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(ReadProof {
            head: Head::decode(input)?,
            signers: input.seq_max("signers", REPLICAS_MAX)?,
            part: Part::decode(input)?,
        })
    }
}

/// Rows that are proven, and of when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvenRows {
    /// Every batch up to here is in them.
    pub seq: Seq,
    /// The agreed time of the last of them.
    pub at: Time,
    /// The rows.
    pub rows: Proven,
}

impl ReadProof {
    /// Checks it from the signatures down.
    ///
    /// # Errors
    /// [`Forged`] if `2f + 1` replicas of the group did not sign this state, or it has not these rows.
    pub fn verify(self, context: &Context, verifier: &dyn Verifier) -> Result<ProvenRows, Forged> {
        let forged = |what| Forged { what };
        let quorums = Quorums::of(context.replicas.len()).ok_or(forged("group"))?;
        let distinct: BTreeSet<ReplicaId> = self.signers.iter().map(|(replica, _)| *replica).collect();
        if distinct.len() != self.signers.len() || distinct.len() < quorums.strong() {
            return Err(forged("signers of a read"));
        }
        let (seq, digest) = (self.head.seq, self.head.digest());
        let mut claims = Vec::with_capacity(self.signers.len());
        for (replica, signature) in &self.signers {
            let key = context.replicas.get(usize::from(replica.0)).ok_or(forged("signers of a read"))?;
            let mark = Signed { body: Mark { seq, digest, replica: *replica }, signature: *signature };
            claims.push(mark.claim(key, &context.cluster));
        }
        // Hashing first: it is cheap, and a wrong part is not worth a verification.
        let rows = self.part.proven(&self.head.state).ok_or(forged("rows of a read"))?;
        if !verifier.verify_all(&claims.iter().collect::<Vec<_>>()) {
            return Err(forged("signature"));
        }
        Ok(ProvenRows { seq, at: self.head.at, rows })
    }
}
