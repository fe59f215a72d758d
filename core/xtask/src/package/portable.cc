// Symbols that the C++ compiler of the build machine takes from newer libraries than manylinux_2_28
// has (glibc 2.28, the libstdc++ of GCC 8). Defined here, they are not taken from a library. Linked
// only into the portable binary.
//
// Code of libstdc++ that owns data stays in the shared library, because its types must be the ones
// that libtorch uses.

#include <sstream>

// GLIBCXX_3.4.26: in a header until GCC 8, in the library since GCC 9. The vtables are still the
// library's.
template std::ostringstream::basic_ostringstream();
template std::istringstream::basic_istringstream();
template std::stringstream::basic_stringstream();

// GLIBC_2.32: true as long as the process has one thread, so that shared pointers can count without
// atomic instructions. False is right for every process.
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;
