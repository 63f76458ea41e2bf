//! Worlds with one difficulty each, which chance would make too seldom, or mend too soon.

use crate::byz::BEHAVIOURS;
use crate::clock::START;
use crate::machine::Service;
use crate::net::Weather;
use crate::plan::Plan;
use crate::rng::Rng;
use crate::world::World;

const MS: u64 = 1_000_000;
const S: u64 = 1_000_000_000;

/// A difficulty that does not go away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Everybody is so far from everybody that agreement takes longer than the view timeout.
    FarApart,
    /// Each client's requests reach one replica only, and the first client's can't reach the primary.
    OneDoor,
    /// The primary censors one principal, and the others always have something for it to do.
    Starved,
}

impl Setting {
    /// All of them.
    pub const ALL: [Setting; 3] = [Setting::FarApart, Setting::OneDoor, Setting::Starved];

    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Setting::FarApart => "far-apart",
            Setting::OneDoor => "one-door",
            Setting::Starved => "starved",
        }
    }

    /// The plan of a seed in this setting.
    pub(crate) fn plan(self, seed: u64) -> Plan {
        let mut plan = match self {
            Setting::FarApart | Setting::OneDoor => Plan::of(seed),
            Setting::Starved => {
                let censor = BEHAVIOURS.iter().find(|behaviour| behaviour.name == "censor");
                Plan::with_liars(seed, censor.expect("it is in the table"), false)
            }
        };
        let mut rng = Rng::new(seed ^ 0x5e77_1196);
        plan.setting = Some(self);
        plan.faults.clear();
        plan.crash = 0;
        plan.calm = 5 * S;
        plan.weather = Weather { jitter: plan.weather.jitter, ..Weather::FAIR };
        plan.far = plan.far.min(5 * MS);
        plan.disk.stall = 0;
        plan.clocks.fill((0, 0));
        let few = plan.clients.len().min(4);
        plan.clients.truncate(few.max(2));
        match self {
            Setting::FarApart => plan.near = rng.pick(&[350, 450, 700]) * MS,
            // Nobody is to be suspected at any time.
            Setting::OneDoor => plan.calm = MS,
            Setting::Starved => {
                let first = plan.clients[0];
                plan.clients.resize(3, first);
            }
        }
        for (index, client) in (0..).zip(&mut plan.clients) {
            client.session = index + 1;
            client.principal = index as usize;
            client.requests = 6;
            client.think = plan.calm / 8;
        }
        plan
    }
}

/// Views that may pass, once the faults have stopped, beside those whose primaries lie or are gone.
const VIEWS_MAX: u64 = 8;
/// How long the others keep a censoring primary busy after the faults have stopped, ns.
const BUSY: u64 = 40 * S;
/// And within what time those it censors are served all the same, ns.
const SERVED_WITHIN: u64 = 30 * S;

impl<S: Service> World<S> {
    /// Cuts links for ever.
    pub(crate) fn cut_for_ever(&mut self) {
        if self.plan.setting != Some(Setting::OneDoor) {
            return;
        }
        for client in 0..self.clients.len() {
            let door = 1 + client % (self.plan.n - 1);
            let end = self.end_of(client);
            (0..self.plan.n).filter(|node| *node != door).for_each(|node| self.net.cut_for_ever(end, node));
        }
        self.net.cut_for_ever(1, 0);
    }

    /// Views that may pass once the faults have stopped, beside `bad` whose primaries nobody can wait for.
    pub(crate) fn views_allowed(&self, bad: u64) -> u64 {
        match self.plan.setting {
            None | Some(Setting::Starved) => VIEWS_MAX + bad,
            // What is slower than the timeout is suspected again and again, and served all the same.
            Some(Setting::FarApart) => u64::MAX,
            // There is a way to the primary, and it does all that it is asked.
            Some(Setting::OneDoor) => 0,
        }
    }

    /// Whether a client still thinks of requests without end.
    pub(crate) fn is_busy(&self, client: usize) -> bool {
        let since = self.now.0.saturating_sub(START.0 + self.plan.calm);
        self.plan.setting == Some(Setting::Starved) && client > 0 && since < BUSY
    }

    /// What should have happened by now in this setting, and did not.
    pub(crate) fn is_starved(&self) -> bool {
        let since = self.now.0.saturating_sub(START.0 + self.plan.calm);
        self.plan.setting == Some(Setting::Starved) && since > SERVED_WITHIN && !self.clients[0].is_done()
    }
}
