//! The linear modules of the frozen model, and the parts of fused modules.

use std::cell::{Ref, RefCell};

use tch::Tensor;

use crate::api::{Frozen, LinearInfo, PartInfo, Rows, Site};
use crate::error::{Error, Result};

/// The name and the sites of a linear module, or of one part of a fused module.
#[derive(Debug)]
pub struct Place {
    /// The name in PyTorch's state dict, without `.weight`. The name of a part ends with the name
    /// of the separate module in Llama, e.g. `qkv_proj.q_proj`.
    pub name: String,
    /// The site of the input.
    pub input: Site,
    /// The site of the output.
    pub output: Site,
}

impl Place {
    fn new(name: String) -> Self {
        Self { input: Site::Input(name.clone()), output: Site::Output(name.clone()), name }
    }
}

/// A linear module of the frozen model.
#[derive(Debug)]
pub struct Linear {
    /// The name and the sites of the module.
    pub place: Place,
    frozen: RefCell<Frozen>,
    /// How checkpoints store the weight.
    pub stored: Stored,
    /// The parts that a fused module consists of, in order; empty for other modules.
    pub parts: Vec<Part>,
}

/// How a checkpoint stores the weight of a linear module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// `[out in]`, as in `torch.nn.Linear`.
    OutIn,
    /// `[in out]`, as in transformers' `Conv1D`.
    InOut,
}

/// Rows of a fused projection that Llama stores as a separate module.
#[derive(Debug)]
pub struct Part {
    /// The name and the sites of the part.
    pub place: Place,
    /// The rows of the module's weight that belong to the part.
    pub rows: Rows,
}

impl Linear {
    /// A linear module without parts.
    pub fn new(name: String, frozen: Frozen, stored: Stored) -> Self {
        Self { place: Place::new(name), frozen: RefCell::new(frozen), stored, parts: Vec::new() }
    }

    /// Marks the module as fused. The rows of its weight form `groups` groups of equal size.
    /// `parts` lists the parts of each group in order, each as a name and a number of rows.
    #[must_use]
    pub fn fused(mut self, groups: i64, parts: &[(&str, i64)]) -> Self {
        let width = parts.iter().map(|(_, len)| len).sum();
        let mut start = 0;
        for (name, len) in parts {
            let place = Place::new(format!("{}.{name}", self.place.name));
            self.parts.push(Part { place, rows: Rows { groups, start, len: *len, width } });
            start += len;
        }
        self
    }

    /// Splits the module's output y `[n out]` into the outputs of its parts, each `[n groups len]`.
    /// They are views of y.
    ///
    /// # Errors
    /// Fails if the module does not have N parts.
    pub fn split<const N: usize>(&self, y: &Tensor) -> Result<[Tensor; N]> {
        let parts =
            self.parts.iter().map(|part| part.rows.grouped(y, 1)).collect::<Result<Vec<_>>>()?;
        parts
            .try_into()
            .map_err(|_| Error::internal(format!("`{}` does not have {N} parts", self.place.name)))
    }

    /// Joins the outputs of all parts, each `[n groups·len]`, into the module's output `[n out]`.
    ///
    /// # Errors
    /// Fails if shapes do not match, or if memory runs out.
    pub fn join(&self, outputs: &[Tensor]) -> Result<Tensor> {
        let grouped = self
            .parts
            .iter()
            .zip(outputs)
            .map(|(part, y)| Ok(y.f_unflatten(1, [part.rows.groups, part.rows.len])?));
        Ok(Tensor::f_cat(&grouped.collect::<Result<Vec<_>>>()?, 2)?.f_flatten(1, 2)?)
    }

    /// The frozen weights.
    pub fn frozen(&self) -> Ref<'_, Frozen> {
        self.frozen.borrow()
    }

    /// Replaces the frozen weights, and returns the old ones.
    pub fn replace(&self, frozen: Frozen) -> Frozen {
        self.frozen.replace(frozen)
    }

    /// Returns the frozen weights of the module or of the part called `name`. Returns `None` if
    /// neither the module nor a part has this name. The weights share memory with the module if
    /// possible.
    pub fn weights(&self, name: &str) -> Option<Result<Frozen>> {
        if self.place.name == name {
            return Some(Ok(self.frozen().shared()));
        }
        self.parts
            .iter()
            .find(|part| part.place.name == name)
            .map(|part| self.frozen().part(part.rows))
    }

    /// Describes the module and its parts to plugins. `layer` is the index of the block that
    /// contains the module.
    pub fn info(&self, layer: usize) -> (LinearInfo, Vec<PartInfo>) {
        let (holder, inputs) = (&self.place.name, self.frozen().inputs());
        let linear = |place: &Place, outputs| LinearInfo {
            name: place.name.clone(),
            layer: Some(layer),
            inputs,
            outputs,
        };
        let part = |part: &Part| PartInfo {
            linear: linear(&part.place, part.rows.count()),
            holder: holder.clone(),
            rows: part.rows,
        };
        (linear(&self.place, self.frozen().outputs()), self.parts.iter().map(part).collect())
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn joining_the_parts_of_a_split_output_restores_it() {
        let y = Tensor::arange(3 * 24, (Kind::Float, Device::Cpu)).reshape([3, 24]);
        for (groups, parts) in [
            (1, [("q", 12), ("k", 6), ("v", 6)]),
            (4, [("q", 2), ("k", 2), ("v", 2)]),
            (2, [("q", 1), ("k", 3), ("v", 8)]),
        ] {
            let frozen = Frozen::new(y.tr().contiguous(), Some(y.get(0)));
            let linear = Linear::new("m".to_owned(), frozen, Stored::OutIn).fused(groups, &parts);
            let split: [Tensor; 3] = linear.split(&y).unwrap();
            for ((t, part), (name, len)) in split.iter().zip(&linear.parts).zip(parts) {
                assert_eq!(
                    (t.size(), part.place.name.as_str()),
                    (vec![3, groups, len], format!("m.{name}").as_str())
                );
                // Each row of the weight computes one column of y.
                let frozen = linear.weights(&part.place.name).unwrap().unwrap();
                assert_eq!(
                    (frozen.dense().unwrap().tr(), frozen.bias().unwrap()),
                    (t.flatten(1, 2), &t.flatten(1, 2).get(0))
                );
            }
            assert_eq!(linear.join(&split.map(|t| t.flatten(1, 2))).unwrap(), y);
            assert!(linear.split::<2>(&y).is_err() && linear.weights("m.o").is_none());
        }
    }
}
