//! The replicated state: the namespace as a deterministic state machine.
pub mod op;
