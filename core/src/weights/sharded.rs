//! Matrices whose rows are divided among the ranks. Each rank keeps its rows, and all ranks gather
//! the matrix whenever it is used.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use crate::api::{Encoded, Rows};
use crate::error::{Error, Result};
use crate::world::{Gathering, World};

/// Number of matrices that are gathered in advance. A block of Llama has seven.
const AHEAD: usize = 7;

/// The divided matrices of a model, and what is being gathered.
///
/// All ranks must use the matrices in the same order, because gathering is a collective operation.
/// The order is almost the same in each pass, so the next matrices are predicted from the last two
/// uses, and are gathered while the ranks compute. A wrong prediction costs time and changes no
/// results: all ranks predict the same, because they have used the same matrices.
#[derive(Debug)]
pub struct Shards {
    world: Arc<World>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The own rows of each matrix, which its numbers refer to.
    own: Vec<Own>,
    /// The last two uses; the latest is second.
    last: [Option<usize>; 2],
    /// The use that followed two others, when they were last seen.
    next: HashMap<[Option<usize>; 2], usize>,
    /// The matrices that are being gathered, in order.
    queue: VecDeque<(usize, Gathering)>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} matrices, {} of them in the queue", self.own.len(), self.queue.len())
    }
}

/// The rows of a matrix that this rank keeps.
struct Own {
    /// `[most columns]` on the device of the model, where `most` is the same on all ranks. The last
    /// ranks may have rows of zeros.
    rows: Tensor,
    /// Number of rows of the whole matrix.
    count: i64,
}

impl Shards {
    /// Creates the shards of a model that the ranks of `world` use together.
    pub fn new(world: Arc<World>) -> Arc<Self> {
        Arc::new(Self { world, state: Mutex::default() })
    }

    /// Divides a matrix `[rows columns]`. All ranks must call this with the same matrices in the
    /// same order.
    ///
    /// # Errors
    /// Fails if memory runs out.
    pub fn divide(self: &Arc<Self>, matrix: &Tensor) -> Result<ShardedMatrix> {
        let size = matrix.size();
        let [count, columns] = size[..] else {
            return Err(Error::internal(format!("a tensor of shape {size:?} is not a matrix")));
        };
        let (rank, ranks) = (self.world.rank() as i64, self.world.size() as i64);
        let most = (count + ranks - 1) / ranks;
        let start = (most * rank).min(count);
        let len = most.min(count - start);
        let mut rows = Tensor::f_zeros([most, columns], (matrix.kind(), matrix.device()))?;
        rows.f_narrow(0, 0, len)?.f_copy_(&matrix.f_narrow(0, start, len)?)?;
        let kind = rows.kind();
        let device = rows.device();
        rows = rows.set_requires_grad(false);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.own.push(Own { rows, count });
        Ok(ShardedMatrix {
            shards: Arc::clone(self),
            number: state.own.len() - 1,
            size: [count, columns],
            kind,
            device,
            part: None,
        })
    }

    /// Gathers a matrix, and starts to gather those that will probably be used next.
    fn gather(&self, number: usize) -> Result<Tensor> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        while let Some((predicted, gathering)) = state.queue.pop_front() {
            // All ranks must take part in what was started, also if it is not needed.
            let matrix = self.world.finish(gathering)?;
            if predicted == number {
                found = Some(matrix);
                break;
            }
        }
        let whole = match found {
            Some(matrix) => matrix,
            None => {
                let gathering = self.start(&state, number)?;
                self.world.finish(gathering)?
            }
        };
        let before = state.last;
        state.next.insert(before, number);
        state.last = [before[1], Some(number)];
        // Continue the prediction after the matrices that are already in the queue.
        let mut last = state.last;
        for (queued, _) in &state.queue {
            last = [last[1], Some(*queued)];
        }
        while state.queue.len() < AHEAD {
            let Some(&next) = state.next.get(&last) else { break };
            let gathering = self.start(&state, next)?;
            state.queue.push_back((next, gathering));
            last = [last[1], Some(next)];
        }
        let own = &state.own[number];
        from_bytes(&whole, own)
    }

    fn start(&self, state: &State, number: usize) -> Result<Gathering> {
        let _guard = tch::no_grad_guard();
        // As bytes, because gloo does not know all dtypes.
        self.world.start_gather(&state.own[number].rows.f_view_dtype(Kind::Uint8)?)
    }
}

/// The matrix whose bytes were gathered, `[ranks most bytes]`.
fn from_bytes(bytes: &Tensor, own: &Own) -> Result<Tensor> {
    let _guard = tch::no_grad_guard();
    Ok(bytes.f_flatten(0, 1)?.f_view_dtype(own.rows.kind())?.f_narrow(0, 0, own.count)?)
}

/// A matrix of which each rank keeps some rows.
#[derive(Debug)]
pub struct ShardedMatrix {
    shards: Arc<Shards>,
    /// Number of the matrix among those of the model.
    number: usize,
    /// Rows and columns of the whole matrix.
    size: [i64; 2],
    kind: Kind,
    device: Device,
    /// The rows that this matrix consists of; `None` for the whole matrix.
    part: Option<Rows>,
}

impl ShardedMatrix {
    /// Numbers of rows and columns of the whole matrix.
    pub fn whole(&self) -> [i64; 2] {
        self.size
    }

    fn copy(&self) -> Self {
        Self { shards: Arc::clone(&self.shards), ..*self }
    }
}

impl Encoded for ShardedMatrix {
    fn size(&self) -> [i64; 2] {
        let [rows, columns] = self.size;
        [self.part.map_or(rows, |part| part.count()), columns]
    }

    fn kind(&self) -> Kind {
        self.kind
    }

    fn device(&self) -> Device {
        self.device
    }

    fn kept(&self) -> usize {
        let ranks = self.shards.world.size() as i64;
        let [rows, columns] = self.size;
        ((rows + ranks - 1) / ranks * columns) as usize * self.kind.elt_size_in_bytes()
    }

    fn encoded(&self) -> Option<(&'static str, &Tensor)> {
        None
    }

    fn dense(&self) -> Result<Tensor> {
        let whole = self.shards.gather(self.number)?;
        match self.part {
            Some(part) => part.of(&whole, 0),
            None => Ok(whole),
        }
    }

    fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(self.dense()?.f_index_select(0, ids)?)
    }

    fn shared(&self) -> Box<dyn Encoded> {
        Box::new(self.copy())
    }

    fn part(&self, rows: Rows) -> Result<Box<dyn Encoded>> {
        if self.part.is_some() {
            return Err(Error::internal("a part of a sharded matrix has no parts"));
        }
        // Checks that the rows belong to the matrix, without gathering it.
        let [count, _] = self.size;
        let _ = rows.of(&Tensor::f_arange(count, (Kind::Int64, Device::Cpu))?, 0)?;
        Ok(Box::new(Self { part: Some(rows), ..self.copy() }))
    }
}

#[cfg(test)]
#[path = "sharded_tests.rs"]
mod tests;
