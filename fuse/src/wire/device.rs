//! The open `/dev/fuse`: whole messages in, whole messages out.

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use super::abi;
use super::reply::Answer;

/// From this length on a message keeps the reader's buffer instead of being copied out of it.
const LENDING_BYTES_MIN: usize = 64 << 10;
/// Buffers that may be lent out at once, 1 MiB each; past that, messages are copied.
const LENT_MAX: usize = 64;
/// Buffers kept for the next reader.
const IDLE_MAX: usize = 8;
/// Pieces in one `writev`; more are joined first.
const PIECES_MAX: usize = 512;

/// The connection to the kernel; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Device(Arc<Connection>);

#[derive(Debug)]
struct Connection {
    descriptor: OwnedFd,
    mute: AtomicBool,
}

impl Device {
    pub(crate) fn new(descriptor: OwnedFd) -> Device {
        Device(Arc::new(Connection { descriptor, mute: AtomicBool::new(false) }))
    }

    /// Answers nothing from now on: whoever serves next is sent what is not answered.
    pub(crate) fn mute(&self) {
        self.0.mute.store(true, Ordering::Release);
    }

    /// Waits for a message and returns it.
    pub(crate) fn receive(&self, buffers: &Arc<Buffers>, buffer: &mut Vec<u8>) -> Result<Bytes, Errno> {
        buffer.clear();
        rustix::io::read(&self.0.descriptor, spare_capacity(buffer))?;
        Ok(buffers.message(buffer))
    }

    /// Answers request `unique`.
    ///
    /// A request stays with us until it is answered or the connection ends: an answer that the
    /// kernel no longer wants (ENOENT, ENODEV) therefore needs no undoing.
    pub(crate) fn answer<A: Answer>(&self, unique: u64, result: Result<&A, Errno>) {
        if self.0.mute.load(Ordering::Acquire) {
            return;
        }
        let sent = match result {
            Ok(answer) => {
                let mut fixed = Vec::with_capacity(256);
                fixed.resize(abi::REPLY_HEADER_BYTES, 0);
                answer.encode(&mut fixed);
                self.send(fixed, 0, unique, answer.pieces())
            }
            Err(errno) => self.send(vec![0; abi::REPLY_HEADER_BYTES], -errno.raw_os_error(), unique, &[]),
        };
        match sent {
            Ok(()) | Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED) => {}
            Err(errno) => tracing::warn!(unique, %errno, "the kernel refused an answer"),
        }
    }

    /// Sends the kernel a notification (`error` carries the code, `unique` is 0).
    pub(crate) fn notify(&self, code: i32, body: &[u8], name: &[u8]) -> Result<(), Errno> {
        let mut fixed = vec![0; abi::REPLY_HEADER_BYTES];
        fixed.extend_from_slice(body);
        fixed.extend_from_slice(name);
        self.send(fixed, code, 0, &[])
    }

    /// `fixed` starts with room for the header.
    fn send(&self, mut fixed: Vec<u8>, error: i32, unique: u64, pieces: &[Bytes]) -> Result<(), Errno> {
        if pieces.len() > PIECES_MAX {
            pieces.iter().for_each(|piece| fixed.extend_from_slice(piece));
            return self.send(fixed, error, unique, &[]);
        }
        let length = fixed.len() + pieces.iter().map(Bytes::len).sum::<usize>();
        fixed[0..4].copy_from_slice(&(length as u32).to_ne_bytes());
        fixed[4..8].copy_from_slice(&error.to_ne_bytes());
        fixed[8..16].copy_from_slice(&unique.to_ne_bytes());
        loop {
            let sent = if pieces.is_empty() {
                rustix::io::write(&self.0.descriptor, &fixed)
            } else {
                let slices: Vec<IoSlice<'_>> = std::iter::once(IoSlice::new(&fixed))
                    .chain(pieces.iter().map(|piece| IoSlice::new(piece)))
                    .collect();
                rustix::io::writev(&self.0.descriptor, &slices)
            };
            match sent {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

/// The readers' buffers. A long message is lent its buffer and gives it back when dropped.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    idle: Mutex<Vec<Vec<u8>>>,
    lent: AtomicUsize,
}

impl Buffers {
    /// An empty buffer with room for any message.
    pub(crate) fn take(&self) -> Vec<u8> {
        self.idle.lock().pop().unwrap_or_else(|| Vec::with_capacity(abi::MESSAGE_BYTES_MAX))
    }

    /// The message in `buffer`, which is then free for the next one.
    fn message(self: &Arc<Self>, buffer: &mut Vec<u8>) -> Bytes {
        if buffer.len() < LENDING_BYTES_MIN || self.lent.load(Ordering::Relaxed) >= LENT_MAX {
            return Bytes::copy_from_slice(buffer);
        }
        self.lent.fetch_add(1, Ordering::Relaxed);
        let bytes = std::mem::replace(buffer, self.take());
        Bytes::from_owner(Lent { bytes, buffers: self.clone() })
    }
}

struct Lent {
    bytes: Vec<u8>,
    buffers: Arc<Buffers>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.buffers.lent.fetch_sub(1, Ordering::Relaxed);
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let mut idle = self.buffers.idle.lock();
        if idle.len() < IDLE_MAX {
            idle.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(buffers: &Buffers, length: usize) -> Vec<u8> {
        let mut buffer = buffers.take();
        buffer.resize(length, 7);
        buffer
    }

    #[test]
    fn long_messages_are_lent_their_buffer_and_give_it_back() {
        let buffers = Arc::new(Buffers::default());
        let mut buffer = filled(&buffers, LENDING_BYTES_MIN);
        let address = buffer.as_ptr();
        let message = buffers.message(&mut buffer);
        assert_eq!(message.as_ptr(), address, "not copied");
        assert_eq!(message.len(), LENDING_BYTES_MIN);
        assert!(buffer.capacity() >= abi::MESSAGE_BYTES_MAX && buffer.is_empty());
        drop(message);
        let again = buffers.take();
        assert_eq!(again.as_ptr(), address, "given back");
        assert_eq!(buffers.lent.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn lending_and_keeping_are_bounded() {
        let buffers = Arc::new(Buffers::default());
        let mut buffer = filled(&buffers, LENDING_BYTES_MIN - 1);
        let address = buffer.as_ptr();
        let short = buffers.message(&mut buffer);
        assert_ne!(short.as_ptr(), address, "short messages are copied");
        let held: Vec<Bytes> = (0..LENT_MAX + 3)
            .map(|_| {
                buffer.resize(LENDING_BYTES_MIN, 1);
                buffers.message(&mut buffer)
            })
            .collect();
        assert_eq!(buffers.lent.load(Ordering::Relaxed), LENT_MAX);
        drop(held);
        assert_eq!(buffers.idle.lock().len(), IDLE_MAX);
    }
}
