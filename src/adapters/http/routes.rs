//! The service: what each request is, and what is done between its head and its response.
//!
//! The three calls on data are nearly all requests. They take a short cut past the router, which
//! boxes and copies for each request (a tenth of what a read costs in all); everything else goes
//! through it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, Request as RequestOf, Response, header};
use axum::routing;
use bytes::Bytes;
use http_body_util::Either;
use hyper::body::Body as HttpBody;
use tokio::time::Instant;
use tower::{Service, ServiceExt};

use crate::domain::{Forgotten, TraceContext};
use crate::ports::{ClientApi, Consistency, OpKind, RequestOptions, Verdict};

use super::admission::{Places, Room};
use super::body::HeldBody;
use super::download::BACKUP_PATH;
use super::errors::{Code, Refusal};
use super::exporter::{CONTENT_TYPE, Exporter};
use super::fields::Write;
use super::guard::{Admitted, Guard};
use super::identity::{Identity, Ids};
use super::metrics::{Call, Metrics, Outcome};
use super::openapi::{self, OPENAPI_PATH};
use super::render::Whole;
use super::slow::{Findings, SlowLog};
use super::{HttpOptions, LiveOptions, body, fields, render};

type Result = std::result::Result<(Outcome, Response<Whole>), Refusal>;

/// The HTTP API of a node as a service, for programs that serve it in their own way. Limits on
/// connections, and what holds between requests, are theirs then; [`serve`](super::serve) has them.
pub fn service(
    api: Arc<dyn ClientApi>,
    options: HttpOptions,
) -> impl Service<Request, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
+ Clone
+ Send
+ 'static {
    let service = measured_service(api, options.into(), Guard::open(), Arc::default());
    service.map_response(|response: Response<_>| response.map(Body::new))
}

/// The same for requests with this type of body, counting here.
pub(super) fn measured_service<B>(
    api: Arc<dyn ClientApi>,
    options: LiveOptions,
    guard: Guard,
    metrics: Arc<Metrics>,
) -> impl Service<
    RequestOf<B>,
    Response = Response<Either<Whole, Body>>,
    Error = Infallible,
    Future: Send + 'static,
> + Clone
+ Send
+ 'static
where
    B: HttpBody<Data = Bytes, Error: Into<axum::BoxError>> + Send + Unpin + 'static,
{
    let exporter = Exporter::new(Arc::clone(&metrics), Arc::clone(&api));
    let (ids, slow_log) = (Ids::default(), SlowLog::default());
    let front = Arc::new(Front { api, options, guard, metrics, exporter, ids, slow_log });
    let shared = Arc::new((router(Arc::clone(&front)), front));
    tower::service_fn(move |request: RequestOf<B>| {
        let shared = Arc::clone(&shared);
        async move {
            let (router, front) = &*shared;
            if let Some(call) = call_on_data(&request) {
                return Ok(front.carry_out(call, request).await.map(Either::Left));
            }
            let mut identity = Identity::of(request.headers());
            identity.or_made_by(&front.ids);
            let response = match front.guard.admit(request.uri().path(), request.headers()) {
                // Boxed: the future of nearly all requests need not have room for it.
                Ok(_) => Box::pin(router.clone().oneshot(request.map(Body::new))).await,
                Err(refusal) => {
                    Ok(front.answer(Call::Other, async { Err(refusal) }).await.map(Body::new))
                }
            };
            response.map(|mut response| {
                tracing::debug!(
                    http_status = response.status().as_u16(),
                    request_id = identity.id(),
                    trace_id = identity.trace_id().as_deref(),
                    "request answered"
                );
                identity.sign(response.headers_mut());
                response.map(Either::Right)
            })
        }
    })
}

/// What the short cut leaves. The calls on data are here for their other methods, which are refused
/// with what is allowed.
fn router(front: Arc<Front>) -> Router {
    Router::new()
        .route("/get", routing::post(not_found))
        .route("/add", routing::post(not_found))
        .route("/remove", routing::delete(not_found))
        .route("/nodes", routing::get(nodes))
        .route("/healthz", routing::get(health))
        .route("/readyz", routing::get(readiness))
        .route("/cluster", routing::get(cluster))
        .route("/cluster/forget", routing::post(forget))
        .route("/cluster/safe-to-stop", routing::get(safe_to_stop))
        .route("/admin/compact", routing::post(compact_log))
        .route("/admin/log-level", routing::put(set_log_level))
        .route(BACKUP_PATH, routing::get(backup))
        .route("/metrics", routing::get(scrape))
        .route(OPENAPI_PATH, routing::get(description))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(front)
}

/// The call on data that this is.
fn call_on_data<B>(request: &RequestOf<B>) -> Option<OpKind> {
    let (call, method) = match request.uri().path() {
        "/get" => (OpKind::Get, Method::POST),
        "/add" => (OpKind::Add, Method::POST),
        "/remove" => (OpKind::Remove, Method::DELETE),
        _ => return None,
    };
    (*request.method() == method).then_some(call)
}

struct Front {
    api: Arc<dyn ClientApi>,
    options: LiveOptions,
    guard: Guard,
    metrics: Arc<Metrics>,
    exporter: Exporter,
    ids: Ids,
    slow_log: SlowLog,
}

impl Front {
    /// Reads the body, does what is asked, and counts how that ended. A request waits for its body
    /// outside the places of those that are worked on, or a few slow clients would take them all.
    async fn carry_out<B>(&self, call: OpKind, request: RequestOf<B>) -> Response<Whole>
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        let (started, mut found) = (Instant::now(), Findings::default());
        let mut identity = Identity::of(request.headers());
        let result = match self.guard.admit(request.uri().path(), request.headers()) {
            Ok(client) => match self.read(request, &mut found.body).await {
                // Its room is given back when it is answered.
                Ok((bytes, _room)) => {
                    let asking = (&client, identity.trace());
                    self.admitted(self.work(call, asking, bytes, &mut found)).await
                }
                Err(refusal) => Err(refusal),
            },
            Err(refusal) => Err(refusal),
        };
        let (outcome, took, mut response) = self.finish(call.into(), started, result);
        let is_slow =
            self.options.initial().slow_log_threshold.is_some_and(|threshold| took > threshold);
        if is_slow || outcome.code().is_some() {
            identity.or_made_by(&self.ids);
        }
        if is_slow {
            self.metrics.record_slow(call.into());
            self.slow_log.note((call.into(), outcome), (started, took), &identity, &found);
        }
        tracing::debug!(
            call = Call::from(call).as_str(),
            status = outcome.status(),
            code = outcome.code().map(Code::as_str),
            micros = took.as_micros(),
            request_id = identity.id(),
            trace_id = identity.trace_id().as_deref(),
            "request answered"
        );
        identity.sign(response.headers_mut());
        response
    }

    async fn work(
        &self,
        call: OpKind,
        (client, trace): (&Admitted, Option<TraceContext>),
        bytes: Bytes,
        found: &mut Findings,
    ) -> Result {
        let (answer, response) = match call {
            OpKind::Get => {
                let (key, options) = fields::parse_get(&bytes)?;
                client.check(&key)?;
                let answer = self.api.get(key.clone(), RequestOptions { trace, ..options }).await;
                let key = found.key.insert(key).as_str();
                let answer = answer?;
                let response = match options.consistency {
                    Consistency::Default => render::answer(Call::Get, key, &answer),
                    Consistency::Confirmed => render::confirmed(key, &answer),
                };
                (answer, response)
            }
            OpKind::Add => {
                let Write { key, value, options, is_plain } = fields::parse_write(&bytes)?;
                client.check(&key)?;
                // The value has its own copy now; the rest of the frame need not wait for the quorum.
                drop(bytes);
                let options = RequestOptions { trace, ..options };
                let answer = self.api.add(key.clone(), value, options).await;
                let key = found.key.insert(key).as_str();
                let answer = answer?;
                let response = render::written(key, &answer, is_plain);
                (answer, response)
            }
            OpKind::Remove => {
                let (key, options) = fields::parse_key(&bytes)?;
                client.check(&key)?;
                let options = RequestOptions { trace, ..options };
                let answer = self.api.remove(key.clone(), options).await;
                let key = found.key.insert(key).as_str();
                let answer = answer?;
                let response = render::answer(Call::Remove, key, &answer);
                (answer, response)
            }
        };
        found.phases = answer.phases;
        Ok((outcome(answer.verdict), response))
    }

    /// Runs `work` if there is room for it, and counts how it ended.
    async fn answer(&self, call: Call, work: impl Future<Output = Result>) -> Response<Whole> {
        let started = Instant::now();
        let result = self.admitted(work).await;
        self.finish(call, started, result).2
    }

    async fn forget(&self, request: Request) -> std::result::Result<Forgotten, Refusal> {
        let (bytes, _room) = self.body(request, &mut Duration::default()).await?;
        Ok(self.api.forget(fields::parse_id(&bytes)?).await?)
    }

    async fn set_log_level(&self, request: Request) -> std::result::Result<(), Refusal> {
        let (bytes, _room) = self.body(request, &mut Duration::default()).await?;
        let set = self.api.set_log_level(fields::parse_level(&bytes)?);
        set.map_err(|error| Refusal::new(Code::NotFound, error.to_string()))
    }

    async fn read<B>(
        &self,
        request: RequestOf<B>,
        waited: &mut Duration,
    ) -> std::result::Result<HeldBody<'_>, Refusal>
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        self.working().check()?;
        self.body(request, waited).await
    }

    async fn body<B>(
        &self,
        request: RequestOf<B>,
        waited: &mut Duration,
    ) -> std::result::Result<HeldBody<'_>, Refusal>
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        let room = Room::new(&self.metrics.pending_bytes, self.options.max_pending_bytes());
        body::read(request, &self.options, self.awaited(), room, waited).await
    }

    /// The work has not begun when it is handed in: what is shed does nothing.
    async fn admitted(&self, work: impl Future<Output = Result>) -> Result {
        let _place = self.working().take()?;
        work.await
    }

    fn working(&self) -> Places<'_> {
        Places::new(&self.metrics.in_flight, self.options.max_in_flight())
    }

    /// As many bodies may be waited for as requests are worked on.
    fn awaited(&self) -> Places<'_> {
        Places::new(&self.metrics.bodies_awaited, self.options.max_in_flight())
    }

    /// Counts a request.
    fn finish(
        &self,
        call: Call,
        started: Instant,
        result: Result,
    ) -> (Outcome, Duration, Response<Whole>) {
        let (outcome, response) = result
            .unwrap_or_else(|refusal| (Outcome::Refused(refusal.code), render::refusal(&refusal)));
        let took = started.elapsed();
        self.metrics.record(call, outcome, took);
        (outcome, took, response)
    }
}

async fn nodes(State(front): State<Arc<Front>>) -> Response<Whole> {
    let work = async { Ok((Outcome::Success, render::nodes(&front.api.nodes()))) };
    front.answer(Call::Nodes, work).await
}

// The operator's routes below pass by the cap: they are wanted most when the node is overloaded.

async fn health() -> Response<Whole> {
    render::fine("The process is running.")
}

async fn readiness(State(front): State<Arc<Front>>) -> Response<Whole> {
    match front.api.readiness() {
        Ok(()) => render::fine("The node is ready."),
        Err(reason) => render::refusal(&Refusal::new(Code::NotReady, reason)),
    }
}

async fn cluster(State(front): State<Arc<Front>>) -> Response<Whole> {
    render::cluster(&front.api.cluster())
}

async fn forget(State(front): State<Arc<Front>>, request: Request) -> Response<Whole> {
    match front.forget(request).await {
        Ok(Forgotten::Now(_)) => render::fine("The member is forgotten."),
        Ok(Forgotten::Before) => render::fine("The member had left or was forgotten before."),
        Err(refusal) => render::refusal(&refusal),
    }
}

async fn compact_log(State(front): State<Arc<Front>>) -> Response<Whole> {
    match front.api.compact_log().await {
        Ok(compacted) => render::compacted(&compacted),
        Err(error) => render::refusal(&error.into()),
    }
}

async fn set_log_level(State(front): State<Arc<Front>>, request: Request) -> Response<Whole> {
    match front.set_log_level(request).await {
        Ok(()) => render::fine("The log level is changed."),
        Err(refusal) => render::refusal(&refusal),
    }
}

async fn backup(State(front): State<Arc<Front>>) -> Response<Body> {
    match front.api.backup().await {
        Ok(stream) => render::backup(stream),
        Err(error) => render::refusal(&error.into()).map(Body::new),
    }
}

async fn safe_to_stop(State(front): State<Arc<Front>>) -> Response<Whole> {
    render::stop_risks(&front.api.stop_risks())
}

async fn scrape(State(front): State<Arc<Front>>) -> Response<Whole> {
    let mut response = Response::new(Whole::from(front.exporter.render()));
    let content_type = HeaderValue::from_static(CONTENT_TYPE);
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

async fn description() -> Response<Whole> {
    render::document(openapi::document())
}

async fn not_found(State(front): State<Arc<Front>>) -> Response<Whole> {
    front.answer(Call::Other, async { Err(Refusal::nowhere()) }).await
}

/// The router adds the `Allow` header.
async fn method_not_allowed(State(front): State<Arc<Front>>) -> Response<Whole> {
    let message = "this path does not take this method; the calls are POST /get, POST /add, \
                   DELETE /remove and GET /nodes";
    front.answer(Call::Other, async { Err(Refusal::new(Code::MethodNotAllowed, message)) }).await
}

const fn outcome(verdict: Verdict) -> Outcome {
    match verdict {
        Verdict::Success => Outcome::Success,
        Verdict::Partial => Outcome::Partial,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        CannotForget, Digest, Member, MemberState, MemoryLimit, NodeId, Phase, QuorumSpec,
        StopRisk, Timestamp, Value,
    };
    use crate::ports::{
        Answer, ClientError, ClusterStatus, ComparisonStats, ForgetError, LogError, LogLevel,
        LogStats, MemberStatus, MockBackupStream, MockClientApi, NoLogLevel, NodeStats, NodeStatus,
        PeerStats, Phases, ReloadStats, RequestOptions, StoreStats, SyncTimes,
    };
    use axum::http::{Method, StatusCode};
    use http_body_util::BodyExt;
    use proptest::prelude::*;
    use tower::util::BoxCloneSyncService;

    const TIMESTAMP: u64 = 1_700_000_000_123_456_789;
    const SHOWN: &str = "2023-11-14T22:13:20.123456789Z";

    fn found(value: Option<&str>) -> Answer {
        Answer {
            verdict: Verdict::Success,
            value: value.map(Value::new),
            timestamp: value.map(|_| Timestamp::from_nanos(TIMESTAMP)),
            required: 2,
            achieved: 3,
            phases: Phases::default(),
        }
    }

    type App = BoxCloneSyncService<Request, Response<Either<Whole, Body>>, Infallible>;

    fn app(api: MockClientApi) -> App {
        app_with(api, HttpOptions::default())
    }

    fn app_with(api: MockClientApi, options: HttpOptions) -> App {
        let (api, options) = (Arc::new(api), options.into());
        BoxCloneSyncService::new(measured_service(api, options, Guard::open(), Arc::default()))
    }

    fn request(method: Method, path: &str, body: impl Into<Body>) -> Request {
        axum::http::Request::builder().method(method).uri(path).body(body.into()).unwrap()
    }

    async fn send(app: &App, request: Request) -> (Response<()>, String) {
        let (head, body) = app.clone().oneshot(request).await.unwrap().into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        (Response::from_parts(head, ()), String::from_utf8(bytes.to_vec()).unwrap())
    }

    async fn post(app: &App, path: &str, body: &'static str) -> (u16, String) {
        let method = if path == "/remove" { Method::DELETE } else { Method::POST };
        let (head, text) = send(app, request(method, path, body)).await;
        assert_eq!(head.headers()[header::CONTENT_TYPE], "application/json");
        (head.status().as_u16(), text)
    }

    async fn get_from(app: &App, path: &str) -> (u16, String) {
        let (head, text) = send(app, request(Method::GET, path, Body::empty())).await;
        (head.status().as_u16(), text)
    }

    /// A backup of these pieces, which then ends so.
    fn backup_of(
        pieces: &'static [&'static str],
        end: std::result::Result<(), LogError>,
    ) -> MockClientApi {
        let mut stream = MockBackupStream::new();
        let mut left = pieces.iter().copied();
        stream.expect_expected_bytes().return_const(7_u64);
        stream.expect_next().returning(move || match left.next() {
            Some(piece) => Ok(Some(Bytes::from_static(piece.as_bytes()))),
            None => end.clone().map(|()| None),
        });
        let mut api = MockClientApi::new();
        api.expect_backup().return_once(move || Ok(Box::new(stream)));
        api
    }

    #[tokio::test]
    async fn a_backup_is_its_pieces_and_how_long_they_are_about() {
        let app = app(backup_of(&["abc", "de"], Ok(())));
        let (head, body) = send(&app, request(Method::GET, "/admin/backup", Body::empty())).await;
        assert_eq!((head.status(), body.as_str()), (StatusCode::OK, "abcde"));
        assert_eq!(head.headers()["content-type"], "application/octet-stream");
        assert_eq!(head.headers()["lally-expected-bytes"], "7");
    }

    #[tokio::test]
    async fn a_backup_that_fails_in_the_middle_has_no_end() {
        let app = app(backup_of(&["abc"], Err(LogError::Closed)));
        let request = request(Method::GET, "/admin/backup", Body::empty());
        let (_, body) = app.oneshot(request).await.unwrap().into_parts();
        assert!(body.collect().await.is_err());
    }

    #[tokio::test]
    async fn the_log_level_is_set_by_its_name() {
        let mut api = MockClientApi::new();
        api.expect_set_log_level().withf(|level| *level == LogLevel::Debug).return_once(|_| Ok(()));
        api.expect_set_log_level().return_once(|_| Err(NoLogLevel));
        let app = app(api);
        for (body, status, says) in [
            (r#"{"level":"debug"}"#, 200, "The log level is changed."),
            (r#"{"level":"warn"}"#, 404, "not set by calls"),
            (r#"{"level":"loud"}"#, 400, r#"\"debug\" or \"trace\""#),
            (r#"{"level":"info,hyper=trace"}"#, 400, "no log level"),
            ("{}", 400, "missing field"),
            ("", 400, "empty"),
        ] {
            let request = request(Method::PUT, "/admin/log-level", body);
            let (head, text) = send(&app, request).await;
            assert_eq!(head.status().as_u16(), status, "{text}");
            assert!(text.contains(says), "{text}");
        }
    }

    #[tokio::test]
    async fn a_backup_that_is_refused_says_why() {
        for (error, status, code) in [
            (ClientError::Overloaded("busy"), 503, "overloaded"),
            (ClientError::NoBackups, 404, "not_found"),
        ] {
            let mut api = MockClientApi::new();
            api.expect_backup().return_once(move || Err(error));
            let (found, body) = get_from(&app(api), "/admin/backup").await;
            assert_eq!(found, status);
            assert!(body.contains(code), "{body}");
        }
    }

    #[tokio::test]
    async fn get_answers_with_the_value_and_its_version() {
        let mut api = MockClientApi::new();
        api.expect_get().return_once(|_, _| Ok(found(Some("v"))));
        let (status, body) = post(&app(api), "/get", r#"{"key":"k"}"#).await;
        assert_eq!(status, 200);
        assert_eq!(
            body,
            format!(
                r#"{{"status":"success","key":"k","value":"v","timestamp":"{SHOWN}","quorum":{{"required":2,"achieved":3}},"message":"Operation completed successfully."}}"#
            )
        );
    }

    #[tokio::test]
    async fn the_service_for_embedders_answers_as_the_server_does() {
        let mut api = MockClientApi::new();
        api.expect_get().return_once(|_, _| Ok(found(None)));
        let service = service(Arc::new(api), HttpOptions::default());
        let response = service.oneshot(request(Method::POST, "/get", r#"{"key":"k"}"#)).await;
        let (head, body) = response.unwrap().into_parts();
        assert_eq!(head.status, StatusCode::OK);
        let text = body.collect().await.unwrap().to_bytes();
        assert!(text.starts_with(br#"{"status":"success","key":"k","value":null"#), "{text:?}");
    }

    #[tokio::test]
    async fn an_absent_key_is_a_success_without_value_and_timestamp() {
        let mut api = MockClientApi::new();
        api.expect_get().return_once(|_, _| Ok(found(None)));
        api.expect_remove().return_once(|_, _| Ok(found(None)));
        let app = app(api);
        for path in ["/get", "/remove"] {
            let (status, body) = post(&app, path, r#"{"key":"k"}"#).await;
            assert_eq!(status, 200);
            assert_eq!(
                body,
                r#"{"status":"success","key":"k","value":null,"timestamp":null,"quorum":{"required":2,"achieved":3},"message":"The key does not exist."}"#
            );
        }
    }

    #[tokio::test]
    async fn add_answers_with_what_was_written() {
        let mut api = MockClientApi::new();
        api.expect_add()
            .withf(|key, value, options| {
                key.as_str() == "a b"
                    && value.as_str() == "\"\n"
                    && *options == RequestOptions::default()
            })
            .return_once(|_, value, _| Ok(found(Some(value.as_str()))));
        let (status, body) = post(&app(api), "/add", r#"{"key":"a b","value":"\"\n"}"#).await;
        assert_eq!(status, 200);
        assert_eq!(
            body,
            format!(
                r#"{{"status":"success","key":"a b","value":"\"\n","timestamp":"{SHOWN}","quorum":{{"required":2,"achieved":3}},"message":"Operation completed successfully."}}"#
            )
        );
    }

    #[tokio::test]
    async fn remove_answers_with_what_was_removed() {
        let mut api = MockClientApi::new();
        api.expect_remove().return_once(|_, _| Ok(found(Some("old"))));
        let (status, body) = post(&app(api), "/remove", r#"{"key":"k"}"#).await;
        assert_eq!(status, 200);
        assert!(
            body.starts_with(r#"{"status":"success","key":"k","value":"old","timestamp":"2023"#)
        );
        assert!(body.ends_with(r#""message":"Key successfully removed."}"#), "{body}");
    }

    #[tokio::test]
    async fn a_missed_quorum_is_partial_and_says_that_it_may_have_happened() {
        let mut api = MockClientApi::new();
        api.expect_add().return_once(|_, _, _| {
            Ok(Answer { verdict: Verdict::Partial, achieved: 1, ..found(Some("v")) })
        });
        let (status, body) = post(&app(api), "/add", r#"{"key":"k","value":"v"}"#).await;
        assert_eq!(status, 200);
        assert!(body.starts_with(r#"{"status":"partial","key":"k","value":"v""#), "{body}");
        assert!(body.contains(r#""quorum":{"required":2,"achieved":1}"#), "{body}");
        assert!(body.contains("1 of the 2") && body.contains("may have happened"), "{body}");
    }

    #[tokio::test]
    async fn options_of_a_request_reach_the_port() {
        let mut api = MockClientApi::new();
        let expected = RequestOptions {
            quorum: Some(QuorumSpec::Majority),
            timeout: Some(Duration::from_millis(150)),
            consistency: Consistency::Confirmed,
            trace: TraceContext::parse(TRACEPARENT),
        };
        api.expect_get()
            .withf(move |_, options| *options == expected)
            .return_once(|_, _| Ok(found(None)));
        let body = r#"{"key":"k","quorum":"majority","timeout_ms":150,"consistency":"confirmed"}"#;
        let mut request = request(Method::POST, "/get", body);
        request.headers_mut().insert("traceparent", TRACEPARENT.parse().unwrap());
        assert_eq!(send(&app(api), request).await.0.status(), 200);
    }

    #[tokio::test]
    async fn errors_of_the_port_become_statuses_and_codes() {
        let cases = [
            (ClientError::NotReady("joining".into()), 503, "not_ready"),
            (ClientError::Overloaded("the log is behind"), 503, "overloaded"),
            (ClientError::ShuttingDown, 503, "shutting_down"),
            (ClientError::TooLarge { bytes: 2, max_bytes: 1 }, 413, "too_large"),
            (ClientError::DiskFull, 507, "disk_full"),
            (ClientError::MemoryFull { max_memory: 1 << 30 }, 507, "memory_full"),
            (ClientError::Vetoed { hook: "h", reason: "no".into() }, 403, "vetoed"),
        ];
        for (error, status, code) in cases {
            let message = error.to_string();
            let mut api = MockClientApi::new();
            api.expect_add().return_once(|_, _, _| Err(error));
            let body = r#"{"key":"k","value":"v"}"#;
            let (head, text) = send(&app(api), request(Method::POST, "/add", body)).await;
            assert_eq!(head.status().as_u16(), status);
            let expected = format!(r#"{{"status":"error","code":"{code}","message":"{message}"}}"#);
            assert_eq!(text, expected);
            let retry = head.headers().get(header::RETRY_AFTER).map(|v| v.to_str().unwrap());
            assert_eq!(retry, (status == 503).then_some("1"));
        }
    }

    #[tokio::test]
    async fn an_unknown_path_is_not_found() {
        let app = app(MockClientApi::new());
        for path in ["/", "/gets", "/get/", "/get/k"] {
            let (status, body) = get_from(&app, path).await;
            assert_eq!(status, 404, "{path}");
            assert!(body.starts_with(r#"{"status":"error","code":"not_found","message":""#));
        }
    }

    #[tokio::test]
    async fn a_wrong_method_is_told_the_right_one() {
        let app = app(MockClientApi::new());
        for (method, path, allow) in [
            (Method::GET, "/get", "POST"),
            (Method::PUT, "/add", "POST"),
            (Method::POST, "/remove", "DELETE"),
            (Method::POST, "/nodes", "GET,HEAD"),
        ] {
            let (head, body) = send(&app, request(method, path, "{}")).await;
            assert_eq!(head.status(), StatusCode::METHOD_NOT_ALLOWED);
            assert_eq!(head.headers()[header::ALLOW], allow);
            assert!(
                body.starts_with(r#"{"status":"error","code":"method_not_allowed","message":""#)
            );
        }
    }

    #[tokio::test]
    async fn a_body_that_is_not_said_to_be_json_is_refused() {
        let app = app(MockClientApi::new());
        let mut request = request(Method::POST, "/get", r#"{"key":"k"}"#);
        let plain = HeaderValue::from_static("text/plain");
        request.headers_mut().insert(header::CONTENT_TYPE, plain);
        let (head, body) = send(&app, request).await;
        assert_eq!(head.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert!(body.starts_with(r#"{"status":"error","code":"unsupported_media_type","#));
    }

    #[tokio::test]
    async fn a_bad_body_is_refused_on_every_call_that_takes_one() {
        let app = app(MockClientApi::new());
        for path in ["/get", "/add", "/remove"] {
            for body in ["", "{", "[]", "{}", r#"{"key":""}"#, r#"{"key":"k","x":1}"#] {
                let (status, text) = post(&app, path, body).await;
                assert_eq!(status, 400, "{path} {body}");
                assert!(text.starts_with(r#"{"status":"error","code":"bad_request","message":""#));
            }
        }
        assert_eq!(post(&app, "/get", r#"{"key":"k","value":"v"}"#).await.0, 400);
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_too_large() {
        let options = HttpOptions { max_body_bytes: 10, ..HttpOptions::default() };
        let app = app_with(MockClientApi::new(), options);
        let (status, body) = post(&app, "/get", r#"{"key":"kkkkk"}"#).await;
        assert_eq!(status, 413);
        assert!(body.starts_with(r#"{"status":"error","code":"too_large","message":""#));
        assert!(body.contains("max_body_bytes"));
    }

    #[tokio::test]
    async fn what_is_above_the_cap_is_shed_before_its_body_is_read() {
        let options = HttpOptions { max_in_flight: 0, ..HttpOptions::default() };
        let app = app_with(MockClientApi::new(), options);
        let never = futures_util::stream::pending::<std::result::Result<&[u8], std::io::Error>>();
        let never = Body::from_stream(never);
        let (head, body) = send(&app, request(Method::POST, "/add", never)).await;
        assert_eq!(head.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(head.headers()[header::RETRY_AFTER], "1");
        assert!(body.starts_with(r#"{"status":"error","code":"overloaded","message":""#));
        assert_eq!(get_from(&app, "/healthz").await.0, 200);
    }

    #[tokio::test]
    async fn a_request_makes_room_when_it_ends() {
        let options = HttpOptions { max_in_flight: 1, ..HttpOptions::default() };
        let mut api = MockClientApi::new();
        api.expect_get().times(3).returning(|_, _| Ok(found(None)));
        let app = app_with(api, options);
        for _ in 0..3 {
            assert_eq!(post(&app, "/get", r#"{"key":"k"}"#).await.0, 200);
        }
    }

    async fn id_of(
        app: &App,
        path: &str,
        body: &'static str,
        given: Option<&str>,
    ) -> Option<String> {
        let method = if path == "/get" { Method::POST } else { Method::GET };
        let mut request = request(method, path, body);
        if let Some(given) = given {
            request.headers_mut().insert("x-request-id", given.parse().unwrap());
        }
        let (head, _) = send(app, request).await;
        head.headers().get("x-request-id").map(|id| id.to_str().unwrap().to_owned())
    }

    #[tokio::test]
    async fn the_id_of_a_request_comes_back_and_who_has_none_gets_one_where_it_may_be_wanted() {
        let mut api = MockClientApi::new();
        api.expect_get().returning(|_, _| Ok(found(None)));
        let app = app(api);
        for (path, body) in
            [("/get", r#"{"key":"k"}"#), ("/get", "{}"), ("/healthz", ""), ("/x", "")]
        {
            let (kept, made) = (
                id_of(&app, path, body, Some("mine-1")).await,
                id_of(&app, path, body, None).await,
            );
            assert_eq!(kept.as_deref(), Some("mine-1"), "{path} {body}");
            let goes_well = path == "/get" && body != "{}";
            assert_eq!(made.map(|id| id.len()), (!goes_well).then_some(16), "{path} {body}");
            let replaced = id_of(&app, path, body, Some("not one")).await;
            assert_eq!(replaced.is_none(), goes_well, "{path} {body}");
        }
    }

    /// What is logged while this is carried out.
    async fn logged(work: impl Future<Output = ()>) -> String {
        #[derive(Clone, Default)]
        struct Lines(Arc<std::sync::Mutex<Vec<u8>>>);
        impl std::io::Write for Lines {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        let guard = tracing::subscriber::set_default(subscriber);
        work.await;
        drop(guard);
        String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
    }

    const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[tokio::test(start_paused = true)]
    async fn a_slow_request_is_logged_with_what_it_waited_for_and_without_its_key_and_value() {
        let mut api = MockClientApi::new();
        api.expect_add().returning(|_, value, _| {
            let peers = Duration::from_millis(700);
            Ok(Answer {
                phases: Phases { peers, log: peers / 2, ..Phases::default() },
                ..found(Some(value.as_str()))
            })
        });
        let metrics = Arc::<Metrics>::default();
        let app = BoxCloneSyncService::new(measured_service(
            Arc::new(api),
            HttpOptions::default().into(),
            Guard::open(),
            Arc::clone(&metrics),
        ));
        let late = |ms| async move {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            Ok::<_, Infallible>(r#"{"key":"secret-key","value":"secret-value"}"#)
        };
        let log = logged(async {
            for ms in [249, 300] {
                let body = Body::from_stream(futures_util::stream::once(late(ms)));
                let mut request = request(Method::POST, "/add", body);
                request.headers_mut().insert("x-request-id", "r-1".parse().unwrap());
                request.headers_mut().insert("traceparent", TRACEPARENT.parse().unwrap());
                assert_eq!(send(&app, request).await.0.status(), StatusCode::OK);
            }
        })
        .await;
        let slow: Vec<_> = log.lines().filter(|line| line.contains("slow request")).collect();
        assert_eq!(slow.len(), 1, "{log}");
        for part in [
            " WARN ",
            r#"call="add" status="success""#,
            "key_bytes=10 key_hash=\"",
            "total_ms=300 body_ms=300 hooks_ms=0 log_ms=350 peers_ms=700 here_ms=0",
            r#"request_id="r-1" trace_id="4bf92f3577b34da6a3ce929d0e0e4736" suppressed=0"#,
        ] {
            assert!(slow[0].contains(part), "{part}: {}", slow[0]);
        }
        assert!(!log.contains("secret"), "{log}");
        assert_eq!(
            metrics.calls[Call::Add as usize].slow.load(std::sync::atomic::Ordering::Relaxed),
            1
        );
    }

    #[tokio::test]
    async fn a_refusal_is_logged_with_its_code_its_id_and_its_trace() {
        let app = app(MockClientApi::new());
        let log = logged(async {
            let mut request = request(Method::POST, "/get", "{\"secret\":1}");
            request.headers_mut().insert("traceparent", TRACEPARENT.parse().unwrap());
            let (head, _) = send(&app, request).await;
            assert_eq!(head.headers()["x-request-id"].len(), 16);
        })
        .await;
        let line = log.lines().find(|line| line.contains("bad_request")).unwrap();
        assert!(line.contains("request_id=\"") && line.contains("trace_id=\"4bf92f"), "{line}");
        assert!(!log.contains("secret"), "{log}");
    }

    #[tokio::test]
    async fn nodes_lists_the_addresses() {
        let mut api = MockClientApi::new();
        api.expect_nodes().return_once(|| vec!["10.0.0.2:50071".into(), "b:1".into()]);
        let (status, body) = get_from(&app(api), "/nodes").await;
        assert_eq!(status, 200);
        assert_eq!(body, r#"{"status":"success","nodes":["10.0.0.2:50071","b:1"]}"#);
    }

    #[tokio::test]
    async fn no_other_nodes_are_an_empty_list() {
        let mut api = MockClientApi::new();
        api.expect_nodes().return_once(Vec::new);
        assert_eq!(get_from(&app(api), "/nodes").await.1, r#"{"status":"success","nodes":[]}"#);
    }

    #[tokio::test]
    async fn readiness_gives_the_reason_why_not() {
        let mut api = MockClientApi::new();
        api.expect_readiness().times(1).return_once(|| Ok(()));
        assert_eq!(
            get_from(&app(api), "/readyz").await,
            (200, r#"{"status":"success","message":"The node is ready."}"#.to_owned())
        );
        let mut api = MockClientApi::new();
        api.expect_readiness().return_once(|| Err("joining: 3 of 9 chunks".into()));
        let ready = request(Method::GET, "/readyz", Body::empty());
        let (head, body) = send(&app(api), ready).await;
        assert_eq!(head.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(head.headers()[header::RETRY_AFTER], "1");
        assert_eq!(
            body,
            r#"{"status":"error","code":"not_ready","message":"joining: 3 of 9 chunks"}"#
        );
    }

    fn member(id: u64) -> Member {
        Member {
            id: NodeId::new(id),
            generation: 1,
            phase: Phase::Whole,
            grpc_addr: format!("10.0.0.{id}:50071"),
            http_addr: format!("10.0.0.{id}:3000"),
        }
    }

    fn two_nodes() -> ClusterStatus {
        let state = MemberState::Suspect;
        ClusterStatus {
            cluster: "lally".into(),
            node: NodeStatus {
                member: member(1),
                state: MemberState::Alive,
                version: "1.2.3".into(),
            },
            members: vec![MemberStatus {
                member: member(2),
                state,
                hints: 7,
                in_sync: false,
                clock_offset_ms: Some(-1_500),
                clock_refusals: 4,
                lag: Some(Duration::from_millis(9_500)),
                last_heard: Some(Duration::from_millis(700)),
                version: None,
                calls: PeerStats { failures: [0, 3, 0, 0, 0], queued: 2, ..PeerStats::default() },
            }],
            store: StoreStats { keys: 10, tombstones: 2, payload_bytes: 300, memory_bytes: 2_000 },
            digest: Digest::default(),
            horizon: Some(Timestamp::from_nanos(1_500_000_000)),
        }
    }

    #[tokio::test]
    async fn cluster_shows_this_node_the_others_and_the_digest() {
        let mut api = MockClientApi::new();
        api.expect_cluster().return_once(two_nodes);
        let (status, body) = get_from(&app(api), "/cluster").await;
        assert_eq!(status, 200);
        assert_eq!(
            body,
            concat!(
                r#"{"status":"success","cluster":"lally","#,
                r#""node":{"id":"0000000000000001","grpc_addr":"10.0.0.1:50071","#,
                r#""http_addr":"10.0.0.1:3000","state":"alive","version":"1.2.3"},"#,
                r#""members":[{"id":"0000000000000002","grpc_addr":"10.0.0.2:50071","#,
                r#""http_addr":"10.0.0.2:3000","state":"suspect","hints":7,"in_sync":false,"clock_offset_ms":-1500,"#,
                r#""last_heard_ms":700,"lag_ms":9500,"version":null}],"#,
                r#""keys":10,"tombstones":2,"digest":"0000000000000000","#,
                r#""horizon":"1970-01-01T00:00:01.500000000Z"}"#
            )
        );
    }

    #[tokio::test]
    async fn a_member_is_forgotten_or_it_is_said_why_not() {
        let id = NodeId::new(2);
        let cases = [
            (Ok(Forgotten::Now(member(2))), 200, "is forgotten"),
            (Ok(Forgotten::Before), 200, "forgotten before"),
            (Err(CannotForget::Unknown(id).into()), 404, r#""not_found","message":"no member"#),
            (
                Err(CannotForget::ThisNode(id).into()),
                409,
                r#""conflict","message":"0000000000000002 is the"#,
            ),
            (
                Err(CannotForget::NotDown(id).into()),
                409,
                r#""conflict","message":"the member 0000"#,
            ),
            (Err(ClientError::ShuttingDown.into()), 503, r#""shutting_down""#),
        ];
        for (outcome, status, says) in cases {
            let mut api = MockClientApi::new();
            let outcome: std::result::Result<_, ForgetError> = outcome;
            api.expect_forget().withf(move |of| *of == id).return_once(|_| outcome);
            let body = r#"{"id":"0000000000000002"}"#;
            let (got, text) = post(&app(api), "/cluster/forget", body).await;
            assert_eq!(got, status, "{text}");
            assert!(text.contains(says), "{text}");
        }
        let (status, text) = post(&app(MockClientApi::new()), "/cluster/forget", "{}").await;
        assert!(status == 400 && text.contains("16 hexadecimal digits"), "{text}");
    }

    #[tokio::test]
    async fn whether_a_stop_is_safe_is_answered_with_reasons() {
        let mut api = MockClientApi::new();
        api.expect_stop_risks().times(1).return_once(Vec::new);
        let safe = r#"{"status":"success","safe":true,"reasons":[]}"#;
        assert_eq!(get_from(&app(api), "/cluster/safe-to-stop").await, (200, safe.to_owned()));
        let mut api = MockClientApi::new();
        api.expect_stop_risks().return_once(|| vec![StopRisk::Alone, StopRisk::LastCopy]);
        let (status, text) = get_from(&app(api), "/cluster/safe-to-stop").await;
        let (alone, last) = (StopRisk::Alone, StopRisk::LastCopy);
        let unsafe_now =
            format!(r#"{{"status":"success","safe":false,"reasons":["{alone}","{last}"]}}"#);
        assert_eq!((status, text), (200, unsafe_now));
    }

    #[tokio::test]
    async fn metrics_show_requests_members_and_the_node() {
        let mut api = MockClientApi::new();
        api.expect_get().return_once(|_, _| Ok(found(None)));
        api.expect_cluster().returning(two_nodes);
        api.expect_readiness().returning(|| Ok(()));
        let total = Duration::from_millis(2_500);
        let syncs = SyncTimes { counts: [0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 1], total };
        api.expect_stats().returning(move || NodeStats {
            store: two_nodes().store,
            memory_limit: MemoryLimit::bytes(9_000),
            log: LogStats {
                bytes: 4_096,
                appended: 12,
                syncs,
                writes: SyncTimes { counts: [8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], total },
                queued_bytes: 17,
                unforced_for: Some(Duration::from_millis(1_500)),
            },
            read_repairs: 5,
            quarantined: 6,
            digest_drift: 2,
            reloads: ReloadStats { applied: 3, refused: 1 },
            horizon_age: Some(Duration::from_millis(86_400_900)),
            comparison: ComparisonStats { rounds: 9, bytes_pushed: 77, ..Default::default() },
            ..NodeStats::default()
        });
        let app = app(api);
        post(&app, "/get", r#"{"key":"k"}"#).await;
        post(&app, "/get", "{}").await;
        get_from(&app, "/nothing").await;
        let (head, text) = send(&app, request(Method::GET, "/metrics", Body::empty())).await;
        assert_eq!(head.headers()[header::CONTENT_TYPE], CONTENT_TYPE);
        for line in [
            r#"lally_requests_total{call="get",status="success"} 1"#,
            r#"lally_requests_total{call="get",status="error",code="bad_request"} 1"#,
            r#"lally_requests_total{call="other",status="error",code="not_found"} 1"#,
            r#"lally_requests_total{call="add",status="success"} 0"#,
            r#"lally_request_duration_seconds_count{call="get"} 2"#,
            r#"lally_request_duration_seconds_bucket{le="+Inf",call="get"} 2"#,
            r#"lally_members{state="suspect"} 1"#,
            r#"lally_members{state="alive"} 0"#,
            "lally_hints_pending 7",
            "lally_entries_quarantined_total 6",
            "lally_horizon_age_seconds 86400",
            r#"lally_member_hints{member="0000000000000002"} 7"#,
            r#"lally_clock_offset_seconds{member="0000000000000002"} -1.5"#,
            r#"lally_clock_refusals_total{peer="0000000000000002"} 4"#,
            "lally_comparison_rounds_total 9",
            "lally_digest_drift_total 2",
            r#"lally_reloads_total{result="ok"} 3"#,
            r#"lally_reloads_total{result="failed"} 1"#,
            "lally_comparison_bytes_pushed_total 77",
            "lally_keys 10",
            "lally_tombstones 2",
            "lally_payload_bytes 300",
            "lally_memory_bytes 2000",
            "lally_memory_limit_bytes 9000",
            "lally_log_bytes 4096",
            "lally_log_appended_records_total 12",
            "lally_log_sync_duration_seconds_count 3",
            "lally_log_sync_duration_seconds_sum 2.5",
            r#"lally_log_sync_duration_seconds_bucket{le="0.005"} 1"#,
            r#"lally_log_sync_duration_seconds_bucket{le="10.0"} 2"#,
            r#"lally_log_sync_duration_seconds_bucket{le="+Inf"} 3"#,
            "lally_log_unforced_seconds 1.5",
            "lally_log_write_duration_seconds_count 9",
            "lally_log_queue_bytes 17",
            r#"lally_member_in_sync{member="0000000000000002"} 0.0"#,
            r#"lally_member_lag_seconds{member="0000000000000002"} 9.5"#,
            r#"lally_member_last_heard_seconds{member="0000000000000002"} 0.7"#,
            r#"lally_peer_call_failures_total{member="0000000000000002",reason="timed_out"} 3"#,
            r#"lally_peer_calls_queued{member="0000000000000002"} 2"#,
            concat!(r#"lally_build_info{version=""#, env!("CARGO_PKG_VERSION"), r#""} 1"#),
            r#"lally_slow_requests_total{call="get"} 0"#,
            "lally_read_repairs_total 5",
            "lally_drift_refusals_total 0",
            "lally_ready 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 128, ..ProptestConfig::default() })]

        #[test]
        fn any_body_gets_an_answer_or_a_refusal(
            raw in proptest::collection::vec(any::<u8>(), 0..64),
            json in r#"\{"key":"[a-z\\"]{0,3}"(,"(value|quorum|x)":("v"|1|null|\[\]))?\}"#,
        ) {
            let mut api = MockClientApi::new();
            api.expect_get().returning(|_, _| Ok(found(None)));
            api.expect_add().returning(|_, value, _| Ok(found(Some(value.as_str()))));
            api.expect_remove().returning(|_, _| Ok(found(None)));
            let app = app(api);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let paths = [(Method::POST, "/get"), (Method::POST, "/add"), (Method::DELETE, "/remove")];
            for (method, path) in paths {
                for body in [raw.clone(), json.clone().into_bytes()] {
                    let (head, text) =
                        runtime.block_on(send(&app, request(method.clone(), path, body)));
                    prop_assert!(head.status() == 200 || head.status().is_client_error());
                    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
                    prop_assert_eq!(answer["status"] == "error", head.status() != 200);
                }
            }
        }
    }
}
