//! The wire contract: protobuf messages and services, and the record-batch codec.
//!
//! Owns: `protos/`, the generated code, gRPC bodies that copy no payload, the batch codec (Kafka's record batch, magic 2), the
//! partitioner. Never: sockets, files, Raft, or anything of the broker's or the client's state.

pub mod batch;
mod convert;
pub mod grpc;
pub mod partitioner;

/// The generated code refers to other packages by relative path, so the modules nest as the packages do.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated from the .proto files, which hold the docs"
)]
mod generated {
    pub mod v1 {
        tonic::include_proto!("highwater.v1");
    }
    pub mod internal {
        pub mod v1 {
            tonic::include_proto!("highwater.internal.v1");
        }
    }
}

/// Messages and services between nodes, package `highwater.internal.v1`.
pub use generated::internal::v1 as internal;
/// Client-facing messages and services, package `highwater.v1`.
pub use generated::v1;

/// The encoded `FileDescriptorSet` of the client-facing packages, for gRPC reflection.
pub const PUBLIC_DESCRIPTORS: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/public_descriptors.bin"));
