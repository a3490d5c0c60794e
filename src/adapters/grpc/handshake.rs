//! The handshake: what every call carries, who is refused, and how a refusal travels.
//!
//! There is no session: each call says for itself where it comes from and whom it expects, as
//! metadata, so that a call can never reach a node that has taken another's address.

use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Request, Status};

use crate::domain::NodeId;
use crate::ports::{PeerError, ProtocolRange, Refusal};

const CLUSTER: &str = "lally-cluster-bin";
const PROTOCOL: &str = "lally-protocol";
const NODE: &str = "lally-node";
const CALLER: &str = "lally-caller";
const REFUSAL: &str = "lally-refusal-bin";

/// This end of every call.
#[derive(Debug, Clone)]
pub(super) struct Handshake {
    pub(super) cluster: String,
    pub(super) me: NodeId,
}

impl Handshake {
    /// A request to a node of this id, or to whoever is there.
    pub(super) fn request<T>(&self, message: T, expected: Option<NodeId>) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert_bin(CLUSTER, MetadataValue::from_bytes(self.cluster.as_bytes()));
        insert(metadata, PROTOCOL, &range_text(ProtocolRange::OURS));
        insert(metadata, CALLER, &self.me.to_string());
        if let Some(expected) = expected {
            insert(metadata, NODE, &expected.to_string());
        }
        request
    }

    /// Whether a call that carries this is for this node.
    pub(super) fn check(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let cluster = metadata.get_bin(CLUSTER).and_then(|name| name.to_bytes().ok());
        let theirs = String::from_utf8_lossy(&cluster.unwrap_or_default()).into_owned();
        if theirs != self.cluster {
            let ours = self.cluster.clone();
            return Err(refused(&Refusal::WrongCluster { ours, theirs }));
        }
        let protocol = text(metadata, PROTOCOL).and_then(parse_range);
        let theirs = protocol.unwrap_or(ProtocolRange { min: 0, max: 0 });
        if !theirs.overlaps(ProtocolRange::OURS) {
            let ours = ProtocolRange::OURS;
            return Err(refused(&Refusal::WrongProtocol { ours, theirs }));
        }
        match text(metadata, NODE).map(str::parse) {
            None => Ok(()),
            Some(Ok(expected)) if expected == self.me => Ok(()),
            Some(Ok(expected)) => Err(refused(&Refusal::WrongNode { expected, found: self.me })),
            Some(Err(_)) => Err(Status::invalid_argument("lally-node is not a node id")),
        }
    }
}

/// Who calls, if he says so; for the logs.
pub(super) fn caller(metadata: &MetadataMap) -> Option<NodeId> {
    text(metadata, CALLER)?.parse().ok()
}

/// A refusal, as a status that [`error`] turns back.
pub(super) fn refused(refusal: &Refusal) -> Status {
    let mut status = Status::failed_precondition(refusal.to_string());
    let form = match refusal {
        Refusal::WrongCluster { ours, theirs } => format!("cluster\n{ours}\n{theirs}"),
        Refusal::WrongProtocol { ours, theirs } => {
            format!("protocol\n{}\n{}", range_text(*ours), range_text(*theirs))
        }
        Refusal::WrongNode { expected, found } => format!("node\n{expected}\n{found}"),
        Refusal::Myself => "myself\n\n".to_owned(),
        Refusal::SameIdentity { addr } => format!("identity\n{addr}\n"),
        Refusal::SameAddress { addr } => format!("address\n{addr}\n"),
    };
    let form = MetadataValue::from_bytes(form.as_bytes());
    status.metadata_mut().insert_bin(REFUSAL, form);
    status
}

/// What a failed call means. Only a connection that never came about is certain not to have been
/// seen by the peer.
pub(super) fn error(status: &Status) -> PeerError {
    if let Some(refusal) = refusal(status) {
        return PeerError::Refused(refusal);
    }
    match status.code() {
        _ if never_connected(status) => PeerError::Unreachable(root_cause(status)),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
            PeerError::TimedOut
        }
        Code::Unimplemented | Code::InvalidArgument | Code::OutOfRange | Code::Internal => {
            PeerError::Protocol(status.message().to_owned())
        }
        _ => PeerError::Rejected(status.message().to_owned()),
    }
}

fn refusal(status: &Status) -> Option<Refusal> {
    let form = status.metadata().get_bin(REFUSAL)?.to_bytes().ok()?;
    let form = std::str::from_utf8(&form).ok()?;
    let mut parts = form.split('\n');
    let (kind, one, two) = (parts.next()?, parts.next()?, parts.next()?);
    Some(match kind {
        "cluster" => Refusal::WrongCluster { ours: one.to_owned(), theirs: two.to_owned() },
        "protocol" => Refusal::WrongProtocol { ours: parse_range(one)?, theirs: parse_range(two)? },
        "node" => Refusal::WrongNode { expected: one.parse().ok()?, found: two.parse().ok()? },
        "myself" => Refusal::Myself,
        "identity" => Refusal::SameIdentity { addr: one.to_owned() },
        "address" => Refusal::SameAddress { addr: one.to_owned() },
        _ => return None,
    })
}

fn never_connected(status: &Status) -> bool {
    causes(status).any(<dyn std::error::Error>::is::<tonic::ConnectError>)
}

fn root_cause(status: &Status) -> String {
    causes(status).last().map_or_else(|| status.message().to_owned(), ToString::to_string)
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(std::error::Error::source(status), |cause| cause.source())
}

fn insert(metadata: &mut MetadataMap, name: &'static str, value: &str) {
    if let Ok(value) = value.parse() {
        metadata.insert(name, value);
    }
}

fn text<'a>(metadata: &'a MetadataMap, name: &str) -> Option<&'a str> {
    metadata.get(name).and_then(|value| value.to_str().ok())
}

fn range_text(range: ProtocolRange) -> String {
    format!("{}-{}", range.min, range.max)
}

fn parse_range(text: &str) -> Option<ProtocolRange> {
    let (min, max) = text.split_once('-')?;
    Some(ProtocolRange { min: min.parse().ok()?, max: max.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(cluster: &str, id: u64) -> Handshake {
        Handshake { cluster: cluster.into(), me: NodeId::new(id) }
    }

    fn outcome(from: &Handshake, to: &Handshake, expected: Option<u64>) -> Option<PeerError> {
        let request = from.request((), expected.map(NodeId::new));
        to.check(request.metadata()).err().map(|status| error(&status))
    }

    #[test]
    fn the_expected_node_of_the_same_cluster_is_let_in() {
        assert_eq!(outcome(&end("blue", 1), &end("blue", 2), Some(2)), None);
        assert_eq!(outcome(&end("blue", 1), &end("blue", 2), None), None);
    }

    #[test]
    fn another_cluster_and_another_node_are_refused_and_both_sides_know_why() {
        let refusal = Refusal::WrongCluster { ours: "grün".into(), theirs: "blue".into() };
        assert_eq!(outcome(&end("blue", 1), &end("grün", 2), None), Some(refusal.into()));
        let (expected, found) = (NodeId::new(3), NodeId::new(2));
        let refusal = Refusal::WrongNode { expected, found };
        assert_eq!(outcome(&end("blue", 1), &end("blue", 2), Some(3)), Some(refusal.into()));
    }

    #[test]
    fn a_call_without_a_handshake_is_refused() {
        assert!(end("blue", 1).check(&MetadataMap::new()).is_err());
    }

    #[test]
    fn every_refusal_survives_its_way() {
        let (ours, theirs) = (ProtocolRange { min: 2, max: 3 }, ProtocolRange { min: 1, max: 1 });
        let addr = "a:1".to_owned();
        for refusal in [
            Refusal::WrongProtocol { ours, theirs },
            Refusal::Myself,
            Refusal::SameIdentity { addr: addr.clone() },
            Refusal::SameAddress { addr },
        ] {
            assert_eq!(error(&refused(&refusal)), PeerError::Refused(refusal));
        }
    }
}
