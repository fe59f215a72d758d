//! Suites: the shifts of published benchmarks, by training distribution. They contain only names
//! and ids of data sets.

use reprpo_plugin::suite;

suite!(include_str!("genies-all.toml"));
suite!(include_str!("genies-probing.toml"));
suite!(include_str!("innerpo.toml"));
