//! A node: drives the cores over real networks and disks.
//!
//! The way in is [`Node::start`]. A node is a replica (consensus and namespace) or a storage node
//! (blocks). From the outside in:
//!
//! - [`node`]: the composition root; starts everything and stops it;
//! - `frames`: links, and what comes in on them; `consensus`, `blocks`: who answers on them; `admin`: the gRPC
//!   service; `door`: every stranger's byte is decoded and checked here, once;
//! - `driver`: one thread runs the core, one makes its records durable and then speaks;
//! - `reads`: reads that are proven and not ordered;
//! - `recovery`: from what is on disk to a replica that contradicts nothing it ever said;
//! - `peers`, `sessions`: links to other replicas and to clients; `queue`: what waits for them;
//! - [`log`], [`store`], [`folder`]: what is on disk.
//!
//! **Invariant:** this crate never links `chunk` or `entangle`: the code that could open a block is
//! not in it.

mod admin;
mod allowance;
mod blocks;
mod budget;
mod clock;
pub mod config;
mod consensus;
mod counts;
mod door;
mod driver;
pub mod folder;
mod frames;
mod gate;
pub mod log;
pub mod node;
mod peers;
mod queue;
mod reads;
mod recovery;
mod sessions;
pub mod store;
mod teller;

pub use config::{NodeConfig, NodeConfigError};
pub use node::{Node, NodeError};
