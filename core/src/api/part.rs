//! Parts of fused modules, such as the rows of `qkv_proj` that compute the queries.

use tch::Tensor;

use crate::error::Result;

/// A selection of rows of a fused module.
///
/// The module's rows are divided into `groups` groups of `width` rows. The selection contains rows
/// `start` to `start + len − 1` of every group. For example, Phi-3's `qkv_proj` is a single
/// group that begins with the queries, and GPT-NeoX's `query_key_value` has one group per head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Number of groups in the module.
    pub groups: i64,
    /// First selected row of each group, counted from 0.
    pub start: i64,
    /// Number of selected rows in each group.
    pub len: i64,
    /// Number of rows in each group, selected or not.
    pub width: i64,
}

impl Rows {
    /// Total number of selected rows.
    pub fn count(&self) -> i64 {
        self.groups * self.len
    }

    /// Selects these rows along dimension `dim` of `all`. Returns a view of shape
    /// `[… groups len …]`.
    ///
    /// # Errors
    /// Fails if the size of `dim` is not `groups · width`.
    pub fn grouped(&self, all: &Tensor, dim: i64) -> Result<Tensor> {
        Ok(all.f_unflatten(dim, [self.groups, self.width])?.f_narrow(
            dim + 1,
            self.start,
            self.len,
        )?)
    }

    /// Like [`grouped`](Self::grouped), but joins the groups in one dimension. The result, of shape
    /// `[… groups·len …]`, is a copy if there is more than one group.
    ///
    /// # Errors
    /// Fails if the size of `dim` is not `groups · width`.
    pub fn of(&self, all: &Tensor, dim: i64) -> Result<Tensor> {
        Ok(self.grouped(all, dim)?.f_flatten(dim, dim + 1)?)
    }

    /// Overwrites these rows of `all`, of shape `[rows …]`, with `part`, of shape `[groups·len …]`.
    ///
    /// # Errors
    /// Fails if the shapes do not match.
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
    fn rows_are_selected_from_every_group_and_written_back() {
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
    fn rows_of_a_single_group_are_a_view() {
        let (all, rows) = (
            Tensor::zeros([6, 3], (Kind::Float, tch::Device::Cpu)),
            Rows { groups: 1, start: 2, len: 3, width: 6 },
        );
        let _ = rows.of(&all, 0).unwrap().fill_(1.0);
        assert_eq!(all.sum(Kind::Float).double_value(&[]), 9.0);
    }
}
