//! Adds libtorch's folder to the library path of the tests. A plugin that reprpo loads does not
//! need this, because reprpo has already loaded libtorch.

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if let Some(root) = std::env::var_os("LIBTORCH") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}/lib", root.display());
    }
}
