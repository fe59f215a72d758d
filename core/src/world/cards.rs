//! The decision whether the cards of the ranks connect through NCCL, and the first use of the
//! connection.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::ffi::{Group, nccl_card};

/// Disables NCCL if it is set.
const OFF: &str = "REPRPO_NO_NCCL";

/// The device of a rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Card {
    /// The rank computes on the CPU.
    None,
    /// NCCL can connect the card. The text identifies it among the cards of all machines.
    Usable(String),
    /// NCCL cannot be used, for this reason.
    Unusable(String),
}

impl Card {
    /// Describes a device of this process.
    pub fn of(device: Device) -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        match device {
            Device::Cuda(index) => Self::of_card(&variable, || nccl_card(index)),
            _ => Self::None,
        }
    }

    fn of_card(
        variable: &dyn Fn(&str) -> Option<String>,
        address: impl FnOnce() -> Result<String>,
    ) -> Self {
        if variable(OFF).is_some() {
            return Self::Unusable(format!("`{OFF}` is set"));
        }
        // After an error, 0 and 2 let the process continue with tensors that may be incomplete.
        for name in ["TORCH_NCCL_ASYNC_ERROR_HANDLING", "NCCL_ASYNC_ERROR_HANDLING"] {
            if let Some(value) = variable(name).filter(|value| ["0", "2"].contains(&&**value)) {
                return Self::Unusable(format!(
                    "`{name}` is `{value}`, so errors of NCCL could lead to wrong numbers; unset it"
                ));
            }
        }
        // The kernel changes this number with each start of the machine.
        let machine = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        match address() {
            Ok(address) => {
                Self::Usable(format!("{} {address}", machine.unwrap_or_default().trim()))
            }
            Err(e) => Self::Unusable(match e.hints()[..] {
                [] => e.in_a_line(),
                ref hints => format!("{}; {}", e.in_a_line(), hints.join("; ")),
            }),
        }
    }
}

/// The way in which tensors on cards get to other ranks.
#[derive(Debug, PartialEq)]
pub enum Route {
    /// From card to card.
    Nccl,
    /// Through the memory of the machines, and gloo. The text is a warning.
    Host(Option<String>),
}

/// Selects the route for the cards of all ranks. All ranks select the same.
pub fn route(cards: &[Card]) -> Route {
    if cards.iter().all(|card| *card == Card::None) {
        return Route::Host(None);
    }
    let mut why = None;
    for (rank, card) in cards.iter().enumerate() {
        why = match card {
            Card::None => Some(format!("rank {rank} computes on the CPU")),
            Card::Unusable(why) => Some(format!("on rank {rank}, {why}")),
            Card::Usable(_) => cards[..rank].iter().position(|other| other == card).map(|other| {
                format!(
                    "the ranks {other} and {rank} use the same card; start one rank for each card"
                )
            }),
        };
        if why.is_some() {
            break;
        }
    }
    why.map_or(Route::Nccl, |why| {
        Route::Host(Some(format!(
            "the ranks exchange gradients and weights through the memory of the host, which is \
                slower than NCCL: {why}"
        )))
    })
}

/// Adds and gathers known numbers. This connects the cards, and shows whether the values arrive.
///
/// # Errors
/// Fails if the cards cannot connect, or if the values are wrong.
pub fn check(group: &Group, rank: usize, size: usize, device: Device) -> Result<()> {
    let _guard = tch::no_grad_guard();
    let options = (Kind::Float, device);
    let own = Tensor::f_full([1 << 14], (rank + 1) as f64, options)?;
    let all = Tensor::f_zeros([size as i64, 1 << 14], options)?;
    group.gather(&own, &all)?.wait()?;
    let numbers = Tensor::f_arange(size as i64, options)?.f_unsqueeze(1)?.f_add_scalar(1)?;
    let gathered = all.f_eq_tensor(&numbers)?.f_all()?;
    let sum = Tensor::f_full([1 << 22], (rank + 1) as f64, options)?;
    group.sum(&sum)?;
    let added = sum.f_eq((size * (size + 1) / 2) as f64)?.f_all()?;
    for (right, what) in [(gathered, "gathers"), (added, "adds")] {
        if right.f_int64_value(&[])? == 0 {
            return Err(Error::new(format!("NCCL {what} known numbers of {size} cards wrongly")));
        }
    }
    Ok(())
}

/// Explains why cards cannot connect.
pub fn unconnected(e: Error, rank: usize) -> Error {
    e.within(format!("the card of rank {rank} cannot connect to the others"))
        .hint(format!("set `{OFF}=1` to exchange through the memory of the host, which is slower"))
        .hint("set `NCCL_DEBUG=INFO` to see what NCCL does")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usable(name: &str) -> Card {
        Card::Usable(name.to_owned())
    }

    fn warning(cards: &[Card]) -> String {
        match route(cards) {
            Route::Host(Some(warning)) => warning,
            other => panic!("{cards:?}: {other:?}"),
        }
    }

    #[test]
    fn ranks_with_cards_of_their_own_connect_through_nccl() {
        // Cards of two machines may have the same address.
        assert_eq!(route(&[usable("a 01"), usable("a 02"), usable("b 01")]), Route::Nccl);
        assert_eq!(route(&[Card::None, Card::None]), Route::Host(None));
    }

    #[test]
    fn other_ranks_exchange_through_the_host_with_a_warning() {
        let one = || usable("a 01");
        let text = warning(&[one(), usable("a 02"), usable("a 02")]);
        assert!(text.contains("the ranks 1 and 2 use the same card"), "{text}");
        let text = warning(&[one(), Card::None]);
        assert!(text.contains("rank 1 computes on the CPU"), "{text}");
        let text = warning(&[one(), Card::Unusable("it is off".to_owned())]);
        assert!(text.contains("slower than NCCL: on rank 1, it is off"), "{text}");
    }

    #[test]
    fn variables_disable_nccl() {
        let card = |set: &[(&str, &str)]| {
            let variable = |name: &str| {
                set.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
            };
            Card::of_card(&variable, || Ok("0000:01:00.0".to_owned()))
        };
        let handling = |value| card(&[("TORCH_NCCL_ASYNC_ERROR_HANDLING", value)]);
        assert!(matches!(card(&[]), Card::Usable(name) if name.ends_with(" 0000:01:00.0")));
        assert!(matches!(handling("1"), Card::Usable(_)));
        for (card, text) in [
            (card(&[("REPRPO_NO_NCCL", "1")]), "`REPRPO_NO_NCCL` is set"),
            (handling("2"), "`TORCH_NCCL_ASYNC_ERROR_HANDLING` is `2`"),
        ] {
            assert!(matches!(&card, Card::Unusable(why) if why.starts_with(text)), "{card:?}");
        }
    }

    #[test]
    fn the_reason_of_an_unusable_card_has_the_hints() {
        let failed = || Err(Error::new("it was built without NCCL").hint("install it"));
        assert_eq!(
            Card::of_card(&|_| None, failed),
            Card::Unusable("it was built without NCCL; install it".to_owned())
        );
        assert_eq!(Card::of(Device::Cpu), Card::None);
    }
}
