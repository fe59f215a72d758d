//! Transforms: maps from states to the space in which a loss compares them.

mod ether;
mod hra;
mod none;
mod ortho;
mod row_space;
mod suppressed;
mod svd;

#[cfg(test)]
mod tests;
