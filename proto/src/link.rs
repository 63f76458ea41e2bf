//! Mutually authenticated links: TLS 1.3, both sides' keys pinned from the view.
//!
//! A certificate here is only a carrier for an ed25519 key: no names, no authorities, no dates.
//! The dialler accepts exactly the key it expects; the listener accepts the keys its view knows
//! and tells the service whose link it is ([`PeerKey`]). What is spoken on it, the dialler says in
//! the handshake ([`Protocol`], ALPN).

mod pinned;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base::{PublicKey, SecretKey};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::transport::{Channel, Endpoint};

use pinned::{Pinned, key_of, provider};

/// How long it may take to connect, and a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes under way at once; a further one ends the oldest.
const HANDSHAKES_MAX: usize = 256;
/// Connections of users open at once.
const CONNECTIONS_MAX: usize = 1024;
/// Of these, how many may be one user's: its sessions, the links it reads by, and its commands.
const CONNECTIONS_PER_USER_MAX: usize = 96;
/// What one read of a socket takes at most, bytes. TLS by itself asks for 4 KiB at a time.
const READ_BYTES: usize = 64 << 10;
/// How long a link may be silent before the other side is asked whether it is there, and how long and how often
/// it is asked; also how long what was sent may go unacknowledged.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMES: u32 = 2;
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(20);
/// Connections that one node may have open to another; they take nobody else's place.
const CONNECTIONS_PER_NODE_MAX: usize = 16;
/// Operators' questions under way on a connection.
const CALLS_MAX: u32 = 8;

/// Whose link this is: the key that the TLS handshake proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerKey(pub PublicKey);

/// What is spoken on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC: what operators ask.
    Calls,
    /// Blocks of a storage node, in frames ([`crate::pipe`]) as all that follows.
    Blocks,
    /// What one replica says to another.
    Peer,
    /// A client's requests, and a replica's replies.
    Session,
    /// Reads that a replica proves.
    Reads,
}

impl Protocol {
    const ALL: [Protocol; 5] = [Protocol::Calls, Protocol::Blocks, Protocol::Peer, Protocol::Session, Protocol::Reads];

    /// Its name in the handshake.
    fn alpn(self) -> &'static [u8] {
        match self {
            Protocol::Calls => b"h2",
            Protocol::Blocks => b"mangrove-blocks/1",
            Protocol::Peer => b"mangrove-peer/1",
            Protocol::Session => b"mangrove-session/1",
            Protocol::Reads => b"mangrove-reads/1",
        }
    }

    /// What was agreed on in a handshake.
    fn agreed(alpn: Option<&[u8]>) -> Protocol {
        Protocol::ALL.into_iter().find(|protocol| Some(protocol.alpn()) == alpn).unwrap_or(Protocol::Calls)
    }
}

/// A connection that this side opened.
pub type Dialled = tokio_rustls::client::TlsStream<BufReader<TcpStream>>;

/// One's own side of every link.
#[derive(Clone)]
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: Arc<PrivateKeyDer<'static>>,
    public: PublicKey,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({:?})", self.public)
    }
}

/// Why a link can't be made.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The certificate could not be built.
    #[error("cannot make a TLS certificate from the key: {0}")]
    Certificate(#[from] rcgen::Error),
    /// TLS refused its settings.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

impl Identity {
    /// The identity that holds `secret`.
    ///
    /// # Errors
    /// [`LinkError::Certificate`] if a certificate can't be made.
    pub fn new(secret: &SecretKey) -> Result<Identity, LinkError> {
        let pkcs8 = PrivatePkcs8KeyDer::from(secret.to_pkcs8_der().to_vec());
        let pair = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &rcgen::PKCS_ED25519)?;
        let certificate = rcgen::CertificateParams::new(vec!["mangrove".to_owned()])?.self_signed(&pair)?;
        let key = Arc::new(PrivateKeyDer::Pkcs8(pkcs8));
        Ok(Identity { certificate: certificate.der().clone(), key, public: secret.public() })
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.public
    }
}

/// Opens connections to one node.
#[derive(Clone)]
pub struct Dialler {
    connector: TlsConnector,
    address: SocketAddr,
}

impl fmt::Debug for Dialler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dialler({})", self.address)
    }
}

impl Dialler {
    /// Opens connections to the node at `address` that holds `key`, to speak `protocol`.
    ///
    /// # Errors
    /// [`LinkError::Tls`] if TLS refuses the identity.
    pub fn new(
        identity: &Identity,
        address: SocketAddr,
        key: PublicKey,
        protocol: Protocol,
    ) -> Result<Dialler, LinkError> {
        let verifier = Pinned { keys: BTreeSet::from([key]), provider: provider() };
        let mut config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(vec![identity.certificate.clone()], identity.key.clone_key())?;
        config.alpn_protocols = vec![protocol.alpn().to_vec()];
        Ok(Dialler { connector: TlsConnector::from(Arc::new(config)), address })
    }

    /// Opens one.
    ///
    /// # Errors
    /// If nobody listens there, or it is not who holds the key, or it does not speak the protocol.
    pub async fn connect(&self) -> io::Result<Dialled> {
        let connected = async {
            let stream = TcpStream::connect(self.address).await?;
            let name = ServerName::try_from("mangrove").expect("a valid name");
            self.connector.connect(name, prepared(stream)?).await
        };
        tokio::time::timeout(HANDSHAKE_TIMEOUT, connected)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer to a connection or its handshake"))?
    }
}

/// A socket with the settings that all links have.
fn prepared(stream: TcpStream) -> io::Result<BufReader<TcpStream>> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_EVERY)?;
    sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_TIMES)?;
    sockopt::set_tcp_user_timeout(&stream, UNACKNOWLEDGED_MAX.as_millis() as u32)?;
    Ok(BufReader::with_capacity(READ_BYTES, stream))
}

/// A channel to the node at `address` that holds `key`. Connects when first used and again after
/// a loss.
///
/// # Errors
/// [`LinkError::Tls`] if TLS refuses the identity.
pub fn dial(identity: &Identity, address: SocketAddr, key: PublicKey) -> Result<Channel, LinkError> {
    let dialler = Dialler::new(identity, address, key, Protocol::Calls)?;
    let connect = tower::service_fn(move |_| {
        let dialler = dialler.clone();
        async move { dialler.connect().await.map(TokioIo::new) }
    });
    Ok(Endpoint::from_static("http://mangrove")
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .connect_timeout(HANDSHAKE_TIMEOUT)
        .connect_with_connector_lazy(connect))
}

/// Whose links are taken.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The other nodes. No user keeps them out.
    pub nodes: BTreeSet<PublicKey>,
    /// The users.
    pub users: BTreeSet<PublicKey>,
}

impl Known {
    /// These users, and no node.
    #[must_use]
    pub fn users(users: impl IntoIterator<Item = PublicKey>) -> Known {
        Known { users: users.into_iter().collect(), ..Known::default() }
    }

    /// How many connections each may have.
    fn shares(&self) -> BTreeMap<PublicKey, Share> {
        let all = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let of_user = |key: &PublicKey| {
            let own = Arc::new(Semaphore::new(CONNECTIONS_PER_USER_MAX));
            (*key, Share { own, all: Some(all.clone()) })
        };
        let of_node = |key: &PublicKey| {
            let own = Arc::new(Semaphore::new(CONNECTIONS_PER_NODE_MAX));
            (*key, Share { own, all: None })
        };
        self.users.iter().map(of_user).chain(self.nodes.iter().map(of_node)).collect()
    }
}

/// How many connections a key may have, and all users together.
struct Share {
    own: Arc<Semaphore>,
    all: Option<Arc<Semaphore>>,
}

/// A connection's places in these.
type Places = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);

impl Share {
    fn take(&self) -> Option<Places> {
        let own = self.own.clone().try_acquire_owned().ok()?;
        match &self.all {
            Some(all) => Some((own, Some(all.clone().try_acquire_owned().ok()?))),
            None => Some((own, None)),
        }
    }
}

/// The listening side of links, for those who speak one of `protocols`.
///
/// Handshakes run beside each other, bounded in number and time, so that a stranger who dawdles
/// holds up nobody. Connections of keys that `known` lacks end in the handshake.
///
/// # Errors
/// [`LinkError::Tls`] if TLS refuses the identity.
pub fn accept(
    identity: &Identity,
    listener: TcpListener,
    known: Known,
    protocols: &[Protocol],
) -> Result<mpsc::Receiver<io::Result<Link>>, LinkError> {
    let shares = Arc::new(known.shares());
    let verifier = Arc::new(Pinned { keys: shares.keys().copied().collect(), provider: provider() });
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![identity.certificate.clone()], identity.key.clone_key())?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.alpn().to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (ready, accepted) = mpsc::channel(HANDSHAKES_MAX);
    let mut under_way: VecDeque<AbortHandle> = VecDeque::new();
    tokio::spawn(async move {
        loop {
            let stream = tokio::select! {
                () = ready.closed() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    // Out of descriptors, or the peer was gone already: neither ends the service.
                    Err(_) => { tokio::time::sleep(Duration::from_millis(10)).await; continue }
                },
            };
            // A stranger who dawdles must not keep others out: the oldest handshake gives way. A real
            // one takes milliseconds.
            under_way.retain(|handshake| !handshake.is_finished());
            if under_way.len() >= HANDSHAKES_MAX
                && let Some(oldest) = under_way.pop_front()
            {
                oldest.abort();
            }
            let (acceptor, ready, shares) = (acceptor.clone(), ready.clone(), shares.clone());
            let handshake = tokio::spawn(async move {
                let Ok(stream) = prepared(stream) else { return };
                let Ok(Ok(secured)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await else {
                    return;
                };
                let certificates = secured.get_ref().1.peer_certificates().unwrap_or_default();
                let Some(key) = certificates.first().and_then(key_of) else { return };
                let Some(places) = shares.get(&key).and_then(Share::take) else { return };
                let protocol = Protocol::agreed(secured.get_ref().1.alpn_protocol());
                let _ = ready.send(Ok(Link { stream: secured, key, protocol, _places: places })).await;
            });
            under_way.push_back(handshake.abort_handle());
        }
    });
    Ok(accepted)
}

/// tonic's settings for a service on [`accept`]ed links.
#[must_use]
pub fn server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .max_concurrent_streams(CALLS_MAX)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
}

/// An accepted, authenticated connection.
#[derive(Debug)]
pub struct Link {
    stream: tokio_rustls::server::TlsStream<BufReader<TcpStream>>,
    key: PublicKey,
    protocol: Protocol,
    _places: Places,
}

impl Link {
    /// What is spoken on it.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Whose it is.
    #[must_use]
    pub fn key(&self) -> PublicKey {
        self.key
    }
}

impl tonic::transport::server::Connected for Link {
    type ConnectInfo = PeerKey;

    fn connect_info(&self) -> PeerKey {
        PeerKey(self.key)
    }
}

impl AsyncRead for Link {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Link {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    fn identity(seed: u8) -> Identity {
        Identity::new(&SecretKey::from_seed(&[seed; 32])).expect("an identity")
    }

    /// A connection that the listener took, or not: it says so only by closing.
    async fn connect(
        who: &Identity,
        node: &Identity,
        address: SocketAddr,
        accepted: &mut mpsc::Receiver<io::Result<Link>>,
    ) -> Option<(Dialled, Link)> {
        let dialler = Dialler::new(who, address, node.public(), Protocol::Calls).expect("a dialler");
        let mut ours = dialler.connect().await.ok()?;
        let mut byte = [0];
        tokio::select! {
            theirs = accepted.recv() => Some((ours, theirs.expect("it goes on").expect("a link"))),
            _ = ours.read(&mut byte) => None,
        }
    }

    #[tokio::test]
    async fn one_key_cannot_take_all_connections() {
        let (node, greedy, modest) = (identity(1), identity(2), identity(3));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let known = Known::users([greedy.public(), modest.public()]);
        let mut accepted = accept(&node, listener, known, &[Protocol::Calls]).expect("TLS");
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS_PER_USER_MAX {
            held.push(connect(&greedy, &node, address, &mut accepted).await.expect("within its share"));
        }
        assert!(connect(&greedy, &node, address, &mut accepted).await.is_none(), "beyond its share");
        let (_, link) = connect(&modest, &node, address, &mut accepted).await.expect("another's share is its own");
        assert_eq!(link.key, modest.public());
        held.truncate(CONNECTIONS_PER_USER_MAX - 1);
        assert!(connect(&greedy, &node, address, &mut accepted).await.is_some(), "a place that was given back");
    }

    #[test]
    fn users_keep_no_node_out() {
        let key = |seed: u16| {
            let mut bytes = [7; 32];
            bytes[..2].copy_from_slice(&seed.to_le_bytes());
            SecretKey::from_seed(&bytes).public()
        };
        let users: Vec<_> = (0..20).map(key).collect();
        let (node, both) = (key(100), key(101));
        let nodes = BTreeSet::from([node, both]);
        let shares = Known { nodes, users: users.iter().copied().chain([both]).collect() }.shares();
        let mut held = Vec::new();
        for user in &users {
            held.extend(core::iter::from_fn(|| shares[user].take()));
        }
        assert_eq!(held.len(), CONNECTIONS_MAX);
        for key in [node, both] {
            let of_node: Vec<_> = core::iter::from_fn(|| shares[&key].take()).collect();
            assert_eq!(of_node.len(), CONNECTIONS_PER_NODE_MAX);
        }
    }

    #[tokio::test]
    async fn connections_that_say_nothing_keep_nobody_out() {
        let (node, user) = (identity(1), identity(2));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let mut accepted = accept(&node, listener, Known::users([user.public()]), &[Protocol::Calls]).expect("TLS");
        let mut idle = Vec::new();
        for _ in 0..2 * HANDSHAKES_MAX {
            idle.push(TcpStream::connect(address).await.expect("it listens"));
        }
        let connected = tokio::time::timeout(HANDSHAKE_TIMEOUT / 2, connect(&user, &node, address, &mut accepted));
        assert!(connected.await.expect("before the idle ones time out").is_some());
    }

    #[tokio::test]
    async fn both_sides_know_what_is_spoken() {
        let (node, user) = (identity(1), identity(2));
        for offered in [&[Protocol::Calls][..], &[Protocol::Calls, Protocol::Blocks], &Protocol::ALL] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("bound");
            let mut accepted = accept(&node, listener, Known::users([user.public()]), offered).expect("TLS");
            for wanted in Protocol::ALL {
                let dialler = Dialler::new(&user, address, node.public(), wanted).expect("a dialler");
                match dialler.connect().await {
                    Ok(_link) => {
                        let link = accepted.recv().await.expect("it goes on").expect("a link");
                        assert_eq!(link.protocol(), wanted);
                        assert!(offered.contains(&wanted), "{wanted:?} was not offered");
                    }
                    Err(_) => assert!(!offered.contains(&wanted), "{wanted:?} was offered"),
                }
            }
        }
    }

    #[tokio::test]
    async fn whoever_answers_nothing_is_given_up_in_time() {
        let (node, user) = (identity(1), identity(2));
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
        let listener = socket.listen(1).expect("it listens");
        let address = listener.local_addr().expect("bound");
        // As many as the kernel keeps for somebody who accepts none; those after them get no answer at all.
        let waiting: Vec<_> = (0..8).map(|_| tokio::spawn(TcpStream::connect(address))).collect();
        let dialler = Dialler::new(&user, address, node.public(), Protocol::Blocks).expect("a dialler");
        let connected = tokio::time::timeout(2 * HANDSHAKE_TIMEOUT, dialler.connect()).await;
        assert!(connected.expect("it gives up").is_err());
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
