package main

import (
	"testing"
	"time"

	"github.com/eddyline/eddyline/serde/registry"
	"github.com/eddyline/eddyline/serde/registry/registrytest"
	"github.com/eddyline/eddyline/testkit"
)

func TestConvert(t *testing.T) {
	server := registrytest.New(t)
	schemas := registry.New(registry.Config{URLs: []string{server.URL}})
	d := testkit.New(t, Convert(schemas))
	in, out := d.Input(raw), d.Output(readings(schemas))
	in.Send("", Raw{"s1", 230.5, 1000})
	in.Send("", Raw{"s1", -1, 2000})
	out.Want("s1", Reading{"s1", 230.5, time.Unix(1, 0).UTC()})
	out.WantNone()
}
