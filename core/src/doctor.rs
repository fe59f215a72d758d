//! The checks of `reprpo doctor`: libtorch, the CPU, CUDA, the hub, the cache, and the plugins.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use serde::Serialize;
use tch::{Device, Kind, Tensor};

use crate::ffi::{
    CudaLibrary, LIBTORCH_VERSION, built_with_nccl, has_gloo, libtorch_folder, libtorch_hint,
    load_cuda, nccl_card,
};
use crate::hub::{Hub, Settings, cache_dir};
use crate::plugin;
use crate::weights::known_models;

/// The outcome of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The component works.
    Good,
    /// The component is missing, but not required.
    Absent,
    /// The component is unusable or slower than it could be, but training can still run.
    Limited,
    /// A required component does not work.
    Broken,
}

/// The result of one check.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Name of the check.
    pub name: &'static str,
    /// The outcome.
    pub state: State,
    /// Description of what was found.
    pub found: String,
    /// Advice on how to fix a problem, or how to make this component faster.
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

/// Runs all checks, in the order in which `reprpo doctor` shows them.
pub fn checks() -> Vec<Check> {
    // CUDA must be loaded before libtorch runs its first operation.
    load_cuda();
    let driver = driver();
    vec![
        libtorch(),
        threads(),
        ranks(),
        nccl(),
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

/// Checks that libtorch works, and reports its version and folder.
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
    let check = Check::new(
        "threads",
        State::Good,
        format!("libtorch uses {used} threads on {cores} cores; {}", waiting()),
    );
    if used > cores as i32 {
        Check { state: State::Limited, ..check }
            .hint("set `OMP_NUM_THREADS` to at most the number of cores; more threads are slower")
    } else {
        check
    }
}

/// Checks whether this program can run in several processes.
fn ranks() -> Check {
    match has_gloo() {
        Ok(()) => Check::new("ranks", State::Good, "several processes connect through gloo"),
        Err(e) => {
            let check = Check::new("ranks", State::Absent, e.in_a_line());
            e.hints().first().map_or(check.clone(), |hint| check.hint(hint))
        }
    }
}

/// Checks whether several processes with cards can exchange tensors from card to card.
fn nccl() -> Check {
    let has_card = matches!(load_cuda(), CudaLibrary::Loaded(_)) && tch::Cuda::device_count() > 0;
    let e = match built_with_nccl() {
        Ok(()) if !has_card => {
            return Check::new("nccl", State::Good, "built in; there is no card to use it with");
        }
        Ok(()) => match nccl_card(0) {
            Ok(_) => return Check::new("nccl", State::Good, "several cards connect through NCCL"),
            Err(e) => e,
        },
        Err(e) => e,
    };
    let state = if has_card { State::Limited } else { State::Absent };
    let mut check = Check::new("nccl", state, e.in_a_line());
    check.hint = Some(e.hints().join("; ")).filter(|hint| !hint.is_empty());
    check
}

/// Describes what a thread does that waits for the others.
fn waiting() -> String {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    match (set("GOMP_SPINCOUNT"), set("OMP_WAIT_POLICY")) {
        (Some(turns), _) => format!("a waiting thread sleeps after {turns} turns (GOMP_SPINCOUNT)"),
        (None, Some(policy)) => format!("waiting threads are {policy} (OMP_WAIT_POLICY)"),
        (None, None) => "waiting threads follow OpenMP's defaults".to_owned(),
    }
}

/// Measures the speed of matrix products on the CPU in float32 and bfloat16.
fn cpu_speed() -> Check {
    match (rate(Kind::Float), rate(Kind::BFloat16)) {
        (Some(f32), Some(bf16)) => {
            let faster =
                if bf16 > 1.2 * f32 { "bf16 is faster on this CPU" } else { "use f32 on this CPU" };
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

/// Multiplies 512 × 512 matrices for about 0.1 s, and returns the speed in GFLOP/s. Returns `None`
/// if a multiplication fails.
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

/// Checks that libtorch can use a GPU. The argument is the list of GPUs that [`driver`] returns.
fn cuda(driver: Option<&str>) -> Check {
    let limited = |found: &str| Check::new("cuda", State::Limited, found);
    match load_cuda() {
        CudaLibrary::Loaded(version) => {
            let count = if tch::Cuda::is_available() { tch::Cuda::device_count() } else { 0 };
            let cudnn =
                if tch::Cuda::cudnn_is_available() { "with cuDNN" } else { "without cuDNN" };
            match count {
                0 => limited(&format!("CUDA {version} is loaded, but no GPU is available")).hint(
                    "check that `CUDA_VISIBLE_DEVICES` does not hide the GPUs, and that the driver \
                        is new enough: `nvidia-smi` shows the newest CUDA that it supports",
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
        CudaLibrary::NoDriver if driver.is_some() => {
            limited("the system lists NVIDIA GPUs, but cannot open `libcuda.so.1`").hint(
                "if this is a container, start it with the NVIDIA runtime, e.g. \
                `docker run --gpus all`",
            )
        }
        CudaLibrary::NoDriver => {
            Check::new("cuda", State::Absent, "no NVIDIA driver found; using the CPU")
        }
    }
}

/// Returns the names and memory sizes of the GPUs that the driver lists, separated by semicolons.
/// Returns `None` if there is no driver.
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
    // In a container, the driver may be available although `nvidia-smi` is not installed.
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
        Some(_) => Check::new("card", State::Absent, "the driver lists no GPU"),
        None => Check::new("card", State::Absent, "none"),
    }
}

/// Checks whether the cache folder, which stores downloaded models, exists.
fn cache() -> Check {
    let folder = cache_dir();
    let shown = folder.display().to_string();
    if folder.is_dir() {
        Check::new("cache", State::Good, shown)
    } else {
        Check::new("cache", State::Absent, format!("{shown}, not created yet"))
    }
}

/// Lists the known models that are already on this machine. If there are none, the hint says how
/// to download one.
fn models() -> Check {
    let known = known_models();
    let here: Vec<&str> = known.iter().filter(|m| m.path.is_some()).map(|m| m.name).collect();
    match (here.is_empty(), known.first()) {
        (true, Some(first)) => Check::new(
            "models",
            State::Absent,
            format!("none of the {} known models found on this machine", known.len()),
        )
        .hint(&format!("{}: {}", first.name, first.fetch)),
        _ => Check::new("models", State::Good, here.join(", ")),
    }
}

/// Reports the settings for the Hugging Face hub: endpoint, token, certificates and cache. Does not
/// send a request.
fn hub() -> Check {
    match Hub::of_environment() {
        Ok(hub) => {
            let Settings { endpoint, cache, offline, token, authorities, .. } = hub.settings();
            let who = token.as_ref().map_or_else(
                || "no token".to_owned(),
                |token| format!("token from {}", token.source),
            );
            let offline = if *offline { ", offline" } else { "" };
            let trusted = authorities
                .as_ref()
                .map_or_else(String::new, |own| format!(", certificates from {}", own.source));
            Check::new(
                "hub",
                State::Good,
                format!("{endpoint}{offline}, {who}{trusted}, files in {}", cache.display()),
            )
        }
        Err(e) => Check::new("hub", State::Limited, e.in_a_line()).hint(
            e.hints().first().copied().unwrap_or("correct or unset the environment variable"),
        ),
    }
}

/// Checks the free disk space at the cache folder. If the folder does not exist, its nearest
/// existing parent is used.
fn disk() -> Check {
    let start = cache_dir();
    let Some(folder) = start.ancestors().find(|p| p.is_dir()) else {
        return Check::new("disk", State::Absent, "unknown");
    };
    // In POSIX format, the fourth column of the second line is the free space in KiB.
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
                .hint("free up disk space; a model with 135 million parameters takes 0.3 GiB")
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
            "`REPRPO_DATA` is not set; use `--data-dir` to select a data folder",
        ),
        Some(folder) => match std::fs::read_dir(&folder) {
            Ok(_) => Check::new("data", State::Good, format!("REPRPO_DATA = {}", folder.display())),
            Err(e) => Check::new(
                "data",
                State::Limited,
                format!("REPRPO_DATA = {}: {e}", folder.display()),
            )
            .hint("set REPRPO_DATA to a readable folder"),
        },
    }
}

/// Lists the libraries in the plugin folder, and checks that this build can load them.
fn plugins() -> Check {
    let Some(folder) = plugin::folder() else {
        return Check::new("plugins", State::Absent, "no plugin folder, because `HOME` is not set");
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
            format!("{shown}: cannot load {}", bad.join(", ")),
        )
        .hint("run `reprpo plugin check FILE` for details; the plugin may need to be rebuilt"),
    }
}
