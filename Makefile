# Two commands matter: `make run` and `make test`. Both install what they need from Debian's packages.

SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: run test tests-built check chart examples build protoc etcd

run: protoc
	cargo run --locked --release -- standalone

build: protoc
	cargo build --locked --release

# The chart's checks and every test; ends with what failed.
test: etcd tests-built
	tools/test

# Everything that the tests run, the binary and the examples among it.
tests-built: protoc
	cargo test --locked --workspace --no-run

check: protoc
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	tools/dependency-direction
	tools/documentation
	RUSTDOCFLAGS=-Dwarnings cargo doc --locked --workspace --no-deps

# The chart, the image and the compose file. Uses the binary if it was built.
chart: etcd
	helm/tests/run

# The quickstart's commands and the examples in Python, Go and Rust, against the binary that was built.
examples:
	examples/run

# The etcd client's build script runs protoc; our own .proto files need none.
protoc:
	@command -v protoc >/dev/null || { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq protobuf-compiler; }

# The tests run a real etcd.
etcd:
	@command -v etcd >/dev/null || { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq etcd-server; }
