package streams

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// queryTokenEnv is the environment variable that has the token of queries: a flag would be seen by everybody on the machine.
const queryTokenEnv = "EDDYLINE_QUERY_TOKEN"

// registry is where a program registers its metrics if its own configuration names no place.
func (p *program) registry(c *Config) {
	if p.http != "" && c.Metrics == nil {
		c.Metrics = prometheus.NewRegistry()
	}
	if host, _, err := net.SplitHostPort(p.http); err == nil && host != "" && p.queries && c.Endpoint == "" {
		c.Endpoint = p.http
	}
}

// serve serves the probes and the metrics of a, if an address was given. It returns a function that ends that. An address
// without a host is this machine's own: what others may reach has to be said.
func (p *program) serve(a *App) (stop func(), err error) {
	if p.http == "" {
		return func() {}, nil
	}
	address := p.http
	if strings.HasPrefix(address, ":") {
		address = "127.0.0.1" + address
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for --http: %w: give a free address, such as 127.0.0.1:8080", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/", a.Health())
	token, own := os.Getenv(queryTokenEnv), l.Addr().(*net.TCPAddr).IP.IsLoopback()
	if own || token != "" {
		mux.Handle("/console/", a.Console("/console/", guardOf(token)))
	}
	if p.queries {
		if !own && token == "" {
			return nil, errors.Join(fmt.Errorf("--queries at %s, which others can reach: set %s to a token that they have to send, "+
				"the same for all instances", l.Addr(), queryTokenEnv), l.Close())
		}
		queries := a.Queries(QueryOptions{Token: token})
		mux.Handle("/stores", queries)
		mux.Handle("/stores/", queries)
	}
	if g, ok := a.config.Metrics.(prometheus.Gatherer); ok {
		mux.Handle("GET /metrics", promhttp.HandlerFor(g, promhttp.HandlerOpts{}))
	}
	// Nothing that is served here reads a body, or takes longer than its own time-out.
	server := &http.Server{
		Handler: http.MaxBytesHandler(mux, 0), ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 64 << 10, // of a request, its address included
	}
	a.log.Info("listening", "probes and metrics at", "http://"+l.Addr().String())
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			a.log.Error("the probes and metrics are not served any more", "error", err)
		}
	}()
	return func() {
		if err := server.Close(); err != nil {
			a.log.Debug("close the HTTP server", "error", err)
		}
	}, nil
}
