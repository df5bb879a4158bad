// Package registrytest is a schema registry within a test: Confluent's protocol, in memory, with its checks of
// compatibility.
package registrytest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/sr"
)

// Server is a registry. Compatibility is BACKWARD unless SetCompatibility says otherwise, as in the real one.
type Server struct {
	URL string
	// Refuse, if it is set before the first request, is asked with each request: a status other than 0 is the answer.
	Refuse func(r *http.Request) int

	mu       sync.Mutex
	schemas  []sr.SubjectSchema // by id, from 1 on
	subjects map[string][]sr.SubjectSchema
	levels   map[string]string // by subject, "" for all
	requests int
}

// New starts a registry, which ends with the test.
func New(t testing.TB) *Server {
	s := &Server{subjects: map[string][]sr.SubjectSchema{}, levels: map[string]string{"": "BACKWARD"}}
	mux := http.NewServeMux()
	handle := func(pattern string, f func(r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, f) })
	}
	handle("GET /subjects", func(*http.Request) (any, error) { return slices.Sorted(maps.Keys(s.subjects)), nil })
	handle("POST /subjects/{subject}/versions", s.register)
	handle("POST /subjects/{subject}", s.lookUp)
	handle("GET /subjects/{subject}/versions/{version}", s.version)
	handle("GET /schemas/ids/{id}", func(r *http.Request) (any, error) {
		id, _ := strconv.Atoi(r.PathValue("id"))
		return s.find(func(x sr.SubjectSchema) bool { return x.ID == id })
	})
	handle("GET /schemas/guids/{guid}", func(r *http.Request) (any, error) {
		return s.find(func(x sr.SubjectSchema) bool { return x.GUID == r.PathValue("guid") })
	})
	handle("PUT /config/{subject}", s.setLevel)
	handle("POST /compatibility/subjects/{subject}/versions/{version}", s.check)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	s.URL = server.URL
	return s
}

// Requests returns how many requests there were.
func (s *Server) Requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests
}

// SetCompatibility sets the level of a subject, or of all without their own for "".
func (s *Server) SetCompatibility(subject, level string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.levels[subject] = level
}

// Put registers a schema under an id and a GUID, without a check.
func (s *Server) Put(x sr.SubjectSchema) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x.Version = len(s.subjects[x.Subject]) + 1
	s.subjects[x.Subject] = append(s.subjects[x.Subject], x)
	if !slices.ContainsFunc(s.schemas, func(y sr.SubjectSchema) bool { return y.ID == x.ID }) {
		s.schemas = append(s.schemas, x)
	}
}

// failure is an answer of the registry that is an error.
type failure struct {
	Status  int    `json:"-"`
	Code    int    `json:"error_code"`
	Message string `json:"message"`
}

func (f *failure) Error() string { return f.Message }

func fail(status, code int, format string, args ...any) error {
	return &failure{status, code, fmt.Sprintf(format, args...)}
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, f func(r *http.Request) (any, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests++
	w.Header().Set("Content-Type", "application/vnd.schemaregistry.v1+json")
	var answer any
	var err error
	if s.Refuse != nil {
		if status := s.Refuse(r); status != 0 {
			err = fail(status, status*100+1, "refused by the test")
		}
	}
	if err == nil {
		answer, err = f(r)
	}
	if err != nil {
		x, ok := err.(*failure)
		if !ok {
			x = &failure{http.StatusUnprocessableEntity, 42201, err.Error()}
		}
		w.WriteHeader(x.Status)
		answer = x
	}
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		panic(err) // the answers are ours
	}
}

func body(r *http.Request) (x sr.Schema, err error) {
	if err = json.NewDecoder(r.Body).Decode(&x); err == nil && x.Schema == "" {
		err = fmt.Errorf("empty schema")
	}
	return x, err
}

// uses returns what a schema refers to, what that refers to before it.
func (s *Server) uses(x sr.Schema) (list []used, err error) {
	for _, ref := range x.References {
		versions := s.subjects[ref.Subject]
		if ref.Version < 1 || ref.Version > len(versions) {
			return nil, fail(http.StatusUnprocessableEntity, 42201, "no version %d of subject %q, which the schema refers to", ref.Version, ref.Subject)
		}
		of := versions[ref.Version-1].Schema
		below, err := s.uses(of)
		if err != nil {
			return nil, err
		}
		list = append(append(list, below...), used{ref.Name, of.Schema})
	}
	return list, nil
}

type used struct{ name, text string }

func (s *Server) register(r *http.Request) (any, error) {
	subject := r.PathValue("subject")
	x, err := body(r)
	if err != nil {
		return nil, err
	}
	p, err := s.parse(x)
	if err != nil {
		return nil, err
	}
	for _, old := range s.subjects[subject] {
		if s.same(old.Schema, p, x) {
			return map[string]any{"id": old.ID}, nil
		}
	}
	if problems := s.incompatible(subject, p, s.level(subject)); len(problems) > 0 {
		return nil, fail(http.StatusConflict, 409, "schema being registered is incompatible with an earlier schema for subject %q: %s", subject, strings.Join(problems, "; "))
	}
	entry := sr.SubjectSchema{Subject: subject, Version: len(s.subjects[subject]) + 1, GUID: uuid.NewString(), Schema: x}
	for _, other := range s.schemas { // one schema has one id, whatever its subjects
		if s.same(other.Schema, p, x) {
			entry.ID, entry.GUID = other.ID, other.GUID
		}
	}
	if entry.ID == 0 {
		entry.ID = len(s.schemas) + 1
		s.schemas = append(s.schemas, entry)
	}
	s.subjects[subject] = append(s.subjects[subject], entry)
	return map[string]any{"id": entry.ID}, nil
}

func (s *Server) same(a sr.Schema, p parsed, b sr.Schema) bool {
	if a.Type != b.Type || !slices.Equal(a.References, b.References) {
		return false
	}
	q, err := s.parse(a)
	return err == nil && q.canonical() == p.canonical()
}

func (s *Server) lookUp(r *http.Request) (any, error) {
	x, err := body(r)
	if err != nil {
		return nil, err
	}
	p, err := s.parse(x)
	if err != nil {
		return nil, err
	}
	versions, ok := s.subjects[r.PathValue("subject")]
	if !ok {
		return nil, fail(http.StatusNotFound, 40401, "Subject '%s' not found.", r.PathValue("subject"))
	}
	for _, old := range versions {
		if s.same(old.Schema, p, x) {
			return old, nil
		}
	}
	return nil, fail(http.StatusNotFound, 40403, "Schema not found")
}

func (s *Server) version(r *http.Request) (any, error) {
	versions, ok := s.subjects[r.PathValue("subject")]
	if !ok {
		return nil, fail(http.StatusNotFound, 40401, "Subject '%s' not found.", r.PathValue("subject"))
	}
	n := len(versions)
	if v := r.PathValue("version"); v != "latest" && v != "-1" {
		n, _ = strconv.Atoi(v)
	}
	if n < 1 || n > len(versions) {
		return nil, fail(http.StatusNotFound, 40402, "Version %d not found.", n)
	}
	return versions[n-1], nil
}

func (s *Server) find(is func(sr.SubjectSchema) bool) (any, error) {
	if i := slices.IndexFunc(s.schemas, is); i >= 0 {
		return s.schemas[i], nil
	}
	return nil, fail(http.StatusNotFound, 40403, "Schema not found")
}

func (s *Server) setLevel(r *http.Request) (any, error) {
	var x struct{ Compatibility string }
	err := json.NewDecoder(r.Body).Decode(&x)
	s.levels[r.PathValue("subject")] = x.Compatibility
	return map[string]string{"compatibility": x.Compatibility}, err
}

func (s *Server) level(subject string) string {
	if l, ok := s.levels[subject]; ok {
		return l
	}
	return s.levels[""]
}

func (s *Server) check(r *http.Request) (any, error) {
	x, err := body(r)
	if err != nil {
		return nil, err
	}
	p, err := s.parse(x)
	if err != nil {
		return nil, err
	}
	problems := s.incompatible(r.PathValue("subject"), p, s.level(r.PathValue("subject")))
	return map[string]any{"is_compatible": len(problems) == 0, "messages": problems}, nil
}

// incompatible returns why a schema cannot follow those of a subject.
func (s *Server) incompatible(subject string, p parsed, level string) (problems []string) {
	versions := s.subjects[subject]
	if !strings.HasSuffix(level, "_TRANSITIVE") && len(versions) > 1 {
		versions = versions[len(versions)-1:]
	}
	for _, old := range versions {
		q, err := s.parse(old.Schema)
		if err != nil {
			return []string{err.Error()}
		}
		if q.kind != p.kind {
			return []string{"the subject's schemas are of another type"}
		}
		both := strings.HasPrefix(level, "FULL")
		if both || strings.HasPrefix(level, "BACKWARD") {
			problems = append(problems, p.reads(q)...)
		}
		if both || strings.HasPrefix(level, "FORWARD") {
			problems = append(problems, q.reads(p)...)
		}
	}
	return problems
}
