# pgweir in a small image: glibc, PAM, psql for a look around, and one binary under two names.
# It runs as any user, on a read-only root. tests/image.rs runs the final stage's files so.

FROM rust:1.95-bookworm AS builder
WORKDIR /src
COPY scripts/setup scripts/setup
RUN scripts/setup release
COPY scripts scripts
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY benches benches
COPY fuzz fuzz
RUN scripts/build-release

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libpam0g postgresql-client tzdata \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 996 pgweir \
    && useradd --uid 998 --gid 996 --no-create-home --home-dir / --shell /usr/sbin/nologin pgweir
COPY --from=builder /src/target/profiled/pgweir /usr/bin/pgweir
COPY LICENSE /usr/share/doc/pgweir/LICENSE
RUN ln -s pgweir /usr/bin/pgbouncer
USER 998:996
EXPOSE 6432
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/pgweir"]
CMD ["/etc/pgweir/pgweir.ini"]
