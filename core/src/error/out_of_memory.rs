//! Recognises libtorch's errors about missing memory.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::{Error, Result};

/// A failed allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// The requested size in bytes; `None` if libtorch does not report it.
    pub bytes: Option<u64>,
}

impl OutOfMemory {
    /// The failed allocation that a message of libtorch reports; `None` if the message reports
    /// something else.
    pub(super) fn in_message(text: &str) -> Option<Self> {
        // The allocators of the CPU and of CUDA, and C++'s `new`.
        const MARKS: [&str; 4] = [
            "DefaultCPUAllocator: can't allocate memory",
            "CUDA out of memory",
            "CUDA error: out of memory",
            "std::bad_alloc",
        ];
        MARKS.iter().any(|mark| text.contains(mark)).then(|| Self { bytes: requested(text) })
    }
}

/// Calls `work`, and turns a panic into an error if memory ran out. tch panics instead of returning
/// an error if an operation with a number as its argument fails.
pub(crate) fn catch_out_of_memory<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let e = Error::panicked("libtorch", panic.as_ref());
        if e.out_of_memory().is_some() { Err(e) } else { resume_unwind(panic) }
    })
}

/// Reads the size from `tried to allocate 4096 bytes` or `Tried to allocate 2.50 GiB`.
fn requested(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once("ried to allocate ")?;
    let mut words = rest.split_whitespace();
    let (number, unit) = (words.next()?.parse::<f64>().ok()?, words.next()?);
    let unit = match unit.trim_end_matches('.') {
        "bytes" => 1u64,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    Some((number * unit as f64) as u64)
}

/// Formats the failure as a clause, e.g. `2.7 GB could not be allocated`.
impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bytes.map(|bytes| bytes as f64) {
            None => f.write_str("an allocation failed"),
            Some(bytes) if bytes >= 1e9 => {
                write!(f, "{:.1} GB could not be allocated", bytes / 1e9)
            }
            Some(bytes) => write!(f, "{:.1} MB could not be allocated", bytes / 1e6),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_messages_of_both_allocators_are_recognised() {
        for (text, bytes, shown) in [
            (
                "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't \
                    allocate memory: you tried to allocate 4000000000 bytes. Error code 12 (Cannot \
                    allocate memory)",
                Some(4_000_000_000),
                "4.0 GB could not be allocated",
            ),
            (
                "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of \
                    139.80 GiB of which 2.19 MiB is free.",
                Some(20 << 20),
                "21.0 MB could not be allocated",
            ),
            ("CUDA error: out of memory", None, "an allocation failed"),
            ("std::bad_alloc", None, "an allocation failed"),
        ] {
            let found = OutOfMemory::in_message(text).expect(text);
            assert_eq!((found.bytes, found.to_string().as_str()), (bytes, shown));
            let e = Error::from(tch::TchError::Torch(format!("{text}\nframe #0")));
            assert_eq!(e.within("a step failed").out_of_memory(), Some(found));
        }
        assert_eq!(OutOfMemory::in_message("shape '[2]' is invalid"), None);
    }

    #[test]
    fn an_allocation_that_fails_is_recognised_also_if_tch_panics() {
        let shape = [1i64 << 50];
        let options = (tch::Kind::Float, tch::Device::Cpu);
        let e = Error::from(tch::Tensor::f_zeros(shape, options).expect_err("too large"));
        assert_eq!(e.out_of_memory().and_then(|memory| memory.bytes), Some(1 << 52), "{e:?}");
        let panic = std::panic::catch_unwind(|| tch::Tensor::zeros(shape, options)).unwrap_err();
        let e = Error::panicked("`loss`", panic.as_ref());
        assert_eq!(e.out_of_memory().and_then(|memory| memory.bytes), Some(1 << 52), "{e:?}");
    }
}
