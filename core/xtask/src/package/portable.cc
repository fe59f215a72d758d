// Symbols that code from a newer C++ compiler takes from its libraries, but that the libraries of
// manylinux_2_28 (glibc 2.28, the libstdc++ of GCC 8) do not have. Because they are defined here,
// the binary does not need them from a library. This file is only linked into the portable binary.
//
// The code of libstdc++ that owns data stays in the shared library, because libtorch and the binary
// must use the same types.

#include <sstream>

// GLIBCXX_3.4.26: these constructors are in a header until GCC 8 and in the library since GCC 9.
// The vtables are always in the library.
template std::ostringstream::basic_ostringstream();
template std::istringstream::basic_istringstream();
template std::stringstream::basic_stringstream();

// GLIBC_2.32: if true, the process has only one thread, and shared pointers count without atomic
// instructions. False is correct for every process.
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;
