# syntax=docker/dockerfile:1
# One image with the one binary: `docker build -t streaming:0.1.0 --build-arg REVISION=$(git rev-parse HEAD) .`
# The final stage has no shell; the process is PID 1, runs as 65532 and writes only where a volume is mounted.

# A base image of your own must bring glibc, libgcc and the authorities in /etc/ssl/certs: without any authority the client of object
# storage cannot be made, even for plaintext.
ARG RUST_IMAGE=rust:1.95-bookworm
ARG BASE_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${RUST_IMAGE} AS build
# The etcd client's build script runs protoc.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends protobuf-compiler \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --release --bin streaming \
    && cp target/release/streaming /streaming

FROM ${BASE_IMAGE}
# What was built: the workspace's version, the commit, and where its source is.
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="streaming" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.description="Write-ahead logs and streams for a vector database" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build --chmod=0555 /streaming /usr/local/bin/streaming
USER 65532:65532
# coordinator, node, log store, HTTP for operators
EXPOSE 53100 22222 18080 9091
ENTRYPOINT ["/usr/local/bin/streaming"]
CMD ["--help"]
