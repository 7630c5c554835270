package vault_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/blob/blobtest"
	"github.com/snapferry/snapferry/internal/meta"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/vault"
)

// open attaches an open version and opens a writer that checkpoints.
func open(t testing.TB, r *simtest.Region, vol meta.Volume, parent snapferry.VersionID, size int64) (snapferry.VersionID, *vault.Writer) {
	t.Helper()
	id, err := r.Attach(vol, parent, size)
	if err != nil {
		t.Fatal(err)
	}
	return id, reopen(t, r, id)
}

func reopen(t testing.TB, r *simtest.Region, id snapferry.VersionID) *vault.Writer {
	t.Helper()
	w, err := r.Vault.Write(context.Background(), id, vault.WriteConfig{Checkpoints: true})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// putLeaf fills a leaf with blocks made from seeds; what the base has besides
// becomes absent.
func putLeaf(t testing.TB, w *vault.Writer, leaf uint64, seeds map[int]int) {
	t.Helper()
	ticket, err := w.Ticket(leaf)
	if err != nil {
		t.Fatal(err)
	}
	if err := fillTicket(w, ticket, seeds); err != nil {
		t.Fatal(err)
	}
}

func fillTicket(w *vault.Writer, ticket vault.Ticket, seeds map[int]int) error {
	l, err := w.NewLeafWriter()
	if err != nil {
		return err
	}
	defer l.Close()
	if err := l.Begin(context.Background(), ticket); err != nil {
		return err
	}
	var order []int
	for i := range seeds {
		order = append(order, i)
	}
	slices.Sort(order)
	for _, i := range order {
		p := simtest.Content(seeds[i])
		if err := l.PutFrame(i, digest.Block(p), snapferry.Stored, len(p), p); err != nil {
			return err
		}
	}
	return l.End(context.Background())
}

func TestPutFrameRefuses(t *testing.T) {
	r := simtest.NewRegion(t, simtest.Options{})
	vol := r.Volume(r.Account("a"), "disk")
	good := simtest.Content(2)
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	zstdOf := func(n int) []byte { return enc.EncodeAll(make([]byte, n), nil) }
	short := make([]byte, snapferry.BlockSize)
	copy(short, "abc")
	tests := map[string]struct {
		block   int
		d       digest.Digest
		codec   snapferry.Codec
		raw     int
		payload []byte
		kind    snapferry.Kind // Internal: accepted
	}{
		"good":                  {0, digest.Block(good), snapferry.Stored, len(good), good, snapferry.Internal},
		"good zstd":             {0, digest.Block(good), snapferry.Zstd, len(good), enc.EncodeAll(good, nil), snapferry.Internal},
		"good s2":               {0, digest.Block(good), snapferry.S2, len(good), s2.Encode(nil, good), snapferry.Internal},
		"shorter raw":           {0, digest.Block(short), snapferry.Stored, 512, short[:512], snapferry.Internal},
		"last block":            {300, digest.Block(short), snapferry.Stored, 512, short[:512], snapferry.Internal},
		"last block, whole":     {300, digest.Block(short), snapferry.Zstd, len(short), enc.EncodeAll(short, nil), snapferry.Internal},
		"content beyond size":   {300, digest.Block(good), snapferry.Stored, len(good), good, snapferry.Corrupt},
		"wrong digest":          {0, digest.Block(short), snapferry.Stored, len(good), good, snapferry.Corrupt},
		"zero digest":           {0, digest.Digest{}, snapferry.Stored, len(good), good, snapferry.Corrupt},
		"too long":              {0, digest.Block(good), snapferry.Stored, len(good) + 1, append(slices.Clone(good), 0), snapferry.Corrupt},
		"negative":              {0, digest.Block(good), snapferry.Stored, -1, good, snapferry.Corrupt},
		"payload beyond raw":    {0, digest.Block(good), snapferry.Stored, len(good) - 512, good, snapferry.Corrupt},
		"empty payload":         {0, digest.Block(good), snapferry.Zstd, len(good), nil, snapferry.Corrupt},
		"stored, short":         {0, digest.Block(good), snapferry.Stored, len(good), good[:100], snapferry.Corrupt},
		"zero block":            {0, digest.Block(make([]byte, len(good))), snapferry.Stored, len(good), make([]byte, len(good)), snapferry.Corrupt},
		"zero block, zstd":      {0, digest.Block(make([]byte, len(good))), snapferry.Zstd, len(good), zstdOf(len(good)), snapferry.Corrupt},
		"zstd bomb":             {0, digest.Block(good), snapferry.Zstd, len(good), zstdOf(1 << 28), snapferry.Corrupt},
		"s2 bomb":               {0, digest.Block(good), snapferry.S2, len(good), s2.Encode(nil, make([]byte, 1<<20)), snapferry.Corrupt},
		"s2 that lies":          {0, digest.Block(good), snapferry.S2, len(good), []byte{0xff, 0xff, 0xff, 0xff, 0x0f, 0}, snapferry.Corrupt},
		"garbage zstd":          {0, digest.Block(good), snapferry.Zstd, len(good), good[:4000], snapferry.Corrupt},
		"unknown codec":         {0, digest.Block(good), 9, len(good), good, snapferry.Unsupported},
		"zstd shorter than raw": {0, digest.Block(good), snapferry.Zstd, len(good), enc.EncodeAll(good[:len(good)-1], nil), snapferry.Corrupt},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			size := int64(300*snapferry.BlockSize + 512)
			id, w := open(t, r, vol, snapferry.VersionID{}, size)
			defer w.Close()
			ticket, err := w.Ticket(uint64(test.block / 256))
			if err != nil {
				t.Fatal(err)
			}
			l, err := w.NewLeafWriter()
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if err := l.Begin(t.Context(), ticket); err != nil {
				t.Fatal(err)
			}
			err = l.PutFrame(test.block%256, test.d, test.codec, test.raw, test.payload)
			if (err == nil) != (test.kind == snapferry.Internal) || err != nil && !snapferry.IsKind(err, test.kind) {
				t.Errorf("got %v, want %v", err, test.kind)
			}
			if err != nil {
				if err := l.Keep(0, digest.Block(good)); !snapferry.IsKind(err, snapferry.Corrupt) {
					t.Errorf("keep without a base: got %v, want Corrupt", err)
				}
				if err := r.Vault.Abort(t.Context(), id, nil); err != nil {
					t.Fatal(err)
				}
				return
			}
			if err := l.End(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Seal(t.Context(), vault.SealConfig{Hold: simtest.Hold(id)}); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Read(id); err != nil {
				t.Error(err)
			}
		})
	}
	r.Check(t, simtest.NoGarbage)
}

func TestKeepAndOutOfOrder(t *testing.T) {
	r := simtest.NewRegion(t, simtest.Options{})
	vol := r.Volume(r.Account("a"), "disk")
	size := int64(64 << 20)
	base := simtest.NewDisk(size).Fill(0, 1).Fill(1, 3).Fill(256, 5)
	parent, _, err := r.Store(vol, snapferry.VersionID{}, base)
	if err != nil {
		t.Fatal(err)
	}
	id, w := open(t, r, vol, parent, size)
	defer w.Close()
	var tickets []vault.Ticket
	for leaf := range uint64(4) {
		ticket, err := w.Ticket(leaf)
		if err != nil {
			t.Fatal(err)
		}
		tickets = append(tickets, ticket)
	}
	if _, err := w.Ticket(2); err == nil {
		t.Error("a ticket out of order was given")
	}
	if _, err := w.Seal(t.Context(), vault.SealConfig{Hold: simtest.Hold(id)}); err == nil {
		t.Error("sealed with leaves under way")
	}
	rand.Shuffle(len(tickets), func(i, j int) { tickets[i], tickets[j] = tickets[j], tickets[i] })
	want := simtest.NewDisk(size).Fill(1, 3).Fill(2, 7).Fill(256+9, 9).Fill(3*256, 11)
	for _, k := range tickets {
		l, err := w.NewLeafWriter()
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Begin(t.Context(), k); err != nil {
			t.Fatal(err)
		}
		put := func(i, seed int) error {
			p := simtest.Content(seed)
			return l.PutFrame(i, digest.Block(p), snapferry.Stored, len(p), p)
		}
		switch k.Leaf {
		case 0:
			if err := l.Keep(0, digest.Block(simtest.Content(3))); !snapferry.IsKind(err, snapferry.Corrupt) {
				t.Errorf("keep of other content: got %v, want Corrupt", err)
			}
			err = errors.Join(l.Keep(1, digest.Block(simtest.Content(3))), put(2, 7))
		case 1:
			err = put(9, 9)
		case 3:
			err = put(0, 11)
		}
		if err := errors.Join(err, l.End(t.Context())); err != nil {
			t.Fatal(err)
		}
		l.Close()
	}
	s, err := w.Seal(t.Context(), vault.SealConfig{Hold: simtest.Hold(id), Want: want.Digest()})
	if err != nil {
		t.Fatal(err)
	}
	if s.Changed != 3*snapferry.BlockSize {
		t.Errorf("changed: got %d, want three blocks", s.Changed)
	}
	r.WantContent(t, id, want)
	r.Check(t, simtest.NoGarbage)
}

func TestSealWantsDigest(t *testing.T) {
	r := simtest.NewRegion(t, simtest.Options{})
	vol := r.Volume(r.Account("a"), "disk")
	id, w := open(t, r, vol, snapferry.VersionID{}, 1<<20)
	putLeaf(t, w, 0, map[int]int{0: 1})
	_, err := w.Seal(t.Context(), vault.SealConfig{Hold: simtest.Hold(id), Want: simtest.NewDisk(1<<20).Fill(0, 3).Digest()})
	if !snapferry.IsKind(err, snapferry.Corrupt) {
		t.Errorf("got %v, want Corrupt", err)
	}
	w.Close()
	if _, err := r.Vault.MapOf(t.Context(), id); !snapferry.IsKind(err, snapferry.Conflict) {
		t.Errorf("map of an open version: got %v, want Conflict", err)
	}
	if err := r.Vault.Abort(t.Context(), id, nil); err != nil {
		t.Fatal(err)
	}
	r.Check(t, simtest.NoGarbage)
}

// What a checkpoint does not have yet does not count, because it is written again.
func TestChangedIsOfLeavesInOrder(t *testing.T) {
	r := simtest.NewRegion(t, simtest.Options{})
	id, w := open(t, r, r.Volume(r.Account("a"), "disk"), snapferry.VersionID{}, 64<<20)
	var tickets []vault.Ticket
	for leaf := range uint64(2) {
		ticket, err := w.Ticket(leaf)
		if err != nil {
			t.Fatal(err)
		}
		tickets = append(tickets, ticket)
	}
	for i, want := range []int64{0, 2 * snapferry.BlockSize} {
		if err := fillTicket(w, tickets[1-i], map[int]int{5: 7 + i}); err != nil {
			t.Fatal(err)
		}
		if got := w.Changed(); got != want {
			t.Errorf("after %d leaves, the later one first: got %d bytes changed, want %d", i+1, got, want)
		}
	}
	w.Close()
	if err := r.Vault.Abort(t.Context(), id, nil); err != nil {
		t.Fatal(err)
	}
	r.Check(t, simtest.NoGarbage)
}

// TestResume goes on from checkpoints, in a new process each time, and throws
// away what the last one did not finish.
func TestResume(t *testing.T) {
	r := simtest.NewRegion(t, simtest.Options{})
	vol := r.Volume(r.Account("a"), "disk")
	size := int64(20<<30 + 512)
	base := simtest.NewDisk(size).Fill(0, 1).Fill(256, 3).Fill(90000, 5).Fill(300000, 7)
	parent, _, err := r.Store(vol, snapferry.VersionID{}, base)
	if err != nil {
		t.Fatal(err)
	}
	want := simtest.NewDisk(size).Fill(0, 11).Fill(256, 13).Fill(512, 15).Fill(90000, 17).Fill(300000, 7)
	id, err := r.Attach(vol, parent, size)
	if err != nil {
		t.Fatal(err)
	}
	leaves := []struct {
		leaf  uint64
		seeds map[int]int
	}{{0, map[int]int{0: 11}}, {1, map[int]int{0: 13}}, {2, map[int]int{0: 15}}, {90000 / 256, map[int]int{90000 % 256: 17}}}
	for run := range len(leaves) {
		w := reopen(t, r, id)
		for i, l := range leaves {
			if got := w.Finished(l.leaf); got != (i < run) {
				t.Errorf("run %d: leaf %d finished: got %v, want %v", run, l.leaf, got, i < run)
			}
		}
		putLeaf(t, w, leaves[run].leaf, leaves[run].seeds)
		if err := w.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
		if run+1 < len(leaves) { // is lost
			next, err := w.Ticket(leaves[run+1].leaf)
			if err != nil {
				t.Fatal(err)
			}
			if err := fillTicket(w, next, map[int]int{0: 99}); err != nil {
				t.Fatal(err)
			}
		}
		w.Close()
		r.Restart()
	}
	w := reopen(t, r, id)
	defer w.Close()
	s, err := w.Seal(t.Context(), vault.SealConfig{Hold: simtest.Hold(id), Want: want.Digest()})
	if err != nil {
		t.Fatal(err)
	}
	if s.Digest != want.Digest() {
		t.Errorf("got %v, want %v", s.Digest, want.Digest())
	}
	r.WantContent(t, id, want)
	r.WantContent(t, parent, base)
	r.Check(t, simtest.NoGarbage)
}

// TestResumeWithoutCheckpoint starts again where the first run only left
// segments: they count as dead, and nothing refers to them.
func TestResumeWithoutCheckpoint(t *testing.T) {
	r := simtest.NewRegion(t, simtest.Options{})
	vol := r.Volume(r.Account("a"), "disk")
	id, w := open(t, r, vol, snapferry.VersionID{}, 1<<20)
	putLeaf(t, w, 0, map[int]int{0: 1})
	r.Power.FailAt(2, blobtest.Before) // registered, put, and then not placed
	if err := w.Checkpoint(t.Context()); err == nil {
		t.Fatal("the checkpoint succeeded")
	}
	if _, err := w.Seal(t.Context(), vault.SealConfig{Hold: simtest.Hold(id)}); err == nil {
		t.Error("sealed after a checkpoint that failed: its segments were never placed")
	}
	w.Close()
	r.Restart()
	w = reopen(t, r, id)
	defer w.Close()
	putLeaf(t, w, 0, map[int]int{0: 1})
	want := simtest.NewDisk(1<<20).Fill(0, 1)
	if _, err := w.Seal(t.Context(), vault.SealConfig{Hold: simtest.Hold(id), Want: want.Digest()}); err != nil {
		t.Fatal(err)
	}
	r.WantContent(t, id, want)
	r.Check(t, simtest.MayGarbage)
}

// TestGivenUp ends a run by its context at the moment a full segment is put:
// what is lost with it is in no checkpoint.
func TestGivenUp(t *testing.T) {
	r := simtest.NewRegion(t, simtest.Options{})
	vol := r.Volume(r.Account("a"), "disk")
	var blocks [256][]byte
	var digests [256]digest.Digest
	for i := range blocks {
		blocks[i] = simtest.Content(2*i + 1)
		digests[i] = digest.Block(blocks[i])
	}
	given, cancel := context.WithCancel(t.Context())
	cancel()
	const size = 64 << 20
	for range 8 { // whether a put waits for its turn or sees the end first is chance
		id, w := open(t, r, vol, snapferry.VersionID{}, size)
		l, err := w.NewLeafWriter()
		if err != nil {
			t.Fatal(err)
		}
		for leaf, ctx := range []context.Context{t.Context(), t.Context(), given} {
			k, err := w.Ticket(uint64(leaf))
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Begin(t.Context(), k); err != nil {
				t.Fatal(err)
			}
			for i, p := range blocks {
				if err := l.PutFrame(i, digests[i], snapferry.Stored, len(p), p); err != nil {
					t.Fatal(err)
				}
			}
			if err := l.End(ctx); (err == nil) != (ctx != given) {
				t.Fatalf("leaf %d: got %v", leaf, err)
			}
		}
		l.Close()
		_ = w.Checkpoint(t.Context()) // may succeed or not
		w.Close()
		w = reopen(t, r, id)
		if err := r.Vault.Export(t.Context(), w.Base(), simtest.NewDisk(size), nil); err != nil {
			t.Errorf("the checkpoint refers to what is not there: %v", err)
		}
		w.Close()
		if err := r.Vault.Abort(t.Context(), id, nil); err != nil {
			t.Fatal(err)
		}
	}
	r.Check(t, simtest.NoGarbage)
}

// TestFlush fills a leaf in pieces, whose frames lie in several segments: one is closed
// between them. What was put may change after each piece.
func TestFlush(t *testing.T) {
	const size = 1 << 24
	r := simtest.NewRegion(t, simtest.Options{})
	id, w := open(t, r, r.Volume(r.Account("a"), "disk"), snapferry.VersionID{}, size)
	ticket, err := w.Ticket(0)
	if err != nil {
		t.Fatal(err)
	}
	l, err := w.NewLeafWriter()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.BeginFrames(t.Context(), ticket); err != nil {
		t.Fatal(err)
	}
	want := simtest.NewDisk(size)
	p := make([]byte, 2*snapferry.BlockSize) // of the caller
	for i := range 6 {
		q := p[i%2*snapferry.BlockSize:][:copy(p[i%2*snapferry.BlockSize:], simtest.Content(i+1))]
		if err := l.PutFrame(40*i, digest.Block(q), snapferry.Stored, len(q), q); err != nil {
			t.Fatal(err)
		}
		want.Fill(uint64(40*i), i+1)
		if i%2 == 1 {
			if err := l.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := w.Checkpoint(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	plain := simtest.Content(9)
	if err := errors.Join(l.Put(255, plain), l.End(t.Context())); err != nil {
		t.Fatal(err)
	}
	want.Fill(255, 9)
	s, err := w.Seal(t.Context(), vault.SealConfig{Hold: simtest.Hold(id), Want: want.Digest()})
	if err != nil {
		t.Fatal(err)
	}
	if s.Changed != 7*snapferry.BlockSize {
		t.Errorf("changed: got %d bytes, want those of 7 blocks", s.Changed)
	}
	r.WantContent(t, id, want)
	r.Check(t, simtest.NoGarbage)
}
