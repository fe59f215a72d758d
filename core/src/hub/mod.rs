//! Repositories of the Hugging Face hub: looked up, fetched into the cache that all of its
//! libraries share, and found there when there is no network.
//!
//! hf-hub knows the hub's addresses, asks what a repository holds and lays out the cache. Beside it
//! stands what a run of hours needs: every length and SHA-256 is checked, a cut transfer goes on
//! where it was, the token goes to the hub alone, and each refusal is told for what it is.
//!
//! No format is known here: which files of a repository are wanted, its reader says.

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
pub use watch::{Watcher, is_offline, stay_offline, watch};

use crate::error::{Error, Result};
use snapshot::Listing;

/// How long the hub may take to say what a repository holds, as long as its Python client waits.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of what it says. A data set of a hundred thousand files has a tenth of it.
const MOST_SAID: u64 = 100 << 20;
/// How often a question is repeated that the hub was too busy for.
const REPEATS: u32 = 3;

/// The hub, as this process may use it.
pub struct Hub {
    settings: Settings,
    api: Api,
    /// For the files.
    agent: Agent,
    tls: TlsConfig,
}

impl fmt::Debug for Hub {
    /// Without hf-hub's part, which would show the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Why there is no answer.
enum Silence {
    /// Nobody could be asked: the cache may still do.
    Unreached(Error),
    /// It was answered, with a refusal.
    Refused(Error),
}

impl Hub {
    /// The hub that the environment names; [`stay_offline`] wins over it.
    ///
    /// # Errors
    /// Settings that cannot be.
    pub fn of_environment() -> Result<Self> {
        let mut settings = Settings::of_environment()?;
        settings.offline |= is_offline();
        Self::new(settings)
    }

    /// The hub of those settings.
    ///
    /// # Errors
    /// Where there can be no connection with them.
    pub fn new(settings: Settings) -> Result<Self> {
        let authorities = settings.authorities.as_ref().filter(|_| !settings.offline);
        let tls = authorities.map_or_else(|| Ok(TlsConfig::default()), tls::trusting)?;
        let builder = ApiBuilder::from_cache(Cache::new(settings.cache.clone()))
            .with_endpoint(settings.endpoint.clone())
            .with_token(settings.token.as_ref().map(|t| t.secret.clone()))
            // It would draw over the program's own bars.
            .with_progress(false)
            .with_user_agent("reprpo", env!("CARGO_PKG_VERSION"));
        let api = builder
            .build()
            .map_err(|e| Error::internal("there can be no connection with the hub").because(e))?;
        let agent = Agent::config_builder()
            // Each address is looked at before it is gone to.
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(3 * PATIENCE))
            .timeout_per_read(Some(3 * PATIENCE))
            .user_agent(concat!("reprpo/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls.clone())
            .build();
        Ok(Self { settings, api, agent: agent.into(), tls })
    }

    /// What it goes by.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Looks a repository up: at the hub, or in the cache where its revision is a commit that was
    /// seen before, where the process is offline, or where the hub cannot be reached.
    ///
    /// # Errors
    /// One that is not there, is not for this user, or is not in the cache either.
    pub fn open(&self, repo: &RepoId) -> Result<Snapshot<'_>> {
        if self.settings.offline {
            return Snapshot::cached(self, repo).map_err(|e| {
                e.hint(
                    "this run is offline: without `--offline` and \
                    `HF_HUB_OFFLINE` it is fetched from the hub",
                )
            });
        }
        if repo.is_commit()
            && let Some(listing) = Listing::kept(self, repo, &repo.revision)
        {
            return Ok(Snapshot::listed(self, repo, listing));
        }
        match self.ask(repo) {
            Ok(listing) => Ok(Snapshot::listed(self, repo, listing)),
            Err(Silence::Refused(e)) => Err(e),
            Err(Silence::Unreached(e)) => match Snapshot::cached(self, repo) {
                Ok(snapshot) => {
                    tracing::warn!(
                        "{}: `{repo}` is taken from the cache, as of commit {}",
                        e.in_a_line(),
                        short(snapshot.commit())
                    );
                    Ok(snapshot)
                }
                Err(_) => Err(e.hint(format!(
                    "nor is `{repo}` in the cache, `{}`",
                    self.settings.cache.display()
                ))),
            },
        }
    }

    /// What the hub says that a repository holds.
    fn ask(&self, repo: &RepoId) -> Result<Listing, Silence> {
        let unreached = |e: ureq::Error| Silence::Unreached(self.unreached(e));
        let mut busy = 0;
        loop {
            let request = self.api.repo(repo.for_hub()).info_request();
            let request = request
                .config()
                .http_status_as_error(false)
                .timeout_global(Some(PATIENCE))
                .tls_config(self.tls.clone())
                .build();
            let response = request.call().map_err(unreached)?;
            let status = response.status().as_u16();
            match status {
                200 => {
                    let text = response
                        .into_body()
                        .into_with_config()
                        .limit(MOST_SAID)
                        .read_to_string()
                        .map_err(unreached)?;
                    return Listing::read(self, repo, &text).map_err(Silence::Refused);
                }
                429 | 500..=599 if busy < REPEATS => {
                    busy += 1;
                    std::thread::sleep(Duration::from_millis(200 << busy));
                }
                429 | 500..=599 => {
                    return Err(Silence::Unreached(
                        self.unreached(Error::new(format!("it is too busy (status {status})"))),
                    ));
                }
                _ => return Err(Silence::Refused(self.refusal(repo, status, response.headers()))),
            }
        }
    }

    fn unreached(&self, why: impl std::error::Error + Send + Sync + 'static) -> Error {
        let e = Error::new(format!("the hub at `{}` cannot be reached", self.settings.endpoint));
        let e = match (tls::is_distrust(&why), &self.settings.authorities) {
            (false, _) => e.hint(
                "`--offline` takes what is in the cache; `HTTPS_PROXY` and \
                `HF_ENDPOINT` say another way to it",
            ),
            (true, None) => e.hint(
                "where a proxy or a hub of your own has a certificate of its \
                own authority, `SSL_CERT_FILE` names that authority's",
            ),
            (true, Some(own)) => e.hint(format!(
                "trusted are the authorities of `{}`, as {} \
                says",
                own.path.display(),
                own.source
            )),
        };
        e.because(why)
    }

    /// What the hub means by turning a question about a repository down.
    fn refusal(&self, repo: &RepoId, status: u16, headers: &HeaderMap) -> Error {
        let header =
            |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let (what, id) = (repo.kind.word(), &repo.name);
        match (status, header("x-error-code")) {
            (_, "GatedRepo") => self.gated(repo),
            (_, "RevisionNotFound") => {
                Error::new(format!("the {what} `{id}` has no revision `{}`", repo.revision)).hint(
                    "a revision is a branch, a tag or a whole commit; `main` when none is said",
                )
            }
            (401, _) if header("x-error-message").contains("Invalid credentials") => {
                self.whose(Error::new("the hub does not know the token that it was given"))
            }
            // It does not say of a private one that it is there, and of some that are missing no
            // more than 401.
            (_, "RepoNotFound") | (401, "") => {
                let e = Error::new(format!(
                    "there is no {what} `{id}` on the hub that may be seen here"
                ));
                self.whose(match self.settings.endpoint.as_str() {
                    "https://huggingface.co" => e,
                    other => e.hint(format!("the hub is `{other}`, as `HF_ENDPOINT` says")),
                })
            }
            _ => {
                let said: String = header("x-error-message")
                    .chars()
                    .filter(|c| !c.is_control())
                    .take(200)
                    .collect();
                let said = if said.is_empty() { String::new() } else { format!(": {said}") };
                self.whose(Error::new(format!(
                    "the hub does not tell of the {what} `{id}`: status {status}{said}"
                )))
            }
        }
    }

    /// The error of a repository whose terms were not accepted.
    fn gated(&self, repo: &RepoId) -> Error {
        let page = match repo.kind {
            RepoKind::Model => format!("{}/{}", self.settings.endpoint, repo.name),
            RepoKind::Dataset => format!("{}/datasets/{}", self.settings.endpoint, repo.name),
        };
        self.whose(
            Error::new(format!(
                "the {} `{}` is gated: its files are for those who accepted its terms",
                repo.kind.word(),
                repo.name
            ))
            .hint(format!("accept them at {page}")),
        )
    }

    /// Adds who was asking.
    fn whose(&self, e: Error) -> Error {
        e.hint(match &self.settings.token {
            Some(token) => format!("the hub was asked with the token of {}", token.source),
            None => "the hub was asked without a token: set `HF_TOKEN`, or run `hf auth login`, \
                for what is private or gated"
                .to_owned(),
        })
    }

    fn cached(&self, repo: Repo) -> hf_hub::CacheRepo {
        Cache::new(self.settings.cache.clone()).repo(repo)
    }
}

/// A revision for people: of a commit its beginning.
pub fn short(revision: &str) -> &str {
    if id::is_commit(revision) { revision.get(..7).unwrap_or(revision) } else { revision }
}

/// The field of what the hub says of a repository, as text.
fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests;
