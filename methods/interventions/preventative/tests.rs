use super::*;
use reprpo_plugin::tch::Device;

#[test]
fn the_edit_points_to_the_rejected_side_and_acts_only_in_training() {
    let config = Preventative { coefficient: 3.0, ..Preventative::default() };
    let mut method = Preventing { config, directions: Vec::new() };
    let chosen = Tensor::from_slice(&[1.0, 2.0, 3.0, 4.0]).reshape([2, 2]);
    let rejected = Tensor::zeros([2, 2], (Kind::Double, Device::Cpu));
    let states = SiteStates { site: Site::Block(4), states: Sides { chosen, rejected } };
    let statistics = method.fit(&PairStates { sites: vec![states], seed: 0 }).unwrap();
    method.set_statistics(&statistics).unwrap();
    let edits = method.edits().unwrap();
    assert_eq!((edits.len(), edits[0].block, edits[0].time), (1, 4, EditTime::Training));
    assert_eq!(edits[0].bias.as_ref().unwrap(), &Tensor::from_slice(&[-6.0, -9.0]));
}
