package streams

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// security is how a program connects to brokers. Secrets are no flags, which others on the machine see: they come from
// files or the environment. Files are read again for each connection, so that what is renewed counts.
type security struct {
	tls                              bool
	ca, cert, key, server            string
	mechanism, user, password, token string // the last two are files
	passwordVariable, tokenVariable  string
}

// The ends of the names of environment variables that have secrets.
const (
	saslPasswordEnv = "_SASL_PASSWORD"
	saslTokenEnv    = "_SASL_TOKEN"
)

func (s *security) define(f *flag.FlagSet, passwordVariable, tokenVariable string) {
	s.passwordVariable, s.tokenVariable = passwordVariable, tokenVariable
	f.BoolVar(&s.tls, "tls", false, "encrypt connections to brokers")
	f.StringVar(&s.ca, "tls-ca", "", "PEM `file` of the authorities that may have signed the brokers' certificates (default: the system's)")
	f.StringVar(&s.cert, "tls-cert", "", "PEM `file` of the certificate to show to brokers; with --tls-key")
	f.StringVar(&s.key, "tls-key", "", "PEM `file` of its key")
	f.StringVar(&s.server, "tls-server-name", "", "`name` that brokers' certificates are for (default: that of the address)")
	f.StringVar(&s.mechanism, "sasl", "", "`mechanism` of authentication: plain, scram-sha-256, scram-sha-512 or oauthbearer")
	f.StringVar(&s.user, "sasl-user", "", "`name` of the user, for plain and scram")
	f.StringVar(&s.password, "sasl-password-file", "", "`file` with the password (default: the environment variable "+passwordVariable+")")
	f.StringVar(&s.token, "sasl-token-file", "", "`file` with the token of oauthbearer, renewed by others (default: the environment variable "+tokenVariable+")")
}

// secure puts what the settings say of security into a configuration, over what that had.
func (p *program) secure(c *Config) error {
	encrypted, err := p.security.config()
	if err != nil {
		return err
	}
	if encrypted != nil {
		c.TLS = encrypted
	}
	mechanism, err := p.security.sasl(p.env)
	if err != nil {
		return err
	}
	if mechanism != nil {
		c.SASL = mechanism
	}
	return nil
}

// config returns nil without TLS.
func (s *security) config() (*tls.Config, error) {
	if !s.tls && s.ca == "" && s.cert == "" && s.key == "" && s.server == "" {
		return nil, nil
	}
	c := &tls.Config{ServerName: s.server, MinVersion: tls.VersionTLS12}
	if s.ca != "" {
		pem, err := os.ReadFile(s.ca)
		if err != nil {
			return nil, fmt.Errorf("--tls-ca: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--tls-ca: %s has no certificate in PEM", s.ca)
		}
	}
	if (s.cert == "") != (s.key == "") {
		return nil, errors.New("give --tls-cert and --tls-key, or neither")
	}
	if s.cert != "" {
		cert, key := s.cert, s.key
		load := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(cert, key)
			return &pair, err
		}
		if _, err := load(nil); err != nil {
			return nil, fmt.Errorf("--tls-cert and --tls-key: %w", err)
		}
		c.GetClientCertificate = load
	}
	return c, nil
}

// sasl returns nil without authentication.
func (s *security) sasl(env func(string) (string, bool)) (sasl.Mechanism, error) {
	secret := func(what, file, variable, name string) (func() (string, error), error) {
		get := func() (string, error) {
			if file != "" {
				b, err := os.ReadFile(file)
				return strings.TrimRight(string(b), "\r\n"), err
			}
			v, _ := env(variable)
			return v, nil
		}
		v, err := get()
		switch {
		case err != nil:
			return nil, fmt.Errorf("--%s: %w", name, err)
		case v == "":
			return nil, fmt.Errorf("--sasl %s needs a %s: give --%s, or set %s", s.mechanism, what, name, variable)
		}
		return get, nil
	}
	user := func() (func() (string, error), error) {
		if s.user == "" {
			return nil, fmt.Errorf("--sasl %s needs --sasl-user", s.mechanism)
		}
		return secret("password", s.password, s.passwordVariable, "sasl-password-file")
	}
	switch name := s.user; s.mechanism {
	case "":
		return nil, nil
	case "plain":
		password, err := user()
		return plain.Plain(func(context.Context) (plain.Auth, error) {
			pass, err := password()
			return plain.Auth{User: name, Pass: pass}, err
		}), err
	case "scram-sha-256", "scram-sha-512":
		password, err := user()
		auth := func(context.Context) (scram.Auth, error) {
			pass, err := password()
			return scram.Auth{User: name, Pass: pass}, err
		}
		if s.mechanism == "scram-sha-256" {
			return scram.Sha256(auth), err
		}
		return scram.Sha512(auth), err
	case "oauthbearer":
		token, err := secret("token", s.token, s.tokenVariable, "sasl-token-file")
		return oauth.Oauth(func(context.Context) (oauth.Auth, error) {
			t, err := token()
			return oauth.Auth{Token: t}, err
		}), err
	}
	return nil, fmt.Errorf("--sasl %q: want plain, scram-sha-256, scram-sha-512 or oauthbearer", s.mechanism)
}
