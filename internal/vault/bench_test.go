package vault_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/extent"
	"github.com/snapferry/snapferry/internal/blob"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/blob/dirblob"
	"github.com/snapferry/snapferry/internal/blob/memblob"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/source"
	"github.com/snapferry/snapferry/internal/vault"
)

// The benchmarks run on the image named by SNAPFERRY_BENCH_IMAGE, else on one
// they make: 256 MiB, a third each of text, random bytes and holes. The Limit
// benchmarks do the least work the job can be done with, so that
// time(job)/time(limit), of one run, is the distance from it.

func benchImage(b *testing.B) string {
	if name := os.Getenv("SNAPFERRY_BENCH_IMAGE"); name != "" {
		return name
	}
	name := filepath.Join(b.TempDir(), "image.raw")
	f, err := os.Create(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	rng := rand.NewChaCha8([32]byte{1})
	words := bytes.Fields([]byte("snapshot block region copy map node leaf root segment slot frame chain version hold pin job lease digest"))
	r := rand.New(rng)
	var text []byte
	for len(text) < 1<<20 {
		text = append(append(text, words[r.IntN(len(words))]...), byte(r.IntN(256)))
	}
	noise := make([]byte, 1<<20)
	for i := range int64(256) {
		var p []byte
		switch i % 3 {
		case 0:
			p = text
		case 1:
			rng.Read(noise)
			p = noise
		default:
			continue
		}
		if _, err := f.WriteAt(p, i<<20); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Truncate(256 << 20); err != nil {
		b.Fatal(err)
	}
	return name
}

// region is a vault with one volume to put versions into.
type region struct {
	vault  *vault.Vault
	db     *meta.DB
	chain  snapferry.ChainID
	volume snapferry.VolumeID
	next   int64
}

func benchRegion(tb testing.TB, driver blob.Driver, codec snapferry.Codec) *region {
	tb.Helper()
	ctx := context.Background()
	db, err := meta.Open(ctx, meta.Config{Path: filepath.Join(tb.TempDir(), "meta.db")})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { db.Close() })
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		tb.Fatal(err)
	}
	v, err := vault.New(vault.Config{Bucket: blob.New(driver), DB: db, Region: "east", Sign: key, Codec: codec})
	if err != nil {
		tb.Fatal(err)
	}
	r := &region{vault: v, db: db, chain: snapferry.NewChainID(), volume: snapferry.NewVolumeID()}
	account := snapferry.NewAccountID()
	err = db.Update(ctx, func(tx *meta.Tx) error {
		if err := tx.PutRegion(meta.Region{Name: "east", ID: "bench", SignKey: key, LookupKey: key[:32], Created: time.Now()}); err != nil {
			return err
		}
		if err := tx.InsertAccount(meta.Account{Account: snapferry.Account{ID: account, Name: "main"}, Created: time.Now()}); err != nil {
			return err
		}
		if err := tx.InsertChain(meta.Chain{ID: r.chain, Account: account, Algorithm: digest.SHA256, Proven: true, Created: time.Now()}); err != nil {
			return err
		}
		return tx.InsertVolume(meta.Volume{ID: r.volume, Account: account, Name: "disk", Chain: r.chain, Created: time.Now()})
	})
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

func (r *region) put(tb testing.TB, disk vault.Disk, parent snapferry.VersionID) (vault.Sealed, snapferry.VersionID) {
	tb.Helper()
	ctx := context.Background()
	id := snapferry.NewVersionID()
	r.next++
	err := r.db.Update(ctx, func(tx *meta.Tx) error {
		return vault.Attach(tx, meta.Version{ID: id, Chain: r.chain, Volume: r.volume, Parent: parent, Size: disk.Size(), Sequence: r.next})
	})
	if err != nil {
		tb.Fatal(err)
	}
	w, err := r.vault.Write(ctx, id, vault.WriteConfig{})
	if err != nil {
		tb.Fatal(err)
	}
	defer w.Close()
	if err := w.Import(ctx, disk, new(vault.ImportStats)); err != nil {
		tb.Fatal(err)
	}
	s, err := w.Seal(ctx, vault.SealConfig{Hold: meta.Hold{Version: id, Kind: "volume", Owner: "bench", Created: time.Now()}})
	if err != nil {
		tb.Fatal(err)
	}
	return s, id
}

// deleteAll drops a version's only hold, frees what it had and removes the
// objects.
func (r *region) deleteAll(tb testing.TB, id snapferry.VersionID) {
	tb.Helper()
	ctx := context.Background()
	err := r.vault.Release(ctx, meta.Hold{Version: id, Kind: "volume", Owner: "bench"}, nil)
	if err == nil {
		err = r.vault.Visit(ctx, id, nil, nil)
	}
	if err == nil {
		_, err = r.vault.Reclaim(ctx, time.Now(), nil)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

func (r *region) get(tb testing.TB, id snapferry.VersionID, t vault.Target) {
	tb.Helper()
	m, err := r.vault.MapOf(context.Background(), id)
	if err != nil {
		tb.Fatal(err)
	}
	if err := r.vault.Export(context.Background(), m, t, nil); err != nil {
		tb.Fatal(err)
	}
}

func openDisk(tb testing.TB, name string) *source.Disk {
	tb.Helper()
	d, err := source.Open(name)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { d.Close() })
	return d
}

func benchBucket(b *testing.B) blob.Driver {
	d, err := dirblob.Open(context.Background(), filepath.Join(b.TempDir(), "bucket"), nil)
	if err != nil {
		b.Fatal(err)
	}
	return d
}

func BenchmarkImport(b *testing.B) {
	image := benchImage(b)
	for _, codec := range []snapferry.Codec{snapferry.Zstd, snapferry.S2, snapferry.Stored} {
		b.Run(codec.String(), func(b *testing.B) {
			disk := openDisk(b, image)
			for b.Loop() {
				b.StopTimer()
				r := benchRegion(b, benchBucket(b), codec)
				b.StartTimer()
				s, _ := r.put(b, disk, snapferry.VersionID{})
				b.SetBytes(s.Present)
				b.ReportMetric(float64(s.Stored)/1e6, "MB-stored")
			}
		})
	}
}

// BenchmarkIncrement imports the same disk again: everything is read, checked
// for zeros and hashed, nothing is stored.
func BenchmarkIncrement(b *testing.B) {
	disk := openDisk(b, benchImage(b))
	r := benchRegion(b, benchBucket(b), snapferry.Zstd)
	_, parent := r.put(b, disk, snapferry.VersionID{})
	for b.Loop() {
		s, _ := r.put(b, disk, parent)
		b.SetBytes(s.Present)
	}
}

func BenchmarkExport(b *testing.B) {
	disk := openDisk(b, benchImage(b))
	r := benchRegion(b, benchBucket(b), snapferry.Zstd)
	s, id := r.put(b, disk, snapferry.VersionID{})
	out := filepath.Join(b.TempDir(), "out.raw")
	b.SetBytes(s.Present)
	for b.Loop() {
		t, err := source.Create(out, disk.Size(), true)
		if err != nil {
			b.Fatal(err)
		}
		r.get(b, id, t)
		if err := t.Finish(context.Background()); err != nil {
			b.Fatal(err)
		}
		t.Close()
	}
}

// BenchmarkImportLimit reads, looks for zeros, hashes, compresses and writes
// directly to the disk, with all cores and nothing else.
func BenchmarkImportLimit(b *testing.B) {
	disk := openDisk(b, benchImage(b))
	out := filepath.Join(b.TempDir(), "limit")
	for b.Loop() {
		b.SetBytes(limitImport(b, disk, out))
	}
}

func limitImport(b *testing.B, disk *source.Disk, out string) int64 {
	t, err := source.Create(out, disk.Size(), true)
	if err != nil {
		b.Fatal(err)
	}
	defer t.Close()
	const run = 1 << 20
	var next, present, end atomic.Int64
	var g sync.WaitGroup
	zero := make([]byte, snapferry.BlockSize)
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() {
			enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
			if err != nil {
				b.Error(err)
				return
			}
			buf, piece := blob.AlignedBuffer(run), blob.AlignedBuffer(8 << 20)[:0]
			flush := func() {
				n := (len(piece) + 4095) &^ 4095
				if _, err := t.WriteAt(piece[:n], end.Add(int64(n))-int64(n)); err != nil {
					b.Error(err)
				}
				piece = piece[:0]
			}
			for {
				off := next.Add(run) - run
				if off >= disk.Size() {
					break
				}
				e, ok, err := disk.Next(off)
				if err != nil || !ok || e.Off >= off+run {
					continue
				}
				p := buf[:min(run, disk.Size()-off)]
				if _, err := disk.ReadAt(p, off); err != nil {
					b.Error(err)
					return
				}
				for len(p) > 0 {
					n := min(len(p), snapferry.BlockSize)
					if !bytes.Equal(p[:n], zero[:n]) {
						present.Add(int64(n))
						sha256.Sum256(p[:n])
						if len(piece) > 7<<20 {
							flush()
						}
						piece = enc.EncodeAll(p[:n], piece)
					}
					p = p[n:]
				}
			}
			flush()
		})
	}
	g.Wait()
	if err := t.Finish(context.Background()); err != nil {
		b.Fatal(err)
	}
	return present.Load()
}

// BenchmarkSlowBucket counts requests against a bucket that takes 20 ms for
// each, as an object store does.
func BenchmarkSlowBucket(b *testing.B) {
	image := benchImage(b)
	slow := blobtest.NewSlow(benchBucket(b), 20*time.Millisecond)
	r := benchRegion(b, slow, snapferry.Zstd)
	disk := openDisk(b, image)
	gib := func(s vault.Sealed) float64 { return float64(s.Present) / (1 << 30) }
	requests := slow.Requests
	var sealed vault.Sealed
	var id snapferry.VersionID
	b.Run("import", func(b *testing.B) {
		for b.Loop() {
			slow.Reset()
			sealed, id = r.put(b, disk, snapferry.VersionID{})
		}
		b.ReportMetric(float64(requests())/gib(sealed), "requests/GiB")
	})
	cold := func(b *testing.B, fn func(*region)) {
		for b.Loop() {
			b.StopTimer()
			c := *r
			var err error
			if c.vault, err = vault.New(vault.Config{Bucket: blob.New(slow), DB: r.db, Region: "east"}); err != nil {
				b.Fatal(err)
			}
			slow.Reset()
			b.StartTimer()
			fn(&c)
		}
		b.ReportMetric(float64(requests()), "requests")
	}
	b.Run("cold-read", func(b *testing.B) {
		cold(b, func(r *region) {
			m, err := r.vault.MapOf(context.Background(), id)
			if err != nil {
				b.Fatal(err)
			}
			var want blockmap.Bitmap
			n, err := m.Leaf(context.Background(), 0)
			if err != nil || n == nil {
				b.Fatalf("first leaf: %v, %v", n, err)
			}
			want.Set(n.Presence.Next(0))
			reader := r.vault.NewFrameReader()
			defer reader.Close()
			if _, err := reader.Read(context.Background(), m, 0, want); err != nil {
				b.Fatal(err)
			}
		})
	})
	// The first read of a volume when nothing is in memory, and after its opening.
	first := func(b *testing.B, warm func(*region, *vault.Image)) {
		im, err := r.vault.ImageOf(context.Background(), id)
		if err != nil {
			b.Fatal(err)
		}
		var block uint64
		err = im.Map().Leaves(context.Background(), 40, func(leaf uint64, n *blockmap.Node) error {
			if n != nil && n.Presence.Count() > 1 && block == 0 {
				block = leaf*blockmap.Fanout + uint64(n.Presence.Next(0))
			}
			return nil
		})
		if err != nil || block == 0 {
			b.Fatalf("a block: got %d, %v", block, err)
		}
		for b.Loop() {
			b.StopTimer()
			c := *r
			var err error
			if c.vault, err = vault.New(vault.Config{Bucket: blob.New(slow), DB: r.db, Region: "east"}); err != nil {
				b.Fatal(err)
			}
			im, err := c.vault.ImageOf(context.Background(), id)
			if err != nil {
				b.Fatal(err)
			}
			warm(&c, im)
			slow.Reset()
			b.StartTimer()
			if err := im.Read(context.Background(), block, make([]byte, snapferry.BlockSize)); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(requests()), "requests")
	}
	b.Run("first-read", func(b *testing.B) { first(b, func(*region, *vault.Image) {}) })
	b.Run("first-read-warmed", func(b *testing.B) {
		first(b, func(r *region, _ *vault.Image) {
			if err := r.vault.Warm(context.Background(), id); err != nil {
				b.Fatal(err)
			}
		})
	})
	b.Run("walk", func(b *testing.B) {
		cold(b, func(r *region) {
			m, err := r.vault.MapOf(context.Background(), id)
			if err == nil {
				err = m.Leaves(context.Background(), 0, func(uint64, *blockmap.Node) error { return nil })
			}
			if err != nil {
				b.Fatal(err)
			}
		})
	})
	b.Run("export", func(b *testing.B) {
		cold(b, func(r *region) { r.get(b, id, discard{}) })
		b.ReportMetric(float64(requests())/gib(sealed), "requests/GiB")
	})
	b.Run("delete", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			sealed, id = r.put(b, disk, snapferry.VersionID{})
			slow.Reset()
			b.StartTimer()
			r.deleteAll(b, id)
		}
		b.ReportMetric(float64(requests())/gib(sealed), "requests/GiB")
	})
	b.Run("compact", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			slow.Delay(0)
			h, _, size := hollowed(b, slow)
			slow.Reset()
			slow.Delay(20 * time.Millisecond)
			b.StartTimer()
			st, err := h.vault.Compact(context.Background(), h.chain, vault.CompactConfig{})
			if err == nil {
				_, err = h.vault.Reclaim(context.Background(), time.Now(), nil)
			}
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(requests())/(float64(size)/(1<<30)), "requests/GiB")
			b.ReportMetric(float64(st.ObjectsIn), "objects")
		}
	})
}

// hollowed fills a bucket with the image's content, incompressible, and lets a
// third of it die. It returns the region and the bytes of its objects.
func hollowed(b *testing.B, driver blob.Driver) (r *region, names []string, size int64) {
	b.Helper()
	r = benchRegion(b, driver, snapferry.Stored)
	r.put(b, openDisk(b, benchImage(b)), snapferry.VersionID{})
	err := r.db.Update(context.Background(), func(tx *meta.Tx) error {
		err := tx.AllSegments(func(s meta.Segment) error {
			var dead []meta.DeadSlot
			if s.Kind == snapferry.NodeFrame {
				return nil
			}
			for i := 0; i < s.Slots; i += 3 {
				dead = append(dead, meta.DeadSlot{Slot: uint16(i), Length: snapferry.BlockSize})
			}
			_, _, err := tx.MarkDead(s.ID, dead, time.Now())
			return err
		})
		if err != nil {
			return err
		}
		return tx.AllObjects(func(o meta.Object) error {
			names, size = append(names, o.Name), size+o.Size
			return nil
		})
	})
	if err != nil {
		b.Fatal(err)
	}
	return r, names, size
}

// BenchmarkCompact writes objects of which a third is dead again: bytes read and
// written. BenchmarkBucketCopy reads and puts objects through the same bucket,
// counted in the same way.
func BenchmarkCompact(b *testing.B) {
	var n int64
	for b.Loop() {
		b.StopTimer()
		r, _, _ := hollowed(b, benchBucket(b))
		b.StartTimer()
		st, err := r.vault.Compact(context.Background(), r.chain, vault.CompactConfig{})
		if err != nil || st.ObjectsOut == 0 {
			b.Fatalf("%+v, %v", st, err)
		}
		n = st.Read + st.Written
	}
	b.SetBytes(n)
}

func BenchmarkBucketCopy(b *testing.B) {
	driver := benchBucket(b)
	_, names, size := hollowed(b, driver)
	buf := blob.AlignedBuffer(blob.MaxBody)
	bucket := blob.New(driver)
	ctx := context.Background()
	k := 0
	b.SetBytes(2 * size)
	for b.Loop() {
		for _, name := range names {
			n, err := bucket.Size(ctx, name)
			if err == nil {
				err = bucket.ReadAt(ctx, name, buf[:n], 0)
			}
			if err == nil {
				k++
				err = bucket.Put(ctx, fmt.Sprintf("objects/%032d", k), buf[:n])
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkTinySnapshots counts the requests of an export of the newest of 1,000
// snapshots of one changed block each, before and after compaction.
func BenchmarkTinySnapshots(b *testing.B) {
	slow := blobtest.NewSlow(memblob.New(), 0)
	r := benchRegion(b, slow, snapferry.Zstd)
	var id snapferry.VersionID
	d := &changing{size: 1 << 30}
	for range 1000 {
		d.blocks = append(d.blocks, rand.Int64N(d.size/snapferry.BlockSize))
		_, id = r.put(b, d, id)
	}
	for _, when := range []string{"before", "after"} {
		b.Run(when, func(b *testing.B) {
			for b.Loop() {
				var err error
				c := *r
				if c.vault, err = vault.New(vault.Config{Bucket: blob.New(slow), DB: r.db, Region: "east"}); err != nil {
					b.Fatal(err)
				}
				slow.Reset()
				c.get(b, id, discard{})
			}
			b.ReportMetric(float64(slow.Count(blobtest.ReadAt).Requests), "requests")
		})
		slow.Reset()
		if _, err := r.vault.Compact(context.Background(), r.chain, vault.CompactConfig{}); err != nil {
			b.Fatal(err)
		}
	}
	b.Logf("compaction: %d reads, %d puts", slow.Count(blobtest.ReadAt).Requests, slow.Count(blobtest.Put).Requests)
}

// changing is a disk of which some blocks have random content.
type changing struct {
	size   int64
	blocks []int64
}

func (d *changing) Size() int64 { return d.size }

func (d *changing) Next(off int64) (e extent.Extent, ok bool, err error) {
	for _, k := range d.blocks {
		at := max(k*snapferry.BlockSize, off)
		if end := (k + 1) * snapferry.BlockSize; end > off && (!ok || at < e.Off) {
			e, ok = extent.Extent{Off: at, Len: end - at}, true
		}
	}
	return e, ok, nil
}

func (d *changing) ReadAt(p []byte, off int64) (int, error) {
	for lo := int64(0); lo < int64(len(p)); lo += snapferry.BlockSize {
		k, n := (off+lo)/snapferry.BlockSize, min(snapferry.BlockSize, int64(len(p))-lo)
		rand.NewChaCha8([32]byte{byte(k), byte(k >> 8), 1}).Read(p[lo : lo+n])
	}
	return len(p), nil
}

// discard is a target that takes everything.
type discard struct{}

func (discard) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// BenchmarkSparse imports and exports a disk of 64 TiB with 64 MiB scattered
// over it: the time must follow the data, not the size.
func BenchmarkSparse(b *testing.B) {
	for _, size := range []int64{64 << 30, 64 << 40} {
		b.Run(map[int64]string{64 << 30: "64GiB", 64 << 40: "64TiB"}[size], func(b *testing.B) {
			d := &scattered{size: size, pieces: 1024}
			for b.Loop() {
				b.StopTimer()
				r := benchRegion(b, benchBucket(b), snapferry.Zstd)
				b.StartTimer()
				s, id := r.put(b, d, snapferry.VersionID{})
				b.SetBytes(s.Present)
				r.get(b, id, discard{})
			}
		})
	}
}

// scattered is a disk with one block of data in each of many equal parts.
type scattered struct{ size, pieces int64 }

func (d *scattered) Size() int64 { return d.size }

func (d *scattered) part() int64 { return d.size / d.pieces }

func (d *scattered) Next(off int64) (extent.Extent, bool, error) {
	i := off / d.part()
	if off >= i*d.part()+snapferry.BlockSize {
		i++
	}
	return extent.Extent{Off: max(off, i*d.part()), Len: i*d.part() + snapferry.BlockSize - max(off, i*d.part())}, i < d.pieces, nil
}

func (d *scattered) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for lo := off; lo < off+int64(len(p)); lo += snapferry.BlockSize {
		if lo%d.part() == 0 {
			rand.NewChaCha8([32]byte{byte(lo >> 16), byte(lo >> 24), byte(lo >> 32)}).Read(p[lo-off : min(lo-off+snapferry.BlockSize, int64(len(p)))])
		}
	}
	return len(p), nil
}
