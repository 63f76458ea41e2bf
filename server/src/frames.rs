//! The links that this node answers on, and what comes in on them.

use std::io;

use proto::link::{Link, Protocol};
use proto::pipe::{Frame, FrameError, Head, Reader};
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::counts::Counts;

/// Links as they come.
pub(crate) type Incoming = mpsc::Receiver<io::Result<Link>>;

/// The next frame of a link; none at its end. One that can't be read ends it too, and is counted: what comes after
/// it can't be found. Not cancel-safe.
pub(crate) async fn next<H: Head, R: AsyncRead + Unpin>(frames: &mut Reader<R>, dropped: &Counts) -> Option<Frame<H>> {
    match frames.next().await {
        Ok(frame) => return frame,
        Err(FrameError::TooLong(_)) => dropped.add("message that is too long"),
        Err(FrameError::Unreadable) => dropped.add("unreadable frame"),
        Err(FrameError::Broken(_)) => {}
    }
    None
}

/// Serves the links on which frames are spoken, and leaves the others. They end when nobody takes these any more.
pub(crate) fn divert<F: Future<Output = ()> + Send + 'static>(
    mut incoming: Incoming,
    serve: impl Fn(Link) -> F + Send + 'static,
) -> Incoming {
    let (calls, others) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut links = JoinSet::new();
        loop {
            while links.try_join_next().is_some() {}
            let link = tokio::select! {
                () = calls.closed() => return,
                link = incoming.recv() => link,
            };
            match link {
                Some(Ok(link)) if link.protocol() != Protocol::Calls => drop(links.spawn(serve(link))),
                Some(link) => drop(calls.send(link).await),
                None => return,
            }
        }
    });
    others
}
