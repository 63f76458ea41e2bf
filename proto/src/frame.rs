//! Many messages a frame.

use bytes::Bytes;

use crate::FRAME_TARGET;

/// Takes all messages and groups them, in order, into frames of about [`FRAME_TARGET`] bytes.
pub fn framed(messages: &mut Vec<Bytes>) -> Vec<Vec<Bytes>> {
    let (mut frames, mut frame, mut bytes) = (Vec::new(), Vec::new(), 0);
    for message in messages.drain(..) {
        if bytes + message.len() > FRAME_TARGET && !frame.is_empty() {
            frames.push(std::mem::take(&mut frame));
            bytes = 0;
        }
        bytes += message.len();
        frame.push(message);
    }
    if !frame.is_empty() {
        frames.push(frame);
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_keep_order_and_size() {
        let mut messages: Vec<_> = (0u8..100).map(|n| Bytes::from(vec![n; 20_000])).collect();
        let all = messages.clone();
        let frames = framed(&mut messages);
        assert!(frames.len() > 1);
        assert!(frames.iter().all(|frame| frame.iter().map(Bytes::len).sum::<usize>() <= FRAME_TARGET));
        assert_eq!(frames.concat(), all);
        assert!(framed(&mut Vec::new()).is_empty());
    }
}
