#!/usr/bin/env bash
# Starts a database, has Changes.java change it at random, and prints what Debezium makes of that, and the rows that are left.
#
#   changes.sh postgres|mariadb SEED
#
# Needs Java 17+, Maven, and Debian's packages postgresql or mariadb-server.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
libs=${TMPDIR:-/tmp}/eddyline-debezium-3.5.0
[ -e "$libs/.complete" ] || {
  mvn -q -B -f "$here/pom.xml" dependency:copy-dependencies -DoutputDirectory="$libs" >&2
  touch "$libs/.complete"
}
trap '"$here/../$1.sh" stop' EXIT
address=$("$here/../$1.sh" start)
address=${address#*@} address=${address%%/*}
java -Xmx256m -Dorg.slf4j.simpleLogger.defaultLogLevel=error -cp "$libs/*" "$here/Changes.java" "$1" "${address%:*}" "${address#*:}" "$2"
