// Registry turns readings of sensors in JSON into Avro, with its schema in a schema registry. SCHEMA_REGISTRY is the
// registry's address.
package main

import (
	"cmp"
	"os"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/serde/avro"
	"github.com/eddyline/eddyline/serde/registry"
	"github.com/eddyline/eddyline/streams"
	"github.com/eddyline/eddyline/topology"
)

// Raw is what sensors send, Reading what others get.
type Raw struct {
	Sensor string  `json:"sensor"`
	Volts  float64 `json:"volts"`
	Millis int64   `json:"ms"`
}

type Reading struct {
	Sensor string    `avro:"sensor"`
	Volts  float64   `avro:"volts"`
	At     time.Time `avro:"at"`
}

const schema = `{"type": "record", "name": "Reading", "namespace": "plant", "fields": [
	{"name": "sensor", "type": "string"},
	{"name": "volts", "type": "double"},
	{"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}}]}`

var raw = topology.NewTopic("raw", serde.String, serde.JSON[Raw]{})

// readings is the topic in Avro. The first write registers its schema, unless the registry finds it incompatible with what
// readers have.
func readings(schemas *registry.Client) topology.Topic[string, Reading] {
	return topology.NewTopic("readings", serde.String, avro.New[Reading](schemas, schema, registry.Options{AutoRegister: true}))
}

// Convert converts readings, by sensor, and leaves impossible ones out.
func Convert(schemas *registry.Client) *topology.Builder {
	b := topology.New()
	b.Stream(raw).
		Filter(func(r Raw) bool { return r.Volts >= 0 && r.Volts < 1000 }).
		Map(func(_ string, r Raw) (string, Reading) {
			return r.Sensor, Reading{r.Sensor, r.Volts, time.UnixMilli(r.Millis).UTC()}
		}).
		To(readings(schemas))
	return b
}

func main() {
	schemas := registry.New(registry.Config{URLs: []string{cmp.Or(os.Getenv("SCHEMA_REGISTRY"), "http://localhost:8081")}})
	streams.Main(Convert(schemas))
}
