package transfer_test

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/linktest"
	"github.com/snapferry/snapferry/internal/peer"
	"github.com/snapferry/snapferry/internal/pki"
	"github.com/snapferry/snapferry/internal/transfer"
)

// planHeap is how many bytes of the heap a plan may need, whatever the size.
const planHeap = 64 << 20

// BenchmarkPlan plans a copy of a full disk of 1 TiB on a base of which a tenth of
// the leaves, or a hundredth of the blocks, differ: in the process, over TLS, and
// over TLS and a link of 100 ms.
func BenchmarkPlan(b *testing.B) {
	const size = 1 << 40
	base := newHuge(size, func(uint64) bool { return false })
	for _, change := range []struct {
		name    string
		changed func(uint64) bool
	}{{"tenth-of-leaves", tenthLeaf}, {"hundredth-of-blocks", hundredthBlock}} {
		disk := newHuge(size, change.changed)
		// most is how far the heap may grow; 0: what is on a link is in it, too.
		run := func(name string, most uint64, src func(*testing.B) transfer.Source) {
			b.Run(change.name+"/"+name, func(b *testing.B) {
				b.ReportAllocs()
				var t transfer.Totals
				s := src(b)
				peak := watchHeap(b)
				for b.Loop() {
					p := transfer.Planner{Info: disk.info(), Source: s, Base: base.asMap()}
					if err := p.Run(b.Context(), func(transfer.Step) error { return nil }); err != nil {
						b.Fatal(err)
					}
					t = p.Totals
				}
				heap := peak()
				b.ReportMetric(float64(t.Leafs), "leaves")
				b.ReportMetric(float64(t.MoveBlocks), "blocks")
				b.ReportMetric(float64(heap)/(1<<20), "heap-MiB")
				if most > 0 && heap > most {
					b.Errorf("the heap grew to %d MiB, more than %d", heap>>20, most>>20)
				}
			})
		}
		run("local", planHeap, func(*testing.B) transfer.Source { return disk })
		run("TLS", planHeap, func(b *testing.B) transfer.Source { return overTLS(b, disk, linktest.Shape{}) })
		run("TLS-100ms", 0, func(b *testing.B) transfer.Source {
			return overTLS(b, disk, linktest.Shape{RoundTrip: 100 * time.Millisecond})
		})
	}
}

// watchHeap returns a function that returns the most bytes that objects of the
// heap had meanwhile, dead ones that were not collected yet among them.
func watchHeap(b *testing.B) func() uint64 {
	stop, peak := make(chan struct{}), make(chan uint64)
	runtime.GC()
	go func() {
		s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		var most uint64
		for {
			metrics.Read(s)
			most = max(most, s[0].Value.Uint64())
			select {
			case <-tick.C:
			case <-stop:
				peak <- most
				return
			}
		}
	}()
	return func() uint64 { close(stop); return <-peak }
}

// one is a region that has one snapshot.
type one struct {
	transfer.Host
	source transfer.Source
}

func (o one) Source(context.Context, transfer.Caller, transfer.Handle) (transfer.Source, error) {
	return o.source, nil
}

// overTLS returns a source as it is seen by another region, over a link unless the
// shape is none.
func overTLS(tb testing.TB, src transfer.Source, shape linktest.Shape) transfer.Source {
	tb.Helper()
	ca, err := pki.NewAuthority("test")
	if err != nil {
		tb.Fatal(err)
	}
	pool, err := pki.ParseCA(ca.CertPEM())
	if err != nil {
		tb.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	addr := ln.Addr().String()
	s := &http.Server{
		Handler: peer.Handler(one{source: src}, slog.New(slog.DiscardHandler)), ConnContext: peer.ConnContext,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.Serve(peer.Listener(ln, pki.PeerServerConfig(identity(tb, ca, "east"), pool)))
	}()
	tb.Cleanup(func() { s.Close(); <-ended })
	if shape != (linktest.Shape{}) {
		addr = linktest.Start(tb, addr, shape).Address
	}
	c := peer.NewClient("east", addr, pki.PeerClientConfig(identity(tb, ca, "west"), pool, "east"))
	tb.Cleanup(c.Close)
	return c.As("a").Source(transfer.Handle{})
}

func identity(tb testing.TB, ca *pki.Authority, region snapferry.RegionName) *pki.Identity {
	tb.Helper()
	cert, key, err := ca.Issue(region, []string{"127.0.0.1"}, time.Hour)
	if err != nil {
		tb.Fatal(err)
	}
	c, k := filepath.Join(tb.TempDir(), "region.pem"), filepath.Join(tb.TempDir(), "region.key")
	for name, p := range map[string][]byte{c: cert, k: key} {
		if err := os.WriteFile(name, p, 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	id, err := pki.LoadIdentity(c, k, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return id
}
