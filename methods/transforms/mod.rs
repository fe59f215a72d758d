//! Maps of the activations into the space where a loss compares them.

mod hra;
mod none;
mod ortho;

#[cfg(test)]
mod tests;
