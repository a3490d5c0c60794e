//! Messages into values and back. What comes in is checked here, field by field: nothing a peer
//! sends is believed, and nothing it leaves out makes this node panic.

use std::str;
use std::time::Duration;

use bytes::Bytes;
use tonic::Status;

use crate::domain::{
    Bucket, BucketSet, DigestLevel, Entry, Group, Key, KeyedEntry, MAX_VALUE_BYTES, Member, NodeId,
    Phase, Summary, Timestamp, TraceContext, Value, Version,
};
use crate::ports::{
    Announcement, Certification, EntryChunk, MAX_FETCHED, PeerError, ProtocolRange, WriteReply,
};

use super::wire;

/// Longest address in a member's record.
const MAX_ADDR_BYTES: usize = 512;

/// Longest name of a release.
const MAX_VERSION_BYTES: usize = 64;

/// Starts of a node: one a nanosecond for nine years. A higher one could never be risen above.
const MAX_GENERATION: u64 = 1 << 58;

/// What is wrong with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) String);

impl From<&str> for Malformed {
    fn from(what: &str) -> Self {
        Self(what.to_owned())
    }
}

impl From<Malformed> for Status {
    fn from(malformed: Malformed) -> Self {
        Self::invalid_argument(malformed.0)
    }
}

impl From<Malformed> for PeerError {
    fn from(malformed: Malformed) -> Self {
        Self::Protocol(malformed.0)
    }
}

pub(super) fn keyed_to_wire(keyed: &KeyedEntry) -> wire::Entry {
    let key = Bytes::copy_from_slice(keyed.key.as_str().as_bytes());
    wire::Entry { key, ..entry_to_wire(&keyed.entry) }
}

pub(super) fn keyed_from_wire(entry: &wire::Entry) -> Result<KeyedEntry, Malformed> {
    Ok(KeyedEntry::new(key_from_wire(&entry.key)?, entry_from_wire(entry)?))
}

/// Without the key, which is known from the request.
pub(super) fn entry_to_wire(entry: &Entry) -> wire::Entry {
    wire::Entry {
        key: Bytes::new(),
        timestamp: entry.version.timestamp.as_nanos(),
        node: entry.version.node.as_u64(),
        value: entry.value().map(|value| Bytes::copy_from_slice(value.as_str().as_bytes())),
    }
}

pub(super) fn entry_from_wire(entry: &wire::Entry) -> Result<Entry, Malformed> {
    let version = version(entry.timestamp, entry.node);
    let Some(value) = &entry.value else { return Ok(Entry::tombstone(version)) };
    if value.len() > MAX_VALUE_BYTES {
        return Err(Malformed(format!("a value of {} bytes", value.len())));
    }
    // Copied: a value must not keep the frame alive that it came in.
    let text = str::from_utf8(value).map_err(|_| Malformed::from("a value that is not UTF-8"))?;
    Ok(Entry::live(version, Value::new(text)))
}

pub(super) fn key_from_wire(key: &[u8]) -> Result<Key, Malformed> {
    let text = str::from_utf8(key).map_err(|_| Malformed::from("a key that is not UTF-8"))?;
    Key::new(text).map_err(|error| Malformed(error.to_string()))
}

/// Nothing for none.
pub(super) fn trace_to_wire(trace: Option<TraceContext>) -> Bytes {
    trace.map_or_else(Bytes::new, |trace| Bytes::copy_from_slice(&trace.to_bytes()))
}

pub(super) fn reply_from_wire(reply: wire::reply::Kind) -> Result<WriteReply, PeerError> {
    match reply {
        wire::reply::Kind::Applied(applied) => {
            let previous = applied.previous.as_ref().map(entry_from_wire).transpose()?;
            Ok(WriteReply::Applied { previous })
        }
        wire::reply::Kind::Superseded(by) => {
            Ok(WriteReply::Superseded { by: version(by.timestamp, by.node) })
        }
        wire::reply::Kind::Rejected(why) => Err(PeerError::Rejected(why)),
        wire::reply::Kind::Copy(_) => Err(Malformed::from("a copy in answer to a write").into()),
    }
}

pub(super) fn reply_to_wire<E: ToString>(reply: Result<WriteReply, E>) -> wire::reply::Kind {
    match reply {
        Ok(WriteReply::Applied { previous }) => {
            let previous = previous.as_ref().map(entry_to_wire);
            wire::reply::Kind::Applied(wire::Applied { previous })
        }
        Ok(WriteReply::Superseded { by }) => wire::reply::Kind::Superseded(wire::Version {
            timestamp: by.timestamp.as_nanos(),
            node: by.node.as_u64(),
        }),
        Err(error) => wire::reply::Kind::Rejected(error.to_string()),
    }
}

pub(super) fn copy_from_wire(reply: wire::reply::Kind) -> Result<Option<Entry>, PeerError> {
    match reply {
        wire::reply::Kind::Copy(copy) => {
            Ok(copy.entry.as_ref().map(entry_from_wire).transpose()?)
        }
        wire::reply::Kind::Rejected(why) => Err(PeerError::Rejected(why)),
        _ => Err(Malformed::from("the answer to a write, to a read").into()),
    }
}

pub(super) fn copy_to_wire(copy: Option<&Entry>) -> wire::reply::Kind {
    wire::reply::Kind::Copy(wire::Copy { entry: copy.map(entry_to_wire) })
}

pub(super) fn chunk_to_wire(chunk: &EntryChunk) -> wire::Chunk {
    wire::Chunk {
        entries: chunk.entries.iter().map(keyed_to_wire).collect(),
        complete_through: bucket_to_wire(chunk.complete_through),
        fragment: None,
    }
}

pub(super) fn chunk_from_wire(chunk: &wire::Chunk) -> Result<EntryChunk, Malformed> {
    let entries = chunk.entries.iter().map(keyed_from_wire).collect::<Result<_, _>>()?;
    Ok(EntryChunk { entries, complete_through: bucket_from_wire(chunk.complete_through)? })
}

pub(super) fn summaries_to_wire(chunk: &EntryChunk<Summary>) -> wire::SummaryChunk {
    let summary = |summary: &Summary| wire::Summary {
        key: Bytes::copy_from_slice(summary.key.as_str().as_bytes()),
        timestamp: summary.version.timestamp.as_nanos(),
        node: summary.version.node.as_u64(),
        hash: summary.hash,
        removed: summary.is_tombstone,
    };
    wire::SummaryChunk {
        summaries: chunk.entries.iter().map(summary).collect(),
        complete_through: bucket_to_wire(chunk.complete_through),
        fragment: None,
    }
}

pub(super) fn summaries_from_wire(
    chunk: &wire::SummaryChunk,
) -> Result<EntryChunk<Summary>, Malformed> {
    let summary = |summary: &wire::Summary| {
        Ok(Summary {
            key: key_from_wire(&summary.key)?,
            version: version(summary.timestamp, summary.node),
            is_tombstone: summary.removed,
            hash: summary.hash,
        })
    };
    let entries = chunk.summaries.iter().map(summary).collect::<Result<_, Malformed>>()?;
    Ok(EntryChunk { entries, complete_through: bucket_from_wire(chunk.complete_through)? })
}

pub(super) fn keys_to_wire(keys: &[Key]) -> wire::FetchRequest {
    let key = |key: &Key| Bytes::copy_from_slice(key.as_str().as_bytes());
    wire::FetchRequest { keys: keys.iter().map(key).collect() }
}

pub(super) fn keys_from_wire(request: &wire::FetchRequest) -> Result<Vec<Key>, Malformed> {
    let (count, bytes) = MAX_FETCHED;
    let asked_bytes: usize = request.keys.iter().map(Bytes::len).sum();
    if request.keys.len() > count || asked_bytes > bytes {
        return Err(Malformed(format!("{} keys to fetch at once", request.keys.len())));
    }
    request.keys.iter().map(|key| key_from_wire(key)).collect()
}

fn bucket_to_wire(bucket: Option<Bucket>) -> Option<u32> {
    bucket.and_then(|bucket| u32::try_from(bucket.index()).ok())
}

fn bucket_from_wire(number: Option<u32>) -> Result<Option<Bucket>, Malformed> {
    let number = number.map(u16::try_from).transpose();
    Ok(number.map_err(|_| Malformed::from("a bucket too high"))?.map(Bucket::new))
}

pub(super) fn buckets_from_wire(bitmap: &[u8]) -> Result<BucketSet, Malformed> {
    BucketSet::from_bytes(bitmap)
        .ok_or_else(|| Malformed(format!("a bitmap of {} bytes for buckets", bitmap.len())))
}

pub(super) fn level_to_wire(level: &DigestLevel) -> Bytes {
    match level {
        DigestLevel::Groups => Bytes::new(),
        DigestLevel::BucketsOf(groups) => groups.iter().map(|group| group.number()).collect(),
    }
}

/// Every group at most once, in their order: so an answer has a bound.
pub(super) fn level_from_wire(groups: &[u8]) -> Result<DigestLevel, Malformed> {
    if groups.is_empty() {
        return Ok(DigestLevel::Groups);
    }
    if !groups.is_sorted_by(|a, b| a < b) {
        return Err(Malformed("groups of buckets that do not ascend".into()));
    }
    Ok(DigestLevel::BucketsOf(groups.iter().copied().map(Group::new).collect()))
}

pub(super) fn digests_from_wire(
    digests: Vec<u64>,
    level: &DigestLevel,
) -> Result<Vec<u64>, Malformed> {
    if digests.len() == level.len() {
        return Ok(digests);
    }
    Err(Malformed(format!("{} digests; expected {}", digests.len(), level.len())))
}

pub(super) fn announcement_to_wire(announcement: &Announcement) -> wire::Announcement {
    wire::Announcement {
        cluster: announcement.cluster.clone(),
        protocol_min: announcement.protocol.min,
        protocol_max: announcement.protocol.max,
        sender: Some(member_to_wire(&announcement.sender)),
        members: announcement.members.iter().map(member_to_wire).collect(),
        horizon: announcement.horizon.as_nanos(),
        version: announcement.version.clone(),
    }
}

pub(super) fn announcement_from_wire(
    announcement: wire::Announcement,
) -> Result<Announcement, Malformed> {
    let sender = announcement.sender.ok_or("an announcement without a sender")?;
    let (min, max) = (announcement.protocol_min, announcement.protocol_max);
    Ok(Announcement {
        cluster: announcement.cluster,
        protocol: ProtocolRange { min, max },
        sender: member_from_wire(sender)?,
        members: announcement
            .members
            .into_iter()
            .map(member_from_wire)
            .collect::<Result<_, _>>()?,
        horizon: Timestamp::from_nanos(announcement.horizon),
        version: version_from_wire(announcement.version),
    })
}

/// For people only: what is no version is none, and no reason to refuse its sender.
fn version_from_wire(version: String) -> String {
    let is_one =
        version.len() <= MAX_VERSION_BYTES && version.bytes().all(|b| b.is_ascii_graphic());
    if is_one { version } else { String::new() }
}

pub(super) fn certification_to_wire(certification: Certification) -> wire::FenceRequest {
    wire::FenceRequest {
        horizon: certification.horizon.as_nanos(),
        generation: certification.generation,
        age: u64::try_from(certification.age.as_nanos()).unwrap_or(u64::MAX),
    }
}

pub(super) const fn certification_from_wire(request: wire::FenceRequest) -> Certification {
    Certification {
        horizon: Timestamp::from_nanos(request.horizon),
        generation: request.generation,
        age: Duration::from_nanos(request.age),
    }
}

fn member_to_wire(member: &Member) -> wire::Member {
    let phase = match member.phase {
        Phase::Joining => wire::Phase::Joining,
        Phase::Whole => wire::Phase::Whole,
        Phase::Left => wire::Phase::Left,
    };
    wire::Member {
        id: member.id.as_u64(),
        generation: member.generation,
        phase: phase.into(),
        grpc_addr: member.grpc_addr.clone(),
        http_addr: member.http_addr.clone(),
    }
}

fn member_from_wire(member: wire::Member) -> Result<Member, Malformed> {
    let phase = match member.phase() {
        wire::Phase::Joining => Phase::Joining,
        wire::Phase::Whole => Phase::Whole,
        wire::Phase::Left => Phase::Left,
        wire::Phase::Unspecified => return Err("a member without a phase".into()),
    };
    let addrs = [&member.grpc_addr, &member.http_addr];
    if addrs.iter().any(|addr| addr.is_empty() || addr.len() > MAX_ADDR_BYTES) {
        return Err("a member without an address, or with one that is too long".into());
    }
    if member.generation > MAX_GENERATION {
        return Err("a member of a generation that no node reaches".into());
    }
    Ok(Member {
        id: NodeId::new(member.id),
        generation: member.generation,
        phase,
        grpc_addr: member.grpc_addr,
        http_addr: member.http_addr,
    })
}

const fn version(timestamp: u64, node: u64) -> Version {
    Version::new(Timestamp::from_nanos(timestamp), NodeId::new(node))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{ProptestConfig, any, prop_assert_eq, proptest};
    use prost::Message;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn an_entry_survives_the_wire(
            key in ".{1,40}", value in proptest::option::of(".{0,100}"),
            time in any::<u64>(), node in any::<u64>()
        ) {
            let version = version(time, node);
            let entry = value.map_or(Entry::tombstone(version), |v| Entry::live(version, Value::new(&v)));
            let keyed = KeyedEntry::new(Key::new(&key).unwrap(), entry);
            let bytes = keyed_to_wire(&keyed).encode_to_vec();
            let decoded = wire::Entry::decode(bytes.as_slice()).unwrap();
            prop_assert_eq!(keyed_from_wire(&decoded), Ok(keyed));
        }

        #[test]
        fn no_bytes_make_a_conversion_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(batch) = wire::RequestBatch::decode(bytes.as_slice()) {
                for request in batch.requests {
                    match request.kind {
                        Some(wire::request::Kind::Write(entry)) => drop(keyed_from_wire(&entry)),
                        Some(wire::request::Kind::Read(key)) => drop(key_from_wire(&key)),
                        None => {}
                    }
                }
            }
            if let Ok(batch) = wire::ReplyBatch::decode(bytes.as_slice()) {
                for kind in batch.replies.into_iter().filter_map(|reply| reply.kind) {
                    drop(reply_from_wire(kind.clone()));
                    drop(copy_from_wire(kind));
                }
            }
            if let Ok(announcement) = wire::Announcement::decode(bytes.as_slice()) {
                drop(announcement_from_wire(announcement));
            }
            if let Ok(chunk) = wire::Chunk::decode(bytes.as_slice()) {
                drop(chunk_from_wire(&chunk));
            }
            if let Ok(chunk) = wire::SummaryChunk::decode(bytes.as_slice()) {
                drop(summaries_from_wire(&chunk));
            }
            if let Ok(request) = wire::FetchRequest::decode(bytes.as_slice()) {
                drop(keys_from_wire(&request));
            }
        }
    }

    #[test]
    fn what_is_missing_or_out_of_bounds_is_refused() {
        let entry = wire::Entry { key: "k".into(), timestamp: 1, node: 1, value: None };
        let no_key = wire::Entry { key: Bytes::new(), ..entry.clone() };
        let long_key = wire::Entry { key: vec![b'k'; 1_025].into(), ..entry.clone() };
        let no_utf8 = wire::Entry { value: Some(vec![0xff].into()), ..entry };
        for entry in [no_key, long_key, no_utf8] {
            assert!(keyed_from_wire(&entry).is_err());
        }
        assert!(announcement_from_wire(wire::Announcement::default()).is_err());
        assert!(buckets_from_wire(&[0; 8_191]).is_err());
        let level = DigestLevel::BucketsOf(vec![Group::new(0), Group::new(255)]);
        assert!(digests_from_wire(vec![0; 511], &level).is_err());
        assert!(digests_from_wire(vec![0; 512], &level).is_ok());
        assert_eq!(level_from_wire(&level_to_wire(&level)).ok(), Some(level));
        assert_eq!(level_from_wire(&[]).ok(), Some(DigestLevel::Groups));
        assert!(level_from_wire(&[3, 3]).is_err() && level_from_wire(&[4, 3]).is_err());
        let chunk = wire::Chunk { complete_through: Some(65_536), ..wire::Chunk::default() };
        assert!(chunk_from_wire(&chunk).is_err());
    }

    #[test]
    fn a_request_without_a_trace_is_no_longer_than_before_there_were_traces() {
        let read = |trace| {
            let kind = Some(wire::request::Kind::Read("k".into()));
            wire::Request { id: 1, kind, trace: trace_to_wire(trace) }.encode_to_vec()
        };
        assert_eq!(read(None), [8, 1, 26, 1, b'k']);
        let trace = TraceContext::from_bytes(&[7; TraceContext::BYTES]);
        let with = read(trace);
        let decoded = wire::Request::decode(with.as_slice()).unwrap();
        assert_eq!((with.len(), TraceContext::from_bytes(&decoded.trace)), (5 + 27, trace));
    }

    #[test]
    fn a_fetch_is_bounded_by_keys_and_by_their_bytes() {
        let request =
            |count, bytes| wire::FetchRequest { keys: vec![vec![b'k'; bytes].into(); count] };
        for (count, bytes) in [(1, 1), (4_096, 64), (256, 1_024)] {
            let keys = keys_from_wire(&request(count, bytes)).unwrap();
            assert_eq!(keys_to_wire(&keys), request(count, bytes));
        }
        for (count, bytes) in [(4_097, 1), (257, 1_024), (1, 0), (1, 1_025)] {
            assert!(keys_from_wire(&request(count, bytes)).is_err(), "{count} of {bytes}");
        }
    }

    #[test]
    fn a_certification_survives_the_wire() {
        for number in [0, 1, u64::MAX] {
            let certification = Certification {
                horizon: Timestamp::from_nanos(number),
                generation: number,
                age: Duration::from_nanos(number),
            };
            let bytes = certification_to_wire(certification).encode_to_vec();
            let decoded = wire::FenceRequest::decode(bytes.as_slice()).unwrap();
            assert_eq!(certification_from_wire(decoded), certification);
        }
    }

    #[test]
    fn the_horizon_of_an_announcement_survives_the_wire() {
        let sender = wire::Member {
            id: 1,
            generation: 1,
            phase: wire::Phase::Whole.into(),
            grpc_addr: "a:1".into(),
            http_addr: "a:2".into(),
        };
        let theirs = wire::Announcement { sender: Some(sender), ..Default::default() };
        // As of a release that knows no horizon.
        let decoded = announcement_from_wire(theirs.clone()).unwrap();
        assert_eq!(decoded.horizon, Timestamp::ZERO);
        let theirs = wire::Announcement { horizon: u64::MAX, ..theirs };
        assert_eq!(announcement_to_wire(&announcement_from_wire(theirs.clone()).unwrap()), theirs);
    }

    #[test]
    fn a_release_that_is_none_is_no_reason_to_refuse_who_states_it() {
        let longest = "1".repeat(MAX_VERSION_BYTES);
        for (stated, taken) in [
            ("", ""),
            ("0.1.0-rc.1+5", "0.1.0-rc.1+5"),
            (longest.as_str(), longest.as_str()),
            (&format!("{longest}1"), ""),
            ("1 0", ""),
            ("1\n0", ""),
            ("\u{e9}", ""),
        ] {
            assert_eq!(version_from_wire(stated.to_owned()), taken, "{stated:?}");
        }
    }

    #[test]
    fn a_member_survives_the_wire() {
        for phase in [Phase::Joining, Phase::Whole, Phase::Left] {
            let member = Member {
                id: NodeId::new(1),
                generation: 2,
                phase,
                grpc_addr: "a:1".into(),
                http_addr: "a:2".into(),
            };
            assert_eq!(member_from_wire(member_to_wire(&member)), Ok(member));
        }
    }
}
