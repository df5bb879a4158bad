#!/usr/bin/env bash
# Compiles the reference: Kafka Streams' own test driver, with commits that can be left to the steps and all that was sent in
# one list, and the program that runs plans under it. Prints the class path. Needs Java 17+ and Maven.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
libs=$("$here/../kafka/kafka.sh" classpath)
out=${TMPDIR:-/tmp}/eddyline-reference
sources=kafka-streams-test-utils-4.3.1-sources.jar
if [ ! -e "$out/Reference.class" ] || [ "$here/Reference.java" -nt "$out/Reference.class" ]; then
  mkdir -p "$out/src"
  mvn -q -B dependency:copy -Dartifact=org.apache.kafka:kafka-streams-test-utils:4.3.1:jar:sources -DoutputDirectory="$out" >&2
  (cd "$out/src" && jar xf "../$sources" org/apache/kafka/streams/TopologyTestDriver.java)
  driver=$out/src/org/apache/kafka/streams/TopologyTestDriver.java
  sed -i -E '0,/^public class TopologyTestDriver.*\{/s//&\n    public static boolean explicitCommits;\n    public static java.util.List<ProducerRecord<byte[], byte[]>> sent;\n    public void commitNow() { if (task != null) { commit(task.prepareCommit(true)); task.postCommit(true); } completeAllProcessableWork(); }/
    /public void commitNow/!s/^( +)(commit\(task\.prepareCommit\(true\)\);|task\.postCommit\(true\);)$/\1if (!explicitCommits) \2/
    s/outputRecordsByTopic\.computeIfAbsent\(record\.topic\(\)/sent.add(record);\n            &/' "$driver"
  javac -nowarn -cp "$libs" -d "$out" "$driver" "$here/Reference.java" >&2
fi
echo "$out:$libs"
