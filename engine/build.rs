//! Compiles the CUDA kernels to PTX, with candle's way of finding nvcc and the architecture.

#[cfg(feature = "cuda")]
fn main() -> cudaforge::Result<()> {
    println!("cargo::rerun-if-changed=src/model/cuda");
    cudaforge::KernelBuilder::new()
        .source_dir("src/model/cuda")
        .arg("-std=c++17")
        .arg("-O3")
        .build_ptx()?;
    Ok(())
}

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
