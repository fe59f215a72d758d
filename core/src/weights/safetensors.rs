//! Reads and writes safetensors files. Safetensors is the most common format for model weights, and
//! the only format that this program writes.
//!
//! The header is checked before any data is read: lengths must be consistent, tensors must not
//! overlap, and their data must fill the file. Values are copied as raw bytes instead of as
//! `tch::kind::Element`, which treats `bf16` as `f16`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use half::{bf16, f16};
use indexmap::IndexMap;
use safetensors::{Dtype, View};
use tch::{Device, Kind, Tensor};

use super::header::{KINDS, TensorEntry};
use super::memory::{Mapped, copied, filled};
use super::{gguf, header};
use crate::error::{Error, Result};
use crate::files::{write_beside, write_unsynced};

/// A safetensors file that is mapped into memory, with a checked header.
#[derive(Debug)]
pub struct SafetensorsFile {
    map: Mapped,
    tensors: IndexMap<String, TensorEntry>,
}

impl SafetensorsFile {
    /// Maps a file and checks its header.
    ///
    /// # Errors
    /// Fails if the file cannot be read, is incomplete, is not a valid safetensors file, or
    /// contains a tensor whose dtype is not supported.
    pub fn open(path: &Path) -> Result<Self> {
        let map = Mapped::open(path)?;
        let tensors = header::read(&map)?;
        Ok(Self { map, tensors })
    }

    /// Names of the tensors, sorted by data offset.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        self.map.path()
    }

    /// Name and shape of each tensor, sorted by data offset.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[i64])> {
        self.tensors.iter().map(|(name, stored)| (name.as_str(), stored.shape.as_slice()))
    }

    /// The file's bytes, and the length of its header in bytes.
    pub(super) fn bytes(&self) -> (&Mapped, usize) {
        let header = self.tensors.values().map(|t| t.at.start).min().unwrap_or(self.map.len());
        (&self.map, header)
    }

    /// The distinct dtypes of the tensors.
    pub fn kinds(&self) -> Vec<Kind> {
        let mut kinds = Vec::new();
        for t in self.tensors.values() {
            if !kinds.contains(&t.kind) {
                kinds.push(t.kind);
            }
        }
        kinds
    }

    /// Reads one tensor to the CPU without converting its dtype.
    ///
    /// # Errors
    /// Fails if the tensor does not exist, or if memory runs out.
    pub fn read(&self, name: &str) -> Result<Tensor> {
        let stored = self.find(name)?;
        copied(&self.map, stored.at.clone(), &stored.shape, stored.kind)
    }

    /// Reads one tensor to `device`. A floating-point tensor is converted to `kind`; an integer or
    /// boolean tensor is not converted. If `device` is the CPU, most of the file's pages are
    /// released from memory while the tensor is read.
    ///
    /// # Errors
    /// Fails if the tensor does not exist, or if memory runs out.
    pub fn read_as(&self, name: &str, kind: Kind, device: Device) -> Result<Tensor> {
        let stored = self.find(name)?;
        let (shape, at) = (&stored.shape, stored.at.clone());
        let converted = match (gguf::plain(stored.kind), kind) {
            _ if kind == stored.kind || device != Device::Cpu => None,
            (Some(plain), Kind::Float) => {
                Some(filled::<f32>(shape, |out| gguf::in_order(plain, &self.map, at, out, 0.0)))
            }
            (Some(plain), Kind::BFloat16) => {
                Some(filled::<bf16>(shape, |out| gguf::in_order(plain, &self.map, at, out, 0.0)))
            }
            (Some(plain), Kind::Half) => {
                Some(filled::<f16>(shape, |out| gguf::in_order(plain, &self.map, at, out, 0.0)))
            }
            _ => None,
        };
        if let Some(converted) = converted {
            return converted;
        }
        // Convert on the device, after the transfer. The dtype in the file is rarely larger than
        // `kind`, so fewer bytes are transferred.
        let tensor = self.read(name)?.f_to_device(device)?;
        Ok(if tensor.f_is_floating_point()? { tensor.f_to_kind(kind)? } else { tensor })
    }

    fn find(&self, name: &str) -> Result<&TensorEntry> {
        self.tensors.get(name).ok_or_else(|| {
            Error::new(format!("no tensor `{name}` in `{}`", self.map.path().display()))
        })
    }
}

/// Reads all tensors of a safetensors file to the CPU, sorted by name, without converting their
/// dtypes.
///
/// # Errors
/// Fails in the same cases as [`SafetensorsFile::open`], or if memory runs out.
pub fn read_safetensors(path: &Path) -> Result<IndexMap<String, Tensor>> {
    let file = SafetensorsFile::open(path)?;
    let mut names: Vec<&str> = file.names().collect();
    names.sort_unstable();
    names.into_iter().map(|name| Ok((name.to_owned(), file.read(name)?))).collect()
}

/// Writes tensors to a safetensors file, marked as `"format": "pt"` for PyTorch libraries. The file
/// is written under a temporary name in the same folder and then renamed.
///
/// The output does not depend on the order of `tensors`. Tensors may be on any device and have any
/// strides. The supported dtypes are f64, f32, f16, bf16, i64, i32, u8 and bool.
///
/// # Errors
/// Fails if the dtype of a tensor is not supported, if two tensors have the same name, or if the
/// file cannot be written.
pub fn write_safetensors(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let (parts, format) = prepared(path, tensors)?;
    write_beside(path, |temporary| safetensors::serialize_to_file(parts, format, temporary))
}

/// Writes tensors as [`write_safetensors`] does, but does not wait until the disk has stored them.
/// The reader must check the content of the file.
///
/// # Errors
/// Fails in the same cases as [`write_safetensors`].
pub(crate) fn write_safetensors_unsynced(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let (parts, format) = prepared(path, tensors)?;
    write_unsynced(path, |temporary| safetensors::serialize_to_file(parts, format, temporary))
}

/// The tensors and the metadata of a file.
type Prepared<'a> = (Vec<(&'a str, Part)>, Option<HashMap<String, String>>);

/// Copies the tensors to the CPU, sorted by name.
fn prepared<'a>(path: &Path, tensors: &'a [(String, Tensor)]) -> Result<Prepared<'a>> {
    let mut parts: Vec<(&str, Part)> = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        parts.push((name, Part::of(name, tensor)?));
    }
    parts.sort_by_key(|(name, _)| *name);
    if let Some(pair) = parts.windows(2).find(|w| w[0].0 == w[1].0) {
        return Err(Error::internal(format!(
            "cannot write two tensors named `{}` to `{}`",
            pair[0].0,
            path.display()
        )));
    }
    Ok((parts, Some(HashMap::from([("format".to_owned(), "pt".to_owned())]))))
}

struct Part {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Part {
    fn of(name: &str, tensor: &Tensor) -> Result<Self> {
        let kind = tensor.f_kind()?;
        let dtype = KINDS.iter().find(|(_, _, k)| *k == kind).map(|(_, dtype, _)| *dtype);
        let dtype = dtype.ok_or_else(|| {
            Error::internal(format!(
                "cannot write tensor `{name}`: dtype {kind:?} is not supported"
            ))
        })?;
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
    fn tensors_are_read_back_as_they_were_written() {
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

    #[cfg(unix)]
    #[test]
    fn weights_have_the_same_permissions_as_other_files() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (weights, config) = (dir.path().join("x.safetensors"), dir.path().join("config.json"));
        write_safetensors(&weights, &some()).unwrap();
        crate::files::write_whole(&config, b"{}").unwrap();
        for file in [weights, config] {
            assert_eq!(
                file.metadata().unwrap().permissions().mode() & 0o777,
                0o644,
                "{}",
                file.display()
            );
        }
    }

    #[test]
    fn the_order_of_the_tensors_does_not_change_the_bytes() {
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
            assert!(format!("{e:?}").contains("download it again"), "{e:?}");
        }
    }

    #[test]
    fn a_pickle_is_recognised_and_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        std::fs::write(&path, b"PK\x03\x04 some zip archive with a pickle in it").unwrap();
        assert!(
            format!("{:?}", read_safetensors(&path).unwrap_err())
                .contains("pickled PyTorch checkpoint")
        );
    }

    #[test]
    fn an_unsupported_type_is_an_error_that_names_it() {
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
