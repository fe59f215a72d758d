//! The `reprpo` command.
