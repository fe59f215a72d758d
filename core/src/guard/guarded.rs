//! Wrappers around the objects that a method builds. They turn panics into errors that name the
//! method.
//!
//! A panic that unwinds out of a plugin library aborts the process. The library's own copy of this
//! code must therefore catch the panic. The constructors of registry entries are generic, so the
//! compiler puts the wrappers into the crate that defines the method. Built-in methods get the same
//! wrappers.

use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use tch::Tensor;

use super::{faults, host_link};
use crate::api::{
    AdaptedLinear, AdaptedResidual, Adapter, AdapterSource, BlockEdit, Dataset, Frozen, Fused,
    FusedSite, GradMap, Init, Intervention, LinearInfo, LinearSite, Loss, ModelInfo, Needs,
    OutputGrad, PairIter, PairStates, Pairs, Parameter, ParameterGrad, Pooling, PromptPlaces,
    RowIter, RunInfo, Selection, Site, SplitInfo, Statistics, StepInfo, Tap, TargetModules,
    Targets, TokenPooling, TokenStates, Transform,
};
use crate::error::{Error, Fault, Result};

/// Kind and name of a method, for error messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MethodId {
    /// Name of the kind, e.g. `intervention`.
    pub kind: &'static str,
    /// Name of the method.
    pub name: &'static str,
}

impl MethodId {
    /// Describes the method, e.g. ``intervention `twist` of `libtwist.so` ``.
    fn describe(self) -> String {
        let of = host_link::host().map_or_else(String::new, |host| format!(" of {}", host.label()));
        format!("{} `{}`{of}", self.kind, self.name)
    }
}

/// Runs `work`, which calls the method's function `doing`, and turns panics into errors. In a
/// plugin library, errors of `work` also get the name of the method.
///
/// # Errors
/// Fails if `work` fails or panics.
pub(crate) fn guard<T>(
    method: MethodId,
    doing: &str,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let error = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(e)) if host_link::host().is_none() => return Err(e),
        Ok(Err(e)) => e.within(format!("{} failed in `{doing}`", method.describe())),
        Err(payload) => {
            let error =
                Error::panicked(&format!("`{doing}` of {}", method.describe()), payload.as_ref());
            // The payload may panic again when it is dropped.
            std::mem::forget(payload);
            error
        }
    };
    // A panic in a plugin is not an internal error of this program.
    Err(if host_link::host().is_some() { error.blamed_on(Fault::Input) } else { error })
}

/// Runs a method function that cannot return an error. If the function panics, returns
/// `otherwise()` instead. The next [`faults::check`] then returns the panic as an error.
fn guard_or<T>(
    method: MethodId,
    doing: &str,
    otherwise: impl FnOnce() -> T,
    work: impl FnOnce() -> T,
) -> T {
    guard(method, doing, || Ok(work())).unwrap_or_else(|e| {
        faults::report(e);
        otherwise()
    })
}

/// An object that was built by a method. Every call to it goes through [`guard`].
pub(crate) struct Guarded<T: ?Sized> {
    method: MethodId,
    inner: ManuallyDrop<Box<T>>,
}

impl<T: ?Sized> Guarded<T> {
    pub fn new(method: MethodId, inner: Box<T>) -> Self {
        Self { method, inner: ManuallyDrop::new(inner) }
    }

    fn run<U>(&self, doing: &str, work: impl FnOnce(&T) -> Result<U>) -> Result<U> {
        guard(self.method, doing, || work(&self.inner))
    }

    fn run_mut<U>(&mut self, doing: &str, work: impl FnOnce(&mut T) -> Result<U>) -> Result<U> {
        guard(self.method, doing, || work(&mut self.inner))
    }

    fn run_or<U>(
        &self,
        doing: &str,
        otherwise: impl FnOnce() -> U,
        work: impl FnOnce(&T) -> U,
    ) -> U {
        guard_or(self.method, doing, otherwise, || work(&self.inner))
    }
}

impl<T: ?Sized> Drop for Guarded<T> {
    fn drop(&mut self) {
        // SAFETY: this is the only place that takes the value, and `drop` runs once.
        let inner = unsafe { ManuallyDrop::take(&mut self.inner) };
        guard_or(self.method, "drop", || (), || drop(inner));
    }
}

impl Intervention for Guarded<dyn Intervention> {
    fn needs(&self) -> Needs {
        self.run_or("needs", Needs::default, |i| i.needs())
    }

    fn tap(&self) -> Option<Box<dyn Tap>> {
        let tap = self.run_or("tap", || None, |i| i.tap())?;
        Some(Box::new(Guarded::new(self.method, tap)))
    }

    fn validate(&self, run: &RunInfo<'_>) -> Result<Vec<String>> {
        self.run("validate", |i| i.validate(run))
    }

    fn fit(&self, states: &PairStates) -> Result<Statistics> {
        self.run("fit", |i| i.fit(states))
    }

    fn set_statistics(&mut self, statistics: &Statistics) -> Result<()> {
        self.run_mut("set_statistics", |i| i.set_statistics(statistics))
    }

    fn edits(&self) -> Result<Vec<BlockEdit>> {
        self.run("edits", |i| i.edits())
    }

    fn preferences(&self, states: &PairStates) -> Result<Tensor> {
        self.run("preferences", |i| i.preferences(states))
    }

    fn loss(&mut self, pairs: &Pairs, step: StepInfo) -> Result<Loss> {
        self.run_mut("loss", |i| i.loss(pairs, step))
    }

    fn output_grad(&self, at: OutputGrad) -> Result<GradMap> {
        let mut map =
            Guarded::new(self.method, Box::new(self.run("output_grad", |i| i.output_grad(at))?));
        Ok(Box::new(move |grad| map.run_mut("output_grad", |map| map(grad))))
    }

    fn parameter_grad(&self, grad: &Tensor, at: ParameterGrad<'_>) -> Result<Tensor> {
        self.run("parameter_grad", |i| i.parameter_grad(grad, at))
    }
}

impl TargetModules for Guarded<dyn Adapter> {
    fn targets(&self) -> Targets {
        self.run_or("targets", Targets::default, |a| a.targets())
    }

    fn layers_to_transform(&self) -> Option<Vec<usize>> {
        self.run_or("layers_to_transform", || None, |a| a.layers_to_transform())
    }

    fn exclude_modules(&self) -> Targets {
        self.run_or("exclude_modules", Targets::default, |a| a.exclude_modules())
    }
}

impl Adapter for Guarded<dyn Adapter> {
    fn selections(&self) -> Vec<Selection> {
        self.run_or("selections", Vec::new, |a| a.selections())
    }

    fn sources(&self) -> Vec<AdapterSource> {
        self.run_or("sources", Vec::new, |a| a.sources())
    }

    fn is_trainable(&self) -> bool {
        self.run_or("is_trainable", || true, |a| a.is_trainable())
    }

    fn shared(&self, targets: &[&LinearInfo], init: &mut Init) -> Result<Vec<Parameter>> {
        self.run("shared", |a| a.shared(targets, init))
    }

    fn attach(&self, site: &LinearSite<'_>, init: &mut Init) -> Result<Box<dyn AdaptedLinear>> {
        Ok(Box::new(Guarded::new(self.method, self.run("attach", |a| a.attach(site, init))?)))
    }

    fn attach_embedding(
        &self,
        site: &LinearSite<'_>,
        init: &mut Init,
    ) -> Result<Box<dyn AdaptedLinear>> {
        let attached = self.run("attach_embedding", |a| a.attach_embedding(site, init))?;
        Ok(Box::new(Guarded::new(self.method, attached)))
    }

    fn blocks(&self, model: &ModelInfo) -> Result<Vec<usize>> {
        self.run("blocks", |a| a.blocks(model))
    }

    fn attach_block(
        &self,
        block: usize,
        model: &ModelInfo,
        init: &mut Init,
    ) -> Result<Box<dyn AdaptedResidual>> {
        Ok(Box::new(Guarded::new(
            self.method,
            self.run("attach_block", |a| a.attach_block(block, model, init))?,
        )))
    }

    fn peft_has_conv1d(&self) -> bool {
        self.run_or("peft_has_conv1d", || false, |a| a.peft_has_conv1d())
    }

    fn starts_as_identity(&self) -> bool {
        self.run_or("starts_as_identity", || true, |a| a.starts_as_identity())
    }

    fn accepts_coefficient(&self) -> Result<()> {
        self.run("accepts_coefficient", |a| a.accepts_coefficient())
    }

    fn saved_form(&self) -> Option<Box<dyn Adapter>> {
        let adapter = self.run_or("saved_form", || None, |a| a.saved_form())?;
        Some(Box::new(Guarded::new(self.method, adapter)))
    }

    fn fuse(&self, modules: &[FusedSite<'_>]) -> Result<Option<Fused>> {
        let Some(Fused { adapter, modules }) = self.run("fuse", |a| a.fuse(modules))? else {
            return Ok(None);
        };
        let modules = modules
            .into_iter()
            .map(|m| Box::new(Guarded::new(self.method, m)) as Box<dyn AdaptedLinear>)
            .collect();
        Ok(Some(Fused { adapter: Box::new(Guarded::new(self.method, adapter)), modules }))
    }

    fn peft_config(&self) -> String {
        self.run_or("peft_config", || "{}".to_owned(), |a| a.peft_config())
    }
}

impl AdaptedLinear for Guarded<dyn AdaptedLinear> {
    fn forward(&self, x: &Tensor, base: &Frozen, train: bool) -> Result<Tensor> {
        self.run("forward", |a| a.forward(x, base, train))
    }

    fn parameters(&self) -> Vec<Parameter> {
        self.run_or("parameters", Vec::new, |a| a.parameters())
    }

    fn validate(&self) -> Result<()> {
        self.run("validate", |a| a.validate())
    }

    fn saved_form(&self) -> Result<Option<Box<dyn AdaptedLinear>>> {
        let saved = self.run("saved_form", |a| a.saved_form())?;
        Ok(saved.map(|m| Box::new(Guarded::new(self.method, m)) as Box<dyn AdaptedLinear>))
    }

    fn merge(&self, base: &Frozen) -> Result<Frozen> {
        self.run("merge", |a| a.merge(base))
    }
}

impl AdaptedResidual for Guarded<dyn AdaptedResidual> {
    fn forward(&self, h: &Tensor, places: &PromptPlaces) -> Result<Tensor> {
        self.run("forward", |a| a.forward(h, places))
    }

    fn parameters(&self) -> Vec<Parameter> {
        self.run_or("parameters", Vec::new, |a| a.parameters())
    }
}

impl Transform for Guarded<dyn Transform> {
    fn forward(&self, h: &Tensor, around: &crate::api::Around) -> Result<Tensor> {
        self.run("forward", |t| t.forward(h, around))
    }

    fn parameters(&self) -> Vec<Parameter> {
        self.run_or("parameters", Vec::new, |t| t.parameters())
    }

    fn linear(&self) -> bool {
        self.run_or("linear", || false, |t| t.linear())
    }

    fn orthogonal(&self) -> bool {
        self.run_or("orthogonal", || false, |t| t.orthogonal())
    }
}

impl Tap for Guarded<dyn Tap> {
    fn sites(&self, model: &ModelInfo) -> Result<Vec<Site>> {
        self.run("sites", |t| t.sites(model))
    }

    fn pooling(&self) -> Pooling {
        self.run_or("pooling", Pooling::default, |t| t.pooling())
    }

    fn token_pooling(&self) -> Option<Box<dyn TokenPooling>> {
        let pooling = self.run_or("token_pooling", || None, |t| t.token_pooling())?;
        Some(Box::new(Guarded::new(self.method, pooling)))
    }
}

impl TokenPooling for Guarded<dyn TokenPooling> {
    fn pool(&self, tokens: &TokenStates) -> Result<Tensor> {
        self.run("pool", |p| p.pool(tokens))
    }
}

impl Dataset for Guarded<dyn Dataset> {
    fn splits(&self) -> Vec<SplitInfo> {
        self.run_or("splits", Vec::new, |d| d.splits())
    }

    fn pairs(&self, split: &str) -> Result<PairIter<'_>> {
        let pairs = guard(self.method, "pairs", || self.inner.pairs(split))?;
        Ok(Box::new(GuardedPairs { pairs: Guarded::new(self.method, pairs), ended: false }))
    }

    fn rows(&self, split: &str) -> Result<RowIter<'_>> {
        let pairs = guard(self.method, "rows", || self.inner.rows(split))?;
        Ok(Box::new(GuardedPairs { pairs: Guarded::new(self.method, pairs), ended: false }))
    }

    fn files(&self, split: &str) -> Vec<PathBuf> {
        self.run_or("files", Vec::new, |d| d.files(split))
    }

    fn pinned(&self) -> Option<String> {
        self.run_or("pinned", || None, |d| d.pinned())
    }
}

/// An iterator over a split's pairs. It ends after the first panic.
struct GuardedPairs<'a, T> {
    pairs: Guarded<dyn Iterator<Item = Result<T>> + 'a>,
    /// True after a panic.
    ended: bool,
}

impl<T> Iterator for GuardedPairs<'_, T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        match self.pairs.run_mut("pairs", |pairs| Ok(pairs.next())) {
            Ok(next) => next,
            Err(e) => {
                self.ended = true;
                Some(Err(e))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METHOD: MethodId = MethodId { kind: "intervention", name: "bad" };

    struct Bad;

    impl Intervention for Bad {
        fn needs(&self) -> Needs {
            panic!("no needs")
        }

        fn loss(&mut self, _: &Pairs, _: StepInfo) -> Result<Loss> {
            panic!("the loss is NaN\nC++ stack")
        }

        fn output_grad(&self, _: OutputGrad) -> Result<GradMap> {
            Ok(Box::new(|_| panic!("no map")))
        }
    }

    impl Drop for Bad {
        fn drop(&mut self) {
            panic!("no end");
        }
    }

    #[test]
    fn panics_in_all_functions_become_errors_that_name_the_method() {
        let mut method: Box<dyn Intervention> =
            Box::new(Guarded::<dyn Intervention>::new(METHOD, Box::new(Bad)));
        let e = method
            .loss(&Pairs::new(0, Vec::new(), None, None), StepInfo { step: 0, steps: 1, seed: 0 })
            .unwrap_err();
        assert_eq!(
            format!("{e:?}"),
            "`loss` of intervention `bad` panicked\n  because the loss is NaN"
        );
        let at = OutputGrad {
            site: Site::Residual(0),
            direction: Tensor::new(),
            owner: Tensor::new(),
            weight: 1.0,
            step: StepInfo { step: 0, steps: 1, seed: 0 },
        };
        let mut map = method.output_grad(at).unwrap();
        let e = map(&Tensor::new()).unwrap_err();
        assert!(format!("{e:?}").contains("no map"), "{e:?}");

        // `needs` cannot return an error. The next `check` reports its panic, and later checks do
        // not.
        assert_eq!(method.needs(), Needs::default());
        assert!(format!("{:?}", faults::check().unwrap_err()).contains("no needs"));
        drop(method);
        assert!(
            format!("{:?}", faults::check().unwrap_err())
                .contains("`drop` of intervention `bad` panicked")
        );
        assert!(faults::check().is_ok());
    }

    struct Endless;

    impl Dataset for Endless {
        fn splits(&self) -> Vec<SplitInfo> {
            Vec::new()
        }

        fn pairs(&self, _: &str) -> Result<PairIter<'_>> {
            Ok(Box::new(std::iter::from_fn(|| panic!("no pair"))))
        }
    }

    #[test]
    fn a_panic_ends_the_iteration_over_pairs() {
        let data = Guarded::<dyn Dataset>::new(
            MethodId { kind: "dataset", name: "bad" },
            Box::new(Endless),
        );
        let pairs: Vec<_> = data.pairs("train").unwrap().collect();
        assert!(matches!(&pairs[..], [Err(e)] if format!("{e:?}").contains("no pair")));
    }
}
