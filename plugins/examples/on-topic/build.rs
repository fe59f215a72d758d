//! Tells the tests where libtorch lies. A host has loaded it before it loads a plugin.

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if let Some(root) = std::env::var_os("LIBTORCH") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}/lib", root.display());
    }
}
