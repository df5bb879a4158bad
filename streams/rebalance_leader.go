package streams

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/eddyline/eddyline/streams/assign"
	"github.com/eddyline/eddyline/streams/task"
	"github.com/eddyline/eddyline/topology"
)

// protocolName is the group protocol. A group of Kafka Streams has another one, so that the two never share a group.
const protocolName = "eddyline"

// round is the assignment of one generation, made by the member that leads the group. It does no I/O. A task that one
// member has and another is to get is given to nobody at first: the one gives it back and joins again, and the next
// assignment gives it to the other.
type round struct {
	cfg     *groupConfig
	leader  string // member id of this process
	raw     []kmsg.JoinGroupResponseMember
	members []*about // by raw; nil for one that cannot be read
	failed  error    // why the tasks are not known, if somebody has to act
}

func newRound(cfg *groupConfig, raw []kmsg.JoinGroupResponseMember) *round {
	r := &round{cfg: cfg, raw: raw}
	for _, m := range raw {
		a, err := readMember(m.ProtocolMetadata)
		if err != nil {
			cfg.logger.Warn("a member of the group cannot be read: it gets no tasks; stop it, or give it the same version",
				"group", cfg.application, "member", m.MemberID, "error", err)
		}
		r.members = append(r.members, a)
	}
	return r
}

func readMember(metadata []byte) (*about, error) {
	var m kmsg.ConsumerMemberMetadata
	if err := m.ReadFrom(metadata); err != nil {
		return nil, fmt.Errorf("decode the metadata of a member: %w", err)
	}
	return decodeAbout(m.UserData)
}

// SetBalanceInfo tells which of the members this process is.
func (r *round) SetBalanceInfo(i kgo.BalanceInfo) { r.leader = i.LeaderID }

// Balance is never called: see BalanceOrError.
func (r *round) Balance(counts map[string]int32) kgo.IntoSyncAssignment {
	into, _ := r.BalanceOrError(counts)
	return into
}

// BalanceOrError returns the shares of all members, given the partition counts of topics. It never fails: an error would
// cost the group its leader. Where the tasks cannot be told, everybody keeps what there is.
func (r *round) BalanceOrError(counts map[string]int32) (kgo.IntoSyncAssignment, error) {
	partitions := make(map[string]int, len(counts))
	for t, n := range counts {
		partitions[t] = int(n)
	}
	plan, err := r.cfg.graph.Plan(partitions, r.cfg.plan)
	if err != nil {
		r.cfg.logger.Warn("the tasks are not known: everybody keeps what there is", "group", r.cfg.application, "error", err)
		if _, missing := errors.AsType[*topology.MissingTopicsError](err); !missing {
			r.failed = err // missing ones were there at the start: the group rebalances when they are back
		}
		return r.encode(r.keep(), nil), nil
	}
	return r.encode(r.share(plan), plan), nil
}

// keep returns what members have.
func (r *round) keep() []*share {
	shares := make([]*share, len(r.members))
	claims := r.claims()
	for i, m := range r.members {
		shares[i] = &share{}
		if m == nil {
			continue
		}
		for _, h := range m.held {
			switch {
			case h.role == standingBy:
				shares[i].standby = append(shares[i].standby, h.id)
			case h.role == owning && claims[h.id] == i:
				shares[i].active = append(shares[i].active, h.id)
			}
		}
	}
	return shares
}

// claims returns which member owns each task. Of two that say so the one counts that was assigned later: the other missed
// how it was taken from it.
func (r *round) claims() map[task.ID]int {
	claims := map[task.ID]int{}
	for i, m := range r.members {
		if m == nil {
			continue
		}
		for _, h := range m.held {
			if h.role != owning {
				continue
			}
			if other, ok := claims[h.id]; !ok || r.members[other].generation < m.generation {
				claims[h.id] = i
			}
		}
	}
	return claims
}

// share assigns the tasks of a plan.
func (r *round) share(plan *topology.Plan) []*share {
	claims := r.claims()
	members, of := r.assignees(claims)
	var tasks []assign.Task
	stateful := map[task.ID]bool{}
	for _, t := range plan.Tasks {
		id := task.ID{Sub: t.Sub.ID, Partition: t.Partition}
		stateful[id] = t.Sub.Stateful()
		tasks = append(tasks, assign.Task{TaskID: assign.TaskID(id), Stateful: stateful[id]})
	}
	result := assign.Assign(members, tasks, assign.Config{
		Standbys: r.cfg.standbys, AcceptableLag: r.cfg.acceptableLag, MaxWarmups: r.cfg.maxWarmups, Short: r.short(),
	})
	shares := make([]*share, len(r.members))
	for i := range shares {
		shares[i] = &share{}
	}
	for i, given := range result.Shares {
		s := shares[of[i]]
		s.standby, s.warmup = taskIDs(given.Standby), taskIDs(given.Warmup)
		for _, id := range given.Active {
			id := task.ID(id)
			owner, claimed := claims[id]
			switch {
			case !claimed || owner == of[i]:
				s.active = append(s.active, id)
			case stateful[id]: // its state is kept up to date here until the other has given the task back
				s.standby = append(s.standby, id)
			}
		}
		slices.SortFunc(s.standby, compareTasks)
		if result.Probe && r.raw[of[i]].MemberID == r.leader {
			s.probe = r.cfg.probing
		}
	}
	return shares
}

func taskIDs(ids []assign.TaskID) (out []task.ID) {
	for _, id := range ids {
		out = append(out, task.ID(id))
	}
	return out
}

// assignees returns the members as the assignor sees them, and for each its index.
func (r *round) assignees(claims map[task.ID]int) (members []assign.Member, of []int) {
	own := r.cfg.signatures()
	for i, m := range r.members {
		if m == nil {
			continue
		}
		out := assign.Member{
			ID: m.identity + "/" + r.raw[i].MemberID, Workers: m.workers, Lags: map[assign.TaskID]int64{}, Tags: maps.Clone(m.tags),
			Runs: func(sub int) bool { return sub < len(own) && sub < len(m.subs) && own[sub] == m.subs[sub] },
		}
		if m.rack != "" {
			if out.Tags == nil {
				out.Tags = map[string]string{}
			}
			out.Tags["rack"] = cmp.Or(out.Tags["rack"], m.rack)
		}
		for _, h := range m.held {
			id := assign.TaskID(h.id)
			if h.lag >= 0 {
				out.Lags[id] = h.lag
			}
			switch {
			case h.role == standingBy:
				out.Standbys = append(out.Standbys, id)
			case h.role == owning && claims[h.id] == i:
				out.Owned = append(out.Owned, id)
			}
		}
		members, of = append(members, out), append(of, i)
	}
	return members, of
}

// short returns which tasks have a changelog that is read in no time.
func (r *round) short() func(assign.TaskID) bool {
	short := map[assign.TaskID]bool{}
	for _, m := range r.members {
		if m == nil {
			continue
		}
		for _, h := range m.held {
			if h.short {
				short[assign.TaskID(h.id)] = true
			}
		}
	}
	return func(id assign.TaskID) bool { return short[id] }
}

// encode completes the shares and writes them out, with the partitions of active tasks for tools. plan may be nil.
func (r *round) encode(shares []*share, plan *topology.Plan) encoded {
	workers, stop := 0, false
	var identities []string
	for _, m := range r.members {
		if m != nil {
			workers += m.workers
			stop = stop || m.stop
			identities = append(identities, m.identity)
		}
	}
	slices.Sort(identities)
	members := hash32([]byte(strings.Join(identities, "/")))
	inputs := map[task.ID][]topology.PlannedInput{}
	if plan != nil {
		for _, t := range plan.Tasks {
			inputs[task.ID{Sub: t.Sub.ID, Partition: t.Partition}] = t.Inputs
		}
	}
	hash := r.cfg.topologyHash()
	var out encoded
	for i, s := range shares {
		s.topology, s.members, s.workers, s.stop = hash, members, workers, stop
		s.echo = hash32(r.raw[i].ProtocolMetadata)
		given := kmsg.NewSyncGroupRequestGroupAssignment()
		given.MemberID = r.raw[i].MemberID
		given.MemberAssignment = encodeAssignment(s, inputs)
		out = append(out, given)
	}
	return out
}

func encodeAssignment(s *share, inputs map[task.ID][]topology.PlannedInput) []byte {
	partitions := map[string][]int32{}
	for _, id := range s.active {
		for _, in := range inputs[id] {
			partitions[in.Name] = append(partitions[in.Name], in.Partition)
		}
	}
	a := kmsg.NewConsumerMemberAssignment()
	for _, t := range slices.Sorted(maps.Keys(partitions)) {
		topic := kmsg.NewConsumerMemberAssignmentTopic()
		topic.Topic, topic.Partitions = t, partitions[t]
		slices.Sort(topic.Partitions)
		topic.Partitions = slices.Compact(topic.Partitions)
		a.Topics = append(a.Topics, topic)
	}
	a.UserData = s.encode()
	return a.AppendTo(nil)
}

// readAssignment reads what a leader wrote.
func readAssignment(b []byte) (*share, error) {
	a := kmsg.NewConsumerMemberAssignment()
	if err := a.ReadFrom(b); err != nil {
		return nil, fmt.Errorf("decode the assignment of the group's leader: %w", err)
	}
	return decodeShare(a.UserData)
}

// encoded is an assignment, ready to be sent.
type encoded []kmsg.SyncGroupRequestGroupAssignment

// IntoSyncAssignment returns it.
func (e encoded) IntoSyncAssignment() []kmsg.SyncGroupRequestGroupAssignment { return e }
