//! Serving connections, from the first to the last.

use std::convert::Infallible;
use std::future::ready;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::ArcSwap;
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use axum_server::Handle;
use futures_util::future;
use http_body_util::Either;
use hyper::body::Incoming;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tower::{Service, service_fn};

use crate::ports::ClientApi;

use super::connections::Limit;
use super::guard::Guard;
use super::metrics::Metrics;
use super::render::Whole;
use super::timer::ReusedTimers;
use super::{LiveOptions, routes};

/// How much of what a client sends a connection reads at once, and has to itself at most. A long body
/// that is read in small pieces is fetched from memory again and again: all connections' take turns.
const READ_BYTES: usize = 128 * 1_024;

/// How clients come in: by default as they are, and for everything.
#[derive(Debug, Clone, Default)]
pub struct Entrance {
    /// Who is let in.
    pub guard: Guard,
    /// What each connection begins with, if TLS is spoken; read anew for each.
    pub tls: Option<Arc<ArcSwap<ServerConfig>>>,
}

/// Serves the API on this listener until `stop` is cancelled: then new connections are refused,
/// idle ones closed, and running requests finished, for at most
/// [`HttpOptions::drain`](super::HttpOptions::drain). Returns when the last connection is gone.
/// [`LiveOptions`] can be changed meanwhile.
///
/// Cancel safety: dropping the future closes the listener and every connection at once.
///
/// # Errors
/// When the listener cannot be used. What goes wrong on a connection ends that connection only.
pub async fn serve(
    listener: TcpListener,
    api: Arc<dyn ClientApi>,
    options: impl Into<LiveOptions>,
    entrance: Entrance,
    stop: CancellationToken,
) -> io::Result<()> {
    let Entrance { guard, tls } = entrance;
    let live: LiveOptions = options.into();
    let options = *live.initial();
    let metrics = Arc::new(Metrics::default());
    let measured = Arc::clone(&metrics);
    let mut service = routes::measured_service::<Incoming>(api, live.clone(), guard, measured);
    let service = service_fn(move |request: Request<Incoming>| {
        if head_bytes(&request) > options.max_header_bytes {
            return future::Either::Left(ready(Ok(head_too_long())));
        }
        future::Either::Right(service.call(request))
    });
    let accepting = Arc::clone(&metrics);
    let handle = Handle::<SocketAddr>::new();
    let _closed_at_the_latest = CloseOnDrop(handle.clone());

    let mut server = axum_server::from_tcp(listener)?
        .acceptor(Limit::new(live, tls, metrics))
        .handle(handle.clone())
        .accept_error_handler(move |client, error| report_accept_error(&accepting, client, error))
        // The timeout below begins with the previous response, so it has to allow for idle
        // connections; this one keeps a new connection from sending its head drop by drop.
        .first_request_timeout(options.header_read_timeout)
        .http1_only();
    server
        .http_builder()
        .http1()
        .timer(ReusedTimers::default())
        .max_headers(options.max_headers)
        .max_buf_size(READ_BYTES.max(options.max_header_bytes))
        .header_read_timeout(options.keep_alive_timeout);

    let mut serving = pin!(
        server.serve(service_fn(move |_: SocketAddr| ready(Ok::<_, Infallible>(service.clone()))))
    );
    tokio::select! {
        ended = &mut serving => return ended,
        () = stop.cancelled() => handle.graceful_shutdown(Some(options.drain)),
    }
    serving.await
}

/// How long the head of a request was, but for what is left away without a change of its meaning.
fn head_bytes<B>(request: &Request<B>) -> usize {
    let uri = request.uri();
    let authority = uri.authority().map_or(0, |authority| authority.as_str().len());
    let target = uri.path_and_query().map_or(0, |target| target.as_str().len());
    let line = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 4;
    let lines: usize = request.headers().iter().map(line).sum();
    let first = request.method().as_str().len() + authority + target + "  HTTP/1.1\r\n".len();
    first + lines + "\r\n".len()
}

/// As what is read before a request answers a head that is still longer.
fn head_too_long() -> Response<Either<Whole, Body>> {
    let mut response = Response::new(Either::Left(Whole::from(Vec::new())));
    *response.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Without a client it is the listener that fails, twenty times a second for as long as there are
/// no file descriptors, say: every doubling of the count is reported. With a client it is a
/// connection above the limit, which has been counted, or one that was gone before it began, or did not
/// speak TLS.
fn report_accept_error(metrics: &Metrics, client: Option<&SocketAddr>, error: &io::Error) {
    if client.is_some() {
        return;
    }
    let failures = metrics.accept_failures.fetch_add(1, Ordering::Relaxed) + 1;
    if failures.is_power_of_two() {
        tracing::warn!(%error, failures, "clients' connections cannot be accepted");
    }
}

struct CloseOnDrop(Handle<SocketAddr>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.shutdown();
    }
}

#[cfg(test)]
mod tests {
    use super::super::HttpOptions;
    use super::*;
    use crate::domain::Key;
    use crate::ports::{Answer, MockClientApi, Phases, RequestOptions, Verdict};
    use std::future::Future;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio_util::task::TaskTracker;

    /// Longer than anything here takes; reached only by a bug.
    const PATIENCE: Duration = Duration::from_secs(20);

    const GET: &[u8] =
        b"POST /get HTTP/1.1\r\nhost: x\r\ncontent-length: 11\r\n\r\n{\"key\":\"k\"}";

    struct Running {
        addr: SocketAddr,
        stop: CancellationToken,
        ended: tokio::task::JoinHandle<io::Result<()>>,
    }

    fn start(api: Arc<dyn ClientApi>, options: HttpOptions) -> Running {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let ended = TaskTracker::new().spawn(serve(
            listener,
            api,
            options,
            Entrance::default(),
            stop.clone(),
        ));
        Running { addr, stop, ended }
    }

    fn absent() -> Answer {
        let verdict = Verdict::Success;
        Answer {
            verdict,
            value: None,
            timestamp: None,
            required: 1,
            achieved: 1,
            phases: Phases::default(),
        }
    }

    fn answering() -> Arc<dyn ClientApi> {
        let mut api = MockClientApi::new();
        api.expect_get().returning(|_, _| Ok(absent()));
        Arc::new(api)
    }

    async fn soon<T>(future: impl Future<Output = T>) -> T {
        tokio::time::timeout(PATIENCE, future).await.expect("this does not come to an end")
    }

    /// Reads one response with a JSON body, up to its closing brace.
    async fn response(stream: &mut TcpStream) -> String {
        let mut text = Vec::new();
        while !text.ends_with(b"\"}") {
            let read = soon(stream.read_buf(&mut text)).await.unwrap();
            assert_ne!(read, 0, "the connection ended: {}", String::from_utf8_lossy(&text));
        }
        String::from_utf8(text).unwrap()
    }

    /// Whether the other side ends the connection without another byte.
    async fn is_closed(stream: &mut TcpStream) -> bool {
        matches!(soon(stream.read(&mut [0; 64])).await, Ok(0) | Err(_))
    }

    #[tokio::test]
    async fn a_connection_serves_one_request_after_the_other() {
        let server = start(answering(), HttpOptions::default());
        let mut client = TcpStream::connect(server.addr).await.unwrap();
        for _ in 0..3 {
            client.write_all(GET).await.unwrap();
            let text = response(&mut client).await;
            assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
            assert!(text.contains("content-type: application/json\r\n"), "{text}");
        }
    }

    #[tokio::test]
    async fn idle_connections_do_not_hold_up_the_stop() {
        let drain = Duration::from_secs(600);
        let server = start(answering(), HttpOptions { drain, ..HttpOptions::default() });
        let mut used = TcpStream::connect(server.addr).await.unwrap();
        used.write_all(GET).await.unwrap();
        response(&mut used).await;
        let mut unused = TcpStream::connect(server.addr).await.unwrap();
        server.stop.cancel();
        soon(server.ended).await.unwrap().unwrap();
        assert!(is_closed(&mut used).await && is_closed(&mut unused).await);
        assert!(TcpStream::connect(server.addr).await.is_err());
    }

    /// A port whose `get` says when it was called, and answers when told to.
    struct Held {
        called: tokio::sync::Notify,
        go_on: tokio::sync::Notify,
    }

    #[async_trait::async_trait]
    impl ClientApi for Held {
        async fn get(
            &self,
            _: Key,
            _: RequestOptions,
        ) -> Result<Answer, crate::ports::ClientError> {
            self.called.notify_one();
            self.go_on.notified().await;
            Ok(absent())
        }

        async fn add(
            &self,
            _: Key,
            _: crate::domain::Value,
            _: RequestOptions,
        ) -> Result<Answer, crate::ports::ClientError> {
            Ok(absent())
        }

        async fn remove(
            &self,
            _: Key,
            _: RequestOptions,
        ) -> Result<Answer, crate::ports::ClientError> {
            Ok(absent())
        }

        fn nodes(&self) -> Vec<String> {
            Vec::new()
        }

        fn readiness(&self) -> Result<(), String> {
            Ok(())
        }

        fn cluster(&self) -> crate::ports::ClusterStatus {
            unreachable!("nobody asks")
        }

        fn stats(&self) -> crate::ports::NodeStats {
            crate::ports::NodeStats::default()
        }

        async fn forget(
            &self,
            _: crate::domain::NodeId,
        ) -> Result<crate::domain::Forgotten, crate::ports::ForgetError> {
            unreachable!("nobody asks")
        }

        async fn compact_log(&self) -> Result<crate::ports::Compacted, crate::ports::ClientError> {
            unreachable!("nobody asks")
        }

        async fn backup(
            &self,
        ) -> Result<Box<dyn crate::ports::BackupStream>, crate::ports::ClientError> {
            unreachable!("nobody asks")
        }

        fn stop_risks(&self) -> Vec<crate::domain::StopRisk> {
            unreachable!("nobody asks")
        }

        fn set_log_level(&self, _: crate::ports::LogLevel) -> Result<(), crate::ports::NoLogLevel> {
            unreachable!("nobody asks")
        }
    }

    fn held() -> Arc<Held> {
        Arc::new(Held { called: tokio::sync::Notify::new(), go_on: tokio::sync::Notify::new() })
    }

    #[tokio::test]
    async fn a_running_request_is_finished_before_the_stop() {
        let api = held();
        let server = start(Arc::<Held>::clone(&api), HttpOptions::default());
        let mut client = TcpStream::connect(server.addr).await.unwrap();
        client.write_all(GET).await.unwrap();
        soon(api.called.notified()).await;
        server.stop.cancel();
        api.go_on.notify_one();
        let text = response(&mut client).await;
        assert!(text.contains("connection: close\r\n"), "{text}");
        soon(server.ended).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_request_that_does_not_end_holds_up_the_stop_for_the_drain_time_only() {
        let api = held();
        let drain = Duration::from_millis(50);
        let options = HttpOptions { drain, ..HttpOptions::default() };
        let server = start(Arc::<Held>::clone(&api), options);
        let mut client = TcpStream::connect(server.addr).await.unwrap();
        client.write_all(GET).await.unwrap();
        soon(api.called.notified()).await;
        server.stop.cancel();
        soon(server.ended).await.unwrap().unwrap();
        assert!(is_closed(&mut client).await);
    }

    #[tokio::test]
    async fn a_client_that_is_slow_with_its_head_is_cut_off() {
        let header_read_timeout = Duration::from_millis(50);
        let options = HttpOptions { header_read_timeout, ..HttpOptions::default() };
        let server = start(answering(), options);
        let mut silent = TcpStream::connect(server.addr).await.unwrap();
        let mut slow = TcpStream::connect(server.addr).await.unwrap();
        slow.write_all(b"POST /get HTTP/1.1\r\nhost: x\r\n").await.unwrap();
        assert!(is_closed(&mut silent).await && is_closed(&mut slow).await);
    }

    #[tokio::test]
    async fn a_connection_that_stays_idle_is_closed_in_the_end() {
        let keep_alive_timeout = Duration::from_millis(50);
        let options = HttpOptions { keep_alive_timeout, ..HttpOptions::default() };
        let server = start(answering(), options);
        let mut client = TcpStream::connect(server.addr).await.unwrap();
        client.write_all(GET).await.unwrap();
        response(&mut client).await;
        assert!(is_closed(&mut client).await);
    }

    #[tokio::test]
    async fn a_client_that_is_slow_with_its_body_is_told_so() {
        let body_read_timeout = Duration::from_millis(50);
        let options = HttpOptions { body_read_timeout, ..HttpOptions::default() };
        let server = start(answering(), options);
        let mut client = TcpStream::connect(server.addr).await.unwrap();
        client.write_all(&GET[..GET.len() - 1]).await.unwrap();
        let text = response(&mut client).await;
        assert!(text.starts_with("HTTP/1.1 408"), "{text}");
        assert!(text.contains("request_timeout"), "{text}");
        assert!(is_closed(&mut client).await);
    }

    #[tokio::test]
    async fn a_connection_above_the_limit_is_closed_at_once() {
        let options = HttpOptions { max_connections: 1, ..HttpOptions::default() };
        let server = start(answering(), options);
        let mut first = TcpStream::connect(server.addr).await.unwrap();
        first.write_all(GET).await.unwrap();
        response(&mut first).await;
        let mut second = TcpStream::connect(server.addr).await.unwrap();
        assert!(is_closed(&mut second).await);
        first.write_all(GET).await.unwrap();
        response(&mut first).await;
    }

    /// A head of this many lines and bytes.
    fn head(lines: usize, bytes: usize) -> Vec<u8> {
        let mut head = b"POST /get HTTP/1.1\r\ncontent-length: 11\r\n".to_vec();
        (1..lines - 1).for_each(|_| head.extend(b"x: y\r\n"));
        head.extend(b"x: ");
        head.resize(bytes - 4, b'y');
        head.extend(b"\r\n\r\n");
        head
    }

    #[tokio::test]
    async fn a_head_has_as_many_lines_and_bytes_as_are_allowed_and_no_more() {
        let options = HttpOptions::default();
        let server = start(answering(), options);
        for (lines, bytes, status) in [
            (options.max_headers, 1_000, 200),
            (options.max_headers + 1, 1_000, 431),
            (10, options.max_header_bytes, 200),
            (10, options.max_header_bytes + 1, 431),
            (10, READ_BYTES + 16_384, 431),
        ] {
            let mut client = TcpStream::connect(server.addr).await.unwrap();
            client
                .write_all(&[&head(lines, bytes), &GET[GET.len() - 11..]].concat())
                .await
                .unwrap();
            let mut line = vec![0; 12];
            soon(client.read_exact(&mut line)).await.unwrap();
            let line = String::from_utf8(line).unwrap();
            assert_eq!(line, format!("HTTP/1.1 {status}"), "{lines} lines, {bytes} bytes");
        }
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_of_its_answer_is_cut_off() {
        let mut api = MockClientApi::new();
        let value = crate::domain::Value::new(&"v".repeat(16 << 20));
        api.expect_get()
            .returning(move |_, _| Ok(Answer { value: Some(value.clone()), ..absent() }));
        let write_timeout = Duration::from_millis(50);
        let options = HttpOptions { write_timeout, max_connections: 1, ..HttpOptions::default() };
        let server = start(Arc::new(api), options);
        // Or the kernel takes it all on its behalf.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        let mut slow = socket.connect(server.addr).await.unwrap();
        slow.write_all(GET).await.unwrap();
        // Its place is free when it is cut off, and who reads gets all of it.
        let taken = soon(async {
            loop {
                let mut eager = TcpStream::connect(server.addr).await.unwrap();
                let mut taken = Vec::new();
                eager.write_all(GET).await.ok();
                while !taken.ends_with(b"\"}")
                    && matches!(eager.read_buf(&mut taken).await, Ok(1..))
                {}
                if !taken.is_empty() {
                    break taken.len();
                }
            }
        })
        .await;
        assert!(taken > 16 << 20, "{taken} bytes");
        // What the kernel has taken still comes, and then the end.
        let mut taken = Vec::new();
        let ended = soon(slow.read_to_end(&mut taken)).await;
        assert!(taken.len() < 16 << 20, "{ended:?} after {} bytes", taken.len());
    }

    #[tokio::test]
    async fn bodies_that_are_waited_for_take_no_more_memory_than_is_allowed() {
        let options = HttpOptions { max_pending_bytes: 22, ..HttpOptions::default() };
        let server = start(answering(), options);
        let mut waiting = Vec::new();
        for _ in 0..2 {
            let mut client = TcpStream::connect(server.addr).await.unwrap();
            let head = "POST /get HTTP/1.1\r\ncontent-length: 11\r\nexpect: 100-continue\r\n\r\n";
            client.write_all(head.as_bytes()).await.unwrap();
            let mut interim = [0; 25];
            soon(client.read_exact(&mut interim)).await.unwrap();
            assert!(interim.starts_with(b"HTTP/1.1 100"));
            waiting.push(client);
        }
        let mut third = TcpStream::connect(server.addr).await.unwrap();
        third.write_all(&GET[..GET.len() - 1]).await.unwrap();
        let text = response(&mut third).await;
        assert!(text.starts_with("HTTP/1.1 503") && text.contains("overloaded"), "{text}");
        // A body that comes with its head waits for nothing.
        let mut whole = TcpStream::connect(server.addr).await.unwrap();
        whole.write_all(GET).await.unwrap();
        assert!(response(&mut whole).await.starts_with("HTTP/1.1 200"));
        for client in &mut waiting {
            client.write_all(&GET[GET.len() - 11..]).await.unwrap();
            assert!(response(client).await.starts_with("HTTP/1.1 200"));
        }
        let mut again = TcpStream::connect(server.addr).await.unwrap();
        again.write_all(&GET[..GET.len() - 1]).await.unwrap();
        again.write_all(&GET[GET.len() - 1..]).await.unwrap();
        assert!(response(&mut again).await.starts_with("HTTP/1.1 200"), "the room is given back");
    }

    #[tokio::test]
    async fn a_body_that_is_too_long_is_read_so_that_the_client_gets_the_answer() {
        let server = start(answering(), HttpOptions::default());
        let mut client = TcpStream::connect(server.addr).await.unwrap();
        let length = 5 * 1_024 * 1_024;
        let head = format!("POST /get HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        soon(client.write_all(&vec![b' '; length])).await.unwrap();
        let text = response(&mut client).await;
        assert!(text.starts_with("HTTP/1.1 413"), "{text}");
        client.write_all(GET).await.unwrap();
        assert!(response(&mut client).await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn a_dropped_server_leaves_nothing_behind() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let options = HttpOptions::default();
        let mut serving =
            Box::pin(serve(listener, answering(), options, Entrance::default(), stop));
        let mut client = TcpStream::connect(addr).await.unwrap();
        client.write_all(GET).await.unwrap();
        tokio::select! {
            _ = &mut serving => panic!("it ended"),
            _ = response(&mut client) => {}
        }
        drop(serving);
        assert!(is_closed(&mut client).await);
        assert!(TcpStream::connect(addr).await.is_err());
    }
}
