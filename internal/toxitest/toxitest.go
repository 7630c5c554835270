//go:build unix

// Package toxitest puts broken links between regions under test: toxiproxy, a
// process of its own, whose version is pinned in tools/toxiproxy/go.mod.
package toxitest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/snapferry/snapferry/internal/testtool"
)

const program = "github.com/Shopify/toxiproxy/v2/cmd/server"

// Server is a process that has proxies.
type Server struct {
	tb      testing.TB
	url     string
	proxies int
}

// Start starts a server; it is killed at the end of the test. Where the program
// cannot be built the test is skipped, or fails if it must not be (as on the
// build machine).
func Start(tb testing.TB, must bool) *Server {
	tb.Helper()
	exe, err := Build(tb.Context())
	if err != nil {
		if must {
			tb.Fatal(err)
		}
		tb.Skip(err)
	}
	addr, err := testtool.FreeAddress()
	if err != nil {
		tb.Fatal(err)
	}
	host, port, _ := strings.Cut(addr, ":")
	cmd := exec.Command(exe, "-host", host, "-port", port)
	cmd.Env = []string{"LOG_LEVEL=error"}
	run, err := testtool.Start(cmd, filepath.Join(tb.TempDir(), "log"))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := run.Kill(); err != nil {
			tb.Error(err)
		}
	})
	s := &Server{tb: tb, url: "http://" + addr}
	if err := run.Answers(tb.Context(), s.url+"/version"); err != nil {
		tb.Fatal(err)
	}
	return s
}

// Build returns the path of the program; see testtool.Build.
func Build(ctx context.Context) (string, error) {
	return testtool.Build(ctx, "toxiproxy", program)
}

// Proxy is a link to an address. A fault is of each connection of it, not of all
// together.
type Proxy struct {
	Address string // where it listens, 127.0.0.1:PORT

	s      *Server
	path   string
	faults int // how many it has; they are called 0, 1, ...
}

// Proxy makes a link to an address that has no faults.
func (s *Server) Proxy(upstream string) *Proxy {
	s.tb.Helper()
	name := strconv.Itoa(s.proxies)
	s.proxies++
	p := &Proxy{s: s, path: "/proxies/" + name}
	var got struct{ Listen string }
	s.do(http.MethodPost, "/proxies", map[string]any{"name": name, "listen": "127.0.0.1:0", "upstream": upstream, "enabled": true}, &got)
	p.Address = got.Listen
	return p
}

// Cut ends all connections, and refuses those that come until Mend.
func (p *Proxy) Cut() {
	p.s.tb.Helper()
	p.enable(false)
}

// Mend makes the link one without faults.
func (p *Proxy) Mend() {
	p.s.tb.Helper()
	p.Only()
}

// A Fault is something that a link does: a toxic, as toxiproxy calls it.
type Fault struct {
	Type       string           `json:"type"`
	Stream     string           `json:"stream"` // "upstream", to the address, or "downstream", from it
	Attributes map[string]int64 `json:"attributes"`
}

// Rate lets at most so many bytes a second of each connection come back.
func Rate(n int64) Fault {
	return Fault{"bandwidth", "downstream", map[string]int64{"rate": max(n>>10, 1)}}
}

// Delay delays what comes back.
func Delay(d time.Duration) Fault {
	return Fault{"latency", "downstream", map[string]int64{"latency": d.Milliseconds()}}
}

// Swallow drops all that comes back, with no word of it: a connection that is
// half open. It ends when the fault does.
func Swallow() Fault { return Fault{"timeout", "downstream", map[string]int64{"timeout": 0}} }

// Reset resets connections a while after they began.
func Reset(d time.Duration) Fault {
	return Fault{"reset_peer", "downstream", map[string]int64{"timeout": d.Milliseconds()}}
}

// Break closes connections when so many bytes have come back.
func Break(n int64) Fault {
	return Fault{"limit_data", "downstream", map[string]int64{"bytes": n}}
}

// Only gives the link these faults, and no other; it is not cut then.
func (p *Proxy) Only(faults ...Fault) {
	p.s.tb.Helper()
	for ; p.faults > 0; p.faults-- {
		p.s.do(http.MethodDelete, fmt.Sprintf("%s/toxics/%d", p.path, p.faults-1), nil, nil)
	}
	for _, f := range faults {
		p.s.do(http.MethodPost, p.path+"/toxics", struct {
			Fault
			Name string `json:"name"`
		}{f, strconv.Itoa(p.faults)}, nil)
		p.faults++
	}
	p.enable(true)
}

func (p *Proxy) enable(on bool) {
	p.s.tb.Helper()
	p.s.do(http.MethodPost, p.path, map[string]any{"enabled": on}, nil)
}

// do asks the server; a test that it does not obey cannot go on.
func (s *Server) do(method, path string, body, answer any) {
	s.tb.Helper()
	if err := s.ask(method, path, body, answer); err != nil {
		s.tb.Fatalf("toxiproxy: %s %s: %v", method, path, err)
	}
}

func (s *Server) ask(method, path string, body, answer any) error {
	p, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(context.Background(), method, s.url+path, bytes.NewReader(p))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= http.StatusMultipleChoices {
		return fmt.Errorf("%s: %s", resp.Status, got)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(got, answer)
}
