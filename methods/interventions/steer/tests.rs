use super::*;
use crate::golden::{error, own};
use reprpo_core::weights::read_safetensors;

fn states() -> PairStates {
    let io = read_safetensors(&own().join("baselines.safetensors")).unwrap();
    let of = |side: Side| io[&format!("pooled.{}", side.name())].shallow_clone();
    PairStates { sites: vec![SiteStates { site: Site::Block(1), states: Sides::of(of) }], seed: 0 }
}

fn steering(direction: Direction, edit: Edit, coefficient: f64) -> Steering {
    let config = Steer { direction, edit, coefficient, ..Steer::default() };
    let mut steering = Steering { config, directions: Vec::new() };
    let statistics = steering.fit(&states()).unwrap();
    steering.set_statistics(&statistics).unwrap();
    steering
}

#[test]
fn both_directions_agree_with_torch_and_scikit_learn() {
    let io = read_safetensors(&own().join("baselines.safetensors")).unwrap();
    for (direction, name) in [(Direction::Mean, "mean"), (Direction::Pca, "component")] {
        let found = steering(direction, Edit::Add, 1.0).directions;
        assert_eq!((found.len(), found[0].0), (1, 1));
        let off = error(&found[0].1, &io[name]);
        println!("direction {name}: off by {off:.1e}");
        assert!(off < 1e-6, "{name} is off by {off}");
    }
}

#[test]
fn the_component_is_the_same_for_few_and_for_many_pairs() {
    // 24 pairs of width 32 are decomposed as a 24 × 24 matrix, and the 96 pairs of the same
    // differences repeated as a 32 × 32 matrix.
    let d = states().sites[0].differences();
    let few = first_component(&d).unwrap();
    let many = first_component(&Tensor::cat(&[&d, &d, &d, &d], 0)).unwrap();
    assert!(error(&few, &many) < 1e-9);
    let e = format!("{:?}", first_component(&d.narrow(0, 0, 1)).unwrap_err());
    assert!(e.contains("no principal component"), "{e}");
}

#[test]
fn an_added_vector_is_multiplied_and_an_ablated_one_is_removed() {
    let edits = steering(Direction::Mean, Edit::Add, -2.0).edits().unwrap();
    let v = &steering(Direction::Mean, Edit::Add, 1.0).directions[0].1;
    assert_eq!((edits.len(), edits[0].block, edits[0].time), (1, 1, EditTime::Afterwards));
    assert!(error(edits[0].bias.as_ref().unwrap(), &(v * -2.0)) < 1e-12);
    assert!(edits[0].low_rank.is_none());

    let edits = steering(Direction::Mean, Edit::Ablate, 1.0).edits().unwrap();
    let [down, up] = edits[0].low_rank.as_ref().unwrap();
    let h = states().sites[0].states.chosen.to_kind(Kind::Double);
    let left = &h + h.matmul(&down.tr()).matmul(up);
    assert!(left.mv(v).abs().max().double_value(&[]) < 1e-10);
    assert!(edits[0].bias.is_none());
}

#[test]
fn a_direction_of_length_zero_cannot_be_removed() {
    let mut steering = steering(Direction::Mean, Edit::Ablate, 1.0);
    steering.directions[0].1 = steering.directions[0].1.zeros_like();
    let e = format!("{:?}", steering.edits().unwrap_err());
    assert!(e.contains("the direction at the output of block 1 has the length 0"), "{e}");
}
