//! Adapters: trainable changes to a frozen model. They are saved in PEFT's format if PEFT
//! implements the method.
//!
//! Each adapter's `learning_rate_factor` was chosen using only training pairs: 30 steps of dpo with
//! SmolLM2-135M-Instruct on 40 pairs of the synthetic data. With the factor, the accuracy on these
//! pairs rises as fast as with LoRA, and the chosen completions do not become less likely. The
//! factors of `miss`, `road` and `shira` are not measured: they are those of LoRA, or of IA³ in the
//! case of `road`. That of `delora` is only roughly measured: dpo on 200 of these pairs learns all
//! of them at rates of 1e-4 and 1e-3, and at 1e-4 the chosen completions become half as likely.

mod blocks;
mod boft;
mod delora;
mod ether;
mod hra;
mod ia3;
mod lora;
mod loreft;
mod miss;
mod oft;
mod road;
mod shira;
mod vera;
mod weight_steering;

#[cfg(test)]
mod coefficient_tests;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod parts_tests;
#[cfg(test)]
mod saved_modules_tests;
#[cfg(test)]
mod saved_tests;
#[cfg(test)]
mod tests;

use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::Value;

/// Returns PEFT's default targets for models of the Llama family.
fn default_targets() -> Targets {
    ["q_proj", "v_proj"].into()
}

/// Checks the rank `r` and converts it to the integer type of tensor sizes.
///
/// # Errors
/// Fails if r is 0.
fn rank(r: u32) -> Result<i64> {
    if r == 0 {
        return Err(Error::new("`adapter.r` must be at least 1, got 0"));
    }
    Ok(i64::from(r))
}

/// The error for a coefficient of the adapter `name`, which multiplies the weights by `factors`,
/// e.g. rotations.
fn no_multiple(name: &str, factors: &str) -> Error {
    Error::new(format!(
        "`{name}` multiplies the weights by {factors}, and a multiple of its change does not have \
            this form"
    ))
    .hint("only the coefficients 0 (off) and 1 (as trained) are possible")
    .hint("adapters that add a change, such as `lora`, accept any coefficient")
}

/// Fails unless 0 ≤ p < 1.
fn check_dropout(field: &str, p: f64) -> Result<()> {
    if (0.0..1.0).contains(&p) {
        Ok(())
    } else {
        Err(Error::new(format!("`adapter.{field}` must be at least 0 and less than 1, got {p}")))
    }
}

/// Applies dropout: in training, zeroes each entry of x with probability p and scales the remaining
/// ones by 1/(1 − p).
fn dropout(x: &Tensor, p: f64, train: bool) -> Result<Tensor> {
    Ok(if train && p > 0.0 { x.f_dropout(p, true)? } else { x.shallow_clone() })
}

/// Reads `layers_to_transform` from PEFT's configuration, where it can be a list or a single
/// number. An empty list means every layer.
fn peft_layers(peft: &PeftConfig) -> Result<Option<Vec<usize>>> {
    match peft.get::<Value>("layers_to_transform")? {
        Some(Value::Number(_)) => Ok(Some(vec![peft.need("layers_to_transform")?])),
        Some(Value::Array(list)) if list.is_empty() => Ok(None),
        _ => peft.get("layers_to_transform"),
    }
}
