// The key-value store and the collective operations of c10d. A process group itself comes from a
// separate library, because it needs other headers.
//
// Every function returns null on success, or the text of an error, which the caller frees with
// reprpo_free.

#include "world.h"

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "guarded.h"

using std::chrono::milliseconds;

extern "C" {
// Connects to the store at `host`. If `serves` is true, this process hosts it; port 0 then selects
// a free port. All keys get `prefix`. Writes the port to `bound`.
char* reprpo_store_open(const char* host, uint16_t port, bool serves, int64_t timeout_ms,
                        const char* prefix, reprpo_store** out, uint16_t* bound) {
  return guarded([&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = serves;
    options.waitWorkers = false;
    options.timeout = milliseconds(timeout_ms);
    auto tcp = c10::make_intrusive<c10d::TCPStore>(host, options);
    *bound = tcp->getPort();
    *out = new reprpo_store{c10::make_intrusive<c10d::PrefixStore>(prefix, tcp)};
  });
}

// A second connection to the same store, for another thread.
char* reprpo_store_clone(const reprpo_store* store, reprpo_store** out) {
  return guarded([&] { *out = new reprpo_store{store->store->clone()}; });
}

void reprpo_store_drop(reprpo_store* store) { delete store; }

char* reprpo_store_set(reprpo_store* store, const char* key, const uint8_t* data, size_t size) {
  return guarded([&] { store->store->set(key, std::vector<uint8_t>(data, data + size)); });
}

// Waits for the key. The caller frees `data` with reprpo_free.
char* reprpo_store_get(reprpo_store* store, const char* key, int64_t timeout_ms, char** data,
                       size_t* size) {
  return guarded([&] {
    store->store->wait({key}, milliseconds(timeout_ms));
    auto value = store->store->get(key);
    *size = value.size();
    *data = static_cast<char*>(std::malloc(value.size() + 1));
    std::memcpy(*data, value.data(), value.size());
  });
}

char* reprpo_store_has(reprpo_store* store, const char* key, bool* out) {
  return guarded([&] { *out = store->store->check({key}); });
}

// Finishes all operations of a group. All ranks must call this at the same time, as their last
// operation of the group.
char* reprpo_group_finish(reprpo_group* group) {
  return guarded([&] { group->backend->shutdown(); });
}

void reprpo_group_drop(reprpo_group* group) { delete group; }

// Replaces the tensor by its sum over all ranks. On a card, the operations that follow wait for the
// sum, and this function does not.
char* reprpo_group_sum(reprpo_group* group, at::Tensor* tensor) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{*tensor};
    group->backend->allreduce(tensors)->wait();
  });
}

// Starts to write the tensor of each rank to the rows of `out`, whose first dimension is the number
// of ranks. The caller passes the work to reprpo_work_wait or reprpo_work_drop.
char* reprpo_group_gather(reprpo_group* group, at::Tensor* tensor, at::Tensor* out,
                          reprpo_work** work) {
  return guarded([&] {
    auto started = std::make_unique<reprpo_work>();
    if (out->is_cuda()) {
      started->works.push_back(group->backend->_allgather_base(*out, *tensor));
      *work = started.release();
      return;
    }
    // gloo's allgather would need a second buffer of the size of `out`.
    auto rows = out->unbind(0);
    rows[group->backend->getRank()].copy_(*tensor);
    for (size_t root = 0; root < rows.size(); ++root) {
      std::vector<at::Tensor> row{rows[root]};
      c10d::BroadcastOptions options;
      options.rootRank = root;
      started->works.push_back(group->backend->broadcast(row, options));
    }
    *work = started.release();
  });
}

// Waits until the operation has finished. On a card, the operations that follow wait, and this
// function does not.
char* reprpo_work_wait(reprpo_work* work) {
  return guarded([&] {
    for (auto& part : work->works) part->wait();
  });
}

void reprpo_work_drop(reprpo_work* work) { delete work; }
}
