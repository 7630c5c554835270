package peer_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/internal/linktest"
	"github.com/snapferry/snapferry/internal/peer"
	"github.com/snapferry/snapferry/internal/pki"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/transfer"
	"github.com/snapferry/snapferry/internal/vault"
)

// random is a disk of so many random bytes, made as they are read.
type random int64

func (r random) Size() int64 { return int64(r) }

func (r random) ReadAt(p []byte, off int64) (int, error) {
	const unit = 4 << 10
	for n := 0; n < len(p); n += unit {
		var seed [32]byte
		binary.BigEndian.PutUint64(seed[:], uint64(off)+uint64(n)+1)
		if _, err := rand.NewChaCha8(seed).Read(p[n:min(n+unit, len(p))]); err != nil {
			return n, err
		}
	}
	return len(p), nil
}

func (r random) Next(off int64) (extent.Extent, bool, error) {
	return extent.Extent{Off: off, Len: int64(r) - off}, off < int64(r), nil
}

// two are regions of which west reaches east over TLS, and an account in each.
type two struct {
	east, west     *simtest.Region
	inEast, inWest snapferry.AccountID
	link           *linktest.Link // nil for none
}

// pair makes two regions, with a long link between them if the shape is not nil.
func pair(tb testing.TB, shape *linktest.Shape) (p two) {
	tb.Helper()
	ca, f, toWest := authority(tb), simtest.NewFactory(tb), simtest.NewLink("east")
	p.east = f.NewRegion(tb, simtest.Options{
		Name: "east", Jobs: true, Codec: snapferry.Zstd, Peers: map[snapferry.RegionName]func(string) transfer.Remote{"west": toWest.As},
	})
	addr, config := serve(tb, ca, peer.Handler(control.Host{Region: p.east.Control}, slog.New(slog.DiscardHandler)))
	if shape != nil {
		p.link = linktest.Start(tb, addr, *shape)
		addr = p.link.Address
	}
	client := peer.NewClient("east", addr, config(ca, "west", "east"))
	tb.Cleanup(client.Close)
	p.west = f.NewRegion(tb, simtest.Options{Name: "west", Jobs: true, Peers: map[snapferry.RegionName]func(string) transfer.Remote{"east": client.As}})
	toWest.Join(p.west)
	p.inEast, p.inWest = p.east.Account("a"), p.west.Account("a")
	return p
}

// imported puts a disk into east.
func (p *two) imported(tb testing.TB, volume string, d random) snapferry.Snapshot {
	tb.Helper()
	ctx := tb.Context()
	s, err := p.east.Control.Import(ctx, p.inEast, control.ImportRequest{Volume: volume, Disk: d, Close: func() {}})
	if err == nil {
		s, err = p.east.Control.Wait(ctx, p.inEast, s.ID, -1, time.Minute)
	}
	if err != nil || s.State != snapferry.SnapshotReady {
		tb.Fatalf("import: %v, %s (%s)", err, s.State, s.Reason)
	}
	return s
}

// copied copies a snapshot of east, whole, from the call until it is ready.
func (p *two) copied(tb testing.TB, s snapferry.Snapshot) snapferry.Snapshot {
	tb.Helper()
	ctx := tb.Context()
	c, err := p.west.Control.Copy(ctx, p.inWest, control.CopyRequest{From: "east", Source: s.ID, Full: true})
	for err == nil && !c.State.Settled() {
		c, err = p.west.Control.Wait(ctx, p.inWest, c.ID, -1, time.Minute)
	}
	if err != nil || c.State != snapferry.SnapshotReady || c.Digest != s.Digest {
		tb.Errorf("copy: %v, %s (%s)", err, c.State, c.Reason)
	}
	return c
}

// BenchmarkLongLink copies 400 MiB of random bytes over a link of 50 MB/s with a
// round trip of 100 ms. It reports how much of the link's rate that is, from the
// call until the snapshot is ready, and from when a tenth of it has come until
// nine tenths have; and the time until the first MiB has come, and from the last
// byte to the end.
func BenchmarkLongLink(b *testing.B) {
	const size, trip = 400 << 20, 100 * time.Millisecond
	for _, test := range []struct {
		name  string
		size  int64
		shape linktest.Shape
	}{
		{"50MBps", size, linktest.Shape{Rate: 50e6, RoundTrip: trip}},
		{"50MBps-10MBps-a-connection", size, linktest.Shape{Rate: 50e6, RoundTrip: trip, Window: 1 << 20}},
		{"50MBps-2MBps-a-connection", size, linktest.Shape{Rate: 50e6, RoundTrip: trip, Window: 200 << 10}},
		{"12MBps", size / 4, linktest.Shape{Rate: 12e6, RoundTrip: trip}},
	} {
		b.Run(test.name, func(b *testing.B) {
			p := pair(b, &test.shape)
			s := p.imported(b, "disk", random(test.size))
			var t times
			for b.Loop() {
				t = timesOf(p.link, test.size, func() { p.copied(b, s) })
			}
			b.SetBytes(test.size)
			b.ReportMetric(percent(test.size, test.shape.Rate, b.Elapsed()/time.Duration(b.N)), "%-of-cap")
			b.ReportMetric(percent(test.size*8/10, test.shape.Rate, t.steady), "%-of-cap-steady")
			b.ReportMetric(t.begin.Seconds(), "s-to-begin")
			b.ReportMetric(t.end.Seconds(), "s-to-end")
		})
	}
}

// percent is what part of a rate it is when so many bytes come in a time.
func percent(bytes, rate int64, took time.Duration) float64 {
	return 100 * float64(bytes) / took.Seconds() / float64(rate)
}

// times are those of a copy over a link.
type times struct {
	begin  time.Duration // until the first MiB has come
	steady time.Duration // from the first tenth to the last
	end    time.Duration // after the last byte
}

// timesOf calls fn, over which so many bytes come over a link.
func timesOf(l *linktest.Link, size int64, fn func()) times {
	done := make(chan struct{})
	go func() { defer close(done); fn() }()
	_, before := l.Passed()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	marks := []int64{1 << 20, size / 10, size * 9 / 10, size}
	at := []time.Time{time.Now()}
	for {
		select {
		case <-done:
			if len(at) <= len(marks) {
				return times{}
			}
			return times{begin: at[1].Sub(at[0]), steady: at[3].Sub(at[2]), end: time.Since(at[4])}
		case now := <-tick.C:
			_, back := l.Passed()
			for len(at) <= len(marks) && back-before >= marks[len(at)-1] {
				at = append(at, now)
			}
		}
	}
}

// BenchmarkCopyLoopback copies 256 MiB of random bytes without a link, and holds
// the time against that of its parts, each alone on all cores: R, the source reads
// its frames; W, the destination checks the same frames, fills them in and seals;
// T, the same bytes go over TLS. They share the cores, so 1/(1/R + 1/W + 1/T) is
// the limit. Then it copies four such disks at once.
func BenchmarkCopyLoopback(b *testing.B) {
	const size = 256 << 20
	p := pair(b, nil)
	var all []snapferry.Snapshot
	for i := range 4 {
		all = append(all, p.imported(b, string(rune('a'+i)), random(size)))
	}
	var parts time.Duration
	written := 0
	b.Run("parts", func(b *testing.B) {
		var read, write, carry time.Duration
		for b.Loop() {
			var frames [][]transfer.Frame
			frames, read = readAlone(b, p.east, all[0])
			write = p.writeAlone(b, fmt.Sprint("parts", written), all[0], frames)
			written++
			carry = tlsAlone(b, size)
		}
		parts = read + write + carry
		b.ReportMetric(size/1e6/read.Seconds(), "R-MB/s")
		b.ReportMetric(size/1e6/write.Seconds(), "W-MB/s")
		b.ReportMetric(size/1e6/carry.Seconds(), "T-MB/s")
		b.ReportMetric(size/1e6/parts.Seconds(), "limit-MB/s")
	})
	report := func(b *testing.B, bytes int64) {
		b.SetBytes(bytes)
		if parts > 0 {
			took := b.Elapsed() / time.Duration(b.N)
			b.ReportMetric(100*parts.Seconds()*float64(bytes)/size/took.Seconds(), "%-of-limit")
		}
	}
	b.Run("one", func(b *testing.B) {
		for b.Loop() {
			p.copied(b, all[0])
		}
		report(b, size)
	})
	b.Run("four", func(b *testing.B) {
		for b.Loop() {
			var wg sync.WaitGroup
			for _, s := range all {
				wg.Go(func() { p.copied(b, s) })
			}
			wg.Wait()
		}
		report(b, 4*size)
	})
}

// eachLeaf calls fn with the leaves of a disk, on all cores.
func eachLeaf(b *testing.B, size int64, fn func(next func() (leaf uint64, ok bool)) error) time.Duration {
	b.Helper()
	var mu sync.Mutex
	var leaf uint64
	began := time.Now()
	var g errgroup.Group
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error {
			return fn(func() (uint64, bool) {
				mu.Lock()
				defer mu.Unlock()
				leaf++
				return leaf - 1, leaf-1 < blockmap.Leaves(size)
			})
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	return time.Since(began)
}

// readAlone reads all frames of a snapshot as its region does for another.
func readAlone(b *testing.B, east *simtest.Region, s snapferry.Snapshot) ([][]transfer.Frame, time.Duration) {
	b.Helper()
	src, err := control.Host{Region: east.Control}.Source(b.Context(), transfer.Caller{Region: "west", Account: "a"}, transfer.Handle{Snapshot: s.ID})
	if err != nil {
		b.Fatal(err)
	}
	var all blockmap.Bitmap
	for i := range blockmap.Fanout {
		all.Set(i)
	}
	frames := make([][]transfer.Frame, blockmap.Leaves(s.Size))
	read := func(keep bool) time.Duration {
		return eachLeaf(b, s.Size, func(next func() (uint64, bool)) error {
			for leaf, ok := next(); ok; leaf, ok = next() {
				f, err := src.Blocks(b.Context(), []transfer.Want{{Leaf: leaf, Blocks: all}})
				if err != nil {
					return err
				}
				for {
					x, err := f.Next()
					if errors.Is(err, io.EOF) {
						break
					}
					if err != nil {
						return err
					}
					if keep {
						x.Payload = bytes.Clone(x.Payload)
						frames[leaf] = append(frames[leaf], x)
					}
				}
				if err := f.Close(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	took := read(false)
	read(true)
	return frames, took
}

// writeAlone fills a version with frames, and seals it.
func (p *two) writeAlone(b *testing.B, volume string, s snapferry.Snapshot, frames [][]transfer.Frame) time.Duration {
	b.Helper()
	id, err := p.west.Attach(p.west.Volume(p.inWest, volume), snapferry.VersionID{}, s.Size)
	if err != nil {
		b.Fatal(err)
	}
	digests := make([][blockmap.Fanout]digest.Digest, len(frames))
	for leaf := range frames {
		for _, f := range frames[leaf] { // random bytes are stored as they are
			digests[leaf][f.Block%blockmap.Fanout] = digest.Block(f.Payload)
		}
	}
	began := time.Now()
	w, err := p.west.Vault.Write(b.Context(), id, vault.WriteConfig{Checkpoints: true})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	var mu sync.Mutex
	eachLeaf(b, s.Size, func(next func() (uint64, bool)) error {
		l, err := w.NewLeafWriter()
		if err != nil {
			return err
		}
		defer l.Close()
		for {
			mu.Lock() // tickets ascend
			leaf, ok := next()
			var t vault.Ticket
			if ok {
				t, err = w.Ticket(leaf)
			}
			mu.Unlock()
			if !ok || err != nil {
				return err
			}
			if err := l.Begin(b.Context(), t); err != nil {
				return err
			}
			for _, f := range frames[leaf] {
				i := int(f.Block % blockmap.Fanout)
				if err := l.PutFrame(i, digests[leaf][i], f.Codec, f.RawLength, f.Payload); err != nil {
					return err
				}
			}
			if err := l.End(b.Context()); err != nil {
				return err
			}
		}
	})
	if _, err := w.Seal(b.Context(), vault.SealConfig{Want: s.Digest, Hold: simtest.Hold(id)}); err != nil {
		b.Fatal(err)
	}
	return time.Since(began)
}

// tlsAlone sends bytes over four connections of a peer service.
func tlsAlone(b *testing.B, size int64) time.Duration {
	b.Helper()
	const conns = 4
	ca := authority(b)
	pool, err := pki.ParseCA(ca.CertPEM())
	if err != nil {
		b.Fatal(err)
	}
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer plain.Close()
	ln := peer.Listener(plain, pki.PeerServerConfig(identity(b, ca, "east"), pool))
	config := pki.PeerClientConfig(identity(b, ca, "west"), pool, "east")
	config.ServerName = "127.0.0.1"
	p := make([]byte, 1<<20)
	if _, err := random(len(p)).ReadAt(p, 0); err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	var g errgroup.Group
	for range conns {
		g.Go(func() error {
			c, err := ln.Accept()
			if err != nil {
				return err
			}
			defer c.Close()
			for left := size / conns; left > 0; left -= int64(len(p)) {
				if _, err := c.Write(p); err != nil {
					return err
				}
			}
			return nil
		})
		g.Go(func() error {
			c, err := tls.Dial("tcp", plain.Addr().String(), config)
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = io.Copy(io.Discard, c)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	return time.Since(began)
}
