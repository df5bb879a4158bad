#!/usr/bin/env bash
# A RabbitMQ broker for tests, of Debian's package, on loopback.
#
#   rabbitmq.sh start   starts it, on the data that is there, and prints the address for EDDYLINE_RABBITMQ
#   rabbitmq.sh stop    ends it; its data stays
#   rabbitmq.sh crash   kills it; its data stays
#   rabbitmq.sh wipe    ends it and deletes its data
#
# RABBITMQ_PORT (25672) chooses the port; two ports are two brokers. The two ports above it are its own, too.
set -euo pipefail
port=${RABBITMQ_PORT:-25672}
data=${TMPDIR:-/tmp}/eddyline-rabbitmq-$port
pid=$data/pid

export HOME=$data ERL_EPMD_PORT=$((port + 2)) ERL_EPMD_ADDRESS=127.0.0.1
export RABBITMQ_NODENAME=eddyline-$port@localhost RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 RABBITMQ_NODE_PORT=$port
export RABBITMQ_DIST_PORT=$((port + 1)) RABBITMQ_MNESIA_BASE=$data/mnesia RABBITMQ_LOG_BASE=$data/log
export RABBITMQ_CONFIG_FILE=$data/none RABBITMQ_CONF_ENV_FILE=$data/none RABBITMQ_ENABLED_PLUGINS_FILE=$data/plugins
export RABBITMQ_ALLOW_INPUT=1 # the Erlang machine replaces the script that starts it, so that the pid is its own

running() { [ -f "$pid" ] && kill -0 "$(cat "$pid")" 2>/dev/null; }

end() { # SIGNAL
  running || return 0
  kill "-$1" "$(cat "$pid")"
  for _ in $(seq 240); do running || { rm -f "$pid"; return; }; sleep 0.25; done
  echo "the broker is still running" >&2; exit 1
}

start() {
  running && return
  mkdir -p "$data"
  : >"$data/none"
  echo '[].' >"$data/plugins"
  nohup setsid /usr/lib/rabbitmq/bin/rabbitmq-server -noinput >"$data/out" 2>&1 </dev/null &
  echo $! >"$pid"
  for _ in $(seq 240); do
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && return
    running || { echo "the broker died:" >&2; tail -20 "$data/out" >&2; exit 1; }
    sleep 0.25
  done
  echo "the broker did not open port $port in 60 s; its log is in $data/log" >&2; exit 1
}

case ${1:-} in
  start) start; echo "amqp://guest:guest@127.0.0.1:$port/" ;;
  stop) end TERM ;;
  crash) end KILL ;;
  wipe) end TERM; epmd -kill >/dev/null 2>&1 || true; rm -rf "$data" ;;
  *) echo "usage: $0 start|stop|crash|wipe" >&2; exit 2 ;;
esac
