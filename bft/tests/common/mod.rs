//! A whole cluster in one thread: replicas, clients, disks and a network that loses, repeats and
//! reorders, all driven from one seed. What replicas say and execute is checked at every step.
#![allow(dead_code, unreachable_pub, reason = "every test binary uses a part of it")]

pub mod bench;
pub mod machine;
pub mod world;

use base::{Check, ClusterId, Cofactored, PublicKey, ReplicaId, SecretKey, Signature, Verified, Verifier};
use bft::{Context, Params};

pub const CLUSTER: ClusterId = ClusterId(*b"a test's cluster");

/// A random number generator (xorshift64*), so that a seed is all there is to a run.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }

    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

pub fn replica_secret(index: usize) -> SecretKey {
    SecretKey::from_seed(&[index as u8 + 1; 32])
}

pub fn client_secret(index: usize) -> SecretKey {
    SecretKey::from_seed(&[index as u8 + 101; 32])
}

pub fn replica_keys(n: usize) -> Vec<PublicKey> {
    (0..n).map(|index| replica_secret(index).public()).collect()
}

/// Parameters with small intervals, so that short tests see checkpoints.
pub fn params(n: usize, me: usize) -> Params {
    let params = Params::new(CLUSTER, ReplicaId(me as u16), replica_keys(n), replica_secret(me));
    let mut params = params.expect("good parameters");
    params.checkpoint_interval = 4;
    params.window = 16;
    params.in_flight_max = 4;
    params.status_interval = std::time::Duration::from_millis(50);
    params.view_timeout = std::time::Duration::from_millis(400);
    params
}

/// Believes every signature: for worlds in which nobody forges, at a thousandth of the cost.
pub struct Trusting;

impl Verifier for Trusting {
    fn verify(&self, _key: &PublicKey, _bytes: &[u8], _signature: &Signature) -> bool {
        true
    }
}

/// Checks with real signatures.
pub fn verified<M: Check<Context = Context>>(message: M, from: M::From, n: usize) -> Verified<M> {
    Verified::check(message, &from, &params(n, 0).context(), &Cofactored).expect("a good message")
}
