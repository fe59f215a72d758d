//! Activation checkpointing: a pass keeps only the input of each block, and the backward pass runs
//! each block again to get the tensors that its gradient needs (Chen et al. 2016, "Training deep
//! nets with sublinear memory cost").
//!
//! The pass detaches the residual stream and the recorded states after each block, so that the
//! graph of the block is dropped. The caller computes a loss from the detached tensors and runs its
//! backward pass, which stores a gradient in each of them. Then the blocks run again from the last
//! to the first, and pass these gradients on.
//!
//! Gradients are equal to those without checkpointing, bit for bit. This requires that libtorch
//! adds the terms of each gradient in the same order:
//!
//! - Everything that reads the residual stream before or inside a block is computed when the block
//!   runs again, in the same order.
//! - Equal outputs of a block share one detached tensor.
//! - A parameter belongs to one module only, see [`Adapted::shared_by_modules`].
//!
//! [`Adapted::shared_by_modules`]: super::Adapted::shared_by_modules

use tch::Tensor;

use super::layer_kind::View;
use crate::error::Result;

/// The values that a block computes: the residual stream after it, and the requested states.
#[derive(Debug)]
pub struct BlockRun {
    /// The residual stream after the block, `[n hidden]`.
    pub h: Tensor,
    /// The states at the requested sites, each with the index of its site.
    pub states: Vec<(usize, Tensor)>,
}

/// The blocks of a pass that must run again in the backward pass.
#[derive(Debug, Default)]
pub struct SavedBlocks {
    /// The blocks, in the order in which they ran.
    pub(super) blocks: Vec<SavedBlock>,
    /// The masks and rotary tables for each kind of layer.
    pub(super) views: Vec<View>,
}

/// A block of a pass, with its input and its detached outputs.
#[derive(Debug)]
pub struct SavedBlock {
    /// Index of the block.
    pub block: usize,
    /// The residual stream before the block. It is the detached output of the block before, or the
    /// embeddings.
    pub input: Tensor,
    /// The detached outputs.
    output: BlockRun,
}

impl SavedBlock {
    /// Detaches the outputs that block `block` computed from `input`. Returns them together with
    /// the saved block.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn detach(block: usize, input: &Tensor, run: &BlockRun) -> Result<(Self, BlockRun)> {
        let mut leaves = vec![(input, input.shallow_clone())];
        let mut leaf_of = |t| detached(t, &mut leaves);
        let h = leaf_of(&run.h)?;
        let states = run.states.iter().map(|(index, state)| Ok((*index, leaf_of(state)?)));
        let output = BlockRun { h, states: states.collect::<Result<_>>()? };
        let returned = output.shallow_clone();
        Ok((Self { block, input: input.shallow_clone(), output }, returned))
    }

    /// The gradient at the output, as far as it was computed by the backward pass of the loss;
    /// `None` if it was not.
    pub fn output_gradient(&self) -> Option<Tensor> {
        gradient(&self.output.h)
    }

    /// True if the loss depends on the states that the block recorded.
    pub fn has_state_gradients(&self) -> bool {
        self.output.states.iter().any(|(_, leaf)| gradient(leaf).is_some())
    }

    /// Pairs each output of `run` with its gradient. `run` is the same block, run again from
    /// `input`. `at_output` is the gradient of the residual stream after the block.
    pub fn roots(
        &self,
        run: &BlockRun,
        input: &Tensor,
        at_output: Option<Tensor>,
    ) -> Vec<(Tensor, Tensor)> {
        let mut roots: Vec<_> =
            at_output.into_iter().map(|gradient| (run.h.shallow_clone(), gradient)).collect();
        let from_input = gradient(&self.input).filter(|_| input.requires_grad());
        roots.extend(from_input.map(|gradient| (input.shallow_clone(), gradient)));
        let mut seen = vec![&self.input, &self.output.h];
        for ((_, leaf), (_, state)) in self.output.states.iter().zip(&run.states) {
            if let Some(gradient) = gradient(leaf)
                && !seen.iter().any(|other| is_same(other, leaf))
            {
                roots.push((state.shallow_clone(), gradient));
                seen.push(leaf);
            }
        }
        roots
    }
}

impl BlockRun {
    /// True if a gradient flows into any of the values.
    pub fn requires_grad(&self) -> bool {
        self.h.requires_grad() || self.states.iter().any(|(_, state)| state.requires_grad())
    }

    fn shallow_clone(&self) -> Self {
        let states = self.states.iter().map(|(index, t)| (*index, t.shallow_clone()));
        Self { h: self.h.shallow_clone(), states: states.collect() }
    }
}

/// Returns the detached form of `t`. `leaves` contains the tensors that were detached before, each
/// with its detached form. Tensors without a gradient are returned unchanged.
fn detached<'t>(t: &'t Tensor, leaves: &mut Vec<(&'t Tensor, Tensor)>) -> Result<Tensor> {
    if !t.requires_grad() {
        return Ok(t.shallow_clone());
    }
    if let Some((_, leaf)) = leaves.iter().find(|(of, _)| of.requires_grad() && is_same(of, t)) {
        return Ok(leaf.shallow_clone());
    }
    let leaf = t.f_detach()?.set_requires_grad(true);
    leaves.push((t, leaf.shallow_clone()));
    Ok(leaf)
}

/// True if two tensors have the same elements in memory.
fn is_same(a: &Tensor, b: &Tensor) -> bool {
    a.data_ptr() == b.data_ptr()
        && a.kind() == b.kind()
        && a.size() == b.size()
        && a.stride() == b.stride()
}

/// The gradient that is stored in a leaf, if there is one.
pub(super) fn gradient(leaf: &Tensor) -> Option<Tensor> {
    let gradient = leaf.grad();
    gradient.defined().then_some(gradient)
}
