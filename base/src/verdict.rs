//! Whether a signature is good: one verdict, of one signature or of many at once.
//!
//! A signature `(R, s)` of key `A` over `M` is good if `8(sB - kA - R) = 0`, `k = SHA-512(R, A, M)`
//! (RFC 8032 §5.1.7, the *cofactored* equation; Chalkias, Garillot & Nikolaenko, "Taming the many
//! EdDSAs", 2020). Multiplied by eight, a sum of many such terms under random factors is zero exactly
//! if every term is, so a batch is judged as its members are, whatever else is in it. Without the
//! eight that is not so: crafted signatures would pass in one batch and fail in another, and a
//! client could split the replicas (ADR 9).

use std::cell::RefCell;
use std::collections::BTreeMap;

use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::{IsIdentity as _, VartimeMultiscalarMul as _};
use sha2::{Digest as _, Sha512};

use crate::hash::Digest;
use crate::keys::{PublicKey, Signature};

/// Decompressed keys that a thread remembers.
const POINTS_MAX: usize = 1024;

/// That a key signed these bytes, by a signature not yet checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Who signed.
    pub key: PublicKey,
    /// What was signed, as [`crate::Signable::signed_bytes`] gives it.
    pub bytes: Vec<u8>,
    /// The signature.
    pub signature: Signature,
}

/// Says whether a signature is good. [`Cofactored`] is the only verdict there is; an implementation
/// may remember verdicts, not change them.
pub trait Verifier {
    /// Whether `key` signed `bytes` with `signature`.
    fn verify(&self, key: &PublicKey, bytes: &[u8], signature: &Signature) -> bool;

    /// Whether every claim is good.
    fn verify_all(&self, claims: &[&Claim]) -> bool {
        claims.iter().all(|claim| self.verify(&claim.key, &claim.bytes, &claim.signature))
    }
}

/// The cofactored equation, every time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cofactored;

impl Verifier for Cofactored {
    fn verify(&self, key: &PublicKey, bytes: &[u8], signature: &Signature) -> bool {
        let (Some(term), Some(a)) = (Term::of(key, bytes, signature), point_of(key)) else { return false };
        let Some(r) = term.r.decompress() else { return false };
        let recomputed = EdwardsPoint::vartime_double_scalar_mul_basepoint(&term.k, &-a, &term.s);
        (recomputed - r).mul_by_cofactor().is_identity()
    }

    fn verify_all(&self, claims: &[&Claim]) -> bool {
        match claims {
            [] => true,
            [claim] => self.verify(&claim.key, &claim.bytes, &claim.signature),
            _ => all_good(claims).unwrap_or(false),
        }
    }
}

/// What the equation needs of one signature, but for the key's point.
struct Term {
    r: CompressedEdwardsY,
    s: Scalar,
    k: Scalar,
}

impl Term {
    /// `None` if `s` is not reduced: another spelling of a signature is not one.
    fn of(key: &PublicKey, bytes: &[u8], signature: &Signature) -> Option<Term> {
        let (r, s) = signature.0.split_first_chunk::<32>()?;
        let s = Option::from(Scalar::from_canonical_bytes(s.try_into().ok()?))?;
        let hash = Sha512::new().chain_update(r).chain_update(key.as_array()).chain_update(bytes).finalize();
        Some(Term { r: CompressedEdwardsY(*r), s, k: Scalar::from_bytes_mod_order_wide(&hash.into()) })
    }
}

/// `8(Σ zsB - Σ zR - Σ zkA) = 0` for factors `z` that nobody can know before all else is fixed;
/// `None` if something in it is no point or no scalar.
fn all_good(claims: &[&Claim]) -> Option<bool> {
    let mut terms = Vec::with_capacity(claims.len());
    let mut transcript = Vec::with_capacity(claims.len() * 64);
    for Claim { key, bytes, signature } in claims {
        let term = Term::of(key, bytes, signature)?;
        // `k` binds R, A and M.
        transcript.extend_from_slice(term.k.as_bytes());
        transcript.extend_from_slice(term.s.as_bytes());
        terms.push(term);
    }
    let seed = Digest::of(&transcript);
    let (mut base, mut keys) = (Scalar::ZERO, BTreeMap::<&[u8; 32], (EdwardsPoint, Scalar)>::new());
    let mut scalars = Vec::with_capacity(2 * claims.len() + 1);
    for (index, (term, claim)) in terms.iter().zip(claims).enumerate() {
        let z = factor(&seed, index);
        base += z * term.s;
        scalars.push(z);
        let a = match keys.get_mut(claim.key.as_array()) {
            Some(known) => known,
            None => keys.entry(claim.key.as_array()).or_insert((point_of(&claim.key)?, Scalar::ZERO)),
        };
        a.1 += z * term.k;
    }
    scalars.push(-base);
    scalars.extend(keys.values().map(|(_, factor)| factor));
    let rs = terms.iter().map(|term| term.r.decompress());
    let others = core::iter::once(curve25519_dalek::constants::ED25519_BASEPOINT_POINT);
    let others = others.chain(keys.values().map(|(point, _)| *point)).map(Some);
    let sum = EdwardsPoint::optional_multiscalar_mul(scalars, rs.chain(others))?;
    Some(sum.mul_by_cofactor().is_identity())
}

/// 128 bits, as good as random.
fn factor(seed: &Digest, index: usize) -> Scalar {
    let hash = Digest::of_parts(&[&seed.0, &(index as u64).to_le_bytes()]);
    let (half, _) = hash.0.split_first_chunk::<16>().expect("half of a digest");
    Scalar::from(u128::from_le_bytes(*half))
}

/// The key's point; `None` if the bytes are not canonical or the key is weak (of small order, so that
/// one signature could fit many messages).
pub(crate) fn point_of(key: &PublicKey) -> Option<EdwardsPoint> {
    thread_local! {
        static POINTS: RefCell<BTreeMap<[u8; 32], Option<EdwardsPoint>>> = RefCell::default();
    }
    POINTS.with_borrow_mut(|points| {
        if let Some(point) = points.get(key.as_array()) {
            return *point;
        }
        let canonical = |point: &EdwardsPoint| point.compress().as_bytes() == key.as_array();
        let point = CompressedEdwardsY(*key.as_array()).decompress();
        let point = point.filter(|point| !point.is_small_order() && canonical(point));
        if points.len() >= POINTS_MAX {
            points.clear();
        }
        points.insert(*key.as_array(), point);
        point
    })
}

/// The key under which a cache of verdicts may remember one.
#[must_use]
pub fn verdict_key(key: &PublicKey, bytes: &[u8], signature: &Signature) -> Digest {
    Digest::of_parts(&[key.as_array(), &signature.0, bytes])
}

#[cfg(test)]
mod tests {
    use curve25519_dalek::constants::{ED25519_BASEPOINT_POINT, EIGHT_TORSION};

    use super::*;
    use crate::id::ClusterId;
    use crate::{Encode, SecretKey, Signable, Signed};

    struct Note(u64);
    impl Encode for Note {
        fn encode(&self, out: &mut Vec<u8>) {
            self.0.encode(out);
        }
    }
    impl Signable for Note {
        const DOMAIN: &'static str = "test-note";
    }

    fn claim(signer: u8, body: u64) -> Claim {
        let key = SecretKey::from_seed(&[signer; 32]);
        let cluster = ClusterId([1; 16]);
        let signed = Signed::new(Note(body), &key, &cluster);
        Claim { key: key.public(), bytes: signed.body.signed_bytes(&cluster), signature: signed.signature }
    }

    fn together(claims: &[Claim]) -> bool {
        Cofactored.verify_all(&claims.iter().collect::<Vec<_>>())
    }

    fn alone(claim: &Claim) -> bool {
        Cofactored.verify(&claim.key, &claim.bytes, &claim.signature)
    }

    #[test]
    fn a_batch_is_good_if_and_only_if_all_of_it_is() {
        for count in [0, 1, 2, 3, 20, 200] {
            let good: Vec<Claim> = (0..count).map(|n| claim((n % 7) as u8 + 1, n)).collect();
            assert!(together(&good));
            for (index, byte) in [(0, 0), (count / 2, 31), (count.saturating_sub(1), 40)] {
                let mut bad = good.clone();
                let Some(one) = bad.get_mut(index as usize) else { continue };
                one.signature.0[byte] ^= 1;
                assert!(!alone(one));
                assert!(!together(&bad));
                let mut bad = good.clone();
                bad[index as usize].bytes[0] ^= 1;
                assert!(!together(&bad));
            }
        }
    }

    #[test]
    fn agrees_with_dalek_on_what_honest_keys_sign() {
        for body in 0..50 {
            let Claim { key, bytes, signature } = claim(3, body);
            let dalek = ed25519_dalek::VerifyingKey::from_bytes(key.as_array()).unwrap();
            let verdict = dalek.verify_strict(&bytes, &ed25519_dalek::Signature::from_bytes(&signature.0));
            assert!(verdict.is_ok() && alone(&claim(3, body)));
        }
    }

    /// The signer adds a point of small order to R: whatever the verdict, it must not depend on company.
    #[test]
    fn crafted_signatures_get_one_verdict_in_any_company() {
        let secret = Scalar::from(123_456_789_u64);
        let a = ED25519_BASEPOINT_POINT * secret;
        let key = PublicKey::from_array(a.compress().as_bytes()).unwrap();
        let companions: Vec<Claim> = (0..9).map(|n| claim(5, n)).collect();
        for n in 0..64_u64 {
            let (nonce, torsion) = (Scalar::from(n + 99), EIGHT_TORSION[n as usize % 8]);
            let r = (ED25519_BASEPOINT_POINT * nonce + torsion).compress();
            let bytes = n.to_bytes();
            let hash = Sha512::new().chain_update(r.0).chain_update(key.as_array()).chain_update(&bytes).finalize();
            let s = nonce + Scalar::from_bytes_mod_order_wide(&hash.into()) * secret;
            let mut signature = [0; 64];
            signature[..32].copy_from_slice(&r.0);
            signature[32..].copy_from_slice(s.as_bytes());
            let crafted = Claim { key, bytes, signature: Signature(signature) };
            let verdict = alone(&crafted);
            assert!(verdict, "cofactored");
            for company in 0..companions.len() {
                let batch: Vec<Claim> = companions[..company].iter().cloned().chain([crafted.clone()]).collect();
                assert_eq!(together(&batch), verdict, "beside {company}");
            }
        }
    }

    #[test]
    fn an_unsound_key_signs_nothing() {
        let mut identity = [0; 32];
        identity[0] = 1;
        let mut bytes = identity.as_slice();
        let key = <PublicKey as crate::Decode>::from_bytes(bytes).unwrap();
        bytes = b"anything";
        // R = identity, s = 0 satisfies the equation for a key of small order.
        let mut signature = [0; 64];
        signature[0] = 1;
        let claim = Claim { key, bytes: bytes.to_vec(), signature: Signature(signature) };
        assert!(!alone(&claim));
        assert!(!together(&[claim.clone(), claim]));
    }
}
