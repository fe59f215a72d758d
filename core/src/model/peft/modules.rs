//! Reads the tensors of the base model that PEFT saves in the file of an adapter: full modules,
//! biases, and rows of the embedding. Adapters of the embedding and of the head are read here too,
//! and are merged into these matrices.

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use super::super::replacements::Replacements;
use crate::api::{AdaptedLinear, Adapter, Frozen, Init, LinearInfo, LinearSite, PeftConfig};
use crate::error::{Context, Error, Result};
use crate::model::Model;

/// The end of the name of trained rows of a matrix.
const TOKENS: &str = ".token_adapter.trainable_tokens_delta";
/// The suffix that PEFT adds to the name of a module with an adapter.
const BASE_LAYER: &str = ".base_layer";

/// The fields of `adapter_config.json` about tensors of the base model, and about the selection of
/// modules that a plugin does not read itself.
#[derive(Clone, Debug, Default)]
pub struct SavedModules {
    /// Ends of the names of modules whose tensors are in the file.
    modules_to_save: Vec<String>,
    /// The rows of the embedding or the head that are in the file.
    tokens: Option<Tokens>,
    /// True if the embedding and the head keep the same values.
    ensure_weight_tying: bool,
    /// Ends of the names of linear modules whose weight is named in `target_parameters`.
    parameters: Vec<String>,
    /// The fields that must be written again with the tensors.
    fields: Map<String, Value>,
}

/// The value of `trainable_token_indices`.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Tokens {
    /// Rows of the embedding.
    OfEmbedding(Vec<i64>),
    /// Rows of the modules whose names have these ends.
    OfModules(IndexMap<String, Vec<i64>>),
}

impl SavedModules {
    /// Reads the fields of an `adapter_config.json`.
    ///
    /// # Errors
    /// Fails if a field has an unknown value.
    pub fn read(peft: &PeftConfig) -> Result<Self> {
        let bias: Option<String> = peft.get("bias")?;
        let bias = bias.filter(|bias| bias != "none");
        if let Some(other) = bias.as_ref().filter(|b| *b != "all" && !b.ends_with("_only")) {
            return Err(Error::new(format!("unknown value `{other}` for `bias`"))
                .hint("valid: none, all, or the name of the method with `_only`"));
        }
        let modules_to_save: Vec<String> = peft.get("modules_to_save")?.unwrap_or_default();
        let tokens: Option<Tokens> = peft.get("trainable_token_indices")?;
        let ensure_weight_tying = peft.get("ensure_weight_tying")?.unwrap_or(false);
        let mut fields = Map::new();
        fields.extend(bias.map(|bias| ("bias".to_owned(), json!(bias))));
        if !modules_to_save.is_empty() {
            fields.insert("modules_to_save".to_owned(), json!(modules_to_save));
        }
        if tokens.is_some() {
            let indices: Option<Value> = peft.get("trainable_token_indices")?;
            fields.insert("trainable_token_indices".to_owned(), json!(indices));
        }
        if ensure_weight_tying {
            fields.insert("ensure_weight_tying".to_owned(), json!(true));
        }
        let parameters = parameter_targets(peft)?;
        Ok(Self { modules_to_save, tokens, ensure_weight_tying, parameters, fields })
    }

    /// The fields that change what the adapter computes, for its fingerprint. Empty for an adapter
    /// whose file only has the tensors of the method.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// Divides the tensors of a file into those of the method, and those that replace tensors of
    /// `model`. Warnings for the user are added to `warnings`.
    ///
    /// # Errors
    /// Fails if a tensor of a saved module is missing or does not fit the model, or if the adapter
    /// of the embedding or of the head cannot be attached or merged.
    pub fn divide(
        &self,
        values: &IndexMap<String, Tensor>,
        adapter: &dyn Adapter,
        model: &Model,
    ) -> Result<(IndexMap<String, Tensor>, Replacements)> {
        let _guard = tch::no_grad_guard();
        self.check_parameters(model)?;
        let mut divided = Divided::new(model);
        for (key, value) in values {
            divided.take(key, value)?;
        }
        self.check_saved(&divided, model)?;
        divided.merge_adapters(adapter)?;
        if let Some(tokens) = &self.tokens {
            divided.set_rows(tokens)?;
        } else if let Some((name, _)) = divided.rows.first() {
            return Err(Error::new(format!(
                "the file contains `{name}{TOKENS}`, but `trainable_token_indices` is not set"
            )));
        }
        if self.ensure_weight_tying && model.is_tied() {
            divided.tie()?;
        }
        divided.drop_equal()?;
        let Divided { own, mut replaced, .. } = divided;
        if !replaced.file.is_empty() {
            replaced.fields = self.fields.clone();
        }
        Ok((own, replaced))
    }

    /// Returns a warning for each entry of `modules_to_save` that is not a module of `model`.
    pub fn warnings(&self, model: &Model) -> Vec<String> {
        let unknown = |entry: &&String| {
            let entry = [in_model(entry, model)];
            !tensors_of(model).any(|(name, _)| is_saved(&name, &entry))
        };
        let warning = |entry: &String| {
            format!(
                "`modules_to_save` lists `{entry}`, which is not a module of the model; it is \
                    ignored, as in PEFT"
            )
        };
        self.modules_to_save.iter().filter(unknown).map(warning).collect()
    }

    /// Fails if a tensor of a module in `modules_to_save` is not in the file.
    fn check_saved(&self, divided: &Divided<'_>, model: &Model) -> Result<()> {
        let entries: Vec<String> =
            self.modules_to_save.iter().map(|entry| in_model(entry, model)).collect();
        for (name, _) in tensors_of(model).filter(|(name, _)| is_saved(name, &entries)) {
            let tied = model.is_tied() && self.ensure_weight_tying;
            let [embedding, head] = model.vocabulary_modules();
            let of_vocabulary =
                |module: &String| name.strip_suffix(".weight") == Some(module.as_str());
            if divided.has(&name) || (tied && (of_vocabulary(embedding) || of_vocabulary(head))) {
                continue;
            }
            return Err(Error::new(format!(
                "`modules_to_save` selects `{name}`, but the file does not contain it"
            )));
        }
        Ok(())
    }

    /// Fails if `target_parameters` names the weight of a `Conv1D`, whose adapter has another form.
    fn check_parameters(&self, model: &Model) -> Result<()> {
        let ends = |name: &str, end: &str| {
            name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        let conv1d = model.info().linears.iter().find(|l| {
            model.is_conv1d(&l.name) && self.parameters.iter().any(|end| ends(&l.name, end))
        });
        match conv1d {
            Some(l) => Err(Error::new(format!(
                "`target_parameters` names the weight of `{}`, a `Conv1D`, which is not supported",
                l.name
            ))),
            None => Ok(()),
        }
    }
}

/// Returns the ends of the names of the modules whose weights `target_parameters` names.
///
/// PEFT computes the same for such a module as if `target_modules` named it.
///
/// # Errors
/// Fails if an entry does not name the weight of a linear module, or if another field would be read
/// differently for parameters.
fn parameter_targets(peft: &PeftConfig) -> Result<Vec<String>> {
    let parameters: Vec<String> = peft.get("target_parameters")?.unwrap_or_default();
    if parameters.is_empty() {
        return Ok(Vec::new());
    }
    for field in ["layers_to_transform", "exclude_modules", "rank_pattern", "alpha_pattern"] {
        peft.must_be_off(&[field]).map_err(|e| {
            e.hint(format!("`{field}` is not supported together with `target_parameters`"))
        })?;
    }
    let module = |name: &String| {
        name.strip_suffix(".weight").map(str::to_owned).ok_or_else(|| {
            Error::new(format!("`target_parameters` contains `{name}`, which is not supported"))
                .hint(
                    "only the weights of linear modules are, e.g. `mlp.up_proj.weight`; other \
                        parameters belong to mixtures of experts, which reprpo does not compute",
                )
        })
    };
    parameters.iter().map(module).collect()
}

/// Returns the text of an `adapter_config.json` in which `target_modules` also selects the modules
/// whose weights `target_parameters` names.
///
/// # Errors
/// Fails in the same cases as [`SavedModules::read`].
pub fn with_parameter_targets(text: &str) -> Result<String> {
    let peft = PeftConfig::parse(text)?;
    let parameters = parameter_targets(&peft)?;
    if parameters.is_empty() {
        return Ok(text.to_owned());
    }
    let targets = match peft.get::<Value>("target_modules")? {
        None => json!(parameters),
        Some(Value::Array(mut list)) => {
            list.extend(parameters.iter().map(|name| json!(name)));
            Value::Array(list)
        }
        Some(other) => {
            return Err(Error::new(format!(
                "`target_modules` must be a list together with `target_parameters`, got `{other}`"
            )));
        }
    };
    let mut config: Map<String, Value> =
        serde_json::from_str(text).map_err(|e| Error::internal(e.to_string()))?;
    config.insert("target_modules".to_owned(), targets);
    Ok(Value::Object(config).to_string())
}

/// The names and shapes of the tensors of `model`, including those of a tied head.
fn tensors_of(model: &Model) -> impl Iterator<Item = (String, Vec<i64>)> {
    let info = model.info();
    let vocabulary = model
        .vocabulary_modules()
        .iter()
        .map(move |module| (format!("{module}.weight"), vec![info.vocab, info.hidden]));
    let others = model.shapes().iter().map(|(name, shape)| (name.clone(), shape.clone()));
    let all: IndexMap<String, Vec<i64>> = others.chain(vocabulary).collect();
    all.into_iter()
}

/// The model's name of a module in a file of PEFT. GPT-NeoX's head has two names in transformers.
fn in_model(name: &str, model: &Model) -> String {
    match name {
        "lm_head" | "embed_out" => model.vocabulary_modules()[1].clone(),
        other => other.to_owned(),
    }
}

/// True if the tensor `name` belongs to a module that `modules_to_save` selects. As in PEFT, an
/// entry selects each module whose path ends with it, also within a word.
fn is_saved(name: &str, modules_to_save: &[String]) -> bool {
    let mut paths = name.match_indices('.').map(|(end, _)| &name[..end]);
    paths.any(|path| modules_to_save.iter().any(|entry| path.ends_with(entry.as_str())))
}

/// The tensors of a file while they are divided.
struct Divided<'a> {
    model: &'a Model,
    shapes: IndexMap<String, Vec<i64>>,
    /// The tensors of the method.
    own: IndexMap<String, Tensor>,
    /// The tensors of the method on the embedding or the head, by module and key.
    of_vocabulary: IndexMap<String, IndexMap<String, Tensor>>,
    /// Trained rows of the embedding or the head.
    rows: Vec<(String, Tensor)>,
    /// Replaced tensors that PEFT saves because the module has an adapter.
    base_layers: Vec<String>,
    replaced: Replacements,
}

impl<'a> Divided<'a> {
    fn new(model: &'a Model) -> Self {
        Self {
            model,
            shapes: tensors_of(model).collect(),
            own: IndexMap::new(),
            of_vocabulary: IndexMap::new(),
            rows: Vec::new(),
            base_layers: Vec::new(),
            replaced: Replacements::default(),
        }
    }

    /// True if the tensor `name` of the model is in the file.
    fn has(&self, name: &str) -> bool {
        let Some((module, tensor)) = name.rsplit_once('.') else { return false };
        self.replaced.module(module).is_some_and(|module| match tensor {
            "weight" => module.weight.is_some(),
            _ => module.bias.is_some(),
        })
    }

    /// Adds a tensor of the file.
    fn take(&mut self, key: &str, value: &Tensor) -> Result<()> {
        let value = value.shallow_clone();
        if let Some(module) = key.strip_suffix(TOKENS) {
            self.rows.push((in_model(module, self.model), value.shallow_clone()));
            self.replaced.file.push((key.to_owned(), value));
            return Ok(());
        }
        if let Some((stem, tensor)) = key.rsplit_once('.')
            && matches!(tensor, "weight" | "bias")
        {
            let inner = stem.strip_suffix(BASE_LAYER);
            let module = in_model(inner.unwrap_or(stem), self.model);
            let name = format!("{module}.{tensor}");
            if let Some(shape) = self.shapes.get(&name) {
                if value.size() != *shape {
                    let e = Error::new(format!(
                        "`{key}` has the shape {:?} in the file, but the model needs {shape:?}",
                        value.size()
                    ));
                    return Err(if self.model.vocabulary_modules().contains(&module) {
                        e.hint("a vocabulary that was resized is not supported")
                    } else {
                        e
                    });
                }
                if inner.is_some() && tensor == "weight" {
                    self.base_layers.push(module.clone());
                }
                self.replace(&module, tensor, &value)?;
                self.replaced.file.push((key.to_owned(), value));
                return Ok(());
            }
        }
        let [embedding, head] = self.model.vocabulary_modules();
        for (name, module) in
            [(embedding.as_str(), embedding), ("lm_head", head), ("embed_out", head)]
        {
            if let Some(own) = key.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')) {
                let tensors = self.of_vocabulary.entry(module.clone()).or_default();
                tensors.insert(own.to_owned(), value.shallow_clone());
                self.replaced.file.push((key.to_owned(), value));
                return Ok(());
            }
        }
        self.own.insert(key.to_owned(), value);
        Ok(())
    }

    /// Sets a replaced tensor to a value in the form of a checkpoint.
    fn replace(&mut self, module: &str, tensor: &str, value: &Tensor) -> Result<()> {
        let value = value.f_to_device(self.model.device())?.f_to_kind(self.model.kind())?;
        let entry = self.replaced.modules.entry(module.to_owned()).or_default();
        match tensor {
            "weight" if self.model.is_conv1d(module) => {
                entry.weight = Some(value.f_tr()?.f_contiguous()?);
            }
            "weight" => entry.weight = Some(value),
            _ => entry.bias = Some(value),
        }
        Ok(())
    }

    /// The matrix of the embedding or the head, with the values of the file if it has some.
    fn matrix(&self, module: &str) -> Result<Tensor> {
        let replaced = self.replaced.module(module).and_then(|module| module.weight.as_ref());
        if let Some(weight) = replaced {
            return Ok(weight.shallow_clone());
        }
        let [embedding, head] = self.model.embeddings()?;
        Ok(if *module == self.model.vocabulary_modules()[0] { embedding } else { head })
    }

    /// Merges the adapters of the embedding and of the head into their matrices.
    fn merge_adapters(&mut self, adapter: &dyn Adapter) -> Result<()> {
        for (module, tensors) in std::mem::take(&mut self.of_vocabulary) {
            let within = || format!("cannot use the adapter of `{module}`");
            let is_embedding = module == self.model.vocabulary_modules()[0];
            let matrix = self.matrix(&module)?;
            // An embedding is a linear module whose input is 1 at the place of the token.
            let matrix = if is_embedding { matrix.f_tr()? } else { matrix };
            let frozen = Frozen::new(matrix, None);
            let info = LinearInfo {
                name: module.clone(),
                layer: None,
                inputs: frozen.inputs(),
                outputs: frozen.outputs(),
            };
            let double = self.model.kind() == Kind::Double;
            let kind = if double { Kind::Double } else { Kind::Float };
            let mut init = Init::new(0, &module, kind, self.model.device());
            let site = LinearSite { info: &info, frozen: &frozen, shared: &[], sources: &[] };
            let attached = if is_embedding {
                adapter.attach_embedding(&site, &mut init)
            } else {
                adapter.attach(&site, &mut init)
            };
            let attached = attached.within(within)?;
            set(&*attached, tensors).within(within)?;
            let weight = attached.merge(&frozen).within(within)?.dense()?;
            let weight = if is_embedding { weight.f_tr()?.f_contiguous()? } else { weight };
            self.replaced.modules.entry(module.clone()).or_default().weight = Some(weight);
            self.base_layers.retain(|name| *name != module);
            self.replaced.targets.push(module);
        }
        Ok(())
    }

    /// Sets the trained rows of the embedding and of the head.
    fn set_rows(&mut self, tokens: &Tokens) -> Result<()> {
        let [embedding, head] = self.model.vocabulary_modules().clone();
        let indices: Vec<(String, &Vec<i64>)> = match tokens {
            Tokens::OfEmbedding(indices) => vec![(embedding.clone(), indices)],
            Tokens::OfModules(modules) => {
                let found = |(end, indices): (&'_ String, _)| {
                    let end = in_model(end, self.model);
                    let module = [&embedding, &head].into_iter().find(|m| m.ends_with(&end));
                    module.map(|module| (module.clone(), indices)).ok_or_else(|| {
                        Error::new(format!(
                            "`trainable_token_indices` names `{end}`, which is neither the \
                                embedding nor the head of the model"
                        ))
                        .hint(format!("valid: {embedding}, {head}"))
                    })
                };
                modules.iter().map(found).collect::<Result<_>>()?
            }
        };
        let tied = self.model.is_tied();
        if tied && indices.iter().any(|(module, _)| *module == head) {
            return Err(Error::new(format!(
                "`trainable_token_indices` names `{head}`, which is tied to `{embedding}`"
            ))
            .hint("only a list of tokens is supported for a model with tied embeddings"));
        }
        for (module, indices) in indices {
            let rows = self.rows.iter().find(|(name, _)| *name == module);
            let Some((_, rows)) = rows else {
                return Err(Error::new(format!("the file does not contain `{module}{TOKENS}`")));
            };
            let vocab = self.model.info().vocab;
            let expected = vec![indices.len() as i64, self.model.info().hidden];
            if rows.size() != expected || indices.iter().any(|i| !(0..vocab).contains(i)) {
                return Err(Error::new(format!(
                    "`{module}{TOKENS}` has the shape {:?}, but the model has {vocab} tokens of \
                        width {}, and `trainable_token_indices` has {} of them",
                    rows.size(),
                    self.model.info().hidden,
                    indices.len()
                )));
            }
            let (device, kind) = (self.model.device(), self.model.kind());
            let rows = rows.f_to_device(device)?.f_to_kind(kind)?;
            let at = Tensor::from_slice(indices).f_to_device(device)?;
            let both = tied && module == embedding;
            let weight = self.matrix(&module)?.f_index_copy(0, &at, &rows)?;
            if both {
                self.replaced.modules.entry(head.clone()).or_default().weight =
                    Some(weight.shallow_clone());
            }
            self.replaced.modules.entry(module).or_default().weight = Some(weight);
        }
        Ok(())
    }

    /// Gives the embedding and the head the same values, if only one of them is replaced.
    fn tie(&mut self) -> Result<()> {
        let [embedding, head] = self.model.vocabulary_modules();
        let weight = |module: &String| {
            let weight = self.replaced.module(module).and_then(|module| module.weight.as_ref());
            weight.map(Tensor::shallow_clone)
        };
        let (missing, weight) = match (weight(embedding), weight(head)) {
            (Some(weight), None) => (head, weight),
            (None, Some(weight)) => (embedding, weight),
            _ => return Ok(()),
        };
        if !self.replaced.targets.is_empty() {
            return Err(Error::new(
                "`ensure_weight_tying` is not supported for an adapter of the embedding, if the \
                    file does not contain that of the head",
            ));
        }
        self.replaced.modules.entry(missing.clone()).or_default().weight = Some(weight);
        Ok(())
    }

    /// Keeps the model's own matrix if the file only has a copy of it. PEFT saves such a copy next
    /// to an adapter of the embedding.
    fn drop_equal(&mut self) -> Result<()> {
        let vocabulary = self.model.vocabulary_modules();
        for module in std::mem::take(&mut self.base_layers) {
            let Some(place) = vocabulary.iter().position(|name| *name == module) else { continue };
            let Some(replaced) = self.replaced.modules.get_mut(&module) else { continue };
            if let Some(weight) = &replaced.weight
                && weight.f_equal(&self.model.embeddings()?[place])?
            {
                replaced.weight = None;
            }
        }
        self.replaced.modules.retain(|_, module| module.weight.is_some() || module.bias.is_some());
        Ok(())
    }
}

/// Sets the parameters of an adapter to the values of the file.
fn set(adapted: &dyn AdaptedLinear, mut values: IndexMap<String, Tensor>) -> Result<()> {
    for mut parameter in adapted.parameters() {
        let Some(value) = values.swap_remove(&parameter.key) else {
            return Err(Error::new(format!("the file does not contain its `{}`", parameter.key)));
        };
        if value.size() != parameter.tensor.size() {
            return Err(Error::new(format!(
                "`{}` has the shape {:?} in the file, but the model needs {:?}",
                parameter.key,
                value.size(),
                parameter.tensor.size()
            )));
        }
        parameter.tensor.f_copy_(&value)?;
    }
    if let Some(name) = values.keys().next() {
        return Err(Error::new(format!(
            "the file contains its `{name}`, which does not belong to the adapter"
        )));
    }
    adapted.validate()
}
