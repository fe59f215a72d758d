//! Tests that a model whose matrices stay as the file stores them, or are divided among ranks,
//! gives the same values and gradients as the model with dense matrices.

use std::path::Path;

use serde_json::json;
use tch::{Device, Kind};

use super::*;
use crate::api::AdapterPlugin;
use crate::conformance::stand_ins::FullChange;
use crate::model::stream::StreamBuilder;
use crate::testing::blocks::random_blocks;
use crate::testing::gguf::Writer;
use crate::testing::ranks::on_ranks;
use crate::weights::{FORMATS, Format};

const HIDDEN: u64 = 256;
const INNER: u64 = 512;
const VOCAB: u64 = 24;

/// Writes models whose matrices have the type `format`.
struct Models {
    format: &'static Format,
    writer: Writer,
    seed: u64,
}

impl Models {
    fn new(architecture: &'static str, format: &'static Format) -> Self {
        let writer =
            Writer { tensors: Vec::new(), entries: Vec::new(), ..Writer::of(architecture) };
        let writer = writer
            .entry("general.architecture", 8, &crate::testing::gguf::text(architecture))
            .count("embedding_length", HIDDEN as u32)
            .count("feed_forward_length", INNER as u32)
            .count("block_count", 2)
            .count("attention.head_count", 2)
            .count("context_length", 64);
        Self { format, writer, seed: 0 }.matrix("token_embd", VOCAB, HIDDEN)
    }

    fn matrix(mut self, name: &str, outputs: u64, inputs: u64) -> Self {
        self.seed += 1;
        let data = random_blocks(self.format, (outputs * inputs) as usize, self.seed);
        let name = format!("{name}.weight");
        self.writer = self.writer.tensor(&name, &[inputs, outputs], self.format.id, &data);
        self
    }

    /// Adds a list of numbers around `mean`.
    fn vector(mut self, name: &str, width: u64, mean: f32) -> Self {
        self.seed += 1;
        let seed = self.seed as f32;
        let values = (0..width).map(|i| mean + 0.1 * (i as f32 * 0.7 + seed).sin());
        self.writer = self.writer.floats(name, &[width], values);
        self
    }

    fn module(self, name: &str, outputs: u64, inputs: u64) -> Self {
        self.matrix(name, outputs, inputs).vector(&format!("{name}.bias"), outputs, 0.0)
    }

    fn norm(self, name: &str) -> Self {
        self.vector(&format!("{name}.weight"), HIDDEN, 1.0)
    }

    fn layer_norm(self, name: &str) -> Self {
        self.norm(name).vector(&format!("{name}.bias"), HIDDEN, 0.0)
    }

    /// Rows of queries and keys are reordered, and the head is a matrix of its own.
    fn llama(format: &'static Format) -> Self {
        let mut w = Self::new("llama", format);
        w.writer = w
            .writer
            .count("attention.head_count_kv", 1)
            .float("attention.layer_norm_rms_epsilon", 1e-6);
        for k in 0..2 {
            let at = |name: &str| format!("blk.{k}.{name}");
            w = w
                .norm(&at("attn_norm"))
                .matrix(&at("attn_q"), HIDDEN, HIDDEN)
                .matrix(&at("attn_k"), HIDDEN / 2, HIDDEN)
                .matrix(&at("attn_v"), HIDDEN / 2, HIDDEN)
                .matrix(&at("attn_output"), HIDDEN, HIDDEN)
                .norm(&at("ffn_norm"))
                .matrix(&at("ffn_gate"), INNER, HIDDEN)
                .matrix(&at("ffn_up"), INNER, HIDDEN)
                .matrix(&at("ffn_down"), HIDDEN, INNER);
        }
        w.norm("output_norm").matrix("output", VOCAB, HIDDEN)
    }

    /// Matrices are transposed, positions are a matrix, and the head is the embedding.
    fn gpt2(format: &'static Format) -> Self {
        let mut w = Self::new("gpt2", format).matrix("position_embd", 64, HIDDEN);
        w.writer = w.writer.float("attention.layer_norm_epsilon", 1e-5);
        w.fused().layer_norm("output_norm")
    }

    /// Rows of the fused module are reordered, and its parts have one group per head.
    fn gpt_neox(format: &'static Format) -> Self {
        let mut w = Self::new("gptneox", format);
        w.writer =
            w.writer.float("attention.layer_norm_epsilon", 1e-5).count("rope.dimension_count", 32);
        w.fused().layer_norm("output_norm").matrix("output", VOCAB, HIDDEN)
    }

    fn fused(mut self) -> Self {
        for k in 0..2 {
            let at = |name: &str| format!("blk.{k}.{name}");
            self = self
                .layer_norm(&at("attn_norm"))
                .module(&at("attn_qkv"), 3 * HIDDEN, HIDDEN)
                .module(&at("attn_output"), HIDDEN, HIDDEN)
                .layer_norm(&at("ffn_norm"))
                .module(&at("ffn_up"), INNER, HIDDEN)
                .module(&at("ffn_down"), HIDDEN, INNER);
        }
        self
    }

    /// Writes the file to `folder`, and opens it.
    fn files(&self, folder: &Path) -> ModelFiles {
        let path = folder.join("x.gguf");
        std::fs::write(&path, self.writer.bytes()).unwrap();
        ModelFiles::open(&path).unwrap()
    }

    /// Writes the file, and loads it with dense and with stored matrices.
    fn load(&self, kind: Kind) -> [Model; 2] {
        let folder = tempfile::tempdir().unwrap();
        let files = self.files(folder.path());
        [
            Model::load(&files, kind, Device::Cpu).unwrap(),
            Model::load_as_stored(&files, kind).unwrap(),
        ]
    }
}

/// The log-probabilities of a sequence, its logits, and the gradients of an adapter on all modules,
/// or on the parts `targets`.
fn values(model: &Model, targets: &[&str]) -> Vec<Tensor> {
    let targets = if targets.is_empty() { json!("all-linear") } else { json!(targets) };
    let adapter = FullChange::from_peft(&json!({ "target_modules": targets }).to_string()).unwrap();
    let adapted = Adapted::attach(&adapter, model, 2, 0).unwrap();
    let mut builder = StreamBuilder::default();
    builder.push(&[3, 14, 15, 9, 2, 6], None).unwrap();
    let stream = builder.finish(Device::Cpu).unwrap();
    let request = Request { adapted: Some(&adapted), hidden: true, ..Request::default() };
    let hidden = model.forward(&stream, request).unwrap().hidden.unwrap();
    let tokens = PredictedTokens {
        rows: Tensor::from_slice(&[0i64, 1, 2, 3, 4]),
        ids: Tensor::from_slice(&[14i64, 15, 9, 2, 6]),
    };
    let scores = model.score_tokens(&hidden, &tokens, Detail::NONE, None).unwrap().logprobs;
    let logits = model.logits(&hidden).unwrap();
    (scores.sum(Kind::Float) + logits.square().mean(Kind::Float)).backward();
    let gradients = adapted.parameters().into_iter().map(|(_, t)| t.grad());
    [scores.detach(), logits.detach()].into_iter().chain(gradients).collect()
}

fn assert_same(models: &Models, kind: Kind, targets: &[&str], place: &str) {
    let [dense, stored] = models.load(kind);
    let (expected, ours) = (values(&dense, targets), values(&stored, targets));
    assert!(expected.len() > 4 && expected.len() == ours.len(), "{place}");
    for (i, (a, b)) in ours.iter().zip(&expected).enumerate() {
        assert!(a.equal(b), "{place}: tensor {i}");
    }
    // Attention may be so sharp that the queries of a random model get no gradient.
    let differ = expected.iter().filter(|t| t.abs().max().double_value(&[]) > 0.0).count();
    assert!(2 * differ > expected.len(), "{place}: {differ} of {} differ from 0", expected.len());
    let smaller = models.format.bytes < models.format.block * kind.elt_size_in_bytes();
    assert_eq!(stored.stored_matrices().matrices > 0, smaller, "{place}");
    assert_eq!(dense.stored_matrices().matrices, 0, "{place}");
}

#[test]
fn values_and_gradients_of_a_stored_model_equal_those_of_the_dense_one_in_every_type() {
    for format in &FORMATS {
        for kind in [Kind::Float, Kind::BFloat16] {
            assert_same(&Models::llama(format), kind, &[], &format!("{}, {kind:?}", format.name));
        }
    }
}

#[test]
fn transposed_and_fused_modules_equal_the_dense_ones() {
    for format in FORMATS.iter().filter(|f| ["F16", "Q8_0", "Q4_K"].contains(&f.name)) {
        for (models, fused) in
            [(Models::gpt2(format), "c_attn"), (Models::gpt_neox(format), "query_key_value")]
        {
            let parts = ["q_proj", "v_proj"].map(|part| format!("{fused}.{part}"));
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            for targets in [&[][..], &parts] {
                let place = format!("{}, {targets:?}", format.name);
                assert_same(&models, Kind::Float, targets, &place);
            }
        }
    }
}

#[test]
fn values_and_gradients_of_a_sharded_model_equal_those_of_the_dense_one() {
    let format = FORMATS.iter().find(|f| f.name == "F16").unwrap();
    for (models, fused) in [
        (Models::llama(format), None),
        (Models::gpt2(format), Some("c_attn")),
        (Models::gpt_neox(format), Some("query_key_value")),
    ] {
        let parts: Vec<String> =
            fused.iter().flat_map(|m| ["q_proj", "v_proj"].map(|p| format!("{m}.{p}"))).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        for (kind, targets) in
            [(Kind::Float, &[][..]), (Kind::BFloat16, &[]), (Kind::Float, &parts)]
        {
            let folder = tempfile::tempdir().unwrap();
            let files = models.files(folder.path());
            let expected = values(&Model::load(&files, kind, Device::Cpu).unwrap(), targets);
            let of_ranks = on_ranks(3, |_| {
                let files = ModelFiles::open(&folder.path().join("x.gguf")).unwrap();
                let model = Model::load_sharded(&files, kind, Device::Cpu).unwrap();
                let stored = model.stored_matrices();
                assert!(model.is_sharded() && stored.dense == 0 && stored.matrices > 8);
                assert!((stored.bytes as f64) < 0.35 * stored.decoded as f64);
                // Twice, so that the second time uses what was predicted.
                [values(&model, targets), values(&model, targets)]
            });
            for ours in of_ranks.into_iter().flatten().flatten() {
                assert_eq!(ours.len(), expected.len());
                let equal = ours.iter().zip(&expected).all(|(a, b)| a.equal(b));
                assert!(equal, "{fused:?}, {kind:?}, {targets:?}");
            }
        }
    }
}

#[test]
fn merging_replaces_stored_matrices_and_unmerging_restores_them() {
    let format = FORMATS.iter().find(|f| f.name == "Q4_K").unwrap();
    let [_, mut stored] = Models::llama(format).load(Kind::Float);
    let before = stored.stored_matrices();
    assert_eq!((before.matrices, before.dense), (16, 0));
    let adapted = Adapted::attach(&FullChange::default(), &stored, 2, 0).unwrap();
    let merged = stored.merge(&adapted).unwrap();
    assert_eq!(stored.stored_matrices().matrices, 2);
    stored.unmerge(merged);
    assert_eq!(stored.stored_matrices().bytes, before.bytes);
}
