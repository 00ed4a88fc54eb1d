//! `metier pull` and `metier models` against a stand-in of the Hugging Face Hub on this machine:
//! the same addresses, headers, redirects and ranges.

use assert_cmd::Command;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, Response, StatusCode, header};
use axum::routing::get;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Larger files are handed to another address, as the Hub does with files in its object store.
const LARGE: usize = 10_000;

/// What the stand-in holds and has seen.
struct Hub {
    files: BTreeMap<String, Vec<u8>>,
    /// Digests it announces in place of the true ones.
    lies: BTreeMap<String, String>,
    token: Option<&'static str>,
    /// Bytes sent, by file.
    sent: Mutex<BTreeMap<String, usize>>,
}

impl Hub {
    fn new(files: &[(&str, Vec<u8>)]) -> Hub {
        let files = files.iter().map(|(n, b)| ((*n).to_owned(), b.clone())).collect();
        Hub { files, lies: BTreeMap::new(), token: None, sent: Mutex::default() }
    }

    /// The tiny checkpoint with the bundled tokenizer, and files that a pull leaves alone.
    fn tiny() -> Hub {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let read = |name: &str| std::fs::read(root.join(name)).unwrap();
        Hub::new(&[
            ("config.json", read("testdata/llama_tiny/config.json")),
            ("model.safetensors", read("testdata/llama_tiny/model.safetensors")),
            ("tokenizer.json", read("assets/nano/tokenizer.json")),
            ("README.md", b"---\nlicense: apache-2.0\n---\n# Tiny\n".to_vec()),
            ("pytorch_model.bin", vec![0x80; 100]),
            ("consolidated.safetensors", vec![1; 100]),
            ("onnx/model.onnx", vec![1; 100]),
        ])
    }

    /// A tiny encoder with what is said of its embeddings.
    fn encoder() -> Hub {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/encoders/bert");
        let names = [
            "1_Pooling/config.json",
            "config.json",
            "model.safetensors",
            "modules.json",
            "tokenizer.json",
        ];
        Hub::new(&names.map(|name| (name, std::fs::read(root.join(name)).unwrap())))
    }

    fn digest(&self, name: &str) -> String {
        let true_one: String =
            Sha256::digest(&self.files[name]).iter().map(|b| format!("{b:02x}")).collect();
        self.lies.get(name).cloned().unwrap_or(true_one)
    }
}

/// Serves on a free port for as long as the test runs; returns the address.
fn serve(hub: Arc<Hub>) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let app = Router::new()
            .route("/api/models/org/tiny/revision/{rev}", get(info))
            .route("/org/tiny/resolve/{rev}/{*file}", get(resolve))
            .route("/cdn/{*file}", get(cdn))
            .with_state(hub);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, app).await.unwrap();
        });
    });
    address
}

type Answer = Response<Body>;

fn refuse(status: StatusCode) -> Answer {
    Response::builder().status(status).body(Body::empty()).unwrap()
}

fn allowed(hub: &Hub, headers: &HeaderMap) -> bool {
    let sent = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    hub.token.is_none_or(|token| sent == Some(&format!("Bearer {token}")))
}

async fn info(
    State(hub): State<Arc<Hub>>,
    UrlPath(rev): UrlPath<String>,
    headers: HeaderMap,
) -> Answer {
    if !allowed(&hub, &headers) {
        return refuse(StatusCode::UNAUTHORIZED);
    }
    if rev != "main" && rev != COMMIT {
        return refuse(StatusCode::NOT_FOUND);
    }
    let siblings: Vec<Value> = hub
        .files
        .iter()
        .map(|(name, bytes)| {
            let mut file = json!({"rfilename": name, "size": bytes.len(), "blobId": "0"});
            if bytes.len() >= LARGE {
                file["lfs"] =
                    json!({"sha256": hub.digest(name), "size": bytes.len(), "pointerSize": 1});
            }
            file
        })
        .collect();
    let body = json!({"id": "org/tiny", "sha": COMMIT, "siblings": siblings,
        "cardData": {"license": "apache-2.0"}, "gated": false});
    Response::builder().body(Body::from(body.to_string())).unwrap()
}

async fn resolve(
    State(hub): State<Arc<Hub>>,
    UrlPath((rev, file)): UrlPath<(String, String)>,
    headers: HeaderMap,
) -> Answer {
    if !allowed(&hub, &headers) || (rev != "main" && rev != COMMIT) {
        return refuse(StatusCode::FORBIDDEN);
    }
    let Some(bytes) = hub.files.get(&file) else { return refuse(StatusCode::NOT_FOUND) };
    let answer = Response::builder().header("x-repo-commit", COMMIT);
    if bytes.len() >= LARGE {
        return answer
            .status(StatusCode::FOUND)
            .header("x-linked-etag", format!("\"{}\"", hub.digest(&file)))
            .header(
                header::LOCATION,
                format!("http://{}/cdn/{file}", headers["host"].to_str().unwrap()),
            )
            .body(Body::empty())
            .unwrap();
    }
    let answer = answer.header(header::ETAG, format!("\"{}\"", &hub.digest(&file)[..40]));
    ranged(&hub, &file, &headers, answer)
}

async fn cdn(
    State(hub): State<Arc<Hub>>,
    UrlPath(file): UrlPath<String>,
    headers: HeaderMap,
) -> Answer {
    ranged(&hub, &file, &headers, Response::builder())
}

fn ranged(
    hub: &Hub,
    file: &str,
    headers: &HeaderMap,
    answer: axum::http::response::Builder,
) -> Answer {
    let bytes = &hub.files[file];
    let range = headers[header::RANGE].to_str().unwrap().strip_prefix("bytes=").unwrap();
    let (from, to) = range.split_once('-').unwrap();
    let from: usize = from.parse().unwrap();
    let to = to.parse().map_or(bytes.len(), |to: usize| to + 1);
    *hub.sent.lock().unwrap().entry(file.to_owned()).or_default() += to - from;
    answer
        .status(StatusCode::PARTIAL_CONTENT)
        .header(
            header::CONTENT_RANGE,
            format!("bytes {from}-{}/{}", to.saturating_sub(1), bytes.len()),
        )
        .body(Body::from(bytes[from..to].to_vec()))
        .unwrap()
}

fn metier(endpoint: &str, home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_metier"));
    command.env("HF_ENDPOINT", endpoint).env("HF_HOME", home).env_remove("HF_HUB_CACHE");
    command.env_remove("HF_TOKEN").env("RUST_BACKTRACE", "0");
    command
}

/// Runs and checks exit code 1, the pieces of the message, and no panic.
#[track_caller]
fn refused(command: &mut Command, expected: &[&str]) {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    for piece in expected {
        assert!(stderr.contains(piece), "expected \"{piece}\" in: {stderr}");
    }
}

#[test]
fn pulled_once_used_by_name_and_deleted() {
    let hub = Arc::new(Hub::tiny());
    let (endpoint, home) = (serve(Arc::clone(&hub)), tempfile::tempdir().unwrap());
    let metier = || metier(&endpoint, home.path());
    refused(
        metier().args(["generate", "--model", "org/tiny", "--prompt", "x"]),
        &["not pulled yet", "metier pull org/tiny"],
    );
    let output = metier().args(["pull", "org/tiny", "--json"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("licence: apache-2.0"), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["commit"], COMMIT);
    let files = json!(["config.json", "README.md", "tokenizer.json", "model.safetensors"]);
    assert_eq!(report["files"], files);
    // The layout that other tools find: blobs, refs, and links in snapshots.
    let folder = home.path().join("hub/models--org--tiny");
    assert_eq!(std::fs::read_to_string(folder.join("refs/main")).unwrap(), COMMIT);
    assert!(!folder.join("refs").join(COMMIT).exists());
    let snapshot = folder.join("snapshots").join(COMMIT);
    assert_eq!(
        std::fs::read(snapshot.join("model.safetensors")).unwrap(),
        hub.files["model.safetensors"]
    );
    assert!(!snapshot.join("pytorch_model.bin").exists());

    // The next pull fetches nothing.
    let before = hub.sent.lock().unwrap().clone();
    metier().args(["pull", "org/tiny"]).assert().success();
    assert_eq!(*hub.sent.lock().unwrap(), before);

    let output = metier().args(["models", "show", "org/tiny", "--json"]).output().unwrap();
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&shown["family"], &shown["license"]), (&json!("llama"), &json!("apache-2.0")));
    assert_eq!(shown["dtype"], "f32");
    let output = metier().args(["models"]).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("nano") && table.contains("org/tiny"), "{table}");
    metier().args(["tokenize", "--model", "org/tiny", "--text", "x"]).assert().success();
    metier().args(["tokenize", "--model", "org/tiny@main", "--text", "x"]).assert().success();

    refused(metier().args(["models", "rm", "org/tiny"]), &["not deleted without --yes"]);
    metier().args(["models", "rm", "org/tiny", "--yes"]).assert().success();
    assert!(!folder.exists());
    refused(metier().args(["models", "rm", "org/tiny", "--yes"]), &["not among the pulled models"]);
    refused(metier().args(["models", "rm", "nano", "--yes"]), &["part of this program"]);
}

#[test]
fn goes_on_where_it_stopped() {
    let hub = Arc::new(Hub::tiny());
    let (endpoint, home) = (serve(Arc::clone(&hub)), tempfile::tempdir().unwrap());
    let weights = &hub.files["model.safetensors"];
    let blobs = home.path().join("hub/models--org--tiny/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let half = weights.len() / 2;
    std::fs::write(
        blobs.join(format!("{}.part", hub.digest("model.safetensors"))),
        &weights[..half],
    )
    .unwrap();
    metier(&endpoint, home.path()).args(["pull", "org/tiny"]).assert().success();
    // One byte more for the question how large it is.
    assert_eq!(hub.sent.lock().unwrap()["model.safetensors"], weights.len() - half + 1);
    let file =
        home.path().join(format!("hub/models--org--tiny/snapshots/{COMMIT}/model.safetensors"));
    assert!(std::fs::read(file).unwrap() == *weights);
}

#[test]
fn refusals_say_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    // Gated: without a token, and with one.
    let gated = Hub { token: Some("hf_secret"), ..Hub::tiny() };
    let endpoint = serve(Arc::new(gated));
    refused(metier(&endpoint, home).args(["pull", "org/tiny"]), &["gated or private", "HF_TOKEN"]);
    let mut command = metier(&endpoint, home);
    command.env("HF_TOKEN", "hf_secret").args(["pull", "org/tiny", "--json"]);
    let output = command.output().unwrap();
    assert!(output.status.success());
    let both = [output.stdout, output.stderr].concat();
    assert!(!String::from_utf8_lossy(&both).contains("hf_secret"));

    let endpoint = serve(Arc::new(Hub::tiny()));
    refused(
        metier(&endpoint, home).args(["pull", "org/tiny@v9"]),
        &["org/tiny@v9", "check the name"],
    );
    refused(metier(&endpoint, home).args(["pull", "tiny"]), &["expected ORG/NAME"]);
    refused(metier(&endpoint, home).args(["pull", "../tiny"]), &["expected ORG/NAME"]);
    refused(
        metier(&endpoint, home).args(["pull", "org/tiny", "--file", "no.gguf"]),
        &["no such file"],
    );

    // Weights that are not what was announced are deleted, and the next pull is right.
    let fresh = tempfile::tempdir().unwrap();
    let mut lying = Hub::tiny();
    lying.lies.insert("model.safetensors".into(), "ab".repeat(32));
    let endpoint = serve(Arc::new(lying));
    refused(
        metier(&endpoint, fresh.path()).args(["pull", "org/tiny"]),
        &["SHA-256", "it was deleted"],
    );
    let snapshot = fresh.path().join(format!("hub/models--org--tiny/snapshots/{COMMIT}"));
    assert!(!snapshot.join("model.safetensors").exists());
    let endpoint = serve(Arc::new(Hub::tiny()));
    metier(&endpoint, fresh.path()).args(["pull", "org/tiny"]).assert().success();
}

#[test]
fn what_cannot_run_is_refused_before_its_weights() {
    let home = tempfile::tempdir().unwrap();
    let mut unknown = Hub::tiny();
    let config = String::from_utf8(unknown.files["config.json"].clone()).unwrap();
    unknown
        .files
        .insert("config.json".into(), config.replace("\"llama\"", "\"mamba7\"").into_bytes());
    let hub = Arc::new(unknown);
    let endpoint = serve(Arc::clone(&hub));
    refused(
        metier(&endpoint, home.path()).args(["pull", "org/tiny"]),
        &["mamba7", "weights were not fetched"],
    );
    assert!(!hub.sent.lock().unwrap().contains_key("model.safetensors"));

    let endpoint = serve(Arc::new(Hub::new(&[
        ("config.json", b"{}".to_vec()),
        ("pytorch_model.bin", vec![0x80; 10]),
    ])));
    refused(
        metier(&endpoint, home.path()).args(["pull", "org/tiny"]),
        &["no model in safetensors", "pickled"],
    );
    let endpoint = serve(Arc::new(Hub::new(&[("tiny-q4_0.gguf", vec![1; 10])])));
    refused(metier(&endpoint, home.path()).args(["pull", "org/tiny"]), &["--file: tiny-q4_0.gguf"]);
    metier(&endpoint, home.path())
        .args(["pull", "org/tiny", "--file", "tiny-q4_0.gguf"])
        .assert()
        .success();
    for name in ["../../escape.safetensors", "/etc/escape.safetensors"] {
        let mut hub = Hub::tiny();
        hub.files.insert(name.into(), vec![1; 10]);
        let endpoint = serve(Arc::new(hub));
        refused(
            metier(&endpoint, home.path()).args(["pull", "org/tiny"]),
            &["inside the repository"],
        );
    }
}

#[test]
fn an_encoder_comes_with_what_is_said_of_its_embeddings() {
    let (endpoint, home) = (serve(Arc::new(Hub::encoder())), tempfile::tempdir().unwrap());
    let metier = || metier(&endpoint, home.path());
    let output = metier().args(["pull", "org/tiny"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.contains("next: metier embed"), "{stderr}");
    let output = metier().args(["models", "show", "org/tiny", "--json"]).output().unwrap();
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&shown["family"], &shown["context_length"]), (&json!("bert"), &json!(40)));
    let output = metier()
        .args(["embed", "--model", "org/tiny", "--json"])
        .write_stdin("my boiler\nleaks")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "there is one form of output");
    let mut embed = metier();
    let output = embed.args(["embed", "--model", "org/tiny"]).write_stdin("my boiler\nleaks\n");
    let output = output.output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 2);
    refused(
        metier().args(["embed", "--model", "org/tiny", "--dimensions", "8"]),
        &["--dimensions 8", "not made to have cut"],
    );
    refused(metier().args(["embed", "--model", "org/tiny"]).write_stdin("a\n\n"), &["line 2"]);
    refused(
        metier().args(["generate", "--model", "org/tiny", "--prompt", "x"]),
        &["only makes embeddings"],
    );
}
