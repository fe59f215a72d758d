//! Linear modules of the frozen model, and the parts of those that are fused.

use tch::Tensor;

use crate::api::{Frozen, LinearInfo, PartInfo, Rows, Site};
use crate::error::{Error, Result};

/// What weights are called, and where their input and output are read.
#[derive(Debug)]
pub struct Place {
    /// The name in PyTorch's state dict without `.weight`; that of a part has Llama's name for it behind the module's.
    pub name: String,
    /// Before them.
    pub input: Site,
    /// Behind them.
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
    /// Where it is.
    pub place: Place,
    /// Its weights.
    pub frozen: Frozen,
    /// Where it is fused: the parts that its rows fall into, in order.
    pub parts: Vec<Part>,
}

/// What is a module of its own in Llama, and here some rows of a fused one.
#[derive(Debug)]
pub struct Part {
    /// Where it is.
    pub place: Place,
    /// Which outputs of the module it makes.
    pub rows: Rows,
}

impl Linear {
    /// The module of that name.
    pub fn new(name: &str, frozen: Frozen) -> Self {
        Self { place: Place::new(name.to_owned()), frozen, parts: Vec::new() }
    }

    /// The same module, fused of `parts`: its rows fall into `groups`, and each group into so many rows of every part.
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

    /// Its output y `[n out]` by parts, each `[n groups len]` in y's memory.
    ///
    /// # Errors
    /// A module of another number of parts.
    pub fn split<const N: usize>(&self, y: &Tensor) -> Result<[Tensor; N]> {
        let parts = self.parts.iter().map(|part| part.rows.grouped(y, 1)).collect::<Result<Vec<_>>>()?;
        parts.try_into().map_err(|_| Error::internal(format!("`{}` has other than {N} parts", self.place.name)))
    }

    /// Its output `[n out]` of those of all its parts, `[n groups·len]` each.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn join(&self, outputs: &[Tensor]) -> Result<Tensor> {
        let grouped = self.parts.iter().zip(outputs).map(|(part, y)| Ok(y.f_unflatten(1, [part.rows.groups, part.rows.len])?));
        Ok(Tensor::f_cat(&grouped.collect::<Result<Vec<_>>>()?, 2)?.f_flatten(1, 2)?)
    }

    /// The weights of that name: its own, which share its memory, or those of a part of it.
    pub fn weights(&self, name: &str) -> Option<Result<Frozen>> {
        if self.place.name == name {
            return Some(Ok(self.frozen.shared()));
        }
        self.parts.iter().find(|part| part.place.name == name).map(|part| self.frozen.part(part.rows))
    }

    /// What a plugin knows of it, as a module of block `layer`.
    pub fn info(&self, layer: usize) -> (LinearInfo, Vec<PartInfo>) {
        let (holder, inputs) = (&self.place.name, self.frozen.inputs());
        let linear = |place: &Place, outputs| LinearInfo { name: place.name.clone(), layer: Some(layer), inputs, outputs };
        let part = |part: &Part| PartInfo { linear: linear(&part.place, part.rows.count()), holder: holder.clone(), rows: part.rows };
        (linear(&self.place, self.frozen.outputs()), self.parts.iter().map(part).collect())
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn what_is_split_into_parts_is_joined_again() {
        let y = Tensor::arange(3 * 24, (Kind::Float, Device::Cpu)).reshape([3, 24]);
        for (groups, parts) in [(1, [("q", 12), ("k", 6), ("v", 6)]), (4, [("q", 2), ("k", 2), ("v", 2)]), (2, [("q", 1), ("k", 3), ("v", 8)])] {
            let linear = Linear::new("m", Frozen::new(y.tr().contiguous(), Some(y.get(0)))).fused(groups, &parts);
            let split: [Tensor; 3] = linear.split(&y).unwrap();
            for ((t, part), (name, len)) in split.iter().zip(&linear.parts).zip(parts) {
                assert_eq!((t.size(), part.place.name.as_str()), (vec![3, groups, len], format!("m.{name}").as_str()));
                // The weight's rows are y's columns.
                let frozen = linear.weights(&part.place.name).unwrap().unwrap();
                assert_eq!((frozen.dense().unwrap().tr(), frozen.bias().unwrap()), (t.flatten(1, 2), &t.flatten(1, 2).get(0)));
            }
            assert_eq!(linear.join(&split.map(|t| t.flatten(1, 2))).unwrap(), y);
            assert!(linear.split::<2>(&y).is_err() && linear.weights("m.o").is_none());
        }
    }
}
