//! Invariants of taps.

use serde_json::{Value, json};

use super::{Invariant, Method, Verdict, fixture};
use crate::api::{ModelInfo, Site};
use crate::config::plugin_fields;
use crate::error::{Error, Result};
use crate::registry::TapEntry;

/// The invariants for taps.
pub const TAPS: &[Invariant<Method<&'static TapEntry>>] = &[
    Invariant { name: "the sites exist in the model, or the tap returns an error", check: places },
    Invariant { name: "the sites are unique and in the order of a forward pass", check: order },
    Invariant { name: "an out-of-range layer is an error", check: outside },
];

fn sites(method: &Method<&'static TapEntry>, model: &ModelInfo) -> Result<Vec<Site>> {
    method.entry.build(&method.json)?.sites(model)
}

fn places(method: &Method<&'static TapEntry>) -> Result<Verdict> {
    let deep = fixture::info(fixture::DEEP)?;
    if sites(method, &deep)?.is_empty() {
        return Ok(Verdict::Violated(format!(
            "the tap selects no sites in a model of {} blocks",
            deep.layers
        )));
    }
    // A tap may reject a model without linear modules, but it must not return sites that do not
    // exist.
    let without_modules = ModelInfo { linears: Vec::new(), ..deep.clone() };
    for model in [deep, fixture::info(fixture::BLOCKS)?, fixture::info(1)?, without_modules] {
        for site in sites(method, &model).unwrap_or_default() {
            if let Err(e) = model.width(&site) {
                return Ok(Verdict::Violated(format!(
                    "in a model of {} blocks and {} linear modules, the tap selects `{site}`: {e}",
                    model.layers,
                    model.linears.len()
                )));
            }
        }
    }
    Ok(Verdict::Holds)
}

fn order(method: &Method<&'static TapEntry>) -> Result<Verdict> {
    let model = fixture::info(fixture::DEEP)?;
    let sites = sites(method, &model)?;
    let reached = sites.iter().map(|site| reached(&model, site)).collect::<Result<Vec<_>>>()?;
    for (i, site) in sites.iter().enumerate() {
        if sites[..i].contains(site) {
            return Ok(Verdict::Violated(format!("the tap selects `{site}` twice")));
        }
        if i > 0 && reached[i - 1] > reached[i] {
            return Ok(Verdict::Violated(format!(
                "the tap lists `{}` before `{site}`, which is computed earlier",
                sites[i - 1]
            )));
        }
    }
    Ok(Verdict::Holds)
}

/// Sort key of a site in a forward pass: the number of blocks that have started when `site` is
/// computed, and the position of `site` within its block.
fn reached(model: &ModelInfo, site: &Site) -> Result<(usize, usize)> {
    let begun = model.block(site)?.map_or(0, |k| k + 1);
    let module = |name: &str| {
        model
            .linears
            .iter()
            .position(|l| l.name == name)
            .ok_or_else(|| Error::internal(format!("no module `{name}`")))
    };
    let within = match site.whole() {
        Site::Input(name) => 2 * module(name)?,
        Site::Output(name) => 2 * module(name)? + 1,
        Site::Block(_) => usize::MAX - 1,
        Site::Residual(_) | Site::Columns { .. } => usize::MAX,
    };
    Ok((begun, within))
}

fn outside(method: &Method<&'static TapEntry>) -> Result<Verdict> {
    const LAYERS: &str = "layers";
    let far = json!("1000");
    if !plugin_fields(&method.entry.about)?.iter().any(|f| f.name == LAYERS && !f.refuses(&far)) {
        return Ok(Verdict::DoesNotApply("the tap has no field `layers`"));
    }
    let mut config: Value =
        serde_json::from_str(&method.json).map_err(|e| Error::internal(e.to_string()))?;
    config[LAYERS] = far;
    let found =
        sites(&Method::new(method.entry, config.to_string()), &fixture::info(fixture::DEEP)?);
    Ok(Verdict::unless(found.ok().map(|sites| {
        format!("layer 1000 selects {sites:?} in a model of {} blocks", fixture::DEEP)
    })))
}
