use reprpo_plugin::tch::Device;
use reprpo_plugin::testkit::{self, random};

use super::*;

fn projected(config: ProjGrad) -> Projected {
    Projected { config, loss: Box::new(Dpo::default()) }
}

/// Returns the arguments of `parameter_grad` for the output of the first block.
fn at(axis: Axis, direction: &Tensor) -> ParameterGrad<'_> {
    ParameterGrad { site: &Site::Block(0), axis, direction, step: testkit::STEP }
}

fn off(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

#[test]
fn with_beta_one_and_no_clipping_the_gradient_does_not_change() {
    let method = projected(ProjGrad { beta: 1.0, ..ProjGrad::default() });
    for (shape, axis) in [
        (&[5, 7][..], Axis::Input(1)),
        (&[7, 5], Axis::Output(0)),
        (&[7], Axis::Output(0)),
        (&[1, 7], Axis::Input(1)),
        (&[2, 7, 3], Axis::Input(1)),
    ] {
        let (g, d) = (random(shape), random(&[7]));
        assert!(off(&method.parameter_grad(&g, at(axis, &d)).unwrap(), &g) < 1e-10, "{shape:?}");
    }
}

#[test]
fn with_beta_zero_a_gradient_is_parallel_to_the_direction() {
    let method = projected(ProjGrad { beta: 0.0, ..ProjGrad::default() });
    let (g, d) = (random(&[7, 5]), random(&[7]));
    let u = &d / d.norm();
    let p = method.parameter_grad(&g, at(Axis::Output(0), &d)).unwrap();
    assert!(off(&p, &u.outer(&u.unsqueeze(0).matmul(&g).squeeze_dim(0))) < 1e-10);
}

#[test]
fn a_sign_clips_the_coefficient_but_not_the_vector() {
    let d = Tensor::from_slice(&[3.0f64, 0.0]);
    let g = Tensor::from_slice(&[2.0f64, 1.0, -4.0, 1.0]).reshape([2, 2]);
    let with = |sign| {
        projected(ProjGrad { beta: 0.5, sign, neg_slope: 0.25, ..ProjGrad::default() })
            .parameter_grad(&g, at(Axis::Input(1), &d))
            .unwrap()
    };
    assert!(
        off(&with(Sign::Pos), &Tensor::from_slice(&[2.0f64, 0.5, -1.0, 0.5]).reshape([2, 2]))
            < 1e-10
    );
    assert!(
        off(&with(Sign::Neg), &Tensor::from_slice(&[0.5f64, 0.5, -4.0, 0.5]).reshape([2, 2]))
            < 1e-10
    );
}

#[test]
fn scale_orth_gives_the_orthogonal_part_the_length_of_the_parallel_part() {
    let method = projected(ProjGrad { beta: 1.0, scale_orth: true, ..ProjGrad::default() });
    let (g, d) = (random(&[5, 7]), random(&[7]));
    let u = &d / d.norm();
    let p = method.parameter_grad(&g, at(Axis::Input(1), &d)).unwrap();
    let along = p.matmul(&u).unsqueeze(1) * &u;
    assert!(((&p - &along).norm() - along.norm()).abs().double_value(&[]) < 1e-9);
}

#[test]
fn a_gradient_longer_than_the_limit_is_scaled_down() {
    let method = projected(ProjGrad { beta: 1.0, mag_clip: Some(0.5), ..ProjGrad::default() });
    let (g, d) = (random(&[5, 7]), random(&[7]) * 0.1);
    let p = method.parameter_grad(&g, at(Axis::Input(1), &d)).unwrap();
    assert!((p.norm() - d.norm() * 0.5).abs().double_value(&[]) < 1e-9);
}

#[test]
fn an_error_names_the_field_that_is_out_of_range() {
    let model = reprpo_core::conformance::model(Kind::Double).unwrap();
    for (config, field) in [
        (ProjGrad { beta: -1.0, ..ProjGrad::default() }, "intervention.beta"),
        (ProjGrad { neg_slope: 2.0, ..ProjGrad::default() }, "intervention.neg_slope"),
        (ProjGrad { mag_clip: Some(0.0), ..ProjGrad::default() }, "intervention.mag_clip"),
    ] {
        assert!(config.build(model.info()).err().unwrap().to_string().contains(field), "{field}");
    }
}

/// The gradients are accumulated over micro-batches. The test computes the expected direction from
/// the states of all pairs.
#[test]
fn with_beta_zero_every_gradient_is_parallel_to_the_direction_of_the_step() {
    assert_eq!(
        assert_gradients_are_parallel(
            &reprpo_core::conformance::model(Kind::Double).unwrap(),
            "q_proj",
            "v_proj"
        ),
        12
    );
}

#[test]
fn the_direction_of_a_part_comes_from_its_own_outputs() {
    use reprpo_core::{model::Model, weights::ModelFiles};

    for (model, module) in [("phi3", "qkv_proj"), ("gpt_neox", "query_key_value")] {
        let model = Model::load(
            &ModelFiles::open(&crate::golden::own().join("models").join(model)).unwrap(),
            Kind::Double,
            Device::Cpu,
        )
        .unwrap();
        assert_eq!(
            assert_gradients_are_parallel(
                &model,
                &format!("{module}.q_proj"),
                &format!("{module}.v_proj")
            ),
            4 * model.info().layers
        );
    }
}

/// Checks that all gradients are parallel to the direction. Returns the number of gradients.
fn assert_gradients_are_parallel(
    model: &reprpo_core::model::Model,
    one: &str,
    other: &str,
) -> usize {
    use reprpo_core::batch::{BatchSpec, PairBatch};
    use reprpo_core::model::Adapted;
    use reprpo_core::model::pass::Request;
    use reprpo_core::registry::Registry;
    use reprpo_core::train::{Objective, Reference, Taps, accumulate};

    let pairs = reprpo_core::conformance::pairs();
    let pairs: Vec<_> = pairs.iter().collect();
    let config = format!(r#"{{"r": 4, "target_modules": ["{one}", "{other}"]}}"#);
    let lora = Registry::builtin().unwrap().adapter("lora").unwrap().build(&config).unwrap();
    let adapted = Adapted::attach(lora.as_ref(), model, model.info().layers, 0).unwrap();
    for (_, tensor) in adapted.parameters() {
        let _ = tensor.detach().g_add_(&(random(&tensor.size()) * 0.1));
    }
    let taps = Taps::default();
    let mut objective = Objective::new(
        ProjGrad { beta: 0.0, ..ProjGrad::default() }.build(model.info()).unwrap(),
        taps,
        Reference::default(),
        &adapted,
    )
    .unwrap();
    accumulate(
        &mut objective,
        model,
        &adapted,
        &pairs,
        2,
        StepInfo { step: 0, steps: 1, seed: 0 },
        0,
    )
    .unwrap();

    let spec = BatchSpec::SCORED;
    let batch = PairBatch::of(&pairs, spec, model).unwrap();
    let mut checked = 0;
    for changed in adapted.changed() {
        let sites = [changed.input, changed.output];
        let states = model
            .forward(&batch.stream, Request { sites: &sites, ..Request::default() })
            .unwrap()
            .states;
        for parameter in &changed.parameters {
            let axis = parameter.axis.expect("both LoRA parameters should have an axis");
            let at = &states[usize::from(matches!(axis, Axis::Output(_)))];
            let pool = |side| batch.pool(at, Pooling::Completion, side).unwrap();
            let d = (pool(Side::Chosen) - pool(Side::Rejected)).mean_dim(0, false, None::<Kind>);
            let u = &d / d.norm();
            let g = parameter.tensor.grad().movedim_int(axis.dim() as i64, -1);
            let across = &g - (&g * &u).sum_dim_intlist(-1, true, None::<Kind>) * &u;
            assert!(g.norm().double_value(&[]) > 0.0);
            assert!((across.norm() / g.norm()).double_value(&[]) < 1e-9, "{}", parameter.key);
            checked += 1;
        }
    }
    checked
}
