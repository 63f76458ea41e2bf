//! Snapshots: the state as bounded byte strings, and back.
//!
//! Each partition is a tag and what it stands for to the end: the clock (always first and alone),
//! or rows of one table in key order. Equal states give equal partitions.

use base::{Decode as _, DecodeError, Encode as _, Reader};

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
        state.expiry = state.orphans.iter().map(|(ino, orphan)| (orphan.until, *ino)).collect();
        Ok(state)
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
