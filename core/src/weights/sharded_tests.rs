use super::*;
use crate::api::Weight;
use crate::testing::ranks::on_ranks;

fn matrix(seed: i64, size: [i64; 2], kind: Kind) -> Tensor {
    let count = size[0] * size[1];
    (Tensor::arange(count, (Kind::Double, Device::Cpu)) * (seed as f64 + 0.7))
        .sin()
        .view(size)
        .to_kind(kind)
}

#[test]
fn gathered_matrices_have_the_same_bytes_in_any_order() {
    let results = on_ranks(3, |world| {
        let shards = Shards::new(world);
        let matrices: Vec<Tensor> =
            [([7, 4], Kind::Float), ([2, 3], Kind::BFloat16), ([9, 1], Kind::Double)]
                .into_iter()
                .enumerate()
                .map(|(i, (size, kind))| matrix(i as i64, size, kind))
                .collect();
        let sharded: Vec<ShardedMatrix> =
            matrices.iter().map(|matrix| shards.divide(matrix).unwrap()).collect();
        // The order repeats, with exceptions that make predictions wrong.
        for number in [0, 1, 2, 0, 1, 2, 0, 1, 1, 2, 0, 2, 1, 0, 1, 2, 0, 0, 1] {
            assert!(sharded[number].dense().unwrap().equal(&matrices[number]));
        }
        for (sharded, matrix) in sharded.iter().zip(&matrices) {
            assert_eq!(sharded.size().to_vec(), matrix.size());
            assert_eq!((sharded.kind(), sharded.device()), (matrix.kind(), Device::Cpu));
            let whole = matrix.numel() * matrix.kind().elt_size_in_bytes();
            assert!(sharded.kept() < whole);
        }
    });
    assert!(results.is_none_or(|results| results.len() == 3));
}

#[test]
fn parts_rows_and_comparisons_equal_those_of_the_whole_matrix() {
    on_ranks(2, |world| {
        let shards = Shards::new(world);
        let matrix = matrix(1, [12, 5], Kind::Float);
        let of = |matrix: &Tensor| Weight::Stored(Box::new(shards.divide(matrix).unwrap()));
        let (sharded, dense) = (of(&matrix), Weight::Dense(matrix.shallow_clone()));
        let ids = Tensor::from_slice(&[11_i64, 0, 3, 3]);
        assert!(sharded.rows(&ids).unwrap().equal(&dense.rows(&ids).unwrap()));
        for groups in [1, 3] {
            let rows = Rows { groups, start: 1, len: 2, width: 12 / groups };
            let part = |weight: &Weight| weight.part(rows).unwrap().dense().unwrap();
            assert!(part(&sharded).equal(&part(&dense)));
            assert!(sharded.part(rows).unwrap().part(rows).is_err());
        }
        assert!(sharded.part(Rows { groups: 5, start: 0, len: 1, width: 2 }).is_err());
        // Only the last rank has the row that differs.
        let other = matrix.copy();
        let _ = other.get(11).fill_(0.0);
        assert!(sharded.equal(&of(&matrix)).unwrap() && sharded.equal(&dense).unwrap());
        assert!(!sharded.equal(&of(&other)).unwrap());
    });
}
