//! Named tensors of adapters and transforms.

use tch::Tensor;

/// The dimension of a parameter that corresponds to the inputs or the outputs of its module.
/// Methods that project gradients need no other information about an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Index of the dimension that has one entry per input of the module.
    Input(usize),
    /// Index of the dimension that has one entry per output of the module.
    Output(usize),
}

impl Axis {
    /// Index of the dimension.
    pub fn dim(self) -> usize {
        let (Axis::Input(dim) | Axis::Output(dim)) = self;
        dim
    }
}

/// A tensor of an adapter or a transform, with its name in the saved file.
#[derive(Debug)]
pub struct Parameter {
    /// PEFT's key without the name of the module, e.g. `lora_A.weight`.
    pub key: String,
    /// The values. The tensor shares memory with the adapter or transform, and is trained if it
    /// requires a gradient.
    pub tensor: Tensor,
    /// The dimension that corresponds to the module's inputs or outputs, if there is one.
    pub axis: Option<Axis>,
}

impl Parameter {
    /// Creates a parameter that has no axis and shares the memory of `tensor`.
    pub fn new(key: &str, tensor: &Tensor) -> Self {
        Self { key: key.to_owned(), tensor: tensor.shallow_clone(), axis: None }
    }

    /// Declares which dimension corresponds to the module's inputs or outputs.
    #[must_use]
    pub fn along(mut self, axis: Axis) -> Self {
        self.axis = Some(axis);
        self
    }
}
