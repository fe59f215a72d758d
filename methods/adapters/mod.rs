//! Trainable changes of a frozen model, on disk as PEFT has them where PEFT has the method.
//!
//! Each adapter's `learning_rate_factor` was chosen on training pairs only: 30 steps of dpo with
//! SmolLM2-135M-Instruct on 40 pairs of the synthetic data. With it, the accuracy on these pairs
//! rises as fast as with LoRA, and the chosen completions do not become less likely.

mod blocks;
mod boft;
mod ether;
mod hra;
mod ia3;
mod lora;
mod loreft;
mod oft;
mod vera;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod parts_tests;
#[cfg(test)]
mod saved_tests;
#[cfg(test)]
mod tests;

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::Value;

/// The modules that PEFT adapts in models of Llama's family when nothing is said.
fn default_targets() -> Targets {
    ["q_proj", "v_proj"].into()
}

/// r as a size.
fn rank(r: u32) -> Result<i64> {
    if r == 0 {
        return Err(Error::new("`adapter.r` is 0, but has to be 1 or more"));
    }
    Ok(i64::from(r))
}

/// Refuses a probability that dropout cannot have.
fn check_dropout(field: &str, p: f64) -> Result<()> {
    if (0.0..1.0).contains(&p) {
        Ok(())
    } else {
        Err(Error::new(format!("`adapter.{field}` is {p}, but has to be 0 or more and below 1")))
    }
}

/// x with a share p of its entries zeroed and the others scaled up, in training.
fn dropped(x: &Tensor, p: f64, train: bool) -> Result<Tensor> {
    Ok(if train && p > 0.0 { x.f_dropout(p, true)? } else { x.shallow_clone() })
}

/// Reads `layers_to_transform` of PEFT's configuration, which is a list or one number. In PEFT an
/// empty list means every layer.
fn peft_layers(peft: &PeftConfig) -> Result<Option<Vec<usize>>> {
    match peft.get::<Value>("layers_to_transform")? {
        Some(Value::Number(_)) => Ok(Some(vec![peft.need("layers_to_transform")?])),
        Some(Value::Array(list)) if list.is_empty() => Ok(None),
        _ => peft.get("layers_to_transform"),
    }
}
