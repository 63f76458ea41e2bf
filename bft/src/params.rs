//! What never changes while a replica runs, and the limits of every room in this crate.

use core::time::Duration;
use std::collections::BTreeSet;
use std::sync::Arc;

use base::{ClusterId, PublicKey, Quorums, ReplicaId, SecretKey, Signable, Signed, View};

use crate::view_change::Prepared;

/// Most replicas in a group. Agreement costs grow with the square; beyond this PBFT is the wrong protocol.
pub const REPLICAS_MAX: usize = 100;
/// Widest distance between the water marks (L).
pub const WINDOW_MAX: u64 = 1024;
/// Longest operation in a request, bytes.
pub const REQUEST_OP_MAX: usize = 128 * 1024;
/// Most requests in a batch.
pub const BATCH_REQUESTS_MAX: usize = 256;
/// Longest encoded batch, bytes.
pub const BATCH_BYTES_MAX: usize = 512 * 1024;
/// Longest encoded message or reply, bytes.
pub const MESSAGE_MAX: usize = 1024 * 1024;
/// Longest result that can be returned to a client, bytes.
pub const RESULT_MAX: usize = MESSAGE_MAX - 1024;
/// Results up to this long are always sent whole, bytes; longer ones by the designated replica only.
pub const RESULT_INLINE_MAX: usize = 256;
/// Sessions remembered for a principal.
pub const SESSIONS_MAX: usize = 64;
/// Executed timestamps remembered for a session.
pub const TIMESTAMPS_MAX: usize = 64;
/// Bytes of cached results kept for a principal.
pub const PRINCIPAL_RESULT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Requests of one principal waiting or proposed.
pub const PRINCIPAL_REQUESTS_MAX: usize = 256;
/// Bytes of requests of one principal waiting or proposed.
pub const PRINCIPAL_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Requests of everybody waiting or proposed.
pub const QUEUE_REQUESTS_MAX: usize = 16 * 1024;
/// Bytes of requests of everybody waiting or proposed.
pub const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Rows in one part of a checkpoint.
pub(crate) const ROWS_MAX: usize = 256;
/// How often the view timeout doubles before it stays.
pub(crate) const TIMEOUT_DOUBLINGS_MAX: u32 = 6;

/// Longest interval or bound that makes sense.
const DURATION_MAX: Duration = Duration::from_secs(3600);

const _: () = assert!(REQUEST_OP_MAX + 256 <= BATCH_BYTES_MAX, "every request fits into a batch");
const _: () = assert!(BATCH_BYTES_MAX + 1024 <= MESSAGE_MAX, "every batch fits into a message");

/// A replica's parameters.
#[derive(Clone, Debug)]
pub struct Params {
    /// The cluster that every signature is bound to.
    pub cluster: ClusterId,
    /// This replica's place in `replicas`.
    pub me: ReplicaId,
    /// The replicas' keys, in order; `3f + 1` of them.
    pub replicas: Vec<PublicKey>,
    /// The secret half of `replicas[me]`.
    pub secret: SecretKey,
    /// Sequence numbers between checkpoints (K, TOCS'02 §4.3).
    pub checkpoint_interval: u64,
    /// Distance between the water marks (L > K, or no progress; TOCS'02 §4.3).
    pub window: u64,
    /// Batches proposed but not executed beyond which the primary waits, so that the backlog becomes the
    /// next batch. All but the first two have to be large.
    pub in_flight_max: u64,
    /// Most requests the primary puts into a batch.
    pub batch_requests_max: usize,
    /// Most bytes the primary puts into a batch.
    pub batch_bytes_max: usize,
    /// How far ahead of this replica's clock a proposed time may be.
    pub clock_bound: Duration,
    /// How often STATUS is sent while something is outstanding; ten times slower when idle.
    pub status_interval: Duration,
    /// How long the primary may let something outstanding wait, with nothing executed, before it is
    /// suspected. Doubles with every view that comes to nothing, six times.
    pub view_timeout: Duration,
    /// The first batch in each span of agreed time this long gets a mark, from which reads are proven;
    /// `None`: no marks. All replicas need the same.
    pub mark_interval: Option<Duration>,
    /// Bytes of executed batches kept, below the stable checkpoint, for peers that lag.
    pub retained_bytes_max: usize,
}

/// Why parameters make no replica.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadParams {
    /// The number of replicas is not `3f + 1`, or too large.
    #[error("{n} replicas: there must be 3f + 1 of them, with f at least 1, and at most {REPLICAS_MAX}")]
    GroupSize {
        /// How many there are.
        n: usize,
    },
    /// One key is at two places.
    #[error("the key {key} is listed for more than one replica")]
    DuplicateKey {
        /// The key.
        key: Box<PublicKey>,
    },
    /// `me` is not a place in the list.
    #[error("replica {me} is not one of the {n} replicas")]
    NotAMember {
        /// The place claimed.
        me: ReplicaId,
        /// How many there are.
        n: usize,
    },
    /// The secret key is not the one of `replicas[me]`.
    #[error("replica {me} is listed with the key {listed}, but this replica's key is {own}")]
    WrongKey {
        /// The place claimed.
        me: ReplicaId,
        /// The key at that place.
        listed: Box<PublicKey>,
        /// The public half of the secret key.
        own: Box<PublicKey>,
    },
    /// A number outside its range.
    #[error("{what} is out of range")]
    OutOfRange {
        /// Which one.
        what: &'static str,
    },
}

impl Params {
    /// Parameters with the default limits.
    ///
    /// # Errors
    /// [`BadParams`], see there.
    pub fn new(
        cluster: ClusterId,
        me: ReplicaId,
        replicas: Vec<PublicKey>,
        secret: SecretKey,
    ) -> Result<Params, BadParams> {
        let params = Params {
            cluster,
            me,
            replicas,
            secret,
            checkpoint_interval: 128,
            window: 256,
            in_flight_max: 8,
            batch_requests_max: BATCH_REQUESTS_MAX,
            batch_bytes_max: BATCH_BYTES_MAX,
            clock_bound: Duration::from_secs(10),
            status_interval: Duration::from_millis(500),
            view_timeout: Duration::from_secs(1),
            mark_interval: Some(Duration::from_millis(500)),
            retained_bytes_max: 64 * 1024 * 1024,
        };
        params.check()?;
        Ok(params)
    }

    /// Whether the parameters, changed since [`Params::new`] perhaps, make a replica.
    ///
    /// # Errors
    /// [`BadParams`], see there.
    pub fn check(&self) -> Result<(), BadParams> {
        check_group(&self.replicas)?;
        let n = self.replicas.len();
        let Some(listed) = self.replicas.get(usize::from(self.me.0)) else {
            return Err(BadParams::NotAMember { me: self.me, n });
        };
        if *listed != self.secret.public() {
            return Err(BadParams::WrongKey {
                me: self.me,
                listed: Box::new(*listed),
                own: Box::new(self.secret.public()),
            });
        }
        let ranges = [
            ("checkpoint_interval", self.checkpoint_interval >= 1 && self.checkpoint_interval < self.window),
            ("window", self.window <= WINDOW_MAX && self.view_change_bytes_max() <= MESSAGE_MAX),
            ("in_flight_max", self.in_flight_max >= 1 && self.in_flight_max <= self.window),
            ("batch_requests_max", (1..=BATCH_REQUESTS_MAX).contains(&self.batch_requests_max)),
            ("batch_bytes_max", (REQUEST_OP_MAX + 256..=BATCH_BYTES_MAX).contains(&self.batch_bytes_max)),
            ("clock_bound", self.clock_bound <= DURATION_MAX),
            ("mark_interval", self.mark_interval.is_none_or(|every| !every.is_zero() && every <= DURATION_MAX)),
            ("view_timeout", (Duration::from_millis(1)..=DURATION_MAX).contains(&self.view_timeout)),
            ("status_interval", (Duration::from_millis(1)..=DURATION_MAX).contains(&self.status_interval)),
        ];
        match ranges.iter().find(|(_, good)| !good) {
            Some((what, _)) => Err(BadParams::OutOfRange { what }),
            None => Ok(()),
        }
    }

    /// Bytes of the longest view change: the window full of certificates.
    fn view_change_bytes_max(&self) -> usize {
        Quorums::of(self.replicas.len()).map_or(usize::MAX, |quorums| {
            let stable = 64 + quorums.n() * (50 + 64);
            128 + stable + usize::try_from(self.window).unwrap_or(usize::MAX) * Prepared::encoded_len(quorums)
        })
    }

    /// What is needed to check messages.
    #[must_use]
    pub fn context(&self) -> Context {
        Context { cluster: self.cluster, replicas: self.replicas.as_slice().into() }
    }

    /// The quorum sizes of the group.
    ///
    /// # Panics
    /// If the parameters were never checked.
    #[must_use]
    pub fn quorums(&self) -> Quorums {
        Quorums::of(self.replicas.len()).expect("checked by Params::check")
    }

    pub(crate) fn primary(&self, view: View) -> ReplicaId {
        view.primary(self.replicas.len())
    }

    pub(crate) fn is_primary(&self, view: View) -> bool {
        self.primary(view) == self.me
    }

    pub(crate) fn sign<M: Signable>(&self, body: M) -> Signed<M> {
        Signed::new(body, &self.secret, &self.cluster)
    }
}

/// Whether these keys make a group: `3f + 1` of them, no two alike.
pub(crate) fn check_group(replicas: &[PublicKey]) -> Result<Quorums, BadParams> {
    let n = replicas.len();
    let quorums = Quorums::of(n).filter(|_| n <= REPLICAS_MAX).ok_or(BadParams::GroupSize { n })?;
    let mut seen = BTreeSet::new();
    match replicas.iter().find(|key| !seen.insert(**key)) {
        Some(key) => Err(BadParams::DuplicateKey { key: Box::new(*key) }),
        None => Ok(quorums),
    }
}

/// What is needed to check messages: the cluster and the replicas' keys. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Context {
    /// The cluster that every signature is bound to.
    pub cluster: ClusterId,
    /// The replicas' keys, in order.
    pub replicas: Arc<[PublicKey]>,
}
