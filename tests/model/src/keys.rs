//! Keys of the modelled group, and the door: which messages a replica would admit.
//!
//! Signatures are symbolic (`base::SecretKey::symbolic`): a hash over public key and bytes. The
//! traitor plays by the rule that it signs with its own key only.

use std::sync::OnceLock;

use base::keys::symbolic_signature;
use base::{ClusterId, PublicKey, ReplicaId, SecretKey, Signable, Signature, Signed, Verifier};

/// The cluster that everything is signed for.
pub(crate) const CLUSTER: ClusterId = ClusterId(*b"modelled cluster");
/// Replicas of the group.
pub(crate) const N: usize = 4;
/// Clients: one beside each replica, and one more for each replica to lie about.
const CLIENTS: usize = 2 * N;

/// Accepts exactly the signatures of symbolic keys.
pub(crate) struct Symbolic;

impl Verifier for Symbolic {
    fn verify(&self, key: &PublicKey, bytes: &[u8], signature: &Signature) -> bool {
        symbolic_signature(key, bytes) == *signature
    }
}

fn keys() -> &'static [SecretKey] {
    static KEYS: OnceLock<Vec<SecretKey>> = OnceLock::new();
    let seed = |index: usize| [u8::try_from(index + 1).expect("few keys"); 32];
    KEYS.get_or_init(|| (0..N + CLIENTS).map(|index| SecretKey::symbolic(&seed(index))).collect())
}

/// A replica's secret key.
pub(crate) fn of_replica(replica: ReplicaId) -> &'static SecretKey {
    &keys()[usize::from(replica.0)]
}

/// A client's secret key.
pub(crate) fn of_client(client: usize) -> &'static SecretKey {
    &keys()[N + client]
}

/// The group's public keys.
pub(crate) fn group() -> Vec<PublicKey> {
    keys()[..N].iter().map(SecretKey::public).collect()
}

/// Signs as a replica.
pub(crate) fn sign<M: Signable>(replica: ReplicaId, body: M) -> Signed<M> {
    Signed::new(body, of_replica(replica), &CLUSTER)
}
