//! The header of a safetensors file: JSON that says of each tensor its type, shape and place.
//!
//! It is read entry by entry and never as a whole, so that a hostile one costs neither time nor
//! memory, and what is wrong is told with the tensor's name. The rules are those of the
//! `safetensors` crate: tensors fill the file from the header to the end, without gaps and without
//! sharing a byte.

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

/// The number types that are read and written, by the names that the format has for them.
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

/// Where a tensor lies and what it is.
#[derive(Debug)]
pub(super) struct Stored {
    pub kind: Kind,
    pub shape: Vec<i64>,
    /// Its bytes in the file, as many as the shape needs.
    pub at: Range<usize>,
}

/// The format allows 100 MB; the largest models have a hundredth of this in a file.
const LONGEST: u64 = 1 << 25;
const MOST_TENSORS: usize = 1 << 17;
const MOST_AXES: usize = 8;

/// Reads and checks the header: the tensors in the order of their data.
///
/// # Errors
/// Where the file is cut off, is no safetensors file, or contradicts itself.
pub(super) fn read(map: &Mapped) -> Result<IndexMap<String, Stored>> {
    let (text, data) = parts(map)?;
    let mut entries = Entries::default();
    let mut json = serde_json::Deserializer::from_slice(&map[text]);
    let parsed = (&mut entries).deserialize(&mut json).and_then(|()| json.end());
    if let Err(e) = parsed {
        let what = match entries.current {
            Some(name) => format!("its header is wrong at tensor `{}`", shown(&name)),
            None => "its header is no JSON that says where tensors are".to_owned(),
        };
        return Err(wrong(map, &what).because(e).hint(why_not(map)));
    }
    let mut tensors = Vec::with_capacity(entries.tensors.len());
    for (name, entry) in entries.tensors {
        let stored = entry.check(map, &name, &data)?;
        tensors.push((name, stored));
    }
    tensors.sort_by(|(a, x), (b, y)| (x.at.start, x.at.end, a).cmp(&(y.at.start, y.at.end, b)));
    fills(map, &tensors, &data)?;
    Ok(tensors.into_iter().collect())
}

/// Where the JSON is, and where the data behind it.
fn parts(map: &Mapped) -> Result<(Range<usize>, Range<usize>)> {
    let Some(len) = map.first_chunk::<8>() else {
        return Err(wrong(
            map,
            &format!("it has {} bytes, and the length of its header alone takes 8", map.len()),
        )
        .hint(why_not(map)));
    };
    let (len, left) = (u64::from_le_bytes(*len), map.len() as u64 - 8);
    if len > left {
        return Err(wrong(map, &format!("it claims a header of {len} bytes and has {left}"))
            .hint(why_not(map)));
    }
    if len > LONGEST {
        return Err(wrong(map, &format!("it claims a header of {len} bytes"))
            .hint(format!("valid: up to {LONGEST} bytes")));
    }
    let start = 8 + len as usize;
    Ok((8..start, start..map.len()))
}

/// A name for a message: all of it, where that can be read.
fn shown(name: &str) -> String {
    match name.char_indices().nth(200) {
        Some((at, _)) => format!("{}…", &name[..at]),
        None => name.to_owned(),
    }
}

fn wrong(map: &Mapped, what: &str) -> Error {
    Error::new(format!("`{}` is no valid safetensors file: {what}", map.path().display()))
}

/// What a file that is not safetensors most likely is.
fn why_not(bytes: &[u8]) -> &'static str {
    match bytes {
        [b'P', b'K', 3, 4, ..] | [0x80, 2..=5, ..] => {
            "it is a pickled PyTorch checkpoint, which is never read: convert it with \
                `safetensors.torch.save_file`"
        }
        [b'G', b'G', b'U', b'F', ..] => "it is a GGUF file: name it so, with the ending `.gguf`",
        _ => "fetch it again: the download may have been cut off",
    }
}

/// That the tensors, in the order of their data, fill it.
fn fills(map: &Mapped, tensors: &[(String, Stored)], data: &Range<usize>) -> Result<()> {
    let (mut end, mut last) = (data.start, None);
    for (name, stored) in tensors {
        if stored.at.start < end {
            return Err(wrong(
                map,
                &format!(
                    "tensors `{}` and `{}` are in the same place",
                    shown(last.unwrap_or_default()),
                    shown(name)
                ),
            ));
        }
        if stored.at.start > end {
            return Err(wrong(
                map,
                &format!(
                    "{} bytes before tensor `{}` belong to no tensor",
                    stored.at.start - end,
                    shown(name)
                ),
            ));
        }
        (end, last) = (stored.at.end, Some(name.as_str()));
    }
    match data.end - end {
        0 => Ok(()),
        rest => Err(wrong(map, &format!("its last {rest} bytes belong to no tensor"))),
    }
}

/// What the header says of one tensor.
#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Axes,
    data_offsets: (u64, u64),
}

impl Entry<'_> {
    fn check(self, map: &Mapped, name: &str, data: &Range<usize>) -> Result<Stored> {
        let (name, dtype) = (shown(name), shown(&self.dtype));
        let kind = KINDS
            .iter()
            .find(|(known, ..)| *known == self.dtype)
            .map(|(_, _, kind)| *kind)
            .ok_or_else(|| {
                let read = KINDS.map(|(known, ..)| known).join(", ");
                Error::new(format!(
                    "tensor `{name}` in `{}` has the type {dtype}, which is not read",
                    map.path().display()
                ))
                .hint(format!("read: {read}"))
            })?;
        let axes = &self.shape.0;
        let shape = axes.iter().map(|&len| i64::try_from(len).ok()).collect::<Option<Vec<i64>>>();
        let bytes = axes
            .iter()
            .try_fold(kind.elt_size_in_bytes() as u64, |bytes, &len| bytes.checked_mul(len));
        let (Some(shape), Some(bytes)) = (shape, bytes) else {
            return Err(wrong(
                map,
                &format!("tensor `{name}` has the shape {axes:?}, which nothing can hold"),
            ));
        };
        let (from, to) = self.data_offsets;
        if to > data.len() as u64 {
            return Err(wrong(
                map,
                &format!(
                    "it ends before tensor `{name}` does, at {to} of {} bytes of data",
                    data.len()
                ),
            )
            .hint(why_not(map)));
        }
        if to.checked_sub(from) != Some(bytes) {
            return Err(wrong(
                map,
                &format!(
                    "tensor `{name}` of shape {axes:?} and type {dtype} takes {bytes} bytes, and \
                        its place is {from} to {to}"
                ),
            ));
        }
        // Both are within the data, which is in the address space.
        Ok(Stored { kind, shape, at: data.start + from as usize..data.start + to as usize })
    }
}

/// The lengths of a tensor's axes.
struct Axes(Vec<u64>);

impl<'de> Deserialize<'de> for Axes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Few;
        impl<'de> Visitor<'de> for Few {
            type Value = Axes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a shape: up to {MOST_AXES} lengths")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Axes, A::Error> {
                let mut axes = Vec::new();
                while let Some(len) = seq.next_element()? {
                    if axes.len() == MOST_AXES {
                        return Err(A::Error::custom(format!(
                            "a shape of more than {MOST_AXES} axes"
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

/// The entries read so far, and the name of the one that is being read.
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
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if self.tensors.contains_key(&name) {
                return Err(A::Error::custom(format!(
                    "it has the tensor `{}` twice",
                    shown(&name)
                )));
            }
            if self.tensors.len() == MOST_TENSORS {
                return Err(A::Error::custom(format!("it has more than {MOST_TENSORS} tensors")));
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
