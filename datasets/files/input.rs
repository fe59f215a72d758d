//! Opens data files: plain files, compressed files (`.gz`, `.zst`), and standard input (`-`).
//!
//! A compressed file is decompressed as it is read, so the maximum row size applies to the
//! decompressed data. This limit also protects against small files that decompress to gigabytes.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Cursor, IsTerminal, Read};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use flate2::read::MultiGzDecoder;
use reprpo_plugin::prelude::*;
use reprpo_plugin::{is_lfs_pointer, lfs_pointer};

/// The path that stands for standard input.
pub const STDIN: &str = "-";

/// Maximum size of standard input in bytes. The whole input is held in memory.
const MOST_STDIN: u64 = 2 << 30;

/// Number of bytes to read from the start of a file to recognise a Git LFS pointer.
const HEAD: u64 = 1024;

/// Reader of the decompressed contents of a file.
pub type Bytes = Box<dyn Read>;

/// Returns true if a path stands for standard input.
pub fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == OsStr::new(STDIN)
}

/// Opens a file, and decompresses it if its name ends in `.gz` or `.zst`. Compression of standard
/// input is detected from its first bytes.
///
/// # Errors
/// Fails if the file cannot be opened, or if it is a Git LFS pointer.
pub fn open(path: &Path) -> Result<Bytes> {
    if is_stdin(path) {
        let bytes = Cursor::new(stdin()?);
        let packed = Compression::of_bytes(bytes.get_ref());
        return unpacked(bytes, packed).within(|| cannot_open(path));
    }
    let mut file = File::open(path).within(|| cannot_open(path))?;
    let head = head(&mut file, path)?;
    unpacked(Cursor::new(head).chain(file), Compression::of_name(path)).within(|| cannot_open(path))
}

/// Reads the start of a file.
///
/// # Errors
/// Fails if the file cannot be read, or if it is a Git LFS pointer.
pub fn head(file: &mut File, path: &Path) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    file.take(HEAD)
        .read_to_end(&mut head)
        .within(|| format!("cannot read `{}`", path.display()))?;
    if is_lfs_pointer(&head) { Err(lfs_pointer(path)) } else { Ok(head) }
}

fn cannot_open(path: &Path) -> String {
    format!("cannot open `{}`", path.display())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    Gzip,
    Zstd,
}

impl Compression {
    fn of_name(path: &Path) -> Option<Self> {
        match path.extension()?.to_string_lossy().to_lowercase().as_str() {
            "gz" => Some(Self::Gzip),
            "zst" => Some(Self::Zstd),
            _ => None,
        }
    }

    fn of_bytes(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            _ => None,
        }
    }
}

fn unpacked(bytes: impl Read + 'static, compression: Option<Compression>) -> io::Result<Bytes> {
    let (name, unpacked): (_, Bytes) = match compression {
        None => return Ok(Box::new(bytes)),
        Some(Compression::Gzip) => ("gzip", Box::new(MultiGzDecoder::new(bytes))),
        // By default, the decoder refuses frames with a window of more than 128 MiB.
        Some(Compression::Zstd) => ("zstd", Box::new(zstd::stream::read::Decoder::new(bytes)?)),
    };
    Ok(Box::new(Decompressed { name, bytes: unpacked }))
}

/// Adds the name of the compression format to the decoder's errors.
struct Decompressed {
    name: &'static str,
    bytes: Bytes,
}

impl Read for Decompressed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.bytes.read(buffer).map_err(|e| {
            let why = match e.kind() {
                io::ErrorKind::Interrupted => return e,
                io::ErrorKind::UnexpectedEof => "the file is truncated".to_owned(),
                _ => e.to_string(),
            };
            io::Error::new(
                e.kind(),
                format!("its {} data cannot be decompressed: {why}", self.name),
            )
        })
    }
}

/// Returns the contents of standard input. They are cached, because standard input can only be read
/// once.
///
/// # Errors
/// Fails if standard input cannot be read, or if it is larger than 2 GiB.
pub fn stdin() -> Result<Arc<[u8]>> {
    static READ: OnceLock<Result<Arc<[u8]>, String>> = OnceLock::new();
    let read = READ.get_or_init(|| {
        let mut bytes = Vec::new();
        let read = io::stdin().lock().take(MOST_STDIN + 1).read_to_end(&mut bytes);
        match read {
            Ok(n) if n as u64 > MOST_STDIN => {
                Err(format!("it has more than {} GiB", MOST_STDIN >> 30))
            }
            Ok(_) => Ok(bytes.into()),
            Err(e) => Err(e.to_string()),
        }
    });
    read.clone().map_err(|why| {
        Error::new("cannot read standard input")
            .because(Error::new(why))
            .hint("write the pairs to a file and use the file instead")
    })
}

/// Returns true if standard input is a terminal.
pub fn stdin_is_terminal() -> bool {
    io::stdin().is_terminal()
}

#[cfg(test)]
pub(crate) mod packed {
    use std::io::Write;

    pub fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    }

    pub fn zstd(bytes: &[u8]) -> Vec<u8> {
        ::zstd::encode_all(bytes, 1).unwrap()
    }
}
