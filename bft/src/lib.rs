//! PBFT (Castro & Liskov, OSDI'99; TOCS'02): the normal case, checkpoints, catching up, and the
//! client session, as pure state machines.
//!
//! [`Replica`] is a [`base::Protocol`]: messages and time in, [`base::Effects`] out. It touches no
//! clock, disk or network. A walk through it: [`Replica`] hands a request to `normal`, which
//! proposes, prepares and commits in the vote log (`log`); `execute` applies what is committed, in
//! order and at most once (`table`); `checkpoint` proves that others reached the same state, and
//! forgets; `catchup` resends what was lost; `restore` makes all of it survive a crash. [`client`]
//! is the other end: it signs requests and believes `f + 1` replies.
//!
//! `mark` signs states for readers, and `proof` shows rows of them to somebody who trusts no single
//! replica.
//!
//! `views` says when the primary is suspected and leaves its view; `new_view` begins the next. A
//! replica that needs what nobody retains says [`Event::Behind`], and `transfer` fetches a checkpoint; one
//! that lost its log comes back by `rejoin`.

mod archive;
mod catchup;
mod check;
mod checkpoint;
pub mod client;
mod event;
mod execute;
#[cfg(feature = "fingerprint")]
mod fingerprint;
mod floor;
mod log;
mod mark;
mod message;
mod new_view;
mod normal;
mod pace;
mod params;
mod proof;
mod queue;
mod record;
mod rejoin;
mod replica;
mod request;
mod restore;
mod table;
mod transfer;
mod view_change;
mod views;

pub use event::{Event, Evidence, Ignored, ReplicaStatus, Standing};
pub use mark::{Mark, Marked};
pub use message::{
    Body, Checkpoint, Commit, Committed, Content, Head, Message, Part, PartName, PrePrepare, Prepare, Proposal,
    SlotState, Status, Tree, Want,
};
pub use params::{
    BATCH_BYTES_MAX, BATCH_REQUESTS_MAX, BadParams, Context, MESSAGE_MAX, PRINCIPAL_BYTES_MAX, PRINCIPAL_REQUESTS_MAX,
    PRINCIPAL_RESULT_BYTES_MAX, Params, QUEUE_BYTES_MAX, QUEUE_REQUESTS_MAX, REPLICAS_MAX, REQUEST_OP_MAX,
    RESULT_INLINE_MAX, RESULT_MAX, SESSIONS_MAX, TIMESTAMPS_MAX, WINDOW_MAX,
};
pub use proof::{Certified, ProvenRows, READ_PROOF_MAX, ReadProof};
pub use record::{CachedResult, Certificate, Divergence, Place, Record, SNAPSHOT_PIECE_MAX, Snapshot, StableProof};
pub use rejoin::{Rejoin, Welcome};
pub use replica::{Input, Replica};
pub use request::{Batch, ClientRequest, RefusedWhy, Reply, ReplyResult, Request};
pub use restore::{Condensed, Corrupt};
pub use view_change::{NewView, Prepared, ViewChange};
