//! Connections that lie, linger or are too many; and encrypted ones.

mod common;

use common::{CONTEXT, TestServer, chat, roomy, with};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::json;
use serve::{ServeError, ServePlan, TlsFiles};
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

const CHAT: &str = "/v1/chat/completions";

async fn connect(server: &TestServer) -> TcpStream {
    let address = server.url.split("//").nth(1).unwrap();
    TcpStream::connect(address).await.unwrap()
}

/// Everything that comes until the server closes.
async fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset says the same as an end.
    _ = stream.read_to_end(&mut bytes).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn slow_and_idle_connections_are_closed() {
    let plan = ServePlan { header_timeout_seconds: 1, ..ServePlan::default() };
    let server = TestServer::start_with(plan, roomy()).await;
    let silent = connect(&server).await;
    let mut slow = connect(&server).await;
    slow.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ").await.unwrap();
    let mut idle = connect(&server).await;
    idle.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let (silent, slow, idle) = tokio::join!(rest(silent), rest(slow), rest(idle));
    assert_eq!(silent, "");
    assert!(!slow.contains("200 OK"), "{slow}");
    assert!(idle.starts_with("HTTP/1.1 200 OK"), "answered, then closed: {idle}");
    server.health().await;
}

#[tokio::test]
async fn headers_have_a_bound() {
    let plan = ServePlan { max_header_bytes: 8192, ..ServePlan::default() };
    let server = TestServer::start_with(plan, roomy()).await;
    let mut large = connect(&server).await;
    let head =
        format!("GET /health HTTP/1.1\r\nHost: x\r\nX-Large: {}\r\n\r\n", "x".repeat(20_000));
    _ = large.write_all(head.as_bytes()).await;
    let answer = rest(large).await;
    assert!(!answer.contains("200 OK"), "{answer}");
    // A little more than the bound may be read before its end is seen; it is refused all the same.
    for (len, expected) in [(7000, 200), (8300, 431)] {
        let request = server.client.get(format!("{}/version", server.url));
        let status = request.header("x-large", "x".repeat(len)).send().await.map(|r| r.status());
        assert!(status.is_ok_and(|s| s == expected) || expected == 431, "{len}");
    }
    let mut many = connect(&server).await;
    let head = format!("GET /health HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(1000));
    _ = many.write_all(head.as_bytes()).await;
    let answer = rest(many).await;
    assert!(!answer.contains("200 OK"), "{answer}");
    // Two lengths: whoever stands in between may read another body than we do.
    let mut smuggled = connect(&server).await;
    let head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
                Content-Length: 2\r\nContent-Length: 40\r\n\r\n{}";
    smuggled.write_all(head.as_bytes()).await.unwrap();
    let answer = rest(smuggled).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    server.health().await;
}

#[tokio::test]
async fn there_are_only_so_many_connections() {
    let plan = ServePlan { max_connections: 2, ..ServePlan::default() };
    let server = TestServer::start_with(plan, roomy()).await;
    let (first, second) = (connect(&server).await, connect(&server).await);
    let mut third = connect(&server).await;
    third
        .write_all(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut byte = [0];
    let answered = tokio::select! {
        read = third.read(&mut byte) => Some(read.unwrap()),
        () = tokio::time::sleep(std::time::Duration::from_millis(200)) => None,
    };
    assert_eq!(answered, None, "it waits for a place");
    drop(first);
    let answer = rest(third).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    drop(second);
}

#[tokio::test]
async fn a_client_that_never_reads_is_given_up() {
    let plan = ServePlan { write_timeout_seconds: 1, ..ServePlan::default() };
    let server = TestServer::start_with(plan, roomy()).await;
    let address = server.url.split("//").nth(1).unwrap().parse().unwrap();
    // A small window, so that little text fills it.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut idle = socket.connect(address).await.unwrap();
    let change = json!({"stream": true, "ignore_eos": true, "n": 16, "max_tokens": CONTEXT});
    let body = with(chat("red", "go on", 1), change).to_string();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    idle.write_all(head.as_bytes()).await.unwrap();
    idle.write_all(body.as_bytes()).await.unwrap();
    server.wait_until("running", 16).await;
    let health = server.wait_until("running", 0).await;
    assert_eq!(health["free_blocks"], health["total_blocks"]);
    drop(idle);
}

/// A certificate for `localhost` in `dir`.
fn certificate(dir: &Path) -> TlsFiles {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let files = TlsFiles { cert: dir.join("cert.pem"), key: dir.join("key.pem") };
    std::fs::write(&files.cert, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    files
}

/// The answer to a request over TLS from a client that trusts `cert`.
async fn over_tls(server: &TestServer, cert: &Path) -> Result<String, std::io::Error> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(cert).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = connect(server).await;
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    stream.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn connections_are_encrypted_and_certificates_renewed() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let files = certificate(old.path());
    let plan = ServePlan { tls: Some(files.clone()), ..ServePlan::default() };
    let server = TestServer::start_with(plan.clone(), roomy()).await;
    let answer = over_tls(&server, &files.cert).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    let mut plain = connect(&server).await;
    plain.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let answer = rest(plain).await;
    assert!(!answer.contains("200 OK"), "{answer}");

    let renewed = certificate(new.path());
    server.reloader.reload(ServePlan { tls: Some(renewed.clone()), ..plan.clone() }).unwrap();
    over_tls(&server, &renewed.cert).await.unwrap();
    assert!(over_tls(&server, &files.cert).await.is_err(), "the old one is not shown any more");

    // What cannot be used changes nothing.
    let swapped = TlsFiles { cert: renewed.cert.clone(), key: files.key.clone() };
    let missing = TlsFiles { cert: new.path().join("none.pem"), key: renewed.key.clone() };
    let reversed = TlsFiles { cert: renewed.key.clone(), key: renewed.cert.clone() };
    for wrong in [swapped, missing, reversed] {
        let refused =
            server.reloader.reload(ServePlan { tls: Some(wrong.clone()), ..plan.clone() });
        let Err(ServeError::Tls { path, reason }) = refused else { panic!("{wrong:?}") };
        assert!(path == wrong.cert || path == wrong.key, "{}: {reason}", path.display());
    }
    over_tls(&server, &renewed.cert).await.unwrap();
}
