//! Downloads one file from the hub into the cache. Paths, partial files and locks are the same as
//! in the hub's Python client. Each program can therefore resume the other program's downloads.
//!
//! This module does not use the download function of the hf-hub crate, because that function also
//! sends the token to the host that stores large files, checks neither length nor hash, and resumes
//! at the wrong byte.

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

/// A download fails after this many consecutive attempts that did not receive any bytes.
const MAX_RETRIES: u32 = 5;
const REPORT_INTERVAL: Duration = Duration::from_millis(100);
const MAX_REDIRECTS: u32 = 8;
/// Hint for errors that leave a partial download in the cache.
const RESUME: &str = "run the same command again to resume the download";

/// A file in a repository, at a specific commit.
pub(super) struct File<'a> {
    pub hub: &'a Hub,
    pub repo: &'a RepoId,
    /// Path within the repository.
    pub name: &'a str,
    pub gated: bool,
}

/// The ways in which an attempt to download a file can fail.
enum TransferError {
    /// The connection failed, so another attempt may succeed.
    Cut(Error),
    /// The received bytes do not match the announced length or hash.
    Damaged,
    /// Another attempt would fail too.
    Failed(Error),
}

impl From<Error> for TransferError {
    fn from(e: Error) -> Self {
        Self::Failed(e)
    }
}

/// Metadata that the hub reports for a file, and the file's paths in the cache.
struct RemoteFile {
    /// URL of the content.
    address: String,
    /// Size in bytes.
    size: u64,
    etag: String,
    blob: PathBuf,
    /// The partial download.
    part: PathBuf,
    /// Symlink to the blob, in the snapshot folder. It has the original file name.
    pointer: PathBuf,
    lock: PathBuf,
}

impl File<'_> {
    /// Downloads the file into the cache.
    pub fn fetch(&self) -> Result<()> {
        // The name is put into a URL without percent-encoding.
        if !self.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+=@,~()/".contains(&b)) {
            return Err(Error::new(
                "the file name contains characters that are not supported in a URL",
            ));
        }
        let (mut without_progress, mut damaged, mut had) = (0, false, 0);
        loop {
            let before = had;
            let ended = self.metadata().and_then(|file| {
                let outcome = self.attempt(&file);
                had = length(&file.part);
                outcome
            });
            match ended {
                Ok(()) => return Ok(()),
                Err(TransferError::Failed(e)) => return Err(e),
                Err(TransferError::Damaged) if damaged => {
                    return Err(Error::new(
                        "the received file does not match the length or hash that the hub \
                        announced, in two attempts",
                    )
                    .hint("check whether a proxy modifies downloads"));
                }
                Err(TransferError::Damaged) => damaged = true,
                Err(TransferError::Cut(e)) => {
                    // Only count attempts without progress, so that a large download can complete
                    // over an unreliable connection.
                    without_progress = if had > before { 0 } else { without_progress + 1 };
                    if without_progress >= MAX_RETRIES {
                        return Err(e.hint(RESUME));
                    }
                    tracing::info!(
                        "retrying the download of `{}` of `{}`: {e}",
                        self.name,
                        self.repo.name
                    );
                    std::thread::sleep(Duration::from_millis(100 << without_progress));
                }
            }
        }
    }

    /// Gets the file's metadata with HEAD requests.
    fn metadata(&self) -> Result<RemoteFile, TransferError> {
        let invalid =
            |what: &str| TransferError::Failed(Error::new(format!("the hub's response {what}")));
        let mut address = self.hub.api.repo(self.repo.for_hub()).url(self.name);
        let mut commit = None;
        for _ in 0..MAX_REDIRECTS {
            let response = self.ask(true, &address, 0)?;
            let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
            commit = header("x-repo-commit").map(str::to_owned).or(commit);
            let target = redirect_target(&address, &response)?;
            // Follow redirects to a renamed repository, to the hub's storage for small files, or
            // from a mirror to the hub. The target's response contains the metadata. A redirect to
            // the host of large files already contains the metadata in `x-linked-*` headers.
            if let Some(target) =
                target.as_ref().filter(|to| self.is_on_hub(to) || header("x-linked-etag").is_none())
            {
                address.clone_from(target);
                continue;
            }
            let commit = commit.ok_or_else(|| invalid("does not include the commit"))?;
            if commit != self.repo.revision {
                return Err(invalid("is for a different commit"));
            }
            let etag = header("x-linked-etag")
                .or_else(|| header("etag"))
                .unwrap_or_default()
                .trim_start_matches("W/")
                .trim_matches('"')
                .to_owned();
            // The ETag is used as a file name.
            if etag.is_empty()
                || etag.len() > 128
                || !etag.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
            {
                return Err(invalid("does not include a valid ETag"));
            }
            let size = header("x-linked-size")
                .or_else(|| header("content-length").filter(|_| target.is_none()));
            let size = size
                .and_then(|s| s.parse().ok())
                .ok_or_else(|| invalid("does not include the file size"))?;
            let (cache, folder) = (&self.hub.settings.cache, self.repo.for_hub().folder_name());
            let cached = self.hub.cached(self.repo.for_hub());
            let blob = cached.blob_path(&etag);
            return Ok(RemoteFile {
                address: target.unwrap_or(address),
                size,
                part: blob.with_extension("incomplete"),
                blob,
                pointer: cached.pointer_path(&commit).join(self.name),
                lock: cache.join(".locks").join(folder).join(format!("{etag}.lock")),
                etag,
            });
        }
        Err(invalid("contains too many redirects"))
    }

    /// Tries once to download the file.
    fn attempt(&self, file: &RemoteFile) -> Result<(), TransferError> {
        for path in [&file.blob, &file.pointer, &file.lock] {
            let folder = path.parent().unwrap_or(Path::new("."));
            fs::create_dir_all(folder).map_err(|e| self.unwritable(e))?;
        }
        let _lock = self.lock(&file.lock)?;
        // The blob may already exist. Another process may have downloaded it while this process
        // waited for the lock, or another commit may have a file with the same content.
        if !(file.blob.is_file() && length(&file.blob) == file.size) {
            self.transfer(file)?;
            let received = length(&file.part);
            if received < file.size {
                return Err(TransferError::Cut(Error::new(format!(
                    "the connection ended after {received} of {} bytes",
                    file.size
                ))));
            }
            // The ETag of a large file is the SHA-256 of its content.
            if received > file.size || (file.etag.len() == 64 && self.sha256(file)? != file.etag) {
                fs::remove_file(&file.part).map_err(|e| self.unwritable(e))?;
                return Err(TransferError::Damaged);
            }
            fs::rename(&file.part, &file.blob).map_err(|e| self.unwritable(e))?;
        }
        if fs::symlink_metadata(&file.pointer).is_ok() && !file.pointer.exists() {
            // The link exists, but its target was deleted.
            fs::remove_file(&file.pointer).map_err(|e| self.unwritable(e))?;
        }
        if file.pointer.exists() {
            Ok(())
        } else {
            self.link(file).map_err(|e| self.unwritable(e).into())
        }
    }

    /// Downloads the missing part of a partially downloaded file.
    fn transfer(&self, file: &RemoteFile) -> Result<(), TransferError> {
        let mut start = length(&file.part);
        if start > file.size {
            fs::remove_file(&file.part).map_err(|e| self.unwritable(e))?;
            start = 0;
        }
        let mut part = Opened::options()
            .create(true)
            .append(true)
            .open(&file.part)
            .map_err(|e| self.unwritable(e))?;
        if start == file.size {
            return Ok(());
        }
        let response = self.follow(&file.address, start).inspect_err(|e| {
            if matches!(e, TransferError::Damaged) {
                // The next attempt starts from the beginning. If the file cannot be removed, that
                // attempt fails in the same way.
                let _ = fs::remove_file(&file.part);
            }
        })?;
        if response.status().as_u16() != 206 && start > 0 {
            // The server does not support ranges and sends the whole file.
            part.set_len(0).map_err(|e| self.unwritable(e))?;
            start = 0;
        }
        let mut body = response.into_body().into_reader();
        let (mut bytes, mut last) = (vec![0; 1 << 18], None);
        loop {
            let n = body
                .read(&mut bytes)
                .map_err(|e| TransferError::Cut(Error::new("the connection was cut").because(e)))?;
            part.write_all(&bytes[..n]).map_err(|e| self.unwritable(e))?;
            start += n as u64;
            if n == 0 || last.is_none_or(|at: Instant| at.elapsed() >= REPORT_INTERVAL) {
                last = Some(Instant::now());
                self.report(start, file.size)?;
            }
            // Stop at the end, or if the server sends more bytes than it announced.
            if n == 0 || start > file.size {
                part.sync_all().map_err(|e| self.unwritable(e))?;
                return Ok(());
            }
        }
    }

    /// Requests the file's content from byte `start` onwards, following redirects.
    fn follow(&self, address: &str, start: u64) -> Result<Response<Body>, TransferError> {
        let mut address = address.to_owned();
        for _ in 0..MAX_REDIRECTS {
            let response = self.ask(false, &address, start)?;
            match redirect_target(&address, &response)? {
                Some(target) => address = target,
                None => return Ok(response),
            }
        }
        Err(Error::new("too many redirects from the hub").into())
    }

    /// Sends a GET request for the content from byte `start` onwards, or a HEAD request if `head`
    /// is true. The token is only sent to the hub, not to other hosts.
    fn ask(&self, head: bool, address: &str, start: u64) -> Result<Response<Body>, TransferError> {
        let agent = &self.hub.agent;
        // Forbid compression, because it would change the length of the response.
        let mut request = if head { agent.head(address) } else { agent.get(address) }
            .header("Accept-Encoding", "identity");
        if let Some(token) = self.hub.settings.token.as_ref().filter(|_| self.is_on_hub(address)) {
            request = request.header("Authorization", format!("Bearer {}", token.secret));
        }
        if start > 0 {
            request = request.header("Range", format!("bytes={start}-"));
        }
        let response = request.call().map_err(|e| TransferError::Cut(self.hub.unreachable(e)))?;
        match response.status().as_u16() {
            200..=399 => Ok(response),
            401 | 403 if self.gated => Err(TransferError::Failed(self.hub.gated(self.repo))),
            401 | 403 => Err(TransferError::Failed(
                self.hub.with_token_hint(Error::new("the hub denied access to the file")),
            )),
            404 => Err(TransferError::Failed(Error::new("the file was removed from the hub"))),
            status @ (408 | 429 | 500..=599) => {
                Err(TransferError::Cut(Error::new(format!("the hub is busy (status {status})"))))
            }
            // The partial download is longer than the file on the server, so it cannot be the
            // beginning of that file.
            416 => Err(TransferError::Damaged),
            status => {
                Err(TransferError::Failed(Error::new(format!("the hub returned status {status}"))))
            }
        }
    }

    /// True if the URL is on the hub itself and not on another host.
    fn is_on_hub(&self, address: &str) -> bool {
        address
            .strip_prefix(self.hub.settings.endpoint.as_str())
            .is_some_and(|rest| rest.starts_with('/'))
    }

    /// Locks the file at `path`. Waits if another process is downloading the same file.
    fn lock(&self, path: &Path) -> Result<Opened> {
        let file = Opened::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(|e| self.unwritable(e))?;
        let mut warned = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => {
                    if !warned {
                        tracing::warn!(
                            "waiting for another process to download `{}` of `{}`",
                            self.name,
                            self.repo.name
                        );
                        warned = true;
                    }
                    self.report(0, 0)?;
                    std::thread::sleep(2 * REPORT_INTERVAL);
                }
                // The file system does not support locks. Two processes may then download the file
                // at the same time, which is safe because both write the same bytes.
                Err(TryLockError::Error(_)) => return Ok(file),
            }
        }
    }

    #[cfg(unix)]
    fn link(&self, file: &RemoteFile) -> io::Result<()> {
        // Go up to the repository's folder: one level for each folder in the file name, and two for
        // `snapshots/COMMIT`.
        let up = "../".repeat(self.name.matches('/').count() + 2);
        std::os::unix::fs::symlink(format!("{up}blobs/{}", file.etag), &file.pointer)
    }

    #[cfg(not(unix))]
    fn link(&self, file: &RemoteFile) -> io::Result<()> {
        fs::copy(&file.blob, &file.pointer).map(drop)
    }

    fn sha256(&self, remote: &RemoteFile) -> Result<String> {
        let within = || format!("cannot read `{}`", remote.part.display());
        let mut file = Opened::open(&remote.part).within(within)?;
        let (mut hash, mut bytes, mut last) = (Sha256::new(), vec![0; 1 << 20], Instant::now());
        loop {
            let n = file.read(&mut bytes).within(within)?;
            if n == 0 {
                return Ok(hex(&hash.finalize()));
            }
            hash.update(&bytes[..n]);
            if last.elapsed() >= REPORT_INTERVAL {
                last = Instant::now();
                self.report(remote.size, remote.size)?;
            }
        }
    }

    fn report(&self, done: u64, size: u64) -> Result<()> {
        if show(self.name, done, size) {
            return Ok(());
        }
        Err(Error::interrupted("the download was interrupted").hint(RESUME))
    }

    fn unwritable(&self, e: io::Error) -> Error {
        let cache = self.hub.settings.cache.display();
        let what = match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "is full",
            _ => "cannot be written to",
        };
        Error::new(format!("the cache `{cache}` {what}"))
            .because(e)
            .hint("set `HF_HOME` to use another folder")
    }
}

/// Returns the target URL of a redirect, or `None` if the response is not a redirect.
fn redirect_target(address: &str, response: &Response<Body>) -> Result<Option<String>> {
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
        false => Err(Error::new("the hub redirects to an invalid URL")),
    }
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |about| about.len())
}
