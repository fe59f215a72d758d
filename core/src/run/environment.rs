//! The environment of a run: versions, device, processor and threads, which can change the last
//! bits of the results.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::Device;

use crate::error::{Error, Result};
use crate::ffi::LIBTORCH_VERSION;
use crate::files::{read_record, write_whole};
use crate::plugin;
use crate::reference::described_device;

/// Name of the file in a run's folder.
pub(super) const FILE: &str = "environment.json";

/// The environment of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Version of reprpo.
    pub reprpo: String,
    /// Version and digest of the sources of the engine.
    pub engine: String,
    /// Version of libtorch.
    pub libtorch: String,
    /// The device, with the name of the processor and the number of threads.
    pub device: String,
    /// Operating system and architecture.
    pub system: String,
}

impl Environment {
    /// The environment of this process.
    pub fn current(device: Device) -> Self {
        Self {
            reprpo: env!("CARGO_PKG_VERSION").to_owned(),
            engine: plugin::Fingerprint::ours().to_string(),
            libtorch: LIBTORCH_VERSION.to_owned(),
            device: described_device(device),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }

    /// Reads the environment of the run in `folder`. Returns `None` for a run of a version that did
    /// not record it.
    ///
    /// # Errors
    /// Fails if the file cannot be read or is damaged.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        read_record(&folder.join(FILE), "is damaged")
    }

    /// Writes the environment to the run in `folder`.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let text =
            serde_json::to_string_pretty(self).map_err(|e| Error::internal(e.to_string()))?;
        write_whole(&folder.join(FILE), format!("{text}\n").as_bytes())
    }

    /// Describes the differences between this environment and `now`.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let fields = |e: &Self| {
            [
                ("reprpo", e.reprpo.clone()),
                ("engine", e.engine.clone()),
                ("libtorch", e.libtorch.clone()),
                ("device", e.device.clone()),
                ("system", e.system.clone()),
            ]
        };
        fields(self)
            .into_iter()
            .zip(fields(now))
            .filter(|(then, now)| then != now)
            .map(|((name, then), (_, now))| format!("{name}: `{then}` then, `{now}` now"))
            .collect()
    }
}
