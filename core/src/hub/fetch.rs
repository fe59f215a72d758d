//! One file from the hub into the cache, as the hub's Python client does it: the same places, the
//! same names for what is half there, the same locks, so that either goes on where the other was.
//!
//! hf-hub's own transfer is not used: it sends the token on to the host of large files, looks at
//! neither length nor hash of what came, and begins a repeated transfer at the wrong byte.

use std::fs::{self, File as Opened, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use ureq::Body;
use ureq::http::Response;

use super::{Hub, RepoId, show};
use crate::error::{Context, Error, Result};
use crate::files::hex;

/// How often a transfer is taken up again that brought nothing.
const REPEATS: u32 = 5;
/// The time between two looks of whoever watches.
const PAUSE: Duration = Duration::from_millis(100);
/// How often an address may lead to another.
const REDIRECTS: u32 = 8;

/// A file of a repository, at a commit.
pub(super) struct File<'a> {
    pub hub: &'a Hub,
    pub repo: &'a RepoId,
    /// Its path within the repository.
    pub name: &'a str,
    pub gated: bool,
}

/// Why a transfer ended early.
enum Ended {
    /// The connection, not the file: it is worth another try.
    Cut(Error),
    /// What came is not the file.
    Damaged,
    /// Nothing more can be done.
    Failed(Error),
}

impl From<Error> for Ended {
    fn from(e: Error) -> Self {
        Self::Failed(e)
    }
}

/// A file as the hub announces it, and its places.
struct Place {
    /// Where its bytes are.
    address: String,
    size: u64,
    etag: String,
    blob: PathBuf,
    /// What has come of it.
    part: PathBuf,
    /// The link to the blob, under the file's own name.
    pointer: PathBuf,
    lock: PathBuf,
}

impl File<'_> {
    /// Brings it into the cache.
    pub fn fetch(&self) -> Result<()> {
        // It becomes an address as it stands.
        if !self.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+=@,~()/".contains(&b)) {
            return Err(Error::new("its name holds characters that no address can have"));
        }
        let (mut fruitless, mut damaged, mut had) = (0, false, 0);
        loop {
            let before = had;
            let ended = self.announced().and_then(|place| {
                let outcome = self.bring(&place);
                had = length(&place.part);
                outcome
            });
            match ended {
                Ok(()) => return Ok(()),
                Err(Ended::Failed(e)) => return Err(e),
                Err(Ended::Damaged) if damaged => {
                    return Err(Error::new("what came is not what the hub announced, twice")
                        .hint("a proxy on the way may change files"));
                }
                Err(Ended::Damaged) => damaged = true,
                Err(Ended::Cut(e)) => {
                    // A line that keeps breaking still brings the file, as long as each time brings
                    // some of it.
                    fruitless = if had > before { 0 } else { fruitless + 1 };
                    if fruitless >= REPEATS {
                        return Err(
                            e.hint("what has come is kept: the same command goes on from there")
                        );
                    }
                    tracing::info!("`{}` of `{}`: {e}; taken up again", self.name, self.repo.name);
                    std::thread::sleep(Duration::from_millis(100 << fruitless));
                }
            }
        }
    }

    /// What the hub says of the file before it sends it.
    fn announced(&self) -> Result<Place, Ended> {
        let odd = |what: &str| Ended::Failed(Error::new(format!("the hub's answer {what}")));
        let mut address = self.hub.api.repo(self.repo.for_hub()).url(self.name);
        let mut commit = None;
        for _ in 0..REDIRECTS {
            let response = self.ask(true, &address, 0)?;
            let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
            commit = header("x-repo-commit").map(str::to_owned).or(commit);
            let onward = onward(&address, &response)?;
            // Within the hub, to a new name of the repository or to where it keeps what is small,
            // and from a mirror to the hub: what the file is, is said there. Who leads to a host of
            // large files says it itself.
            if let Some(onward) =
                onward.as_ref().filter(|to| self.is_hubs(to) || header("x-linked-etag").is_none())
            {
                address.clone_from(onward);
                continue;
            }
            let commit = commit.ok_or_else(|| odd("names no commit"))?;
            if commit != self.repo.revision {
                return Err(odd("is of another commit"));
            }
            let etag = header("x-linked-etag")
                .or_else(|| header("etag"))
                .unwrap_or_default()
                .trim_start_matches("W/")
                .trim_matches('"')
                .to_owned();
            // It becomes a file's name.
            if etag.is_empty()
                || etag.len() > 128
                || !etag.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
            {
                return Err(odd("has no tag for the file"));
            }
            let size = header("x-linked-size")
                .or_else(|| header("content-length").filter(|_| onward.is_none()));
            let size = size
                .and_then(|s| s.parse().ok())
                .ok_or_else(|| odd("does not say how long the file is"))?;
            let (cache, folder) = (&self.hub.settings.cache, self.repo.for_hub().folder_name());
            let cached = self.hub.cached(self.repo.for_hub());
            let blob = cached.blob_path(&etag);
            return Ok(Place {
                address: onward.unwrap_or(address),
                size,
                part: blob.with_extension("incomplete"),
                blob,
                pointer: cached.pointer_path(&commit).join(self.name),
                lock: cache.join(".locks").join(folder).join(format!("{etag}.lock")),
                etag,
            });
        }
        Err(odd("leads from one address to the next"))
    }

    /// One try to bring it.
    fn bring(&self, place: &Place) -> Result<(), Ended> {
        for path in [&place.blob, &place.pointer, &place.lock] {
            let folder = path.parent().unwrap_or(Path::new("."));
            fs::create_dir_all(folder).map_err(|e| self.unwritable(e))?;
        }
        let _lock = self.lock(&place.lock)?;
        // While it waited, another process may have brought it; another commit may have brought the
        // same bytes.
        if !(place.blob.is_file() && length(&place.blob) == place.size) {
            self.transfer(place)?;
            let came = length(&place.part);
            if came < place.size {
                return Err(Ended::Cut(Error::new(format!(
                    "the connection ended after {came} of {} bytes",
                    place.size
                ))));
            }
            // Large files have the hash of their content for a tag.
            if came > place.size || (place.etag.len() == 64 && self.sha256(place)? != place.etag) {
                fs::remove_file(&place.part).map_err(|e| self.unwritable(e))?;
                return Err(Ended::Damaged);
            }
            fs::rename(&place.part, &place.blob).map_err(|e| self.unwritable(e))?;
        }
        if fs::symlink_metadata(&place.pointer).is_ok() && !place.pointer.exists() {
            // A link to a file that somebody deleted.
            fs::remove_file(&place.pointer).map_err(|e| self.unwritable(e))?;
        }
        if place.pointer.exists() {
            Ok(())
        } else {
            self.link(place).map_err(|e| self.unwritable(e).into())
        }
    }

    /// Adds what is missing to the part that is there.
    fn transfer(&self, place: &Place) -> Result<(), Ended> {
        let mut start = length(&place.part);
        if start > place.size {
            fs::remove_file(&place.part).map_err(|e| self.unwritable(e))?;
            start = 0;
        }
        let mut part = Opened::options()
            .create(true)
            .append(true)
            .open(&place.part)
            .map_err(|e| self.unwritable(e))?;
        if start == place.size {
            return Ok(());
        }
        let response = self.follow(&place.address, start)?;
        if response.status().as_u16() != 206 && start > 0 {
            // It knows of no ranges: this is the whole file.
            part.set_len(0).map_err(|e| self.unwritable(e))?;
            start = 0;
        }
        let mut body = response.into_body().into_reader();
        let (mut bytes, mut last) = (vec![0; 1 << 18], None);
        loop {
            let n = body
                .read(&mut bytes)
                .map_err(|e| Ended::Cut(Error::new("the connection was cut").because(e)))?;
            part.write_all(&bytes[..n]).map_err(|e| self.unwritable(e))?;
            start += n as u64;
            if n == 0 || last.is_none_or(|at: Instant| at.elapsed() >= PAUSE) {
                last = Some(Instant::now());
                self.shown(start, place.size)?;
            }
            // A file that does not end has no place here.
            if n == 0 || start > place.size {
                part.sync_all().map_err(|e| self.unwritable(e))?;
                return Ok(());
            }
        }
    }

    /// The answer that sends the file from byte `start` on, wherever it is.
    fn follow(&self, address: &str, start: u64) -> Result<Response<Body>, Ended> {
        let mut address = address.to_owned();
        for _ in 0..REDIRECTS {
            let response = self.ask(false, &address, start)?;
            match onward(&address, &response)? {
                Some(onward) => address = onward,
                None => return Ok(response),
            }
        }
        Err(Error::new("the hub's answer leads from one address to the next").into())
    }

    /// Asks for the file, or for its `head` alone. The token is for the hub: no other host gets it.
    fn ask(&self, head: bool, address: &str, start: u64) -> Result<Response<Body>, Ended> {
        let agent = &self.hub.agent;
        // What is compressed on the way has another length.
        let mut request = if head { agent.head(address) } else { agent.get(address) }
            .header("Accept-Encoding", "identity");
        if let Some(token) = self.hub.settings.token.as_ref().filter(|_| self.is_hubs(address)) {
            request = request.header("Authorization", format!("Bearer {}", token.secret));
        }
        if start > 0 {
            request = request.header("Range", format!("bytes={start}-"));
        }
        let response = request.call().map_err(|e| Ended::Cut(self.hub.unreached(e)))?;
        match response.status().as_u16() {
            200..=399 => Ok(response),
            401 | 403 if self.gated => Err(Ended::Failed(self.hub.gated(self.repo))),
            401 | 403 => Err(Ended::Failed(
                self.hub.whose(Error::new("the hub does not give it to this user")),
            )),
            404 => Err(Ended::Failed(Error::new("the hub no longer has it"))),
            status @ (408 | 429 | 500..=599) => {
                Err(Ended::Cut(Error::new(format!("the hub is too busy (status {status})"))))
            }
            // Of what it has for a part, the hub knows nothing.
            416 => Err(Ended::Damaged),
            status => {
                Err(Ended::Failed(Error::new(format!("the hub answers with status {status}"))))
            }
        }
    }

    /// Whether an address is one of the hub itself.
    fn is_hubs(&self, address: &str) -> bool {
        address
            .strip_prefix(self.hub.settings.endpoint.as_str())
            .is_some_and(|rest| rest.starts_with('/'))
    }

    /// Waits until no other process fetches the same file.
    fn lock(&self, path: &Path) -> Result<Opened> {
        let file = Opened::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(|e| self.unwritable(e))?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => {
                    if !told {
                        tracing::warn!(
                            "waiting for another process that fetches `{}` of `{}`",
                            self.name,
                            self.repo.name
                        );
                        told = true;
                    }
                    self.shown(0, 0)?;
                    std::thread::sleep(2 * PAUSE);
                }
                // A file system without locks: whoever comes second brings the same bytes.
                Err(TryLockError::Error(_)) => return Ok(file),
            }
        }
    }

    #[cfg(unix)]
    fn link(&self, place: &Place) -> io::Result<()> {
        // From the file's folder up to the repository's, past `snapshots` and the commit.
        let up = "../".repeat(self.name.matches('/').count() + 2);
        std::os::unix::fs::symlink(format!("{up}blobs/{}", place.etag), &place.pointer)
    }

    #[cfg(not(unix))]
    fn link(&self, place: &Place) -> io::Result<()> {
        fs::copy(&place.blob, &place.pointer).map(drop)
    }

    fn sha256(&self, place: &Place) -> Result<String> {
        let within = || format!("cannot read `{}`", place.part.display());
        let mut file = Opened::open(&place.part).within(within)?;
        let (mut hash, mut bytes, mut last) = (Sha256::new(), vec![0; 1 << 20], Instant::now());
        loop {
            let n = file.read(&mut bytes).within(within)?;
            if n == 0 {
                return Ok(hex(&hash.finalize()));
            }
            hash.update(&bytes[..n]);
            if last.elapsed() >= PAUSE {
                last = Instant::now();
                self.shown(place.size, place.size)?;
            }
        }
    }

    fn shown(&self, done: u64, size: u64) -> Result<()> {
        if show(self.name, done, size) {
            return Ok(());
        }
        Err(Error::interrupted("fetching was interrupted")
            .hint("what has come is kept: the same command goes on from there"))
    }

    fn unwritable(&self, e: io::Error) -> Error {
        let cache = self.hub.settings.cache.display();
        let what = match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "has no room for it",
            _ => "cannot be written to",
        };
        Error::new(format!("the cache `{cache}` {what}")).because(e).hint("`HF_HOME` moves it")
    }
}

/// Where an answer leads, when it is not the file itself.
fn onward(address: &str, response: &Response<Body>) -> Result<Option<String>> {
    if !response.status().is_redirection() {
        return Ok(None);
    }
    let to = response
        .headers()
        .get("location")
        .and_then(|to| to.to_str().ok())
        .filter(|to| to.bytes().all(|b| b.is_ascii_graphic()))
        .unwrap_or_default();
    if to.starts_with("https://") || to.starts_with("http://") {
        return Ok(Some(to.to_owned()));
    }
    let host = address.splitn(4, '/').take(3).collect::<Vec<_>>().join("/");
    match to.starts_with('/') && !to.starts_with("//") {
        true => Ok(Some(format!("{host}{to}"))),
        false => Err(Error::new("the hub's answer leads to an address that is none")),
    }
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |about| about.len())
}
