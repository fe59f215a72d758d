//! Studies: many runs that belong together, planned, searched and resumed as one.
//!
//! A study file names the methods, the grid, the seeds and the searched fields ([`mod@file`]). The
//! plan derives the experiments from it ([`plan`]), a sampler chooses the points of the search
//! ([`sampler`]), and the engine ([`Study`]) asks a [`runner`] for the runs that are missing. The
//! runs are ordinary run folders. This module neither prints nor parses arguments.

mod engine;
pub mod file;
mod local;
pub mod objective;
pub mod plan;
mod record;
mod results;
pub mod runner;
pub mod sampler;
mod slurm;
pub mod space;
mod summary;
mod workers;

pub use engine::Study;
pub use local::Local;
pub use plan::{Plan, Resolver};
pub use record::{FILE, selected_on, start};
pub use results::{Phase, Results, Run, State, Trial};
pub use slurm::{Slurm, SlurmSettings};
pub use summary::{json, text_of};
pub use workers::{WorkerSettings, Workers, lock_as_worker, wait_for_workers};
