// Turns exceptions of libtorch into texts for Rust.

#pragma once

#include <cstring>
#include <exception>

// Runs `f`. Returns null on success, or the text of an error, which the caller frees with
// reprpo_free.
template <typename F>
static char* guarded(F f) {
  try {
    f();
    return nullptr;
  } catch (const std::exception& e) {
    return strdup(e.what());
  } catch (...) {
    return strdup("libtorch threw something that is not a std::exception");
  }
}
