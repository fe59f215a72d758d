//! A hub of the tests' own: Hugging Face's routes on this machine, with the faults of a real
//! network.
//!
//! Small files come from the hub itself, large ones by a redirect from another host, as there.
//! Every request is kept.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use sha2::{Digest, Sha256};

/// The token that opens what is private or gated.
pub const TOKEN: &str = "hf_thisOneMayEnter";
/// Where large files are, on another host than the hub's.
const CDN: &str = "/cdn/";
/// Where the hub keeps small files, behind a redirect within itself.
const KEPT: &str = "/api/resolve-cache/";
/// Ends of the names of files that are large, whatever their size.
const LARGE: [&str; 4] = [".safetensors", ".gguf", ".parquet", ".bin"];

/// What goes wrong, once for each time that it is in the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection breaks after so many bytes of a file.
    Cut(usize),
    /// The same, and nothing had said how many bytes there are.
    CutUnannounced(usize),
    /// Every byte of a file is another.
    Garbled,
    /// The whole file comes, whatever range was asked for.
    Whole,
    /// Status 503.
    Busy,
    /// Status 401, as for a token that is none any more.
    Credentials,
    /// A tag that would lead out of the cache.
    Tag,
    /// A redirect to nowhere that makes sense.
    Astray,
}

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// True for a HEAD request.
    pub head: bool,
    /// Path and query.
    pub path: String,
    /// The host that was asked.
    pub host: String,
    /// The whole `Authorization` header.
    pub authorization: Option<String>,
    /// The whole `Range` header.
    pub range: Option<String>,
}

/// What a repository is, besides its files.
#[derive(Clone, Debug, Default)]
pub struct Traits {
    /// Its files need the token; what it holds is for everybody.
    pub gated: bool,
    /// Without the token it is as if it were not there.
    pub private: bool,
    /// The head of its README, as JSON.
    pub card: String,
}

#[derive(Default)]
struct State {
    repos: BTreeMap<String, Repo>,
    renamed: BTreeMap<String, String>,
    mirrored: Option<String>,
    /// The other host, where large files are.
    elsewhere: String,
    faults: Vec<Fault>,
    requests: Vec<Request>,
}

#[derive(Default)]
struct Repo {
    traits: Traits,
    /// Commits by branch.
    branches: BTreeMap<String, String>,
    commits: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
}

/// A hub that runs until the process ends.
pub struct LocalHub {
    endpoint: String,
    /// Its certificate, as PEM, where it is asked over TLS.
    certificate: Option<String>,
    state: Arc<Mutex<State>>,
}

impl LocalHub {
    /// An empty one, on a port that is free.
    pub fn start() -> Self {
        Self::with(None)
    }

    /// An empty one that is asked over TLS, with a certificate that nobody knows.
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
        // Large files are on a host of another name.
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

    /// What `HF_ENDPOINT` is set to.
    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// The certificate, as PEM, of one that is asked over TLS.
    pub fn certificate(&self) -> &str {
        self.certificate.as_deref().expect("a hub that was started with `start_secure`")
    }

    /// Puts a commit with just these files onto a branch of `models/org/name` or
    /// `datasets/org/name`; gives the commit.
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

    /// Says what a repository is.
    pub fn describe(&self, repo: &str, traits: Traits) {
        self.state().repos.entry(repo.to_owned()).or_default().traits = traits;
    }

    /// Leads from an old name, as `models/org/old`, to a new one.
    pub fn rename(&self, old: &str, new: &str) {
        self.state().renamed.insert(old.to_owned(), new.to_owned());
    }

    /// From here on every request is led to the hub at that address.
    pub fn mirror(&self, endpoint: &str) {
        self.state().mirrored = Some(endpoint.to_owned());
    }

    /// From here on this goes wrong, in this order: what concerns files at each file's transfer.
    pub fn fail(&self, faults: &[Fault]) {
        self.state().faults = faults.to_vec();
    }

    /// The faults that nobody met yet.
    pub fn faults_left(&self) -> usize {
        self.state().faults.len()
    }

    /// The requests so far; from here on they are counted anew.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().requests)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer: status, headers, body.
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Whether the length of the body is said.
    announced: bool,
    /// After so many bytes of the body the connection ends.
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
            &[("X-Error-Code", code), ("X-Error-Message", "told by the local hub")],
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
    let mut head = format!("HTTP/1.1 {} Said\r\nConnection: close\r\n", answer.status);
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
        let enters = request.authorization.as_deref() == Some(&format!("Bearer {TOKEN}"));
        let Some(repo) = self.repos.get(&full).filter(|r| enters || !r.traits.private) else {
            // Who may not see a repository cannot tell whether it is there.
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
        if repo.traits.gated && !enters {
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

    /// The bytes that were asked for, or what a fault makes of them.
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
        if start >= bytes.len() && !bytes.is_empty() {
            return Answer::new(
                416,
                &[("Content-Range", &format!("bytes */{}", bytes.len()))],
                b"",
            );
        }
        let whole = range.is_none() || fault == Some(Fault::Whole);
        let said = format!("bytes {start}-{}/{}", end.saturating_sub(1), bytes.len());
        let mut answer = Answer::new(if whole { 200 } else { 206 }, headers, &bytes[start..end]);
        if !whole {
            answer.headers.push(("Content-Range", said));
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

/// SHA-256 as the hub writes it.
fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
