//! Attaches adapters to a model, and merges attached adapters into frozen weights.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use indexmap::IndexMap;
use indexmap::map::Entry;
use tch::Kind;

use super::Model;
use super::adapted::Adapted;
use super::edits::Edits;
use super::replacements::Replacements;
use crate::api::{
    AdaptedLinear, AdaptedPart, Adapter, Frozen, Fused, FusedSite, Init, LinearInfo, LinearSite,
    ModelInfo, Site, Targets,
};
use crate::error::{Context, Error, Result};

/// Checks that each entry in the configuration of `adapter` matches a module or a layer of `model`.
/// Returns one error per entry that matches nothing.
///
/// # Errors
/// Fails if a pattern is not a regular expression.
pub fn unmatched(adapter: &dyn Adapter, model: &ModelInfo) -> Result<Vec<Error>> {
    unmatched_besides(adapter, model, &[])
}

/// Checks the configuration of `adapter` as [`unmatched`] does. An entry of the targets may also
/// match one of `others`, the names of modules that `model` does not list.
///
/// # Errors
/// Fails if a pattern is not a regular expression.
pub fn unmatched_besides(
    adapter: &dyn Adapter,
    model: &ModelInfo,
    others: &[String],
) -> Result<Vec<Error>> {
    let (targets, layers) = (adapter.targets(), adapter.layers_to_transform());
    let everywhere = targets.select(model, None)?;
    let mut errors = targets.without(others).unmatched(&everywhere, model)?;
    let hits = targets.select(model, layers.as_deref())?;
    errors.extend(adapter.exclude_modules().excludes_none(&hits)?);
    if let Some(layers) = &layers {
        let with_targets: BTreeSet<usize> = everywhere.iter().filter_map(|l| l.layer).collect();
        for k in layers {
            if *k >= model.layers {
                let last = model.layers - 1;
                errors.push(Error::new(format!(
                    "`adapter.layers_to_transform` contains {k}, but the model only has layers 0 \
                        to {last}"
                )));
            } else if !with_targets.contains(k) && !everywhere.is_empty() {
                let listed =
                    with_targets.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
                let message = format!(
                    "`adapter.layers_to_transform` contains {k}, but `adapter.target_modules` \
                        matches no module in that layer"
                );
                errors.push(Error::new(message).hint(format!(
                    "`adapter.target_modules` matches modules in these layers: {listed}"
                )));
            }
        }
        if layers.is_empty() {
            let message = "`adapter.layers_to_transform` is empty, so no layer would be adapted";
            errors.push(Error::new(message).hint("set it to `none` to adapt every layer"));
        } else if let Targets::Suffixes(list) = &targets {
            let only_elsewhere =
                |s: &&String| everywhere.iter().any(|l| l.is(s)) && !hits.iter().any(|l| l.is(s));
            let message = |s| {
                format!(
                    "`{s}` in `adapter.target_modules` matches no module in the layers that \
                        `adapter.layers_to_transform` selects"
                )
            };
            errors.extend(list.iter().filter(only_elsewhere).map(|s| Error::new(message(s))));
        }
    }
    let left = selected(adapter, model)?;
    if left.is_empty() && !hits.is_empty() {
        errors.push(Error::new(
            "`adapter.exclude_modules` excludes every module that `adapter.target_modules` selects",
        ));
    }
    let hits = left;
    if !hits.is_empty() {
        for selection in adapter.selections() {
            errors.extend(selection.unmatched(&hits, model)?);
        }
    }
    Ok(errors)
}

/// The modules and parts of modules that `adapter` changes, in the model's order.
///
/// # Errors
/// Fails if a pattern is not a regular expression, or if both a whole module and a part of it are
/// targeted.
pub fn selected<'m>(adapter: &dyn Adapter, model: &'m ModelInfo) -> Result<Vec<&'m LinearInfo>> {
    let excluded = adapter.exclude_modules();
    let excludes = excluded.excluder()?;
    let mut hits = adapter.targets().select(model, adapter.layers_to_transform().as_deref())?;
    hits.retain(|l| !excludes(&l.name));
    Ok(hits)
}

/// Returns the modules and parts to which an adapter that is made of `sources` is attached, in the
/// model's order. Each source has the name of its configuration field.
///
/// # Errors
/// Fails if a source changes the output of a block, if the sources change both a module and a part
/// of it, or if the adapter targets a module that no source changes.
fn made_of<'m>(
    adapter: &dyn Adapter,
    sources: &[(&str, &Option<Adapted>)],
    model: &'m ModelInfo,
) -> Result<Vec<&'m LinearInfo>> {
    let given = || sources.iter().filter_map(|(field, source)| Some((*field, source.as_ref()?)));
    let listed = || {
        let fields: Vec<_> = given().map(|(field, _)| format!("`adapter.{field}`")).collect();
        let adapters = if fields.len() == 1 { "the adapter" } else { "the adapters" };
        format!("{adapters} in {}", fields.join(" and "))
    };
    if let Some((field, k)) = given().find_map(|(field, s)| Some((field, s.blocks().next()?))) {
        return Err(Error::new(format!(
            "the adapter in `adapter.{field}` changes the output of block {k}, but only adapters \
                of linear modules can be combined"
        ))
        .hint("choose a run whose adapter can be merged into the weights"));
    }
    let changes = |name: &str| given().find(|(_, s)| s.get(name).is_some());
    for part in &model.parts {
        let name = &part.linear.name;
        if let (Some((a, _)), Some((b, _))) = (changes(name), changes(&part.holder)) {
            return Err(Error::new(format!(
                "`adapter.{a}` changes `{name}`, a part of the module `{}`, but `adapter.{b}` \
                    changes the whole module",
                part.holder
            ))
            .hint("train both adapters with the same `adapter.target_modules`"));
        }
    }
    if let Some((field, name)) =
        given().find_map(|(f, s)| Some((f, s.replacements().names().next()?)))
    {
        return Err(Error::new(format!(
            "the adapter in `adapter.{field}` replaces `{name}`, a tensor of the base model, but \
                only changes of linear modules can be combined"
        ))
        .hint("choose an adapter that was saved without such tensors"));
    }
    let layers = adapter.layers_to_transform();
    if let Targets::Suffixes(list) = adapter.targets()
        && list.is_empty()
    {
        let within = |l: &LinearInfo| match (l.layer, &layers) {
            (Some(k), Some(layers)) => layers.contains(&k),
            _ => true,
        };
        let parts = |module: &'m LinearInfo| {
            model.parts.iter().filter(|p| p.holder == module.name).map(|p| &p.linear)
        };
        let all = model.linears.iter().flat_map(|l| std::iter::once(l).chain(parts(l)));
        let changed: Vec<_> = all.filter(|l| within(l) && changes(&l.name).is_some()).collect();
        if changed.is_empty() {
            return Err(Error::new(format!(
                "the new adapter would change no module, because {} changed none in the selected \
                    layers",
                listed()
            ))
            .hint("leave out `adapter.layers_to_transform`, or choose other adapters"));
        }
        return Ok(changed);
    }
    let targets = selected(adapter, model)?;
    if let Some(other) = targets.iter().find(|l| changes(&l.name).is_none()) {
        return Err(Error::new(format!(
            "`adapter.target_modules` selects `{}`, which was not changed by {}",
            other.name,
            listed()
        ))
        .hint("leave out `adapter.target_modules` to select every changed module"));
    }
    Ok(targets)
}

impl Adapted {
    /// Attaches `adapter` to its targets among the first `blocks` blocks. Later blocks do not run,
    /// so their adapters would not receive gradients.
    ///
    /// # Errors
    /// Fails if an entry of the adapter's configuration matches no module or layer, or if the
    /// adapter does not fit a module.
    pub fn attach(adapter: &dyn Adapter, model: &Model, blocks: usize, seed: u64) -> Result<Self> {
        match unmatched(adapter, model.info())?.into_iter().next() {
            Some(e) => Err(e),
            None => Self::attach_saved(adapter, model, blocks, seed),
        }
    }

    /// Attaches a saved adapter. Unlike [`attach`](Self::attach), ignores configuration entries
    /// that match no module or layer, as PEFT does. [`unmatched`] returns these entries.
    ///
    /// # Errors
    /// Fails if there is no module or block to adapt, or if the adapter does not fit a module.
    pub fn attach_saved(
        adapter: &dyn Adapter,
        model: &Model,
        blocks: usize,
        seed: u64,
    ) -> Result<Self> {
        Self::attach_with(adapter, model, blocks, seed, Replacements::default())
    }

    /// Attaches a saved adapter as [`attach_saved`](Self::attach_saved) does, with tensors that are
    /// replaced while it is on. A module whose weight is replaced does not get an adapter.
    ///
    /// # Errors
    /// Fails in the same cases as [`attach_saved`](Self::attach_saved).
    pub fn attach_with(
        adapter: &dyn Adapter,
        model: &Model,
        blocks: usize,
        seed: u64,
        replacements: Replacements,
    ) -> Result<Self> {
        let targets = selected(adapter, model.info())?;
        Self::attach_to(targets, adapter, &[], model, blocks, seed, replacements)
    }

    /// Attaches a new adapter that is made of other adapters. `sources` has one entry for each of
    /// the [`sources`](Adapter::sources) of `adapter`, attached to `model`, or `None` if it is not
    /// set.
    ///
    /// # Errors
    /// Fails if a source changes the output of a block, if the adapter targets a module that no
    /// source changes, and in the same cases as [`attach`](Self::attach).
    pub fn attach_made_of(
        adapter: &dyn Adapter,
        sources: &[Option<Self>],
        model: &Model,
        blocks: usize,
        seed: u64,
    ) -> Result<Self> {
        if let Some(e) = unmatched(adapter, model.info())?.into_iter().next() {
            return Err(e);
        }
        let fields: Vec<String> = adapter.sources().into_iter().map(|s| s.field).collect();
        let of_field: Vec<_> = fields.iter().map(String::as_str).zip(sources).collect();
        let targets = made_of(adapter, &of_field, model.info())?;
        Self::attach_to(targets, adapter, sources, model, blocks, seed, Replacements::default())
    }

    /// Attaches `adapter` to those of `targets` that are in the first `blocks` blocks.
    fn attach_to(
        targets: Vec<&LinearInfo>,
        adapter: &dyn Adapter,
        sources: &[Option<Self>],
        model: &Model,
        blocks: usize,
        seed: u64,
        replacements: Replacements,
    ) -> Result<Self> {
        let kind = if model.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        let init = |scope: &str| Init::new(seed, scope, kind, model.device());
        let info = model.info();
        let none = targets.is_empty();
        let targets: Vec<_> =
            targets.into_iter().filter(|l| l.layer.is_none_or(|k| k < blocks)).collect();
        let replaced =
            |l: &&LinearInfo| replacements.module(&l.name).is_some_and(|m| m.weight.is_some());
        let targets: Vec<_> = targets.into_iter().filter(|l| !replaced(l)).collect();
        let shared = adapter.shared(&targets, &mut init(""))?;
        let mut modules = IndexMap::new();
        for info in targets {
            let of_module: Vec<Option<&dyn AdaptedLinear>> =
                sources.iter().map(|source| source.as_ref()?.get(&info.name)).collect();
            let site = LinearSite {
                info,
                frozen: &model.frozen(&info.name)?,
                shared: &shared,
                sources: &of_module,
            };
            let adapted = adapter
                .attach(&site, &mut init(&info.name))
                .within(|| format!("cannot attach the adapter to `{}`", info.name))?;
            modules.insert(info.name.clone(), Rc::from(adapted));
        }
        let mut changed = IndexMap::new();
        for k in adapter.blocks(info)?.into_iter().filter(|k| *k < blocks) {
            let adapted = adapter
                .attach_block(k, info, &mut init(&Site::Block(k).to_string()))
                .within(|| format!("cannot attach the adapter to block {k}"))?;
            changed.insert(k, Rc::from(adapted));
        }
        if modules.is_empty() && changed.is_empty() && replacements.is_empty() {
            if none && let Some(e) = unmatched(adapter, model.info())?.into_iter().next() {
                return Err(e);
            }
            return Err(Error::new(format!(
                "the adapter has no target in the first {blocks} blocks, \
                which are the only blocks that this run computes"
            ))
            .hint(
                "move the taps to later layers, or add earlier modules to \
                    `adapter.target_modules`",
            ));
        }
        Ok(Self {
            modules,
            blocks: changed,
            shared,
            edits: Edits::default(),
            coefficient: 1.0,
            replacements: Rc::new(replacements),
        })
    }

    /// Merges each adapter into the frozen weights of its module. Returns the names and merged
    /// weights of these modules. If only parts of a fused module are adapted, the weights of the
    /// whole module are returned.
    ///
    /// # Errors
    /// Fails if the adapter cannot be expressed as frozen weights.
    pub fn merged(&self, model: &Model) -> Result<Vec<(String, Frozen)>> {
        let frozen = |name: &str| -> Result<Frozen> {
            let own = model.frozen(name)?;
            Ok(self.replacements.linear(name, &own).unwrap_or(own))
        };
        let mut merged = IndexMap::new();
        let linears = model.info().linears.iter().map(|l| &l.name);
        for name in linears.filter(|name| self.replacements.module(name).is_some()) {
            merged.insert(name.clone(), frozen(name)?.copied()?);
        }
        for (name, adapted) in &self.modules {
            let own = match model.info().part(name) {
                Some(part) => frozen(&part.holder)?.part(part.rows)?,
                None => frozen(name)?,
            };
            let frozen = self.merge(&**adapted, &own)?;
            match model.info().part(name) {
                None => {
                    merged.insert(name.clone(), frozen);
                }
                Some(part) => {
                    let whole = match merged.entry(part.holder.clone()) {
                        Entry::Occupied(entry) => entry.into_mut(),
                        Entry::Vacant(entry) => entry.insert(model.frozen(&part.holder)?.copied()?),
                    };
                    whole.put(part.rows, &frozen)?;
                }
            }
        }
        Ok(merged.into_iter().collect())
    }

    /// Converts the adapters to the form in which they are saved. Returns an adapter with the
    /// configuration of this form, and the attached adapters. Returns `None` if the adapters are
    /// saved as they are.
    ///
    /// # Errors
    /// Fails if the `saved_form` of the adapter of a module fails.
    pub fn saved_form(&self, adapter: &dyn Adapter) -> Result<Option<(Box<dyn Adapter>, Self)>> {
        let Some(saved) = adapter.saved_form() else { return Ok(None) };
        let modules = self
            .modules
            .iter()
            .map(|(name, module)| {
                Ok((name.clone(), module.saved_form()?.map_or_else(|| module.clone(), Rc::from)))
            })
            .collect::<Result<_>>()?;
        Ok(Some((saved, self.with_modules(modules))))
    }

    /// The same adapter with other modules.
    fn with_modules(&self, modules: IndexMap<String, Rc<dyn AdaptedLinear>>) -> Self {
        Self {
            modules,
            blocks: self.blocks.clone(),
            shared: self.shared(),
            edits: self.edits.shallow_clone(),
            coefficient: self.coefficient,
            replacements: self.replacements.clone(),
        }
    }

    /// Converts adapters on parts of fused modules to adapters on the whole modules. Returns an
    /// adapter whose configuration names the whole modules, and the attached adapters. Returns
    /// `None` if no parts are adapted, or if the method does not support the conversion.
    ///
    /// # Errors
    /// Fails if the adapter's `fuse` fails.
    pub fn fused(
        &self,
        adapter: &dyn Adapter,
        model: &Model,
    ) -> Result<Option<(Box<dyn Adapter>, Self)>> {
        let mut by_holder = IndexMap::<&str, Vec<AdaptedPart<'_>>>::new();
        for info in self.parts(model.info()) {
            let parameters =
                self.get(&info.linear.name).map(AdaptedLinear::parameters).unwrap_or_default();
            by_holder.entry(&info.holder).or_default().push(AdaptedPart { info, parameters });
        }
        let frozen =
            by_holder.keys().map(|holder| model.frozen(holder)).collect::<Result<Vec<_>>>()?;
        let site = |((holder, parts), frozen)| -> Result<_> {
            Ok(FusedSite {
                module: LinearSite {
                    info: model.info().linear(holder)?,
                    frozen,
                    shared: &self.shared,
                    sources: &[],
                },
                parts,
            })
        };
        let sites = by_holder.into_iter().zip(&frozen).map(site).collect::<Result<Vec<_>>>()?;
        let fused = if sites.is_empty() { None } else { adapter.fuse(&sites)? };
        let Some(Fused { adapter, modules: wholes }) = fused else { return Ok(None) };
        if wholes.len() != sites.len() {
            return Err(Error::internal(format!(
                "the adapter's `fuse` returned {} adapters for {} modules",
                wholes.len(),
                sites.len()
            )));
        }
        let mut wholes: HashMap<&str, Rc<dyn AdaptedLinear>> = sites
            .iter()
            .map(|s| s.module.info.name.as_str())
            .zip(wholes.into_iter().map(Rc::from))
            .collect();
        let of = |l: &LinearInfo| {
            Some((
                l.name.clone(),
                wholes.remove(l.name.as_str()).or_else(|| self.modules.get(&l.name).cloned())?,
            ))
        };
        let modules = model.info().linears.iter().filter_map(of).collect();
        Ok(Some((adapter, self.with_modules(modules))))
    }
}
