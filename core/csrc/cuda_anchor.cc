// A reference into libtorch_cuda.so, so that the linker keeps it (see core/build.rs).
// Compiled only where that library is there; never called.
namespace at::cuda {
int warp_size();
}
extern "C" {
// A constant is local to its file unless it is declared `extern`, and then no Rust code could refer to it.
extern int (*const reprpo_cuda_anchor)();
int (*const reprpo_cuda_anchor)() = &at::cuda::warp_size;
}
