//! Compiles the `.proto` files with protox, so that building needs no protoc on the machine.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protos = [
        "highwater/v1/producer.proto",
        "highwater/v1/consumer.proto",
        "highwater/v1/topic.proto",
        "highwater/v1/group.proto",
        "highwater/v1/cluster.proto",
        "highwater/v1/registry.proto",
        "highwater/internal/v1/raft.proto",
        "highwater/internal/v1/node.proto",
        "highwater/internal/v1/replica.proto",
        "highwater/internal/v1/group.proto",
    ];
    println!("cargo:rerun-if-changed=protos");
    let descriptors = protox::compile(protos, ["protos"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // What nodes of different versions rely on: held by tests/wire.rs.
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // Served by the brokers' reflection: only what clients may call, plus what it imports.
    let mut public = descriptors.clone();
    public.file.retain(|file| file.package() != "highwater.internal.v1");
    std::fs::write(out.join("public_descriptors.bin"), public.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        .out_dir(&out)
        .compile_fds(descriptors)?;
    Ok(())
}
