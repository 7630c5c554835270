package segment_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/segment"
)

// Every byte of an object is under a checksum: each flip of any of its bytes
// is found, without keys.
func TestEveryByteCounts(t *testing.T) {
	for _, name := range []string{"plain.sfobj", "sealed.sfobj"} {
		p := golden(t, name)
		for i := range p {
			for _, flip := range []byte{0x01, 0x80, 0xff} {
				p[i] ^= flip
				if _, err := segment.VerifyObject(bytes.NewReader(p), int64(len(p)), nil); !snapferry.IsKind(err, snapferry.Corrupt) && !snapferry.IsKind(err, snapferry.Unsupported) {
					t.Errorf("%s, byte %d flipped by %#x: got %v", name, i, flip, err)
				}
				p[i] ^= flip
			}
		}
	}
}

func TestEveryLengthCounts(t *testing.T) {
	for _, name := range []string{"plain.sfobj", "sealed.sfobj"} {
		p := golden(t, name)
		for n := range p {
			if _, err := segment.VerifyObject(bytes.NewReader(p[:n]), int64(n), nil); !snapferry.IsKind(err, snapferry.Corrupt) {
				t.Errorf("%s cut to %d bytes: got %v, want Corrupt", name, n, err)
			}
			if _, err := segment.VerifyObject(bytes.NewReader(p[:n]), int64(len(p)), nil); !snapferry.IsKind(err, snapferry.Corrupt) {
				t.Errorf("%s cut to %d bytes, said to have %d: got %v, want Corrupt", name, n, len(p), err)
			}
		}
		p = append(p, 0)
		if _, err := segment.VerifyObject(bytes.NewReader(p), int64(len(p)), nil); !snapferry.IsKind(err, snapferry.Corrupt) {
			t.Errorf("%s with a byte more: got %v, want Corrupt", name, err)
		}
	}
}

// One pass names all that is damaged, and what is sound stays usable.
func TestScrubNamesDamage(t *testing.T) {
	p := golden(t, "plain.sfobj")
	sound, err := segment.VerifyObject(bytes.NewReader(p), int64(len(p)), nil)
	if err != nil {
		t.Fatal(err)
	}
	at := func(segment, i int) int64 {
		s := sound.Segments[segment]
		return s.Offset + int64(s.Footer.At(i).Offset)
	}
	id := func(i int) snapferry.SegmentID { return sound.Segments[i].Segment }
	end := func(i int) int64 { return sound.Segments[i].Offset + sound.Segments[i].Length }
	for _, tt := range []struct {
		name  string
		flips []int64
		want  []segment.Damage
	}{
		{"two frames", []int64{at(0, 1), at(2, 2)}, []segment.Damage{{Part: segment.PartFrame, Segment: id(0), Slot: 1}, {Part: segment.PartFrame, Segment: id(2), Slot: 65534}}},
		{"segment header", []int64{sound.Segments[1].Offset + 20}, []segment.Damage{{Part: segment.PartSegmentHeader, Segment: id(1), Slot: -1}}},
		{"footer and a frame elsewhere", []int64{end(0) - 64 - 5, at(1, 0)}, []segment.Damage{{Part: segment.PartFooter, Segment: id(0), Slot: -1}, {Part: segment.PartFrame, Segment: id(1), Slot: 0}}},
		{"trailer", []int64{end(1) - 1}, []segment.Damage{{Part: segment.PartFooter, Segment: id(1), Slot: -1}}},
		{"object header", []int64{7}, []segment.Damage{{Part: segment.PartObjectHeader, Slot: -1}}},
		{"directory", []int64{int64(len(p)) - 30}, []segment.Damage{{Part: segment.PartDirectory, Slot: -1}}},
	} {
		bad := bytes.Clone(p)
		for _, i := range tt.flips {
			bad[i] ^= 4
		}
		scrub, err := segment.VerifyObject(bytes.NewReader(bad), int64(len(bad)), nil)
		var first *segment.Damage
		if !snapferry.IsKind(err, snapferry.Corrupt) || !errors.As(err, &first) {
			t.Errorf("%s: got %v, want Corrupt", tt.name, err)
			continue
		}
		got := []segment.Damage{*first}
		if scrub != nil {
			got = nil
			for _, d := range scrub.Damage {
				got = append(got, *d)
			}
		}
		for i := range got {
			got[i].Detail = ""
		}
		if d := cmp.Diff(got, tt.want); d != "" {
			t.Errorf("%s: %v: -got +want\n%s", tt.name, err, d)
		}
	}
}

// A body put in the place of another is found, though it is sound.
func TestSwappedBodies(t *testing.T) {
	block := snapferry.BlockFrame
	all := []sampleSegment{
		{header(1, block), 0, []frame{stored(block, 0, 0, 0, "one")}},
		{header(2, block), 0, []frame{stored(block, 0, 0, 0, "two")}},
	}
	p := object(t, all, plain)
	n := (len(p) - 16 - 2*40 - 24) / 2
	one, two := p[16:16+n], p[16+n:16+2*n]
	swapped := bytes.Clone(p)
	copy(swapped[16:], two)
	copy(swapped[16+n:], one)
	if _, err := segment.VerifyObject(bytes.NewReader(swapped), int64(len(p)), nil); !snapferry.IsKind(err, snapferry.Corrupt) {
		t.Errorf("got %v, want Corrupt", err)
	}
}

func TestDirectoryRules(t *testing.T) {
	const body = 1000
	a, b := snapferry.SegmentID{1}, snapferry.SegmentID{2}
	good := []segment.DirEntry{{Segment: a, Offset: 16, Length: body}, {Segment: b, Generation: 3, Offset: 16 + body, Length: body, CRC: 9}}
	try := func(e []segment.DirEntry, size int64) ([]segment.DirEntry, error) {
		return segment.DecodeDirectory(segment.AppendDirectory(nil, e), size+int64(len(e)*segment.DirEntrySize+segment.DirTrailerSize))
	}
	got, err := try(good, 16+2*body)
	if d := cmp.Diff(got, good); d != "" || err != nil {
		t.Errorf("%v: -got +want\n%s", err, d)
	}
	for name, change := range map[string]func(e []segment.DirEntry) []segment.DirEntry{
		"empty":       func(e []segment.DirEntry) []segment.DirEntry { return nil },
		"twice":       func(e []segment.DirEntry) []segment.DirEntry { e[1].Segment = a; return e },
		"zero":        func(e []segment.DirEntry) []segment.DirEntry { e[0].Segment = snapferry.SegmentID{}; return e },
		"gap":         func(e []segment.DirEntry) []segment.DirEntry { e[1].Offset++; e[1].Length--; return e },
		"overlap":     func(e []segment.DirEntry) []segment.DirEntry { e[1].Offset--; e[1].Length++; return e },
		"first later": func(e []segment.DirEntry) []segment.DirEntry { e[0].Offset++; e[0].Length--; return e },
		"short":       func(e []segment.DirEntry) []segment.DirEntry { e[1].Length--; return e },
		"no body": func(e []segment.DirEntry) []segment.DirEntry {
			e[0].Length = 0
			e[1].Offset = 16
			e[1].Length = 2 * body
			return e
		},
		"negative":     func(e []segment.DirEntry) []segment.DirEntry { e[0].Length = -body; e[1].Offset = 16 - body; return e },
		"out of order": func(e []segment.DirEntry) []segment.DirEntry { e[0], e[1] = e[1], e[0]; return e },
	} {
		if _, err := try(change(append([]segment.DirEntry(nil), good...)), 16+2*body); !snapferry.IsKind(err, snapferry.Corrupt) {
			t.Errorf("%s: got %v, want Corrupt", name, err)
		}
	}
	many := make([]segment.DirEntry, segment.MaxBodies+1)
	if _, err := segment.DirectorySpan(segment.AppendDirectory(nil, many)); !snapferry.IsKind(err, snapferry.Corrupt) {
		t.Errorf("too many bodies: got %v, want Corrupt", err)
	}
}

// A frame longer than the scrub's buffer, and frames across its edges.
func TestScrubBigObject(t *testing.T) {
	h := header(1, snapferry.BlockFrame)
	w := segment.NewWriter(segment.AppendObjectHeader(nil), h, nil)
	payload := bytes.Repeat([]byte("0123456789abcdef"), 4096)
	for i := range 40 {
		f := snapferry.FrameInfo{Kind: h.Kind, RawLength: uint32(len(payload) - i), Position: snapferry.Position{Index: uint64(i)}}
		if _, _, err := w.Append(f, payload[i:]); err != nil {
			t.Fatal(err)
		}
	}
	long := bytes.Repeat([]byte("long"), 700_000)
	if _, _, err := w.Append(snapferry.FrameInfo{Kind: h.Kind, Codec: snapferry.Zstd, RawLength: 65536}, long); err != nil {
		t.Fatal(err)
	}
	p, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	p = segment.AppendDirectory(p, []segment.DirEntry{w.DirEntry(0)})
	if _, err := segment.VerifyObject(bytes.NewReader(p), int64(len(p)), nil); err != nil {
		t.Fatal(err)
	}
	for i := 16; i < len(p)-64; i += 64<<10 - 7 {
		p[i] ^= 1
		if _, err := segment.VerifyObject(bytes.NewReader(p), int64(len(p)), nil); !snapferry.IsKind(err, snapferry.Corrupt) && !snapferry.IsKind(err, snapferry.Unsupported) {
			t.Errorf("byte %d: got %v", i, err)
		}
		p[i] ^= 1
	}
}

type failingReader struct{ err error }

func (r failingReader) ReadAt([]byte, int64) (int, error) { return 0, r.err }

// That an object cannot be read is not damage.
func TestScrubReadError(t *testing.T) {
	down := snapferry.Errorf(snapferry.Unavailable, "the bucket does not answer")
	_, err := segment.VerifyObject(failingReader{down}, 4096, nil)
	var d *segment.Damage
	if !snapferry.IsKind(err, snapferry.Unavailable) || errors.As(err, &d) || !errors.Is(err, down) {
		t.Errorf("got %v, want Unavailable", err)
	}
}

// fixObject makes the checksums of an object's header and directory right.
func fixObject(p []byte) {
	if len(p) < segment.ObjectHeaderSize+segment.DirTrailerSize {
		return
	}
	copy(p, segment.AppendObjectHeader(nil))
	tr := p[len(p)-segment.DirTrailerSize:]
	tr[20] = 1
	copy(tr[21:], "SFD")
	n := int(binary.BigEndian.Uint32(tr[8:])) * segment.DirEntrySize
	if start := len(p) - segment.DirTrailerSize - n; start >= 0 {
		dir := p[start : start+n]
		for ; len(dir) > 0; dir = dir[segment.DirEntrySize:] {
			at, length := binary.BigEndian.Uint64(dir[20:]), binary.BigEndian.Uint64(dir[28:])
			if at <= uint64(len(p)) && length <= uint64(len(p))-at {
				body := p[at : at+length]
				fixFooter(body)
				binary.BigEndian.PutUint32(dir[36:], segment.Checksum(body))
			}
		}
		binary.BigEndian.PutUint32(tr[12:], segment.Checksum(p[start:start+n]))
	}
	binary.BigEndian.PutUint32(tr[16:], segment.Checksum(append(bytes.Clone(tr[:16]), tr[20:]...)))
}

func FuzzDirectory(f *testing.F) {
	for _, name := range []string{"plain.sfobj", "sealed.sfobj"} {
		f.Add(golden(f, name), false)
		f.Add(golden(f, name), true)
	}
	f.Fuzz(func(t *testing.T, p []byte, fix bool) {
		if fix {
			p = bytes.Clone(p)
			fixObject(p)
		}
		n, err := segment.DirectorySpan(p)
		if err == nil && n > segment.MaxBodies*segment.DirEntrySize+segment.DirTrailerSize {
			t.Fatalf("a span of %d bytes", n)
		}
		dir, err := segment.DecodeDirectory(p, int64(len(p)))
		if err != nil {
			if !snapferry.IsKind(err, snapferry.Corrupt) && !snapferry.IsKind(err, snapferry.Unsupported) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		if got, want := segment.AppendDirectory(nil, dir), p[len(p)-n:]; !bytes.Equal(got, want) {
			t.Fatalf("written again: got %x, want %x", got, want)
		}
	})
}

func FuzzObject(f *testing.F) {
	for _, name := range []string{"plain.sfobj", "sealed.sfobj"} {
		f.Add(golden(f, name), false)
		f.Add(golden(f, name), true)
	}
	f.Fuzz(func(t *testing.T, p []byte, fix bool) {
		if fix {
			p = bytes.Clone(p)
			fixObject(p)
		}
		scrub, err := segment.VerifyObject(bytes.NewReader(p), int64(len(p)), nil)
		if err != nil {
			if !snapferry.IsKind(err, snapferry.Corrupt) && !snapferry.IsKind(err, snapferry.Unsupported) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		for _, s := range scrub.Segments {
			for i := range s.Footer.Len() {
				e := s.Footer.At(i)
				if err := e.Verify(p[s.Offset+int64(e.Offset):][:e.Length]); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	h := header(1, snapferry.BlockFrame)
	h.Algorithm = digest.SHA256
	payload := make([]byte, 64<<10)
	f := snapferry.FrameInfo{Kind: h.Kind, RawLength: 64 << 10}
	for name, s := range map[string]segment.Sealer{"plain": nil, "sealed": sealed(h)} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(payload)))
			buf := make([]byte, 0, segment.TargetSize+1<<16)
			w := segment.NewWriter(buf, h, s)
			for b.Loop() {
				if w.Full(len(payload)) {
					w.Reset(buf, h, s)
				}
				if _, _, err := w.Append(f, payload); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
