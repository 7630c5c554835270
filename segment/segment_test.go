package segment_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/seal"
	"github.com/snapferry/snapferry/segment"
)

var _ segment.Sealer = (*seal.SegmentKey)(nil)

func TestConstants(t *testing.T) {
	if segment.SealOverhead != seal.Overhead {
		t.Errorf("got an overhead of %d, want %d", segment.SealOverhead, seal.Overhead)
	}
	if got, want := segment.FooterSize(segment.MaxSlots, true), 29*65535+64+28; got != want {
		t.Errorf("got a largest footer of %d bytes, want %d", got, want)
	}
}

func TestGolden(t *testing.T) {
	for name, s := range map[string]sealer{"plain.sfobj": plain, "sealed.sfobj": sealed} {
		if *update {
			if err := os.WriteFile(filepath.Join("testdata", name), object(t, samples(), s), 0o666); err != nil {
				t.Fatal(err)
			}
		}
		p := golden(t, name)
		if name == "plain.sfobj" && !bytes.Equal(object(t, samples(), s), p) {
			t.Errorf("%s: what is written now differs", name)
		}
		if got, want := len(object(t, samples(), s)), len(p); got != want {
			t.Errorf("%s: got %d bytes written now, want %d", name, got, want)
		}
		checkObject(t, name, p, samples(), s)
	}
}

// checkObject reads an object as a reader does, tail first, and compares all of
// it with what it was made of.
func checkObject(t *testing.T, name string, p []byte, want []sampleSegment, s sealer) {
	t.Helper()
	n, err := segment.DirectorySpan(p[len(p)-segment.DirTrailerSize:])
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	dir, err := segment.DecodeDirectory(p[len(p)-n:], int64(len(p)))
	if err != nil || len(dir) != len(want) {
		t.Fatalf("%s: got %d segments, %v, want %d", name, len(dir), err, len(want))
	}
	for i, e := range dir {
		b := p[e.Offset : e.Offset+e.Length]
		if e.Segment != want[i].header.Segment || e.Generation != want[i].generation || e.CRC != segment.Checksum(b) {
			t.Errorf("%s: got entry %+v for %+v", name, e, want[i].header)
		}
		got := readBody(t, b, s(want[i].header))
		if d := cmp.Diff(got, want[i].frames, cmp.AllowUnexported(frame{})); d != "" {
			t.Errorf("%s, segment %s: -got +want\n%s", name, e.Segment, d)
		}
	}
	scrub, err := segment.VerifyObject(bytes.NewReader(p), int64(len(p)), nil)
	if err != nil || len(scrub.Segments) != len(want) {
		t.Fatalf("%s: scrub got %+v, %v", name, scrub, err)
	}
	for i, ss := range scrub.Segments {
		if ss.DirEntry != dir[i] || ss.Footer.Len() != len(want[i].frames) || ss.Footer.HasInfo() == ss.Footer.Sealed {
			t.Errorf("%s: scrub got %+v, want that of %+v", name, ss, dir[i])
		}
	}
}

func readBody(t *testing.T, b []byte, s segment.Sealer) []frame {
	t.Helper()
	n, err := segment.FooterSpan(b[len(b)-segment.TrailerSize:])
	if err != nil {
		t.Fatal(err)
	}
	f, err := segment.DecodeFooter(b[len(b)-n:], int64(len(b)), s)
	if err != nil {
		t.Fatal(err)
	}
	if h, err := segment.DecodeHeader(b); err != nil || h != f.Header {
		t.Errorf("got header %+v, %v, want %+v", h, err, f.Header)
	}
	var got []frame
	for i := range f.Len() {
		e := f.At(i)
		if found, ok := f.Find(e.Slot); !ok || found != e {
			t.Errorf("find slot %d: got %+v, %v, want %+v", e.Slot, found, ok, e)
		}
		p := b[e.Offset:][:e.Length]
		if err := e.Verify(p); err != nil {
			t.Error(err)
		}
		if s != nil {
			if p, err = s.Open(nil, p, e.Slot, e.Info); err != nil {
				t.Fatal(err)
			}
		}
		got = append(got, frame{e.Slot, e.Info, p})
	}
	return got
}

func TestFind(t *testing.T) {
	b, err := body(t, nil, samples()[2], nil).Close()
	if err != nil {
		t.Fatal(err)
	}
	f, err := segment.DecodeFooter(b, int64(len(b)), nil)
	if err != nil {
		t.Fatal(err)
	}
	present := map[uint16]bool{1: true, 300: true, 65534: true}
	for slot := range 1 << 16 {
		e, ok := f.Find(uint16(slot))
		if ok != present[uint16(slot)] || ok && e.Slot != uint16(slot) {
			t.Errorf("find slot %d: got %+v, %v", slot, e, ok)
		}
	}
}

// A reader may fetch more of the tail than it needs, never less.
func TestFooterTail(t *testing.T) {
	b, err := body(t, nil, samples()[0], nil).Close()
	if err != nil {
		t.Fatal(err)
	}
	n, err := segment.FooterSpan(b)
	if err != nil {
		t.Fatal(err)
	}
	for have := range len(b) {
		_, err := segment.DecodeFooter(b[len(b)-have:], int64(len(b)), nil)
		if have < n && !snapferry.IsKind(err, snapferry.Corrupt) || have >= n && err != nil {
			t.Errorf("%d bytes of a footer of %d: got %v", have, n, err)
		}
	}
	for _, length := range []int64{0, int64(len(b)) - 1, int64(len(b)) + 1} {
		if _, err := segment.DecodeFooter(b, length, nil); !snapferry.IsKind(err, snapferry.Corrupt) {
			t.Errorf("a body of %d bytes said to have %d: got %v, want Corrupt", len(b), length, err)
		}
	}
}

func TestSealedFooter(t *testing.T) {
	ss := samples()[0]
	b, err := body(t, nil, ss, sealed(ss.header)).Close()
	if err != nil {
		t.Fatal(err)
	}
	f, err := segment.DecodeFooter(b, int64(len(b)), nil)
	if err != nil || f.HasInfo() || !f.Sealed || f.Len() != 3 || f.At(1).Info != (snapferry.FrameInfo{Kind: snapferry.BlockFrame}) {
		t.Errorf("without key: got %+v, %v", f, err)
	}
	if _, err := segment.DecodeFooter(b, int64(len(b)), sealed(samples()[1].header)); !snapferry.IsKind(err, snapferry.Corrupt) {
		t.Errorf("with another segment's key: got %v, want Corrupt", err)
	}
	if b, err = body(t, nil, ss, nil).Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := segment.DecodeFooter(b, int64(len(b)), sealed(ss.header)); !snapferry.IsKind(err, snapferry.Corrupt) {
		t.Errorf("a plain segment in an encrypted chain: got %v, want Corrupt", err)
	}
}

// The infos of one generation do not pass for those of another.
func TestFootersDoNotMix(t *testing.T) {
	ss := samples()[2]
	whole, err := body(t, nil, ss, nil).Close()
	if err != nil {
		t.Fatal(err)
	}
	ss.frames[0].slot++
	other, err := body(t, nil, ss, nil).Close()
	if err != nil {
		t.Fatal(err)
	}
	infos := len(whole) - segment.TrailerSize - 3*16
	mixed := append(bytes.Clone(whole[:infos]), other[infos:]...)
	fixFooter(mixed)
	if _, err := segment.DecodeFooter(mixed, int64(len(mixed)), nil); !snapferry.IsKind(err, snapferry.Corrupt) {
		t.Errorf("got %v, want Corrupt", err)
	}
}

func TestNewerVersion(t *testing.T) {
	p := golden(t, "plain.sfobj")
	for name, at := range map[string]int{"object": 5, "directory": len(p) - 4, "segment header": 16 + 5} {
		bad := bytes.Clone(p)
		bad[at] = 2
		if _, err := segment.VerifyObject(bytes.NewReader(bad), int64(len(bad)), nil); !snapferry.IsKind(err, snapferry.Unsupported) {
			t.Errorf("%s: got %v, want Unsupported", name, err)
		}
	}
}

// Rules of the footer that a checksum does not show.
func TestFooterRules(t *testing.T) {
	ss := samples()[0]
	ok, err := body(t, nil, ss, nil).Close()
	if err != nil {
		t.Fatal(err)
	}
	trailer := len(ok) - segment.TrailerSize
	infos := trailer - 3*16
	clear := infos - 3*13
	put16 := func(at int, v uint16) func(p []byte) { return func(p []byte) { binary.BigEndian.PutUint16(p[at:], v) } }
	set := func(at int, v byte) func(p []byte) { return func(p []byte) { p[at] = v } }
	for name, change := range map[string]func(p []byte){
		"slot twice":            func(p []byte) { put16(clear+13, 0)(p); put16(infos+16, 0)(p) },
		"slot 65535":            func(p []byte) { put16(clear+26, 65535)(p); put16(infos+32, 65535)(p) },
		"gap between frames":    set(clear+13+5, 99),
		"frame before header":   set(clear+5, 0),
		"empty frame":           set(clear+26+8, 0),
		"frames past the end":   set(clear+26+8, 9),
		"info of another slot":  put16(infos+16, 9),
		"level of a block":      set(infos+3, 1),
		"raw length zero":       set(infos+7, 0),
		"raw length above 64 K": set(infos+16+7, 1),
		"index above 2^32":      set(infos+8+3, 1),
		"stored length not raw": set(infos+7, 8),
		"no slots":              put16(trailer+36, 0),
		"more slots":            put16(trailer+36, 4),
		"info length":           set(trailer+43, 47),
		"footer elsewhere":      set(trailer+47, 99),
		"no kind":               set(trailer+32, 0),
		"unknown kind":          set(trailer+32, 3),
		"unknown flag":          set(trailer+33, 2),
		"sealed without seal":   set(trailer+33, 1),
		"reserved 35":           set(trailer+35, 1),
		"reserved 38":           set(trailer+38, 1),
		"reserved 39":           set(trailer+39, 1),
		"zero segment":          func(p []byte) { copy(p[trailer+16:trailer+32], make([]byte, 16)) },
		"zero chain":            func(p []byte) { copy(p[trailer:trailer+16], make([]byte, 16)) },
	} {
		bad := bytes.Clone(ok)
		change(bad)
		fixFooter(bad)
		if _, err := segment.DecodeFooter(bad, int64(len(bad)), nil); !snapferry.IsKind(err, snapferry.Corrupt) {
			t.Errorf("%s: got %v, want Corrupt", name, err)
		}
	}
	bad := bytes.Clone(ok)
	bad[trailer+34] = 2
	fixFooter(bad)
	if _, err := segment.FooterSpan(bad); !snapferry.IsKind(err, snapferry.Unsupported) {
		t.Errorf("unknown digest algorithm: got %v, want Unsupported", err)
	}
}

// fixFooter makes the checksums of a footer right, as far as it can be parsed.
func fixFooter(p []byte) {
	if len(p) < segment.TrailerSize {
		return
	}
	end := len(p) - segment.TrailerSize
	tr := p[end:]
	tr[60] = 1
	copy(tr[61:], "SFT")
	slots := int(binary.BigEndian.Uint16(tr[36:]))
	start := len(p) - segment.FooterSize(slots, tr[33]&1 == 1)
	if start >= 0 {
		binary.BigEndian.PutUint32(tr[48:], segment.Checksum(p[start:start+13*slots]))
		binary.BigEndian.PutUint32(tr[52:], segment.Checksum(p[start+13*slots:end]))
	}
	binary.BigEndian.PutUint32(tr[56:], segment.Checksum(append(bytes.Clone(tr[:56]), tr[60:]...)))
}

func FuzzFooter(f *testing.F) {
	for _, ss := range samples() {
		for _, s := range []sealer{plain, sealed} {
			b, err := body(f, nil, ss, s(ss.header)).Close()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b, false)
			f.Add(b, true)
		}
	}
	f.Fuzz(func(t *testing.T, p []byte, fix bool) {
		if fix {
			p = bytes.Clone(p)
			fixFooter(p)
		}
		n, err := segment.FooterSpan(p)
		if err == nil && (n < segment.TrailerSize || n > segment.FooterSize(segment.MaxSlots, true)) {
			t.Fatalf("a span of %d bytes", n)
		}
		if h, err := segment.DecodeHeader(p); err == nil && h.Segment.IsZero() {
			t.Fatal("a header without segment")
		}
		footer, err := segment.DecodeFooter(p, int64(len(p)), nil)
		if err != nil {
			if !snapferry.IsKind(err, snapferry.Corrupt) && !snapferry.IsKind(err, snapferry.Unsupported) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		end := uint32(segment.HeaderSize)
		for i := range footer.Len() {
			e := footer.At(i)
			if got, ok := footer.Find(e.Slot); !ok || got != e || e.Offset != end || int(end+e.Length) > len(p) {
				t.Fatalf("entry %d: %+v, found %+v", i, e, got)
			}
			end += e.Length
			e.Verify(p[e.Offset:end])
		}
	})
}
