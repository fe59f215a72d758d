//! Writes added directions as a control vector, the GGUF file that llama.cpp and repeng read.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::edits::Edits;
use crate::error::{Error, Result};
use crate::files::write_whole;

/// The version of the GGUF format.
const VERSION: u32 = 3;
/// The numbers of the types in a GGUF file.
const UINT32: u32 = 4;
const STRING: u32 = 8;
const FLOAT32: u32 = 0;
/// The alignment of tensors in a GGUF file, in bytes.
const ALIGNMENT: usize = 32;

/// Writes the vectors that `edits` add after training, multiplied by `coefficient`, to a file. The
/// tensor `direction.K` is added to the output of block K, counted from 0. `architecture` is the
/// `model_type` of transformers.
///
/// # Errors
/// Fails if there are no edits, if an edit is not an addition or is at block 0, which the format
/// cannot express, or if the file cannot be written.
pub fn write(edits: &Edits, coefficient: f64, architecture: &str, path: &Path) -> Result<()> {
    write_whole(path, &encoded(edits, coefficient, architecture)?)
}

fn encoded(edits: &Edits, coefficient: f64, architecture: &str) -> Result<Vec<u8>> {
    let mut directions: BTreeMap<usize, Tensor> = BTreeMap::new();
    for edit in edits.afterwards() {
        let Some(bias) = edit.bias.as_ref().filter(|_| edit.low_rank.is_none()) else {
            return Err(Error::new(format!(
                "the edit of block {} depends on the state, but a control vector can only be \
                    added to it",
                edit.block
            ))
            .hint("use the run itself, for example with `reprpo generate RUN`"));
        };
        if edit.block == 0 {
            return Err(Error::new(
                "block 0 is edited, but a control vector file has no direction for it",
            )
            .hint("set `intervention.layers` to later blocks, counted from 0"));
        }
        let bias = (bias * coefficient).f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
        let sum = match directions.remove(&edit.block) {
            Some(before) => before.f_add(&bias)?,
            None => bias,
        };
        directions.insert(edit.block, sum);
    }
    if directions.is_empty() {
        return Err(Error::new(
            "the run has no edits of the residual stream, so there is no control vector",
        )
        .hint("train with an intervention that leaves edits, such as `steer`"));
    }
    let count = u32::try_from(directions.len()).map_err(|e| Error::internal(e.to_string()))?;
    let settings = [
        setting("general.architecture", STRING, &text("controlvector")),
        setting("controlvector.model_hint", STRING, &text(architecture)),
        setting("controlvector.layer_count", UINT32, &count.to_le_bytes()),
    ];
    let mut out = b"GGUF".to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend(u64::from(count).to_le_bytes());
    out.extend((settings.len() as u64).to_le_bytes());
    out.extend(settings.concat());
    let mut data = Vec::new();
    for (block, direction) in &directions {
        let values = Vec::<f32>::try_from(direction)?;
        out.extend(text(&format!("direction.{block}")));
        out.extend(1u32.to_le_bytes());
        out.extend((values.len() as u64).to_le_bytes());
        out.extend(FLOAT32.to_le_bytes());
        out.extend((data.len() as u64).to_le_bytes());
        data.extend(values.into_iter().flat_map(f32::to_le_bytes));
        data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out.extend(data);
    Ok(out)
}

fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat()
}

fn setting(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(key), &kind.to_le_bytes()[..], value].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{BlockEdit, EditTime, ModelInfo};

    fn edits(of: Vec<BlockEdit>) -> Edits {
        let model = ModelInfo {
            architecture: "llama".to_owned(),
            layers: 4,
            hidden: 3,
            heads: 1,
            head_dim: 3,
            vocab: 8,
            linears: Vec::new(),
            parts: Vec::new(),
        };
        Edits::new(of, &model, Kind::Float, Device::Cpu).unwrap()
    }

    #[test]
    fn additions_are_written_and_other_edits_are_rejected() {
        let v = Tensor::from_slice(&[1f32, 2.0, 3.0]);
        let add = |block, time| BlockEdit::add(block, time, &v);
        let some = edits(vec![
            add(2, EditTime::Afterwards),
            add(2, EditTime::Afterwards),
            add(1, EditTime::Training),
        ]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.gguf");
        write(&some, 1.0, "llama", &path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let doubled: Vec<u8> = [2f32, 4.0, 6.0].into_iter().flat_map(f32::to_le_bytes).collect();
        assert_eq!(bytes[bytes.len() - 32..][..12], doubled);
        assert_eq!(bytes.len() % 32, 0);

        let ablated = BlockEdit::ablate(2, EditTime::Afterwards, &v, 1.0).unwrap();
        for (rejected, why) in [
            (vec![add(0, EditTime::Afterwards)], "block 0 is edited"),
            (vec![ablated], "depends on the state"),
            (vec![add(1, EditTime::Training)], "no edits"),
        ] {
            let e = format!("{:?}", encoded(&edits(rejected), 1.0, "llama").unwrap_err());
            assert!(e.contains(why), "{e}");
        }
    }
}
