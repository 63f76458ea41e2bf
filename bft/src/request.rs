//! What clients say and hear: requests, batches of them, replies.

use core::fmt;
use std::sync::Arc;

use base::{
    ClusterId, Decode, DecodeError, Digest, Encode, PublicKey, Reader, Seq, Signable, Signed, View, canonical_enum,
    canonical_struct,
};
use bytes::Bytes;

use crate::params::{BATCH_BYTES_MAX, BATCH_REQUESTS_MAX, REQUEST_OP_MAX, RESULT_MAX};

/// ⟨REQUEST, o, t, c⟩ (TOCS'02 §4.1), signed by the client so that every replica can tell a bad
/// request from a bad primary.
///
/// The timestamp orders nothing: it names the request within its session, and a request is
/// executed at most once under its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The principal that signs.
    pub client: PublicKey,
    /// Which of the principal's sessions this is.
    pub session: u64,
    /// The request's name in the session; see [`crate::client`] for how it is chosen.
    pub timestamp: u64,
    /// The operation, at most [`REQUEST_OP_MAX`] bytes. An empty one makes the session known and
    /// does nothing else; the state machine does not see it.
    pub op: Bytes,
}

impl Signable for Request {
    const DOMAIN: &'static str = "request";

    /// A digest stands for the request: it may be long, every replica hashes it twice, and where
    /// many are verified together what was signed is held for all of them.
    fn signed_bytes(&self, cluster: &ClusterId) -> Vec<u8> {
        let mut name = Vec::with_capacity(32 + 8 + 8);
        self.client.encode(&mut name);
        self.session.encode(&mut name);
        self.timestamp.encode(&mut name);
        base::signed_bytes(Self::DOMAIN, cluster, &Digest::of_parts(&[&name, &self.op]))
    }
}

impl Encode for Request {
    fn encode(&self, out: &mut Vec<u8>) {
        self.client.encode(out);
        self.session.encode(out);
        self.timestamp.encode(out);
        self.op.encode(out);
    }
}

impl Decode for Request {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Request {
            client: PublicKey::decode(input)?,
            session: u64::decode(input)?,
            timestamp: u64::decode(input)?,
            op: Bytes::copy_from_slice(input.bytes_max("operation", REQUEST_OP_MAX)?),
        })
    }
}

/// A signed request as it arrives, to be checked into a `Verified<ClientRequest>`. (A type of its
/// own because `Check` and `Signed` both live in `base`, where `Request` is not known.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientRequest(pub Signed<Request>);

impl Encode for ClientRequest {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
}

impl Decode for ClientRequest {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(ClientRequest(Signed::decode(input)?))
    }
}

/// Bytes a signed request takes up in a batch.
pub(crate) fn encoded_len(request: &Signed<Request>) -> usize {
    32 + 8 + 8 + 4 + request.body.op.len() + 64
}

/// What is ordered: requests, and the digest of them all, computed once. Cheap to clone.
///
/// The empty batch is the null request (TOCS'02 §4.5.2): it fills a place and does nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Batch {
    requests: Arc<[Signed<Request>]>,
    digest: Digest,
    bytes: usize,
}

impl Batch {
    /// The batch of these requests, in this order.
    ///
    /// # Panics
    /// If they are more than [`BATCH_REQUESTS_MAX`] or longer than [`BATCH_BYTES_MAX`].
    #[must_use]
    pub fn new(requests: Vec<Signed<Request>>) -> Batch {
        assert!(requests.len() <= BATCH_REQUESTS_MAX, "a batch of {} requests", requests.len());
        let encoded = requests.to_bytes();
        assert!(encoded.len() <= BATCH_BYTES_MAX, "a batch of {} bytes", encoded.len());
        Batch { requests: requests.into(), digest: Digest::of(&encoded), bytes: encoded.len() }
    }

    /// The null request.
    #[must_use]
    pub fn null() -> Batch {
        static NULL: std::sync::OnceLock<Batch> = std::sync::OnceLock::new();
        NULL.get_or_init(|| Batch::new(Vec::new())).clone()
    }

    /// The requests, in the order they will be executed in.
    #[must_use]
    pub fn requests(&self) -> &[Signed<Request>] {
        &self.requests
    }

    /// The digest of the encoded requests, signatures included.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Length of the encoding.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} requests, {:?})", self.requests.len(), self.digest)
    }
}

impl Encode for Batch {
    fn encode(&self, out: &mut Vec<u8>) {
        u32::try_from(self.requests.len()).expect("a batch is bounded").encode(out);
        self.requests.iter().for_each(|request| request.encode(out));
    }
}

impl Decode for Batch {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut start = input.clone();
        let requests: Vec<Signed<Request>> = input.seq_max("batch", BATCH_REQUESTS_MAX)?;
        let bytes = start.remaining() - input.remaining();
        if bytes > BATCH_BYTES_MAX {
            return Err(DecodeError::TooLong { what: "batch", len: bytes, max: BATCH_BYTES_MAX });
        }
        Ok(Batch { requests: requests.into(), digest: Digest::of(start.take(bytes)?), bytes })
    }
}

/// ⟨REPLY, v, t, c, i, r⟩ (TOCS'02 §4.1). The link says which replica it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The replica's view, from which a client learns the primary.
    pub view: View,
    /// The request's timestamp.
    pub timestamp: u64,
    /// The request's session.
    pub session: u64,
    /// Where in the order the request was executed; for a refusal, how far this replica had got.
    pub seq: Seq,
    /// What came of it.
    pub result: ReplyResult,
}
canonical_struct!(Reply { view, timestamp, session, seq, result });

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyResult {
    /// Executed; the result.
    Full(Bytes),
    /// Executed; the digest of the result, which the designated replica sends whole.
    DigestOnly(Digest),
    /// Not executed, but for [`RefusedWhy::ResultLost`].
    Refused(RefusedWhy),
}

impl Encode for ReplyResult {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            ReplyResult::Full(bytes) => {
                out.push(0);
                bytes.encode(out);
            }
            ReplyResult::DigestOnly(digest) => {
                out.push(1);
                digest.encode(out);
            }
            ReplyResult::Refused(why) => {
                out.push(2);
                why.encode(out);
            }
        }
    }
}

impl Decode for ReplyResult {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match u8::decode(input)? {
            0 => Ok(ReplyResult::Full(Bytes::copy_from_slice(input.bytes_max("result", RESULT_MAX)?))),
            1 => Ok(ReplyResult::DigestOnly(Digest::decode(input)?)),
            2 => Ok(ReplyResult::Refused(RefusedWhy::decode(input)?)),
            tag => Err(DecodeError::Tag { what: "reply result", tag: u64::from(tag) }),
        }
    }
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedWhy {
    /// The timestamp is not above `floor`, and what was executed up to there is forgotten.
    Stale {
        /// The highest forgotten timestamp.
        floor: u64,
    },
    /// The signing key is nobody's.
    UnknownPrincipal,
    /// Too many requests are waiting, of this principal or of all; try again later.
    Overloaded,
    /// It *was* executed, but its result is not kept: too long, or dropped to make room.
    ResultLost,
}
canonical_enum!(RefusedWhy { 0 => Stale { floor }, 1 => UnknownPrincipal, 2 => Overloaded, 3 => ResultLost });
