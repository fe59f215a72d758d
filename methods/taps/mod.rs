//! Taps: the sites in a model where a method reads states.

pub(crate) mod heads;
mod hs;
pub(crate) mod outliers;
mod pooling;
mod side_in;
mod side_out;

#[cfg(test)]
mod tests;

use reprpo_plugin::prelude::*;

/// Returns the default layers: all layers from 30% of the depth onwards, except the last two.
fn default_layers() -> Layers {
    Layers("range(.3,-2)".to_owned())
}

/// Returns the linear modules that a tap reads in the blocks `layers`, in the order in which they
/// run.
///
/// `chosen` selects modules by the last component of their names. If `chosen` is `None`, the tap
/// reads the modules in `usual` and the fused modules that contain one of them.
///
/// # Errors
/// Fails if the model does not have a layer in `layers`, if a block lacks a module in `chosen`, or
/// if no module in a block is selected.
fn modules<'m>(
    model: &'m ModelInfo,
    layers: &Layers,
    chosen: Option<&[String]>,
    usual: &[&str],
    tap: &str,
) -> Result<Vec<&'m LinearInfo>> {
    let last = |l: &LinearInfo| l.name.rsplit('.').next().unwrap_or(&l.name).to_owned();
    let mut found = Vec::new();
    for k in layers.resolve(model.layers)? {
        let block: Vec<&LinearInfo> = model.linears.iter().filter(|l| l.layer == Some(k)).collect();
        let wanted = |l: &&&LinearInfo| {
            chosen.map_or_else(|| usual.iter().any(|u| l.is(u)), |c| c.contains(&last(l)))
        };
        if let Some(missing) =
            chosen.into_iter().flatten().find(|name| !block.iter().any(|l| last(l) == **name))
        {
            return Err(Error::unknown("module", missing, block.iter().map(|l| last(l)))
                .within(format!("cannot apply `tap.modules` of `{tap}` to block {k}")));
        }
        let before = found.len();
        found.extend(block.iter().filter(wanted));
        if found.len() == before {
            let what = if chosen.is_some() {
                "`tap.modules` is empty".to_owned()
            } else {
                format!(
                    "block {k} of this {} model has none of the modules that the tap reads ({})",
                    model.architecture,
                    usual.join(", ")
                )
            };
            return Err(Error::new(format!("{what}, so `{tap}` has nothing to read"))
                .hint("set `tap.modules`, or use the tap `hs`, which every model supports"));
        }
    }
    Ok(found)
}
