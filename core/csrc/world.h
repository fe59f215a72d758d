// Types that the main library and the libraries of the process groups share.

#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <vector>

// A connection to the key-value store of a world.
struct reprpo_store {
  c10::intrusive_ptr<c10d::Store> store;
};

// An operation of a group that may not have finished.
struct reprpo_work {
  std::vector<c10::intrusive_ptr<c10d::Work>> works;
};

// The ranks that compute together.
struct reprpo_group {
  c10::intrusive_ptr<c10d::Backend> backend;
};
