//! bft.
