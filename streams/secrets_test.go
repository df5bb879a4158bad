package streams

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	integer "math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/serde/avro"
	"github.com/eddyline/eddyline/serde/registry"
	"github.com/eddyline/eddyline/serde/registry/registrytest"
	"github.com/eddyline/eddyline/topology"
)

// secret is what nobody may see, in all forms in which it could come to light.
type secret struct {
	name  string
	forms []string
}

func secretOf(name, text string) secret {
	digits := fmt.Sprint([]byte(text))
	return secret{name, []string{
		text, url.QueryEscape(text), url.PathEscape(text), hex.EncodeToString([]byte(text)), base64.StdEncoding.EncodeToString([]byte(text)),
		base64.URLEncoding.EncodeToString([]byte(text)), digits[1 : len(digits)-1],
	}}
}

const (
	saslSecret     = "sasl*pass/word+7461"
	wrongSecret    = "wrong*pass/word+1188"
	registrySecret = "registry*pass/word+5520"
	tokenSecret    = "token*of/queries+9034"
	bearerSecret   = "bearer*of/registry+3327"
	userSecret     = "user-info-password-2290"
)

// searched is everything that an application says, by where it says it.
type searched struct {
	t       *testing.T
	secrets []secret
	mu      sync.Mutex
	said    map[string]*bytes.Buffer
}

// Write implements [io.Writer], for the log.
func (s *searched) Write(b []byte) (int, error) {
	s.say("log", string(b))
	return len(b), nil
}

func (s *searched) say(where, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.said[where] == nil {
		s.said[where] = new(bytes.Buffer)
	}
	s.said[where].WriteString(text + "\n")
}

// print prints something in every way that people print things.
func (s *searched) print(where string, x any) {
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		s.say(where+" printed with "+verb, fmt.Sprintf(verb, x))
	}
	if b, err := json.Marshal(x); err == nil {
		s.say(where+" as JSON", string(b))
	} else {
		s.say(where+" as JSON", err.Error())
	}
	slog.New(slog.NewJSONHandler(s, &slog.HandlerOptions{Level: slog.LevelDebug})).Info("printed", where, x)
}

func (s *searched) error(where string, err error, want ...string) {
	s.t.Helper()
	if err == nil {
		s.t.Errorf("%s: no error", where)
		return
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			s.t.Errorf("%s: %v; it does not say %q", where, err, w)
		}
	}
	s.say(where, err.Error())
	for e := err; e != nil; e = errors.Unwrap(e) {
		s.print(where, e)
	}
}

// get notes what a handler answers.
func (s *searched) get(h http.Handler, path, token string, status int) {
	s.t.Helper()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != status || w.Body.Len() == 0 {
		s.t.Errorf("%s: status %d and %d bytes, want %d", path, w.Code, w.Body.Len(), status)
	}
	s.say(path, fmt.Sprint(w.Header())+w.Body.String())
}

// check looks for the secrets.
func (s *searched) check() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for where, text := range s.said {
		for _, x := range s.secrets {
			for _, form := range x.forms {
				if i := strings.Index(text.String(), form); i >= 0 {
					s.t.Errorf("%s is in: %s\n…%s…", x.name, where, text.String()[max(0, i-80):i])
					break
				}
			}
		}
	}
	if log := s.said["log"]; log == nil || !strings.Contains(log.String(), "level=DEBUG") || !strings.Contains(log.String(), "client=") {
		s.t.Error("the log has nothing of the client, at level DEBUG: nothing was looked at")
	}
}

// certificate makes a certificate that both sides use, and the forms of its key.
func certificate(t *testing.T) (cert tls.Certificate, pool *x509.CertPool, key secret) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x := &x509.Certificate{
		SerialNumber: integer.NewInt(1), Subject: pkix.Name{CommonName: "broker"}, NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, x, x, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
	cert, err = tls.X509KeyPair(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	scalar, err := private.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})) {
		t.Fatal("no certificate")
	}
	key = secretOf("the TLS key", string(scalar))
	key.forms = append(key.forms, strings.Split(string(keyPEM), "\n")[1], new(integer.Int).SetBytes(scalar).String())
	return cert, pool, key
}

// TestSecrets plants secrets wherever a configuration takes some, runs applications that work and some that fail because of
// them, and looks for the secrets in all that they say.
func TestSecrets(t *testing.T) {
	cert, pool, key := certificate(t)
	s := &searched{t: t, said: map[string]*bytes.Buffer{}, secrets: []secret{
		key, secretOf("the SASL password", saslSecret), secretOf("the wrong SASL password", wrongSecret),
		secretOf("the registry's password", registrySecret), secretOf("the registry's token", bearerSecret),
		secretOf("the queries' token", tokenSecret), secretOf("a URL's password", userSecret),
	}}
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, "lines", "counts", "history", "names", "values"), kfake.EnableSASL(),
		kfake.Superuser("PLAIN", "app", saslSecret), kfake.BrokerConfigs(map[string]string{"group.initial.rebalance.delay.ms": "0"}),
		kfake.TLS(&tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert}))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	c := testConfig(cluster.ListenAddrs())
	c.TLS = &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}}
	c.SASL = plain.Auth{User: "app", Pass: saslSecret}.AsMechanism()
	c.Logger = slog.New(slog.NewTextHandler(s, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c.OnEvent = func(e Event) { s.say("events", fmt.Sprintf("%+v", e)) }
	metrics := prometheus.NewRegistry()
	c.Metrics = metrics
	s.print("Config", c)
	s.print("*Config", &c)
	s.print("Config within another", struct{ Streams Config }{c})

	// One that works.
	a, stop := runApp(t, queried(t), c)
	ready(t, a)
	client, err := kgo.NewClient(append(c.withDefaults().clientOptions("test"), kgo.DefaultProduceTopic("lines"))...)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.ProduceSync(t.Context(), kgo.KeySliceRecord([]byte("k"), []byte("v"))).FirstErr(); err != nil {
		t.Fatal(err)
	}
	o := QueryOptions{Token: tokenSecret}
	s.print("QueryOptions", o)
	s.print("App", a)
	queries := a.Queries(o)
	s.get(queries, "/stores", tokenSecret, http.StatusOK)
	s.get(queries, "/stores", "not it", http.StatusUnauthorized)
	s.get(queries, "/stores/nothing/entries/k", tokenSecret, http.StatusNotFound)
	s.get(queries, "/stores/counts/entries?limit=x", tokenSecret, http.StatusBadRequest)
	console := a.Console("/console/", guardOf(tokenSecret))
	s.get(console, "/console/snapshot", tokenSecret, http.StatusOK)
	s.get(console, "/console/snapshot", "not it", http.StatusUnauthorized)
	s.get(a.Health(), "/ready", "", http.StatusOK)
	s.get(promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}), "/metrics", "", http.StatusOK)
	if err := stop(); err != nil {
		t.Fatal(err)
	}

	// Some that do not.
	c.Metrics = nil
	run := func(where string, g *topology.Graph, c Config, want ...string) {
		t.Helper()
		a, err := New(g, c)
		if err == nil {
			err = a.Run(t.Context())
		}
		s.error(where, err, want...)
	}
	wrong := c
	wrong.SASL, wrong.ConnectTimeout = plain.Auth{User: "app", Pass: wrongSecret}.AsMechanism(), 300*time.Millisecond
	run("a wrong SASL password", queried(t), wrong)
	bad := c
	bad.Brokers, bad.Endpoint = []string{"app:" + userSecret + "@127.0.0.1:9092"}, "http://app:"+userSecret+"@127.0.0.1"
	run("an address with a password", queried(t), bad, "Brokers", "Endpoint")

	refusing := registrytest.New(t)
	refusing.Refuse = func(r *http.Request) int {
		if _, pass, _ := r.BasicAuth(); pass != registrySecret && r.Header.Get("Authorization") != "Bearer "+bearerSecret && pass != userSecret {
			t.Errorf("the registry got %q", r.Header.Get("Authorization"))
		}
		return http.StatusForbidden
	}
	address := strings.TrimPrefix(refusing.URL, "http://")
	for where, x := range map[string]registry.Config{
		"a registry that refuses":                 {URLs: []string{refusing.URL}, User: "app", Password: registrySecret},
		"a registry that refuses a user in a URL": {URLs: []string{"http://app:" + userSecret + "@" + address}},
		"a registry that is not there":            {URLs: []string{"http://app:" + userSecret + "@127.0.0.1:1"}, User: "app", Password: registrySecret},
		"a registry with a URL that is none":      {URLs: []string{"http://app:" + userSecret + "@127.0.0.1:port"}},
		"a registry with a URL that has a space":  {URLs: []string{"http://app:" + userSecret + " @127.0.0.1"}},
	} {
		x.RetryFor = -1
		s.print(where, x)
		s.print(where, &x)
		r := registry.New(x)
		values := topology.NewTopic("values", serde.String, avro.New[map[string]any](r, `{"type":"record","name":"r","fields":[]}`, registry.Options{}))
		b := topology.New()
		b.Table(values).As("kept")
		g := graphOf(t, b)
		model := g.Model()
		text, err := json.Marshal(model)
		if err != nil {
			t.Fatal(err)
		}
		s.say("describe, "+where, g.Describe()+string(text)+model.DOT()+model.Mermaid()+model.SVG())
		if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "values", Key: []byte("k"), Value: []byte{0, 0, 0, 0, 1}}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		c := c
		c.ApplicationID, c.StateDir = "other", "other"
		run(where, g, c, "registry")
	}

	// A file of settings in which somebody wrote a password.
	settings := filepath.Join(t.TempDir(), "settings")
	if err := os.WriteFile(settings, []byte("workers = 2\npassword: "+saslSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = readSettings(settings)
	s.error("settings", err, "line 2")
	s.check()
}
