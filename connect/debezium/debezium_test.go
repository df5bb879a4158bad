package debezium_test

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eddyline/eddyline/connect"
	"github.com/eddyline/eddyline/connect/debezium"
	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/testkit"
	"github.com/eddyline/eddyline/topology"
)

type id struct {
	ID int `json:"id"`
}

type customer struct {
	Name   string         `json:"name"`
	Since  *time.Time     `json:"since"`
	Credit connect.Number `json:"credit"`
	Seen   *time.Time     `json:"seen"`
	Mail   string         `json:"mail"` // a column that was added later
}

type address struct {
	Customer int    `json:"customer_id"`
	City     string `json:"city"`
}

var (
	customers = debezium.Topic[id, customer]("pg.public.customers")
	addresses = debezium.Topic[id, address]("pg.public.addresses")
	out       = topology.NewTopic("out", serde.JSON[id]{}, serde.JSON[customer]{})
)

// records returns the records that a connector wrote, of one topic or all.
func records(t *testing.T, send func(topic string, key, value []byte)) {
	t.Helper()
	b, err := os.ReadFile("testdata/postgres.txt")
	if err != nil {
		t.Fatal(err)
	}
	part := func(s string) []byte {
		if s == "null" {
			return nil
		}
		return []byte(s)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Split(strings.TrimSuffix(line, "\n"), "\t"); len(f) == 3 {
			send(f[0], part(f[1]), part(f[2]))
		}
	}
}

func customerTable(o debezium.Options) *topology.Builder {
	b := topology.New()
	b.Serde(serde.JSON[customer]{})
	debezium.Table(b, customers, o).ToStream().To(out)
	return b
}

// What PostgreSQL did is what the table does: each delete once, a changed primary key as delete and create, and so on.
func TestTableOfPostgres(t *testing.T) {
	for _, x := range []struct {
		on   debezium.OnTruncate
		rows []string
	}{
		{debezium.Ignore, nil},
		{debezium.Clear, []string{"1 gone", "4 gone"}},
	} {
		d := testkit.New(t, customerTable(debezium.Options{OnTruncate: x.on}))
		records(t, func(topic string, key, value []byte) {
			if topic == customers.Name() {
				d.Input(customers).SendBytes(key, value)
			}
		})
		var got []string
		for _, r := range d.Output(out).All() {
			text := string(rune('0'+r.Key.ID)) + " "
			if r.NoValue {
				text += "gone"
			} else {
				text += r.Value.Name + " " + r.Value.Credit.FloatString(2) + " " + r.Value.Mail
				if r.Value.Since != nil {
					text += " " + r.Value.Since.Format(time.DateOnly) + " " + r.Value.Seen.Format(time.RFC3339Nano)
				}
			}
			if id, ok := r.Headers.Get(debezium.TransactionHeader); ok {
				text += " in " + id[:3]
			}
			got = append(got, text)
		}
		want := []string{
			"1 Ada 12.34  2024-02-29 2024-03-01T10:00:00.123456Z", "2 Bob -0.05 ",
			"1 Ada L. 99999.99  2024-02-29 2024-03-01T10:00:00.123456Z in 731", "2 gone in 731",
			"3 Cyd 0.00 c@x 1969-12-31 1969-12-31T23:59:59.5Z in 732", "3 gone in 732",
			"4 Cyd 0.00 c@x 1969-12-31 1969-12-31T23:59:59.5Z in 732",
		}
		for _, r := range x.rows {
			want = append(want, r+" in 733")
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("on truncate %d (-want +got):\n%s", x.on, diff)
		}
	}
}

// A truncation stops the application if nothing else was said; so does what is no change.
func TestStops(t *testing.T) {
	key := []byte(`{"id":1}`)
	for _, x := range []struct {
		key   []byte
		value string
		want  string
	}{
		{nil, `{"op":"t"}`, "was truncated"},
		{nil, `{"op":"c","after":{"name":"x"}}`, "no primary key"},
		{key, `{"op":"c"}`, "no row in after"},
		{key, `{"name":"x"}`, "is this a change topic"},
	} {
		failed := &failure{TB: t, done: make(chan struct{})}
		go func() {
			defer close(failed.done)
			testkit.New(failed, customerTable(debezium.Options{})).Input(customers).SendBytes(x.key, []byte(x.value))
		}()
		<-failed.done
		if !strings.Contains(failed.text, x.want) {
			t.Errorf("%s: %q, want %q in it", x.value, failed.text, x.want)
		}
	}
	d := testkit.New(t, customerTable(debezium.Options{}))
	d.Input(customers).SendBytes(key, nil) // a tombstone whose delete was compacted away
	d.Input(customers).SendBytes([]byte(`{"id":2}`), []byte(`{"op":"m"}`))
	d.Output(out).WantNone()
}

// The tables of two topics are joined by a foreign key, as those of the database are.
func TestForeignKeyJoin(t *testing.T) {
	b := topology.New()
	b.Serde(serde.JSON[customer]{})
	b.Serde(serde.JSON[address]{})
	cities := topology.NewTopic("cities", serde.JSON[id]{}, serde.String)
	o := debezium.Options{OnTruncate: debezium.Ignore}
	debezium.Table(b, addresses, o).JoinForeign(debezium.Table(b, customers, o),
		func(_ id, a address) (id, bool) { return id{a.Customer}, true },
		func(a address, c customer) string { return c.Name + " in " + a.City },
	).ToStream().To(cities)
	d := testkit.New(t, b)
	records(t, func(topic string, key, value []byte) {
		switch topic {
		case customers.Name():
			d.Input(customers).SendBytes(key, value)
		case addresses.Name():
			d.Input(addresses).SendBytes(key, value)
		}
	})
	got := d.Output(cities)
	got.Want(id{10}, "Ada in Ulm")
	got.Want(id{10}, "Ada L. in Ulm")
	got.Want(id{11}, "Bob in Bonn")
	got.WantTombstone(id{11})
	got.WantNone()
}

func TestTransactions(t *testing.T) {
	s := connect.JSON[debezium.Transaction](nil)
	n := 0
	records(t, func(topic string, _, value []byte) {
		if topic != "pg.transaction" {
			return
		}
		x, err := s.Decode(value)
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 2 && (x.Status != "END" || x.EventCount != 3 || len(x.Tables) != 2 || x.Tables[0].EventCount != 2) {
			t.Errorf("the end of the first transaction is %+v", x)
		}
	})
	if n != 6 {
		t.Errorf("%d records, want 6", n)
	}
}

// failure is a test that notes with what it ends.
type failure struct {
	testing.TB
	done chan struct{}
	text string
}

func (f *failure) Fatalf(format string, args ...any) {
	f.text += fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (f *failure) Fatal(args ...any) { f.Fatalf("%s", fmt.Sprint(args...)) }
