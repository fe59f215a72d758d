//! Parts of fused modules: what is a module of its own in Llama, and some rows of a larger one
//! elsewhere.

use tch::Tensor;

use crate::error::Result;

/// Rows of a fused module: of each of `groups` groups of `width` rows, `len` from `start` on.
///
/// Phi-3's queries are the first rows of its one group; GPT-NeoX has a group for each head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// How many groups the module's rows fall into.
    pub groups: i64,
    /// The first of the rows in each group.
    pub start: i64,
    /// How many they are in each group.
    pub len: i64,
    /// How many rows a group has.
    pub width: i64,
}

impl Rows {
    /// How many they are in all.
    pub fn count(&self) -> i64 {
        self.groups * self.len
    }

    /// Entries `[… groups len …]` of a tensor whose dimension `dim` runs over the module's rows, in
    /// the same memory.
    ///
    /// # Errors
    /// A dimension of another size.
    pub fn grouped(&self, all: &Tensor, dim: i64) -> Result<Tensor> {
        Ok(all.f_unflatten(dim, [self.groups, self.width])?.f_narrow(
            dim + 1,
            self.start,
            self.len,
        )?)
    }

    /// The same entries with `dim` as one dimension `[… groups·len …]`; a copy where there is more
    /// than one group.
    ///
    /// # Errors
    /// A dimension of another size.
    pub fn of(&self, all: &Tensor, dim: i64) -> Result<Tensor> {
        Ok(self.grouped(all, dim)?.f_flatten(dim, dim + 1)?)
    }

    /// Overwrites these rows of `all` `[rows …]` with `part` `[groups·len …]`.
    ///
    /// # Errors
    /// Fails if shapes do not fit.
    pub fn put(&self, all: &Tensor, part: &Tensor) -> Result<()> {
        let _guard = tch::no_grad_guard();
        self.grouped(all, 0)?.f_copy_(&part.f_unflatten(0, [self.groups, self.len])?)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn rows_are_taken_out_of_every_group_and_put_back() {
        let rows = Rows { groups: 2, start: 1, len: 2, width: 4 };
        let all = Tensor::arange(16, (Kind::Int64, tch::Device::Cpu)).reshape([8, 2]);
        let expected = Tensor::from_slice(&[2i64, 3, 4, 5, 10, 11, 12, 13]).reshape([4, 2]);
        assert_eq!(rows.of(&all, 0).unwrap(), expected);
        assert_eq!(rows.of(&all.tr(), 1).unwrap(), expected.tr());
        assert_eq!(rows.count(), 4);
        rows.put(&all, &(&expected * 100)).unwrap();
        assert_eq!(rows.of(&all, 0).unwrap(), expected * 100);
        let others = Rows { start: 3, len: 1, ..rows };
        assert_eq!(
            others.of(&all, 0).unwrap(),
            Tensor::from_slice(&[6i64, 7, 14, 15]).reshape([2, 2])
        );
        assert!(rows.of(&all.narrow(0, 0, 6), 0).is_err());
    }

    #[test]
    fn one_group_is_taken_out_without_a_copy() {
        let (all, rows) = (
            Tensor::zeros([6, 3], (Kind::Float, tch::Device::Cpu)),
            Rows { groups: 1, start: 2, len: 3, width: 6 },
        );
        let _ = rows.of(&all, 0).unwrap().fill_(1.0);
        assert_eq!(all.sum(Kind::Float).double_value(&[]), 9.0);
    }
}
