"""Prints which partition of 7 librdkafka gives keys: partitioner, tab, key in hexadecimal, tab, partition.

    pip install confluent-kafka==2.16.0 && python librdkafka.py BROKERS > librdkafka.txt
"""
import sys

import confluent_kafka
from confluent_kafka.admin import AdminClient, NewTopic

keys = [b"", b"a", b"ab", b"abc", b"abcd", b"hello world", "häll".encode(), bytes(range(200, 256)), b"\x00\x00"] + [b"key-%d" % i for i in range(20)]
admin = AdminClient({"bootstrap.servers": sys.argv[1]})
admin.create_topics([NewTopic("partitioned", 7, 1)])["partitioned"].result()
print(f"# librdkafka {confluent_kafka.libversion()[0]}, by librdkafka.py")
for name in ["consistent", "murmur2", "fnv1a"]:
    p = confluent_kafka.Producer({"bootstrap.servers": sys.argv[1], "partitioner": name})
    for key in keys:
        p.produce("partitioned", b"v", key=key, on_delivery=lambda e, m, key=key: print(f"{name}\t{key.hex()}\t{m.partition()}") if not e else sys.exit(e))
    p.flush()
