//! `Pieces`: a response's body that is there as a whole, in one buffer or, around a long value, in
//! three. So a long value is sent from the memory that the store has it in, and not copied first.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use crate::domain::Value;

/// A body of one or three buffers.
#[derive(Debug)]
pub(super) struct Pieces {
    /// Empty once it was taken.
    first: Bytes,
    /// In the order in which they are taken; boxed, since nearly all bodies have none.
    rest: Option<Box<[Bytes; 2]>>,
}

impl Pieces {
    /// Around the text of this value.
    pub(super) fn around(before: Vec<u8>, value: Value, after: Vec<u8>) -> Self {
        let rest = [Bytes::from_owner(Text(value)), after.into()];
        Self { first: before.into(), rest: Some(Box::new(rest)) }
    }

    fn take(&mut self) -> Option<Bytes> {
        if !self.first.is_empty() {
            return Some(std::mem::take(&mut self.first));
        }
        let piece = self.rest.as_mut()?.iter_mut().find(|piece| !piece.is_empty())?;
        Some(std::mem::take(piece))
    }

    fn bytes_left(&self) -> usize {
        let rest = self.rest.iter().flat_map(|rest| rest.iter());
        self.first.len() + rest.map(Bytes::len).sum::<usize>()
    }
}

impl From<Vec<u8>> for Pieces {
    fn from(body: Vec<u8>) -> Self {
        Self { first: body.into(), rest: None }
    }
}

impl From<Bytes> for Pieces {
    fn from(body: Bytes) -> Self {
        Self { first: body, rest: None }
    }
}

impl From<String> for Pieces {
    fn from(body: String) -> Self {
        body.into_bytes().into()
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.take().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes_left() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes_left() as u64)
    }
}

/// The text of a value, which lives as long as somebody is being sent it.
struct Text(Value);

impl AsRef<[u8]> for Text {
    fn as_ref(&self) -> &[u8] {
        self.0.as_str().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use http_body_util::BodyExt;

    use super::*;

    fn frames(mut body: Pieces) -> Vec<String> {
        let mut frames = Vec::new();
        loop {
            let left = body.size_hint().exact().unwrap();
            assert_eq!(body.is_end_stream(), left == 0);
            let Some(frame) = body.frame().now_or_never().unwrap() else { break };
            let bytes = frame.unwrap().into_data().unwrap();
            assert_eq!(body.size_hint().exact().unwrap() + bytes.len() as u64, left);
            frames.push(String::from_utf8(bytes.to_vec()).unwrap());
        }
        frames
    }

    #[test]
    fn its_pieces_come_in_their_order_and_it_knows_how_long_they_are() {
        assert_eq!(frames(Pieces::from(b"all".to_vec())), ["all"]);
        assert_eq!(frames(Pieces::from(Vec::new())), [""; 0]);
        let around = Pieces::around(b"be".to_vec(), Value::new("value"), b"after".to_vec());
        assert_eq!(frames(around), ["be", "value", "after"]);
        let around = Pieces::around(Vec::new(), Value::new(""), b"after".to_vec());
        assert_eq!(frames(around), ["after"]);
    }

    #[test]
    fn the_value_is_not_copied() {
        let value = Value::new("value");
        let place = value.as_str().as_ptr();
        let mut body = Pieces::around(Vec::new(), value, Vec::new());
        assert_eq!(body.take().unwrap().as_ptr(), place);
    }
}
