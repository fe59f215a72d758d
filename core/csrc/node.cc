// Nodes of libtorch's autograd graph whose backward pass is a callback.
//
// As in shim.cc, functions return null on success, or the text of an error, which the caller frees
// with reprpo_free. No callback may unwind into this file.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/variable.h>

#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "guarded.h"

namespace {
// Returns a new tensor, the gradient of one input. On failure, returns null and writes a text of at
// most `capacity` bytes, including the final NUL, to `error`.
typedef at::Tensor* (*Gradient)(void* context, size_t input, at::Tensor* grad, char* error,
                                size_t capacity);
typedef void (*Drop)(void* context);

struct CallbackNode : public torch::autograd::Node {
  CallbackNode(torch::autograd::edge_list edges, std::shared_ptr<void> context, Gradient gradient)
      : Node(std::move(edges)), context(std::move(context)), gradient(gradient) {}

  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    torch::autograd::variable_list out(num_outputs());
    // The gradient is undefined if the loss does not depend on the output.
    if (!grads.at(0).defined()) return out;
    if (!context)
      throw std::runtime_error("cannot go backward through a graph that was already freed");
    for (size_t i = 0; i < out.size(); i++) {
      if (!task_should_compute_output(i)) continue;
      char error[1024] = "a backward pass failed without a message";
      std::unique_ptr<at::Tensor> of(
          gradient(context.get(), i, new at::Tensor(grads[0]), error, sizeof(error)));
      if (!of) throw std::runtime_error(error);
      out[i] = *of;
    }
    return out;
  }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    context.reset();
  }

  std::shared_ptr<void> context;
  Gradient gradient;
};
}  // namespace

extern "C" {
// Makes `output` a function of `inputs` in the autograd graph, unless no input requires a gradient
// or gradients are disabled. `output` must be a new tensor that is not part of a graph. The context
// is dropped with the graph, or immediately if no node is created.
char* reprpo_attach(at::Tensor* output, at::Tensor* const* inputs, size_t count, void* context,
                    Gradient gradient, Drop drop) {
  std::shared_ptr<void> owner(context, drop);
  return guarded([&] {
    if (!at::GradMode::is_enabled()) return;
    torch::autograd::edge_list edges;
    bool any = false;
    for (size_t i = 0; i < count; i++) {
      any |= inputs[i]->requires_grad();
      edges.push_back(inputs[i]->requires_grad()
                          ? torch::autograd::impl::gradient_edge(*inputs[i])
                          : torch::autograd::Edge());
    }
    if (!any) return;
    std::shared_ptr<CallbackNode> node(
        new CallbackNode(std::move(edges), std::move(owner), gradient),
        torch::autograd::deleteNode);
    torch::autograd::set_history(*output, node);
  });
}
}
