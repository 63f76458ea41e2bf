//! Keys of the simulated cluster, and the verifier that knows their signatures.
//!
//! Signatures are symbolic (`base::SecretKey::symbolic`): a hash over public key and bytes. Anybody
//! could compute one, so the adversary here plays by a rule: it signs only with keys that it holds.

use std::sync::OnceLock;

use base::keys::symbolic_signature;
use base::{ClusterId, PublicKey, SecretKey, Signature, Verifier};

/// The cluster that everything is signed for.
pub(crate) const CLUSTER: ClusterId = ClusterId(*b"simulated worlds");
/// Most replicas of a simulated group.
pub(crate) const REPLICAS_MAX: usize = 13;
/// Most principals; those from [`KNOWN_MAX`] on are strangers.
pub(crate) const PRINCIPALS_MAX: usize = 24;
/// Principals that the service knows.
pub(crate) const KNOWN_MAX: usize = 16;

/// Accepts exactly the signatures of symbolic keys.
pub(crate) struct Symbolic;

impl Verifier for Symbolic {
    fn verify(&self, key: &PublicKey, bytes: &[u8], signature: &Signature) -> bool {
        symbolic_signature(key, bytes) == *signature
    }
}

/// The secret key of a replica.
pub(crate) fn replica_secret(index: usize) -> SecretKey {
    keys()[index].clone()
}

/// The secret key of a principal.
pub(crate) fn principal_secret(index: usize) -> SecretKey {
    keys()[REPLICAS_MAX + index].clone()
}

/// The public keys of a group.
pub(crate) fn replica_keys(n: usize) -> Vec<PublicKey> {
    keys()[..n].iter().map(SecretKey::public).collect()
}

/// The public keys of those that the service knows.
pub(crate) fn known_principals() -> Vec<PublicKey> {
    keys()[REPLICAS_MAX..REPLICAS_MAX + KNOWN_MAX].iter().map(SecretKey::public).collect()
}

/// Making a public key takes longer than all else in a short run, so they are made once.
fn keys() -> &'static [SecretKey] {
    static KEYS: OnceLock<Vec<SecretKey>> = OnceLock::new();
    KEYS.get_or_init(|| {
        let seed = |index: usize| [u8::try_from(index + 1).expect("few keys"); 32];
        (0..REPLICAS_MAX + PRINCIPALS_MAX).map(|index| SecretKey::symbolic(&seed(index))).collect()
    })
}

#[cfg(test)]
mod tests {
    use base::{Cofactored, Signed};
    use bft::Request;
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_symbolic_signature_is_for_one_key_and_one_body_and_never_for_release() {
        let key = principal_secret(0);
        let body = Request { client: key.public(), session: 1, timestamp: 2, op: Bytes::from_static(b"op") };
        let mut signed = Signed::new(body, &key, &CLUSTER);
        assert!(signed.check_by(&key.public(), &CLUSTER, &Symbolic).is_ok());
        assert!(signed.check_by(&key.public(), &CLUSTER, &Cofactored).is_err());
        assert!(signed.check_by(&principal_secret(1).public(), &CLUSTER, &Symbolic).is_err());
        signed.body.timestamp = 3;
        assert!(signed.check_by(&key.public(), &CLUSTER, &Symbolic).is_err());
    }
}
