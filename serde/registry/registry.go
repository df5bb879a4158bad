// Package registry keeps schemas in a schema registry: Confluent's, or one that speaks its protocol. Packages avro,
// protobuf and jsonschema write values by them.
package registry

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/sr"

	"github.com/eddyline/eddyline/serde"
)

// Schema is a schema as a registry has it, and Reference another one that it uses, by a name within it.
type (
	Schema    = sr.Schema
	Reference = sr.SchemaReference
)

// Config says where a registry is. Zero fields are the defaults.
type Config struct {
	// URLs are addresses of the registry's servers; one that does not answer is passed over. A user in one is for that server,
	// without User and Token. Default: http://localhost:8081 (schema.registry.url).
	URLs []string
	// User and Password are for HTTP basic authentication. Default: none (basic.auth.user.info).
	User, Password string
	// Token returns a bearer token for a request; it is asked each time, so it may renew tokens. Default: nil, none.
	Token func(ctx context.Context) (string, error)
	// TLS is for https addresses, with client certificates if the registry wants some. Default: the system's.
	TLS *tls.Config
	// Context is the registry's context that all subjects and ids are in. Default: "", the default one.
	Context string
	// Timeout is how long one request may take. Default: 5s.
	Timeout time.Duration
	// RetryFor is how long a request is repeated while no server answers or all are too busy. The worker that needs the
	// schema waits meanwhile, not the group. Default: 30s; negative: not at all (max.retries).
	RetryFor time.Duration
}

// String returns the settings that are no secrets: the configuration prints itself without the others.
func (c Config) String() string {
	return fmt.Sprintf("URLs=%q User=%q Password set=%v Token set=%v TLS=%v Context=%q Timeout=%v RetryFor=%v",
		c.addresses(), c.User, c.Password != "", c.Token != nil, c.TLS != nil, c.Context, c.Timeout, c.RetryFor)
}

// GoString returns what String does.
func (c Config) GoString() string { return c.String() }

// MarshalText returns what String does.
func (c Config) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// addresses are the registry's, without what may be secret in them.
func (c Config) addresses() []string {
	var list []string
	for _, u := range c.URLs {
		parts := strings.SplitN(u, "?", 2)
		list = append(list, parts[0][strings.LastIndexByte(parts[0], '@')+1:])
	}
	return list
}

// servers returns the addresses without users, and the users by host: whoever is told of a request is told of its address.
// What is no address is refused without telling more of it than which it is.
func (c Config) servers() (addresses []string, users map[string]*url.Userinfo, err error) {
	users = map[string]*url.Userinfo{}
	for i, text := range c.URLs {
		if !strings.HasPrefix(text, "http://") && !strings.HasPrefix(text, "https://") {
			text = "http://" + text
		}
		u, err := url.Parse(text)
		if err != nil || u.Host == "" {
			return nil, nil, fmt.Errorf("URL %d of %d is not like http://host:port", i+1, len(c.URLs))
		}
		if u.User != nil {
			users[u.Host], u.User = u.User, nil
		}
		addresses = append(addresses, u.String())
	}
	return addresses, users, nil
}

// Client asks a registry, and remembers what it answered: schemas of an id do not change. It is safe for concurrent use,
// and may be a package variable that all topics share.
type Client struct {
	config Config
	client *sr.Client
	err    error // of the configuration

	fetch sync.Mutex // one request for a schema at a time, so that tasks that need the same share it
	mu    sync.RWMutex
	byID  map[any]*Registered // by int id and by string GUID
}

// Registered is a schema with its names in the registry.
type Registered struct {
	ID   int
	GUID string // the 36 characters of its text form; "" where the registry has none
	Schema
	// Uses are the schemas that it refers to, those they refer to before them; without doubles.
	Uses []Used
}

// Used is a schema that another one refers to.
type Used struct {
	Name string // within the schema that refers to it
	Schema
}

// New returns a client. It does no I/O: a fault of the configuration shows at first use.
func New(c Config) *Client {
	c.Timeout = cmp.Or(c.Timeout, 5*time.Second)
	c.RetryFor = max(cmp.Or(c.RetryFor, 30*time.Second), 0)
	if len(c.URLs) == 0 {
		c.URLs = []string{"http://localhost:8081"}
	}
	x := &Client{config: c, byID: map[any]*Registered{}}
	servers, users, err := c.servers()
	if err != nil {
		x.err = err
		return x
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = c.TLS
	o := []sr.ClientOpt{
		sr.URLs(servers...), sr.LogLevel(sr.LogLevelNone), sr.UserAgent("eddyline"),
		sr.HTTPClient(&http.Client{Transport: transport, Timeout: c.Timeout}),
	}
	switch {
	case c.User != "":
		o = append(o, sr.BasicAuth(c.User, c.Password))
	case len(users) > 0:
		o = append(o, sr.PreReq(func(req *http.Request) error {
			if u := users[req.URL.Host]; u != nil {
				password, _ := u.Password()
				req.SetBasicAuth(u.Username(), password)
			}
			return nil
		}))
	}
	if c.Context != "" {
		o = append(o, sr.DefaultSchemaContext(c.Context))
	}
	if c.Token != nil {
		o = append(o, sr.PreReq(func(req *http.Request) error {
			token, err := c.Token(req.Context())
			if err != nil {
				return fmt.Errorf("token for the schema registry: %w", err)
			}
			req.Header.Set("Authorization", "Bearer "+token)
			return nil
		}))
	}
	x.client, x.err = sr.NewClient(o...)
	return x
}

// ByID returns the schema of an id. [sr.ErrSchemaNotFound] is in the error if there is none, [serde.ErrUnavailable] if the
// registry cannot be asked.
func (c *Client) ByID(ctx context.Context, id int) (*Registered, error) {
	return c.cached(ctx, id, fmt.Sprintf("schema %d", id), func(ctx context.Context) (r Registered, err error) {
		r.ID = id
		r.Schema, err = c.client.SchemaByID(ctx, id)
		return r, err
	})
}

// ByGUID is ByID for a GUID, the 36 characters of its text form.
func (c *Client) ByGUID(ctx context.Context, guid string) (*Registered, error) {
	return c.cached(ctx, guid, "schema "+guid, func(ctx context.Context) (r Registered, err error) {
		s, err := c.client.SchemaByGUID(ctx, guid)
		return Registered{ID: s.ID, GUID: guid, Schema: s.Schema}, err
	})
}

func (c *Client) cached(ctx context.Context, key any, what string, ask func(ctx context.Context) (Registered, error)) (*Registered, error) {
	known := func() *Registered {
		c.mu.RLock()
		defer c.mu.RUnlock()
		return c.byID[key]
	}
	if r := known(); r != nil {
		return r, nil
	}
	c.fetch.Lock()
	defer c.fetch.Unlock()
	if r := known(); r != nil {
		return r, nil
	}
	var r Registered
	err := c.do(ctx, "look up "+what, func(ctx context.Context) (err error) {
		r, err = ask(ctx)
		return err
	})
	if err == nil {
		err = c.use(ctx, &r, map[Reference]bool{}, r.References)
	}
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.byID[key] = &r
	return &r, nil
}

// use adds what the references mean, and what that refers to before it.
func (c *Client) use(ctx context.Context, r *Registered, seen map[Reference]bool, refs []Reference) error {
	for _, ref := range refs {
		if seen[ref] {
			continue
		}
		seen[ref] = true
		var s sr.SubjectSchema
		err := c.do(ctx, fmt.Sprintf("look up version %d of subject %q", ref.Version, ref.Subject), func(ctx context.Context) (err error) {
			s, err = c.client.SchemaByVersion(ctx, ref.Subject, ref.Version)
			return err
		})
		if err == nil {
			err = c.use(ctx, r, seen, s.References)
		}
		if err != nil {
			return err
		}
		r.Uses = append(r.Uses, Used{ref.Name, s.Schema})
	}
	return nil
}

// Register registers a schema under a subject, if it is not there, and returns its names. The registry refuses it where it
// is not compatible with what is there.
func (c *Client) Register(ctx context.Context, subject string, s Schema, normalize bool) (Registered, error) {
	r := Registered{Schema: s}
	err := c.do(ctx, fmt.Sprintf("register a schema under subject %q", subject), func(ctx context.Context) (err error) {
		r.ID, err = c.client.RegisterSchema(normalized(ctx, normalize), subject, s, -1, -1)
		return err
	})
	return r, err
}

// LookUp returns the names of a schema that has to be registered under a subject, and its version there.
func (c *Client) LookUp(ctx context.Context, subject string, s Schema, normalize bool) (Registered, int, error) {
	var got sr.SubjectSchema
	err := c.do(ctx, fmt.Sprintf("look up this schema under subject %q", subject), func(ctx context.Context) (err error) {
		got, err = c.client.LookupSchema(normalized(ctx, normalize), subject, s)
		return err
	})
	return Registered{ID: got.ID, GUID: got.GUID, Schema: s}, got.Version, err
}

// Latest returns the latest schema of a subject.
func (c *Client) Latest(ctx context.Context, subject string) (Registered, error) {
	var got sr.SubjectSchema
	err := c.do(ctx, fmt.Sprintf("look up the latest schema of subject %q", subject), func(ctx context.Context) (err error) {
		got, err = c.client.SchemaByVersion(ctx, subject, -1)
		return err
	})
	r := Registered{ID: got.ID, GUID: got.GUID, Schema: got.Schema}
	if err == nil {
		err = c.use(ctx, &r, map[Reference]bool{}, r.References)
	}
	return r, err
}

func normalized(ctx context.Context, yes bool) context.Context {
	if yes {
		return sr.WithParams(ctx, sr.Normalize)
	}
	return ctx
}

const (
	firstPause = 100 * time.Millisecond
	mostPause  = 2 * time.Second
)

// do makes a request, and repeats it while the registry cannot answer.
func (c *Client) do(ctx context.Context, what string, request func(ctx context.Context) error) error {
	if c.err != nil {
		return fmt.Errorf("%s: configuration of the schema registry: %w: %w", what, serde.ErrUnavailable, c.err)
	}
	give, cancel := context.WithTimeout(ctx, c.config.RetryFor)
	defer cancel()
	for pause := firstPause; ; pause = min(2*pause, mostPause) {
		err := request(ctx)
		switch {
		case err == nil:
			return nil
		case !transient(err):
			return fmt.Errorf("%s: %w", what, answer(err))
		}
		select {
		case <-give.Done():
			return fmt.Errorf("%s: the schema registry at %s: %w: %w", what, strings.Join(c.config.addresses(), ", "), serde.ErrUnavailable, err)
		case <-time.After(pause):
		}
	}
}

// answer adds to a refusal of the registry what it stands for.
func answer(err error) error {
	var r *sr.ResponseError
	if errors.As(err, &r) && r.SchemaError() != nil {
		return fmt.Errorf("%w: %w", r.SchemaError(), err)
	}
	return err
}

// transient tells whether the registry could not answer. A refusal of who asks counts too: nothing is wrong with the
// record that it is asked for.
func transient(err error) bool {
	var r *sr.ResponseError
	if !errors.As(err, &r) {
		return true
	}
	switch r.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusUnauthorized, http.StatusForbidden:
		return true
	}
	return r.StatusCode >= 500
}
