//! What this machine has and this program needs, checked where a person would look first.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use serde::Serialize;
use tch::{Device, Kind, Tensor};

use crate::ffi::{CudaLibrary, LIBTORCH_VERSION, libtorch_folder, libtorch_hint, load_cuda};
use crate::hub::{Hub, Settings, cache_dir};
use crate::plugin;
use crate::weights::known_models;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Good,
    /// Not there, and not needed.
    Absent,
    /// Works, but not as well as this machine could.
    Limited,
    /// Nothing will run like this.
    Broken,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it came out.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Check {
    fn new(name: &'static str, state: State, found: impl Into<String>) -> Self {
        Self { name, state, found: found.into(), hint: None }
    }

    fn hint(mut self, hint: &str) -> Self {
        self.hint = Some(hint.to_owned());
        self
    }
}

/// All checks, in the order in which a person should read them.
pub fn checks() -> Vec<Check> {
    // Has to come before the first operation of libtorch.
    load_cuda();
    let driver = driver();
    vec![
        libtorch(),
        threads(),
        cpu_speed(),
        cuda(driver.as_deref()),
        card(driver),
        cache(),
        models(),
        hub(),
        disk(),
        data(),
        plugins(),
    ]
}

/// Computes with libtorch, and says which one it is.
fn libtorch() -> Check {
    let found = format!("{LIBTORCH_VERSION}, in {}", libtorch_folder().display());
    let broken = |why: String| {
        Check::new("libtorch", State::Broken, format!("{found}; {why}")).hint(&libtorch_hint(false))
    };
    match Tensor::from_slice(&[1f32, 2.0]).f_sum(Kind::Float).and_then(f64::try_from) {
        Ok(3.0) => Check::new("libtorch", State::Good, found),
        Ok(other) => broken(format!("1 + 2 = {other}")),
        Err(e) => broken(e.to_string()),
    }
}

fn threads() -> Check {
    let (used, cores) =
        (tch::get_num_threads(), std::thread::available_parallelism().map_or(1, |n| n.get()));
    let check = Check::new("threads", State::Good, format!("{used} for tensors, {cores} cores"));
    if used > cores as i32 {
        Check { state: State::Limited, ..check }
            .hint("more threads than cores slow each other down: set OMP_NUM_THREADS")
    } else {
        check
    }
}

/// The CPU's rate of matrix products in both precisions.
fn cpu_speed() -> Check {
    match (rate(Kind::Float), rate(Kind::BFloat16)) {
        (Some(f32), Some(bf16)) => {
            let faster = if bf16 > 1.2 * f32 {
                "bf16 is faster here"
            } else {
                "f32 is the better choice here"
            };
            Check::new(
                "cpu",
                State::Good,
                format!("{f32:.0} GFLOP/s in f32, {bf16:.0} in bf16: {faster}"),
            )
        }
        _ => {
            Check::new("cpu", State::Broken, "a matrix product failed").hint(&libtorch_hint(false))
        }
    }
}

/// GFLOP/s of a 512 × 512 product, over about a tenth of a second.
pub fn rate(kind: Kind) -> Option<f64> {
    const N: i64 = 512;
    let a = Tensor::f_ones([N, N], (kind, Device::Cpu)).ok()?;
    let _warm = a.f_matmul(&a).ok()?;
    let (start, mut products) = (Instant::now(), 0u32);
    while start.elapsed().as_secs_f64() < 0.1 {
        let _product = a.f_matmul(&a).ok()?;
        products += 1;
    }
    Some(2.0 * (N * N * N) as f64 * f64::from(products) / start.elapsed().as_secs_f64() / 1e9)
}

/// Whether libtorch can use a card. `driver` describes the cards that the driver lists, if there is
/// a driver.
fn cuda(driver: Option<&str>) -> Check {
    let limited = |found: &str| Check::new("cuda", State::Limited, found);
    match load_cuda() {
        CudaLibrary::Loaded(version) => {
            let count = if tch::Cuda::is_available() { tch::Cuda::device_count() } else { 0 };
            let cudnn =
                if tch::Cuda::cudnn_is_available() { "with cuDNN" } else { "without cuDNN" };
            match count {
                0 => limited(&format!("CUDA {version} is loaded, but no card can be used")).hint(
                    "`CUDA_VISIBLE_DEVICES` may hide the cards, or the driver may be too \
                        old: `nvidia-smi` shows the newest CUDA that it serves",
                ),
                1 => Check::new("cuda", State::Good, format!("CUDA {version}, 1 device, {cudnn}")),
                _ => Check::new(
                    "cuda",
                    State::Good,
                    format!(
                        "CUDA {version}, {count} devices, \
                    {cudnn}"
                    ),
                ),
            }
        }
        CudaLibrary::NotInLibtorch => limited(
            "there is an NVIDIA driver, but this libtorch was \
            built without CUDA",
        )
        .hint(&libtorch_hint(true)),
        CudaLibrary::Failed(why) => limited(&format!(
            "libtorch's CUDA library cannot be loaded: \
            {why}"
        ))
        .hint(&libtorch_hint(true)),
        CudaLibrary::NoDriver if driver.is_some() => limited(
            "the system lists NVIDIA cards, but \
            `libcuda.so.1` cannot be opened",
        )
        .hint(
            "a container sees the driver's libraries if it is started with the NVIDIA \
                runtime, as with `docker run --gpus all`",
        ),
        CudaLibrary::NoDriver => Check::new(
            "cuda",
            State::Absent,
            "no NVIDIA driver: everything \
            runs on the CPU",
        ),
    }
}

/// What the driver says of the cards, one line each; `None` without a driver.
fn driver() -> Option<String> {
    let smi = Command::new("nvidia-smi")
        .args(["--query-gpu=name,memory.total", "--format=csv,noheader"])
        .output();
    if let Ok(output) = smi
        && output.status.success()
    {
        return Some(
            String::from_utf8_lossy(&output.stdout)
                .lines()
                .map(str::trim)
                .collect::<Vec<_>>()
                .join("; "),
        );
    }
    // A container may have the driver without its tool.
    let cards: Vec<String> = std::fs::read_dir("/proc/driver/nvidia/gpus")
        .ok()?
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("information")).ok())
        .filter_map(|text| {
            text.lines().find_map(|l| l.strip_prefix("Model:").map(|m| m.trim().to_owned()))
        })
        .collect();
    Some(cards.join("; "))
}

fn card(driver: Option<String>) -> Check {
    match driver {
        Some(cards) if !cards.is_empty() => Check::new("card", State::Good, cards),
        Some(_) => Check::new("card", State::Absent, "the driver lists no card"),
        None => Check::new("card", State::Absent, "none"),
    }
}

/// Where models and data are kept between runs.
fn cache() -> Check {
    let folder = cache_dir();
    let shown = folder.display().to_string();
    if folder.is_dir() {
        Check::new("cache", State::Good, shown)
    } else {
        Check::new("cache", State::Absent, format!("{shown}, not made yet"))
    }
}

/// The known models that are here, and how to get one where none is.
fn models() -> Check {
    let known = known_models();
    let here: Vec<&str> = known.iter().filter(|m| m.path.is_some()).map(|m| m.name).collect();
    match (here.is_empty(), known.first()) {
        (true, Some(first)) => Check::new(
            "models",
            State::Absent,
            format!("none of the {} known by name is here", known.len()),
        )
        .hint(&format!("{}: {}", first.name, first.fetch)),
        _ => Check::new("models", State::Good, here.join(", ")),
    }
}

/// Which hub is asked, by whom, and where what it gives is kept. It is not asked here.
fn hub() -> Check {
    match Hub::of_environment() {
        Ok(hub) => {
            let Settings { endpoint, cache, offline, token, authorities, .. } = hub.settings();
            let who = token.as_ref().map_or_else(
                || "no token".to_owned(),
                |token| format!("token of {}", token.source),
            );
            let offline = if *offline { ", offline" } else { "" };
            let trusted = authorities
                .as_ref()
                .map_or_else(String::new, |own| format!(", authorities of {}", own.source));
            Check::new(
                "hub",
                State::Good,
                format!("{endpoint}{offline}, {who}{trusted}, files in {}", cache.display()),
            )
        }
        Err(e) => Check::new("hub", State::Limited, e.in_a_line())
            .hint(e.hints().first().copied().unwrap_or("set it anew, or unset it")),
    }
}

/// Room where the cache is or will be.
fn disk() -> Check {
    let start = cache_dir();
    let Some(folder) = start.ancestors().find(|p| p.is_dir()) else {
        return Check::new("disk", State::Absent, "unknown");
    };
    // POSIX's own format: the fourth column of the second line is what is free, in KiB.
    let output = Command::new("df").arg("-Pk").arg(folder).output();
    let free = output.ok().and_then(|o| {
        String::from_utf8_lossy(&o.stdout)
            .lines()
            .nth(1)?
            .split_whitespace()
            .nth(3)?
            .parse::<u64>()
            .ok()
    });
    match free.map(|kib| kib as f64 / 1_048_576.0) {
        Some(gib) if gib < 2.0 => {
            Check::new("disk", State::Limited, format!("{gib:.1} GiB free at {}", folder.display()))
                .hint("a model of 135 million weights takes 0.3 GiB, a run as much again")
        }
        Some(gib) => {
            Check::new("disk", State::Good, format!("{gib:.0} GiB free at {}", folder.display()))
        }
        None => Check::new("disk", State::Absent, "unknown"),
    }
}

fn data() -> Check {
    match std::env::var_os("REPRPO_DATA").map(PathBuf::from) {
        None => Check::new(
            "data",
            State::Absent,
            "REPRPO_DATA is not set: data sets look where `--data-dir` says",
        ),
        Some(folder) => match std::fs::read_dir(&folder) {
            Ok(_) => Check::new("data", State::Good, format!("REPRPO_DATA = {}", folder.display())),
            Err(e) => Check::new(
                "data",
                State::Limited,
                format!("REPRPO_DATA = {}: {e}", folder.display()),
            )
            .hint("set REPRPO_DATA to a folder that can be read"),
        },
    }
}

/// What lies in the plugin folder, and whether it fits this build.
fn plugins() -> Check {
    let Some(folder) = plugin::folder() else {
        return Check::new(
            "plugins",
            State::Absent,
            "there is no plugin folder, because `HOME` is not set",
        );
    };
    let shown = folder.display().to_string();
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for path in plugin::installed() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match plugin::load(&path) {
            Ok(loaded) => good.push(format!("{} {}", loaded.name, loaded.version)),
            Err(_) => bad.push(name),
        }
    }
    match (&good[..], &bad[..]) {
        ([], []) => Check::new("plugins", State::Absent, format!("none in {shown}")),
        (_, []) => Check::new("plugins", State::Good, format!("{} in {shown}", good.join(", "))),
        (_, bad) => Check::new(
            "plugins",
            State::Limited,
            format!("{shown}: {} cannot be used", bad.join(", ")),
        )
        .hint("`reprpo plugin check FILE` says why; most often it has to be built again"),
    }
}
