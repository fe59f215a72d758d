//! Linear modules of the frozen model, and the parts of fused ones.

use std::cell::{Ref, RefCell};

use tch::Tensor;

use crate::api::{Frozen, LinearInfo, PartInfo, Rows, Site};
use crate::error::{Error, Result};

/// The name of a module or a part, and the sites of its input and output.
#[derive(Debug)]
pub struct Place {
    /// The name in PyTorch's state dict without `.weight`. A part has Llama's name for it behind
    /// the module's.
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
    /// Its name and sites.
    pub place: Place,
    frozen: RefCell<Frozen>,
    /// How checkpoints store the weight.
    pub stored: Stored,
    /// The parts that the rows of a fused module fall into, in order.
    pub parts: Vec<Part>,
}

/// How a checkpoint stores the weight of a linear module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// `[out in]`, as `torch.nn.Linear` does.
    OutIn,
    /// `[in out]`, as `Conv1D` of transformers does.
    InOut,
}

/// Rows of a fused projection that Llama stores as a separate module.
#[derive(Debug)]
pub struct Part {
    /// Its name and sites.
    pub place: Place,
    /// The outputs of the module that belong to it.
    pub rows: Rows,
}

impl Linear {
    /// The module of that name.
    pub fn new(name: String, frozen: Frozen, stored: Stored) -> Self {
        Self { place: Place::new(name), frozen: RefCell::new(frozen), stored, parts: Vec::new() }
    }

    /// The same module with parts. Its rows fall into `groups`, and each group into that many rows
    /// of every part.
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

    /// Splits its output y `[n out]` into the outputs of its parts, each `[n groups len]` in the
    /// memory of y.
    ///
    /// # Errors
    /// Fails if the module has another number of parts.
    pub fn split<const N: usize>(&self, y: &Tensor) -> Result<[Tensor; N]> {
        let parts =
            self.parts.iter().map(|part| part.rows.grouped(y, 1)).collect::<Result<Vec<_>>>()?;
        parts
            .try_into()
            .map_err(|_| Error::internal(format!("`{}` has other than {N} parts", self.place.name)))
    }

    /// Its output `[n out]` from those of all its parts, each `[n groups·len]`.
    ///
    /// # Errors
    /// Fails if shapes do not fit, or if memory runs out.
    pub fn join(&self, outputs: &[Tensor]) -> Result<Tensor> {
        let grouped = self
            .parts
            .iter()
            .zip(outputs)
            .map(|(part, y)| Ok(y.f_unflatten(1, [part.rows.groups, part.rows.len])?));
        Ok(Tensor::f_cat(&grouped.collect::<Result<Vec<_>>>()?, 2)?.f_flatten(1, 2)?)
    }

    /// Its frozen weights.
    pub fn frozen(&self) -> Ref<'_, Frozen> {
        self.frozen.borrow()
    }

    /// Exchanges its frozen weights, and returns the old ones.
    pub fn replace(&self, frozen: Frozen) -> Frozen {
        self.frozen.replace(frozen)
    }

    /// The frozen weights of the module or part of that name, sharing memory where they can.
    pub fn weights(&self, name: &str) -> Option<Result<Frozen>> {
        if self.place.name == name {
            return Some(Ok(self.frozen().shared()));
        }
        self.parts
            .iter()
            .find(|part| part.place.name == name)
            .map(|part| self.frozen().part(part.rows))
    }

    /// The description of it and its parts for plugins, as a module of block `layer`.
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
    fn what_is_split_into_parts_is_joined_again() {
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
                // The weight's rows are y's columns.
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
