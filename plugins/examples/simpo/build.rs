//! Adds libtorch's folder to the library path of the tests. reprpo itself has already loaded
//! libtorch when it loads a plugin.

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if let Some(root) = std::env::var_os("LIBTORCH") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}/lib", root.display());
    }
}
