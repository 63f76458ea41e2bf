//! The canonical encoding: what is signed, hashed and stored.
//!
//! One value has exactly one encoding and every encoding has exactly one value, so that signing a
//! decoded value and signing the bytes it came from are the same thing (protobuf promises neither).
//! Integers are little-endian and of fixed width, lengths are `u32`, an enum is a `u8` tag and the
//! fields of its variant, `Option` is a byte 0 or 1, maps are strictly ascending.
//!
//! Decoding reads a stranger's bytes: it never panics, never recurses without bound (types are
//! finite), and allocates no more than a small multiple of the bytes present, whatever a length
//! field claims.

use std::collections::BTreeMap;

use bytes::Bytes;

/// A value with a canonical encoding.
pub trait Encode {
    /// Appends the encoding to `out`.
    fn encode(&self, out: &mut Vec<u8>);

    /// The encoding on its own.
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }
}

/// A value that can be read back from its canonical encoding.
pub trait Decode: Sized {
    /// Reads one value from the front of `input`.
    ///
    /// # Errors
    /// If the bytes are not a canonical encoding of a value of this type.
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError>;

    /// Reads a value that must take up all of `bytes`.
    ///
    /// # Errors
    /// As [`Decode::decode`], and if bytes are left over.
    fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Reader::new(bytes);
        let value = Self::decode(&mut input)?;
        if input.is_empty() { Ok(value) } else { Err(DecodeError::Trailing { bytes: input.remaining() }) }
    }
}

/// Why bytes were not a canonical encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes ended inside a value.
    #[error("ended {missing} bytes early")]
    Short {
        /// How many more bytes the value needed, at least.
        missing: usize,
    },
    /// Bytes were left over after the value.
    #[error("{bytes} bytes too many")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// A tag that means nothing here.
    #[error("unknown {what} {tag}")]
    Tag {
        /// What the tag should have chosen.
        what: &'static str,
        /// The tag found.
        tag: u64,
    },
    /// A value outside its range, or an encoding that is not the canonical one.
    #[error("not a valid {what}")]
    Invalid {
        /// What was being read.
        what: &'static str,
    },
    /// A sequence longer than its type allows.
    #[error("{what} is {len} long; at most {max} allowed")]
    TooLong {
        /// What was being read.
        what: &'static str,
        /// The length claimed.
        len: usize,
        /// The length allowed.
        max: usize,
    },
}

/// A cursor over bytes being decoded.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the front of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// Takes the next `len` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Short`] if there are fewer.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let Some((head, tail)) = self.rest.split_at_checked(len) else {
            return Err(DecodeError::Short { missing: len - self.rest.len() });
        };
        self.rest = tail;
        Ok(head)
    }

    /// Whether all bytes were read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// How many bytes are left.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Reads a length-prefixed byte string of at most `max` bytes.
    ///
    /// # Errors
    /// [`DecodeError::TooLong`] or [`DecodeError::Short`].
    pub fn bytes_max(&mut self, what: &'static str, max: usize) -> Result<&'a [u8], DecodeError> {
        let len = u32::decode(self)? as usize;
        if len > max {
            return Err(DecodeError::TooLong { what, len, max });
        }
        self.take(len)
    }

    /// Reads a sequence of at most `max` values.
    ///
    /// # Errors
    /// [`DecodeError::TooLong`], or what decoding an element says.
    pub fn seq_max<T: Decode>(&mut self, what: &'static str, max: usize) -> Result<Vec<T>, DecodeError> {
        let len = u32::decode(self)? as usize;
        if len > max {
            return Err(DecodeError::TooLong { what, len, max });
        }
        // A claimed length buys memory only for bytes that are there.
        let mut items = Vec::with_capacity(len.min(self.remaining()).min(4096));
        for _ in 0..len {
            items.push(T::decode(self)?);
        }
        Ok(items)
    }
}

macro_rules! fixed_width {
    ($($int:ty),*) => {$(
        impl Encode for $int {
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }

        impl Decode for $int {
            fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
                let mut raw = [0; size_of::<$int>()];
                raw.copy_from_slice(input.take(size_of::<$int>())?);
                Ok(<$int>::from_le_bytes(raw))
            }
        }
    )*};
}
fixed_width!(u8, u16, u32, u64, i64);

impl Encode for bool {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl Decode for bool {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match u8::decode(input)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Invalid { what: "bool" }),
        }
    }
}

impl<const N: usize> Encode for [u8; N] {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
}

impl<const N: usize> Decode for [u8; N] {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(input.take(N)?);
        Ok(array)
    }
}

fn encode_len(len: usize, out: &mut Vec<u8>) {
    u32::try_from(len).expect("nothing we encode is 4 GiB long").encode(out);
}

impl Encode for [u8] {
    fn encode(&self, out: &mut Vec<u8>) {
        encode_len(self.len(), out);
        out.extend_from_slice(self);
    }
}

impl Encode for Bytes {
    fn encode(&self, out: &mut Vec<u8>) {
        self.as_ref().encode(out);
    }
}

impl Decode for Bytes {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Bytes::copy_from_slice(input.bytes_max("byte string", usize::MAX)?))
    }
}

impl Encode for str {
    fn encode(&self, out: &mut Vec<u8>) {
        self.as_bytes().encode(out);
    }
}

impl Encode for String {
    fn encode(&self, out: &mut Vec<u8>) {
        self.as_bytes().encode(out);
    }
}

impl Decode for String {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let bytes = input.bytes_max("string", usize::MAX)?;
        Ok(core::str::from_utf8(bytes).map_err(|_| DecodeError::Invalid { what: "UTF-8 string" })?.to_owned())
    }
}

impl<T: Encode> Encode for Option<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.is_some().encode(out);
        if let Some(value) = self {
            value.encode(out);
        }
    }
}

impl<T: Decode> Decode for Option<T> {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        if bool::decode(input)? { Ok(Some(T::decode(input)?)) } else { Ok(None) }
    }
}

impl<T: Encode> Encode for Vec<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        encode_len(self.len(), out);
        self.iter().for_each(|item| item.encode(out));
    }
}

impl<T: Decode> Decode for Vec<T> {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        input.seq_max("sequence", usize::MAX)
    }
}

impl<K: Encode, V: Encode> Encode for BTreeMap<K, V> {
    fn encode(&self, out: &mut Vec<u8>) {
        encode_len(self.len(), out);
        for (key, value) in self {
            key.encode(out);
            value.encode(out);
        }
    }
}

impl<K: Decode + Ord, V: Decode> Decode for BTreeMap<K, V> {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let len = u32::decode(input)?;
        let mut map = BTreeMap::new();
        for _ in 0..len {
            let (key, value) = (K::decode(input)?, V::decode(input)?);
            if map.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return Err(DecodeError::Invalid { what: "ascending map" });
            }
            map.insert(key, value);
        }
        Ok(map)
    }
}

impl<T: Encode + ?Sized> Encode for &T {
    fn encode(&self, out: &mut Vec<u8>) {
        (**self).encode(out);
    }
}

macro_rules! tuple {
    ($($name:ident $index:tt),+) => {
        impl<$($name: Encode),+> Encode for ($($name,)+) {
            fn encode(&self, out: &mut Vec<u8>) {
                $(self.$index.encode(out);)+
            }
        }

        impl<$($name: Decode),+> Decode for ($($name,)+) {
            fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok(($($name::decode(input)?,)+))
            }
        }
    };
}
tuple!(A 0, B 1);
tuple!(A 0, B 1, C 2);

/// Implements [`Encode`] and [`Decode`] for a struct: its fields in the order named.
#[macro_export]
macro_rules! canonical_struct {
    ($name:ty { $($field:ident),* $(,)? }) => {
        impl $crate::Encode for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                $($crate::Encode::encode(&self.$field, out);)*
            }
        }

        impl $crate::Decode for $name {
            fn decode(input: &mut $crate::Reader<'_>) -> Result<Self, $crate::DecodeError> {
                $(let $field = $crate::Decode::decode(input)?;)*
                Ok(Self { $($field),* })
            }
        }
    };
}

/// Implements [`Encode`] and [`Decode`] for an enum: a `u8` tag, then the variant's fields. Every
/// variant is written `tag => Name { fields }`, `tag => Name(a, b)` or `tag => Name`.
#[macro_export]
macro_rules! canonical_enum {
    ($name:ident {
        $($tag:literal => $variant:ident $({ $($field:ident),* $(,)? })? $(( $($item:ident),* ))? ),* $(,)?
    }) => {
        impl $crate::Encode for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                match self {
                    $($name::$variant $({ $($field),* })? $(( $($item),* ))? => {
                        out.push($tag);
                        $($($crate::Encode::encode($field, out);)*)?
                        $($($crate::Encode::encode($item, out);)*)?
                    })*
                }
            }
        }

        impl $crate::Decode for $name {
            fn decode(input: &mut $crate::Reader<'_>) -> Result<Self, $crate::DecodeError> {
                match <u8 as $crate::Decode>::decode(input)? {
                    $($tag => {
                        $($(let $field = $crate::Decode::decode(input)?;)*)?
                        $($(let $item = $crate::Decode::decode(input)?;)*)?
                        Ok($name::$variant $({ $($field),* })? $(( $($item),* ))?)
                    })*
                    tag => Err($crate::DecodeError::Tag { what: stringify!($name), tag: u64::from(tag) }),
                }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    enum Shape {
        Unit,
        Pair(u8, Bytes),
        Named { at: Option<u64>, items: Vec<(u16, bool)>, map: BTreeMap<u32, String> },
    }
    canonical_enum!(Shape { 0 => Unit, 1 => Pair(a, b), 2 => Named { at, items, map } });

    fn shape() -> impl Strategy<Value = Shape> {
        prop_oneof![
            Just(Shape::Unit),
            (any::<u8>(), any::<Vec<u8>>()).prop_map(|(a, b)| Shape::Pair(a, b.into())),
            (
                any::<Option<u64>>(),
                any::<Vec<(u16, bool)>>(),
                proptest::collection::btree_map(any::<u32>(), ".*", 0..4)
            )
                .prop_map(|(at, items, map)| Shape::Named { at, items, map }),
        ]
    }

    proptest! {
        #[test]
        fn round_trip(value in shape()) {
            prop_assert_eq!(Shape::from_bytes(&value.to_bytes()), Ok(value));
        }

        #[test]
        fn whatever_decodes_is_canonical(bytes: Vec<u8>) {
            if let Ok(value) = Shape::from_bytes(&bytes) {
                prop_assert_eq!(value.to_bytes(), bytes);
            }
        }

        #[test]
        fn a_cut_encoding_is_refused(value in shape(), cut in 0usize..64) {
            let bytes = value.to_bytes();
            prop_assume!(cut > 0 && cut <= bytes.len());
            prop_assert!(Shape::from_bytes(&bytes[..bytes.len() - cut]).is_err());
        }
    }

    #[test]
    fn a_claimed_length_buys_no_memory() {
        assert!(matches!(Vec::<u64>::from_bytes(&u32::MAX.to_le_bytes()), Err(DecodeError::Short { .. })));
        assert!(matches!(Bytes::from_bytes(&u32::MAX.to_le_bytes()), Err(DecodeError::Short { .. })));
    }

    #[test]
    fn a_map_out_of_order_is_refused() {
        let bytes = vec![(2u8, 0u8), (1, 0)].to_bytes();
        assert_eq!(BTreeMap::<u8, u8>::from_bytes(&bytes), Err(DecodeError::Invalid { what: "ascending map" }));
    }
}
