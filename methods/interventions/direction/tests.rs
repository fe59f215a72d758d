use reprpo_plugin::testkit::{STEP, model, near, random, random_sides, sides, tap, tensor};

use super::*;
use crate::interventions::dpo::Dpo;
use crate::interventions::mse::Mse;
use crate::interventions::prefvec::PrefVec;
use crate::interventions::projbp::ProjBp;
use crate::interventions::projgrad::ProjGrad;
use crate::interventions::vectors::{cos, dot, norm};

fn site() -> Site {
    Site::Residual(1)
}

fn seeded(seed: u64) -> StepInfo {
    StepInfo { seed, ..STEP }
}

/// Returns the random unit vector of a site, `[w]`.
fn unit_of(w: i64, site: &Site, seed: u64) -> Tensor {
    let one = Tensor::zeros([w], (Kind::Double, Device::Cpu));
    let _ = one.get(0).fill_(1.0);
    Direction::Random.of(&one, site, seed)
}

fn far(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

fn loss_of(method: impl InterventionPlugin, tap: TapStates, seed: u64) -> f64 {
    let n = tap.reference().unwrap().chosen.size()[0] as usize;
    let mut method = method.build(&model()).unwrap();
    let pairs = Pairs::new(n, vec![tap], None, None);
    method.loss(&pairs, seeded(seed)).unwrap().value.double_value(&[])
}

#[test]
fn random_directions_have_the_lengths_of_the_preference_directions() {
    let d = random(&[4, 9]);
    let _ = d.get(2).fill_(0.0);
    let r = Direction::Random.of(&d, &site(), 3);
    assert!(far(&norm(&r), &norm(&d)) < 1e-12);
    assert_eq!(norm(&r).double_value(&[2]), 0.0);
    let u = unit_of(9, &site(), 3);
    near(norm(&u).double_value(&[]), 1.0);
    assert!(far(&r, &(norm(&d).unsqueeze(1) * &u)) < 1e-12);
    assert!(far(&Direction::Preference.of(&d, &site(), 3), &d) == 0.0);
}

#[test]
fn a_random_direction_depends_on_the_seed_and_the_site_but_not_on_the_batch() {
    let d = random(&[4, 9]);
    let all = Direction::Random.of(&d, &site(), 3);
    let order = Tensor::from_slice(&[2i64, 0]);
    let some = Direction::Random.of(&d.index_select(0, &order), &site(), 3);
    assert_eq!(some, all.index_select(0, &order));
    for (site, seed) in [(site(), 4), (Site::Residual(2), 3), (Site::Input("a".into()), 3)] {
        assert!(
            cos(&unit_of(900, &site, seed), &unit_of(900, &Site::Residual(1), 3))
                .abs()
                .double_value(&[])
                < 0.15
        );
    }
    let rounded = Direction::Random.of(&d.to_kind(Kind::Float), &site(), 3);
    assert_eq!(rounded.kind(), Kind::Float);
    assert!(far(&rounded.to_kind(Kind::Double), &all) < 1e-6);
}

/// The cosine of a fixed vector and a random unit vector in w dimensions has the mean 0 and the
/// variance 1/w.
#[test]
fn random_directions_are_uncorrelated_with_the_preference_direction() {
    let (w, n) = (64, 2000);
    let d = random(&[w]);
    let cosines: Vec<f64> =
        (0..n).map(|seed| cos(&d, &unit_of(w, &site(), seed)).double_value(&[])).collect();
    let mean = cosines.iter().sum::<f64>() / n as f64;
    let square = cosines.iter().map(|c| c * c).sum::<f64>() / n as f64;
    // The standard error of the mean is 1/√(w n), and that of w·cos² is about √(2/n).
    assert!(mean.abs() < 4.0 / (w as f64 * n as f64).sqrt(), "{mean}");
    assert!((square * w as f64 - 1.0).abs() < 4.0 * (2.0 / n as f64).sqrt(), "{square}");
}

#[test]
fn prefvec_with_a_random_direction_equals_its_formula() {
    let config = PrefVec {
        direction: Direction::Random,
        lambda_nll: 0.0,
        lambda_angle: 0.3,
        ..PrefVec::default()
    };
    let (p, r) = (random_sides(&[1, 5]), random_sides(&[1, 5]));
    let found = loss_of(config.clone(), tap(&p, &r), 7);
    let s = norm(&(&r.chosen - &r.rejected)).double_value(&[0]);
    let u = unit_of(5, &site(), 7);
    let (m_cho, m_rej) = ((&p.chosen - &r.chosen) / s, (&p.rejected - &r.rejected) / s);
    let (a_cho, a_rej) = (dot(&m_cho, &u), dot(&m_rej, &u));
    let across = |m: &Tensor, a: &Tensor| norm(&(m - a.unsqueeze(1) * &u)).double_value(&[0]);
    let along = |a: &Tensor| (1.0 - a.double_value(&[0])).max(0.0);
    let expected = 0.5 * (along(&a_cho) + along(&a_rej))
        + 0.1 * 0.5 * (across(&m_cho, &a_cho) + across(&m_rej, &a_rej))
        + 0.3 * (1.0 - cos(&(&p.chosen - &p.rejected), &u).double_value(&[0]));
    near(found, expected);
    assert!(
        (found
            - loss_of(
                PrefVec { direction: Direction::Preference, ..config.clone() },
                tap(&p, &r),
                7
            ))
        .abs()
            > 1e-3
    );
    // States that moved by one length of the preference vector along u have the loss 0.
    let moved = sides(&(&r.chosen + &u * s), &(&r.rejected + &u * s));
    near(loss_of(PrefVec { lambda_angle: 0.0, ..config }, tap(&moved, &r), 7), 0.0);
}

#[test]
fn mse_with_a_random_direction_has_a_target_at_the_same_distance() {
    let config = || Mse { direction: Direction::Random, ..Mse::default() };
    let r = sides(&tensor(&[2.0, 0.0], &[1, 2]), &tensor(&[0.0, 0.0], &[1, 2]));
    near(loss_of(config(), tap(&r, &r), 5), 1.0);
    let u = unit_of(2, &site(), 5);
    let at_target = sides(&r.chosen, &(&r.rejected + &u * 2.0));
    near(loss_of(config(), tap(&at_target, &r), 5), 0.0);
    // The states of `mse`'s own target are ‖d − 2u‖² = 8 − 8·u₀ away, and s² is 4.
    let at_chosen = sides(&r.chosen, &r.chosen);
    near(loss_of(config(), tap(&at_chosen, &r), 5), 2.0 - 2.0 * u.double_value(&[0]));
}

#[test]
fn projgrad_with_a_random_direction_keeps_the_part_of_the_gradient_along_it() {
    let method = ProjGrad { direction: Direction::Random, beta: 0.0, ..ProjGrad::default() };
    let method = method.build(&model()).unwrap();
    let (g, d) = (random(&[5, 7]), random(&[7]));
    let site = Site::Input("layer".to_owned());
    let at = ParameterGrad { site: &site, axis: Axis::Input(1), direction: &d, step: seeded(2) };
    let u = unit_of(7, &site, 2);
    let expected = g.matmul(&u).unsqueeze(1) * &u;
    assert!(far(&method.parameter_grad(&g, at).unwrap(), &expected) < 1e-10);
}

#[test]
fn projbp_with_a_random_direction_keeps_the_part_of_the_gradient_along_it() {
    let method = ProjBp {
        direction: Direction::Random,
        beta: 0.0,
        mag_clip: None,
        keep_norm: false,
        dpo: Dpo::default(),
        ..ProjBp::default()
    };
    let method = method.build(&model()).unwrap();
    let (g, site) = (random(&[3, 6]), Site::Output("layer".to_owned()));
    let direction = random(&[2, 6]);
    let _ = direction.get(1).fill_(0.0);
    let at = OutputGrad {
        site: site.clone(),
        direction,
        owner: Tensor::from_slice(&[0i64, 0, 1]),
        weight: 0.5,
        step: seeded(2),
    };
    let u = unit_of(6, &site, 2);
    let expected = g.matmul(&u).unsqueeze(1) * &u;
    // The second pair has no preference direction, so it has no random one either.
    let _ = expected.get(2).fill_(0.0);
    assert!(far(&method.output_grad(at).unwrap()(&g).unwrap(), &expected) < 1e-10);
}

#[test]
fn the_original_variants_reject_a_random_direction() {
    let original = Variant::Original;
    let e = PrefVec { direction: Direction::Random, variant: original, ..PrefVec::default() }
        .build(&model())
        .err()
        .expect("an error");
    assert!(e.to_string().contains("is not possible with `variant"), "{e}");
    let mse = Mse { direction: Direction::Random, variant: original, ..Mse::default() };
    assert!(mse.build(&model()).is_err());
}
