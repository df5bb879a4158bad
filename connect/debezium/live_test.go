package debezium_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
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

type liveRow struct {
	Name   *string         `json:"name"`
	Since  *time.Time      `json:"since"`
	Credit *connect.Number `json:"credit"`
	Seen   *time.Time      `json:"seen"`
	Mail   *string         `json:"mail"`
}

// text returns a row as .ci/debezium/Changes.java prints it.
func (r liveRow) text(key int) string {
	name, since, credit, seen, mail := "null", "null", "null", "null", "null"
	if r.Name != nil {
		name = *r.Name
	}
	if r.Since != nil {
		since = r.Since.Format(time.DateOnly)
	}
	if r.Credit != nil {
		credit = r.Credit.FloatString(2)
	}
	if r.Seen != nil {
		day := r.Seen.Truncate(24 * time.Hour)
		seen = fmt.Sprint(day.Format(time.DateOnly), " ", r.Seen.Sub(day).Nanoseconds())
	}
	if r.Mail != nil {
		mail = *r.Mail
	}
	return strings.Join([]string{fmt.Sprint(key), name, since, credit, seen, mail}, "\t")
}

// A database is changed at random while Debezium reads along: the table ends with the rows that the database has.
// EDDYLINE_DEBEZIUM is .ci/debezium/changes.sh.
func TestTableOfDatabases(t *testing.T) {
	script := os.Getenv("EDDYLINE_DEBEZIUM")
	if script == "" {
		t.Skip("EDDYLINE_DEBEZIUM is not set: set it to .ci/debezium/changes.sh")
	}
	for database, name := range map[string]string{"postgres": "db.public.customers", "mariadb": "db.shop.customers"} {
		t.Run(database, func(t *testing.T) {
			var said bytes.Buffer
			cmd := exec.CommandContext(t.Context(), script, database, fmt.Sprint(time.Now().Unix()))
			cmd.Stderr = &said
			lines, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v: %v\n%s", cmd, err, said.Bytes())
			}
			in := debezium.Topic[id, liveRow](name)
			rows := topology.NewTopic("rows", serde.JSON[id]{}, serde.JSON[liveRow]{})
			b := topology.New()
			b.Serde(serde.JSON[liveRow]{})
			debezium.Table(b, in, debezium.Options{}).ToStream().To(rows)
			d := testkit.New(t, b)
			var want []string
			changes := 0
			for line := range strings.Lines(string(lines)) {
				f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
				switch {
				case f[0] == "=":
					want = append(want, strings.Join(f[1:], "\t"))
				case f[0] == name:
					var value []byte
					if f[2] != "null" {
						value = []byte(f[2])
					}
					d.Input(in).SendBytes([]byte(f[1]), value)
					changes++
				}
			}
			last := map[int]string{}
			for _, r := range d.Output(rows).All() {
				if r.NoValue {
					delete(last, r.Key.ID)
				} else {
					last[r.Key.ID] = r.Value.text(r.Key.ID)
				}
			}
			if changes < 200 || len(want) < 10 {
				t.Errorf("%v: only %d changes, and %d rows", cmd, changes, len(want))
			}
			left := map[int]string{}
			for _, row := range want {
				var key int
				fmt.Sscan(row, &key)
				left[key] = row
			}
			if diff := cmp.Diff(left, last); diff != "" {
				t.Errorf("%v: the rows are not those of the database (-want +got):\n%s", cmd, diff)
			}
		})
	}
}
