//! The replicated state: the namespace as a deterministic state machine.
//!
//! FARSITE keeps names, attributes and access rules in a Byzantine-tolerant *directory group* and
//! file bytes elsewhere. This room is what that group replicates: volumes, inodes, directories,
//! extended attributes and who may do what, as one [`State`] that `bft` drives through
//! [`base::StateMachine`]. A file's bytes are known here only as a sealed recipe ([`Content`]).
//!
//! Where to look: [`op`] is what can be asked and answered; `state` takes a batch apart; `access` holds the
//! POSIX permission rules and `acl` access lists; `read` answers what looks at single rows, whoever holds
//! them, and `proven` does so from rows that were proven; `lease` says who may change what without asking,
//! `grant` gives that out, and `partial` is a holder's own copy; `lock` says who may lock what, and
//! `filelocks` which locks a file has; `directory` and `rename` change names; `inode`, `content`, `xattr`,
//! `orphan` and `volume` change what names lead to; `trash` keeps what lost its last name, `snapshots` and `past`
//! keep what was; `table` keeps rows and digests them; `partitions` writes them down; `audit` is the namespace's
//! fsck.
//!
//! **Invariants:** no clock, no randomness, no disk: the same batches give the same digest on every
//! machine. [`State::apply_batch`] is total. A refused call changes nothing (but for leases: who is in
//! the way is asked, or fenced): every rule is checked before the first change.

mod access;
mod acl;
mod audit;
mod cede;
mod content;
mod denied;
mod directory;
mod fetch;
mod filelocks;
mod grant;
mod inode;
mod lease;
mod lock;
#[expect(missing_docs, reason = "an operation's doc comment speaks of its fields by name")]
#[expect(clippy::large_enum_variant, reason = "answers are read once, in order; a box each would cost more")]
pub mod op;
mod orphan;
mod partial;
mod partitions;
mod past;
mod proven;
mod read;
mod rename;
mod snapshots;
mod state;
mod table;
mod thrown;
mod trash;
mod types;
mod volume;
mod xattr;

pub use access::{EXECUTE, Grant, OPENED, READ, SET_IDS, Uids, WRITE, written_mode};
pub use acl::{ACL_NAMED_MAX, Acl, AclEntry, AclKind};
pub use audit::Unsound;
pub use fetch::ALSO_MAX;
pub use filelocks::{FILE_LOCKS_MAX, FILE_WAITERS_MAX, FileLocks, LOCK_END, Lock, LockOwner, WAIT_TERM};
pub use lease::{LEASE_TERM, is_about_orphan, is_change, is_logged, logged_as, makes_inode};
pub use lock::HOLDER_LOCKS_MAX;
pub use op::*;
pub use orphan::ORPHAN_TERM;
pub use partial::Local;
pub use past::{SNAPSHOTS_MAX, is_of_snapshot, snapshot_of};
pub use proven::{Unproven, read_proven};
pub use rename::DEPTH_MAX;
pub use state::{ANSWERS_LEN_MAX, Counts, Genesis, State};
pub use trash::{SKIPPED_MAX, THROWN_AGE, THROWN_BEFORE, THROWN_HIDDEN, THROWN_MAX, THROWN_SHIFT};
pub use volume::VOLUMES_MAX;
pub use xattr::XATTRS_LEN_MAX;
