//! Everything that can be asked of a closed node, by everybody, in every way: each call of the API, each
//! service of the peers. What is expected is what docs/security.md says, written down here once more; what
//! there is to be asked is what the node and the protocol say themselves, so that nothing new is left out.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Debug;
use std::io::{self, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, Error, RootCertStore, StreamOwned};

use super::client::{JSON, open, read_head, request};
use super::frames::{DATA, END_HEADERS, END_STREAM, HEADERS, Heard, call, frame, hello, message};
use super::mutated::messages;
use super::mutation::metric;
use super::node::{Node, Setup};
use super::ring;
use super::security::{HTTP_TLS, PEER_TLS, TOKENS, certificate, made, member, token};
use super::wait::{PATIENCE, eventually, is};

/// Who may make a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum For {
    Everybody,
    Readers,
    Writers,
    Admins,
}

/// Each call with a body, who may make it (docs/security.md), and what it answers to those.
const CALLS: [(&str, &str, &str, For, u16); 14] = [
    ("GET", "/healthz", "", For::Everybody, 200),
    ("GET", "/readyz", "", For::Everybody, 200),
    ("GET", "/openapi.json", "", For::Everybody, 200),
    ("POST", "/get", r#"{"key":"k"}"#, For::Readers, 200),
    ("GET", "/nodes", "", For::Readers, 200),
    ("GET", "/cluster", "", For::Readers, 200),
    ("GET", "/cluster/safe-to-stop", "", For::Readers, 200),
    // With metrics_need_token.
    ("GET", "/metrics", "", For::Readers, 200),
    ("POST", "/add", r#"{"key":"k","value":"v"}"#, For::Writers, 200),
    ("DELETE", "/remove", r#"{"key":"k"}"#, For::Writers, 200),
    ("POST", "/cluster/forget", r#"{"id":"0000000000000001"}"#, For::Admins, 404),
    ("POST", "/admin/compact", "", For::Admins, 200),
    ("PUT", "/admin/log-level", r#"{"level":"info"}"#, For::Admins, 200),
    ("GET", "/admin/backup", "", For::Admins, 200),
];

/// Where there is nothing. Below `/admin/` everything is for admins.
const NOWHERE: [(&str, For); 6] = [
    ("/nothing", For::Readers),
    ("/", For::Readers),
    ("/get/", For::Readers),
    ("//get", For::Readers),
    ("/%67et", For::Readers),
    ("/admin/nothing", For::Admins),
];

const METHODS: [&str; 5] = ["GET", "POST", "PUT", "DELETE", "PATCH"];

/// Whoever asks, and what that one is.
fn expected(who: Option<For>, needed: For, done: u16) -> (u16, Option<&'static str>) {
    match who {
        _ if needed == For::Everybody => (done, None),
        None => (401, Some("unauthorized")),
        Some(who) if who < needed => (403, Some("forbidden")),
        Some(_) => (done, None),
    }
}

/// A way to a node.
enum Way<'a> {
    Plain(SocketAddr),
    Tls(SocketAddr, &'a Arc<ClientConfig>),
}

impl Way<'_> {
    /// Status and body of a request on a connection of its own.
    fn ask(&self, method: &str, path: &str, token: Option<&str>, body: &str) -> (u16, Vec<u8>) {
        let authorization = token.map(|token| format!("Bearer {token}"));
        let mut headers = vec![JSON, ("connection", "close")];
        headers.extend(authorization.iter().map(|text| ("authorization", text.as_str())));
        let (Self::Plain(addr) | Self::Tls(addr, _)) = self;
        let request = request(*addr, method, path, &headers, body.as_bytes());
        match self {
            Self::Plain(addr) => exchange(open(*addr).unwrap(), &request),
            Self::Tls(addr, config) => exchange(tls(*addr, config, "localhost").unwrap(), &request),
        }
    }
}

/// The answer may be a backup, which is no text.
fn exchange(mut stream: impl Read + Write, request: &[u8]) -> (u16, Vec<u8>) {
    stream.write_all(request).unwrap();
    let mut from = BufReader::new(stream);
    let (status, _) = read_head(&mut from).unwrap();
    let mut body = Vec::new();
    // A peer that closes without a word of TLS has said its length before.
    from.read_to_end(&mut body).ok();
    (status, body)
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A connection whose handshake is done, as far as it depends on this side.
fn tls(addr: SocketAddr, config: &Arc<ClientConfig>, name: &'static str) -> io::Result<Tls> {
    let mut stream = open(addr)?;
    let name = ServerName::try_from(name).unwrap();
    let mut connection = ClientConnection::new(Arc::clone(config), name).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok(StreamOwned::new(connection, stream))
}

/// A client that believes this authority, and shows this certificate, if any.
fn config(ca: &Path, shown: Option<(&Path, &str)>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let Some((dir, name)) = shown else { return Arc::new(builder.with_no_client_auth()) };
    let cert = CertificateDer::from_pem_file(dir.join(format!("{name}.pem"))).unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.join(format!("{name}.key"))).unwrap();
    Arc::new(builder.with_client_auth_cert(vec![cert], key).unwrap())
}

/// What comes back until the other side hangs up.
fn heard_by(mut stream: impl Read) -> Vec<u8> {
    let (mut heard, mut bytes) = (Vec::new(), [0; 4_096]);
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return heard,
            Ok(count) => heard.extend(&bytes[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => panic!("it waits for more"),
            Err(_) => return heard,
        }
    }
}

/// Nothing but, at most, the record by which TLS says that it was not spoken to in TLS.
#[track_caller]
fn is_silence(heard: &[u8], said: &impl Debug) {
    let is_alert = heard.len() == 7 && heard[0] == 0x15;
    assert!(heard.is_empty() || is_alert, "{said:?} hears {:?}", String::from_utf8_lossy(heard));
}

/// What the description says that there is.
fn described(node: &Node, way: &Way<'_>) -> BTreeSet<(String, String)> {
    let (status, body) = way.ask("GET", "/openapi.json", None, "");
    assert_eq!(status, 200, "{}", node.log());
    let description: Value = serde_json::from_slice(&body).unwrap();
    let paths = description["paths"].as_object().unwrap();
    let calls = paths.iter().flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap().keys();
        methods.map(move |method| (method.to_uppercase(), path.clone()))
    });
    calls.collect()
}

#[test]
fn every_call_is_answered_to_whom_it_is_for_and_refused_to_all_others_in_the_clear_and_in_tls() {
    let setup = Setup::new();
    let tokens = [("reader", "read"), ("writer", "write"), ("admin", "admin")]
        .map(|(name, role)| token(&setup, name, role, &[]));
    let [reader, writer, admin] = &tokens;
    let people = [
        (None, None),
        (None, Some("lally_wrong")),
        (None, Some("")),
        (Some(For::Readers), Some(reader.as_str())),
        (Some(For::Writers), Some(writer)),
        (Some(For::Admins), Some(admin)),
    ];
    made(&setup.run_command(["tls", "init"]));
    certificate(&setup, "n1", &[]);
    // The cluster that a certificate names means nothing to clients, who look at the host.
    certificate(&setup, "elsewhere", &["--cluster-name", "elsewhere"]);
    made(&setup.run_command(["tls", "init", "--dir", "other"]));
    let (ours, theirs) = ("lally-tls/ca.pem", "other/ca.pem");
    let [ours, theirs] = [ours, theirs].map(|ca| config(&setup.dir().join(ca), None));

    let closed = || setup.clone().args(TOKENS).args(["--metrics-need-token"]);
    let elsewhere = HTTP_TLS.map(|arg| arg.replace("n1.", "elsewhere."));
    let plain = closed().args(["--data-dir", "plain"]).start_ready();
    let in_tls = closed().args(["--data-dir", "tls"]).args(HTTP_TLS).start();
    let of_elsewhere = closed().args(["--data-dir", "elsewhere"]).args(elsewhere).start();
    let ways = [
        (&plain, Way::Plain(plain.http())),
        (&in_tls, Way::Tls(in_tls.http(), &ours)),
        (&of_elsewhere, Way::Tls(of_elsewhere.http(), &ours)),
    ];
    for (node, way) in &ways {
        eventually("the node is ready", PATIENCE, || {
            is(way.ask("GET", "/readyz", None, "").0 == 200, node.log())
        });
        let known = CALLS.map(|(method, path, ..)| (method.to_owned(), path.to_owned()));
        assert_eq!(described(node, way), BTreeSet::from(known), "a call is in one list only");
        let mut refused = BTreeSet::new();
        let mut check = |method, path, body, needed, done| {
            for (who, token) in people {
                let (status, answer) = way.ask(method, path, token, body);
                let (expected, code) = expected(who, needed, done);
                let shown = String::from_utf8_lossy(&answer);
                assert_eq!(status, expected, "{method} {path} by {who:?} {token:?}: {shown}");
                if let Some(code) = code {
                    let answer: Value = serde_json::from_slice(&answer).unwrap();
                    assert_eq!(
                        (&answer["status"], &answer["code"]),
                        (&"error".into(), &code.into())
                    );
                }
                if token.is_none() && status == 401 {
                    refused.insert(shown.into_owned());
                }
            }
        };
        for (method, path, body, needed, done) in CALLS {
            check(method, path, body, needed, done);
            for other in METHODS.into_iter().filter(|other| *other != method) {
                check(other, path, "", needed, 405);
            }
        }
        for (path, needed) in NOWHERE {
            for method in METHODS {
                check(method, path, "", needed, 404);
            }
        }
        // Whether there is something or not, strangers are told the same.
        assert_eq!(refused.len(), 1, "{refused:?}");
        let log = node.log();
        assert!(tokens.iter().all(|token| !log.contains(token.as_str())), "{log}");
    }

    for node in [&in_tls, &of_elsewhere] {
        let addr = node.http();
        let holdings = || Way::Tls(addr, &ours).ask("GET", "/cluster", Some(reader), "").1;
        let before = holdings();
        for (method, path, body, ..) in CALLS {
            // Whoever does not believe the node goes before he has said a word.
            let refused = tls(addr, &theirs, "localhost").unwrap_err();
            let reason = refused.get_ref().and_then(|error| error.downcast_ref::<Error>());
            assert!(matches!(reason, Some(Error::InvalidCertificate(_))), "{refused}");
            for (_, token) in people {
                let authorization = format!("Bearer {}", token.unwrap_or_default());
                let headers = [JSON, ("authorization", authorization.as_str())];
                let request = request(addr, method, path, &headers, body.as_bytes());
                let mut stream = open(addr).unwrap();
                stream.write_all(&request).unwrap();
                is_silence(&heard_by(stream), &(method, path, token));
            }
        }
        assert_eq!(holdings(), before);
    }
}

/// The services that the protocol has.
fn services() -> BTreeSet<&'static str> {
    let proto = include_str!("../../../proto/lally/v1/peer.proto");
    let lines = proto.lines().filter_map(|line| line.trim().strip_prefix("rpc "));
    lines.filter_map(|line| line.split('(').next()).collect()
}

const OF_THE_CLUSTER: &str = "lally.cluster.lally.internal";

#[test]
fn no_service_of_the_peers_says_or_takes_a_byte_without_a_certificate_of_the_cluster() {
    let setup = Setup::new();
    made(&setup.run_command(["tls", "init"]));
    certificate(&setup, "n1", &[]);
    certificate(&setup, "n2", &[]);
    certificate(&setup, "elsewhere", &["--cluster-name", "elsewhere"]);
    made(&setup.run_command(["tls", "init", "--dir", "other"]));
    certificate(&setup, "n2", &["--dir", "other"]);
    let node = setup.args(PEER_TLS).start_ready();
    let (dir, other) = (node.setup().dir().join("lally-tls"), node.setup().dir().join("other"));
    let ca = dir.join("ca.pem");
    let strangers = [
        ("no certificate", config(&ca, None)),
        ("a certificate of another authority", config(&ca, Some((&other, "n2")))),
        ("a certificate of another cluster", config(&ca, Some((&dir, "elsewhere")))),
    ];
    let member = config(&ca, Some((&dir, "n2")));
    node.client().add("mutated", "what nobody may read").succeeded();

    let calls = messages();
    let called: BTreeSet<_> = calls.iter().map(|(service, _)| *service).collect();
    assert_eq!(called, services(), "a service is in one list only");
    let said = |service: &str, bytes: &[u8]| {
        [
            hello(),
            frame(HEADERS, END_HEADERS, 1, &call(service)),
            frame(DATA, END_STREAM, 1, &message(bytes)),
        ]
        .concat()
    };
    let before = node.cluster();
    for (service, bytes) in &calls {
        let said = said(service, bytes);
        for (stranger, config) in &strangers {
            // The other side looks at the certificate last, so it may have heard a call by then.
            let mut stream = tls(node.grpc(), config, OF_THE_CLUSTER).unwrap();
            let sent = stream.write_all(&said).and_then(|()| stream.flush());
            let heard = if sent.is_ok() { heard_by(stream) } else { Vec::new() };
            assert!(heard.is_empty(), "{service} with {stranger}: {heard:?}");
        }
        for said in [&said[..], bytes, b"GET / HTTP/1.1\r\n\r\n", b"\0"] {
            let mut stream = open(node.grpc()).unwrap();
            // It may have hung up in the middle.
            stream.write_all(said).ok();
            is_silence(&heard_by(stream), &service);
        }
    }
    assert_eq!(node.cluster(), before, "nothing got in, and nobody");
    assert_eq!(before["members"], Value::Array(Vec::new()));
    assert_eq!(node.client().get("mutated").value().as_deref(), Some("what nobody may read"));

    // With the right one each of them is answered, and does what it says.
    for (service, bytes) in &calls {
        let mut stream = tls(node.grpc(), &member, OF_THE_CLUSTER).unwrap();
        stream.write_all(&said(service, bytes)).unwrap();
        let mut heard = Heard::default();
        while heard.ended == 0 {
            heard.take(&mut stream).unwrap_or_else(|error| panic!("{service}: {error}"));
        }
    }
    assert_ne!(node.cluster()["members"], before["members"]);
}

/// Strangers who open a thousand connections a second, say nothing, and hold as many as these.
fn crowd_the_door(addr: SocketAddr, held: usize, over: &AtomicBool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut crowd = VecDeque::new();
        let mut pace = tokio::time::interval(Duration::from_millis(1));
        for number in 0_u32.. {
            if over.load(Ordering::Relaxed) {
                return;
            }
            pace.tick().await;
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            let [.., high, low] = number.to_be_bytes();
            socket.bind((Ipv4Addr::new(127, 77, high, low), 0).into()).unwrap();
            // One that is refused is one of the crowd, too.
            crowd.extend(socket.connect(addr).await.ok());
            if crowd.len() > held {
                crowd.pop_front();
            }
        }
    });
}

#[test]
fn strangers_that_crowd_the_port_of_the_peers_keep_no_peer_out() {
    const PLACES: usize = 128;
    let setup = Setup::new();
    made(&setup.run_command(["tls", "init"]));
    let limit = PLACES.to_string();
    let first = member(&setup, "a", "lally", None);
    let first = first.args(["--max-peer-connections", &limit]).start_ready();
    let second = member(&setup, "b", "lally", Some(first.grpc())).start_ready();
    ring::wait_whole([&first, &second]);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        // Also when what is looked at here fails.
        let _over = until_dropped(&over);
        scope.spawn(|| crowd_the_door(first.grpc(), 4 * PLACES, &over));
        eventually("there is no place left", PATIENCE, || {
            let dropped = metric(&first, "lally_peer_handshakes_dropped_total");
            is(dropped > PLACES as u64, dropped)
        });
        let third = member(&setup, "c", "lally", Some(first.grpc())).start_ready();
        ring::wait_whole([&first, &second, &third]);
        third.client().add_to("k", "v", 3).succeeded();
        first.client().add_to("k", "w", 3).succeeded();
        let open = metric(&first, "lally_peer_connections");
        assert!(open <= PLACES as u64 + 1, "{open} connections");
        // None of those that were in had to go.
        assert_eq!(metric(&first, "lally_peer_connections_refused_total"), 0);
        first.wait_for_log(&["the oldest handshakes give way"]);
    });
}

/// Says that it is over, at the latest when this is dropped.
fn until_dropped(over: &AtomicBool) -> impl Drop {
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    Over(over)
}
