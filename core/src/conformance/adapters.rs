//! Adapter invariants that the training invariants do not cover.

use std::collections::HashSet;
use std::path::Path;

use tch::{Kind, Tensor};

use super::fixture::pairs;
use super::measure::{difference, largest};
use super::training::{STEP, refs};
use super::{Bench, Case, Invariant, Method, Verdict};
use crate::api::{
    AdaptedPart, Axis, Frozen, Fused, FusedSite, Init, LinearInfo, LinearSite, PartInfo, Rows,
};
use crate::batch::{BatchSpec, PairBatch, Sharing};
use crate::error::{Context, Error, Result};
use crate::model::edits::Edits;
use crate::model::pass::Request;
use crate::model::peft::{self, Saved};
use crate::registry::Registry;
use crate::train::accumulate;

/// The invariants for adapters. Adapters must also satisfy the training invariants.
pub const ADAPTERS: &[Invariant] = &[
    Invariant {
        name: "tensor names are unique, and declared axes have the right width",
        check: naming,
    },
    Invariant { name: "the adapter has trained tensors if it claims to", check: trainable },
    Invariant { name: "the adapter starts as the identity if it claims to", check: identity },
    Invariant {
        name: "with the adapter off, the base model is bitwise unchanged",
        check: off_switch,
    },
    Invariant {
        name: "merging preserves the outputs, and unmerging restores the weights",
        check: merging,
    },
    Invariant { name: "a saved adapter loads back to the same bytes", check: saving },
    Invariant {
        name: "fusing the adapters of a module's parts into a single adapter preserves the outputs",
        check: fusing,
    },
];

/// Returns the logits at all tokens of the test pairs, with the adapter if `on` is true.
fn logits(bench: &Bench, on: bool) -> Result<Tensor> {
    let _guard = tch::no_grad_guard();
    let pairs = pairs();
    let spec =
        BatchSpec { sharing: Sharing::for_adapted(Some(&bench.adapted)), ..BatchSpec::SCORED };
    let batch = PairBatch::of(&refs(&pairs), spec, &bench.model)?;
    let reached = bench.model.forward(
        &batch.stream,
        Request { adapted: on.then_some(&bench.adapted), hidden: true, ..Request::default() },
    )?;
    bench
        .model
        .logits(reached.hidden.as_ref().ok_or_else(|| Error::internal("no last hidden state"))?)
}

fn naming(case: &Case) -> Result<Verdict> {
    let bench = Bench::new(case, 0)?;
    let mut seen = HashSet::new();
    if let Some((name, _)) =
        bench.adapted.tensors().into_iter().find(|(name, _)| !seen.insert(name.clone()))
    {
        return Ok(Verdict::Violated(format!("two tensors have the name `{name}`")));
    }
    let info = bench.model.info();
    for place in bench.adapted.changed() {
        for p in &place.parameters {
            let Some(axis) = p.axis else { continue };
            let width = info.width(if matches!(axis, Axis::Input(_)) {
                &place.input
            } else {
                &place.output
            })?;
            if p.tensor.size().get(axis.dim()) != Some(&width) {
                return Ok(Verdict::Violated(format!(
                    "`{}` at `{}` has the shape {:?}, but the size of {axis:?} must be {width}",
                    p.key,
                    place.output,
                    p.tensor.size()
                )));
            }
        }
    }
    Ok(Verdict::Holds)
}

fn trainable(case: &Case) -> Result<Verdict> {
    let bench = Bench::new(case, 0)?;
    let trained = bench.adapted.parameters().len();
    Ok(match (bench.adapter.is_trainable(), trained) {
        (true, 0) => Verdict::Violated("no tensor of the adapter requires a gradient".to_owned()),
        (false, n) if n > 0 => Verdict::Violated(format!(
            "the adapter has {n} trained tensors, but claims to have none"
        )),
        _ => Verdict::Holds,
    })
}

fn identity(case: &Case) -> Result<Verdict> {
    let mut bench = Bench::new(case, 0)?;
    // The edits of the method do not belong to the adapter.
    bench.adapted.set_edits(Edits::default());
    let off = largest(&(logits(&bench, true)? - logits(&bench, false)?));
    if bench.adapter.starts_as_identity() {
        return Ok(Verdict::within("a logit at the start", off, 1e-10));
    }
    Ok(if off > 1e-10 {
        Verdict::Holds
    } else {
        Verdict::Violated("the adapter starts as the identity, but does not claim to".to_owned())
    })
}

fn off_switch(case: &Case) -> Result<Verdict> {
    let mut bench = Bench::new(case, 0)?;
    let before = logits(&bench, false)?;
    bench.disturb();
    if largest(&(logits(&bench, true)? - &before)) == 0.0 {
        return Ok(Verdict::Violated("the adapter has no effect".to_owned()));
    }
    if !bench.trains_nothing() {
        accumulate(
            &mut bench.objective,
            &bench.model,
            &bench.adapted,
            &refs(&pairs()),
            6,
            STEP,
            0,
        )?;
    }
    Ok(if logits(&bench, false)? == before {
        Verdict::Holds
    } else {
        Verdict::Violated("the base model has changed".to_owned())
    })
}

fn merging(case: &Case) -> Result<Verdict> {
    let mut bench = Bench::new(case, 0)?;
    bench.disturb();
    bench.adapted.set_edits(Edits::default());
    let (on, base) = (logits(&bench, true)?, logits(&bench, false)?);
    if bench.adapted.changes_blocks() {
        let refused = bench.model.merge(&bench.adapted).is_err() && logits(&bench, false)? == base;
        return Ok(if refused {
            Verdict::Holds
        } else {
            Verdict::Violated(
                "merging an adapter that changes blocks must fail and leave the model unchanged"
                    .to_owned(),
            )
        });
    }
    let kept: Vec<(String, Frozen)> = bench
        .adapted
        .names()
        .map(|n| Ok((n.to_owned(), bench.model.frozen(n)?.copied()?)))
        .collect::<Result<_>>()?;
    let merged = bench.model.merge(&bench.adapted)?;
    let off = largest(&(logits(&bench, false)? - on));
    bench.model.unmerge(merged);
    for (name, frozen) in &kept {
        if bench.model.frozen(name)?.dense()? != frozen.dense()? {
            return Ok(Verdict::Violated(format!("unmerging did not restore `{name}`")));
        }
    }
    if logits(&bench, false)? != base {
        return Ok(Verdict::Violated("the unmerged model differs from the base model".to_owned()));
    }
    Ok(Verdict::within("a logit of the merged model", off, 1e-9))
}

fn folder() -> Result<tempfile::TempDir> {
    tempfile::tempdir().within(|| "cannot create a temporary folder".to_owned())
}

fn saving(case: &Case) -> Result<Verdict> {
    let mut bench = Bench::new(case, 0)?;
    bench.disturb();
    bench.adapted.set_edits(Edits::default());
    let (dir, again) = (folder()?, folder()?);
    let write = |dir: &Path, bench: &Bench| {
        peft::write(
            dir,
            case.adapter.entry,
            bench.adapter.as_ref(),
            &bench.adapted,
            &bench.model,
            &"fixture".into(),
        )
    };
    write(dir.path(), &bench)?;
    let registry = Registry::holding([case.adapter.entry.into()])?;
    let saved = Saved::read(dir.path(), &registry)?;
    if saved.entry.about.name != case.adapter.entry.about.name {
        return Ok(Verdict::Violated(format!(
            "the adapter was loaded as `{}`",
            saved.entry.about.name
        )));
    }
    // Build a second adapter that only depends on the saved files.
    let config = serde_json::Value::Object(saved.config).to_string();
    let saved_case = Case { adapter: Method::new(saved.entry, config), ..case.clone() };
    let mut fresh = Bench::loaded(&saved_case, 5, saved.values)?;
    fresh.adapted.set_edits(Edits::default());
    write(again.path(), &fresh)?;
    for file in ["adapter_model.safetensors", "adapter_config.json"] {
        let bytes =
            |dir: &Path| std::fs::read(dir.join(file)).within(|| format!("cannot read `{file}`"));
        if bytes(dir.path())? != bytes(again.path())? {
            return Ok(Verdict::Violated(format!("the bytes of `{file}` differ")));
        }
    }
    // The loaded parameters were rounded to float32, so the tolerance is large.
    let off = difference(&[logits(&bench, true)?], &[logits(&fresh, true)?]);
    Ok(Verdict::within("a logit of the loaded adapter", off, 1e-4))
}

/// Fuses the query and value adapters of a module. The output of the module has two groups, each
/// with queries, keys and values. The keys do not have an adapter.
fn fusing(case: &Case) -> Result<Verdict> {
    let bench = Bench::new(case, 0)?;
    if bench.adapted.names().next().is_none() {
        return Ok(Verdict::DoesNotApply("the adapter does not change linear modules"));
    }
    let (groups, len, inputs) = (2, 8, 32);
    let init = |scope: &str| Init::new(3, scope, Kind::Double, bench.model.device());
    let linear = |name: &str, outputs| LinearInfo {
        name: format!("model.layers.0.{name}"),
        layer: Some(0),
        inputs,
        outputs,
    };
    let info = linear("query_key_value", 3 * groups * len);
    let part = |(i, name): (i64, &str)| PartInfo {
        linear: linear(&format!("query_key_value.{name}"), groups * len),
        holder: info.name.clone(),
        rows: Rows { groups, start: i * len, len, width: 3 * len },
    };
    let parts: Vec<PartInfo> = (0..).zip(["q_proj", "k_proj", "v_proj"]).map(part).collect();
    let adapted: Vec<&PartInfo> = parts.iter().step_by(2).collect();

    let random = |key: &str, shape: &[i64]| init(&info.name).normal(key, shape, 0.2).detach();
    let frozen = Frozen::new(
        random("weight", &[info.outputs, inputs]),
        Some(random("bias", &[info.outputs])),
    );
    let of = |part: &PartInfo| frozen.part(part.rows);
    let shared = bench
        .adapter
        .shared(&adapted.iter().map(|p| &p.linear).collect::<Vec<_>>(), &mut init(""))?;
    let mut sites = Vec::new();
    let mut linears = Vec::new();
    for info in adapted {
        let name = &info.linear.name;
        let linear = bench.adapter.attach(
            &LinearSite { info: &info.linear, frozen: &of(info)?, shared: &shared, sources: &[] },
            &mut init(name),
        )?;
        let parameters = linear.parameters();
        for p in parameters.iter().filter(|p| p.tensor.requires_grad()) {
            let _guard = tch::no_grad_guard();
            let _ =
                p.tensor.shallow_clone().g_add_(&init(name).normal(&p.key, &p.tensor.size(), 0.05));
        }
        sites.push(AdaptedPart { info, parameters });
        linears.push((info, linear));
    }
    let site = FusedSite {
        module: LinearSite { info: &info, frozen: &frozen, shared: &shared, sources: &[] },
        parts: sites,
    };
    let Some(Fused { modules, .. }) = bench.adapter.fuse(std::slice::from_ref(&site))? else {
        return Ok(Verdict::DoesNotApply("the method cannot fuse the adapters of parts"));
    };
    let [whole] = &modules[..] else {
        return Ok(Verdict::Violated(format!(
            "the parts of a module must be fused into one adapter, got {}",
            modules.len()
        )));
    };

    let _guard = tch::no_grad_guard();
    let x = init("x").normal("x", &[5, inputs], 1.0);
    let y = whole.forward(&x, &frozen, false)?;
    let mut worst = largest(&(parts[1].rows.of(&y, 1)? - of(&parts[1])?.forward(&x)?));
    for (part, linear) in linears {
        worst =
            worst.max(largest(&(part.rows.of(&y, 1)? - linear.forward(&x, &of(part)?, false)?)));
    }
    Ok(Verdict::within("the output of the whole module", worst, 1e-9))
}
