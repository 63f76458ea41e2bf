//! Keys, signatures, and messages that have been checked.
//!
//! When a signature is good is said in [`crate::verdict`].

use core::fmt;
use core::ops::Deref;
use std::cell::RefCell;

use ed25519_dalek::Signer as _;
use ed25519_dalek::pkcs8::EncodePrivateKey as _;
use zeroize::Zeroizing;

use crate::codec::{Decode, DecodeError, Encode, Reader};
use crate::hash::Digest;
use crate::id::ClusterId;
use crate::verdict::{Claim, Verifier, point_of};

/// An ed25519 public key: a principal, a node or a replica.
///
/// One that was decoded is 32 bytes of which nothing is known; if they are no sound key, no signature
/// of it is ever good. [`PublicKey::from_array`] tells, where keys are admitted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The key with these bytes; `None` if they are not canonical or the key is weak (of small
    /// order, so that one signature could fit many messages).
    #[must_use]
    pub fn from_array(bytes: &[u8; 32]) -> Option<PublicKey> {
        let key = PublicKey(*bytes);
        point_of(&key).map(|_| key)
    }

    /// The key's 32 bytes.
    #[must_use]
    pub fn as_array(&self) -> &[u8; 32] {
        &self.0
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
        Ok(PublicKey(<[u8; 32]>::decode(input)?))
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
    /// curve arithmetic. Its public half is a real one, and [`crate::Cofactored`] accepts none of its signatures,
    /// so that it is good for nothing outside a simulation.
    #[must_use]
    pub fn symbolic(seed: &[u8; 32]) -> SecretKey {
        SecretKey(Secret::Symbolic(SecretKey::from_seed(seed).public()))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        match &self.0 {
            Secret::Ed25519(key) => PublicKey(key.verifying_key().to_bytes()),
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

    /// The bytes that are signed; see [`signed_bytes`].
    fn signed_bytes(&self, cluster: &ClusterId) -> Vec<u8> {
        signed_bytes(Self::DOMAIN, cluster, self)
    }
}

/// The bytes that are signed: `"mangrove/1/" domain NUL cluster encoding`.
pub fn signed_bytes(domain: &str, cluster: &ClusterId, body: &(impl Encode + ?Sized)) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    out.extend_from_slice(b"mangrove/1/");
    out.extend_from_slice(domain.as_bytes());
    out.push(0);
    out.extend_from_slice(&cluster.0);
    body.encode(&mut out);
    out
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
        if verifier.verify_all(&[&self.claim(key, cluster)]) { Ok(()) } else { Err(Forged { what: M::DOMAIN }) }
    }

    /// The claim that `key` made this signature for `cluster`, to be checked with others.
    pub fn claim(&self, key: &PublicKey, cluster: &ClusterId) -> Claim {
        Claim { key: *key, bytes: self.body.signed_bytes(cluster), signature: self.signature }
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

impl<M: Check> Verified<M> {
    /// Checks messages from one place together, which costs less than one by one; in their order, the
    /// verdict on each.
    pub fn check_all(
        messages: Vec<M>,
        from: &M::From,
        context: &M::Context,
        verifier: &dyn Verifier,
    ) -> Vec<Result<Verified<M>, Forged>> {
        let gathered = messages.into_iter().map(|message| {
            let gather = Gather::default();
            let checked = message.check(from, context, &gather);
            checked.map(|()| (message, gather.0.into_inner()))
        });
        let gathered: Vec<_> = gathered.collect();
        let claims: Vec<&[Claim]> = gathered.iter().flatten().map(|(_, claims)| claims.as_slice()).collect();
        let mut verdicts = Vec::with_capacity(claims.len());
        judge(&claims, verifier, &mut verdicts);
        let mut verdicts = verdicts.into_iter();
        let mut verdict = |(message, _): (M, _)| match verdicts.next() {
            Some(true) => Ok(Verified(message)),
            _ => Err(Forged { what: "signature" }),
        };
        gathered.into_iter().map(|checked| checked.and_then(&mut verdict)).collect()
    }
}

/// Notes what would have to be verified.
#[derive(Default)]
struct Gather(RefCell<Vec<Claim>>);

impl Verifier for Gather {
    fn verify(&self, key: &PublicKey, bytes: &[u8], signature: &Signature) -> bool {
        self.0.borrow_mut().push(Claim { key: *key, bytes: bytes.to_vec(), signature: *signature });
        true
    }

    fn verify_all(&self, claims: &[&Claim]) -> bool {
        self.0.borrow_mut().extend(claims.iter().copied().cloned());
        true
    }
}

/// The verdict on each of these, by halves: one bad among many is found in as many steps as it takes
/// to halve them to one.
fn judge(messages: &[&[Claim]], verifier: &dyn Verifier, verdicts: &mut Vec<bool>) {
    if messages.is_empty() {
        return;
    }
    let claims: Vec<&Claim> = messages.iter().copied().flatten().collect();
    if verifier.verify_all(&claims) {
        verdicts.extend(messages.iter().map(|_| true));
    } else if messages.len() == 1 {
        verdicts.push(false);
    } else {
        let (first, second) = messages.split_at(messages.len() / 2);
        judge(first, verifier, verdicts);
        judge(second, verifier, verdicts);
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
    use crate::Cofactored;

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
        assert_eq!(note.check_by(&key.public(), &cluster, &Cofactored), Ok(()));
        assert!(note.check_by(&key.public(), &ClusterId([2; 16]), &Cofactored).is_err());
        assert!(note.check_by(&SecretKey::from_seed(&[8; 32]).public(), &cluster, &Cofactored).is_err());
        note.body.0 = 6;
        assert!(note.check_by(&key.public(), &cluster, &Cofactored).is_err());
    }

    #[test]
    fn a_symbolic_signature_is_never_accepted() {
        let (key, cluster) = (SecretKey::symbolic(&[7; 32]), ClusterId([1; 16]));
        assert_eq!(key.public(), SecretKey::from_seed(&[7; 32]).public());
        for body in 0..100 {
            let note = Signed::new(Note(body), &key, &cluster);
            assert_eq!(note.signature, symbolic_signature(&key.public(), &note.body.signed_bytes(&cluster)));
            assert!(note.check_by(&key.public(), &cluster, &Cofactored).is_err());
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
