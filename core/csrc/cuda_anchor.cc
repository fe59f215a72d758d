// A reference into libtorch_cuda.so, so that the linker keeps it (see core/build.rs).
// Compiled only where that library is there; never called.
namespace at::cuda {
int warp_size();
}
extern "C" {
__attribute__((used, visibility("default"))) int (*const reprpo_cuda_anchor)() = &at::cuda::warp_size;
}
