//! Request bodies: read within bounds of size and time.

use std::pin::pin;
use std::time::Duration;

use axum::http::{HeaderMap, Request, header};
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http_body_util::BodyExt;
use hyper::body::Body;
use tokio::time::Instant;

use super::LiveOptions;
use super::admission::{Held, Places, Room};
use super::errors::{Code, Refusal};

/// How much of a body that is too long is read and thrown away before the answer. A client that
/// is still sending when its connection is closed loses the answer, and so never learns why.
const LINGER_BYTES: usize = 16 * 1_024 * 1_024;

/// Up to here the memory of a body that comes in pieces grows with it.
const SMALL_BYTES: usize = 64 * 1_024;

/// A body, and the memory that it takes if it did not come with its head.
pub(super) type HeldBody<'a> = (Bytes, Option<Held<'a>>);

/// Reads the body of a request whose media type and size are as they should be. A body that is not
/// there with its head takes one of the places of those that are waited for, and room, and says how long
/// it `waited`.
pub(super) async fn read<'a, B: Body<Data = Bytes> + Unpin>(
    request: Request<B>,
    options: &LiveOptions,
    places: Places<'_>,
    room: Room<'a>,
    waited: &mut Duration,
) -> Result<HeldBody<'a>, Refusal> {
    check_media_type(request.headers())?;
    let max = options.max_body_bytes();
    // A client that asks first (RFC 9110, 10.1.1) waits for the answer before it sends anything.
    let asks_first = request.headers().contains_key(header::EXPECT);
    let declared = declared_length(request.headers());
    let too_long = declared.is_some_and(|length| length > max as u64);
    if too_long && asks_first {
        return Err(too_large(max));
    }
    let mut reading = pin!(collect(request.into_body(), max, declared));
    // Most bodies are there with their heads, and need neither a timer nor the memory for one.
    if let Some(read) = reading.as_mut().now_or_never() {
        return read.map(|body| (body, None));
    }
    let _place = places.take()?;
    // What is too long is thrown away as it comes. One that does not say may become as long as any.
    let expected = declared.map_or(Ok(max), usize::try_from).unwrap_or(max);
    let room = room.take(if too_long { 0 } else { expected })?;
    let since = Instant::now();
    let timeout = options.body_read_timeout();
    let read = Box::pin(tokio::time::timeout(timeout, reading)).await;
    *waited = since.elapsed();
    match read {
        Ok(read) => read.map(|body| (body, Some(room))),
        Err(_) if too_long => Err(too_large(max)),
        Err(_) => {
            let ms = timeout.as_millis();
            let message = format!("the body did not arrive within {ms} ms");
            Err(Refusal::new(Code::RequestTimeout, message))
        }
    }
}

fn check_media_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(given) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let essence = given.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let ends_in_json = || {
        let suffix_at = essence.len().saturating_sub("+json".len());
        essence.get(suffix_at..).is_some_and(|suffix| suffix.eq_ignore_ascii_case("+json"))
    };
    if essence.eq_ignore_ascii_case("application/json") || ends_in_json() {
        return Ok(());
    }
    let message = "the content type is not JSON; send `content-type: application/json`, or none at \
                   all (curl: --json instead of -d, or -H 'content-type: application/json')";
    Err(Refusal::new(Code::UnsupportedMediaType, message))
}

fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn too_large(max: usize) -> Refusal {
    let message = format!("the body is longer than the {max} bytes allowed (max_body_bytes)");
    Refusal::new(Code::TooLarge, message)
}

async fn collect<B: Body<Data = Bytes> + Unpin>(
    mut body: B,
    max: usize,
    declared: Option<u64>,
) -> Result<Bytes, Refusal> {
    let limit = declared.map_or(Ok(max), usize::try_from).unwrap_or(usize::MAX);
    if limit > max {
        discard(body).await;
        return Err(too_large(max));
    }
    let Some(first) = next(&mut body).await? else {
        return Ok(Bytes::new());
    };
    if first.len() > max {
        discard(body).await;
        return Err(too_large(max));
    }
    // Nearly every body is one chunk, which is used as it is.
    let Some(second) = next(&mut body).await? else {
        return Ok(first);
    };
    let mut whole = BytesMut::from(first.as_ref());
    let mut more = Some(second);
    while let Some(chunk) = more {
        if whole.len() + chunk.len() > max {
            discard(body).await;
            return Err(too_large(max));
        }
        append(&mut whole, &chunk, limit);
        more = next(&mut body).await?;
    }
    Ok(whole.freeze())
}

/// Adds a chunk. There is a little room to spare at first, then at once all that is counted for a body of
/// up to `limit` bytes, of which doubling could take twice as much.
fn append(whole: &mut BytesMut, chunk: &[u8], limit: usize) {
    let needed = whole.len() + chunk.len();
    if needed > whole.capacity() {
        let wanted = if needed < SMALL_BYTES { limit.min(2 * needed) } else { limit };
        let before = std::mem::replace(whole, BytesMut::with_capacity(wanted.max(needed)));
        whole.extend_from_slice(&before);
    }
    whole.extend_from_slice(chunk);
}

/// The next chunk; trailers are passed over.
async fn next<B: Body<Data = Bytes> + Unpin>(body: &mut B) -> Result<Option<Bytes>, Refusal> {
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return Err(Refusal::bad_request("the body ended early, or its chunks are malformed"));
        };
        if let Ok(chunk) = frame.into_data() {
            return Ok(Some(chunk));
        }
    }
    Ok(None)
}

async fn discard<B: Body<Data = Bytes> + Unpin>(mut body: B) {
    let mut discarded = 0;
    while let Ok(Some(chunk)) = next(&mut body).await {
        discarded += chunk.len();
        if discarded > LINGER_BYTES {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::HttpOptions;
    use super::*;
    use axum::body::Body;
    use axum::extract::Request;
    use axum::http::HeaderValue;
    use futures_util::stream;
    use std::sync::atomic::AtomicUsize;

    async fn read_all(request: Request, options: &HttpOptions) -> Result<Bytes, Refusal> {
        let (live, places) = (LiveOptions::from(*options), AtomicUsize::new(0));
        let (room, mut waited) = (AtomicUsize::new(0), Duration::default());
        let (places, room) = (Places::new(&places, 1), Room::new(&room, options.max_body_bytes));
        read(request, &live, places, room, &mut waited).await.map(|(body, _)| body)
    }
    #[test]
    fn json_media_types_and_none_at_all_are_accepted() {
        let check = |given: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(given));
            check_media_type(&headers).map_err(|refusal| refusal.code)
        };
        assert_eq!(check_media_type(&HeaderMap::new()), Ok(()));
        for json in ["application/json", "Application/JSON ; charset=utf-8", "application/x+json"] {
            assert_eq!(check(json), Ok(()), "{json}");
        }
        for other in ["text/plain", "", "json", "application/jsonx", "application/x-www-form"] {
            assert_eq!(check(other), Err(Code::UnsupportedMediaType), "{other}");
        }
    }

    fn chunked(chunks: Vec<&'static [u8]>) -> Body {
        Body::from_stream(stream::iter(chunks.into_iter().map(Ok::<_, std::io::Error>)))
    }

    #[tokio::test]
    async fn a_body_in_pieces_is_put_together_and_its_length_is_counted() {
        let options = HttpOptions { max_body_bytes: 5, ..HttpOptions::default() };
        let read = |chunks| read_all(Request::new(chunked(chunks)), &options);
        assert_eq!(read(vec![]).await, Ok(Bytes::new()));
        assert_eq!(read(vec![b"abcde"]).await, Ok(Bytes::from_static(b"abcde")));
        assert_eq!(read(vec![b"a", b"bc", b"de"]).await, Ok(Bytes::from_static(b"abcde")));
        for long in [vec![&b"abcdef"[..]], vec![b"abc", b"def"], vec![b"a", b"b", b"cdef", b"g"]] {
            assert_eq!(read(long).await.unwrap_err().code, Code::TooLarge);
        }
    }

    #[test]
    fn a_body_in_pieces_takes_no_more_memory_than_is_counted_for_it() {
        for limit in [10, SMALL_BYTES, 2 << 20, (5 << 20) + 1, 17 << 20] {
            for piece in [1 << 10, 10_000, 64 << 10, 1 << 20] {
                let mut whole = BytesMut::new();
                let (mut moves, mut at) = (0, whole.as_ptr());
                while whole.len() < limit {
                    let chunk = vec![b'x'; piece.min(limit - whole.len())];
                    append(&mut whole, &chunk, limit);
                    assert!(
                        whole.capacity() <= limit.max(64),
                        "{piece} of {limit}: {}",
                        whole.capacity()
                    );
                    moves += usize::from(whole.as_ptr() != at);
                    at = whole.as_ptr();
                }
                assert!(moves <= 9, "{piece} of {limit}: moved {moves} times");
            }
        }
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_refused() {
        let chunks = vec![Ok(&b"ab"[..]), Err(std::io::Error::other("reset"))];
        let request = Request::new(Body::from_stream(stream::iter(chunks)));
        let refusal = read_all(request, &HttpOptions::default()).await.unwrap_err();
        assert_eq!(refusal.code, Code::BadRequest);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_given_up() {
        let never = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let refusal = read_all(Request::new(never), &HttpOptions::default()).await.unwrap_err();
        assert_eq!(refusal.code, Code::RequestTimeout);
        assert!(refusal.message.contains("10000 ms"));
    }

    #[tokio::test]
    async fn a_client_that_asks_first_is_refused_before_it_sends() {
        let never = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let mut request = Request::new(never);
        request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("9999999"));
        request.headers_mut().insert(header::EXPECT, HeaderValue::from_static("100-continue"));
        let refusal = read_all(request, &HttpOptions::default()).await.unwrap_err();
        assert_eq!(refusal.code, Code::TooLarge);
    }
}
