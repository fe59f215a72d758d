//! Writes the activations of a model at the sites of a tap to a folder, for use by other programs.
//!
//! The folder contains safetensors files and an `index.json`, which lists the file and the rows of
//! every pair.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use serde_json::json;
use tch::Tensor;

use crate::api::{Completions, Pooling, Side, Sides, Site, Tap};
use crate::batch::{BatchSpec, PairBatch, Sharing, passes};
use crate::error::{Context, Error, Result};
use crate::eval::EvalSplit;
use crate::files::write_whole;
use crate::model::pass::Request;
use crate::model::{Adapted, Model};
use crate::report::Progress;
use crate::text::TokenPair;
use crate::weights::write_safetensors;

/// Version of the folder format.
const FORMAT: u32 = 1;

/// Settings for writing states.
#[derive(Clone, Copy, Debug)]
pub struct StatesSpec {
    /// True to write the state of every token, false to pool the states with the tap's pooling.
    pub per_token: bool,
    /// Maximum number of tokens in a forward pass.
    pub tokens: usize,
    /// Size of a file in bytes at which the next file is started.
    pub shard: usize,
}

/// The model and the sites that states are read from.
pub struct StatesSource<'a> {
    /// The model.
    pub model: &'a Model,
    /// The adapter; `None` for the base model.
    pub adapted: Option<&'a Adapted>,
    /// The tap, which selects the sites and the pooling.
    pub tap: &'a dyn Tap,
}

/// Summary of the folder that was written.
#[derive(Debug, Serialize)]
pub struct StatesIndex {
    /// Names of the sites, in the order of the forward pass.
    pub taps: Vec<String>,
    /// Names of the files.
    pub files: Vec<String>,
    /// Number of pairs.
    pub pairs: usize,
    /// Total size of the files, in bytes.
    pub bytes: usize,
}

/// The location of one sequence in a file that stores the state of every token.
#[derive(Clone, Copy, Debug, Serialize)]
struct Span {
    /// Index of the first row.
    start: i64,
    /// Number of rows, including the rows of the prompt.
    tokens: i64,
    /// Number of rows that belong to the prompt, at the start of the span.
    prompt: i64,
}

/// The entry of one pair in the index.
#[derive(Debug, Serialize)]
struct Entry {
    split: String,
    index: usize,
    file: String,
    /// If states are pooled, the pair's row in the tensors. The row is the same for both sides.
    #[serde(skip_serializing_if = "Option::is_none")]
    row: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chosen: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rejected: Option<Span>,
}

/// Writes the states of all pairs in `splits` to the new folder `out`. Adds the fields of
/// `described` to the index. These fields describe the model, the adapter and the data.
///
/// # Errors
/// Fails if the folder exists, if the model does not have one of the sites, or if a file cannot be
/// written. Returns `Error::interrupted` if `stop` became true. In all these cases, `out` is not
/// created.
pub fn write_states(
    source: &StatesSource<'_>,
    splits: &[EvalSplit],
    spec: StatesSpec,
    described: &serde_json::Value,
    out: &Path,
    stop: &AtomicBool,
    progress: &mut dyn Progress,
) -> Result<StatesIndex> {
    if out.exists() {
        return Err(Error::new(format!("`{}` already exists", out.display()))
            .hint("choose a different `--out`, or remove the folder"));
    }
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent)
        .within(|| format!("cannot create the folder `{}`", parent.display()))?;
    // Write to a temporary folder, which is deleted if anything fails and renamed at the end.
    let folder = tempfile::Builder::new()
        .prefix(".states")
        .tempdir_in(parent)
        .within(|| format!("cannot create a folder in `{}`", parent.display()))?;

    let sites = source.tap.sites(source.model.info())?;
    let mut writer = Writer {
        folder: folder.path(),
        spec,
        sites: &sites,
        files: Vec::new(),
        rows: Sides::default(),
        ids: Sides::default(),
        bytes: 0,
        total: 0,
    };
    let mut entries = Vec::new();
    let _guard = tch::no_grad_guard();
    for split in splits {
        progress.stage(&format!("states {}", split.info.name), Some(split.data.pairs.len() as u64));
        for pairs in passes(&split.data.pairs, spec.tokens) {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::interrupted(format!(
                    "interrupted after reading the states of {} pairs",
                    entries.len()
                )));
            }
            let read = read(source, &sites, pairs, spec)?;
            entries.extend(writer.add(&split.info.name, pairs, read)?);
            progress.advance(pairs.len() as u64, &[]);
        }
        progress.finish();
    }
    writer.flush()?;
    let taps = sites
        .iter()
        .map(|site| {
            Ok(json!({ "name": site.to_string(), "width": source.model.info().width(site)? }))
        })
        .collect::<Result<Vec<_>>>()?;
    let mut index = json!({
        "format": FORMAT, "states": if spec.per_token { "tokens" } else { "pooled" },
        "pooling": if spec.per_token { None } else { Some(source.tap.pooling()) }, "taps": taps,
        "pairs": entries,
    });
    if let (Some(index), Some(described)) = (index.as_object_mut(), described.as_object()) {
        index.extend(described.clone());
    }
    write_whole(&folder.path().join("index.json"), format!("{index:#}\n").as_bytes())?;
    let (files, bytes) = (writer.files.clone(), writer.total);
    let made = folder.keep();
    #[cfg(unix)]
    std::fs::set_permissions(&made, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .within(|| format!("cannot create `{}`", out.display()))?;
    std::fs::rename(&made, out)
        .within(|| format!("cannot rename `{}` to `{}`", made.display(), out.display()))?;
    Ok(StatesIndex {
        taps: sites.iter().map(ToString::to_string).collect(),
        files,
        pairs: entries.len(),
        bytes,
    })
}

/// The states of the pairs in one forward pass. Each side has one tensor per site.
struct Read {
    states: Sides<Vec<Tensor>>,
    /// Token ids of each side's sequences, with shape `[m]`; `None` if states are pooled.
    ids: Sides<Option<Tensor>>,
}

fn read(
    source: &StatesSource<'_>,
    sites: &[Site],
    pairs: &[TokenPair],
    spec: StatesSpec,
) -> Result<Read> {
    let spec_of_batch = BatchSpec {
        logprobs: Completions::None,
        sharing: Sharing::for_adapted(source.adapted),
        ..BatchSpec::SCORED
    };
    let batch = PairBatch::of(&pairs.iter().collect::<Vec<_>>(), spec_of_batch, source.model)?;
    let reached = source
        .model
        .forward(&batch.stream, Request { adapted: source.adapted, sites, ..Request::default() })?;
    let of_side = |state: &Tensor, side| -> Result<Tensor> {
        if spec.per_token {
            Ok(batch.rows(Pooling::All, side)?.gather(state)?.f_to_kind(batch.kind())?)
        } else {
            batch.pool(state, source.tap.pooling(), side)
        }
    };
    let states = Sides::try_of(|side| {
        reached.states.iter().map(|state| of_side(state, side)).collect::<Result<Vec<_>>>()
    })?;
    let ids = Sides::try_of(|side| {
        if spec.per_token {
            batch.rows(Pooling::All, side)?.gather(&batch.stream.ids).map(Some)
        } else {
            Ok(None)
        }
    })?;
    Ok(Read { states, ids })
}

/// Computes the pooled states of the pairs at the sites, with or without an adapter. Each side has
/// one tensor `[pairs width]` per site.
pub(super) fn pooled(
    model: &Model,
    adapted: Option<&Adapted>,
    sites: &[Site],
    pairs: &[TokenPair],
    pooling: Pooling,
) -> Result<Sides<Vec<Tensor>>> {
    let spec = BatchSpec {
        logprobs: Completions::None,
        sharing: Sharing::for_adapted(adapted),
        ..BatchSpec::SCORED
    };
    let batch = PairBatch::of(&pairs.iter().collect::<Vec<_>>(), spec, model)?;
    let request = Request { adapted, sites, ..Request::default() };
    let reached = model.forward(&batch.stream, request)?;
    Sides::try_of(|side| {
        reached.states.iter().map(|state| batch.pool(state, pooling, side)).collect()
    })
}

/// Collects rows, and writes them to a file once they reach the size limit.
struct Writer<'a> {
    folder: &'a Path,
    spec: StatesSpec,
    sites: &'a [Site],
    files: Vec<String>,
    /// Rows for the next file: for each side and site, one tensor per batch.
    rows: Sides<Vec<Vec<Tensor>>>,
    ids: Sides<Vec<Tensor>>,
    /// Size, in bytes, of the rows for the next file.
    bytes: usize,
    /// Total size, in bytes, of the files that have been written.
    total: usize,
}

impl Writer<'_> {
    /// Name of the next file.
    fn file(&self) -> String {
        format!("states-{:05}.safetensors", self.files.len() + 1)
    }

    /// Returns the number of rows collected for `side`.
    fn collected(&self, side: Side) -> i64 {
        self.rows.get(side).first().map_or(0, |parts| parts.iter().map(|t| t.size()[0]).sum())
    }

    fn add(&mut self, split: &str, pairs: &[TokenPair], read: Read) -> Result<Vec<Entry>> {
        let mut starts = Sides::of(|side| self.collected(side));
        let mut entries = Vec::with_capacity(pairs.len());
        for pair in pairs {
            let spans = Sides::of(|side| {
                let tokens = if self.spec.per_token {
                    (pair.prompt.len() + pair.completion(side).len()) as i64
                } else {
                    1
                };
                let start = starts.get_mut(side);
                *start += tokens;
                Span { start: *start - tokens, tokens, prompt: pair.prompt.len() as i64 }
            });
            let place = |span| self.spec.per_token.then_some(span);
            let row = (!self.spec.per_token).then_some(spans.chosen.start);
            let (chosen, rejected) = (place(spans.chosen), place(spans.rejected));
            entries.push(Entry {
                split: split.to_owned(),
                index: pair.row,
                file: self.file(),
                row,
                chosen,
                rejected,
            });
        }
        for (side, (states, ids)) in read.states.zip(read.ids) {
            let rows = self.rows.get_mut(side);
            rows.resize_with(self.sites.len(), Vec::new);
            for (parts, state) in rows.iter_mut().zip(states) {
                self.bytes += state.numel() * state.kind().elt_size_in_bytes();
                parts.push(state.f_to_device(tch::Device::Cpu)?);
            }
            self.ids.get_mut(side).extend(ids);
        }
        if self.bytes >= self.spec.shard {
            self.flush()?;
        }
        Ok(entries)
    }

    /// Writes the collected rows, if there are any.
    fn flush(&mut self) -> Result<()> {
        let mut tensors = Vec::new();
        for (side, (rows, ids)) in std::mem::take(&mut self.rows).zip(std::mem::take(&mut self.ids))
        {
            for (site, parts) in self.sites.iter().zip(rows) {
                tensors.push((format!("{site}.{}", side.name()), Tensor::f_cat(&parts, 0)?));
            }
            if !ids.is_empty() {
                tensors.push((format!("ids.{}", side.name()), Tensor::f_cat(&ids, 0)?));
            }
        }
        if !tensors.is_empty() {
            let file = self.file();
            write_safetensors(&self.folder.join(&file), &tensors)?;
            self.files.push(file);
        }
        self.total += std::mem::take(&mut self.bytes);
        Ok(())
    }
}
