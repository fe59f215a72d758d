//! Counts the floating-point operations of a micro-batch from the layout of its stream.
//!
//! Only necessary work is counted: products with frozen matrices, products of attention between
//! tokens that may attend to each other, and an estimate for the adapter. Norms, activations and
//! other operations on single values are not counted. Wasted work, such as masked products, is not
//! counted either. A product of `[n in]` and `[in out]` counts as 2·n·in·out operations.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use serde::Serialize;

use crate::api::Site;
use crate::batch::PairBatch;
use crate::error::Result;
use crate::model::pass::Request;
use crate::model::stream::{Layout, StreamBuilder};
use crate::model::{Adapted, Model};

/// The shape of a frozen matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Shape {
    /// Width of the input.
    pub inputs: i64,
    /// Width of the output.
    pub outputs: i64,
    /// True for the output head, which is only applied to the scored rows.
    pub head: bool,
}

/// Numbers of floating-point operations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Operations {
    /// Operations of the products with frozen matrices, by the shape of the matrix.
    pub products: BTreeMap<Shape, f64>,
    /// Operations of the products of queries and keys, and of attention weights and values.
    pub attention: f64,
    /// Estimated operations of the adapter. Each trained matrix counts as one product with all rows
    /// in the forward pass, and as two in the backward pass. Activation checkpointing adds one
    /// forward pass.
    pub adapter: f64,
}

impl Operations {
    /// Total number of operations.
    pub fn total(&self) -> f64 {
        self.products.values().sum::<f64>() + self.attention + self.adapter
    }
}

impl AddAssign<&Operations> for Operations {
    fn add_assign(&mut self, other: &Operations) {
        for (shape, operations) in &other.products {
            *self.products.entry(*shape).or_default() += operations;
        }
        self.attention += other.attention;
        self.adapter += other.adapter;
    }
}

/// The size of a micro-batch, and the operations of a step on it.
#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    /// Number of rows of the stream.
    pub rows: i64,
    /// Number of scored tokens.
    pub scored: i64,
    /// The operations of the reference and the policy, forward and backward.
    pub operations: Operations,
}

/// The modules whose input receives a gradient in a backward pass, and the blocks whose output
/// does. Modules and blocks below the first trained parameter receive no gradient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GradientPlan {
    inputs: Vec<bool>,
    blocks: Vec<bool>,
}

impl GradientPlan {
    /// Finds the modules with a forward pass over a single token.
    ///
    /// # Errors
    /// Fails if an adapter fails, or if memory runs out.
    pub fn new(model: &Model, adapted: &Adapted) -> Result<Self> {
        let mut token = StreamBuilder::default();
        token.push_prompt(&[0], None)?;
        let info = model.info();
        let inputs = info.linears.iter().map(|linear| Site::Input(linear.name.clone()));
        let sites: Vec<Site> = inputs.chain((0..info.layers).map(Site::Block)).collect();
        let request =
            Request { adapted: Some(adapted), sites: &sites, hidden: true, ..Request::default() };
        let states = model.forward(&token.finish(model.device())?, request)?.states;
        let mut inputs: Vec<bool> = states.iter().map(tch::Tensor::requires_grad).collect();
        let blocks = inputs.split_off(info.linears.len());
        Ok(Self { inputs, blocks })
    }
}

/// A count in progress.
pub(super) struct Count<'a> {
    model: &'a Model,
    layout: &'a Layout,
    rows: i64,
    operations: Operations,
}

impl<'a> Count<'a> {
    /// Starts the count of a batch.
    pub fn new(model: &'a Model, batch: &'a PairBatch) -> Self {
        let layout = &batch.stream.layout;
        Self { model, layout, rows: layout.tokens() as i64, operations: Operations::default() }
    }

    /// Adds a forward pass over the first `blocks` blocks.
    pub fn forward(&mut self, blocks: usize) {
        for linear in &self.model.info().linears {
            if linear.layer.is_some_and(|block| block < blocks) {
                self.product(linear.inputs, linear.outputs);
            }
        }
        self.operations.attention += blocks as f64 * self.attention();
    }

    /// Adds a second forward pass over those of the first `blocks` blocks whose output receives a
    /// gradient, for activation checkpointing.
    pub fn recomputation(&mut self, plan: &GradientPlan, blocks: usize) {
        let again = |block: usize| block < blocks && plan.blocks[block];
        for linear in &self.model.info().linears {
            if linear.layer.is_some_and(again) {
                self.product(linear.inputs, linear.outputs);
            }
        }
        let count = (0..blocks).filter(|block| again(*block)).count();
        self.operations.attention += count as f64 * self.attention();
    }

    /// Adds a backward pass through the frozen modules of the first `blocks` blocks. The gradient
    /// enters at the sites `ends`, or after the last block if `ends` is `None`.
    pub fn backward(&mut self, plan: &GradientPlan, blocks: usize, ends: Option<&[Site]>) {
        let info = self.model.info();
        let last = ends.map_or(info.linears.len(), |ends| self.end(ends, blocks));
        let mut attending = vec![false; blocks];
        for (linear, has_gradient) in info.linears.iter().zip(&plan.inputs).take(last) {
            if let Some(block) = linear.layer.filter(|block| *block < blocks && *has_gradient) {
                self.product(linear.inputs, linear.outputs);
                attending[block] = true;
            }
        }
        let attending = attending.into_iter().filter(|attending| *attending).count();
        // Attention has two products. Each has two variable factors, and so two gradients.
        self.operations.attention += 2.0 * attending as f64 * self.attention();
    }

    /// Number of modules in the first `blocks` blocks that a gradient from the sites `ends` can
    /// reach. These are the modules before the last site.
    fn end(&self, ends: &[Site], blocks: usize) -> usize {
        let info = self.model.info();
        let after = |site: &Site| {
            let module = |name: &str| {
                let holder = info.part(name).map_or(name, |part| &part.holder);
                info.linears.iter().position(|linear| linear.name == holder)
            };
            let before_block = |block: usize| {
                info.linears.iter().filter(|l| l.layer.is_some_and(|k| k < block)).count()
            };
            match site.whole() {
                Site::Input(name) => module(name),
                Site::Output(name) => module(name).map(|at| at + 1),
                Site::Residual(block) => Some(before_block(*block)),
                Site::Block(block) => Some(before_block(block + 1)),
                Site::Columns { .. } => None,
            }
        };
        let all = info.linears.iter().filter(|l| l.layer.is_some_and(|k| k < blocks)).count();
        ends.iter().filter_map(after).max().map_or(all, |last| last.min(all))
    }

    /// Adds `times` products of the head with `rows` rows.
    pub fn head(&mut self, rows: i64, times: i64) {
        let info = self.model.info();
        let shape = Shape { inputs: info.hidden, outputs: info.vocab, head: true };
        self.add(shape, rows * times);
    }

    /// Adds the estimate for the adapter, forward and backward, with `times` products of each
    /// trained matrix.
    pub fn adapter(&mut self, adapted: &Adapted, times: i64) {
        let of_matrices: usize = adapted
            .changed()
            .flat_map(|target| target.parameters)
            .filter(|parameter| parameter.tensor.requires_grad() && parameter.tensor.dim() > 1)
            .map(|parameter| parameter.tensor.numel())
            .sum();
        self.operations.adapter += 2.0 * (times * self.rows * of_matrices as i64) as f64;
    }

    /// Ends the count. The batch has `scored` scored tokens.
    pub fn finish(self, scored: i64) -> Work {
        Work { rows: self.rows, scored, operations: self.operations }
    }

    /// Adds a product of all rows with a frozen matrix of a block.
    fn product(&mut self, inputs: i64, outputs: i64) {
        self.add(Shape { inputs, outputs, head: false }, self.rows);
    }

    fn add(&mut self, shape: Shape, rows: i64) {
        *self.operations.products.entry(shape).or_default() +=
            2.0 * (rows * shape.inputs * shape.outputs) as f64;
    }

    /// Operations of attention in the forward pass of one block. Each token attends to itself and
    /// to all earlier tokens of its sequence; sliding windows are not considered.
    fn attention(&self) -> f64 {
        let pairs: usize = self
            .layout
            .segments()
            .iter()
            .enumerate()
            .map(|(i, segment)| {
                segment.len * self.layout.offset(i) + segment.len * (segment.len + 1) / 2
            })
            .sum();
        let info = self.model.info();
        2.0 * 2.0 * (info.heads * info.head_dim) as f64 * pairs as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Completions, Intervention, Loss, Needs, Pairs, Pooling, States, StepInfo};
    use crate::conformance::{Bench, Case, pairs};
    use crate::run::AdapterChoice;
    use crate::train::{Objective, Reference, Taps, TrainPass};

    /// A method that only declares its needs.
    struct Needy(Needs);

    impl Intervention for Needy {
        fn needs(&self) -> Needs {
            self.0
        }

        fn loss(&mut self, pairs: &Pairs, _: StepInfo) -> Result<Loss> {
            Ok(Loss::new(pairs.policy()?.both()?.chosen.sum().mean(None::<tch::Kind>)))
        }
    }

    /// Counts the operations on a pair with a prompt of 4 tokens and completions of 3 and 5 tokens.
    /// The adapter changes `v_proj` in the second of three blocks. The second result is for cached
    /// reference values.
    fn counted(needs: Needs, sites: Vec<Site>, checkpointing: bool) -> [Work; 2] {
        let case = Case::of_stand_ins();
        let Bench { model, .. } = Bench::new(&case, 0).unwrap();
        let json = r#"{"target_modules": ["v_proj"], "layers_to_transform": [1]}"#;
        let adapter = AdapterChoice::of_new(case.adapter.entry, json).unwrap();
        let adapted = adapter.attach(&model, 3, 0).unwrap();
        let taps = Taps { sites, pooling: Pooling::Completion, ..Taps::default() };
        let mut objective =
            Objective::new(Box::new(Needy(needs)), taps, Reference::default(), &adapted).unwrap();
        objective.set_checkpointing(checkpointing, &adapted).unwrap();
        let pairs = pairs();
        let batch = objective.batch(&[&pairs[0]], &model).unwrap();
        let plan = GradientPlan::new(&model, &adapted).unwrap();
        let first = objective.work(&model, &adapted, &batch, &plan).unwrap();
        if needs.reference_logprobs {
            let step = StepInfo { step: 0, steps: 1, seed: 0 };
            objective.loss(&model, &adapted, &batch, step, TrainPass::of_weight(1.0)).unwrap();
        }
        [first, objective.work(&model, &adapted, &batch, &plan).unwrap()]
    }

    /// Weights of `q_proj`, `k_proj`, `v_proj` and `o_proj`.
    const ATTENTION: [f64; 4] = [1024.0, 512.0, 512.0, 1024.0];
    /// Weights of `gate_proj`, `up_proj` and `down_proj`.
    const MLP: [f64; 3] = [2048.0; 3];
    /// Weights of a block.
    const BLOCK: f64 = 9216.0;
    /// Tokens of the prompt and of both completions.
    const ROWS: f64 = 12.0;
    /// Operations of attention in a block. The prompt has 4·5/2 products of queries and keys, and
    /// the completions 3·4 + 3·4/2 and 5·4 + 5·6/2. The heads are 32 wide in total.
    const ATTENDING: f64 = 4.0 * 32.0 * (10.0 + 18.0 + 35.0);

    #[test]
    fn operations_with_log_probabilities_equal_a_count_by_hand() {
        let needs = Needs { logprobs: Completions::Both, reference_logprobs: true, ..Needs::NONE };
        let [first, cached] = counted(needs, Vec::new(), false);
        // No gradient flows below the outputs of `q_proj`, `k_proj` and `v_proj` of the second
        // block.
        let backward = ATTENTION[3] + MLP.iter().sum::<f64>() + BLOCK;
        let head = 2.0 * 8.0 * 32.0 * 48.0;
        for (work, passes) in [(&first, 2.0), (&cached, 1.0)] {
            let Operations { products, attention, adapter } = &work.operations;
            assert_eq!((work.rows, work.scored), (12, 8));
            assert_eq!(
                products.values().sum::<f64>(),
                2.0 * ROWS * (passes * 3.0 * BLOCK + backward) + (passes + 1.0) * head
            );
            assert_eq!(*attention, (passes * 3.0 + 2.0 * 2.0) * ATTENDING);
            assert_eq!(*adapter, 3.0 * 2.0 * ROWS * 512.0);
        }
        let of_head = Shape { inputs: 32, outputs: 48, head: true };
        assert_eq!(cached.operations.products[&of_head], 2.0 * head);
    }

    #[test]
    fn operations_end_at_the_last_tap() {
        let needs = Needs { states: States::Pooled, ..Needs::NONE };
        let tap = Site::Output("model.layers.1.self_attn.o_proj".to_owned());
        let [work, _] = counted(needs, vec![tap], false);
        let Operations { products, attention, .. } = &work.operations;
        assert_eq!(
            products.values().sum::<f64>(),
            2.0 * ROWS * (2.0 * BLOCK + ATTENTION[3]),
            "{products:?}"
        );
        assert_eq!(*attention, (2.0 + 2.0) * ATTENDING);
    }

    #[test]
    fn checkpointing_counts_the_blocks_that_run_again() {
        let needs = Needs { logprobs: Completions::Both, ..Needs::NONE };
        let [kept, again] =
            [false, true].map(|on| counted(needs, Vec::new(), on)[0].operations.clone());
        let products = |of: &Operations| of.products.values().sum::<f64>();
        // The first of the three blocks is below the adapter.
        assert_eq!(products(&again) - products(&kept), 2.0 * ROWS * 2.0 * BLOCK);
        assert_eq!(again.attention - kept.attention, 2.0 * ATTENDING);
        assert_eq!(again.adapter - kept.adapter, 2.0 * ROWS * 512.0);
        // The blocks above the last tap do not run.
        let needs = Needs { states: States::Pooled, ..Needs::NONE };
        let sites = vec![Site::Residual(2)];
        let [kept, again] =
            [false, true].map(|on| counted(needs, sites.clone(), on)[0].operations.clone());
        assert_eq!(products(&again) - products(&kept), 2.0 * ROWS * BLOCK);
    }

    #[test]
    fn sums_add_the_operations_of_each_shape() {
        let shape = |outputs| Shape { inputs: 2, outputs, head: false };
        let one = Operations {
            products: BTreeMap::from([(shape(1), 3.0), (shape(2), 5.0)]),
            attention: 7.0,
            adapter: 11.0,
        };
        let mut sum = Operations::default();
        sum += &one;
        sum += &one;
        assert_eq!(sum.products[&shape(2)], 10.0);
        assert_eq!((one.total(), sum.total()), (26.0, 52.0));
    }
}
