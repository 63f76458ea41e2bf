//! Changing the view (OSDI'99 §4.4): when the primary is suspected, leaving its view, and who
//! joins. What comes after, the new view, is in `new_view`.
//!
//! A replica that left a view votes in it no more, and in no lower one: what its view change says
//! it prepared is all it ever will have. Between leaving and entering it is in *limbo*: it collects
//! votes for the view it asked for, executes what others vouch for, and speaks only of view changes.

use core::time::Duration;
use std::collections::BTreeMap;

use base::{Digest, Effects, ReplicaId, Seq, Signed, StateMachine, Time, View};

use crate::event::{Event, Ignored};
use crate::message::Message;
use crate::new_view::{Pending, Shown};
use crate::params::TIMEOUT_DOUBLINGS_MAX;
use crate::record::Record;
use crate::replica::Replica;
use crate::request::Request;
use crate::table::Verdict;
use crate::view_change::ViewChange;

/// A principal whose requests are known here is starved if nothing of it is executed for this many
/// timeouts, whatever else is.
const STARVED_TIMEOUTS: u32 = 4;
/// For this many timeouts a replica that others are ahead of blames itself and not the primary.
const LAGGING_TIMEOUTS: u32 = 8;
/// What waits is passed on to everybody this often within a timeout, but not in its first part: the link
/// to the primary may be what fails.
const RELAYS: u32 = 4;
/// After this many timeouts alone in limbo a replica is joined by those who see nothing wrong: its
/// vote is worth more than a moment's work.
const ALONE_TIMEOUTS: u32 = 16;

/// What a replica knows of view changes.
#[derive(Clone, Debug)]
pub(crate) struct Views {
    /// Whether the replica is in its view; else it is in limbo.
    pub(crate) active: bool,
    /// The view change for the highest view of each replica, above the last view entered.
    pub(crate) changes: BTreeMap<ReplicaId, Held>,
    /// What the view began with; `None` in view 0 and in limbo.
    pub(crate) shown: Option<Shown>,
    /// New views that refer to view changes not here, by primary.
    pub(crate) pending: BTreeMap<ReplicaId, Pending>,
    /// Views in a row in which nothing was executed.
    pub(crate) failed: u32,
    /// Since when something is outstanding and nothing was executed; in limbo, since when enough
    /// others are in limbo too.
    pub(crate) since: Option<Time>,
    /// When what waits was passed on to everybody last.
    relayed: Option<Time>,
    /// When something was executed last.
    pub(crate) progress: Time,
    /// When the view began here: nobody can have been starved by its primary before.
    pub(crate) entered: Time,
}

/// A view change that came.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) change: Signed<ViewChange>,
    pub(crate) digest: Digest,
    pub(crate) since: Time,
}

impl Default for Views {
    fn default() -> Self {
        Views {
            active: true,
            changes: BTreeMap::new(),
            shown: None,
            pending: BTreeMap::new(),
            failed: 0,
            since: None,
            relayed: None,
            progress: Time::ZERO,
            entered: Time::ZERO,
        }
    }
}

impl Views {
    /// Whether the new view proposed something at this place.
    pub(crate) fn proposes(&self, seq: Seq) -> bool {
        let proposals = self.shown.iter().flat_map(|shown| &shown.new_view.body.proposals);
        proposals.map(|header| header.body.seq).any(|place| place == seq)
    }
}

impl<S: StateMachine> Replica<S> {
    /// How long the primary has, doubled for every view in a row that came to nothing. For one that
    /// can't vote there is nothing to wait for.
    pub(crate) fn view_timeout(&self) -> Duration {
        if self.peers.is_rejoining(self.params.primary(self.view)) {
            return self.params.view_timeout;
        }
        self.params.view_timeout * (1 << self.views.failed.min(TIMEOUT_DOUBLINGS_MAX))
    }

    /// When the primary will be suspected, or the view asked for given up.
    pub(crate) fn view_deadline(&self) -> Option<Time> {
        self.views.since.map(|since| since.after(self.view_timeout()))
    }

    /// Whether something is known here that the primary should bring about.
    fn is_outstanding(&self) -> bool {
        !self.queue.is_empty()
            || self.helps_rejoin()
            || self.log.last_proposed() > self.last_executed.max(self.log.low())
    }

    /// Starts, keeps or stops the timer, after anything happened.
    pub(crate) fn set_view_timer(&mut self, now: Time) {
        let runs = if self.is_mute() {
            false
        } else if self.views.active {
            !self.is_primary() && self.is_outstanding()
        } else {
            // Alone in limbo, a replica waits for the others: to run ahead of them helps nobody.
            self.views.changes.values().filter(|held| held.change.body.view >= self.view).count()
                >= self.quorums.strong()
        };
        self.floor.look(now, self.log.last_proposed() > self.last_executed, self.params.view_timeout);
        // Nothing is outstanding since later than now, though the clock may have been set back.
        self.views.since = runs.then(|| self.views.since.map_or(now, |since| since.min(now)));
    }

    /// Something was executed: the primary has all its time again.
    pub(crate) fn note_progress(&mut self, now: Time, served: usize) {
        self.views.progress = now;
        if self.views.active {
            self.views.since = None;
            if served > 0 {
                self.views.failed = 0;
            }
        }
    }

    /// The timer ran out.
    pub(crate) fn on_view_timeout(&mut self, now: Time, fx: &mut Effects<Self>) {
        self.forget_hopeless();
        if self.views.active && !self.is_outstanding() {
            return;
        }
        let patience = self.view_timeout() * LAGGING_TIMEOUTS;
        if self.views.active && self.is_lagging() && now.since(self.views.progress) < patience {
            self.views.since = Some(now);
            return;
        }
        self.leave_view(now, View(self.view.0.saturating_add(1)), fx);
    }

    /// Forgets requests that will never be executed: no primary is to blame for them.
    pub(crate) fn forget_hopeless(&mut self) {
        let hopeless = |request: &&Signed<Request>| {
            let Request { client, session, timestamp, .. } = &request.body;
            self.table.verdict(client, *session, *timestamp) != Verdict::Fresh || !self.state.admits(client)
        };
        let requests = self.queue.requests().filter(hopeless);
        let names: Vec<_> =
            requests.map(|request| (request.body.client, request.body.session, request.body.timestamp)).collect();
        names.into_iter().for_each(|(client, session, timestamp)| self.queue.remove(&client, session, timestamp));
    }

    /// At every STATUS: what needs no timer of its own.
    pub(crate) fn review_view(&mut self, now: Time, fx: &mut Effects<Self>) {
        self.queue.rebase(now);
        self.ask_for_missing(None, fx);
        if !self.views.active || self.is_mute() {
            return;
        }
        self.forget_hopeless();
        let timeout = self.view_timeout();
        let pause = timeout / RELAYS;
        let relayed = self.views.relayed.is_some_and(|relayed| relayed <= now && now.since(relayed) < pause);
        if !relayed && self.views.since.is_some_and(|since| now.since(since) >= pause) {
            self.views.relayed = Some(now);
            self.relay(fx);
        }
        let unserved = self.queue.unserved_since().map(|since| now.since(since.max(self.views.entered)));
        let starved = !self.is_primary()
            && !self.is_lagging()
            && unserved.is_some_and(|unserved| unserved >= timeout * STARVED_TIMEOUTS);
        let alone = self.views.changes.values().any(|held| now.since(held.since) >= timeout * ALONE_TIMEOUTS);
        let slow = self.is_below_floor(now);
        if starved || alone || slow {
            self.leave_view(now, View(self.view.0.saturating_add(1)), fx);
        }
    }

    /// Votes no more in this view, nor in any below `to`, and says so.
    pub(crate) fn leave_view(&mut self, now: Time, to: View, fx: &mut Effects<Self>) {
        if to <= self.view || self.is_mute() {
            return;
        }
        fx.persist.push(Record::Left(to));
        self.admit_left(to);
        let change = self.hold_own_change(now);
        fx.events.push(Event::LeftView { asked_for: to });
        fx.broadcast(Message::ViewChange(change));
        self.consider_views(now, fx);
    }

    /// Folds the votes of the view left; `to` is the view now asked for.
    pub(crate) fn admit_left(&mut self, to: View) {
        assert!(to > self.view, "views only rise");
        self.log.fold();
        self.queue.unpropose();
        self.view = to;
        self.views.failed = self.views.failed.saturating_add(1);
        self.views.active = false;
        self.views.shown = None;
        self.views.since = None;
        self.views.pending.retain(|_, pending| pending.view() >= to);
    }

    /// Counts this replica's own view change among those it holds.
    pub(crate) fn hold_own_change(&mut self, now: Time) -> Signed<ViewChange> {
        let change = self.own_change();
        let held = Held { digest: change.body.digest(), change: change.clone(), since: now };
        self.views.changes.insert(self.params.me, held);
        change
    }

    /// ⟨VIEW-CHANGE, v+1, n, C, P, i⟩ of this replica, for the view it asks for.
    pub(crate) fn own_change(&self) -> Signed<ViewChange> {
        self.params.sign(ViewChange {
            view: self.view,
            stable: self.checkpoints.stable.clone(),
            prepared: self.log.prepared(),
            replica: self.params.me,
            life: self.lives.own,
        })
    }

    /// A view change, from its sender or passed on.
    pub(crate) fn on_view_change(&mut self, now: Time, change: Signed<ViewChange>, fx: &mut Effects<Self>) {
        let (view, replica, low) = (change.body.view, change.body.replica, change.body.low_water_mark());
        let beyond = |seq: Seq| seq.0 > low.0.saturating_add(self.params.window);
        if change.body.prepared.last().is_some_and(|prepared| beyond(prepared.header.body.seq)) {
            return self.ignore(Ignored::OutOfWindow, fx);
        }
        if change.body.life < self.life_of(replica) {
            return self.ignore(Ignored::Rejoining, fx);
        }
        let digest = change.body.digest();
        let was_missing = self.fill_pending(&change, digest, now, fx);
        if view < self.view || (view == self.view && self.views.active) {
            return self.ignore_unless(was_missing, Ignored::Stale, fx);
        }
        if self.views.changes.get(&replica).is_some_and(|held| held.change.body.view >= view) {
            return self.ignore_unless(was_missing, Ignored::Duplicate, fx);
        }
        self.views.changes.insert(replica, Held { change, digest, since: now });
        self.consider_views(now, fx);
    }

    fn ignore_unless(&mut self, useful: bool, why: Ignored, fx: &mut Effects<Self>) {
        if !useful {
            self.ignore(why, fx);
        }
    }

    /// What the view changes held give cause for.
    fn consider_views(&mut self, now: Time, fx: &mut Effects<Self>) {
        if self.is_mute() {
            return;
        }
        // f + 1 others ask for a higher view: a correct one among them does. The view that all of
        // them have reached (TOCS'02 §4.5.2; libbyz).
        let mut asked: Vec<View> = self.views.changes.values().map(|held| held.change.body.view).collect();
        asked.sort_unstable_by(|a, b| b.cmp(a));
        if let Some(view) = asked.get(self.quorums.weak() - 1).copied().filter(|view| *view > self.view) {
            return self.leave_view(now, view, fx);
        }
        self.set_view_timer(now);
        let for_mine = self.views.changes.values().filter(|held| held.change.body.view == self.view).count();
        if !self.views.active && self.is_primary() && for_mine >= self.quorums.strong() {
            self.start_view(now, fx);
        }
    }
}
