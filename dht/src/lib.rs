//! Which nodes hold a block: consistent hashing over the configured members.
//!
//! Every member stands at points of a ring of 256-bit numbers; a block's id is a number on the same
//! ring, and the block belongs on the first members met clockwise from it (its *successors*, as in
//! Chord and DHash). Everybody who knows the members computes the same holders, so a lookup is one
//! hop and nothing about placement is ever stored. The maintenance of UsenetDHT's Passing Tone
//! (NSDI'08) moves blocks along this ring.
//!
//! Two deviations, and why:
//! - **Several points a member** ([`POINTS_PER_MEMBER`]). UsenetDHT gives a server one point, which
//!   evens out over hundreds of servers; among four, one of them would own most of the ring. A walk
//!   meets each member once: further points of a member already met are skipped, as Passing Tone
//!   skips virtual neighbours on its own host.
//! - **Failure domains.** Ring neighbours that fail together would take all copies of a block with
//!   them, so copies go to distinct domains first (see [`Ring::ranked`]).
//!
//! **Invariant:** pure. The same members, in whatever order they were listed, give the same ring.

mod ring;

pub use ring::{BadRing, Member, POINTS_PER_MEMBER, Ring, ring_id};
