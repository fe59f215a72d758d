use super::*;
use crate::testing::ranks::{hosted, on_ranks};

#[test]
fn operations_cover_all_ranks_in_their_order() {
    on_ranks(3, |world| {
        let rank = world.rank() as f64;
        let sum = Tensor::from_slice(&[0.1 + rank, -rank]);
        world.sum(&sum).unwrap();
        assert_eq!(Vec::<f64>::try_from(&sum).unwrap()[1], -3.0);
        let sums = world.gather(Vec::<f64>::try_from(&sum).unwrap()[0].to_bits()).unwrap();
        assert!(sums.iter().all(|bits| *bits == sums[0]));
        // Values of different sizes, and numbers that a text would not keep.
        let values =
            world.gather(vec![f64::NAN, 0.1 + 0.2][..world.rank().min(2)].to_vec()).unwrap();
        assert_eq!(values.iter().map(Vec::len).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(values[2][0].is_nan() && values[2][1] == 0.1 + 0.2);
        assert!(world.any(world.rank() == 2).unwrap() && !world.any(false).unwrap());
        world.connect_cards(Device::Cpu).unwrap();
        let own = Tensor::from_slice(&[world.rank() as i64, 7]);
        let all = world.finish(world.start_gather(&own).unwrap()).unwrap();
        assert_eq!(Vec::<Vec<i64>>::try_from(all).unwrap(), [[0, 7], [1, 7], [2, 7]]);
        world.agree("the answer", 42).unwrap();
        let e = world.agree("the rank", world.rank() / 2).unwrap_err();
        assert_eq!(e.to_string().lines().next(), Some("rank 2 differs from rank 0 in: the rank"));
    });
}

#[test]
fn one_rank_needs_no_connection() {
    let world = World::default();
    let one = Tensor::from_slice(&[1.5]);
    world.sum(&one).unwrap();
    assert_eq!(one.double_value(&[0]), 1.5);
    assert_eq!(world.gather("a".to_owned()).unwrap(), ["a"]);
    assert_eq!((world.share(7), world.is_first()), (0..7, true));
    world.leave(None);
}

#[test]
fn shares_follow_each_other_and_rank_0_has_the_most() {
    for size in 1..6 {
        for count in 0..20 {
            let share = |rank| World { rank, size, ..World::default() }.share(count);
            let shares: Vec<_> = (0..size).map(share).collect();
            assert_eq!((shares[0].start, shares[size - 1].end), (0, count));
            assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert_eq!(shares[0].len(), count.div_ceil(size));
            assert!(shares.iter().all(|share| share.len() <= shares[0].len()));
        }
    }
}

#[test]
fn ranks_use_the_store_of_the_launcher_and_ignore_an_earlier_start() {
    // The keys of an earlier start stay in the store of the launcher.
    for ranks in hosted(2, 2, |world| world.gather(world.rank()).unwrap()).into_iter().flatten() {
        assert_eq!(ranks, [vec![0, 1], vec![0, 1]]);
    }
}

#[test]
fn a_checksum_depends_on_every_bit_and_not_on_the_dtype() {
    let of = |tensors: &[&Tensor]| checksum(tensors.iter().map(|t| t.shallow_clone())).unwrap();
    for kind in [Kind::Double, Kind::Float, Kind::BFloat16] {
        let a = Tensor::arange(12, (kind, Device::Cpu)).view([3, 4]).set_requires_grad(true);
        let b = a.detach().copy();
        assert_eq!(of(&[&a, &b]), of(&[&b, &a]));
        let _ = b.get(2).get(3).fill_(f64::from(11.0_f32.next_up()) + 0.1);
        assert_ne!(of(&[&a]), of(&[&b]));
        assert_ne!(of(&[&a, &b]), of(&[&b, &a]));
    }
}
