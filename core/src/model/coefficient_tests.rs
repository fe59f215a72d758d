//! Tests of coefficients of adapters.

use super::*;
use crate::api::{AdaptedLinear, Adapter, Init, LinearSite, TargetModules};
use crate::conformance::{Bench, Case, pairs};
use crate::model::stream::StreamBuilder;

fn hidden(model: &Model, adapted: Option<&Adapted>) -> Tensor {
    let _guard = tch::no_grad_guard();
    let mut builder = StreamBuilder::default();
    builder.push(&pairs()[0].prompt, None).unwrap();
    let stream = builder.finish(Device::Cpu).unwrap();
    let request = Request { adapted, hidden: true, ..Request::default() };
    model.forward(&stream, request).unwrap().hidden.unwrap().states().shallow_clone()
}

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

#[test]
fn a_coefficient_multiplies_the_change_of_every_module() {
    let mut bench = Bench::new(&Case::of_stand_ins(), 0).unwrap();
    bench.disturb();
    let of = |bench: &Bench, c| bench.adapted.with_coefficient(bench.adapter.as_ref(), c).unwrap();
    let with = |bench: &Bench, c| hidden(&bench.model, Some(&of(bench, c)));
    let (base, trained) = (hidden(&bench.model, None), hidden(&bench.model, Some(&bench.adapted)));
    assert!(difference(&base, &trained) > 1e-3);
    assert!(with(&bench, 0.0).equal(&base) && with(&bench, 1.0).equal(&trained));
    for c in [-1.0, 0.5, 2.0] {
        let scaled = of(&bench, c);
        let (found, merged) = {
            let found = hidden(&bench.model, Some(&scaled));
            let replaced = bench.model.merge(&scaled).unwrap();
            let merged = hidden(&bench.model, None);
            bench.model.unmerge(replaced);
            (found, merged)
        };
        assert!(difference(&found, &merged) < 1e-10, "{c}: merged");
        // The stand-in adds its parameter Δ to W, so that a multiple of Δ is a multiple of the
        // change.
        let multiply = |factor: f64| {
            let _guard = tch::no_grad_guard();
            for (_, mut tensor) in bench.adapted.parameters() {
                let _ = tensor.f_mul_scalar_(factor).unwrap();
            }
        };
        multiply(c);
        let expected = hidden(&bench.model, Some(&bench.adapted));
        multiply(1.0 / c);
        assert!(difference(&found, &expected) < 1e-10, "{c}");
        assert!(difference(&found, &base) > 1e-3 && difference(&found, &trained) > 1e-3, "{c}");
    }
    assert_eq!(difference(&hidden(&bench.model, None), &base), 0.0);
}

#[test]
fn a_coefficient_must_be_finite_and_accepted_by_the_method() {
    struct Rotation;
    impl TargetModules for Rotation {}
    impl Adapter for Rotation {
        fn accepts_coefficient(&self) -> Result<()> {
            Err(Error::new("a multiple of the change is not a rotation"))
        }

        fn attach(&self, _: &LinearSite<'_>, _: &mut Init) -> Result<Box<dyn AdaptedLinear>> {
            Err(Error::new("this adapter is never attached"))
        }

        fn peft_config(&self) -> String {
            "{}".to_owned()
        }
    }
    let bench = Bench::new(&Case::of_stand_ins(), 0).unwrap();
    let with = |adapter: &dyn Adapter, c| bench.adapted.with_coefficient(adapter, c);
    for c in [f64::NAN, f64::INFINITY] {
        let e = with(bench.adapter.as_ref(), c).unwrap_err().to_string();
        assert!(e.contains("must be a finite number"), "{e}");
    }
    assert!(with(&Rotation, 0.0).is_ok() && with(&Rotation, 1.0).is_ok());
    let e = format!("{:?}", with(&Rotation, 0.5).unwrap_err());
    assert!(e.contains("multiplied by the coefficient 0.5") && e.contains("not a rotation"), "{e}");
}
