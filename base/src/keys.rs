//! Keys, signatures, and messages that have been checked.
//!
//! One rule on every replica: `verify_strict`, never a batch verdict. Crafted signatures make
//! dalek's `verify_batch` answer differently with the make-up of the batch, which would let a
//! client split the replicas. Weak and non-canonical keys are refused when they are read.

use core::fmt;
use core::ops::Deref;

use ed25519_dalek::Signer as _;
use ed25519_dalek::pkcs8::EncodePrivateKey as _;
use zeroize::Zeroizing;

use crate::codec::{Decode, DecodeError, Encode, Reader};
use crate::hash::Digest;
use crate::id::ClusterId;

/// An ed25519 public key: a principal, a node or a replica.
///
/// Holds the 32 canonical bytes and the decompressed point, so that a verification does not pay
/// for decompression again.
#[derive(Clone, Copy)]
pub struct PublicKey(ed25519_dalek::VerifyingKey);

impl PublicKey {
    /// The key with these bytes; `None` if they are not canonical or the key is weak (of small
    /// order, so that one signature could fit many messages).
    #[must_use]
    pub fn from_array(bytes: &[u8; 32]) -> Option<PublicKey> {
        let key = ed25519_dalek::VerifyingKey::from_bytes(bytes).ok()?;
        (!key.is_weak() && key.to_edwards().compress().as_bytes() == bytes).then_some(PublicKey(key))
    }

    /// The key's 32 bytes.
    #[must_use]
    pub fn as_array(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// The key written in hexadecimal.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<PublicKey> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(core::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        PublicKey::from_array(&bytes)
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.as_array() == other.as_array()
    }
}
impl Eq for PublicKey {}
impl PartialOrd for PublicKey {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for PublicKey {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.as_array().cmp(other.as_array())
    }
}
impl core::hash::Hash for PublicKey {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        self.as_array().hash(state);
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_array().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_array()[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Encode for PublicKey {
    fn encode(&self, out: &mut Vec<u8>) {
        self.as_array().encode(out);
    }
}

impl Decode for PublicKey {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        PublicKey::from_array(&<[u8; 32]>::decode(input)?).ok_or(DecodeError::Invalid { what: "public key" })
    }
}

/// An ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signature(pub [u8; 64]);

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Encode for Signature {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
}

impl Decode for Signature {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Signature(<[u8; 64]>::decode(input)?))
    }
}

/// A secret key. Signing is deterministic, so a core may hold one. Wiped from memory when dropped.
#[derive(Clone)]
pub struct SecretKey(Secret);

#[derive(Clone)]
enum Secret {
    Ed25519(ed25519_dalek::SigningKey),
    /// Only the public half: see [`SecretKey::symbolic`].
    Symbolic(PublicKey),
}

impl SecretKey {
    /// The key grown from 32 secret random bytes.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> SecretKey {
        SecretKey(Secret::Ed25519(ed25519_dalek::SigningKey::from_bytes(seed)))
    }

    /// A key for simulations: its signatures are [`symbolic_signature`]s, which cost a hash and no
    /// curve arithmetic. Its public half is a real one, and [`Strict`] accepts none of its signatures,
    /// so that it is good for nothing outside a simulation.
    #[must_use]
    pub fn symbolic(seed: &[u8; 32]) -> SecretKey {
        SecretKey(Secret::Symbolic(SecretKey::from_seed(seed).public()))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        match &self.0 {
            Secret::Ed25519(key) => PublicKey(key.verifying_key()),
            Secret::Symbolic(public) => *public,
        }
    }

    /// The key in PKCS#8, as a TLS library wants it.
    ///
    /// # Panics
    /// If the key is a symbolic one: a simulation has no TLS.
    #[must_use]
    pub fn to_pkcs8_der(&self) -> Zeroizing<Vec<u8>> {
        let Secret::Ed25519(key) = &self.0 else { panic!("a symbolic key has no secret bytes") };
        let document = key.to_pkcs8_der().expect("an ed25519 key always encodes");
        Zeroizing::new(document.as_bytes().to_vec())
    }

    fn sign(&self, bytes: &[u8]) -> Signature {
        match &self.0 {
            Secret::Ed25519(key) => Signature(key.sign(bytes).to_bytes()),
            Secret::Symbolic(public) => symbolic_signature(public, bytes),
        }
    }
}

/// What a symbolic key signs with: a hash over the public key and the bytes, and padding.
///
/// The padding stands where ed25519 has a scalar, and is above the group's order, so that every
/// verification refuses it before it computes anything. Anybody can compute it: a simulated
/// adversary is bound by a rule, not by arithmetic, to sign only with keys that it holds.
#[must_use]
pub fn symbolic_signature(key: &PublicKey, bytes: &[u8]) -> Signature {
    let mut signature = [0xff; 64];
    signature[..32].copy_from_slice(&Digest::of_parts(&[b"symbolic", key.as_array(), bytes]).0);
    Signature(signature)
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey of {:?}", self.public())
    }
}

/// A body that can be signed: its canonical encoding under a domain tag, so that a signature on
/// one kind of message can't be shown as one on another.
pub trait Signable: Encode {
    /// The tag, unique among all signable types.
    const DOMAIN: &'static str;

    /// The bytes that are signed: `"mangrove/1/" DOMAIN NUL cluster encoding`.
    fn signed_bytes(&self, cluster: &ClusterId) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        out.extend_from_slice(b"mangrove/1/");
        out.extend_from_slice(Self::DOMAIN.as_bytes());
        out.push(0);
        out.extend_from_slice(&cluster.0);
        self.encode(&mut out);
        out
    }
}

/// A body and somebody's signature on it, not yet checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed<M> {
    /// What is signed.
    pub body: M,
    /// The signature.
    pub signature: Signature,
}

impl<M: Signable> Signed<M> {
    /// Signs `body` for `cluster`.
    pub fn new(body: M, key: &SecretKey, cluster: &ClusterId) -> Signed<M> {
        let signature = key.sign(&body.signed_bytes(cluster));
        Signed { body, signature }
    }

    /// Whether `key` made this signature for `cluster`.
    ///
    /// # Errors
    /// [`Forged`] if it did not.
    pub fn check_by(&self, key: &PublicKey, cluster: &ClusterId, verifier: &dyn Verifier) -> Result<(), Forged> {
        if verifier.verify(key, &self.body.signed_bytes(cluster), &self.signature) {
            Ok(())
        } else {
            Err(Forged { what: M::DOMAIN })
        }
    }
}

impl<M: Encode> Encode for Signed<M> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.body.encode(out);
        self.signature.encode(out);
    }
}

impl<M: Decode> Decode for Signed<M> {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Signed { body: M::decode(input)?, signature: Signature::decode(input)? })
    }
}

/// A message whose signature, certificate or sender is not what it claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("forged {what}")]
pub struct Forged {
    /// Which kind of message.
    pub what: &'static str,
}

/// Says whether a signature is good. [`Strict`] is the only verdict there is; an implementation
/// may remember verdicts, not change them.
pub trait Verifier {
    /// Whether `key` signed `bytes` with `signature`.
    fn verify(&self, key: &PublicKey, bytes: &[u8], signature: &Signature) -> bool;
}

/// `verify_strict`, every time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Strict;

impl Verifier for Strict {
    fn verify(&self, key: &PublicKey, bytes: &[u8], signature: &Signature) -> bool {
        key.0.verify_strict(bytes, &ed25519_dalek::Signature::from_bytes(&signature.0)).is_ok()
    }
}

/// The key under which a cache of verdicts may remember one.
#[must_use]
pub fn verdict_key(key: &PublicKey, bytes: &[u8], signature: &Signature) -> Digest {
    Digest::of_parts(&[key.as_array(), &signature.0, bytes])
}

/// A message that knows how to be checked against what its receiver knows (`Context`: the
/// replicas' keys, say) and against who handed it over on an authenticated link (`From`).
pub trait Check {
    /// What the receiver knows.
    type Context: ?Sized;
    /// Who handed the message over, as the link's TLS session proved.
    type From;

    /// Checks every signature and claim of origin in the message.
    ///
    /// # Errors
    /// [`Forged`], if any part is not by whom it claims.
    fn check(&self, from: &Self::From, context: &Self::Context, verifier: &dyn Verifier) -> Result<(), Forged>;
}

/// A message that has been checked. There is no other way to make one than [`Verified::check`], so
/// unchecked bytes cannot reach a core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified<M>(M);

impl<M: Check> Verified<M> {
    /// Checks `message`.
    ///
    /// # Errors
    /// [`Forged`], if any part is not by whom it claims.
    pub fn check(
        message: M,
        from: &M::From,
        context: &M::Context,
        verifier: &dyn Verifier,
    ) -> Result<Verified<M>, Forged> {
        message.check(from, context, verifier)?;
        Ok(Verified(message))
    }
}

impl<M> Verified<M> {
    /// The message; what it loses by this is the proof that it was checked.
    pub fn into_inner(self) -> M {
        self.0
    }
}

impl<M> Deref for Verified<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Note(u64);
    impl Encode for Note {
        fn encode(&self, out: &mut Vec<u8>) {
            self.0.encode(out);
        }
    }
    impl Signable for Note {
        const DOMAIN: &'static str = "test-note";
    }

    #[test]
    fn a_signature_is_for_one_body_one_key_and_one_cluster() {
        let (key, cluster) = (SecretKey::from_seed(&[7; 32]), ClusterId([1; 16]));
        let mut note = Signed::new(Note(5), &key, &cluster);
        assert_eq!(note.check_by(&key.public(), &cluster, &Strict), Ok(()));
        assert!(note.check_by(&key.public(), &ClusterId([2; 16]), &Strict).is_err());
        assert!(note.check_by(&SecretKey::from_seed(&[8; 32]).public(), &cluster, &Strict).is_err());
        note.body.0 = 6;
        assert!(note.check_by(&key.public(), &cluster, &Strict).is_err());
    }

    #[test]
    fn a_symbolic_signature_is_never_accepted() {
        let (key, cluster) = (SecretKey::symbolic(&[7; 32]), ClusterId([1; 16]));
        assert_eq!(key.public(), SecretKey::from_seed(&[7; 32]).public());
        for body in 0..100 {
            let note = Signed::new(Note(body), &key, &cluster);
            assert_eq!(note.signature, symbolic_signature(&key.public(), &note.body.signed_bytes(&cluster)));
            assert!(note.check_by(&key.public(), &cluster, &Strict).is_err());
        }
    }

    #[test]
    fn weak_and_non_canonical_keys_are_refused() {
        // The eight small-order points include the identity (1, 0) and (0, ...).
        let mut identity = [0; 32];
        identity[0] = 1;
        assert!(PublicKey::from_array(&identity).is_none());
        assert!(PublicKey::from_array(&[0; 32]).is_none());
        // y = p + 3, a non-canonical spelling of y = 3.
        let mut non_canonical = [0xff; 32];
        non_canonical[0] = 0xf0;
        non_canonical[31] = 0x7f;
        assert!(PublicKey::from_array(&non_canonical).is_none());
        let good = SecretKey::from_seed(&[9; 32]).public();
        assert_eq!(PublicKey::from_hex(&good.to_string()), Some(good));
        assert!(PublicKey::from_hex("zz").is_none());
    }
}
