"""Writes confluent.json: what Confluent's Python serializers write for a few values, and the schemas that they register.

    pip install 'confluent-kafka[avro,protobuf,json]==2.16.0' && python confluent.py > confluent.json
"""
import json
from importlib.metadata import version

from confluent_kafka.schema_registry import Schema, header_schema_id_serializer, record_subject_name_strategy
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.json_schema import JSONSerializer
from confluent_kafka.schema_registry._sync.mock_schema_registry_client import MockSchemaRegistryClient
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.schema_registry.schema_registry_client import SchemaReference
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import descriptor_pb2

CUSTOMER = '{"type":"record","name":"Customer","namespace":"shop","fields":[{"name":"name","type":"string"}]}'
ORDER = json.dumps({"type": "record", "name": "Order", "namespace": "shop", "fields": [
    {"name": "id", "type": "long"},
    {"name": "customer", "type": "shop.Customer"},
    {"name": "note", "type": ["null", "string"], "default": None},
    {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
    {"name": "lines", "type": {"type": "array", "items": {"type": "map", "values": "int"}}}]})
JSON_SCHEMA = json.dumps({"$schema": "http://json-schema.org/draft-07/schema#", "title": "Click", "type": "object",
                          "properties": {"page": {"type": "string"}, "ms": {"type": "integer"}}, "required": ["page"]})

client = MockSchemaRegistryClient({"url": "mock://"})
cases = []


def record(name, serializer, value, shown, field=MessageField.VALUE, topic="topic"):
    headers = []
    data = serializer(value, SerializationContext(topic, field, headers))
    cases.append({"name": name, "topic": topic, "key": field == MessageField.KEY, "value": shown, "bytes": data.hex(),
                  "headers": [[k, v.hex()] for k, v in headers]})


client.register_schema("customers", Schema(CUSTOMER, "AVRO"))
order = Schema(ORDER, "AVRO", [SchemaReference("shop.Customer", "customers", 1)])
import datetime
import decimal
value = {"id": 7, "customer": {"name": "Ada"}, "note": "now", "lines": [{"a": 1}], "price": decimal.Decimal("12.34"),
         "at": datetime.datetime.fromtimestamp(1700000000, datetime.timezone.utc)}
record("avro", AvroSerializer(client, order), value, "Ada")
record("avro, id in a header", AvroSerializer(client, order, conf={"schema.id.serializer": header_schema_id_serializer}), value, "Ada")
record("avro key", AvroSerializer(client, '"string"'), "k1", "k1", MessageField.KEY)
record("avro, subject by record", AvroSerializer(client, CUSTOMER, conf={"subject.name.strategy": record_subject_name_strategy}),
       {"name": "Bob"}, "Bob")

top = descriptor_pb2.FileOptions(java_package="p")
nested = descriptor_pb2.DescriptorProto.ExtensionRange(start=3, end=9)
first = descriptor_pb2.FileDescriptorSet(file=[descriptor_pb2.FileDescriptorProto(name="f")])
for name, message, conf in [
    ("protobuf, first message", first, {}), ("protobuf, other message", top, {}), ("protobuf, nested message", nested, {}),
    ("protobuf, id in a header", nested, {"schema.id.serializer": header_schema_id_serializer}),
]:
    record(name, ProtobufSerializer(type(message), client, conf), message, message.SerializeToString().hex(), topic="proto-" + type(message).__name__)

click = {"page": "/a", "ms": 12}
record("json", JSONSerializer(JSON_SCHEMA, client), click, click, topic="clicks")
record("json, id in a header", JSONSerializer(JSON_SCHEMA, client, conf={"schema.id.serializer": header_schema_id_serializer}), click, click, topic="clicks")

schemas = []
for subject in sorted(client.get_subjects()):
    for v in client.get_versions(subject):
        r = client.get_version(subject, v)
        schemas.append({"subject": r.subject, "version": r.version, "id": r.schema_id, "guid": r.guid, "schema": r.schema.schema_str,
                        "schemaType": r.schema.schema_type,
                        "references": [{"name": x.name, "subject": x.subject, "version": x.version} for x in r.schema.references or []]})
print(json.dumps({"origin": f"confluent-kafka {version('confluent-kafka')} for Python, by confluent.py", "schemas": schemas, "cases": cases}, indent=1))
