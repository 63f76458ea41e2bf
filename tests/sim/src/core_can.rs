//! What the core under test can do so far. A switch that is off keeps the worlds from asking for it:
//! turn it on in the commit that brings the protocol.

/// Parts of the protocol.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CoreCan {
    /// Go on without its primary.
    pub(crate) view_change: bool,
    /// Catch up by a copy of the state, when nobody retains the batches.
    pub(crate) state_transfer: bool,
    /// Take part again after it lost its disk.
    pub(crate) rejoin: bool,
    /// Not the core's, but its driver's: a clock that was set back goes on at its own pace from the
    /// latest time it said. Today it stands still until the wall clock has caught up
    /// (`server/src/clock.rs`), and so do all pauses that are measured by it: seeds 205 and 252 of the
    /// first generator showed a group that answers no STATUS for as long as its clocks were set back.
    pub(crate) steady_clock: bool,
}

/// The core as it is.
pub(crate) const CORE: CoreCan = CoreCan { view_change: true, state_transfer: true, rejoin: true, steady_clock: true };
