//! Reads the header of a safetensors file. The header is JSON, and contains the dtype, shape and
//! byte range of each tensor.
//!
//! The entries are parsed one by one. A malicious header therefore cannot use much time or memory,
//! and errors can name the tensor. As required by the `safetensors` crate, the data of the tensors
//! must fill the rest of the file without gaps or overlaps.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use indexmap::IndexMap;
use safetensors::Dtype;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use tch::Kind;

use super::memory::Mapped;
use crate::error::{Error, Result};

/// The supported dtypes. Each has a name in the header, a `Dtype` in `safetensors` and a `Kind` in
/// tch.
pub(super) const KINDS: [(&str, Dtype, Kind); 8] = [
    ("F64", Dtype::F64, Kind::Double),
    ("F32", Dtype::F32, Kind::Float),
    ("F16", Dtype::F16, Kind::Half),
    ("BF16", Dtype::BF16, Kind::BFloat16),
    ("I64", Dtype::I64, Kind::Int64),
    ("I32", Dtype::I32, Kind::Int),
    ("U8", Dtype::U8, Kind::Uint8),
    ("BOOL", Dtype::BOOL, Kind::Bool),
];

/// A tensor in a file.
#[derive(Debug)]
pub(super) struct TensorEntry {
    pub kind: Kind,
    pub shape: Vec<i64>,
    /// Byte range of the data in the file. Its length matches `shape` and `kind`.
    pub at: Range<usize>,
}

/// Maximum size of a header in bytes. The largest known headers are about a hundred times smaller.
/// The format allows up to 100 MB.
const MAX_HEADER_BYTES: u64 = 1 << 25;
const MAX_TENSORS: usize = 1 << 17;
const MAX_AXES: usize = 8;

/// Reads and validates the header. Returns the tensors in the order of their data.
///
/// # Errors
/// Fails if the file is incomplete, inconsistent or not a safetensors file.
pub(super) fn read(map: &Mapped) -> Result<IndexMap<String, TensorEntry>> {
    let (text, data) = parts(map)?;
    let mut entries = Entries::default();
    let mut json = serde_json::Deserializer::from_slice(&map[text]);
    let parsed = (&mut entries).deserialize(&mut json).and_then(|()| json.end());
    if let Err(e) = parsed {
        let what = match entries.current {
            Some(name) => format!("its header is invalid at tensor `{}`", shortened(&name)),
            None => "its header is not a JSON object that contains tensors".to_owned(),
        };
        return Err(wrong(map, &what).because(e).hint(hint_for(map)));
    }
    let mut tensors = Vec::with_capacity(entries.tensors.len());
    for (name, entry) in entries.tensors {
        let stored = entry.check(map, &name, &data)?;
        tensors.push((name, stored));
    }
    tensors.sort_by(|(a, x), (b, y)| (x.at.start, x.at.end, a).cmp(&(y.at.start, y.at.end, b)));
    check_coverage(map, &tensors, &data)?;
    Ok(tensors.into_iter().collect())
}

/// Returns the byte ranges of the JSON and of the tensor data.
fn parts(map: &Mapped) -> Result<(Range<usize>, Range<usize>)> {
    let Some(len) = map.first_chunk::<8>() else {
        return Err(wrong(map, &format!("it must have at least 8 bytes, got {}", map.len()))
            .hint(hint_for(map)));
    };
    let (len, left) = (u64::from_le_bytes(*len), map.len() as u64 - 8);
    if len > left {
        return Err(wrong(
            map,
            &format!("it has a header of {len} bytes, but only {left} bytes follow"),
        )
        .hint(hint_for(map)));
    }
    if len > MAX_HEADER_BYTES {
        return Err(wrong(map, &format!("its header of {len} bytes is too large"))
            .hint(format!("valid: up to {MAX_HEADER_BYTES} bytes")));
    }
    let start = 8 + len as usize;
    Ok((8..start, start..map.len()))
}

/// Shortens a name for an error message.
fn shortened(name: &str) -> String {
    match name.char_indices().nth(200) {
        Some((at, _)) => format!("{}…", &name[..at]),
        None => name.to_owned(),
    }
}

fn wrong(map: &Mapped, what: &str) -> Error {
    Error::new(format!("`{}` is not a valid safetensors file: {what}", map.path().display()))
}

/// Returns a hint for an invalid file, based on its first bytes.
fn hint_for(bytes: &[u8]) -> &'static str {
    match bytes {
        [b'P', b'K', 3, 4, ..] | [0x80, 2..=5, ..] => {
            "convert it with `safetensors.torch.save_file`: it is a pickled PyTorch checkpoint, \
            which is never read"
        }
        [b'G', b'G', b'U', b'F', ..] => {
            "add the extension `.gguf` to its name, because it is a GGUF file"
        }
        _ => "download it again; the last download may have been incomplete",
    }
}

/// Checks that the tensors fill `data` without gaps or overlaps. `tensors` must be sorted by
/// position.
fn check_coverage(
    map: &Mapped,
    tensors: &[(String, TensorEntry)],
    data: &Range<usize>,
) -> Result<()> {
    let (mut end, mut last) = (data.start, None);
    for (name, stored) in tensors {
        if stored.at.start < end {
            return Err(wrong(
                map,
                &format!(
                    "tensors `{}` and `{}` overlap",
                    shortened(last.unwrap_or_default()),
                    shortened(name)
                ),
            ));
        }
        if stored.at.start > end {
            return Err(wrong(
                map,
                &format!(
                    "{} bytes before tensor `{}` do not belong to any tensor",
                    stored.at.start - end,
                    shortened(name)
                ),
            ));
        }
        (end, last) = (stored.at.end, Some(name.as_str()));
    }
    match data.end - end {
        0 => Ok(()),
        rest => Err(wrong(map, &format!("its last {rest} bytes do not belong to any tensor"))),
    }
}

/// The JSON description of a tensor.
#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Axes,
    data_offsets: (u64, u64),
}

impl Entry<'_> {
    fn check(self, map: &Mapped, name: &str, data: &Range<usize>) -> Result<TensorEntry> {
        let (name, dtype) = (shortened(name), shortened(&self.dtype));
        let kind = KINDS
            .iter()
            .find(|(known, ..)| *known == self.dtype)
            .map(|(_, _, kind)| *kind)
            .ok_or_else(|| {
                let read = KINDS.map(|(known, ..)| known).join(", ");
                Error::new(format!(
                    "tensor `{name}` in `{}` has the unsupported type {dtype}",
                    map.path().display()
                ))
                .hint(format!("valid: {read}"))
            })?;
        let axes = &self.shape.0;
        let shape = axes.iter().map(|&len| i64::try_from(len).ok()).collect::<Option<Vec<i64>>>();
        let bytes = axes
            .iter()
            .try_fold(kind.elt_size_in_bytes() as u64, |bytes, &len| bytes.checked_mul(len));
        let (Some(shape), Some(bytes)) = (shape, bytes) else {
            return Err(wrong(
                map,
                &format!("tensor `{name}` has the shape {axes:?}, which is too large"),
            ));
        };
        let (from, to) = self.data_offsets;
        if to > data.len() as u64 {
            return Err(wrong(
                map,
                &format!(
                    "tensor `{name}` ends at byte {to}, but there are only {} bytes of data",
                    data.len()
                ),
            )
            .hint(hint_for(map)));
        }
        if to.checked_sub(from) != Some(bytes) {
            return Err(wrong(
                map,
                &format!(
                    "tensor `{name}` of shape {axes:?} and type {dtype} takes {bytes} bytes, but \
                    its offsets are {from} and {to}"
                ),
            ));
        }
        // These casts cannot overflow, because both offsets are within the mapped file.
        Ok(TensorEntry { kind, shape, at: data.start + from as usize..data.start + to as usize })
    }
}

/// The shape of a tensor.
struct Axes(Vec<u64>);

impl<'de> Deserialize<'de> for Axes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Few;
        impl<'de> Visitor<'de> for Few {
            type Value = Axes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a shape with at most {MAX_AXES} dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Axes, A::Error> {
                let mut axes = Vec::new();
                while let Some(len) = seq.next_element()? {
                    if axes.len() == MAX_AXES {
                        return Err(A::Error::custom(format!(
                            "a shape with more than {MAX_AXES} dimensions"
                        )));
                    }
                    axes.push(len);
                }
                Ok(Axes(axes))
            }
        }
        from.deserialize_seq(Few)
    }
}

/// The entries that have been parsed, and the name of the current entry.
#[derive(Default)]
struct Entries<'a> {
    tensors: IndexMap<String, Entry<'a>>,
    current: Option<String>,
}

impl<'de> DeserializeSeed<'de> for &mut Entries<'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &mut Entries<'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object that contains tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if self.tensors.contains_key(&name) {
                return Err(A::Error::custom(format!("duplicate tensor `{}`", shortened(&name))));
            }
            if self.tensors.len() == MAX_TENSORS {
                return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
            }
            self.current = Some(name);
            let entry = map.next_value()?;
            self.tensors.extend(self.current.take().map(|name| (name, entry)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
