//! Products of Householder reflections in compact form, without building the full matrix.
//!
//! H₀H₁⋯H_{r−1} with H_i = I − 2ûᵢûᵢᵀ equals I − U S Uᵀ. The columns of U are the unit vectors ûᵢ,
//! and S⁻¹ = ½I + striu(UᵀU). Applying the product means solving a triangular r×r system, which is
//! never singular. The cost in time and memory is that of a rank-r map.
//!
//! References: Schreiber and Van Loan 1989 (the compact WY form); Yuan et al. 2024 (HRA), eq. 4
//! (the product of reflections).

use reprpo_plugin::prelude::*;

/// The product H₀⋯H_{r−1} of the reflections along the columns of a matrix.
pub struct Reflections {
    /// U, a matrix `[h r]` with columns of unit length.
    columns: Tensor,
    /// S⁻¹, an upper triangular matrix `[r r]`.
    system: Tensor,
}

impl Reflections {
    /// Builds the product from the columns of `u`, `[h r]`, after scaling them to unit length.
    pub fn along(u: &Tensor) -> Self {
        let columns = u / u.norm_scalaropt_dim(2.0, 0, true);
        let half = Tensor::eye(u.size()[1], (u.kind(), u.device())) * 0.5;
        let system = columns.tr().matmul(&columns).triu(1) + half;
        Self { columns, system }
    }

    /// Returns x·H₀⋯H_{r−1} for each row of x, `[… h]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x - x
            .matmul(&self.columns)
            .linalg_solve_triangular_right(&self.system, true)
            .matmul(&self.columns.tr())
    }

    /// Returns x·(H₀⋯H_{r−1})ᵀ for each row of x, `[n h]`. x can have a lower precision than U.
    pub fn transposed(&self, x: &Tensor) -> Tensor {
        // SᵀUᵀ only depends on the weights, so xU is the only activation that is stored for the
        // backward pass.
        let right = Tensor::linalg_solve_triangular(
            &self.system.tr(),
            &self.columns.tr(),
            false,
            true,
            false,
        );
        x - x.matmul(&self.columns.to_kind(x.kind())).matmul(&right.to_kind(x.kind()))
    }
}

/// Returns a trainable tensor `[h r]` for even r. Its columns form pairs of equal vectors, so that
/// the reflections cancel.
pub fn equal_pairs(init: &mut Init, key: &str, h: i64, r: i64) -> Tensor {
    // As in PEFT, half of the columns are random. PEFT initialises them as a matrix `[h r/2]`, so
    // torch uses the fan-in r/2.
    let half = init.kaiming_uniform(key, &[h, r / 2], r / 2);
    half.detach().repeat_interleave_self_int(2, 1, None).set_requires_grad(true)
}

/// Extension trait that computes X·A⁻¹ for a triangular matrix A.
trait SolveRight {
    fn linalg_solve_triangular_right(&self, a: &Tensor, upper: bool) -> Tensor;
}

impl SolveRight for Tensor {
    fn linalg_solve_triangular_right(&self, a: &Tensor, upper: bool) -> Tensor {
        let rows = self.reshape([-1, self.size()[self.dim() - 1]]);
        Tensor::linalg_solve_triangular(a, &rows, upper, false, false).reshape(self.size())
    }
}

#[cfg(test)]
mod tests {
    use reprpo_plugin::tch::Device;
    use reprpo_plugin::testkit::random;

    use super::*;

    /// Returns the product of the reflections as an h×h matrix, computed from the definition.
    fn product(u: &Tensor) -> Tensor {
        let (h, r) = u.size2().unwrap();
        let mut p = Tensor::eye(h, (Kind::Double, Device::Cpu));
        for i in 0..r {
            let v = u.select(1, i);
            let v = &v / v.norm();
            p = p.matmul(&(Tensor::eye(h, (Kind::Double, Device::Cpu)) - 2.0 * v.outer(&v)));
        }
        p
    }

    #[test]
    fn the_compact_form_equals_the_product_of_reflections() {
        let x = random(&[5, 7]);
        for r in [1, 2, 5, 7, 12] {
            let u = random(&[7, r]);
            let (compact, full) = (Reflections::along(&u), product(&u));
            assert!((compact.forward(&x) - x.matmul(&full)).abs().max().double_value(&[]) < 1e-12);
            assert!(
                (compact.transposed(&x) - x.matmul(&full.tr())).abs().max().double_value(&[])
                    < 1e-12
            );
        }
    }

    #[test]
    fn equal_pairs_of_columns_give_the_identity() {
        let u = random(&[6, 2]).repeat_interleave_self_int(2, 1, None);
        let x = random(&[3, 6]);
        assert!((Reflections::along(&u).forward(&x) - x).abs().max().double_value(&[]) < 1e-14);
    }
}
