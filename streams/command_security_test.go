package streams

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	mathbig "math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/eddyline/eddyline/serde"
	"github.com/eddyline/eddyline/state"
	"github.com/eddyline/eddyline/topology"
)

// settingsOf returns a program that has read these arguments and variables.
func settingsOf(t *testing.T, b *topology.Builder, variables map[string]string, args ...string) *program {
	t.Helper()
	p := &program{name: "secure", out: new(bytes.Buffer), err: new(bytes.Buffer), env: func(name string) (string, bool) {
		v, ok := variables[name]
		return v, ok
	}}
	var err error
	if _, _, err = p.parse(args); err != nil {
		t.Fatal(err)
	}
	if p.graph, err = b.Build(); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestSecuritySettings(t *testing.T) {
	dir := t.TempDir()
	secret, empty := filepath.Join(dir, "secret"), filepath.Join(dir, "empty")
	for name, text := range map[string]string{secret: "s3cret\n", empty: ""} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range []struct {
		args      string
		variables map[string]string
		mechanism string
		want      string // in the error
	}{
		{args: "", mechanism: ""},
		{args: "--sasl plain --sasl-user u", variables: map[string]string{"SECURE_SASL_PASSWORD": "p"}, mechanism: "PLAIN"},
		{args: "--sasl plain --sasl-user u --sasl-password-file " + secret, mechanism: "PLAIN"},
		{args: "--sasl scram-sha-256 --sasl-user u --sasl-password-file " + secret, mechanism: "SCRAM-SHA-256"},
		{args: "", variables: map[string]string{"SECURE_SASL": "scram-sha-512", "SECURE_SASL_USER": "u", "SECURE_SASL_PASSWORD": "p"}, mechanism: "SCRAM-SHA-512"},
		{args: "--sasl oauthbearer --sasl-token-file " + secret, mechanism: "OAUTHBEARER"},
		{args: "--sasl kerberos", want: "want plain, scram"},
		{args: "--sasl plain", want: "needs --sasl-user"},
		{args: "--sasl plain --sasl-user u", want: "SECURE_SASL_PASSWORD"},
		{args: "--sasl plain --sasl-user u --sasl-password-file " + empty, want: "needs a password"},
		{args: "--sasl plain --sasl-user u --sasl-password-file " + dir + "/none", want: "--sasl-password-file"},
		{args: "--sasl oauthbearer", want: "--sasl-token-file"},
		{args: "--tls-cert " + secret, want: "neither"},
		{args: "--tls-ca " + secret, want: "no certificate in PEM"},
		{args: "--tls-cert " + secret + " --tls-key " + secret, want: "--tls-cert and --tls-key"},
	} {
		p := settingsOf(t, securedTopology(), x.variables, strings.Fields(x.args)...)
		var c Config
		err := p.secure(&c)
		if x.want != "" {
			if err == nil || !strings.Contains(err.Error(), x.want) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%s: %v, want %q in it", x.args, err, x.want)
			}
			continue
		}
		got := ""
		if c.SASL != nil {
			got = c.SASL.Name()
		}
		if err != nil || got != x.mechanism {
			t.Errorf("%s: %v, %v, want %s", x.args, got, err, x.mechanism)
		}
	}
}

// securedTopology has an input table that restores from its topic, a repartition topic, stores and an output topic.
func securedTopology() *topology.Builder {
	topic := func(name string) topology.Topic[string, string] {
		return topology.NewTopic(name, serde.String, serde.String)
	}
	b := topology.New()
	names := b.Table(topic("names"))
	b.Stream(topic("orders")).
		GroupBy(strings.ToUpper).
		Reduce(func(_, v string) string { return v }).As("last").
		Join(names, func(order, name string) string { return name + " " + order }).
		ToStream().
		To(topic("named"))
	return b
}

func TestACLs(t *testing.T) {
	p := settingsOf(t, securedTopology(), nil, "acls", "--application-id", "app", "--brokers", "b:1")
	if err := p.acls(nil); err != nil {
		t.Fatal(err)
	}
	const add = "kafka-acls.sh --bootstrap-server b:1 --add --allow-principal User:app --operation "
	want := add + "Write --operation DescribeConfigs --topic named\n" +
		add + "Read --topic names\n" +
		add + "Read --topic orders\n" +
		add + "Read --operation Write --operation Create --operation Delete --operation DescribeConfigs --topic app- --resource-pattern-type prefixed\n" +
		add + "Read --group app\n" +
		add + "Write --operation Describe --transactional-id app- --resource-pattern-type prefixed\n"
	if got := p.out.(*bytes.Buffer).String(); got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
}

// authority signs certificates for a test.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.sign("ca", true)
	return a
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name+".pem") }

// sign writes a certificate and its key to name.pem and name-key.pem, both also to name-all.pem.
func (a *authority) sign(name string, ca bool) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: mathbig.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: ca, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, signer := c, key
	if !ca {
		c.KeyUsage = x509.KeyUsageDigitalSignature
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, secret := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	for name, b := range map[string][]byte{name: cert, name + "-key": secret, name + "-all": append(secret, cert...)} {
		if err := os.WriteFile(a.file(name), b, 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		a.t.Fatal(err)
	}
	return c, key
}

// A broker with TLS, certificates of clients, SASL and an authorizer lets an application in by each mechanism, and lets it
// do all that it needs by the permissions that acls prints, no others. EDDYLINE_KAFKA is kafka.sh, which starts the broker.
func TestSecuredBroker(t *testing.T) {
	kafka := os.Getenv("EDDYLINE_KAFKA")
	if kafka == "" {
		t.Skip("EDDYLINE_KAFKA is not set: set it to .ci/kafka/kafka.sh, which starts a secured broker")
	}
	ca := newAuthority(t)
	ca.sign("broker", false)
	ca.sign("app", false)
	port := numberOf(t, "KAFKA_PORT", 19092) + 50 // beside the broker of the other tests
	controller := port + 10000                    // as kafka.sh has it
	address := fmt.Sprint("127.0.0.1:", port)
	properties := filepath.Join(t.TempDir(), "properties")
	const plainModule, scramModule = "org.apache.kafka.common.security.plain.PlainLoginModule", "org.apache.kafka.common.security.scram.ScramLoginModule"
	const oauthModule = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule"
	text := fmt.Sprintf(`
listeners=SASL_SSL://%[1]s,CONTROLLER://127.0.0.1:%[2]d
advertised.listeners=SASL_SSL://%[1]s
listener.security.protocol.map=SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT
inter.broker.listener.name=SASL_SSL
ssl.keystore.type=PEM
ssl.keystore.location=%[3]s
ssl.truststore.type=PEM
ssl.truststore.location=%[4]s
listener.name.sasl_ssl.ssl.client.auth=required
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER
sasl.mechanism.inter.broker.protocol=PLAIN
listener.name.sasl_ssl.plain.sasl.jaas.config=%[5]s required username="admin" password="admin-secret" user_admin="admin-secret" user_app="app-secret";
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=%[6]s required;
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=%[6]s required;
listener.name.sasl_ssl.oauthbearer.sasl.jaas.config=%[7]s required unsecuredLoginStringClaim_sub="broker";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:admin;User:ANONYMOUS
`, address, controller, ca.file("broker-all"), ca.file("ca"), plainModule, scramModule, oauthModule)
	if err := os.WriteFile(properties, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	broker := func(what string) {
		cmd := exec.Command(kafka, what)
		cmd.Env = append(os.Environ(), fmt.Sprint("KAFKA_PORT=", port), "KAFKA_PROPERTIES="+properties, "KAFKA_HEAP=512m")
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("kafka.sh %s: %v\n%s", what, err, b)
		}
	}
	defer broker("wipe")
	broker("start")

	open := []string{"--brokers", address, "--tls-ca", ca.file("ca"), "--tls-cert", ca.file("app"), "--tls-key", ca.file("app-key")}
	settings := func(user, password string, args ...string) *program {
		return settingsOf(t, securedTopology(), map[string]string{"SECURE_SASL_USER": user, "SECURE_SASL_PASSWORD": password}, append(args, open...)...)
	}
	configOf := func(p *program) Config {
		c := testConfig([]string{address})
		c.ApplicationID, c.DeadLetterTopic = p.config.ApplicationID, "dead"
		if err := p.secure(&c); err != nil {
			t.Fatal(err)
		}
		return c
	}
	clientOf := func(p *program) *kgo.Client {
		c := configOf(p).withDefaults()
		client, err := kgo.NewClient(append(c.clientOptions("test"), kgo.ConsumeTopics("named"))...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(client.Close)
		return client
	}
	client := clientOf(settings("admin", "admin-secret", "run", "--sasl", "plain"))
	admin := kadm.NewClient(client)
	if _, err := retry(t.Context(), slog.New(slog.DiscardHandler), "create topics", func(ctx context.Context) (struct{}, error) {
		created, err := admin.CreateTopics(ctx, 2, 1, nil, "orders", "names", "named", "dead")
		for _, topic := range created {
			if err == nil && !errors.Is(topic.Err, kerr.TopicAlreadyExists) { // it does where an answer came too late
				err = topic.Err
			}
		}
		return struct{}{}, err
	}); err != nil {
		t.Fatal(err)
	}
	for _, mechanism := range []kadm.ScramMechanism{kadm.ScramSha256, kadm.ScramSha512} {
		set, err := admin.AlterUserSCRAMs(t.Context(), nil, []kadm.UpsertSCRAM{{User: "app", Mechanism: mechanism, Iterations: 4096, Password: "scram-secret"}})
		if err == nil {
			err = set.Error()
		}
		if err != nil {
			t.Fatal(err)
		}
	}

	// Without the permissions nothing goes.
	p := settings("app", "app-secret", "acls", "--sasl", "plain", "--json")
	p.config.ApplicationID = "secure-plain"
	a, err := New(graphOf(t, securedTopology()), configOf(p))
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Run(t.Context()); !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("without permissions an application ended with %v", err)
	}
	token := func(claims string) string {
		enc := base64.RawURLEncoding.EncodeToString
		return enc([]byte(`{"alg":"none"}`)) + "." + enc([]byte(claims)) + "."
	}
	tokenFile := filepath.Join(t.TempDir(), "token")
	now := time.Now().Unix()
	if err := os.WriteFile(tokenFile, fmt.Appendf(nil, "%s\n", token(fmt.Sprintf(`{"sub":"app","iat":%d,"exp":%d}`, now, now+3600))), 0o600); err != nil {
		t.Fatal(err)
	}
	for i, x := range []struct {
		mechanism, password string
	}{{"plain", "app-secret"}, {"scram-sha-256", "scram-secret"}, {"scram-sha-512", "scram-secret"}, {"oauthbearer", ""}} {
		t.Run(x.mechanism, func(t *testing.T) {
			p := settings("app", x.password, "acls", "--sasl", x.mechanism, "--sasl-token-file", tokenFile, "--json")
			p.config.ApplicationID, p.config.DeadLetterTopic = "secure-"+x.mechanism, "dead"
			if err := p.acls(nil); err != nil {
				t.Fatal(err)
			}
			var all []permission
			if err := json.Unmarshal(p.out.(*bytes.Buffer).Bytes(), &all); err != nil {
				t.Fatal(err)
			}
			grant(t, admin, "User:app", all)
			c := configOf(p)
			c.Host.FS = state.NewMemoryFS()
			a, stop := runApp(t, graphOf(t, securedTopology()), c)
			ready(t, a)
			key := fmt.Sprint("K", i)
			for topic, value := range map[string]string{"names": "name", "orders": strings.ToLower(key)} {
				r := &kgo.Record{Topic: topic, Key: []byte(key), Value: []byte(value)}
				if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			for found := false; !found; { // among those of the applications before, which are joined again
				client.PollFetches(ctx).EachRecord(func(r *kgo.Record) { found = found || string(r.Key) == key })
				if ctx.Err() != nil {
					t.Fatalf("nothing comes of %s: the application is %v, %v", key, a.State(), stop())
				}
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// grant gives a principal permissions.
func grant(t *testing.T, admin *kadm.Client, principal string, all []permission) {
	t.Helper()
	for _, x := range all {
		b := kadm.NewACLs().Allow(principal).AllowHosts("*")
		if b = b.ResourcePatternType(kadm.ACLPatternLiteral); x.Prefix {
			b = b.ResourcePatternType(kadm.ACLPatternPrefixed)
		}
		switch x.Resource {
		case "topic":
			b = b.Topics(x.Name)
		case "group":
			b = b.Groups(x.Name)
		case "transactional-id":
			b = b.TransactionalIDs(x.Name)
		}
		for _, name := range x.Operations {
			o, err := kmsg.ParseACLOperation(name)
			if err != nil {
				t.Fatal(err)
			}
			b = b.Operations(o)
			created, err := admin.CreateACLs(t.Context(), b)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range created {
				if c.Err != nil {
					t.Fatal(c.Err)
				}
			}
		}
	}
}
