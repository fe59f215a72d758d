//! Whose certificates are trusted, where the user names them.

use std::error::Error as Cause;
use std::path::{Path, PathBuf};

use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use super::Authorities;
use crate::error::{Context, Error, Result};
use crate::files::read_bounded;

/// Most bytes of a file of certificates. Those of all public authorities have a hundredth of it.
const MOST: u64 = 1 << 24;

/// Connections to whom these authorities, and no others, vouch for.
pub fn trusting(authorities: &Authorities) -> Result<TlsConfig> {
    read(authorities).map_err(|e| {
        e.hint(format!(
            "unset {} where it is not needed; `--offline` asks nobody",
            authorities.source
        ))
    })
}

fn read(authorities: &Authorities) -> Result<TlsConfig> {
    let within = || format!("the certificates that {} names cannot be used", authorities.source);
    let mut certificates = Vec::new();
    for file in files(&authorities.path).within(within)? {
        let bytes = read_bounded(&file, MOST).within(within)?;
        for item in parse_pem(&bytes) {
            let broken = |e| {
                Error::new(format!("`{}` holds something that is no PEM", file.display()))
                    .because(e)
            };
            if let PemItem::Certificate(certificate) = item.map_err(broken).within(within)? {
                certificates.push(certificate);
            }
        }
    }
    if certificates.is_empty() {
        return Err(Error::new(format!(
            "`{}` holds no certificate in PEM",
            authorities.path.display()
        )))
        .within(within);
    }
    Ok(TlsConfig::builder().root_certs(RootCerts::from(certificates)).build())
}

/// The file, or the files of a folder in the order of their names.
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

/// Whether a connection failed because nobody who is trusted vouches for the other side.
pub fn is_distrust(e: &(dyn Cause + 'static)) -> bool {
    // rustls's words, which come wrapped as an error of input and output.
    e.to_string().contains("invalid peer certificate") || e.source().is_some_and(is_distrust)
}
