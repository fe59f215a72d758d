//! safetensors files: the one format that is written, and the usual one to read.
//!
//! The header is checked by the `safetensors` crate (lengths, overlaps, the file's end) before a byte of data is
//! touched. Values move as bytes and never through `tch::kind::Element`, whose `bf16` claims to be `f16`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use indexmap::IndexMap;
use safetensors::{Dtype, SafeTensors, View};
use tch::{Device, Kind, Tensor};

use super::memory::Mapped;
use crate::error::{Context, Error, Result};

/// The number types that are read and written.
const KINDS: [(Dtype, Kind); 8] = [
    (Dtype::F64, Kind::Double),
    (Dtype::F32, Kind::Float),
    (Dtype::F16, Kind::Half),
    (Dtype::BF16, Kind::BFloat16),
    (Dtype::I64, Kind::Int64),
    (Dtype::I32, Kind::Int),
    (Dtype::U8, Kind::Uint8),
    (Dtype::BOOL, Kind::Bool),
];

/// One safetensors file, mapped, with its header checked.
#[derive(Debug)]
pub struct SafetensorsFile {
    map: Mapped,
    tensors: IndexMap<String, Stored>,
}

#[derive(Debug)]
struct Stored {
    kind: Kind,
    shape: Vec<i64>,
    at: Range<usize>,
}

impl SafetensorsFile {
    /// Maps a file and checks its header.
    ///
    /// # Errors
    /// A file that cannot be read, is cut off, is no safetensors file, or holds a number type that is not read here.
    pub fn open(path: &Path) -> Result<Self> {
        let map = Mapped::open(path)?;
        let (header, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|e| Error::new(format!("`{}` is no valid safetensors file", path.display())).because(e.to_string()).hint(why_not(&map)))?;
        let mut tensors = IndexMap::new();
        for name in metadata.offset_keys() {
            let Some(info) = metadata.info(&name) else { continue };
            let kind = kind_of(info.dtype).ok_or_else(|| {
                Error::new(format!("tensor `{name}` in `{}` has the type {}, which is not read", path.display(), info.dtype))
                    .hint(format!("read: {}", read_types()))
            })?;
            let shape = info.shape.iter().map(|&d| i64::try_from(d)).collect::<Result<_, _>>();
            let shape = shape.map_err(|e| Error::new(format!("tensor `{name}` in `{}` is too large", path.display())).because(e))?;
            // Eight bytes hold the header's length, then comes the header.
            let (start, end) = (8 + header + info.data_offsets.0, 8 + header + info.data_offsets.1);
            tensors.insert(name, Stored { kind, shape, at: start..end });
        }
        Ok(Self { map, tensors })
    }

    /// The tensors' names, in the order of their data.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The number types in the file, each once.
    pub fn kinds(&self) -> Vec<Kind> {
        let mut kinds = Vec::new();
        for t in self.tensors.values() {
            if !kinds.contains(&t.kind) {
                kinds.push(t.kind);
            }
        }
        kinds
    }

    /// One tensor, copied to the CPU in the file's kind.
    ///
    /// # Errors
    /// Where there is no tensor of that name, or not enough memory.
    pub fn read(&self, name: &str) -> Result<Tensor> {
        let stored = self.tensors.get(name).ok_or_else(|| Error::new(format!("no tensor `{name}` in `{}`", self.map.path().display())))?;
        let bytes = self.map.get(stored.at.clone()).ok_or_else(|| Error::new(format!("`{}` ends inside tensor `{name}`", self.map.path().display())))?;
        Ok(Tensor::f_from_data_size(bytes, &stored.shape, stored.kind)?)
    }
}

fn kind_of(dtype: Dtype) -> Option<Kind> {
    KINDS.iter().find(|(d, _)| *d == dtype).map(|(_, k)| *k)
}

fn read_types() -> String {
    KINDS.map(|(d, _)| d.to_string()).join(", ")
}

/// What a file that is not safetensors most likely is.
fn why_not(bytes: &[u8]) -> &'static str {
    match bytes {
        [b'P', b'K', 3, 4, ..] | [0x80, 2..=5, ..] => "it is a pickled PyTorch checkpoint, which is never read: convert it with `safetensors.torch.save_file`",
        [b'G', b'G', b'U', b'F', ..] => "it is a GGUF file: name it so, with the ending `.gguf`",
        [b'v', b'e', b'r', b's', b'i', b'o', b'n', b' ', ..] => "it is a Git LFS pointer: fetch the file itself with `git lfs pull`",
        _ => "fetch it again: the download may have been cut off",
    }
}

/// Reads every tensor of a safetensors file: on the CPU, in the file's kinds, sorted by name.
///
/// # Errors
/// As [`SafetensorsFile::open`].
pub fn read_safetensors(path: &Path) -> Result<IndexMap<String, Tensor>> {
    let file = SafetensorsFile::open(path)?;
    let mut names: Vec<&str> = file.names().collect();
    names.sort_unstable();
    names.into_iter().map(|name| Ok((name.to_owned(), file.read(name)?))).collect()
}

/// Writes tensors as a safetensors file that PyTorch's libraries read, under a temporary name beside it first.
///
/// The same tensors make the same bytes. Any device and any strides; f64, f32, f16, bf16, i64, i32, u8, bool.
///
/// # Errors
/// A kind that is not written, a name that comes twice, or a file that cannot be written.
pub fn write_safetensors(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let mut parts: Vec<(&str, Part)> = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        parts.push((name, Part::of(name, tensor)?));
    }
    parts.sort_by_key(|(name, _)| *name);
    if let Some(pair) = parts.windows(2).find(|w| w[0].0 == w[1].0) {
        return Err(Error::internal(format!("tensor `{}` is to be written twice to `{}`", pair[0].0, path.display())));
    }
    let writing = || format!("cannot write `{}`", path.display());
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".safetensors-");
    // A temporary file is its owner's alone; this one becomes the file itself, so the umask decides as for any other.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let temporary = builder.tempfile_in(folder).within(writing)?;
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(parts, Some(format), temporary.path()).map_err(|e| Error::new(writing()).because(e.to_string()))?;
    temporary.as_file().sync_all().within(writing)?;
    temporary.persist(path).map_err(|e| e.error).within(writing)?;
    Ok(())
}

struct Part {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Part {
    fn of(name: &str, tensor: &Tensor) -> Result<Self> {
        let kind = tensor.f_kind()?;
        let dtype = KINDS.iter().find(|(_, k)| *k == kind).map(|(d, _)| *d);
        let dtype = dtype.ok_or_else(|| Error::internal(format!("tensor `{name}` has the kind {kind:?}, which is not written")))?;
        let tensor = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
        let mut bytes = vec![0; tensor.numel() * kind.elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
        let shape = tensor.size().into_iter().map(|d| usize::try_from(d).unwrap_or(0)).collect();
        Ok(Self { dtype, shape, bytes })
    }
}

impl View for Part {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Vec<(String, Tensor)> {
        let x = Tensor::from_slice(&[1.0f32, -2.5, 3.25, 1e-3, 65504.0, 0.0]).reshape([2, 3]);
        vec![
            ("b.f32".into(), x.shallow_clone()),
            ("a.bf16".into(), x.to_kind(Kind::BFloat16)),
            ("c.f16".into(), x.to_kind(Kind::Half)),
            ("d.f64".into(), x.to_kind(Kind::Double)),
            ("e.i64".into(), Tensor::from_slice(&[1i64, -7])),
            ("f.transposed".into(), x.transpose(0, 1)),
            ("g.scalar".into(), Tensor::from(0.5f32)),
            ("h.none".into(), Tensor::zeros([0, 3], (Kind::Float, Device::Cpu))),
        ]
    }

    #[test]
    fn what_is_written_is_read_back_in_its_kind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        write_safetensors(&path, &some()).unwrap();
        let back = read_safetensors(&path).unwrap();
        assert_eq!(back.keys().map(|k| &k[..1]).collect::<String>(), "abcdefgh");
        for (name, tensor) in some() {
            assert_eq!(back[&name].kind(), tensor.kind(), "{name}");
            assert_eq!(back[&name].size(), tensor.size(), "{name}");
            assert!(back[&name].equal(&tensor), "{name}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn the_same_tensors_make_the_same_bytes_in_any_order() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        write_safetensors(&a, &some()).unwrap();
        let mut turned = some();
        turned.reverse();
        write_safetensors(&b, &turned).unwrap();
        let bytes = std::fs::read(&a).unwrap();
        assert_eq!(bytes, std::fs::read(&b).unwrap());
        assert!(String::from_utf8_lossy(&bytes[..80]).contains(r#"{"format":"pt"}"#));
    }

    #[test]
    fn a_truncated_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        write_safetensors(&path, &some()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for keep in [0, 1, 7, 8, 20, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..keep]).unwrap();
            let e = read_safetensors(&path).unwrap_err();
            assert!(e.message().contains("x.safetensors"), "{e:?}");
            assert!(format!("{e:?}").contains("fetch it again"), "{e:?}");
        }
    }

    #[test]
    fn a_pickle_is_named_as_such_and_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        std::fs::write(&path, b"PK\x03\x04 some zip archive with a pickle in it").unwrap();
        assert!(format!("{:?}", read_safetensors(&path).unwrap_err()).contains("pickled PyTorch checkpoint"));
    }

    #[test]
    fn an_untold_type_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let header = br#"{"w":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header);
        bytes.extend_from_slice(&[0, 0]);
        std::fs::write(&path, bytes).unwrap();
        let e = format!("{:?}", read_safetensors(&path).unwrap_err());
        assert!(e.contains("`w`") && e.contains("F8_E4M3") && e.contains("BF16"), "{e}");
    }
}
