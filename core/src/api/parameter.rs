//! Tensors that are trained.

use tch::Tensor;

/// An axis of a parameter that runs over its module's input or output space, by the number of the
/// tensor's dimension.
///
/// It is all that a method which projects gradients has to know of an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// One entry an input of the module.
    Input(usize),
    /// One entry an output of the module.
    Output(usize),
}

impl Axis {
    /// The tensor's dimension.
    pub fn dim(self) -> usize {
        let (Axis::Input(dim) | Axis::Output(dim)) = self;
        dim
    }
}

/// A tensor of an adapter or a transform, with the name it has on disk.
#[derive(Debug)]
pub struct Parameter {
    /// PEFT's key below the module's name, as `lora_A.weight`.
    pub key: String,
    /// A leaf; it is trained where it requires a gradient. Shares its memory with the adapter's
    /// own.
    pub tensor: Tensor,
    /// The axis that lies in the module's input or output space, where one does.
    pub axis: Option<Axis>,
}

impl Parameter {
    /// Shares `tensor` under the name `key`.
    pub fn new(key: &str, tensor: &Tensor) -> Self {
        Self { key: key.to_owned(), tensor: tensor.shallow_clone(), axis: None }
    }

    /// Says that an axis of the tensor lies in the module's input or output space.
    #[must_use]
    pub fn along(mut self, axis: Axis) -> Self {
        self.axis = Some(axis);
        self
    }
}
