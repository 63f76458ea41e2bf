//! The door: a stranger's bytes are decoded and checked here, once, and counted when they are not
//! what they claim. Behind it only [`Verified`] messages exist.

use std::collections::HashSet;

use base::keys::verdict_key;
use base::{Check, Decode, Digest, PublicKey, ReplicaId, Signature, Strict, Verified, Verifier};
use parking_lot::Mutex;

use crate::counts::Counts;

/// Good verdicts remembered per generation; two generations are kept.
const VERDICTS_MAX: usize = 16_384;

/// Checks what comes in.
pub(crate) struct Door {
    context: bft::Context,
    verdicts: Verdicts,
    pub(crate) dropped: Counts,
}

impl Door {
    pub(crate) fn new(context: bft::Context) -> Door {
        Door { context, verdicts: Verdicts::default(), dropped: Counts::default() }
    }

    /// A replica's message, if it is one.
    pub(crate) fn peer_message(&self, from: ReplicaId, bytes: &[u8]) -> Option<Verified<bft::Message>> {
        self.admit(&from, bytes, "malformed message of a replica", "forged message of a replica")
    }

    /// A client's request, if it is one, signed by whoever it says.
    pub(crate) fn request(&self, bytes: &[u8]) -> Option<Verified<bft::ClientRequest>> {
        self.admit(&(), bytes, "malformed request", "forged request")
    }

    fn admit<M>(
        &self,
        from: &M::From,
        bytes: &[u8],
        malformed: &'static str,
        forged: &'static str,
    ) -> Option<Verified<M>>
    where
        M: Decode + Check<Context = bft::Context>,
    {
        let Ok(message) = M::from_bytes(bytes) else {
            self.dropped.add(malformed);
            return None;
        };
        let verified = Verified::check(message, from, &self.context, &self.verdicts).ok();
        if verified.is_none() {
            self.dropped.add(forged);
        }
        verified
    }
}

/// `verify_strict`, with good verdicts remembered: a request seen from the client and again in the
/// primary's batch is verified once.
#[derive(Default)]
struct Verdicts(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    young: HashSet<Digest>,
    old: HashSet<Digest>,
}

impl Verifier for Verdicts {
    fn verify(&self, key: &PublicKey, bytes: &[u8], signature: &Signature) -> bool {
        let verdict = verdict_key(key, bytes, signature);
        {
            let generations = self.0.lock();
            if generations.young.contains(&verdict) || generations.old.contains(&verdict) {
                return true;
            }
        }
        if !Strict.verify(key, bytes, signature) {
            return false;
        }
        let mut generations = self.0.lock();
        if generations.young.len() >= VERDICTS_MAX {
            generations.old = std::mem::take(&mut generations.young);
        }
        generations.young.insert(verdict);
        true
    }
}

#[cfg(test)]
mod tests {
    use base::{ClusterId, Encode, SecretKey, Signed};
    use bytes::Bytes;

    use super::*;

    #[test]
    fn forged_and_malformed_requests_are_dropped_and_counted() {
        let cluster = ClusterId([1; 16]);
        let keys: Vec<_> = (1..5).map(|n| SecretKey::from_seed(&[n; 32])).collect();
        let publics: Vec<_> = keys.iter().map(SecretKey::public).collect();
        let params = bft::Params::new(cluster, ReplicaId(0), publics, keys[0].clone()).unwrap();
        let door = Door::new(params.context());
        let client = SecretKey::from_seed(&[9; 32]);
        let request = bft::Request { client: client.public(), session: 1, timestamp: 1, op: Bytes::from_static(b"x") };
        let mut signed = Signed::new(request, &client, &cluster);
        assert!(door.request(&signed.to_bytes()).is_some());
        assert!(door.request(&signed.to_bytes()).is_some(), "a remembered verdict is the same verdict");
        signed.body.timestamp = 2;
        assert!(door.request(&signed.to_bytes()).is_none());
        assert!(door.request(b"nonsense").is_none());
        let counts: Vec<_> = door.dropped.to_wire().into_iter().map(|count| (count.what, count.count)).collect();
        assert_eq!(counts, [("forged request".to_owned(), 1), ("malformed request".to_owned(), 1)]);
    }
}
