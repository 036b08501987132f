# shellcheck shell=bash
# The cluster of docker-compose.yml, for the checks that run against it. Sourced after lib.sh, never run.

compose_project=highwater-check
compose_servers=localhost:7420,localhost:7430,localhost:7440

# Either Compose: version 2 is a plugin of docker, version 1 a program of its own.
docker_compose() {
    if docker compose version >/dev/null 2>&1; then
        (cd "$root" && docker compose -p "$compose_project" "$@")
    else
        (cd "$root" && docker-compose -p "$compose_project" "$@")
    fi
}

container_of() { docker_compose ps -q "node$1"; }

# Starts the cluster, and the shop where its profile is chosen, with images that scripts/offline-image makes or, with BUILD_IMAGE=1, as users do.
compose_up() {
    at_exit+=(compose_down)
    compose_down 0
    if [ -n "${BUILD_IMAGE:-}" ]; then
        docker_compose build >&2
    else
        "$root/scripts/offline-image"
        [ "${COMPOSE_PROFILES:-}" != shop ] || "$root/scripts/offline-image" --shop
    fi
    compose_start_all
    compose_wait_healthy
}

compose_start_all() {
    local node
    docker_compose up -d --no-build >/dev/null 2>"$work/compose.log" || {
        cat "$work/compose.log" >&2
        die "docker compose could not start the cluster"
    }
    for node in "${nodes[@]}"; do container_of "$node" >"$work/container$node"; done
}

compose_wait_healthy() {
    "$bin/broker-cli" --server "$compose_servers" --timeout 90s cluster health --wait >/dev/null ||
        die "the containers' cluster did not become healthy"
}

# Takes everything away; after a failure ($1 is not 0) the containers' last words are shown first.
compose_down() {
    [ "$1" -eq 0 ] || docker_compose logs --no-color --tail 15 >&2 || true
    docker_compose down -v --remove-orphans >/dev/null 2>&1 || true
}
