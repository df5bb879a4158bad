package state_test

import (
	"testing"

	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/state/statetest"
	"pgregory.net/rapid"
)

func TestMemory(t *testing.T) {
	statetest.Run(t, statetest.Harness{Open: func(rapid.TB) state.Engine { return state.NewMemory() }})
}

func TestPebble(t *testing.T) {
	files := map[state.Engine]state.FS{}
	open := func(t rapid.TB, fs state.FS) state.Engine {
		e, err := state.OpenPebble("db", state.PebbleOptions{FS: fs, MemTableBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		files[e] = fs
		return e
	}
	statetest.Run(t, statetest.Harness{
		Open: func(t rapid.TB) state.Engine { return open(t, state.NewMemoryFS()) },
		Reopen: func(t rapid.TB, e state.Engine) state.Engine {
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
			return open(t, files[e])
		},
	})
}
