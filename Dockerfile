# Highwater's image: broker, broker-cli and bench on a small Debian. `docker compose up` builds it.
#
# Both base images are arguments, for machines that have their own copies of them. Without any registry at all,
# scripts/offline-image makes the same image from locally built binaries.
ARG BUILDER_IMAGE=rust:1.95.0-bookworm
ARG RUNTIME_IMAGE=debian:bookworm-slim

FROM ${BUILDER_IMAGE} AS builder
# The image has this toolchain; without the variable rustup would fetch what rust-toolchain.toml lists for development.
ENV RUSTUP_TOOLCHAIN=1.95.0
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin broker --bin broker-cli --bin bench \
    && install -d /out/usr/local/bin /out/var/lib/highwater \
    && install -s target/release/broker target/release/broker-cli target/release/bench /out/usr/local/bin/

FROM ${RUNTIME_IMAGE}
COPY --from=builder /out/usr/local/bin/ /usr/local/bin/
COPY --from=builder --chown=10001:10001 /out/var/lib/highwater /var/lib/highwater

# Settings of the image; scripts/offline-image reads every line from here on.
USER 10001:10001
WORKDIR /var/lib/highwater
ENV HIGHWATER__NODE__DATA_DIR=/var/lib/highwater
# A container is reached through ports that are published on purpose, so it listens on all of its own addresses.
ENV HIGHWATER__LISTEN__CLIENT=0.0.0.0:7420
ENV HIGHWATER__LISTEN__ADVERTISE=localhost:7420
ENV HIGHWATER__LISTEN__HTTP=0.0.0.0:7422
EXPOSE 7420 7421 7422 7423
VOLUME ["/var/lib/highwater"]
ENTRYPOINT ["broker"]
