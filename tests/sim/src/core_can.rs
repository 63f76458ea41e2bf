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
    /// Not the core's, but its driver's: a clock that was set back goes on, at half its pace, from the
    /// latest time it said (`server/src/clock.rs`). When it stood still instead, so did all pauses that
    /// are measured by it, and a group answered no STATUS for as long as its clocks were set back.
    pub(crate) steady_clock: bool,
}

/// The core as it is.
pub(crate) const CORE: CoreCan = CoreCan { view_change: true, state_transfer: true, rejoin: true, steady_clock: true };
