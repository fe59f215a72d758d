//! The figures of the page, one file each.

pub mod curves;
pub mod dots;
pub mod generalisation;
pub mod states;
pub mod training;

use super::plot::{Series, legend};
use crate::results::Summary;

/// The legend of all methods.
fn methods(summary: &Summary) -> String {
    legend(summary.groups.iter().enumerate().map(|(i, m)| (Series(i), m.name.as_str())))
}
