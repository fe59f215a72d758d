//! Measures the memory of this process, and the free memory of the machine.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};

use tch::Device;

use crate::error::{Error, Result};
use crate::ffi;

/// Measures the peak memory use since the call to [`begin`](Self::begin).
pub struct Memory {
    device: Device,
    /// Resident bytes at the start; `None` if the system cannot reset the peak.
    before: Option<f64>,
}

impl Memory {
    /// Starts a measurement. It replaces an earlier one, because the system only has one peak.
    ///
    /// # Errors
    /// Fails if the GPU's allocator does not report its statistics.
    pub fn begin(device: Device) -> Result<Self> {
        if device.is_cuda() {
            ffi::cuda_empty_cache()?;
            ffi::cuda_reset_peak(device)?;
            return Ok(Self { device, before: None });
        }
        Ok(Self { device, before: if reset_process_peak() { resident() } else { None } })
    }

    /// Returns the peak memory use in bytes since the start, and a description of what is included.
    ///
    /// # Errors
    /// Fails if the system does not report the peak.
    pub fn peak(&self) -> Result<(f64, &'static str)> {
        if self.device.is_cuda() {
            return Ok((ffi::cuda_memory(self.device)?.peak_reserved as f64, "on the GPU"));
        }
        let peak = process_peak()
            .ok_or_else(|| Error::new("`/proc/self/status` does not contain the peak memory"))?;
        Ok(self
            .before
            .map_or((peak, "the whole process"), |before| (peak - before, "weights and steps")))
    }
}

/// Returns a field of `/proc/self/status` in bytes.
fn status(field: &str) -> Option<f64> {
    kilobytes("/proc/self/status", field)
}

/// Returns how many GB of memory this process can still allocate, or `None` if this is unknown. The
/// free memory of the machine and the limits of the job or container are considered.
pub fn free() -> Option<f64> {
    let machine = kilobytes("/proc/meminfo", "MemAvailable:");
    let own = read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| room(Path::new("/sys/fs/cgroup"), &text));
    machine.into_iter().chain(own).min_by(f64::total_cmp).map(|bytes| bytes / 1e9)
}

/// Returns how many bytes this process can still allocate under the limits of its control groups.
/// Returns `None` if there is no limit. `membership` is the content of `/proc/self/cgroup`, and
/// `root` is the folder where the groups are mounted. In a container, the process's own group may
/// not be visible. In this case, only the limits of its visible parents are checked.
fn room(root: &Path, membership: &str) -> Option<f64> {
    let number = |path: PathBuf| read_to_string(path).ok()?.trim().parse::<f64>().ok();
    let left = |folder: &Path, [limit, usage, cached]: [&str; 3]| {
        let used = number(folder.join(usage))?;
        // Cached files do not count as used, because the kernel frees them before it refuses
        // memory.
        let stat = read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let cached =
            stat.lines().find_map(|line| line.strip_prefix(cached)?.trim().parse::<f64>().ok());
        Some(number(folder.join(limit))? - used + cached.unwrap_or(0.0))
    };
    let groups = membership.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        match controllers {
            "" => Some((root.to_owned(), path, ["memory.max", "memory.current", "inactive_file "])),
            v1 if v1.split(',').any(|name| name == "memory") => Some((
                root.join("memory"),
                path,
                ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "],
            )),
            _ => None,
        }
    });
    let rooms = groups.flat_map(|(mount, path, files)| {
        let folders = Path::new(path.trim_start_matches('/'))
            .ancestors()
            .map(move |folder| mount.join(folder));
        folders.filter_map(move |folder| left(&folder, files))
    });
    rooms.min_by(f64::total_cmp)
}

/// Sets the peak resident memory of this process to the current value. Returns false if the system
/// cannot do this, which only Linux can.
pub fn reset_process_peak() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Returns the resident memory of this process in bytes, or `None` if the system does not report
/// it.
pub fn resident() -> Option<f64> {
    status("VmRSS:")
}

/// Returns the peak resident memory of this process in bytes, or `None` if the system does not
/// report it.
pub fn process_peak() -> Option<f64> {
    status("VmHWM:")
}

/// Finds the line of `file` that starts with `field`, and converts its value from kB to bytes.
fn kilobytes(file: &str, field: &str) -> Option<f64> {
    let text = read_to_string(file).ok()?;
    let kib: f64 = text
        .lines()
        .find_map(|l| l.strip_prefix(field))?
        .trim()
        .strip_suffix("kB")?
        .trim()
        .parse()
        .ok()?;
    Some(kib * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_memory_limit_of_a_job_applies() {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(room(root.path(), "0::/job/step\n"), None);
        write("job/memory.max", "1000\n");
        write("job/memory.current", "300\n");
        write("job/memory.stat", "anon 200\ninactive_file 50\n");
        write("job/step/memory.max", "max\n");
        write("job/step/memory.current", "300\n");
        assert_eq!(room(root.path(), "0::/job/step\n"), Some(750.0));
        // The folder of the process's own group is not visible, so the limit of its parent applies.
        assert_eq!(room(root.path(), "0::/job/hidden\n"), Some(750.0));
        write("memory/job/memory.limit_in_bytes", "600\n");
        write("memory/job/memory.usage_in_bytes", "100\n");
        assert_eq!(room(root.path(), "4:cpu,memory:/job\n0::/\n"), Some(500.0));
        assert_eq!(room(root.path(), "4:cpu:/job\n"), None);
    }
}
