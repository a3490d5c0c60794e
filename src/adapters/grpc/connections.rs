//! The connections of the server: how many there may be, what a failing listener costs, and who is cut
//! off because it never begins to speak.

use std::future::{Future, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep, timeout};
use tonic::transport::server::Connected;

use super::dial::{Connection, Upgrade};

/// How long a new connection may take to say that it speaks HTTP/2. From then on keep-alive finds out
/// who is silent.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// What it says then (RFC 9113, 3.4).
const HELLO_BYTES: usize = 24;

/// How long it may take to upgrade one. The other side gives up after a second.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(2);

/// Between two attempts to accept, when the listener fails: for want of file descriptors it would
/// fail as often as it is asked, and asking would take a core.
const AFTER_A_FAILURE: Duration = Duration::from_millis(50);

/// The connections that come, at most so many at a time: one more is closed at once. It goes on
/// whatever the listener says.
pub(super) fn accepted(
    listener: TcpListener,
    max: usize,
) -> impl Stream<Item = io::Result<Accepted>> {
    let limit = Limit { max, counts: Arc::default() };
    stream::unfold((listener, limit), |(listener, limit)| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if let Some(accepted) = limit.admit(stream) {
                        return Some((Ok(accepted), (listener, limit)));
                    }
                }
                Err(error) => {
                    let failures = limit.counts.failures.fetch_add(1, Ordering::Relaxed) + 1;
                    if failures.is_power_of_two() {
                        tracing::warn!(%error, failures, "peers' connections cannot be accepted");
                    }
                    sleep(AFTER_A_FAILURE).await;
                }
            }
        }
    })
}

/// The same, each upgraded as it comes. What is not in time, or refused, is let go of: as many as may be
/// open are upgraded at a time, so nobody waits for those who do not get on with it.
pub(super) fn upgraded(
    incoming: impl Stream<Item = io::Result<Accepted>>,
    upgrade: Upgrade,
    max: usize,
) -> impl Stream<Item = io::Result<Box<dyn Connection>>> {
    let upgrading = incoming.map(move |accepted| {
        let upgrade = upgrade.clone();
        async move {
            let upgraded = timeout(UPGRADE_TIMEOUT, upgrade.of(accepted?)).await;
            upgraded.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        }
    });
    upgrading.buffer_unordered(max).filter_map(|upgraded| {
        if let Err(error) = &upgraded {
            // Not louder: anybody can have it said as often as he likes.
            tracing::debug!(%error, "whoever connected is no node of this cluster");
        }
        ready(upgraded.ok().map(Ok))
    })
}

#[derive(Debug)]
struct Limit {
    max: usize,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    open: AtomicUsize,
    refused: AtomicU64,
    failures: AtomicU64,
}

impl Limit {
    fn admit(&self, stream: TcpStream) -> Option<Accepted> {
        let open = self.counts.open.fetch_add(1, Ordering::Relaxed);
        // From here on the connection is counted, and dropping it counts it out again.
        let hello = Hello { missing: HELLO_BYTES, timer: Box::pin(sleep(HELLO_TIMEOUT)) };
        let accepted = Accepted { stream, hello: Some(hello), counts: Arc::clone(&self.counts) };
        if open >= self.max {
            let refused = self.counts.refused.fetch_add(1, Ordering::Relaxed) + 1;
            if refused.is_power_of_two() {
                let max = self.max;
                tracing::warn!(
                    refused,
                    max,
                    "too many connections of peers (max_peer_connections)"
                );
            }
            return None;
        }
        // One that is gone already is found out when it is read.
        accepted.stream.set_nodelay(true).ok();
        Some(accepted)
    }
}

/// An accepted connection; counted for as long as it lives.
#[derive(Debug)]
pub(super) struct Accepted {
    stream: TcpStream,
    /// Until it has said what it speaks.
    hello: Option<Hello>,
    counts: Arc<Counts>,
}

#[derive(Debug)]
struct Hello {
    missing: usize,
    timer: Pin<Box<Sleep>>,
}

impl Drop for Accepted {
    fn drop(&mut self) {
        self.counts.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connected for Accepted {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let Some(hello) = &mut self.hello else { return read };
        let came = buf.filled().len() - before;
        hello.missing = hello.missing.saturating_sub(came);
        if hello.missing == 0 {
            self.hello = None;
        } else if hello.timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;
    use std::pin::pin;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::{Instant, timeout};

    async fn listener() -> (TcpListener, std::net::SocketAddr) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        (listener, addr)
    }

    #[tokio::test]
    async fn as_many_connections_are_held_as_are_allowed_and_one_more_is_closed_at_once() {
        let (listener, addr) = listener().await;
        let mut incoming = pin!(accepted(listener, 2));
        let _clients = [TcpStream::connect(addr).await, TcpStream::connect(addr).await];
        let one = incoming.next().await.unwrap().unwrap();
        let _two = incoming.next().await.unwrap().unwrap();
        let mut third = TcpStream::connect(addr).await.unwrap();
        let mut nothing = [0; 1];
        let none = timeout(Duration::from_secs(20), async {
            tokio::select! {
                _ = incoming.next() => panic!("a third is accepted"),
                ended = third.read(&mut nothing) => ended,
            }
        });
        assert!(matches!(none.await.unwrap(), Ok(0) | Err(_)));
        drop(one);
        let _fourth = TcpStream::connect(addr).await.unwrap();
        assert!(incoming.next().await.unwrap().is_ok(), "the place is given back");
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_says_what_it_speaks_is_cut_off_and_who_has_said_it_is_not() {
        for (sent, is_cut) in [(0, true), (HELLO_BYTES - 1, true), (HELLO_BYTES, false)] {
            let (listener, addr) = listener().await;
            let mut incoming = pin!(accepted(listener, 1));
            let mut client = TcpStream::connect(addr).await.unwrap();
            let mut server = incoming.next().await.unwrap().unwrap();
            client.write_all(&vec![b'x'; sent]).await.unwrap();
            let began = Instant::now();
            let reading = async {
                while server.read(&mut [0; 64]).await? > 0 {}
                io::Result::Ok(())
            };
            let outcome = timeout(10 * HELLO_TIMEOUT, reading).await;
            if is_cut {
                assert_eq!(outcome.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
                assert!(began.elapsed() <= HELLO_TIMEOUT + Duration::from_millis(10));
            } else {
                assert!(outcome.is_err(), "it waits on");
            }
        }
    }
}
