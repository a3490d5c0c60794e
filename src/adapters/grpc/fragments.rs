//! Fragments: messages larger than the limit of one, in parts.
//!
//! The limit keeps every allocation small and lets other calls pass between; a value may be larger
//! than it. A message that is too large is encoded, cut, and each part travels in a message of the
//! same type that holds nothing else. The length of the whole is announced and checked before
//! anything is allocated for it.

use bytes::{Bytes, BytesMut};
use prost::Message;

use super::wire::{Chunk, Entry, Fragment, ReplyBatch, RequestBatch, SummaryChunk};

/// Largest message, in bytes, on the wire. Set on both ends of every call.
pub(super) const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// Batches are filled up to here; what is larger is cut into parts.
pub(super) const BATCH_BYTES: usize = 512 * 1_024;

/// Parts of entries in bulk: small enough for whoever waits to see that something comes, over a slow
/// link too.
const BULK_PART_BYTES: usize = 64 * 1_024;

/// Largest message before it is cut: the largest value that can be configured, and what frames it.
const MAX_WHOLE_BYTES: usize = 17 << 20;

/// A message that can travel in parts.
pub(super) trait Fragmented: Message + Default {
    /// What is larger than this travels in parts of this size.
    const PART_BYTES: usize;

    /// A message that holds this part of another.
    fn of_fragment(fragment: Fragment) -> Self;

    /// The part it holds, if it does.
    fn take_fragment(&mut self) -> Option<Fragment>;
}

macro_rules! fragmented {
    ($message:ty, $part_bytes:expr) => {
        impl Fragmented for $message {
            const PART_BYTES: usize = $part_bytes;

            fn of_fragment(fragment: Fragment) -> Self {
                Self { fragment: Some(fragment), ..Self::default() }
            }

            fn take_fragment(&mut self) -> Option<Fragment> {
                self.fragment.take()
            }
        }
    };
}

fragmented!(RequestBatch, BATCH_BYTES);
fragmented!(ReplyBatch, BATCH_BYTES);
fragmented!(Chunk, BULK_PART_BYTES);
fragmented!(SummaryChunk, BULK_PART_BYTES);

/// The message as it travels: itself, or in parts.
pub(super) fn split<M: Fragmented>(message: M) -> Vec<M> {
    let total_bytes = message.encoded_len();
    if total_bytes <= M::PART_BYTES {
        return vec![message];
    }
    let mut rest = Bytes::from(message.encode_to_vec());
    let mut parts = Vec::with_capacity(total_bytes.div_ceil(M::PART_BYTES));
    while !rest.is_empty() {
        let data = rest.split_to(M::PART_BYTES.min(rest.len()));
        parts.push(M::of_fragment(Fragment { total_bytes: total_bytes as u64, data }));
    }
    parts
}

/// Entries in as few messages as hold them. One may be as large as several: it is cut.
pub(super) fn pack(entries: impl Iterator<Item = Entry>) -> Vec<Chunk> {
    let (mut parts, mut chunk, mut bytes) = (Vec::new(), Chunk::default(), 0);
    for entry in entries {
        let size = entry.encoded_len();
        if bytes + size > BATCH_BYTES / 2 && !chunk.entries.is_empty() {
            parts.extend(split(std::mem::take(&mut chunk)));
            bytes = 0;
        }
        bytes += size;
        chunk.entries.push(entry);
    }
    parts.extend(split(chunk));
    parts
}

/// Puts the parts of one stream together.
#[derive(Debug, Default)]
pub(super) struct Reassembly {
    total_bytes: usize,
    collected: BytesMut,
}

impl Reassembly {
    /// Whether no message is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.collected.is_empty()
    }

    /// The next whole message, if this one is it or completes it.
    ///
    /// # Errors
    /// What is wrong with the part. The stream cannot be read on then.
    pub(super) fn accept<M: Fragmented>(&mut self, mut message: M) -> Result<Option<M>, String> {
        let Some(part) = message.take_fragment() else {
            let whole = self.is_empty();
            return if whole { Ok(Some(message)) } else { Err("a message was cut short".into()) };
        };
        let total_bytes = usize::try_from(part.total_bytes).unwrap_or(usize::MAX);
        if total_bytes > MAX_WHOLE_BYTES {
            return Err(format!("a message of {total_bytes} bytes; at most {MAX_WHOLE_BYTES}"));
        }
        if self.collected.is_empty() {
            self.total_bytes = total_bytes;
            self.collected.reserve(total_bytes);
        }
        let fits = self.collected.len() + part.data.len() <= self.total_bytes;
        if total_bytes != self.total_bytes || part.data.is_empty() || !fits {
            return Err("the parts of a message do not fit together".into());
        }
        self.collected.extend_from_slice(&part.data);
        if self.collected.len() < self.total_bytes {
            return Ok(None);
        }
        let whole = std::mem::take(&mut self.collected).freeze();
        let mut message = M::decode(whole).map_err(|error| error.to_string())?;
        if message.take_fragment().is_some() {
            return Err("a part of a message within a message".into());
        }
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(value_bytes: usize) -> Chunk {
        let value = Some(Bytes::from(vec![b'v'; value_bytes]));
        let entry = Entry { key: "k".into(), timestamp: 1, node: 2, value };
        Chunk { entries: vec![entry], complete_through: Some(3), fragment: None }
    }

    fn reassemble(parts: Vec<Chunk>) -> Result<Vec<Chunk>, String> {
        let mut reassembly = Reassembly::default();
        let whole = parts.into_iter().map(|part| reassembly.accept(part));
        whole.filter_map(Result::transpose).collect()
    }

    #[test]
    fn a_message_of_any_size_comes_out_as_it_went_in() {
        for bytes in [0, 1, BATCH_BYTES - 40, BATCH_BYTES, BATCH_BYTES * 2, 16 << 20] {
            let parts = split(chunk(bytes));
            assert!(parts.iter().all(|part| part.encoded_len() <= MAX_MESSAGE_BYTES));
            assert_eq!(reassemble(parts), Ok(vec![chunk(bytes)]));
        }
    }

    #[test]
    fn parts_that_lie_are_refused_before_memory_is_taken_for_them() {
        let part = |total_bytes, data: &'static [u8]| {
            Chunk::of_fragment(Fragment { total_bytes, data: Bytes::from_static(data) })
        };
        for parts in [
            vec![part(u64::MAX, b"x")],
            vec![part(2, b"xyz")],
            vec![part(0, b"")],
            vec![part(9, b"x"), part(8, b"x")],
            vec![part(9, b"x"), chunk(1)],
            vec![part(3, b"\xff\xff\xff")],
        ] {
            assert!(reassemble(parts).is_err());
        }
    }
}
