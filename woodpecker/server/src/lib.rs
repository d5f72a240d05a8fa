//! The log store role: keeps segments of the quorum backend on one disk volume, behind gRPC.
