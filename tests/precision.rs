//! The number type of a model's file, and the number type of its computations.

use reprpo_core::weights::{read_safetensors, write_safetensors};
use tch::{Kind, Tensor};

use crate::resume::{Tree, model, refused};
use crate::{json_lines, logp_sums};

#[test]
fn a_model_stored_in_half_precision_computes_in_float32() {
    let tree = Tree::new();
    let path = |name: &str| tree.path(name).join("model.safetensors");
    let weights = read_safetensors(&path("model")).expect("weights");
    let converted = |to: fn(&Tensor) -> Tensor| {
        weights.iter().map(|(name, t)| (name.clone(), to(t))).collect::<Vec<_>>()
    };
    for (name, to) in [
        ("half", (|t: &Tensor| t.to_kind(Kind::Half)) as fn(&Tensor) -> Tensor),
        ("rounded", |t: &Tensor| t.to_kind(Kind::Half).to_kind(Kind::Float)),
    ] {
        model(&tree.path(name), 0, "");
        write_safetensors(&path(name), &converted(to)).expect("the file is written");
    }
    let score = |model: &str| {
        tree.reprpo(
            "",
            &[
                "score",
                "--model",
                model,
                "--data",
                "pairs.jsonl",
                "--device",
                "cpu",
                "--dtype",
                "f32",
                "--json",
            ],
        )
    };
    let (half, rounded, whole) = (score("./half"), score("./rounded"), score("./model"));
    assert_eq!(json_lines(&half).len(), 8);
    assert_eq!(logp_sums(&half), logp_sums(&rounded));
    assert_ne!(
        logp_sums(&half),
        logp_sums(&whole),
        "storing in half precision must round the weights"
    );
    // Such a model can also be trained.
    tree.run("run", &["--set", "model=./half", "--no-eval"]);
}

#[test]
fn only_a_gguf_file_can_stay_as_it_is_stored() {
    let tree = Tree::new();
    let score = ["score", "--model", "./model", "--data", "pairs.jsonl", "--device", "cpu"];
    let text = refused(&tree.reprpo("", &[&score[..], &["--quantize-base"]].concat()));
    assert!(
        text.contains("`quantize_base` needs a GGUF file, but")
            && text.contains("leave out `--quantize-base`"),
        "{text}"
    );
}

#[test]
fn computing_in_half_precision_is_rejected_with_a_reason() {
    let tree = Tree::new();
    for name in ["f16", "float16", "half"] {
        let text = refused(&tree.reprpo(
            "",
            &[
                "run",
                "--model",
                "./model",
                "--dataset",
                "pairs.jsonl",
                "--dtype",
                name,
                "--out",
                "run",
            ],
        ));
        assert!(
            text.starts_with("error: `dtype` is not valid (flag --dtype)")
                && text.contains(&format!("`{name}` is not supported")),
            "{text}"
        );
        assert!(!tree.path("run").exists());
    }
}
