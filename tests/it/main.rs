//! End to end: the real binary, real files and sockets, a real etcd, `kill -9`.
