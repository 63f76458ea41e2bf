//! The request parser against bytes nobody agreed on: always an operation or a refusal, never a panic.

use std::ffi::OsStr;

use bytes::Bytes;
use fuse::wire::abi::{self, opcode, setattr_valid};
use fuse::wire::parse::{Malformed, header, operation};
use fuse::wire::request::{Operation, SetTime, Timestamp};
use proptest::prelude::*;

fn message(opcode: u32, extension_words: u16, body: &[u8]) -> Bytes {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&((abi::REQUEST_HEADER_BYTES + body.len()) as u32).to_ne_bytes());
    bytes.extend_from_slice(&opcode.to_ne_bytes());
    bytes.extend_from_slice(&77u64.to_ne_bytes());
    bytes.extend_from_slice(&5u64.to_ne_bytes());
    [1000u32, 1001, 4242].iter().for_each(|field| bytes.extend_from_slice(&field.to_ne_bytes()));
    bytes.extend_from_slice(&extension_words.to_ne_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(body);
    Bytes::from(bytes)
}

fn parse(message: &Bytes) -> Result<Operation, Malformed> {
    header(message).and_then(|header| operation(&header, message))
}

fn words(fields: &[u32]) -> Vec<u8> {
    fields.iter().flat_map(|field| field.to_ne_bytes()).collect()
}

#[test]
fn the_header_is_read_field_by_field() {
    let header = header(&message(opcode::STATFS, 0, b"")).unwrap();
    assert_eq!((header.opcode, header.unique, header.inode), (opcode::STATFS, 77, 5));
    assert_eq!((header.uid, header.gid, header.pid), (1000, 1001, 4242));
}

#[test]
fn a_write_is_a_slice_of_its_message() {
    let mut body = [9u64.to_ne_bytes(), 4096u64.to_ne_bytes()].concat();
    body.extend(words(&[3, abi::WRITE_CACHE, 0, 0, 1, 0]));
    body.extend_from_slice(b"abc");
    let message = message(opcode::WRITE, 0, &body);
    let Ok(Operation::Write(write)) = parse(&message) else { panic!("not a write") };
    assert_eq!((write.handle, write.offset, &write.data[..]), (9, 4096, &b"abc"[..]));
    assert!(write.from_cache && !write.kill_privileges);
    assert_eq!(write.data.as_ptr(), message[message.len() - 3..].as_ptr(), "not copied");
}

#[test]
fn a_write_that_announces_more_than_it_carries_is_refused() {
    let mut body = [9u64.to_ne_bytes(), 0u64.to_ne_bytes()].concat();
    body.extend(words(&[4, 0, 0, 0, 1, 0]));
    body.extend_from_slice(b"abc");
    assert_eq!(parse(&message(opcode::WRITE, 0, &body)), Err(Malformed::Data));
}

#[test]
fn names_end_at_their_zero() {
    let mut body = words(&[7, 0, 2, 0]);
    body.extend_from_slice(b"old\0new\0");
    let Ok(Operation::Rename(rename)) = parse(&message(opcode::RENAME2, 0, &body)) else { panic!("not a rename") };
    assert_eq!((&*rename.name, &*rename.new_name), (OsStr::new("old"), OsStr::new("new")));
    assert_eq!((rename.new_parent, rename.flags), (7, 2));
    assert_eq!(parse(&message(opcode::LOOKUP, 0, b"endless")), Err(Malformed::Name));
}

#[test]
fn extensions_are_not_part_of_the_operation() {
    let extended = message(opcode::LOOKUP, 1, b"name\0\0\0\0extended");
    let Ok(Operation::Lookup { name }) = parse(&extended) else { panic!("not a lookup") };
    assert_eq!(&*name, OsStr::new("name"));
    assert_eq!(parse(&message(opcode::LOOKUP, 1, b"name")), Err(Malformed::Short));
    assert_eq!(parse(&message(opcode::LOOKUP, u16::MAX, b"name\0")), Err(Malformed::Short));
}

#[test]
fn setattr_changes_what_is_marked_valid_and_nothing_else() {
    let valid = setattr_valid::MODE | setattr_valid::ATIME | setattr_valid::MTIME | setattr_valid::MTIME_NOW;
    let mut body = words(&[valid, 0]);
    // handle, size, lock owner, then the three times.
    [1u64, 2, 3, u64::MAX, 5, 6].iter().for_each(|field| body.extend_from_slice(&field.to_ne_bytes()));
    body.extend(words(&[7, 8, 9, 0o644, 0, 1, 2, 0]));
    let Ok(Operation::SetAttr(set)) = parse(&message(opcode::SETATTR, 0, &body)) else { panic!("not a setattr") };
    assert_eq!(set.mode, Some(0o644));
    assert_eq!(set.accessed, Some(SetTime::To(Timestamp { seconds: -1, nanoseconds: 7 })), "before 1970");
    assert_eq!(set.modified, Some(SetTime::Now));
    assert_eq!((set.uid, set.gid, set.size, set.handle, set.changed), (None, None, None, None, None));
}

#[test]
fn a_forget_of_more_than_it_lists_is_refused_before_memory_is_taken() {
    assert_eq!(parse(&message(opcode::BATCH_FORGET, 0, &words(&[u32::MAX, 0, 1, 0, 1, 0]))), Err(Malformed::Short));
    let one = message(opcode::BATCH_FORGET, 0, &words(&[1, 0, 6, 0, 2, 0]));
    assert_eq!(parse(&one), Ok(Operation::Forget { lookups: vec![(6, 2)] }));
}

#[test]
fn a_read_never_asks_for_more_than_was_agreed_on() {
    let mut body = words(&[0; 10]);
    body[16..20].copy_from_slice(&u32::MAX.to_ne_bytes());
    let Ok(Operation::Read(read)) = parse(&message(opcode::READ, 0, &body)) else { panic!("not a read") };
    assert_eq!(read.size as usize, abi::TRANSFER_BYTES_MAX);
}

proptest! {
    #[test]
    fn bytes_of_any_kind_are_an_operation_or_a_refusal(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        // Almost always refused by the header; that too must not panic.
        let _ = parse(&Bytes::from(bytes));
    }

    #[test]
    fn a_body_of_any_kind_is_an_operation_or_a_refusal(
        opcode in 0u32..60,
        extension_words in prop_oneof![4 => Just(0u16), 1 => 0u16..40, 1 => any::<u16>()],
        body in proptest::collection::vec(prop_oneof![2 => Just(0u8), 1 => Just(b'a'), 1 => any::<u8>()], 0..300),
    ) {
        let message = message(opcode, extension_words, &body);
        if let Ok(Operation::Write(write)) = parse(&message) {
            prop_assert!(write.data.len() < body.len());
        }
    }

    #[test]
    fn a_message_cut_short_is_refused_by_its_length(cut in 0usize..60) {
        let whole = message(opcode::LOOKUP, 0, b"a name of twenty byt\0");
        let result = parse(&whole.slice(..cut));
        let expected = if cut < abi::REQUEST_HEADER_BYTES { Malformed::Short } else { Malformed::Length };
        prop_assert_eq!(result, Err(expected));
    }
}
