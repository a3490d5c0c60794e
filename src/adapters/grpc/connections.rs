//! The connections of the server: how many there may be, what a failing listener costs, and who is cut
//! off because it never begins to speak.

use std::collections::BTreeMap;
use std::future::{Future, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{AbortHandle, Abortable, Aborted, BoxFuture};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep, timeout};
use tonic::transport::server::Connected;

use crate::ports::ConnectionStats;

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

/// Connections, counted.
#[derive(Debug, Default)]
pub(super) struct Counts {
    open: AtomicUsize,
    refused: AtomicU64,
    cut_short: AtomicU64,
    failures: AtomicU64,
}

impl Counts {
    pub(super) fn stats(&self) -> ConnectionStats {
        ConnectionStats {
            open: self.open.load(Ordering::Relaxed) as u64,
            refused: self.refused.load(Ordering::Relaxed),
            cut_short: self.cut_short.load(Ordering::Relaxed),
        }
    }

    fn refuse(&self, max: usize) {
        let refused = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
        if refused.is_power_of_two() {
            tracing::warn!(refused, max, "too many connections of peers (max_peer_connections)");
        }
    }

    fn cut_short(&self, max: usize) {
        let cut_short = self.cut_short.fetch_add(1, Ordering::Relaxed) + 1;
        if cut_short.is_power_of_two() {
            tracing::warn!(
                cut_short,
                max,
                "strangers crowd the port of the peers: the oldest handshakes give way (max_peer_connections)"
            );
        }
    }
}

/// The connections that come, at most so many at a time: one more is closed at once. It goes on
/// whatever the listener says.
pub(super) fn accepted(
    listener: TcpListener,
    max: usize,
    counts: Arc<Counts>,
) -> impl Stream<Item = io::Result<Accepted>> {
    incoming(listener, Arc::clone(&counts)).filter_map(move |stream| {
        let (accepted, before) = Accepted::count(stream, &counts);
        let admitted = before < max;
        if !admitted {
            counts.refuse(max);
        }
        ready(admitted.then_some(Ok(accepted)))
    })
}

/// The same, each upgraded as it comes. What is not in time, or refused, is let go of. If there are as
/// many as may be, the one that has been at its upgrade for the longest gives way to the one that comes:
/// who belongs here is done within milliseconds, and so gets in however many strangers stand in the door.
/// Those that are upgraded stay.
pub(super) fn upgraded(
    listener: TcpListener,
    max: usize,
    counts: Arc<Counts>,
    upgrade: Upgrade,
) -> impl Stream<Item = io::Result<Box<dyn Connection>>> {
    let incoming = Box::pin(incoming(listener, Arc::clone(&counts)));
    let upgrades = Upgrades {
        max,
        counts,
        upgrade,
        under_way: FuturesUnordered::new(),
        handles: BTreeMap::new(),
        begun: 0,
    };
    stream::unfold((incoming, upgrades), |(mut incoming, mut upgrades)| async move {
        loop {
            tokio::select! {
                biased; // Who gives way is gone before the next one comes.
                Some(ended) = upgrades.under_way.next() => {
                    if let Some(upgraded) = upgrades.end(ended) {
                        return Some((Ok(upgraded), (incoming, upgrades)));
                    }
                }
                Some(stream) = incoming.next() => upgrades.begin(stream),
                else => return None,
            }
        }
    })
}

/// Everything that connects; this does not end.
fn incoming(listener: TcpListener, counts: Arc<Counts>) -> impl Stream<Item = TcpStream> {
    stream::unfold((listener, counts), |(listener, counts)| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((stream, (listener, counts))),
                Err(error) => {
                    let failures = counts.failures.fetch_add(1, Ordering::Relaxed) + 1;
                    if failures.is_power_of_two() {
                        tracing::warn!(%error, failures, "peers' connections cannot be accepted");
                    }
                    sleep(AFTER_A_FAILURE).await;
                }
            }
        }
    })
}

type Upgraded = io::Result<Box<dyn Connection>>;

/// How an upgrade ended, and which; without an outcome, it gave way.
type Ended = (u64, Result<Upgraded, Aborted>);

/// The upgrades under way.
struct Upgrades {
    max: usize,
    counts: Arc<Counts>,
    upgrade: Upgrade,
    under_way: FuturesUnordered<BoxFuture<'static, Ended>>,
    /// By number, and so by age.
    handles: BTreeMap<u64, AbortHandle>,
    begun: u64,
}

impl Upgrades {
    fn begin(&mut self, stream: TcpStream) {
        let (accepted, before) = Accepted::count(stream, &self.counts);
        if before >= self.max {
            let Some((_, oldest)) = self.handles.pop_first() else {
                return self.counts.refuse(self.max);
            };
            oldest.abort();
            self.counts.cut_short(self.max);
        }
        let number = self.begun;
        self.begun += 1;
        let (handle, registration) = AbortHandle::new_pair();
        self.handles.insert(number, handle);
        let upgrading = timeout(UPGRADE_TIMEOUT, self.upgrade.of(accepted))
            .map(|upgraded| upgraded.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())));
        let upgrading = Abortable::new(upgrading, registration);
        self.under_way.push(upgrading.map(move |ended| (number, ended)).boxed());
    }

    /// What came of one, if that is a connection.
    fn end(&mut self, (number, ended): Ended) -> Option<Box<dyn Connection>> {
        self.handles.remove(&number);
        let upgraded = ended.ok()?;
        // Not louder: anybody can have it said as often as he likes.
        let report = |error: &io::Error| {
            tracing::debug!(%error, "whoever connected is no node of this cluster");
        };
        upgraded.inspect_err(report).ok()
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

impl Accepted {
    /// Counts a connection, until it is dropped; and how many there were before.
    fn count(stream: TcpStream, counts: &Arc<Counts>) -> (Self, usize) {
        let before = counts.open.fetch_add(1, Ordering::Relaxed);
        // One that is gone already is found out when it is read.
        stream.set_nodelay(true).ok();
        let hello = Hello { missing: HELLO_BYTES, timer: Box::pin(sleep(HELLO_TIMEOUT)) };
        (Self { stream, hello: Some(hello), counts: Arc::clone(counts) }, before)
    }
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
        let mut incoming = pin!(accepted(listener, 2, Arc::default()));
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
            let mut incoming = pin!(accepted(listener, 1, Arc::default()));
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

    /// Says a byte before it is anything; who says `y` belongs here.
    fn greeting() -> Upgrade {
        Upgrade::with(|mut connection| async move {
            let mut said = [0];
            connection.read_exact(&mut said).await?;
            if said == *b"y" { Ok(connection) } else { Err(io::ErrorKind::InvalidData.into()) }
        })
    }

    #[tokio::test]
    async fn the_oldest_that_stands_in_the_door_gives_way_and_who_is_in_stays() {
        let (listener, addr) = listener().await;
        let counts = Arc::<Counts>::default();
        let mut incoming = pin!(upgraded(listener, 3, Arc::clone(&counts), greeting()));
        let mut member = TcpStream::connect(addr).await.unwrap();
        member.write_all(b"y").await.unwrap();
        let mut inside = incoming.next().await.unwrap().unwrap();
        let mut crowd = Vec::new();
        for _ in 0..10 {
            crowd.push(TcpStream::connect(addr).await.unwrap());
            // They are taken in as long as somebody asks for the next one.
            let waiting = timeout(Duration::from_millis(1), incoming.next());
            assert!(waiting.await.is_err(), "a stranger is let in");
        }
        let mut second = TcpStream::connect(addr).await.unwrap();
        second.write_all(b"y").await.unwrap();
        let second_inside = timeout(Duration::from_secs(20), incoming.next()).await.unwrap();
        assert!(second_inside.unwrap().is_ok());
        // Two places for eleven, of which each gave way to the one behind the next.
        let stats = counts.stats();
        assert_eq!((stats.cut_short, stats.refused), (9, 0), "{stats:?}");
        for gone in crowd.iter_mut().take(9) {
            let ended = timeout(Duration::from_secs(20), gone.read(&mut [0; 1])).await.unwrap();
            assert!(matches!(ended, Ok(0) | Err(_)));
        }
        member.write_all(b"?").await.unwrap();
        inside.read_exact(&mut [0]).await.unwrap();
    }

    #[tokio::test]
    async fn where_all_are_in_one_more_is_refused_before_its_upgrade() {
        let (listener, addr) = listener().await;
        let counts = Arc::<Counts>::default();
        let mut incoming = pin!(upgraded(listener, 1, Arc::clone(&counts), greeting()));
        let mut member = TcpStream::connect(addr).await.unwrap();
        member.write_all(b"y").await.unwrap();
        let inside = incoming.next().await.unwrap().unwrap();
        let mut late = TcpStream::connect(addr).await.unwrap();
        late.write_all(b"y").await.unwrap();
        let mut byte = [0; 1];
        let ended = timeout(Duration::from_secs(20), async {
            tokio::select! {
                _ = incoming.next() => panic!("it is let in"),
                ended = late.read(&mut byte) => ended,
            }
        });
        assert!(matches!(ended.await.unwrap(), Ok(0) | Err(_)));
        assert_eq!(counts.stats(), ConnectionStats { open: 1, refused: 1, cut_short: 0 });
        drop(inside);
        assert_eq!(counts.stats().open, 0);
    }
}
