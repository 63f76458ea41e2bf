//! The claims of consistent hashing, Chord and DHash that placement relies on, one test each.

use std::collections::{BTreeMap, BTreeSet};

use base::{BlockId, ClusterId, Digest, NodeId, SecretKey};
use dht::{BadRing, Member, POINTS_PER_MEMBER, Ring, ring_id};
use proptest::prelude::*;

const KEYS: u32 = 10_000;

fn member(number: u32, domain: &str) -> Member {
    Member { node: NodeId(number), ring: Digest::of(&number.to_le_bytes()).0, domain: domain.to_owned() }
}

/// `n` members, each a domain of its own.
fn members(n: u32) -> Vec<Member> {
    (0..n).map(|number| member(number, &format!("host-{number}"))).collect()
}

/// `n` members dealt out over `domains` domains.
fn in_domains(n: u32, domains: u32) -> Vec<Member> {
    (0..n).map(|number| member(number, &format!("rack-{}", number % domains))).collect()
}

fn ring(members: Vec<Member>) -> Ring {
    Ring::new(members).expect("members of a test are distinct")
}

fn key(number: u32) -> BlockId {
    BlockId::blake3(Digest::of(&[&number.to_le_bytes()[..], b"key"].concat()).0)
}

/// How many of the keys each node holds.
fn load(ring: &Ring, copies: usize) -> BTreeMap<NodeId, u32> {
    let mut load: BTreeMap<NodeId, u32> = ring.members().iter().map(|member| (member.node, 0)).collect();
    for number in 0..KEYS {
        for node in ring.holders(&key(number), copies) {
            *load.get_mut(&node).expect("a holder is a member") += 1;
        }
    }
    load
}

/// "With high probability, for any set of N nodes and K keys: each node is responsible for at most
/// (1 + e)K/N keys" (Chord, SIGCOMM'01, Theorem 1; e is made small by virtual nodes).
#[test]
fn the_fullest_node_holds_at_most_1_4_times_the_mean() {
    for n in 4..=32 {
        for copies in [1, 3] {
            let load = load(&ring(members(n)), copies);
            let (most, least) = (*load.values().max().unwrap(), *load.values().min().unwrap());
            let mean = KEYS * copies as u32 / n;
            let held: u32 = load.values().sum();
            assert_eq!(held, KEYS * copies as u32, "every key has all its copies");
            assert!(most * 10 <= mean * 14, "{n} nodes, {copies} copies: {most} against a mean of {mean}");
            assert!(least * 2 >= mean, "{n} nodes, {copies} copies: {least} against a mean of {mean}");
        }
    }
}

/// "When an (N + 1)st node joins or leaves the network, responsibility for O(K/N) keys changes hands
/// (and only to or from the joining or leaving node)" (Chord, SIGCOMM'01, Theorem 1).
#[test]
fn a_joining_member_takes_its_share_and_moves_nothing_else() {
    for n in [4, 9, 20] {
        let (before, after) = (ring(members(n)), ring(members(n + 1)));
        let joined = NodeId(n);
        let mut moved = 0;
        for number in 0..KEYS {
            let (old, new) = (before.holders(&key(number), 1), after.holders(&key(number), 1));
            if old != new {
                assert_eq!(new, [joined], "a key moves to the new member or not at all");
                moved += 1;
            }
        }
        let share = KEYS / (n + 1);
        assert!(moved * 10 > share * 6 && moved * 10 < share * 14, "{moved} of {KEYS} moved; a share is {share}");
    }
}

/// The same claim for a member that leaves: its keys go to their next successors, nothing else moves.
#[test]
fn a_leaving_members_keys_go_to_their_next_successor() {
    let before = ring(members(8));
    let after = ring(members(8).into_iter().filter(|member| member.node != NodeId(3)).collect());
    for number in 0..KEYS {
        let old = before.ranked(&key(number));
        let rest: Vec<NodeId> = old.iter().copied().filter(|node| *node != NodeId(3)).collect();
        assert_eq!(after.ranked(&key(number)), rest, "the others keep their order");
    }
}

/// A key belongs on its r successors (DHash; UsenetDHT, NSDI'08): the walk clockwise, each
/// member once, whoever stands at the key itself first.
#[test]
fn holders_are_the_first_successors() {
    let ring = ring(members(10));
    for number in 0..200 {
        let id = key(number);
        let walk: Vec<NodeId> = ring.successors(&id.hash).collect();
        assert_eq!(walk.len(), 10);
        assert_eq!(walk.iter().collect::<BTreeSet<_>>().len(), 10, "each member once");
        assert_eq!(ring.holders(&id, 3), walk[..3]);
        assert_eq!(ring.ranked(&id), walk, "with one member a domain, rank is ring order");
    }
}

/// Node n owns the keys in (predecessor, n] (Chord, SIGCOMM'01), against the plainest model: sort all points, and look
/// for the first that is not below the key. A key exactly at a point is that member's; one past it
/// is the next one's.
#[test]
fn a_key_belongs_to_the_first_point_not_below_it() {
    let ring = ring(members(6));
    let mut points: Vec<([u8; 32], NodeId)> = Vec::new();
    for member in ring.members() {
        for nth in 0..POINTS_PER_MEMBER {
            let parts = [&b"mangrove ring point 1"[..], &member.ring, &nth.to_le_bytes()];
            points.push((Digest::of_parts(&parts).0, member.node));
        }
    }
    points.sort_unstable();
    for (index, (point, node)) in points.iter().enumerate() {
        assert_eq!(ring.successors(point).next(), Some(*node));
        let mut past = *point;
        past[31] = past[31].checked_add(1).unwrap_or_else(|| {
            past[30] += 1;
            0
        });
        let (_, next) = points[(index + 1) % points.len()];
        assert_eq!(ring.successors(&past).next(), Some(next));
    }
    assert_eq!(ring.successors(&[0xff; 32]).next(), Some(points[0].1), "the ring is closed");
}

/// Correlated loss of adjacent nodes must not take all copies (NSDI'08 skips neighbours on the same
/// host): copies are on distinct failure domains while there are enough.
#[test]
fn copies_are_on_distinct_domains() {
    let ring = ring(in_domains(12, 4));
    for number in 0..1000 {
        for copies in 1..=4 {
            let holders = ring.holders(&key(number), copies);
            let domains: BTreeSet<u32> = holders.iter().map(|node| node.0 % 4).collect();
            assert_eq!((holders.len(), domains.len()), (copies, copies));
        }
    }
}

/// With fewer domains than copies, each domain has its even share, so that losing one loses as few
/// copies as can be.
#[test]
fn more_copies_than_domains_are_spread_evenly() {
    let ring = ring(in_domains(12, 3));
    for number in 0..1000 {
        for copies in 1..=12 {
            let mut each = [0usize; 3];
            for node in ring.holders(&key(number), copies) {
                each[node.0 as usize % 3] += 1;
            }
            assert_eq!(each.iter().sum::<usize>(), copies);
            assert!(each.iter().max().unwrap() - each.iter().min().unwrap() <= 1, "{each:?}");
        }
    }
}

/// A group smaller than the number of copies holds what it can.
#[test]
fn fewer_members_than_copies_are_all_holders() {
    let ring = ring(in_domains(3, 1));
    let holders = ring.holders(&key(7), 5);
    assert_eq!(holders.iter().collect::<BTreeSet<_>>(), [NodeId(0), NodeId(1), NodeId(2)].iter().collect());
    assert_eq!(ring.holders(&key(7), 0), []);
}

/// Each node's id is a hash (Chord, SIGCOMM'01), here of cluster, key and salt: distinct for distinct
/// clusters, keys and salts, and the same for everybody who computes it.
#[test]
fn ring_ids_come_from_cluster_key_and_salt() {
    let (one, other) = (ClusterId([1; 16]), ClusterId([2; 16]));
    let (key, another) = (SecretKey::from_seed(&[1; 32]).public(), SecretKey::from_seed(&[2; 32]).public());
    let ids = [
        ring_id(&one, &key, b""),
        ring_id(&other, &key, b""),
        ring_id(&one, &another, b""),
        ring_id(&one, &key, b"salt"),
    ];
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 4);
    assert_eq!(ids[0], ring_id(&one, &key, b""));
}

/// Placement is part of the stored format: if this fails, existing clusters would look for their
/// blocks in the wrong places.
#[test]
fn golden_placement() {
    assert_eq!(POINTS_PER_MEMBER, 64);
    let ring = ring(members(5));
    let ranked: Vec<Vec<u32>> =
        (0..4).map(|number| ring.ranked(&key(number)).iter().map(|node| node.0).collect()).collect();
    assert_eq!(ranked, [[0, 2, 4, 1, 3], [4, 2, 1, 0, 3], [1, 0, 4, 3, 2], [2, 1, 0, 4, 3]]);
}

#[test]
fn what_is_not_a_ring_is_refused() {
    assert_eq!(Ring::new(Vec::new()), Err(BadRing::Empty));
    let mut twice = members(4);
    twice[3].node = NodeId(1);
    assert_eq!(Ring::new(twice), Err(BadRing::SameNode { node: NodeId(1) }));
    let mut same = members(4);
    same[3].ring = same[0].ring;
    assert_eq!(Ring::new(same), Err(BadRing::SameRingId { first: NodeId(0), second: NodeId(3) }));
}

fn any_members() -> impl Strategy<Value = Vec<Member>> {
    proptest::collection::btree_map(0u32..1000, 0u32..5, 2..14)
        .prop_map(|map| map.into_iter().map(|(number, domain)| member(number, &format!("d{domain}"))).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The ring is a function of the set of members.
    #[test]
    fn the_order_of_the_list_does_not_matter(members in any_members(), seed: u32) {
        let mut shuffled = members.clone();
        shuffled.sort_by_key(|member| Digest::of_parts(&[&member.ring, &seed.to_le_bytes()]));
        let (one, other) = (ring(members), ring(shuffled));
        prop_assert_eq!(one.ranked(&key(seed)), other.ranked(&key(seed)));
        prop_assert_eq!(one, other);
    }

    /// For any copies and domains: holders are a prefix of the ranking of all members, and
    /// `responsible` says the same.
    #[test]
    fn holders_are_a_prefix_of_the_ranking(members in any_members(), number: u32, copies in 0usize..16) {
        let ring = ring(members);
        let (ranked, holders) = (ring.ranked(&key(number)), ring.holders(&key(number), copies));
        prop_assert_eq!(ranked.iter().collect::<BTreeSet<_>>().len(), ring.members().len());
        prop_assert_eq!(&holders[..], &ranked[..copies.min(ranked.len())]);
        for member in ring.members() {
            let responsible = ring.responsible(member.node, &key(number), copies);
            prop_assert_eq!(responsible, holders.contains(&member.node));
        }
    }

    /// With domains and several copies too, a member that joins displaces at most one holder of a
    /// key, and only by itself.
    #[test]
    fn a_joining_member_displaces_at_most_one_holder(
        members in any_members(), domain in 0u32..6, copies in 1usize..6
    ) {
        let joined = member(5000, &format!("d{domain}"));
        let mut more = members.clone();
        more.push(joined.clone());
        let (before, after) = (ring(members), ring(more));
        for number in 0..50 {
            let old: BTreeSet<NodeId> = before.holders(&key(number), copies).into_iter().collect();
            let new: BTreeSet<NodeId> = after.holders(&key(number), copies).into_iter().collect();
            prop_assert!(new.difference(&old).all(|node| *node == joined.node));
            prop_assert!(old.difference(&new).count() <= 1);
        }
    }
}
