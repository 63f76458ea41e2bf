//! The ring: members, their points, and the walk clockwise from a block's id.

use std::collections::{BTreeMap, BTreeSet};

use base::{BlockId, ClusterId, Digest, NodeId, PublicKey};

/// Points on the ring a member stands at. With one point, as in UsenetDHT, the largest of four
/// shares is often more than half of the ring; a share's standard deviation shrinks with the square
/// root of the number of points. With 64, over 144 random rings of 4 to 32 members and 10,000 keys,
/// the fullest node held 1.13 times the mean (median; 1.27 in the worst ring) of three copies a key,
/// and 1.22 (1.50) of one copy. Changing it moves blocks: it is part of the stored format.
pub const POINTS_PER_MEMBER: u32 = 64;

/// A node that holds blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its number.
    pub node: NodeId,
    /// Its ring id, of which its points are derived; see [`ring_id`].
    pub ring: [u8; 32],
    /// Its failure domain: members with the same label (a host, a rack, a site) may fail together.
    pub domain: String,
}

/// Why members do not make a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRing {
    /// There are none.
    #[error("no storage nodes are configured; at least one is needed")]
    Empty,
    /// Two members have the same number.
    #[error("{node} is listed twice")]
    SameNode {
        /// The number.
        node: NodeId,
    },
    /// Two members have the same ring id.
    #[error("{first} and {second} have the same ring id; give each node a key of its own")]
    SameRingId {
        /// One of them, the lower number.
        first: NodeId,
        /// The other.
        second: NodeId,
    },
}

/// The ring of all members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    /// The members, by ascending node number.
    members: Vec<Member>,
    /// Of each member, its domain as a number below `domains`.
    domain_of: Vec<usize>,
    domains: usize,
    /// All points, ascending, each with its member's index.
    points: Vec<([u8; 32], usize)>,
}

impl Ring {
    /// The ring of these members, in whatever order they come.
    ///
    /// # Errors
    /// If there are none, or two share a number or a ring id.
    pub fn new(mut members: Vec<Member>) -> Result<Ring, BadRing> {
        members.sort_by_key(|member| member.node);
        if members.is_empty() {
            return Err(BadRing::Empty);
        }
        if let Some(pair) = members.windows(2).find(|pair| pair[0].node == pair[1].node) {
            return Err(BadRing::SameNode { node: pair[0].node });
        }
        let mut rings = BTreeMap::new();
        for member in &members {
            if let Some(first) = rings.insert(member.ring, member.node) {
                return Err(BadRing::SameRingId { first, second: member.node });
            }
        }
        let labels: BTreeSet<&str> = members.iter().map(|member| member.domain.as_str()).collect();
        let numbers: BTreeMap<&str, usize> = labels.into_iter().zip(0..).collect();
        let domain_of = members.iter().map(|member| numbers[member.domain.as_str()]).collect();
        let domains = numbers.len();
        let mut points: Vec<_> = members
            .iter()
            .enumerate()
            .flat_map(|(index, member)| (0..POINTS_PER_MEMBER).map(move |nth| (point(&member.ring, nth), index)))
            .collect();
        points.sort_unstable();
        Ok(Ring { members, domain_of, domains, points })
    }

    /// The members, by ascending node number.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The member with this number.
    #[must_use]
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        let index = self.members.binary_search_by_key(&node, |member| member.node).ok()?;
        Some(&self.members[index])
    }

    /// All members in the order they are met clockwise from `point`, each once. A member that stands
    /// exactly at `point` comes first: node `n` owns `(predecessor, n]`.
    pub fn successors(&self, point: &[u8; 32]) -> impl Iterator<Item = NodeId> + '_ {
        self.walk(point).map(|index| self.members[index].node)
    }

    /// Who should hold a block that is kept in `copies` copies: the first of [`Ring::ranked`]. They
    /// are on distinct failure domains if there are that many, else spread over the domains as evenly
    /// as these have nodes; with fewer members than `copies`, they are all of them.
    #[must_use]
    pub fn holders(&self, id: &BlockId, copies: usize) -> Vec<NodeId> {
        if copies > self.domains {
            let mut ranked = self.ranked(id);
            ranked.truncate(copies);
            return ranked;
        }
        // The common case looks no further than the first member of each of `copies` domains.
        let mut used = vec![false; self.domains];
        self.walk(&id.hash)
            .filter(|&index| !core::mem::replace(&mut used[self.domain_of[index]], true))
            .take(copies)
            .map(|index| self.members[index].node)
            .collect()
    }

    /// All members in the order they should be tried for a block, both by readers and by writers
    /// whom a holder refused: first the first member of each domain met clockwise from the block's
    /// id, then the second of each, and so on. So the first `r` are the holders of a block kept in
    /// `r` copies, for every `r`.
    #[must_use]
    pub fn ranked(&self, id: &BlockId) -> Vec<NodeId> {
        let mut met = vec![0usize; self.domains];
        let mut ranked: Vec<(usize, usize)> = Vec::with_capacity(self.members.len());
        for index in self.walk(&id.hash) {
            let round = &mut met[self.domain_of[index]];
            ranked.push((*round, index));
            *round += 1;
        }
        ranked.sort_by_key(|&(round, _)| round);
        ranked.into_iter().map(|(_, index)| self.members[index].node).collect()
    }

    /// Whether `node` should hold this block when it is kept in `copies` copies.
    #[must_use]
    pub fn responsible(&self, node: NodeId, id: &BlockId, copies: usize) -> bool {
        self.holders(id, copies).contains(&node)
    }

    /// The members' indices clockwise from `from`, each once.
    fn walk(&self, from: &[u8; 32]) -> impl Iterator<Item = usize> + '_ {
        let start = self.points.partition_point(|(point, _)| point < from);
        let (before, after) = self.points.split_at(start);
        let mut met = vec![false; self.members.len()];
        after
            .iter()
            .chain(before)
            .map(|&(_, index)| index)
            .filter(move |&index| !core::mem::replace(&mut met[index], true))
            .take(self.members.len())
    }
}

/// The `nth` point of the member with this ring id.
fn point(ring: &[u8; 32], nth: u32) -> [u8; 32] {
    Digest::of_parts(&[b"mangrove ring point 1", ring, &nth.to_le_bytes()]).0
}

/// The ring id of a configured node: a hash of the cluster, the node's key and a salt (empty, unless
/// the administrator wants a node elsewhere).
///
/// This is sound because the administrator writes the list of members. Where members ask for
/// admission themselves, ids must be drawn from randomness agreed after the key is fixed: whoever
/// chooses its key chooses its hash, and can grind for a place next to a block it wants gone
/// (OSDI'02 secure routing: ids are assigned at random by those who certify them).
#[must_use]
pub fn ring_id(cluster: &ClusterId, node_key: &PublicKey, salt: &[u8]) -> [u8; 32] {
    Digest::of_parts(&[b"mangrove ring id 1", &cluster.0, node_key.as_array(), salt]).0
}
