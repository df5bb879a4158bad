package main

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eddyline/eddyline/testkit"
)

func TestStates(t *testing.T) {
	d := testkit.New(t, States())
	order, payment, out := d.Input(orders), d.Input(payments), d.Output(states)

	order.SendAt(0, "1", Order{"Ada", 500})
	payment.SendAt(30*time.Minute, "1", Payment{500})
	out.Want("1", "Ada: paid")

	payment.SendAt(40*time.Minute, "2", Payment{100}) // before its order
	order.SendAt(40*time.Minute+30*time.Second, "2", Order{"Bob", 900})
	out.Want("2", "Bob: 800 cents missing")

	order.SendAt(50*time.Minute, "3", Order{"Cyd", 100})
	payment.SendAt(110*time.Minute+time.Millisecond, "3", Payment{100}) // too late
	d.Advance(time.Second)
	order.SendAt(3*time.Hour, "4", Order{"Dee", 1})
	out.Want("3", "Cyd: not paid")
	out.WantNone()
}

// TestMain runs the program itself where a test asks for it.
func TestMain(m *testing.M) {
	if os.Getenv("PAYMENTS_RUN") != "" {
		main()
	}
	os.Exit(m.Run())
}

func TestProgram(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "PAYMENTS_RUN=1")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSpace(string(out)), "\n")
	slices.Sort(got)
	if want := []string{"order 1 of Ada: paid", "order 3 of Cyd: 60 cents missing"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
