#!/usr/bin/env bash
# A MariaDB server for tests, of Debian's package, on loopback, with a binary log of rows.
#
#   mariadb.sh start   makes an empty server, starts it, prints its address
#   mariadb.sh stop    ends it and deletes its data
#
# MARIADB_PORT (23306) chooses the port; two ports are two servers. User and password are test.
set -euo pipefail
port=${MARIADB_PORT:-23306}
data=${TMPDIR:-/tmp}/eddyline-mariadb-$port

as() { if [ "$(id -u)" = 0 ]; then runuser -u mysql -- "$@"; else "$@"; fi; }
client() { as mariadb --no-defaults -S "$data/socket" "$@"; }

case ${1:-} in
  start)
    rm -rf "$data"
    as mkdir -p "$data"
    as mariadb-install-db --no-defaults --datadir="$data/data" --auth-root-authentication-method=normal >"$data.log" 2>&1
    as mariadbd --no-defaults --datadir="$data/data" --socket="$data/socket" --pid-file="$data/pid" --port="$port" --bind-address=127.0.0.1 \
      --server-id=1 --log-bin=log --binlog-format=ROW --binlog-row-image=FULL --character-set-server=utf8mb4 </dev/null >>"$data.log" 2>&1 &
    for _ in $(seq 300); do
      client -u root -e 'select 1' >/dev/null 2>&1 && break
      sleep 0.1
    done
    client -u root -e "create database shop; create user test@'127.0.0.1' identified by 'test'; create user test@localhost identified by 'test';
      grant all on *.* to test@'127.0.0.1'; grant all on *.* to test@localhost"
    echo "127.0.0.1:$port" ;;
  stop)
    [ ! -e "$data/pid" ] || kill -9 "$(cat "$data/pid")"
    rm -rf "$data" "$data.log" ;;
  *) echo "usage: $0 start|stop" >&2; exit 2 ;;
esac
