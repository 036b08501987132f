//! Who sends a unary call between nodes: said in its metadata, and checked against the certificate it came with.
//!
//! Owns: the names of those metadata and the check. Never: who belongs to the cluster; the node knows.

use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use super::incoming::Caller;
use super::status;
use crate::cluster::NodeId;
use crate::error::BrokerError;

/// The cluster that the sender belongs to; not there while it belongs to none.
const CLUSTER: &str = "highwater-cluster-id";
/// The sender's node id; not there while it has none.
const NODE: &str = "highwater-node-id";

/// Says who sends.
pub(super) fn put(metadata: &mut MetadataMap, cluster_id: &str, node: NodeId) {
    // Both are of our own making, and ASCII.
    if let (false, Ok(value)) = (cluster_id.is_empty(), cluster_id.parse()) {
        metadata.insert(CLUSTER, value);
    }
    if node != 0 {
        metadata.insert(NODE, node.into());
    }
}

/// Refuses a call from another cluster, and one whose sender says that it is another node than its certificate names. `own` is the
/// cluster of this node, or empty. A sender of an older version says nothing of itself.
pub(super) fn check<T>(request: &Request<T>, own: &str) -> Result<(), Status> {
    let refuse = |why: String| {
        let error = BrokerError::InvalidArgument { field: "sender".to_owned(), why };
        Err(status::status(&error, |_| None))
    };
    let said = |name| request.metadata().get(name).and_then(|value| value.to_str().ok());
    if let Some(cluster) = said(CLUSTER)
        && !own.is_empty()
        && cluster != own
    {
        return refuse(format!("cluster {cluster} is not this one, {own}"));
    }
    let node = said(NODE).and_then(|text| text.parse().ok());
    match node {
        Some(node) => check_node(certified(request), node).or_else(refuse),
        None => Ok(()),
    }
}

/// The node that the certificate names which a call came with; `None` in plain text.
pub(super) fn certified<T>(request: &Request<T>) -> Option<NodeId> {
    request.extensions().get::<Caller>().and_then(|caller| caller.node)
}

/// Refuses a node that its certificate does not name. The error is for people.
pub(super) fn check_node(certified: Option<NodeId>, node: NodeId) -> Result<(), String> {
    match certified {
        Some(certified) if certified != node => Err(format!(
            "it says that it is node {node}, but its certificate is node {certified}'s"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(cluster: &str, node: NodeId, certified: Option<NodeId>) -> Request<()> {
        let mut request = Request::new(());
        put(request.metadata_mut(), cluster, node);
        request.extensions_mut().insert(Caller { node: certified });
        request
    }

    #[test]
    fn a_call_of_another_cluster_or_under_another_nodes_name_is_refused() {
        for (cluster, node, certified, own, is_let_in) in [
            ("a", 3, Some(3), "a", true),
            ("a", 3, None, "a", true),
            // One of the two belongs to no cluster yet.
            ("", 3, Some(3), "a", true),
            ("a", 3, Some(3), "", true),
            // Of an older version, or without an id yet.
            ("", 0, Some(3), "a", true),
            ("b", 3, Some(3), "a", false),
            ("a", 4, Some(3), "a", false),
        ] {
            let outcome = check(&request(cluster, node, certified), own);
            assert_eq!(outcome.is_ok(), is_let_in, "{cluster} {node} {certified:?} {own}");
        }
    }
}
