//! dht.
