#!/usr/bin/env bash
# A PostgreSQL server for tests, of Debian's package, on loopback, with logical decoding on.
#
#   postgres.sh start   makes an empty server, starts it, prints the address for EDDYLINE_POSTGRES
#   postgres.sh stop    ends it and deletes its data
#
# POSTGRES_PORT (25432) chooses the port; two ports are two servers.
set -euo pipefail
port=${POSTGRES_PORT:-25432}
data=${TMPDIR:-/tmp}/eddyline-postgres-$port
bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -1)

as() { if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi; }

case ${1:-} in
  start)
    rm -rf "$data"
    as mkdir -p "$data"
    as "$bin/initdb" -D "$data" -U test --auth=trust --no-sync >"$data.log"
    as "$bin/pg_ctl" -D "$data" -w -l "$data/log" -o "-p $port -k $data -c listen_addresses=127.0.0.1 -c wal_level=logical -c fsync=off" start >>"$data.log"
    echo "postgres://test@127.0.0.1:$port/postgres?sslmode=disable" ;;
  stop)
    as "$bin/pg_ctl" -D "$data" -m immediate stop >/dev/null
    rm -rf "$data" "$data.log" ;;
  *) echo "usage: $0 start|stop" >&2; exit 2 ;;
esac
