//! Checks the page headers of a parquet file before any page is decompressed. The parquet reader
//! allocates as much memory as a header declares. In a damaged file, the header of a page of a few
//! bytes can declare two gigabytes.

use std::io::{self, BufReader, Read, Seek, SeekFrom};

/// Maximum decompressed size of a page in bytes. Writers usually start a new page after about
/// 1 MiB. Only a page with a very large row is larger.
pub const LARGEST: i64 = 128 << 20;

/// Maximum nesting of structs; a page header has two levels.
const DEEPEST: usize = 16;

/// Returns the decompressed size in bytes of the first page larger than [`LARGEST`] in the byte
/// range `start..end`. Returns `None` if there is no such page.
///
/// Also returns `None` at a malformed header, because the parquet reader has a better error
/// message.
///
/// # Errors
/// Fails if the file cannot be read.
pub fn too_large(file: impl Read + Seek, start: u64, end: u64) -> io::Result<Option<i64>> {
    let mut bytes = BufReader::new(file);
    let mut at = start;
    while at < end {
        let by = at as i64 - bytes.stream_position()? as i64;
        bytes.seek_relative(by)?;
        let Some(Header { unpacked, packed }) = header(&mut bytes)? else { return Ok(None) };
        if unpacked > LARGEST {
            return Ok(Some(unpacked));
        }
        at = bytes.stream_position()?.saturating_add(u64::try_from(packed).unwrap_or(u64::MAX));
    }
    Ok(None)
}

/// The sizes in a page's header.
struct Header {
    unpacked: i64,
    packed: i64,
}

/// Reads a page header: a struct in Thrift's compact protocol. Field 2 is the uncompressed size,
/// and field 3 is the compressed size. Returns `None` if the header is malformed.
fn header(bytes: &mut (impl Read + Seek)) -> io::Result<Option<Header>> {
    let (mut unpacked, mut packed, mut field) = (None, None, 0);
    while let Some((kind, id)) = next_field(bytes, field)? {
        field = id;
        match (id, kind) {
            (2, 5) => unpacked = varint(bytes)?.map(zigzag),
            (3, 5) => packed = varint(bytes)?.map(zigzag),
            _ if !skip(bytes, kind, DEEPEST)? => return Ok(None),
            _ => {}
        }
    }
    Ok(unpacked.zip(packed).map(|(unpacked, packed)| Header { unpacked, packed }))
}

/// Returns the type and the number of the next field. `before` is the number of the previous field.
/// Returns `None` at the end of the struct or of the file.
fn next_field(bytes: &mut impl Read, before: i64) -> io::Result<Option<(u8, i64)>> {
    let Some(first) = byte(bytes)?.filter(|b| *b != 0) else { return Ok(None) };
    let id = match first >> 4 {
        0 => varint(bytes)?.map(zigzag),
        more => Some(before + i64::from(more)),
    };
    Ok(id.map(|id| (first & 0x0f, id)))
}

/// Skips a value. Returns false if it is malformed.
fn skip(bytes: &mut (impl Read + Seek), kind: u8, deeper: usize) -> io::Result<bool> {
    let Some(deeper) = deeper.checked_sub(1) else { return Ok(false) };
    match kind {
        // A boolean has no data: its type code is its value.
        1 | 2 => Ok(true),
        3 => Ok(byte(bytes)?.is_some()),
        4..=6 => Ok(varint(bytes)?.is_some()),
        7 => bytes.seek(SeekFrom::Current(8)).map(|_| true),
        8 => match varint(bytes)?.and_then(|n| i64::try_from(n).ok()) {
            Some(n) => bytes.seek(SeekFrom::Current(n)).map(|_| true),
            None => Ok(false),
        },
        12 => {
            let mut field = 0;
            while let Some((kind, id)) = next_field(bytes, field)? {
                if !skip(bytes, kind, deeper)? {
                    return Ok(false);
                }
                field = id;
            }
            Ok(true)
        }
        // Lists and maps do not occur in a page header.
        _ => Ok(false),
    }
}

fn byte(bytes: &mut impl Read) -> io::Result<Option<u8>> {
    let mut one = [0];
    Ok((bytes.read(&mut one)? == 1).then_some(one[0]))
}

fn varint(bytes: &mut impl Read) -> io::Result<Option<u64>> {
    let mut n = 0;
    for shift in (0..64).step_by(7) {
        let Some(b) = byte(bytes)? else { return Ok(None) };
        n |= u64::from(b & 0x7f) << shift;
        if b < 0x80 {
            return Ok(Some(n));
        }
    }
    Ok(None)
}

fn zigzag(n: u64) -> i64 {
    (n >> 1) as i64 ^ -((n & 1) as i64)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// A data page with three bytes of content. Its header declares a decompressed size of
    /// `unpacked` bytes.
    fn page(unpacked: u64) -> Vec<u8> {
        let mut bytes = vec![0x15, 0];
        let varint = |bytes: &mut Vec<u8>, mut n: u64| {
            while n >= 0x80 {
                bytes.push(n as u8 | 0x80);
                n >>= 7;
            }
            bytes.push(n as u8);
        };
        bytes.push(0x15);
        varint(&mut bytes, unpacked << 1);
        bytes.push(0x15);
        varint(&mut bytes, 3 << 1);
        // Field 5 is a nested struct with a number and a string. The last two bytes end the nested
        // struct and the header.
        bytes.extend([0x2c, 0x15, 8, 0x18, 2, b'x', b'y', 0, 0]);
        bytes.extend(b"abc");
        bytes
    }

    #[test]
    fn the_first_page_that_is_too_large_is_found() {
        let file =
            [b"PAR1".to_vec(), page(10), page(1 << 20), page(2_000_000_000), page(1)].concat();
        let end = file.len() as u64;
        assert_eq!(too_large(Cursor::new(&file), 4, end).unwrap(), Some(2_000_000_000));
        let before = (4 + page(10).len() + page(1 << 20).len()) as u64;
        assert_eq!(too_large(Cursor::new(&file), 4, before).unwrap(), None);
    }

    #[test]
    fn a_malformed_header_ends_the_search() {
        for length in 0..page(5).len() {
            assert_eq!(
                too_large(Cursor::new(&page(5)[..length]), 0, 1 << 40).unwrap(),
                None,
                "{length}"
            );
        }
        for junk in [vec![0x1c; 100], vec![0xff; 100], vec![0; 10]] {
            assert_eq!(too_large(Cursor::new(junk), 0, 1 << 20).unwrap(), None);
        }
    }
}
