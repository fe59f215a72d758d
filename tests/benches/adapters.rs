//! Compares the cost of one training step between adapters and LoRA with the same rank and target
//! modules, on SmolLM2-135M: `cargo bench --bench adapters`.
//!
//! Each measurement runs in a separate process, so that peak memory belongs to one adapter. The
//! adapters take turns, so that a slow phase of the machine affects all of them.

use std::process::Command;
use std::time::Instant;

use reprpo_core::api::StepInfo;
use reprpo_core::config::TrainConfig;
use reprpo_core::model::{Adapted, Model};
use reprpo_core::registry::Registry;
use reprpo_core::text::TokenPair;
use reprpo_core::train::{AdamW, Group, Objective, Reference, Taps, accumulate};
use reprpo_core::weights::{Extent, ModelFiles, locate};
use reprpo_methods as _;
use tch::Device;

const BASE: &str = "lora";
const OTHERS: [&str; 1] = ["hra"];
const CONFIG: &str = r#"{"r": 16, "target_modules": ["q_proj", "v_proj"]}"#;
const ROUNDS: usize = 3;
const STEPS: usize = 6;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    match &args[..] {
        [adapter] => measure(adapter),
        _ => compare(),
    }
}

/// Prints the median seconds per step, without the first step, and the peak memory in MB.
fn measure(adapter: &str) {
    let registry = Registry::builtin().expect("plugins");
    let files = ModelFiles::open(
        &locate("smollm2-135m-instruct", Extent::Whole)
            .expect("`cargo xtask model` fetches it")
            .path,
    )
    .expect("a model");
    let model = Model::load(&files, tch::Kind::Float, Device::Cpu).expect("a model");
    let adapter =
        registry.adapter(adapter).and_then(|entry| entry.build(CONFIG)).expect("an adapter");
    let adapted =
        Adapted::attach(adapter.as_ref(), &model, model.info().layers, 0).expect("attached");
    let dpo = registry
        .intervention("dpo")
        .and_then(|entry| entry.build("{}", model.info()))
        .expect("dpo");
    let taps = Taps::default();
    let mut objective =
        Objective::new(dpo, taps, Reference::default(), &adapted).expect("an objective");
    let mut optimiser = AdamW::new(
        vec![Group { parameters: adapted.parameters(), scale: 1.0 }],
        &TrainConfig::default(),
    );
    // The lengths of a short chat. The token ids do not affect the time.
    let tokens = |n: usize, from: usize| {
        (0..n).map(|i| ((from + i * 7919) % 40_000) as i64).collect::<Vec<_>>()
    };
    let pairs: Vec<TokenPair> = (0..4)
        .map(|i| TokenPair {
            index: i,
            row: i,
            prompt: tokens(64, i),
            chosen: tokens(48, 100 + i),
            rejected: tokens(48, 200 + i),
        })
        .collect();
    let pairs: Vec<&TokenPair> = pairs.iter().collect();
    let mut seconds = Vec::new();
    for step in 0..=STEPS {
        let begin = Instant::now();
        accumulate(
            &mut objective,
            &model,
            &adapted,
            &pairs,
            4,
            StepInfo { step, steps: STEPS, seed: 0 },
            0,
        )
        .expect("a step");
        optimiser.step(1e-4).expect("a step");
        seconds.push(begin.elapsed().as_secs_f64());
    }
    println!("{} {}", median(&seconds[1..]), peak_megabytes());
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn peak_megabytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    kilobytes.unwrap_or(f64::NAN) / 1e3
}

fn compare() {
    let adapters: Vec<&str> = std::iter::once(BASE).chain(OTHERS).collect();
    let mut figures: Vec<[Vec<f64>; 2]> =
        adapters.iter().map(|_| [Vec::new(), Vec::new()]).collect();
    for round in 1..=ROUNDS {
        for (adapter, [seconds, memory]) in adapters.iter().zip(&mut figures) {
            eprintln!("round {round} of {ROUNDS}: {adapter}");
            let output = Command::new(std::env::current_exe().expect("this program"))
                .arg(adapter)
                .output()
                .expect("the command runs");
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let numbers: Vec<f64> =
                text.split_whitespace().filter_map(|w| w.parse().ok()).collect();
            seconds.push(numbers[0]);
            memory.push(numbers[1]);
        }
    }
    println!(
        "dpo, 4 pairs of 64 + 48 + 48 tokens, r 16 on q_proj and v_proj, float32, medians of \
            {ROUNDS} rounds of {STEPS} steps"
    );
    let base = (median(&figures[0][0]), median(&figures[0][1]));
    for (adapter, [seconds, memory]) in adapters.iter().zip(&figures) {
        let (s, m) = (median(seconds), median(memory));
        println!(
            "{adapter:<6} {s:.3} s a step, {:.2} × {BASE}; peak {m:.0} MB, {:.2} × {BASE}",
            s / base.0,
            m / base.1
        );
    }
}
