//! Settings of the hub client. The environment variables are the same as in Hugging Face's Python
//! client.

use std::env;
use std::fmt;
use std::path::PathBuf;

use super::cache::{cache_dir, user_cache};
use crate::error::{Context, Error, Result};

const ENDPOINT: &str = "https://huggingface.co";

/// URL of the hub, cache folders, credentials and certificates.
#[derive(Clone, Debug)]
pub struct Settings {
    /// URL of the hub, without a trailing slash. Set by `HF_ENDPOINT`.
    pub endpoint: String,
    /// The cache that all Hugging Face libraries share. Set by `HF_HUB_CACHE`, or by its older name
    /// `HUGGINGFACE_HUB_CACHE`. The default is `$HF_HOME/hub`.
    pub cache: PathBuf,
    /// Folder for the lists of the files in each repository. The shared cache does not contain
    /// these lists.
    pub listings: PathBuf,
    /// True if network access is disabled and only the cache is used. Set by `HF_HUB_OFFLINE`,
    /// `TRANSFORMERS_OFFLINE` or `--offline`.
    pub offline: bool,
    /// Access token. Read from `HF_TOKEN`, or from the file that `hf auth login` writes.
    pub token: Option<Token>,
    /// Certificate authorities to trust instead of the default ones. Set by `SSL_CERT_FILE`,
    /// `REQUESTS_CA_BUNDLE` or `CURL_CA_BUNDLE`. With `None`, Mozilla's list of public authorities
    /// is used.
    pub authorities: Option<Authorities>,
}

/// A PEM file with certificates, or a folder of PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorities {
    /// Path of the file or folder.
    pub path: PathBuf,
    /// The environment variable that contains the path, in backticks. Used in error messages.
    pub source: String,
}

/// An access token. The secret is never printed.
#[derive(Clone)]
pub struct Token {
    pub(super) secret: String,
    /// Origin of the token: an environment variable or the path of a file, in backticks. Used in
    /// error messages.
    pub source: String,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the token from {}", self.source)
    }
}

impl Settings {
    /// Reads the settings from the environment variables of this process.
    ///
    /// # Errors
    /// Fails if the endpoint is not an HTTP URL, or if the token cannot be read or contains invalid
    /// characters.
    pub fn of_environment() -> Result<Self> {
        Self::from(&|name| env::var_os(name).map(PathBuf::from))
    }

    fn from(variable: &dyn Fn(&str) -> Option<PathBuf>) -> Result<Self> {
        let path = |name: &str| variable(name).filter(|v| !v.as_os_str().is_empty());
        let text = |name: &str| {
            path(name)
                .and_then(|v| v.into_os_string().into_string().ok())
                .map(|v| v.trim().to_owned())
                .filter(|v| !v.is_empty())
        };
        let on = |name: &str| {
            text(name)
                .is_some_and(|v| matches!(v.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
        };
        let home = path("HF_HOME").unwrap_or_else(|| user_cache().join("huggingface"));

        let endpoint = text("HF_ENDPOINT")
            .unwrap_or_else(|| ENDPOINT.to_owned())
            .trim_end_matches('/')
            .to_owned();
        let host = endpoint
            .strip_prefix("https://")
            .or_else(|| endpoint.strip_prefix("http://"))
            .unwrap_or_default();
        if host.is_empty()
            || host.contains(|c: char| c.is_whitespace() || c.is_control() || "@?#".contains(c))
        {
            return Err(Error::new("`HF_ENDPOINT` is not a valid URL of a hub")
                .hint(format!("use the form `{ENDPOINT}`")));
        }
        let token = match ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]
            .into_iter()
            .find_map(|name| Some((text(name)?, format!("`{name}`"))))
        {
            Some(found) => Some(found),
            None => {
                let file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
                match std::fs::read_to_string(&file) {
                    Ok(text) => Some((text.trim().to_owned(), format!("`{}`", file.display())))
                        .filter(|(secret, _)| !secret.is_empty()),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
                    Err(e) => {
                        return Err(e).within(|| {
                            format!(
                                "cannot read the access token for the hub from `{}`",
                                file.display()
                            )
                        });
                    }
                }
            }
        };
        let token = token.map(|(secret, source)| {
            let written = secret.len() <= 512 && secret.bytes().all(|b| b.is_ascii_graphic());
            if written {
                Ok(Token { secret, source })
            } else {
                Err(Error::new(format!(
                    "{source} does not contain a valid access token for the hub"
                )))
            }
        });
        let named = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]
            .into_iter()
            .find_map(|name| Some((path(name)?, name)));
        Ok(Self {
            endpoint,
            cache: path("HF_HUB_CACHE")
                .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
                .unwrap_or_else(|| home.join("hub")),
            listings: cache_dir().join("hub"),
            offline: on("HF_HUB_OFFLINE") || on("TRANSFORMERS_OFFLINE"),
            token: token.transpose()?,
            authorities: named
                .map(|(path, name)| Authorities { path, source: format!("`{name}`") }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Settings> {
        Settings::from(&|name| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, v)| PathBuf::from(v))
        })
    }

    #[test]
    fn the_variables_are_those_of_the_python_client() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        let plain = of(&[("HF_HOME", home)]).unwrap();
        assert_eq!(
            (plain.endpoint.as_str(), plain.offline, plain.token.is_none()),
            (ENDPOINT, false, true)
        );
        assert_eq!(plain.cache, dir.path().join("hub"));
        std::fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        assert_eq!(of(&[("HF_HOME", home)]).unwrap().token.unwrap().secret, "hf_file");
        let custom = of(&[
            ("HF_HOME", home),
            ("HF_TOKEN", " hf_variable "),
            ("HF_HUB_CACHE", "/c"),
            ("HF_ENDPOINT", "http://h:1/"),
            ("HF_HUB_OFFLINE", "yes"),
        ])
        .unwrap();
        assert_eq!(
            (
                custom.token.as_ref().unwrap().secret.as_str(),
                custom.cache,
                custom.endpoint.as_str()
            ),
            ("hf_variable", PathBuf::from("/c"), "http://h:1")
        );
        let older = [("HF_HOME", home), ("HUGGINGFACE_HUB_CACHE", "/older")];
        assert_eq!(of(&older).unwrap().cache, PathBuf::from("/older"));
        assert_eq!(
            of(&[&older[..], &[("HF_HUB_CACHE", "/c")]].concat()).unwrap().cache,
            PathBuf::from("/c")
        );
        let bundles =
            of(&[("HF_HOME", home), ("CURL_CA_BUNDLE", "/b"), ("REQUESTS_CA_BUNDLE", "/a")])
                .unwrap()
                .authorities;
        assert_eq!(
            bundles,
            Some(Authorities { path: "/a".into(), source: "`REQUESTS_CA_BUNDLE`".into() })
        );
        assert!(
            custom.offline && !of(&[("HF_HOME", home), ("HF_HUB_OFFLINE", "0")]).unwrap().offline
        );
    }

    #[test]
    fn a_token_is_never_printed() {
        let dir = tempfile::tempdir().unwrap();
        let home = ("HF_HOME", dir.path().to_str().unwrap());
        let settings = of(&[home, ("HF_TOKEN", "hf_secret")]).unwrap();
        assert!(!format!("{settings:?}").contains("secret"), "{settings:?}");
        let e = of(&[home, ("HF_TOKEN", "hf_sec\nret")]).unwrap_err();
        assert!(
            format!("{e:?}").contains("`HF_TOKEN`") && !format!("{e:?}").contains("hf_"),
            "{e:?}"
        );
    }

    #[test]
    fn an_invalid_endpoint_is_refused() {
        for bad in
            ["huggingface.co", "ftp://x", "https://", "https://user:secret@host", "https://a b"]
        {
            let e = of(&[("HF_HOME", "/nowhere"), ("HF_ENDPOINT", bad)]).unwrap_err();
            assert!(
                e.message().contains("HF_ENDPOINT") && !format!("{e:?}").contains("secret"),
                "{e:?}"
            );
        }
    }
}
