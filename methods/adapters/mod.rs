//! Trainable changes of frozen linear modules, on disk as PEFT has them.

mod hra;
mod lora;

#[cfg(test)]
mod golden_tests;

use reprpo_plugin::prelude::*;

/// The modules that PEFT adapts in models of Llama's family when nothing is said.
fn default_targets() -> Targets {
    Targets::Suffixes(vec!["q_proj".to_owned(), "v_proj".to_owned()])
}

/// r as a size.
fn rank(r: u32) -> Result<i64> {
    if r == 0 {
        return Err(Error::new("`adapter.r` is 0, but has to be 1 or more"));
    }
    Ok(i64::from(r))
}
