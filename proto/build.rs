//! Compiles the `.proto` files without protoc and generates messages, clients and servers.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut files: Vec<PathBuf> =
        fs::read_dir("proto")?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    files.sort();

    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    // Payloads stay shared slices of what came off the wire; ordered maps make an encoding the same every time.
    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        .extern_path(".milvus.proto.messages.Message", "crate::message::Message")
        .extern_path(".milvus.proto.common.ImmutableMessage", "crate::message::ImmutableMessage")
        .compile_fds(descriptors)?;
    Ok(())
}
