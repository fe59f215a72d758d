//! Applies block-diagonal matrices to rows block by block, without building the full matrix.

use reprpo_plugin::prelude::*;

/// Splits the columns of `x` into k blocks: `[n k·b]` → `[k n b]`.
pub fn split(x: &Tensor, k: i64) -> Result<Tensor> {
    Ok(x.f_unflatten(1, [k, -1])?.f_transpose(0, 1)?)
}

/// Joins k blocks: `[k n b]` → `[n k·b]`.
pub fn join(blocks: &Tensor) -> Result<Tensor> {
    Ok(blocks.f_transpose(0, 1)?.f_flatten(1, 2)?)
}

/// Small blocks are combined into larger blocks of at most this size. One larger product is faster
/// than many small ones, even though it includes multiplications by 0.
const SMALL: i64 = 32;

/// Returns x·diag(R₀, …, R_{k−1}) in the dtype of x. `x` has the shape `[n k·b]`, and `r` has the
/// shape `[k b b]`. If `r` has the shape `[1 b b]`, its matrix is used for every block.
pub fn rotate(x: &Tensor, r: &Tensor) -> Result<Tensor> {
    let (r, b) = (r.f_to_kind(x.kind())?, r.size()[1]);
    if r.size()[0] == 1 {
        return Ok(x.f_reshape([-1, b])?.f_matmul(&r.select(0, 0))?.f_reshape(x.size())?);
    }
    let r = combined(&r)?;
    join(&split(x, r.size()[0])?.f_bmm(&r)?)
}

/// Combines each group of g adjacent blocks into one block-diagonal matrix. g is the largest
/// divisor of k with g·b ≤ [`SMALL`]. `[k b b]` → `[k/g g·b g·b]`.
fn combined(r: &Tensor) -> Result<Tensor> {
    let (k, b) = (r.size()[0], r.size()[1]);
    let Some(g) = (2..=SMALL / b).rev().find(|g| k % g == 0) else { return Ok(r.shallow_clone()) };
    // Permute [k/g g b b] to [k/g b b g], embed it in [k/g b b g g] with zeros off the diagonal,
    // and reorder that into rows (g b) and columns (g b).
    let apart = r.f_view([k / g, g, b, b])?.f_permute([0, 2, 3, 1])?.f_diag_embed(0, -2, -1)?;
    Ok(apart.f_permute([0, 3, 1, 4, 2])?.f_reshape([k / g, g * b, g * b])?)
}

/// Returns the rotation (I − Q)(I + Q)⁻¹ of each matrix in `q`. The matrices must be
/// skew-symmetric, and `q` has the shape `[… b b]`.
pub fn cayley(q: &Tensor) -> Result<Tensor> {
    let eye = Tensor::eye(q.size()[q.dim() - 1], (q.kind(), q.device()));
    // The two factors commute, so the rotation R solves (I + Q)R = I − Q. I + Q is never singular.
    // Skip the check for a singular matrix, because the check would synchronise with the GPU.
    let (r, _) = Tensor::f_linalg_solve_ex(&(&eye + q), &(&eye - q), true, false)?;
    Ok(r)
}

/// Returns `width / value`. `value` is the number of blocks or the block size in `adapter.<field>`.
///
/// # Errors
/// Fails if `value` does not divide `width`.
pub fn quotient(field: &str, value: u32, width: i64) -> Result<i64> {
    if width % i64::from(value) == 0 {
        return Ok(width / i64::from(value));
    }
    let divisors: Vec<_> = (1..=width).filter(|d| width % d == 0).map(|d| d.to_string()).collect();
    Err(Error::new(format!(
        "`adapter.{field}` is {value}, which does not divide the module's width {width}"
    ))
    .hint(format!("valid for this module: {}", divisors.join(", "))))
}

#[cfg(test)]
mod tests {
    use reprpo_plugin::testkit::random;

    use super::super::fixture::{off, rows};
    use super::*;

    #[test]
    fn blocks_of_every_size_act_like_one_block_diagonal_matrix() {
        for (k, b) in [(1, 5), (2, 3), (6, 4), (7, 5), (11, 2), (3, 40), (64, 1)] {
            let (x, r) = (rows(3, k * b), random(&[k, b, b]));
            let whole = Tensor::block_diag(&(0..k).map(|i| r.get(i)).collect::<Vec<_>>());
            assert!(off(&rotate(&x, &r).unwrap(), &x.matmul(&whole)) < 1e-12, "{k} blocks of {b}");
        }
    }
}
