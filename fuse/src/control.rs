//! What the supervisor of a mount and the process that serves it say to each other.
//!
//! A socket that keeps messages apart; each message is a line of JSON, and the turn to serve comes with the
//! two descriptors that outlive every process that serves. Fields that are added must have a default: the
//! two ends may be of different versions.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::wire::request::Init;

/// The longest message.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// What the process that serves says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromServer {
    /// It could serve, and waits for its turn.
    Ready,
    /// What it agreed on with the kernel, which is about to be told.
    Agreed(Agreement),
    /// It serves.
    Serving,
    /// It serves no more; the next one may. `synced`: all that was written is safe.
    Left { synced: bool },
    /// It goes on serving, and why it does not stop.
    Stays { why: String },
    /// The mount is gone.
    Gone,
}

/// What the supervisor says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToServer {
    /// Serve, with these descriptors. `lost`: the one before died.
    Turn { agreed: Option<Agreement>, lost: bool },
    /// Finish, for the next one to go on.
    Leave,
    /// It is unmounted: finish and end. `detached`: programs still use it.
    Close { detached: bool },
}

/// What kernel and filesystem agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Agreement {
    major: u32,
    minor: u32,
    max_readahead: u32,
    capabilities: u64,
}

impl From<Init> for Agreement {
    fn from(Init { major, minor, max_readahead, capabilities }: Init) -> Agreement {
        Agreement { major, minor, max_readahead, capabilities }
    }
}

impl From<Agreement> for Init {
    fn from(Agreement { major, minor, max_readahead, capabilities }: Agreement) -> Init {
        Init { major, minor, max_readahead, capabilities }
    }
}

/// Why the two do not understand each other.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The other end is gone.
    #[error("the supervisor of this mount is gone")]
    Gone,
    /// The socket is broken.
    #[error("the supervisor can't be heard: {0}; `mangrove mount` starts this process, nobody else should")]
    Socket(#[from] Errno),
}

/// A message as it came, and the descriptors with it.
type Received = (Vec<u8>, Vec<OwnedFd>);

/// One end of the socket.
#[derive(Debug)]
pub(crate) struct Link(OwnedFd);

/// Both ends.
pub(crate) fn pair() -> Result<(Link, OwnedFd), Errno> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok((Link(ours), theirs))
}

impl Link {
    /// Sends a message, and descriptors with it.
    pub(crate) fn send(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let text = serde_json::to_vec(message).expect("messages are plain data");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)), "there is room for two");
        }
        loop {
            match sendmsg(&self.0, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                sent => return sent.map(drop),
            }
        }
    }

    /// Waits for a message; `None`: the other end is gone.
    fn receive(&self) -> Result<Option<Received>, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut text = vec![0; MESSAGE_BYTES_MAX];
        let bytes = loop {
            let received = recvmsg(&self.0, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC);
            match received {
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Ok(None),
                received => break received?.bytes,
            }
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
        text.truncate(bytes);
        Ok((bytes > 0).then_some((text, descriptors)))
    }

    /// What comes from the other end, until it is gone. A thread of its own reads it.
    pub(crate) fn listen<T: DeserializeOwned + Send + 'static>(
        self: &Arc<Self>,
    ) -> std::io::Result<mpsc::UnboundedReceiver<(T, Vec<OwnedFd>)>> {
        let (sender, inbox) = mpsc::unbounded_channel();
        let link = self.clone();
        let read = move || {
            while let Ok(Some((text, descriptors))) = link.receive() {
                let message = match serde_json::from_slice(&text) {
                    Ok(message) => message,
                    Err(error) => {
                        tracing::warn!(%error, "a message of another version is ignored");
                        continue;
                    }
                };
                if sender.send((message, descriptors)).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("control".into()).spawn(read)?;
        Ok(inbox)
    }
}

/// The turn to serve a mount.
pub struct Turn {
    pub(crate) connection: OwnedFd,
    pub(crate) ledger: OwnedFd,
    pub(crate) agreed: Option<Init>,
    pub(crate) lost: bool,
    pub(crate) tell: Box<dyn Fn(&Init) + Send + Sync>,
}

impl Turn {
    /// A turn without a supervisor, with a [`Turn::ledger`]; `agreed` with the kernel, if somebody served the
    /// connection before, and `lost` if that one did not end in order.
    pub fn new(connection: OwnedFd, ledger: OwnedFd, agreed: Option<Init>, lost: bool) -> Turn {
        Turn { connection, ledger, agreed, lost, tell: Box::new(|_| {}) }
    }

    /// What processes that serve one mount after the other leave each other; clones are the same.
    ///
    /// # Errors
    /// If the system has no memory for it.
    pub fn ledger() -> Result<OwnedFd, Errno> {
        crate::ledger::create()
    }
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turn").field("agreed", &self.agreed).field("lost", &self.lost).finish_non_exhaustive()
    }
}

/// What the process that serves is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Finish, for the next one to go on.
    Leave,
    /// It is unmounted, or only detached: finish and end.
    Close {
        /// Programs still use it.
        detached: bool,
    },
    /// Nobody supervises any more: unmount, finish and end.
    Alone,
}

/// The process's end of the socket to its supervisor.
#[derive(Debug)]
pub struct Supervised {
    link: Arc<Link>,
    inbox: mpsc::UnboundedReceiver<(ToServer, Vec<OwnedFd>)>,
}

impl Supervised {
    /// The supervisor at the other end of this process's standard input.
    ///
    /// # Errors
    /// If there is none.
    pub fn by_stdin() -> Result<Supervised, ControlError> {
        let socket = rustix::io::fcntl_dupfd_cloexec(std::io::stdin().as_fd(), 3)?;
        rustix::net::sockopt::socket_type(&socket)?;
        let link = Arc::new(Link(socket));
        let inbox = link.listen().map_err(|_| Errno::AGAIN)?;
        Ok(Supervised { link, inbox })
    }

    fn say(&self, message: &FromServer) {
        // If nobody listens, that is heard of at the next word.
        let _ = self.link.send(message, &[]);
    }

    /// Says that this process could serve, and waits for its turn; `None`: it is unmounted meanwhile.
    ///
    /// # Errors
    /// If the supervisor went away.
    pub async fn turn(&mut self) -> Result<Option<Turn>, ControlError> {
        self.say(&FromServer::Ready);
        loop {
            let (message, descriptors) = self.inbox.recv().await.ok_or(ControlError::Gone)?;
            let (agreed, lost) = match message {
                ToServer::Turn { agreed, lost } => (agreed, lost),
                ToServer::Close { .. } => return Ok(None),
                ToServer::Leave => continue,
            };
            let Ok([connection, ledger]) = <[OwnedFd; 2]>::try_from(descriptors) else {
                return Err(Errno::BADF.into());
            };
            let link = self.link.clone();
            let tell = Box::new(move |agreed: &Init| {
                // If nobody listens, that is heard of at the next word.
                let _ = link.send(&FromServer::Agreed((*agreed).into()), &[]);
            });
            return Ok(Some(Turn { connection, ledger, agreed: agreed.map(Init::from), lost, tell }));
        }
    }

    /// Says that the mount is served.
    pub fn serving(&self) {
        self.say(&FromServer::Serving);
    }

    /// Says that the next process may go on; `synced`: with all that was written safe.
    pub fn left(&self, synced: bool) {
        self.say(&FromServer::Left { synced });
    }

    /// Says that this process goes on serving, and why.
    pub fn stays(&self, why: String) {
        self.say(&FromServer::Stays { why });
    }

    /// Says that the mount is gone.
    pub fn gone(&self) {
        self.say(&FromServer::Gone);
    }

    /// What to do next. Cancel-safe.
    pub async fn word(&mut self) -> Word {
        loop {
            match self.inbox.recv().await {
                Some((ToServer::Leave, _)) => return Word::Leave,
                Some((ToServer::Close { detached }, _)) => return Word::Close { detached },
                Some((ToServer::Turn { .. }, _)) => {}
                None => return Word::Alone,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_arrive_whole_with_their_descriptors_and_then_the_end() {
        let (ours, theirs) = pair().unwrap();
        let theirs = Arc::new(Link(theirs));
        let mut inbox = theirs.listen::<ToServer>().unwrap();
        let memory = crate::ledger::create().unwrap();
        let agreed = Agreement { major: 7, minor: 40, max_readahead: 1, capabilities: 1 << 39 };
        let turn = ToServer::Turn { agreed: Some(agreed), lost: true };
        ours.send(&turn, &[memory.as_fd(), memory.as_fd()]).unwrap();
        ours.send(&ToServer::Leave, &[]).unwrap();
        drop(ours);
        let (first, descriptors) = inbox.recv().await.unwrap();
        assert_eq!((first, descriptors.len()), (turn, 2));
        assert_eq!(inbox.recv().await.unwrap().0, ToServer::Leave);
        assert!(inbox.recv().await.is_none());
        assert_eq!(theirs.send(&FromServer::Ready, &[]), Err(Errno::PIPE));
    }
}
