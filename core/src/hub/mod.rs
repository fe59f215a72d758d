//! Looks up repositories on the Hugging Face hub and downloads their files to the cache that all
//! Hugging Face libraries share. Without network access, files are read from that cache.
//!
//! The hf-hub crate provides the URLs of the hub, the request for a repository's metadata and the
//! layout of the cache. This module checks the length and SHA-256 of every download, resumes
//! interrupted downloads, sends the token only to the hub itself, and turns error responses into
//! specific error messages.
//!
//! This module must not depend on any file format. Its callers decide which files they need.

mod cache;
mod card;
mod fetch;
mod id;
mod settings;
mod snapshot;
mod tls;
mod watch;

use std::fmt;
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, Repo};
use serde_json::Value;
use ureq::Agent;
use ureq::http::HeaderMap;
use ureq::tls::TlsConfig;

pub use cache::cache_dir;
pub use id::{RepoId, RepoKind};
pub use settings::{Authorities, Settings, Token};
pub use snapshot::Snapshot;
pub(crate) use watch::show;
pub use watch::{ProgressCallback, is_offline, stay_offline, watch};

use crate::error::{Error, Result};
use snapshot::Listing;

/// Timeout for the request that lists a repository's files. The hub's Python client uses the same
/// timeout.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum size in bytes of the hub's response with the metadata of a repository. The metadata of a
/// data set with a hundred thousand files is about a tenth of this size.
const MAX_LISTING_BYTES: u64 = 100 << 20;
/// Number of retries if the hub responds that it is busy.
const MAX_RETRIES: u32 = 3;

/// A client for the hub.
pub struct Hub {
    settings: Settings,
    api: Api,
    /// HTTP client that downloads files.
    agent: Agent,
    tls: TlsConfig,
}

impl fmt::Debug for Hub {
    /// Omits the hf-hub client, because its debug output includes the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// The ways in which a lookup on the hub can fail.
enum LookupError {
    /// The hub could not be reached. The repository may still be in the cache.
    Unreachable(Error),
    /// The hub responded with an error or with invalid metadata.
    Failed(Error),
}

impl Hub {
    /// Creates a client with the settings from the environment variables. The client is offline if
    /// the environment variables disable network access, or if [`stay_offline`] was called.
    ///
    /// # Errors
    /// Fails if a setting is not valid.
    pub fn of_environment() -> Result<Self> {
        let mut settings = Settings::of_environment()?;
        settings.offline |= is_offline();
        Self::new(settings)
    }

    /// Creates a client from explicit settings.
    ///
    /// # Errors
    /// Fails if the certificates in `settings` cannot be read.
    pub fn new(settings: Settings) -> Result<Self> {
        let authorities = settings.authorities.as_ref().filter(|_| !settings.offline);
        let tls = authorities.map_or_else(|| Ok(TlsConfig::default()), tls::trusting)?;
        let builder = ApiBuilder::from_cache(Cache::new(settings.cache.clone()))
            .with_endpoint(settings.endpoint.clone())
            .with_token(settings.token.as_ref().map(|t| t.secret.clone()))
            // hf-hub's progress bars would overwrite ours.
            .with_progress(false)
            .with_user_agent("reprpo", env!("CARGO_PKG_VERSION"));
        let api = builder
            .build()
            .map_err(|e| Error::internal("cannot create a client for the hub").because(e))?;
        let agent = Agent::config_builder()
            // `fetch` follows redirects itself, so that the token is never sent to other hosts.
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(TIMEOUT))
            .timeout_recv_response(Some(3 * TIMEOUT))
            .timeout_per_read(Some(3 * TIMEOUT))
            .user_agent(concat!("reprpo/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls.clone())
            .build();
        Ok(Self { settings, api, agent: agent.into(), tls })
    }

    /// Returns the settings of this client.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Looks up a repository on the hub. Uses the cache instead if the client is offline, if the
    /// hub cannot be reached, or if the revision is a commit that was looked up before.
    ///
    /// # Errors
    /// Fails if the repository does not exist, if the user has no access, or if the cache is used
    /// and does not contain the repository.
    pub fn open(&self, repo: &RepoId) -> Result<Snapshot<'_>> {
        if self.settings.offline {
            return Snapshot::cached(self, repo).map_err(|e| {
                e.hint(
                    "this run is offline; remove `--offline` and unset `HF_HUB_OFFLINE` to fetch \
                    it from the hub",
                )
            });
        }
        if repo.is_commit()
            && let Some(listing) = Listing::stored(self, repo, &repo.revision)
        {
            return Ok(Snapshot::listed(self, repo, listing));
        }
        match self.ask(repo) {
            Ok(listing) => Ok(Snapshot::listed(self, repo, listing)),
            Err(LookupError::Failed(e)) => Err(e),
            Err(LookupError::Unreachable(e)) => match Snapshot::cached(self, repo) {
                Ok(snapshot) => {
                    tracing::warn!(
                        "{}; using commit {} of `{repo}` from the cache",
                        e.in_a_line(),
                        short(snapshot.commit()),
                    );
                    Ok(snapshot)
                }
                Err(_) => Err(e.hint(format!(
                    "check the network connection; `{repo}` is also not in the cache `{}`",
                    self.settings.cache.display()
                ))),
            },
        }
    }

    /// Requests the list of files in a repository from the hub.
    fn ask(&self, repo: &RepoId) -> Result<Listing, LookupError> {
        let unreached = |e: ureq::Error| LookupError::Unreachable(self.unreachable(e));
        let mut busy = 0;
        loop {
            let request = self.api.repo(repo.for_hub()).info_request();
            let request = request
                .config()
                .http_status_as_error(false)
                .timeout_global(Some(TIMEOUT))
                .tls_config(self.tls.clone())
                .build();
            let response = request.call().map_err(unreached)?;
            let status = response.status().as_u16();
            match status {
                200 => {
                    let text = response
                        .into_body()
                        .into_with_config()
                        .limit(MAX_LISTING_BYTES)
                        .read_to_string()
                        .map_err(unreached)?;
                    return Listing::read(self, repo, &text).map_err(LookupError::Failed);
                }
                429 | 500..=599 if busy < MAX_RETRIES => {
                    busy += 1;
                    std::thread::sleep(Duration::from_millis(200 << busy));
                }
                429 | 500..=599 => {
                    return Err(LookupError::Unreachable(
                        self.unreachable(Error::new(format!("the hub is busy (status {status})"))),
                    ));
                }
                _ => {
                    return Err(LookupError::Failed(self.refusal(
                        repo,
                        status,
                        response.headers(),
                    )));
                }
            }
        }
    }

    fn unreachable(&self, why: impl std::error::Error + Send + Sync + 'static) -> Error {
        let e = Error::new(format!("the hub at `{}` cannot be reached", self.settings.endpoint));
        let e = match (tls::is_untrusted_certificate(&why), &self.settings.authorities) {
            (false, _) => e.hint(
                "use `--offline` to use only the cache, or set `HTTPS_PROXY` or `HF_ENDPOINT` to \
                reach the hub another way",
            ),
            (true, None) => e.hint(
                "if your proxy or your own hub uses a private certificate authority, set \
                `SSL_CERT_FILE` to that authority's certificate",
            ),
            (true, Some(own)) => e.hint(format!(
                "check the certificates in `{}`, which replace the default certificates because of \
                {}",
                own.path.display(),
                own.source
            )),
        };
        e.because(why)
    }

    /// Returns the error for a failed metadata request, given the status and the headers of the
    /// hub's response.
    fn refusal(&self, repo: &RepoId, status: u16, headers: &HeaderMap) -> Error {
        let header =
            |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let (what, id) = (repo.kind.word(), &repo.name);
        match (status, header("x-error-code")) {
            (_, "GatedRepo") => self.gated(repo),
            (_, "RevisionNotFound") => Error::new(format!(
                "revision `{}` of the {what} `{id}` was not found",
                repo.revision
            ))
            .hint("use a branch, a tag or a full commit hash; the default is `main`"),
            (401, _) if header("x-error-message").contains("Invalid credentials") => {
                self.with_token_hint(Error::new("the hub rejected the token"))
            }
            // The hub does not reveal whether a private repository exists. For some missing
            // repositories, it only returns status 401.
            (_, "RepoNotFound") | (401, "") => {
                let e = Error::new(format!(
                    "the {what} `{id}` was not found on the hub, or you do not have access to it"
                ));
                self.with_token_hint(match self.settings.endpoint.as_str() {
                    "https://huggingface.co" => e,
                    other => e.hint(format!("check `HF_ENDPOINT`, which is set to `{other}`")),
                })
            }
            _ => {
                let reason: String = header("x-error-message")
                    .chars()
                    .filter(|c| !c.is_control())
                    .take(200)
                    .collect();
                let reason = if reason.is_empty() { reason } else { format!(": {reason}") };
                self.with_token_hint(Error::new(format!(
                    "the hub returned status {status} for the {what} `{id}`{reason}"
                )))
            }
        }
    }

    /// Creates the error for a gated repository whose terms the user has not accepted.
    fn gated(&self, repo: &RepoId) -> Error {
        let page = match repo.kind {
            RepoKind::Model => format!("{}/{}", self.settings.endpoint, repo.name),
            RepoKind::Dataset => format!("{}/datasets/{}", self.settings.endpoint, repo.name),
        };
        self.with_token_hint(
            Error::new(format!(
                "the {} `{}` is gated, and you have not accepted its terms",
                repo.kind.word(),
                repo.name
            ))
            .hint(format!("accept the terms at {page}")),
        )
    }

    /// Adds a hint about the token that the request used.
    fn with_token_hint(&self, e: Error) -> Error {
        e.hint(match &self.settings.token {
            Some(token) => {
                format!("check that the token from {} is valid and has access", token.source)
            }
            None => "set `HF_TOKEN` or run `hf auth login` to access private or gated \
                repositories; the request was made without a token"
                .to_owned(),
        })
    }

    fn cached(&self, repo: Repo) -> hf_hub::CacheRepo {
        Cache::new(self.settings.cache.clone()).repo(repo)
    }
}

/// Shortens a commit hash to 7 characters. Branches and tags are returned unchanged.
pub fn short(revision: &str) -> &str {
    if id::is_commit(revision) { revision.get(..7).unwrap_or(revision) } else { revision }
}

/// Returns the string in a field of a JSON object, or an empty string if the field is missing or
/// not a string.
fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests;
