//! Connects the processes that torchrun or srun started for one command.

use std::sync::Arc;

use reprpo_core::ffi::end_process;
use reprpo_core::world::{self, Launch, World};
use reprpo_core::{Error, Result};

use crate::args::Command;
use crate::printer::Printer;

/// Returns the ranks that execute the command together: the processes of the launcher for a command
/// that they can share, and otherwise only this one.
///
/// # Errors
/// Fails if the variables of the launcher are not valid, if the ranks cannot connect, or if the
/// command would do its work once on every rank.
pub fn join(command: &Command) -> Result<Arc<World>> {
    let shares = matches!(command, Command::Run(_) | Command::Eval(_) | Command::Score(_));
    let refused = match command {
        Command::Sweep(_) => Some("sweep"),
        Command::Bench(_) => Some("bench"),
        Command::Reproduce(_) => Some("reproduce"),
        _ => None,
    };
    if !shares && refused.is_none() {
        return Ok(Arc::default());
    }
    let Some(launch) = Launch::from_environment()? else { return Ok(Arc::default()) };
    if let Some(name) = refused {
        return Err(Error::new(format!(
            "`reprpo {name}` does not support several ranks ({} started {})",
            launch.launcher, launch.size
        ))
        .hint("start it without torchrun or srun"));
    }
    let rank = launch.rank;
    let on_loss = move |e: Error| {
        Printer::default().error(&e.within(format!("rank {rank} ends")));
        end_process(1);
    };
    Ok(world::enter(World::join(&launch, Arc::new(on_loss))?))
}
