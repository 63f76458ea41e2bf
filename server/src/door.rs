//! The door: a stranger's bytes are decoded and checked here, once, and counted when they are not
//! what they claim. Behind it only [`Verified`] messages exist.

use std::collections::HashSet;

use base::verdict::verdict_key;
use base::{Claim, Cofactored, Decode, Digest, PublicKey, ReplicaId, Signature, Verified, Verifier};
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
        let Ok(message) = bft::Message::from_bytes(bytes) else {
            self.dropped.add("malformed message of a replica");
            return None;
        };
        let verified = Verified::check(message, &from, &self.context, &self.verdicts).ok();
        if verified.is_none() {
            self.dropped.add("forged message of a replica");
        }
        verified
    }

    /// A client's request as it claims to be; [`Door::requests`] checks it.
    pub(crate) fn unchecked(&self, bytes: &[u8]) -> Option<bft::ClientRequest> {
        let request = bft::ClientRequest::from_bytes(bytes).ok();
        if request.is_none() {
            self.dropped.add("malformed request");
        }
        request
    }

    /// Of clients' requests, each that is signed by whoever it says; checked together.
    pub(crate) fn requests(&self, requests: Vec<bft::ClientRequest>) -> Vec<Option<Verified<bft::ClientRequest>>> {
        let checked = Verified::check_all(requests, &(), &self.context, &self.verdicts);
        let checked: Vec<_> = checked.into_iter().map(Result::ok).collect();
        checked.iter().filter(|request| request.is_none()).for_each(|_| self.dropped.add("forged request"));
        checked
    }
}

/// The verdict, with good ones remembered: a request seen from the client and again in the primary's
/// batch is verified once.
#[derive(Default)]
struct Verdicts(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    young: HashSet<Digest>,
    old: HashSet<Digest>,
}

impl Generations {
    fn know(&self, verdict: &Digest) -> bool {
        self.young.contains(verdict) || self.old.contains(verdict)
    }

    fn note(&mut self, verdict: Digest) {
        if self.young.len() >= VERDICTS_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(verdict);
    }
}

impl Verifier for Verdicts {
    fn verify(&self, key: &PublicKey, bytes: &[u8], signature: &Signature) -> bool {
        self.verify_all(&[&Claim { key: *key, bytes: bytes.to_vec(), signature: *signature }])
    }

    fn verify_all(&self, claims: &[&Claim]) -> bool {
        let verdict = |claim: &Claim| verdict_key(&claim.key, &claim.bytes, &claim.signature);
        let mut new: Vec<_> = claims.iter().map(|claim| (verdict(claim), *claim)).collect();
        {
            let generations = self.0.lock();
            new.retain(|(verdict, _)| !generations.know(verdict));
        }
        let (verdicts, unknown): (Vec<_>, Vec<_>) = new.into_iter().unzip();
        if !Cofactored.verify_all(&unknown) {
            return false;
        }
        let mut generations = self.0.lock();
        verdicts.into_iter().for_each(|verdict| generations.note(verdict));
        true
    }
}

#[cfg(test)]
mod tests {
    use base::{ClusterId, Encode, SecretKey, Signed};
    use bytes::Bytes;

    use super::*;

    fn door() -> Door {
        let keys: Vec<_> = (1..5).map(|n| SecretKey::from_seed(&[n; 32])).collect();
        let publics: Vec<_> = keys.iter().map(SecretKey::public).collect();
        let params = bft::Params::new(ClusterId([1; 16]), ReplicaId(0), publics, keys[0].clone()).unwrap();
        Door::new(params.context())
    }

    fn request(timestamp: u64) -> bft::ClientRequest {
        let client = SecretKey::from_seed(&[9; 32]);
        let request = bft::Request { client: client.public(), session: 1, timestamp, op: Bytes::from_static(b"x") };
        bft::ClientRequest(Signed::new(request, &client, &ClusterId([1; 16])))
    }

    fn verdicts(door: &Door, requests: &[bft::ClientRequest]) -> Vec<bool> {
        door.requests(requests.to_vec()).iter().map(Option::is_some).collect()
    }

    #[test]
    fn forged_and_malformed_requests_are_dropped_and_counted() {
        let door = door();
        let mut signed = request(1);
        assert_eq!(door.unchecked(&signed.to_bytes()), Some(signed.clone()));
        assert_eq!(verdicts(&door, &[signed.clone()]), [true]);
        assert_eq!(verdicts(&door, &[signed.clone()]), [true], "a remembered verdict is the same verdict");
        signed.0.body.timestamp = 2;
        assert_eq!(verdicts(&door, &[signed]), [false]);
        assert_eq!(door.unchecked(b"nonsense"), None);
        let counts: Vec<_> = door.dropped.to_wire().into_iter().map(|count| (count.what, count.count)).collect();
        assert_eq!(counts, [("forged request".to_owned(), 1), ("malformed request".to_owned(), 1)]);
    }

    #[test]
    fn a_forged_request_does_not_take_others_along() {
        let door = door();
        let mut requests: Vec<_> = (0..40).map(request).collect();
        for forged in [3, 4, 39] {
            requests[forged].0.signature.0[7] ^= 1;
        }
        let expected: Vec<bool> = (0..40).map(|index| ![3, 4, 39].contains(&index)).collect();
        assert_eq!(verdicts(&door, &requests), expected);
        assert_eq!(verdicts(&door, &requests), expected, "and none is remembered as good");
    }
}
