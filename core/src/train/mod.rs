//! Training: from pairs to a trained adapter.
