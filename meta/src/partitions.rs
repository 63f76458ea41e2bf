//! Partitions: the state as bounded byte strings, and back.
//!
//! Each partition is a tag and what it stands for to the end: the clock (always first and alone),
//! or rows of one table in key order. Equal states give equal partitions. And single rows, as one
//! state is made into another: a row's name is its table's tag and its key.

use base::{Decode as _, DecodeError, Encode as _, Reader};

use crate::lock::LockIndex;
use crate::state::{CLOCK_TAG, Clock, State};

impl State {
    pub(crate) fn partitions(&self) -> Box<dyn Iterator<Item = Vec<u8>> + '_> {
        let mut clock = vec![CLOCK_TAG];
        self.clock.encode(&mut clock);
        Box::new(core::iter::once(clock).chain(self.tables().into_iter().flat_map(|table| table.partitions())))
    }

    pub(crate) fn from_partitions(partitions: &[Vec<u8>]) -> Result<State, DecodeError> {
        let Some((clock, rest)) = partitions.split_first() else {
            return Err(DecodeError::Invalid { what: "snapshot without partitions" });
        };
        let mut state = State::from_clock(clock)?;
        let mut latest = CLOCK_TAG + 1;
        for partition in rest {
            let mut input = Reader::new(partition);
            let tag = u8::decode(&mut input)?;
            if tag < latest {
                return Err(DecodeError::Invalid { what: "order of partitions" });
            }
            latest = tag;
            let index = usize::from(tag - CLOCK_TAG - 1);
            let unknown = DecodeError::Tag { what: "table", tag: u64::from(tag) };
            state.tables_mut().into_iter().nth(index).ok_or(unknown)?.load(&mut input)?;
        }
        state.index();
        Ok(state)
    }

    /// What follows from the tables and is not part of the state.
    fn index(&mut self) {
        self.expiry = self.orphans.iter().map(|(ino, orphan)| (orphan.until, *ino)).collect();
        let recalled = self.holders.iter().filter(|(_, holder)| !holder.recalls.is_empty());
        self.recalled = recalled.map(|(id, _)| *id).collect();
        self.locked = LockIndex::of(self.locks.iter());
        self.index_snapshots();
        self.index_trash();
    }

    pub(crate) fn row_of(&self, name: &[u8]) -> Option<Vec<u8>> {
        let (tag, key) = name.split_first()?;
        match tag.checked_sub(CLOCK_TAG)? {
            0 => (key == [CLOCK_TAG]).then(|| self.clock.to_bytes()),
            index => self.tables().into_iter().nth(usize::from(index) - 1)?.value(key),
        }
    }

    pub(crate) fn patch_rows(&mut self, rows: &[(Vec<u8>, Option<Vec<u8>>)]) -> Result<(), DecodeError> {
        for (name, value) in rows {
            let (tag, key) = name.split_first().ok_or(DecodeError::Invalid { what: "name of a row" })?;
            let unknown = DecodeError::Tag { what: "table", tag: u64::from(*tag) };
            match (tag.checked_sub(CLOCK_TAG), value) {
                (None, _) => return Err(unknown),
                (Some(0), Some(value)) => self.clock = Clock::from_bytes(value)?,
                // The clock is always there; it is only ever replaced.
                (Some(0), None) => {}
                (Some(index), value) => {
                    let mut tables = self.tables_mut().into_iter();
                    tables.nth(usize::from(index) - 1).ok_or(unknown)?.patch(key, value.as_deref())?;
                }
            }
        }
        self.index();
        Ok(())
    }

    fn from_clock(partition: &[u8]) -> Result<State, DecodeError> {
        let mut input = Reader::new(partition);
        if u8::decode(&mut input)? != CLOCK_TAG {
            return Err(DecodeError::Invalid { what: "order of partitions" });
        }
        let clock = Clock::decode(&mut input)?;
        if !input.is_empty() {
            return Err(DecodeError::Trailing { bytes: input.remaining() });
        }
        let mut state = State::empty(clock.cluster);
        state.clock = clock;
        Ok(state)
    }
}
