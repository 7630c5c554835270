package peer_test

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/peer"
	"github.com/snapferry/snapferry/internal/pki"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/transfer"
)

func authority(t testing.TB) *pki.Authority {
	t.Helper()
	ca, err := pki.NewAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func identity(t testing.TB, ca *pki.Authority, region snapferry.RegionName) *pki.Identity {
	t.Helper()
	cert, key, err := ca.Issue(region, []string{"127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, p := range map[string][]byte{"region.pem": cert, "region.key": key} {
		if err := os.WriteFile(filepath.Join(dir, name), p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	id, err := pki.LoadIdentity(filepath.Join(dir, "region.pem"), filepath.Join(dir, "region.key"), nil)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// serve serves a handler as region east and returns its address and a function
// that makes the configuration of a client.
func serve(t testing.TB, ca *pki.Authority, h http.Handler) (string, func(ca *pki.Authority, me, expect snapferry.RegionName) *tls.Config) {
	t.Helper()
	pool, err := pki.ParseCA(ca.CertPEM())
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Listener = peer.Listener(ln, pki.PeerServerConfig(identity(t, ca, "east"), pool))
	s.Config.ConnContext = peer.ConnContext
	s.Start()
	t.Cleanup(s.Close)
	return ln.Addr().String(), func(mine *pki.Authority, me, expect snapferry.RegionName) *tls.Config {
		return pki.PeerClientConfig(identity(t, mine, me), pool, expect)
	}
}

// TestCopyOverTLS copies between two regions over the real connection.
func TestCopyOverTLS(t *testing.T) {
	ca := authority(t)
	f := simtest.NewFactory(t)
	link := simtest.NewLink("east")
	east := f.NewRegion(t, simtest.Options{
		Name: "east", Jobs: true, Codec: snapferry.Zstd,
		Peers: map[snapferry.RegionName]func(string) transfer.Remote{"west": link.As},
	})
	addr, config := serve(t, ca, peer.Handler(control.Host{Region: east.Control}, slog.New(slog.DiscardHandler)))
	client := peer.NewClient("east", addr, config(ca, "west", "east"))
	t.Cleanup(client.Close)
	west := f.NewRegion(t, simtest.Options{
		Name: "west", Jobs: true,
		Peers: map[snapferry.RegionName]func(string) transfer.Remote{"east": client.As},
	})
	a, b := east.Account("a"), west.Account("a")
	ctx := t.Context()
	d := simtest.NewDisk(5<<30 + 512)
	for i := range uint64(90) {
		d.Fill(i*900, int(i)+1)
	}
	for range 2 {
		s, err := east.Control.Import(ctx, a, control.ImportRequest{Volume: "disk", Disk: d, Close: func() {}})
		if err == nil {
			s, err = east.Control.Wait(ctx, a, s.ID, -1, time.Minute)
		}
		if err != nil || s.State != snapferry.SnapshotReady {
			t.Fatal(s.Reason, err)
		}
		c, err := west.Control.Copy(ctx, b, control.CopyRequest{From: "east", Source: s.ID})
		if err == nil {
			c, err = west.Control.Wait(ctx, b, c.ID, -1, time.Minute)
		}
		if err != nil || c.State != snapferry.SnapshotReady || c.Digest != d.Digest() {
			t.Fatalf("copy: %s %s, %v", c.State, c.Reason, err)
		}
		d = d.Clone(3<<30+512).Fill(5, 77)
	}
	h, err := client.As("a").Hello(ctx)
	if err != nil || h.Region != "east" || h.Protocol != peer.Protocol {
		t.Errorf("hello: %+v, %v", h, err)
	}
	_, err = client.As("nobody").Describe(ctx, snapferry.NewSnapshotID())
	wantKind(t, "unknown account", err, snapferry.Denied)
	_, err = client.As("a").Describe(ctx, snapferry.NewSnapshotID())
	wantKind(t, "unknown snapshot", err, snapferry.NotFound)
	wantKind(t, "renew an unknown pin", client.As("a").Renew(ctx, transfer.Handle{Pin: "pin-x"}), snapferry.NotFound)
	wantKind(t, "unknown pin", client.As("a").Release(ctx, transfer.Handle{Pin: "pin-x"}, ""), snapferry.NotFound)

	// Who is not who it must be is not let in.
	for name, c := range map[string]*peer.Client{
		"unknown region":  peer.NewClient("east", addr, config(ca, "south", "east")),
		"other authority": peer.NewClient("east", addr, config(authority(t), "west", "east")),
		"not that region": peer.NewClient("north", addr, config(ca, "west", "north")),
	} {
		_, err := c.As("a").Describe(ctx, snapferry.NewSnapshotID())
		wantKind(t, name, err, snapferry.Denied)
		c.Close()
	}
	east.Check(t, simtest.NoGarbage)
	west.Check(t, simtest.NoGarbage)
}

func wantKind(t *testing.T, what string, err error, kind snapferry.Kind) {
	t.Helper()
	if !snapferry.IsKind(err, kind) {
		t.Errorf("%s: got %v, want %v", what, err, kind)
	}
}

// failing is a host that answers everything with one error.
type failing struct{ err error }

func (f failing) Hello(context.Context, transfer.Caller) (transfer.Hello, error) {
	return transfer.Hello{}, f.err
}

func (f failing) Describe(context.Context, transfer.Caller, snapferry.SnapshotID) (transfer.Description, error) {
	return transfer.Description{}, f.err
}

func (f failing) Members(context.Context, transfer.Caller, snapferry.SetID) ([]snapferry.SnapshotID, error) {
	return nil, f.err
}

func (f failing) Pin(context.Context, transfer.Caller, transfer.Pin) (transfer.Handle, error) {
	return transfer.Handle{}, f.err
}

func (f failing) Pins(context.Context, transfer.Caller, string) ([]transfer.Held, error) {
	return nil, f.err
}

func (f failing) Renew(context.Context, transfer.Caller, transfer.Handle) error { return f.err }

func (f failing) Release(context.Context, transfer.Caller, transfer.Handle, snapferry.Ending) error {
	return f.err
}

func (f failing) Source(context.Context, transfer.Caller, transfer.Handle) (transfer.Source, error) {
	return nil, f.err
}

// TestErrors sends an error of each Kind over the connection.
func TestErrors(t *testing.T) {
	ca := authority(t)
	for _, kind := range snapferry.Kinds() {
		addr, config := serve(t, ca, peer.Handler(failing{snapferry.Errorf(kind, "because").WithHint("do this")}, slog.New(slog.DiscardHandler)))
		c := peer.NewClient("east", addr, config(ca, "west", "east"))
		want := kind
		if kind == snapferry.Internal {
			want = snapferry.Unavailable // it may pass
		}
		r := c.As("a")
		_, err := r.Pin(t.Context(), transfer.Pin{})
		wantKind(t, "pin", err, want)
		if snapferry.HintOf(err) != "do this" {
			t.Errorf("%v: got hint %q", kind, snapferry.HintOf(err))
		}
		src := r.Source(transfer.Handle{})
		_, err = src.Blocks(t.Context(), nil)
		wantKind(t, "blocks", err, want)
		err = src.Nodes(t.Context(), nil, func(snapferry.Position, *blockmap.Node) error { return nil })
		wantKind(t, "nodes", err, want)
		c.Close()
	}
	c := peer.NewClient("east", "127.0.0.1:1", &tls.Config{})
	_, err := c.As("a").Hello(t.Context())
	wantKind(t, "nobody there", err, snapferry.Unavailable)
}

// TestOtherProtocol talks to a region that is too old, or too new: each side says so.
func TestOtherProtocol(t *testing.T) {
	ca := authority(t)
	ours := peer.Handler(failing{snapferry.Errorf(snapferry.NotFound, "nothing here")}, slog.New(slog.DiscardHandler))
	addr, config := serve(t, ca, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/peer/v1/hello" {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"region":"east","version":"0.0","protocol":2}`)
			return
		}
		r.Header.Set("Snapferry-Protocol", "0")
		ours.ServeHTTP(w, r)
	}))
	c := peer.NewClient("east", addr, config(ca, "west", "east"))
	t.Cleanup(c.Close)
	_, err := c.As("a").Hello(t.Context())
	wantKind(t, "a region with a newer protocol", err, snapferry.Unsupported)
	_, err = c.As("a").Describe(t.Context(), snapferry.NewSnapshotID())
	wantKind(t, "asked with an older protocol", err, snapferry.Unsupported)
	_, err = c.As("a").Members(t.Context(), snapferry.NewSetID())
	wantKind(t, "asked with an older protocol", err, snapferry.Unsupported)
}

// TestMembersChecked: what a region says of a set must be ids.
func TestMembersChecked(t *testing.T) {
	ca := authority(t)
	answer := ""
	addr, config := serve(t, ca, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, answer)
	}))
	c := peer.NewClient("east", addr, config(ca, "west", "east"))
	t.Cleanup(c.Close)
	for _, answer = range []string{`{"snapshots":["snap-1"]}`, `{"snapshots":["../../etc"]}`, `{"snapshots":7}`, `{"snapshots":["snap-0123456789abcdef0"]`} {
		if ids, err := c.As("a").Members(t.Context(), snapferry.NewSetID()); err == nil {
			t.Errorf("%s: got %v, want an error", answer, ids)
		}
	}
}
