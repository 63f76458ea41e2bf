//! The network: every link delays, loses, repeats and reorders, and may be cut in one direction.
//!
//! Ends are numbered: the nodes first, then the clients.

use base::Time;

use crate::rng::Rng;

/// What links do. Chances in millionths, times in ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Weather {
    /// Chance that a parcel is lost.
    pub(crate) loss: u64,
    /// Chance that a parcel comes twice.
    pub(crate) duplication: u64,
    /// Least delay.
    pub(crate) delay: u64,
    /// Most that comes on top.
    pub(crate) jitter: u64,
    /// Chance that a parcel is held up.
    pub(crate) tail: u64,
    /// For how long at most.
    pub(crate) tail_max: u64,
}

impl Weather {
    /// A quiet network in one room.
    pub(crate) const FAIR: Weather =
        Weather { loss: 0, duplication: 0, delay: 100_000, jitter: 100_000, tail: 0, tail_max: 0 };
}

/// The links.
#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) weather: Weather,
    ends: usize,
    /// Which links carry nothing: `from * ends + to`.
    cut: Vec<bool>,
    /// Which of them never will again.
    gone: Vec<bool>,
    /// How far apart two ends are, beside the weather, ns.
    distance: Vec<u64>,
    rng: Rng,
    /// Parcels lost, repeated, held up, and swallowed by a cut.
    pub(crate) counts: [u64; 4],
}

impl Net {
    /// Links between so many ends, `near` ns apart and up to `far` more.
    pub(crate) fn new(ends: usize, weather: Weather, (near, far): (u64, u64), mut rng: Rng) -> Net {
        let distance = (0..ends * ends).map(|_| near + rng.below(far + 1)).collect();
        let gone = vec![false; ends * ends];
        Net { weather, ends, cut: gone.clone(), gone, distance, rng, counts: [0; 4] }
    }

    /// Whether the link carries nothing.
    pub(crate) fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cut[from * self.ends + to]
    }

    /// Cuts the link in this direction.
    pub(crate) fn cut(&mut self, from: usize, to: usize) {
        self.cut[from * self.ends + to] = true;
    }

    /// Cuts the link in this direction, and nobody mends it.
    pub(crate) fn cut_for_ever(&mut self, from: usize, to: usize) {
        self.gone[from * self.ends + to] = true;
        self.cut(from, to);
    }

    /// Cuts between two sides, in both directions.
    pub(crate) fn part(&mut self, side: impl Fn(usize) -> bool, ends: usize) {
        for from in 0..ends {
            for to in (0..ends).filter(|to| side(from) != side(*to)) {
                self.cut(from, to);
            }
        }
    }

    /// Mends the link in this direction, if it can be.
    pub(crate) fn mend(&mut self, from: usize, to: usize) {
        let link = from * self.ends + to;
        self.cut[link] = self.gone[link];
    }

    /// Mends every link that can be mended.
    pub(crate) fn heal(&mut self) {
        self.cut.copy_from_slice(&self.gone);
    }

    /// When a parcel posted now arrives: never, once or twice.
    pub(crate) fn post(&mut self, now: Time, from: usize, to: usize) -> impl Iterator<Item = Time> + use<> {
        if self.is_cut(from, to) {
            self.counts[3] += 1;
            return [None, None].into_iter().flatten();
        }
        let again = self.rng.per_million(self.weather.duplication);
        self.counts[1] += u64::from(again);
        let first = self.arrival(now, from, to);
        let second = if again { self.arrival(now, from, to) } else { None };
        [first, second].into_iter().flatten()
    }

    fn arrival(&mut self, now: Time, from: usize, to: usize) -> Option<Time> {
        let weather = self.weather;
        if self.rng.per_million(weather.loss) {
            self.counts[0] += 1;
            return None;
        }
        let mut delay = weather.delay + self.distance[from * self.ends + to] + self.rng.below(weather.jitter + 1);
        if self.rng.per_million(weather.tail) {
            self.counts[2] += 1;
            delay += self.rng.below(weather.tail_max + 1);
        }
        Some(Time(now.0 + delay))
    }
}
