package streams

import (
	"bytes"
	"cmp"
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// QueryOptions are for [App.Queries]. Zero fields are the defaults.
type QueryOptions struct {
	// Token is asked for in the header Authorization, as "Bearer TOKEN", and sent along when a request is passed on.
	// Default: none is asked for.
	Token string
	// Client passes requests on to other instances. Default: one that gives up after 5 seconds.
	Client *http.Client
	// Scheme is that of the other instances' endpoints. Default: http.
	Scheme string
	// MaxEntries and MaxBytes bound an answer: it has More then, and the next question goes on from its last key. Defaults:
	// 10,000 entries, and 16 MB of keys and values; at least one entry comes.
	MaxEntries, MaxBytes int
	// MaxRequests is how many requests are answered at a time, and once more those that other instances passed on; one too
	// many gets 503. Default: 64.
	MaxRequests int
	// Timeout is how long a request may take, waiting for what it asks to be processed included. Default: 5s.
	Timeout time.Duration
}

// String returns the options without the token.
func (o QueryOptions) String() string {
	return fmt.Sprintf("Token set=%v Scheme=%q MaxEntries=%d MaxBytes=%d MaxRequests=%d Timeout=%v",
		o.Token != "", o.Scheme, o.MaxEntries, o.MaxBytes, o.MaxRequests, o.Timeout)
}

// GoString returns what String does.
func (o QueryOptions) GoString() string { return o.String() }

// MarshalText returns what String does.
func (o QueryOptions) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// Answer is what a query over HTTP is answered with.
type Answer struct {
	Store   string       `json:"store"`
	Entries []QueryEntry `json:"entries"`
	// More tells that there are more entries than the limit.
	More bool `json:"more,omitempty"`
}

// QueryEntry is one entry of an answer.
type QueryEntry struct {
	Key       json.RawMessage `json:"key"`
	Value     json.RawMessage `json:"value"`
	Timestamp *time.Time      `json:"timestamp,omitempty"`
	From      *time.Time      `json:"from,omitempty"` // of the window, the session or the version
	To        *time.Time      `json:"to,omitempty"`   // none for the newest version
	Partition int             `json:"partition"`
	Instance  string          `json:"instance"`
	// Behind is how many records of the changelog the copy had not read that answered; 0 for a running task.
	Behind int64 `json:"behind"`
}

// Queries returns a handler that answers queries of every store, for any key, whichever instance has it: a request for
// what is elsewhere is passed on to the Endpoint of its owner. Keys and values are JSON; a string key may come without its
// quotes.
//
//	GET /stores                                     the stores there are
//	GET /stores/NAME/entries/KEY                    an entry of a key-value store, or the newest one of a versioned one
//	GET /stores/NAME/entries/KEY?at=TIME            as it was at a time, of a versioned store
//	GET /stores/NAME/entries?from=&to=&prefix=      a range, in the order of the keys' bytes, from all instances
//	GET /stores/NAME/windows/KEY?from=&to=          the windows of a key that start within a time, or its sessions that overlap it
//
//	limit=N          at most N entries; reverse=true descending
//	stale=N          copies may answer that lack at most N records, while the owner of the key cannot
//	wait=TOPIC:PARTITION:OFFSET    answer only once what lies before the offset is processed, if its task is the store's
//
// A key is where the partitioner of the topics that feed the store puts it (see [topology.Topic.PartitionKeysBy]). Where a
// function of the whole record chooses partitions, or the topics do not agree, all partitions are asked.
//
// Times are RFC 3339, or milliseconds since 1970. What is committed is what is seen. 404 says that there is no such entry
// or store, 503 with Retry-After that nobody can answer now: the state is being restored or moved.
func (a *App) Queries(o QueryOptions) http.Handler {
	o.Scheme, o.MaxEntries, o.MaxBytes = cmp.Or(o.Scheme, "http"), cmp.Or(o.MaxEntries, 10_000), cmp.Or(o.MaxBytes, 16<<20)
	o.MaxRequests, o.Timeout = cmp.Or(o.MaxRequests, 64), cmp.Or(o.Timeout, 5*time.Second)
	if o.Client == nil {
		o.Client = &http.Client{Timeout: o.Timeout}
	}
	h := &queryHandler{app: a, o: o, asked: make(chan struct{}, o.MaxRequests), passed: make(chan struct{}, o.MaxRequests)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /stores", h.list)
	mux.HandleFunc("GET /stores/{store}/entries/{key}", h.of(h.entry))
	mux.HandleFunc("GET /stores/{store}/entries", h.of(h.scan))
	mux.HandleFunc("GET /stores/{store}/windows/{key}", h.of(h.windows))
	if guard := guardOf(o.Token); guard != nil {
		return guard(mux)
	}
	return mux
}

// guardOf returns what lets requests with a token pass, nil for no token.
func guardOf(token string) func(http.Handler) http.Handler {
	if token == "" {
		return nil
	}
	want := []byte("Bearer " + token)
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), want) != 1 {
				w.Header().Set("WWW-Authenticate", "Bearer")
				answerQuery(w, http.StatusUnauthorized, queryFailure{"send the header Authorization: Bearer TOKEN"})
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// passedOn marks a request that another instance passed on: it is not passed on again.
const passedOn = "Eddyline-Passed-On"

type queryHandler struct {
	app           *App
	o             QueryOptions
	asked, passed chan struct{} // requests that are answered now
}

// enter lets a request in, if there are not too many. Those that were passed on count for themselves: else instances that
// wait for each other would let nobody in.
func (h *queryHandler) enter(r *http.Request) (leave func(), err error) {
	in := h.asked
	if r.Header.Get(passedOn) != "" {
		in = h.passed
	}
	select {
	case in <- struct{}{}:
		return func() { <-in }, nil
	default:
		return nil, errManyQueries
	}
}

var errManyQueries = errors.New("too many queries at a time: ask again")

// queryFailure is the body of an answer that is none.
type queryFailure struct {
	Error string `json:"error"`
}

func answerQuery(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // nobody is left to tell
}

// statusOf returns the status that an error is answered with.
func statusOf(err error) int {
	switch {
	case errors.Is(err, errBadQuery):
		return http.StatusBadRequest
	case errors.Is(err, ErrNoStore), errors.Is(err, errOtherKind):
		return http.StatusNotFound
	case errors.Is(err, ErrNotReady), errors.Is(err, ErrNotHere), errors.Is(err, ErrNotRunning), errors.Is(err, errManyQueries),
		errors.Is(err, context.DeadlineExceeded):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

var errBadQuery = errors.New("the query cannot be read")

// list answers which stores there are.
func (h *queryHandler) list(w http.ResponseWriter, _ *http.Request) {
	type store struct {
		Name       string  `json:"name"`
		Kind       string  `json:"kind"`
		Global     bool    `json:"global,omitempty"`
		Partitions []int32 `json:"partitions"` // that can be read on this instance
	}
	all := []store{}
	for _, s := range h.app.graph.Stores() {
		if _, _, ok := h.app.graph.StoreText(s); ok {
			parts := slices.DeleteFunc(h.app.shelf.parts(s.Name), func(p int32) bool { return p < 0 })
			kind := [...]string{"key-value", "window", "session", "versioned"}[kindOf(s)]
			all = append(all, store{s.Name, kind, s.Global, append([]int32{}, parts...)})
		}
	}
	answerQuery(w, http.StatusOK, all)
}

// textQuery is a query in text.
type textQuery struct {
	query
	keys, values serde.Serde[json.RawMessage]
	key          json.RawMessage // nil: of several keys
	keyBytes     []byte
	span         state.Span[json.RawMessage]
	from, to, at time.Time
	limit        int
	request      *http.Request
}

// of returns a handler of one kind of query of a store. local answers it from the parts that are here.
func (h *queryHandler) of(local func(ctx context.Context, q *textQuery, give func(QueryEntry) bool) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		leave, err := h.enter(r)
		if err != nil {
			answerQuery(w, statusOf(err), queryFailure{err.Error()})
			return
		}
		defer leave()
		ctx, cancel := context.WithTimeout(r.Context(), h.o.Timeout)
		defer cancel()
		r = r.WithContext(ctx)
		q, err := h.read(r)
		if err == nil {
			err = h.wait(r)
		}
		var answer Answer
		if err == nil {
			answer, err = h.answer(r.Context(), q, local)
		}
		switch {
		case err != nil:
			answerQuery(w, statusOf(err), queryFailure{err.Error()})
		case q.key != nil && len(answer.Entries) == 0:
			answerQuery(w, http.StatusNotFound, answer)
		default:
			answerQuery(w, http.StatusOK, answer)
		}
	}
}

// read reads a request.
func (h *queryHandler) read(r *http.Request) (*textQuery, error) {
	name := r.PathValue("store")
	var spec *topology.StoreSpec
	for _, s := range h.app.graph.Stores() {
		if s.Name == name {
			spec = s
		}
	}
	kind := state.KindKeyValue
	if spec != nil {
		kind = kindOf(spec)
	}
	q := &textQuery{query: h.app.queryOf(name, kind), request: r, limit: h.o.MaxEntries, to: time.UnixMilli(1<<62 - 1)}
	if q.err != nil {
		return nil, q.err
	}
	q.keys, q.values, _ = h.app.graph.StoreText(q.spec)
	v := r.URL.Query()
	if k := r.PathValue("key"); k != "" || strings.HasSuffix(r.URL.Path, "/") {
		q.key = json.RawMessage(k)
		b, err := q.keys.Append(nil, q.key)
		if err != nil {
			return nil, fmt.Errorf("%w: key %q: %w", errBadQuery, k, err)
		}
		q.keyBytes = b
	}
	bad := func(what string, err error) error {
		return fmt.Errorf("%w: %s=%q: %w", errBadQuery, what, v.Get(what), err)
	}
	var err error
	if s := v.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return nil, bad("limit", errors.New("it is not a number above 0"))
		}
		q.limit = min(n, q.limit)
	}
	if s := v.Get("stale"); s != "" {
		if q.stale, err = strconv.ParseInt(s, 10, 64); err != nil || q.stale < 0 {
			return nil, bad("stale", errors.New("it is not a number of records"))
		}
	}
	if s := v.Get("partition"); s != "" {
		n, err := strconv.ParseInt(s, 10, 32)
		if err != nil || n < 0 {
			return nil, bad("partition", errors.New("it is not a partition"))
		}
		q.query = q.in(int(n))
	}
	q.span.Reverse, q.span.Prefix = v.Get("reverse") == "true", []byte(v.Get("prefix"))
	if q.key == nil {
		q.span.From, q.span.To = textOf(v, "from"), textOf(v, "to")
		return q, nil
	}
	for what, at := range map[string]*time.Time{"from": &q.from, "to": &q.to, "at": &q.at} {
		if s := v.Get(what); s != "" {
			if *at, err = timeOf(s); err != nil {
				return nil, bad(what, err)
			}
		}
	}
	return q, nil
}

func textOf(v url.Values, name string) *json.RawMessage {
	if !v.Has(name) {
		return nil
	}
	t := json.RawMessage(v.Get(name))
	return &t
}

func timeOf(s string) (time.Time, error) {
	if ms, err := strconv.ParseInt(s, 10, 64); err == nil {
		return time.UnixMilli(ms), nil
	}
	return time.Parse(time.RFC3339Nano, s)
}

// wait waits for what the request asks to be processed.
func (h *queryHandler) wait(r *http.Request) error {
	s := r.URL.Query().Get("wait")
	if s == "" {
		return nil
	}
	parts := strings.Split(s, ":")
	if len(parts) != 3 {
		return fmt.Errorf("%w: wait=%q: want TOPIC:PARTITION:OFFSET", errBadQuery, s)
	}
	p, errP := strconv.Atoi(parts[1])
	n, errN := strconv.ParseInt(parts[2], 10, 64)
	if err := errors.Join(errP, errN); err != nil {
		return fmt.Errorf("%w: wait=%q: %w", errBadQuery, s, err)
	}
	if !h.app.shelf.has(topicPartition{parts[0], int32(p)}) {
		return nil // it is not processed here: the request is passed on to where it is
	}
	return h.app.WaitCommitted(r.Context(), parts[0], p, n)
}

// answer answers a query from here, and from other instances where the parts that it asks for are elsewhere.
func (h *queryHandler) answer(ctx context.Context, q *textQuery, local func(context.Context, *textQuery, func(QueryEntry) bool) error) (Answer, error) {
	answer := Answer{Store: q.spec.Name, Entries: []QueryEntry{}}
	parts, err := h.partsOf(q)
	if err != nil {
		return answer, err
	}
	var all []partAnswer
	for _, p := range parts {
		one := *q
		one.partition = p
		part := partAnswer{}
		bytes := 0
		err := local(ctx, &one, func(e QueryEntry) bool {
			if n := len(part.entries); n > 0 && (n == q.limit || bytes+e.size() > h.o.MaxBytes) {
				part.more = true
				return false
			}
			e.Partition, e.Instance = int(max(p, 0)), h.app.storage.dir.Identity()
			part.entries, bytes = append(part.entries, e), bytes+e.size()
			return true
		})
		if err != nil && q.request.Header.Get(passedOn) == "" && (errors.Is(err, ErrNotHere) || errors.Is(err, ErrNotReady)) {
			var more Answer
			if more, err = h.elsewhere(ctx, &one, err); err == nil {
				part = partAnswer{more.Entries, more.More}
			}
		}
		if err != nil {
			return answer, err
		}
		all = append(all, part)
	}
	return h.merge(q, answer, all)
}

// partAnswer is what one partition answers; more tells that entries behind the last one are left out.
type partAnswer struct {
	entries []QueryEntry
	more    bool
}

// size returns how much an entry counts of an answer.
func (e QueryEntry) size() int { return len(e.Key) + len(e.Value) }

// partsOf returns the partitions that a query asks for.
func (h *queryHandler) partsOf(q *textQuery) ([]int32, error) {
	if q.partition != anyPartition {
		return []int32{q.partition}, nil
	}
	if q.key != nil {
		return h.app.partsOfKey(q.spec, q.keyBytes)
	}
	n, err := h.app.partsOf(q.spec)
	return upTo(n), err
}

// merge puts the entries of partitions in order, and cuts what is over the bounds, and what lies behind the end of a
// partition that has more: the next question goes on from the last entry, and must not miss any.
func (h *queryHandler) merge(q *textQuery, a Answer, parts []partAnswer) (Answer, error) {
	if len(parts) == 1 {
		a.Entries, a.More = append(a.Entries, parts[0].entries...), parts[0].more
		return a, nil
	}
	type entry struct {
		key []byte
		QueryEntry
	}
	order := func(x, y []byte) int {
		if q.span.Reverse {
			x, y = y, x
		}
		return bytes.Compare(x, y)
	}
	var all []entry
	var end []byte // nil: every partition has told all
	for _, p := range parts {
		for _, e := range p.entries {
			b, err := q.keys.Append(nil, e.Key)
			if err != nil {
				return a, fmt.Errorf("key of an entry: %w", err)
			}
			all = append(all, entry{b, e})
		}
		if last := len(all) - 1; p.more && len(p.entries) > 0 && (end == nil || order(all[last].key, end) < 0) {
			end = all[last].key
		}
	}
	slices.SortStableFunc(all, func(x, y entry) int { return order(x.key, y.key) })
	size := 0
	for i, e := range all {
		size += e.size()
		if i >= q.limit || i > 0 && size > h.o.MaxBytes || end != nil && order(e.key, end) > 0 {
			a.More = true
			return a, nil
		}
		a.Entries = append(a.Entries, e.QueryEntry)
	}
	a.More = end != nil
	return a, nil
}

// elsewhere asks the owner of a partition, and then those who keep copies if the query allows that. here says why this
// instance does not answer.
func (h *queryHandler) elsewhere(ctx context.Context, q *textQuery, here error) (Answer, error) {
	o, err := h.app.ownerOf(ctx, q.spec, q.partition)
	if err != nil {
		return Answer{}, err
	}
	asked := []Instance{o.Active}
	if q.stale >= 0 {
		asked = append(asked, o.Standbys...)
	}
	failed := here
	for _, i := range asked {
		if i.ID == "" || i.Here {
			continue
		}
		if i.Endpoint == "" {
			failed = fmt.Errorf("instance %s on %s has partition %d: %w: it has no endpoint; start it with Config.Endpoint", i.ID, i.Host, q.partition, ErrNotHere)
			continue
		}
		answer, err := h.ask(ctx, q, i)
		if err == nil {
			return answer, nil
		}
		failed = err
		h.app.directory.forget()
	}
	return Answer{}, failed
}

// ask passes a query on to an instance.
func (h *queryHandler) ask(ctx context.Context, q *textQuery, i Instance) (Answer, error) {
	v := q.request.URL.Query()
	v.Set("partition", strconv.Itoa(int(q.partition)))
	u := url.URL{Scheme: h.o.Scheme, Host: i.Endpoint, Path: q.request.URL.Path, RawPath: q.request.URL.RawPath, RawQuery: v.Encode()}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return Answer{}, fmt.Errorf("ask instance %s at %s: %w", i.ID, i.Endpoint, err)
	}
	r.Header.Set(passedOn, "1")
	if h.o.Token != "" {
		r.Header.Set("Authorization", "Bearer "+h.o.Token)
	}
	resp, err := h.o.Client.Do(r)
	if err != nil {
		return Answer{}, fmt.Errorf("ask instance %s at %s: %w: %w", i.ID, i.Endpoint, ErrNotReady, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return Answer{}, fmt.Errorf("ask instance %s at %s: %w: %w", i.ID, i.Endpoint, ErrNotReady, err)
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusNotFound:
		var answer Answer
		if err := json.Unmarshal(body, &answer); err != nil || answer.Store != q.spec.Name {
			return Answer{}, fmt.Errorf("ask instance %s at %s: %w: it does not answer as an instance of this application", i.ID, i.Endpoint, ErrNotReady)
		}
		return answer, nil
	case http.StatusBadRequest:
		return Answer{}, fmt.Errorf("instance %s at %s: %w: %s", i.ID, i.Endpoint, errBadQuery, reasonOf(body))
	}
	return Answer{}, fmt.Errorf("instance %s at %s: %w: %s", i.ID, i.Endpoint, ErrNotReady, reasonOf(body))
}

const maxAnswer = 64 << 20

func reasonOf(body []byte) string {
	var f queryFailure
	if json.Unmarshal(body, &f) != nil || f.Error == "" {
		return "it does not say why"
	}
	return f.Error
}

// behindOf returns how far the part of a store lies behind.
func behindOf(of *shelved) int64 {
	if of.behind == nil {
		return 0
	}
	return of.behind()
}

// entry answers with the entry of a key.
func (h *queryHandler) entry(ctx context.Context, q *textQuery, give func(QueryEntry) bool) error {
	of, err := q.part(ctx, q.partition)
	if err != nil {
		return err
	}
	e := QueryEntry{Behind: behindOf(of)}
	var found bool
	switch q.kind {
	case state.KindKeyValue:
		var r state.Row[json.RawMessage]
		r, found, err = KeyValueQuery[json.RawMessage, json.RawMessage]{q.query, q.keys, q.values}.open(of).Row(q.key)
		e.Value, e.Timestamp = r.Value, &r.Timestamp
	case state.KindVersioned:
		var v state.Version[json.RawMessage]
		store := VersionedQuery[json.RawMessage, json.RawMessage]{q.query, q.keys, q.values}.open(of)
		if q.at.IsZero() {
			v, found, err = store.Newest(q.key)
		} else {
			v, found, err = store.AsOf(q.key, q.at)
		}
		e.Value, e.From = v.Value, &v.From
	default:
		return fmt.Errorf("%w: store %q keeps windows: ask for /stores/%s/windows/KEY", errBadQuery, q.spec.Name, q.spec.Name)
	}
	if err != nil || !found {
		return q.ended(err)
	}
	if e.Key, err = q.keyText(); err == nil {
		give(e)
	}
	return err
}

// keyText returns the key as answers have it.
func (q *textQuery) keyText() (json.RawMessage, error) { return q.keys.Decode(q.keyBytes) }

// scan answers with a range of keys.
func (h *queryHandler) scan(ctx context.Context, q *textQuery, give func(QueryEntry) bool) error {
	of, err := q.part(ctx, q.partition)
	if err != nil {
		return err
	}
	if q.kind != state.KindKeyValue {
		return fmt.Errorf("%w: store %q is not a key-value store: ask for one key", errBadQuery, q.spec.Name)
	}
	for e, err := range (KeyValueQuery[json.RawMessage, json.RawMessage]{q.query, q.keys, q.values}).open(of).Scan(q.span) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return q.ended(err)
		}
		if !give(QueryEntry{Key: e.Key, Value: e.Value, Timestamp: &e.Timestamp, Behind: behindOf(of)}) {
			break
		}
	}
	return nil
}

// windows answers with the windows or sessions of a key.
func (h *queryHandler) windows(ctx context.Context, q *textQuery, give func(QueryEntry) bool) error {
	of, err := q.part(ctx, q.partition)
	if err != nil {
		return err
	}
	var entries func(yield func(state.WindowEntry[json.RawMessage, json.RawMessage], error) bool)
	switch q.kind {
	case state.KindWindow:
		entries = WindowQuery[json.RawMessage, json.RawMessage]{q.query, q.keys, q.values}.open(of).Fetch(q.key, q.from, q.to)
	case state.KindSession:
		entries = SessionQuery[json.RawMessage, json.RawMessage]{q.query, q.keys, q.values}.open(of).Find(q.key, q.from, q.to)
	default:
		return fmt.Errorf("%w: store %q has no windows: ask for /stores/%s/entries/KEY", errBadQuery, q.spec.Name, q.spec.Name)
	}
	for e, err := range entries {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return q.ended(err)
		}
		x := QueryEntry{Key: e.Key, Value: e.Value, From: &e.Window.Start, To: &e.Window.End, Behind: behindOf(of)}
		if !e.Timestamp.IsZero() {
			x.Timestamp = &e.Timestamp
		}
		if !give(x) {
			break
		}
	}
	return nil
}
