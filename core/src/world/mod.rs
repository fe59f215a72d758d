//! The processes that compute one run together.
//!
//! The user starts the same command several times with torchrun or srun. Each process is a rank.
//! All ranks execute the same program. They exchange values in collective operations, which every
//! rank must call in the same order. A process that was started alone is the only rank, and its
//! operations do nothing.

mod cards;
mod launch;
mod pulse;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::fmt;
use std::net::{ToSocketAddrs, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::{Device, Kind, Tensor};

use cards::{Card, Route};
pub use launch::Launch;
pub use pulse::OnLoss;
use pulse::Pulse;

use crate::error::{Error, Result};
use crate::ffi::{Group, Store, Work};

/// How long an operation waits for the other ranks. It may have to wait until another rank has
/// loaded a model. The heartbeat notices a lost rank much earlier.
const WAIT: Duration = Duration::from_secs(24 * 3600);

thread_local! {
    static CURRENT: RefCell<Arc<World>> = RefCell::default();
}

/// Makes `world` the world of the models that are loaded from now on.
pub fn enter(world: World) -> Arc<World> {
    let world = Arc::new(world);
    CURRENT.set(Arc::clone(&world));
    world
}

/// The world of this process; one rank, unless [`enter`] was called.
pub fn current() -> Arc<World> {
    CURRENT.with_borrow(Arc::clone)
}

/// The ranks that compute together.
pub struct World {
    rank: usize,
    size: usize,
    local_rank: usize,
    link: Option<Mutex<Link>>,
}

struct Link {
    /// Connects the CPUs.
    group: Group,
    /// Connects the cards; `None` if their tensors go through the host.
    cards: Option<Group>,
    store: Store,
    pulse: Pulse,
}

/// The tensors of all ranks, which are being gathered.
pub struct Gathering {
    work: Work,
    out: Tensor,
    /// Where the tensors are needed.
    device: Device,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank, self.size)
    }
}

impl Default for World {
    fn default() -> Self {
        Self { rank: 0, size: 1, local_rank: 0, link: None }
    }
}

impl World {
    /// Connects to the other ranks. If one of them is lost later, `on_loss` is called in another
    /// thread, and must end the process.
    ///
    /// # Errors
    /// Fails if the ranks do not find each other within 25 s, or if this program was built without
    /// gloo.
    pub fn join(launch: &Launch, on_loss: OnLoss) -> Result<Self> {
        let Launch { rank, size, host, port, .. } = launch;
        let serves = *rank == 0 && !launch.hosted;
        let patience = Launch::patience();
        // A server that accepts the connection and never answers would block this thread for ever.
        let connected = Arc::new(AtomicBool::new(false));
        let (seen, late) = (Arc::clone(&connected), Arc::clone(&on_loss));
        let silent = unreachable(Error::new("there is no answer"), launch, serves);
        std::thread::spawn(move || {
            std::thread::sleep(patience + Duration::from_secs(1));
            if !seen.load(Ordering::Relaxed) {
                late(silent);
            }
        });
        let opened = Store::open(host, *port, serves, &launch.prefix, patience);
        connected.store(true, Ordering::Relaxed);
        let (store, _) = opened.map_err(|e| unreachable(e, launch, serves))?;
        store.set(&format!("here/{rank}"), b"")?;
        for other in 0..*size {
            store.get(&format!("here/{other}"), patience).map_err(|e| {
                Error::new(format!(
                    "rank {other} did not start within {} s (this is rank {rank} of {size})",
                    patience.as_secs()
                ))
                .because(e)
                .hint("see the output of that rank")
            })?;
        }
        let interface = std::env::var("GLOO_SOCKET_IFNAME").ok();
        let own = own_address(host, *port);
        let group =
            Group::gloo(&store, *rank, *size, WAIT, interface.as_deref(), own.as_deref())
                .map_err(|e| e.within(format!("rank {rank} cannot connect to the other ranks")))?;
        let pulse = Pulse::start(store.second()?, *rank, *size, on_loss)?;
        let link = Some(Mutex::new(Link { group, cards: None, store, pulse }));
        Ok(Self { rank: *rank, size: *size, local_rank: launch.local_rank, link })
    }

    /// Connects the cards of the ranks through NCCL, if each rank computes on a card of its own.
    /// Otherwise, tensors on cards go through the host, and rank 0 prints a warning. All ranks must
    /// call this, with the device that they compute on.
    ///
    /// # Errors
    /// Fails if another rank has ended, or if NCCL cannot connect the cards.
    pub fn connect_cards(&self, device: Device) -> Result<()> {
        if self.size == 1 {
            return Ok(());
        }
        let all = self.gather(Card::of(device))?;
        let Some(mut link) = self.link() else { return Ok(()) };
        match cards::route(&all) {
            Route::Nccl if link.cards.is_none() => {
                let unconnected = |e| cards::unconnected(e, self.rank);
                let group = Group::nccl(&link.store, self.rank, self.size, WAIT);
                let group = link.cards.insert(group.map_err(unconnected)?);
                cards::check(group, self.rank, self.size, device).map_err(unconnected)?;
            }
            Route::Host(Some(warning)) if self.is_first() => {
                static WARNED: Once = Once::new();
                WARNED.call_once(|| tracing::warn!("{warning}"));
            }
            Route::Nccl | Route::Host(_) => {}
        }
        Ok(())
    }

    /// Index of this process, counted from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Index of this process among the ranks on the same machine.
    pub fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// True for rank 0, which alone writes files and messages.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// Replaces a tensor by its sum over all ranks. The sum has the same bytes on each rank. The
    /// tensors of all ranks are on the CPU, or all of them are on the device that the rank computes
    /// on.
    ///
    /// # Errors
    /// Fails if another rank has ended. The error names it.
    pub fn sum(&self, tensor: &Tensor) -> Result<()> {
        self.with(|link| {
            if let Some(group) = link.group_for(tensor.device()) {
                return group.sum(tensor);
            }
            let host = tensor.f_to_device(Device::Cpu)?;
            link.group.sum(&host)?;
            tensor.shallow_clone().f_copy_(&host)?;
            Ok(())
        })
    }

    /// Returns the value of every rank, in the order of the ranks. Numbers keep all their bits.
    ///
    /// # Errors
    /// Fails if another rank has ended, or if a rank sent a value of another type.
    pub fn gather<T: Serialize + DeserializeOwned>(&self, value: T) -> Result<Vec<T>> {
        if self.link.is_none() {
            return Ok(vec![value]);
        }
        let mut bytes = Vec::new();
        ciborium::into_writer(&value, &mut bytes)
            .map_err(|e| Error::internal("a value cannot be sent to the other ranks").because(e))?;
        self.gather_bytes(&bytes)?
            .iter()
            .map(|bytes| {
                ciborium::from_reader(&bytes[..])
                    .map_err(|e| Error::internal("a rank sent another value").because(e))
            })
            .collect()
    }

    /// Checks that all ranks have the same value of `what`.
    ///
    /// # Errors
    /// Fails on all ranks if the values differ, or if another rank has ended.
    pub fn agree<T>(&self, what: &str, value: T) -> Result<()>
    where
        T: Serialize + DeserializeOwned + PartialEq,
    {
        let all = self.gather(value)?;
        match all.iter().position(|other| *other != all[0]) {
            None => Ok(()),
            Some(rank) => Err(differs(rank, what)),
        }
    }

    /// True if `value` is true on at least one rank.
    ///
    /// # Errors
    /// Fails if another rank has ended.
    pub fn any(&self, value: bool) -> Result<bool> {
        Ok(self.gather(value)?.contains(&true))
    }

    /// The share of this rank in `count` items: a range of them. The ranges of all ranks follow
    /// each other, and rank 0 has at least as many items as any other.
    pub fn share(&self, count: usize) -> std::ops::Range<usize> {
        let begin = |rank: usize| (count * rank).div_ceil(self.size);
        begin(self.rank)..begin(self.rank + 1)
    }

    /// Returns the bytes of every rank, in the order of the ranks.
    ///
    /// # Errors
    /// Fails if another rank has ended.
    pub fn gather_bytes(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        if self.link.is_none() {
            return Ok(vec![bytes.to_vec()]);
        }
        let size = self.size as i64;
        let sizes = Tensor::f_zeros([size, 1], (Kind::Int64, Device::Cpu))?;
        let own = Tensor::from_slice(&[bytes.len() as i64]);
        self.with(|link| link.group.gather(&own, &sizes)?.wait())?;
        let sizes = Vec::<i64>::try_from(sizes.f_reshape([-1])?)?;
        let longest = sizes.iter().copied().max().unwrap_or(0).max(1);
        let all = Tensor::f_zeros([size, longest], (Kind::Uint8, Device::Cpu))?;
        let own = Tensor::f_zeros([longest], (Kind::Uint8, Device::Cpu))?;
        own.f_narrow(0, 0, bytes.len() as i64)?.f_copy_(&Tensor::from_slice(bytes))?;
        self.with(|link| link.group.gather(&own, &all)?.wait())?;
        (0..self.size)
            .map(|rank| {
                let row = all.f_get(rank as i64)?.f_narrow(0, 0, sizes[rank])?;
                Ok(Vec::<u8>::try_from(row.f_contiguous()?)?)
            })
            .collect()
    }

    /// Sets the number of finished steps, which the heartbeat reports.
    pub fn at_step(&self, step: usize) {
        if let Some(link) = self.link() {
            link.pulse.at_step(step);
        }
    }

    /// Tells the other ranks that this one ends, and why if it failed. Without a failure, waits for
    /// the other ranks, because rank 0 may host the store.
    pub fn leave(&self, failure: Option<&Error>) {
        if failure.is_none() {
            // If another rank has failed, this one has nothing left to do.
            let all_finish = self.any(false).is_ok();
            match self.link().and_then(|mut link| link.cards.take()) {
                Some(cards) if all_finish => {
                    if let Err(e) = cards.finish() {
                        tracing::warn!("the connection of the cards did not end cleanly: {e}");
                    }
                }
                // To drop it could wait for operations that the other rank never finishes.
                cards => std::mem::forget(cards),
            }
        }
        if let Some(mut link) = self.link() {
            let Link { store, pulse, .. } = &mut *link;
            pulse.end(store, failure);
        }
    }

    /// Starts to gather the tensors of all ranks, which have the same shape and dtype, and are on
    /// devices as in [`sum`](Self::sum).
    ///
    /// # Errors
    /// Fails if another rank has ended. The error names it.
    pub fn start_gather(&self, tensor: &Tensor) -> Result<Gathering> {
        let Some(link) = self.link() else {
            return Err(Error::internal("a single rank has nothing to gather"));
        };
        let device = tensor.device();
        let (group, own) = match link.group_for(device) {
            Some(group) => (group, tensor.shallow_clone()),
            None => (&link.group, tensor.f_to_device(Device::Cpu)?),
        };
        let mut size = vec![self.size as i64];
        size.extend(own.size());
        let out = Tensor::f_empty(size, (own.kind(), own.device()))?;
        let work = group.gather(&own, &out).map_err(|e| link.pulse.explain(e))?;
        Ok(Gathering { work, out, device })
    }

    /// Waits for a gathering, and returns the tensors of all ranks, `[size …]`, on the device of
    /// the own tensor.
    ///
    /// # Errors
    /// Fails if another rank has ended. The error names it.
    pub fn finish(&self, gathering: Gathering) -> Result<Tensor> {
        let Gathering { work, out, device } = gathering;
        self.with(|_| work.wait())?;
        Ok(out.f_to_device(device)?)
    }

    fn link(&self) -> Option<MutexGuard<'_, Link>> {
        // No operation leaves the link in an invalid state.
        self.link.as_ref().map(|link| link.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn with(&self, work: impl FnOnce(&Link) -> Result<()>) -> Result<()> {
        let Some(link) = self.link() else { return Ok(()) };
        work(&link).map_err(|e| link.pulse.explain(e))
    }
}

impl Link {
    /// The group for tensors on `device`. `None` if they must be copied to the CPU.
    fn group_for(&self, device: Device) -> Option<&Group> {
        if device == Device::Cpu { Some(&self.group) } else { self.cards.as_ref() }
    }
}

/// The error for a rank that has another value of `what` than rank 0.
pub fn differs(rank: usize, what: &str) -> Error {
    Error::new(format!("rank {rank} differs from rank 0 in: {what}"))
        .hint("start all ranks with the same command, program, model and data")
}

/// A number that depends on all bits of the tensors. It is the same on all devices.
///
/// # Errors
/// Fails if memory runs out.
pub fn checksum(tensors: impl Iterator<Item = Tensor>) -> Result<i64> {
    let _guard = tch::no_grad_guard();
    let mut all = 0_i64;
    for tensor in tensors {
        let integers = match tensor.kind().elt_size_in_bytes() {
            1 => Kind::Uint8,
            2 => Kind::Int16,
            4 => Kind::Int,
            _ => Kind::Int64,
        };
        // Integer sums do not depend on the order of the additions.
        let sum = tensor.f_detach()?.f_view_dtype(integers)?.f_sum(Kind::Int64)?;
        all = all.wrapping_mul(31).wrapping_add(sum.f_int64_value(&[])?);
    }
    Ok(all)
}

/// The address of this machine in the network of `host`. `None` if there is no such address, or if
/// only this machine can use it although `host` is not a local name.
fn own_address(host: &str, port: u16) -> Option<String> {
    let local = ["localhost", "127.0.0.1", "::1"].contains(&host);
    let to = (host, port).to_socket_addrs().ok()?.next()?;
    let any = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any).ok()?;
    // This selects a route, and sends nothing.
    socket.connect(to).ok()?;
    let own = socket.local_addr().ok()?.ip();
    (local || !own.is_loopback()).then(|| own.to_string())
}

/// Explains why the store cannot be reached.
fn unreachable(e: Error, launch: &Launch, serves: bool) -> Error {
    let Launch { launcher, rank, host, port, .. } = launch;
    if serves {
        return Error::new(format!("rank 0 cannot open the port {port} for the other ranks"))
            .because(e)
            .hint("another process may use the port; choose another one with `MASTER_PORT`");
    }
    let who = if launch.hosted { launcher } else { "rank 0" };
    Error::new(format!("rank {rank} cannot reach {who} at `{host}:{port}`"))
        .because(e)
        .hint("check `MASTER_ADDR` and `MASTER_PORT`, and whether the machines reach each other")
}
