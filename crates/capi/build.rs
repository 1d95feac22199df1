//! The shared library's name for the loader: programs ask for the interface they were linked with.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // What is exported is decided by `#[unsafe(no_mangle)]` alone: the compiler hands the linker a list of these.
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libvirtdisk.so.0");
        // Threads of operations may still be at their end when a program unloads the library.
        println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}
