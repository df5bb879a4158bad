"""Writes records key-0 … key-(N-1), whose values are the client's name and the key's number, a quarter with each compression.

    python produce.py CLIENT BROKERS TOPIC N      CLIENT: librdkafka, librdkafka-murmur2 or kafka-python

Needs confluent-kafka, which is librdkafka, and kafka-python with python-snappy, lz4 and zstandard.
"""
import sys

client, brokers, topic, n = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
for quarter, compression in enumerate(["gzip", "snappy", "lz4", "zstd"]):
    records = [(f"key-{i}".encode(), f"{client}-{i}".encode()) for i in range(quarter, n, 4)]
    if client == "kafka-python":
        from kafka import KafkaProducer

        producer = KafkaProducer(bootstrap_servers=brokers, compression_type=compression)
        for key, value in records:
            producer.send(topic, key=key, value=value)
        producer.close()
    else:
        from confluent_kafka import Producer

        settings = {"bootstrap.servers": brokers, "compression.type": compression}
        if client == "librdkafka-murmur2":
            settings["partitioner"] = "murmur2_random"
        producer = Producer(settings)
        for key, value in records:
            producer.produce(topic, key=key, value=value)
            producer.poll(0)
        assert producer.flush(60) == 0
