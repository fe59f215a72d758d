//! The built-in methods and data sets as a plugin library that uses only the SDK.

use reprpo_datasets as _;
use reprpo_methods as _;

reprpo_plugin::export_plugin!();
