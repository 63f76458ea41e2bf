//! Frames of a head and bodies over a link: how all travels but operators' questions.
//!
//! ```text
//! 0  length  u32   of all that follows, bytes: at most Head::MAX
//! 4  head    u32   length of the head, bytes
//! 8  head          protobuf; says how long each body is
//!    bodies        one after the other
//! ```
//!
//! Bodies are never copied into a message nor out of one: they go to TLS from where they are, and what is
//! received shares the memory of its frame. HTTP/2, with its own frames and windows inside those of TLS and
//! TCP, cost two fifths of the time of a large write (ADR 23). What replicas, and clients and replicas, say to
//! each other has no bodies.

use std::io::{self, IoSlice};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};

use crate::wire::block_answer::Answer;
use crate::wire::block_ask::Ask;
use crate::wire::{BlockAnswer, BlockAsk, Got, PeerFrame, ReadAnswer, ReadAsk, SessionDown, SessionUp};
use crate::{FRAME_TARGET, MESSAGE_MAX};

/// Length of what is before the head, bytes.
const START_LEN: usize = 8;
/// Most messages in a frame, and blocks in a question.
pub const ENTRIES_MAX: usize = 4096;
/// How much is written in memory before it is sent, bytes, bodies not counted.
const TOGETHER_BYTES: usize = 256 << 10;
/// Most pieces handed to TLS at a time.
const PIECES_MAX: usize = 64;

/// A message that bodies follow.
pub trait Head: prost::Message + Default {
    /// Longest frame of this kind, bytes.
    const MAX: usize = MESSAGE_MAX;

    /// How long each body is, bytes.
    fn sizes(&self) -> Vec<u32> {
        Vec::new()
    }

    /// Whether there is not more in it than there may be: what is empty takes two bytes on the wire, and sixteen
    /// times as much in memory.
    fn fits(&self) -> bool {
        true
    }
}

impl Head for PeerFrame {
    fn fits(&self) -> bool {
        self.messages.len() <= ENTRIES_MAX
    }
}

impl Head for SessionUp {
    const MAX: usize = 2 * FRAME_TARGET;

    fn fits(&self) -> bool {
        self.requests.len() <= ENTRIES_MAX
    }
}

impl Head for SessionDown {
    fn fits(&self) -> bool {
        self.replies.len() <= ENTRIES_MAX
    }
}

impl Head for ReadAsk {
    const MAX: usize = 16 << 10;
}

impl Head for ReadAnswer {
    const MAX: usize = 1 << 20;
}

impl Head for BlockAsk {
    fn sizes(&self) -> Vec<u32> {
        match &self.ask {
            Some(Ask::Put(put)) => put.blocks.iter().map(|block| block.size).collect(),
            _ => Vec::new(),
        }
    }

    fn fits(&self) -> bool {
        match &self.ask {
            Some(Ask::Put(put)) => put.blocks.len() <= ENTRIES_MAX,
            Some(Ask::Has(has)) => has.ids.len() <= ENTRIES_MAX,
            _ => true,
        }
    }
}

impl Head for BlockAnswer {
    fn sizes(&self) -> Vec<u32> {
        match &self.answer {
            Some(Answer::Got(Got { size: Some(size) })) => vec![*size],
            _ => Vec::new(),
        }
    }
}

/// A head and the bodies that it speaks of.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame<H> {
    /// What is said.
    pub head: H,
    /// As long as the head says, in its order.
    pub bodies: Vec<Bytes>,
}

impl<H> From<H> for Frame<H> {
    /// A head without bodies.
    fn from(head: H) -> Frame<H> {
        Frame { head, bodies: Vec::new() }
    }
}

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// It claims to be longer than one of its kind may be ([`Head::MAX`]).
    #[error("a frame of {0} bytes is too long")]
    TooLong(u32),
    /// The head is no such message, or the bodies are not what it says.
    #[error("an unreadable frame")]
    Unreadable,
    /// The link broke.
    #[error(transparent)]
    Broken(#[from] io::Error),
}

/// Both directions of a link.
pub fn split<S: AsyncRead + AsyncWrite>(link: S) -> (Reader<ReadHalf<S>>, Writer<WriteHalf<S>>) {
    let (from, to) = tokio::io::split(link);
    (Reader { from }, Writer { to })
}

/// Frames that come in.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// The next frame; none after the last. Not cancel-safe: half a frame would be lost.
    ///
    /// # Errors
    /// [`FrameError`]; the link is of no use then.
    pub async fn next<H: Head>(&mut self) -> Result<Option<Frame<H>>, FrameError> {
        let mut start = [0; START_LEN];
        if self.from.read(&mut start[..1]).await? == 0 {
            return Ok(None);
        }
        self.from.read_exact(&mut start[1..]).await?;
        let (mut len, mut head_len) = ([0; 4], [0; 4]);
        len.copy_from_slice(&start[..4]);
        head_len.copy_from_slice(&start[4..]);
        let (len, head_len) = (u32::from_le_bytes(len), u32::from_le_bytes(head_len) as usize);
        if len as usize > H::MAX {
            return Err(FrameError::TooLong(len));
        }
        let mut frame = BytesMut::with_capacity(len as usize);
        while frame.len() < len as usize {
            let missing = len as usize - frame.len();
            if self.from.read_buf(&mut (&mut frame).limit(missing)).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
        parse(frame.freeze(), head_len).map(Some)
    }
}

fn parse<H: Head>(mut frame: Bytes, head_len: usize) -> Result<Frame<H>, FrameError> {
    if head_len > frame.len() {
        return Err(FrameError::Unreadable);
    }
    // Whoever keeps a short body would keep all of its frame.
    let bodies_len = frame.len() - head_len;
    let keep = |body: Bytes| if bodies_len < head_len { Bytes::copy_from_slice(&body) } else { body };
    let head = H::decode(frame.split_to(head_len)).map_err(|_| FrameError::Unreadable)?;
    if !head.fits() {
        return Err(FrameError::Unreadable);
    }
    let mut bodies = Vec::new();
    for size in head.sizes() {
        if size as usize > frame.len() {
            return Err(FrameError::Unreadable);
        }
        bodies.push(keep(frame.split_to(size as usize)));
    }
    if frame.is_empty() { Ok(Frame { head, bodies }) } else { Err(FrameError::Unreadable) }
}

/// Frames that go out.
#[derive(Debug)]
pub struct Writer<W> {
    to: W,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    /// Sends frames. Not cancel-safe: the other side would wait for the rest of one.
    ///
    /// # Errors
    /// If the link broke.
    pub async fn send<H: Head>(&mut self, frames: impl IntoIterator<Item = Frame<H>>) -> io::Result<()> {
        let (mut pieces, mut bytes) = (Vec::new(), 0);
        for Frame { head, bodies } in frames {
            let start = start(&head, &bodies);
            bytes += start.len();
            pieces.push(start);
            pieces.extend(bodies.into_iter().filter(|body| !body.is_empty()));
            if bytes >= TOGETHER_BYTES {
                self.write(core::mem::take(&mut pieces)).await?;
                bytes = 0;
            }
        }
        self.write(pieces).await?;
        self.to.flush().await
    }

    async fn write(&mut self, mut pieces: Vec<Bytes>) -> io::Result<()> {
        let mut left = pieces.as_mut_slice();
        while !left.is_empty() {
            let slices: Vec<_> = left.iter().take(PIECES_MAX).map(|piece| IoSlice::new(piece)).collect();
            let mut written = self.to.write_vectored(&slices).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            while written > 0 {
                let piece = &mut left[0];
                let part = written.min(piece.len());
                piece.advance(part);
                written -= part;
                if piece.is_empty() {
                    left = &mut left[1..];
                }
            }
        }
        Ok(())
    }
}

/// All of a frame but its bodies.
fn start<H: Head>(head: &H, bodies: &[Bytes]) -> Bytes {
    debug_assert!(head.sizes().iter().map(|size| *size as usize).eq(bodies.iter().map(Bytes::len)));
    let head_len = head.encoded_len();
    let len = head_len + bodies.iter().map(Bytes::len).sum::<usize>();
    let mut start = BytesMut::with_capacity(START_LEN + head_len);
    start.put_u32_le(u32::try_from(len).unwrap_or(u32::MAX));
    start.put_u32_le(u32::try_from(head_len).unwrap_or(u32::MAX));
    head.encode(&mut start).expect("room was made for it");
    start.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Block, Get, Put};

    fn put(bodies: &[&'static [u8]]) -> Frame<BlockAsk> {
        let block = |body: &&[u8]| Block { id: Bytes::from_static(b"id"), size: body.len() as u32 };
        let ask = Ask::Put(Put { blocks: bodies.iter().map(block).collect() });
        let bodies = bodies.iter().map(|body| Bytes::from_static(body)).collect();
        Frame { head: BlockAsk { ticket: 7, ask: Some(ask) }, bodies }
    }

    fn get() -> Frame<BlockAsk> {
        BlockAsk { ticket: 8, ask: Some(Ask::Get(Get { id: Bytes::from_static(b"id") })) }.into()
    }

    /// What arrives of these bytes, and what ended it.
    async fn received(bytes: &[u8]) -> (Vec<Frame<BlockAsk>>, Option<FrameError>) {
        let (mut reader, mut frames) = (Reader { from: bytes }, Vec::new());
        loop {
            match reader.next().await {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return (frames, None),
                Err(error) => return (frames, Some(error)),
            }
        }
    }

    async fn sent(frames: Vec<Frame<BlockAsk>>) -> Vec<u8> {
        let mut writer = Writer { to: Vec::new() };
        writer.send(frames).await.expect("memory");
        writer.to
    }

    #[tokio::test]
    async fn frames_arrive_as_they_were_sent() {
        let frames = vec![put(&[b"one", b"", b"three"]), get(), put(&[]), put(&[&[9; 200_000][..]; 20])];
        let (arrived, end) = received(&sent(frames.clone()).await).await;
        assert!(end.is_none(), "{end:?}");
        assert_eq!(arrived, frames);
    }

    #[tokio::test]
    async fn frames_pass_through_a_link_that_takes_little_at_a_time() {
        let (ours, theirs) = tokio::io::duplex(777);
        let frames = vec![put(&[&[1; 5000], &[2; 3]]), get()];
        let (_, mut writer) = split(ours);
        let (mut reader, _) = split(theirs);
        let expected = frames.clone();
        let sending = tokio::spawn(async move { writer.send(frames).await.map(|()| writer) });
        for frame in expected {
            assert_eq!(reader.next().await.expect("a frame"), Some(frame));
        }
        sending.await.expect("no panic").expect("it took all");
    }

    #[tokio::test]
    async fn a_frame_that_is_cut_off_or_not_what_its_head_says_is_refused() {
        let whole = sent(vec![put(&[b"one", b"two"])]).await;
        for len in 1..whole.len() {
            let (frames, end) = received(&whole[..len]).await;
            assert!(frames.is_empty() && matches!(end, Some(FrameError::Broken(_))), "{len}: {end:?}");
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut damaged = whole.clone();
                damaged[at] ^= 1 << bit;
                // Whatever comes of it is told from the length and the head alone, and no more is bought.
                let _ = received(&damaged).await;
            }
        }
        let mut longer = whole.clone();
        longer[0] += 1;
        longer.push(0);
        assert!(matches!(received(&longer).await, (_, Some(FrameError::Unreadable))));
        let mut head = whole.clone();
        head[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(received(&head).await, (_, Some(FrameError::Unreadable))));
    }

    #[tokio::test]
    async fn a_short_body_does_not_keep_a_long_frame() {
        let mut frame = put(&[b"short", b"er"]);
        if let Some(Ask::Put(put)) = &mut frame.head.ask {
            put.blocks[0].id = Bytes::from(vec![1; 1 << 20]);
        }
        let (arrived, _) = received(&sent(vec![frame.clone()]).await).await;
        assert_eq!(arrived, [frame]);
        let [Frame { head, bodies }] = &arrived[..] else { panic!("one frame") };
        let Some(Ask::Put(put)) = &head.ask else { panic!("a put") };
        let head_at = put.blocks[0].id.as_ptr_range();
        for body in bodies {
            let gap = (body.as_ptr() as usize).wrapping_sub(head_at.end as usize);
            assert!(gap > 1 << 20, "a body shares the memory of the head");
            assert!(body.is_unique(), "a body keeps another's memory");
        }
    }

    #[tokio::test]
    async fn a_frame_with_too_many_entries_is_refused() {
        for (count, fits) in [(ENTRIES_MAX, true), (ENTRIES_MAX + 1, false)] {
            let mut writer = Writer { to: Vec::new() };
            let frame = PeerFrame { messages: vec![Bytes::new(); count] };
            writer.send([frame.into()]).await.expect("memory");
            let mut reader = Reader { from: &writer.to[..] };
            let read = reader.next::<PeerFrame>().await;
            assert_eq!(read.is_ok(), fits, "{read:?}");
        }
    }

    #[tokio::test]
    async fn many_frames_are_sent_and_arrive() {
        let frames: Vec<_> = (0..40u8).map(|n| PeerFrame { messages: vec![Bytes::from(vec![n; 30_000])] }).collect();
        let mut writer = Writer { to: Vec::new() };
        writer.send(frames.iter().cloned().map(Into::into)).await.expect("memory");
        let mut reader = Reader { from: &writer.to[..] };
        for frame in frames {
            assert_eq!(reader.next().await.expect("a frame"), Some(Frame::from(frame)));
        }
        assert!(reader.next::<PeerFrame>().await.expect("the end").is_none());
    }

    #[tokio::test]
    async fn a_frame_that_is_too_long_is_refused_before_it_comes() {
        let mut start = (MESSAGE_MAX as u32 + 1).to_le_bytes().to_vec();
        start.extend([0; 4]);
        assert!(matches!(received(&start).await, (_, Some(FrameError::TooLong(_)))));
        // And of each kind by its own measure.
        let mut start = (ReadAsk::MAX as u32 + 1).to_le_bytes().to_vec();
        start.extend([0; 4]);
        let mut reader = Reader { from: &start[..] };
        assert!(matches!(reader.next::<ReadAsk>().await, Err(FrameError::TooLong(_))));
    }
}
