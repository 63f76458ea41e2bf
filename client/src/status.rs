//! What the nodes of a cluster say about themselves.

use std::time::Duration;

use proto::link::{self, Identity, LinkError};
use proto::view::{ClusterView, Node};
use proto::wire::admin_client::AdminClient;
use proto::wire::{NodeStatus, StatusAsk};

/// How long a node may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// A node and what it says, or why it says nothing.
#[derive(Clone, Debug)]
pub struct Heard {
    /// Which node.
    pub node: Node,
    /// Its word; nobody else vouches for it.
    pub status: Result<NodeStatus, String>,
}

/// Asks all nodes at once.
///
/// # Errors
/// [`LinkError`] if TLS can't be set up with the identity.
pub async fn ask_all(view: &ClusterView, identity: &Identity) -> Result<Vec<Heard>, LinkError> {
    let mut asked = Vec::new();
    for node in &view.nodes {
        let channel = link::dial(identity, node.address, node.key)?;
        asked.push(async move {
            let mut admin = AdminClient::new(channel);
            let status = match tokio::time::timeout(PATIENCE, admin.status(StatusAsk {})).await {
                Ok(Ok(answer)) => Ok(answer.into_inner()),
                Ok(Err(status)) => Err(reason(&status)),
                Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
            };
            Heard { node: node.clone(), status }
        });
    }
    Ok(futures::future::join_all(asked).await)
}

/// The innermost cause of a failed call: what the operator can act on.
fn reason(status: &tonic::Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
