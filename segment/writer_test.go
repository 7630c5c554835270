package segment_test

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/segment"
)

// Append numbers slots from 0 and seals; what comes back is what went in.
func TestAppend(t *testing.T) {
	for name, s := range map[string]sealer{"plain": plain, "sealed": sealed} {
		for _, ss := range samples()[:2] {
			w := segment.NewWriter([]byte("before"), ss.header, s(ss.header))
			for i, f := range ss.frames {
				slot, length, err := w.Append(f.info, f.payload)
				want := len(f.payload)
				if name == "sealed" {
					want += segment.SealOverhead
				}
				if err != nil || int(slot) != i || int(length) != want {
					t.Fatalf("%s, frame %d: got slot %d, %d bytes, %v, want %d bytes", name, i, slot, length, err, want)
				}
			}
			if got, want := w.Slots(), len(ss.frames); got != want {
				t.Errorf("got %d slots, want %d", got, want)
			}
			buf, err := w.Close()
			if err != nil || w.Start() != 6 || !bytes.HasPrefix(buf, []byte("before")) || !bytes.Equal(buf[6:], w.Bytes()) {
				t.Fatalf("%s: closed at %d, %v", name, w.Start(), err)
			}
			got := readBody(t, w.Bytes(), s(ss.header))
			if d := cmp.Diff(got, ss.frames, cmp.AllowUnexported(frame{})); d != "" {
				t.Errorf("%s: -got +want\n%s", name, d)
			}
		}
	}
}

func TestAppendRefuses(t *testing.T) {
	h := header(1, snapferry.BlockFrame)
	good := snapferry.FrameInfo{Kind: snapferry.BlockFrame, Codec: snapferry.Zstd, RawLength: 10}
	w := segment.NewWriter(nil, h, nil)
	refuse := func(name string, err error) {
		t.Helper()
		if !snapferry.IsKind(err, snapferry.Invalid) {
			t.Errorf("%s: got %v, want Invalid", name, err)
		}
	}
	try := func(name string, payload []byte, change func(*snapferry.FrameInfo)) {
		t.Helper()
		f := good
		change(&f)
		_, _, err := w.Append(f, payload)
		refuse(name, err)
	}
	_, err := w.Close()
	refuse("close without frames", err)
	try("kind", []byte("x"), func(f *snapferry.FrameInfo) { f.Kind = snapferry.NodeFrame })
	try("no raw length", []byte("x"), func(f *snapferry.FrameInfo) { f.RawLength = 0 })
	try("raw length", []byte("x"), func(f *snapferry.FrameInfo) { f.RawLength = segment.MaxRaw + 1 })
	try("level", []byte("x"), func(f *snapferry.FrameInfo) { f.Level = 1 })
	try("index", []byte("x"), func(f *snapferry.FrameInfo) { f.Index = 1 << 32 })
	try("empty", nil, func(*snapferry.FrameInfo) {})
	try("too long", make([]byte, segment.MaxFrame+1), func(*snapferry.FrameInfo) {})
	try("stored but shorter", []byte("x"), func(f *snapferry.FrameInfo) { f.Codec = snapferry.Stored })
	if w.Slots() != 0 || w.Size() != segment.HeaderSize+segment.TrailerSize {
		t.Errorf("refused frames left %d slots, %d bytes", w.Slots(), w.Size())
	}
	if err := w.AppendSlot(7, good, []byte("x")); err != nil {
		t.Fatal(err)
	}
	refuse("same slot", w.AppendSlot(7, good, []byte("x")))
	refuse("lower slot", w.AppendSlot(6, good, []byte("x")))
	refuse("slot 65535", w.AppendSlot(65535, good, []byte("x")))
	if slot, _, err := w.Append(good, []byte("x")); err != nil || slot != 8 {
		t.Errorf("after slot 7: got slot %d, %v", slot, err)
	}
	if err := w.AppendSlot(65534, good, []byte("x")); err != nil || !w.Full(1) {
		t.Errorf("the last slot: got %v, full %v", err, w.Full(1))
	}
	_, _, err = w.Append(good, []byte("x"))
	refuse("too many slots", err)
	if _, err := w.Close(); err != nil {
		t.Fatal(err)
	}
	_, _, err = w.Append(good, []byte("x"))
	refuse("closed", err)
	refuse("closed", w.AppendSlot(65534, good, []byte("x")))
	_, err = w.Close()
	refuse("close twice", err)

	h.Kind = 0
	_, _, err = segment.NewWriter(nil, h, nil).Append(good, []byte("x"))
	refuse("header without kind", err)

	h = header(1, snapferry.NodeFrame)
	w = segment.NewWriter(nil, h, sealed(h))
	for level, index := range []uint64{1 << 24, 1 << 16, 1 << 8} {
		good = snapferry.FrameInfo{Kind: snapferry.NodeFrame, RawLength: 1, Position: snapferry.Position{Level: uint8(level), Index: index}}
		try("index of a node", []byte("x"), func(*snapferry.FrameInfo) {})
	}
	try("a root", []byte("x"), func(f *snapferry.FrameInfo) { f.Level, f.Index = 3, 0 })
	refuse("sealed and empty", w.AppendSlot(0, snapferry.FrameInfo{Kind: snapferry.NodeFrame, Codec: snapferry.S2, RawLength: 1}, make([]byte, segment.SealOverhead)))
}

// All slots of a segment can be used.
func TestMaxSlots(t *testing.T) {
	h := header(1, snapferry.BlockFrame)
	w := segment.NewWriter(nil, h, nil)
	n := 0
	for ; !w.Full(1); n++ {
		if _, _, err := w.Append(snapferry.FrameInfo{Kind: h.Kind, RawLength: 1, Position: snapferry.Position{Index: uint64(n)}}, []byte{byte(n)}); err != nil {
			t.Fatal(err)
		}
	}
	b, err := w.Close()
	if err != nil || n != segment.MaxSlots {
		t.Fatalf("got %d slots, %v, want %d", n, err, segment.MaxSlots)
	}
	f, err := segment.DecodeFooter(b, int64(len(b)), nil)
	if err != nil || f.Len() != n {
		t.Fatal(err)
	}
	e, ok := f.Find(65534)
	if !ok || e.Info.Index != 65534 || e.Verify(b[e.Offset:e.Offset+1]) != nil {
		t.Errorf("got %+v, %v", e, ok)
	}
}

func TestFull(t *testing.T) {
	h := header(1, snapferry.BlockFrame)
	w := segment.NewWriter(nil, h, nil)
	if w.Full(segment.TargetSize) {
		t.Error("an empty segment is full")
	}
	payload := make([]byte, 65536)
	for !w.Full(len(payload)) {
		if _, _, err := w.Append(snapferry.FrameInfo{Kind: h.Kind, RawLength: 65536}, payload); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.Size(); got > segment.TargetSize || got <= segment.TargetSize-len(payload)-64 {
		t.Errorf("got a full segment of %d bytes", got)
	}
}

// A compressor's output at the tail is not copied, and comes out right when it
// did not fit or the segment is sealed.
func TestTail(t *testing.T) {
	for name, s := range map[string]sealer{"plain": plain, "sealed": sealed} {
		for _, room := range []int{0, 200, 4096} {
			h := header(1, snapferry.BlockFrame)
			w := segment.NewWriter(make([]byte, 0, room), h, s(h))
			var want []frame
			for i := range 10 {
				payload := append(w.Tail(), bytes.Repeat([]byte{byte(i + 1)}, 20+i)...)
				f := frame{uint16(i), snapferry.FrameInfo{Kind: h.Kind, RawLength: uint32(len(payload)), Position: snapferry.Position{Index: uint64(i)}}, bytes.Clone(payload)}
				if _, _, err := w.Append(f.info, payload); err != nil {
					t.Fatal(err)
				}
				if b := w.Bytes(); name == "plain" && room == 4096 && &b[len(b)-1] != &payload[len(payload)-1] {
					t.Error("the payload was copied")
				}
				want = append(want, f)
			}
			b, err := w.Close()
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(readBody(t, b, s(h)), want, cmp.AllowUnexported(frame{})); d != "" {
				t.Errorf("%s in %d bytes: -got +want\n%s", name, room, d)
			}
		}
	}
}

func TestAppendDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("sync.Pool drops values at random under the race detector")
	}
	payload := make([]byte, 4096)
	h := header(1, snapferry.BlockFrame)
	f := snapferry.FrameInfo{Kind: h.Kind, Codec: snapferry.Zstd, RawLength: 65536}
	for name, s := range map[string]segment.Sealer{"plain": nil, "sealed": sealed(h)} {
		buf := make([]byte, 0, 8<<20)
		w := segment.NewWriter(buf, h, s)
		fill := func() {
			for range 1000 {
				if _, _, err := w.Append(f, payload); err != nil {
					t.Fatal(err)
				}
			}
		}
		fill()
		if n := testing.AllocsPerRun(5, func() { w.Reset(buf, h, s); fill() }); n != 0 {
			t.Errorf("%s: got %v allocations, want 0", name, n)
		}
	}
}

// Any frames, then any subset of them under their slots, come back as they
// were.
func TestCompactionProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := plain
		if rapid.Bool().Draw(rt, "sealed") {
			s = sealed
		}
		h := header(9, snapferry.NodeFrame)
		w := segment.NewWriter(nil, h, s(h))
		var all []frame
		for i, payload := range rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 1, 40), 1, 30).Draw(rt, "payloads") {
			f := frame{uint16(i), snapferry.FrameInfo{
				Kind: h.Kind, Codec: snapferry.Codec(rapid.IntRange(1, 2).Draw(rt, "codec")), RawLength: rapid.Uint32Range(1, segment.MaxRaw).Draw(rt, "raw"),
				Position: snapferry.Position{Level: rapid.Uint8Range(0, 2).Draw(rt, "level"), Index: rapid.Uint64Range(0, 255).Draw(rt, "index")},
			}, payload}
			if _, _, err := w.Append(f.info, payload); err != nil {
				rt.Fatal(err)
			}
			all = append(all, f)
		}
		b, err := w.Close()
		if err != nil {
			rt.Fatal(err)
		}
		footer, err := segment.DecodeFooter(b, int64(len(b)), s(h))
		if err != nil {
			rt.Fatal(err)
		}
		w = segment.NewWriter(nil, h, s(h))
		var kept []frame
		for i, f := range all {
			if e := footer.At(i); i == 0 || rapid.Bool().Draw(rt, "keep") {
				if err := w.AppendSlot(e.Slot, e.Info, b[e.Offset:][:e.Length]); err != nil {
					rt.Fatal(err)
				}
				kept = append(kept, f)
			}
		}
		if b, err = w.Close(); err != nil {
			rt.Fatal(err)
		}
		if d := cmp.Diff(readBody(t, b, s(h)), kept, cmp.AllowUnexported(frame{})); d != "" {
			rt.Errorf("-got +want\n%s", d)
		}
	})
}
