//! TLS configuration that only trusts the certificate authorities chosen by the user.

use std::error::Error as Cause;
use std::path::{Path, PathBuf};

use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use super::Authorities;
use crate::error::{Context, Error, Result};
use crate::files::read_bounded;

/// Maximum size, in bytes, of a file with certificates. A bundle of all public certificate
/// authorities is about a hundred times smaller.
const MAX_PEM_BYTES: u64 = 1 << 24;

/// Creates a TLS configuration that only trusts these certificate authorities.
pub fn trusting(authorities: &Authorities) -> Result<TlsConfig> {
    read(authorities)
        .map_err(|e| e.hint(format!("correct or unset {}, or use `--offline`", authorities.source)))
}

fn read(authorities: &Authorities) -> Result<TlsConfig> {
    let within = || format!("cannot use the certificates from {}", authorities.source);
    let mut certificates = Vec::new();
    for file in files(&authorities.path).within(within)? {
        let bytes = read_bounded(&file, MAX_PEM_BYTES).within(within)?;
        for item in parse_pem(&bytes) {
            let broken =
                |e| Error::new(format!("`{}` is not a valid PEM file", file.display())).because(e);
            if let PemItem::Certificate(certificate) = item.map_err(broken).within(within)? {
                certificates.push(certificate);
            }
        }
    }
    if certificates.is_empty() {
        return Err(Error::new(format!(
            "`{}` does not contain a certificate in PEM format",
            authorities.path.display()
        )))
        .within(within);
    }
    Ok(TlsConfig::builder().root_certs(RootCerts::from(certificates)).build())
}

/// Returns the sorted files in `path` if it is a folder, and `path` itself otherwise.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let within = || format!("cannot read `{}`", path.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).within(within)? {
        let file = entry.within(within)?.path();
        if file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// True if a connection failed because the server's certificate was not trusted.
pub fn is_untrusted_certificate(e: &(dyn Cause + 'static)) -> bool {
    // The rustls error is wrapped in an I/O error, so only its message identifies it.
    e.to_string().contains("invalid peer certificate")
        || e.source().is_some_and(is_untrusted_certificate)
}
