use std::collections::HashSet;

use super::super::fixture::{attach, attached, disturb, module, off, refused, rows};
use super::*;

fn config() -> Shira {
    Shira { r: 2, ..Shira::default() }
}

/// Returns the rows and columns of the trained entries.
fn entries(adapted: &dyn AdaptedLinear) -> Vec<(i64, i64)> {
    let indices = &adapted.parameters()[1].tensor;
    let of = |i| Vec::<i64>::try_from(indices.get(i).to_kind(Kind::Int64)).unwrap();
    of(0).into_iter().zip(of(1)).collect()
}

#[test]
fn shira_starts_as_the_identity_and_changes_only_its_entries() {
    let (adapted, frozen) = attached::<Shira>(config());
    let x = rows(3, 8);
    let base = frozen.forward(&x).unwrap();
    assert!(off(&adapted.forward(&x, &frozen, true).unwrap(), &base) == 0.0);
    disturb(&adapted.parameters());
    let entries = entries(&*adapted);
    assert_eq!(entries.len(), 2 * (8 + 4));
    let values = Vec::<f64>::try_from(&adapted.parameters()[0].tensor).unwrap();
    let mut weight: Vec<f64> = Vec::try_from(frozen.dense().unwrap().reshape([-1])).unwrap();
    for ((row, column), value) in entries.iter().zip(values) {
        weight[(row * 8 + column) as usize] += value;
    }
    let weight = Tensor::from_slice(&weight).reshape([4, 8]);
    let expected = x.matmul(&weight.tr()) + frozen.bias().unwrap();
    assert!(off(&adapted.forward(&x, &frozen, false).unwrap(), &expected) < 1e-12);
    assert!(off(&adapted.merge(&frozen).unwrap().dense().unwrap(), &weight) < 1e-12);
}

#[test]
fn the_places_are_different_sorted_and_spread_over_the_matrix() {
    let widths = |name: &str| {
        let module = module(name, 40, 30);
        entries(&*attach(&config(), &module).unwrap())
    };
    let places = widths("self_attn.q_proj");
    assert_eq!(places.len(), 140);
    assert!(places.is_sorted(), "PEFT writes the places in this order: {places:?}");
    assert_eq!(places.iter().collect::<HashSet<_>>().len(), 140);
    // If each place is equally likely, 4 rows in 30 and 5 columns in 40 are empty much less than
    // once in a million draws.
    let distinct = |of: fn(&(i64, i64)) -> i64| places.iter().map(of).collect::<HashSet<_>>().len();
    assert!(distinct(|p| p.0) > 26 && distinct(|p| p.1) > 35, "{places:?}");
    assert_eq!(places, widths("self_attn.q_proj"), "the same seed must give the same places");
    assert_ne!(places, widths("self_attn.v_proj"), "modules must not share their places");
}

#[test]
fn equal_places_are_added_up_and_places_outside_the_matrix_are_rejected() {
    let (adapted, frozen) = attached::<Shira>(config());
    let [weight, indices] = &adapted.parameters()[..] else { panic!("two tensors") };
    let _ = weight.tensor.detach().fill_(0.5);
    let set = |row: i64, column: i64| {
        let _guard = tch::no_grad_guard();
        let _ = indices.tensor.get(0).fill_(row);
        let _ = indices.tensor.get(1).fill_(column);
        adapted.validate().map_err(|e| e.to_string())
    };
    set(3, 7).unwrap();
    let change = adapted.merge(&frozen).unwrap().dense().unwrap() - frozen.dense().unwrap();
    assert!((change.double_value(&[3, 7]) - 24.0 * 0.5).abs() < 1e-12);
    assert!((change.abs().sum(Kind::Double).double_value(&[]) - 12.0).abs() < 1e-12);
    assert!(set(4, 0).unwrap_err().contains("the row 4, but the module only has rows 0 to 3"));
    assert!(set(0, 8).unwrap_err().contains("the column 8"));
    assert!(set(-1, 0).unwrap_err().contains("the row -1"));
}

#[test]
fn unsupported_settings_are_rejected() {
    assert!(refused::<Shira>(Shira { r: 0, ..config() }).contains("adapter.r"));
    let too_many = |inputs, outputs| {
        let module = module("self_attn.q_proj", inputs, outputs);
        format!("{:?}", attach(&Shira { r: 3, ..config() }, &module).err().unwrap())
    };
    let e = too_many(8, 4);
    assert!(e.contains("36 entries would be trained, but the module only has 32"), "{e}");
    assert!(e.contains("the largest valid value for this module is 2"), "{e}");
    assert!(too_many(8, 1).contains("hint: remove the module"));
    // The saved places replace those that PEFT's mask function drew.
    let read = Shira::from_peft(
        r#"{"r": 4, "target_modules": ["q_proj"], "mask_type": "mine", "random_seed": 7}"#,
    );
    assert_eq!(read.unwrap().r, 4);
}
