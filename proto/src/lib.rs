//! The wire: what travels between processes, and on what.
//!
//! - [`wire`]: the generated protobuf types and gRPC stubs;
//! - [`view`]: the cluster's members, read from `cluster.toml`;
//! - [`frame`]: many messages a frame;
//! - [`keyfile`]: secret keys on disk;
//! - [`link`]: mutually authenticated TLS with keys pinned from the view, under tonic and pipes;
//! - [`pipe`]: frames of a head and bodies, for all but operators' questions.

pub mod frame;
pub mod keyfile;
pub mod link;
pub mod pipe;
pub mod view;

#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod wire {
    //! Generated from `proto/mangrove.proto`, which holds the documentation.
    tonic::include_proto!("mangrove.v1");
}

/// Largest message either side decodes, bytes: a put of several blocks fits, a flood does not.
pub const MESSAGE_MAX: usize = 4 << 20;
/// What one frame of consensus messages is filled up to, bytes.
pub const FRAME_TARGET: usize = 256 << 10;
