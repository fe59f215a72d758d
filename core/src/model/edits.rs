//! Edits of the residual stream that a method adds to an adapter. They are values, so a saved
//! adapter can be used without the method.

use std::path::Path;

use indexmap::IndexMap;
use tch::{Device, Kind, Tensor};

use crate::api::{BlockEdit, EditTime, ModelInfo};
use crate::error::{Context, Error, Result};
use crate::weights::{read_safetensors, write_safetensors};

/// Name of the file, in the folder of an adapter, that contains the edits that act after training.
pub const FILE: &str = "edits.safetensors";

/// The values of an edit, in a file and in memory.
const BIAS: &str = "bias";
const DOWN: &str = "down";
const UP: &str = "up";

/// Edits of the outputs of blocks, checked against a model.
#[derive(Debug, Default)]
pub struct Edits {
    edits: Vec<BlockEdit>,
}

impl Edits {
    /// Checks the shapes and values of the edits, and copies them to the device of the model, in
    /// float32 or in the dtype of a float64 model.
    ///
    /// # Errors
    /// Fails if the model has no such block, if a shape does not match, or if a value is not
    /// finite.
    pub fn new(
        edits: Vec<BlockEdit>,
        model: &ModelInfo,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        let kind = if kind == Kind::Double { kind } else { Kind::Float };
        let fitting = |block: usize, name: &str, t: &Tensor, dims: usize| -> Result<Tensor> {
            let size = t.size();
            if size.len() != dims || size.last() != Some(&model.hidden) {
                return Err(Error::new(format!(
                    "the edit of block {block} has a `{name}` of shape {size:?}, but the residual \
                        stream of the model has the width {}",
                    model.hidden
                )));
            }
            if !bool::try_from(t.f_isfinite()?.f_all()?)? {
                return Err(Error::new(format!(
                    "the edit of block {block} has values in `{name}` that are not finite"
                )));
            }
            Ok(t.f_detach()?.f_to_kind(kind)?.f_to_device(device)?)
        };
        let checked = |edit: BlockEdit| -> Result<BlockEdit> {
            let block = edit.block;
            if block >= model.layers {
                return Err(Error::new(format!(
                    "the model has no block {block}, so its output cannot be edited"
                ))
                .hint(format!("valid: 0 to {}", model.layers - 1)));
            }
            let bias = edit.bias.map(|b| fitting(block, BIAS, &b, 1)).transpose()?;
            let low_rank = match edit.low_rank {
                Some([down, up]) => {
                    let both = [fitting(block, DOWN, &down, 2)?, fitting(block, UP, &up, 2)?];
                    if both[0].size() != both[1].size() {
                        return Err(Error::new(format!(
                            "the edit of block {block} has matrices of different shapes: {:?} and \
                                {:?}",
                            both[0].size(),
                            both[1].size()
                        )));
                    }
                    Some(both)
                }
                None => None,
            };
            Ok(BlockEdit { bias, low_rank, ..edit })
        };
        Ok(Self { edits: edits.into_iter().map(checked).collect::<Result<_>>()? })
    }

    /// Applies the edits of block `block` to its output `h`, `[n hidden]`. `coefficient` multiplies
    /// the change. `training` is true in the passes of training.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn apply(
        &self,
        block: usize,
        h: Tensor,
        coefficient: f64,
        training: bool,
    ) -> Result<Tensor> {
        let acts = |edit: &&BlockEdit| {
            edit.block == block && (edit.time == EditTime::Training) == training
        };
        let kind = h.kind();
        let mut h = h;
        for edit in self.edits.iter().filter(acts) {
            let mut change = None;
            if let Some([down, up]) = &edit.low_rank {
                let inner = h.f_matmul(&down.f_to_kind(kind)?.f_tr()?)?;
                change = Some(inner.f_matmul(&(up * coefficient).f_to_kind(kind)?)?);
            }
            if let Some(bias) = &edit.bias {
                let bias = (bias * coefficient).f_to_kind(kind)?;
                change = Some(change.map_or(Ok(bias.shallow_clone()), |c| c.f_add(&bias))?);
            }
            if let Some(change) = change {
                h = h.f_add(&change)?;
            }
        }
        Ok(h)
    }

    /// Returns the same edits, which use the memory of these.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self { edits: self.edits.iter().map(BlockEdit::shallow_clone).collect() }
    }

    /// True if an edit acts after training.
    pub fn act_afterwards(&self) -> bool {
        self.afterwards().next().is_some()
    }

    /// The edits that act after training.
    pub fn afterwards(&self) -> impl Iterator<Item = &BlockEdit> {
        self.edits.iter().filter(|edit| edit.time == EditTime::Afterwards)
    }

    /// Describes the edits in one line, for the user; `None` if there are none.
    pub fn describe(&self) -> Option<String> {
        let of = |time: EditTime, words: &str| {
            let mut blocks: Vec<usize> =
                self.edits.iter().filter(|e| e.time == time).map(|e| e.block).collect();
            blocks.sort_unstable();
            blocks.dedup();
            let list = blocks.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
            let plural = if blocks.len() == 1 { "block" } else { "blocks" };
            (!blocks.is_empty()).then(|| format!("{plural} {list} {words}"))
        };
        let both: Vec<String> =
            [of(EditTime::Training, "during training"), of(EditTime::Afterwards, "after training")]
                .into_iter()
                .flatten()
                .collect();
        (!both.is_empty()).then(|| format!("edits of the residual stream: {}", both.join("; ")))
    }

    /// Writes the edits that act after training to the folder `dir` of an adapter. Writes nothing
    /// if there are none.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let mut tensors = Vec::new();
        for (i, edit) in self.afterwards().enumerate() {
            let mut add = |name: &str, t: &Tensor| -> Result<()> {
                let key = format!("edits.{i}.blocks.{}.{name}", edit.block);
                tensors.push((key, t.f_to_device(Device::Cpu)?.f_contiguous()?));
                Ok(())
            };
            if let Some(bias) = &edit.bias {
                add(BIAS, bias)?;
            }
            if let Some([down, up]) = &edit.low_rank {
                add(DOWN, down)?;
                add(UP, up)?;
            }
        }
        if tensors.is_empty() {
            return Ok(());
        }
        std::fs::create_dir_all(dir)
            .within(|| format!("cannot create the folder `{}`", dir.display()))?;
        write_safetensors(&dir.join(FILE), &tensors)
    }

    /// Reads the edits in the folder `dir` of an adapter; an empty list if there is no such file.
    ///
    /// # Errors
    /// Fails if the file cannot be read, or if its tensors have unknown names.
    pub fn read(dir: &Path) -> Result<Vec<BlockEdit>> {
        let path = dir.join(FILE);
        if !path.exists() {
            return Ok(Vec::new());
        }
        let tensors = read_safetensors(&path)?;
        let mut edits: IndexMap<usize, (usize, IndexMap<String, Tensor>)> = IndexMap::new();
        for (key, tensor) in tensors {
            let parsed = (|| {
                let [edits, i, blocks, block, name] =
                    <[&str; 5]>::try_from(key.split('.').collect::<Vec<_>>()).ok()?;
                let known =
                    edits == "edits" && blocks == "blocks" && [BIAS, DOWN, UP].contains(&name);
                known.then_some((i.parse().ok()?, block.parse().ok()?, name.to_owned()))
            })();
            let (i, block, name): (usize, usize, String) = parsed.ok_or_else(|| {
                Error::new(format!("`{key}` is not the name of an edit"))
                    .within(format!("cannot read `{}`", path.display()))
            })?;
            edits.entry(i).or_insert_with(|| (block, IndexMap::new())).1.insert(name, tensor);
        }
        edits.sort_keys();
        let edit = |(block, mut parts): (usize, IndexMap<String, Tensor>)| {
            let (bias, down, up) =
                (parts.swap_remove(BIAS), parts.swap_remove(DOWN), parts.swap_remove(UP));
            let low_rank = match (down, up) {
                (Some(down), Some(up)) => Some([down, up]),
                (None, None) => None,
                _ => {
                    return Err(Error::new(format!(
                        "the edit of block {block} has only one of `{DOWN}` and `{UP}`"
                    )));
                }
            };
            Ok(BlockEdit { block, time: EditTime::Afterwards, bias, low_rank })
        };
        let read: Result<Vec<BlockEdit>> = edits.into_values().map(edit).collect();
        read.within(|| format!("cannot read `{}`", path.display()))
    }
}
