//! Tests runs with transforms and taps.

use super::*;

/// A transform that can scale and rotate the states, so that training it changes the loss.
const LEARNED_TRANSFORM: [&str; 8] = [
    "--transform",
    "ether",
    "--set",
    "transform.form=plus",
    "--set",
    "transform.blocks=2",
    "--set",
    "transform.reduce=4",
];
/// An intervention that reads the transformed states.
const STATE_READER: [&str; 4] = ["--intervention", "prefvec", "--layers", "1,2"];

fn trained(
    golden: &Path,
    out: &Path,
    extra: &[&str],
) -> std::collections::BTreeMap<String, tch::Tensor> {
    let output = run(
        golden,
        out,
        &[&LEARNED_TRANSFORM[..], &STATE_READER[..], &["--set", "train.epochs=3"], extra].concat(),
    );
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    reprpo_core::weights::read_safetensors(&out.join("transform/transform.safetensors"))
        .expect("tensors")
        .into_iter()
        .collect()
}

#[test]
fn a_transform_trains_at_its_own_learning_rate_or_stays_fixed() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let of = |name: &str, extra: &[&str]| trained(&golden, &dir.path().join(name), extra);
    let frozen = of("frozen", &["--set", "train.transform=false"]);
    assert_eq!(
        frozen.keys().collect::<Vec<_>>(),
        ["0.linear", "0.u", "0.w", "1.linear", "1.u", "1.w"]
    );
    let moved = |extra: &[&str]| {
        let values = of(&format!("{extra:?}").replace(['/', ' '], ""), extra);
        values
            .iter()
            .map(|(name, t)| (t - &frozen[name]).abs().max().double_value(&[]))
            .fold(0.0, f64::max)
    };
    let (slow, same, fast) = (
        moved(&["--set", "train.transform_lr=1e-9"]),
        moved(&[]),
        moved(&["--set", "train.transform_lr=5e-2"]),
    );
    assert!(slow < 1e-6 && same > 1e-3 && fast > 5.0 * same, "{slow:e} {same:e} {fast:e}");
    let shared = of("shared", &["--set", "train.share_transform=true"]);
    assert_eq!(shared.keys().collect::<Vec<_>>(), ["0.linear", "0.u", "0.w"]);
    let bytes = |name: &str| {
        std::fs::read(dir.path().join(name).join("transform/transform.safetensors"))
            .expect("tensors")
    };
    of("again", &["--set", "train.share_transform=true"]);
    assert_eq!(bytes("shared"), bytes("again"));
}

#[test]
fn training_only_the_transform_does_not_lower_the_loss() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    trained(&golden, &out, &["--set", "train.lr=1e-12", "--set", "train.transform_lr=5e-2"]);
    let lines = metrics(&out);
    let (first, last) = (number(&lines[0], "loss"), number(&lines[lines.len() - 1], "loss"));
    assert!((first - last).abs() < 1e-3, "{first} {last}");
}

#[test]
fn a_run_starts_from_the_saved_transforms_of_another() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    trained(&golden, &dir.path().join("first"), &[]);
    let saved = dir.path().join("first/transform");
    let from = ["--init-transform", saved.to_str().expect("UTF-8")];
    trained(
        &golden,
        &dir.path().join("second"),
        &[&from[..], &["--set", "train.transform=false"]].concat(),
    );
    let bytes = |name: &str, file: &str| {
        std::fs::read(dir.path().join(name).join("transform").join(file)).expect("a file")
    };
    for file in ["transform.safetensors", "transform_config.json"] {
        assert_eq!(bytes("first", file), bytes("second", file), "{file}");
    }
    let saved = "contains `ether` with form = plus, blocks = 2, reduce = 4, but this run uses ";
    let taps = "contains separate transforms for the taps `hidden_states.1`, `hidden_states.2`, \
        but this run uses ";
    for (args, expected) in [
        ([&STATE_READER[..], &["--transform", "none"]].concat(), format!("{saved}`none`")),
        (
            [&STATE_READER[..], &LEARNED_TRANSFORM, &["--set", "transform.blocks=1"]].concat(),
            format!("{saved}`ether` with form = plus, blocks = 1"),
        ),
        (
            [&LEARNED_TRANSFORM[..], &["--intervention", "prefvec", "--layers", "0,2"]].concat(),
            format!("{taps}separate transforms for the taps `hidden_states.0`"),
        ),
        (
            [&STATE_READER[..], &LEARNED_TRANSFORM, &["--set", "train.share_transform=true"]]
                .concat(),
            format!("{taps}shared transforms"),
        ),
        (
            [&LEARNED_TRANSFORM[..], &["--intervention", "dpo"]].concat(),
            "but the intervention `dpo` reads no states".to_owned(),
        ),
        (
            [&STATE_READER[..], &["--set", "init_transform=/no/such/folder"]].concat(),
            "/no/such/folder".to_owned(),
        ),
    ] {
        let out = dir.path().join("refused");
        let output = run(&golden, &out, &[&from[..], &args].concat());
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
        assert!(text.contains(&expected), "{args:?}: {text}");
        assert!(!out.exists(), "{args:?}");
    }
}

#[test]
fn every_transform_tap_and_pooling_trains() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    for (name, args) in [
        ("suppressed", vec!["--transform", "suppressed", "--layers", "1,2"]),
        (
            "svd",
            vec!["--transform", "svd", "--layers", "1,2", "--set", "train.share_transform=true"],
        ),
        ("out", vec!["--tap", "side-out", "--layers", "-1", "--transform", "ether"]),
        (
            "value",
            vec![
                "--tap",
                "side-out",
                "--layers",
                "-1",
                "--set",
                "tap.modules=[\"v_proj\"]",
                "--set",
                "tap.pooling=common",
            ],
        ),
        (
            "original",
            vec![
                "--tap",
                "side",
                "--layers",
                "-1",
                "--transform",
                "hra",
                "--set",
                "tap.pooling=original",
            ],
        ),
    ] {
        let out = dir.path().join(name);
        let output = run(
            &golden,
            &out,
            &[vec!["--intervention", "prefvec", "--set", "train.epochs=4"], args].concat(),
        );
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let losses: Vec<f64> = metrics(&out).iter().map(|l| number(l, "loss")).collect();
        assert!(
            losses.iter().all(|l| l.is_finite()) && losses[losses.len() - 1] < losses[0],
            "{name}: {losses:?}"
        );
    }
    for (args, expected) in [
        (
            ["--transform", "svd", "--tap", "side", "--layers", "-1"],
            "the transform `svd` needs states of the width of the embeddings, 32, but those at",
        ),
        (
            ["--transform", "suppressed", "--tap", "side", "--layers", "-1"],
            "the transform `suppressed` reads the residual stream",
        ),
    ] {
        let output = run(
            &golden,
            &dir.path().join("refused"),
            &[&["--intervention", "prefvec"], &args[..]].concat(),
        );
        assert_eq!(output.status.code(), Some(1));
        assert!(
            String::from_utf8_lossy(&output.stderr).contains(expected),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn a_rotation_does_not_change_a_loss_of_lengths_and_angles() {
    let golden = golden::own();
    let dir = tempfile::tempdir().expect("a folder");
    let losses = |transform: &str| {
        let out = dir.path().join(transform);
        let output = run(
            &golden,
            &out,
            &[
                "--intervention",
                "prefvec",
                "--layers",
                "1,2",
                "--transform",
                transform,
                "--set",
                "train.clip=0",
            ],
        );
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        metrics(&out).iter().map(|l| number(l, "loss")).collect::<Vec<_>>()
    };
    let plain = losses("none");
    for turned in ["ortho", "ether"].map(losses) {
        assert!(
            plain.iter().zip(&turned).all(|(a, b)| (a - b).abs() < 1e-4),
            "{plain:?} {turned:?}"
        );
    }
}
