package transfer_test

import (
	"context"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/transfer"
)

// nodes keeps the nodes of maps by digest.
type nodes map[digest.Digest]*blockmap.Node

func (s nodes) WriteNode(_ context.Context, at snapferry.Position, n *blockmap.Node, d digest.Digest) (snapferry.Ref, error) {
	s[d] = n.Clone()
	return snapferry.Ref{Segment: snapferry.SegmentID(d[:16]), Slot: uint16(at.Level), Length: 100}, nil
}

func (s nodes) ReadNode(_ context.Context, at snapferry.Position, d digest.Digest, _ snapferry.Ref) (*blockmap.Node, error) {
	if n := s[d]; n != nil {
		return n, nil
	}
	return nil, snapferry.Errorf(snapferry.NotFound, "no node %v", d)
}

// memory is an honest source, and the map it is of.
type memory struct {
	m    blockmap.Map
	disk *simtest.Disk
}

func mapOf(tb interface{ Fatal(...any) }, d *simtest.Disk) blockmap.Map {
	store := nodes{}
	b := blockmap.NewBuilder(blockmap.Map{Size: d.Size(), Nodes: store}, d.Size(), store)
	leaves := map[uint64]*blockmap.Node{}
	buf := make([]byte, snapferry.BlockSize)
	for off := int64(0); ; {
		e, ok, _ := d.Next(off)
		if !ok {
			break
		}
		for at := e.Off; at < e.End(); at += snapferry.BlockSize {
			p := buf[:min(snapferry.BlockSize, d.Size()-at)]
			if _, err := d.ReadAt(p, at); err != nil {
				tb.Fatal(err)
			}
			if !slices.ContainsFunc(p, func(b byte) bool { return b != 0 }) {
				continue
			}
			block := uint64(at / snapferry.BlockSize)
			n := leaves[block/256]
			if n == nil {
				n = &blockmap.Node{}
				leaves[block/256] = n
			}
			n.Append(int(block%256), digest.Block(p), snapferry.Ref{Length: uint32(len(p))}, 0)
		}
		off = e.End()
	}
	var order []uint64
	for l := range leaves {
		order = append(order, l)
	}
	slices.Sort(order)
	for _, l := range order {
		if err := b.Set(context.Background(), l, leaves[l]); err != nil {
			tb.Fatal(err)
		}
	}
	root, err := b.Finish(context.Background())
	if err != nil {
		tb.Fatal(err)
	}
	return blockmap.Map{Size: d.Size(), Root: root, Nodes: store}
}

func (s *memory) info() transfer.Info {
	return transfer.Info{Size: s.m.Size, Digest: s.m.Digest(), Root: s.m.Root, Present: int64(s.m.Blocks()) * snapferry.BlockSize}
}

func (s *memory) Nodes(ctx context.Context, at []snapferry.Position, fn func(snapferry.Position, *blockmap.Node) error) error {
	for _, p := range at {
		n, err := s.m.At(ctx, p)
		if err != nil {
			return err
		}
		if err := fn(p, n); err != nil {
			return err
		}
	}
	return nil
}

func (s *memory) Blocks(_ context.Context, want []transfer.Want) (transfer.Frames, error) {
	f := &frames{disk: s.disk}
	for _, w := range want {
		for i := range w.Blocks.All() {
			f.blocks = append(f.blocks, w.Leaf*256+uint64(i))
		}
	}
	return f, nil
}

type frames struct {
	disk   *simtest.Disk
	blocks []uint64
}

func (f *frames) Next() (transfer.Frame, error) {
	if len(f.blocks) == 0 {
		return transfer.Frame{}, io.EOF
	}
	b := f.blocks[0]
	f.blocks = f.blocks[1:]
	p := make([]byte, min(snapferry.BlockSize, f.disk.Size()-int64(b)*snapferry.BlockSize))
	_, err := f.disk.ReadAt(p, int64(b)*snapferry.BlockSize)
	return transfer.Frame{Block: b, Codec: snapferry.Stored, RawLength: len(p), Payload: p}, err
}

func (f *frames) Close() error { return nil }

// sink checks what a vault would check, and that the engine keeps to the rules.
type sink struct {
	base blockmap.Map
	size int64

	want *memory // what leaves must be at their end; nil: they are not looked at

	mu    sync.Mutex
	last  int64
	ended map[uint64]bool
}

func newSink(base blockmap.Map, want *memory) *sink {
	return &sink{base: base, size: want.m.Size, want: want, last: -1, ended: map[uint64]bool{}}
}

func (s *sink) Size() int64          { return s.size }
func (s *sink) Base() blockmap.Map   { return s.base }
func (s *sink) Finished(uint64) bool { return false }

func (s *sink) Ticket(leaf uint64) (transfer.Ticket, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if int64(leaf) <= s.last {
		return transfer.Ticket{}, snapferry.Errorf(snapferry.Internal, "leaf %d after %d", leaf, s.last)
	}
	s.last = int64(leaf)
	return transfer.Ticket{Leaf: leaf}, nil
}

func (s *sink) Absent(_ context.Context, t transfer.Ticket) error { s.end(t.Leaf); return nil }

func (s *sink) end(leaf uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended[leaf] {
		panic("a leaf ended twice")
	}
	s.ended[leaf] = true
}

func (s *sink) NewFiller() (transfer.Filler, error) { return &filler{sink: s}, nil }

type filler struct {
	*sink
	base  *blockmap.Node
	leaf  uint64
	got   blockmap.Node
	frame map[digest.Digest][]byte // put and not flushed
}

func (f *filler) Begin(ctx context.Context, t transfer.Ticket) (err error) {
	f.leaf, f.got, f.frame = t.Leaf, blockmap.Node{}, map[digest.Digest][]byte{}
	f.base, err = f.sink.base.Leaf(ctx, t.Leaf)
	return err
}

func (f *filler) Keep(i int, d digest.Digest) error {
	if have, _, ok := f.base.Child(i); !ok || have != d {
		return snapferry.Errorf(snapferry.Corrupt, "keep of block %d, which the base has not", i)
	}
	f.got.Append(i, d, snapferry.Ref{}, 0)
	return nil
}

func (f *filler) PutFrame(i int, d digest.Digest, _ snapferry.Codec, raw int, p []byte) error {
	if raw != len(p) || raw > snapferry.BlockSize || digest.Block(p) != d {
		return snapferry.Errorf(snapferry.Corrupt, "frame does not match")
	}
	f.frame[d] = p
	f.got.Append(i, d, snapferry.Ref{}, 0)
	return nil
}

func (f *filler) Put(i int, p []byte) error {
	f.got.Append(i, digest.Block(p), snapferry.Ref{}, 0)
	return nil
}

// Flush reads what was put as late as a filler may.
func (f *filler) Flush(context.Context) error {
	for d, p := range f.frame {
		if digest.Block(p) != d {
			return snapferry.Errorf(snapferry.Internal, "a frame of leaf %d has changed since it was put", f.leaf)
		}
	}
	clear(f.frame)
	return nil
}

func (f *filler) End(ctx context.Context) error {
	if err := f.Flush(ctx); err != nil {
		return err
	}
	if f.want != nil {
		n, err := f.want.m.Leaf(ctx, f.leaf)
		if err != nil || n.Presence != f.got.Presence || !slices.Equal(n.Digests, f.got.Digests) {
			return snapferry.Errorf(snapferry.Internal, "leaf %d is not what it is at the source: %v", f.leaf, err)
		}
	}
	f.end(f.leaf)
	return nil
}

func (f *filler) Close() {}

// TestPlan compares plans with a model that looks at every block.
func TestPlan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(label string) *simtest.Disk {
			size := rapid.Int64Range(1, 1200).Draw(t, label)*snapferry.BlockSize - rapid.SampledFrom([]int64{0, 512}).Draw(t, "cut")
			d := simtest.NewDisk(size)
			for range rapid.IntRange(0, 12).Draw(t, "blocks") {
				b := rapid.SampledFrom([]uint64{0, 1, 2, 255, 256, 300, 511, 512, 700, 1000}).Draw(t, "block")
				if int64(b)*snapferry.BlockSize < size {
					d.Fill(b, rapid.IntRange(0, 2).Draw(t, "seed"))
				}
			}
			return d
		}
		base, disk := draw("base"), draw("source")
		src := &memory{m: mapOf(t, disk), disk: disk}
		p := transfer.Planner{Info: src.info(), Source: src, Base: mapOf(t, base)}
		last, moved := int64(-1), 0
		err := p.Run(context.Background(), func(s transfer.Step) error {
			if int64(s.Leaf) <= last {
				t.Errorf("leaf %d after leaf %d", s.Leaf, last)
			}
			last = int64(s.Leaf)
			moved += s.Want.Count()
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		want := disk.Differs(base.Clone(disk.Size()))
		if base.Size() > disk.Size() {
			// Of the block in which the disk ends the base may have more.
			want = disk.Differs(base)
		}
		if moved != want || p.Totals.MoveBlocks != int64(want) {
			t.Errorf("moves %d blocks, says %d, want %d", moved, p.Totals.MoveBlocks, want)
		}
		if got, want := p.Totals.ReuseBlocks, int64(disk.Present()-want); got != want {
			t.Errorf("reuses %d blocks, want %d", got, want)
		}
		s := newSink(p.Base, src)
		var st transfer.Stats
		if err := transfer.Run(context.Background(), transfer.Config{Info: src.info(), Source: src, Sink: s, Stats: &st}); err != nil {
			t.Fatal(err)
		}
		if got := st.Settled.Load(); got != int64(disk.Present()) || st.Blocks.Load() != int64(moved) {
			t.Errorf("settled %d blocks, moved %d, want %d, %d", got, st.Blocks.Load(), disk.Present(), moved)
		}
	})
}

// hostile is a source that changes what an honest one says.
type hostile struct {
	*memory
	nodes  func(at []snapferry.Position, fn func(snapferry.Position, *blockmap.Node) error) error
	frames func(transfer.Frames) transfer.Frames
}

func (h *hostile) Nodes(ctx context.Context, at []snapferry.Position, fn func(snapferry.Position, *blockmap.Node) error) error {
	if h.nodes != nil {
		return h.nodes(at, fn)
	}
	return h.memory.Nodes(ctx, at, fn)
}

func (h *hostile) Blocks(ctx context.Context, want []transfer.Want) (transfer.Frames, error) {
	f, err := h.memory.Blocks(ctx, want)
	if h.frames != nil {
		f = h.frames(f)
	}
	return f, err
}

// edited changes the frames of a stream.
type edited struct {
	transfer.Frames
	n    int
	edit func(n int, f transfer.Frame, err error) (transfer.Frame, error)
}

func (e *edited) Next() (transfer.Frame, error) {
	f, err := e.Frames.Next()
	e.n++
	return e.edit(e.n, f, err)
}

func TestHostileSource(t *testing.T) {
	disk := simtest.NewDisk(700 << 20)
	for i := range uint64(40) {
		disk.Fill(i*250, int(i)+1)
	}
	honest := &memory{m: mapOf(t, disk), disk: disk}
	each := func(change func(snapferry.Position, *blockmap.Node) (snapferry.Position, *blockmap.Node)) *hostile {
		return &hostile{memory: honest, nodes: func(at []snapferry.Position, fn func(snapferry.Position, *blockmap.Node) error) error {
			return honest.Nodes(context.Background(), at, func(p snapferry.Position, n *blockmap.Node) error { return fn(change(p, n.Clone())) })
		}}
	}
	frame := func(edit func(n int, f transfer.Frame, err error) (transfer.Frame, error)) *hostile {
		return &hostile{memory: honest, frames: func(f transfer.Frames) transfer.Frames { return &edited{Frames: f, edit: edit} }}
	}
	tests := map[string]struct {
		source *hostile
		kind   snapferry.Kind
	}{
		"wrong digest in a node": {each(func(p snapferry.Position, n *blockmap.Node) (snapferry.Position, *blockmap.Node) {
			n.Digests[0][0] ^= 1
			return p, n
		}), snapferry.Corrupt},
		"wrong count": {each(func(p snapferry.Position, n *blockmap.Node) (snapferry.Position, *blockmap.Node) {
			if n.Level > 0 {
				n.Counts[0]++
			}
			return p, n
		}), snapferry.Corrupt},
		"node not asked for": {each(func(p snapferry.Position, n *blockmap.Node) (snapferry.Position, *blockmap.Node) {
			p.Index += 7
			return p, n
		}), snapferry.Corrupt},
		"node of its own parent": {each(func(p snapferry.Position, n *blockmap.Node) (snapferry.Position, *blockmap.Node) {
			return p, honest.m.Root
		}), snapferry.Corrupt},
		"the same node for all": {&hostile{memory: honest, nodes: func(at []snapferry.Position, fn func(snapferry.Position, *blockmap.Node) error) error {
			n, err := honest.m.At(context.Background(), at[0])
			for _, p := range at {
				if err == nil {
					err = fn(p, n)
				}
			}
			return err
		}}, snapferry.Corrupt},
		"twice the same": {&hostile{memory: honest, nodes: func(at []snapferry.Position, fn func(snapferry.Position, *blockmap.Node) error) error {
			return honest.Nodes(context.Background(), append(slices.Clone(at), at...), fn)
		}}, snapferry.Corrupt},
		"too few nodes": {&hostile{memory: honest, nodes: func(at []snapferry.Position, fn func(snapferry.Position, *blockmap.Node) error) error {
			return honest.Nodes(context.Background(), at[:len(at)-1], fn)
		}}, snapferry.Unavailable},
		"wrong order of nodes": {&hostile{memory: honest, nodes: func(at []snapferry.Position, fn func(snapferry.Position, *blockmap.Node) error) error {
			at = slices.Clone(at)
			slices.Reverse(at)
			return honest.Nodes(context.Background(), append(at, at[0]), fn)
		}}, snapferry.Corrupt},
		"wrong content": {frame(func(n int, f transfer.Frame, err error) (transfer.Frame, error) {
			if err == nil {
				f.Payload[100] ^= 1
			}
			return f, err
		}), snapferry.Corrupt},
		"wrong block": {frame(func(n int, f transfer.Frame, err error) (transfer.Frame, error) {
			f.Block++
			return f, err
		}), snapferry.Corrupt},
		"oversize": {frame(func(n int, f transfer.Frame, err error) (transfer.Frame, error) {
			if err == nil {
				f.RawLength, f.Payload = 1<<30, append(f.Payload, 1)
			}
			return f, err
		}), snapferry.Corrupt},
		"extra frames": {frame(func(n int, f transfer.Frame, err error) (transfer.Frame, error) {
			return f, nil
		}), snapferry.Corrupt},
		"missing frames": {frame(func(n int, f transfer.Frame, err error) (transfer.Frame, error) {
			return transfer.Frame{}, io.EOF
		}), snapferry.Unavailable},
		"longer frames than the map says": {frame(func(n int, f transfer.Frame, err error) (transfer.Frame, error) {
			if err == nil {
				f.Payload = append(f.Payload, 1)
			}
			return f, err
		}), snapferry.Corrupt},
		"honest": {&hostile{memory: honest}, snapferry.Internal},
	}
	for name, test := range tests {
		synctestRun(t, name, func(t *testing.T) {
			s := newSink(blockmap.Map{Size: disk.Size(), Nodes: nodes{}}, honest)
			err := transfer.Run(t.Context(), transfer.Config{Info: honest.info(), Source: test.source, Sink: s, Stats: new(transfer.Stats)})
			if (err == nil) != (test.kind == snapferry.Internal) || err != nil && !snapferry.IsKind(err, test.kind) {
				t.Errorf("got %v, want %v", err, test.kind)
			}
		})
	}
}

// synctestRun runs a subtest in a bubble: no time passes while it waits.
func synctestRun(t *testing.T, name string, fn func(*testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, fn) })
}

func TestInfoCheck(t *testing.T) {
	disk := simtest.NewDisk(1<<30).Fill(3, 1)
	good := (&memory{m: mapOf(t, disk), disk: disk}).info()
	for name, change := range map[string]func(*transfer.Info){
		"size":         func(i *transfer.Info) { i.Size = 100 },
		"other size":   func(i *transfer.Info) { i.Size += 512 },
		"digest":       func(i *transfer.Info) { i.Digest[3] ^= 1 },
		"no root":      func(i *transfer.Info) { i.Root = nil },
		"lower root":   func(i *transfer.Info) { i.Root = i.Root.Clone(); i.Root.Level = 2 },
		"changed root": func(i *transfer.Info) { i.Root = i.Root.Clone(); i.Root.Digests[0][0] ^= 1 },
		"beyond": func(i *transfer.Info) {
			i.Root = i.Root.Clone()
			i.Root.Append(60, digest.Digest{1}, snapferry.Ref{}, 1)
		},
	} {
		i := good
		change(&i)
		if err := i.Check(); !snapferry.IsKind(err, snapferry.Corrupt) {
			t.Errorf("%s: got %v, want Corrupt", name, err)
		}
	}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
}
