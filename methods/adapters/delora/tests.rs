use super::super::fixture::{attach, attached, disturb, module, off, refused, rows};
use super::*;

fn config() -> Delora {
    Delora { r: 2, delora_lambda: 6.0, ..Delora::default() }
}

/// Returns Σᵢ λ/(r·‖Aᵢ‖·‖Bⁱ‖)·Bⁱ(Aᵢ ⊙ w), computed term by term.
fn change(parameters: &[Parameter]) -> Tensor {
    let [a, b, lambda, w] = parameters else { panic!("four tensors") };
    let r = a.tensor.size()[0];
    let term = |i: i64| {
        let (row, column) = (a.tensor.get(i), b.tensor.select(1, i));
        let lengths = row.norm().clamp_min(1e-4) * column.norm().clamp_min(1e-4);
        column.outer(&(row * &w.tensor)) * &lambda.tensor / (r as f64) / lengths
    };
    (1..r).fold(term(0), |sum, i| sum + term(i))
}

#[test]
fn delora_starts_as_the_identity_and_normalises_each_component() {
    let (adapted, frozen) = attached::<Delora>(config());
    let x = rows(3, 8);
    let base = frozen.forward(&x).unwrap();
    assert!(off(&adapted.forward(&x, &frozen, true).unwrap(), &base) == 0.0);
    let parameters = adapted.parameters();
    let norms = frozen.dense().unwrap().square().sum_dim_intlist(0, false, Kind::Double).sqrt();
    assert!(off(&parameters[3].tensor, &norms) < 1e-12);
    assert!(!parameters[3].tensor.requires_grad());
    disturb(&parameters);
    let expected = base + x.matmul(&change(&parameters).tr());
    assert!(off(&adapted.forward(&x, &frozen, false).unwrap(), &expected) < 1e-12);
    assert!(off(&adapted.merge(&frozen).unwrap().forward(&x).unwrap(), &expected) < 1e-12);
}

#[test]
fn the_strength_only_depends_on_lambda_and_short_columns_are_not_lengthened() {
    let (adapted, frozen) = attached::<Delora>(config());
    disturb(&adapted.parameters());
    let x = rows(3, 8);
    let y = || adapted.forward(&x, &frozen, false).unwrap();
    let (before, base) = (y(), frozen.forward(&x).unwrap());
    let [a, b, lambda, _] = &adapted.parameters()[..] else { panic!("four tensors") };
    let _ = a.tensor.detach().g_mul_scalar_(3.0);
    let _ = b.tensor.detach().g_mul_scalar_(0.5);
    assert!(off(&y(), &before) < 1e-12);
    let _ = lambda.tensor.detach().g_mul_scalar_(2.0);
    assert!(off(&y(), &(&base + (before - &base) * 2.0)) < 1e-12);
    // Columns that are shorter than the limit add less than λ/r.
    let _ = b.tensor.detach().g_mul_scalar_(1e-9);
    assert!(off(&y(), &base) < 1e-3);
    assert!(off(&y(), &(&base + x.matmul(&change(&adapted.parameters()).tr()))) < 1e-12);
}

#[test]
fn dropout_acts_only_in_training() {
    let (adapted, frozen) = attached::<Delora>(Delora { module_dropout: 0.5, ..config() });
    disturb(&adapted.parameters());
    let x = rows(64, 8);
    let quiet = adapted.forward(&x, &frozen, false).unwrap();
    assert!(off(&quiet, &adapted.forward(&x, &frozen, false).unwrap()) == 0.0);
    assert!(off(&quiet, &adapted.forward(&x, &frozen, true).unwrap()) > 1e-3);
}

fn patterns<V: JsonSchema>(pattern: &str, value: V) -> Patterns<V> {
    let mut patterns = Patterns::default();
    patterns.0.insert(pattern.to_owned(), value);
    patterns
}

#[test]
fn patterns_set_the_rank_and_lambda_of_some_modules() {
    let config = Delora {
        rank_pattern: patterns("mlp.*", 3),
        lambda_pattern: patterns("down_proj", 9.0),
        ..config()
    };
    for (name, r, lambda) in
        [("self_attn.q_proj", 2, 6.0), ("mlp.up_proj", 3, 6.0), ("mlp.down_proj", 3, 9.0)]
    {
        let adapted = attach(&config, &module(name, 8, 4)).unwrap();
        let parameters = adapted.parameters();
        assert_eq!(parameters[0].tensor.size(), [r, 8], "{name}");
        assert_eq!(parameters[2].tensor.double_value(&[0]), lambda, "{name}");
    }
    let again = Delora::from_peft(&format!(
        r#"{{"target_modules": "all-linear", {}"#,
        &config.peft_config()[1..]
    ))
    .unwrap();
    assert_eq!(
        (again.rank_pattern, again.lambda_pattern),
        (config.rank_pattern, config.lambda_pattern)
    );
}

#[test]
fn an_error_names_the_field_that_is_out_of_range() {
    let rejects = |c: Delora, field: &str| assert!(refused::<Delora>(c).contains(field));
    rejects(Delora { r: 0, ..config() }, "adapter.r");
    rejects(Delora { delora_lambda: 0.0, ..config() }, "adapter.delora_lambda");
    rejects(Delora { delora_lambda: f64::INFINITY, ..config() }, "adapter.delora_lambda");
    rejects(Delora { module_dropout: 1.0, ..config() }, "adapter.module_dropout");
    rejects(Delora { rank_pattern: patterns("q_proj", 0), ..config() }, "adapter.rank_pattern");
    rejects(
        Delora { lambda_pattern: patterns("q_proj", -1.0), ..config() },
        "adapter.lambda_pattern",
    );
}
