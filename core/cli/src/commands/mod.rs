//! The subcommands, one file each. Each file calls the engine with the given arguments, and prints
//! the results.

pub mod bench;
pub mod cache;
pub mod chat;
pub mod compare;
pub mod config;
pub mod data;
pub mod doctor;
pub mod eval;
pub mod explain;
pub mod export;
pub mod generate;
pub mod list;
pub mod model;
pub mod new;
pub mod plugin;
pub mod report;
pub mod reproduce;
pub mod run;
pub mod score;
pub mod selftest;
pub mod states;
pub mod sweep;
