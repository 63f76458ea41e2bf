//! All the ways of lying, one a row.

use super::{Act, Behaviour, How, Lie, Place, Rogue};
use super::{certificates, clients, fuzz, omissions, primary, replies, standing, transfer, views, votes};
use crate::check::Invariant;
use crate::check::Invariant::{
    Agreement as I1, Authority as I4, Bounds as I7, Durability as I3, Linearizability as I2, Once as I5, Progress as I6,
};
use Place::{Anywhere, Backups, Donors, Pair, Primaries, Second};

type Tamper = fn(&mut Lie<'_>, &Act<'_>) -> bool;

/// A lying replica.
const fn row(
    name: &'static str,
    row: &'static str,
    applies: &'static [Invariant],
    place: Place,
    tamper: Tamper,
) -> Behaviour {
    Behaviour { name, row, applies, how: How::Tamper(tamper), place, hush: false }
}

/// A lying client.
const fn client(
    name: &'static str,
    row: &'static str,
    applies: &'static [Invariant],
    act: fn(&mut Rogue),
) -> Behaviour {
    Behaviour { name, row, applies, how: How::Client(act), place: Anywhere, hush: false }
}

impl Behaviour {
    /// One liar too many can do no harm by this alone: in control runs they fall silent in the end.
    const fn hushed(mut self) -> Behaviour {
        self.hush = true;
        self
    }
}

/// Every way of lying.
pub const BEHAVIOURS: &[Behaviour] = &[
    // Leaving out, delaying, repeating.
    row("silent-primary", "Silent primary", &[I6], Primaries, omissions::silent),
    row("silent-backup", "Silent primary", &[I6], Backups, omissions::silent),
    row("no-answers", "f+1 lie to one client", &[I6], Anywhere, omissions::no_answers).hushed(),
    row("slow-primary", "Slow primary (just under timeout)", &[I6], Primaries, omissions::slow_primary).hushed(),
    row("dawdling", "Slow primary (just under timeout)", &[I6], Anywhere, omissions::dawdling).hushed(),
    row("censor", "Favouring/censoring primary", &[I6], Primaries, omissions::censor).hushed(),
    row("shuns-one", "Favouring/censoring primary", &[I3, I6], Anywhere, omissions::shuns_one).hushed(),
    row("unhelpful", "Bad state transfer", &[I6], Anywhere, omissions::unhelpful).hushed(),
    row("deaf-to-status", "Bad state transfer", &[I6], Anywhere, omissions::deaf_to_status).hushed(),
    row("no-commits", "Silent primary", &[I6], Anywhere, omissions::no_commits).hushed(),
    row("no-prepares", "Silent primary", &[I6], Backups, omissions::no_prepares).hushed(),
    row("no-proposals", "Silent primary", &[I6], Primaries, omissions::no_proposals).hushed(),
    row("proposes-to-some", "Wrong digest / null body", &[I6], Primaries, omissions::proposes_to_some).hushed(),
    row("no-checkpoints", "Forged/minority checkpoint", &[I6, I7], Anywhere, omissions::no_checkpoints).hushed(),
    row("no-view-changes", "New-view omitting a VC", &[I6], Anywhere, omissions::no_view_changes).hushed(),
    row("stutters", "Replayed view/seq", &[I5, I7], Anywhere, omissions::stutters).hushed(),
    row("replays", "Replayed view/seq", &[I1, I5, I7], Anywhere, omissions::replays).hushed(),
    row("amnesia", "Amnesia (vote before fsync)", &[I1, I3], Anywhere, omissions::amnesia).hushed(),
    row("moody", "Slow primary (just under timeout)", &[I6], Anywhere, omissions::moody).hushed(),
    // Votes.
    row("wrong-prepares", "Wrong digest / null body", &[I1, I6], Backups, votes::wrong_prepares).hushed(),
    row("wrong-commits", "Wrong digest / null body", &[I1, I6], Anywhere, votes::wrong_commits).hushed(),
    row("two-faced-votes", "Equivocating primary", &[I1], Anywhere, votes::two_faced).hushed(),
    row("double-votes", "Equivocating primary", &[I1], Anywhere, votes::double_votes).hushed(),
    row("hasty-commits", "Equivocating primary", &[I1], Anywhere, votes::hasty_commits).hushed(),
    row("commits-from-nowhere", "Wrong digest / null body", &[I1, I7], Anywhere, votes::commits_from_nowhere).hushed(),
    row("votes-in-other-views", "Replayed view/seq", &[I1], Anywhere, votes::other_views).hushed(),
    row("far-future-votes", "Replayed view/seq, far-future seq", &[I7], Anywhere, votes::far_future).hushed(),
    row("votes-in-others-names", "Big-MAC / partial authenticator", &[I1], Anywhere, votes::others_names).hushed(),
    row("forged-checkpoints", "Forged/minority checkpoint", &[I1, I3], Anywhere, votes::forged_checkpoints).hushed(),
    row("two-faced-checkpoints", "Forged/minority checkpoint", &[I1], Anywhere, votes::two_faced_checkpoints).hushed(),
    row("early-checkpoints", "Forged/minority checkpoint", &[I3, I7], Anywhere, votes::early_checkpoints).hushed(),
    // Proposals.
    row("equivocating-primary", "Equivocating primary", &[I1, I2], Primaries, primary::equivocates),
    row("equivocating-in-time", "Lying primary timestamp", &[I1], Primaries, primary::equivocates_in_time),
    row("primary-prepares", "Equivocating primary", &[I1, I2], Primaries, primary::primary_prepares),
    row("second-thoughts", "Equivocating primary", &[I1], Primaries, primary::second_thoughts).hushed(),
    row("wrong-batch", "Wrong digest / null body", &[I1, I6], Primaries, primary::wrong_batch).hushed(),
    row("null-body", "Wrong digest / null body", &[I6, I7], Primaries, primary::null_body).hushed(),
    row("gaps", "Replayed view/seq, far-future seq", &[I6], Primaries, primary::gaps).hushed(),
    row("far-proposals", "Replayed view/seq, far-future seq", &[I6, I7], Primaries, primary::far_proposals).hushed(),
    row("time-ahead", "Lying primary timestamp", &[I1, I6], Primaries, primary::time_ahead).hushed(),
    row("time-swings", "Lying primary timestamp", &[I1, I6], Primaries, primary::time_swings).hushed(),
    row("time-behind", "Lying primary timestamp", &[I1, I6], Primaries, primary::time_behind).hushed(),
    row("time-stands", "Lying primary timestamp", &[I1], Primaries, primary::time_stands).hushed(),
    row("duplicates-in-batch", "Client duplicate timestamp", &[I5], Primaries, primary::duplicates).hushed(),
    row("stale-requests", "Client duplicate timestamp", &[I5], Primaries, primary::stale_requests).hushed(),
    row("reverses-batch", "Favouring/censoring primary", &[I2], Primaries, primary::reverses).hushed(),
    row("invented-requests", "Invented requests", &[I4], Primaries, primary::invented_requests).hushed(),
    row("changed-requests", "Invented requests", &[I4, I5], Primaries, primary::changed_requests).hushed(),
    row("oversized-batches", "Nested/oversize", &[I5, I7], Primaries, primary::oversized).hushed(),
    row("forwards", "Nested/oversize", &[I5, I7], Anywhere, primary::forwards).hushed(),
    // Standing.
    row("lying-vouchers", "Bad state transfer", &[I1, I3], Anywhere, standing::lying_vouchers),
    row("vouchers-of-another-time", "Bad state transfer", &[I1], Anywhere, standing::vouchers_of_another_time).hushed(),
    row("voucher-flood", "Bad state transfer", &[I7], Anywhere, standing::voucher_flood).hushed(),
    row("status-low", "Bad state transfer", &[I7], Anywhere, standing::status_low).hushed(),
    row("status-high", "Bad state transfer", &[I3, I6], Anywhere, standing::status_high).hushed(),
    row("status-random", "Bad state transfer", &[I6, I7], Anywhere, standing::status_random).hushed(),
    row("status-huge", "Nested/oversize", &[I7], Anywhere, standing::status_huge).hushed(),
    row("status-flood", "Bad state transfer", &[I7], Anywhere, standing::status_flood).hushed(),
    row("asks-flood", "Nested/oversize", &[I7], Anywhere, standing::asks_flood).hushed(),
    row("wrong-bodies", "Wrong digest / null body", &[I1, I6], Anywhere, standing::wrong_bodies).hushed(),
    // Towards those who have lost something.
    row("wrong-parts", "Bad state transfer", &[I1, I3, I6], Donors, transfer::wrong_parts).hushed(),
    row("wrong-heads", "Bad state transfer", &[I1, I3, I6], Donors, transfer::wrong_heads).hushed(),
    row("empty-tables", "Client reply-cache loss after ST", &[I1, I5], Donors, transfer::empty_tables).hushed(),
    row("wrong-times", "Lying primary timestamp", &[I1, I2], Donors, transfer::wrong_times).hushed(),
    row("keeps-nothing", "Bad state transfer", &[I6], Donors, transfer::keeps_nothing).hushed(),
    row("stalls-transfer", "Bad state transfer", &[I6], Donors, transfer::stalls).hushed(),
    row("late-parts", "Bad state transfer", &[I6], Donors, transfer::late_parts).hushed(),
    row("unproved-checkpoints", "Forged/minority checkpoint", &[I1, I3], Donors, transfer::unproved_checkpoints)
        .hushed(),
    row("churns-lives", "Total loss of one replica", &[I6], Donors, transfer::churns_lives).hushed(),
    row("unwelcoming", "Total loss of one replica", &[I6], Donors, transfer::unwelcoming).hushed(),
    row("many-lives", "Total loss of one replica", &[I6, I7], Anywhere, transfer::many_lives).hushed(),
    row("last-life", "Total loss of one replica", &[I6], Anywhere, transfer::last_life).hushed(),
    // Answers.
    row("wrong-results", "f+1 lie to one client", &[I2], Anywhere, replies::wrong_results),
    row("wrong-digests", "f+1 lie to one client", &[I2, I6], Anywhere, replies::wrong_digests),
    row("withheld-results", "Read-only blocking leader", &[I6], Anywhere, replies::withheld_results).hushed(),
    row("refusals", "f+1 lie to one client", &[I2], Anywhere, replies::refusals),
    row("stale-refusals", "f+1 lie to one client", &[I2], Anywhere, replies::stale_refusals),
    row("overload-refusals", "f+1 lie to one client", &[I6], Anywhere, replies::overload_refusals).hushed(),
    row("wrong-places", "f+1 lie to one client", &[I2], Anywhere, replies::wrong_places),
    row("wrong-views", "f+1 lie to one client", &[I6], Anywhere, replies::wrong_views).hushed(),
    row("any-lie-to-clients", "f+1 lie to one client", &[I2, I6], Anywhere, replies::any_lie).hushed(),
    // View changes.
    row("view-change-storm", "view-change storm", &[I6], Anywhere, views::storm).hushed(),
    row("view-leaps", "view-change storm", &[I6, I7], Anywhere, views::leaps).hushed(),
    row("joins-at-once", "view-change storm", &[I6], Anywhere, views::joins_at_once).hushed(),
    row("forgets-prepared", "Bogus P/Q in VIEW-CHANGE", &[I1, I3], Second, views::forgets_prepared).hushed(),
    row("forgets-all", "Bogus P/Q in VIEW-CHANGE", &[I1, I3], Second, views::forgets_all).hushed(),
    row("forged-prepared", "Bogus P/Q in VIEW-CHANGE", &[I1], Second, views::forged_prepared).hushed(),
    row("one-signer-prepared", "Bogus P/Q in VIEW-CHANGE", &[I1], Pair, certificates::one_signer).hushed(),
    row("swapped-prepared", "Bogus P/Q in VIEW-CHANGE", &[I1], Second, certificates::swapped).hushed(),
    row("hoards-certificates", "Bogus P/Q in VIEW-CHANGE", &[I1], Pair, certificates::hoards).hushed(),
    row("forged-stable", "Forged/minority checkpoint", &[I1, I3], Second, views::forged_stable).hushed(),
    row("other-views-prepared", "Bogus P/Q in VIEW-CHANGE", &[I1], Second, views::other_views_prepared).hushed(),
    row("two-faced-changes", "Bogus P/Q in VIEW-CHANGE", &[I1, I6], Second, views::two_faced_changes).hushed(),
    row("new-view-omits", "New-view omitting a VC", &[I1, I3], Second, views::omits_proposals).hushed(),
    row("new-view-of-nulls", "New-view omitting a VC", &[I1, I3], Second, views::null_proposals).hushed(),
    row("new-view-adds", "New-view omitting a VC", &[I1, I6], Second, views::extra_proposals).hushed(),
    row("new-view-omits-changes", "New-view omitting a VC", &[I1, I6], Second, views::omits_changes).hushed(),
    row("new-view-invents-changes", "New-view omitting a VC", &[I6, I7], Second, views::invents_changes).hushed(),
    row("two-new-views", "New-view omitting a VC", &[I1], Second, views::two_new_views).hushed(),
    row("unasked-new-views", "New-view omitting a VC", &[I1, I6], Anywhere, views::unasked_new_views).hushed(),
    // Two of a kind, broken machines, and chance.
    Behaviour { name: "twins", row: "Twins", applies: &[I1, I2], how: How::Twins, place: Anywhere, hush: false },
    Behaviour {
        name: "nondeterminism",
        row: "Nondeterminism (map order, floats, time)",
        applies: &[I1, I2],
        how: How::Spoilt,
        place: Anywhere,
        hush: false,
    },
    row("byzzfuzz-small-scope", "ByzzFuzz", &[I1, I6], Anywhere, fuzz::small_scope).hushed(),
    row("byzzfuzz-any-scope", "ByzzFuzz", &[I1, I6], Anywhere, fuzz::any_scope).hushed(),
    row("flipped-bits", "ByzzFuzz", &[I1, I4], Anywhere, fuzz::bits).hushed(),
    // Clients.
    client("client-same-timestamp", "Same-timestamp different ops", &[I1, I5], clients::same_timestamp),
    client("client-equivocates", "Same-timestamp different ops", &[I1, I5, I6], clients::equivocates),
    client("client-regresses", "Client regressing timestamp", &[I5], clients::regresses),
    client("client-extreme-timestamps", "Client regressing timestamp", &[I5, I6], clients::extreme_timestamps),
    client("client-floods", "Slowloris, pipelining", &[I6, I7], clients::floods),
    client("client-one-replica", "Favouring/censoring primary", &[I6], clients::one_replica),
    client("client-bad-signatures", "Big-MAC / partial authenticator", &[I4, I6], clients::bad_signatures),
    client("client-repeats", "Client duplicate timestamp", &[I5, I7], clients::repeats),
    client("client-repeats-old", "Client duplicate timestamp", &[I5], clients::repeats_old),
    client("client-many-sessions", "Client reply-cache loss", &[I5, I7], clients::many_sessions),
    client("client-huge-operations", "Nested/oversize", &[I7], clients::huge_operations),
    client("client-nonsense", "Nested/oversize", &[I1], clients::nonsense),
    client("client-stranger", "Unknown principal", &[I4], clients::stranger),
];

/// Lies that hold time back.
pub(crate) const TIME_LAGS: &[Behaviour] = &[
    row("time-behind", "Lying primary timestamp", &[I1], Primaries, primary::time_behind),
    row("time-stands", "Lying primary timestamp", &[I1], Primaries, primary::time_stands),
];

/// Lies of which they believe ten seconds, ahead or behind.
pub(crate) const TIME_LIES: &[Behaviour] = &[
    row("time-leaps", "Lying primary timestamp", &[I1], Primaries, primary::time_leaps),
    row("time-ahead", "Lying primary timestamp", &[I1], Primaries, primary::time_ahead),
    row("time-swings", "Lying primary timestamp", &[I1], Primaries, primary::time_swings),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_behaviour_has_a_name_of_its_own() {
        let mut names: Vec<_> = BEHAVIOURS.iter().map(|behaviour| behaviour.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), BEHAVIOURS.len());
        assert!(BEHAVIOURS.len() >= 50);
        assert!(BEHAVIOURS.iter().all(|behaviour| !behaviour.applies.is_empty()));
    }
}
