//! Compares models with transformers. Small models are compared at every site. SmolLM2 and Gemma 3
//! are compared on real inputs.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use indexmap::IndexMap;

use super::stream::StreamBuilder;
use super::*;
use crate::testing::{gemma3, golden, smollm2};
use crate::weights::read_safetensors;

/// The small models, each with the number of sites per block that have reference values. Only
/// `llama` has reference values for the outputs of modules.
const SMALL: [(&str, usize); 14] = [
    ("gemma2", 2),
    ("gemma3_text", 2),
    ("gpt2", 0),
    ("gpt_neox", 2),
    ("granite", 2),
    ("llama", 7),
    ("llama_tied_rope3", 2),
    ("mistral", 2),
    ("olmo2", 2),
    ("olmo3", 2),
    ("phi3", 2),
    ("qwen2", 2),
    ("qwen3", 2),
    ("smollm3", 2),
];
const STRATEGIES: [Strategy; 3] = [Strategy::Segments, Strategy::Trees, Strategy::Padded];

/// All small models in all folders of golden data. Each item is the name of the model, the number
/// of stored sites per block, and the folder of the model.
fn small() -> impl Iterator<Item = (&'static str, usize, PathBuf)> {
    golden::roots()
        .into_iter()
        .flat_map(|root| SMALL.map(|(name, places)| (name, places, root.join("models").join(name))))
}

fn load(path: &Path) -> (ModelFiles, Model) {
    let files = ModelFiles::open(path).unwrap();
    let model = Model::load(&files, Kind::Float, Device::Cpu).unwrap();
    (files, model)
}

/// The largest absolute difference, divided by max(1, the largest absolute value of the reference).
fn difference(ours: &Tensor, reference: &Tensor) -> f64 {
    assert_eq!(ours.size(), reference.size());
    assert!(ours.numel() > 0);
    let largest = reference.abs().max().double_value(&[]).max(1.0);
    (ours - reference).abs().max().double_value(&[]) / largest
}

/// Returns the rows at which the mask is 1, in the order of the stream: `[b t width]` → `[n
/// width]`. `padded` is padded on the right.
fn real_rows(padded: &Tensor, mask: &Tensor) -> Tensor {
    padded.flatten(0, 1).index_select(0, &mask.flatten(0, -1).nonzero().squeeze_dim(1))
}

fn site(name: &str) -> Option<Site> {
    name.strip_prefix("hidden_states.")
        .map(|k| Site::Residual(k.parse().unwrap()))
        .or_else(|| name.strip_prefix("in.").map(|n| Site::Input(n.to_owned())))
        .or_else(|| name.strip_prefix("out.").map(|n| Site::Output(n.to_owned())))
}

/// Returns the sites that have reference values, and the reference values `[n width]` of each site.
fn references(io: &IndexMap<String, Tensor>) -> (Vec<Site>, Vec<Tensor>) {
    io.iter()
        .filter_map(|(name, t)| Some((site(name)?, real_rows(t, &io["attention_mask"]))))
        .unzip()
}

fn batch(io: &IndexMap<String, Tensor>) -> Stream {
    Stream::from_padded(&io["input_ids"], &io["attention_mask"], Device::Cpu).unwrap()
}

fn forward(model: &Model, stream: &Stream, sites: &[Site], hidden: bool) -> Result<PassOutput> {
    model.forward(stream, Request { sites, hidden, ..Request::default() })
}

#[test]
fn every_site_has_the_same_state_as_in_transformers_with_every_strategy() {
    let _guard = tch::no_grad_guard();
    for (name, places, dir) in small() {
        let (_, mut model) = load(&dir);
        let io = read_safetensors(&dir.join("io.safetensors")).unwrap();
        let (sites, expected) = references(&io);
        let layers = model.info().layers;
        assert_eq!(sites.len(), layers * places + layers + 1, "{name}");
        for strategy in STRATEGIES {
            model.set_attention(strategy);
            let output = forward(&model, &batch(&io), &sites, true).unwrap();
            let mut worst = 0f64;
            for ((site, ours), reference) in sites.iter().zip(&output.states).zip(&expected) {
                let error = difference(ours, reference);
                assert!(error < 1e-4, "{name}, {strategy:?}, {site}: error {error:e}");
                worst = worst.max(error);
            }
            let logits = difference(
                &model.logits(&output.hidden.unwrap()).unwrap(),
                &real_rows(&io["logits"], &io["attention_mask"]),
            );
            assert!(logits < 1e-4, "{name}, {strategy:?}, logits: {logits:e}");
            eprintln!(
                "{name}, {strategy:?}: {} sites within {worst:.1e}, logits within {logits:.1e}",
                sites.len()
            );
        }
    }
}

/// Loads the model in the folder `dir` with a changed configuration and renamed tensors. Returns
/// the model and its logits.
fn logits_of(
    dir: &Path,
    change: impl Fn(&mut serde_json::Value),
    rename: impl Fn(String) -> String,
) -> (Model, Tensor) {
    let files = ModelFiles::open(dir).unwrap();
    let mut config = files.config().clone();
    change(&mut config);
    let tensors = files
        .load(Kind::Float, Device::Cpu)
        .unwrap()
        .into_iter()
        .map(|(name, t)| (rename(name), t))
        .collect();
    let model = Model::from_tensors(&config, tensors, Kind::Float, Device::Cpu).unwrap();
    let hidden =
        forward(&model, &batch(&read_safetensors(&dir.join("io.safetensors")).unwrap()), &[], true)
            .unwrap()
            .hidden
            .unwrap();
    let logits = model.logits(&hidden).unwrap();
    (model, logits)
}

#[test]
fn older_and_newer_formats_of_a_configuration_give_the_same_model() {
    let _guard = tch::no_grad_guard();
    for root in golden::roots() {
        older_configurations_give_the_same_models(&root.join("models"));
    }
}

fn older_configurations_give_the_same_models(models: &Path) {
    let (set, dir) =
        (|c: &mut serde_json::Value, field: &str, v| c[field] = v, |name: &str| models.join(name));
    let same = |name: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let (unchanged, changed) =
            (logits_of(&dir(name), |_| {}, |n| n).1, logits_of(&dir(name), change, |n| n).1);
        assert!(unchanged.equal(&changed), "{name}");
    };
    same("llama_tied_rope3", &|c| {
        let mut scaling = c["rope_parameters"].take();
        set(c, "rope_theta", scaling["rope_theta"].take());
        let kind = scaling["rope_type"].take();
        scaling["type"] = kind;
        set(c, "rope_scaling", scaling);
    });
    same("gpt2", &|c| {
        for (usual, own) in [
            ("hidden_size", "n_embd"),
            ("num_hidden_layers", "n_layer"),
            ("num_attention_heads", "n_head"),
        ] {
            let size = c[own].take();
            set(c, usual, size);
        }
        // These fields belong to other architectures, so they must be ignored.
        set(c, "intermediate_size", 7.into());
        set(c, "num_key_value_heads", 2.into());
    });
    same("olmo3", &|c| {
        set(c, "rope_parameters", serde_json::Value::Null);
        set(c, "rope_theta", 5e5.into());
    });
    same("smollm3", &|c| {
        set(c, "no_rope_layers", serde_json::Value::Null);
        set(c, "no_rope_layer_interval", 2.into());
        set(c, "layer_types", serde_json::Value::Null);
    });
    same("gpt_neox", &|c| {
        set(c, "rope_parameters", serde_json::Value::Null);
        set(c, "rotary_pct", 0.25.into());
        set(c, "rotary_emb_base", 10_000.into());
    });
    same("gemma3_text", &|c| {
        set(c, "rope_parameters", serde_json::Value::Null);
        set(c, "rope_theta", 1e6.into());
        set(c, "rope_local_base_freq", 1e4.into());
        set(c, "rope_scaling", serde_json::Value::Null);
    });
}

#[test]
fn an_old_gpt2_checkpoint_gives_the_same_model() {
    let _guard = tch::no_grad_guard();
    let dir = golden::own().join("models/gpt2");
    let (_, expected) = logits_of(&dir, |_| {}, |name| name);
    let files = ModelFiles::open(&dir).unwrap();
    let mut tensors: IndexMap<String, Tensor> = files
        .load(Kind::Float, Device::Cpu)
        .unwrap()
        .into_iter()
        .map(|(name, t)| (name.replacen("transformer.", "", 1), t))
        .collect();
    for k in 0..files.config()["n_layer"].as_u64().unwrap() {
        tensors.insert(
            format!("h.{k}.attn.bias"),
            Tensor::ones([1, 1, 256, 256], (Kind::Float, Device::Cpu)).tril(0),
        );
        tensors.insert(format!("h.{k}.attn.masked_bias"), Tensor::from(-1e4));
    }
    let model = Model::from_tensors(files.config(), tensors, Kind::Float, Device::Cpu).unwrap();
    let hidden =
        forward(&model, &batch(&read_safetensors(&dir.join("io.safetensors")).unwrap()), &[], true)
            .unwrap()
            .hidden
            .unwrap();
    assert!(model.logits(&hidden).unwrap().equal(&expected));
    assert!(model.is_conv1d("transformer.h.0.mlp.c_proj") && !model.is_conv1d("transformer.h.0"));
}

#[test]
fn the_text_model_of_a_multimodal_checkpoint_gives_the_same_logits() {
    let _guard = tch::no_grad_guard();
    let dir = golden::own().join("models/gemma3_text");
    let (_, plain) = logits_of(&dir, |_| {}, |name| name);
    let both = |c: &mut serde_json::Value| {
        *c = serde_json::json!({ "model_type": "gemma3", "text_config": c.take() })
    };
    for prefix in ["model.", "language_model.model.", "model.language_model."] {
        let (model, logits) = logits_of(&dir, both, |name| name.replacen("model.", prefix, 1));
        assert!(logits.equal(&plain), "{prefix}");
        let within = if prefix == "model." { "model." } else { "model.language_model." };
        assert_eq!(model.info().linears[0].name, format!("{within}layers.0.self_attn.q_proj"));
    }
}

#[test]
fn capped_logits_are_a_tanh_of_the_plain_logits() {
    let _guard = tch::no_grad_guard();
    let dir = golden::own().join("models/gemma3_text");
    let (_, plain) = logits_of(&dir, |_| {}, |name| name);
    let (_, capped) = logits_of(&dir, |c| c["final_logit_softcapping"] = 1.5.into(), |name| name);
    assert!(difference(&capped, &((plain / 1.5).tanh() * 1.5)) < 1e-6);
}

#[test]
fn the_state_of_a_site_does_not_depend_on_other_requested_sites() {
    let _guard = tch::no_grad_guard();
    for (name, _, dir) in small() {
        let (_, model) = load(&dir);
        let io = read_safetensors(&dir.join("io.safetensors")).unwrap();
        let (stream, (sites, _)) = (batch(&io), references(&io));
        let all = forward(&model, &stream, &sites, true).unwrap();
        for (site, state) in sites.iter().zip(&all.states) {
            let alone = forward(&model, &stream, std::slice::from_ref(site), false).unwrap();
            assert!(alone.hidden.is_none());
            assert!(alone.states[0].equal(state), "{name}: {site}");
        }
        let last_first: Vec<Site> = sites.iter().rev().step_by(3).cloned().collect();
        let some = forward(&model, &stream, &last_first, false).unwrap();
        for (ours, state) in some.states.iter().zip(all.states.iter().rev().step_by(3)) {
            assert!(ours.equal(state), "{name}");
        }
    }
}

#[test]
fn blocks_after_the_last_requested_site_do_not_run() {
    let _guard = tch::no_grad_guard();
    let dir = golden::own().join("models/llama");
    let (files, model) = load(&dir);
    let io = read_safetensors(&dir.join("io.safetensors")).unwrap();
    let (stream, layers) = (batch(&io), model.info().layers);
    let of = |k: usize| format!("model.layers.{k}.mlp.down_proj");
    assert_eq!(model.depth(&[], true).unwrap(), layers);
    assert_eq!(model.depth(&[Site::Residual(layers)], false).unwrap(), layers);
    assert!(model.depth(&[Site::Residual(layers + 1)], false).is_err());
    for blocks in 0..layers {
        // The weights of deeper blocks are int64. A product of int64 and float tensors fails, so
        // the test detects a block that runs by mistake.
        let poisoned =
            files.load(Kind::Float, Device::Cpu).unwrap().into_iter().map(|(name, t)| {
                let deeper =
                    (blocks..layers).any(|k| name.starts_with(&format!("model.layers.{k}.")));
                (name, if deeper { t.to_kind(Kind::Int64) } else { t })
            });
        let poisoned =
            Model::from_tensors(files.config(), poisoned.collect(), Kind::Float, Device::Cpu)
                .unwrap();
        let mut sites = vec![Site::Residual(0), Site::Residual(blocks)];
        sites.dedup();
        sites.extend((0..blocks).flat_map(|k| [Site::Input(of(k)), Site::Output(of(k))]));
        assert_eq!(poisoned.depth(&sites, false).unwrap(), blocks);
        let (ours, whole) = (
            forward(&poisoned, &stream, &sites, false).unwrap(),
            forward(&model, &stream, &sites, true).unwrap(),
        );
        for (site, (a, b)) in sites.iter().zip(ours.states.iter().zip(&whole.states)) {
            assert!(a.equal(b), "{site}");
        }
        let next = [Site::Output(of(blocks))];
        assert_eq!(poisoned.depth(&next, false).unwrap(), blocks + 1);
        assert!(forward(&poisoned, &stream, &next, false).is_err());
    }
}

#[test]
fn smollm2_has_the_same_states_and_logits_as_in_transformers() {
    let Some(path) = smollm2() else { return };
    let _guard = tch::no_grad_guard();
    let start = Instant::now();
    let (_, model) = load(&path);
    let sites: Vec<Site> = (0..=model.info().layers).map(Site::Residual).collect();
    let read = |root: PathBuf| read_safetensors(&root.join("smollm2/forward.safetensors")).unwrap();
    let inputs = golden::roots().into_iter().map(read);
    // Each file contains three inputs.
    for (io, i) in inputs.flat_map(|io| std::iter::repeat_n(Rc::new(io), 3).zip(0..)) {
        let ids = io[&format!("{i}.input_ids")].unsqueeze(0);
        let stream = Stream::from_padded(&ids, &ids.ones_like(), Device::Cpu).unwrap();
        let last = |t: &Tensor| t.get(-1);
        let output = forward(&model, &stream, &sites, true).unwrap();
        let (expected, mut worst) = (&io[&format!("{i}.last_hidden")], 0f64);
        assert_eq!(expected.size()[0], sites.len() as i64);
        for (k, state) in output.states.iter().enumerate() {
            let error = difference(&last(state), &expected.get(k as i64));
            assert!(error < 2e-3, "input {i}, hidden state {k}: error {error:e}");
            worst = worst.max(error);
        }
        let logits = difference(
            &model.logits(&output.hidden.unwrap().last().unwrap()).unwrap().squeeze_dim(0),
            &io[&format!("{i}.last_logits")],
        );
        assert!(logits < 2e-3, "input {i}, logits: {logits:e}");
        eprintln!(
            "input {i}: logits within {logits:.1e}, {} hidden states within {worst:.1e}",
            sites.len()
        );
    }
    eprintln!("forward: {:.1?}", start.elapsed());
}

#[test]
fn gemma3_has_the_same_states_and_logits_as_in_transformers() {
    let (Some(shared), Some(path)) = (golden::shared("golden/gemma3_270m"), gemma3()) else {
        return;
    };
    let _guard = tch::no_grad_guard();
    let (_, mut model) = load(&path);
    let io = read_safetensors(&shared.join("golden/gemma3_270m/forward.safetensors")).unwrap();
    let sites: Vec<Site> = (0..=model.info().layers).map(Site::Residual).collect();
    for strategy in STRATEGIES {
        model.set_attention(strategy);
        for i in 0..3 {
            let of = |name: &str| &io[&format!("{i}.{name}")];
            let ids = of("input_ids").unsqueeze(0);
            let stream = Stream::from_padded(&ids, &ids.ones_like(), Device::Cpu).unwrap();
            let output = forward(&model, &stream, &sites, true).unwrap();
            let logits =
                model.logits(&output.hidden.unwrap().last().unwrap()).unwrap().squeeze_dim(0);
            let worst = (logits.index_select(0, of("top_ids")) - of("top_logits"))
                .abs()
                .max()
                .double_value(&[]);
            assert!(worst < 5e-3, "input {i}, {strategy:?}, logits: error {worst:e}");
            let states = output
                .states
                .iter()
                .enumerate()
                .map(|(k, state)| difference(&state.get(-1), &of("last_hidden").get(k as i64)));
            let states = states.fold(0f64, f64::max);
            assert!(states < 2e-3, "input {i}, {strategy:?}, hidden states: error {states:e}");
            eprintln!(
                "input {i}, {strategy:?}: top logits within {worst:.1e}, {} hidden states within \
                    {states:.1e}",
                sites.len()
            );
        }
    }
}

#[test]
fn smollm2_gives_completions_the_same_probability_as_in_transformers() {
    let Some(path) = smollm2() else { return };
    let _guard = tch::no_grad_guard();
    let start = Instant::now();
    let (files, model) = load(&path);
    let tokenizer = files.tokenizer().unwrap();
    let pairs: Vec<serde_json::Value> = golden::roots()
        .iter()
        .flat_map(|root| {
            let text = std::fs::read(root.join("smollm2/pair_logps.json")).unwrap();
            let mut found: serde_json::Value = serde_json::from_slice(&text).unwrap();
            std::mem::take(found["pairs"].as_array_mut().unwrap())
        })
        .collect();
    let (mut worst, mut tokens) = (0f64, 0);
    for (i, pair) in pairs.iter().enumerate() {
        let encode = |field: &str| tokenizer.encode(pair[field].as_str().unwrap()).unwrap();
        let prompt = encode("prompt");
        assert_eq!(pair["prompt_tokens"], prompt.len(), "pair {i}");
        let mut builder = StreamBuilder::default();
        let root = builder.push(&prompt, None).unwrap();
        let (mut rows, mut ids, mut lens) = (Vec::new(), Vec::new(), Vec::new());
        for field in ["chosen", "rejected"] {
            let completion = encode(field);
            assert_eq!(pair[format!("{field}_tokens")], completion.len(), "pair {i}, {field}");
            // The last row of the prompt predicts the first token of the completion, and each token
            // predicts the next one.
            rows.push(prompt.len() as i64 - 1);
            rows.extend((builder.tokens() as i64..).take(completion.len() - 1));
            builder.push(&completion, Some(root)).unwrap();
            lens.push(completion.len() as i64);
            ids.extend(completion);
        }
        tokens += builder.tokens();
        let hidden = forward(&model, &builder.finish(Device::Cpu).unwrap(), &[], true)
            .unwrap()
            .hidden
            .unwrap();
        let predicted =
            PredictedTokens { rows: Tensor::from_slice(&rows), ids: Tensor::from_slice(&ids) };
        let logps = model.score_tokens(&hidden, &predicted, Detail::NONE, None).unwrap().logprobs;
        for (field, logps) in
            ["chosen", "rejected"].into_iter().zip(logps.split_with_sizes(&lens[..], 0))
        {
            let (ours, reference) = (
                logps.sum(Kind::Double).double_value(&[]),
                pair[format!("{field}_logp_sum")].as_f64().unwrap(),
            );
            assert!(
                (ours - reference).abs() < 1e-2,
                "pair {i}, {field}: got {ours}, expected {reference}"
            );
            worst = worst.max((ours - reference).abs());
        }
    }
    eprintln!(
        "{} pairs of {tokens} tokens: sums within {worst:.1e}, {:.1?}",
        pairs.len(),
        start.elapsed()
    );
}
