//! A local server for tests with the routes of the Hugging Face hub and simulated network faults.
//!
//! As on the real hub, small files come from the hub's host, and large files are redirected to
//! another host. The server records every request.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use sha2::{Digest, Sha256};

/// Token that gives access to private and gated repositories.
pub const TOKEN: &str = "hf_thisOneMayEnter";
/// Path prefix of large files on the second host.
const CDN: &str = "/cdn/";
/// Path prefix on the hub's host to which requests for small files are redirected.
const KEPT: &str = "/api/resolve-cache/";
/// Suffixes of file names that are treated as large, whatever their size.
const LARGE: [&str; 4] = [".safetensors", ".gguf", ".parquet", ".bin"];

/// A fault that the hub simulates once for each time it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection closes after this many bytes of a file.
    Cut(usize),
    /// Like `Cut`, and the response has no Content-Length header.
    CutUnannounced(usize),
    /// Every byte of a file is inverted.
    Garbled,
    /// The response contains the whole file, even if a range was requested.
    Whole,
    /// The response to a request for a range has status 416.
    OutOfRange,
    /// The response has status 503.
    Busy,
    /// The response has status 401, as for an invalid token.
    Credentials,
    /// The ETag is a path that leads out of the cache.
    Tag,
    /// The response redirects to an invalid location.
    Astray,
}

/// A request that the hub received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// True for a HEAD request.
    pub head: bool,
    /// Path and query.
    pub path: String,
    /// Value of the `Host` header.
    pub host: String,
    /// Value of the `Authorization` header.
    pub authorization: Option<String>,
    /// Value of the `Range` header.
    pub range: Option<String>,
}

/// Access rules and metadata of a repository.
#[derive(Clone, Debug, Default)]
pub struct Traits {
    /// Files need the token, but metadata is public.
    pub gated: bool,
    /// Without the token, the repository appears not to exist.
    pub private: bool,
    /// The metadata at the top of its README, as JSON.
    pub card: String,
}

#[derive(Default)]
struct State {
    repos: BTreeMap<String, Repo>,
    renamed: BTreeMap<String, String>,
    mirrored: Option<String>,
    /// URL of the second host, which serves large files.
    elsewhere: String,
    faults: Vec<Fault>,
    requests: Vec<Request>,
}

#[derive(Default)]
struct Repo {
    traits: Traits,
    /// Commit of each branch.
    branches: BTreeMap<String, String>,
    commits: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
}

/// A hub that runs until the process ends.
pub struct LocalHub {
    endpoint: String,
    /// Its certificate as PEM, if the hub uses TLS.
    certificate: Option<String>,
    state: Arc<Mutex<State>>,
}

impl LocalHub {
    /// Starts an empty hub on a free port.
    pub fn start() -> Self {
        Self::with(None)
    }

    /// Starts an empty hub that uses TLS with a self-signed certificate.
    pub fn start_secure() -> Self {
        Self::with(Some(
            rcgen::generate_simple_self_signed(["127.0.0.1", "localhost"].map(str::to_owned))
                .expect("a certificate"),
        ))
    }

    fn with(identity: Option<rcgen::CertifiedKey<rcgen::KeyPair>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let scheme = if identity.is_some() { "https" } else { "http" };
        // Large files come from a second host, which is this server under another name.
        let state = Arc::new(Mutex::new(State {
            elsewhere: format!("{scheme}://localhost:{port}"),
            ..State::default()
        }));
        let tls = identity.as_ref().map(|rcgen::CertifiedKey { cert, signing_key }| {
            let key = PrivateKeyDer::try_from(signing_key.serialize_der()).expect("a key");
            Arc::new(
                ServerConfig::builder()
                    .with_no_client_auth()
                    .with_single_cert(vec![cert.der().clone()], key)
                    .expect("a certificate and its key"),
            )
        });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let (shared, tls) = (Arc::clone(&shared), tls.clone());
                // A client that closes the connection is not an error of the server.
                std::thread::spawn(move || match tls {
                    None => serve(connection, &shared),
                    Some(tls) => serve(
                        StreamOwned::new(ServerConnection::new(tls).ok()?, connection),
                        &shared,
                    ),
                });
            }
        });
        Self {
            endpoint: format!("{scheme}://127.0.0.1:{port}"),
            certificate: identity.map(|i| i.cert.pem()),
            state,
        }
    }

    /// Returns the value for `HF_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// Returns the self-signed certificate as PEM.
    ///
    /// # Panics
    /// Panics if the hub does not use TLS.
    pub fn certificate(&self) -> &str {
        self.certificate.as_deref().expect("a hub that was started with `start_secure`")
    }

    /// Adds a commit with these files to a branch of `models/org/name` or `datasets/org/name`.
    /// Returns the commit's hash.
    pub fn push(&self, repo: &str, branch: &str, files: &[(&str, &[u8])]) -> String {
        let files: BTreeMap<String, Vec<u8>> =
            files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
        let commit = hash(format!("{repo} {branch} {files:?}").as_bytes())[..40].to_owned();
        let mut state = self.state();
        let repo = state.repos.entry(repo.to_owned()).or_default();
        repo.commits.insert(commit.clone(), files);
        repo.branches.insert(branch.to_owned(), commit.clone());
        commit
    }

    /// Sets the access rules and metadata of a repository.
    pub fn describe(&self, repo: &str, traits: Traits) {
        self.state().repos.entry(repo.to_owned()).or_default().traits = traits;
    }

    /// Redirects an old repository name such as `models/org/old` to a new one.
    pub fn rename(&self, old: &str, new: &str) {
        self.state().renamed.insert(old.to_owned(), new.to_owned());
    }

    /// Redirects every later request to the hub at `endpoint`.
    pub fn mirror(&self, endpoint: &str) {
        self.state().mirrored = Some(endpoint.to_owned());
    }

    /// Simulates these faults in this order. A fault of a file occurs when the hub next sends a
    /// file.
    pub fn fail(&self, faults: &[Fault]) {
        self.state().faults = faults.to_vec();
    }

    /// Returns the number of faults that have not occurred yet.
    pub fn faults_left(&self) -> usize {
        self.state().faults.len()
    }

    /// Returns the requests since the last call.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().requests)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An HTTP response.
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// True if the response has a Content-Length header.
    announced: bool,
    /// Number of bytes of the body after which the connection closes.
    cut: Option<usize>,
}

impl Answer {
    fn new(status: u16, headers: &[(&'static str, &str)], body: &[u8]) -> Self {
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Self { status, headers, body: body.to_vec(), announced: true, cut: None }
    }

    fn error(status: u16, code: &str) -> Self {
        Self::new(
            status,
            &[("X-Error-Code", code), ("X-Error-Message", "sent by the local hub")],
            b"no",
        )
    }
}

fn serve(mut connection: impl Read + Write, state: &Mutex<State>) -> Option<()> {
    let mut lines = BufReader::new(&mut connection).lines();
    let first = lines.next()?.ok()?;
    let path = first.split(' ').nth(1)?.to_owned();
    let mut request = Request {
        head: first.starts_with("HEAD "),
        path,
        host: String::new(),
        authorization: None,
        range: None,
    };
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        let value = value.trim().to_owned();
        match name.to_lowercase().as_str() {
            "host" => request.host = value,
            "authorization" => request.authorization = Some(value),
            "range" => request.range = Some(value),
            _ => {}
        }
    }
    let answer = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        state.requests.push(request.clone());
        state.answer(&request)
    };
    let mut head = format!("HTTP/1.1 {} Response\r\nConnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if answer.announced {
        head += &format!("Content-Length: {}\r\n", answer.body.len());
    }
    connection.write_all(format!("{head}\r\n").as_bytes()).ok()?;
    if !request.head {
        connection
            .write_all(
                &answer.body[..answer.cut.unwrap_or(answer.body.len()).min(answer.body.len())],
            )
            .ok()?;
    }
    connection.flush().ok()
}

impl State {
    fn answer(&mut self, request: &Request) -> Answer {
        match self.faults.first() {
            Some(Fault::Busy) => {
                self.faults.remove(0);
                return Answer::error(503, "Busy");
            }
            Some(Fault::Credentials) => {
                self.faults.remove(0);
                return Answer::new(
                    401,
                    &[("X-Error-Message", "Invalid credentials in Authorization header")],
                    b"no",
                );
            }
            _ => {}
        }
        if let Some(endpoint) = &self.mirrored {
            return Answer::new(308, &[("Location", &format!("{endpoint}{}", request.path))], b"");
        }
        if let Some(wanted) = [CDN, KEPT].iter().find_map(|place| request.path.strip_prefix(place))
        {
            let all =
                self.repos.values().flat_map(|r| r.commits.values()).flat_map(BTreeMap::values);
            let Some(bytes) = all.into_iter().find(|bytes| hash(bytes) == wanted).cloned() else {
                return Answer::error(404, "EntryNotFound");
            };
            return self.part(request, &bytes, &[("ETag", &format!("\"{}\"", &wanted[..40]))]);
        }
        let (api, path) = match request.path.strip_prefix("/api/") {
            Some(path) => (true, path),
            None => (false, request.path.trim_start_matches('/')),
        };
        let kind = if path.starts_with("datasets/") { "datasets" } else { "models" };
        let path = path.trim_start_matches("datasets/").trim_start_matches("models/");
        let mut parts = path.splitn(5, '/');
        let mut next = || parts.next().unwrap_or_default().to_owned();
        let (org, name, verb, revision, file) =
            (next(), next(), next(), next().replace("%2F", "/"), next());
        let full = format!("{kind}/{org}/{name}");
        if let Some(new) = self.renamed.get(&full) {
            let new = request.path.replacen(
                &format!("{org}/{name}"),
                new.trim_start_matches("models/").trim_start_matches("datasets/"),
                1,
            );
            return Answer::new(307, &[("Location", &new)], b"");
        }
        let authorized = request.authorization.as_deref() == Some(&format!("Bearer {TOKEN}"));
        let Some(repo) = self.repos.get(&full).filter(|r| authorized || !r.traits.private) else {
            // Without access, a client cannot tell whether the repository exists.
            return Answer::error(
                if request.authorization.is_some() { 404 } else { 401 },
                "RepoNotFound",
            );
        };
        let Some((commit, files)) =
            repo.commits.get_key_value(repo.branches.get(&revision).unwrap_or(&revision))
        else {
            return Answer::error(404, "RevisionNotFound");
        };
        if api && verb == "revision" {
            let siblings: Vec<String> =
                files.keys().map(|f| format!("{{\"rfilename\": \"{f}\"}}")).collect();
            let card = if repo.traits.card.is_empty() { "null" } else { &repo.traits.card };
            let gated = if repo.traits.gated { "\"auto\"" } else { "false" };
            let body = format!(
                "{{\"sha\": \"{commit}\", \"gated\": {gated}, \"cardData\": {card}, \"siblings\": \
                    [{}]}}",
                siblings.join(", ")
            );
            return Answer::new(200, &[("Content-Type", "application/json")], body.as_bytes());
        }
        if api || verb != "resolve" {
            return Answer::error(404, "");
        }
        if repo.traits.gated && !authorized {
            return Answer::error(
                if request.authorization.is_some() { 403 } else { 401 },
                "GatedRepo",
            );
        }
        let Some(bytes) = files.get(&file).cloned() else {
            return Answer::error(404, "EntryNotFound");
        };
        let (commit, tag) = (commit.clone(), hash(&bytes));
        match self.faults.first() {
            Some(Fault::Tag) => {
                self.faults.remove(0);
                return Answer::new(
                    200,
                    &[("ETag", "\"../../../outside\""), ("X-Repo-Commit", &commit)],
                    b"x",
                );
            }
            Some(Fault::Astray) => {
                self.faults.remove(0);
                return Answer::new(
                    302,
                    &[("X-Linked-ETag", "\"a\""), ("X-Repo-Commit", &commit), ("Location", "?")],
                    b"",
                );
            }
            _ => {}
        }
        if LARGE.iter().any(|end| file.ends_with(end)) {
            let location = format!("{}{CDN}{tag}", self.elsewhere);
            return Answer::new(
                302,
                &[
                    ("X-Linked-ETag", &format!("\"{tag}\"")),
                    ("X-Linked-Size", &bytes.len().to_string()),
                    ("X-Repo-Commit", &commit),
                    ("Location", &location),
                ],
                b"",
            );
        }
        Answer::new(307, &[("X-Repo-Commit", &commit), ("Location", &format!("{KEPT}{tag}"))], b"")
    }

    /// Returns the requested range of a file, changed by the next fault.
    fn part(
        &mut self,
        request: &Request,
        bytes: &[u8],
        headers: &[(&'static str, &str)],
    ) -> Answer {
        let range =
            request.range.as_deref().and_then(|r| r.strip_prefix("bytes=")?.split_once('-'));
        let number = |text: &str| text.parse::<usize>().ok();
        let fault =
            if request.head || self.faults.is_empty() { None } else { Some(self.faults.remove(0)) };
        let (start, end) = match (range, &fault) {
            (_, Some(Fault::Whole)) | (None, _) => (0, bytes.len()),
            (Some((start, end)), _) => (
                number(start).unwrap_or(0),
                number(end).map_or(bytes.len(), |e| (e + 1).min(bytes.len())),
            ),
        };
        let is_outside = start >= bytes.len() && !bytes.is_empty();
        if is_outside || (range.is_some() && fault == Some(Fault::OutOfRange)) {
            return Answer::new(
                416,
                &[("Content-Range", &format!("bytes */{}", bytes.len()))],
                b"",
            );
        }
        let whole = range.is_none() || fault == Some(Fault::Whole);
        let content_range = format!("bytes {start}-{}/{}", end.saturating_sub(1), bytes.len());
        let mut answer = Answer::new(if whole { 200 } else { 206 }, headers, &bytes[start..end]);
        if !whole {
            answer.headers.push(("Content-Range", content_range));
        }
        match fault {
            Some(Fault::Cut(n)) => answer.cut = Some(n),
            Some(Fault::CutUnannounced(n)) => (answer.cut, answer.announced) = (Some(n), false),
            Some(Fault::Garbled) => answer.body.iter_mut().for_each(|b| *b = !*b),
            _ => {}
        }
        answer
    }
}

/// Returns the SHA-256 in hexadecimal, as the hub writes it.
fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
