//! Checks that the built-in transforms have the properties that they declare, and that their values
//! match their definitions.

use reprpo_core::registry::{Registry, TransformEntry};
use reprpo_plugin::prelude::*;
use reprpo_plugin::tch::{self, Device};
use reprpo_plugin::testkit::{model, random, seeded};

const WIDTH: i64 = 12;

/// Properties that a transform must have with the given settings.
#[derive(Debug)]
struct Claim {
    name: &'static str,
    json: &'static str,
    linear: bool,
    orthogonal: bool,
    /// True if the transform is the identity before training.
    identity: bool,
    /// h′, the output width.
    outputs: i64,
    trained: usize,
}

const fn claim(
    name: &'static str,
    json: &'static str,
    [linear, orthogonal, identity]: [bool; 3],
    outputs: i64,
    trained: usize,
) -> Claim {
    Claim { name, json, linear, orthogonal, identity, outputs, trained }
}

/// The built-in transforms with various settings.
const ALL: [Claim; 20] = [
    claim("none", "{}", [true, true, true], WIDTH, 0),
    claim("hra", r#"{"r": 4}"#, [true, true, true], WIDTH, 1),
    claim("hra", "{}", [true, true, true], WIDTH, 1),
    claim("ortho", "{}", [true, true, false], WIDTH, 1),
    claim("ortho", r#"{"map": "cayley"}"#, [true, true, false], WIDTH, 1),
    claim("ortho", r#"{"map": "matrix_exp"}"#, [true, true, false], WIDTH, 1),
    claim("ether", "{}", [true, true, false], WIDTH, 1),
    claim("ether", r#"{"blocks": 1}"#, [true, true, false], WIDTH, 1),
    claim("ether", r#"{"form": "plus"}"#, [true, false, true], WIDTH, 2),
    claim("ether", r#"{"form": "oft", "blocks": 3}"#, [true, true, true], WIDTH, 1),
    claim("ether", r#"{"form": "plus_two_sided", "blocks": 2}"#, [true, false, true], WIDTH, 4),
    claim("ether", r#"{"reduce": 3}"#, [true, false, false], WIDTH / 3, 2),
    claim(
        "ether",
        r#"{"form": "oft", "reduce": 6, "blocks": 1}"#,
        [true, false, false],
        WIDTH / 6,
        2,
    ),
    claim(
        "ether",
        r#"{"form": "plus_two_sided", "reduce": 2, "blocks": 2}"#,
        [true, false, false],
        WIDTH / 2,
        5,
    ),
    claim("svd", "{}", [true, false, false], WIDTH, 0),
    claim("svd", r#"{"matrix": "embedding", "top": 3}"#, [true, false, false], WIDTH, 0),
    claim("svd", r#"{"matrix": "both", "top": 0.9}"#, [true, false, false], WIDTH, 0),
    claim("svd", r#"{"soft": 0.5}"#, [true, false, false], WIDTH, 0),
    claim("suppressed", "{}", [false, false, false], WIDTH, 0),
    claim(
        "suppressed",
        r#"{"keep": "falling", "threshold": 0.0}"#,
        [false, false, false],
        WIDTH,
        0,
    ),
];

/// Stands in for a model with a vocabulary of 31 tokens. It only has the two matrices that a
/// transform's `build` receives: the embedding and the output head.
struct Model {
    embedding: Tensor,
    unembedding: Tensor,
}

impl Model {
    fn new() -> Self {
        Self { embedding: seeded(1, &[31, WIDTH]), unembedding: seeded(2, &[31, WIDTH]) }
    }

    fn build_at(
        &self,
        site: &Site,
        width: i64,
        name: &str,
        json: &str,
    ) -> Result<Box<dyn Transform>> {
        let cx = TransformCx {
            model: &model(),
            site,
            width,
            embedding: &self.embedding,
            unembedding: &self.unembedding,
        };
        Registry::builtin()?.transform(name)?.build(
            json,
            &cx,
            &mut Init::new(0, "hidden_states.1", Kind::Double, Device::Cpu),
        )
    }

    fn build(&self, name: &str, json: &str) -> Result<Box<dyn Transform>> {
        self.build_at(&Site::Residual(1), WIDTH, name, json)
    }
}

fn build(name: &str, json: &str) -> Result<Box<dyn Transform>> {
    Model::new().build(name, json)
}

fn message(name: &str, json: &str) -> String {
    format!("{:?}", build(name, json).err().expect("an error"))
}

fn off(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

/// Returns the context of two sequences. The first has two tokens and the second has three.
fn around(previous: Option<Tensor>) -> Around {
    Around { previous, last: Some(Tensor::from_slice(&[1i64, 1, 4, 4, 4])) }
}

/// Applies `t` to the states `x` of 5 tokens. The states at the previous tap are random and do not
/// depend on `x`.
fn apply(t: &dyn Transform, x: &Tensor) -> Tensor {
    t.forward(x, &around(Some(seeded(3, &[5, WIDTH])))).unwrap()
}

#[test]
fn every_registered_transform_is_in_the_table() {
    let registry = Registry::builtin().unwrap();
    let missing: Vec<_> = registry
        .all::<TransformEntry>()
        .map(|e| e.about.name)
        .filter(|n| !ALL.iter().any(|c| c.name == *n))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_transform_is_linear_or_orthogonal_if_it_declares_so() {
    let _guard = tch::no_grad_guard();
    let model = Model::new();
    for c in &ALL {
        let t = model.build(c.name, c.json).unwrap();
        assert_eq!(
            (t.linear(), t.orthogonal(), t.parameters().len()),
            (c.linear, c.orthogonal, c.trained),
            "{c:?}"
        );
        // Change the parameters, because some transforms are the identity in their initial state.
        for mut p in t.parameters() {
            p.tensor += random(&p.tensor.size()) * 0.3;
        }
        let (x, y) = (random(&[5, WIDTH]), random(&[5, WIDTH]));
        let (tx, ty) = (apply(t.as_ref(), &x), apply(t.as_ref(), &y));
        assert_eq!(tx.size(), [5, c.outputs], "{c:?}");
        let mixed = off(&apply(t.as_ref(), &(&x * 2.0 - &y)), &(&tx * 2.0 - &ty));
        assert_eq!(mixed < 1e-11, c.linear, "{c:?}: {mixed}");
        let dot = |a: &Tensor, b: &Tensor| (a * b).sum_dim_intlist(-1, false, None::<Kind>);
        let turned =
            if c.outputs == WIDTH { off(&dot(&tx, &ty), &dot(&x, &y)) } else { f64::INFINITY };
        assert_eq!(turned < 1e-11, c.orthogonal, "{c:?}: {turned}");
        // Transforms that do not depend on the context accept inputs of any shape.
        if c.linear {
            let whole = t.forward(&x.reshape([1, 5, WIDTH]), &Around::default()).unwrap();
            assert!(off(&whole.squeeze_dim(0), &tx) < 1e-12, "{c:?}");
        }
    }
}

#[test]
fn only_the_listed_transforms_start_as_the_identity() {
    let model = Model::new();
    for c in &ALL {
        let x = random(&[5, WIDTH]);
        let y = apply(model.build(c.name, c.json).unwrap().as_ref(), &x);
        assert_eq!(y.size() == x.size() && off(&y, &x) < 1e-12, c.identity, "{c:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let bytes = |t: &dyn Transform| -> Vec<f64> {
        t.parameters()
            .iter()
            .flat_map(|p| Vec::<f64>::try_from(p.tensor.detach().flatten(0, -1)).unwrap())
            .collect()
    };
    for c in &ALL {
        let x = random(&[5, WIDTH]);
        let (a, b) = (build(c.name, c.json).unwrap(), build(c.name, c.json).unwrap());
        assert_eq!(bytes(a.as_ref()), bytes(b.as_ref()), "{c:?}");
        assert!(apply(a.as_ref(), &x).equal(&apply(b.as_ref(), &x)), "{c:?}");
    }
}

#[test]
fn gradients_equal_finite_differences() {
    let model = Model::new();
    for c in &ALL {
        let t = model.build(c.name, c.json).unwrap();
        let (x, weight) = (random(&[5, WIDTH]).set_requires_grad(true), random(&[5, c.outputs]));
        let loss = || (apply(t.as_ref(), &x) * &weight).sum(Kind::Double);
        loss().backward();
        let _guard = tch::no_grad_guard();
        for tensor in t.parameters().into_iter().map(|p| p.tensor).chain([x.shallow_clone()]) {
            let (grad, direction, step) = (tensor.grad(), random(&tensor.size()), 1e-6);
            let mut moved = tensor.detach();
            moved += &direction * step;
            let above = loss().double_value(&[]);
            moved -= &direction * (2.0 * step);
            let below = loss().double_value(&[]);
            moved += &direction * step;
            let (numeric, exact) = (
                (above - below) / (2.0 * step),
                (grad * direction).sum(Kind::Double).double_value(&[]),
            );
            assert!(
                (numeric - exact).abs() < 1e-6 * exact.abs().max(1.0),
                "{c:?}: {numeric} {exact}"
            );
        }
    }
}

#[test]
fn an_error_about_a_value_out_of_range_lists_the_valid_values() {
    for (name, json, expected) in [
        ("hra", r#"{"r": 3}"#, "transform.r"),
        ("hra", r#"{"r": 0}"#, "transform.r"),
        ("ortho", r#"{"map": "other"}"#, "map"),
        (
            "ether",
            r#"{"blocks": 5}"#,
            "`transform.blocks` is 5, which does not divide the width 12 at `hidden_states.1`\n  \
                hint: valid: 1, 2, 3, 4, 6, 12",
        ),
        ("ether", r#"{"blocks": 0}"#, "`transform.blocks` is 0"),
        (
            "ether",
            r#"{"reduce": 5}"#,
            "`transform.reduce` is 5, which does not divide the width 12",
        ),
        ("ether", r#"{"reduce": 0}"#, "`transform.reduce` is 0"),
        (
            "ether",
            r#"{"form": "plus_two_sided", "blocks": 4, "reduce": 6}"#,
            "does not divide the reduced width 2 at `hidden_states.1`\n  hint: valid: 1, 2",
        ),
        (
            "svd",
            r#"{"top": 12}"#,
            "must select at least one but not all of the 12 directions, got 12\n  hint: valid: a \
                fraction greater than 0 and less than 1, or a whole number from 1 to 11",
        ),
        ("svd", r#"{"top": 0}"#, "directions, got 0"),
        ("svd", r#"{"top": -1}"#, "directions, got -1"),
        ("svd", r#"{"top": 2.5}"#, "directions, got 2.5"),
        ("svd", r#"{"soft": 1.5}"#, "a quantile from 0 to 1 or `none`, got 1.5"),
        (
            "suppressed",
            r#"{"threshold": -0.1}"#,
            "`transform.threshold` must be at least 0, got -0.1",
        ),
    ] {
        assert!(message(name, json).contains(expected), "{name} {json}: {}", message(name, json));
    }
    let model = Model::new();
    let at = |site: Site, width, name: &str| {
        format!("{:?}", model.build_at(&site, width, name, "{}").err().expect("an error"))
    };
    let side = || Site::Input("model.layers.0.mlp.down_proj".to_owned());
    assert!(at(side(), 30, "svd").starts_with(
        "the transform `svd` needs states of the width of the embeddings, 12, but those at \
                `in.model.layers.0.mlp.down_proj` have 30\n  hint: "
    ));
    assert!(at(side(), WIDTH, "suppressed").starts_with(
        "the transform `suppressed` reads the residual stream, but the tap reads \
                `in.model.layers.0.mlp.down_proj`"
    ));
    assert!(at(Site::Residual(0), 30, "suppressed").contains("width of the embeddings"));
}

/// Returns I − 2ûûᵀ in float64.
fn reflection(u: &Tensor) -> Tensor {
    let u = u / u.norm();
    Tensor::eye(u.size()[0], (Kind::Double, Device::Cpu)) - u.outer(&u) * 2.0
}

#[test]
fn ether_equals_the_block_diagonal_matrix_of_its_definition() {
    let _guard = tch::no_grad_guard();
    let eye = |n: i64| Tensor::eye(n, (Kind::Double, Device::Cpu));
    let unit = |u: &Tensor| {
        let u = u / u.norm();
        u.outer(&u)
    };
    let x = random(&[5, WIDTH]);
    let parameters = |json: &str| {
        let t = build("ether", json).unwrap();
        for mut p in t.parameters() {
            p.tensor += random(&p.tensor.size()) * 0.3;
        }
        let tensors: Vec<Tensor> = t.parameters().into_iter().map(|p| p.tensor).collect();
        (apply(t.as_ref(), &x), tensors)
    };
    let blocks = |n: i64, of: &dyn Fn(i64) -> Tensor| {
        Tensor::block_diag(&(0..n).map(of).collect::<Vec<_>>())
    };
    let plus = |p: &[Tensor], n: i64| {
        blocks(n, &|i| eye(p[0].size()[1]) - unit(&p[0].get(i)) + unit(&p[1].get(i)))
    };

    let (y, p) = parameters("{}");
    assert!(off(&y, &x.matmul(&blocks(4, &|i| reflection(&p[0].get(i))))) < 1e-12);
    let (y, p) = parameters(r#"{"form": "plus", "blocks": 3}"#);
    assert!(off(&y, &x.matmul(&plus(&p, 3))) < 1e-12);
    let (y, p) = parameters(r#"{"form": "oft", "blocks": 3}"#);
    let cayley = |i: i64| {
        let lower = p[0].get(i).tril(-1);
        let a = &lower - lower.tr();
        (eye(4) + &a).matmul(&(eye(4) - &a).inverse())
    };
    assert!(off(&y, &x.matmul(&blocks(3, &cayley))) < 1e-12);
    let (y, p) = parameters(r#"{"form": "plus_two_sided", "blocks": 2, "reduce": 3}"#);
    assert!(off(&y, &x.matmul(&plus(&p[..2], 2)).matmul(&p[2]).matmul(&plus(&p[3..], 2))) < 1e-12);
}

#[test]
fn svd_removes_the_main_directions_of_the_matrix() {
    let model = Model::new();
    let x = random(&[5, WIDTH]);
    let of = |json: &str| apply(model.build("svd", json).unwrap().as_ref(), &x);
    // Compute the expected values from the singular value decomposition of the full matrix.
    let directions = |w: &Tensor| {
        let (_, s, v) = w.svd(true, true);
        (s, v.tr())
    };
    let without = |w: &Tensor, k: i64| {
        let v = directions(w).1.narrow(0, 0, k);
        &x - x.matmul(&v.tr()).matmul(&v)
    };
    assert!(off(&of("{}"), &without(&model.unembedding, 6)) < 1e-9);
    assert!(off(&of(r#"{"matrix": "embedding", "top": 3}"#), &without(&model.embedding, 3)) < 1e-9);
    let both = Tensor::cat(
        &[&model.embedding / model.embedding.norm(), &model.unembedding / model.unembedding.norm()],
        0,
    );
    assert!(off(&of(r#"{"matrix": "both", "top": 0.25}"#), &without(&both, 3)) < 1e-9);
    let (s, v) = directions(&model.unembedding);
    let weights = (&s / s.quantile_scalar(0.75, 0, false, "linear")).clamp_max(1.0);
    assert!(off(&of(r#"{"soft": 0.75}"#), &(&x - (x.matmul(&v.tr()) * weights).matmul(&v))) < 1e-9);
    // The result has no component along the removed directions, so applying the transform again
    // does not change it.
    let t = model.build("svd", "{}").unwrap();
    assert!(off(&apply(t.as_ref(), &of("{}")), &of("{}")) < 1e-12);
}

#[test]
fn suppressed_keeps_the_coordinates_whose_contribution_to_the_head_changes() {
    let mut model = Model::new();
    for rank in [WIDTH, 5] {
        // With rank 5, the head has a null space, and a change of the states within it does not
        // change the logits.
        model.unembedding = random(&[31, rank]).matmul(&random(&[rank, WIDTH]));
        let (x, before) = (random(&[5, WIDTH]), random(&[5, WIDTH]));
        let w = &model.unembedding;
        let moved =
            (x.matmul(&w.tr()) - before.matmul(&w.tr())).matmul(&w.linalg_pinv(1e-9, false).tr());
        for (json, of) in [("{}", moved.gt(0.1)), (r#"{"keep": "falling"}"#, moved.lt(-0.1))] {
            let mask =
                of.to_kind(Kind::Double).index_select(0, &Tensor::from_slice(&[1i64, 1, 4, 4, 4]));
            let t = model.build("suppressed", json).unwrap();
            assert!(
                t.forward(&x, &around(Some(before.shallow_clone()))).unwrap().equal(&(&x * mask)),
                "{rank} {json}"
            );
            // At the first tap there is no previous tap, so the states do not change. Without any
            // context, the transform fails.
            assert!(t.forward(&x, &around(None)).unwrap().equal(&x));
            assert!(t.forward(&x, &Around::default()).is_err());
        }
    }
}
