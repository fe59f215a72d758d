//! Maps of states into the space where a loss compares them.

mod ether;
mod hra;
mod none;
mod ortho;
mod row_space;
mod suppressed;
mod svd;

#[cfg(test)]
mod tests;
