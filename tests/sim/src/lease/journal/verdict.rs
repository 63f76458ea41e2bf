//! The end of a run: what was lost, in which order things were done, what was seen, and under which locks.

use std::collections::BTreeMap;

use base::Time;
use meta::Ino;

use super::{Deed, Journal, Told, What};
use crate::check::Invariant;

impl Journal {
    /// The end: all is known that will be.
    pub(crate) fn finish(&mut self) {
        self.judge_losses();
        self.judge_order();
        self.judge_looks();
        self.judge_locks();
    }

    /// I3: what was synced is there; what is lost was told, and is the end of a log.
    fn judge_losses(&mut self) {
        let mut wrong = Vec::new();
        for (number, deed) in self.numbered().filter(|(_, deed)| deed.honest && deed.told.0 == Told::Done) {
            if self.effects.contains_key(&number) {
                continue;
            }
            let syncs = self.syncs.iter().filter(|sync| (sync.who, sync.life) == (deed.who, deed.life));
            let ill = syncs.clone().filter(|sync| !sync.well && sync.ended > deed.told.1).map(|sync| sync.ended).min();
            // What happens in the same instant is in no order.
            let well = syncs.filter(|sync| sync.well && sync.begun > deed.told.1).map(|sync| sync.ended).min();
            match (well, ill) {
                (Some(well), ill) if ill.is_none_or(|ill| ill > well) => {
                    wrong.push(format!("deed {number} of {} was synced, and is lost", deed.who));
                }
                (_, None) if !self.crashed.contains_key(&(deed.who, deed.life)) => {
                    wrong.push(format!("deed {number} of {} is lost, and nobody was told", deed.who));
                }
                _ => {}
            }
            let later = |(_, later): &(u64, &Deed)| {
                (later.who, later.life) == (deed.who, deed.life) && later.begun >= deed.told.1
            };
            let hole = self.numbered().filter(later).find(|(later, _)| {
                let epoch = self.effects.get(later).and_then(|effect| effect.epoch);
                epoch.is_some_and(|epoch| self.epochs.get(&epoch).is_some_and(|began| *began < deed.told.1))
            });
            if let Some((later, _)) = hole {
                wrong.push(format!("deed {number} of {} is lost, and deed {later} of the same log is not", deed.who));
            }
        }
        for (number, deed) in self.numbered().filter(|(_, deed)| deed.honest && deed.told.0 == Told::Refused) {
            if self.effects.contains_key(&number) {
                wrong.push(format!("deed {number} of {} was refused, and done all the same", deed.who));
            }
        }
        wrong.into_iter().for_each(|what| self.blame(Invariant::Durability, what));
    }

    /// I2, of what was written: what was done before something else began comes before it.
    fn judge_order(&mut self) {
        let mut last: BTreeMap<Ino, Vec<(usize, u64)>> = BTreeMap::new();
        for (number, effect) in &self.effects {
            if let Some(Deed { what: What::Write(file), honest: true, .. }) = self.deeds.get(*number as usize - 1) {
                last.entry(*file).or_default().push((effect.place, *number));
            }
        }
        let mut wrong = Vec::new();
        for (file, mut writes) in last {
            writes.sort_unstable();
            let deeds: Vec<(u64, &Deed)> =
                writes.iter().map(|(_, number)| (*number, &self.deeds[*number as usize - 1])).collect();
            let mut begun = Time::ZERO;
            for (number, deed) in deeds {
                if deed.told.0 == Told::Done && deed.told.1 < begun {
                    wrong.push(format!("deed {number} was done to {file:?} after one that began when it was done"));
                }
                begun = begun.max(deed.begun);
            }
        }
        wrong.into_iter().for_each(|what| self.blame(Invariant::Leases, format!("a stale write was accepted: {what}")));
    }

    /// I2, of what was seen: nothing that was over before the look began, and is not lost, is missing.
    fn judge_looks(&mut self) {
        let (mut wrong, mut phantoms) = (Vec::new(), Vec::new());
        for look in &self.looks {
            match look.what {
                What::Write(file) => {
                    let seen = self.deeds.get((look.seen as usize).wrapping_sub(1));
                    let own = seen.is_some_and(|deed| (deed.who, deed.life) == (look.who, look.life));
                    let there = look.seen == 0 || own || self.effects.contains_key(&look.seen);
                    if !there || seen.is_some_and(|deed| deed.begun > look.ended) {
                        phantoms
                            .push(format!("{} saw deed {} in {file:?}, which was never there", look.who, look.seen));
                    }
                    let before = seen.map_or(Time::ZERO, |deed| match deed.told {
                        (Told::Done, at) => at,
                        _ => Time(u64::MAX),
                    });
                    let newer = self.numbered().find(|(number, deed)| {
                        deed.what == What::Write(file)
                            && deed.told.0 == Told::Done
                            && deed.told.1 < look.begun
                            && before < deed.begun
                            && self.effects.contains_key(number)
                    });
                    if let Some((newer, _)) = newer {
                        wrong.push(format!("{} saw deed {} in {file:?}, not deed {newer}", look.who, look.seen));
                    }
                }
                What::Make(directory) => {
                    let (number, there) = (look.seen >> 1, look.seen & 1 == 1);
                    let deed = &self.deeds[number as usize - 1];
                    let done =
                        deed.told.0 == Told::Done && deed.told.1 < look.begun && self.effects.contains_key(&number);
                    if done && !there {
                        wrong.push(format!("{} did not see name {number} in {directory:?}", look.who));
                    }
                }
            }
        }
        phantoms.into_iter().for_each(|what| self.blame(Invariant::Durability, what));
        if self.judges_looks {
            wrong.into_iter().for_each(|what| self.blame(Invariant::Leases, format!("a look at what is old: {what}")));
        } else {
            self.stale_looks = wrong.len() as u64;
        }
    }

    /// Locks: whatever was done under one follows on what was seen under it.
    fn judge_locks(&mut self) {
        let mut files: BTreeMap<Ino, Vec<(usize, u64, u64)>> = BTreeMap::new();
        for (number, effect) in &self.effects {
            if let Some(Deed { what: What::Write(file), under: Some(seen), .. }) = self.deeds.get(*number as usize - 1)
            {
                files.entry(*file).or_default().push((effect.place, *number, *seen));
            }
        }
        let mut wrong = Vec::new();
        for (file, mut writes) in files {
            writes.sort_unstable();
            let mut before = 0;
            for (_, number, seen) in writes {
                if seen != before {
                    wrong.push(format!(
                        "two had one lock: deed {number} on {file:?} follows on {seen}, not on {before}"
                    ));
                }
                before = number;
            }
        }
        wrong.into_iter().for_each(|what| self.blame(Invariant::Leases, what));
    }
}
