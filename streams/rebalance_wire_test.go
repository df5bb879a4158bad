package streams

import (
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

func drawTasks(t *rapid.T, name string) (ids []task.ID) {
	for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(0, 5*maxSubs), 0, 20, rapid.ID[int]).Draw(t, name) {
		ids = append(ids, task.ID{Sub: i % 5, Partition: int32(i / 5 * rapid.IntRange(1, 2000).Draw(t, "factor"))})
	}
	slices.SortFunc(ids, compareTasks)
	return slices.Compact(ids)
}

func drawAbout(t *rapid.T) *about {
	a := &about{
		identity: rapid.StringN(0, 40, 255).Draw(t, "identity"), endpoint: rapid.StringN(0, 40, 255).Draw(t, "endpoint"),
		rack: rapid.StringN(0, 5, 255).Draw(t, "rack"), workers: rapid.IntRange(0, maxWorkers).Draw(t, "workers"),
		nonce: rapid.Uint32().Draw(t, "nonce"), generation: rapid.Int32Min(-1).Draw(t, "generation"),
		subs: rapid.SliceOfN(rapid.Uint32(), 0, 5).Draw(t, "subs"), stop: rapid.Bool().Draw(t, "stop"),
	}
	if tags := rapid.MapOfN(rapid.StringN(0, 9, 255), rapid.StringN(0, 9, 255), 0, 5).Draw(t, "tags"); len(tags) > 0 {
		a.tags = tags
	}
	if len(a.subs) == 0 {
		a.subs = nil
	}
	for _, id := range drawTasks(t, "held") {
		a.held = append(a.held, held{
			id, role(rapid.IntRange(0, 2).Draw(t, "role")), rapid.Int64Range(-1, maxLag).Draw(t, "lag"), rapid.Bool().Draw(t, "short"),
		})
	}
	return a
}

// What members and leader tell each other is read as it was written, also by a version before the one that wrote it.
func TestGroupWireRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		later := rapid.SliceOf(rapid.Byte()).Draw(t, "of a later version")
		a := drawAbout(t)
		if got, err := decodeAbout(append(a.encode(), later...)); err != nil || !reflect.DeepEqual(got, a) {
			t.Fatalf("decodeAbout = %+v, %v, want %+v", got, err, a)
		}
		s := &share{
			topology: rapid.Uint32().Draw(t, "topology"), echo: rapid.Uint32().Draw(t, "echo"), members: rapid.Uint32().Draw(t, "members"),
			workers: rapid.IntRange(0, 1<<20).Draw(t, "workers"), probe: time.Duration(rapid.IntRange(0, 1000).Draw(t, "probe")) * time.Second,
			active: drawTasks(t, "active"), standby: drawTasks(t, "standby"), warmup: drawTasks(t, "warmup"),
			stop: rapid.Bool().Draw(t, "stop"),
		}
		if got, err := decodeShare(append(s.encode(), later...)); err != nil || !reflect.DeepEqual(got, s) {
			t.Fatalf("decodeShare = %+v, %v, want %+v", got, err, s)
		}
	})
}

func TestGroupWireFaults(t *testing.T) {
	whole := (&about{identity: "me", workers: 1, subs: []uint32{1}, held: []held{{id: task.ID{Sub: 1, Partition: 2}}}}).encode()
	for n := range whole {
		if _, err := decodeAbout(whole[:n]); err == nil {
			t.Errorf("%d of %d bytes: no error", n, len(whole))
		}
	}
	given := (&share{active: []task.ID{{Sub: 1, Partition: 2}}}).encode()
	for n := range given {
		if _, err := decodeShare(given[:n]); err == nil {
			t.Errorf("%d of %d bytes of a share: no error", n, len(given))
		}
	}
}

// checkSorted fails unless tasks are in order, each once.
func checkSorted(t *testing.T, ids []task.ID) {
	for i := 1; i < len(ids); i++ {
		if compareTasks(ids[i-1], ids[i]) >= 0 {
			t.Fatalf("%v before %v", ids[i-1], ids[i])
		}
	}
}

func FuzzDecodeAbout(f *testing.F) {
	f.Add((&about{identity: "me", workers: 1, tags: map[string]string{"a": "b"}, subs: []uint32{1}, held: []held{{lag: 3}}}).encode())
	f.Add([]byte{1, 0, 0, 0, 0, 1, 0, 1, 0, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := decodeAbout(b)
		if err != nil {
			return
		}
		var ids []task.ID
		for _, h := range a.held {
			ids = append(ids, h.id)
		}
		checkSorted(t, ids)
		again, err := decodeAbout(a.encode())
		if err != nil || !reflect.DeepEqual(again, a) {
			t.Fatalf("%+v is written and read as %+v, %v", a, again, err)
		}
	})
}

func FuzzReadAssignment(f *testing.F) {
	f.Add(encodeAssignment(&share{active: []task.ID{{Sub: 1, Partition: 2}}}, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := readAssignment(b)
		if err != nil {
			return
		}
		for _, list := range [][]task.ID{s.active, s.standby, s.warmup} {
			checkSorted(t, list)
		}
	})
}

// wideGraph has a stateless and several stateful sub-topologies, each over a topic of its own.
func wideGraph(t testing.TB, topics int) *topology.Graph {
	t.Helper()
	b := topology.New()
	for i := range topics {
		s := b.Stream(topology.NewTopic(fmt.Sprintf("department-of-orders-%02d", i), serde.String, serde.String))
		if i > 0 {
			s.GroupByKey().Count().As(fmt.Sprintf("count-%d", i))
		} else {
			s.To(topology.NewTopic("out", serde.String, serde.String))
		}
	}
	g, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// testGroup is a group as its leader sees it, without a broker.
type testGroup struct {
	cfg     groupConfig
	members []*about
	counts  map[string]int32
}

func newTestGroup(t testing.TB, topics, partitions, members int) *testGroup {
	g := &testGroup{counts: map[string]int32{}, cfg: groupConfig{
		application: "app", graph: wideGraph(t, topics), plan: topology.PlanOptions{Application: "app"},
		standbys: 1, acceptableLag: 10_000, maxWarmups: 2, probing: time.Minute, logger: slog.New(slog.DiscardHandler),
	}}
	for i := range topics {
		name := fmt.Sprintf("department-of-orders-%02d", i)
		g.counts[name] = int32(partitions)
		g.cfg.topics = append(g.cfg.topics, name)
	}
	for i := range members {
		g.members = append(g.members, &about{
			identity: fmt.Sprintf("%08d-0000-4000-8000-000000000000", i), endpoint: fmt.Sprintf("orders-%d.example.org:8080", i),
			rack: fmt.Sprintf("rack-%d", i%3), workers: 4, generation: 1, subs: g.cfg.signatures(),
		})
	}
	return g
}

// metadata is what a member sends to join.
func (g *testGroup) metadata(i int) []byte {
	m := kmsg.NewConsumerMemberMetadata()
	m.Topics, m.UserData = g.cfg.topics, g.members[i].encode()
	return m.AppendTo(nil)
}

// balance returns the share of each member, and what goes over the wire.
func (g *testGroup) balance(t testing.TB) (shares []*share, r *round, bytes int) {
	t.Helper()
	var raw []kmsg.JoinGroupResponseMember
	for i := range g.members {
		m := kmsg.NewJoinGroupResponseMember()
		m.MemberID = fmt.Sprintf("member-%03d", i)
		if g.members[i] != nil {
			m.ProtocolMetadata = g.metadata(i)
		}
		raw = append(raw, m)
		bytes += len(m.ProtocolMetadata)
	}
	r = newRound(&g.cfg, raw)
	r.leader = raw[0].MemberID
	into, err := r.BalanceOrError(g.counts)
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range into.IntoSyncAssignment() {
		bytes += len(m.MemberAssignment)
		s, err := readAssignment(m.MemberAssignment)
		if err != nil || m.MemberID != raw[i].MemberID {
			t.Fatal(m.MemberID, err)
		}
		shares = append(shares, s)
	}
	return shares, r, bytes
}

// take makes members own what they were given, with caught-up state, and report a lag of some size for standbys.
func (g *testGroup) take(shares []*share) {
	for i, s := range shares {
		m := g.members[i]
		m.held, m.generation = nil, m.generation+1
		for _, id := range s.active {
			m.held = append(m.held, held{id: id, role: owning, lag: 0})
		}
		for _, id := range slices.Concat(s.standby, s.warmup) {
			m.held = append(m.held, held{id: id, role: standingBy, lag: 123_456})
		}
		slices.SortFunc(m.held, func(a, b held) int { return compareTasks(a.id, b.id) })
	}
}

// What the coordinator keeps of a group of 500 members and 10,000 tasks, and sends to its leader, is small.
func TestGroupMetadataIsSmall(t *testing.T) {
	g := newTestGroup(t, 10, 1000, 500)
	shares, _, _ := g.balance(t)
	g.take(shares)
	_, _, bytes := g.balance(t)
	if bytes > 800_000 {
		t.Errorf("%d bytes, want at most 800,000", bytes)
	}
	t.Logf("%d bytes", bytes)
}

func activeOf(shares []*share) string {
	var parts []string
	for _, s := range shares {
		parts = append(parts, fmt.Sprint(s.active))
	}
	return strings.Join(parts, " ")
}

// A task goes from one member to another only when the one has given it back.
func TestRoundWithholdsWhatOthersOwn(t *testing.T) {
	g := newTestGroup(t, 1, 4, 2)
	shares, _, _ := g.balance(t)
	if got, want := activeOf(shares), "[0_0 0_2] [0_1 0_3]"; got != want {
		t.Fatalf("first: %s, want %s", got, want)
	}
	g.take(shares)
	g.members = append(g.members, &about{identity: "third", workers: 4, subs: g.cfg.signatures()})
	shares, _, _ = g.balance(t)
	if got := len(shares[0].active) + len(shares[1].active); got != 3 || len(shares[2].active) != 0 {
		t.Fatalf("with a third member: %s, want 3 tasks, none of them the third's", activeOf(shares))
	}
	g.take(shares)
	shares, _, _ = g.balance(t)
	if got := len(shares[0].active) + len(shares[1].active); got != 3 || len(shares[2].active) != 1 {
		t.Errorf("after one was given back: %s, want it to be the third's", activeOf(shares))
	}
	if shares[0].workers != 12 || shares[0].members != shares[2].members || shares[0].echo != hash32(g.metadata(0)) {
		t.Errorf("share %+v", shares[0])
	}
}

// Of two that say they own a task, the one counts that was in the later generation.
func TestRoundBelievesTheLaterOwner(t *testing.T) {
	g := newTestGroup(t, 1, 2, 2)
	id := task.ID{Partition: 1}
	g.members[0].held = []held{{id: id, role: owning, lag: -1}}
	g.members[1].held = []held{{id: id, role: owning, lag: -1}}
	g.members[1].generation = 7
	shares, _, _ := g.balance(t)
	if got, want := activeOf(shares), "[0_0] [0_1]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// A member that cannot be read, or has another topology, gets none of the tasks; the others get them.
func TestRoundWithStrangers(t *testing.T) {
	g := newTestGroup(t, 2, 1, 3)
	g.members[0].subs = []uint32{g.cfg.signatures()[0], 1}
	g.members[1] = nil
	shares, _, _ := g.balance(t)
	if got, want := activeOf(shares), "[0_0] [] [1_0]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// Where the tasks cannot be told, everybody keeps what there is.
func TestRoundWithoutTasks(t *testing.T) {
	g := newTestGroup(t, 2, 2, 2)
	shares, _, _ := g.balance(t)
	g.take(shares)
	want := activeOf(shares)
	clear(g.counts)
	shares, r, _ := g.balance(t)
	if got := activeOf(shares); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if r.failed != nil {
		t.Errorf("missing topics fail the group: %v", r.failed)
	}
}

// The leader comes back to tasks that are not yet where they should be.
func TestRoundProbes(t *testing.T) {
	g := newTestGroup(t, 2, 4, 1)
	shares, _, _ := g.balance(t)
	g.take(shares)
	g.members = append(g.members, &about{identity: "new", workers: 4, subs: g.cfg.signatures()})
	shares, _, _ = g.balance(t)
	if len(shares[1].warmup) != 2 || shares[0].probe != time.Minute || shares[1].probe != 0 {
		t.Fatalf("%+v, %+v, want two warm-ups, and a probe by the leader", shares[0], shares[1])
	}
	for i := range g.members[0].held {
		g.members[0].held[i].short = true
	}
	shares, _, _ = g.balance(t)
	if len(shares[1].warmup) != 0 || len(shares[0].active) != 4 {
		t.Errorf("%+v, %+v, want no warm-up for short changelogs", shares[0], shares[1])
	}
}
