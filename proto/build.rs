//! Compiles the .proto files with a protobuf compiler written in Rust: no system `protoc` needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/mangrove.proto");
    let descriptors = protox::compile(["proto/mangrove.proto"], ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
