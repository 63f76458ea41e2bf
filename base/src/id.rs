//! Names for things, each its own type.

use core::fmt;

use crate::codec::{Decode, DecodeError, Encode, Reader};

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl Encode for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                self.0.encode(out);
            }
        }

        impl Decode for $name {
            fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok($name(<$inner>::decode(input)?))
            }
        }
    };
}

number_id!(
    /// A server process: its number in the cluster's view.
    NodeId(u32), "node-"
);
number_id!(
    /// A node's PBFT role: its index in the replica set, `0..n`.
    ReplicaId(u16), "r"
);
number_id!(
    /// A PBFT view: which replica is primary (`view mod n`).
    View(u64), "v"
);
number_id!(
    /// A PBFT sequence number: a batch's place in the order. The first batch is 1.
    Seq(u64), "n"
);

impl Seq {
    /// The sequence number after this one.
    #[must_use]
    pub fn next(self) -> Seq {
        Seq(self.0 + 1)
    }
}

impl View {
    /// The primary of this view among `n` replicas: `v mod n` (TOCS'02 §4.1).
    #[must_use]
    pub fn primary(self, n: usize) -> ReplicaId {
        ReplicaId((self.0 % n as u64) as u16)
    }
}

/// A cluster's name, drawn at random when it is made. It is part of everything that is signed, so
/// that no signature means anything in another cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Encode for ClusterId {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
}

impl Decode for ClusterId {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(ClusterId(<[u8; 16]>::decode(input)?))
    }
}
