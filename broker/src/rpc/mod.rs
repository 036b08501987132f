//! The gRPC front door.
