package main

import (
	"os"
	"os/exec"
	"testing"

	"github.com/eddyline/eddyline/connect/debezium"
	"github.com/eddyline/eddyline/testkit"
)

func TestLabels(t *testing.T) {
	d := testkit.New(t, Labels())
	who, where, out := d.Input(customers), d.Input(addresses), d.Output(labels)
	where.Send(ID{7}, debezium.Change[Address]{Op: debezium.Create, After: &Address{1, "Ulm"}})
	out.WantNone() // its customer is not there yet
	who.Send(ID{1}, debezium.Change[Customer]{Op: debezium.Create, After: &Customer{"Ada"}})
	out.Want(ID{7}, Label{"Ada", "Ulm"})
	who.Send(ID{1}, debezium.Change[Customer]{Op: debezium.Update, After: &Customer{"Ada L."}})
	out.Want(ID{7}, Label{"Ada L.", "Ulm"})
	where.Send(ID{7}, debezium.Change[Address]{Op: debezium.Delete})
	out.WantTombstone(ID{7})
	where.Delete(ID{7}) // which follows a delete
	out.WantNone()
}

// TestMain runs the program itself where a test asks for it.
func TestMain(m *testing.M) {
	if os.Getenv("CHANGES_RUN") != "" {
		main()
	}
	os.Exit(m.Run())
}

func TestProgram(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "CHANGES_RUN=1")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if want := "10: Ada L., Ulm\n"; string(out) != want {
		t.Errorf("got:\n%swant:\n%s", out, want)
	}
}
